"""Coordinates that training reads: three ways to them, and the head that is turned back to the features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import STATES
from ytuning.encoder.encoder import load_encoder
from ytuning.features.codecs import PcaCoordinates, PcaInt8Codec, ProjectedReader
from ytuning.features.features import TextFeatures, stored_features
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledConfig, PooledHead
from ytuning.progress import Progress
from ytuning.system.machine import workers
from ytuning.training import batches as reduction
from ytuning.training.batches import Projection, project_features

ROWS = np.arange(10, 110)


@pytest.fixture
def stored(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], request: pytest.FixtureRequest, tmp_path: Path
) -> TextFeatures:
    """The toy rows in a store of the codec that a test names."""
    encoder = load_encoder(tiny_encoder, precision="fp32")
    inputs = [(text, None) for text in toy_rows[0]]
    return stored_features(inputs, encoder, FeatureStore(tmp_path), Progress(), codec=request.param, states=STATES)[0]


def reduced(features: TextFeatures) -> Projection:
    with workers() as pool:
        return project_features(features, torch.from_numpy(ROWS), pool, Progress())


@pytest.mark.parametrize("stored", ["fp16", "int8"], indirect=True)
def test_a_copy_holds_the_projection_of_every_row(stored: TextFeatures) -> None:
    found = reduced(stored)
    assert isinstance(found.features, TextFeatures) and isinstance(found.features.codec, PcaCoordinates)
    size = stored.layers * stored.width
    torch.testing.assert_close(found.components @ found.components.T, torch.eye(size // 2), atol=1e-5, rtol=0)
    for row in map(int, ROWS):
        values, mask = stored.batch(torch.tensor([row]))
        coordinates, there = found.features.batch(torch.tensor([row]))
        assert coordinates.shape == (1, values.shape[1], 1, size // 2) and torch.equal(mask, there)
        by_hand = values.flatten(2) @ found.components.T
        error = (coordinates[:, :, 0] - by_hand).norm() / by_hand.norm()
        assert error < 0.02  # int8


@pytest.mark.parametrize("stored", ["int8"], indirect=True)
def test_rows_too_many_for_a_copy_are_projected_as_they_come(
    stored: TextFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = reduced(stored)
    monkeypatch.setattr(reduction, "COPY_BYTES", 1000)
    projected = reduced(stored)
    assert isinstance(projected.features, TextFeatures) and isinstance(projected.features.codec, ProjectedReader)
    assert torch.equal(copied.components, projected.components)
    batch = torch.from_numpy(ROWS[:30])
    first, second = copied.features.batch(batch)[0], projected.features.batch(batch)[0]
    assert first.shape == second.shape and (first - second).norm() / second.norm() < 0.02


@pytest.mark.parametrize("stored", ["compact"], indirect=True)
def test_a_compact_store_is_read_as_it_is(stored: TextFeatures) -> None:
    assert isinstance(stored.codec, PcaInt8Codec)
    found = reduced(stored)
    batch = torch.from_numpy(ROWS[:20])
    values, _ = stored.batch(batch)
    coordinates, _ = found.features.batch(batch)
    torch.testing.assert_close(coordinates.flatten(2) @ found.components, values.flatten(2), atol=1e-4, rtol=1e-4)
    assert stored.batch(batch)[0].shape == values.shape  # the features themselves are as before


@pytest.mark.parametrize("stored", ["int8"], indirect=True)
def test_a_head_on_coordinates_becomes_one_on_features(stored: TextFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "COPY_BYTES", 0)  # which would round
    found = reduced(stored)
    torch.manual_seed(0)
    head = PooledHead(PooledConfig(members=2, width=8), labels=3, layers=1, width=found.features.width).eval()
    wide = head.fold_projection(found.components)
    assert not wide.training and wide.token_map.shape[1] == stored.layers * stored.width
    batch = torch.from_numpy(ROWS[:40])
    with torch.no_grad():
        torch.testing.assert_close(wide(*stored.batch(batch)), head(*found.features.batch(batch)), atol=1e-5, rtol=1e-4)


def test_first_weights_are_scaled_by_the_energy() -> None:
    plain, scaled = (
        PooledHead(PooledConfig(), labels=2, layers=1, width=256, energy=energy).token_map.detach().std()
        for energy in (1.0, 4.0)
    )
    assert float(plain / scaled) == pytest.approx(2.0, rel=0.05)

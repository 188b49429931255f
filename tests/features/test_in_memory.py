"""Features in memory are those of the store: tokens that were decoded once, means and pools of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import STATES
from ytuning.encoder.encoder import load_encoder
from ytuning.features import in_memory
from ytuning.features.features import Features, PairFeatures, TextFeatures, stored_features
from ytuning.features.in_memory import LivePools, TextVectors, decoded_features, mean_features, pool_features
from ytuning.features.store import FeatureStore
from ytuning.heads.light import LightConfig, LightHead
from ytuning.heads.pooled import LabelTuningConfig, LabelTuningHead
from ytuning.progress import Progress
from ytuning.system.machine import workers
from ytuning.training.fit import logits_of

ROWS = torch.arange(10, 110)


@pytest.fixture
def stored(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], request: pytest.FixtureRequest, tmp_path: Path
) -> TextFeatures:
    """The toy rows in a store of the codec that a test names."""
    encoder = load_encoder(tiny_encoder, precision="fp32")
    inputs = [(text, None) for text in toy_rows[0]]
    return stored_features(inputs, encoder, FeatureStore(tmp_path), Progress(), codec=request.param, states=STATES)[0]


# --- means of tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["int8", "compact"], indirect=True)
def test_a_head_that_reads_means_gives_the_logits_of_all_tokens(stored: TextFeatures) -> None:
    rows = torch.arange(len(stored))
    pairs = PairFeatures(stored, rows, rows.flip(0))
    for features in (stored, pairs):
        mode = features.pair_mode
        head = LabelTuningHead(
            LabelTuningConfig(), labels=3, layers=features.layers, width=features.width, pair_mode=mode
        )
        torch.nn.init.normal_(head.label_rows, generator=torch.Generator().manual_seed(0))
        with workers() as pool:
            means = mean_features(features, pool)
        assert len(means) == len(features) and means.lengths.equal(features.lengths)
        values, mask = means.batch(rows[:8])
        assert values.shape[1:] == (1, features.layers, features.width) and bool(mask.all())
        np.testing.assert_allclose(logits_of(head.eval(), means), logits_of(head, features), atol=1e-4)
        assert means.truncated_rows.tolist() == features.truncated_rows.tolist()


@pytest.mark.parametrize("stored", ["int8"], indirect=True)
def test_means_that_would_take_too_much_memory_are_not_kept(stored: TextFeatures) -> None:
    size = len(stored) * stored.layers * stored.width * 4
    with workers() as pool:
        assert mean_features(stored, pool, most_bytes=size - 1) is stored
        means = mean_features(stored, pool, most_bytes=size)
        assert isinstance(means, TextVectors) and mean_features(means, pool) is means


# --- copies in memory -----------------------------------------------------------------------------------------------


def pairs_of(texts: TextFeatures) -> PairFeatures:
    """Pairs of texts of which some occur in several."""
    rows = torch.arange(len(texts))
    return PairFeatures(texts, rows, (3 * rows) % len(texts))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", ["int8", "compact"], indirect=True)
def test_decoded_features_are_those_of_the_store(
    stored: TextFeatures, dtype: torch.dtype, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several parts, so that the places of texts after the first count.
    monkeypatch.setattr(in_memory, "DECODED_TOKENS", 50)
    stored.dtype = dtype
    features: Features = pairs_of(stored) if pairs else stored
    with workers() as pool:
        copy = decoded_features(features, ROWS, pool)
        assert copy is not features and decoded_features(copy, ROWS, pool) is copy
    for ours, theirs in ((copy, features), (copy.at_positions([1]), features.at_positions([1]))):
        for rows in (ROWS[:7], ROWS[torch.randperm(len(ROWS))], ROWS[[5, 5, 90]]):
            (values, mask), (expected, there) = ours.batch(rows), theirs.batch(rows)
            assert values.dtype == dtype and torch.equal(values, expected) and torch.equal(mask, there)
    assert copy.lengths.equal(features.lengths) and copy.layers == features.layers
    if isinstance(copy, TextFeatures):
        assert torch.equal(copy.selected(ROWS[[9, 2]]).batch(torch.arange(2))[0], copy.batch(ROWS[[9, 2]])[0])


@pytest.mark.parametrize("stored", ["int8"], indirect=True)
def test_a_copy_that_would_take_too_much_memory_is_not_made(stored: TextFeatures) -> None:
    size = int(stored.lengths[ROWS].sum()) * stored.layers * stored.width * 4
    with workers() as pool:
        assert decoded_features(stored, ROWS, pool, most_bytes=size - 1) is stored
        assert decoded_features(stored, ROWS, pool, most_bytes=size) is not stored


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("stored", ["int8", "compact"], indirect=True)
def test_pools_in_memory_are_those_of_the_tokens(stored: TextFeatures, pairs: bool) -> None:
    features: Features = pairs_of(stored) if pairs else stored
    with workers() as pool:
        pools = pool_features(features, ROWS, pool)
        live = pool_features(features, ROWS, pool, most_bytes=0)
    assert isinstance(live.texts if isinstance(live, PairFeatures) else live, LivePools)
    if isinstance(live, LivePools):
        assert torch.equal(live.selected(ROWS[[9, 2]]).batch(torch.arange(2))[0], live.batch(ROWS[[9, 2]])[0])
    mode = features.pair_mode
    head = LightHead(LightConfig(), labels=2, layers=features.layers, width=features.width, pair_mode=mode)
    assert pools.layers == 3 * features.layers
    for rows in (ROWS[:5], ROWS[torch.randperm(len(ROWS))]):
        numbers = head.text(*pools.batch(rows))
        np.testing.assert_allclose(numbers.numpy(), head.text(*features.batch(rows)).numpy(), rtol=2e-3, atol=2e-3)
        assert torch.equal(numbers, head.text(*live.batch(rows)))
        if isinstance(pools, TextFeatures) and isinstance(live, TextFeatures):
            some = rows[[3, 1, 3]]
            assert torch.equal(pools.selected(some).batch(torch.arange(3))[0], pools.batch(some)[0])

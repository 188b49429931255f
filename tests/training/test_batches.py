"""What training reads: every row once an epoch, blocks of a large store, and coordinates of the features."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import STATES
from ytuning.encoder.encoder import load_encoder
from ytuning.features.codecs import Float16Codec, PcaCoordinates, ProjectedReader
from ytuning.features.features import PairFeatures, TextFeatures, stored_features
from ytuning.features.store import FeatureStore, StoredRows
from ytuning.heads.pooled import LabelTuningConfig, LabelTuningHead, PooledConfig, PooledHead
from ytuning.progress import Progress
from ytuning.system.machine import workers
from ytuning.training.batches import MeanFeatures, Projection, mean_features, project_features, shuffled_batches
from ytuning.training.fit import logits_of

# --- batches ---------------------------------------------------------------------------------------------------------


class InMemory(TextFeatures):
    """Zeros of one state that lie in the order of the rows, in arrays of equally many rows."""

    def __init__(self, lengths: Tensor, arrays: int = 1, width: int = 8) -> None:
        count = len(lengths)
        array = np.arange(count) * arrays // count
        starts = np.zeros(count, np.int64)
        parts = []
        for number in range(arrays):
            rows = np.flatnonzero(array == number)
            sizes = lengths[torch.from_numpy(rows)].numpy()
            starts[rows] = np.cumsum(sizes) - sizes
            parts.append(np.zeros((int(sizes.sum()), 2 * width), np.uint8))
        stored = StoredRows(parts, array, starts, lengths.numpy(), np.zeros(count, bool), Float16Codec(1, width))
        super().__init__(stored, torch.float32)


class LargerThanMemory(InMemory):
    """A store that is read in blocks of eight rows."""

    def bytes_of(self, rows: Tensor) -> int:
        return 1 << 40

    def blocks(self, rows: Tensor) -> list[Tensor]:
        return list(self.in_order(rows).split(8))


def random_lengths(count: int, most: int) -> Tensor:
    return torch.randint(1, most, (count,), generator=torch.Generator().manual_seed(0))


stores = pytest.mark.parametrize("store", [InMemory, LargerThanMemory])


@stores
@pytest.mark.parametrize(("rows", "size"), [(100, 16), (16, 16), (700, 10), (700, 20), (5, 16)])
def test_every_row_once_an_epoch(store: type[InMemory], rows: int, size: int) -> None:
    features = store(random_lengths(1000, 30), arrays=3)
    chosen = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:rows]
    stream = shuffled_batches(features.lengths, chosen, size, seed=0, stored=features)
    epochs = []
    for _ in range(3):
        epoch: list[int] = []
        while len(epoch) < rows:
            batch = next(stream)
            assert 0 < len(batch) <= size
            epoch.extend(batch.tolist())
        epochs.append(epoch)
        assert sorted(epoch) == sorted(chosen.tolist())
    assert rows <= size or epochs[0] != epochs[1]


@stores
def test_same_seed_same_order(store: type[InMemory]) -> None:
    features = store(random_lengths(300, 30))
    first, again, other = (
        shuffled_batches(features.lengths, torch.arange(300), 16, seed, stored=features) for seed in (4, 4, 5)
    )
    orders = [torch.cat([next(stream) for _ in range(20)]).tolist() for stream in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]


@stores
def test_batches_hold_rows_of_similar_length(store: type[InMemory]) -> None:
    lengths = random_lengths(512, 100)
    stream = shuffled_batches(lengths, torch.arange(512), 16, seed=0, stored=store(lengths))
    batches = [next(stream) for _ in range(math.ceil(512 / 16))]
    spreads = [int(lengths[rows].max() - lengths[rows].min()) for rows in batches]
    assert sum(spreads) / len(spreads) < 20  # of rows drawn at random: about 90


def test_blocks_are_runs_of_neighbours() -> None:
    lengths = random_lengths(200, 30)
    features = InMemory(lengths, arrays=2, width=1024)
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(2))[:150]
    blocks = features.blocks(rows)
    assert torch.cat(blocks).tolist() == sorted(rows.tolist())
    assert len(blocks) > 10
    for block in blocks:
        assert len(set((block >= 100).tolist())) == 1  # of one array
        first, last = int(block[0]), int(block[-1])
        assert int(lengths[first:last].sum()) * 2048 <= (256 << 10) + 30 * 2048


def test_rows_of_a_block_come_close_together_and_mixed() -> None:
    features = LargerThanMemory(torch.full((4096,), 10))
    stream = shuffled_batches(features.lengths, torch.arange(4096), 16, seed=0, stored=features)
    pool = torch.cat([next(stream) for _ in range(32)])  # 512 rows of 64 blocks
    assert len(set((pool // 8).tolist())) == 64
    assert len(set((pool[:16] // 8).tolist())) > 4  # a batch mixes them


# --- coordinates -----------------------------------------------------------------------------------------------------

ROWS = torch.arange(10, 110)


@pytest.fixture
def stored(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], request: pytest.FixtureRequest, tmp_path: Path
) -> TextFeatures:
    """The toy rows in a store of the codec that a test names."""
    encoder = load_encoder(tiny_encoder, precision="fp32")
    inputs = [(text, None) for text in toy_rows[0]]
    return stored_features(inputs, encoder, FeatureStore(tmp_path), Progress(), codec=request.param, states=STATES)[0]


def projected(features: TextFeatures, copy_bytes: int = 1 << 20) -> Projection:
    with workers() as pool:
        return project_features(features, ROWS, pool, Progress(), copy_bytes=copy_bytes)


def by_hand(values: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Coordinates (B, T, states, R) of features (B, T, L, D)."""
    groups = [(0,), (0, 1), (1,)] if values.shape[2] == 2 else [(0,)]
    components = projection.components[: len(groups)]
    parts = [values[:, :, group].flatten(2) @ own.T for group, own in zip(groups, components, strict=True)]
    return torch.cat(parts, 2).unflatten(2, (-1, values.shape[3] // 2))


@pytest.mark.parametrize("stored", ["fp16", "int8", "compact"], indirect=True)
def test_a_copy_holds_the_projection_of_every_row(stored: TextFeatures) -> None:
    copy = projected(stored)
    assert isinstance(copy.features, TextFeatures) and isinstance(copy.features.codec, PcaCoordinates)
    assert [own.shape for own in copy.components] == [(16, 32), (32, 64), (16, 32)]
    for own in copy.components:
        torch.testing.assert_close(own @ own.T, torch.eye(len(own)), atol=1e-5, rtol=0)
    for row in ROWS.split(1):
        values, mask = stored.batch(row)
        coordinates, there = copy.features.batch(row)
        expected = by_hand(values, copy)
        assert coordinates.shape == expected.shape and torch.equal(mask, there)
        error = (coordinates - expected).norm() / expected.norm()
        assert error < 0.02  # int8


@pytest.mark.parametrize("copy_bytes", [0, 1 << 20])
@pytest.mark.parametrize("stored", ["fp16"], indirect=True)
def test_a_single_hidden_state_is_projected_once(stored: TextFeatures, copy_bytes: int) -> None:
    alone = stored.at_positions([1])
    projection = projected(alone, copy_bytes)
    assert not projection.apart and [own.shape for own in projection.components] == [(16, 32)] * 3
    values, coordinates = (features.batch(ROWS[:20])[0] for features in (alone, projection.features))
    expected = by_hand(values, projection)
    assert coordinates.shape == expected.shape and (coordinates - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("stored", ["int8", "compact"], indirect=True)
def test_rows_too_many_for_a_copy_are_projected_as_they_come(stored: TextFeatures) -> None:
    copied, read = projected(stored), projected(stored, copy_bytes=1000)
    assert isinstance(read.features, TextFeatures) and isinstance(read.features.codec, ProjectedReader)
    assert all(torch.equal(*pair) for pair in zip(copied.components, read.components, strict=True))
    first, second = copied.features.batch(ROWS[:30])[0], read.features.batch(ROWS[:30])[0]
    assert first.shape == second.shape and (first - second).norm() / second.norm() < 0.02


@pytest.mark.parametrize("positions", [[0, 1], [1]])
@pytest.mark.parametrize("stored", ["int8"], indirect=True)
def test_a_head_on_coordinates_becomes_one_on_features(stored: TextFeatures, positions: list[int]) -> None:
    stored = stored.at_positions(positions)
    projection = projected(stored, copy_bytes=0)  # a copy would round
    torch.manual_seed(0)
    config, width = PooledConfig(side_by_side=2, width=8), projection.features.width
    head = PooledHead(config, labels=3, layers=stored.layers, width=width, apart=projection.apart).eval()
    wide = head.fold_projection(projection.components)
    assert not wide.training and not wide.apart and wide.last_map.shape[2] == stored.width
    with torch.no_grad():
        logits = head(*projection.features.batch(ROWS[:40]))
        torch.testing.assert_close(wide(*stored.batch(ROWS[:40])), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["lowest_map", "shared_map", "last_map"])
def test_first_weights_are_scaled_by_the_energy(name: str) -> None:
    plain, scaled = (
        getattr(PooledHead(PooledConfig(), labels=2, layers=3, width=256, energy=energy), name).detach().std()
        for energy in (1.0, 4.0)
    )
    assert float(plain / scaled) == pytest.approx(2.0, rel=0.05)


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
        assert isinstance(means, MeanFeatures) and mean_features(means, pool) is means

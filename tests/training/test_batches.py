"""What training reads: every row once an epoch, blocks of a large store, and copies in memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import STATES
from ytuning.encoder.encoder import load_encoder
from ytuning.features.codecs import Float16Codec
from ytuning.features.features import Features, PairFeatures, TextFeatures, stored_features
from ytuning.features.store import FeatureStore, StoredRows
from ytuning.heads.light import LightConfig, LightHead
from ytuning.heads.pooled import LabelTuningConfig, LabelTuningHead
from ytuning.progress import Progress
from ytuning.system.machine import workers
from ytuning.training import batches
from ytuning.training.batches import (
    LivePools,
    TextVectors,
    decoded_features,
    mean_features,
    pool_features,
    shuffled_batches,
)
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


# --- stored features ------------------------------------------------------------------------------------------------

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
    monkeypatch.setattr(batches, "DECODED_TOKENS", 50)
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

"""The order in which training reads rows: every row once an epoch, and blocks of a large store."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ytuning.features.codecs import Float16Codec
from ytuning.features.features import TextFeatures
from ytuning.features.store import StoredRows
from ytuning.training.batches import shuffled_batches


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

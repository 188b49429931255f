"""The order of rows: every row once an epoch, similar lengths, and whole blocks of a large store."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ytuning.features import features as features_module
from ytuning.features.codecs import Float16Codec
from ytuning.features.features import TextFeatures
from ytuning.features.store import StoredRows
from ytuning.training import batches as sampling
from ytuning.training.batches import shuffled_batches


def stored(lengths: Tensor, arrays: int = 1) -> TextFeatures:
    """TextFeatures of width 8 that lie in the order of the rows, in arrays of equally many rows."""
    count = len(lengths)
    array = np.arange(count) * arrays // count
    starts = np.zeros(count, np.int64)
    parts = []
    for number in range(arrays):
        rows = np.flatnonzero(array == number)
        sizes = lengths[torch.from_numpy(rows)].numpy()
        starts[rows] = np.cumsum(sizes) - sizes
        parts.append(np.zeros((int(sizes.sum()), 16), np.uint8))
    truncated = np.zeros(count, bool)
    return TextFeatures(StoredRows(parts, array, starts, lengths.numpy(), truncated, Float16Codec(1, 8)), torch.float32)


def random_lengths(count: int, most: int) -> Tensor:
    return torch.randint(1, most, (count,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["memory", "blocks"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows that are in memory, and rows that are read in blocks of a few of them."""
    if request.param == "blocks":
        monkeypatch.setattr(sampling, "IN_MEMORY", 0)
        monkeypatch.setattr(sampling, "FEWEST_BLOCKS", 4)
        monkeypatch.setattr(features_module, "BLOCK_BYTES", 2048)
    return str(request.param)


@pytest.mark.parametrize(("rows", "size"), [(100, 16), (16, 16), (700, 20), (5, 16)])
def test_every_row_once_an_epoch(rows: int, size: int, kind: str) -> None:
    features = stored(random_lengths(1000, 30), arrays=3)
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


def test_same_seed_same_order(kind: str) -> None:
    features = stored(random_lengths(300, 30))
    first, again, other = (
        shuffled_batches(features.lengths, torch.arange(300), 16, seed, stored=features) for seed in (4, 4, 5)
    )
    orders = [torch.cat([next(stream) for _ in range(20)]).tolist() for stream in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]


def test_batches_hold_rows_of_similar_length(kind: str) -> None:
    lengths = random_lengths(512, 100)
    stream = shuffled_batches(lengths, torch.arange(512), 16, seed=0, stored=stored(lengths))
    batches = [next(stream) for _ in range(math.ceil(512 / 16))]
    spreads = [int(lengths[rows].max() - lengths[rows].min()) for rows in batches]
    assert sum(spreads) / len(spreads) < 20  # of rows drawn at random: about 90


def test_blocks_are_runs_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "BLOCK_BYTES", 1000)
    lengths = random_lengths(200, 30)
    features = stored(lengths, arrays=2)
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(2))[:150]
    blocks = features.blocks(rows)
    assert torch.cat(blocks).tolist() == sorted(rows.tolist())
    assert len(blocks) > 10
    for block in blocks:
        assert len(set((block >= 100).tolist())) == 1  # of one array
        first, last = int(block[0]), int(block[-1])
        assert int(lengths[first:last].sum()) * 16 <= 1000 + 30 * 16


def test_rows_of_a_block_come_close_together_and_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "IN_MEMORY", 0)
    monkeypatch.setattr(sampling, "SORTED_BATCHES", 4)
    monkeypatch.setattr(sampling, "FEWEST_BLOCKS", 8)
    monkeypatch.setattr(features_module, "BLOCK_BYTES", 16 * 10 * 8)  # eight rows
    features = stored(torch.full((4096,), 10))
    stream = shuffled_batches(features.lengths, torch.arange(4096), 16, seed=0, stored=features)
    pool = torch.cat([next(stream) for _ in range(4)])  # 64 rows of eight blocks
    assert len(set((pool // 8).tolist())) == 8
    assert len(set((pool[:16] // 8).tolist())) > 4  # one batch does not hold one block

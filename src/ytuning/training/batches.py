"""The order in which training reads rows: in shuffled batches.

A batch holds rows of similar length. Those that are scattered over a store many times the size of the memory cost a
read from the disk each. So there whole blocks of neighbouring rows are drawn at random, enough of them for many batches
at once, and the rows of those are shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ytuning.features.features import Features

__all__ = ["sample_rows", "shuffled_batches"]

# Shuffled rows are sorted by length within this number of batches, which saves most of the padding.
SORTED_BATCHES = 32
# At least this number of blocks is drawn at a time, because few blocks would mix few rows.
FEWEST_BLOCKS = 64
# The system's cache is expected to hold this number of bytes of features; more are read in blocks.
IN_MEMORY = 1 << 30


def shuffled_batches(
    lengths: Tensor, rows: Tensor, size: int, seed: int, *, stored: Features | None = None
) -> Iterator[Tensor]:
    """Yield endless batches of ``size`` rows of similar length; each epoch has every row once.

    Args:
        lengths: (all rows,) int64 tokens.
        rows: (N,) int64 positions of those to read.
        size: B, rows of a batch; the last ones of a pool may be fewer.
        seed: seed of the order.
        stored: features of all rows, if they may lie in a store larger than the memory.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = stored.blocks(rows) if stored is not None and stored.bytes_of(rows) > IN_MEMORY else None
    while True:
        if stored is None or blocks is None:
            pools = rows[torch.randperm(len(rows), generator=generator)].split(size * SORTED_BATCHES)
            # Batches of all pools are mixed: those of one would follow each other.
            groups = iter([[batch for pool in pools for batch in _by_length(lengths, pool, size)]])
        else:
            # Batches of one pool follow each other, for their rows are in memory now.
            groups = (_by_length(lengths, pool, size) for pool in _pools(stored, blocks, size, generator))
        for batches in groups:
            order = torch.randperm(len(batches), generator=generator).tolist()
            yield from (batches[position] for position in order)


def _by_length(lengths: Tensor, pool: Tensor, size: int) -> list[Tensor]:
    """Batches (B,) of rows of similar length."""
    return list(pool[torch.argsort(lengths[pool], stable=True)].split(size))


def _pools(features: Features, blocks: list[Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """An epoch's blocks in random order, some at a time as one shuffled pool of rows."""
    drawn: list[Tensor] = []
    for position in torch.randperm(len(blocks), generator=generator).tolist():
        drawn.append(blocks[position])
        if len(drawn) >= FEWEST_BLOCKS and sum(map(len, drawn)) >= size * SORTED_BATCHES:
            yield _shuffled_rows(features, drawn, generator)
            drawn = []
    if drawn:
        yield _shuffled_rows(features, drawn, generator)


def _shuffled_rows(features: Features, drawn: list[Tensor], generator: torch.Generator) -> Tensor:
    """The rows of the drawn blocks, mixed; all blocks are asked for first, so that the disk reads them together."""
    for block in drawn:
        features.prefetch(block)
    pool = torch.cat(drawn)
    return pool[torch.randperm(len(pool), generator=generator)]


def sample_rows(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of rows (N,), in their order, drawn at random, because labels may follow each other in turn."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:most])]

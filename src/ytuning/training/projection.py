"""Features in the coordinates of their strongest directions, which training reads in place of the features.

Half as many numbers a token as the hidden states have hold nearly all of their energy: a head's token map then costs
half, and a token that training visits again and again comes from memory. The head that is trained so is turned into one
on the features themselves (`PooledHead.on_directions`), and no more is heard of the directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ytuning.features.codecs import PcaCoordinates, PcaInt8Codec, ProjectedReader
from ytuning.features.features import FIT_TOKENS, Features
from ytuning.features.pairs import PairedFeatures
from ytuning.features.store import StoredRows
from ytuning.progress import Progress
from ytuning.system.machine import Workers

__all__ = ["Reduced", "reduced_features"]

COPY_BYTES = 1 << 29  # largest copy: 1.4 million tokens of the default encoder
CHUNK_TOKENS = 8192  # read and written at a time


@dataclass(frozen=True)
class Reduced:
    """What training reads.

    Attributes:
        features: of the same rows, one state of width R: the coordinates.
        directions: (R, L * D) float32, orthonormal rows.
    """

    features: Features
    directions: Tensor


def reduced_features(features: Features, rows: np.ndarray, pool: Workers, progress: Progress) -> Reduced:
    """Coordinates of some rows' features; those of other rows are not to be read.

    A compact store holds coordinates already. Else they are fitted on these rows and copied into memory, or, where
    the copy would be too large, computed anew for each batch.

    Args:
        features: of all rows.
        rows: positions of the rows that training reads.
        pool: computes the copy.
        progress: is told how far the copy is.
    """
    if isinstance(features, PairedFeatures):
        found = reduced_features(features.texts, features.texts_of(torch.from_numpy(rows)).numpy(), pool, progress)
        return Reduced(features.of(found.features), found.directions)
    if isinstance(features.codec, PcaInt8Codec):
        return Reduced(features.seen_as(PcaCoordinates(features.codec)), torch.from_numpy(features.codec.components))
    compact = _fitted(features, rows)
    directions = torch.from_numpy(compact.components)
    tokens = int(features.lengths[torch.from_numpy(rows)].sum())
    if tokens * compact.row_bytes > COPY_BYTES:
        return Reduced(features.seen_as(ProjectedReader(features.codec, directions)), directions)
    return Reduced(_copied(features, rows, compact, pool, progress), directions)


def _fitted(features: Features, rows: np.ndarray) -> PcaInt8Codec:
    """Directions of a sample that is spread evenly over the rows."""
    total = int(features.lengths[torch.from_numpy(rows)].sum())
    sample = torch.from_numpy(rows[:: max(1, -(-total // FIT_TOKENS))])
    return PcaInt8Codec.fitted(features.tokens(sample).numpy())


def _copied(features: Features, rows: np.ndarray, compact: PcaInt8Codec, pool: Workers, progress: Progress) -> Features:
    """The rows' coordinates in memory, in the order in which the store holds them."""
    ordered = features.in_order(torch.from_numpy(rows))
    lengths = features.lengths[ordered]
    ends = lengths.cumsum(0)
    array = np.empty((int(ends[-1]), compact.row_bytes), np.uint8)
    chunks = torch.split(ordered, torch.bincount((ends - 1) // CHUNK_TOKENS).tolist())
    bounds = np.cumsum([0, *(int(features.lengths[chunk].sum()) for chunk in chunks)])

    def copy(number: int) -> None:
        array[bounds[number] : bounds[number + 1]] = compact.encode(features.tokens(chunks[number])).numpy()

    for first in range(0, len(chunks), 8):  # parts, so that Ctrl-C is heard between them
        pool.map(copy, range(first, min(first + 8, len(chunks))))
        progress.step("prepare", min(first + 8, len(chunks)), len(chunks))
    features.release()
    start = np.full(len(features), len(array))  # of other rows: out of bounds
    start[ordered.numpy()] = (ends - lengths).numpy()
    place = np.zeros(len(features), np.int64)
    stored = StoredRows(
        [array], place, start, features.lengths.numpy(), features.truncated_rows, PcaCoordinates(compact)
    )
    return Features(stored, features.dtype)

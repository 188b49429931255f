"""Features in the coordinates of their principal components, which training reads in place of the features.

Half as many numbers a token as the hidden states have hold nearly all of their energy: a head's token map then costs
half, and a token that training visits again and again comes from memory. The head that is trained so is turned into one
on the features themselves (`PooledHead.fold_projection`), and nothing else knows of the components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ytuning.features.codecs import FIT_TOKENS, PcaCoordinates, PcaInt8Codec, ProjectedReader
from ytuning.features.features import Features, PairFeatures, TextFeatures
from ytuning.features.store import StoredRows
from ytuning.progress import Progress
from ytuning.system.machine import Workers

__all__ = ["Projection", "project_features"]

# Largest copy: 1.4 million tokens of the default encoder.
COPY_BYTES = 1 << 29
# Tokens that are read and written at a time.
CHUNK_TOKENS = 8192


@dataclass(frozen=True)
class Projection:
    """What training reads.

    Attributes:
        features: of the same rows, one state of width R: the coordinates.
        components: (R, L * D) float32, orthonormal rows.
    """

    features: Features
    components: Tensor


def project_features(features: Features, rows: Tensor, pool: Workers, progress: Progress) -> Projection:
    """Coordinates of some rows' features; those of other rows are not to be read.

    A compact store holds coordinates already. Else they are fitted on these rows and copied into memory, or, where
    the copy would be too large, computed anew for each batch.

    Args:
        features: of all rows.
        rows: (N,) int64 positions of the rows that training reads.
        pool: computes the copy.
        progress: is told how far the copy is.
    """
    if isinstance(features, PairFeatures):
        # The distinct texts of the pairs are projected, each of them once.
        texts = project_features(features.texts, features.texts_of(rows), pool, progress)
        assert isinstance(texts.features, TextFeatures)
        return Projection(features.with_texts(texts.features), texts.components)
    assert isinstance(features, TextFeatures)
    if isinstance(features.codec, PcaInt8Codec):
        components = torch.from_numpy(features.codec.components)
        return Projection(features.seen_as(PcaCoordinates(features.codec)), components)
    compact = _fit_components(features, rows)
    components = torch.from_numpy(compact.components)
    if int(features.lengths[rows].sum()) * compact.row_bytes > COPY_BYTES:
        return Projection(features.seen_as(ProjectedReader(features.codec, components)), components)
    return Projection(_copy_coordinates(features, rows, compact, pool, progress), components)


def _fit_components(features: TextFeatures, rows: Tensor) -> PcaInt8Codec:
    """Components of a sample that is spread evenly over rows (N,)."""
    total = int(features.lengths[rows].sum())
    sample = rows[:: max(1, -(-total // FIT_TOKENS))]
    # (tokens, L, D)
    return PcaInt8Codec.fitted(features.tokens(sample).numpy())


def _copy_coordinates(
    features: TextFeatures, rows: Tensor, compact: PcaInt8Codec, pool: Workers, progress: Progress
) -> TextFeatures:
    """The coordinates of rows (N,) in memory, in the order in which the store holds them."""
    ordered = features.in_order(rows)
    lengths = features.lengths[ordered]
    ends = lengths.cumsum(0)
    array = np.empty((int(ends[-1]), compact.row_bytes), np.uint8)
    chunks = torch.split(ordered, torch.bincount((ends - 1) // CHUNK_TOKENS).tolist())
    bounds = np.cumsum([0, *(int(features.lengths[chunk].sum()) for chunk in chunks)])

    def copy(number: int) -> None:
        array[bounds[number] : bounds[number + 1]] = compact.encode(features.tokens(chunks[number])).numpy()

    # Eight chunks at a time, so that Ctrl-C is heard between them.
    for first in range(0, len(chunks), 8):
        pool.map(copy, range(first, min(first + 8, len(chunks))))
        progress.step("prepare", min(first + 8, len(chunks)), len(chunks))
    features.release()
    # Rows that were not copied start out of bounds, so that reading one by mistake fails.
    start = np.full(len(features), len(array))
    start[ordered.numpy()] = (ends - lengths).numpy()
    array_of_row = np.zeros(len(features), np.int64)
    stored = StoredRows(
        [array], array_of_row, start, features.lengths.numpy(), features.truncated_rows, PcaCoordinates(compact)
    )
    return TextFeatures(stored, features.dtype)

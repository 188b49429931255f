"""What training reads: features in the coordinates of their principal components, in shuffled batches.

Half as many numbers as a group of members reads hold most of their energy. So a head's token map costs half, and a
token that training visits again and again comes from memory. States that members read side by side have their
components together, because they have much in common; what other members read has components of its own. With three
hidden states a token has two thirds as many coordinates as numbers. The head that is trained so is turned into one on
the features themselves (`PooledHead.fold_projection`), and nothing else knows of the components.

A batch holds rows of similar length. Those that are scattered over a store many times the size of the memory cost a
read from the disk each. So there whole blocks of neighbouring rows are drawn at random, enough of them for many batches
at once, and the rows of those are shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ytuning.features.codecs import FIT_TOKENS, PcaCoordinates, ProjectedReader
from ytuning.features.features import Features, PairFeatures, TextFeatures, ordered_batches
from ytuning.features.store import StoredRows
from ytuning.heads.pooled import LabelTuningHead, state_groups
from ytuning.progress import Progress
from ytuning.system.machine import Workers

__all__ = ["MeanFeatures", "Projection", "mean_features", "project_features", "sample_rows", "shuffled_batches"]

# Shuffled rows are sorted by length within this number of batches, which saves most of the padding.
SORTED_BATCHES = 32
# At least this number of blocks is drawn at a time, because few blocks would mix few rows.
FEWEST_BLOCKS = 64
# The system's cache is expected to hold this number of bytes of features; more are read in blocks.
IN_MEMORY = 1 << 30
# Maximum size of a copy in bytes: 0.69 million tokens of the default encoder in its default hidden states.
COPY_BYTES = 1 << 29
# This number of tokens is read and written at a time.
CHUNK_TOKENS = 8192


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


class MeanFeatures(TextFeatures):
    """The mean token of each text, in memory: a batch has one token a row, (B, 1, L, D) float32.

    Their ``lengths`` are those of the texts, so that batches hold the rows that they would hold of all tokens.
    """

    is_resident = True

    def __init__(self, features: TextFeatures, means: Tensor) -> None:
        """Make them of the means (rows, L, D) float32 of the texts of ``features``."""
        vars(self).update(vars(features))
        self.dtype, self._means = means.dtype, means

    def at_positions(self, positions: Sequence[int]) -> MeanFeatures:
        """The same texts, of each only the means of the hidden states at these positions among the L."""
        return MeanFeatures(super().at_positions(positions), self._means[:, list(positions)])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Means (B, 1, L, D) of rows (B,), and a mask (B, 1) of True."""
        return self._means[indices][:, None], torch.ones(len(indices), 1, dtype=torch.bool)


def mean_features(features: Features, pool: Workers, *, most_bytes: int = COPY_BYTES) -> Features:
    """What heads that read nothing but the mean token of a text need of it, computed once for all steps and heads.

    Args:
        features: features of all rows on a CPU.
        pool: computes the means.
        most_bytes: size of the largest copy; where the means would take more, the features are given back as they are.
    """
    if isinstance(features, PairFeatures):
        texts = mean_features(features.texts, pool, most_bytes=most_bytes)
        assert isinstance(texts, TextFeatures)
        return features.with_texts(texts)
    size = len(features) * features.layers * features.width * torch.float32.itemsize
    if isinstance(features, MeanFeatures) or size > most_bytes:
        return features
    means = torch.empty(len(features), features.layers, features.width)

    def compute(rows: Tensor) -> None:
        with torch.inference_mode():
            means[rows] = LabelTuningHead.mean_states(*features.batch(rows))

    # Batches of the order in which the features are stored are read fastest.
    ordered = features.in_order(torch.arange(len(features)))
    pool.map(compute, [ordered[batch.sort().values] for batch in ordered_batches(features.lengths[ordered])])
    features.release()
    return MeanFeatures(features, means)


@dataclass(frozen=True)
class Projection:
    """What training reads.

    Attributes:
        features: the coordinates of the same rows, states of width R.
        components: of each of `heads.pooled.state_groups`, with S states, (S * R, S * D) float32, orthonormal rows.
        apart: whether the features hold the coordinates of one group after the other, S states for a group of S
            states, as heads do that are ``apart``. A single hidden state has one group, so they are not apart.
    """

    features: Features
    components: tuple[Tensor, ...]
    apart: bool


def project_features(
    features: Features, rows: Tensor, pool: Workers, progress: Progress, *, copy_bytes: int = COPY_BYTES
) -> Projection:
    """Coordinates of some rows' features; those of other rows are not to be read.

    The components are fitted on these rows. The coordinates are copied into memory or, where the copy would be too
    large, computed anew for each batch.

    Args:
        features: features of all rows.
        rows: (N,) int64 positions of the rows that training reads.
        pool: computes the copy.
        progress: is told how far the copy is.
        copy_bytes: size of the largest copy.
    """
    if isinstance(features, PairFeatures):
        # The distinct texts of the pairs are projected, each of them once.
        texts = project_features(features.texts, features.texts_of(rows), pool, progress, copy_bytes=copy_bytes)
        assert isinstance(texts.features, TextFeatures)
        return Projection(features.with_texts(texts.features), texts.components, texts.apart)
    assert isinstance(features, TextFeatures)
    # The components are those of a sample, which is spread evenly over the rows: (tokens, L, D).
    tokens = int(features.lengths[rows].sum())
    sample = features.tokens(rows[:: max(1, -(-tokens // FIT_TOKENS))])
    groups, apart = state_groups(features.layers), features.layers > 1
    coordinates = PcaCoordinates.fitted(sample.numpy(), groups if apart else groups[:1])
    components = coordinates.components if apart else coordinates.components * len(groups)
    if tokens * coordinates.row_bytes > copy_bytes:
        view = features.seen_as(ProjectedReader(features.codec, coordinates))
    else:
        view = _copy_coordinates(features, rows, coordinates, pool, progress)
    return Projection(view, components, apart)


def _copy_coordinates(
    features: TextFeatures, rows: Tensor, coordinates: PcaCoordinates, pool: Workers, progress: Progress
) -> TextFeatures:
    """The coordinates of rows (N,) in memory, in the order in which the store holds them."""
    ordered = features.in_order(rows)
    lengths = features.lengths[ordered]
    ends = lengths.cumsum(0)
    array = np.empty((int(ends[-1]), coordinates.row_bytes), np.uint8)
    chunks = torch.split(ordered, torch.bincount((ends - 1) // CHUNK_TOKENS).tolist())
    bounds = np.cumsum([0, *(int(features.lengths[chunk].sum()) for chunk in chunks)])

    def copy(number: int) -> None:
        array[bounds[number] : bounds[number + 1]] = coordinates.encode(features.tokens(chunks[number])).numpy()

    # Eight chunks are computed at a time, so that Ctrl-C is heard between them.
    for first in range(0, len(chunks), 8):
        pool.map(copy, range(first, min(first + 8, len(chunks))))
        progress.step("prepare", min(first + 8, len(chunks)), len(chunks))
    features.release()
    # Rows that were not copied start out of bounds, so that reading one by mistake fails.
    start = np.full(len(features), len(array))
    start[ordered.numpy()] = (ends - lengths).numpy()
    array_of_row = np.zeros(len(features), np.int64)
    stored = StoredRows([array], array_of_row, start, features.lengths.numpy(), features.truncated_rows, coordinates)
    return TextFeatures(stored, features.dtype)

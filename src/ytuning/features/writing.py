"""Writes features into the store in shards, and fits the basis that a space of compact features needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ytuning.encoder.encoder import Batches
from ytuning.features.codecs import Codec, PcaInt8Codec
from ytuning.features.store import FeatureSpace, WriteSizes
from ytuning.progress import Progress

__all__ = ["Source", "encoded", "write_features"]

# With fewer tokens for each component than this, the basis may fit other texts badly, and a warning says so.
FEWEST_FIT_TOKENS = 10

Source = Callable[[np.ndarray, Codec | None], tuple[np.ndarray, np.ndarray, Batches]]
"""Positions of texts (N,) -> their token counts (N,), whether each was cut (N,), and batches as of Encoder.encode, in a
codec where one is given."""


def write_features(
    space: FeatureSpace, keys: list[bytes], source: Source, progress: Progress, sizes: WriteSizes
) -> None:
    """Write the features of texts in shards; when it is interrupted, what is finished is written too.

    A space that has no basis yet gets it from a sample of the texts, which is held in memory and written first.
    """
    done, limit = 0, sizes.first_shard_bytes
    for window in _windows(len(keys), source if space.codec is None else None, sizes):
        lengths, truncated, batches = source(window, space.codec)
        if space.codec is None:
            held = list(batches)
            space.establish(_fitted([features for _, features in held], space, progress))
            batches = ((indices, encoded(torch.from_numpy(features), space.codec)) for indices, features in held)
        shard = _ShardBuffer(
            space, [keys[position] for position in window], lengths, truncated, (limit, sizes.shard_bytes)
        )
        try:
            for indices, rows in batches:
                shard.add(indices, rows)
                done += len(indices)
                progress.step("encode", done, len(keys))
        finally:
            shard.flush()
        limit = shard.limit


def _windows(count: int, unfitted: Source | None, sizes: WriteSizes) -> Iterator[np.ndarray]:
    """Positions of all texts in parts; the first part is what a basis should be fitted on, if one has to be.

    Within a part the encoder goes from short texts to long ones: its first tokens would stand for short texts only.
    """
    rest = np.arange(count)
    if unfitted is not None and count:
        lengths, _, _ = unfitted(rest[:: -(-count // 1024)], None)
        sample = rest[:: max(1, round(count * lengths.mean() / sizes.fit_tokens))]
        yield sample
        rest = np.delete(rest, sample)
    yield from (rest[first : first + sizes.window_texts] for first in range(0, len(rest), sizes.window_texts))


def encoded(features: torch.Tensor, codec: Codec | None) -> np.ndarray:
    """Features (tokens, L, D) in a codec, if one is given."""
    return (features if codec is None else codec.encode(features)).numpy()


def _fitted(batches: list[np.ndarray], space: FeatureSpace, progress: Progress) -> PcaInt8Codec:
    """The basis fitted on batches (tokens, L, D)."""
    tokens = np.concatenate(batches)
    basis = PcaInt8Codec.fitted(tokens)
    if len(tokens) < FEWEST_FIT_TOKENS * len(basis.weights):
        progress.say(
            f"the store's compact basis is fitted on {len(tokens):,} tokens only and may fit other texts badly: before "
            f"you add many, begin anew with ytuning cache remove {space.folder.name}"
        )
    return basis


class _ShardBuffer:
    """Gathers encoded batches in one buffer, so that no batch outlives its turn, and writes it when it is full.

    It is full at ``limit`` bytes, then at twice as many. The time does not matter, so that the same texts lie in the
    same shards on a slow machine.
    """

    def __init__(
        self,
        space: FeatureSpace,
        keys: list[bytes],
        lengths: np.ndarray,
        truncated: np.ndarray,
        limits: tuple[int, int],
    ) -> None:
        self.space, self.keys, self.lengths, self.truncated = space, keys, lengths, truncated
        self.limit, self.last_limit = limits
        self.buffer = np.empty((max(1, self.last_limit // space.row_bytes), space.row_bytes), np.uint8)
        self.rows: list[np.ndarray] = []
        self.used = 0

    def add(self, indices: np.ndarray, batch: np.ndarray) -> None:
        """Take a batch: positions of its texts (B,) and their encoded tokens (tokens, row bytes)."""
        if self.rows and self.used + len(batch) > min(len(self.buffer), self.limit // self.space.row_bytes):
            self.flush()
            self.limit = min(2 * self.limit, self.last_limit)
        if len(batch) > len(self.buffer):
            self.buffer = np.empty_like(batch)
        self.buffer[self.used : self.used + len(batch)] = batch
        self.rows.append(indices)
        self.used += len(batch)

    def flush(self) -> None:
        """Write what has been gathered, if anything."""
        if not self.rows:
            return
        rows, features = np.concatenate(self.rows), self.buffer[: self.used]
        self.rows, self.used = [], 0
        self.space.write([self.keys[row] for row in rows], self.lengths[rows], self.truncated[rows], features)

"""Writes features into the store in shards, and fits the basis that a space of compact features needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ytuning.encoder.encoder import Batches
from ytuning.features.codecs import Codec, PcaInt8Codec
from ytuning.features.keys import WantedKeys
from ytuning.features.store import FeatureSpace, WriteSizes
from ytuning.progress import Progress

__all__ = ["Source", "encoded", "establish_basis", "write_features"]

# With fewer tokens for each component than this, the basis may fit other texts badly, and a warning says so.
FEWEST_FIT_TOKENS = 10
# Of a writer that finds others at work: parts of its texts, and texts in a part.
FEWEST_PARTS, FEWEST_TEXTS = 16, 256
WAITING = "waiting for another process that fits the basis of the compact features"

Source = Callable[[np.ndarray, Codec | None, np.ndarray], tuple[np.ndarray, np.ndarray, Batches]]
"""Positions of texts (N,) -> their token counts (N,), whether each was cut (N,), and batches as of Encoder.encode, in a
codec where one is given. The last argument is (N,) bool, texts that are left out, to which some may be added later."""


def write_features(
    space: FeatureSpace, keys: list[bytes], source: Source, progress: Progress, sizes: WriteSizes, others: int
) -> np.ndarray:
    """Write the features of texts in shards; when it is interrupted, what is finished is written too.

    A space that has no basis yet gets it from a sample of the texts, which is held in memory and written first. Texts
    that other processes store meanwhile are left out, as soon as a shard tells that they are there.

    Args:
        space: lacks the texts.
        keys: of the texts.
        source: computes their features.
        progress: is told every batch.
        sizes: how much is computed and written at a time.
        others: how many other processes at work have begun before this one. It begins elsewhere in the texts, so that
            those who write the same texts share them.

    Returns:
        (texts,) bool, those that this process has written.
    """
    work = _Writing(space, keys, source, progress, sizes)
    if space.codec is None and keys:
        work.fit_basis()
    for window in _windows(len(keys), sizes.window_texts, others):
        work.write(window)
    return work.written


def _windows(count: int, size: int, others: int) -> Iterator[np.ndarray]:
    """Positions of all texts in parts of at most so many, of which who finds no others at work begins with the first.

    The second process begins halfway, the next ones at a quarter, at three quarters, at an eighth, and so on. After the
    end they go backwards from where they began, towards the one before. Their parts are small even of few texts,
    because only whole parts are left to others.
    """
    begin = count * int(f"{others:b}"[::-1], 2) >> others.bit_length()
    if others:
        size = min(size, max(FEWEST_TEXTS, -(-count // FEWEST_PARTS)))
    parts = [np.arange(first, min(first + size, count)) for first in range(begin, count, size)]
    parts += [np.arange(max(0, last - size), last) for last in range(begin, 0, -size)]
    yield from parts


def establish_basis(space: FeatureSpace, fit: Callable[[], PcaInt8Codec], progress: Progress) -> None:
    """Give a space its basis, unless another process does; see `FeatureSpace.establish`."""
    space.establish(fit, lambda: progress.say(WAITING))


class _Writing:
    """Texts on their way into a space.

    Attributes:
        written: (texts,) bool, those that this process has written.
    """

    def __init__(
        self, space: FeatureSpace, keys: list[bytes], source: Source, progress: Progress, sizes: WriteSizes
    ) -> None:
        self.space, self.keys, self.source, self.progress, self.sizes = space, keys, source, progress, sizes
        self.limit = sizes.first_shard_bytes
        self.written = np.zeros(len(keys), bool)
        # (texts,) bool: those that are written or in their buffer, or that others have stored; and how many these are.
        self._settled, self._done = np.zeros(len(keys), bool), 0
        self._wanted = WantedKeys(keys)

    def fit_basis(self) -> None:
        """Give the space a basis; if it is this process that fits it, write the texts that it is fitted on.

        The encoder goes from short texts to long ones: its first tokens would stand for short texts only. So they are
        texts spread evenly over all.
        """
        held: list[tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]] = []

        def fit() -> PcaInt8Codec:
            count = len(self.keys)
            first = np.arange(count)[:: -(-count // 1024)]
            lengths, _, _ = self.source(first, None, np.zeros(len(first), bool))
            sample = np.arange(count)[:: max(1, round(count * lengths.mean() / self.sizes.fit_tokens))]
            lengths, truncated, batches = self.source(sample, None, np.zeros(len(sample), bool))
            held.append((sample, lengths, truncated, list(batches)))
            return _fitted([features for _, features in held[0][3]], self.space, self.progress)

        establish_basis(self.space, fit, self.progress)
        for sample, lengths, truncated, batches in held:
            codec = self.space.codec
            in_codec = ((indices, encoded(torch.from_numpy(features), codec)) for indices, features in batches)
            self._write(sample, np.zeros(len(sample), bool), (lengths, truncated, in_codec))

    def write(self, window: np.ndarray) -> None:
        """Write the texts at these positions, but for those that others have stored by the time of their turn."""
        self._look()
        window = window[~self._settled[window]]
        if len(window):
            left_out = np.zeros(len(window), bool)
            self._write(window, left_out, self.source(window, self.space.codec, left_out))

    def _write(self, window: np.ndarray, left_out: np.ndarray, texts: tuple[np.ndarray, np.ndarray, Batches]) -> None:
        """Write what a source gives for a window, and tell the source which texts it can leave out by ``left_out``."""
        lengths, truncated, batches = texts
        limits = (self.limit, self.sizes.shard_bytes)
        shard = _ShardBuffer(self.space, [self.keys[row] for row in window], lengths, truncated, limits)
        try:
            for indices, rows in batches:
                is_shard_written = shard.add(indices, rows)
                self.written[window[indices]] = True
                self._settle(window[indices])
                if is_shard_written:
                    self._look()
                    left_out[:] = self._settled[window]
        finally:
            shard.flush()
        self.limit = shard.limit

    def _look(self) -> None:
        """Take in what others have stored since the last look."""
        if taken := self.space.refresh():
            self._settle(np.flatnonzero(self.space.holds(self._wanted, taken)))

    def _settle(self, texts: np.ndarray) -> None:
        """Tell that texts at these positions, each once, need no more work."""
        self._done += int((~self._settled[texts]).sum())
        self._settled[texts] = True
        self.progress.step("encode", self._done, len(self.keys))


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

    def add(self, indices: np.ndarray, batch: np.ndarray) -> bool:
        """Take a batch: positions of its texts (B,) and their encoded tokens (tokens, row bytes).

        Returns:
            Whether a shard was written, because there was no room for the batch.
        """
        full = bool(self.rows) and self.used + len(batch) > min(len(self.buffer), self.limit // self.space.row_bytes)
        if full:
            self.flush()
            self.limit = min(2 * self.limit, self.last_limit)
        if len(batch) > len(self.buffer):
            self.buffer = np.empty_like(batch)
        self.buffer[self.used : self.used + len(batch)] = batch
        self.rows.append(indices)
        self.used += len(batch)
        return full

    def flush(self) -> None:
        """Write what has been gathered, if anything."""
        if not self.rows:
            return
        rows, features = np.concatenate(self.rows), self.buffer[: self.used]
        self.rows, self.used = [], 0
        self.space.write([self.keys[row] for row in rows], self.lengths[rows], self.truncated[rows], features)

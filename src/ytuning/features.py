"""Texts -> token features, computing only what the store lacks."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ytuning.encoder import Encoder, TextInput, TokenizedTexts
from ytuning.errors import StoreError
from ytuning.progress import Progress
from ytuning.store import FeatureSpace, FeatureStore, StoredRows, text_key

__all__ = ["CacheUse", "Features", "live_features", "ordered_batches", "stored_features"]

SHARD_BYTES = 256 << 20  # what a killed run loses at most
WINDOW_TEXTS = 16_384  # tokenised and sorted by length at a time, so that memory does not grow with the data
RESIDENT_BYTES = 48 << 20  # gathered from the store before its pages are let go of; a page brings in its neighbours
# Batches are padded to a multiple of so many tokens: in bfloat16 oneDNN computes, which compiles, and keeps in memory,
# every shape that it meets. In float32 another library does, and padding would only cost time.
LENGTH_STEP = {torch.bfloat16: 4, torch.float32: 1}
ATTEMPTS = 3  # at reading back what was just written, before the disk is called bad


@dataclass(frozen=True)
class CacheUse:
    """How a data set met the store.

    Attributes:
        hits: distinct texts that were stored.
        misses: distinct texts that the encoder had to read.
        bytes: that the features of all of them take in the store.
    """

    hits: int
    misses: int
    bytes: int


class Features:
    """Frozen token features of the rows of a data set, gathered batch by batch from where they lie.

    Attributes:
        lengths: (rows,) int64 tensor; tokens of each row.
        truncated_rows: (rows,) bool array; whether the row's text was cut at the encoder's maximum length.
        layers: L, hidden states kept of each token.
        width: D, size of a hidden state.
        dtype: of the batches: bfloat16 where the encoder computed in it, which loses nothing, else float32.
    """

    def __init__(self, rows: StoredRows, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._arrays = [torch.from_numpy(array) for array in rows.arrays]
        self._array, self._start = torch.from_numpy(rows.array), torch.from_numpy(rows.start)
        self._maps, self._gathered = rows.maps, 0
        self.lengths = torch.from_numpy(rows.length)
        self.truncated_rows = rows.truncated
        self.layers, self.width = (int(size) for size in rows.arrays[0].shape[1:])

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of some rows.

        Args:
            indices: (B,) int64.

        Returns:
            ``values`` (B, T, L, D) and ``mask`` (B, T) bool, True at a row's tokens. Beyond them ``values`` repeats
            the row's last token: a head must mask, and finite values keep a forgotten mask from making NaN.
        """
        lengths = self.lengths[indices]
        step = LENGTH_STEP[self.dtype]
        positions = torch.arange(-(-int(lengths.max()) // step) * step)  # (T,)
        tokens = self._start[indices, None] + torch.minimum(positions, lengths[:, None] - 1)  # (B, T)
        array = self._array[indices]
        numbers = array.unique().tolist()
        if len(numbers) == 1:
            stored = self._arrays[numbers[0]].index_select(0, tokens.flatten())
        else:
            stored = torch.empty(*tokens.shape, self.layers, self.width, dtype=torch.float16)
            for number in numbers:
                rows = (array == number).nonzero()[:, 0]
                found = self._arrays[number].index_select(0, tokens[rows].flatten())
                stored.index_copy_(0, rows, found.view(len(rows), *stored.shape[1:]))
        self._gathered += stored.nbytes
        if self._gathered > RESIDENT_BYTES:
            self.release()
        values = _converted(stored.view(-1, self.layers * self.width), self.dtype)
        return values.view(*tokens.shape, self.layers, self.width), positions < lengths[:, None]

    def release(self) -> None:
        """Let go of the pages of the store that reading has brought into memory (they stay in the system's cache)."""
        self._gathered = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            for view in self._maps:
                view.madvise(mmap.MADV_DONTNEED)


def ordered_batches(lengths: torch.Tensor, tokens: int = 4096) -> Iterator[torch.Tensor]:
    """All rows once, in batches of similar length of about ``tokens`` tokens, padding included."""
    order = torch.argsort(lengths, stable=True)
    position = 0
    while position < len(order):
        # The last row of the batch is its longest; sizes shrink as rows grow.
        size = max(1, tokens // int(lengths[order[position]]))
        while size > 1 and size * int(lengths[order[min(position + size, len(order)) - 1]]) > tokens:
            size -= max(1, size // 8)
        yield order[position : position + size]
        position += size


def stored_features(
    inputs: Sequence[TextInput], encoder: Encoder, store: FeatureStore, progress: Progress
) -> tuple[Features, CacheUse]:
    """Features of texts or pairs through the store; the encoder reads only texts that the store lacks, once.

    A killed run keeps every finished shard; calling again goes on from there. A damaged shard is named, set aside and
    computed again. Two processes that need the same texts compute them once.

    Raises:
        StoreError: the disk is full or cannot be written or read back.
    """
    space = store.space(encoder.identity.to_json())
    keys = [text_key(*pair) for pair in inputs]
    distinct = dict(zip(keys, inputs, strict=True))
    misses: set[bytes] = set()
    said = 0
    for _ in range(ATTEMPTS):
        if any(key not in space for key in distinct):
            with space.locked(lambda: progress.say("waiting for another process that encodes with this encoder")):
                said = _say_damages(space, said, progress)
                missing = [key for key in distinct if key not in space]
                misses.update(missing)
                _encode_into(space, missing, [distinct[key] for key in missing], encoder, progress)
        rows = space.rows(keys)
        said = _say_damages(space, said, progress)
        if rows is not None:
            stored = dict(zip(keys, rows.length.tolist(), strict=True))
            token_bytes = rows.arrays[0][0].nbytes
            use = CacheUse(len(distinct) - len(misses), len(misses), sum(stored.values()) * token_bytes)
            return Features(rows, _dtype(encoder)), use
    raise StoreError(
        f"what is written to {space.folder} does not read back intact. Check the disk or set YTUNING_CACHE"
    )


def _converted(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Float16 (N, W) in another dtype.

    To bfloat16 by way of float32, for which processors have an instruction (torch's direct conversion took four times
    as long), and in parts that stay in the cache.
    """
    if dtype == torch.float32:
        return stored.float()
    values = torch.empty_like(stored, dtype=dtype)
    for part, converted in zip(stored.split(128), values.split(128), strict=True):
        converted.copy_(part.float())
    return values


def _dtype(encoder: Encoder) -> torch.dtype:
    return torch.bfloat16 if encoder.identity.precision == "bf16" else torch.float32


def _say_damages(space: FeatureSpace, said: int, progress: Progress) -> int:
    """Name the damages after the first ``said``; returns how many have been named now."""
    for damage in space.damages[said:]:
        progress.say(str(damage))
    return len(space.damages)


def live_features(inputs: Sequence[TextInput], encoder: Encoder) -> Features:
    """Features of texts or pairs in memory, the store left alone; the same values as :func:`stored_features`."""
    tokens = encoder.tokenize(inputs)
    count = len(inputs)
    arrays: list[np.ndarray] = []
    array, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for indices, features in encoder.encode(tokens):
        array[indices], start[indices] = len(arrays), np.arange(len(indices)) * features.shape[1]
        arrays.append(features.reshape(-1, *features.shape[2:]))
    return Features(StoredRows(arrays, array, start, tokens.lengths, tokens.truncated), _dtype(encoder))


def _encode_into(
    space: FeatureSpace, keys: list[bytes], inputs: list[TextInput], encoder: Encoder, progress: Progress
) -> None:
    """Encode texts and write them in shards; when it is interrupted, what is finished is written too."""
    done = 0
    for first in range(0, len(inputs), WINDOW_TEXTS):
        tokens = encoder.tokenize(inputs[first : first + WINDOW_TEXTS])
        shard = _Shard(space, keys[first : first + WINDOW_TEXTS], tokens)
        try:
            for indices, features in encoder.encode(tokens):
                shard.add(indices, features)
                done += len(indices)
                progress.step("encode", done, len(inputs))
        finally:
            shard.flush()


class _Shard:
    """Gathers encoded batches in one buffer, so that no batch outlives its turn, and writes it when it is full."""

    def __init__(self, space: FeatureSpace, keys: list[bytes], tokens: TokenizedTexts) -> None:
        self.space, self.keys, self.tokens = space, keys, tokens
        token_bytes = int(np.prod(space.row_shape)) * np.dtype(np.float16).itemsize
        self.buffer = np.empty((max(1, SHARD_BYTES // token_bytes), *space.row_shape), np.float16)
        self.rows: list[np.ndarray] = []
        self.used = 0

    def add(self, indices: np.ndarray, features: np.ndarray) -> None:
        """Take a batch: positions of its texts (B,) and their features (B, T, L, D)."""
        batch = features.reshape(-1, *features.shape[2:])
        if self.used + len(batch) > len(self.buffer):
            self.flush()
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
        keys = [self.keys[row] for row in rows]
        self.space.write(keys, self.tokens.lengths[rows], self.tokens.truncated[rows], features)

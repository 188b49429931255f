"""Keys of texts, and the file of a shard that says where each of its texts lies, which is looked up where it lies.

A file of N texts has five columns, one after the other, in little-endian numbers:

==========  =====  =====================================================================================
first       u8     the first 8 bytes of each key, rising
second      u8     its other 8 bytes, rising where the first ones are the same
row         i4     which text of the shard has this key
length      i4     tokens of each text, in the order of the shard
truncated   u1     whether the text was cut, in the order of the shard
==========  =====  =====================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap

import numpy as np

__all__ = ["KEY_BYTES", "KeyFile", "WantedKeys", "text_key"]

KEY_BYTES = 16
COLUMNS = ("<u8", "<u8", "<i4", "<i4", "|u1")
TEXT_BYTES = sum(np.dtype(column).itemsize for column in COLUMNS)
# Keys are hashes, so a table by their first bits, which has so many places for each wanted key, finds nearly all of the
# keys of a shard that are not wanted. A larger table than this leaves the processor's cache.
PLACES_PER_KEY, MOST_TABLE_BITS = 32, 22


def text_key(text: str, pair: str | None = None) -> bytes:
    """16 bytes that stand for a text or a pair; the length prefix keeps ("a", "bc") and ("ab", "c") apart."""
    first = text.encode()
    content = b"%d:" % len(first) + first + (b"" if pair is None else b"+" + pair.encode())
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def _halves(keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The halves of keys as (N,) uint64 each, in rising order, and (N,) which key each is; equal keys keep their order.

    As numbers they are compared several times as fast as as bytes.
    """
    halves = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    return halves[order, 0], halves[order, 1], order


@dataclass(frozen=True)
class KeyFile:
    """The columns of a shard's file, (N,) each; see the top of this file."""

    first: np.ndarray
    second: np.ndarray
    row: np.ndarray
    length: np.ndarray
    truncated: np.ndarray

    @classmethod
    def of_texts(cls, keys: Sequence[bytes], lengths: np.ndarray, truncated: np.ndarray) -> KeyFile:
        """The columns for texts in the order of their tokens, with (N,) tokens of each and (N,) whether it was cut."""
        return cls(*_halves(keys), lengths, truncated)

    @classmethod
    def of_bytes(cls, data: bytes | mmap) -> KeyFile:
        """The inverse of :meth:`to_bytes`; nothing is copied.

        Raises:
            ValueError: the size is not one that a file can have.
        """
        count, rest = divmod(len(data), TEXT_BYTES)
        if rest:
            raise ValueError(f"{len(data)} bytes are no whole number of texts")
        columns, start = [], 0
        for column in COLUMNS:
            columns.append(np.frombuffer(data, column, count, start))
            start += columns[-1].nbytes
        return cls(*columns)

    def to_bytes(self) -> bytes:
        """What is stored."""
        columns = (self.first, self.second, self.row, self.length, self.truncated)
        return b"".join(values.astype(column).tobytes() for column, values in zip(COLUMNS, columns, strict=True))


class WantedKeys:
    """Keys that are looked up in many shards: sorted once, and each only once.

    Attributes:
        place: (keys,) which of the sorted keys each one is.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        first, second, order = _halves(keys)
        # Whether a key differs from the one before it.
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
        self.place = np.empty(len(order), np.int64)
        self.place[order] = np.cumsum(new) - 1
        self._first, self._second = first[new], second[new]
        bits = min(MOST_TABLE_BITS, max(1, (PLACES_PER_KEY * len(self)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._first >> self._shift] = True

    def __len__(self) -> int:
        return len(self._first)

    def find(self, texts: KeyFile) -> tuple[np.ndarray, np.ndarray]:
        """Which of the sorted keys a shard has, and which rows of the shard these are: (F,) each."""
        near = np.flatnonzero(self._table[texts.first >> self._shift])
        first, second = texts.first[near], texts.second[near]
        place = self._first.searchsorted(first)
        # Several keys may share their first half, and the search has stopped at the first of them.
        while (further := self._is_at(place, first) & (self._at(self._second, place) < second)).any():
            place += further
        found = self._is_at(place, first) & (self._at(self._second, place) == second)
        return place[found], texts.row[near[found]]

    def _is_at(self, place: np.ndarray, first: np.ndarray) -> np.ndarray:
        """(N,) whether the keys at these places have these first halves; no key has a place after the last one."""
        return (place < len(self)) & (self._at(self._first, place) == first)

    def _at(self, halves: np.ndarray, place: np.ndarray) -> np.ndarray:
        """(N,) halves at places; after the last one any."""
        return halves.take(place, mode="clip") if len(halves) else np.zeros(len(place), np.uint64)

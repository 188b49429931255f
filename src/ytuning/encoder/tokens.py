"""Token ids of many texts, batches of texts, and the windows in which a text is read that is too long."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

__all__ = [
    "LONG_TEXTS", "BatchForm", "LongText", "TokenizedTexts", "Window", "padded_places", "plan_batches", "plan_windows",
    "remaining",
]  # fmt: skip


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, end to end.

    Attributes:
        ids: (tokens,) int32.
        types: (tokens,) int8; segment ids, 1 for the second text of a pair.
        offsets: (texts + 1,) int64; text i is ``ids[offsets[i]:offsets[i + 1]]``.
        truncated: (texts,) bool; whether the text was cut at the maximum length.
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(texts,) int64: tokens in each text."""
        return np.diff(self.offsets)

    def gathered(self, places: Sequence[np.ndarray]) -> TokenizedTexts:
        """Texts of tokens at these positions in ``ids``, none of them cut."""
        kept, offsets = np.concatenate(places), np.cumsum([0, *map(len, places)])
        return TokenizedTexts(self.ids[kept], self.types[kept], offsets, np.zeros(len(places), bool))

    def places(self, indices: np.ndarray) -> np.ndarray:
        """(sum of their tokens,): positions in ``ids`` of the tokens of texts (B,), one text after the other."""
        lengths = self.lengths[indices]
        return np.repeat(self.offsets[indices] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())

    def padded(self, indices: np.ndarray, padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts (B,) as int64 ids, int64 types and a bool mask (B, T), which is True at a text's own tokens.

        Beyond them an id is ``padding`` and a type 0.
        """
        places, mask = padded_places(self.offsets[indices], self.lengths[indices])
        ids, types = np.where(mask, self.ids[places], padding), np.where(mask, self.types[places], 0)
        return ids.astype(np.int64), types.astype(np.int64), mask


def padded_places(starts: np.ndarray, lengths: np.ndarray, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Where the tokens of a padded batch lie.

    Args:
        starts: (B,) position of each text's first token.
        lengths: (B,) tokens in each text.
        step: the batch is padded to a multiple of so many tokens.

    Returns:
        Positions (B, T) of tokens, beyond a text's end that of its last one, and (B, T) bool, True at its own.
    """
    columns = np.arange(-(-int(lengths.max()) // step) * step)
    return starts[:, None] + np.minimum(columns, lengths[:, None] - 1), columns < lengths[:, None]


BatchForm = Literal["equal", "packed", "padded"]
"""Texts of one length only; of any lengths, end to end; of similar lengths, with the padding to the longest counted."""


def plan_batches(lengths: np.ndarray, tokens: int, form: BatchForm) -> Iterator[np.ndarray]:
    """Cut texts into batches, shortest first.

    Args:
        lengths: (texts,) tokens in each text, at least one.
        tokens: about the most in a batch; a text longer than that has a batch of its own.
        form: what a batch may hold.

    Yields:
        Positions (B,) of a batch's texts, which together are every text once.
    """
    order = np.argsort(lengths, kind="stable")
    rising = lengths[order]
    ends = np.cumsum(rising)
    first = 0
    while first < len(order):
        size = tokens // int(rising[first])
        if form == "equal":
            size = min(size, int(np.searchsorted(rising, rising[first], side="right")) - first)
        elif form == "packed":
            before = int(ends[first - 1]) if first else 0
            size = int(np.searchsorted(ends, before + tokens, side="right")) - first
        else:
            # The last text of the batch is its longest; sizes shrink as texts grow.
            while size > 1 and size * int(rising[min(first + size, len(order)) - 1]) > tokens:
                size -= max(1, size // 8)
        size = max(1, size)
        yield order[first : first + size]
        first += size


def remaining(batches: Iterable[np.ndarray], left_out: np.ndarray) -> Iterator[np.ndarray]:
    """Batches (B,) without the texts that are flagged (texts,) by the time that their batch is asked for."""
    for batch in batches:
        kept = batch[~left_out[batch]]
        if len(kept):
            yield kept


LongText = Literal["truncate", "window"]
"""``"truncate"`` reads the beginning of a long text, ``"window"`` all of it."""
LONG_TEXTS: tuple[LongText, ...] = get_args(LongText)
# One part of so many of a window is in the next one too, so that no token stands at an edge.
OVERLAP = 4


@dataclass(frozen=True)
class Window:
    """What of a text one window reads, and which of its hidden states are kept.

    Attributes:
        tokens: (M,) int64, positions in the text's tokens; the special ones at its ends are in every window.
        kept: of the window's hidden states; those of all windows one after the other are those of the text.
    """

    tokens: np.ndarray
    kept: slice


def plan_windows(length: int, most: int, before: int, after: int) -> list[Window]:
    """Windows of ``most`` tokens over a text of ``length`` tokens, more than that.

    Each token is taken from the window in which it is the further from an edge, the special tokens from the first and
    the last one. All windows are of one length: the last one reaches back as far as it has to.

    Args:
        length: N, tokens of the text, special ones included.
        most: M, that the encoder reads at once.
        before: special tokens at the beginning...
        after: ...and at the end; less than M together.
    """
    inner, content = most - before - after, length - before - after
    step = max(1, inner - inner // OVERLAP)
    starts = [*range(0, content - inner, step), content - inner]
    # Half of what two windows share is taken from each.
    cuts = [0, *((left + inner + right) // 2 for left, right in itertools.pairwise(starts)), content]
    special = np.arange(before), np.arange(length - after, length)
    windows = []
    for start, (left, right) in zip(starts, itertools.pairwise(cuts), strict=True):
        tokens = np.concatenate((special[0], np.arange(before + start, before + start + inner), special[1]))
        first = before + left - start if left else 0
        last = before + right - start if right < content else most
        windows.append(Window(tokens, slice(first, last)))
    return windows

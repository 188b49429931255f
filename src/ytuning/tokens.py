"""Token ids of many texts, and batches of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["TextInput", "TokenizedTexts", "plan_batches", "plan_packed"]

TextInput = tuple[str, str | None]
"""A text and, for pairs, its second text."""


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

    def alone(self, text: int) -> TokenizedTexts:
        """One of the texts."""
        return self.gathered([np.arange(self.offsets[text], self.offsets[text + 1])])

    def gathered(self, places: Sequence[np.ndarray]) -> TokenizedTexts:
        """Texts of tokens at these positions in ``ids``, none of them cut."""
        chosen = np.concatenate(places)
        offsets = np.concatenate(([0], np.cumsum([len(each) for each in places])))
        return TokenizedTexts(self.ids[chosen], self.types[chosen], offsets, np.zeros(len(places), bool))

    def places(self, indices: np.ndarray) -> np.ndarray:
        """(sum of their tokens,): positions in ``ids`` of the tokens of texts (B,), one text after the other."""
        lengths = self.lengths[indices]
        return np.repeat(self.offsets[indices] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())

    def rows(self, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(B, T): ``values`` (``ids`` or ``types``) of texts that all have T tokens."""
        length = int(self.offsets[indices[0] + 1] - self.offsets[indices[0]])
        return values[self.offsets[indices][:, None] + np.arange(length)]


def plan_batches(lengths: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
    """Cut texts into batches of one length each, shortest first.

    Args:
        lengths: (texts,) tokens in each text.
        tokens_per_batch: most tokens in a batch; a text longer than that has a batch of its own.

    Returns:
        Index arrays that together hold every text once.
    """
    batches: list[np.ndarray] = []
    order = np.argsort(lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[order], prepend=-1))
    for group in np.split(order, starts[1:]) if len(order) else []:
        size = max(1, tokens_per_batch // max(1, int(lengths[group[0]])))
        batches.extend(group[start : start + size] for start in range(0, len(group), size))
    return batches


def plan_packed(lengths: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
    """Cut texts into batches of any lengths, shortest first.

    Args:
        lengths: (texts,) tokens in each text.
        tokens_per_batch: most tokens in a batch; a text longer than that has a batch of its own.

    Returns:
        Positions of the texts in each batch, those of one length one after the other.
    """
    order = np.argsort(lengths, kind="stable")
    batches: list[np.ndarray] = []
    ends = np.cumsum(lengths[order])
    first, used = 0, 0
    while first < len(order):
        last = max(first + 1, int(np.searchsorted(ends, used + tokens_per_batch, side="right")))
        batches.append(order[first:last])
        first, used = last, int(ends[last - 1])
    return batches

"""A text that is longer than an encoder reads, as overlapping windows that it reads one by one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

__all__ = ["LONG_TEXTS", "LongText", "Window", "plan_windows"]

LongText = Literal["truncate", "window"]
"""``"truncate"`` reads the beginning of a long text, ``"window"`` all of it."""
LONG_TEXTS: tuple[LongText, ...] = get_args(LongText)
OVERLAP = 4  # one part of so many of a window is in the next one too, so that no token stands at an edge


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
    for number, start in enumerate(starts):
        tokens = np.concatenate((special[0], np.arange(before + start, before + start + inner), special[1]))
        first = 0 if number == 0 else before + cuts[number] - start
        last = most if number == len(starts) - 1 else before + cuts[number + 1] - start
        windows.append(Window(tokens, slice(first, last)))
    return windows

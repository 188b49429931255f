"""How texts lie end to end in one batch, and what attention gets by the distance between two of their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "COUNTED_FROM_PADDING",
    "DISTANCES",
    "PRODUCT_BLOCK",
    "ROWS",
    "Distances",
    "Packing",
    "pack",
    "packed_positions",
]

COUNTED_FROM_PADDING = ("camembert", "roberta", "xlm-roberta", "mpnet")
"""Model types whose positions begin after the padding's token id, which itself has that id as its position."""

BLOCK = 64  # queries, and keys, of a tile of the GPU's attention...
PRODUCT_BLOCK = 32  # ...and where scores get products by distance
DISTANCES = 512  # the row of distance 0 in the tables of Distances, which end at this distance
ROWS = 2 * DISTANCES + 2 * BLOCK  # of a table: a tile also reads rows of distances that no text has, and ignores them


@dataclass(frozen=True)
class Distances:
    """What a layer's scores get by the distance between query and key: row ``DISTANCES + query - key`` of each table.

    Attributes:
        bias: (heads, ROWS) float32, added to the scaled scores; None: nothing.
        keys: (ROWS, D), DeBERTa's positions as keys, which queries are multiplied with; None: nothing.
        queries: (ROWS, D), its positions as queries, which keys are multiplied with; None: nothing.
    """

    bias: Tensor | None = None
    keys: Tensor | None = None
    queries: Tensor | None = None


@dataclass(frozen=True)
class Packing:
    """Where the texts of a packed batch lie.

    Attributes:
        offsets: (texts + 1,) int32, the first token of each text and, last, the number of all tokens.
        block_text: (blocks,) int32, the text of each block of queries.
        block_first: (blocks,) int32, the place of the block's first query in its text.
        block: queries in a block, a power of two, at most ``BLOCK``.
    """

    offsets: Tensor
    block_text: Tensor
    block_first: Tensor
    block: int = BLOCK


def packed_positions(ids: np.ndarray, lengths: np.ndarray, padding: int | None) -> np.ndarray:
    """(N,) int64: each token's position in its text.

    Args:
        ids: (N,) token ids of texts end to end.
        lengths: (B,) tokens in each text, N in all.
        padding: None, or the padding's token id, after which positions begin (``COUNTED_FROM_PADDING``).
    """
    counted = np.ones(len(ids), np.int64) if padding is None else (ids != padding).astype(np.int64)
    before = np.cumsum(counted) - counted
    positions = before - np.repeat(before[np.cumsum(lengths) - lengths], lengths)
    return positions if padding is None else (positions + 1) * counted + padding


def pack(lengths: np.ndarray, move: Callable[[Tensor], Tensor], block: int = BLOCK) -> Packing:
    """Where texts of these lengths (B,) lie, moved to a device in one copy."""
    blocks = -(-lengths // block)
    text = np.repeat(np.arange(len(lengths)), blocks)
    first = (np.arange(len(text)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * block
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    moved = move(torch.from_numpy(np.concatenate((offsets, text, first)).astype(np.int32)))
    ends = len(offsets), len(offsets) + len(text)
    return Packing(moved[: ends[0]], moved[ends[0] : ends[1]], moved[ends[1] :], block)

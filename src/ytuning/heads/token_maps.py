"""The maps that take tokens to the small spaces where pooled heads pool them: of one head, or of many at once.

Shapes: B texts, T tokens, L hidden states, D encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ytuning.heads.pooling import additive_mask, maximum

__all__ = ["TOKEN_MAPS", "GroupMaps", "TokenMaps", "masked_maxima", "state_groups"]

TOKEN_MAPS = ("lowest_map", "shared_map", "last_map")
"""The weights that touch a token, for each of the groups of maps in the order of :func:`state_groups`."""
GroupMaps = tuple[tuple[Tensor, ...], ...]
"""A head's maps: of each group those of each state that it reads, (n, k, D), which are n maps from D to k numbers."""
# Numbers that maps make of tokens at a time, so that they stay in the cache.
MAPPED_AT_ONCE = 2**20


def state_groups(layers: int) -> tuple[tuple[int, ...], ...]:
    """Positions of the hidden states that each group of maps reads, among L states from the lowest to the last.

    The first group reads the lowest state alone. The second group reads several side by side: all but the last one, or
    with one or two states all of them. The third group reads the last state alone.
    """
    return (0,), tuple(range(max(min(layers, 2), layers - 1))), (layers - 1,)


class TokenMaps:
    """The maps of one head, or of several of one form, as one product for each hidden state.

    Attributes:
        width: numbers that they make of a token.
        size: bytes of the joined maps.
    """

    def __init__(self, heads: Sequence[GroupMaps], layers: int, dtype: torch.dtype) -> None:
        """Join the maps of ``heads`` on L hidden states for tokens of a type; the maps are copied."""
        # For each of the L states the maps (n, D) of the groups that read it.
        readers: list[dict[str, list[Tensor]]] = [{} for _ in range(layers)]
        for head in heads:
            for group, maps, own in zip(TOKEN_MAPS, head, state_groups(layers), strict=True):
                for state, of_state in zip(own, maps, strict=True):
                    readers[state].setdefault(group, []).append(of_state.flatten(0, 1))
        self._sizes = [{group: sum(map(len, maps)) for group, maps in read.items()} for read in readers]
        self._weights = [torch.cat([own for maps in read.values() for own in maps]).to(dtype) for read in readers]
        # Numbers of a token, group by group and in each group head by head.
        self._parts = [maps[0].flatten(0, 1).shape[0] for groups in zip(*heads, strict=True) for maps in groups]
        self._heads, self.width = len(heads), sum(self._parts)
        self.size = sum(weights.nbytes for weights in self._weights)

    def __call__(self, states: Tensor) -> Tensor:
        """Numbers (B, T, width) of tokens (B, T, L, D)."""
        sums: dict[str, Tensor] = {}
        for _, parts in self._products(states):
            for group, part in parts.items():
                sums[group] = sums[group] + part if group in sums else part
        return torch.cat([sums[group] for group in TOKEN_MAPS], -1)

    def maxima(self, states: Tensor, mask: Tensor) -> Tensor:
        """The maxima (B, width) of the same numbers over tokens with mask (B, T), without gradients.

        The sums are written over their first part, and the groups of a product are pooled where they lie.
        """
        hidden = None if bool(mask.all()) else additive_mask(mask, states.dtype)[..., None]
        sums: dict[str, Tensor] = {}
        products = []
        for product, parts in self._products(states):
            fresh = {group: part for group, part in parts.items() if group not in sums}
            for group, part in parts.items():
                if group in sums:
                    sums[group].add_(part)
            sums |= fresh
            if fresh:
                products.append(product if len(fresh) == len(parts) else torch.cat(list(fresh.values()), -1))
        return torch.cat([maximum(one if hidden is None else one.add_(hidden)) for one in products], 1)

    def _products(self, states: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """For each hidden state its product (B, T, n), and the parts of it that belong to the groups."""
        for tokens, weights, sizes in zip(states.unbind(2), self._weights, self._sizes, strict=True):
            product = functional.linear(tokens, weights)
            yield product, dict(zip(sizes, product.split(list(sizes.values()), -1), strict=True))

    def by_head(self, numbers: Tensor) -> list[Tensor]:
        """Each head's own of the numbers (B, width)."""
        parts = numbers.split(self._parts, 1)
        return [torch.cat(parts[head :: self._heads], 1) for head in range(self._heads)]


def masked_maxima(joined: Sequence[TokenMaps], states: Tensor, mask: Tensor) -> list[Tensor]:
    """The maxima (B, n) over the mapped tokens of each head, in the order of ``joined`` and of the heads in each.

    Args:
        joined: maps of tokens.
        states: tokens (B, T, L, D).
        mask: (B, T), True at tokens.
    """
    found: list[tuple[Tensor, ...]]
    # A GPU has no use for parts, and training adds its gradients in the order of one product.
    if states.is_cuda or torch.is_grad_enabled():
        hidden = additive_mask(mask, states.dtype)[..., None]
        found = [(maximum(maps(states) + hidden),) for maps in joined]
    else:
        rows = max(1, MAPPED_AT_ONCE // (mask.shape[1] * max(maps.width for maps in joined)))
        parts = zip(states.split(rows), mask.split(rows), strict=True)
        # For each part what all of them make of it, while it is in the cache.
        found = list(zip(*(_maxima_of_part(joined, *part) for part in parts), strict=True))
    return [own for maps, parts in zip(joined, found, strict=True) for own in maps.by_head(torch.cat(parts))]


def _maxima_of_part(joined: Sequence[TokenMaps], states: Tensor, mask: Tensor) -> list[Tensor]:
    """The maxima (B, width) that each of ``joined`` has of a part of a batch, (B, T, L, D) with mask (B, T)."""
    # A mask may hide all tokens, where somebody asks what a text is without its only one.
    there = mask.any(0).nonzero()
    longest = int(there[-1]) + 1 if len(there) else mask.shape[1]
    # A product of tokens that do not lie one after another takes fifty times as long.
    states, mask = states[:, :longest].contiguous(), mask[:, :longest]
    return [maps.maxima(states, mask) for maps in joined]

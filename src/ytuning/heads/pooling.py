"""Pools of a text's tokens that need no training, so that all tasks of an encoder share them.

Shapes: B texts, T tokens, L hidden states, D encoder width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# torch is loaded by what computes: the store only counts the pools.

__all__ = ["POOLS", "additive_mask", "maximum", "pool_states", "pools_of_states"]

POOLS = ("mean", "maximum", "minimum")
"""The pools of each hidden state, in the order in which they stand side by side.

The deviation, the first and the last token and products of neighbours were tried beside and in place of them. None
was better by more than chance on TREC-6, BANKING77, SST-2 and CoLA (benchmarks/LOG.md).
"""

# Tokens that are pooled at a time, so that they stay in the cache in float32: 4,096 took 1.5 to 8 times as long.
TOKENS_AT_ONCE = 1024
# The largest number of float16.
LARGEST = 65504.0


def pool_states(features: Tensor, mask: Tensor) -> Tensor:
    """Pool the tokens of features (B, T, L, D) with mask (B, T), True at tokens, to (B, 3 * L * D) float32.

    The pools are those of :data:`POOLS`, each with all hidden states. They are rounded to float16, as the store keeps
    them, so that live and stored ones agree.
    """
    import torch

    count, tokens, layers, width = features.shape
    pools = torch.empty(count, len(POOLS) * layers * width, device=features.device)
    # A GPU has no use for parts: its operations take as long for few tokens as for many.
    rows = count if features.is_cuda else max(1, TOKENS_AT_ONCE // tokens)
    for values, own_mask, out in zip(features.split(rows), mask.split(rows), pools.split(rows), strict=True):
        _pool_part(values.flatten(2).float(), own_mask, out)
    # Some encoders have channels beyond the range of float16.
    return pools.clamp_(-LARGEST, LARGEST).half().float()


def _pool_part(values: Tensor, mask: Tensor, pools: Tensor) -> None:
    """Write the pools of values (B, T, L * D) with mask (B, T) into (B, 3 * L * D)."""
    import torch

    # (B, 1, T): the shares of the tokens in the mean. Values beyond the mask are finite, so that they count nothing.
    shares = (mask / mask.sum(1, keepdim=True)).to(values.dtype)[:, None]
    mean, largest, smallest = pools.chunk(len(POOLS), 1)
    mean.copy_(torch.bmm(shares, values)[:, 0])
    if bool(mask.all()):
        largest.copy_(maximum(values))
        smallest.copy_(maximum(-values).neg_())
        return
    hidden = additive_mask(mask, values.dtype)[..., None]
    largest.copy_(maximum(values + hidden))
    smallest.copy_(maximum(hidden - values).neg_())


def pools_of_states(positions: list[int], layers: int) -> list[int]:
    """Where the pools of the states at some positions lie among the 3 * L pools of L states."""
    return [pool * layers + position for pool in range(len(POOLS)) for position in positions]


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to tokens' numbers or scores to hide some, (B, T): 0 where a mask is True, else minus infinity."""
    return mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -math.inf)


def maximum(values: Tensor) -> Tensor:
    """Return the maximum (B, C) over the tokens (B, T, C).

    On a CPU ``max_pool2d`` takes half the time of ``amax`` or less, forward and backward. On a GPU its backward pass
    adds in any order, so the same training would not give the same bytes.
    """
    from torch.nn import functional

    if values.is_cuda:
        return values.amax(1)
    return functional.max_pool2d(values.unsqueeze(2).permute(0, 3, 1, 2), (values.shape[1], 1))[:, :, 0, 0]

"""Two fused operations on a GPU, in Triton: attention over texts that lie end to end, and a residual with its norm.

Attention is the online softmax of FlashAttention (arXiv 2205.14135) over packed texts. A score may have terms that
depend on the distance between query and key: a number for each head (T5's and MPNet's position bias), or the products
of DeBERTa's disentangled attention (arXiv 2006.03654): query and position, key and position. For a tile of queries and
keys these are two small products with the rows of as many neighbouring distances, from which each score takes its
own; no matrix of distances, and nothing of the size of the scores, is ever written to memory.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ytuning.encoder.packed import DISTANCES, ROWS, Distances, Packing

__all__ = ["add_and_normalise", "packed_attention"]

WARPS, PRODUCT_WARPS, STAGES = 4, 2, 2
"""Tuned on an H100 at heads of 64 numbers and texts of 128 tokens: tiles of 32 with the products of distances, which
need more registers and memory (0.90 ms a layer of 32,768 tokens with two warps, 1.14 with four; tiles of 64: 1.58), of
64 without (0.21 ms; torch's own varlen_attn 0.20, but on texts of 36 tokens 0.29 against 0.14)."""


# projected: (N, 3 D), queries, keys and values of each token; out: (N, D); offsets, block_text and block_first as in
# `Packing`; bias, keys and queries as in `Distances`; width: D; rows: of these tables; scale: of the scores, times
# log2(e); center: the row of distance 0; size: of a head; side: of a tile, which has so many queries and keys.
@triton.jit  # type: ignore[untyped-decorator]
def _attention(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917  # a kernel's arguments are plain pointers and numbers
    projected, out, offsets, block_text, block_first, bias, keys, queries, width, rows, scale,
    center: tl.constexpr, size: tl.constexpr, side: tl.constexpr,
    has_bias: tl.constexpr, has_keys: tl.constexpr, has_queries: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    text = tl.load(block_text + tl.program_id(0))
    first = tl.load(block_first + tl.program_id(0))
    begin = tl.load(offsets + text)
    length = tl.load(offsets + text + 1) - begin
    lane = head * size + tl.arange(0, size)
    there = first + tl.arange(0, side) < length
    start = (begin + first + tl.arange(0, side)).to(tl.int64)
    query = tl.load(projected + start[:, None] * 3 * width + lane[None, :], mask=there[:, None], other=0.0)
    span = tl.arange(0, 2 * side)
    # Query i and key j of a tile take number i - j + side - 1 of the tile's distances.
    by_query = tl.arange(0, side)[:, None] - tl.arange(0, side)[None, :] + side - 1
    by_key = tl.arange(0, side)[None, :] - tl.arange(0, side)[:, None] + side - 1
    highest = tl.full([side], -float("inf"), tl.float32)
    total = tl.zeros([side], tl.float32)
    mixed = tl.zeros([side, size], tl.float32)
    for low in range(0, length, side):
        seen = low + tl.arange(0, side) < length
        row = projected + (begin + low + tl.arange(0, side)).to(tl.int64)[:, None] * 3 * width + lane[None, :]
        key = tl.load(row + width, mask=seen[:, None], other=0.0)
        value = tl.load(row + 2 * width, mask=seen[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        # The row of the tile's first distance.
        nearest = center + first - low - (side - 1)
        if has_keys:
            part = tl.load(keys + (nearest + span)[:, None].to(tl.int64) * width + lane[None, :])
            scores += tl.gather(tl.dot(query, tl.trans(part), input_precision="ieee"), by_query, axis=1)
        if has_queries:
            part = tl.load(queries + (nearest + span)[:, None].to(tl.int64) * width + lane[None, :])
            scores += tl.trans(tl.gather(tl.dot(key, tl.trans(part), input_precision="ieee"), by_key, axis=1))
        scores *= scale
        if has_bias:
            scores += tl.load(bias + head * rows + nearest + by_query) * 1.4426950408889634
        scores = tl.where(seen[None, :], scores, -float("inf"))
        above = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - above[:, None])
        shrink = tl.exp2(highest - above)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        highest = above
    result = (mixed / total[:, None]).to(query.dtype)
    tl.store(out + start[:, None] * width + lane[None, :], result, mask=there[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _add_and_normalise(  # type: ignore[no-untyped-def]
    values, residual, weight, bias, out, width, eps, size: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * width
    lane = tl.arange(0, size)
    there = lane < width
    total = tl.load(values + row + lane, mask=there, other=0.0).to(tl.float32)
    total += tl.load(residual + row + lane, mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / width
    centered = tl.where(there, total - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centered * centered, 0) / width + eps)
    scaled = centered * inverse * tl.load(weight + lane, mask=there, other=0.0).to(tl.float32)
    scaled += tl.load(bias + lane, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row + lane, scaled.to(out.dtype.element_ty), mask=there)


def packed_attention(
    projected: Tensor, packing: Packing, heads: int, *, scale: float, distances: Distances | None = None
) -> Tensor:
    """Attention within each text of a packed batch.

    Args:
        projected: (N, 3 D), queries, keys and values of tokens end to end; D / heads is a power of two, at least 16.
        packing: of the texts; with distances none has more than ``DISTANCES`` tokens.
        heads: number of heads.
        scale: what scores (with the products of distances, without their bias) are multiplied with.
        distances: of this layer.

    Returns:
        (N, D), of the type of ``projected``; zeros for tokens that belong to no text.
    """
    width = projected.shape[1] // 3
    terms = distances or Distances()
    has_keys, has_queries = terms.keys is not None, terms.queries is not None
    mixed = torch.zeros(len(projected), width, dtype=projected.dtype, device=projected.device)
    _attention[(len(packing.block_text), heads)](
        projected,
        mixed,
        packing.offsets,
        packing.block_text,
        packing.block_first,
        terms.bias,
        terms.keys,
        terms.queries,
        width,
        ROWS,
        scale * math.log2(math.e),
        center=DISTANCES,
        size=width // heads,
        side=packing.block,
        has_bias=terms.bias is not None,
        has_keys=has_keys,
        has_queries=has_queries,
        num_warps=PRODUCT_WARPS if has_keys or has_queries else WARPS,
        num_stages=STAGES,
    )
    return mixed


def add_and_normalise(values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation of ``values + residual``, both (N, D), computed in float32; ``weight``, ``bias``: (D,)."""
    width, normalised = values.shape[1], torch.empty_like(values)
    _add_and_normalise[(len(values),)](
        values, residual, weight, bias, normalised, width, eps, size=triton.next_power_of_2(width), num_warps=4
    )
    return normalised

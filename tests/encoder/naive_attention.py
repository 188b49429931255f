"""The fused operations of `gpu_kernels.py` the plain way, text by text and in float64."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ytuning.encoder.packed import DISTANCES, Distances, Packing


def packed_attention(
    projected: Tensor, packing: Packing, heads: int, *, scale: float, distances: Distances | None = None
) -> Tensor:
    width = projected.shape[1] // 3
    found = torch.zeros(len(projected), width, dtype=projected.dtype)
    given = distances or Distances()
    borders = packing.offsets.tolist()
    for first, last in itertools.pairwise(borders):
        parts = projected[first:last].double().view(last - first, 3, heads, -1).permute(1, 2, 0, 3)
        query, key, value = parts  # (heads, T, D / heads)
        place = torch.arange(last - first)
        row = DISTANCES + place[:, None] - place  # (T, T)
        scores = query @ key.transpose(1, 2)
        if given.keys is not None:
            positions = given.keys.double().unflatten(1, (heads, -1))[row]  # (T, T, heads, D / heads)
            scores = scores + torch.einsum("hid,ijhd->hij", query, positions)
        if given.queries is not None:
            positions = given.queries.double().unflatten(1, (heads, -1))[row]
            scores = scores + torch.einsum("hjd,ijhd->hij", key, positions)
        scores = scores * scale
        if given.bias is not None:
            scores = scores + given.bias.double()[:, row]
        found[first:last] = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
    return found


def add_and_normalise(values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return layer_norm(values + residual, weight.shape, weight, bias, eps)

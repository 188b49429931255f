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
    mixed = torch.zeros(len(projected), width, dtype=projected.dtype)
    terms = distances or Distances()
    borders = packing.offsets.tolist()
    for first, last in itertools.pairwise(borders):
        parts = projected[first:last].double().view(last - first, 3, heads, -1).permute(1, 2, 0, 3)
        query, key, value = parts  # (heads, T, D / heads)
        place = torch.arange(last - first)
        row = DISTANCES + place[:, None] - place  # (T, T)
        scores = query @ key.transpose(1, 2)
        if terms.keys is not None:
            positions = terms.keys.double().unflatten(1, (heads, -1))[row]  # (T, T, heads, D / heads)
            scores = scores + torch.einsum("hid,ijhd->hij", query, positions)
        if terms.queries is not None:
            positions = terms.queries.double().unflatten(1, (heads, -1))[row]
            scores = scores + torch.einsum("hjd,ijhd->hij", key, positions)
        scores = scores * scale
        if terms.bias is not None:
            scores = scores + terms.bias.double()[:, row]
        mixed[first:last] = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
    return mixed


def add_and_normalise(values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return layer_norm(values + residual, weight.shape, weight, bias, eps)

"""Hidden states on a GPU without any padding: texts end to end, for BERT, MPNet, DeBERTa-v2 and their kin.

As in `packed.py` everything but attention works on each token alone. Attention, and each residual with its norm,
are one fused kernel each (`gpu_kernels.py`); products are the library's. Both compute what `layouts.py` describes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from ytuning.encoder.layouts import Convolution, Layer, Layout, agrees
from ytuning.encoder.packed import (
    BLOCK,
    DISTANCES,
    PRODUCT_BLOCK,
    ROWS,
    Distances,
    Packing,
    half,
    neighbours,
    pack,
    packed_positions,
)

__all__ = ["Kernels", "PackedGpu"]

# Rows of a product are a multiple of it, so that the library chooses among few kernels.
TOKEN_STEP = 256


class Kernels(Protocol):
    """The fused operations: those of `gpu_kernels.py`, or naive ones in tests."""

    def packed_attention(
        self, projected: Tensor, packing: Packing, heads: int, *, scale: float, distances: Distances | None = None
    ) -> Tensor:
        """(N, D) from queries, keys and values (N, 3 D)."""

    def add_and_normalise(self, values: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """(N, D): the layer norm of a sum."""


class PackedGpu:
    """Hidden states of an encoder whose layout :meth:`fits`."""

    def __init__(self, layout: Layout, kernels: Kernels | None = None) -> None:
        """``layout`` is that of an encoder on its device.

        Its layers' weights are taken from it, or they would be in memory twice; the model itself computes no more.
        """
        self._pass = _Pass(layout)
        built: dict[int, _Layer] = {}
        with torch.inference_mode():
            for layer in layout.layers:
                if id(layer.module) not in built:
                    built[id(layer.module)] = _Layer(layer, layout, kernels or _gpu_kernels())
                    layer.module.to("meta")
        self._layers = [built[id(layer.module)] for layer in layout.layers]

    @staticmethod
    def takes(device: torch.device) -> bool:
        """Whether models on a device can be computed here."""
        return device.type == "cuda" and importlib.util.find_spec("triton") is not None

    @staticmethod
    def fits(layout: Layout, device: torch.device, max_length: int, kernels: Kernels | None = None) -> bool:
        """Whether an encoder is on a GPU, the kernels have all that it needs, and they give its own hidden states."""
        if not PackedGpu.takes(device) or not _is_known(layout, max_length):
            return False
        own = _Pass(layout)

        def step(layer: Layer) -> Callable[[Tensor], Tensor]:
            built = _Layer(layer, layout, kernels or _gpu_kernels())
            return lambda states: built(states, own.packing(np.array([len(states)])))

        return agrees(layout, lambda ids: own.embedded(ids, None, np.array([len(ids)]), 0), map(step, layout.layers))

    def __call__(self, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray, states: Sequence[int]) -> Tensor:
        """(N, L, D) float16, on the device: as of :class:`PackedStates`, of texts in any order."""
        count = len(ids)
        with torch.inference_mode():
            # (N + fill, D), as all that follow
            hidden = self._pass.embedded(ids, types, lengths, -(-count // TOKEN_STEP) * TOKEN_STEP - count)
            packing = self._pass.packing(lengths)
            kept = [hidden[:count]] if states[0] == 0 else []
            for state, layer in enumerate(self._layers[: states[-1]], start=1):
                hidden = layer(hidden, packing)
                if state in states:
                    kept.append(hidden[:count])
            return half(torch.stack(kept, dim=1))


def _gpu_kernels() -> Kernels:
    from ytuning.encoder import gpu_kernels

    return gpu_kernels


class _Pass:
    """What a pass needs beside its layers."""

    def __init__(self, layout: Layout) -> None:
        self.embeddings, self.device = layout.embeddings, layout.embeddings.words.weight.device
        self.block = PRODUCT_BLOCK if layout.by_distance and layout.by_distance.positions is not None else BLOCK

    def embedded(self, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray, fill: int) -> Tensor:
        """State 0 (N + fill, D) of texts end to end and rows that stand for nothing."""
        own = self.embeddings
        segments = np.zeros_like(ids) if types is None else types
        rows = np.stack([ids, segments, packed_positions(ids, lengths, own.padding)])
        moved = self._moved(torch.from_numpy(np.pad(rows, ((0, 0), (0, fill)))))
        tables = zip((own.words, own.types, own.positions), moved, strict=True)
        summed = torch.stack([embedding(part, table.weight) for table, part in tables if table is not None]).sum(0)
        normalised = own.norm(summed)
        return normalised if own.project is None else own.project(normalised)

    def packing(self, lengths: np.ndarray) -> Packing:
        """Where texts of these lengths (B,) lie."""
        return pack(lengths, self._moved, self.block)

    def _moved(self, values: Tensor) -> Tensor:
        """On the device, by a copy that nothing waits for."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values


class _Layer:
    """One layer on tokens end to end."""

    def __init__(self, layer: Layer, layout: Layout, kernels: Kernels) -> None:
        self.heads, self.scale, self.kernels = layout.heads, layout.scale, kernels
        self.distances = _distances(layer, layout)
        # (3 D, D) and (3 D,)
        self.weight, self.bias = (
            torch.cat([getattr(part, name) for part in layer.project]) for name in ("weight", "bias")
        )
        self.mix, self.widen, self.narrow = (
            (part.weight, part.bias) for part in (layer.mix, layer.widen[0], layer.narrow)
        )
        self.approximate = layout.activation
        self.norms = [_norm(norm) for norm in layer.norms if norm is not None]
        self.convolution = None if layer.convolution is None else _Convolution(layer.convolution, kernels)

    def __call__(self, states: Tensor, packing: Packing) -> Tensor:
        """(N, D) from (N, D)."""
        # (N, 3 D) -> (N, D)
        projected = linear(states, self.weight, self.bias)
        attended = self.kernels.packed_attention(
            projected, packing, self.heads, scale=self.scale, distances=self.distances
        )
        mixed = self.kernels.add_and_normalise(linear(attended, *self.mix), states, *self.norms[0])
        # (N, I)
        wide = torch.ops.aten.gelu_(linear(mixed, *self.widen), approximate=self.approximate)
        output = self.kernels.add_and_normalise(linear(wide, *self.narrow), mixed, *self.norms[1])
        return output if self.convolution is None else self.convolution(states, output, packing)


class _Convolution:
    """DeBERTa-v2's convolution of the embeddings, which is added to the first layer's output."""

    def __init__(self, parts: Convolution, kernels: Kernels) -> None:
        self.kernels, self.active = kernels, parts.activation
        # (D, D, K) -> (D, K * D): a product with K neighbours side by side.
        self.weight = parts.conv.weight.permute(0, 2, 1).flatten(1).contiguous()
        self.bias, self.reach = parts.conv.bias, parts.conv.kernel_size[0] // 2
        self.norm = _norm(parts.norm)

    def __call__(self, embedded: Tensor, states: Tensor, packing: Packing) -> Tensor:
        """(N, D) from the embeddings and the first layer's output, both (N, D)."""
        texts = torch.bucketize(torch.arange(len(embedded), device=embedded.device), packing.offsets[1:], right=True)
        added = self.active(linear(neighbours(embedded, texts, self.reach), self.weight, self.bias))
        return self.kernels.add_and_normalise(added, states, *self.norm)


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _is_known(layout: Layout, max_length: int) -> bool:
    """Whether :class:`_Layer` computes such layers."""
    size = layout.head_size
    return (
        layout.activation in ("none", "tanh")
        and not layout.gated
        and not layout.norm_first
        # The kernel needs heads of a power of two.
        and size >= 16
        and not size & (size - 1)
        and (layout.by_distance is None or max_length <= DISTANCES)
        and all(layer.frequencies is None and layer.window is None for layer in layout.layers)
        and all(
            part.bias is not None
            for layer in layout.layers
            for part in (*layer.project, layer.mix, *layer.widen, layer.narrow, *layer.norms)
            if part is not None
        )
    )


def _distances(layer: Layer, layout: Layout) -> Distances | None:
    """The tables of a layer's terms by distance."""
    terms = layout.by_distance
    if terms is None:
        return None
    # (ROWS,): query - key
    distance = (torch.arange(ROWS) - DISTANCES).clamp(1 - DISTANCES, DISTANCES - 1)
    rows = terms.rows(distance)
    if terms.bias is not None:
        return Distances(bias=terms.bias[rows.to(terms.bias.device)].T.float().contiguous())
    assert terms.positions is not None
    positions = terms.positions[rows.to(terms.positions.device)]
    keys, queries = (
        None if project is None else project(positions).contiguous()
        for project in (layer.position_keys, layer.position_queries)
    )
    return Distances(keys=keys, queries=queries)

"""Hidden states on a GPU without any padding: texts end to end, for BERT, MPNet, DeBERTa-v2 and their kin.

As in `packed.py` everything but attention works on each token alone. Attention, and each residual with its norm,
are one fused kernel each (`gpu_kernels.py`); products are the library's. What depends on a model's architecture is read
out of it once, when it is loaded: a layer's weights, and its terms by distance as tables.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from ytuning.encoder.packed import (
    BLOCK,
    COUNTED_FROM_PADDING,
    DISTANCES,
    PRODUCT_BLOCK,
    ROWS,
    Distances,
    Packing,
    half,
    pack,
    packed_positions,
)

__all__ = ["Kernels", "PackedGpu"]

BERT_LIKE = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
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


class _Parts(NamedTuple):
    """The modules of a layer, whatever they are called in its architecture: six products, then two norms."""

    query: Any
    key: Any
    value: Any
    mix: Any
    widen: Any
    narrow: Any
    mix_norm: Any
    narrow_norm: Any


def _parts(layer: Any, kind: str) -> _Parts:
    if kind == "mpnet":
        attention, norm = layer.attention.attn, layer.attention.LayerNorm
        products = (attention.q, attention.k, attention.v, attention.o)
    else:
        attention, norm = layer.attention.self, layer.attention.output.LayerNorm
        names = ("query_proj", "key_proj", "value_proj") if kind == "deberta-v2" else ("query", "key", "value")
        products = (*(getattr(attention, name) for name in names), layer.attention.output.dense)
    return _Parts(*products, layer.intermediate.dense, layer.output.dense, norm, layer.output.LayerNorm)


class PackedGpu:
    """Hidden states of an encoder that :meth:`fits`."""

    def __init__(self, model: Any, kernels: Kernels | None = None) -> None:
        """``model`` is transformers' encoder on its device.

        Its layers' weights are taken from it, or they would be in memory twice; the model itself computes no more.
        """
        if kernels is None:
            from ytuning.encoder import gpu_kernels

            kernels = gpu_kernels
        config = model.config
        self.device = model.device
        self._embeddings = model.embeddings
        # ELECTRA's small ones.
        self._project_embeddings = getattr(model, "embeddings_project", None)
        self._typed = config.model_type != "mpnet"
        counted = config.model_type in COUNTED_FROM_PADDING
        self._padding = int(model.embeddings.word_embeddings.padding_idx or 0) if counted else None
        with torch.inference_mode():
            distances = _distances(model)
            self._layers: list[_Layer] = []
            for layer in model.encoder.layer:
                parts = _parts(layer, config.model_type)
                self._layers.append(_Layer(parts, config.num_attention_heads, distances(layer), kernels))
                layer.to("meta")
        products = any(layer.distances is not None and layer.distances.bias is None for layer in self._layers)
        self._block = PRODUCT_BLOCK if products else BLOCK
        self._convolution = _Convolution(model.encoder.conv, kernels) if getattr(model.encoder, "conv", None) else None

    @staticmethod
    def fits(model: Any, device: torch.device, max_length: int) -> bool:
        """Whether a model has one of the layouts that are known here and nothing was put into it, on a GPU."""
        return device.type == "cuda" and importlib.util.find_spec("triton") is not None and _known(model, max_length)

    def __call__(self, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray, states: Sequence[int]) -> Tensor:
        """(N, L, D) float16, on the device: as of :class:`PackedStates`, of texts in any order."""
        count = len(ids)
        fill = -(-count // TOKEN_STEP) * TOKEN_STEP - count
        positions = packed_positions(ids, lengths, self._padding)
        segments = np.zeros_like(ids) if types is None else types
        with torch.inference_mode():
            rows = np.stack([np.pad(values, (0, fill)) for values in (ids, positions, segments)])
            ids_there, positions_there, types_there = self._moved(torch.from_numpy(rows))
            packing = pack(lengths, self._moved, self._block)
            optional = {"token_type_ids": types_there[None]} if self._typed else {}
            # (N + fill, D), as all that follow
            hidden = self._embeddings(input_ids=ids_there[None], position_ids=positions_there[None], **optional)[0]
            if self._project_embeddings is not None:
                hidden = self._project_embeddings(hidden)
            first = hidden
            kept = [hidden[:count]] if states[0] == 0 else []
            for state, layer in enumerate(self._layers[: states[-1]], start=1):
                hidden = layer(hidden, packing)
                if state == 1 and self._convolution is not None:
                    hidden = self._convolution(first, hidden, packing)
                if state in states:
                    kept.append(hidden[:count])
            return half(torch.stack(kept, dim=1))

    def _moved(self, values: Tensor) -> Tensor:
        """On the device, by a copy that nothing waits for."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values


class _Layer:
    """One layer on tokens end to end."""

    def __init__(self, parts: _Parts, heads: int, distances: Distances | None, kernels: Kernels) -> None:
        self.heads, self.distances, self.kernels = heads, distances, kernels
        products = 1 if distances is None else 1 + (distances.keys is not None) + (distances.queries is not None)
        self.scale = (parts.query.out_features // heads * products) ** -0.5
        # (3 D, D) and (3 D,)
        self.weight, self.bias = (
            torch.cat([getattr(part, name) for part in (parts.query, parts.key, parts.value)])
            for name in ("weight", "bias")
        )
        self.mix, self.widen, self.narrow = (
            (part.weight, part.bias) for part in (parts.mix, parts.widen, parts.narrow)
        )
        self.norms = [(norm.weight, norm.bias, norm.eps) for norm in (parts.mix_norm, parts.narrow_norm)]

    def __call__(self, states: Tensor, packing: Packing) -> Tensor:
        """(N, D) from (N, D)."""
        # (N, 3 D) -> (N, D)
        projected = linear(states, self.weight, self.bias)
        attended = self.kernels.packed_attention(
            projected, packing, self.heads, scale=self.scale, distances=self.distances
        )
        mixed = self.kernels.add_and_normalise(linear(attended, *self.mix), states, *self.norms[0])
        # (N, I)
        wide = torch.ops.aten.gelu_(linear(mixed, *self.widen))
        return self.kernels.add_and_normalise(linear(wide, *self.narrow), mixed, *self.norms[1])


class _Convolution:
    """DeBERTa-v2's convolution of the embeddings, which is added to the first layer's output."""

    def __init__(self, module: Any, kernels: Kernels) -> None:
        self.kernels, self.active = kernels, ACT2FN[module.conv_act]
        # (D, D, K) -> (D, K * D): a product with K neighbours side by side.
        self.weight = module.conv.weight.permute(0, 2, 1).flatten(1).contiguous()
        self.bias, self.reach = module.conv.bias, module.conv.kernel_size[0] // 2
        self.norm = (module.LayerNorm.weight, module.LayerNorm.bias, module.LayerNorm.eps)

    def __call__(self, embedded: Tensor, states: Tensor, packing: Packing) -> Tensor:
        """(N, D) from the embeddings and the first layer's output, both (N, D); beyond a text's ends are zeros."""
        places = torch.arange(len(embedded), device=embedded.device)
        # (N,)
        texts = torch.bucketize(places, packing.offsets[1:], right=True)
        neighbours = []
        for shift in range(-self.reach, self.reach + 1):
            other = (places + shift).clamp(0, len(places) - 1)
            same = (texts[other] == texts) & (other == places + shift)
            neighbours.append(embedded[other] * same[:, None])
        added = self.active(linear(torch.cat(neighbours, 1), self.weight, self.bias))
        return self.kernels.add_and_normalise(added, states, *self.norm)


def _known(model: Any, max_length: int) -> bool:
    """Whether the architecture is one of those whose layers :class:`_Layer` computes."""
    config, kind = model.config, model.config.model_type
    if kind not in (*BERT_LIKE, "mpnet", "deberta-v2"):
        return False
    layers = [_parts(layer, kind) for layer in model.encoder.layer]
    size, odd = divmod(config.hidden_size, config.num_attention_heads)
    return (
        getattr(config, "hidden_act", None) == "gelu"
        and getattr(config, "position_embedding_type", "absolute") in ("absolute", None)
        and not getattr(config, "is_decoder", False)
        # The kernel needs heads of a power of two.
        and not odd
        and size >= 16
        and not size & (size - 1)
        and (kind in BERT_LIKE or max_length <= DISTANCES)
        and (kind != "deberta-v2" or (model.encoder.relative_attention and _is_plain_convolution(model)))
        and all(type(part) is torch.nn.Linear and part.bias is not None for parts in layers for part in parts[:6])
        and all(parts.query.out_features == config.hidden_size for parts in layers)
    )


def _is_plain_convolution(model: Any) -> bool:
    """Whether :class:`_Convolution` computes the model's convolution, if it has one."""
    module = getattr(model.encoder, "conv", None)
    return module is None or (module.conv.groups == 1 and module.conv.kernel_size[0] % 2 == 1)


def _distances(model: Any) -> Callable[[Any], Distances | None]:
    """What makes a layer's terms by distance."""
    kind = model.config.model_type
    # (ROWS,): query - key
    distance = (torch.arange(ROWS) - DISTANCES).clamp(1 - DISTANCES, DISTANCES - 1)
    query, key = distance.clamp_min(0).to(model.device), (-distance).clamp_min(0).to(model.device)
    probe = torch.zeros(1, DISTANCES, 1, device=model.device)
    if kind == "mpnet":
        # (heads, T, T)
        bias = model.encoder.compute_position_bias(probe)[0]
        shared = Distances(bias=bias[:, query, key].float().contiguous())
        return lambda _: shared
    if kind == "deberta-v2":
        embedded = model.encoder.get_rel_embedding()
        span = model.encoder.layer[0].attention.self.pos_ebd_size
        places = model.encoder.get_rel_pos(probe).view(DISTANCES, DISTANCES)[query, key]
        # (ROWS, D)
        positions = embedded[(places + span).clamp(0, 2 * span - 1)]

        def of_layer(layer: Any) -> Distances:
            own, tables = layer.attention.self, {}
            prefix = "" if own.share_att_key else "pos_"
            for table, module, term in (("keys", "key_proj", "c2p"), ("queries", "query_proj", "p2c")):
                if term in own.pos_att_type:
                    tables[table] = getattr(own, prefix + module)(positions).contiguous()
            return Distances(**tables)

        return of_layer
    return lambda _: None

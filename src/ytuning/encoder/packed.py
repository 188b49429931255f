"""Hidden states of BERT and its kin on a CPU without any padding: texts of any lengths end to end in one pass.

Everything but attention works on each token alone, so a batch is one matrix of tokens (N, D) whatever lengths its texts
have; attention takes the texts of each length together. Where oneDNN is the faster library its fused operations are
used: weights laid out once for the kernels, bias, GELU and the residual added while a product's tile is in the cache.
These are the operations that torch's own compiler emits for a CPU.

A text's features are the same bits whatever it shares a batch with: the rows of a product, and the members of a batched
product, are computed alike wherever they stand (tested), if rows are filled up to ``FEWEST_TOKENS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, pad, scaled_dot_product_attention

__all__ = [
    "BLOCK", "COUNTED_FROM_PADDING", "DISTANCES", "FEWEST_TOKENS", "MATERIALISED", "PRODUCT_BLOCK", "ROWS", "Distances",
    "PackedStates", "Packing", "half", "is_onednn_faster", "pack", "packed_positions",
]  # fmt: skip

# Matrix libraries switch kernels below about 16 rows, and with them the last bits of the result.
FEWEST_TOKENS = 64
# Rows of a product are a multiple of it: oneDNN compiles, and keeps in memory, every shape it meets.
TOKEN_STEP = 32
PACKED = ("bert", "camembert", "roberta", "xlm-roberta")
"""Model types that are laid out like BERT."""
COUNTED_FROM_PADDING = ("camembert", "roberta", "xlm-roberta", "mpnet")
"""Model types whose positions begin after the padding's token id, which itself has that id as its position."""
TRIED_ROWS = (FEWEST_TOKENS, 96, 128, 192, 256, 384, 512, 768, 1024)
# Multiplications up to which torch's batched products do not go to oneDNN.
FEW_PRODUCTS = 4096
# Tokens up to which bf16 attention keeps all weights (heads, T, T) of a text.
MATERIALISED = 512
OPERATIONS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
"""Of oneDNN, which torch's compiler uses and does not promise to keep."""
Product = Callable[..., Tensor]
"""Of states (N, D) and, where one is added, a residual."""


class PackedStates:
    """Hidden states of an encoder that :meth:`fits`."""

    def __init__(self, model: Any, *, onednn: bool) -> None:
        """``model`` is transformers' encoder on the CPU, fp32 or bf16; oneDNN computes its products, or torch itself.

        Its layers' weights are taken from it, or they would be in memory twice; the model itself computes no more.
        """
        config = model.config
        self._padding = (config.pad_token_id or 0) if config.model_type in COUNTED_FROM_PADDING else None
        self._embeddings = model.embeddings
        self._layers: list[_Layer] = []
        for layer in model.encoder.layer:
            self._layers.append(_Layer(layer, onednn=onednn))
            layer.to("meta")

    @staticmethod
    def fits(model: Any, device: torch.device, *, onednn: bool) -> bool:
        """Whether a model is laid out like BERT, nothing has been put into it or cut out of it, and it is on a CPU.

        In bf16 only oneDNN's products do not depend on the rows beside a row.
        """
        config = model.config
        return (
            device.type == "cpu"
            and (model.dtype == torch.float32 or onednn)
            and config.model_type in PACKED
            and config.hidden_act == "gelu"
            and getattr(config, "position_embedding_type", "absolute") == "absolute"
            and not getattr(config, "is_decoder", False)
            and all(_is_plain(layer, config) for layer in model.encoder.layer)
        )

    def __call__(self, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray, states: Sequence[int]) -> Tensor:
        """Features of texts end to end, those of one length one after the other; no layer above them is computed.

        Args:
            ids: (N,) token ids, int64.
            types: (N,) segment ids, int64; None for an encoder without segments.
            lengths: (B,) tokens in each text, N in all.
            states: (L,) numbers of hidden states, rising.

        Returns:
            (N, L, D) float16.
        """
        count = len(ids)
        fill = max(FEWEST_TOKENS, -(-count // TOKEN_STEP) * TOKEN_STEP) - count
        positions = packed_positions(ids, lengths, self._padding)
        borders = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        groups = [(last - first, int(lengths[first])) for first, last in pairwise(borders)]
        with torch.inference_mode():
            types = np.zeros_like(ids) if types is None else types
            filled = [torch.from_numpy(np.pad(values, (0, fill))) for values in (ids, positions, types)]
            embeddings = self._embeddings
            sums = embeddings.word_embeddings(filled[0]) + embeddings.token_type_embeddings(filled[2])
            # (N + fill, D), as all that follow
            hidden = embeddings.LayerNorm(sums + embeddings.position_embeddings(filled[1]))
            kept = [hidden] if states[0] == 0 else []
            for state, layer in enumerate(self._layers[: states[-1]], start=1):
                hidden = layer(hidden, groups)
                if state in states:
                    kept.append(hidden)
            return half(torch.stack([hidden[:count] for hidden in kept], dim=1))


class _Layer:
    """One layer of BERT on tokens end to end."""

    def __init__(self, layer: Any, *, onednn: bool) -> None:
        attention, output = layer.attention.self, layer.attention.output
        self.heads = attention.num_attention_heads
        # Queries are scaled instead of the scores, which spares a pass over these.
        scale = attention.attention_head_size**-0.5
        query = [(values.float() * scale).to(values.dtype) for values in (attention.query.weight, attention.query.bias)]
        # (3 D, D) and (3 D,)
        weight = torch.cat([query[0], attention.key.weight, attention.value.weight])
        bias = torch.cat([query[1], attention.key.bias, attention.value.bias])
        widen = layer.intermediate.dense
        self.project = _product(weight, bias, "none", onednn=onednn)
        self.mix = _product(output.dense.weight, output.dense.bias, "add", onednn=onednn)
        self.widen = _product(widen.weight, widen.bias, "gelu", onednn=onednn)
        self.narrow = _product(layer.output.dense.weight, layer.output.dense.bias, "add", onednn=onednn)
        norms = (output.LayerNorm, layer.output.LayerNorm)
        self.norms = [(norm.weight.shape, norm.weight, norm.bias, norm.eps) for norm in norms]

    def __call__(self, states: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        """(N, D) from (N, D), which are texts of these counts and lengths, and rows that stand for nothing."""
        mixed = layer_norm(self.mix(self._attention(self.project(states), groups), states), *self.norms[0])
        return layer_norm(self.narrow(self.widen(mixed), mixed), *self.norms[1])

    def _attention(self, projected: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        """(N, D) from queries, keys and values (N, 3 D)."""
        width = projected.shape[1] // 3
        mixed = projected.new_zeros(len(projected), width)
        first = 0
        for count, length in groups:
            last = first + count * length
            # (3, texts, heads, T, D / heads)
            parts = projected[first:last].view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed[first:last] = _attended(parts).transpose(1, 2).reshape(-1, width)
            first = last
        return mixed


def _attended(parts: Tensor) -> Tensor:
    """(texts, heads, T, D / heads) from queries (already scaled), keys and values (3, texts, heads, T, D / heads)."""
    _, _, heads, length, size = parts.shape
    # Below so many multiplications torch takes other code for batched products, so that the bits would depend on how
    # many texts of a length there are.
    few = heads * length * length * size <= FEW_PRODUCTS
    if parts.dtype != torch.bfloat16 or few or length > MATERIALISED:
        return scaled_dot_product_attention(parts[0], parts[1], parts[2], scale=1.0)
    # oneDNN's batched products are so fast in bf16 that keeping the weights beats torch's attention, by a third.
    query, key, value = parts.contiguous().flatten(1, 2)
    weights = torch.bmm(query, key.transpose(1, 2))
    torch.softmax(weights, -1, out=weights)
    return torch.bmm(weights, value).view(parts.shape[1:])


def _is_plain(layer: Any, config: Any) -> bool:
    """Whether a layer's products are plain ones (no adapter was put into it) and no head was cut out of it."""
    attention = layer.attention.self
    products = [attention.query, attention.key, attention.value, layer.attention.output.dense]
    products += [layer.intermediate.dense, layer.output.dense]
    return all(type(product) is torch.nn.Linear for product in products) and (
        attention.num_attention_heads * attention.attention_head_size == config.hidden_size
    )


def is_onednn_faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies faster than the library behind torch's own products.

    So it is in bf16 and, with AVX-512, in fp32 (by a fifth); with AVX2 in fp32 it is slower.
    """
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _product(weight: Tensor, bias: Tensor, after: Literal["none", "gelu", "add"], *, onednn: bool) -> Product:
    """The product x W' + b, then GELU of it or a residual added, which is the second argument."""
    if not onednn:
        plain: dict[str, Product] = {
            "none": lambda x: linear(x, weight, bias),
            "gelu": lambda x: gelu(linear(x, weight, bias)),
            "add": lambda x, residual: linear(x, weight, bias).add_(residual),
        }
        return plain[after]
    # A copy in the layout that oneDNN's kernels read.
    laid_out, operation = torch.ops.mkldnn._reorder_linear_weight(weight.data), torch.ops.mkldnn._linear_pointwise
    if after == "add":
        return _steady(lambda x, residual: operation.binary(x, residual, laid_out, bias, "add"), weight, residual=True)
    algorithm = "none" if after == "gelu" else ""
    return _steady(lambda x: operation.default(x, laid_out, bias, after, [], algorithm), weight)


def _steady(product: Product, weight: Tensor, *, residual: bool = False) -> Product:
    """The product, with zeros below its rows where fewer rows would give other bits.

    In bf16 on AMX, oneDNN adds up the terms of a long product in another order where there are few rows: below 384 for
    1,536 numbers times 384. How few depends on the widths and on the processor, so it is tried here on random rows.
    """
    if weight.dtype != torch.bfloat16:
        return product
    generator = torch.Generator().manual_seed(0)
    # (R, D) each: what is multiplied, and the residual.
    widths = [weight.shape[1], weight.shape[0]] if residual else [weight.shape[1]]
    tried = [torch.randn(TRIED_ROWS[-1], width, generator=generator).bfloat16() for width in widths]
    whole = product(*tried)
    fewest = TRIED_ROWS[-1]
    for rows in reversed(TRIED_ROWS[:-1]):
        if not torch.equal(product(*(values[:rows].contiguous() for values in tried)), whole[:rows]):
            break
        fewest = rows

    def steady(*operands: Tensor) -> Tensor:
        count = len(operands[0])
        if count >= fewest:
            return product(*operands)
        return product(*(pad(values, (0, 0, 0, fewest - count)) for values in operands))[:count]

    return steady


def half(states: Tensor) -> Tensor:
    """Float16, whatever they are in."""
    # Saturating is better than inf: some encoders have a few huge activations, which carry no meaning.
    limit = torch.finfo(torch.float16).max
    return states.float().clamp_(-limit, limit).to(torch.float16)


# Queries, and keys, of a tile of the GPU's attention, and of one where scores get products by distance.
BLOCK, PRODUCT_BLOCK = 64, 32
# The row of distance 0 in the tables of Distances, which end at this distance.
DISTANCES = 512
# Rows of a table: a tile also reads rows of distances that no text has, and ignores them.
ROWS = 2 * DISTANCES + 2 * BLOCK


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

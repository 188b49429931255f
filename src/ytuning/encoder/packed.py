"""Hidden states on a CPU without any padding: texts of any lengths end to end in one pass, for known architectures.

Everything but attention works on each token alone, so a batch is one matrix of tokens (N, D) whatever lengths its texts
have; attention takes the texts of each length together. Where oneDNN is the faster library its fused operations are
used: weights laid out once for the kernels, bias, activation, gate and the residual applied while a product's tile is
in the cache. These are the operations that torch's own compiler emits for a CPU.

A text's features are the same bits whatever it shares a batch with: the rows of a product, and the members of a batched
product, are computed alike wherever they stand (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm, linear, pad, scaled_dot_product_attention

from ytuning.encoder.layouts import Embeddings, Layer, Layout, agrees
from ytuning.encoder.products import FEWEST_TOKENS, After, filled_rows, product

__all__ = [
    "BLOCK", "DISTANCES", "FEW_PRODUCTS", "MATERIALISED", "PRODUCT_BLOCK", "ROWS", "Distances", "PackedStates",
    "Packing", "half", "neighbours", "pack", "packed_positions",
]  # fmt: skip

# Multiplications up to which torch's batched products do not go to oneDNN.
FEW_PRODUCTS = 4096
# Tokens up to which bf16 attention keeps all weights (heads, T, T) of a text.
MATERIALISED = 512
# Scores that are computed at once where all weights are kept: a megabyte of bf16. Short rows are copied, see VECTOR.
SCORES = 1 << 19
# Torch 2.13 computes the softmax of a row that fills no vector of fp32 numbers one number at a time. A vector has 16 of
# them with AVX-512, and 8 with AVX2.
VECTOR = 16
# Rows of bf16 numbers that are shorter than this are computed in fp32, because torch also computes one number at a time
# what is left beside whole vectors. Rows of 10 to 20 numbers took a third of the time on an AMX Xeon.
WIDE = 64
# Queries that are computed at once where a text is longer and its scores have terms by distance or a window.
STRIP = 128


class PackedStates:
    """Hidden states of an encoder whose layout :meth:`fits`."""

    def __init__(self, layout: Layout, *, onednn: bool) -> None:
        """``layout`` is that of an encoder on the CPU, fp32 or bf16; oneDNN computes its products, or torch itself.

        Its layers' weights are taken from it, or they would be in memory twice; the model itself computes no more.
        """
        self._embed = _Embed(layout.embeddings, onednn=onednn)
        self._places = _Places(layout)
        built: dict[int, _Layer] = {}
        with torch.inference_mode():
            for layer in layout.layers:
                if id(layer.module) not in built:
                    built[id(layer.module)] = _Layer(layer, layout, onednn=onednn)
                    layer.module.to("meta")
        self._layers = [built[id(layer.module)] for layer in layout.layers]

    @staticmethod
    def takes(dtype: torch.dtype, device: torch.device, *, onednn: bool) -> bool:
        """Whether models of a type on a device can be computed here.

        In bf16 only oneDNN's products do not depend on the rows beside a row.
        """
        return device.type == "cpu" and (dtype == torch.float32 or onednn)

    @staticmethod
    def fits(layout: Layout, device: torch.device, *, onednn: bool) -> bool:
        """Whether the encoder can be computed here, and its layout gives the hidden states of the model itself."""
        if not PackedStates.takes(layout.dtype, device, onednn=onednn):
            return False
        embed, places = _Embed(layout.embeddings, onednn=False), _Places(layout)

        def step(layer: Layer) -> Callable[[Tensor], Tensor]:
            # By torch's products, which need no second copy of the weights.
            built = _Layer(layer, layout, onednn=False)
            return lambda states: built.finished(built(states, places(np.array([len(states)]), 0)))

        return agrees(layout, lambda ids: embed(ids, None, np.array([len(ids)]), 0), map(step, layout.layers))

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
        fill = filled_rows(count) - count
        with torch.inference_mode():
            # (N + fill, D), as all that follow
            hidden = self._embed(ids, types, lengths, fill)
            places = self._places(lengths, fill)
            kept = [hidden] if states[0] == 0 else []
            for state, layer in enumerate(self._layers[: states[-1]], start=1):
                hidden = layer(hidden, places)
                if state in states:
                    kept.append(layer.finished(hidden))
            return half(torch.stack([hidden[:count] for hidden in kept], dim=1))


class _Embed:
    """Makes state 0."""

    def __init__(self, embeddings: Embeddings, *, onednn: bool) -> None:
        self.parts, project = embeddings, embeddings.project
        self.project = None if project is None else product(project.weight, project.bias, "none", onednn=onednn)

    def __call__(self, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray, fill: int) -> Tensor:
        """(N + fill, D) of texts end to end and rows that stand for nothing; arguments as of :class:`PackedStates`."""
        positions = packed_positions(ids, lengths, self.parts.padding)
        types = np.zeros_like(ids) if types is None else types
        own = self.parts
        summed = None
        for table, rows in ((own.words, ids), (own.types, types), (own.positions, positions)):
            if table is not None:
                values = embedding(torch.from_numpy(np.pad(rows, (0, fill))), table.weight)
                summed = values if summed is None else summed + values
        normalised = own.norm(summed)
        return normalised if self.project is None else self.project(normalised)


@dataclass(frozen=True)
class _Group:
    """Texts of one length that lie one after the other.

    Attributes:
        first: number of their first token.
        texts: how many they are.
        length: T, tokens of each.
        bias: (heads, 1, T, T), added to scores, or None.
        rows: (2 T - 1,) rows in the tables by distance of query - key from 1 - T on up, or None.
    """

    first: int
    texts: int
    length: int
    bias: Tensor | None
    rows: Tensor | None


@dataclass(frozen=True)
class _Batch:
    """Where texts lie, and what depends on the places of tokens in them.

    Attributes:
        tokens: number of tokens in all texts.
        groups: of texts of one length.
        rotations: by frequencies, cosine and sine of each token, (N, 1, heads * D / 2) each with heads of D numbers.
    """

    tokens: int
    groups: list[_Group]
    rotations: dict[bytes, tuple[Tensor, Tensor]]


class _Places:
    """Makes what depends on the places of tokens in their texts, which all layers share."""

    def __init__(self, layout: Layout) -> None:
        self.heads, self.dtype, self.by_distance = layout.heads, layout.dtype, layout.by_distance
        turning = [layer.frequencies for layer in layout.layers if layer.frequencies is not None]
        self.frequencies = {_key(frequencies): frequencies.float() for frequencies in turning}

    def __call__(self, lengths: np.ndarray, fill: int) -> _Batch:
        borders = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        firsts = np.concatenate(([0], np.cumsum(lengths))).tolist()
        groups = [
            _Group(firsts[first], last - first, int(lengths[first]), *self._terms(int(lengths[first])))
            for first, last in pairwise(borders)
        ]
        rotations: dict[bytes, tuple[Tensor, Tensor]] = {}
        if self.frequencies:
            places = torch.from_numpy(np.pad(packed_positions(np.zeros(firsts[-1]), lengths, None), (0, fill)))
            for key, frequencies in self.frequencies.items():
                # (T, heads * D / 2): the same for all heads.
                angles = torch.outer(torch.arange(float(lengths.max())), frequencies).repeat(1, self.heads)
                cosine, sine = (part.to(self.dtype)[places][:, None] for part in (angles.cos(), angles.sin()))
                rotations[key] = cosine, sine
        return _Batch(firsts[-1], groups, rotations)

    def _terms(self, length: int) -> tuple[Tensor | None, Tensor | None]:
        """Bias and rows of a group of texts of so many tokens."""
        if self.by_distance is None:
            return None, None
        rows = self.by_distance.rows(torch.arange(1 - length, length))
        if self.by_distance.bias is None:
            return None, rows
        # (heads, 2 T - 1), falling: a window of T numbers for each query, the last one's first.
        falling = self.by_distance.bias[rows.flip(0)].T.contiguous()
        return falling.unfold(1, length, 1).flip(1)[:, None], None


def _key(frequencies: Tensor) -> bytes:
    return frequencies.float().numpy().tobytes()


class _Layer:
    """One layer on tokens end to end."""

    def __init__(self, layer: Layer, layout: Layout, *, onednn: bool) -> None:
        self.heads, self.window, self.norm_first = layout.heads, layer.window, layout.norm_first
        self.rotation = None if layer.frequencies is None else _key(layer.frequencies)
        self.last_norm = _Norm(layer.last_norm)
        self.project = product(*_projection(layer, layout), "none", onednn=onednn)
        self.mix = product(layer.mix.weight, layer.mix.bias, "add", onednn=onednn)
        self.widen = _widening(layer, layout, onednn=onednn)
        self.narrow = product(layer.narrow.weight, layer.narrow.bias, "add", onednn=onednn)
        self.norms = _Norm(layer.norms[0]), _Norm(layer.norms[1])
        self.convolution = None if layer.convolution is None else _Convolution(layer, onednn=onednn)
        self.tables = _tables(layer, layout)

    def __call__(self, states: Tensor, batch: _Batch) -> Tensor:
        """(N, D) from (N, D), which are texts of these places, and rows that stand for nothing."""
        first, second = self.norms
        if self.norm_first:
            mixed = self.mix(self._attention(self.project(first(states)), batch), states)
            return self.narrow(self.widen(second(mixed)), mixed)
        mixed = first(self.mix(self._attention(self.project(states), batch), states))
        output = second(self.narrow(self.widen(mixed), mixed))
        return output if self.convolution is None else self.convolution(states, output, batch)

    def finished(self, output: Tensor) -> Tensor:
        """The hidden state (N, D) that is given for this layer's output."""
        return self.last_norm(output)

    def _attention(self, projected: Tensor, batch: _Batch) -> Tensor:
        """(N, D) from queries, keys and values (N, 3 D)."""
        width = projected.shape[1] // 3
        rotated = None if self.rotation is None else _rotated(projected, *batch.rotations[self.rotation])
        mixed = projected.new_empty(len(projected), width)
        for group in batch.groups:
            rows, shape = slice(group.first, group.first + group.texts * group.length), (group.texts, group.length)
            # (3, heads, texts, T, D / heads)
            parts: Sequence[Tensor] = projected[rows].view(*shape, 3, self.heads, -1).permute(2, 3, 0, 1, 4).unbind()
            if rotated is not None:
                # Numbers of a head may be in any order that queries and keys share.
                halves = rotated[rows].view(*shape, 2, 2, self.heads, -1).permute(2, 4, 0, 1, 3, 5)
                parts = (*halves.flatten(4), parts[2])
            # (heads, texts, T, D / heads)
            out = mixed[rows].view(*shape, self.heads, -1).permute(2, 0, 1, 3)
            for heads, texts in _chunks(self.heads, *shape, parts[0].dtype):
                query, key, value = (part[heads, texts] for part in parts)
                if self.tables is not None and group.rows is not None:
                    keys, queries = (None if table is None else table[heads] for table in self.tables)
                    attended = _disentangled(query, key, value, keys, queries, group.rows)
                elif self.window is not None and group.length > self.window + 1:
                    attended = _windowed(query, key, value, self.window)
                else:
                    attended = _attended(query, key, value, None if group.bias is None else group.bias[heads])
                out[heads, texts] = attended
        mixed[batch.tokens :] = 0
        return mixed


class _Convolution:
    """DeBERTa-v2's, as a product with a token's neighbours side by side."""

    def __init__(self, layer: Layer, *, onednn: bool) -> None:
        assert layer.convolution is not None
        conv, self.activation = layer.convolution.conv, layer.convolution.activation
        self.norm = _Norm(layer.convolution.norm)
        # (D, D, K) -> (D, K * D)
        weight, self.reach = conv.weight.permute(0, 2, 1).flatten(1).contiguous(), conv.kernel_size[0] // 2
        self.product = product(weight, conv.bias, "none", onednn=onednn)

    def __call__(self, states: Tensor, output: Tensor, batch: _Batch) -> Tensor:
        """(N, D) from the first layer's input and output, both (N, D)."""
        counts = [length for group in batch.groups for length in [group.length] * group.texts]
        counts.append(len(states) - sum(counts))
        texts = torch.repeat_interleave(torch.tensor(counts))
        return self.norm(self.activation(self.product(neighbours(states, texts, self.reach))).add_(output))


def neighbours(states: Tensor, texts: Tensor, reach: int) -> Tensor:
    """(N, (2 reach + 1) D): each token's neighbours in its text, zeros beyond the text's ends.

    Args:
        states: (N, D) of tokens end to end.
        texts: (N,) number of each token's text.
        reach: neighbours on each side.
    """
    places = torch.arange(len(states), device=states.device)
    beside = []
    for shift in range(-reach, reach + 1):
        other = (places + shift).clamp(0, len(places) - 1)
        same = (texts[other] == texts) & (other == places + shift)
        beside.append(states[other] * same[:, None])
    return torch.cat(beside, 1)


class _Norm:
    """A layer norm, or none, whose weights stay when the module that they are of is let go."""

    def __init__(self, module: torch.nn.LayerNorm | None) -> None:
        self.parts = None if module is None else (module.weight, module.bias, module.eps)

    def __call__(self, states: Tensor) -> Tensor:
        """(N, D) of (N, D)."""
        return states if self.parts is None else layer_norm(states, self.parts[0].shape, *self.parts)


def _rotated(projected: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Queries and keys (N, 2, 2, D / 2) of (N, 3 D), in which :func:`_projection` put halves of all heads together."""
    # (N, 2, D / 2) each: the first halves of queries and keys, and the second ones.
    first, second = projected[:, : projected.shape[1] // 3 * 2].unflatten(1, (2, 2, -1)).unbind(2)
    rotated = torch.stack((first * cosine, second * cosine), 2)
    rotated[:, :, 0].addcmul_(second, sine, value=-1)
    rotated[:, :, 1].addcmul_(first, sine)
    return rotated


def _chunks(heads: int, texts: int, length: int, dtype: torch.dtype) -> Iterator[tuple[slice, slice]]:
    """Heads and texts whose scores, where they are kept, stay together in a core's cache."""
    if dtype != torch.bfloat16:
        yield slice(heads), slice(texts)
        return
    some = max(1, min(texts, SCORES // length**2))
    each = max(1, min(heads, SCORES // (length**2 * some)))
    # A head's terms by distance serve one text after the other.
    for head in range(0, heads, each):
        for text in range(0, texts, some):
            yield slice(head, head + each), slice(text, text + some)


def _attended(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """(heads, texts, Q, D / heads) from queries (already scaled) of this shape, keys and values (.., K, ..).

    ``bias`` is added to scores and has a shape that becomes theirs, (heads, texts, Q, K).
    """
    if query.dtype != torch.bfloat16 or key.shape[2] > MATERIALISED:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    # oneDNN's batched products are so fast in bf16 that keeping the weights beats torch's attention, by a third.
    scores = _batched(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).unflatten(0, query.shape[:2])
    return _mixed(scores if bias is None else scores.add_(bias), value)


def _mixed(scores: Tensor, value: Tensor) -> Tensor:
    """(heads, texts, Q, D / heads): values by the softmax of scores (heads, texts, Q, K), which are overwritten."""
    _softmax(scores)
    return _batched(scores.flatten(0, 1), value.flatten(0, 1)).unflatten(0, value.shape[:2])


def _softmax(scores: Tensor) -> None:
    """The softmax of rows (.., K), in place."""
    keys = scores.shape[-1]
    if keys >= (WIDE if scores.dtype == torch.bfloat16 else VECTOR):
        torch.softmax(scores, -1, out=scores)
        return
    # Filled up to a vector, and in fp32, short rows take a third of the time.
    rows = torch.full((*scores.shape[:-1], max(keys, VECTOR)), -torch.inf)
    rows[..., :keys] = scores
    scores.copy_(torch.softmax(rows, -1, out=rows)[..., :keys])


def _windowed(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """As :func:`_attended`, of tokens at most ``window`` away: strips of queries with the keys in their reach."""
    length, attended = query.shape[2], []
    for start in range(0, length, STRIP):
        stop = min(start + STRIP, length)
        low, high = max(0, start - window), min(length, stop + window)
        mask = _band(start - low, stop - start, high - low, window, query.dtype)
        attended.append(_attended(query[:, :, start:stop], key[:, :, low:high], value[:, :, low:high], mask))
    return torch.cat(attended, 2)


@cache
def _band(first: int, queries: int, keys: int, window: int, dtype: torch.dtype) -> Tensor:
    """(1, 1, Q, K): 0 where the distance from a key to a query, whose places begin at 0 and ``first``, is in reach."""
    distance = torch.arange(first, first + queries)[:, None] - torch.arange(keys)
    return torch.where(distance.abs() <= window, 0.0, -torch.inf).to(dtype)[None, None]


def _disentangled(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None, queries: Tensor | None, rows: Tensor
) -> Tensor:
    """DeBERTa's attention (arXiv 2006.03654): as :func:`_attended`, and products with positions by distance.

    A strip of S queries is multiplied with the positions at all distances that it has, T + S - 1; each query's scores
    are a part of its row that begins one further left than that of the query before, which is a matter of strides.

    Args:
        query: (heads, texts, T, D / heads), scaled.
        key: of the same shape.
        value: of the same shape.
        keys: (heads, rows, D / heads), the table of positions that queries are multiplied with, or None.
        queries: of the same shape, that which keys are multiplied with, or None.
        rows: (2 T - 1,) rows in the tables of distances from 1 - T on up.
    """
    length = query.shape[2]
    scores = _batched(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)).unflatten(0, query.shape[:2])
    for start in range(0, length, STRIP):
        strip = slice(start, min(start + STRIP, length))
        # By rising key - query, then by rising query - key.
        wanted = slice(length - strip.stop, 2 * length - 1 - start)
        if keys is not None:
            scores[:, :, strip] += _shifted(query[:, :, strip], keys[:, rows.flip(0)[wanted]])
        if queries is not None:
            scores[:, :, :, strip] += _shifted(key[:, :, strip], queries[:, rows[wanted]]).transpose(2, 3)
    return _mixed(scores, value)


def _shifted(states: Tensor, table: Tensor) -> Tensor:
    """(heads, texts, S, T): the product of row i of states with rows S - 1 - i to S - 1 - i + T of a table.

    Args:
        states: (heads, texts, S, D / heads).
        table: (heads, T + S - 1, D / heads).
    """
    heads, texts, strip, size = states.shape
    reach = table.shape[1]
    # One product for all texts, with rows enough that its kernel does not depend on how many they are.
    flat = states.reshape(heads, -1, size)
    flat = pad(flat, (0, 0, 0, max(0, FEWEST_TOKENS - flat.shape[1])))
    products = _batched(flat, table.transpose(1, 2))
    strides = products.stride(0), strip * reach, reach - 1, 1
    return products.as_strided((heads, texts, strip, reach - strip + 1), strides, products.storage_offset() + strip - 1)


def _batched(left: Tensor, right: Tensor) -> Tensor:
    """Products of matrices (B, ..), which in bf16 all go to oneDNN: few multiplications would go another way."""
    fewest = FEW_PRODUCTS // (left.shape[1] * left.shape[2] * right.shape[2]) + 1
    if left.dtype != torch.bfloat16 or len(left) >= fewest:
        return torch.bmm(left, right)
    more = (0, 0, 0, 0, 0, fewest - len(left))
    return torch.bmm(pad(left, more), pad(right, more))[: len(left)]


def _projection(layer: Layer, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Weight (3 D, D) and bias (3 D,) of queries, keys and values.

    Queries are scaled instead of the scores, which spares a pass over these. With a rotation, the first halves of all
    heads' queries (and keys) stand before the second halves, so that a rotation is products of long rows.
    """
    joined: list[Tensor] = []
    for name in ("weight", "bias"):
        if getattr(layer.project[0], name) is None:
            return joined[0], None
        # A copy, (3, D, ..)
        values = torch.cat([getattr(part, name) for part in layer.project]).unflatten(0, (3, -1)).clone()
        values[0] = values[0].float() * layout.scale
        if layer.frequencies is not None:
            values[:2] = values[:2].unflatten(1, (layout.heads, 2, -1)).transpose(1, 2).flatten(1, 3)
        joined.append(values.flatten(0, 1))
    return joined[0], joined[1]


def _widening(layer: Layer, layout: Layout, *, onednn: bool) -> Callable[[Tensor], Tensor]:
    """The feed-forward part's first product, activated; with a gate times a second one."""
    after: After = "silu" if layout.activation == "silu" else "gelu_tanh" if layout.activation == "tanh" else "gelu"
    if not layout.gated:
        return product(layer.widen[0].weight, layer.widen[0].bias, after, onednn=onednn)
    weights: list[Tensor] = [part.weight for part in layer.widen]
    biases: list[Tensor | None] = [part.bias for part in layer.widen]
    if len(weights) == 1:
        weights = list(weights[0].chunk(2))
        biases = [None, None] if biases[0] is None else list(biases[0].chunk(2))
    active = product(weights[0], biases[0], after, onednn=onednn)
    times = product(weights[1], biases[1], "mul", onednn=onednn)
    return lambda states: times(states, active(states))


def _tables(layer: Layer, layout: Layout) -> tuple[Tensor | None, Tensor | None] | None:
    """DeBERTa's positions as keys, and as queries that are scaled, (heads, rows, D / heads) each."""
    positions = None if layout.by_distance is None else layout.by_distance.positions
    if positions is None:
        return None

    def table(project: torch.nn.Linear | None, scale: float) -> Tensor | None:
        if project is None:
            return None
        values = linear(positions, project.weight, project.bias).float() * scale
        return values.to(layout.dtype).unflatten(1, (layout.heads, -1)).transpose(0, 1).contiguous()

    return table(layer.position_keys, 1.0), table(layer.position_queries, layout.scale)


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

"""What known architectures are made of, read once into one description that `packed.py` and `packed_gpu.py` compute.

A new architecture costs its names in ``NAMES`` where it has nothing new. What a description does not cover is left to
the general path: a model is known only if every one of its parameters has a place in the description, nothing has been
put into it, and its own hidden states of two short texts agree with the description's (:func:`agrees`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

__all__ = [
    "COUNTED_FROM_PADDING",
    "ByDistance",
    "Convolution",
    "Embeddings",
    "Layer",
    "Layout",
    "agrees",
    "read_layout",
]

COUNTED_FROM_PADDING = ("camembert", "roberta", "xlm-roberta", "mpnet")
"""Model types whose positions begin after the padding's token id, which itself has that id as its position."""
ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "silu": "silu", "swish": "silu"}
"""GELU's approximation, or SiLU, by the name in a model's config."""
ELSEWHERE = ("pooler.", "encoder.relative_attention_bias.", "encoder.rel_embeddings.", "encoder.LayerNorm.")
"""Where parameters begin on which no hidden state depends, or which are in ``ByDistance``."""
# Tokens of the texts on which a description is compared with the model; the second one passes a local window's border.
PROBES, BEYOND_WINDOW = (5, 23), 9
# Largest difference of a hidden state, as a share of the state's norm, when a layer is given the model's own state.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Names:
    """Where an architecture keeps a layer's modules.

    Attributes:
        project: queries, keys and values, or one product for all three.
        mix: the product after attention.
        widen: the feed-forward part's first product; with a gate the activated one and the one it is multiplied with,
            or one for both.
        narrow: its second product.
        norms: of attention and of the feed-forward part.
        layers: the list of layers, in the model.
        gated: whether the feed-forward part has a gate.
        norm_first: whether a norm stands before its part, else it stands after the residual was added.
    """

    project: tuple[str, ...]
    mix: str
    widen: tuple[str, ...]
    narrow: str
    norms: tuple[str, str]
    layers: str = "encoder.layer"
    gated: bool = False
    norm_first: bool = False


def _names(project: str, mix: str, widen: str, narrow: str, norms: str, **options: Any) -> Names:
    """Names that are separated by spaces; in ``project`` they follow what stands before a colon."""
    prefix, _, parts = project.rpartition(":")
    first, second = norms.split()
    queries = tuple(prefix + part for part in parts.split())
    return Names(queries, mix, tuple(widen.split()), narrow, (first, second), **options)


_BERT = _names(
    "attention.self.:query key value", "attention.output.dense", "intermediate.dense", "output.dense",
    "attention.output.LayerNorm output.LayerNorm",
)  # fmt: skip
_GATED = _names(
    "self_attn.:q_proj k_proj v_proj", "self_attn.o_proj", "mlp.gate_proj mlp.up_proj", "mlp.down_proj",
    "post_attention_layernorm post_mlp_layernorm", layers="layers", gated=True,
)  # fmt: skip
NAMES = {
    **dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), _BERT),
    "mpnet": _names(
        "attention.attn.:q k v", "attention.attn.o", "intermediate.dense", "output.dense",
        "attention.LayerNorm output.LayerNorm",
    ),
    "deberta-v2": _names(
        "attention.self.:query_proj key_proj value_proj", "attention.output.dense", "intermediate.dense",
        "output.dense", "attention.output.LayerNorm output.LayerNorm",
    ),
    "distilbert": _names(
        "attention.:q_lin k_lin v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2", "sa_layer_norm output_layer_norm",
        layers="transformer.layer",
    ),
    "albert": _names(
        "attention.:query key value", "attention.dense", "ffn", "ffn_output",
        "attention.LayerNorm full_layer_layer_norm", layers="encoder.albert_layer_groups",
    ),
    "modernbert": _names(
        "attn.:Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo", "attn_norm mlp_norm", layers="layers", gated=True, norm_first=True
    ),
    "nomic_bert": _GATED,
    "gte": _GATED,
    "jina_embeddings_v3": _names(
        "self_attn.:q_proj k_proj v_proj", "self_attn.o_proj", "mlp.fc1", "mlp.fc2",
        "post_attention_layernorm post_mlp_layernorm", layers="layers",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Embeddings:
    """State 0: the sum of a token's rows in the tables, normalised and then projected to the layers' width.

    Attributes:
        words: table of token ids.
        types: table of segments, or None.
        positions: table of positions, or None.
        norm: of the sum.
        project: from the tables' width to the layers', or None.
        padding: None, or the padding's token id, after which positions begin (``COUNTED_FROM_PADDING``).
    """

    words: nn.Embedding
    types: nn.Embedding | None
    positions: nn.Embedding | None
    norm: nn.LayerNorm
    project: nn.Linear | None
    padding: int | None


@dataclass(frozen=True)
class ByDistance:
    """Terms of a score that depend on the distance from key to query.

    Attributes:
        rows: the tables' row of each distance, query - key.
        bias: (rows, heads), added to scaled scores (MPNet), or None.
        positions: (rows, D), DeBERTa's positions, which a layer projects to keys and to queries, or None.
    """

    rows: Callable[[Tensor], Tensor]
    bias: Tensor | None = None
    positions: Tensor | None = None


@dataclass(frozen=True)
class Convolution:
    """DeBERTa-v2's convolution of a layer's input, which is activated, added to the layer's output and normalised."""

    conv: nn.Conv1d
    activation: Callable[[Tensor], Tensor]
    norm: nn.LayerNorm


@dataclass(frozen=True)
class Layer:
    """One layer: the modules that :class:`Names` names, and what else belongs to it.

    Attributes:
        module: the whole layer.
        attention: the part of it that has queries, keys and values.
        project, mix, widen, narrow, norms: as in :class:`Names`; a norm may be absent.
        frequencies: (D / heads / 2,), of the rotation of queries and keys by their position, or None.
        window: the greatest distance at which a token is seen, or None.
        position_keys: makes keys of ``ByDistance.positions``, or None.
        position_queries: makes queries of them, or None.
        convolution: of the first layer, or None.
        last_norm: makes the hidden state of the last layer's output, or None.
    """

    module: nn.Module
    attention: nn.Module
    project: tuple[nn.Linear, ...]
    mix: nn.Linear
    widen: tuple[nn.Linear, ...]
    narrow: nn.Linear
    norms: tuple[nn.LayerNorm | None, nn.LayerNorm]
    frequencies: Tensor | None = None
    window: int | None = None
    position_keys: nn.Linear | None = None
    position_queries: nn.Linear | None = None
    convolution: Convolution | None = None
    last_norm: nn.LayerNorm | None = None


@dataclass(frozen=True)
class Layout:
    """An encoder as it is computed.

    Attributes:
        embeddings: make state 0.
        layers: in their order; the same one may be repeated (ALBERT).
        heads: of attention.
        activation: of the feed-forward part, a value of ``ACTIVATIONS``.
        gated, norm_first: as in :class:`Names`.
        by_distance: terms of the scores, or None.
        probes: token ids (T,) of a text and the model's own hidden states (depth + 1, T, D) of it.
    """

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    heads: int
    activation: str
    gated: bool
    norm_first: bool
    by_distance: ByDistance | None
    probes: tuple[tuple[np.ndarray, Tensor], ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and states."""
        return self.embeddings.words.weight.dtype

    @property
    def head_size(self) -> int:
        """Numbers of a head."""
        return self.layers[0].mix.in_features // self.heads

    @property
    def scale(self) -> float:
        """What scores are multiplied with, those of DeBERTa's positions included."""
        first = self.layers[0]
        products = 1 + (first.position_keys is not None) + (first.position_queries is not None)
        return float((self.head_size * products) ** -0.5)


def read_layout(model: Any) -> Layout | None:
    """The description of transformers' model, or None unless it is one of a known architecture as it was published."""
    config = model.config
    names = NAMES.get(config.model_type)
    activation = ACTIVATIONS.get(str(_first(config, "hidden_act", "hidden_activation", "activation")))
    if names is None or activation is None or not _is_usual(model):
        return None
    embeddings = _read_embeddings(model)
    layers = tuple(_read_layer(model, names, module, number) for number, module in enumerate(_modules(model, names)))
    if not _is_complete(model, embeddings, layers, gated=names.gated):
        return None
    probes, normalised = _probe(model, layers)
    if not normalised:
        layers = (*layers[:-1], replace(layers[-1], last_norm=None))
    return Layout(
        embeddings=embeddings,
        layers=layers,
        heads=config.num_attention_heads,
        activation=activation,
        gated=names.gated,
        norm_first=names.norm_first,
        by_distance=_read_by_distance(model),
        probes=probes,
    )


def agrees(layout: Layout, embed: Callable[[np.ndarray], Tensor], layers: Iterable[Callable[[Tensor], Tensor]]) -> bool:
    """Whether what computes a description gives the hidden states of the model that it was read from.

    Each layer gets the model's own state below it, so that rounding does not add up.

    Args:
        layout: the description.
        embed: makes state 0, (T, D), of a text's token ids (T,).
        layers: each makes the next state (T, D) of a text's state (T, D).
    """
    limit = TOLERANCE[layout.dtype]

    def close(given: Tensor, wanted: Tensor) -> bool:
        # NaN is never close.
        return bool((given.float() - wanted.float()).norm() <= limit * wanted.float().norm())

    with torch.inference_mode():
        if not all(close(embed(ids), states[0]) for ids, states in layout.probes):
            return False
        return all(
            close(layer(states[number]), states[number + 1])
            for number, layer in enumerate(layers)
            for _, states in layout.probes
        )


def _first(owner: Any, *names: str) -> Any:
    """The first of these attributes that it has."""
    return next((value for name in names if (value := getattr(owner, name, None)) is not None), None)


def _is_usual(model: Any) -> bool:
    """Whether the config has no option that changes what a layer computes, and nothing was put into the model."""
    config = model.config
    rotary = [getattr(config, "rope_scaling", None), getattr(config, "rope_parameters", None)]
    rotary += [value for value in rotary[1].values() if isinstance(value, dict)] if rotary[1] else []
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        # Transformers gathers hidden states by hooks of its own.
        if not getattr(hook, "__module__", "").startswith("transformers.")
    ]
    return (
        not hooks
        and not model.training
        and getattr(config, "position_embedding_type", "absolute") in ("absolute", None)
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "pruned_heads", None)
        and getattr(config, "inner_group_num", 1) == 1
        and all(not entry or entry.get("rope_type", "default") == "default" for entry in rotary)
        and (config.model_type != "deberta-v2" or config.relative_attention)
    )


def _read_embeddings(model: Any) -> Embeddings:
    own = model.embeddings
    words = _first(own, "word_embeddings", "tok_embeddings")
    return Embeddings(
        words=words,
        types=getattr(own, "token_type_embeddings", None),
        positions=getattr(own, "position_embeddings", None),
        norm=_first(own, "LayerNorm", "norm"),
        project=_first(model, "embeddings_project") or _encoder(model, "embedding_hidden_mapping_in"),
        padding=int(words.padding_idx or 0) if model.config.model_type in COUNTED_FROM_PADDING else None,
    )


def _encoder(model: Any, name: str) -> Any:
    """What the part of a model that holds its layers calls so, or None."""
    return getattr(getattr(model, "encoder", None), name, None)


def _modules(model: Any, names: Names) -> list[Any]:
    """The layers in the order in which they are computed."""
    modules, depth = attrgetter(names.layers)(model), model.config.num_hidden_layers
    if model.config.model_type != "albert":
        return list(modules)
    # Neighbouring layers share a group's weights.
    return [modules[number * len(modules) // depth].albert_layers[0] for number in range(depth)]


def _read_layer(model: Any, names: Names, module: Any, number: int) -> Layer:
    def get(path: str) -> Any:
        return attrgetter(path)(module)

    attention = get(names.project[0].rpartition(".")[0])
    terms, prefix = getattr(attention, "pos_att_type", ()), "" if getattr(attention, "share_att_key", False) else "pos_"
    # One of them in the lowest transformers, the other in the newest.
    local = getattr(attention, "sliding_window", None) or max(getattr(attention, "local_attention", (0,))) > 0
    convolution, first_norm = _encoder(model, "conv"), get(names.norms[0])
    return Layer(
        module=module,
        attention=attention,
        project=tuple(get(path) for path in names.project),
        mix=get(names.mix),
        widen=tuple(get(path) for path in names.widen),
        narrow=get(names.narrow),
        norms=(None if type(first_norm) is nn.Identity else first_norm, get(names.norms[1])),
        frequencies=_frequencies(model, attention, "sliding" if local else "full"),
        window=model.config.local_attention // 2 if local else None,
        position_keys=getattr(attention, prefix + "key_proj") if "c2p" in terms else None,
        position_queries=getattr(attention, prefix + "query_proj") if "p2c" in terms else None,
        convolution=_read_convolution(convolution) if convolution is not None and not number else None,
        last_norm=getattr(model, "final_norm", None) if number == model.config.num_hidden_layers - 1 else None,
    )


def _frequencies(model: Any, attention: Any, kind: str) -> Tensor | None:
    """Of a layer's rotation; ModernBERT has those of local layers beside those of layers that see everything."""
    rotary = _first(model, "rotary_emb") or _first(attention, "rotary_emb")
    frequencies: Tensor | None = _first(rotary, f"{kind}_attention_inv_freq", "inv_freq")
    return frequencies


def _read_convolution(module: Any) -> Convolution:
    return Convolution(module.conv, ACT2FN[module.conv_act], module.LayerNorm)


def _read_by_distance(model: Any) -> ByDistance | None:
    kind = model.config.model_type
    encoder: Any = getattr(model, "encoder", None)
    if kind == "mpnet":
        return ByDistance(
            lambda distance: encoder.relative_position_bucket(-distance), encoder.relative_attention_bias.weight
        )
    if kind != "deberta-v2":
        return None
    span = _modules(model, NAMES[kind])[0].attention.self.pos_ebd_size

    def rows(distance: Tensor) -> Tensor:
        if encoder.position_buckets > 0 and encoder.max_relative_positions > 0:
            from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

            distance = make_log_bucket_position(distance, encoder.position_buckets, encoder.max_relative_positions)
        return (distance.long() + span).clamp(0, 2 * span - 1)

    return ByDistance(rows, positions=encoder.get_rel_embedding().detach())


def _is_complete(model: Any, embeddings: Embeddings, layers: Sequence[Layer], *, gated: bool) -> bool:
    """Whether the description has all of a model's parameters, in plain modules of the usual shapes."""
    tables = [embeddings.words, embeddings.types, embeddings.positions]
    products = [embeddings.project, *(part for layer in layers for part in (*layer.project, layer.mix, *layer.widen))]
    products += [part for layer in layers for part in (layer.narrow, layer.position_keys, layer.position_queries)]
    norms = [embeddings.norm, *(norm for layer in layers for norm in (*layer.norms, layer.last_norm))]
    convolution = layers[0].convolution
    norms += [convolution.norm] if convolution else []
    kinds = ((tables, nn.Embedding), (products, nn.Linear), (norms, nn.LayerNorm))
    if any(part is not None and type(part) is not kind for parts, kind in kinds for part in parts):
        return False
    if convolution and (convolution.conv.groups != 1 or convolution.conv.kernel_size[0] % 2 != 1):
        return False
    parts = [*tables, *products, *norms, convolution.conv if convolution else None]
    known = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    return (
        all(id(parameter) in known for name, parameter in model.named_parameters() if not name.startswith(ELSEWHERE))
        and all(
            _first(layer.attention, "num_attention_heads", "num_heads", "n_heads") in (heads, None) for layer in layers
        )
        and all(sum(part.out_features for part in layer.project) == 3 * width for layer in layers)
        and all(layer.mix.in_features == width == layer.mix.out_features for layer in layers)
        and all(
            sum(part.out_features for part in layer.widen) == layer.narrow.in_features * (1 + gated) for layer in layers
        )
    )


def _probe(model: Any, layers: Sequence[Layer]) -> tuple[tuple[tuple[np.ndarray, Tensor], ...], bool]:
    """Two texts and the model's hidden states of them, and whether the last state is what the last norm gives."""
    embeddings = _read_embeddings(model)
    words, before = embeddings.words, 0 if embeddings.padding is None else embeddings.padding + 1
    longest = (getattr(model.config, "max_position_embeddings", None) or PROBES[1]) - before
    window = max(layer.window or 0 for layer in layers)
    lengths = PROBES[0], min(max(PROBES[1], window + BEYOND_WINDOW if window else 0), longest)
    generator, normalised, probes = np.random.default_rng(0), True, []
    for length in lengths:
        # Ids beyond the first, which are special ones in most vocabularies.
        ids = generator.integers(words.num_embeddings // 2, words.num_embeddings, length)
        ids[ids == words.padding_idx] -= 1
        with torch.inference_mode():
            given = torch.from_numpy(ids)[None].to(model.device)
            outputs = model(input_ids=given, output_hidden_states=True, return_dict=True)
        states = [state[0] for state in outputs.hidden_states]
        # The lowest transformers gives ModernBERT's last hidden state without the last norm.
        normalised &= torch.equal(states[-1], outputs.last_hidden_state[0])
        probes.append((ids, torch.stack(states)))
    return tuple(probes), normalised

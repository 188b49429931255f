"""Slow, obviously right label heads: one text, label, head and token at a time, in float64.

Weights are read by name from the fast head's ``state_dict``, sizes from its config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ytuning.heads.pooled import CrossAttentionConfig, HeadConfig, LabelTuningConfig, PooledConfig

State = Mapping[str, Tensor]


def naive_logits(
    config: HeadConfig, state: State, features: Tensor, mask: Tensor, *, separate_pairs: bool = False
) -> Tensor:
    """Logits (B, C) of features (B, T, L, D) with mask (B, T); of pairs both are of 2 * B texts."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    texts = [
        [token for token, there in zip(text.double(), kept, strict=True) if there]
        for text, kept in zip(features, mask, strict=True)
    ]
    rows = [[text] for text in texts]
    if separate_pairs:
        count = len(texts) // 2
        rows = [list(pair) for pair in zip(texts[:count], texts[count:], strict=True)]
    if isinstance(config, PooledConfig):
        return torch.stack([_pooled(config, weights, row) for row in rows])
    if isinstance(config, LabelTuningConfig):
        return torch.stack([_label_tuning(config, weights, row) for row in rows])
    assert isinstance(config, CrossAttentionConfig)
    return torch.stack([_cross_attention(config, weights, [token for text in row for token in text]) for row in rows])


# --- label rows in the encoder's space -------------------------------------------------------------------------------


def _label_tuning(config: LabelTuningConfig, state: State, texts: list[list[Tensor]]) -> Tensor:
    """Logits (C,) of a row's one or two texts, each token (L, D)."""
    sides = []
    for tokens in texts:
        means = [sum(parts, torch.zeros(())) / len(tokens) for parts in zip(*tokens, strict=True)]  # of each state
        apart = [mean - common for mean, common in zip(means, state["center"], strict=True)]
        sides.append(torch.cat([each / each.norm() for each in apart]) / math.sqrt(len(apart)))
    if len(sides) == 2:
        first, second = sides
        sides += [(first - second).abs(), first * second * math.sqrt(len(first))]
    text = torch.cat(sides)
    rows, biases = state["label_rows"][0], state["bias"][0]
    return torch.stack([config.scale * (row @ text + bias) for row, bias in zip(rows, biases, strict=True)])


# --- pool first, then match -----------------------------------------------------------------------------------------


def _pooled(config: PooledConfig, state: State, texts: list[list[Tensor]]) -> Tensor:
    """Logits (C,) of a row's one or two texts, each token (L, D): the mean of what the members say."""
    members = len(state["label_bias"]) - (config.light_width > 0)
    logits = [_member(config, state, member, texts) for member in range(members)]
    if config.light_width:
        logits.append(_light_member(state, texts))
    return torch.stack([weight * own for weight, own in zip(state["member_weights"], logits, strict=True)]).mean(0)


def _light_member(state: State, texts: list[list[Tensor]]) -> Tensor:
    """Logits (C,) of the member that reads the pools of all tokens."""
    pools = []
    for tokens in texts:
        values = [list(column) for column in torch.stack([token.flatten() for token in tokens]).T]
        # The mean, the maximum and the minimum of each number of a token, in the precision of the store.
        kinds = ([sum(own, torch.zeros(())) / len(own) for own in values], [max(own) for own in values])
        pools.append([torch.stack(kind).half().double() for kind in (*kinds, [min(own) for own in values])])
    text = torch.cat(pools[0])
    if len(pools) == 2:
        first, second = pools
        apart = [(one - other).abs() for one, other in zip(first[:2], second[:2], strict=True)]
        alike = [one * other for one, other in zip(first[:2], second[:2], strict=True)]
        text = torch.cat([first[0], second[0], *apart, *alike])
    rows, scale, bias = (state[f"light.{name}"] for name in ("label_rows", "row_scale", "label_bias"))
    numbers = torch.stack([scale[place] * (row @ text) + bias[place] for place, row in enumerate(rows)])
    labels = zip(state["label_rows"][-1], state["label_bias"][-1], strict=True)
    return torch.stack([row[: len(numbers)] @ numbers + bias for row, bias in labels])


def _member(config: PooledConfig, state: State, member: int, texts: list[list[Tensor]]) -> Tensor:
    """Logits (C,) of one member."""
    position = member // config.members
    read, tokens_map, queries = _read(config, state, position)
    flats = [[token[read].flatten() for token in tokens] for tokens in texts]
    maps = [[tokens_map @ token for token in flat] for flat in flats]
    if len(texts) == 2:
        maps = [_attending(config, state["mixing"][position], *each) for each in (maps, maps[::-1])]
    pools = [
        _standardised(_pools(state["map_bias"][position, 0], queries, flat, mapped))
        for flat, mapped in zip(flats, maps, strict=True)
    ]
    if len(pools) == 2:
        first, second = pools
        pools = [first - second, (first - second).abs(), first * second]
    text = torch.cat(pools) @ state["project"][member] + state["project_bias"][member]
    hidden = _gelu(_standardised(text) @ state["expand"][member] + state["expand_bias"][member])
    text = _standardised(text + hidden @ state["contract"][member] + state["contract_bias"][member])
    rows, biases = state["label_rows"][member], state["label_bias"][member]
    return torch.stack([row @ text + bias for row, bias in zip(rows, biases, strict=True)])


def _read(config: PooledConfig, state: State, position: int) -> tuple[list[int], Tensor, Tensor]:
    """The S hidden states that a map reads, the map (K, S * D) of them side by side, and queries (Q or 0, S * D)."""
    shared = len(state["shared_map"])
    if position < config.alone:
        states, weights = [0], state["lowest_map"][position]
    elif position < config.alone + config.side_by_side:
        states, weights = list(range(shared)), torch.cat(list(state["shared_map"][:, position - config.alone]), 1)
    else:
        states, weights = [-1], state["last_map"][position - config.alone - config.side_by_side]
    return states, weights[: config.token_width], weights[config.token_width :]


def _pools(bias: Tensor, queries: Tensor, flat: list[Tensor], mapped: list[Tensor]) -> Tensor:
    """Maximum and attention pools of one text."""
    largest = torch.stack([max(values) for values in zip(*mapped, strict=True)])
    return torch.cat([_gelu(largest + bias), *(_attend(query, flat, mapped) for query in queries)])


def _attending(config: PooledConfig, weights: Tensor, mapped: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Each mapped token (K,) plus what it gathers from others."""
    size = config.mixing_width
    parts = [_standardised(token) @ weights for token in others]
    keys, values = [part[size : 2 * size] for part in parts], [part[2 * size :] for part in parts]
    return [
        token + _attend((_standardised(token) @ weights)[:size] / math.sqrt(size), keys, values) for token in mapped
    ]


# --- label rows attend to tokens ------------------------------------------------------------------------------------


def _cross_attention(config: CrossAttentionConfig, state: State, tokens: list[Tensor]) -> Tensor:
    """Logits (C,) of the tokens of one text, each (L, D)."""
    last = [token[-1] for token in tokens]
    rows = list(state["rows"])
    for block in range(config.blocks):
        name = f"blocks.{block}"
        normed = [_norm(state, f"{name}.self_norm", row) for row in rows]
        rows = [
            row + _self_attention(config, state, f"{name}.self_attention", own, normed)
            for row, own in zip(rows, normed, strict=True)
        ]
        rows = [
            row
            + _text_attention(config, state, f"{name}.cross_attention", _norm(state, f"{name}.cross_norm", row), last)
            for row in rows
        ]
        rows = [row + _feed_forward(state, f"{name}.feed_forward", row) for row in rows]
    task, *labels = (_norm(state, "final_norm", row) for row in rows)
    logits = []
    for first in range(0, len(labels), config.rows_per_label):
        scores = [label @ task / math.sqrt(config.width) for label in labels[first : first + config.rows_per_label]]
        logits.append(torch.log(sum((torch.exp(score) for score in scores), torch.zeros_like(scores[0]))))
    return torch.stack(logits)


def _self_attention(config: CrossAttentionConfig, state: State, name: str, row: Tensor, others: list[Tensor]) -> Tensor:
    weights, biases = (
        state[f"{name}.in_proj_weight"].split(config.width),
        state[f"{name}.in_proj_bias"].split(config.width),
    )
    query = weights[0] @ row + biases[0]
    keys = [weights[1] @ other + biases[1] for other in others]
    values = [weights[2] @ other + biases[2] for other in others]
    return _linear(state, f"{name}.out_proj", _many_heads(config, query, keys, values))


def _text_attention(config: CrossAttentionConfig, state: State, name: str, row: Tensor, tokens: list[Tensor]) -> Tensor:
    query = _linear(state, f"{name}.query", row)
    keys = [state[f"{name}.key.weight"] @ token for token in tokens]
    values = [_linear(state, f"{name}.value", token) for token in tokens]
    return _linear(state, f"{name}.out", _many_heads(config, query, keys, values))


def _many_heads(config: CrossAttentionConfig, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    size = config.width // config.heads
    out = []
    for head in range(config.heads):
        part = slice(head * size, (head + 1) * size)
        scaled = query[part] / math.sqrt(size)
        out.append(_attend(scaled, [key[part] for key in keys], [value[part] for value in values]))
    return torch.cat(out)


# --- parts ----------------------------------------------------------------------------------------------------------


def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Mean of the values, weighted by exp(query . key)."""
    shares = [math.exp(float(query @ key)) for key in keys]
    total = torch.zeros_like(values[0])
    for share, value in zip(shares, values, strict=True):
        total = total + share / sum(shares) * value
    return total


def _linear(state: State, name: str, vector: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ vector + state[f"{name}.bias"]


def _standardised(vector: Tensor) -> Tensor:
    centred = vector - vector.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5)


def _norm(state: State, name: str, vector: Tensor) -> Tensor:
    return _standardised(vector) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _feed_forward(state: State, name: str, vector: Tensor) -> Tensor:
    hidden = _linear(state, f"{name}.1", _norm(state, f"{name}.0", vector))
    return _linear(state, f"{name}.3", _gelu(hidden))


def _gelu(vector: Tensor) -> Tensor:
    return vector * 0.5 * (1 + torch.erf(vector / math.sqrt(2)))

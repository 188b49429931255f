"""The label head: frozen token features in, one logit for each label out. A pure module without I/O.

Four forms, all learn label representations and align fixed features with them:

* :class:`PooledHead` (preset ``default``): shared queries pool the tokens first, in a small space of their own, then
  the text is matched with the label rows, so that the cost of a token does not grow with the number of labels (group
  queries: ML-Decoder, arXiv 2111.12933).
* `cross_attention.CrossAttentionHead` (preset ``paper``): the label rows attend to the tokens
  themselves (Y-Tuning, arXiv 2202.09817).
* `label_tuning.LabelTuningHead` (preset ``few-shot``): label rows in the encoder's own space, which can
  start from the labels' texts (label tuning, arXiv 2203.14655).
* `light.LightHead` (preset ``light``): label rows in closed form on pools that all tasks of an encoder share.

Of pairs of texts that were encoded one by one, features (2 * B, T, L, D) hold all first texts, then all second ones.
Two forms match such pairs by their distance and their product and, to know which text is which, by their difference or
by both texts (abs(u - v), u * v and u - v, or u and v: InferSent, arXiv 1705.02364); in the pooled one each token has
attended to the other text before (soft alignment: arXiv 1606.01933). In cross-attention the label rows attend to the
tokens of both.

Shapes: B texts, T tokens, L hidden states, D encoder width, C labels, M rows per label, H head width. Features may come
in bfloat16: what is done for every token is then computed in it, everything after in float32. Random numbers come from
the generator that is given, so that heads can be trained side by side and each still gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ytuning.errors import InputError, must_be_one_of
from ytuning.heads.cross_attention import CrossAttentionConfig, CrossAttentionHead
from ytuning.heads.label_tuning import LabelTuningConfig, LabelTuningHead, dropout, means_of_labels
from ytuning.heads.light import LightConfig, LightHead
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooling import maximum

__all__ = [
    "CrossAttentionConfig",
    "CrossAttentionHead",
    "HeadConfig",
    "LabelHead",
    "LabelTuningConfig",
    "LabelTuningHead",
    "LightConfig",
    "LightHead",
    "MatchingHead",
    "PooledConfig",
    "PooledHead",
    "StateGroups",
    "build_head",
    "config_from_json",
    "config_to_json",
    "state_groups",
]


@dataclass(frozen=True)
class PooledConfig:
    """Sizes of a :class:`PooledHead`.

    Attributes:
        side_by_side: number of members that read several hidden states side by side (:func:`state_groups`). Members are
            independent heads whose logits are averaged. Several small ones do better than a large one.
        alone: number of further members that read the lowest state alone; the same number reads the last one alone.
            Members do better together if they do not all read the same states (benchmarks/LOG.md).
        width: H, of a member's label space.
        token_width: K, of a member's map of tokens, which are then pooled by their maximum and by its queries.
        mixing_width: A, of the keys by which a member's mapped tokens attend to each other...
        mixing_span: S, ...within spans of so many tokens.
        queries: Q, learned pooling queries of a member.
        hidden: width of the feed-forward layer, as a multiple of H.
        dropout: share of pooled and final activations that training sets to zero.
        token_dropout: share of tokens that training hides.
    """

    side_by_side: int = 3
    alone: int = 1
    width: int = 64
    token_width: int = 60
    mixing_width: int = 32
    mixing_span: int = 64
    queries: int = 2
    hidden: int = 1
    dropout: float = 0.1
    token_dropout: float = 0.1


HeadConfig = PooledConfig | CrossAttentionConfig | LabelTuningConfig | LightConfig
# A pair is matched by these three combinations of its texts; only the first one knows which text is which.
SIDES = ("difference", "distance", "product")
# The weights that touch a token, for each of the groups of members in the order of `state_groups`.
TOKEN_MAPS = ("lowest_map", "shared_map", "last_map")
# A score with this added gets an attention weight of exactly 0.
HIDDEN = -1e4
# A pair's first queries, which are also its keys, get this factor: without it, training rarely finds what is alike.
ALIKE = 1.5
# Maximum number of attention scores in memory at a time.
SCORES_AT_ONCE = 2**24
FORMS: dict[str, type[HeadConfig]] = {
    "pooled": PooledConfig,
    "cross_attention": CrossAttentionConfig,
    "label_tuning": LabelTuningConfig,
    "light": LightConfig,
}


StateGroups = tuple[tuple[int, ...], ...]
"""Groups of hidden states by their positions among L states, from 0."""


def state_groups(layers: int) -> StateGroups:
    """Positions of the hidden states that each group of members reads, among L states from the lowest to the last.

    The first group reads the lowest state alone. The second group reads several side by side: all but the last one, or
    with one or two states all of them. The third group reads the last state alone.
    """
    return (0,), tuple(range(max(min(layers, 2), layers - 1))), (layers - 1,)


class PooledHead(nn.Module):
    """Pool first, then match; a small ensemble.

    Each member maps the tokens to a small space of its own, where those of a span attend to each other once, and pools
    them there, by maximum and by attention of its queries. Some read the lowest hidden state alone, most several states
    side by side, some the last one alone, and they follow each other in this order. The pools are normalised, mapped to
    the member's label space, refined by a residual feed-forward layer and matched with its label rows by dot product.
    All members are computed together. In a pair, tokens attend to the other text instead, first to those that are like
    them, and what is matched are the pools' differences, distances and products.
    """

    def __init__(
        self,
        config: PooledConfig,
        *,
        labels: int,
        layers: int,
        width: int,
        pair_mode: PairMode | None = None,
        energy: float = 1.0,
        apart: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Make a head for C labels on L hidden states of width D; ``pair_mode`` says how the encoder reads pairs.

        Numbers of ``energy`` times a hidden state's mean square get smaller first weights. With ``apart`` the features
        are (B, T, S + 2, D): what each group of members reads, one group after the other, S being the number of states
        side by side (:func:`state_groups`). ``generator`` draws the weights; the default is torch's own.
        """
        super().__init__()
        self.config, self.pair_mode, self.apart = config, pair_mode, apart
        # L, E and H.
        self.layers, self.members, self.match_width = layers, config.side_by_side + 2 * config.alone, config.width
        members, inner = self.members, config.hidden * config.width
        mixing, pooled = 2 * config.mixing_width + config.token_width, (1 + config.queries) * config.token_width
        pooled *= len(SIDES) if pair_mode == "separate" else 1
        random = partial(_random, generator=generator)
        # What a member maps a token to: K numbers and the scores of Q queries. The states side by side are added up.
        shared, mapped = len(state_groups(layers)[1]), config.token_width + config.queries
        self.lowest_map = random(config.alone, mapped, width, fan_in=3 * energy * width)
        self.shared_map = random(shared, config.side_by_side, mapped, width, fan_in=3 * energy * shared * width)
        self.last_map = random(config.alone, mapped, width, fan_in=3 * energy * width)
        self.map_bias = _zeros(members, 1, config.token_width)
        self.mixing = random(members, config.token_width, mixing, fan_in=3 * config.token_width)
        if pair_mode == "separate":
            with torch.no_grad():
                queries, keys = self.mixing[..., : 2 * config.mixing_width].chunk(2, 2)
                queries.mul_(ALIKE)
                keys.copy_(queries)
        self.project = random(members, pooled, config.width, fan_in=3 * pooled)
        self.project_bias = _zeros(members, config.width)
        self.expand = random(members, config.width, inner, fan_in=3 * config.width)
        self.expand_bias = _zeros(members, inner)
        self.contract = random(members, inner, config.width, fan_in=3 * inner)
        self.contract_bias = _zeros(members, config.width)
        self.label_rows = random(members, labels, config.width, fan_in=config.width)
        self.label_bias = _zeros(members, labels)
        # (E,): how much each member counts in the mean. Their mean is 1. Validation sets them, training does not.
        self.member_weights: Tensor
        self.register_buffer("member_weights", torch.ones(members))

    def forward(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits of features (B, T, L, D) with mask (B, T), True at tokens; ``generator`` draws what training drops.

        Of pairs there are 2 * B of both.

        Returns:
            (B, C), the weighted mean over members; in training mode (E, B, C), for each member learns by itself.
        """
        logits = self.match(self.text(features, mask, generator))
        return logits if self.training else self.average(logits)

    def text(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return texts in each member's label space, (E, B, H); the arguments are those of :meth:`forward`."""
        share = self.config.dropout if self.training else 0.0
        if self.training and self.config.token_dropout:
            kept = torch.rand(mask.shape, generator=generator, device=mask.device) >= self.config.token_dropout
            # The first token stays, so that no text is without tokens.
            kept[:, 0] = True
            mask = mask & kept
        pooled = _normalised(self._pool(features, mask))
        if self.pair_mode == "separate":
            first, second = pooled.chunk(2, 1)
            difference = first - second
            # The order is that of SIDES.
            pooled = torch.cat((difference, difference.abs(), first * second), 2)
        pooled = dropout(pooled, share, generator)
        # (E, B, H)
        text = torch.baddbmm(self.project_bias[:, None], pooled, self.project)
        inner = functional.gelu(torch.baddbmm(self.expand_bias[:, None], _normalised(text), self.expand))
        text = text + torch.baddbmm(self.contract_bias[:, None], inner, self.contract)
        return dropout(_normalised(text), share, generator)

    def match(self, text: Tensor) -> Tensor:
        """Logits (E, B, C) of texts (E, B, H) in label space."""
        return torch.baddbmm(self.label_bias[:, None], text, self.label_rows.transpose(1, 2))

    def average(self, logits: Tensor) -> Tensor:
        """The weighted mean (B, C) of members' logits (E, B, C)."""
        return (logits * self.member_weights[:, None, None]).mean(0)

    def start_rows(self, texts: Tensor, labels: Tensor) -> None:
        """Start each label's rows from its texts (N, E, H), as :meth:`text` gives them, of label ids (N,).

        What all labels have in common is left out, for it tells none of them from another.
        """
        with torch.no_grad():
            for rows, own in zip(self.label_rows, texts.unbind(1), strict=True):
                there = labels.unique()
                means = means_of_labels(own, labels, there)
                rows[there] = functional.normalize(means - means.mean(0), dim=-1)

    @staticmethod
    def joined(heads: Sequence[PooledHead], *, with_labels: bool = True) -> PooledHead:
        """One head with the members of several heads of one form.

        Its logits are the weighted mean of the logits of all members. Heads of different labels can be joined without
        them, for :meth:`text` alone.
        """
        states = [head.state_dict() for head in heads]
        if not with_labels:
            # The first label stays, as there is no head without one.
            for state in states:
                state |= {name: state[name][:, :1] for name in ("label_rows", "label_bias")}
        joined = {}
        for name in states[0]:
            parts = [state[name] for state in states]
            if name in TOKEN_MAPS:
                # (E', ..) or (L', E', ..)
                joined[name] = torch.cat(parts, parts[0].dim() - 3)
            else:
                groups = zip(
                    *(part.split(head.group_sizes) for part, head in zip(parts, heads, strict=True)), strict=True
                )
                joined[name] = torch.cat([part for group in groups for part in group])
        return heads[0]._with_state(joined)

    @staticmethod
    def split_by_head(values: Tensor, heads: Sequence[PooledHead]) -> list[Tensor]:
        """What belongs to the members of each head, (E, ..), of values (sum of E, ..) of the head :meth:`joined`."""
        sizes = [size for group in zip(*(head.group_sizes for head in heads), strict=True) for size in group]
        parts = values.split(sizes)
        return [torch.cat(parts[number :: len(heads)]) for number in range(len(heads))]

    @property
    def group_sizes(self) -> list[int]:
        """How many members read the lowest state, several states side by side, and the last one."""
        return [self.config.alone, self.config.side_by_side, self.config.alone]

    def with_group_weights(self, weights: Sequence[float]) -> PooledHead:
        """The head whose mean gives each member the weight of its group in the order of :attr:`group_sizes`.

        At least one of the three weights must be above 0.
        """
        by_member = torch.tensor(weights, dtype=torch.float64).repeat_interleave(torch.tensor(self.group_sizes))
        by_member /= by_member.mean()
        return self._with_state({**self.state_dict(), "member_weights": by_member.to(self.member_weights)})

    def with_label(self, row: Tensor, bias: Tensor) -> PooledHead:
        """The head with one more label, after the others: its row (E, H) and bias (E,)."""
        state = self.state_dict()
        state["label_rows"] = torch.cat((state["label_rows"], row[:, None]), 1)
        state["label_bias"] = torch.cat((state["label_bias"], bias[:, None]), 1)
        return self._with_state(state)

    def without_label(self, label: int) -> PooledHead:
        """The head without the label of an id."""
        state = self.state_dict()
        for name in ("label_rows", "label_bias"):
            state[name] = torch.cat((state[name][:, :label], state[name][:, label + 1 :]), 1)
        return self._with_state(state)

    def fold_projection(self, components: Sequence[Tensor]) -> PooledHead:
        """The head on hidden states that gives this one's logits on coordinates that lie apart.

        Only the maps that touch a token change, all of them linear, so nothing is left of the components.

        Args:
            components: of each of :func:`state_groups`, with S states, (S * R, S * D).
        """
        lowest, shared, last = components
        count = len(self.shared_map)
        # (E, K + Q, S * R) -> (E, K + Q, S * D)
        side_by_side = self.shared_map.permute(1, 2, 0, 3).flatten(2) @ shared
        maps = {
            "lowest_map": self.lowest_map @ lowest,
            "shared_map": side_by_side.unflatten(2, (count, -1)).permute(2, 0, 1, 3).contiguous(),
            "last_map": self.last_map @ last,
        }
        return self._with_state({**self.state_dict(), **maps}, apart=False)

    def _with_state(self, state: Mapping[str, Tensor], *, apart: bool | None = None) -> PooledHead:
        """A head of this form with other weights, whose shapes say how many members and labels it has."""
        # No weights are drawn, because all of them are replaced at once.
        with torch.device("meta"):
            head = PooledHead(
                replace(self.config, side_by_side=state["shared_map"].shape[1], alone=len(state["last_map"])),
                labels=state["label_bias"].shape[1],
                layers=self.layers,
                width=state["shared_map"].shape[-1],
                pair_mode=self.pair_mode,
                apart=self.apart if apart is None else apart,
            )
        head.to_empty(device=state["label_bias"].device).load_state_dict(state)
        return head.train(self.training)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool each member's map of the tokens (B, T, L, D) by maximum and attention to (E, B, (1 + Q) * K)."""
        members, count, dtype = self.members, len(states), states.dtype
        # (B, T)
        hidden = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
        # (B, T, E, K + Q) -> (E, B, T, ..)
        mapped, scores = self._maps(states).permute(2, 0, 1, 3).split((self.config.token_width, self.config.queries), 3)
        # (E, B, Q, T)
        attention = (scores.float() + hidden[..., None]).softmax(2).transpose(2, 3).to(dtype)
        meet = self._crossed if self.pair_mode == "separate" else self._mixed
        # (E, B, T, K)
        mapped = meet(mapped.contiguous(), hidden)
        # The bias and the non-linearity come after the maximum, which is the same for a bias, and over fewer values.
        largest = maximum((mapped + hidden[..., None].to(dtype)).flatten(0, 1)).float().unflatten(0, (members, count))
        return torch.cat((functional.gelu(largest + self.map_bias), (attention @ mapped).float().flatten(2)), 2)

    def _maps(self, states: Tensor) -> Tensor:
        """Every member's map of the tokens (B, T, L, D) and the scores of its queries, (B, T, E, K + Q)."""
        sums: dict[str, Tensor] = {}
        for tokens, read in zip(states.unbind(2), self._readers(), strict=True):
            # One product for all members that read a state.
            values = functional.linear(tokens, torch.cat(list(read.values())).flatten(0, 1).to(states.dtype))
            sizes = [maps.shape[0] * maps.shape[1] for maps in read.values()]
            for group, part in zip(read, values.split(sizes, -1), strict=True):
                sums[group] = sums[group] + part if group in sums else part
        return torch.cat([sums[group] for group in TOKEN_MAPS], -1).unflatten(-1, (self.members, -1))

    def _readers(self) -> list[dict[str, Tensor]]:
        """For each state of the features the maps (E', K + Q, D) of the groups that read it."""
        lowest, last = {TOKEN_MAPS[0]: self.lowest_map}, {TOKEN_MAPS[2]: self.last_map}
        shared = [{TOKEN_MAPS[1]: maps} for maps in self.shared_map]
        if self.apart:
            return [lowest, *shared, last]
        readers: list[dict[str, Tensor]] = [{} for _ in range(self.layers)]
        for group, maps in zip(state_groups(self.layers), ([lowest], shared, [last]), strict=True):
            for state, own in zip(group, maps, strict=True):
                readers[state] |= own
        return readers

    def _mixed(self, mapped: Tensor, hidden: Tensor) -> Tensor:
        """The map of the tokens (E, B, T, K) after one residual self-attention, with -inf in ``hidden`` (B, T).

        Tokens attend to those of their own span only, so that the cost of a long text grows with its length, not with
        the square of it. Spans start at fixed places: a text's logits do not depend on how far its batch is padded.
        """
        members, count, tokens, width = mapped.shape
        size, length = self.config.mixing_width, min(tokens, self.config.mixing_span)
        spans = -(-tokens // length)
        if extra := spans * length - tokens:
            mapped = functional.pad(mapped, (0, 0, 0, extra))
            hidden = functional.pad(hidden, (0, extra), value=-torch.inf)
        parts = torch.bmm(_normalised(mapped).flatten(1, 2), self.mixing.to(mapped.dtype))
        queries, keys, values = parts.view(-1, length, parts.shape[-1]).split((size, size, width), -1)
        # Hidden tokens count nothing, by a finite number: a span may hold no other tokens.
        there = hidden.clamp_min(HIDDEN).to(mapped.dtype).view(-1, 1, length).repeat(members, 1, 1)
        mixed = _attended(mapped.reshape(-1, length, width), queries, keys, values, there)
        return mixed.view(members, count, -1, width)[:, :, :tokens]

    def _crossed(self, mapped: Tensor, hidden: Tensor) -> Tensor:
        """The map of pairs' tokens (E, 2 * B, T, K) after one residual attention to all tokens of the other text.

        Those of their own text the encoder has shown them. Each side is cut to its longest text in the batch, so that
        a short question to a long text costs by the product of both lengths.
        """
        members, _, tokens, width = mapped.shape
        size = self.config.mixing_width
        parts = torch.bmm(_normalised(mapped).flatten(1, 2), self.mixing.to(mapped.dtype))
        parts = parts.view(members, 2, -1, tokens, parts.shape[-1])
        own, there = mapped.unflatten(1, (2, -1)), hidden.clamp_min(HIDDEN).to(mapped.dtype).unflatten(0, (2, 1, -1))
        # (2, T)
        used = (hidden == 0).unflatten(0, (2, -1)).any(1)
        longest = (used * torch.arange(1, tokens + 1, device=used.device)).amax(1).tolist()
        sides = []
        for side, other in ((0, 1), (1, 0)):
            length, reach = longest[side], longest[other]
            queries = parts[:, side, :, :length, :size].flatten(0, 1)
            keys, values = parts[:, other, :, :reach, size:].flatten(0, 1).split((size, width), -1)
            mask = there[other, :, :, None, :reach].expand(members, -1, -1, -1).flatten(0, 1)
            mixed = _attended_piecewise(own[:, side, :, :length].flatten(0, 1), queries, keys, values, mask)
            sides.append(functional.pad(mixed.unflatten(0, (members, -1)), (0, 0, 0, tokens - length)))
        return torch.cat(sides, 1)


def _attended(tokens: Tensor, queries: Tensor, keys: Tensor, values: Tensor, there: Tensor) -> Tensor:
    """Add to ``tokens`` (N, T, K) what ``queries`` (N, T, A) gather from ``values`` (N, S, K) by ``keys`` (N, S, A).

    ``there`` (N, 1, S) is added to the scores.
    """
    scores = torch.baddbmm(there, queries, keys.transpose(1, 2), alpha=1 / math.sqrt(queries.shape[-1]))
    return torch.baddbmm(tokens, scores.softmax(-1, dtype=torch.float32).to(tokens.dtype), values)


def _attended_piecewise(tokens: Tensor, queries: Tensor, keys: Tensor, values: Tensor, there: Tensor) -> Tensor:
    """Return the same as :func:`_attended`, in pieces with few scores in memory; the backward pass repeats them."""
    rows = max(1, SCORES_AT_ONCE // (keys.shape[0] * keys.shape[1]))
    if rows >= tokens.shape[1]:
        return _attended(tokens, queries, keys, values, there)
    recomputed = partial(checkpoint, _attended, use_reentrant=False, preserve_rng_state=False)
    attended = recomputed if torch.is_grad_enabled() else _attended
    pieces = zip(tokens.split(rows, 1), queries.split(rows, 1), strict=True)
    return torch.cat([attended(*piece, keys, values, there) for piece in pieces], 1)


def _normalised(values: Tensor) -> Tensor:
    """Scale to mean 0 and variance 1 over the last dimension; the following matrix learns scale and shift."""
    return functional.layer_norm(values, values.shape[-1:])


def _random(*shape: int, fan_in: float, generator: torch.Generator | None) -> nn.Parameter:
    """Draw normal weights of variance 1 / fan_in."""
    return nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(fan_in))


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


MatchingHead = PooledHead | LabelTuningHead
"""Forms in which a text and the label rows meet last, so that rows can start from texts and be added."""
LabelHead = MatchingHead | CrossAttentionHead | LightHead


def build_head(
    config: HeadConfig,
    *,
    labels: int,
    layers: int,
    width: int,
    pair_mode: PairMode | None = None,
    energy: float = 1.0,
    apart: bool = False,
    generator: torch.Generator | None = None,
) -> LabelHead:
    """Make a head with fresh weights for C labels on L hidden states of width D.

    ``pair_mode`` says how the encoder reads pairs of texts; ``energy`` and ``apart`` are for a :class:`PooledHead`.
    ``generator`` draws the weights; the default is torch's own, which all threads of a process share.
    """
    shape: dict[str, Any] = {"labels": labels, "layers": layers, "width": width, "pair_mode": pair_mode}
    if isinstance(config, PooledConfig):
        return PooledHead(config, **shape, energy=energy, apart=apart, generator=generator)
    if isinstance(config, LabelTuningConfig):
        return LabelTuningHead(config, **shape)
    if isinstance(config, LightConfig):
        return LightHead(config, **shape)
    return CrossAttentionHead(config, **shape, generator=generator)


def config_to_json(config: HeadConfig) -> dict[str, Any]:
    """Return the config as ``{"form": ..., **fields}``."""
    form = next(name for name, kind in FORMS.items() if isinstance(config, kind))
    return {"form": form, **asdict(config)}


def config_from_json(value: dict[str, Any]) -> HeadConfig:
    """The inverse of :func:`config_to_json`.

    Raises:
        InputError: the form is unknown, or the fields are not exactly those of the form.
    """
    fields = dict(value)
    form = fields.pop("form", None)
    if form not in FORMS:
        raise InputError(must_be_one_of("the head's form", form, FORMS))
    expected = set(FORMS[form].__dataclass_fields__)
    if differing := expected ^ set(fields):
        raise InputError(
            f"the head's field {min(differing)!r} is {'missing' if min(differing) in expected else 'unknown'}. "
            f"A head of the form {form!r} has the fields {', '.join(sorted(expected))}. Train it again"
        )
    return FORMS[form](**fields)

"""The label head: frozen token features in, one logit for each label out. A pure module without I/O.

Four forms, all learn label representations and align fixed features with them:

* :class:`PooledHead` (preset ``default``): the tokens are pooled first, by the maximum of a small map, then the text is
  matched with the label rows, so that the cost of a token does not grow with the number of labels. One of its members
  is a light head.
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
from ytuning.heads.pooling import additive_mask, maximum
from ytuning.heads.token_maps import TOKEN_MAPS, GroupMaps, TokenMaps, masked_maxima, state_groups

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
    "build_head",
    "config_from_json",
    "config_to_json",
]


@dataclass(frozen=True)
class PooledConfig:
    """Sizes of a :class:`PooledHead`.

    Attributes:
        side_by_side: number of maps of the tokens that read several hidden states side by side
            (`token_maps.state_groups`).
        alone: number of further maps that read the lowest state alone; the same number reads the last one alone. Maps
            do better together if they do not all read the same states (benchmarks/LOG.md).
        members: M, of each map: members share what is computed of the tokens, and all after it is their own. They are
            heads whose logits are averaged (BatchEnsemble: arXiv 2002.06715, TabM: 2410.24210).
        width: H, of a member's label space.
        token_width: K, of a map of tokens, which are then pooled by their maximum.
        mixing_width: A, of the keys by which the mapped tokens of a pair attend to those of the other text.
        queries: Q, learned queries of a map that pool the texts of a pair beside the maximum.
        hidden: width of the feed-forward layer, as a multiple of H.
        dropout: share of pooled and final activations that training sets to zero.
        token_dropout: share of tokens that training hides.
        light_width: R, numbers of a text that the light member gives; 0: there is none. The training sets it.
    """

    side_by_side: int = 1
    alone: int = 1
    members: int = 2
    width: int = 96
    token_width: int = 40
    mixing_width: int = 32
    queries: int = 2
    hidden: int = 1
    dropout: float = 0.1
    token_dropout: float = 0.1
    light_width: int = 0


HeadConfig = PooledConfig | CrossAttentionConfig | LabelTuningConfig | LightConfig
# A pair is matched by these three combinations of its texts; only the first one knows which text is which.
SIDES = ("difference", "distance", "product")
# Further weights of a map, which all of its members share.
OF_A_MAP = ("map_bias", "mixing")
# Weights of the light member.
LIGHT_PREFIX = "light."
# A score with this added gets an attention weight of exactly 0.
HIDDEN = -1e4
# A pair's first queries, which are also its keys, get this factor: without it, training rarely finds what is alike.
ALIKE = 1.5
# Texts of pairs are cut to a multiple of so many tokens. In bfloat16 oneDNN compiles every shape that it meets, and
# keeps it in memory: training on 350 pairs of QNLI took 2.4 GB with a step of 1, 1.8 with 8 and 1.7 with 16 and 32.
PAIR_STEP = {torch.bfloat16: 16, torch.float32: 1}
# Is added to a variance before it divides; torch's own default.
NORM_EPS = 1e-5
# Maximum number of attention scores in memory at a time.
SCORES_AT_ONCE = 2**24
FORMS: dict[str, type[HeadConfig]] = {
    "pooled": PooledConfig,
    "cross_attention": CrossAttentionConfig,
    "label_tuning": LabelTuningConfig,
    "light": LightConfig,
}


class PooledHead(nn.Module):
    """Pool first, then match; a small ensemble.

    Each map takes the tokens to a small space of its own and pools them there by their maximum. Some maps read the
    lowest hidden state alone, some several states side by side, some the last one alone, and they follow each other in
    this order. The members of a map follow each other too. The pools are normalised, and each member maps them to its
    label space, refines them by a residual feed-forward layer and matches them with its label rows by dot product. All
    members are computed together. In a pair, mapped tokens attend to the other text before, first to those that are
    like them, and what is matched are the pools' differences, distances and products.

    After the members that learn step by step there may be a light one, in closed form (`heads/light.py`). A light head
    makes R numbers of the pools that all tasks share; these and zeros after them are the text in its label space.
    """

    def __init__(
        self,
        config: PooledConfig,
        *,
        labels: int,
        layers: int,
        width: int,
        pair_mode: PairMode | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Make a head for C labels on L hidden states of width D; ``pair_mode`` says how the encoder reads pairs.

        ``generator`` draws the weights; the default is torch's own.
        """
        super().__init__()
        self.config, self.pair_mode = config, pair_mode
        # G maps, and E, L and H.
        self.maps = config.side_by_side + 2 * config.alone
        members, inner = config.members * self.maps, config.hidden * config.width
        self.members, self.layers, self.match_width = members + bool(config.light_width), layers, config.width
        # Texts of pairs that are read one by one are pooled by queries, too.
        queries, sides = (config.queries, len(SIDES)) if pair_mode == "separate" else (0, 1)
        pooled = sides * (1 + queries) * config.token_width
        random = partial(_random, generator=generator)
        # What a map takes a token to: K numbers and the scores of Q queries. The states side by side are added up.
        shared, mapped = len(state_groups(layers)[1]), config.token_width + queries
        self.lowest_map = random(config.alone, mapped, width, fan_in=3 * width)
        self.shared_map = random(shared, config.side_by_side, mapped, width, fan_in=3 * shared * width)
        self.last_map = random(config.alone, mapped, width, fan_in=3 * width)
        self.map_bias = _zeros(self.maps, 1, config.token_width)
        if pair_mode == "separate":
            mixing = 2 * config.mixing_width + config.token_width
            self.mixing = random(self.maps, config.token_width, mixing, fan_in=3 * config.token_width)
            with torch.no_grad():
                first, keys = self.mixing[..., : 2 * config.mixing_width].chunk(2, 2)
                first.mul_(ALIKE)
                keys.copy_(first)
        self.project = random(members, pooled, config.width, fan_in=3 * pooled)
        self.project_bias = _zeros(members, config.width)
        self.expand = random(members, config.width, inner, fan_in=3 * config.width)
        self.expand_bias = _zeros(members, inner)
        self.contract = random(members, inner, config.width, fan_in=3 * inner)
        self.contract_bias = _zeros(members, config.width)
        self.label_rows = random(self.members, labels, config.width, fan_in=config.width)
        self.label_bias = _zeros(self.members, labels)
        self.light: LightHead | None = None
        if config.light_width:
            shape: dict[str, Any] = {"layers": layers, "width": width, "pair_mode": pair_mode}
            self.light = LightHead(LightConfig(), labels=config.light_width, **shape)
        # (E,): how much each member counts in the mean. Their mean is 1. Validation sets them, training does not.
        self.member_weights: Tensor
        self.register_buffer("member_weights", torch.ones(self.members))

    def forward(
        self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None, *, light: Tensor | None = None
    ) -> Tensor:
        """Logits of features (B, T, L, D) with mask (B, T), True at tokens; ``generator`` draws what training drops.

        Of pairs there are 2 * B of both. ``light`` (B, R) are the numbers of the light member, where they are known.

        Returns:
            (B, C), the weighted mean over members; in training mode (E, B, C), for each member learns by itself.
        """
        logits = self.match(self.text(features, mask, generator, light=light))
        return logits if self.training else self.average(logits)

    def text(
        self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None, *, light: Tensor | None = None
    ) -> Tensor:
        """Return texts in each member's label space, (E, B, H); the arguments are those of :meth:`forward`."""
        if self.training and self.config.token_dropout:
            kept = torch.rand(mask.shape, generator=generator, device=mask.device) >= self.config.token_dropout
            # The first token stays, so that no text is without tokens.
            kept[:, 0] = True
            pools = self._pool(features, mask & kept)
        else:
            pools = self._pool(features, mask)
        texts = self.text_of_pools(pools, generator)
        if self.light is None:
            return texts
        return self.with_light_text(texts, self.light(features, mask) if light is None else light)

    def with_light_text(self, texts: Tensor, light: Tensor) -> Tensor:
        """Texts (E - 1, B, H) of the other members with those of the light one, of which (B, R) are not 0."""
        return torch.cat((texts, functional.pad(light, (0, self.match_width - light.shape[1]))[None]))

    def text_of_pools(self, pools: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Texts (E, B, H) in the label spaces of the members that learn step by step.

        Args:
            pools: (G, B, K) as :meth:`pools_of_maxima` gives them; (G, 2 * B, (1 + Q) * K) of pairs that are read
                separately.
            generator: draws what training drops.
        """
        share = self.config.dropout if self.training else 0.0
        pooled = _normalised(pools)
        if self.pair_mode == "separate":
            first, second = pooled.chunk(2, 1)
            difference = first - second
            # The order is that of SIDES.
            pooled = torch.cat((difference, difference.abs(), first * second), 2)
        # Each member drops numbers of its own.
        pooled = dropout(pooled.repeat_interleave(self.config.members, 0), share, generator)
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
    def joined(heads: Sequence[PooledHead]) -> PooledHead:
        """One head with the members of several heads of one form and with the same labels.

        Its logits are the weighted mean of the logits of all members. Light ones, if there are any, must give the same
        numbers of a text, and become one.

        Raises:
            ValueError: they do not.
        """
        if any(head.config.light_width != heads[0].config.light_width for head in heads):
            raise ValueError("some of the heads have a light member, and others have none or another one")
        state = _joined_states(heads)
        # The mean of all weights is 1 again.
        members = len(state["member_weights"]) + bool(heads[0].config.light_width)
        share = members / sum(head.members for head in heads)
        state["member_weights"] *= share
        if heads[0].light is not None:
            weights = torch.stack([head.member_weights[-1] for head in heads])
            parts = weights / weights.sum() if weights.sum() > 0 else torch.full_like(weights, 1 / len(heads))
            for name in ("label_rows", "label_bias"):
                own = torch.stack([head.state_dict()[name][-1] for head in heads])
                state[name] = torch.cat((state[name], torch.einsum("n,n...->...", parts, own)[None]))
            state["member_weights"] = torch.cat((state["member_weights"], share * weights.sum()[None]))
            state |= {LIGHT_PREFIX + name: values for name, values in heads[0].light.state_dict().items()}
        return heads[0]._with_state(state)

    @staticmethod
    def joined_texts(heads: Sequence[PooledHead]) -> PooledHead:
        """One head with the members of several heads that learn step by step, for :meth:`text` alone.

        The heads are of one form, and their labels may differ.
        """
        state = _joined_states(heads, labels=1)
        return heads[0]._with_state(state)

    @staticmethod
    def split_by_head(texts: Tensor, heads: Sequence[PooledHead]) -> list[Tensor]:
        """The texts of each head's members, of those (sum of E, B, H) of the head :meth:`joined_texts`."""
        sizes = [size for group in zip(*(head.learned_sizes for head in heads), strict=True) for size in group]
        parts = texts.split(sizes)
        return [torch.cat(parts[number :: len(heads)]) for number in range(len(heads))]

    @property
    def token_maps(self) -> GroupMaps:
        """The maps (G', K or K + Q, D) that read tokens."""
        return (self.lowest_map,), tuple(self.shared_map), (self.last_map,)

    @property
    def map_sizes(self) -> list[int]:
        """How many maps read the lowest state, several states side by side, and the last one."""
        return [self.config.alone, self.config.side_by_side, self.config.alone]

    @property
    def learned_sizes(self) -> list[int]:
        """How many members the maps of each group have."""
        return [self.config.members * size for size in self.map_sizes]

    @property
    def group_sizes(self) -> list[int]:
        """The sizes of all groups of members: :attr:`learned_sizes`, and a 1 for a light member."""
        return [*self.learned_sizes, *([] if self.light is None else [1])]

    def with_group_weights(self, weights: Sequence[float]) -> PooledHead:
        """The head in whose mean each group counts by its weight, in the order of :attr:`group_sizes`.

        The members of a group count alike. At least one of the weights must be above 0.
        """
        sizes = torch.tensor(self.group_sizes)
        by_member = (torch.tensor(weights, dtype=torch.float64) / sizes).repeat_interleave(sizes)
        by_member /= by_member.mean()
        return self._with_state({**self.state_dict(), "member_weights": by_member.to(self.member_weights)})

    def with_light(self, light: LightHead, rows: Tensor, bias: Tensor) -> PooledHead:
        """The head with a light member, which there must not be yet; all members count alike then.

        Args:
            light: gives R numbers of a text, at most H.
            rows: (C, H), what label rows those are matched with.
            bias: (C,).
        """
        state = self.state_dict() | {LIGHT_PREFIX + name: values for name, values in light.state_dict().items()}
        for name, own in (("label_rows", rows), ("label_bias", bias)):
            state[name] = torch.cat((state[name], own[None].to(state[name])))
        state["member_weights"] = torch.ones(self.members + 1)
        return self._with_state(state)

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

    def _with_state(self, state: Mapping[str, Tensor]) -> PooledHead:
        """A head of this form with other weights, whose shapes say how many maps and labels it has."""
        # No weights are drawn, because all of them are replaced at once.
        with torch.device("meta"):
            head = PooledHead(
                replace(
                    self.config,
                    side_by_side=state["shared_map"].shape[1],
                    alone=len(state["last_map"]),
                    light_width=len(state.get(LIGHT_PREFIX + "label_bias", ())),
                ),
                labels=state["label_bias"].shape[1],
                layers=self.layers,
                width=state["shared_map"].shape[-1],
                pair_mode=self.pair_mode,
            )
        head.to_empty(device=state["label_bias"].device).load_state_dict(state)
        return head.train(self.training)

    def pools_of_maxima(self, maxima: Tensor) -> Tensor:
        """Pools (G, B, K) of the maxima (B, G * K) over the mapped tokens, for single texts."""
        # The bias and the non-linearity come after the maximum, which is the same for a bias, and over fewer values.
        return functional.gelu(maxima.float().unflatten(1, (self.maps, -1)).transpose(0, 1) + self.map_bias)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """The pools of one head, as :meth:`text_of_pools` takes them."""
        if self.pair_mode == "separate":
            # (B, T)
            return self._pool_pairs(states, additive_mask(mask, torch.float32))
        maps = TokenMaps([self.token_maps], self.layers, states.dtype)
        return self.pools_of_maxima(masked_maxima([maps], states, mask)[0])

    def _pool_pairs(self, states: Tensor, hidden: Tensor) -> Tensor:
        """Pool the texts of pairs by maximum and by attention of queries to (G, 2 * B, (1 + Q) * K)."""
        count, dtype = len(states), states.dtype
        # (2 * B, T, G, K + Q) -> (G, 2 * B, T, ..)
        maps = TokenMaps([self.token_maps], self.layers, dtype)(states).unflatten(-1, (self.maps, -1))
        mapped, scores = maps.permute(2, 0, 1, 3).split((self.config.token_width, self.config.queries), 3)
        # (G, 2 * B, Q, T)
        attention = (scores.float() + hidden[..., None]).softmax(2).transpose(2, 3).to(dtype)
        mapped = self._crossed(mapped.contiguous(), hidden)
        largest = maximum((mapped + hidden[..., None].to(dtype)).flatten(0, 1)).float().unflatten(0, (self.maps, count))
        return torch.cat((functional.gelu(largest + self.map_bias), (attention @ mapped).float().flatten(2)), 2)

    def _crossed(self, mapped: Tensor, hidden: Tensor) -> Tensor:
        """Each map of pairs' tokens (G, 2 * B, T, K) after one residual attention to all tokens of the other text.

        Those of their own text the encoder has shown them. Each side is cut to about its longest text in the batch, so
        that a short question to a long text costs by the product of both lengths.
        """
        maps, _, tokens, width = mapped.shape
        size = self.config.mixing_width
        parts = torch.bmm(_normalised(mapped).flatten(1, 2), self.mixing.to(mapped.dtype))
        parts = parts.view(maps, 2, -1, tokens, parts.shape[-1])
        own, there = mapped.unflatten(1, (2, -1)), hidden.clamp_min(HIDDEN).to(mapped.dtype).unflatten(0, (2, 1, -1))
        # (2, T)
        used = (hidden == 0).unflatten(0, (2, -1)).any(1)
        ends = (used * torch.arange(1, tokens + 1, device=used.device)).amax(1).tolist()
        step = PAIR_STEP[mapped.dtype]
        longest = [min(tokens, -(-end // step) * step) for end in ends]
        sides = []
        for side, other in ((0, 1), (1, 0)):
            length, reach = longest[side], longest[other]
            queries = parts[:, side, :, :length, :size].flatten(0, 1)
            keys, values = parts[:, other, :, :reach, size:].flatten(0, 1).split((size, width), -1)
            mask = there[other, :, :, None, :reach].expand(maps, -1, -1, -1).flatten(0, 1)
            mixed = _attended_piecewise(own[:, side, :, :length].flatten(0, 1), queries, keys, values, mask)
            sides.append(functional.pad(mixed.unflatten(0, (maps, -1)), (0, 0, 0, tokens - length)))
        return torch.cat(sides, 1)


def _joined_states(heads: Sequence[PooledHead], labels: int | None = None) -> dict[str, Tensor]:
    """The weights of all members that learn step by step, of heads of one form; of ``labels`` only so many."""
    joined = {}
    for name in heads[0].state_dict():
        if name.startswith(LIGHT_PREFIX):
            continue
        parts = [head.state_dict()[name] for head in heads]
        if name in TOKEN_MAPS:
            # (G', ..) or (S, G', ..)
            joined[name] = torch.cat(parts, parts[0].dim() - 3)
            continue
        if name in ("label_rows", "label_bias"):
            parts = [part[:, :labels] for part in parts]
        sizes = [head.map_sizes if name in OF_A_MAP else head.learned_sizes for head in heads]
        groups = zip(*(part[: sum(own)].split(own) for part, own in zip(parts, sizes, strict=True)), strict=True)
        joined[name] = torch.cat([part for group in groups for part in group])
    return joined


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
    size = values.shape[-1:]
    if values.is_cuda or values.dtype != torch.float32 or torch.is_grad_enabled():
        return functional.layer_norm(values, size, eps=NORM_EPS)
    # On a CPU layer_norm takes 80 ns a row whatever its width, twice as long as this (96 numbers, one thread).
    return functional.rms_norm(values - values.mean(-1, keepdim=True), size, eps=NORM_EPS)


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
    generator: torch.Generator | None = None,
) -> LabelHead:
    """Make a head with fresh weights for C labels on L hidden states of width D.

    ``pair_mode`` says how the encoder reads pairs of texts. ``generator`` draws the weights; the default is torch's
    own, which all threads of a process share.
    """
    shape: dict[str, Any] = {"labels": labels, "layers": layers, "width": width, "pair_mode": pair_mode}
    if isinstance(config, PooledConfig):
        return PooledHead(config, **shape, generator=generator)
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

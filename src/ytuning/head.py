"""The label head: frozen token features in, one logit for each label out. A pure module without I/O.

Two forms, both learn label representations in a space of their own and align fixed features with them:

* :class:`PooledHead` (preset ``default``): a few shared queries pool the tokens first, then the text is matched with
  the label rows, so that the cost of a token does not grow with the number of labels (group queries: ML-Decoder,
  arXiv 2111.12933).
* :class:`CrossAttentionHead` (preset ``paper``): the label rows attend to the tokens themselves (Y-Tuning, arXiv
  2202.09817).

Shapes: B texts, T tokens, L hidden states, D encoder width, C labels, M rows per label, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ytuning.errors import InputError, allowed

__all__ = [
    "CrossAttentionConfig",
    "CrossAttentionHead",
    "HeadConfig",
    "LabelHead",
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
        members: E, independent heads whose logits are averaged; a few small ones do better than a large one.
        width: H, of a member's label space.
        queries: Q, learned pooling queries of a member for each hidden state; the mean is pooled as well.
        token_width: K, of a member's non-linear map of tokens, which are then pooled by mean and maximum.
        hidden: width of the feed-forward layer, as a multiple of H.
        dropout: share of pooled and final activations that training sets to zero.
        token_dropout: share of tokens that training hides.
    """

    members: int = 3
    width: int = 56
    queries: int = 1
    token_width: int = 32
    hidden: int = 2
    dropout: float = 0.1
    token_dropout: float = 0.1


@dataclass(frozen=True)
class CrossAttentionConfig:
    """Sizes of a :class:`CrossAttentionHead`.

    Attributes:
        width: H, of the label space; a multiple of ``heads``.
        heads: attention heads.
        blocks: self-attention, cross-attention and feed-forward, one after the other.
        rows_per_label: M, label rows whose scores are joined by log-sum-exp.
        hidden: width of the feed-forward layers, as a multiple of H.
        dropout: share of each block's activations that training sets to zero.
    """

    width: int = 128
    heads: int = 4
    blocks: int = 1
    rows_per_label: int = 1
    hidden: int = 2
    dropout: float = 0.1


HeadConfig = PooledConfig | CrossAttentionConfig
FORMS: dict[str, type[PooledConfig] | type[CrossAttentionConfig]] = {
    "pooled": PooledConfig,
    "cross_attention": CrossAttentionConfig,
}


class PooledHead(nn.Module):
    """Pool first, then match; a small ensemble.

    Each member pools the tokens in two ways: each hidden state as it is, by its mean and by learned queries; and all
    hidden states of a token together, through a small non-linear map, by mean and maximum. The pools are normalised,
    mapped to the member's label space, refined by a residual feed-forward layer and matched with its label rows by dot
    product. All members are computed together as batched matrices.
    """

    def __init__(self, config: PooledConfig, *, labels: int, layers: int, width: int) -> None:
        super().__init__()
        self.config = config
        members, inner = config.members, config.hidden * config.width
        pools = layers * (1 + config.queries) * width + 2 * config.token_width
        self.queries = _random(layers, members * config.queries, width, fan_in=width)
        self.token_map = nn.Linear(layers * width, members * config.token_width)
        self.project, self.project_bias = (
            _random(members, pools, config.width, fan_in=3 * pools),
            _zeros(members, config.width),
        )
        self.expand, self.expand_bias = (
            _random(members, config.width, inner, fan_in=3 * config.width),
            _zeros(members, inner),
        )
        self.contract, self.contract_bias = (
            _random(members, inner, config.width, fan_in=3 * inner),
            _zeros(members, config.width),
        )
        self.label_rows = _random(members, labels, config.width, fan_in=config.width)
        self.label_bias = _zeros(members, labels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits of features (B, T, L, D) with mask (B, T), True at tokens.

        Returns:
            (B, C), the mean over members; in training mode (E, B, C), for each member learns by itself.
        """
        if self.training and self.config.token_dropout:
            kept = torch.rand(mask.shape, device=mask.device) >= self.config.token_dropout
            kept[:, 0] = True  # never a text without tokens
            mask = mask & kept
        uniform = (mask / mask.sum(1, keepdim=True))[:, None]  # (B, 1, T): weights of the mean
        pools = [*self._pool_states(features, mask, uniform), self._pool_tokens(features, mask, uniform)]
        # Part by part: the means are the same for all members, and putting all pools side by side would copy them.
        parts = self.project.split([part.shape[-1] for part in pools], 1)
        text = self.project_bias[:, None]
        for part, weights in zip(pools, parts, strict=True):
            text = text + part @ weights  # (E, B, H)
        inner = functional.gelu(torch.baddbmm(self.expand_bias[:, None], _normalised(text), self.expand))
        text = text + torch.baddbmm(self.contract_bias[:, None], inner, self.contract)
        text = self.dropout(_normalised(text))
        logits = torch.baddbmm(self.label_bias[:, None], text, self.label_rows.transpose(1, 2))  # (E, B, C)
        return logits if self.training else logits.mean(0)

    def _pool_states(self, features: Tensor, mask: Tensor, uniform: Tensor) -> Iterator[Tensor]:
        """For each hidden state the mean of its tokens (B, D), then each member's pools (E, B, Q * D)."""
        hidden = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)[:, None]  # (B, 1, T)
        for layer, queries in enumerate(self.queries):
            tokens = features[:, :, layer]  # (B, T, D)
            scores = (tokens @ queries.T).transpose(1, 2) + hidden  # (B, E * Q, T)
            pools = _normalised(torch.cat((uniform, scores.softmax(-1)), 1) @ tokens)  # (B, 1 + E * Q, D)
            pools = pools * self.dropout(torch.ones_like(pools[:1]))  # one draw for the batch: drawing is slow on a CPU
            mean, own = pools.split((1, len(queries)), 1)
            yield mean[:, 0]
            yield own.unflatten(1, (self.config.members, -1)).transpose(0, 1).flatten(2)

    def _pool_tokens(self, features: Tensor, mask: Tensor, uniform: Tensor) -> Tensor:
        """(E, B, 2 * K): mean and maximum over tokens of each member's non-linear map."""
        mapped = functional.gelu(self.token_map(features.flatten(2)))  # (B, T, E * K)
        largest = mapped.masked_fill(~mask[..., None], -torch.inf).amax(1)
        pools = torch.stack(((uniform @ mapped)[:, 0], largest), 1).unflatten(
            2, (self.config.members, -1)
        )  # (B, 2, E, K)
        return self.dropout(_normalised(pools.permute(2, 0, 1, 3).flatten(2)))


def _normalised(values: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension; scale and shift are left to the matrix that follows."""
    return functional.layer_norm(values, values.shape[-1:])


def _random(*shape: int, fan_in: int) -> nn.Parameter:
    """Normal weights of variance 1 / fan_in."""
    return nn.Parameter(torch.randn(shape) / math.sqrt(fan_in))


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class CrossAttentionHead(nn.Module):
    """Label rows attend to the tokens; the score of a label is its match with the task row.

    The tokens are those of the highest stored hidden state, which for the default encoder is the fifth of six.
    """

    def __init__(self, config: CrossAttentionConfig, *, labels: int, layers: int, width: int) -> None:
        super().__init__()
        if config.width % config.heads:
            raise InputError(f"width must be a multiple of heads ({config.heads}). Got {config.width} instead.")
        self.labels = labels
        self.rows = nn.Parameter(
            torch.randn(1 + labels * config.rows_per_label, config.width) / math.sqrt(config.width)
        )
        self.blocks = nn.ModuleList(_LabelBlock(config, width, first=number == 0) for number in range(config.blocks))
        self.final_norm = nn.LayerNorm(config.width)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) of features (B, T, L, D) with mask (B, T), True at tokens."""
        tokens = features[:, :, -1]  # (B, T, D)
        rows = self.rows  # (R, H) until a block has seen the text, then (B, R, H)
        for block in self.blocks:
            rows = block(rows, tokens, mask)
        rows = self.final_norm(rows)
        task, labels = rows[:, :1], rows[:, 1:]
        scores = (labels @ task.transpose(1, 2))[..., 0] / math.sqrt(rows.shape[-1])  # (B, C * M)
        return scores.unflatten(1, (self.labels, -1)).logsumexp(-1)


class _LabelBlock(nn.Module):
    """Pre-norm residual self-attention among label rows, cross-attention to the tokens, feed-forward."""

    def __init__(self, config: CrossAttentionConfig, width: int, *, first: bool) -> None:
        super().__init__()
        self.self_norm, self.cross_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.self_attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.cross_attention = _CrossAttention(config, width)
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.hidden * config.width),
            nn.GELU(),
            nn.Linear(config.hidden * config.width, config.width),
        )

    def forward(self, rows: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Label rows (R, H) or (B, R, H), tokens (B, T, D), mask (B, T) -> (B, R, H)."""
        normed = self.self_norm(rows)
        rows = rows + self.dropout(self.self_attention(normed, normed, normed, need_weights=False)[0])
        rows = rows + self.dropout(self.cross_attention(self.cross_norm(rows), tokens, mask))
        return rows + self.dropout(self.feed_forward(rows))


class _CrossAttention(nn.Module):
    """Multi-head attention from label rows to frozen tokens.

    Where the queries do not depend on the text (the first block) it can be *folded*: q.(W_K f) = (W_K^T q).f, so the
    tokens are never projected to keys, and values are pooled first and projected after. The result is the same; the
    form with fewer multiplications for each token is taken.
    """

    def __init__(self, config: CrossAttentionConfig, width: int) -> None:
        super().__init__()
        self.heads, self.size = config.heads, config.width // config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(width, config.width, bias=False)  # a bias would shift all scores of a query alike
        self.value = nn.Linear(width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, rows: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Label rows (R, H) or (B, R, H), tokens (B, T, D), mask (B, T) -> (B, R, H)."""
        queries = self.query(rows).unflatten(-1, (self.heads, self.size)).transpose(-3, -2) / math.sqrt(self.size)
        hidden = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)  # (B, T)
        if queries.dim() == 3 and rows.shape[0] * self.heads < 2 * self.heads * self.size:
            mixed = self._folded(queries, tokens, hidden)
        else:
            mixed = self._projected(queries, tokens, hidden)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _folded(self, queries: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Queries (h, R, d) -> (B, h, R, d), touching each token at its own width only."""
        keys = self.key.weight.unflatten(0, (self.heads, self.size))  # (h, d, D)
        folded = (queries @ keys).flatten(0, 1)  # (h * R, D)
        attention = ((tokens @ folded.T).transpose(1, 2) + hidden[:, None]).softmax(-1)  # (B, h * R, T)
        pooled = (attention @ tokens).unflatten(1, (self.heads, -1))  # (B, h, R, D)
        values = self.value.weight.unflatten(0, (self.heads, self.size)).transpose(1, 2)  # (h, D, d)
        return pooled @ values + self.value.bias.view(self.heads, 1, self.size)

    def _projected(self, queries: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Queries (h, R, d) or (B, h, R, d) -> (B, h, R, d), through keys and values of each token."""
        keys = self.key(tokens).unflatten(-1, (self.heads, self.size)).transpose(1, 2)  # (B, h, T, d)
        values = self.value(tokens).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        return (queries @ keys.transpose(-1, -2) + hidden[:, None, None]).softmax(-1) @ values


LabelHead = PooledHead | CrossAttentionHead


def build_head(config: HeadConfig, *, labels: int, layers: int, width: int) -> LabelHead:
    """A head with fresh weights (from torch's random state) for C labels on features of L hidden states of width D."""
    if isinstance(config, PooledConfig):
        return PooledHead(config, labels=labels, layers=layers, width=width)
    return CrossAttentionHead(config, labels=labels, layers=layers, width=width)


def config_to_json(config: HeadConfig) -> dict[str, Any]:
    """``{"form": ..., **fields}``."""
    form = next(name for name, kind in FORMS.items() if isinstance(config, kind))
    return {"form": form, **asdict(config)}


def config_from_json(value: dict[str, Any]) -> HeadConfig:
    """The inverse of :func:`config_to_json`.

    Raises:
        InputError: unknown form.
        TypeError: fields that the form does not have.
    """
    fields = dict(value)
    form = fields.pop("form", None)
    if form not in FORMS:
        raise InputError(allowed("the head's form", form, FORMS))
    return FORMS[form](**fields)

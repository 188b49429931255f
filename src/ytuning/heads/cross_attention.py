"""Label rows that attend to the tokens themselves: Y-Tuning (arXiv 2202.09817), the ``paper`` preset.

Shapes are those of `heads/pooled.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ytuning.errors import InputError
from ytuning.heads.label_tuning import dropout
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooling import additive_mask

__all__ = ["CrossAttentionConfig", "CrossAttentionHead"]


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


class CrossAttentionHead(nn.Module):
    """Label rows attend to the tokens of the highest stored hidden state, and are matched with the task row."""

    def __init__(
        self,
        config: CrossAttentionConfig,
        *,
        labels: int,
        layers: int,
        width: int,
        pair_mode: PairMode | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if config.width % config.heads:
            raise InputError(f"width must be a multiple of heads ({config.heads}). Got {config.width} instead.")
        self.labels, self.pair_mode = labels, pair_mode
        # The task row, then M rows for each label: (1 + C * M, H).
        rows = torch.randn(1 + labels * config.rows_per_label, config.width, generator=generator)
        self.rows = nn.Parameter(rows / math.sqrt(config.width))
        self.blocks = nn.ModuleList(_LabelBlock(config, width, generator) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(config.width)

    def forward(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits (B, C) of features (B, T, L, D) with mask (B, T), True at tokens.

        Args:
            features: hidden states of the tokens.
            mask: whether a position holds a token.
            generator: draws the dropout.
        """
        # (B, T, D)
        tokens = features[:, :, -1]
        if self.pair_mode == "separate":
            # (B, 2 * T, D)
            tokens, mask = torch.cat(tokens.chunk(2), 1), torch.cat(mask.chunk(2), 1)
        # (R, H) until a block has seen the text, then (B, R, H)
        rows = self.rows
        for block in self.blocks:
            rows = block(rows, tokens, mask, generator)
        rows = self.final_norm(rows)
        task, labels = rows[:, :1], rows[:, 1:]
        # (B, C * M)
        scores = (labels @ task.transpose(1, 2))[..., 0] / math.sqrt(rows.shape[-1])
        return scores.unflatten(1, (self.labels, -1)).logsumexp(-1)


class _LabelBlock(nn.Module):
    """Pre-norm residual self-attention among label rows, cross-attention to the tokens, feed-forward."""

    def __init__(self, config: CrossAttentionConfig, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.self_norm, self.cross_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.self_attention = _self_attention(config, generator)
        self.cross_attention = _CrossAttention(config, width, generator)
        self.dropout = config.dropout
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width),
            _linear(config.width, config.hidden * config.width, generator),
            nn.GELU(),
            _linear(config.hidden * config.width, config.width, generator),
        )

    def forward(self, rows: Tensor, tokens: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return label rows (B, R, H), from rows (R, H) or (B, R, H), tokens (B, T, D) and a mask (B, T)."""
        share = self.dropout if self.training else 0.0
        normed = self.self_norm(rows)
        rows = rows + dropout(self.self_attention(normed, normed, normed, need_weights=False)[0], share, generator)
        rows = rows + dropout(self.cross_attention(self.cross_norm(rows), tokens, mask), share, generator)
        return rows + dropout(self.feed_forward(rows), share, generator)


class _CrossAttention(nn.Module):
    """Multi-head attention from label rows to frozen tokens.

    Where the queries do not depend on the text (the first block) it can be *folded*: q.(W_K f) = (W_K^T q).f, so the
    tokens are never projected to keys, and values are pooled first and projected after. The result is the same; the
    form with fewer multiplications for each token is taken.
    """

    def __init__(self, config: CrossAttentionConfig, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.heads, self.size = config.heads, config.width // config.heads
        self.query = _linear(config.width, config.width, generator)
        # A bias would shift all scores of a query alike.
        self.key = _linear(width, config.width, generator, bias=False)
        self.value = _linear(width, config.width, generator)
        self.out = _linear(config.width, config.width, generator)

    def forward(self, rows: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return label rows (B, R, H), from rows (R, H) or (B, R, H), tokens (B, T, D) and a mask (B, T)."""
        queries = self.query(rows).unflatten(-1, (self.heads, self.size)).transpose(-3, -2) / math.sqrt(self.size)
        # (B, T)
        hidden = additive_mask(mask, torch.float32)
        # Half the multiplications for each token: scores and pools of D numbers, or keys and values, scores and pools.
        count, width = rows.shape[-2], tokens.shape[-1]
        cheaper_folded = count * width < self.size * (width + count)
        attend = self._folded if queries.dim() == 3 and cheaper_folded else self._projected
        return self.out(attend(queries, tokens, hidden).transpose(1, 2).flatten(2))

    def _folded(self, queries: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Attend with queries (h, R, d), touching each token at its own width only; returns (B, h, R, d)."""
        # (h, d, D)
        keys = self.key.weight.unflatten(0, (self.heads, self.size))
        # (h * R, D)
        folded = (queries @ keys).flatten(0, 1).to(tokens.dtype)
        # (B, h * R, T)
        scores = functional.linear(tokens, folded).float().transpose(1, 2)
        attention = (scores + hidden[:, None]).softmax(-1)
        # (B, h, R, D)
        pooled = (attention.to(tokens.dtype) @ tokens).float().unflatten(1, (self.heads, -1))
        # (h, D, d)
        values = self.value.weight.unflatten(0, (self.heads, self.size)).transpose(1, 2)
        return pooled @ values + self.value.bias.view(self.heads, 1, self.size)

    def _projected(self, queries: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Attend with queries (h, R, d) or (B, h, R, d) to keys and values of each token; returns (B, h, R, d)."""
        keys = functional.linear(tokens, self.key.weight.to(tokens.dtype)).float()
        values = functional.linear(tokens, self.value.weight.to(tokens.dtype)).float() + self.value.bias
        keys, values = (part.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for part in (keys, values))
        return (queries @ keys.transpose(-1, -2) + hidden[:, None, None]).softmax(-1) @ values


def _linear(inputs: int, outputs: int, generator: torch.Generator | None, *, bias: bool = True) -> nn.Linear:
    """A linear layer with the first weights that torch gives it, drawn from ``generator``."""
    # The default device is asked for, because skip_init would put the layer on the CPU whatever it is.
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=torch.get_default_device())
    _draw_linear(layer, generator)
    return layer


def _draw_linear(layer: nn.Linear, generator: torch.Generator | None) -> None:
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.in_features)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _self_attention(config: CrossAttentionConfig, generator: torch.Generator | None) -> nn.MultiheadAttention:
    """Attention among label rows with the first weights that torch gives it, drawn from ``generator``."""
    attention = nn.utils.skip_init(
        nn.MultiheadAttention, config.width, config.heads, batch_first=True, device=torch.get_default_device()
    )
    # Both biases start as 0; that of the last layer is drawn first all the same, as torch does.
    _draw_linear(attention.out_proj, generator)
    nn.init.xavier_uniform_(attention.in_proj_weight, generator=generator)
    nn.init.zeros_(attention.in_proj_bias)
    nn.init.zeros_(attention.out_proj.bias)
    return attention

"""Label representations in closed form on pools that all tasks of an encoder share: preset ``light``.

Nothing is computed for each token and task. The pools of a text (`heads/pooling.py`) are computed once for all tasks,
and a task is one product of them with its label rows. Random features with a closed-form head do the same for images
(RanPAC, arXiv 2307.02251). `training/light.py` fits the rows.

Shapes are those of `heads/pooled.py`; P numbers describe a text: 3 L D, or 6 L D for a pair that is read separately.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ytuning.heads.pairs import PairMode
from ytuning.heads.pooling import POOLS, pool_states

__all__ = ["LightConfig", "LightHead", "match_pairs", "text_width"]


@dataclass(frozen=True)
class LightConfig:
    """A :class:`LightHead` has no sizes to choose: they follow from the encoder and from the labels."""


def text_width(layers: int, width: int, pair_mode: PairMode | None) -> int:
    """P, the numbers that describe a text, or a pair of texts."""
    return len(POOLS) * layers * width * (2 if pair_mode == "separate" else 1)


def match_pairs(first: Tensor, second: Tensor) -> Tensor:
    """What tells of pairs (B, 6 * L * D), from the pools (B, 3 * L * D) of their first and their second texts.

    These are the means of both texts, and of means and maxima the distance and the product. The means of both texts add
    5 points to the accuracy on MNLI, minima in their place 0.3 to 0.7 points to MRPC and STS-B (benchmarks/LOG.md).
    """
    size = first.shape[1] // len(POOLS)
    apart, alike = (first - second).abs(), first * second
    return torch.cat((first[:, :size], second[:, :size], apart[:, : 2 * size], alike[:, : 2 * size]), 1)


class LightHead(nn.Module):
    """Logit: the product of a text's pools and the label's row, plus a bias.

    The rows are kept in float16, which halves the task folder and the memory of many tasks. A factor for each label
    keeps them in its range.
    """

    def __init__(
        self, config: LightConfig, *, labels: int, layers: int, width: int, pair_mode: PairMode | None = None
    ) -> None:
        """Make a head for C labels on L hidden states of width D; all rows are 0 until they are fitted."""
        super().__init__()
        self.config, self.layers, self.width, self.pair_mode = config, layers, width, pair_mode
        size = text_width(layers, width, pair_mode)
        self.label_rows = nn.Parameter(torch.zeros(labels, size, dtype=torch.float16), requires_grad=False)
        self.row_scale = nn.Parameter(torch.zeros(labels), requires_grad=False)
        self.label_bias = nn.Parameter(torch.zeros(labels), requires_grad=False)

    @classmethod
    def fitted(
        cls, rows: Tensor, bias: Tensor, center: Tensor, *, layers: int, width: int, pair_mode: PairMode | None
    ) -> LightHead:
        """The head whose logits are ``(x - center) @ rows.T + bias`` for the numbers x (B, P) of texts.

        Args:
            rows: (C, P).
            bias: (C,), logits of a text at the center.
            center: (P,), where most texts lie. The rows that were rounded to float16 give exactly ``bias`` there, so
                the rounding only acts on how far a text is from it.
            layers: L.
            width: D.
            pair_mode: how the encoder reads pairs.
        """
        head = cls(LightConfig(), labels=len(rows), layers=layers, width=width, pair_mode=pair_mode)
        scale = rows.abs().amax(1)
        rounded = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).half()
        head.label_rows.copy_(rounded)
        head.row_scale.copy_(scale)
        head.label_bias.copy_(bias.double() - (rounded.double() @ center.double()) * scale.double())
        return head.eval()

    def forward(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, C) of features (B, T, L, D) with mask (B, T), or of their stored pools (B, 1, 3 L, D).

        Of pairs that are read separately there are 2 * B of both. ``generator`` is not used, as nothing is drawn.
        """
        return self.match(self.text(features, mask))

    def text(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the numbers (B, P) that describe texts or pairs; the arguments are those of :meth:`forward`.

        They are the same for all light heads on the same hidden states.
        """
        are_tokens = features.shape[2] == self.layers
        pools = pool_states(features, mask) if are_tokens else features.flatten(1).float()
        return match_pairs(*pools.chunk(2)) if self.pair_mode == "separate" else pools

    def match(self, text: Tensor) -> Tensor:
        """Return the logits (B, C) of texts (B, P)."""
        return torch.addmm(self.label_bias, text, self.rows().T)

    def rows(self) -> Tensor:
        """The label rows (C, P) in float32, with their factors."""
        return self.label_rows.float() * self.row_scale[:, None]

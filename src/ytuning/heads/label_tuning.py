"""Label rows in the encoder's own space, which can start from the label's name or description: preset ``few-shot``.

A text is the mean of its tokens, a label a row that it is compared with (label tuning, arXiv 2203.14655). A row that
starts from the frozen encoder's embedding of the label's text gives scores before any training, and is near enough to
what few rows can teach that they suffice. Shapes are those of `heads/pooled.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ytuning.heads.pairs import PairMode

__all__ = ["LabelTuningConfig", "LabelTuningHead", "dropout", "means_of_labels"]


def dropout(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Set each value to 0 with a probability of ``share``, else multiply it by ``1 / (1 - share)``.

    It replaces ``nn.Dropout``, which does not take a generator.
    """
    if not share:
        return values
    # Drawing is slow on a CPU, so each random number gives four draws of 16 bits.
    bits = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    bits.random_(-(2**63), None, generator=generator)
    kept = bits.view(torch.int16)[: values.numel()].view(values.shape) >= round(share * 2**16) - 2**15
    return values * (kept / (1 - share))


def means_of_labels(texts: Tensor, labels: Tensor, there: Tensor) -> Tensor:
    """Return each label's mean text (K, H), for texts (N, H) with label ids (N,) and the labels ``there`` (K,)."""
    shares = (labels == there[:, None]).to(texts.dtype)
    return shares @ texts / shares.sum(1, keepdim=True)


@dataclass(frozen=True)
class LabelTuningConfig:
    """Sizes of a :class:`LabelTuningHead`.

    Attributes:
        scale: factor of the cosine of a text and a label in the logit, while the label's row has length 1.
        dropout: share of a text's numbers that training sets to zero.
    """

    scale: float = 10.0
    dropout: float = 0.1


class LabelTuningHead(nn.Module):
    """Logit: the scaled product of a text's mean token, of length 1, and the label's row, plus a bias.

    What all texts have in common is taken from the mean first: of many encoders it is most of it, and texts would
    hardly differ. Of several hidden states each one's mean has the same length and all stand side by side. Of a pair
    that was encoded one by one, rows meet the two texts, their distance and their product.
    """

    center: Tensor

    def __init__(
        self, config: LabelTuningConfig, *, labels: int, layers: int, width: int, pair_mode: PairMode | None = None
    ) -> None:
        """Make a head for C labels on L hidden states of width D; all rows are 0 until they are started or learned.

        ``center`` (L, D), what texts have in common, is 0 until it is set.
        """
        super().__init__()
        self.config, self.pair_mode = config, pair_mode
        self.label_rows = nn.Parameter(torch.zeros(1, labels, layers * width * (4 if pair_mode == "separate" else 1)))
        self.bias = nn.Parameter(torch.zeros(1, labels))
        self.register_buffer("center", torch.zeros(layers, width))
        # E is 1, as the head is no ensemble, and H is the width of a label row.
        self.members, self.match_width = 1, self.label_rows.shape[-1]

    @property
    def label_bias(self) -> Tensor:
        """The bias (1, C) of the logits. It is learned on the scale of the cosines, or it would lag behind the rows."""
        return self.config.scale * self.bias

    def forward(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, C), in training mode (1, B, C); arguments as `PooledHead.forward` has them."""
        logits = self.match(self.text(features, mask, generator))
        return logits if self.training else self.average(logits)

    def text(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the vectors (1, B, H) of length ``scale`` that label rows are multiplied with."""
        text = functional.normalize(self.mean_states(features, mask) - self.center, dim=-1)
        # (B, L * D)
        text = text.flatten(1) / math.sqrt(features.shape[2])
        if self.pair_mode == "separate":
            first, second = text.chunk(2)
            # The factor makes the product about as long as the other parts.
            product = first * second * math.sqrt(text.shape[1])
            text = torch.cat((first, second, (first - second).abs(), product), 1)
        share = self.config.dropout if self.training else 0.0
        return self.config.scale * dropout(text, share, generator)[None]

    @staticmethod
    def mean_states(features: Tensor, mask: Tensor) -> Tensor:
        """Return each hidden state's mean over the tokens, (B, L, D)."""
        if features.shape[1] == 1:
            # A single token is its mean, to the bit: training reads stored means in this form.
            return features[:, 0].float()
        # (B, T)
        shares = (mask / mask.sum(1, keepdim=True)).to(features.dtype)
        return torch.bmm(shares[:, None], features.flatten(2)).float().unflatten(2, features.shape[2:])[:, 0]

    def match(self, text: Tensor) -> Tensor:
        """Return the logits (1, B, C) of texts (1, B, H)."""
        return torch.baddbmm(self.label_bias[:, None], text, self.label_rows.transpose(1, 2))

    def average(self, logits: Tensor) -> Tensor:
        """The logits (B, C) of the one member (1, B, C)."""
        return logits[0]

    def start_rows(self, texts: Tensor, labels: Tensor) -> None:
        """Start each label's row from its texts (N, 1, H), as :meth:`text` gives them, of label ids (N,)."""
        with torch.no_grad():
            there = labels.unique()
            self.label_rows[0, there] = functional.normalize(means_of_labels(texts[:, 0], labels, there), dim=-1)

    def with_label(self, row: Tensor, bias: Tensor) -> LabelTuningHead:
        """The head with one more label, after the others: its row (1, H) and bias (1,)."""
        rows = torch.cat((self.label_rows.detach(), row[:, None]), 1)
        return self._with_labels(rows, torch.cat((self.bias.detach(), bias[:, None] / self.config.scale), 1))

    def without_label(self, label: int) -> LabelTuningHead:
        """The head without the label of an id."""
        rows, bias = self.label_rows.detach(), self.bias.detach()
        return self._with_labels(
            torch.cat((rows[:, :label], rows[:, label + 1 :]), 1), torch.cat((bias[:, :label], bias[:, label + 1 :]), 1)
        )

    def _with_labels(self, rows: Tensor, bias: Tensor) -> LabelTuningHead:
        """The head with other label rows (1, C, H) and biases (1, C)."""
        layers, width = self.center.shape
        other = LabelTuningHead(self.config, labels=rows.shape[1], layers=layers, width=width, pair_mode=self.pair_mode)
        other.label_rows, other.bias, other.center = nn.Parameter(rows), nn.Parameter(bias), self.center.clone()
        return other.train(self.training)

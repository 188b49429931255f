"""How much the members of a pooled head count in its mean, and its light member, which needs no steps.

Each group of members counts by what validation rows say that it knows. The light member is a group of its own. It knows
what is common to all tokens of a text, which groups that pool small maps by their maximum learn badly from few rows.

Shapes: N rows, E members, H width of a member's label space, C labels, P numbers of a text that light heads read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ytuning.data.kinds import TaskKind
from ytuning.features.features import Features
from ytuning.heads.light import LightHead
from ytuning.heads.pooled import PooledHead
from ytuning.training.calibration import calibrated_losses, fit_calibration

__all__ = [
    "LightMember",
    "fits_light_member",
    "group_weights",
    "light_member",
    "light_weight",
    "light_width",
    "mean_logits",
    "temperature_ratio",
]

# With more numbers of a text there is no light member: their products take 4 P ** 2 bytes, and a factor P ** 3 / 3
# multiplications.
MOST_NUMBERS = 8192
# Nor is there one with more labels than this, each of which takes P ** 2 multiplications: 5,000 take longer than all
# steps of the other members.
MOST_LABELS = 1000
# Directions beyond H that the search for the H strongest ones looks at, and its steps.
MORE_DIRECTIONS, STEPS = 16, 2
# Rows that are read at a time.
READ_ROWS = 1024


def fits_light_member(numbers: int, labels: int) -> bool:
    """Whether a head of so many labels may have a light member where light heads read so many numbers of a text."""
    return numbers <= MOST_NUMBERS and labels <= MOST_LABELS


def group_weights(target: TaskKind, logits: Sequence[Tensor], truth: np.ndarray, smoothing: float) -> list[float]:
    """How much each of several groups of members counts, from its logits (N, C) of validation rows.

    It counts by the square of how much lower the loss of the group alone, calibrated, is than that of the best constant
    answer. Members that know little more than how frequent the labels are would only pull the mean towards that: of
    CoLA's grammar the last hidden state knows next to nothing. The square was chosen on held-out rows of CoLA, where it
    has a Matthews correlation of 0.259 and what is saved itself 0.252; four other sets do not change by it
    (benchmarks/LOG.md).

    Args:
        target: kind of the task.
        logits: of each group.
        truth: targets of the rows.
        smoothing: label smoothing that the members learned with.
    """
    constant = target.constant_loss(truth)
    losses = [float(calibrated_losses(target, own.numpy(), truth, smoothing=smoothing).mean()) for own in logits]
    return [max(0.0, constant - loss) ** 2 if math.isfinite(loss) else 0.0 for loss in losses]


def light_weight(weight: float, others: Sequence[float]) -> float:
    """The weight of the light member beside those of all other groups: no more than these together, if they know any.

    Squares of small savings are mostly chance, and one of them can be many times another.
    """
    return min(weight, sum(others)) if any(others) else weight


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean (N, C) of the logits of groups; at least one weight is above 0."""
    shares = torch.tensor(weights, dtype=torch.float64)
    return torch.einsum("g,gnc->nc", (shares / shares.sum()).float(), torch.stack(list(logits)))


def temperature_ratio(target: TaskKind, logits: Tensor, light: Tensor, truth: np.ndarray) -> float:
    """What to multiply a light head's logits (N, C) by, so that they are as sure of their answers as others (N, C)."""
    own, other = (fit_calibration(target, values.numpy(), truth).temperature for values in (logits, light))
    return own / other


@dataclass(frozen=True)
class LightMember:
    """A light head as a member of a pooled head, see `PooledHead.with_light`.

    Attributes:
        light: gives R numbers of a text, at most H.
        rows: (C, H), what label rows those are matched with.
        bias: (C,).
    """

    light: LightHead
    rows: Tensor
    bias: Tensor

    def added_to(self, head: PooledHead, factor: float) -> PooledHead:
        """The head with this member, whose logits are multiplied by a factor."""
        return head.with_light(self.light, factor * self.rows, factor * self.bias)

    def logits(self, features: Features, rows: Tensor) -> np.ndarray:
        """Its logits (N, C) float32 of rows (N,) of pools (`in_memory.pool_features`)."""
        parts = []
        with torch.inference_mode():
            for part in rows.split(READ_ROWS):
                numbers = self.light(*features.batch(part))
                parts.append(numbers @ self.rows[:, : numbers.shape[1]].T + self.bias)
        return torch.cat(parts).numpy()


def light_width(target: TaskKind, width: int) -> int:
    """R, the numbers of a text that a light member gives, at most H.

    Where a row may have several labels that is one number a label, and else one less, as only differences count.
    """
    return min(target.outputs - (not target.gives_many), width)


def light_member(fitted: LightHead, center: Tensor, target: TaskKind, width: int) -> LightMember:
    """A light head as a member whose label space has H numbers, with the same logits but for what all labels share.

    Where there is room for it, number c of a text is the logit of label c, or how far that is above the logit of the
    last label (:func:`light_width`). Of more labels, the H strongest directions of the label rows are kept.

    Args:
        fitted: light head with C labels.
        center: (P,), where most texts lie, so that rounding acts on how far a text is from it.
        target: kind of the task.
        width: H.
    """
    labels, count = len(fitted.label_bias), target.outputs - (not target.gives_many)
    shape: dict[str, Any] = {"layers": fitted.layers, "width": fitted.width, "pair_mode": fitted.pair_mode}
    # (C, H), and the logits (C,) at the center.
    rows, bias = torch.zeros(labels, width), fitted.label_bias + fitted.rows() @ center
    if count > width:
        directions, parts = _strongest(fitted.rows(), min(width, len(center)))
        rows[:, : parts.shape[1]] = parts
        return LightMember(LightHead.fitted(directions, torch.zeros(len(directions)), center, **shape), rows, bias)
    rows[:count, :count] = torch.eye(count)
    if target.gives_many:
        return LightMember(fitted, rows, torch.zeros(labels))
    # The mean of the logits is 0.
    rows[:, :count] -= 1 / labels
    apart = LightHead.fitted((fitted.rows() - fitted.rows()[-1])[:-1], (bias - bias[-1])[:-1], center, **shape)
    return LightMember(apart, rows, torch.zeros(labels))


def _strongest(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` strongest directions (count, P) of label rows (C, P), and the rows in terms of them (C, count).

    Randomised range finder with power iterations (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4).
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(count + MORE_DIRECTIONS, len(rows), generator=generator)
    # (P, count + more)
    basis = torch.linalg.qr((start @ rows).T).Q
    for _ in range(STEPS):
        basis = torch.linalg.qr(rows.T @ torch.linalg.qr(rows @ basis).Q).Q
    left, sizes, right = torch.linalg.svd(rows @ basis, full_matrices=False)
    return (right[:count] @ basis.T), left[:, :count] * sizes[:count]

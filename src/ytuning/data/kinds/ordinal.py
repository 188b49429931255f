"""Tasks whose rows have one label each, of labels that have an order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from ytuning.data.kinds.base import Answers, Labels
from ytuning.data.kinds.metrics import rank_correlation
from ytuning.data.kinds.single import SingleLabel
from ytuning.data.labels import LabelSet, did_you_mean, label_name, list_names, quote
from ytuning.errors import InputError, argument, parameter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ordinal"]


@dataclass(frozen=True)
class Ordinal(SingleLabel):
    """Each row has one label, as in :class:`SingleLabel`, but ``labels`` go from the lowest to the highest."""

    kind = "ordinal"
    has_order, is_nominal = True, False
    headlines = ("accuracy", "mae")
    score_name, score_sign = "mean absolute error", -1
    words = replace(SingleLabel.words, worst="the answer farthest from the true label")
    can_grow = undoes_smoothing = False

    @property
    def answer_sentence(self) -> str:
        """Names the labels in their order."""
        return super().answer_sentence.replace("one of", "one of, from the lowest to the highest,", 1)

    @classmethod
    def fit(cls, labels: Labels, order: Sequence[str] | None) -> Self:
        """The labels that occur, in ``order`` or in that of their numbers.

        Raises:
            InputError: the labels have no order, or ``order`` is not theirs.
        """
        names = LabelSet.from_labels(str(label) for label in labels).names
        if order is None:
            return cls(LabelSet(_by_number(names)))
        # The names have the form of the rows' labels.
        order = [label_name(name) or "" for name in order]
        if differing := set(order) ^ set(names):
            wrong = min(differing)
            where, others = ("the train rows", names) if wrong in order else (parameter("label_order"), order)
            hint = did_you_mean(wrong, others)
            problem = f"the order must name each label once. {quote(wrong)} is missing in {where}"
            raise InputError(f"{problem}.{hint}" if hint else problem)
        return cls(LabelSet(tuple(order)))

    def _with_distance(self, rows: Tensor, logits: Tensor, goal: Tensor) -> Tensor:
        """Add the squared distance between the cumulated probabilities and those of the true label.

        The distance is summed over labels (Hou, Yu, Samaras: arXiv 1611.05916).
        """
        import torch

        # (C,) and (B, C)
        steps = torch.arange(logits.shape[1], device=logits.device)
        reached = (goal[:, None] <= steps).to(logits.dtype)
        return rows + (logits.softmax(1).cumsum(1) - reached).square().sum(1)

    def row_scores(self, logits: Tensor, goal: Tensor) -> Tensor:
        """The negative distance of the median label from the true one, in labels."""
        probabilities = logits.double().softmax(1)
        median = (probabilities.cumsum(1) < 0.5).sum(1).clamp_max(probabilities.shape[1] - 1)
        return -(median - goal).abs().double()

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the label (rows,) int64 at which the cumulated probability passes one half.

        This median has the least mean absolute error.
        """
        median: np.ndarray = np.minimum((probabilities.cumsum(1) < 0.5).sum(1), probabilities.shape[1] - 1)
        return median

    def metrics(self, truth: np.ndarray, answers: Answers) -> dict[str, float]:
        """Return a single label's metrics, and for answered rows ``mae`` (mean distance in labels) and ``spearman``.

        If no row was answered, ``mae`` is C - 1, the worst possible value, and ``spearman`` is 0.
        """
        metrics = super().metrics(truth, answers)
        answered = answers.values >= 0
        if not answered.any():
            return metrics | {"mae": float(self.outputs - 1), "spearman": 0.0}
        true, other = truth[answered], answers.values[answered]
        return metrics | {"mae": float(np.abs(true - other).mean()), "spearman": rank_correlation(true, other)}

    def _distance(self, truth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The farthest mistake is the worst."""
        labels_apart: np.ndarray = np.abs(values - truth)
        return labels_apart


def _by_number(names: Sequence[str]) -> tuple[str, ...]:
    # The message pastes no order: that of the names' letters would be a wrong one that works.
    give = f"Give it from the lowest to the highest with {argument('label_order')}. The labels are {list_names(names)}"
    if wrong := next((name for name in names if not _is_number(name)), None):
        raise InputError(f"the label {quote(wrong)} is no number, so the labels' order is not known. {give}")
    ordered = sorted(names, key=float)
    for name, other in itertools.pairwise(ordered):
        if float(name) == float(other):
            same = f"the labels {quote(name)} and {quote(other)} are one number"
            raise InputError(f"{same}, so their order is not known. {give}")
    return tuple(ordered)


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False

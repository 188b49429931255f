"""Tasks whose rows have one label each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.special

from ytuning.data.kinds.base import (
    FOCUS,
    Answer,
    Answers,
    Confusion,
    Labels,
    Loss,
    Mistake,
    Reading,
    ReportWords,
    TaskKind,
)
from ytuning.data.kinds.metrics import (
    Intervals,
    Sums,
    expected_calibration_error,
    interval_ends,
    macro_f1,
    ratio,
    resampled_macro_f1,
    resampled_sums,
    threshold_sweep,
)
from ytuning.data.labels import Kind, LabelSet, quote
from ytuning.data.tables import Column
from ytuning.errors import InputError, parameter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ANSWERED_ROWS", "SingleLabel"]

# A precision is measured on at least 10 answered rows, and on at least one row in 100.
ANSWERED_ROWS, ANSWERED_PART = 10, 100


@dataclass(frozen=True)
class SingleLabel(TaskKind):
    """Each row has one label: targets (rows,) int64 are label ids, and probabilities are the softmax of C logits."""

    labels: LabelSet
    kind: ClassVar[Kind] = "single"
    is_nominal = True
    headlines = ("accuracy", "macro_f1")
    score_name, score_sign = "accuracy", 1
    answer_key = "label"
    dtype = np.int64
    training_options = ("loss", "label_weights", "label_smoothing")
    drawings = ("reliability", "confusions")
    words: ClassVar[ReportWords] = ReportWords(
        worst="the mistake of the highest confidence",
        reliability="Each point groups rows whose answers have a similar probability and shows how many of these "
        "answers are right. Points on the dashed line are perfectly calibrated. The bars show the number of rows.",
    )
    can_abstain = can_grow = undoes_smoothing = True

    @property
    def answer_sentence(self) -> str:
        """Names the labels."""
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"It answers with one of {len(self.names)} labels: {names}"

    @classmethod
    def read_labels(cls, column: Column, reading: Reading) -> tuple[Labels, str | None]:
        """Each cell is a name."""
        return column.labels(), None

    @classmethod
    def strata(cls, labels: Labels) -> list[int]:
        """The row's label."""
        names = [str(label) for label in labels]
        return list(LabelSet.from_labels(names).encode(names).tolist())

    @classmethod
    def training_problem(cls, labels: Labels) -> tuple[int, str] | None:
        """Report that all rows have one label. A label may occur once: its row stays with the training rows."""
        if len(set(labels)) > 1:
            return None
        return 0, f"all {len(labels)} rows have the label {quote(labels[0])}. Training needs at least two labels."

    def encode(self, labels: Labels) -> np.ndarray:
        """Return label ids (rows,) int64."""
        return self.labels.encode([str(label) for label in labels])

    def are_targets(self, values: np.ndarray) -> bool:
        """(rows,) int64 label ids."""
        return values.dtype == self.dtype and values.ndim == 1 and bool(((values >= 0) & (values < self.outputs)).all())

    def count_labels(self, targets: np.ndarray) -> np.ndarray:
        """(C,) int64."""
        return np.bincount(targets, minlength=self.outputs)

    def narrow_targets(self, targets: np.ndarray, label: int) -> np.ndarray:
        """Labels after the one that is gone move down by one."""
        return targets - (targets > label)

    def has_label(self, targets: np.ndarray, label: int) -> np.ndarray:
        """Those that are the label's id."""
        has: np.ndarray = targets == label
        return has

    def _batch_loss(self, name: str, margin: float, smoothing: float, weights: Tensor | None) -> Loss:
        """The mean of the rows' losses, each times the weight of its label."""
        from torch.nn import functional

        def loss(logits: Tensor, goal: Tensor) -> Tensor:
            # (B, C) and (B,) -> (B,)
            if name == "triplet":
                rows = _triplet(logits, goal, margin)
            else:
                rows = functional.cross_entropy(logits, goal, label_smoothing=smoothing, reduction="none")
            if name == "focal":
                rows = rows * (1 - logits.softmax(1).gather(1, goal[:, None])[:, 0]) ** FOCUS
            rows = self._with_distance(rows, logits, goal)
            # The sum is divided by the number of rows, because the sum of weights is 0 where all labels have weight 0.
            return (rows if weights is None else rows * weights.to(goal.device)[goal]).mean()

        return loss

    def row_weights(self, given: str | tuple[float, ...] | None, targets: np.ndarray) -> np.ndarray | None:
        """Return the weights of the rows' labels."""
        import torch

        weights = self._label_weights(given, torch.from_numpy(targets))
        return None if weights is None else weights.double().numpy()[targets]

    def _rarity(self, targets: Tensor, rare_rows: float) -> Tensor | None:
        """Return log(n / (n + k)) of the labels (C,) with n training rows.

        A logit that learns with this added has to be higher by as much where the label is right (logit adjustment:
        Menon et al., arXiv 2007.07314). With the logarithm of n instead, all labels would become equally likely.

        k is ``rare_rows`` times the square of the share of labels with fewer rows than that. So it is large where many
        labels are rare. One rare label among frequent ones is often a typing error and must not take their rows. With
        one wrong label in 480 rows of TREC-6 accuracy was 0.68 with k = 50, and 0.89 with this k and with none.
        """
        import torch

        counts = torch.from_numpy(self.count_labels(targets.numpy()))
        k = rare_rows * float((counts < rare_rows).double().mean()) ** 2
        if not k:
            return None
        # Half a row stands for none, as 0 has no logarithm.
        counts = counts.clamp_min(0.5)
        return (counts / (counts + k)).log()

    def _with_distance(self, rows: Tensor, logits: Tensor, goal: Tensor) -> Tensor:
        """Losses (B,) of rows and what an order of the labels adds to them."""
        return rows

    def _cross_entropy(self, logits: Tensor, goal: Tensor, reduction: str) -> Tensor:
        from torch.nn import functional

        return functional.cross_entropy(logits, goal, reduction=reduction)

    def constant_loss(self, targets: np.ndarray) -> float:
        """The entropy of the labels' shares."""
        shares = np.unique(targets, return_counts=True)[1] / len(targets)
        return float(scipy.special.entr(shares).sum())

    def row_scores(self, logits: Tensor, goal: Tensor) -> Tensor:
        """Return 1 where the label is right, else 0."""
        return (logits.argmax(1) == goal).double()

    def answers(
        self, logits: np.ndarray, thresholds: tuple[float, ...] | None = None, abstain_below: float | None = None
    ) -> Answers:
        """Label ids (rows,), -1 where the highest probability is below ``abstain_below``."""
        probabilities: np.ndarray = scipy.special.softmax(logits.astype(np.float64), 1)
        values = self.decide(probabilities)
        if abstain_below is not None:
            values[probabilities.max(1) < abstain_below] = -1
        return Answers(values, probabilities)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the most probable label (rows,) int64."""
        most_probable: np.ndarray = probabilities.argmax(1)
        return most_probable

    def margins(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """How far each label's logit is ahead of the true label's."""
        ahead: np.ndarray = logits - logits[np.arange(len(targets)), targets][:, None]
        return ahead

    def margin_loss(self, margins: np.ndarray) -> float:
        """Return the mean over rows."""
        # A fifth of the time of `scipy.special.logsumexp`, and a temperature is fitted in many calls.
        highest = margins.max(1)
        return float((np.log(np.exp(margins - highest[:, None]).sum(1)) + highest).mean())

    def fit_abstaining(self, probabilities: np.ndarray, targets: np.ndarray, precision: float) -> float:
        """Return the lowest threshold with that precision; 0 if all rows may be answered.

        Raises:
            InputError: no threshold reaches the precision.
        """
        right = self.decide(probabilities) == targets
        fewest = max(ANSWERED_ROWS, math.ceil(len(right) / ANSWERED_PART))
        thresholds, answered, hits = threshold_sweep(probabilities.max(1), right)
        reached = np.where(answered >= fewest, hits / answered, 0.0)
        good = np.flatnonzero(reached >= precision)
        if not len(good):
            best = int(np.flatnonzero(reached == reached.max())[-1])
            # The precision is rounded down, so that the one in the message can be asked for.
            best_precision = math.floor(1e4 * reached[best]) / 1e4
            raise InputError(
                f"{parameter('abstain_at')} {precision:g} is not reached on the {len(right)} validation rows by any "
                f"{fewest} or more "
                "of them that are answered with the highest confidence. The best precision is "
                f"{best_precision:g}, of {answered[best] / len(right):.1%} of the rows. Ask for no more than that"
            )
        return 0.0 if answered[good[-1]] == len(right) else float(thresholds[good[-1]])

    def named_answers(self, answers: Answers) -> list[Answer]:
        """Return names, None where the task abstains."""
        return [None if number < 0 else self.names[number] for number in answers.values.tolist()]

    def metrics(self, truth: np.ndarray, answers: Answers) -> dict[str, float]:
        """Return ``accuracy``, ``macro_f1``, ``micro_f1``, ``matthews`` and ``ece``.

        Macro F1 is over the labels that occur in truth or prediction. Matthews is the coefficient for several labels
        (Gorodkin 2004), and 0 where it has no value. The calibration error is of the most probable label, whatever was
        answered. An abstention is wrong but no label. Where a row abstained, there are also ``coverage``, the share of
        rows answered, and ``precision_answered``, the accuracy of those (0 if there are none).
        """
        values = answers.values
        true, given, right = self.label_counts(truth, values)
        rows, hits = len(truth), int(right.sum())
        abstained = rows - int(given.sum())
        # These are whole numbers below 2**53, so no step is rounded.
        spread = [float(rows**2 - (one.astype(float) ** 2).sum()) for one in (true, np.append(given, abstained))]
        shared = float(hits * rows - (true.astype(float) * given).sum())
        metrics = {
            "accuracy": hits / rows,
            "macro_f1": macro_f1(true, given, right),
            "micro_f1": 2 * hits / (2 * rows - abstained),
            "matthews": shared / math.sqrt(spread[0] * spread[1]) if spread[0] * spread[1] else 0.0,
            "ece": expected_calibration_error(truth, answers.probabilities),
        }
        if abstained:
            metrics["coverage"] = (rows - abstained) / rows
            metrics["precision_answered"] = hits / max(1, rows - abstained)
        return metrics

    def label_counts(self, truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the labels. An abstention counts as none."""
        true, given, right = (
            np.bincount(ids, minlength=self.outputs) for ids in (truth, values[values >= 0], truth[truth == values])
        )
        return true, given, right

    def resampling_sums(self, truth: np.ndarray, values: np.ndarray) -> Sums:
        """Return the sums for ``accuracy``, ``macro_f1`` and ``matthews``, where abstaining is one more label."""
        import scipy.sparse

        names = np.unique(np.concatenate((truth, values[values >= 0])))
        true, other = np.searchsorted(names, truth), np.searchsorted(names, values)
        answered, right = values >= 0, truth == values
        place = np.arange(len(truth))
        flags = [
            scipy.sparse.csr_array((np.ones(len(rows)), (rows, ids)), shape=(len(truth), len(names)))
            for rows, ids in ((place, true), (place[answered], other[answered]), (place[right], true[right]))
        ]

        def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
            # Each has the shape (r, labels).
            true, other, right = np.split(sums, 3, axis=1)
            rows, hits = true.sum(1), right.sum(1)
            abstained = rows - other.sum(1)
            spread = rows**2 - np.square(true).sum(1), rows**2 - np.square(other).sum(1) - abstained**2
            return {
                "accuracy": hits / rows,
                "macro_f1": resampled_macro_f1(true, other, right),
                "matthews": ratio(hits * rows - (true * other).sum(1), np.sqrt(spread[0] * spread[1])),
            }

        return scipy.sparse.hstack(flags, format="csr"), statistics

    def intervals(self, truth: np.ndarray, values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Intervals:
        """Return the intervals of ``accuracy``, ``macro_f1`` and ``matthews``."""
        # Rows with the same two ids are drawn together: most tasks have few such pairs, however many rows they have.
        pairs, sizes = np.unique(np.stack([truth, values], 1), axis=0, return_counts=True)
        return interval_ends(
            resampled_sums(sizes, self.resampling_sums(pairs[:, 0], pairs[:, 1]), resamples, seed), len(truth)
        )

    def confusions(self, truth: np.ndarray, values: np.ndarray, most: int = 5) -> list[Confusion]:
        """Return the most frequent pairs of a true and an answered label."""
        wrong = (values >= 0) & (values != truth)
        pairs, counts = np.unique(np.stack([truth, values], 1)[wrong], axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        return [
            Confusion(self.names[true], self.names[other], int(count))
            for (true, other), count in zip(pairs[order].tolist(), counts[order], strict=True)
        ]

    def mistakes(self, truth: np.ndarray, answers: Answers, most: int) -> list[Mistake]:
        """Return the wrong rows that the task was surest of."""
        values, probabilities = answers.values, answers.probabilities
        wrong = np.flatnonzero((values >= 0) & (values != truth))
        worst = wrong[np.lexsort((-probabilities[wrong, values[wrong]], -self._distance(truth, values)[wrong]))[:most]]
        return [
            Mistake(row, [self.names[true]], [self.names[other]], float(probabilities[row, other]), other, true)
            for row, true, other in zip(worst.tolist(), truth[worst].tolist(), values[worst].tolist(), strict=True)
        ]

    def _distance(self, truth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return how far wrong labels are from the true ones (rows,)."""
        return np.zeros(len(truth))

    def token_effects(self, mistake: Mistake, effects: np.ndarray) -> np.ndarray:
        """Return effects minus their mean over the labels, because a softmax depends on differences only."""
        beyond_mean = effects - effects.mean(1, keepdims=True)
        return np.stack([beyond_mean[:, mistake.towards], beyond_mean[:, mistake.against]], 1)


def _triplet(logits: Tensor, goal: Tensor, margin: float) -> Tensor:
    """Return the loss (B,): a row's mean of max(0, margin - true + other) over its pairs of true and other label."""
    gap = (margin - logits.gather(1, goal[:, None]) + logits).clamp_min(0)
    return gap.scatter(1, goal[:, None], 0.0).sum(1) / (logits.shape[1] - 1)

"""A head's logits become probabilities and answers: smoothing is undone, then temperature and thresholds apply."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
import torch

from ytuning.data.kinds import Answers, TaskKind
from ytuning.data.kinds.single import ANSWERED_ROWS
from ytuning.data.labels import quote
from ytuning.errors import InputError, parameter

__all__ = [
    "Calibration",
    "calibrated_logits",
    "calibrated_losses",
    "calibrated_soft_loss",
    "check_abstain_at",
    "fit_calibration",
    "undo_label_smoothing",
]

# Lowest and highest temperature that is tried. Rows that are all right would ask for 0.
TEMPERATURES = (0.2, 20.0)
# Fewer rows than this say too little about a temperature, so it stays 1.
TEMPERATURE_ROWS = 20
# Probabilities below smoothing's floor fall softly towards 0 over this share of the floor, and so keep their order.
SOFTNESS = 0.1
# Stored numbers must lie in these ranges, both ends included.
RANGES = {
    "above 0": (math.ulp(0.0), sys.float_info.max),
    "from 0 to 1": (0.0, 1.0),
    "from 0 to below 1": (0.0, math.nextafter(1, 0)),
}


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities and decisions.

    Attributes:
        temperature: divisor of the logits (Guo et al., arXiv 1706.04599).
        smoothing: label smoothing that a single-label head learned with; it is undone first, see
            :func:`undo_label_smoothing`.
        thresholds: (C,), for multi-label tasks, the probability from which a label is given; ``None`` means 0.5 each.
        abstain_below: for single-label and ordinal tasks, the highest probability below which there is no answer;
            ``None``: always answer.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    abstain_below: float | None = None
    smoothing: float = 0.0

    def scale(self, logits: np.ndarray) -> np.ndarray:
        """Scale logits (rows, C) to those that probabilities are made of, (rows, C) float64."""
        return undo_label_smoothing(logits, self.smoothing) / self.temperature

    def answers(self, target: TaskKind, logits: np.ndarray) -> Answers:
        """Return a task's answers to logits (rows, C)."""
        return target.answers(self.scale(logits), self.thresholds, self.abstain_below)

    def without_label(self, label: int) -> Calibration:
        """The same for a task without the label of an id."""
        thresholds = self.thresholds
        return self if thresholds is None else replace(self, thresholds=thresholds[:label] + thresholds[label + 1 :])

    def to_json(self) -> dict[str, float | None]:
        """Return the fields of ``task.json``; the thresholds are stored separately."""
        return {"temperature": self.temperature, "smoothing": self.smoothing, "abstain_below": self.abstain_below}

    @classmethod
    def from_json(cls, calibration: dict[str, Any], thresholds: list[float] | None) -> Calibration:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the fields are wrong, or a number is out of its range.
        """
        if not isinstance(calibration, dict) or set(calibration) != set(cls().to_json()):
            raise ValueError(
                f"a calibration has temperature, smoothing and abstain_below. Got {quote(calibration)} instead."
            )
        if not isinstance(thresholds, list | None):
            raise ValueError(f"thresholds must be a list or null. Got {quote(thresholds)} instead.")
        if thresholds is not None:
            thresholds = [_number("a threshold", threshold, "from 0 to 1") for threshold in thresholds]
        below = calibration["abstain_below"]
        return cls(
            temperature=_number("temperature", calibration["temperature"], "above 0"),
            thresholds=None if thresholds is None else tuple(thresholds),
            abstain_below=None if below is None else _number("abstain_below", below, "from 0 to 1"),
            smoothing=_number("smoothing", calibration["smoothing"], "from 0 to below 1"),
        )


def check_abstain_at(target: TaskKind, abstain_at: float | None, rows: int) -> None:
    """Whether a precision may be asked for, see :func:`fit_calibration`; called before any work is done.

    Args:
        target: kind of the task.
        abstain_at: the precision.
        rows: number of rows that it will be measured on.

    Raises:
        InputError: the precision is not a share, the task has not one label a row, or there are too few rows.
    """
    if abstain_at is None:
        return
    if not 0 < abstain_at <= 1:
        problem = f"{parameter('abstain_at')} must be a share above 0 and at most 1."
        raise InputError(f"{problem} Got {abstain_at!r} instead.")
    if not target.can_abstain:
        raise InputError(
            f"{parameter('abstain_at')} is for single-label and ordinal tasks, and this one is {target.kind}. "
            "Leave it out"
        )
    if rows < ANSWERED_ROWS:
        raise InputError(
            f"{parameter('abstain_at')} needs at least {ANSWERED_ROWS} validation rows. Got {rows} instead. "
            "Give more rows or a validation file"
        )


def fit_calibration(
    target: TaskKind,
    logits: np.ndarray,
    truth: np.ndarray,
    *,
    smoothing: float = 0.0,
    abstain_at: float | None = None,
) -> Calibration:
    """Fit on validation rows.

    The temperature minimises the mean of the negative log-likelihood, and smoothing is undone where that makes it less.
    Thresholds are those of the kind's `fit_thresholds` and `fit_abstaining`.

    Args:
        target: kind of the task; one without labels has nothing to calibrate.
        logits: (rows, C).
        truth: target array of the rows, as ``target.encode`` gives it.
        smoothing: label smoothing that the head learned with.
        abstain_at: precision that answered rows must have, of single-label and ordinal tasks; ``None``: never abstain.

    Raises:
        InputError: ``abstain_at`` is no such share, the task is of another kind, or validation does not reach it.
    """
    check_abstain_at(target, abstain_at, len(truth))
    calibration = Calibration()
    if target.labels is None:
        return calibration
    if len(logits) >= TEMPERATURE_ROWS:
        # A head that has learned its rows by heart is not where its loss is least for others.
        fitted = (_fit_temperature(target, logits, truth, share) for share in dict.fromkeys((smoothing, 0.0)))
        calibration, _ = min(fitted, key=lambda pair: pair[1])
    probabilities = calibration.answers(target, logits).probabilities
    below = None if abstain_at is None else target.fit_abstaining(probabilities, truth, abstain_at)
    return replace(calibration, thresholds=target.fit_thresholds(probabilities, truth), abstain_below=below)


def calibrated_logits(target: TaskKind, logits: np.ndarray, truth: np.ndarray, *, smoothing: float = 0.0) -> np.ndarray:
    """Logits (rows, C) float32 as they are used with what :func:`fit_calibration` fits on these very rows.

    To compare heads by their loss: one that is too sure of itself may still know more.
    """
    return fit_calibration(target, logits, truth, smoothing=smoothing).scale(logits).astype(np.float32)


def calibrated_losses(
    target: TaskKind, logits: np.ndarray, truth: np.ndarray, *, smoothing: float = 0.0
) -> torch.Tensor:
    """(rows,) float64: each row's loss with the :func:`calibrated_logits`."""
    calibrated = torch.from_numpy(calibrated_logits(target, logits, truth, smoothing=smoothing))
    return target.row_losses(calibrated, torch.from_numpy(truth))


def calibrated_soft_loss(target: TaskKind, logits: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean cross-entropy of logits (rows, C) at its best temperature, where what is true are probabilities.

    Args:
        target: kind of the task, with labels.
        logits: (rows, C).
        probabilities: (rows, C), how probable each label is; those of one label a row need not add up to 1 exactly.
    """
    values, goal = torch.from_numpy(logits).double(), torch.from_numpy(probabilities)
    best = scipy.optimize.minimize_scalar(
        lambda log: target.mean_loss(values / math.exp(log), goal), bounds=np.log(TEMPERATURES), method="bounded"
    )
    return float(best.fun)


def undo_label_smoothing(logits: np.ndarray, smoothing: float) -> np.ndarray:
    """Logits of a head that learned from hard labels, as far as those of one that learned from smoothed ones tell them.

    Cross-entropy with labels of which a share s is spread over all C (Szegedy et al., arXiv 1512.00567) is least where
    the softmax is (1 - s) p + s / C, p being the true probabilities. So p is known, and with it that a head which could
    never be surer than 1 - s + s / C is right more often: no temperature would mend that. What is below s / C, where p
    would be negative, falls softly towards 0, in its order.

    Args:
        logits: (rows, C).
        smoothing: s, below 1; 0 changes nothing.

    Returns:
        (rows, C) float64.
    """
    values = logits.astype(np.float64)
    if not smoothing:
        return values
    floor = smoothing / values.shape[1]
    above = (scipy.special.softmax(values, axis=1) - floor) / (SOFTNESS * floor)
    # The common factor 1 / (1 - s) is left out, because it would change nothing.
    return np.log(np.logaddexp(0, above))


def _fit_temperature(
    target: TaskKind, logits: np.ndarray, truth: np.ndarray, smoothing: float
) -> tuple[Calibration, float]:
    """The best temperature after a smoothing is undone, and its loss."""
    margins = target.margins(undo_label_smoothing(logits, smoothing), truth)
    best = scipy.optimize.minimize_scalar(
        lambda log: target.margin_loss(margins / math.exp(log)), bounds=np.log(TEMPERATURES), method="bounded"
    )
    # A single label, or logits that are all equal, have the same loss at any temperature.
    plain = target.margin_loss(margins)
    temperature = math.exp(best.x) if best.fun < plain else 1.0
    return Calibration(temperature, smoothing=smoothing), min(float(best.fun), plain)


def _number(name: str, value: object, wanted: str) -> float:
    low, high = RANGES[wanted]
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return float(value)
    raise ValueError(f"{name} must be a number {wanted}. Got {quote(value)} instead.")

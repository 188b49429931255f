"""From a head's logits to probabilities and answers: smoothing undone, a temperature, thresholds, abstaining."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from ytuning.data.kinds import Names, Target
from ytuning.data.labels import shown
from ytuning.errors import InputError

__all__ = ["Calibration", "calibrate", "calibrated", "check_abstain_at", "unsmoothed"]

# The lowest and the highest that is tried: rows that are all right would ask for 0.
TEMPERATURES = (0.2, 20.0)
# Fewer say too little.
TEMPERATURE_ROWS = 20
# Of the share that smoothing left to a label: what falls below it keeps its order.
SOFTNESS = 0.1
# Of the threshold that all labels share.
GLOBAL_ENDS = (0.05, 0.95)
# Rows with a label at which its own threshold and the shared one weigh the same.
OWN_ROWS = 10
# A precision is of at least 10 answered rows, and one row in 100.
ANSWERED_ROWS, ANSWERED_PART = 10, 100
# Thresholds are blended as logits, which 0 and 1 have none of.
EDGE = 1e-9
RANGES = {  # of stored numbers
    "above 0": (math.ulp(0.0), sys.float_info.max),
    "from 0 to 1": (0.0, 1.0),
    "from 0 to below 1": (0.0, math.nextafter(1, 0)),
}


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities and decisions.

    Attributes:
        temperature: that logits are divided by (Guo et al., arXiv 1706.04599).
        smoothing: of single-label tasks, that the head learned with; it is undone before, see :func:`unsmoothed`.
        thresholds: (C,), of multi-label tasks, the probability from which on a label is given; ``None``: 0.5 each.
        abstain_below: of single-label and ordinal tasks, the highest probability below which there is no answer;
            ``None``: always answer.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    abstain_below: float | None = None
    smoothing: float = 0.0

    def scaled(self, logits: np.ndarray) -> np.ndarray:
        """(rows, C) float64 of logits (rows, C): those that probabilities are made of."""
        found: np.ndarray = unsmoothed(logits, self.smoothing) / self.temperature
        return found

    def probabilities(self, target: Names, logits: np.ndarray) -> np.ndarray:
        """(rows, C) float64 of logits (rows, C)."""
        return target.probabilities(self.scaled(logits))

    def decide(self, target: Names, probabilities: np.ndarray) -> np.ndarray:
        """Answers of calibrated probabilities (rows, C).

        Returns:
            ``multi``: (rows, C) bool. Else (rows,) int64, -1 = abstained: the most probable label or, if they have an
            order, the median one, as `losses.median_label`.
        """
        if target.kind == "multi":
            given: np.ndarray = probabilities >= (0.5 if self.thresholds is None else np.array(self.thresholds))
            return given
        found = _answers(target, probabilities)
        if self.abstain_below is not None:
            found[probabilities.max(1) < self.abstain_below] = -1
        return found

    def to_json(self) -> dict[str, float | None]:
        """Fields of ``task.json``; the thresholds are stored apart."""
        return {"temperature": self.temperature, "smoothing": self.smoothing, "abstain_below": self.abstain_below}

    @classmethod
    def from_json(cls, calibration: dict[str, Any], thresholds: list[float] | None) -> Calibration:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: not such fields, or numbers beyond their range.
        """
        if not isinstance(calibration, dict) or set(calibration) != {"temperature", "smoothing", "abstain_below"}:
            wanted = "a calibration has temperature, smoothing and abstain_below"
            raise ValueError(f"{wanted}. Got {shown(calibration)} instead.")
        if not isinstance(thresholds, list | None):
            raise ValueError(f"thresholds must be a list or null. Got {shown(thresholds)} instead.")
        below = calibration["abstain_below"]
        return cls(
            temperature=_number("temperature", calibration["temperature"], "above 0"),
            smoothing=_number("smoothing", calibration["smoothing"], "from 0 to below 1"),
            thresholds=None
            if thresholds is None
            else tuple(_number("a threshold", each, "from 0 to 1") for each in thresholds),
            abstain_below=None if below is None else _number("abstain_below", below, "from 0 to 1"),
        )


def check_abstain_at(target: Target, abstain_at: float | None, rows: int) -> None:
    """Whether a precision may be asked for, see :func:`calibrate`; called before any work is done.

    Args:
        target: of the task.
        abstain_at: the precision.
        rows: that it will be measured on.

    Raises:
        InputError: it is no share, the task is not one of a label a row, or there are too few rows.
    """
    if abstain_at is None:
        return
    if not 0 < abstain_at <= 1:
        raise InputError(f"abstain_at must be a share above 0 and at most 1. Got {abstain_at!r} instead.")
    if target.kind not in ("single", "ordinal"):
        problem = f"abstain_at is for single-label and ordinal tasks, and this one is {target.kind}. "
        raise InputError(f"{problem}Leave it out")
    if rows < ANSWERED_ROWS:
        problem = f"abstain_at needs at least {ANSWERED_ROWS} validation rows. Got {rows} instead. "
        raise InputError(f"{problem}Give more rows or a validation file")


def calibrate(
    target: Target,
    logits: np.ndarray,
    truth: np.ndarray,
    *,
    smoothing: float = 0.0,
    abstain_at: float | None = None,
) -> Calibration:
    """Fit on validation rows.

    The temperature minimises the mean of the negative log-likelihood, and smoothing is undone where that makes it less.
    A label's threshold lies between the one that maximises its F1 and the one that, shared by all labels, maximises
    micro F1: the more rows have the label, the nearer to its own, which few rows tell little about.

    Args:
        target: of the task; ``Scale`` has nothing to calibrate.
        logits: (rows, C).
        truth: target array of the rows, as ``target.encode`` gives it.
        smoothing: of labels, that the head learned with.
        abstain_at: precision that answered rows must have, of single-label and ordinal tasks; ``None``: never abstain.

    Raises:
        InputError: ``abstain_at`` is no such share, the task is of another kind, or validation does not reach it.
    """
    check_abstain_at(target, abstain_at, len(truth))
    if not isinstance(target, Names):
        return Calibration()
    found = Calibration()
    if len(logits) >= TEMPERATURE_ROWS:
        # A head that has learned its rows by heart is not where its loss is least for others.
        found, _ = min(
            (_fit_temperature(target, logits, truth, each) for each in dict.fromkeys((smoothing, 0.0))),
            key=lambda fitted: fitted[1],
        )
    probabilities = found.probabilities(target, logits)
    if target.kind == "multi":
        return replace(found, thresholds=_fit_thresholds(probabilities, truth > 0))
    if abstain_at is None:
        return found
    right = _answers(target, probabilities) == truth
    return replace(found, abstain_below=_fit_abstaining(probabilities.max(1), right, abstain_at))


def calibrated(target: Target, logits: np.ndarray, truth: np.ndarray, *, smoothing: float = 0.0) -> np.ndarray:
    """Logits (rows, C) float32 as they are used with what :func:`calibrate` fits on these very rows.

    To compare heads by their loss: one that is too sure of itself may still know more.
    """
    return calibrate(target, logits, truth, smoothing=smoothing).scaled(logits).astype(np.float32)


def unsmoothed(logits: np.ndarray, smoothing: float) -> np.ndarray:
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
    # A factor of all, such as 1 / (1 - s), would change nothing.
    found: np.ndarray = np.log(np.logaddexp(0, above))
    return found


def _answers(target: Names, probabilities: np.ndarray) -> np.ndarray:
    """(rows,) int64, of single-label and ordinal tasks."""
    found: np.ndarray = probabilities.argmax(1)
    if target.kind == "ordinal":
        found = np.minimum((probabilities.cumsum(1) < 0.5).sum(1), probabilities.shape[1] - 1)
    return found


def _fit_temperature(
    target: Names, logits: np.ndarray, truth: np.ndarray, smoothing: float
) -> tuple[Calibration, float]:
    """The best temperature after a smoothing is undone, and its loss."""
    logits = unsmoothed(logits, smoothing)
    if target.kind == "multi":
        ahead = np.where(truth > 0, -logits, logits)
    else:
        ahead = logits - logits[np.arange(len(truth)), truth][:, None]
    found = scipy.optimize.minimize_scalar(
        lambda log: _loss(target, ahead, math.exp(log)), bounds=np.log(TEMPERATURES), method="bounded"
    )
    # A single label, or logits that are all equal, have the same loss at any temperature.
    plain = _loss(target, ahead, 1.0)
    temperature = math.exp(found.x) if found.fun < plain else 1.0
    return Calibration(temperature, smoothing=smoothing), min(float(found.fun), plain)


def _loss(target: Names, ahead: np.ndarray, temperature: float) -> float:
    """Mean negative log-likelihood, by how far (rows, C) the logits of labels are ahead of the right answer's.

    Of ``multi``: how far that of the wrong one of a label's two answers is.
    """
    scaled = ahead / temperature
    each = np.logaddexp(0, scaled) if target.kind == "multi" else scipy.special.logsumexp(scaled, axis=1)
    return float(each.mean())


def _fit_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """(C,) of probabilities (rows, C) and truth (rows, C) bool."""
    shared = float(np.clip(_best_f1(probabilities.ravel(), truth.ravel()), *GLOBAL_ENDS))
    own = np.array([_best_f1(*columns) for columns in zip(probabilities.T, truth.T, strict=True)])
    rows = truth.sum(0)
    weight = rows / (rows + OWN_ROWS)
    logits = weight * scipy.special.logit(np.clip(own, EDGE, 1 - EDGE)) + (1 - weight) * scipy.special.logit(shared)
    return tuple(scipy.special.expit(logits).tolist())


def _best_f1(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Threshold, of those between probabilities (N,), with the highest F1 for truth (N,) bool; 0.5 if that is empty."""
    if not truth.any():
        return 0.5
    thresholds, given, right = _cuts(probabilities, truth)
    return float(thresholds[np.argmax(2 * right / (given + truth.sum()))])


def _fit_abstaining(confidence: np.ndarray, right: np.ndarray, precision: float) -> float:
    """Lowest threshold of confidence (rows,) at which the rows answered are right often enough; 0 if all rows are."""
    fewest = max(ANSWERED_ROWS, math.ceil(len(right) / ANSWERED_PART))
    thresholds, answered, hits = _cuts(confidence, right)
    reached = np.where(answered >= fewest, hits / answered, 0.0)
    good = np.flatnonzero(reached >= precision)
    if not len(good):
        best = int(np.flatnonzero(reached == reached.max())[-1])
        # Rounded down, so that the precision shown is one that can be asked for.
        found = f"{math.floor(1e4 * reached[best]) / 1e4:g}, of {answered[best] / len(right):.1%} of the rows"
        raise InputError(
            f"abstain_at {precision:g} is not reached on the {len(right)} validation rows by any {fewest} or more of "
            "them that are answered with the highest confidence. The best precision is "
            f"{found}. Ask for no more than that"
        )
    return 0.0 if answered[good[-1]] == len(right) else float(thresholds[good[-1]])


def _cuts(scores: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ways to split scores (N,) >= 0, N > 0, by a threshold: from the highest threshold down, (cuts,) each.

    Returns:
        Thresholds halfway to the next lower score (the last one to 0), how many scores reach them, and how many of
        these have a flag.
    """
    order = np.argsort(-scores)
    ordered, hits = scores[order], flags[order].cumsum()
    below = np.append(ordered[1:], 0.0)
    # Of equal scores.
    last = np.append(ordered[1:] < ordered[:-1], True)
    halfway = (ordered + below) / 2
    # Between neighbours, rounding may give the lower one.
    thresholds = np.where(halfway > below, halfway, ordered)
    return thresholds[last], np.flatnonzero(last) + 1, hits[last]


def _number(name: str, value: object, wanted: str) -> float:
    low, high = RANGES[wanted]
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return float(value)
    raise ValueError(f"{name} must be a number {wanted}. Got {shown(value)} instead.")

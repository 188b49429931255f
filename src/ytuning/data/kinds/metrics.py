"""What the metrics and thresholds of several kinds of task share: pure functions on arrays."""

from __future__ import annotations

import numpy as np

__all__ = [
    "CALIBRATION_BINS",
    "LabelFigures",
    "correlation",
    "expected_calibration_error",
    "figures_of_counts",
    "macro_f1",
    "rank_correlation",
    "reliability",
    "share",
    "threshold_sweep",
]

CALIBRATION_BINS = 15


class LabelFigures(dict[str, float]):
    """``precision``, ``recall``, ``f1`` and ``rows`` of one label."""


def figures_of_counts(true: np.ndarray, given: np.ndarray, right: np.ndarray) -> list[LabelFigures]:
    """Figures of each label, of the rows (C,) that have it, that were given it, and both; 0 where there are none."""
    columns = (share(right, given), share(right, true), share(2 * right, true + given), true)
    return [
        LabelFigures(precision=float(p), recall=float(r), f1=float(f), rows=int(n))
        for p, r, f, n in zip(*columns, strict=True)
    ]


def macro_f1(true: np.ndarray, given: np.ndarray, right: np.ndarray) -> float:
    """The mean F1 of the labels that occur in truth or prediction; counts (C,) as of :func:`figures_of_counts`."""
    either = true + given
    return float(share(2 * right, either)[either > 0].sum() / max(1, np.count_nonzero(either)))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, and 0 where the whole is 0."""
    found: np.ndarray = part / np.maximum(whole, 1)
    return found


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of (rows,) and (rows,); 0 where one side is constant."""
    from scipy.stats import rankdata

    return correlation(rankdata(one), rankdata(other))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant, also if its mean is not exactly that constant."""
    if one.min() == one.max() or other.min() == other.max():
        return 0.0
    units = []
    for values in (one, other):
        centred = values.astype(np.float64) - values.mean(dtype=np.float64)
        # Squares of very large or small numbers would leave the range.
        centred /= np.abs(centred).max()
        units.append(centred / np.linalg.norm(centred))
    return float(np.clip(units[0] @ units[1], -1, 1))


def expected_calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence (Guo et al., arXiv 1706.04599).

    Arguments are those of :func:`reliability`.
    """
    confidence, right = _confidence(truth, probabilities)
    expected, hits, _ = _binned(confidence, right, bins)
    return float(np.abs(hits - expected).sum() / len(confidence))


def reliability(
    truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS
) -> list[tuple[float, float, int]]:
    """Points of a calibration curve, from the lowest confidence: ``(mean confidence, accuracy, rows)`` of each bin.

    Args:
        truth: (rows,) label ids, or of a multi-label task (rows, C) bool, whose decisions are counted in place of rows:
            the confidence is then the probability of a label, and it is right if the label is there.
        probabilities: (rows, C).
        bins: of confidence between 0 and 1; those without rows are left out.
    """
    totals, hits, rows = _binned(*_confidence(truth, probabilities), bins)
    return [
        (float(total / count), float(good / count), int(count))
        for total, good, count in zip(totals, hits, rows, strict=True)
        if count
    ]


def threshold_sweep(scores: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ways to split scores (N,) >= 0, N > 0, by a threshold, from the highest threshold down.

    Returns:
        Thresholds (splits,) halfway to the next lower score (the last one to 0), how many scores reach them, and how
        many of these have a flag.
    """
    order = np.argsort(-scores)
    ordered, hits = scores[order], flags[order].cumsum()
    below = np.append(ordered[1:], 0.0)
    # The last one of equal scores.
    last = np.append(ordered[1:] < ordered[:-1], True)
    halfway = (ordered + below) / 2
    # Between neighbouring numbers, rounding may give the lower one.
    thresholds = np.where(halfway > below, halfway, ordered)
    return thresholds[last], np.flatnonzero(last) + 1, hits[last]


def _confidence(truth: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) confidence and (N,) bool, whether it was right to be so."""
    if truth.ndim == 2:
        return probabilities.ravel(), truth.ravel().astype(bool)
    return probabilities.max(1), probabilities.argmax(1) == truth


def _binned(confidence: np.ndarray, right: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bins,) each: sum of confidence, number of right ones and number of all, of (N,) and (N,)."""
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.bincount(number, confidence, bins), np.bincount(number, right, bins), np.bincount(number, minlength=bins)

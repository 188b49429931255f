"""Metrics: pure functions on arrays. Those of one label a row are scikit-learn's, all others are worked out here."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

__all__ = [
    "LabelFigures",
    "expected_calibration_error",
    "label_figures",
    "multi_label_figures",
    "multi_label_metrics",
    "ordinal_metrics",
    "regression_metrics",
    "reliability",
    "single_label_metrics",
    "worst_confusions",
]

CALIBRATION_BINS = 15


def single_label_metrics(
    truth: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray | None = None
) -> dict[str, float]:
    """The figures that ``train`` and ``evaluate`` report for a single-label task.

    Args:
        truth: (rows,) label ids.
        probabilities: (rows, C).
        predicted: (rows,) label ids, -1 = abstained, which is wrong but no label; ``None``: the most probable ones.

    Returns:
        ``accuracy``, ``macro_f1`` (over the labels that occur in truth or prediction), ``micro_f1``, ``matthews`` and
        ``ece`` (of the most probable label, whatever was predicted). Where a row abstained, also ``coverage``, the
        share of rows answered, and ``precision_answered``, the accuracy of those (0 if there are none).
    """
    if predicted is None:
        predicted = probabilities.argmax(1)
    answered = predicted >= 0
    labels = np.union1d(truth, predicted[answered])
    one_label = len(np.union1d(truth, predicted)) == 1  # scikit-learn gives 0 too, with a warning
    found = {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, labels=labels, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(truth, predicted, labels=labels, average="micro", zero_division=0)),
        "matthews": 0.0 if one_label else float(matthews_corrcoef(truth, predicted)),
        "ece": expected_calibration_error(truth, probabilities),
    }
    if not answered.all():
        found["coverage"] = float(answered.mean())
        found["precision_answered"] = float((truth == predicted).sum() / max(1, answered.sum()))
    return found


def ordinal_metrics(truth: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The figures of an ordinal task.

    Args:
        truth: (rows,) label ids, which are places in the labels' order.
        probabilities: (rows, C).
        predicted: (rows,) label ids, -1 = abstained.

    Returns:
        Those of :func:`single_label_metrics`, and of the rows answered ``mae``, the mean distance in labels, and
        ``spearman``. If none was answered, these are the worst there is, C - 1, and 0.
    """
    found = single_label_metrics(truth, probabilities, predicted)
    answered = predicted >= 0
    if not answered.any():
        return found | {"mae": float(probabilities.shape[1] - 1), "spearman": 0.0}
    true, other = truth[answered], predicted[answered]
    return found | {
        "mae": float(np.abs(true - other).mean()),
        "spearman": _correlation(rankdata(true), rankdata(other)),
    }


def multi_label_metrics(truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The figures of a task whose rows have any number of labels, none included.

    Args:
        truth: (rows, C) bool, which labels a row has.
        predicted: (rows, C) bool.
        probabilities: (rows, C), of each label.

    Returns:
        ``accuracy`` (rows whose labels are all right), ``macro_f1`` (over the labels that occur in truth or
        prediction), ``micro_f1`` and ``ece`` (of all decisions: the probability of a label, and whether it is there).
        F1 is 0 where no label occurs.
    """
    true, other, right = _counts(truth, predicted)
    occurring = np.count_nonzero(true + other)
    return {
        "accuracy": float((truth == predicted).all(1).mean()),
        "macro_f1": float(_share(2 * right, true + other).sum() / max(1, occurring)),
        "micro_f1": float(_share(2 * right.sum(), true.sum() + other.sum())),
        "ece": _calibration_error(probabilities.ravel(), truth.ravel(), CALIBRATION_BINS),
    }


def regression_metrics(truth: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """The figures of a task whose labels are numbers.

    Args:
        truth: (rows,) numbers.
        values: (rows,) predicted numbers.

    Returns:
        ``pearson`` and ``spearman``, which are 0 where one side is constant, ``mae`` and ``rmse``.
    """
    gap = values.astype(np.float64) - truth
    return {
        "pearson": _correlation(truth, values),
        "spearman": _correlation(rankdata(truth), rankdata(values)),
        "mae": float(np.abs(gap).mean()),
        "rmse": float(np.sqrt(np.square(gap).mean())),
    }


def expected_calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence (Guo et al., arXiv 1706.04599).

    Args:
        truth: (rows,) label ids.
        probabilities: (rows, C).
        bins: of confidence between 0 and 1.
    """
    return _calibration_error(probabilities.max(1), probabilities.argmax(1) == truth, bins)


def reliability(
    truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS
) -> list[tuple[float, float, int]]:
    """Points of a calibration curve, from the lowest confidence: ``(mean confidence, accuracy, rows)`` of each bin.

    Args:
        truth: (rows,) label ids, or of a multi-label task (rows, C) bool, whose decisions are counted in place of rows:
            the confidence is then the probability of a label, and it is right if the label is there.
        probabilities: (rows, C).
        bins: of confidence between 0 and 1, as in :func:`expected_calibration_error`; those without rows are left out.
    """
    if truth.ndim == 2:
        confidence, right = probabilities.ravel(), truth.ravel().astype(bool)
    else:
        confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    totals, hits, rows = _binned(confidence, right, bins)
    return [
        (float(total / count), float(good / count), int(count))
        for total, good, count in zip(totals, hits, rows, strict=True)
        if count
    ]


class LabelFigures(dict[str, float]):
    """``precision``, ``recall``, ``f1`` and ``rows`` of one label."""


def label_figures(truth: np.ndarray, predicted: np.ndarray, labels: int) -> list[LabelFigures]:
    """Figures of each label, by id; a label without rows has recall 0."""
    columns = precision_recall_fscore_support(truth, predicted, labels=np.arange(labels), zero_division=0)
    names = ("precision", "recall", "f1", "rows")
    return [
        LabelFigures(zip(names, (float(p), float(r), float(f), int(n)), strict=True))
        for p, r, f, n in zip(*columns, strict=True)
    ]


def multi_label_figures(truth: np.ndarray, predicted: np.ndarray) -> list[LabelFigures]:
    """Figures of each label, by id, of truth and prediction (rows, C) bool; ``rows`` are those that have it."""
    true, other, right = _counts(truth, predicted)
    columns = (_share(right, other), _share(right, true), _share(2 * right, true + other), true)
    return [
        LabelFigures(precision=float(p), recall=float(r), f1=float(f), rows=int(n))
        for p, r, f, n in zip(*columns, strict=True)
    ]


def worst_confusions(
    truth: np.ndarray, predicted: np.ndarray, labels: int, most: int = 5
) -> list[tuple[int, int, int]]:
    """The most frequent mistakes as ``(true label, predicted label, rows)``, most frequent first."""
    counts = confusion_matrix(truth, predicted, labels=np.arange(labels))
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(cell, counts.shape) for cell in order]
    return [(int(true), int(other), int(counts[true, other])) for true, other in pairs if counts[true, other]]


def _counts(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that have each label, that were given it, and both, (C,) each.

    Not by scikit-learn, which takes a single column of labels for two classes.
    """
    true, other = truth.astype(bool), predicted.astype(bool)
    return true.sum(0), other.sum(0), (true & other).sum(0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where the whole is."""
    found: np.ndarray = part / np.maximum(whole, 1)
    return found


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where one side is constant, also if its mean is not exactly that constant."""
    if one.min() == one.max() or other.min() == other.max():
        return 0.0
    units = []
    for values in (one, other):
        centred = values.astype(np.float64) - values.mean(dtype=np.float64)
        centred /= np.abs(centred).max()  # squares of very large or small numbers leave the range
        units.append(centred / np.linalg.norm(centred))
    return float(np.clip(units[0] @ units[1], -1, 1))


def _calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    expected, hits, _ = _binned(confidence, right, bins)
    return float(np.abs(hits - expected).sum() / len(confidence))


def _binned(confidence: np.ndarray, right: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bins,) each: sum of confidence, number of right ones and number of all, of (N,) and (N,)."""
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.bincount(number, confidence, bins), np.bincount(number, right, bins), np.bincount(number, minlength=bins)

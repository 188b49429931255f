"""Metrics: pure functions on arrays, all from scikit-learn but the calibration error."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

__all__ = ["LabelFigures", "expected_calibration_error", "label_figures", "single_label_metrics", "worst_confusions"]

CALIBRATION_BINS = 15


def single_label_metrics(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The figures that ``train`` and ``evaluate`` report for a single-label task.

    Args:
        truth: (rows,) label ids.
        probabilities: (rows, C).

    Returns:
        ``accuracy``, ``macro_f1`` (over the labels that occur in truth or prediction), ``micro_f1``, ``matthews`` and
        ``ece``.
    """
    predicted = probabilities.argmax(1)
    one_label = len(np.union1d(truth, predicted)) == 1  # scikit-learn gives 0 too, with a warning
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "matthews": 0.0 if one_label else float(matthews_corrcoef(truth, predicted)),
        "ece": expected_calibration_error(truth, probabilities),
    }


def expected_calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence (Guo et al., arXiv 1706.04599).

    Args:
        truth: (rows,) label ids.
        probabilities: (rows, C).
        bins: of confidence between 0 and 1.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == truth
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(number, right, bins) - np.bincount(number, confidence, bins)
    return float(np.abs(gap).sum() / len(truth))


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


def worst_confusions(
    truth: np.ndarray, predicted: np.ndarray, labels: int, most: int = 5
) -> list[tuple[int, int, int]]:
    """The most frequent mistakes as ``(true label, predicted label, rows)``, most frequent first."""
    counts = confusion_matrix(truth, predicted, labels=np.arange(labels))
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(cell, counts.shape) for cell in order]
    return [(int(true), int(other), int(counts[true, other])) for true, other in pairs if counts[true, other]]

"""Predictions and truth -> :class:`Report`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ytuning.labels import LabelSet
from ytuning.metrics import LabelFigures, label_figures, single_label_metrics, worst_confusions

__all__ = ["Confusion", "Report", "evaluate"]


@dataclass(frozen=True)
class Confusion:
    """``rows`` rows of the label ``true`` were given the label ``predicted``."""

    true: str
    predicted: str
    rows: int


@dataclass(frozen=True)
class Report:
    """How a task did on labelled rows.

    Attributes:
        rows: evaluated.
        metrics: ``accuracy``, ``macro_f1``, ``micro_f1``, ``matthews``, ``ece``.
        labels: figures of each label, by name.
        confusions: the most frequent mistakes.
    """

    rows: int
    metrics: dict[str, float]
    labels: dict[str, LabelFigures]
    confusions: list[Confusion]


def evaluate(labels: LabelSet, truth: np.ndarray, probabilities: np.ndarray, *, confusions: int = 5) -> Report:
    """Compare predictions with the truth.

    Args:
        labels: of the task.
        truth: (rows,) label ids.
        probabilities: (rows, C).
        confusions: how many of the most frequent mistakes to keep.
    """
    predicted = probabilities.argmax(1)
    return Report(
        rows=len(truth),
        metrics=single_label_metrics(truth, probabilities),
        labels=dict(zip(labels.names, label_figures(truth, predicted, len(labels)), strict=True)),
        confusions=[
            Confusion(labels.names[true], labels.names[other], rows)
            for true, other, rows in worst_confusions(truth, predicted, len(labels), confusions)
        ],
    )

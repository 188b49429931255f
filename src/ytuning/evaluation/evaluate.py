"""Logits and truth -> :class:`Report`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ytuning.data.dataset import Dataset
from ytuning.data.kinds import Scale, Target
from ytuning.data.labels import Kind
from ytuning.evaluation.intervals import multi_intervals, number_intervals, single_intervals
from ytuning.evaluation.metrics import (
    LabelFigures,
    label_figures,
    multi_label_figures,
    multi_label_metrics,
    ordinal_metrics,
    regression_metrics,
    single_label_metrics,
    worst_confusions,
)
from ytuning.heads.pooled import LabelHead
from ytuning.training.calibration import Calibration

__all__ = ["HEADLINES", "Confusion", "Judged", "Report", "evaluate"]

HEADLINES: dict[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "macro_f1"),
    "ordinal": ("accuracy", "mae"),
    "multi": ("macro_f1", "micro_f1"),
    "regression": ("pearson", "spearman"),
}
"""What a kind of task is judged by first."""


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
        kind: of the task.
        rows: evaluated.
        metrics: by name; which ones depends on the kind, see `evaluation/metrics.py`.
        intervals: of some metrics the 95 % interval over rows, see `evaluation/intervals.py`.
        labels: figures of each label, by name; none of a regression.
        confusions: the most frequent mistakes, of tasks with one label a row.
    """

    kind: Kind
    rows: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    labels: dict[str, LabelFigures] = field(default_factory=dict)
    confusions: list[Confusion] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """What a :class:`Report` is about.

    Attributes:
        data: the labelled rows.
        truth: (rows,) or (rows, C), their labels as the task's target encodes them.
        logits: (rows, C) float32.
        head: that gave them.
    """

    data: Dataset
    truth: np.ndarray
    logits: np.ndarray
    head: LabelHead


def evaluate(target: Target, calibration: Calibration, truth: np.ndarray, logits: np.ndarray) -> Report:
    """Compare predictions with the truth.

    Args:
        target: of the task.
        calibration: of the task.
        truth: (rows,) or (rows, C), as ``target`` encodes labels.
        logits: (rows, C).
    """
    rows = len(truth)
    if isinstance(target, Scale):
        numbers, values = target.numbers(truth), target.values(logits)
        return Report(target.kind, rows, regression_metrics(numbers, values), number_intervals(numbers, values))
    probabilities = calibration.probabilities(target, logits)
    predicted = calibration.decide(target, probabilities)
    if target.kind == "multi":
        there = truth > 0
        return Report(
            target.kind,
            rows,
            multi_label_metrics(there, predicted, probabilities),
            multi_intervals(there, predicted),
            dict(zip(target.names, multi_label_figures(there, predicted), strict=True)),
        )
    metrics = (ordinal_metrics if target.kind == "ordinal" else single_label_metrics)(truth, probabilities, predicted)
    if calibration.abstain_below is not None:  # also where every row was answered
        metrics = {"coverage": 1.0, "precision_answered": metrics["accuracy"], **metrics}
    return Report(
        target.kind,
        rows,
        metrics,
        single_intervals(truth, predicted),
        dict(zip(target.names, label_figures(truth, predicted, len(target.names)), strict=True)),
        [
            Confusion(target.names[true], target.names[other], count)
            for true, other, count in worst_confusions(truth, predicted, len(target.names))
        ],
    )

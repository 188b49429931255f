"""Logits and truth -> :class:`Report`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ytuning.data.dataset import Dataset
from ytuning.data.kinds import Confusion, TaskKind
from ytuning.data.kinds.metrics import LabelFigures
from ytuning.data.labels import Kind
from ytuning.heads.pooled import LabelHead
from ytuning.training.calibration import Calibration

__all__ = ["EvaluatedRows", "Report", "evaluate"]


@dataclass(frozen=True)
class Report:
    """How a task did on labelled rows.

    Attributes:
        kind: kind of the task.
        rows: evaluated.
        metrics: metrics by name; which ones depends on the kind, see `data/kinds/`.
        intervals: 95 % intervals over rows of some metrics, see `data/kinds/metrics.py`.
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
class EvaluatedRows:
    """What a :class:`Report` is about.

    Attributes:
        data: the labelled rows.
        truth: (rows,) or (rows, C), their labels as the kind of task encodes them.
        logits: (rows, C) float32.
        head: head that gave them.
    """

    data: Dataset
    truth: np.ndarray
    logits: np.ndarray
    head: LabelHead


def evaluate(target: TaskKind, calibration: Calibration, truth: np.ndarray, logits: np.ndarray) -> Report:
    """Compare predictions with the truth.

    Args:
        target: kind of the task, with its labels or its scale.
        calibration: calibration of the task.
        truth: labels (rows,) or (rows, C), as ``target`` encodes them.
        logits: (rows, C).
    """
    answers, truth = calibration.answers(target, logits), target.decode(truth)
    metrics = target.metrics(truth, answers)
    if calibration.abstain_below is not None:
        # A task that may abstain has these two metrics even where every row was answered.
        metrics = {"coverage": 1.0, "precision_answered": metrics["accuracy"], **metrics}
    return Report(
        target.kind,
        len(truth),
        metrics,
        target.intervals(truth, answers.values),
        dict(zip(target.names, target.label_figures(truth, answers.values), strict=True)),
        target.confusions(truth, answers.values),
    )

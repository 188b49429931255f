"""`evaluate.Report` and the rows that it is about -> one HTML file that needs nothing else.

No script, no network; the page's own policy forbids both, so that a hostile text could do nothing even unescaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ytuning.data.kinds import Mistake, TaskKind
from ytuning.data.kinds.metrics import LabelFigures
from ytuning.encoder.encoder import Encoder
from ytuning.evaluation.attribution import Effects, Piece, explain, mark_texts, strongest_pieces
from ytuning.evaluation.evaluate import EvaluatedRows, Report
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.reports.charts import (
    HEIGHT,
    WIDTH,
    calibration_figure,
    confusion,
    learning_figures,
    residual_figure,
    scatter_figure,
)
from ytuning.reports.console import SHOWN_METRICS
from ytuning.reports.pages import render
from ytuning.tasks.task import Task
from ytuning.training.fit import FitResult

__all__ = ["render_report"]

SHOWN_LABELS = 30  # of the table and of the confusion matrix; more are folded away or left out
SHOWN_MISTAKES = 20


@dataclass(frozen=True)
class _Metric:
    """A figure as it is shown; ``first``: of those that a kind of task is judged by."""

    name: str
    value: float
    interval: tuple[float, float] | None
    first: bool


@dataclass(frozen=True)
class _ShownMistake:
    """A mistake with its texts, the pieces that speak the most for either answer, and its row in the source."""

    mistake: Mistake
    number: int
    texts: list[list[Piece]]
    left_out: list[int]
    towards: list[str]
    against: list[str]


def render_report(
    task: Task,
    report: Report,
    judged: EvaluatedRows,
    encoder: Encoder,
    store: FeatureStore,
    *,
    title: str | None = None,
    fit: FitResult | None = None,
    seconds: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> str:
    """A page with metrics, charts and the worst mistakes, in which words that support an answer are marked.

    Args:
        task: that was judged.
        report: what it says.
        judged: what it is about.
        encoder: of the task; reads the texts of the worst mistakes if the store lacks them.
        store: has the features of the judged rows.
        title: heading; default: the names of task and rows.
        fit: of the task's training, for its learning curves.
        seconds: of each stage.
        progress: is told every mistake that is explained.

    Returns:
        HTML.
    """
    page = {
        "title": title or f"{task.name} on {judged.data.source}",
        "task": task,
        "report": report,
        "facts": _facts(task, report, judged),
        "metrics": _metrics(task.target, report),
        "seconds": seconds or {},
        "learning": learning_figures(task.target, fit.history, fit.chosen) if fit else [],
        "mistakes": _mistakes(task, judged, encoder, store, progress or Progress()),
        "width": WIDTH,
        "height": HEIGHT,
        **_content(task, report, judged),
    }
    return render("report.html", page)


def _content(task: Task, report: Report, judged: EvaluatedRows) -> dict[str, Any]:
    """What only some kinds of task have: drawings, figures of labels, thresholds, a confusion matrix."""
    target, calibration = task.target, task.calibration
    truth, answers = target.decode(judged.truth), calibration.answers(target, judged.logits)
    content: dict[str, Any] = {"matrix": None, "figures": [], "thresholds": None}
    content["shown"], content["rest"] = _labels(report)
    if "scatter" in target.drawings:
        content["figures"].append(scatter_figure(truth, answers.values))
    if "residuals" in target.drawings:
        content["figures"].append(residual_figure(truth, answers.values))
    if "reliability" in target.drawings:
        content["figures"].append(calibration_figure(truth, answers.probabilities))
    if "thresholds" in target.drawings:
        thresholds = calibration.thresholds or (0.5,) * len(target.names)
        content["thresholds"] = dict(zip(target.names, thresholds, strict=True))
    if "confusions" in target.drawings:
        content["matrix"] = confusion(truth, answers.values, target.names, SHOWN_LABELS)
    return content


def _metrics(target: TaskKind, report: Report) -> list[_Metric]:
    """The kind's headlines first."""
    names = {**SHOWN_METRICS, "rmse": "root mean squared error"}
    first = target.headlines
    order = [*first, *(name for name in report.metrics if name not in first)]
    return [
        _Metric(names.get(name, name), report.metrics[name], report.intervals.get(name), name in first)
        for name in order
    ]


def _facts(task: Task, report: Report, judged: EvaluatedRows) -> dict[str, str]:
    """What the figures depend on, by name."""
    target, training = task.target, task.training
    found = {"rows": f"{report.rows:,} of {judged.data.source}", "kind of task": task.kind}
    found |= target.facts
    if target.labels is not None:
        found["temperature"] = f"{task.calibration.temperature:.3g}"
        if task.calibration.smoothing:
            found["temperature"] += f" after undoing label smoothing of {task.calibration.smoothing:g}"
    if task.calibration.abstain_below is not None:
        found["no answer below"] = f"a probability of {task.calibration.abstain_below:.4f}"
    if task.pair_mode:
        found["pairs"] = {"joint": "both texts are encoded together", "separate": "each text is encoded alone"}[
            task.pair_mode
        ]
    if rows := training.get("rows"):
        found["rows trained on"] = f"{rows['train']:,}" + (", then on all rows" if training.get("refitted") else "")
    if steps := training.get("steps"):
        found["steps"] = f"{steps:,}"
    share = task.head_parameters / task.encoder.parameters
    found["head"] = f"{task.head_parameters:,} parameters, {share:.1%} of the encoder's"
    return found | {"encoder": task.encoder.name}


def _labels(report: Report) -> tuple[list[tuple[str, LabelFigures]], list[tuple[str, LabelFigures]]]:
    """All labels in order; of many the worst of those with rows, and the rest from the worst on."""
    labels = list(report.labels.items())
    if len(labels) <= SHOWN_LABELS:
        return labels, []
    labels.sort(key=lambda entry: (not entry[1]["rows"], entry[1]["f1"]))
    shown = min(SHOWN_LABELS, sum(figures["rows"] > 0 for _, figures in labels))
    return labels[:shown], labels[shown:]


def _mistakes(
    task: Task, judged: EvaluatedRows, encoder: Encoder, store: FeatureStore, progress: Progress
) -> list[_ShownMistake]:
    truth, answers = task.target.decode(judged.truth), task.calibration.answers(task.target, judged.logits)
    found = task.target.mistakes(truth, answers, SHOWN_MISTAKES)
    rows = judged.data.inputs
    inputs = [rows[mistake.row] for mistake in found]
    effects = explain(
        judged.head, inputs, encoder, store, pair_mode=task.pair_mode, codec=task.codec, progress=progress
    )
    return [
        _describe_mistake(task, judged, mistake, content, effect)
        for mistake, content, effect in zip(found, inputs, effects, strict=True)
    ]


def _describe_mistake(
    task: Task, judged: EvaluatedRows, mistake: Mistake, content: tuple[str, str | None], effects: Effects
) -> _ShownMistake:
    texts = mark_texts(task.target, mistake, content, effects)
    lengths = [len(text) for text in content if text is not None]
    left_out = [
        length - sum(len(piece.text) for piece in pieces) for length, pieces in zip(lengths, texts, strict=True)
    ]
    number = mistake.row + 1 if judged.data.rows is None else judged.data.rows[mistake.row]
    return _ShownMistake(
        mistake, number, texts, left_out, strongest_pieces(texts, "towards"), strongest_pieces(texts, "against")
    )

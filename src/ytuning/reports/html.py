"""Evaluations and searches -> HTML pages that need nothing else.

No script, no network; each page's own policy forbids both, so that a hostile text could do nothing even unescaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from ytuning.data.kinds import Mistake, TaskKind
from ytuning.data.kinds.metrics import LabelFigures
from ytuning.encoder.encoder import Encoder
from ytuning.evaluation.attribution import Effects, explain
from ytuning.evaluation.evaluate import EvaluatedRows, Report
from ytuning.evaluation.mistakes import Piece, marked, strongest
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.reports import charts
from ytuning.reports.console import SHOWN_METRICS
from ytuning.search.log import Trial
from ytuning.tasks.task import Task
from ytuning.tasks.train import Trained

__all__ = ["plot_search", "render", "render_report"]

SHOWN_LABELS = 30  # of the table and of the confusion matrix; more are folded away or left out
SHOWN_MISTAKES = 20
PAIR_FACTS = {"joint": "both texts are encoded together", "separate": "each text is encoded alone"}

# Characters that HTML forbids or reads as something else, each as one that can be seen.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
VISIBLE |= dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), 0xFFFD)


def render(template: str, content: dict[str, Any]) -> str:
    """A page of the folder ``templates``; what is put into it is escaped, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ytuning.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value.translate(VISIBLE) if isinstance(value, str) else value,
    )
    environment.globals.update(width=charts.WIDTH, height=charts.HEIGHT)
    return environment.get_template(template).render(content)


def plot_search(trials: Sequence[Trial]) -> str:
    """The page of a search: its validation loss by trial, and by the parameters that mattered most."""
    return render("search.html", {"figures": charts.search_figures(trials), "trials": len(trials)})


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
    trained: Trained | None = None,
    progress: Progress | None = None,
) -> str:
    """A page with metrics, charts and the worst mistakes, in which words that support an answer are marked.

    Args:
        task: that was evaluated.
        report: of the evaluation.
        judged: rows that the report is about.
        encoder: of the task; reads the texts of the worst mistakes if the store lacks them.
        store: has the features of the rows.
        title: heading; default: the names of task and rows.
        trained: the task's training, for its learning curves and the seconds of its stages.
        progress: is told every mistake that is explained.
    """
    page = {
        "title": title or f"{task.name} on {judged.data.source}",
        "task": task,
        "report": report,
        "facts": _facts(task, report, judged),
        "metrics": _metrics(task.target, report),
        "seconds": trained.seconds if trained else {},
        "learning": (charts.learning_figures(task.target, trained.fit.history, trained.fit.chosen) if trained else []),
        "mistakes": _mistakes(task, judged, encoder, store, progress or Progress()),
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
        content["figures"].append(charts.scatter_figure(truth, answers.values))
    if "residuals" in target.drawings:
        content["figures"].append(charts.residual_figure(truth, answers.values))
    if "reliability" in target.drawings:
        content["figures"].append(charts.calibration_figure(truth, answers.probabilities))
    if "thresholds" in target.drawings:
        thresholds = calibration.thresholds or (0.5,) * len(target.names)
        content["thresholds"] = dict(zip(target.names, thresholds, strict=True))
    if "confusions" in target.drawings:
        content["matrix"] = charts.confusion(truth, answers.values, target.names, SHOWN_LABELS)
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
    facts = {"rows": f"{report.rows:,} of {judged.data.source}", "kind of task": task.kind, **target.facts}
    if target.labels is not None:
        facts["temperature"] = f"{task.calibration.temperature:.3g}"
        if task.calibration.smoothing:
            facts["temperature"] += f" after undoing label smoothing of {task.calibration.smoothing:g}"
    if task.calibration.abstain_below is not None:
        facts["no answer below"] = f"a probability of {task.calibration.abstain_below:.4f}"
    if task.pair_mode:
        facts["pairs"] = PAIR_FACTS[task.pair_mode]
    if rows := training.get("rows"):
        facts["rows trained on"] = f"{rows['train']:,}" + (", then on all rows" if training.get("refitted") else "")
    if steps := training.get("steps"):
        facts["steps"] = f"{steps:,}"
    share = task.head_parameters / task.encoder.parameters
    facts["head"] = f"{task.head_parameters:,} parameters, {share:.1%} of the encoder's"
    return facts | {"encoder": task.encoder.name}


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
    mistakes = task.target.mistakes(truth, answers, SHOWN_MISTAKES)
    rows = judged.data.inputs
    inputs = [rows[mistake.row] for mistake in mistakes]
    effects = explain(
        judged.head, inputs, encoder, store, pair_mode=task.pair_mode, codec=task.codec, progress=progress
    )
    return [_describe_mistake(task, judged, *parts) for parts in zip(mistakes, inputs, effects, strict=True)]


def _describe_mistake(
    task: Task, judged: EvaluatedRows, mistake: Mistake, content: tuple[str, str | None], effects: Effects
) -> _ShownMistake:
    texts = marked(task.target, mistake, content, effects)
    left_out = [
        len(text) - sum(len(piece.text) for piece in pieces)
        for text, pieces in zip((text for text in content if text is not None), texts, strict=True)
    ]
    number = mistake.row + 1 if judged.data.rows is None else judged.data.rows[mistake.row]
    return _ShownMistake(mistake, number, texts, left_out, strongest(texts, "towards"), strongest(texts, "against"))

"""Evaluations and searches -> HTML pages that need nothing else.

No script, no network; each page's own policy forbids both, so that a hostile text could do nothing even unescaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from ytuning.data.kinds import Mistake, TaskKind
from ytuning.data.kinds.metrics import LabelFigures
from ytuning.encoder.encoder import Encoder
from ytuning.evaluation.attribution import explain, mark_texts, strongest_pieces
from ytuning.evaluation.evaluate import EvaluatedRows, Report
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.reports import charts
from ytuning.reports.console import SHOWN_METRICS
from ytuning.search.log import Trial
from ytuning.tasks.cascade import DEFAULT_SHARE, CascadeUse
from ytuning.tasks.task import Task
from ytuning.tasks.train import Trained

__all__ = ["plot_search", "render", "render_report"]

# The table and the confusion matrix show this number of labels; more are folded away or left out.
SHOWN_LABELS = 30
SHOWN_MISTAKES = 20

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


def render_report(
    task: Task,
    report: Report,
    judged: EvaluatedRows,
    encoder: Encoder,
    store: FeatureStore,
    *,
    title: str | None = None,
    trained: Trained | None = None,
    cascade: CascadeUse | None = None,
    progress: Progress | None = None,
) -> str:
    """A page with metrics, charts and the worst mistakes, in which words that support an answer are marked.

    Args:
        task: task that was evaluated.
        report: report of the evaluation.
        judged: rows that the report is about.
        encoder: encoder of the task; reads the texts of the worst mistakes if the store lacks them.
        store: has the features of the rows.
        title: heading; default: the names of task and rows.
        trained: the task's training, for its learning curves and the seconds of its stages.
        cascade: what a cascade does with the rows, if it was measured.
        progress: is told every mistake that is explained.
    """
    target, calibration, drawings = task.target, task.calibration, task.target.drawings
    truth, answers = target.decode(judged.truth), calibration.answers(target, judged.logits)
    mistakes = target.mistakes(truth, answers, SHOWN_MISTAKES)
    figures = []
    if "scatter" in drawings:
        figures.append(charts.scatter_figure(truth, answers.values))
    if "residuals" in drawings:
        figures.append(charts.residual_figure(truth, answers.values))
    if "reliability" in drawings:
        figures.append(charts.calibration_figure(truth, answers.probabilities))
    matrix = None
    if "confusions" in drawings:
        matrix = charts.confusion(truth, answers.values, target.names, SHOWN_LABELS)
    thresholds = calibration.thresholds or (0.5,) * len(target.names)
    shown, rest = _labels(report)
    page = {
        "title": title or f"{task.name} on {judged.data.source}",
        "task": task,
        "report": report,
        "facts": _facts(task, report, judged, cascade),
        "metrics": _metrics(target, report),
        "seconds": trained.seconds if trained else {},
        "shown": shown,
        "rest": rest,
        "thresholds": dict(zip(target.names, thresholds, strict=True)) if "thresholds" in drawings else None,
        "matrix": matrix,
        "figures": figures,
        "learning": charts.learning_figures(target, trained.fit.history, trained.fit.chosen) if trained else [],
        "mistakes": _explain_mistakes(task, judged, mistakes, encoder, store, progress or Progress()),
    }
    return render("report.html", page)


def _metrics(target: TaskKind, report: Report) -> list[dict[str, Any]]:
    """Each metric as it is shown; the kind's headlines come first."""
    names = {**SHOWN_METRICS, "rmse": "root mean squared error"}
    return [
        {
            "name": names.get(name, name),
            "value": report.metrics[name],
            "interval": report.intervals.get(name),
            "first": name in target.headlines,
        }
        for name in dict.fromkeys((*target.headlines, *report.metrics))
    ]


def _facts(task: Task, report: Report, judged: EvaluatedRows, cascade: CascadeUse | None) -> dict[str, str]:
    """Return the facts that the figures depend on, by name."""
    target, training = task.target, task.training
    facts = {"rows": f"{report.rows:,} of {judged.data.source}", "kind of task": task.kind, **target.facts}
    if target.labels is not None:
        facts["temperature"] = f"{task.calibration.temperature:.3g}"
        if task.calibration.smoothing:
            facts["temperature"] += f" after undoing label smoothing of {task.calibration.smoothing:g}"
    if task.calibration.abstain_below is not None:
        facts["no answer below"] = f"a probability of {task.calibration.abstain_below:.4f}"
    if task.pair_mode:
        facts["input"] = task.input_words
    if rows := training.get("rows"):
        facts["rows trained on"] = f"{rows['train']:,}" + (", then on all rows" if training.get("refitted") else "")
    if steps := training.get("steps"):
        facts["steps"] = f"{steps:,}"
    share = task.head_parameters / task.encoder.parameters
    facts["head"] = f"{task.head_parameters:,} parameters, {share:.1%} of the encoder's"
    if task.cascade is not None:
        figures = f"at {DEFAULT_SHARE:.0%}, on the validation set: {task.cascade.sentence(DEFAULT_SHARE)}"
        facts["cascade with the light head beside it"] = figures
    if cascade is not None:
        facts["the cascade on these rows"] = cascade.sentence
    return facts | {"encoder": task.encoder.name}


def _labels(report: Report) -> tuple[list[tuple[str, LabelFigures]], list[tuple[str, LabelFigures]]]:
    """All labels in order; of many the worst of those with rows, and the rest from the worst on."""
    labels = list(report.labels.items())
    if len(labels) <= SHOWN_LABELS:
        return labels, []
    labels.sort(key=lambda entry: (not entry[1]["rows"], entry[1]["f1"]))
    shown = min(SHOWN_LABELS, sum(figures["rows"] > 0 for _, figures in labels))
    return labels[:shown], labels[shown:]


def _explain_mistakes(
    task: Task,
    judged: EvaluatedRows,
    mistakes: Sequence[Mistake],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Mistakes with their texts, the pieces that speak the most for either answer, and their rows in the source."""
    rows, numbers = judged.data.inputs, judged.data.rows
    inputs = [rows[mistake.row] for mistake in mistakes]
    effects = explain(
        judged.head,
        inputs,
        encoder,
        store,
        states=task.states,
        pair_mode=task.pair_mode,
        codec=task.codec,
        progress=progress,
    )
    explained = []
    for mistake, content, effect in zip(mistakes, inputs, effects, strict=True):
        texts = mark_texts(task.target, mistake, content, effect)
        lengths = [len(text) for text in content if text is not None]
        explained.append(
            {
                "mistake": mistake,
                "number": mistake.row + 1 if numbers is None else numbers[mistake.row],
                "texts": texts,
                "left_out": [
                    length - sum(len(piece.text) for piece in pieces)
                    for length, pieces in zip(lengths, texts, strict=True)
                ],
                "towards": strongest_pieces(texts, "towards"),
                "against": strongest_pieces(texts, "against"),
            }
        )
    return explained

"""`evaluate.Report` and the answers of many tasks -> readable tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ytuning.data.dataset import EMPTY_CELLS, Dataset
from ytuning.errors import quantity

# A command that only prints a table should not load torch for it.
if TYPE_CHECKING:
    from ytuning.evaluation.evaluate import Report
    from ytuning.tasks.train import Trained

__all__ = ["SHOWN_METRICS", "answers_table", "new_table", "print_report", "print_tasks"]

SHOWN_LABELS = 20
SHOWN_METRICS = {
    "accuracy": "accuracy",
    "coverage": "share answered",
    "precision_answered": "precision of answers",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mae": "mean absolute error",
    "ece": "calibration error",
}


def new_table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    """An empty table with columns of text, whose cells may be folded, and after them columns of numbers."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left", pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def answers_table(answers: Iterable[tuple[str, str, float | None]]) -> Table:
    """A table of tasks, what they answer, and the probability of the answer, if it has one."""
    table = new_table("", ["task", "answer"], ["probability"])
    for task, answer, probability in answers:
        table.add_row(escape(task), escape(answer), "" if probability is None else f"{probability:.4f}")
    return table


def print_report(console: Console, report: Report, title: str, seconds: dict[str, float] | None = None) -> None:
    """Print metrics, per-label figures, the worst confusions and, if given, the seconds of each stage."""
    console.print(_headline(report, title))
    if report.labels:
        console.print(_labels_table(report))
    if report.confusions:
        mistakes = new_table("Most frequent mistakes", ["true label", "predicted"], ["rows"])
        for confusion in report.confusions:
            mistakes.add_row(escape(confusion.true), escape(confusion.predicted), str(confusion.rows))
        console.print(mistakes)
    if seconds:
        console.print(_seconds_table(seconds))


def print_tasks(
    console: Console,
    trained: Mapping[str, Trained],
    train: Mapping[str, Dataset],
    split: str,
    seconds: dict[str, float],
) -> None:
    """Print a line for each of several tasks, and the seconds of each stage.

    Args:
        console: prints.
        trained: the tasks, by their names.
        train: training rows of the tasks, before any was held out.
        split: rows that the scores are of, "validation" or "test".
        seconds: of all tasks together, by stage.
    """
    table = new_table(
        f"{quantity(len(trained), 'task')}, {split}",
        ["task", "kind", "metric"],
        ["score", "95 % interval", "rows", "empty"],
    )
    for name, one in trained.items():
        report, target = one.reports[split], one.task.target
        metric = next((metric for metric in target.headlines if metric in report.metrics), None)
        figures = ["", ""] if metric is None else [SHOWN_METRICS[metric], f"{report.metrics[metric]:.4f}"]
        ends = report.intervals.get(metric or "")
        interval = f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else ""
        counts = (f"{count:,}" for count in (len(train[name]), train[name].left_out.get(EMPTY_CELLS, 0)))
        table.add_row(escape(name), target.kind, *figures, interval, *counts)
    console.print(table)
    console.print(_seconds_table(seconds))


def _seconds_table(seconds: dict[str, float]) -> Table:
    stages = new_table("Seconds", [], seconds)
    stages.add_row(*(f"{value:.2f}" for value in seconds.values()))
    return stages


def _headline(report: Report, title: str) -> str:
    figures = []
    for name, value in report.metrics.items():
        if name in SHOWN_METRICS:
            ends = report.intervals.get(name)
            interval = f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
            figures.append(f"{SHOWN_METRICS[name]} [bold]{value:.4f}[/bold]{interval}")
    return f"[bold]{escape(title)}[/bold] ({quantity(report.rows, 'row')}): {', '.join(figures)}\n"


def _labels_table(report: Report) -> Table:
    """The labels in order; of many labels the ones with the lowest F1."""
    chosen = list(report.labels.items())
    heading = "Labels"
    if len(chosen) > SHOWN_LABELS:
        chosen = sorted(chosen, key=lambda item: item[1]["f1"])[:SHOWN_LABELS]
        heading = f"The {SHOWN_LABELS} of {len(report.labels)} labels with the lowest F1"
    table = new_table(heading, ["label"], ["precision", "recall", "f1", "rows"])
    for name, figures in chosen:
        values = [f"{figures[column]:.3f}" for column in ("precision", "recall", "f1")]
        table.add_row(escape(name), *values, f"{int(figures['rows']):,}")
    return table

"""`evaluate.Report` -> JSON and readable tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ytuning.errors import counted
from ytuning.evaluation.evaluate import Report

__all__ = ["print_report", "report_to_json", "seconds_table"]

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


def report_to_json(report: Report) -> dict[str, Any]:
    """Everything in a report, JSON-ready."""
    return asdict(report)


def print_report(console: Console, report: Report, title: str, seconds: dict[str, float] | None = None) -> None:
    """Print metrics, per-label figures, the worst confusions and, if given, the seconds of each stage."""
    parts: list[RenderableType] = [_headline(report, title)]
    if report.labels:
        parts.append(_labels_table(report))
    if report.confusions:
        parts.append(_confusions_table(report))
    if seconds:
        parts.append(seconds_table(seconds))
    console.print(Group(*parts))


def seconds_table(seconds: dict[str, float]) -> Table:
    """Seconds of each stage, side by side."""
    table = Table(title="Seconds", box=box.SIMPLE, title_justify="left", pad_edge=False)
    for stage in seconds:
        table.add_column(stage, justify="right")
    table.add_row(*(f"{value:.2f}" for value in seconds.values()))
    return table


def _headline(report: Report, title: str) -> str:
    figures = []
    for name, value in report.metrics.items():
        if name in SHOWN_METRICS:
            ends = report.intervals.get(name)
            interval = f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
            figures.append(f"{SHOWN_METRICS[name]} [bold]{value:.4f}[/bold]{interval}")
    return f"[bold]{escape(title)}[/bold] ({counted(report.rows, 'row')}): {', '.join(figures)}\n"


def _labels_table(report: Report) -> Table:
    """The labels in order; of many labels the ones with the lowest F1."""
    chosen = list(report.labels.items())
    heading = "Labels"
    if len(chosen) > SHOWN_LABELS:
        chosen = sorted(chosen, key=lambda item: item[1]["f1"])[:SHOWN_LABELS]
        heading = f"The {SHOWN_LABELS} of {len(report.labels)} labels with the lowest F1"
    table = Table(title=heading, box=box.SIMPLE, title_justify="left", pad_edge=False)
    table.add_column("label", overflow="fold")
    for name in ("precision", "recall", "f1", "rows"):
        table.add_column(name, justify="right")
    for name, figures in chosen:
        values = [f"{figures[column]:.3f}" for column in ("precision", "recall", "f1")]
        table.add_row(escape(name), *values, f"{int(figures['rows']):,}")
    return table


def _confusions_table(report: Report) -> Table:
    table = Table(title="Most frequent mistakes", box=box.SIMPLE, title_justify="left", pad_edge=False)
    table.add_column("true label", overflow="fold")
    table.add_column("predicted", overflow="fold")
    table.add_column("rows", justify="right")
    for confusion in report.confusions:
        table.add_row(escape(confusion.true), escape(confusion.predicted), str(confusion.rows))
    return table

"""``ytuning evaluate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ytuning.cli.console import check_result_file, print_json, shown_progress, tell_cut, write_page
from ytuning.cli.options import Json, Label, MovedEncoder, Quiet, ReportFile, Text, TextPair

__all__ = ["evaluate"]


def evaluate(
    task_dir: Annotated[Path, typer.Argument(metavar="TASK_DIR", help="Folder of a trained task.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled rows: CSV, TSV, JSON lines or Parquet.")],
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    encoder: MovedEncoder = None,
    report: ReportFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a task labels rows whose labels are known."""
    from ytuning.data.dataset import read_dataset
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.reports.console import print_report, report_to_json
    from ytuning.reports.html import render_report
    from ytuning.tasks.evaluate import evaluate_task
    from ytuning.tasks.task import check_encoder, load_task, task_files

    if report is not None:
        check_result_file(report, "--report", (data, *task_files(task_dir)))
    task, store = load_task(task_dir), FeatureStore()
    known = task.target.names
    rows = read_dataset(data, text=text, text_pair=text_pair, label=label, kind=task.kind, known=known)
    with shown_progress(quiet) as progress:
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity)
        found = evaluate_task(task, rows, loaded, store, progress=progress)
        tell_cut(progress, found.truncated)
        if report is not None:
            page = render_report(task, found.report, found.judged, loaded, store, progress=progress)
            write_page(report, page)
    if as_json:
        figures = {**report_to_json(found.report), "cache": asdict(found.cache), "truncated": found.truncated}
        print_json({"task": task.name, **figures, "report": None if report is None else str(report)})
    else:
        print_report(Console(), found.report, f"{task.name} on {data}")

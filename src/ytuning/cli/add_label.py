"""``ytuning add-label``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ytuning.cli.console import Json, Quiet, print_json, shown_progress, tell_alike, tell_columns
from ytuning.cli.options import Label, Text, TextPair
from ytuning.errors import counted

if TYPE_CHECKING:
    from ytuning.tasks.add_label import AddedLabel

__all__ = ["add_label"]


def add_label(
    task_dir: Annotated[Path, typer.Argument(metavar="TASK_DIR", help="Folder of a trained task.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new label.")],
    examples: Annotated[Path, typer.Option("--examples", help="Texts of the new label; a label column is ignored.")],
    test: Annotated[Path | None, typer.Option("--test", help="Labelled rows to report on, before and after.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Task folder to write. Default: TASK_DIR.")] = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="Folder or name, if it has moved.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add a label to a trained task, without training it again; tells what that does to the old labels."""
    from ytuning.data.dataset import read_dataset
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.tasks.add_label import check_can_grow
    from ytuning.tasks.evaluate import evaluate_task, grow_task
    from ytuning.tasks.task import check_encoder, check_target, load_task, save_task

    task = load_task(task_dir)
    name = name.strip()  # as the labels of rows are
    check_can_grow(task, name)
    target = out or task_dir
    check_target(target)
    rows = read_dataset(examples, text=text, text_pair=text_pair, labelled=False)
    names = (*task.target.names, name)
    judged = (
        None
        if test is None
        else read_dataset(test, text=text, text_pair=text_pair, label=label, kind=task.kind, known=names)
    )
    metrics: dict[str, Any] = {}
    with shown_progress(quiet) as progress:
        for part in (rows, judged):
            if part is not None and not quiet:
                tell_columns(progress, part)
        tell_alike(progress, names)
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity)
        store = FeatureStore()
        start = time.perf_counter()
        added = grow_task(task, name, rows, loaded, store, progress=progress)
        seconds = time.perf_counter() - start
        if judged is not None:
            found = evaluate_task(added.task, judged, loaded, store, progress=progress)
            metrics["after"] = found.report.metrics
            if found.truncated:
                progress.say(f"cut {counted(found.truncated, 'test text')} longer than the encoder reads")
            old = [number for number, row in enumerate(judged.labels or []) if name not in _names(row)]
            if old:
                report = evaluate_task(task, judged.select(old), loaded, store, progress=progress).report
                metrics["before_on_rows_of_old_labels"] = report.metrics
                report = evaluate_task(added.task, judged.select(old), loaded, store, progress=progress).report
                metrics["after_on_rows_of_old_labels"] = report.metrics
        metrics_of_task = {"test": metrics["after"]} if "after" in metrics else {}
        save_task(replace(added.task, name=target.resolve().name, metrics=metrics_of_task), target)
    result = {
        "task_dir": str(target),
        "label": name,
        "labels": len(added.task.target.names),
        "examples": len(rows),
        "found": added.found,
        "kept_texts": {"before": added.before, "after": added.after, "lost": added.lost},
        "test": metrics,
        "seconds": round(seconds, 3),
    }
    if as_json:
        print_json(result)
    else:
        _print_added(added, result)


def _names(row: Any) -> tuple[Any, ...]:
    return row if isinstance(row, tuple) else (row,)


def _print_added(added: AddedLabel, result: dict[str, Any]) -> None:
    lines = [
        f"{result['label']}: label {result['labels']} of {result['task_dir']}, from {result['examples']:,} examples in "
        f"{result['seconds']:.1f} s; {added.found:.1%} of them are now given it",
        f"texts of the old labels that are given theirs: {added.before:.1%} before, {added.after:.1%} after",
    ]
    worst = sorted(added.lost.items(), key=lambda item: -item[1])[:5]
    if worst:
        lines.append("most taken from: " + ", ".join(f"{name} {share:.1%}" for name, share in worst))
    for when, metrics in result["test"].items():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        lines.append(f"test, {when.replace('_', ' ')}: {shown}")
    Console().print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)

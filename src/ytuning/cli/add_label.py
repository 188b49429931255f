"""``ytuning add-label``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ytuning.cli.console import print_json, shown_progress, tell_alike, tell_columns, tell_cut
from ytuning.cli.options import DATA, OUTPUT, Json, Label, MovedEncoder, Quiet, Test, Text, TextPair
from ytuning.errors import counted

if TYPE_CHECKING:
    from ytuning.tasks.add_label import AddedLabel

__all__ = ["add_label"]


def add_label(
    task_dir: Annotated[Path, typer.Argument(metavar="TASK_DIR", help="Folder of a trained task.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new label.")],
    examples: Annotated[Path, DATA("--examples", "FILE", "Texts of the new label. A label column is ignored.")],
    test: Test = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    encoder: MovedEncoder = None,
    out: Annotated[Path | None, OUTPUT("--out", "FOLDER", "Task folder to write.", "TASK_DIR")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add a label to a trained task without training it again.

    The command reports how many texts of the old labels get another label than before.
    """
    from ytuning.data.dataset import read_dataset
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.tasks.add_label import check_can_grow, grow_task
    from ytuning.tasks.evaluate import evaluate_task
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
            tell_cut(progress, found.truncated)
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
        "found": added.recall,
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
    examples = counted(result["examples"], "example")
    print(f"Added the label {result['label']} from {examples} in {result['seconds']:.1f} s.")
    print(f"Saved in {result['task_dir']}, which now has {result['labels']} labels.")
    print(f"The task gives the new label to {added.recall:.1%} of its examples.")
    print(
        f"It labels {added.before:.1%} of the kept texts of the old labels correctly before, {added.after:.1%} after."
    )
    if worst := sorted(added.lost.items(), key=lambda item: -item[1])[:5]:
        print("Labels that lose the most texts: " + ", ".join(f"{name} {share:.1%}" for name, share in worst) + ".")
    for when, metrics in result["test"].items():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"Test set, {when.replace('_', ' ')}: {shown}.")

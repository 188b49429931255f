"""Commands about a trained task and its labels: ``evaluate``, ``add-label`` and ``remove-label``."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ytuning.cli import console, options
from ytuning.cli.options import DATA, OUTPUT
from ytuning.errors import InputError, quantity

if TYPE_CHECKING:
    from collections.abc import Callable

    from ytuning.data.dataset import Dataset
    from ytuning.data.tables import Table
    from ytuning.encoder.encoder import Encoder
    from ytuning.features.store import FeatureStore
    from ytuning.progress import Progress
    from ytuning.tasks.add_label import AddedLabel
    from ytuning.tasks.task import Task

__all__ = ["add_label", "evaluate", "remove_label"]


def evaluate(
    task_dir: options.TaskFolder,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled rows: CSV, TSV, JSON lines or Parquet.")],
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    label_names: options.LabelNames = None,
    encoder: options.MovedEncoder = None,
    cascade: Annotated[
        float | None,
        OUTPUT(
            "SHARE",
            "For a task with two heads, report what a cascade that may change this share of the answers does with the "
            "rows.",
            "0.01",
        ),
    ] = None,
    report: options.ReportFile = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how well a task labels rows whose labels are known."""
    from ytuning.data.dataset import read_dataset
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.reports.console import print_report
    from ytuning.reports.html import render_report
    from ytuning.tasks.cascade import DEFAULT_SHARE, check_share, notes_on_cascades
    from ytuning.tasks.evaluate import evaluate_task
    from ytuning.tasks.task import check_encoder, load_task, task_files

    share = DEFAULT_SHARE if cascade is None else cascade
    check_share(share)
    if report is not None:
        console.check_result_file(report, "--report", (data, *task_files(task_dir)))
    task, store = load_task(task_dir), FeatureStore()
    if cascade is not None:
        for note in notes_on_cascades({task.name: task.cascade}, cascade):
            print(note, file=sys.stderr)
    read = partial(read_dataset, text=text, text_pair=text_pair, label=label, label_names=label_names or ())
    rows = read(data, kind=task.kind, known=task.known)
    with console.shown_progress(quiet) as progress:
        named = options.named(text, text_pair, label)
        console.tell_file(progress, rows, quiet=quiet, named=named, trained={"the task": task.columns})
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity, depth=loaded.depth)
        evaluation = evaluate_task(task, rows, loaded, store, cascade=share, progress=progress)
        console.tell_cut(progress, evaluation.truncated)
        if report is not None:
            page = render_report(
                task, evaluation.report, evaluation.judged, loaded, store, cascade=evaluation.cascade, progress=progress
            )
            console.write_page(report, page)
    if as_json:
        figures = {**asdict(evaluation.report), "cache": asdict(evaluation.cache), "truncated": evaluation.truncated}
        figures["files"] = console.files_json(data=rows)
        figures["cascade"] = None if evaluation.cascade is None else asdict(evaluation.cascade)
        figures["out_of_scope"] = evaluation.out_of_scope
        console.print_json({"task": task.name, **figures, "report": None if report is None else str(report)})
    else:
        print_report(Console(), evaluation.report, f"{task.name} on {data}")
        if evaluation.out_of_scope is not None:
            print(f"Out of scope: {evaluation.out_of_scope:.1%} of the rows.")
        if evaluation.cascade is not None:
            print(evaluation.cascade.sentence)


def add_label(
    task_dir: options.TaskFolder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new label.")],
    examples: Annotated[Path, DATA("FILE", "Texts of the new label. Other labels in a label column are told.")],
    test: options.Test = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    label_names: options.LabelNames = None,
    encoder: options.MovedEncoder = None,
    out: Annotated[Path | None, OUTPUT("FOLDER", "Task folder to write.", "TASK_DIR")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Add a label to a trained task without training it again.

    A task keeps some texts of its labels. The command reports how many of them it labels correctly before and after.
    """
    from ytuning.data.dataset import read_dataset
    from ytuning.data.files import read_table
    from ytuning.data.labels import label_name
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.tasks.add_label import check_can_grow, grow_task
    from ytuning.tasks.task import check_encoder, check_task_folder, load_task, save_task

    task = load_task(task_dir)
    # The name has the form of those in data files.
    name = label_name(name) or ""
    check_can_grow(task, name)
    target = out or task_dir
    check_task_folder(target)
    names = (*task.target.names, name)
    console.check_streams(examples, test)
    columns = None if task.columns is None else task.columns.with_label(name)
    read = partial(
        read_dataset, text=text, text_pair=text_pair, known=replace(task.known, names=names, columns=columns)
    )
    table = read_table(examples)
    rows = read(table, labelled=False)
    judged = None if test is None else read(test, label=label, kind=task.kind, label_names=label_names or ())
    with console.shown_progress(quiet) as progress:
        for part in (rows, judged):
            if part is not None:
                named = options.named(text, text_pair, label)
                console.tell_file(progress, part, quiet=quiet, named=named, trained={"the task": columns})
        console.tell_alike(progress, names)
        if (other := _other_labels(read, table, task, name, label)) is not None:
            progress.say(other)
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity, depth=loaded.depth)
        store = FeatureStore()
        start = time.perf_counter()
        added = grow_task(task, name, rows, loaded, store, progress=progress)
        seconds = time.perf_counter() - start
        _tell_lost_cascade(progress, task, added.task)
        metrics = {} if judged is None else _test_added(task, added.task, judged, loaded, store, progress)
        metrics_of_task = {"test": metrics["after"]} if metrics else {}
        save_task(replace(added.task, name=target.resolve().name, metrics=metrics_of_task), target)
    result = {
        "task_dir": str(target),
        "label": name,
        "labels": len(names),
        "examples": len(rows),
        "found": added.recall,
        "kept_texts": {"before": added.before, "after": added.after, "lost": added.lost},
        "test": metrics,
        "seconds": round(seconds, 3),
        "files": console.files_json(examples=rows, test=judged),
    }
    if as_json:
        console.print_json(result)
    else:
        _print_added(added, result)


def remove_label(
    task_dir: options.TaskFolder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the label to remove.")],
    encoder: options.MovedEncoder = None,
    out: Annotated[Path | None, OUTPUT("FOLDER", "Task folder to write.", "TASK_DIR")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove a label from a trained task without training it again.

    The command reports how many of the kept texts of the other labels are labelled correctly before and after.
    """
    from ytuning.data.labels import label_name
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.tasks.remove_label import check_can_shrink, shrink_task
    from ytuning.tasks.task import check_encoder, check_task_folder, load_task, save_task

    task = load_task(task_dir)
    # The name has the form of those in data files.
    name = label_name(name) or ""
    check_can_shrink(task, name)
    target = out or task_dir
    check_task_folder(target)
    with console.shown_progress(quiet) as progress:
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity, depth=loaded.depth)
        start = time.perf_counter()
        removed = shrink_task(task, name, loaded, FeatureStore())
        seconds = time.perf_counter() - start
        _tell_lost_cascade(progress, task, removed.task)
        _tell_lost_scope(progress, task, removed.task, name)
        # The metrics were of all labels.
        save_task(replace(removed.task, name=target.resolve().name, metrics={}), target)
    labels = len(removed.task.target.names)
    if as_json:
        kept = {"before": removed.before, "after": removed.after}
        result = {"task_dir": str(target), "label": name, "labels": labels, "kept_texts": kept}
        console.print_json({**result, "seconds": round(seconds, 3)})
        return
    print(f"Removed the label {name} in {seconds:.1f} s.")
    print(f"Saved in {target}, which now has {quantity(labels, 'label')}.")
    print(
        f"Of the texts of the other labels that the task keeps, {removed.before:.1%} were labelled correctly before, "
        f"and {removed.after:.1%} are now."
    )


def _tell_lost_cascade(progress: Progress, before: Task, after: Task) -> None:
    if before.cascade is not None and after.cascade is None:
        progress.say(
            "The light head beside the default head was made for the old labels and is gone, so --cascade changes "
            "nothing any more. Train the task again with --preset auto for a new one."
        )


def _tell_lost_scope(progress: Progress, before: Task, after: Task, name: str) -> None:
    """Say that a light task has lost its score, as it is fitted again on the validation rows that stay."""
    from ytuning.data.labels import quote

    if before.scope is not None and after.scope is None:
        progress.say(
            f"Without the label {quote(name)} the task has too few validation rows for an out-of-scope score, so it "
            "gives none any more. Train it again with more rows for a new one."
        )


def _other_labels(read: Callable[..., Dataset], table: Table, task: Task, name: str, label: str | None) -> str | None:
    """The sentence that tells which examples of a new label have other labels in the label column of their file."""
    from ytuning.data.dataset import labels_of
    from ytuning.data.labels import list_names

    # The label may have a column of 0 and 1 of its own, beside those of other labels or without them.
    own = task.kind == "multi" and label in (None, name) and name in table.names
    try:
        rows = read(table, label=[name] if own else label, kind=task.kind)
    except InputError:
        # Examples need no labels, and what stands in their place is not read.
        return None
    of_rows = task.target.label_names(labels_of(rows))
    others = [row for row, names in enumerate(of_rows, 1) if name not in names]
    if not others or rows.columns is None:
        return None
    column = rows.columns.spelt["label"]
    first = list_names(list(of_rows[others[0] - 1]))
    return (
        f"{table.source}: column {column!r} gives another label than {name!r} to {len(others)} of the {len(rows)} rows "
        f"(the first is row {others[0]}: {first}). It is not read, and all rows are examples of {name!r}."
    )


def _test_added(
    before: Task, after: Task, judged: Dataset, encoder: Encoder, store: FeatureStore, progress: Progress
) -> dict[str, dict[str, float]]:
    """Metrics on all rows and, of the task as it was and as it is, on the rows that do not have the new label."""
    from ytuning.data.dataset import labels_of
    from ytuning.tasks.evaluate import evaluate_task

    evaluation = evaluate_task(after, judged, encoder, store, progress=progress)
    metrics = {"after": evaluation.report.metrics}
    console.tell_cut(progress, evaluation.truncated)
    new = after.target.names[-1]
    old = [row for row, names in enumerate(after.target.label_names(labels_of(judged))) if new not in names]
    if old:
        for when, task in (("before", before), ("after", after)):
            report = evaluate_task(task, judged.select(old), encoder, store, progress=progress).report
            metrics[f"{when}_on_rows_of_old_labels"] = report.metrics
    return metrics


def _print_added(added: AddedLabel, result: dict[str, Any]) -> None:
    examples = quantity(result["examples"], "example")
    print(f"Added the label {result['label']} from {examples} in {result['seconds']:.1f} s.")
    print(f"Saved in {result['task_dir']}, which now has {result['labels']} labels.")
    print(f"The task gives the new label to {added.recall:.1%} of its examples.")
    print(
        f"Of the texts of the old labels that the task keeps, {added.before:.1%} were labelled correctly before, "
        f"and {added.after:.1%} are now."
    )
    if worst := sorted(added.lost.items(), key=lambda item: -item[1])[:5]:
        print("Labels that lose the most texts: " + ", ".join(f"{name} {share:.1%}" for name, share in worst) + ".")
    for when, metrics in result["test"].items():
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"Test set, {when.replace('_', ' ')}: {figures}.")

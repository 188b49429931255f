"""Commands that use a trained task: ``ytuning predict``, ``ytuning evaluate`` and ``ytuning add-label``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
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
    from ytuning.data.dataset import Dataset
    from ytuning.encoder.encoder import Encoder
    from ytuning.features.store import FeatureStore
    from ytuning.progress import Progress
    from ytuning.tasks.add_label import AddedLabel
    from ytuning.tasks.predictor import Prediction
    from ytuning.tasks.task import Task

__all__ = ["add_label", "evaluate", "predict"]

# The answer is followed by this number of less probable labels.
NEXT = 2
# This character replaces one that the terminal cannot print.
REPLACED = "\ufffd"


def predict(
    tasks_and_texts: Annotated[
        list[str], typer.Argument(metavar="TASK_DIR... [TEXT...]", help="Task folders, and after them texts.")
    ],
    input_file: Annotated[
        Path | None, DATA("FILE", "File of texts to label, instead of TEXT.", "none", "--input")
    ] = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    encoder: options.MovedEncoder = None,
    output: Annotated[Path | None, OUTPUT("FILE", "File to write JSON lines to.", "stdout")] = None,
    as_json: Annotated[bool, OUTPUT(None, "Print JSON lines on a terminal, too.", True, "--json")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Label texts with one or more tasks.

    On a terminal the answers are printed for people. With `--json`, with `--output` or in a pipe, each answer is one
    line of JSON.
    """
    from ytuning.data.dataset import from_lists, read_dataset
    from ytuning.data.labels import list_names, quote
    from ytuning.tasks.predictor import Predictor
    from ytuning.tasks.task import task_files

    folders, texts = _split_folders(tasks_and_texts)
    if output is not None:
        own = [file for folder in folders for file in task_files(folder)]
        console.check_result_file(output, "--output", (input_file, *own))
    if not os.path.isdir(folders[0]):
        raise InputError(
            f"the first argument must be a task folder, and {quote(folders[0])} is not a folder. Give the folder "
            "before the texts, or make one with: ytuning train DATA --out TASK_DIR"
        )
    if (input_file is None) == (not texts):
        raise InputError(
            "give texts to label either as arguments or with --input FILE" + (", not both." if texts else ".")
        )
    if input_file is None:
        data = from_lists(texts)
    else:
        data = read_dataset(input_file, text=text, text_pair=text_pair, labelled=False)
    predictor = Predictor(folders, encoder=encoder)
    for_people = output is None and not as_json and sys.stdout.isatty()
    # Answers on a terminal show the progress themselves, and a bar would be drawn over them.
    with console.shown_progress(quiet or for_people) as progress, console.result_file(output) as write:
        if paths := [word for word in texts if _looks_like_a_path(word)]:
            progress.say(
                f"These arguments are read as texts, not as paths: {list_names(paths)}. Only folders before the first "
                "text are tasks; use --input for a file of texts."
            )
        console.tell_blank(progress, data)
        cut, count = 0, len(predictor.tasks)
        predictions = predictor.predict(data.inputs)
        for number, prediction in enumerate(_print_answers(predictions, count) if for_people else predictions, 1):
            cut += prediction.truncated
            if not for_people:
                write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
            progress.step("predict", number, len(data) * count)
        console.tell_cut(progress, -(-cut // count))


def _split_folders(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Leading arguments that are folders are tasks, the rest are texts; the first is a task whatever it looks like."""
    count = 1
    # Path.is_dir raises an error for a text that cannot be a path; os.path.isdir never does.
    while count < len(arguments) and os.path.isdir(arguments[count]):
        count += 1
    return arguments[:count], arguments[count:]


def _looks_like_a_path(text: str) -> bool:
    """Whether a text may be a misspelt task folder: one beside others. Some texts look like that, too."""
    return ("/" in text or os.sep in text) and not any(map(str.isspace, text)) and os.path.isdir(os.path.dirname(text))


def _print_answers(predictions: Iterator[Prediction], tasks: int) -> Iterator[Prediction]:
    """Print predictions for people while they pass: each text once, and below it a line for each of ``tasks`` tasks."""
    from rich.text import Text

    terminal = Console(highlight=False)
    for number, prediction in enumerate(predictions):
        if number % tasks == 0:
            for start, text in (("", prediction.text), ("+ ", prediction.text_pair)):
                if text is not None:
                    line = Text(start + _on_one_line(text))
                    line.truncate(terminal.width, overflow="ellipsis")
                    terminal.print(line)
        answer, others = map(_on_one_line, _answer(prediction))
        task = "" if tasks == 1 else f"{_on_one_line(prediction.task)}: "
        terminal.print(Text.assemble("  ", task, (answer, "bold"), others), soft_wrap=True)
        yield prediction


def _answer(prediction: Prediction) -> tuple[str, str]:
    """The answer with its probability, and the most probable of the other labels with theirs."""
    answer, scores = prediction.answer, prediction.scores
    if isinstance(answer, float):
        return f"{answer:.4f}", ""
    labels = [answer] if isinstance(answer, str) else answer or []
    text = ", ".join(f"{name} {scores[name]:.4f}" for name in labels) or "no label"
    if answer is None:
        text += " (the confidence is too low)"
    others = sorted((name for name in scores if name not in labels), key=lambda name: -scores[name])[:NEXT]
    return text, "; next: " * bool(others) + ", ".join(f"{name} {scores[name]:.4f}" for name in others)


def _on_one_line(text: str) -> str:
    """A text without line breaks and without characters that would steer a terminal."""
    return "".join(character if character.isprintable() else REPLACED for character in " ".join(text.split()))


def evaluate(
    task_dir: options.TaskFolder,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled rows: CSV, TSV, JSON lines or Parquet.")],
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    label_names: options.LabelNames = None,
    encoder: options.MovedEncoder = None,
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
    from ytuning.tasks.evaluate import evaluate_task
    from ytuning.tasks.task import check_encoder, load_task, task_files

    if report is not None:
        console.check_result_file(report, "--report", (data, *task_files(task_dir)))
    task, store = load_task(task_dir), FeatureStore()
    known = task.target.names
    columns = {"text": text, "text_pair": text_pair, "label": label}
    rows = read_dataset(data, **columns, kind=task.kind, known=known, label_names=label_names or ())
    with console.shown_progress(quiet) as progress:
        console.tell_notes(progress, rows)
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity, depth=loaded.depth)
        evaluation = evaluate_task(task, rows, loaded, store, progress=progress)
        console.tell_cut(progress, evaluation.truncated)
        if report is not None:
            page = render_report(task, evaluation.report, evaluation.judged, loaded, store, progress=progress)
            console.write_page(report, page)
    if as_json:
        figures = {**asdict(evaluation.report), "cache": asdict(evaluation.cache), "truncated": evaluation.truncated}
        console.print_json({"task": task.name, **figures, "report": None if report is None else str(report)})
    else:
        print_report(Console(), evaluation.report, f"{task.name} on {data}")


def add_label(
    task_dir: options.TaskFolder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new label.")],
    examples: Annotated[Path, DATA("FILE", "Texts of the new label. A label column is ignored.")],
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
    read = partial(read_dataset, text=text, text_pair=text_pair)
    rows = read(examples, labelled=False)
    labels = {"label": label, "kind": task.kind, "known": names, "label_names": label_names or ()}
    judged = None if test is None else read(test, **labels)
    with console.shown_progress(quiet) as progress:
        for part in (rows, judged):
            if part is not None and not quiet:
                console.tell_columns(progress, part)
        console.tell_notes(progress, judged)
        console.tell_alike(progress, names)
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity, depth=loaded.depth)
        store = FeatureStore()
        start = time.perf_counter()
        added = grow_task(task, name, rows, loaded, store, progress=progress)
        seconds = time.perf_counter() - start
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
    }
    if as_json:
        console.print_json(result)
    else:
        _print_added(added, result)


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

"""``ytuning train --tasks``: a task for each of several columns of one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ytuning.cli import console, results
from ytuning.errors import InputError, quantity
from ytuning.progress import CollectedMessages, Progress, say_of_tasks

if TYPE_CHECKING:
    from ytuning.data.dataset import Dataset
    from ytuning.encoder.encoder import Encoder
    from ytuning.engines.engine import Engine
    from ytuning.tasks.train import Trained, TrainOptions
    from ytuning.training.recipes import Recipe

__all__ = ["Output", "Request", "check_options_of_tasks", "train_columns"]

Parts = dict[str, dict[str, "Dataset"] | None]
"""The rows of each task, of the training, the validation and the test file; None of a file that was not given."""


@dataclass(frozen=True)
class Request:
    """What is read, as the options name it.

    Attributes:
        tasks: columns of labels.
        files: training, validation and test file.
        text, text_pair, group: columns of texts and groups; None of those that are not named.
        loss: loss in place of that of the recipe; None if none was named.
        unlabelled: file of texts without labels; None if there is none.
    """

    tasks: str
    files: tuple[Path, Path | None, Path | None]
    text: str | None
    text_pair: str | None
    group: str | None
    loss: str | None
    unlabelled: Path | None = None


@dataclass(frozen=True)
class Output:
    """How results are shown: as JSON or as tables, and whether progress is hidden."""

    as_json: bool
    quiet: bool


def check_options_of_tasks(given: Mapping[str, object], label_texts: str | None) -> None:
    """Refuse options that are about one task.

    Args:
        given: values of such options, by their names; None of those that are not given.
        label_texts: value of ``--label-texts``.

    Raises:
        InputError: one is given beside ``--tasks``.
    """
    remedies = {
        "--kind": "Write the kind after the column, as in --tasks urgency:ordinal.",
        "--label": "Name the column in --tasks.",
        "--label-names": "Train the task of such a column on its own.",
        "--label-order": "Write the order after the column, as in --tasks 'urgency:ordinal=low|high'.",
        "--report": "Make it afterwards with: ytuning evaluate TASK_DIR DATA --report FILE",
    }
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} is for one task and cannot be used with --tasks. {remedies[option]}")
    if label_texts not in (None, "names", "none"):
        problem = f"a file of label texts is for one task. Got {label_texts!r} with --tasks."
        raise InputError(f"{problem} Give --label-texts names or none, or train the task on its own.")


def train_columns(
    request: Request,
    recipes: Mapping[str, Recipe],
    chosen: TrainOptions,
    load: Callable[[], Encoder],
    out: Path,
    *,
    engine: Engine | None,
    output: Output,
) -> None:
    """Train a task for each column and save them in ``out``.

    Args:
        request: what is read.
        recipes: forms of the heads and their training, the cheapest first.
        chosen: everything else that can be chosen.
        load: loads the encoder.
        out: folder of the task folders.
        engine: workers that train groups of tasks; None: all are trained together here.
        output: how results are shown.
    """
    from ytuning.batch.train_tasks import fit_on_engine
    from ytuning.features.store import FeatureStore
    from ytuning.tasks.choose_recipe import train_tasks_cheapest
    from ytuning.tasks.train import Stopwatch
    from ytuning.tasks.train_many import check_shared_options

    check_shared_options(chosen)
    start, watch, features = time.perf_counter(), Stopwatch(), FeatureStore()
    # Ray prints what happens to machines on stdout, which is for the result.
    with redirect_stdout(sys.stderr), console.shown_progress(output.quiet) as progress:
        with watch.stage("read"):
            parts, folders, orders = _read_parts(progress, request, out, quiet=output.quiet)
            train, validation, test = parts.values()
            assert train is not None
            some = next(iter(train.values()))
            others = console.read_unlabelled(
                progress, request.unlabelled, some, request.text, request.text_pair, quiet=output.quiet
            )
        with watch.stage("encode"):
            encoder = load()
        with fit_on_engine(engine) as fit:
            trained = train_tasks_cheapest(
                train,
                encoder,
                features,
                recipes,
                validation=validation,
                test=test,
                options=chosen,
                label_orders=orders,
                unlabelled=others,
                fit=fit,
                progress=progress,
            )
        watch.add(next(iter(trained.values())).seconds)
        folders = _save(trained, folders)
        _tell(progress, trained, parts, quiet=output.quiet)
    watch.seconds["total"] = time.perf_counter() - start
    if output.as_json:
        figures = {}
        for name, one in trained.items():
            own = {use: None if rows is None else rows[name] for use, rows in parts.items()}
            shown = {"files": console.files_json(**own, unlabelled=others), "report": None}
            figures[name] = {**results.train_json(one, folders[name], watch), **shown}
        console.print_json(figures)
    else:
        _print(trained, train, out, watch.seconds)
    if len(trained) < len(train) or any(one.fit.interrupted for one in trained.values()):
        raise typer.Exit(1)


def _read_parts(
    progress: Progress, request: Request, out: Path, *, quiet: bool
) -> tuple[Parts, dict[str, Path], dict[str, tuple[str, ...]]]:
    """The rows of each part and task, the folders of the tasks, and the orders of their labels."""
    from ytuning.data.files import read_table
    from ytuning.data.kinds import KINDS
    from ytuning.data.splits import check_groups
    from ytuning.data.task_columns import kinds_of, parse_task_columns, read_tasks
    from ytuning.tasks.train_many import task_folders

    check_groups(grouped=request.group is not None, validation=request.files[1] is not None)
    table = read_table(request.files[0])
    named = parse_task_columns(request.tasks, table.names)
    kinds = kinds_of(named)
    folders = task_folders(out, kinds)
    read = partial(read_tasks, tasks=kinds, text=request.text, text_pair=request.text_pair)
    train = read(table, group=request.group)
    parts: Parts = {"train": train}
    for use, file in zip(("validation", "test"), request.files[1:], strict=True):
        parts[use] = None if file is None else read(file, train=train)
    if request.loss is not None:
        for one in train.values():
            KINDS[one.kind].check_option("loss")
    for rows in parts.values():
        if rows is not None:
            console.tell_tasks(progress, rows, quiet=quiet)
    return parts, folders, {column.name: column.order for column in named if column.order is not None}


def _save(trained: Mapping[str, Trained], folders: Mapping[str, Path]) -> dict[str, Path]:
    """Save the tasks; an interrupted one does not replace a finished one. Returns where they are."""
    from ytuning.tasks.task import save_task

    places = {}
    for name, one in trained.items():
        place = folders[name]
        if one.fit.interrupted:
            place, _ = results.place_beside_finished(place, None)
        save_task(replace(one.task, name=name), place)
        places[name] = place
    return places


def _tell(progress: Progress, trained: Mapping[str, Trained], parts: Parts, *, quiet: bool) -> None:
    """Tell what the trainings say of their rows, and of Ctrl-C."""
    messages = {}
    for name, one in trained.items():
        said = CollectedMessages()
        train, validation = parts["train"], parts["validation"]
        assert train is not None
        held = None if validation is None else validation[name]
        console.tell_held_out(said, train[name], one.rows, held, quiet=quiet)
        results.tell_training(said, one)
        messages[name] = said.messages
    say_of_tasks(progress, messages)
    missing = [name for name in parts["train"] or () if name not in trained]
    early = [name for name, one in trained.items() if one.fit.interrupted]
    # This is not progress, so --quiet does not hide it.
    if early:
        print(f"Interrupted. The best heads so far of {quantity(len(early), 'task')} are saved.", file=sys.stderr)
    if missing:
        left = f"{quantity(len(missing), 'task')} {'was' if len(missing) == 1 else 'were'} not finished"
        print(f"Interrupted. {quantity(len(trained), 'task')} saved; {left}.", file=sys.stderr)


def _print(trained: Mapping[str, Trained], train: Mapping[str, Dataset], out: Path, seconds: dict[str, float]) -> None:
    from ytuning.reports.console import print_tasks

    first: Any = next(iter(trained.values()))
    split = console.split_of_report(first.reports)
    print_tasks(Console(), trained, train, split, seconds)
    parameters = sum(one.task.head_parameters for one in trained.values())
    share = parameters / first.task.encoder.parameters
    heads = f"{quantity(len(trained), 'head')} with {parameters:,} parameters, {share:.1%} of the encoder's"
    print(f"Saved in {out}: {heads}.")
    if split == "validation":
        print(
            "Without --test, these scores are from the validation set, which also chose the heads; they are optimistic."
        )

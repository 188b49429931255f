"""Many tasks over the same texts: encoded once, trained together, each reported on like a task alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ytuning.data.common_holdout import common_holdout
from ytuning.data.dataset import Dataset, TextInput
from ytuning.data.labels import list_names, quote
from ytuning.data.splits import TaskRows, check_trainable
from ytuning.encoder.encoder import Encoder
from ytuning.errors import DataError, InputError, argument, quantity
from ytuning.features.store import FeatureStore
from ytuning.progress import CollectedMessages, NamedProgress, Progress, say_of_tasks
from ytuning.tasks.choices import pair_modes
from ytuning.tasks.task import check_task_folder
from ytuning.tasks.train import (
    Stopwatch,
    TrainContext,
    Trained,
    TrainOptions,
    check_options,
    finish_task,
    fit_pair_modes,
    split_rows,
)
from ytuning.training.recipes import AUTO_LAYERS, Recipe

__all__ = ["FitTasks", "PreparedTask", "check_shared_options", "fit_tasks", "task_folders", "train_tasks"]

PreparedTask = tuple[TrainContext, TaskRows]
"""A task that is checked, and its rows; the tasks of a training have the same inputs."""

FitTasks = Callable[[Sequence[PreparedTask], Progress], dict[str, Trained]]
"""Trains tasks, and gives the result of each by its name; tasks that Ctrl-C leaves out are missing."""


def train_tasks(
    train: Mapping[str, Dataset],
    encoder: Encoder,
    store: FeatureStore,
    recipe: Recipe,
    *,
    validation: Mapping[str, Dataset] | None = None,
    test: Mapping[str, Dataset] | None = None,
    options: TrainOptions | None = None,
    label_orders: Mapping[str, Sequence[str]] | None = None,
    fit: FitTasks | None = None,
    progress: Progress | None = None,
) -> dict[str, Trained]:
    """Train several tasks; each text is encoded once, and all heads learn in one training.

    Each task has its own rows (`task_columns.read_tasks`) and as many steps as it would have alone. Without
    ``validation``, several tasks hold out the same texts (`common_holdout.common_holdout`), so that tasks with the same
    rows share what is computed from these. A task gets the very head that `train_task` would give it with these
    validation rows. With more than 32,768 rows, what is fitted in closed form may also learn from rows that are kept
    for rare labels of other tasks.

    Args:
        train: labelled rows of each task, by its name.
        encoder: reads the texts.
        store: where features are kept.
        recipe: form of the heads and their training.
        validation: rows that choose, of each task.
        test: rows that each task is reported on.
        options: everything else that can be chosen, for all tasks; ``name`` is not used. ``label_order``, a mapping of
            ``label_texts``, ``abstain_at`` and ``layers="auto"`` are for one task.
        label_orders: labels of ordinal tasks from the lowest, by the name of the task.
        fit: trains the tasks once they are checked; None: :func:`fit_tasks`, which does so in this process.
        progress: is told every step; Ctrl-C ends the training and gives the best heads so far. Once they are trained,
            it leaves out tasks that are not evaluated yet.

    Returns:
        The result of each task, by its name; ``seconds`` and ``cache`` are those of all tasks together.

    Raises:
        InputError: an option is not allowed, or tasks cannot be trained; the message names them.
        EncoderError: the encoder does not have the hidden states that the recipe reads.
        StoreError: the feature store cannot be used.
    """
    options, progress = options or TrainOptions(), progress or Progress()
    orders, watch = label_orders or {}, Stopwatch()
    _check_names(train, validation, test, orders)
    check_shared_options(options)
    states = encoder.resolve_states(recipe.layers)
    contexts = [
        TrainContext(
            rows,
            None if validation is None else validation[name],
            None if test is None else test[name],
            encoder,
            states,
            store,
            recipe,
            replace(options, name=name, label_order=orders.get(name)),
            NamedProgress(name, progress),
            watch,
        )
        for name, rows in train.items()
    ]
    check_options(contexts[0])
    contexts = _share_holdout(contexts)
    tasks = list(zip(contexts, _share_inputs(contexts, _split_all(contexts, progress)), strict=True))
    return (fit or fit_tasks)(tasks, progress)


def fit_tasks(tasks: Sequence[PreparedTask], progress: Progress) -> dict[str, Trained]:
    """Train tasks in this process, all heads together."""
    context = tasks[0][0]
    modes = pair_modes(context.options.pairs, has_pairs=context.train.has_pairs)
    runs, complete = fit_pair_modes(tasks, modes)
    finished: dict[str, Trained] = {}
    for number, ((context, rows), own) in enumerate(zip(tasks, runs, strict=True), 1):
        try:
            finished[context.options.name] = finish_task(context, rows, own, complete=complete)
            progress.step("evaluate", number, len(tasks))
        except KeyboardInterrupt:
            if not finished:
                raise
            break
    return finished


def task_folders(folder: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """A folder for each task in ``folder``, named like the task; called before any work is done.

    Raises:
        InputError: a name cannot be that of a folder, two folders would be one, or a folder holds something else.
    """
    folders: dict[str, Path] = {}
    spelt: dict[str, str] = {}
    for name in names:
        # The last character of a Windows folder is no dot or blank.
        if not name or name.strip(" .") != name or any(mark in name for mark in '/\\:*?"<>|'):
            raise InputError(
                f"{quote(name)} cannot be the name of a task's folder: it is empty, begins or ends with a dot or a "
                'blank, or has one of / \\ : * ? " < > | in it. Rename the column.'
            )
        if (other := spelt.setdefault(name.casefold(), name)) != name:
            problem = f"the folders of the tasks {quote(other)} and {quote(name)} would be one on some systems."
            raise InputError(f"{problem} Rename one of the columns.")
        folders[name] = Path(folder) / name
    if os.path.exists(Path(folder) / "task.json"):
        problem = f"the folder {folder} holds a task, and other tasks should not be written into it."
        raise InputError(f"{problem} Choose another with {argument('folder', option='--out')}")
    for place in folders.values():
        check_task_folder(place)
    return folders


def _check_names(
    train: Mapping[str, Dataset],
    validation: Mapping[str, Dataset] | None,
    test: Mapping[str, Dataset] | None,
    orders: Mapping[str, Sequence[str]],
) -> None:
    """Refuse parts that are of other tasks than the training rows, and rows of several forms."""
    if not train:
        raise InputError("train must have the rows of at least one task. Got none.")
    for role, part in (("validation", validation), ("test", test)):
        if part is not None and set(part) != set(train):
            problem = (
                f"{role} has rows of the tasks {list_names(sorted(part))}, and train of {list_names(sorted(train))}."
            )
            raise InputError(f"{problem} Give rows of the same tasks.")
    if unknown := sorted(set(orders) - set(train)):
        problem = f"label_orders names the task {quote(unknown[0])}, which has no rows."
        raise InputError(f"{problem} The tasks are {list_names(sorted(train))}.")
    if len({rows.has_pairs for rows in train.values()}) > 1:
        names = [name for name, rows in train.items() if rows.has_pairs]
        problem = f"the rows of these tasks are pairs of texts, and those of others single texts: {list_names(names)}."
        raise InputError(f"{problem} Train the two kinds on their own.")


def check_shared_options(options: TrainOptions) -> None:
    """Refuse options that are about the labels of one task, or would choose for one."""
    if options.label_order is not None:
        raise InputError(
            f"{argument('label_order')} is for one task. Several tasks have an order each in label_orders."
        )
    if options.label_texts is not None and not isinstance(options.label_texts, str):
        problem = "texts for labels are for one task, because the labels of several tasks differ."
        raise InputError(f"{problem} Give {argument('label_texts', 'names')}, or train the task on its own.")
    if options.abstain_at is not None:
        problem = f"{argument('abstain_at')} is for one task: a precision that one of several tasks cannot reach would "
        raise InputError(f"{problem}end the training of all. Leave it out, or train the task on its own.")
    if options.layers == AUTO_LAYERS:
        problem = f"{argument('layers', AUTO_LAYERS)} chooses hidden states for one task, and these tasks share theirs."
        raise InputError(f"{problem} Train one task with it, and the others with the hidden states that it chooses.")


def _share_holdout(contexts: Sequence[TrainContext]) -> list[TrainContext]:
    """The same with the validation rows that the tasks share, where none are given."""
    if contexts[0].validation is not None:
        return list(contexts)
    trainable = {}
    for context in contexts:
        # What cannot be trained is told with the rows of all tasks.
        with suppress(DataError):
            check_trainable(context.train)
            trainable[context.options.name] = context.train
    with suppress(DataError):
        held = common_holdout(trainable, contexts[0].options.seed)
        return [replace(context, held=held.get(context.options.name)) for context in contexts]
    return list(contexts)


def _split_all(contexts: Sequence[TrainContext], progress: Progress) -> list[TaskRows]:
    """The rows of each task, checked.

    Raises:
        InputError: tasks cannot be trained; the message says of each of them why.
    """
    rows, messages, problems = [], {}, {}
    for context in contexts:
        name, said = context.options.name, CollectedMessages()
        try:
            rows.append(split_rows(replace(context, progress=said)))
        except InputError as error:
            problems[name] = str(error).rstrip(".")
        messages[name] = said.messages
    if problems:
        listed = " ".join(f"{quote(name)}: {problem}." for name, problem in problems.items())
        raise InputError(f"{len(problems)} of {quantity(len(contexts), 'task')} cannot be trained. {listed}")
    say_of_tasks(progress, messages)
    return rows


def _share_inputs(contexts: Sequence[TrainContext], rows: Sequence[TaskRows]) -> list[TaskRows]:
    """The same rows with positions among the inputs of all tasks.

    A row of a table is one input, whichever tasks have it, and inputs have the order of the table. So the rows of each
    task keep their order, and with it the batches that the task would have alone.
    """
    keys: dict[tuple[int, int, TextInput], int] = {}
    places: list[list[int]] = []
    before: list[tuple[int, int]] = []
    for task, (context, own) in enumerate(zip(contexts, rows, strict=True)):
        numbers = [*_numbers(context), *((3, number) for number in range(len(own.label_texts)))]
        # Most columns of a table have the same rows.
        if numbers == before and own.inputs == rows[task - 1].inputs:
            places.append(places[-1])
            continue
        before, content = numbers, zip(numbers, own.inputs, strict=True)
        places.append([keys.setdefault((*number, given), len(keys)) for number, given in content])
    # Sorting is stable, so that inputs of one number keep their order.
    ordered = sorted(keys, key=lambda key: key[:2])
    rank = np.empty(len(keys), np.int64)
    rank[[keys[key] for key in ordered]] = np.arange(len(keys))
    inputs = [given for *_, given in ordered]
    return [_moved(own, rank[place], inputs) for own, place in zip(rows, places, strict=True)]


def _numbers(context: TrainContext) -> Iterator[tuple[int, int]]:
    """The number of each row's part and its number in the source, in the order of the inputs of a task."""
    for part, data in enumerate((context.train, context.validation, context.test)):
        if data is not None:
            yield from ((part, number) for number in (data.rows or range(1, len(data) + 1)))


def _moved(rows: TaskRows, places: np.ndarray, inputs: list[TextInput]) -> TaskRows:
    """The rows at ``places`` (rows,) among all inputs; other inputs have targets that nobody reads."""
    truth = np.zeros((len(inputs), *rows.truth.shape[1:]), rows.truth.dtype)
    truth[places] = rows.truth
    parts = {name: places[getattr(rows, name)] for name in ("train", "validation", "test", "label_texts")}
    return replace(rows, inputs=inputs, truth=truth, **parts)

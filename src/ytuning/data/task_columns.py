"""Many tasks in one table: a column of labels for each, whose empty cells say nothing about their task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, cast, get_args

from ytuning.data.dataset import Dataset, read_dataset
from ytuning.data.files import read_table
from ytuning.data.kinds import KINDS
from ytuning.data.labels import Kind, did_you_mean, list_names, quote
from ytuning.data.tables import Table
from ytuning.errors import DataError, InputError, argument, must_be_one_of

__all__ = ["KindChoice", "TaskColumn", "kinds_of", "parse_task_columns", "read_tasks"]

KindChoice = Literal["auto", Kind]


@dataclass(frozen=True)
class TaskColumn:
    """A column of labels that a task is trained on.

    Attributes:
        name: name of the column, and of the task.
        kind: kind of the task; ``"auto"`` infers it from the column.
        order: an ordinal task's labels, from the lowest; None takes the order of their numbers.
    """

    name: str
    kind: KindChoice = "auto"
    order: tuple[str, ...] | None = None


def parse_task_columns(text: str, names: Sequence[str]) -> list[TaskColumn]:
    """The columns that ``--tasks`` names: ``intent,urgency:ordinal=low|high,topics:multi``.

    Args:
        text: columns with commas between them. A kind may follow a colon, and the order of the labels an equals sign.
        names: columns of the table; a name with a colon in it is found as such.

    Raises:
        InputError: a part has no name, or an unknown kind, or an order of labels that have none.
    """
    return [_parse_column(part.strip(), names) for part in text.split(",")]


def kinds_of(columns: Sequence[TaskColumn]) -> dict[str, KindChoice]:
    """The kind of each task, by its column.

    Raises:
        InputError: a column is named twice.
    """
    _check_twice([column.name for column in columns])
    return {column.name: column.kind for column in columns}


def _check_twice(names: Sequence[str]) -> None:
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise InputError(f"{argument('tasks')} names the column {quote(twice)} more than once. Name it once.")


def _parse_column(part: str, names: Sequence[str]) -> TaskColumn:
    if part in names:
        return TaskColumn(part)
    column, colon, form = part.partition(":")
    while colon and column not in names and (longer := form.partition(":"))[1]:
        # The name itself may have a colon.
        column, form = f"{column}:{longer[0]}", longer[2]
    kind, equals, order = form.partition("=")
    column, kind = column.strip(), kind.strip()
    example = f"Write {argument('tasks', 'intent,urgency:ordinal=low|high')}"
    if not column:
        raise InputError(f"{argument('tasks')} has a part without a column. Got {quote(part)}. {example}.")
    kinds = ("auto", *KINDS)
    if colon and kind not in kinds:
        raise InputError(f"{must_be_one_of(f'the kind of the column {quote(column)}', kind, kinds)} {example}.")
    if equals and kind != "ordinal":
        problem = f"an order of labels is for the kind 'ordinal'. Got {quote(part)} instead. "
        raise InputError(f"{problem}Write {column}:ordinal={order}, or leave the order out.")
    chosen = cast("KindChoice", kind) if colon else "auto"
    return TaskColumn(column, chosen, tuple(label.strip() for label in order.split("|")) if equals else None)


def read_tasks(
    source: object,
    tasks: Mapping[str, KindChoice] | Sequence[str],
    *,
    text: str | None = None,
    text_pair: str | None = None,
    group: str | None = None,
    train: Mapping[str, Dataset] | None = None,
) -> dict[str, Dataset]:
    """Read the rows of several tasks from one table, which is read once.

    A missing or blank cell says nothing about the task of its column: the row is left out of this task, and counted in
    its ``left_out``. An empty list is a row without labels.

    Args:
        source: what :func:`ytuning.data.dataset.read_dataset` takes.
        tasks: columns of labels, a task for each; or their kinds, by column.
        text: column of the text, as `read_dataset` takes it.
        text_pair: column of the second text.
        group: column whose equal values keep rows together when validation rows are held out.
        train: training rows of the same tasks, whose kinds and columns these rows are read by.

    Returns:
        The rows of each task, by the name of its column.

    Raises:
        DataError: the source cannot be read, a column is not there, or a cell is wrong.
        InputError: there is no task, a column is named twice, or a kind is unknown.
        MissingExtraError: the file is a Parquet file and pyarrow is not installed.
    """
    table = source if isinstance(source, Table) else read_table(source)
    kinds: Mapping[str, KindChoice] = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, "auto")
    if isinstance(tasks, str) or not kinds:
        raise InputError(f"{argument('tasks')} must name at least one column. Got {tasks!r} instead.")
    _check_twice(list(tasks))
    for kind in kinds.values():
        if kind not in (known := ("auto", *get_args(Kind))):
            raise InputError(must_be_one_of("the kind of a task", kind, known))
    if missing := [name for name in kinds if name not in table.names]:
        which = "the column {}, which is" if len(missing) == 1 else "the columns {}, which are"
        hint = did_you_mean(missing[0], table.names)
        problem = f"{argument('tasks')} names {which.format(list_names(missing))} not there.{hint} "
        raise DataError(f"{problem}The columns are {list_names(table.names)}.", source=table.source)
    # A table may make a column anew each time that it is asked for.
    table = replace(table, cells=cache(table.cells))
    rows: dict[str, Dataset] = {}
    for name, kind in kinds.items():
        like = None if train is None else train[name]
        rows[name] = read_dataset(
            table,
            text=text,
            text_pair=text_pair,
            label=name,
            kind=kind if like is None else like.kind,
            known=() if like is None else like.known,
            group=group,
            skip_empty=True,
        )
    return rows

"""Columns of the parts: those of the input that are kept, and each task's answers, as Arrow arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ytuning.data.labels import quote
from ytuning.data.tables import Column, is_unicode
from ytuning.errors import DataError, InputError, argument
from ytuning.system.machine import require

# The run that plans units imports this module too, and should not wait for torch.
if TYPE_CHECKING:
    from ytuning.data.kinds import Answers
    from ytuning.tasks.shared_encoder import TaskAnswers
    from ytuning.tasks.task import Task

__all__ = ["KEPT_TYPES", "answer_arrays", "answer_fields", "kept_array", "kept_type"]


def answer_fields(task: Task, scores: str) -> list[Any]:
    """Names and types of a task's columns (``pyarrow.Field``).

    Args:
        task: the task.
        scores: "top": the probability of the answer, or of each answer; "all": that of each label as a struct; "none".
    """
    arrow = require("pyarrow", "parquet")
    key, fields = task.target.answer_key, list[tuple[str, Any]]()
    fields.append(
        (key, {"label": arrow.string(), "labels": arrow.list_(arrow.string()), "value": arrow.float64()}[key])
    )
    if task.target.names and scores == "top":
        fields.append(("score", arrow.float32()) if key == "label" else ("scores", arrow.list_(arrow.float32())))
    if task.target.names and scores == "all":
        fields.append(("scores", arrow.struct([(name, arrow.float32()) for name in task.target.names])))
    if key == "label":
        fields.append(("abstained", arrow.bool_()))
    fields.append(("truncated", arrow.bool_()))
    first = task.light_task or task
    if first.scope is not None:
        if first.scope.threshold is not None:
            fields.append(("out_of_scope", arrow.bool_()))
        fields.append(("out_of_scope_score", arrow.float32()))
    if task.light_task is not None:
        fields.append(("head", arrow.string()))
    return [arrow.field(f"{task.name}.{name}", kind) for name, kind in fields]


def answer_arrays(given: TaskAnswers, truncated: np.ndarray, scores: str) -> dict[str, Any]:
    """The columns that :func:`answer_fields` names, of N texts, by name.

    Args:
        given: answers of a task.
        truncated: (N,) bool, whether each text was cut.
        scores: as of :func:`answer_fields`.
    """
    arrow = require("pyarrow", "parquet")
    task, answers = given.task, given.answers
    columns = ANSWERS[task.target.answer_key](arrow, task.target.names, answers, scores)
    if task.target.names and scores == "all":
        of_label = [
            arrow.array(answers.probabilities[:, label].astype(np.float32)) for label in range(len(task.target.names))
        ]
        columns["scores"] = arrow.StructArray.from_arrays(of_label, list(task.target.names))
    columns["truncated"] = arrow.array(truncated)
    if given.out_of_scope is not None:
        columns["out_of_scope"] = arrow.array(given.out_of_scope)
    if given.out_of_scope_scores is not None:
        columns["out_of_scope_score"] = arrow.array(given.out_of_scope_scores.astype(np.float32))
    if given.by_light is not None:
        columns["head"] = arrow.array(np.where(given.by_light, "light", "default").tolist(), arrow.string())
    return {f"{task.name}.{name}": column for name, column in columns.items()}


def _one_label(arrow: Any, names: Sequence[str], answers: Answers, scores: str) -> dict[str, Any]:
    """A label or none, and its probability; of an abstention the highest one."""
    ids = arrow.array(answers.values, mask=answers.values < 0)
    columns = {"label": arrow.array(names, arrow.string()).take(ids), "abstained": arrow.array(answers.values < 0)}
    if scores == "top":
        rows, chosen = np.arange(len(answers.values)), answers.values
        best = np.where(chosen < 0, answers.probabilities.argmax(1), chosen)
        columns["score"] = arrow.array(answers.probabilities[rows, best].astype(np.float32))
    return columns


def _several_labels(arrow: Any, names: Sequence[str], answers: Answers, scores: str) -> dict[str, Any]:
    """The labels of each row, the most probable first, and their probabilities."""
    rows, labels = np.nonzero(answers.values)
    probabilities = answers.probabilities[rows, labels]
    # Equal probabilities are in the order of the labels.
    order = np.lexsort((labels, -probabilities, rows))
    ends = arrow.array(np.concatenate(([0], answers.values.sum(1).cumsum())).astype(np.int32))
    given = arrow.array(names, arrow.string()).take(arrow.array(labels[order]))
    columns = {"labels": arrow.ListArray.from_arrays(ends, given)}
    if scores == "top":
        columns["scores"] = arrow.ListArray.from_arrays(ends, arrow.array(probabilities[order].astype(np.float32)))
    return columns


def _number(arrow: Any, names: Sequence[str], answers: Answers, scores: str) -> dict[str, Any]:
    return {"value": arrow.array(answers.values.astype(np.float64))}


ANSWERS: dict[str, Callable[[Any, Sequence[str], Answers, str], dict[str, Any]]]
ANSWERS = {"label": _one_label, "labels": _several_labels, "value": _number}


# --- kept columns ---------------------------------------------------------------------------------------------------

TEXT, JSON, WHOLE, NUMBER, FLAG = KEPT_TYPES = "string", "json", "int64", "float64", "bool"


def kept_type(cells: Sequence[object]) -> str:
    """The type of a column of JSON lines by its first cells: that of all that are there; ``"json"`` of a mixture."""
    types = {type(cell) for cell in cells if cell is not None}
    for kinds, name in (({str}, TEXT), ({bool}, FLAG), ({int}, WHOLE), ({int, float}, NUMBER)):
        if types and types <= kinds:
            return name
    return JSON


def kept_array(column: Column, kind: str, *, skip_broken: bool = False) -> Any:
    """A column of a text file in the type that the plan gives it; ``"json"`` is the JSON of each cell as text.

    Args:
        column: the column.
        kind: one of the types of :func:`kept_type`.
        skip_broken: whether a text that cannot be written as UTF-8 becomes empty.

    Raises:
        DataError: a cell is of another type, or cannot be written.
    """
    arrow = require("pyarrow", "parquet")
    cells: list[object] = []
    for row, cell in enumerate(column.cells, 1):
        is_broken = isinstance(cell, str) and not is_unicode(cell)
        if is_broken and not skip_broken:
            problem = "contains an invalid Unicode character (an unpaired surrogate). Replace it."
            raise column.error(row, f"the cell {quote(cell)} {problem}")
        cells.append(None if is_broken else cell)
    if kind == JSON:
        texts = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
        # The type is given, as a window may have no cell.
        return arrow.array(texts, arrow.string())
    wanted: tuple[type, ...] = {TEXT: (str,), FLAG: (bool,), WHOLE: (int,), NUMBER: (int, float)}[kind]
    for row, cell in enumerate(cells, 1):
        if cell is not None and (not isinstance(cell, wanted) or (isinstance(cell, bool) and kind != FLAG)):
            problem = f"the cell {quote(cell)} is not {kind}, which the first rows of the input have in this column. "
            raise column.error(row, f"{problem}Give it one type, or name the columns to write with {argument('keep')}.")
    try:
        return arrow.array(cells, getattr(arrow, {TEXT: "string", FLAG: "bool_"}.get(kind, kind))())
    except (OverflowError, ValueError, arrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        problem = f"the cells cannot be kept as {kind}: {' '.join(str(error).split())}. "
        raise DataError(
            f"{problem}Name the columns to write with {argument('keep')}, without this one.",
            source=column.source,
            column=column.name,
        ) from error

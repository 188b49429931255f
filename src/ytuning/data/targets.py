"""``y`` as users of scikit-learn hold it -> labels of rows; and answers in the form that ``y`` had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ytuning.data.kinds import KINDS, Labels
from ytuning.data.labels import Kind, describe_alike, describe_misspelt, describe_read_as, label_name, quote
from ytuning.data.sequences import as_cells, frame_columns, is_a
from ytuning.data.tables import LISTS, Column
from ytuning.errors import DataError, InputError

__all__ = [
    "OutputColumn", "Targets", "label_array", "label_matrix", "label_sets", "read_outputs", "read_targets",
]  # fmt: skip

FLAGS = "y of two dimensions must hold 0 and 1, a column for each label. "


@dataclass(frozen=True)
class Targets:
    """The labels of rows, and what their estimator's answers look like.

    Attributes:
        kind: kind of task that they are for.
        classes: (C,) labels in the type that they were given in, sorted; of a matrix of 0 and 1 the names of its
            columns, or else their places.
        names: (C,) their names in the task.
        labels: labels of each row, for a `Dataset`.
        order: names from the lowest to the highest, of an ordered categorical.
        container: what holds the labels of a row; None where a row has one label, or is a row of 0 and 1.
    """

    kind: Kind
    classes: np.ndarray
    names: list[str]
    labels: Labels
    order: list[str] | None = None
    container: type | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of labels: read from another form, looking alike, or perhaps misspelt."""
        texts = [label for label in self.classes.tolist() if isinstance(label, str)]
        read_as = {text: name for text, name in zip(texts, self.names, strict=False) if text.strip() != name}
        rows = Counter(name for names in KINDS[self.kind].label_names(self.labels) for name in names)
        more = (describe_alike(self.names), describe_misspelt(rows))
        return (describe_read_as(read_as),) * bool(read_as) + tuple(note for note in more if note is not None)


def read_targets(y: Any) -> Targets:
    """Read what ``fit`` was given.

    One label a row: a list, array, series or column of labels of one type, also as an array (rows, 1) or as a frame of
    one column. Labels with an order: an ordered categorical of pandas. Several labels a row: an array, a sparse matrix
    or a frame (rows, C) of 0 and 1; or a list, tuple, set or array of its labels in each row. Rows that are lists of
    one length, and hold nothing but 0 and 1, are a matrix.

    Raises:
        InputError: ``y`` has another form, or two labels have one name.
        DataError: a label is missing, is no label or is no 0 or 1; the message names the row.
    """
    if matrix := _matrix(y):
        return _from_matrix(*matrix)
    cells = as_cells(y, "y")
    if not any(isinstance(cell, LISTS) for cell in cells):
        return _from_single(y, cells)
    if _are_rows_of_flags(cells):
        return _from_matrix(None, np.array(cells))
    sets = label_sets(cells)
    classes = np.unique(_one_type([label for labels in sets for label in labels]))
    places = {label: place for place, label in enumerate(classes.tolist())}
    names = _names_of(classes)
    rows = [tuple(names[place] for place in sorted({places[label] for label in labels})) for labels in sets]
    first = type(cells[0])
    return Targets("multi", classes, names, rows, container=tuple if first is np.ndarray else first)


@dataclass(frozen=True)
class OutputColumn:
    """A column of a ``y`` with several outputs.

    Attributes:
        name: name of the column, or its place.
        rows: (N,) int64, the rows whose cell holds a label; None and NaN say nothing.
        values: (N,) the labels of these rows, as :func:`read_targets` takes them.
    """

    name: str
    rows: np.ndarray
    values: Any


def read_outputs(y: Any) -> list[OutputColumn]:
    """The columns of labels (rows, outputs): an array, a frame, or a list of rows.

    Raises:
        InputError: ``y`` has another form, a name is there twice, or a column holds no label.
    """
    columns: list[tuple[str, Any, list[object]]]
    if is_a(y, "pandas", "DataFrame"):
        # A column of pandas knows the order of its categories.
        columns = [(str(name), y.iloc[:, place], y.iloc[:, place].tolist()) for place, name in enumerate(y.columns)]
    elif (frame := frame_columns(y)) is not None:
        columns = [(name, None, cells) for name, cells in frame]
    elif getattr(y, "ndim", None) == 2 and isinstance(y, np.ndarray):
        columns = [(str(place), y[:, place], y[:, place].tolist()) for place in range(y.shape[1])]
    else:
        rows = as_cells(y, "y")
        sizes = {len(row) if isinstance(row, list | tuple | np.ndarray) else 0 for row in rows}
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(
                "y must be an array, a frame or rows of one length, of shape (rows, outputs). Use YTuningClassifier "
                "for one output"
            )
        columns = [(str(place), None, [row[place] for row in cast("list[Any]", rows)]) for place in range(sizes.pop())]
    names = [name for name, *_ in columns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"y has more than one column named {quote(twice)}. Rename one of them")
    return [_output_column(*column) for column in columns]


def _output_column(name: str, column: Any, cells: list[object]) -> OutputColumn:
    for row, cell in enumerate(cells, 1):
        if isinstance(cell, LISTS):
            problem = f"each cell must be one label. Got the list {quote(cell)} instead. Use YTuningClassifier for it"
            raise DataError(problem, source="the rows", row=row, column=name)
    rows = np.array([row for row, cell in enumerate(cells) if label_name(cell) is not None], np.int64)
    if not len(rows):
        raise InputError(f"the column {quote(name)} of y holds no label. Leave it out")
    if column is None:
        return OutputColumn(name, rows, [cells[row] for row in rows.tolist()])
    return OutputColumn(name, rows, column.iloc[rows] if hasattr(column, "iloc") else column[rows])


def label_array(y: Any) -> np.ndarray:
    """One label for each row, as an array (rows,) of the type they were given in.

    Raises:
        InputError: ``y`` has another form, or labels of several types.
        DataError: a label is missing or is no label.
    """
    return _label_array(y, as_cells(y, "y"))


def label_matrix(y: Any, classes: np.ndarray) -> np.ndarray:
    """A matrix (rows, C) of 0 and 1 with its columns in the order of ``classes`` (C,).

    Raises:
        InputError: ``y`` has another form, or other columns.
    """
    matrix = read_targets(y)
    if matrix.kind != "multi" or matrix.container is not None or len(matrix.classes) != len(classes):
        raise InputError(f"y must be an array or a frame (rows, {len(classes)}) of 0 and 1, as that of fit was.")
    order = matrix.classes.tolist()
    # The columns of a frame may have another order than those of the fit.
    if order and isinstance(order[0], str) and isinstance(classes[0], str):
        if unknown := sorted(set(order) - set(classes.tolist())):
            raise InputError(f"y has a column that the task was not fitted on: {quote(unknown[0])}.")
        order = classes.tolist()
    names = dict(zip(matrix.classes.tolist(), matrix.names, strict=True))
    rows = [set(labels) for labels in cast("Sequence[tuple[str, ...]]", matrix.labels)]
    return np.array([[names[label] in labels for label in order] for labels in rows], int)


def label_sets(y: Any) -> list[list[Any]]:
    """The labels of each row, where each row holds a list, tuple, set or array of them.

    Raises:
        DataError: a row holds something else.
    """
    sets, column = [], _column()
    for row, cell in enumerate(as_cells(y, "y"), 1):
        if not isinstance(cell, LISTS):
            raise column.error(row, f"every row must be a list of labels, as others are. Got {quote(cell)} instead.")
        labels: list[Any] = [label.item() if isinstance(label, np.generic) else label for label in cell]
        for label in labels:
            if isinstance(label, LISTS):
                raise column.error(
                    row, f"every row must be a list of labels, and one of them is the list {quote(label)}."
                )
            column.label(row, label)
        sets.append(labels)
    return sets


def _matrix(y: Any) -> tuple[list[str] | None, np.ndarray] | None:
    """The names of the columns and the values of a matrix (rows, C) of several columns; None of anything else."""
    if hasattr(y, "toarray") and hasattr(y, "shape"):
        y = y.toarray()
    columns = frame_columns(y)
    if columns is not None:
        if len(columns) < 2:
            return None
        cells = np.array([cells for _, cells in columns]).T
        # Two cells of different types would become text.
        return [name for name, _ in columns], cells if cells.dtype.kind in "biuf" else _objects(columns)
    dimensions = getattr(y, "ndim", 1)
    if dimensions == 2 and y.shape[1] > 1:
        return None, np.asarray(y.tolist() if not isinstance(y, np.ndarray) else y)
    return None


def _objects(columns: list[tuple[str, list[object]]]) -> np.ndarray:
    values = np.empty((len(columns[0][1]), len(columns)), object)
    for place, (_, cells) in enumerate(columns):
        values[:, place] = cells
    return values


def _from_matrix(names: list[str] | None, values: np.ndarray) -> Targets:
    wrong = np.argwhere(~_are_flags(values))
    if len(wrong):
        row, column = wrong[0].tolist()
        remedy = "Several labels a row may also be lists of their names."
        problem = f"{FLAGS}Got {quote(values[row, column])} instead. {remedy}"
        raise DataError(problem, source="the rows", row=row + 1)
    classes = np.arange(values.shape[1]) if names is None else np.array(names)
    of_task = _names_of(classes)
    there = values.astype(bool)
    rows = [tuple(of_task[place] for place in np.flatnonzero(row)) for row in there]
    return Targets("multi", classes, of_task, rows)


def _are_flags(values: np.ndarray) -> np.ndarray:
    """(rows, C) bool: which values are the numbers 0 and 1, or truth values."""
    if values.dtype.kind in "biuf":
        return np.isin(values, (0, 1))
    flags = [isinstance(value, bool | int | float | np.number | np.bool_) and value in (0, 1) for value in values.flat]
    return np.array(flags, bool).reshape(values.shape)


def _are_rows_of_flags(cells: Sequence[Any]) -> bool:
    """Whether all rows are lists of one length, two or more, that hold nothing but 0 and 1."""
    if not all(isinstance(cell, list | tuple | np.ndarray) and np.ndim(cell) == 1 for cell in cells):
        return False
    if len({len(cell) for cell in cells}) != 1 or len(cells[0]) < 2:
        return False
    return bool(_are_flags(np.array(cells, object)).all())


def _from_single(y: Any, cells: list[object]) -> Targets:
    labels = _label_array(y, cells)
    if labels.dtype.kind == "f" and not np.all(np.mod(labels, 1) == 0):
        raise InputError("y holds fractional or missing numbers. Use labels, or YTuningRegressor for numbers")
    classes, ids = np.unique(labels, return_inverse=True)
    names = _names_of(classes)
    rows = [names[number] for number in ids.tolist()]
    if (order := _order(y)) is None:
        return Targets("single", classes, names, rows)
    by_label = dict(zip(classes.tolist(), names, strict=True))
    return Targets("ordinal", classes, names, rows, [by_label[label] for label in order if label in by_label])


def _label_array(y: Any, cells: list[object]) -> np.ndarray:
    column = _column()
    for row, cell in enumerate(cells, 1):
        column.label(row, cell)
    # An array keeps its type; of another column it is that of its values.
    if isinstance(y, np.ndarray) or is_a(y, "pandas", "Series", "Index"):
        given = np.asarray(y).reshape(-1)
        if given.dtype != object:
            return given
        if all(isinstance(cell, str) for cell in cells):
            return given
    return _one_type(cells)


def _one_type(labels: Sequence[object]) -> np.ndarray:
    """Labels as an array, which would make text of numbers beside text."""
    texts = next((label for label in labels if isinstance(label, str)), None)
    other = next((label for label in labels if not isinstance(label, str)), None)
    if texts is not None and other is not None:
        both = f"{quote(texts)} and {quote(other)}"
        raise InputError(f"y must hold labels of one type, as they are sorted. Got {both} instead.")
    return np.array(labels)


def _order(y: Any) -> list[Any] | None:
    """The categories of an ordered categorical, from the lowest; None of anything else."""
    if is_a(y, "pandas", "DataFrame"):
        y = y.iloc[:, 0]
    dtype: Any = getattr(y, "dtype", None)
    return list(dtype.categories.tolist()) if getattr(dtype, "ordered", False) is True else None


def _names_of(classes: np.ndarray) -> list[str]:
    """The names that labels (C,) have in a task."""
    column = _column()
    names = [column.label(1, label) for label in classes.tolist()]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        alike = [label for label, name in zip(classes.tolist(), names, strict=True) if name == twice]
        shown = ", ".join(map(ascii, alike))
        raise InputError(
            f"y holds labels that are one label, {quote(twice)}, in several forms: {shown}. Give it one form"
        )
    return names


def _column() -> Column:
    """What complains about a row of ``y``."""
    return Column("the rows", "y", [])

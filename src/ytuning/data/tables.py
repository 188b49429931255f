"""A table and its columns; pandas, ``datasets``, rows or columns in memory -> :class:`Table`.

Cells stay what the source has. Rows count from 1; a header and blank lines do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from ytuning.data.labels import label_name, list_names, quote
from ytuning.data.sequences import as_cells, is_a
from ytuning.errors import DataError, InputError, argument

__all__ = [
    "LISTS", "NOT_UTF8", "Column", "Table", "arrow_cells", "is_unicode", "table_in_memory", "table_of_columns",
    "table_of_rows", "with_class_names",
]  # fmt: skip

NOT_UTF8 = "the text is not UTF-8. Save the file as UTF-8."
LISTS = (list, tuple, set, frozenset, np.ndarray)
FRAME, ARROW, SET = "the data frame", "the Arrow table", "the dataset"
ROWS, COLUMNS = "the rows", "the columns"


@dataclass(frozen=True)
class Column:
    """One column of a table, which knows how to complain about a row of it.

    Attributes:
        source: file name, or what the rows came from (``"the data frame"``).
        name: name of the column.
        cells: whatever the source holds, row by row.
        read_as: texts of labels that :meth:`label` has read in another form, with the names that they became.
        rows: number of each cell's row in the source, from 1; None if all rows are there in order.
    """

    source: str
    name: str
    cells: list[object]
    read_as: dict[str, str] = field(default_factory=dict, compare=False)
    rows: Sequence[int] | None = None

    def row_number(self, row: int) -> int:
        """The number in the source of the row of a cell, which is counted from 1 among those that are there."""
        return row if self.rows is None else self.rows[row - 1]

    def error(self, row: int, problem: str) -> DataError:
        """An error about the cell in ``row``, counted from 1 among those that are there."""
        return DataError(problem, source=self.source, row=self.row_number(row), column=self.name)

    def texts(self, what: str, *, blank: bool = False) -> list[str]:
        """The cells, exactly as they are, if all of them are text that says something.

        Args:
            what: the cells are, for messages: "text", "label".
            blank: whether texts may be empty or have only white space.

        Raises:
            DataError: a cell is missing, not text, or blank where it must not be.
        """
        return [self.text(row, cell, what, blank=blank) for row, cell in enumerate(self.cells, 1)]

    def text(self, row: int, cell: object, what: str, *, blank: bool = False) -> str:
        """Return one cell as a text, checked as :meth:`texts` does."""
        # Nearly all cells pass at once, and there may be millions.
        if type(cell) is str and cell and not cell.isspace() and is_unicode(cell):
            return cell
        if _is_missing(cell):
            raise self.error(row, f"the {what} is missing. Fill it in or remove the row.")
        if isinstance(cell, bytes | bytearray):
            raise self.error(row, f"the {what} is {quote(cell)} (bytes), not text. Decode it: .decode('utf-8').")
        if not isinstance(cell, str):
            raise self.error(row, f"the {what} is {quote(cell)} ({type(cell).__name__}), not text. Write it as text.")
        if not blank and (not cell or cell.isspace()):
            state = f"{quote(cell)} has only white space" if cell else "is empty"
            raise self.error(row, f"the {what} {state}. Fill it in or remove the row.")
        if not is_unicode(cell):
            problem = "contains an invalid Unicode character (an unpaired surrogate). Replace it."
            raise self.error(row, f"the {what} {quote(cell)} {problem}")
        # The cell may be a numpy.str_, which becomes a str here.
        return str(cell)

    def label(self, row: int, cell: object) -> str:
        """One cell, or a part of it, as the name of a label, in the form that `labels.label_name` gives.

        Raises:
            DataError: the cell has no name or is a list.
        """
        name = label_name(cell)
        # Nearly all texts have that form already.
        if type(cell) is str and name and name == cell and is_unicode(cell):
            return name
        if isinstance(cell, LISTS) and getattr(cell, "ndim", None) != 0:
            problem = f"the label {quote(cell)} is a list, but a row of this kind has one label. "
            raise self.error(row, f"{problem}Give each row one label or use {argument('kind', 'multi')}.")
        if not isinstance(cell, str) and name is not None:
            return name
        text = self.text(row, cell.item() if isinstance(cell, np.generic) else cell, "label").strip()
        if not name:
            raise self.error(row, f"the label {quote(cell)} has no visible character. Fill it in or remove the row.")
        if name != text:
            self.read_as.setdefault(text, name)
        return name

    def labels(self) -> list[str]:
        """The cells as names of labels, one each; raises what :meth:`label` does."""
        # A text that occurs in many rows is looked at once.
        names: dict[str, str] = {}
        labels = []
        for row, cell in enumerate(self.cells, 1):
            name = names.get(cell) if type(cell) is str else None
            if name is None:
                name = self.label(row, cell)
                if type(cell) is str:
                    names[cell] = name
            labels.append(name)
        return labels

    @property
    def groups(self) -> list[str | None]:
        """The group that each cell names, in the form of a label; None for an empty cell."""
        return [None if _is_missing(cell) else label_name(cell) or str(cell).strip() or None for cell in self.cells]


@dataclass(frozen=True)
class Table:
    """Named columns of one length.

    Attributes:
        source: file name, or what the rows came from.
        rows: how many there are.
        names: names of the columns, in order.
        cells: those of one column; where the source allows, a column that nobody asks for is never read.
        blank_lines: number of lines without any content, which are no rows.
        notes: what the user should know of how the source was read, each in a sentence without the name of the source.
        row_numbers: number of each row in the source, from 1; None if all rows are there in order.
    """

    source: str
    rows: int
    names: list[str]
    cells: Callable[[str], list[object]]
    blank_lines: int = 0
    notes: tuple[str, ...] = ()
    row_numbers: Sequence[int] | None = None

    def column(self, name: str) -> Column:
        """The column of that name, which must be one of ``names``.

        Raises:
            DataError: several columns have that name, or its cells cannot be read.
        """
        if self.names.count(name) > 1:
            raise DataError(f"more than one column is named {quote(name)}. Rename one of them.", source=self.source)
        return Column(self.source, name, self.cells(name), rows=self.row_numbers)

    def without_empty(self, name: str) -> Table:
        """The rows whose cell in a column is neither missing nor blank; they keep their numbers.

        Raises:
            DataError: no row is left, or several columns have that name.
        """
        column = self.column(name)
        places = [place for place, cell in enumerate(column.cells) if not _is_empty(cell)]
        if len(places) == self.rows:
            return self
        if not places:
            problem = f"all {self.rows} cells are empty, so no row has a label. Name another column."
            raise DataError(problem, source=self.source, column=name)
        return replace(
            self,
            rows=len(places),
            cells=lambda name: list(map(self.cells(name).__getitem__, places)),
            row_numbers=tuple(column.row_number(place + 1) for place in places),
        )


def table_in_memory(source: object) -> Table:
    """A table from an object that holds one.

    Args:
        source: a frame of pandas or polars, a table of pyarrow, a ``datasets.Dataset``, a list of mappings (rows) or a
            mapping of lists (columns).

    Raises:
        DataError: the source cannot be read as a table.
        InputError: the source is none of these.
    """
    if is_a(source, "pandas", "DataFrame"):
        return _from_frame(source)
    if is_a(source, "polars", "DataFrame"):
        series = {column.name: column for column in cast("Any", source).get_columns()}
        rows = len(next(iter(series.values()), ()))
        return Table(FRAME, rows, list(series), lambda name: list(series[name].to_list()))
    if is_a(source, "pyarrow", "Table", "RecordBatch"):
        table = cast("Any", source)
        names = list(table.schema.names)
        return Table(ARROW, table.num_rows, names, lambda name: arrow_cells(ARROW, name, table.column(name)))
    if is_a(source, "datasets", "Dataset"):
        return _from_datasets(source)
    if is_a(source, "datasets", "DatasetDict", "IterableDatasetDict"):
        splits = list(cast("Mapping[str, object]", source))
        problem = f"a {type(source).__name__} has several splits. Pass one of them as data[...]: {list_names(splits)}."
        raise InputError(problem)
    if is_a(source, "datasets", "IterableDataset"):
        raise InputError("an IterableDataset has no length. Pass a datasets.Dataset: load it with streaming=False.")
    if isinstance(source, Mapping):
        return table_of_columns(source, COLUMNS)
    if isinstance(source, list | tuple):
        return table_of_rows(source, ROWS)
    raise InputError(
        "data must be a file name, an open file, a data frame, a pyarrow.Table, a datasets.Dataset, a list of mappings "
        f"or a mapping of lists. Got {type(source).__name__} instead."
    )


def arrow_cells(source: str, name: str, column: Any) -> list[object]:
    """The cells of an Arrow column.

    Raises:
        DataError: a text is not UTF-8.
    """
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        row = next(row for row in range(len(column)) if not _is_decodable(column[row]))
        raise DataError(NOT_UTF8, source=source, row=row + 1, column=name) from None


def _is_decodable(cell: Any) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _is_missing(cell: object) -> bool:
    """None, NaN, or what pandas puts in their place, told by its name because pandas is not imported to find out."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or type(cell).__name__ in ("NAType", "NaTType")


def _is_empty(cell: object) -> bool:
    """Whether a cell is missing, or a text without a visible character."""
    # Nearly all texts begin with a letter or a digit.
    if type(cell) is str and cell[:1].isalnum():
        return False
    return _is_missing(cell) or (isinstance(cell, str) and label_name(cell) == "")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; half a surrogate pair, which JSON's escapes allow, cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


# --- in memory ------------------------------------------------------------------------------------------------------


def _from_frame(frame: Any) -> Table:
    names = [str(name) for name in frame.columns]
    return Table(FRAME, len(frame), names, lambda name: list(frame.iloc[:, names.index(name)].tolist()))


def _from_datasets(data: Any) -> Table:
    plain = data.with_format(None)

    def cells(name: str) -> list[object]:
        return with_class_names(plain[name][:], _class_names(plain.features[name]))

    return Table(SET, len(plain), list(plain.column_names), cells)


def _class_names(feature: Any) -> Sequence[str] | None:
    """The names of a ``ClassLabel`` of `datasets`, also of one inside of lists; None of another feature."""
    if isinstance(feature, list) and feature:
        return _class_names(feature[0])
    if any(is_a(feature, "datasets", name) for name in ("Sequence", "List", "LargeList")):
        return _class_names(feature.feature)
    return list(feature.names) if is_a(feature, "datasets", "ClassLabel") else None


def with_class_names(values: list[object], names: Sequence[str] | None) -> list[object]:
    """Class names for ids, also in lists of ids; None for -1, which `datasets` writes where a row has no label."""
    if names is None:
        return values
    by_id: dict[object, object] = dict(enumerate(names))
    return [with_class_names(value, names) if isinstance(value, list) else by_id.get(value) for value in values]


def table_of_columns(columns: Mapping[Any, Any], source: str) -> Table:
    """A table from a mapping of lists, which have one length."""
    # A list of pairs, because the names 1 and "1" are one text.
    cells = [(str(name), as_cells(values, f"the column {quote(name)}")) for name, values in columns.items()]
    names = [name for name, _ in cells]
    sizes = [len(values) for _, values in cells]
    if len(set(sizes)) > 1:
        least, most = min(sizes), max(sizes)
        counts = f"{quote(names[sizes.index(least)])} has {least} and {quote(names[sizes.index(most)])} has {most}"
        raise DataError(f"all columns must have the same number of rows, but {counts}.", source=source)
    return Table(source, max(sizes, default=0), names, dict(cells).__getitem__)


def table_of_rows(rows: Sequence[object], source: str) -> Table:
    """A table from a list of mappings; a row that lacks a column has None there."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            problem = f"the row must map column names to values. Got {quote(row)} ({type(row).__name__}) instead."
            raise DataError(problem, source=source, row=number)
    records = cast("Sequence[Mapping[str, object]]", rows)
    names = list(dict.fromkeys(name for record in records for name in record if isinstance(name, str)))
    return Table(source, len(records), names, lambda name: [record.get(name) for record in records])

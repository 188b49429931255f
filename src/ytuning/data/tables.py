"""CSV, TSV, JSON lines, Parquet, pandas, ``datasets``, rows or columns in memory -> :class:`Table`.

Cells stay what the source has: in a CSV file "NA", "1.0" and "007" are text, and a NUL byte is a character like others.
Rows count from 1; a header and blank lines do not count.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ytuning.data.labels import list_names, quote
from ytuning.data.sequences import as_cells, is_a
from ytuning.errors import DataError, InputError, quantity
from ytuning.system.machine import require

__all__ = ["LISTS", "Column", "Table", "read_table"]

# Maximum number of characters in a cell; Python's own limit of 131,072 is shorter than some documents.
LARGEST_CELL = 2**31 - 1
LISTS = (list, tuple, set, frozenset, np.ndarray)
FRAME, SET, ROWS, COLUMNS = "the data frame", "the dataset", "the rows", "the columns"


@dataclass(frozen=True)
class Column:
    """One column of a table, which knows how to complain about a row of it.

    Attributes:
        source: file name, or what the rows came from (``"the data frame"``).
        name: name of the column.
        cells: whatever the source holds, row by row.
    """

    source: str
    name: str
    cells: list[object]

    def error(self, row: int, problem: str) -> DataError:
        """An error about the cell in ``row``, counted from 1."""
        return DataError(problem, source=self.source, row=row, column=self.name)

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
        if _is_missing(cell):
            raise self.error(row, f"the {what} is missing. Fill it in or remove the row.")
        if isinstance(cell, bytes | bytearray):
            raise self.error(row, f"the {what} is {quote(cell)} (bytes), not text. Decode it: .decode('utf-8').")
        if not isinstance(cell, str):
            raise self.error(row, f"the {what} is {quote(cell)} ({type(cell).__name__}), not text. Write it as text.")
        if not blank and (not cell or cell.isspace()):
            state = f"{quote(cell)} has only white space" if cell else "is empty"
            raise self.error(row, f"the {what} {state}. Fill it in or remove the row.")
        if not _is_unicode(cell):
            problem = "contains an invalid Unicode character (an unpaired surrogate). Replace it."
            raise self.error(row, f"the {what} {quote(cell)} {problem}")
        # The cell may be a numpy.str_, which becomes a str here.
        return str(cell)

    def label(self, row: int, cell: object) -> str:
        """One cell, or a part of it, as the name of a label.

        Raises:
            DataError: the cell has no name or is a list.
        """
        if isinstance(cell, np.generic):
            cell = cell.item()
        if isinstance(cell, bool):
            return "true" if cell else "false"
        if isinstance(cell, int):
            return str(cell)
        if isinstance(cell, float) and math.isfinite(cell):
            return str(int(cell)) if cell.is_integer() else repr(cell)
        if isinstance(cell, LISTS):
            problem = f"the label {quote(cell)} is a list, but a row of this kind has one label. "
            raise self.error(row, f"{problem}Give each row one label or use kind='multi' (--kind multi).")
        # This strips all white space that Unicode knows, because nobody means it as part of a name.
        return self.text(row, cell, "label").strip()

    @property
    def groups(self) -> list[str | None]:
        """The group that each cell names, which is its text without white space around it; None for an empty cell."""
        return [None if _is_missing(cell) else str(cell).strip() or None for cell in self.cells]


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
    """

    source: str
    rows: int
    names: list[str]
    cells: Callable[[str], list[object]]
    blank_lines: int = 0
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        """The column of that name, which must be one of ``names``."""
        return Column(self.source, name, self.cells(name))


def read_table(source: object) -> Table:
    """A table from whatever holds one.

    Args:
        source: path of a file (.csv, .tsv, .tab, .jsonl, .ndjson, .json, each also .gz; .parquet, .pq), a
            ``pandas.DataFrame``, a ``datasets.Dataset``, a list of mappings (rows) or a mapping of lists (columns).

    Raises:
        DataError: the source cannot be read as a table, has no rows, or has two columns of one name.
        InputError: the source is none of these.
        MissingExtraError: the file is a Parquet file and pyarrow is not installed.
    """
    if isinstance(source, str | os.PathLike):
        table = _read_file(Path(source))
    elif is_a(source, "pandas", "DataFrame"):
        table = _from_frame(source)
    elif is_a(source, "datasets", "Dataset"):
        table = _from_datasets(source)
    elif is_a(source, "datasets", "DatasetDict", "IterableDatasetDict"):
        splits = list(cast("Mapping[str, object]", source))
        problem = f"a {type(source).__name__} has several splits. Pass one of them as data[...]: {list_names(splits)}."
        raise InputError(problem)
    elif is_a(source, "datasets", "IterableDataset"):
        raise InputError("an IterableDataset has no length. Pass a datasets.Dataset: load it with streaming=False.")
    elif isinstance(source, Mapping):
        table = _from_columns(source)
    elif isinstance(source, list | tuple):
        table = _from_rows(source, ROWS)
    else:
        raise InputError(
            "data must be a file name, a pandas.DataFrame, a datasets.Dataset, a list of mappings or a mapping of "
            f"lists. Got {type(source).__name__} instead."
        )
    if not table.rows:
        raise DataError("there are no rows. Give at least one.", source=table.source)
    twice = [name for name, count in Counter(table.names).items() if count > 1]
    if twice:
        raise DataError(f"more than one column is named {quote(twice[0])}. Rename one of them.", source=table.source)
    return table


def _is_missing(cell: object) -> bool:
    """None, NaN, or what pandas puts in their place, told by its name because pandas is not imported to find out."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or type(cell).__name__ in ("NAType", "NaTType")


def _is_unicode(text: str) -> bool:
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
        values: list[object] = plain[name][:]
        feature = plain.features[name]
        if not is_a(feature, "datasets", "ClassLabel"):
            return values
        names = dict(enumerate(feature.names))
        # The package `datasets` writes -1 where a row has no label; it becomes None here.
        return [names.get(cast("int", value)) for value in values]

    return Table(SET, len(plain), list(plain.column_names), cells)


def _from_columns(columns: Mapping[Any, Any]) -> Table:
    cells = {str(name): as_cells(values, f"the column {quote(name)}") for name, values in columns.items()}
    sizes = {name: len(values) for name, values in cells.items()}
    if len(set(sizes.values())) > 1:
        least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        counts = f"{quote(least)} has {sizes[least]} and {quote(most)} has {sizes[most]}"
        raise DataError(f"all columns must have the same number of rows, but {counts}.", source=COLUMNS)
    return Table(COLUMNS, max(sizes.values(), default=0), list(cells), cells.__getitem__)


def _from_rows(rows: Sequence[object], source: str) -> Table:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            problem = f"the row must map column names to values. Got {quote(row)} ({type(row).__name__}) instead."
            raise DataError(problem, source=source, row=number)
    records = cast("Sequence[Mapping[str, object]]", rows)
    names = list(dict.fromkeys(name for record in records for name in record if isinstance(name, str)))
    return Table(source, len(records), names, lambda name: [record.get(name) for record in records])


# --- files ---------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> Table:
    """A file by its suffix; what the system says about one that cannot be read becomes a :class:`DataError`."""
    # Path.is_dir raises an error for some names; os.path.isdir never does.
    if os.path.isdir(path):
        raise DataError("this is a folder. Give the name of a file in it.", source=path)
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix if packed else path.suffix
    reader = READERS.get(suffix.lower())
    if reader is None or (packed and reader is _read_parquet):
        problem = f"the file name must end in one of {', '.join(READERS)}; .gz may follow, except for Parquet. "
        raise DataError(f"{problem}Got {suffix + path.suffix * packed!r} instead.", source=path)
    try:
        return reader(path)
    except FileNotFoundError:
        raise DataError("there is no such file. Check its name.", source=path) from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the file cannot be read: {reason}", source=path) from error


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _not_utf8(start: bytes) -> str:
    """What is wrong with a file that is not UTF-8, by its first bytes, and what to do."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "the file is UTF-16. Save it as UTF-8."
    return "the text is not UTF-8. Save the file as UTF-8."


def _read_delimited(path: Path, delimiter: str) -> Table:
    """CSV or TSV with a header, quoted as RFC 4180 says; strict, as a lenient reader swallows rows without a word."""
    # The limit holds for the whole process. It is not put back, because another thread may be reading too.
    csv.field_size_limit(LARGEST_CELL)
    # The header is record 0, so row n is record n.
    records: list[list[str]] = []
    line = blank = 0
    with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for record in reader:
                if record:
                    if records and len(record) != len(records[0]):
                        problem = f"the row has {quantity(len(record), 'cell')}, but the header has {len(records[0])}. "
                        problem += f"Put cells that contain a {DELIMITER_NAMES[delimiter]} in double quotes."
                        raise DataError(problem, source=path, row=len(records))
                    records.append(record)
                blank += not record
                line = reader.line_num
        except csv.Error:
            problem = f"a double quote in this row (line {line + 1}) is never closed, or text follows the closing "
            problem += "quote. Inside a quoted cell write each quote twice."
            raise DataError(problem, source=path, row=len(records) or None) from None
        except UnicodeDecodeError:
            raise _undecodable(path, delimiter) from None
    if not records:
        raise DataError("the file is empty. Give one with rows.", source=path)
    header, *rows = records
    if len(header) == 1 and ";" in header[0]:
        problem = f"a {DELIMITER_NAMES[delimiter]} must separate the cells. The header is {quote(header[0])}."
        raise DataError(problem, source=path)

    def cells(name: str) -> list[object]:
        place = header.index(name)
        return [record[place] for record in rows]

    return Table(str(path), len(rows), header, cells, blank)


def _undecodable(path: Path, delimiter: str) -> DataError:
    """Where a CSV file is not UTF-8; read again, because decoding runs ahead of the rows."""
    # Bytes that are not UTF-8 become surrogates, which no UTF-8 text holds.
    with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as lines:
        records = (record for record in csv.reader(lines, delimiter=delimiter) if record)
        header: list[str] = []
        for row, record in enumerate(records):
            header = header or record
            bad = next((place for place, cell in enumerate(record) if not _is_unicode(cell)), None)
            if bad is not None:
                column = header[bad] if row and bad < len(header) else None
                problem = _not_utf8(record[bad].encode(errors="surrogateescape"))
                return DataError(problem, source=path, row=row or None, column=column)
    return DataError(_not_utf8(b""), source=path)


def _read_json(path: Path) -> Table:
    """Read JSON lines, or one list of objects."""
    rows: list[object] = []
    blank = 0
    with _open(path) as file:
        for number, line in enumerate(file):
            content = line if number else line.removeprefix(codecs.BOM_UTF8)
            if not rows and content.lstrip().startswith(b"["):
                whole = _parse_json(content + file.read(), path, None)
                return _from_rows(cast("list[object]", whole), str(path))
            if content.strip():
                rows.append(_parse_json(content.rstrip(), path, len(rows) + 1))
            else:
                blank += 1
    if not rows:
        raise DataError("the file is empty. Give one with rows.", source=path)
    return replace(_from_rows(rows, str(path)), blank_lines=blank)


def _parse_json(content: bytes, path: Path, row: int | None) -> object:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError:
        raise DataError(_not_utf8(content), source=path, row=row) from None
    except json.JSONDecodeError as error:
        place = f"character {error.colno}" if row else f"line {error.lineno}, character {error.colno}"
        problem = f"this is not valid JSON: {error.msg.removesuffix(' at')} ({place})."
        raise DataError(problem, source=path, row=row) from None
    except (ValueError, RecursionError) as error:
        # JSON may hold numbers or nesting beyond Python's limits.
        raise DataError(f"this JSON cannot be read: {error}", source=path, row=row) from None


def _read_parquet(path: Path) -> Table:
    def cells(name: str) -> list[object]:
        with _parquet(path) as file:
            column = file.read(columns=[name]).column(0)
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError:
            row = next(row for row in range(len(column)) if not _is_text(column[row]))
            raise DataError(_not_utf8(b""), source=path, row=row + 1, column=name) from None

    with _parquet(path) as file:
        return Table(str(path), file.metadata.num_rows, file.schema_arrow.names, cells)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    pyarrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the file is not a Parquet file or is damaged: {reason}", source=path) from error


def _is_text(cell: Any) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True


DELIMITER_NAMES = {",": "comma", "\t": "tab"}
_read_csv, _read_tsv = partial(_read_delimited, delimiter=","), partial(_read_delimited, delimiter="\t")
READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".tab": _read_tsv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}

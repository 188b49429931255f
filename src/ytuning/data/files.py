"""Files and streams -> :class:`Table`: the rule for reading.

What is read as it stands: every cell is what the file has. In CSV and TSV all cells are text, "NA", "1.0" and "007"
included, and a backslash or a NUL byte is a character like others. Texts are UTF-8, or UTF-16 with a byte order mark.
Lines end in a line feed, a carriage return, or both. A column that nobody asks for does not matter.

What is cleaned and told: blank lines are no rows, and are counted. Where a file may be read in more than one way, a
note of the table says how it was read: which mark separates cells, whether quotes are characters, where the rows are in
JSON.

What is refused, with the row: a row that is not as wide as the header, a broken quote, one cell whose lines look like
rows, text that is not UTF-8, broken JSON, a column that is asked for and is there twice. A file that is something else
than its name says is refused, too.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ytuning.data.delimited import read_delimited
from ytuning.data.json_rows import read_json
from ytuning.data.labels import did_you_mean
from ytuning.data.tables import NOT_UTF8, Table, arrow_cells, table_in_memory, with_class_names
from ytuning.errors import DataError, InputError, quantity
from ytuning.system.files import STANDARD_INPUT
from ytuning.system.machine import require

__all__ = [
    "HEAD_BYTES", "JSON_SUFFIXES", "PARQUET_SUFFIXES", "TEXT_SUFFIXES", "is_wide", "names_like", "read_content",
    "read_table", "refuse_foreign", "refuse_json", "suffix_of",
]  # fmt: skip

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
HEAD_BYTES = 2**16
# A missing file is compared with this number of names in its folder.
MOST_NAMES = 10_000
PATTERN_MARKS = "*?["
# A packed file may unpack to this many bytes, or to this many times its size; text rarely shrinks to a tenth.
MOST_UNPACKED, MOST_UNPACKED_RATIO = 2**24, 200
JSON_START = re.compile(rb"\s*(?:\{\s*\"|\[\s*\{)")
WIDE_CHARACTERS = re.compile(rb"(?:[^\0]\0){2}|(?:\0[^\0]){2}")
SAVE, SHEET = "Save the table as CSV or Parquet.", "Save the sheet as CSV UTF-8."
UNPACK, NO_TABLE = "Unpack it first.", "Give a file with a table."
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (rb"PK\x03\x04.*word/document", "a Word document", NO_TABLE),
    (rb"PK\x03\x04.*(?:xl/|\[Content_Types\])", "an Excel workbook or another Office file", SHEET),
    (rb"PK\x03\x04.*opendocument", "an OpenDocument file", SHEET),
    (rb"PK(?:\x03\x04|\x05\x06)", "a ZIP archive", UNPACK),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook or another Office file", SHEET),
    (rb"\x1f\x8b", "packed with gzip", "End its name in .gz after the ending of what is packed, as in rows.csv.gz."),
    (rb"BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!\x1a|\x04\x22\x4d\x18", "compressed", UNPACK),
    (rb".{257}ustar", "a tar archive", UNPACK),
    (rb"PAR1", "a Parquet file", "End its name in .parquet."),
    (rb"ARROW1\0|FEA1|\xff\xff\xff\xff", "an Arrow or Feather file", "Save the table as Parquet."),
    (rb"SQLite format 3\0", "an SQLite database", "Export the table as CSV."),
    (rb"\x80[\x02-\x05]", "a Python pickle, which could run code", SAVE),
    (rb"\x93NUMPY|\x89HDF\r\n|Obj\x01|ORC\x0a|ORC\x08", "a NumPy, HDF5, Avro or ORC file", SAVE),
    (rb"%PDF-|\{\\rtf", "a document", NO_TABLE),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|\x7fELF", "an image or a program", NO_TABLE),
    (rb"\s*(?i:<!doctype html|<html|<\?xml)", "a web page or XML", "Download or export the table itself."),
    (rb"version https://git-lfs", "a pointer of Git LFS", "Get the file itself with: git lfs pull."),
    (rb"\0{16}", "full of zero bytes", "It is damaged; get it again."),
)  # fmt: skip
"""How files begin that are no text with a table, what they are, and what to do."""
FOREIGN_STARTS = [(re.compile(start, re.DOTALL), what, step) for start, what, step in FOREIGN]


def read_table(source: object) -> Table:
    """A table from whatever holds one.

    Args:
        source: path of a file (.csv, .tsv, .tab, .jsonl, .ndjson, .json, each also .gz; .parquet, .pq); "-" for the
            standard input or an open file, whose first bytes tell the format, as they do for a file whose name has no
            ending; or an object as :func:`ytuning.data.tables.table_in_memory` takes it.

    Raises:
        DataError: the source cannot be read as a table, or has no rows.
        InputError: the source is none of these.
        MissingExtraError: the file is a Parquet file and pyarrow is not installed.
    """
    if isinstance(source, str | os.PathLike):
        if os.fspath(source) == STANDARD_INPUT:
            table = _read_stream(getattr(sys.stdin, "buffer", sys.stdin), "the standard input")
        else:
            table = _read_file(Path(source))
    elif hasattr(source, "read"):
        name = getattr(source, "name", None)
        table = _read_stream(source, name if isinstance(name, str) else "the stream")
    else:
        table = table_in_memory(source)
    if not table.rows:
        blank = f", only {quantity(table.blank_lines, 'blank line')}" if table.blank_lines else ""
        raise DataError(f"there are no rows{blank}. Give at least one.", source=table.source)
    return table


def names_like(missing: str | os.PathLike[str]) -> str:
    """``" Did you mean 'train.csv'?"`` with names in the folder that are like one that is not there, or nothing."""
    path = Path(missing)
    if any(mark in path.name for mark in PATTERN_MARKS):
        return " No file matches this pattern. Give the name of one file."
    # A name may be too long for the system, or the folder may not be readable.
    with suppress(OSError, ValueError), os.scandir(path.parent) as entries:
        # What has the very name is of another type than the one that was looked for.
        names = (entry.name for entry in islice(entries, MOST_NAMES))
        return did_you_mean(path.name, [name for name in names if name != path.name])
    return ""


def suffix_of(path: str | Path) -> tuple[str, bool]:
    """The ending of a file's name in small letters, without ``.gz``, and whether it has that."""
    path = Path(path)
    packed = path.suffix.lower() == ".gz"
    return (Path(path.stem).suffix if packed else path.suffix).lower(), packed


def _read_file(path: Path) -> Table:
    """A file by the ending of its name."""
    source = str(path)
    # Path.is_dir raises an error for some names; os.path.isdir never does.
    if os.path.isdir(path):
        raise DataError("this is a folder. Give the name of a file in it.", source=source)
    suffix, packed = suffix_of(path)
    with _system_errors(source), path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if suffix in PARQUET_SUFFIXES and not packed:
            refuse_foreign(source, head, besides=PARQUET)
            # A regular file is not read as a whole, so that columns that nobody asks for are never read.
            return _read_parquet(source, path if path.is_file() else head + file.read())
        if suffix and not packed:
            refuse_foreign(source, head)
        if suffix and suffix not in READERS:
            problem = f"the file name must end in one of {', '.join([*READERS, *PARQUET_SUFFIXES])}; .gz may follow, "
            problem += f"except for Parquet. Got {suffix + path.suffix * packed!r} instead"
            likely = "" if b"\0" in head or packed else f", and the content looks like {_name(_sniff(head))}"
            raise DataError(f"{problem}{likely}.", source=source)
        data = head + file.read()
    return read_content(source, _unpacked(source, data) if packed else data, suffix)


def _read_stream(stream: Any, source: str) -> Table:
    if stream is None:
        raise DataError("it is closed. Give a file name or open it.", source=source)
    with _system_errors(source):
        data = stream.read()
    return read_content(source, data.encode(errors="surrogatepass") if isinstance(data, str) else bytes(data), "")


def read_content(source: str, data: bytes, suffix: str) -> Table:
    """The content of a file by the ending of its name; by its first bytes where that is empty.

    Raises:
        DataError: it cannot be read as a table.
    """
    if not suffix and data.startswith(GZIP):
        data = _unpacked(source, data)
    if not suffix and data.startswith(PARQUET):
        return _read_parquet(source, data)
    refuse_foreign(source, data)
    data = _as_utf8(source, data)
    if not suffix:
        suffix = _sniff(data)
        table = READERS[suffix](source, data)
        note = f"nothing names the format, and the content was read as {_name(suffix)}."
        return replace(table, notes=(note, *table.notes))
    if suffix not in JSON_SUFFIXES:
        refuse_json(source, data)
    return READERS[suffix](source, data)


@contextmanager
def _system_errors(source: str) -> Iterator[None]:
    """What the system says about a file that cannot be read becomes a :class:`DataError`."""
    try:
        yield
    except InputError:
        # Errors of this package are ValueErrors too.
        raise
    except FileNotFoundError:
        step = " This is an address: download the file first." if re.match(r"\w+:/", source) else names_like(source)
        raise DataError(f"there is no such file.{step or ' Check its name.'}", source=source) from None
    except UnicodeDecodeError:
        raise DataError(NOT_UTF8, source=source) from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        # A name with a NUL character is a ValueError.
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the file cannot be read: {reason}", source=source) from error


def refuse_foreign(source: str, data: bytes, besides: bytes | None = None) -> None:
    """Say what a file is that holds no text.

    Raises:
        DataError: it starts as one of ``FOREIGN`` and not with ``besides``.
    """
    head = data[:HEAD_BYTES]
    if besides is not None and head.startswith(besides):
        return
    for start, what, step in FOREIGN_STARTS:
        if start.match(head):
            raise DataError(f"this is {what}. {step}", source=source)


def refuse_json(source: str, data: bytes) -> None:
    """Refuse JSON whose name ends like that of another format.

    Raises:
        DataError: it is JSON.
    """
    if JSON_START.match(data):
        raise DataError("this is JSON. End its name in .json or .jsonl.", source=source)


def _unpacked(source: str, data: bytes) -> bytes:
    """The content of a file that is packed with gzip.

    Raises:
        DataError: it is not, is damaged, or grows so much that it was made to fill the memory.
    """
    if data and not data.startswith(GZIP):
        raise DataError("the file is not packed with gzip. Remove .gz from its name.", source=source)
    most = max(MOST_UNPACKED, MOST_UNPACKED_RATIO * len(data))
    with _system_errors(source), gzip.open(io.BytesIO(data)) as file:
        content = file.read(most + 1)
    if len(content) > most:
        problem = f"the file unpacks to more than {MOST_UNPACKED_RATIO} times its size. "
        raise DataError(f"{problem}If that is right, unpack it first.", source=source)
    return content


def _as_utf8(source: str, data: bytes) -> bytes:
    """A text in UTF-8 without a byte order mark.

    Raises:
        DataError: the text is UTF-32, or UTF-16 without a mark.
    """
    if data.startswith(codecs.BOM_UTF8):
        return data.removeprefix(codecs.BOM_UTF8)
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise DataError("the file is UTF-32. Save it as UTF-8.", source=source)
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            body, rest = (data[2:], b"") if len(data) % 2 == 0 else (data[2:-1], b"\xff")
            # Half a surrogate pair and half a character become bytes that are not UTF-8, so that their row is named.
            return body.decode(encoding, "surrogatepass").encode(errors="surrogatepass") + rest
    if WIDE_CHARACTERS.match(data):
        raise DataError("the file is UTF-16 without a byte order mark. Save it as UTF-8.", source=source)
    return data


def is_wide(data: bytes) -> bool:
    """Whether a text is UTF-16 or UTF-32, by its first bytes."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    return data.startswith(marks) or WIDE_CHARACTERS.match(data) is not None


def _sniff(data: bytes) -> str:
    """The ending that a name should have, by the start of the content."""
    if JSON_START.match(data):
        return ".json"
    first = re.search(rb"[^\r\n]+", data)
    return ".tsv" if first and b"\t" in first.group() else ".csv"


def _name(suffix: str) -> str:
    """The name of a format: ``".csv"`` -> ``"CSV"``."""
    return suffix.removeprefix(".").upper()


# --- Parquet --------------------------------------------------------------------------------------------------------


def _read_parquet(source: str, content: Path | bytes) -> Table:
    def cells(name: str) -> list[object]:
        with _parquet(source, content) as file:
            column = file.read(columns=[name]).column(0)
            if len(column) != rows:
                raise OSError(f"a column has {len(column)} cells, but there are {rows} rows")
            return with_class_names(arrow_cells(source, name, column), classes.get(name))

    with _parquet(source, content) as file:
        rows, names = file.metadata.num_rows, list(file.schema_arrow.names)
        classes = _class_names((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    return Table(source, rows, names, cells)


def _class_names(metadata: bytes) -> dict[str, list[str]]:
    """The class names of columns of ids, also of lists of ids, in a file that `datasets` has written."""
    try:
        features = dict(json.loads(metadata)["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: names for name, feature in features.items() if (names := _names_in(feature)) is not None}


def _names_in(feature: Any) -> list[str] | None:
    if isinstance(feature, list) and feature:
        return _names_in(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return [str(name) for name in feature["names"]]
    return _names_in(feature.get("feature"))


@contextmanager
def _parquet(source: str, content: Path | bytes) -> Iterator[Any]:
    pyarrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(content) if isinstance(content, bytes) else content) as file:
            yield file
    except InputError:
        # Errors of this package are ValueErrors too.
        raise
    except FileNotFoundError:
        raise DataError("there is no such file. Check its name.", source=source) from None
    except (OSError, ValueError, OverflowError, MemoryError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the file is not a Parquet file or is damaged: {reason}", source=source) from error


def _delimited(separator: str) -> Callable[[str, bytes], Table]:
    return lambda source, data: read_delimited(source, data, separator)


def _json(*, lines: bool) -> Callable[[str, bytes], Table]:
    return lambda source, data: read_json(source, data, lines=lines)


PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
READERS: dict[str, Callable[[str, bytes], Table]] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".tab": _delimited("\t"),
    ".jsonl": _json(lines=True),
    ".ndjson": _json(lines=True),
    ".json": _json(lines=False),
}
TEXT_SUFFIXES = tuple(READERS)

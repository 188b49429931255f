"""Input files in parts of whole rows: where the parts of a file end, and the rows of a part, block by block.

Parquet is read by row groups, CSV and JSON lines by ranges of bytes at the ends of rows. A file that is packed with
gzip is one part, which is unpacked while it is read. A file that `data/blocks.py` cannot divide is one part, too, and
is read as a whole.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

from ytuning.data.blocks import read_block, split_blocks, text_form
from ytuning.data.files import PARQUET_SUFFIXES, TEXT_SUFFIXES, read_content, suffix_of
from ytuning.data.labels import list_names
from ytuning.data.places import Folder, FoundFile, Inputs, find_files
from ytuning.data.tables import Table, table_in_memory
from ytuning.errors import DataError, InputError, YTuningError
from ytuning.progress import Progress
from ytuning.system.machine import require

__all__ = [
    "WINDOW_ROWS", "InputFile", "Part", "find_readable", "head_of", "no_rows", "parts_of", "read_part", "rows_of",
    "signature_of",
]  # fmt: skip

# Rows that are read and answered at a time. It is that of `tasks.predictor`, so that answers are those of one file.
WINDOW_ROWS = 2048
# A part has at most this many bytes of the input, so that the memory of a worker does not depend on its rows.
PART_BYTES = 64 << 20
# A block of rows has at most this many bytes.
BLOCK_BYTES = 8 << 20
# The largest file that can be read as a whole.
WHOLE_BYTES = 256 << 20
SIGNED_BYTES = 1 << 16


@dataclass(frozen=True)
class InputFile:
    """A file of the input.

    Attributes:
        path: path within the folder of the input.
        size: bytes.
        signature: hash of the size and of the first and the last 64 KiB, by which a changed file is noticed.
    """

    path: str
    size: int
    signature: str


@dataclass(frozen=True)
class Part:
    """Some rows of a file, one after the other.

    Attributes:
        start, stop: places of the first byte and after the last; of Parquet numbers of rows; of a file that is one part
            0 and its size.
        before: rows of the file that stand before them.
        rows: how many there are; None where nobody has counted them.
    """

    start: int
    stop: int
    before: int = 0
    rows: int | None = None

    def to_json(self) -> list[int | None]:
        """The numbers in the order of the attributes."""
        return list(asdict(self).values())


def find_readable(input: Inputs, progress: Progress) -> tuple[Folder, list[FoundFile]]:
    """The files of the input that can be read; the progress is told of others.

    Raises:
        InputError: there is none.
    """
    folder, files = find_files(input)
    readable = [file for file in files if _is_readable(file.path)]
    if not readable:
        names = list_names([file.path for file in files])
        raise InputError(
            f"{folder.name} has no file that can be read: {names}. File names must end in .parquet, .csv, .tsv, "
            ".jsonl or .json; .gz may follow, except for Parquet."
        )
    if ignored := [file.path for file in files if not _is_readable(file.path)]:
        progress.say(f"{folder.name}: files with other endings are left out: {list_names(ignored)}.")
    return folder, readable


def _is_readable(path: str) -> bool:
    """Whether the name of a file ends in a format that can be read."""
    suffix, packed = suffix_of(path)
    return suffix in TEXT_SUFFIXES or (suffix in PARQUET_SUFFIXES and not packed)


def signature_of(folder: Folder, file: FoundFile) -> InputFile:
    """A file with its signature.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256(str(file.size).encode())
    with folder.open(file.path) as stream, _system_errors(folder.name_of(file.path)):
        digest.update(stream.read(SIGNED_BYTES))
        if file.size > SIGNED_BYTES:
            stream.seek(max(SIGNED_BYTES, file.size - SIGNED_BYTES))
            digest.update(stream.read(SIGNED_BYTES))
    return InputFile(file.path, file.size, digest.hexdigest()[:32])


def head_of(folder: Folder, file: FoundFile) -> Table | Any | None:
    """The first rows of a text file, or the Arrow schema of a Parquet file; None where there are no rows.

    Raises:
        DataError: the file is something else than its name says.
    """
    if suffix_of(file.path)[0] in PARQUET_SUFFIXES:
        with _parquet(folder, file.path) as parquet:
            return parquet.schema_arrow if parquet.metadata.num_rows else None
    return next(_text_tables(folder, file.path, None, size=file.size), None)


def no_rows(folder: Folder, files: Sequence[FoundFile]) -> DataError:
    """Make the error that an input has no rows."""
    source = folder.name_of(files[0].path) if len(files) == 1 else folder.name
    return DataError("there are no rows. Give at least one.", source=source)


def rows_of(folder: Folder, file: FoundFile) -> int | None:
    """The number of rows of a file; None where only reading all of it would tell.

    Raises:
        DataError: the file cannot be read.
    """
    if suffix_of(file.path)[0] in PARQUET_SUFFIXES:
        with _parquet(folder, file.path) as parquet:
            return int(parquet.metadata.num_rows)
    parts = parts_of(folder, file, WINDOW_ROWS)
    return None if any(part.rows is None for part in parts) else sum(part.rows or 0 for part in parts)


def parts_of(folder: Folder, file: FoundFile, rows: int) -> list[Part]:
    """The parts of a file, of ``rows`` rows or less.

    Raises:
        DataError: the file cannot be read.
    """
    suffix, packed = suffix_of(file.path)
    if suffix in PARQUET_SUFFIXES:
        return _parts_of_parquet(folder, file, rows)
    if not file.size:
        return []
    source = folder.name_of(file.path)
    with folder.open(file.path) as stream, _system_errors(source):
        form = None if packed else text_form(source, stream, suffix)
        if form is None:
            return [] if head_of(folder, file) is None else [Part(0, file.size)]
        stream.seek(form.start)
        blocks = split_blocks(source, stream, form, rows=rows, most_bytes=PART_BYTES, only_sizes=True)
        return [Part(block.start, block.stop, block.before, block.rows) for block in blocks if block.rows]


def _parts_of_parquet(folder: Folder, file: FoundFile, rows: int) -> list[Part]:
    """Row groups together up to ``rows`` rows and ``PART_BYTES`` bytes; a larger one in several parts."""
    with _parquet(folder, file.path) as parquet:
        groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    parts, start, count, size = list[Part](), 0, 0, 0
    for of_group, bytes_of_group in sizes:
        if count and (count + of_group > rows or size + bytes_of_group > PART_BYTES):
            parts.append(Part(start, start + count, start, count))
            start, count, size = start + count, 0, 0
        count, size = count + of_group, size + bytes_of_group
        most = max(1, min(rows, count * PART_BYTES // max(size, 1)))
        while count > most:
            parts.append(Part(start, start + most, start, most))
            start, size, count = start + most, size - size * most // count, count - most
    return [*parts, Part(start, start + count, start, count)] if count else parts


def read_part(folder: Folder, path: str, part: Part, columns: Sequence[str]) -> Iterator[tuple[Table, Any]]:
    """The rows of a part, at most `WINDOW_ROWS` at a time: a table, and of Parquet the same rows as an Arrow table.

    Args:
        folder: folder of the file.
        path: path of the file in it.
        part: the part.
        columns: columns of a Parquet file to read; of other files all are read.

    Raises:
        DataError: the rows cannot be read; a row has its number in the file.
    """
    if suffix_of(path)[0] in PARQUET_SUFFIXES:
        yield from _read_parquet(folder, path, part, columns)
    else:
        for table in _text_tables(folder, path, part, size=part.stop):
            yield table, None


def _text_tables(folder: Folder, path: str, part: Part | None, *, size: int) -> Iterator[Table]:
    """The rows of a part of a text file, or from its beginning, a window at a time."""
    suffix, packed = suffix_of(path)
    source = folder.name_of(path)
    with folder.open(path) as plain, _system_errors(source):
        stream = cast("BinaryIO", gzip.GzipFile(fileobj=plain)) if packed else plain
        form = text_form(source, stream, suffix, divided=part is not None and part.rows is not None)
        stream.seek(0)
        if form is None:
            table = read_content(source, _whole(source, stream), suffix)
            yield from (_rows(table, first) for first in range(0, table.rows, WINDOW_ROWS))
            return
        divided = part is not None and not packed
        stream.seek(part.start if part is not None and divided else form.start)
        stop = size if divided else None
        for block in split_blocks(source, stream, form, stop=stop, rows=WINDOW_ROWS, most_bytes=BLOCK_BYTES):
            if block.rows:
                yield read_block(source, form, block, before=part.before if part is not None else 0)


def _rows(table: Table, first: int) -> Table:
    """Rows of a table from a place on, at most a window of them; they keep their numbers."""
    stop = min(first + WINDOW_ROWS, table.rows)
    numbers = table.row_numbers or range(1, table.rows + 1)
    return Table(
        table.source,
        stop - first,
        table.names,
        lambda name: table.cells(name)[first:stop],
        notes=table.notes,
        row_numbers=numbers[first:stop],
    )


def _whole(source: str, stream: BinaryIO) -> bytes:
    data = stream.read(WHOLE_BYTES + 1)
    if len(data) > WHOLE_BYTES:
        problem = f"the file can only be read as a whole, and has more than {WHOLE_BYTES >> 20} MiB. Write it as "
        raise DataError(
            f"{problem}JSON lines in UTF-8 (.jsonl), CSV without tabs between the cells, or Parquet.", source=source
        )
    return data


@contextmanager
def _system_errors(source: str) -> Iterator[None]:
    """Turn errors of reading into messages. A damaged file is a DataError; an error of the system may pass.

    Raises:
        DataError: it is not packed with gzip.
        YTuningError: the system or an object store cannot read it, which another attempt may not meet.
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"the file is not packed with gzip, or is damaged: {error}", source=source) from error
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise YTuningError(f"{source}: the file cannot be read: {reason}") from error


def _read_parquet(folder: Folder, path: str, part: Part, columns: Sequence[str]) -> Iterator[tuple[Table, Any]]:
    pyarrow = require("pyarrow", "parquet")
    source, held, first = folder.name_of(path), list[Any](), part.start
    with _parquet(folder, path) as parquet:
        for batch in _batches(parquet, part, columns):
            held.append(batch)
            # Windows begin at the same rows whatever the batches are.
            while sum(len(one) for one in held) >= WINDOW_ROWS or (held and first + sum(map(len, held)) == part.stop):
                rows = pyarrow.Table.from_batches(held)
                window = rows.slice(0, WINDOW_ROWS)
                yield _numbered(window, source, first), window
                first += len(window)
                held = rows.slice(len(window)).combine_chunks().to_batches() if len(rows) > len(window) else []


def _batches(parquet: Any, part: Part, columns: Sequence[str]) -> Iterator[Any]:
    """The rows of a part, as the file gives them."""
    groups, place, skip = list[int](), 0, 0
    for number in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(number).num_rows
        if place < part.stop and place + rows > part.start:
            skip = skip if groups else part.start - place
            groups.append(number)
        place += rows
    left = part.stop - part.start
    for batch in parquet.iter_batches(WINDOW_ROWS, row_groups=groups, columns=list(columns)):
        wanted = batch.slice(skip, left)
        skip, left = max(0, skip - len(batch)), left - len(wanted)
        if len(wanted):
            yield wanted
        if not left:
            return


def _numbered(rows: Any, source: str, before: int) -> Table:
    table = table_in_memory(rows)
    return Table(source, table.rows, table.names, table.cells, row_numbers=range(before + 1, before + 1 + table.rows))


@contextmanager
def _parquet(folder: Folder, path: str) -> Iterator[Any]:
    pyarrow, module = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    source = folder.name_of(path)
    with folder.open_arrow(path) as stream, _system_errors(source):
        try:
            # Without a buffer the columns of a row group would be read as a whole.
            with module.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False) as file:
                yield file
        except (ValueError, OverflowError, OSError, pyarrow.ArrowException) as error:
            # An error of a disk has a number, and pyarrow's own about the content has none.
            is_content = not folder.is_remote and getattr(error, "errno", None) is None
            if isinstance(error, DataError) or (isinstance(error, OSError) and not is_content):
                raise
            reason = " ".join(str(error).split())
            raise DataError(f"the file is not a Parquet file or is damaged: {reason}", source=source) from error

"""Text files a block of whole rows at a time, so that memory does not grow with the file.

Each block is read by the rule of `data/files.py`. Where a file can only be read by that rule as a whole (a JSON array,
UTF-16, a TSV file with quotes), it has no blocks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

from ytuning.data.delimited import LARGEST_CELL, is_header_quoted, separator_of
from ytuning.data.files import HEAD_BYTES, JSON_SUFFIXES, is_wide, read_content, refuse_foreign, refuse_json
from ytuning.data.json_rows import is_begun
from ytuning.data.tables import Table
from ytuning.errors import DataError

__all__ = ["Block", "TextForm", "read_block", "split_blocks", "text_form"]

# A row of this many bytes is no row: a quote is not closed, or the file has no line ends.
LARGEST_ROW = 64 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TextForm:
    """How the rows of a text file are told apart.

    Attributes:
        suffix: ending of the file's name, which says the format.
        header: bytes of the header with the line end; none of JSON lines.
        start: place of the first byte after the header.
        separator: mark between the cells; None of JSON lines.
    """

    suffix: str
    header: bytes
    start: int
    separator: str | None

    def is_blank(self, line: bytes) -> bool:
        """Whether a line is no row."""
        return not line.strip(b" \t\r\n" if self.separator is None else b"\r\n")


@dataclass(frozen=True)
class Block:
    """Some whole rows of a file.

    Attributes:
        data: their bytes; none if only sizes are asked for.
        start: place of the first byte in the file.
        size: number of their bytes.
        rows: how many there are.
        before: rows of the file, or of the part that is read, that stand before them.
    """

    data: bytes
    start: int
    size: int
    rows: int
    before: int

    @property
    def stop(self) -> int:
        """The place after the last byte."""
        return self.start + self.size


def text_form(source: str, stream: BinaryIO, suffix: str, *, divided: bool = False) -> TextForm | None:
    """The form of a file by its first bytes; None where it can only be read as a whole.

    Args:
        source: name of the file, for messages.
        stream: a stream at the start of the file, which may be moved.
        suffix: ending of the file's name.
        divided: whether the file is known to have blocks, so that it need not be searched for quotes.

    Raises:
        DataError: the file is something else than its name says.
    """
    head = stream.read(HEAD_BYTES)
    refuse_foreign(source, head)
    if suffix == ".json" or is_wide(head) or (b"\n" not in head and b"\r" in head):
        return None
    start = len(BOM) if head.startswith(BOM) else 0
    lines = io.BytesIO(head[start:])
    # A header, or a first row, that is longer than the head ends with it: what follows from its start is the same.
    first = next((line for line in lines if line.strip()), b"")
    if suffix in JSON_SUFFIXES:
        return None if first.lstrip().startswith(b"[") or is_begun(first) else TextForm(suffix, b"", start, None)
    refuse_json(source, head[start:])
    separator = separator_of(first, "," if suffix == ".csv" else "\t")
    if separator == "\t" and not is_header_quoted(first) and not divided:
        # Whether quotes are characters is told by all rows together.
        stream.seek(0)
        while part := stream.read(HEAD_BYTES * 16):
            if b'"' in part:
                return None
    stream.seek(start)
    form = TextForm(suffix, b"", start, separator)
    for header in _records(source, stream, form):
        start += len(header)
        # Blank lines may stand before the header.
        if not form.is_blank(header):
            return replace(form, header=header, start=start)
    return form


def split_blocks(
    source: str,
    stream: BinaryIO,
    form: TextForm,
    *,
    stop: int | None = None,
    rows: int,
    most_bytes: int,
    only_sizes: bool = False,
) -> Iterator[Block]:
    """Blocks of at most ``rows`` rows, which end earlier where they have ``most_bytes`` bytes.

    Args:
        source: name of the file, for messages.
        stream: a stream at a place where a row begins.
        form: form of the file.
        stop: place of the end; None for that of the file.
        rows: rows of a block.
        most_bytes: bytes of a block.
        only_sizes: whether the blocks have no data, for those who want to know where they end.

    Raises:
        DataError: a row is too long.
    """
    start = place = stream.tell()
    before, count, parts = 0, 0, list[bytes]()
    for record in _records(source, stream, form):
        if stop is not None and place >= stop:
            break
        if not only_sizes:
            parts.append(record)
        place += len(record)
        count += not form.is_blank(record)
        if count == rows or place - start >= most_bytes:
            yield Block(b"".join(parts), start, place - start, count, before)
            start, before, count, parts = place, before + count, 0, []
    if place > start:
        yield Block(b"".join(parts), start, place - start, count, before)


def read_block(source: str, form: TextForm, block: Block, *, before: int = 0) -> Table:
    """The rows of a block as a table, whose rows have their numbers in the file.

    Args:
        source: name of the file, for messages.
        form: form of the file.
        block: the block.
        before: rows of the file that stand before the part that the block was counted in.

    Raises:
        DataError: as `files.read_table`; the row is that of the file.
    """
    first = before + block.before
    with _numbered_after(first):
        table = read_content(source, form.header + block.data, form.suffix)

    def cells(name: str) -> list[object]:
        with _numbered_after(first):
            return table.cells(name)

    return replace(table, cells=cells, row_numbers=range(first + 1, first + 1 + table.rows))


@contextmanager
def _numbered_after(rows: int) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise error.after(rows) from None


def _records(source: str, stream: BinaryIO, form: TextForm) -> Iterator[bytes]:
    """The lines of a stream, of which those that a quoted cell spans stay together."""
    lines = iter(lambda: stream.readline(LARGEST_ROW), b"")
    for line in lines:
        if len(line) == LARGEST_ROW:
            raise _too_long(source)
        if form.separator is None or b'"' not in line:
            yield line
        else:
            parts = [line]
            csv.field_size_limit(LARGEST_CELL)
            # A broken quote is told with its row when the block is read.
            with suppress(csv.Error, StopIteration):
                next(csv.reader(_collected(source, parts, lines), delimiter=form.separator, strict=True))
            yield b"".join(parts)


def _collected(source: str, parts: list[bytes], lines: Iterator[bytes]) -> Iterator[str]:
    """The line that is there and those that follow, as a reader of CSV asks for them; all stay in ``parts``."""
    # Bytes that are not UTF-8 are told when the block is read.
    yield parts[0].decode(errors="replace")
    size = len(parts[0])
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > LARGEST_ROW:
            raise _too_long(source)
        yield line.decode(errors="replace")


def _too_long(source: str) -> DataError:
    problem = (
        f"a row has more than {LARGEST_ROW >> 20} MiB. A double quote may not be closed, or line ends are missing. "
    )
    return DataError(f"{problem}Write one row on each line.", source=source)

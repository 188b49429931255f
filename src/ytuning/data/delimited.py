"""Bytes of a CSV or TSV file -> :class:`Table`: which marks separate cells, and when a double quote is a character.

CSV is read as RFC 4180 says. In TSV, quotes are characters, unless the file clearly quotes (:func:`_read_tabs`).
A lone quote can make one row of two. Where the lines of one cell could as well be rows, this is refused or told.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ytuning.data.labels import first_of, quote
from ytuning.data.tables import NOT_UTF8, Table, is_unicode
from ytuning.errors import DataError, quantity

__all__ = ["SEPARATORS", "is_header_quoted", "read_delimited", "separator_of"]

# Maximum number of characters in a cell; Python's own limit of 131,072 is shorter than some documents.
LARGEST_CELL = 2**31 - 1
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
# A cell that is quoted as RFC 4180 says. Possessive quantifiers keep the search linear, and that a quote comes first
# makes it fast.
QUOTED_CELL = re.compile(rb'"(?<![^\t\r\n]")[^"]*+(?:""[^"]*+)*+"(?![^\t\r\n])')
LISTED_ROWS = 5


@dataclass
class _Records:
    """What a file holds.

    Attributes:
        header: names of the columns.
        rows: cells of each row.
        blank_lines: number of lines without content.
        doubtful: rows of several lines, each of which could be a row by itself, with the number of the first line and
            the lines.
        other_ends: rows that do not end as the header does; a carriage return may have been a part of them.
    """

    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    blank_lines: int = 0
    doubtful: dict[int, tuple[int, list[str]]] = field(default_factory=dict)
    other_ends: list[int] = field(default_factory=list)


class _Lines:
    """The lines of a text with their ends; ``of_record`` are those that were read since it was last cleared."""

    def __init__(self, data: bytes, errors: str = "strict") -> None:
        self._lines = io.TextIOWrapper(io.BytesIO(data), "utf-8", errors, newline="")
        self.of_record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.of_record.append(line)
            yield line


def read_delimited(source: str, data: bytes, separator: str) -> Table:
    """A table of a header and rows.

    The header tells which mark separates the cells: the one that is asked for, if it occurs there, else another one.

    Args:
        source: name of the file, for messages.
        data: content in UTF-8.
        separator: the mark that the format has.

    Raises:
        DataError: a row has more or fewer cells than the header, its quotes are broken, its text is not UTF-8, or it
            may as well be several rows; the file is empty.
    """
    # The limit holds for the whole process. It is not put back, because another thread may be reading too.
    csv.field_size_limit(LARGEST_CELL)
    used = separator_of(data, separator)
    notes: list[str] = []
    if used != separator:
        notes.append(f"a {SEPARATORS[used]} separates the cells, not a {SEPARATORS[separator]}.")
    try:
        if used == "\t":
            records = _read_tabs(source, data, notes)
        else:
            records = _read_records(source, data, used, quoted=True)
            _settle_doubts(source, records, used, notes)
    except UnicodeDecodeError:
        raise _undecodable(source, data, used) from None
    if records.other_ends:
        notes.append(f"lines end in different ways; {_list_rows(records.other_ends)} not as the first line does.")
    header, rows = records.header, records.rows
    # Files that were joined repeat it. With one column, a row may well say what the column is called.
    if len(header) > 1 and header in rows:
        raise DataError("the row repeats the header. Remove it.", source=source, row=rows.index(header) + 1)

    def cells(name: str) -> list[object]:
        place = header.index(name)
        return [row[place] for row in rows]

    return Table(source, len(rows), header, cells, records.blank_lines, tuple(notes))


def separator_of(data: bytes, separator: str) -> str:
    """The mark between the cells of the header; the one that is asked for if the header has none or that one."""
    first = re.search(rb"[^\r\n]+", data)
    line = first.group().decode(errors="replace") if first else ""
    bare = re.sub(r'"[^"]*"?', "", line)
    return next((mark for mark in (separator, *SEPARATORS) if mark in bare), separator)


def _read_tabs(source: str, data: bytes, notes: list[str]) -> _Records:
    """Rows of tab-separated cells, of which quotes are part unless the file clearly quotes.

    It does if a cell of the header starts with a quote. It also does if every quote in the file belongs to a cell that
    is quoted as RFC 4180 says, and either such a cell has doubled quotes in it, or the rows do not fit the header
    otherwise. What was decided is noted where both readings are possible.

    Raises:
        DataError: neither reading gives rows as wide as the header; or both do and differ in the rows, so that one cell
            looks like several rows.
    """
    if is_header_quoted(data):
        records = _read_records(source, data, "\t", quoted=True)
        _settle_doubts(source, records, "\t", notes)
        return records
    if b'"' not in data:
        return _read_records(source, data, "\t", quoted=False)
    cells = QUOTED_CELL.findall(data)
    quoted = None
    if cells and b'"' not in QUOTED_CELL.sub(b"", data):
        # Where quoted cells do not fit the header, the other reading says what is wrong.
        with suppress(DataError):
            quoted = _read_records(source, data, "\t", quoted=True)
    try:
        plain = _read_records(source, data, "\t", quoted=False)
    except DataError:
        if quoted is None:
            raise
        _settle_doubts(source, quoted, "\t", notes)
        return quoted
    if quoted is not None and any(b'""' in cell[1:-1] for cell in cells):
        if quoted.doubtful:
            raise _doubt(source, *next(iter(quoted.doubtful.items())))
        notes.append("cells in double quotes were read as quoted, because quotes within them are doubled.")
        return quoted
    if rows := [row for row, record in enumerate(plain.rows, 1) if any(cell.startswith('"') for cell in record)]:
        notes.append(
            f"quotes are characters in a TSV file; cells start with one in {_list_rows(rows)}. If the file quotes its "
            "cells, save it as CSV."
        )
    return plain


def is_header_quoted(data: bytes) -> bool:
    """Whether a cell of a tab-separated header starts with a double quote."""
    header = re.search(rb"[^\r\n]+", data)
    return header is not None and re.search(rb'(?<![^\t])"', header.group()) is not None


def _read_records(source: str, data: bytes, separator: str, *, quoted: bool) -> _Records:
    """Header and rows; strict, as a lenient reader swallows rows without a word.

    Raises:
        DataError: the file is empty, a quote is broken, or a row is not as wide as the header.
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    records = _Records()
    lines = _Lines(data)
    reader = csv.reader(
        lines, delimiter=separator, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    )
    line, first_end, mixed = 0, "", _has_mixed_ends(data)
    try:
        for record in reader:
            # Few files mix line ends, and most of the time goes into what is done for every row.
            if mixed:
                end = _line_end(lines.of_record[-1])
                first_end = first_end or end
                if end not in ("", first_end):
                    records.other_ends.append(len(records.rows) + 1)
            if not record:
                records.blank_lines += 1
            elif not records.header:
                records.header = record
            else:
                records.rows.append(record)
                if len(record) != len(records.header):
                    raise _wrong_width(source, records, separator, quoted=quoted)
                if len(lines.of_record) > 1 and _are_like_rows(lines.of_record, separator, len(record)):
                    records.doubtful[len(records.rows)] = line + 1, lines.of_record.copy()
            line = reader.line_num
            lines.of_record.clear()
    except csv.Error:
        problem = f"a double quote in this row (line {line + 1}) is never closed, or text follows the closing "
        problem += "quote. Inside a quoted cell write each quote twice."
        row = len(records.rows) + 1 if records.header else None
        raise DataError(problem, source=source, row=row) from None
    if not records.header:
        raise DataError("the file is empty. Give one with rows.", source=source)
    if records.header[0].startswith("sep="):
        raise DataError(
            f"the first line {quote(separator.join(records.header))} is for Excel. Remove it.", source=source
        )
    return records


def _has_mixed_ends(data: bytes) -> bool:
    """Whether lines may end in different ways, within quoted cells too."""
    feeds, returns = data.count(b"\n"), data.count(b"\r")
    return bool(feeds and returns) and not feeds == returns == data.count(b"\r\n")


def _line_end(line: str) -> str:
    """The line feed, carriage return or both at the end of a line; the last line of a file may have none."""
    if line.endswith("\r\n"):
        return "\r\n"
    return line[-1] if line.endswith(("\n", "\r")) else ""


def _are_like_rows(lines: list[str], separator: str, width: int) -> bool:
    """Whether each line but blank ones has the cells of a row, if quotes are characters."""
    # A file may have a blank line after each row, so blank lines within a cell say nothing about it.
    return all(line.count(separator) == width - 1 for line in _without_blank(lines))


def _without_blank(lines: list[str]) -> list[str]:
    return [line for line in lines if line.strip("\r\n")]


def _wrong_width(source: str, records: _Records, separator: str, *, quoted: bool) -> DataError:
    """Make the error that the last row is not as wide as the header."""
    row = len(records.rows)
    problem = f"the row has {quantity(len(records.rows[-1]), 'cell')}, but the header has {len(records.header)}. "
    if records.other_ends[-1:] == [row]:
        problem += "It does not end as the first line does: a carriage return or line feed in a cell may have cut it. "
    if quoted:
        problem += f"Put cells that contain a {SEPARATORS[separator]} or a line end in double quotes."
    else:
        problem += "Replace the tabs and line ends within cells, or save the file as CSV."
    return DataError(problem, source=source, row=row)


def _settle_doubts(source: str, records: _Records, separator: str, notes: list[str]) -> None:
    """Note the rows whose lines could be rows by themselves, unless it is likely that they are.

    Raises:
        DataError: each line of such a row has, in one column, a value that other rows have there too. So the quote at
            its start is likely to be a character.
    """
    if not records.doubtful:
        return
    others = [row for number, row in enumerate(records.rows, 1) if number not in records.doubtful]
    values = [set(column) - {""} for column in zip(*others, strict=True)]
    for row, (line, lines) in records.doubtful.items():
        columns = zip(*(text.rstrip("\r\n").split(separator) for text in _without_blank(lines)), strict=True)
        if any(known.issuperset(cells) for known, cells in zip(values, columns, strict=False)):
            raise _doubt(source, row, (line, lines))
    rows = _list_rows(list(records.doubtful))
    notes.append(f"quoted cells span several lines, each of which could be a row by itself, in {rows}.")


def _doubt(source: str, row: int, where: tuple[int, list[str]]) -> DataError:
    line, lines = where
    problem = f"a cell in double quotes spans the lines {line} to {line + len(lines) - 1}, but each of them looks like "
    problem += "a whole row. If the quote is a character, put its cell in double quotes and write each quote in it "
    return DataError(f"{problem}twice; else join the lines.", source=source, row=row)


def _list_rows(rows: list[int]) -> str:
    """Numbers of rows as a note lists them: ``"row 3"``, ``"rows 3, 7, ... (9 in all)"``."""
    return f"row{'s' * (len(rows) > 1)} {first_of(list(map(str, rows)), LISTED_ROWS)}"


def _undecodable(source: str, data: bytes, separator: str) -> DataError:
    """Where a file is not UTF-8; read again, because decoding runs ahead of the rows."""
    # Bytes that are not UTF-8 become surrogates, which no UTF-8 text holds.
    lines = _Lines(data, "surrogateescape")
    quoted = separator != "\t" or is_header_quoted(data)
    reader = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    header: list[str] = []
    for row, record in enumerate(record for record in reader if record):
        header = header or record
        bad = next((place for place, cell in enumerate(record) if not is_unicode(cell)), None)
        if bad is not None:
            column = header[bad] if row and bad < len(header) else None
            return DataError(NOT_UTF8, source=source, row=row or None, column=column)
    return DataError(NOT_UTF8, source=source)

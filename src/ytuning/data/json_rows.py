"""Bytes of a JSON file -> :class:`Table`: JSON lines, a list of objects, or one object that holds a table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from ytuning.data.labels import list_names, quote
from ytuning.data.tables import NOT_UTF8, Table, table_of_columns, table_of_rows
from ytuning.errors import DataError

__all__ = ["is_begun", "read_json"]

LINE = re.compile(rb"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
SPACE = re.compile(r"[ \t\r\n]*")


class _RepeatedKeys(dict[str, object]):
    """An object that has a key more than once; ``repeated`` are these keys."""

    repeated: frozenset[str] = frozenset()


def _record(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    repeats = _RepeatedKeys(record)
    names = [name for name, _ in pairs]
    repeats.repeated = frozenset(name for name in record if names.count(name) > 1)
    return repeats


DECODER = json.JSONDecoder(object_pairs_hook=_record)


def read_json(source: str, data: bytes, *, lines: bool) -> Table:
    """A table of objects.

    Args:
        source: name of the file, for messages.
        data: content in UTF-8: a list of objects; objects one after the other, usually one a line; or one object that
            holds a table, as :func:`_table_of_object` says.
        lines: each object on a line of its own is a row, even if it is the only one.

    Raises:
        DataError: this is not JSON or not a table, or a row has a column that is asked for more than once.
    """
    if re.match(rb"\s*\[", data):
        rows = _parse(source, data, DECODER.decode)
        return _table_of_rows(source, cast("list[object]", rows))
    values: list[object] = []
    blank = 0
    # One line after the other, as a list of all lines would be a second copy of the file.
    for match in LINE.finditer(data):
        line = match.group()
        if not line.strip():
            blank += 1
            continue
        if not values and is_begun(line):
            values = cast("list[object]", _parse(source, data, _all_values))
            # White space between the lines of an object is no row.
            lines, blank = False, 0
            break
        values.append(_parse(source, line.rstrip(), DECODER.decode, len(values) + 1))
    if not values:
        raise DataError("the file is empty. Give one with rows.", source=source)
    if len(values) == 1 and isinstance(values[0], dict) and not lines:
        return replace(_table_of_object(source, values[0]), blank_lines=blank)
    return replace(_table_of_rows(source, values), blank_lines=blank)


def _parse(source: str, data: bytes, decode: Callable[[str], object], row: int | None = None) -> object:
    try:
        return decode(data.decode())
    except UnicodeDecodeError:
        raise DataError(NOT_UTF8, source=source, row=row or _undecodable_row(data)) from None
    except json.JSONDecodeError as error:
        place = f"character {error.colno}" if row else f"line {error.lineno}, character {error.colno}"
        problem = f"this is not valid JSON: {error.msg.removesuffix(' at')} ({place})."
        if error.pos == 0 and row in (None, 1):
            problem += " If it is CSV or TSV, end its name in .csv or .tsv."
        raise DataError(problem, source=source, row=row) from None
    except RecursionError:
        raise DataError("this JSON is nested too deeply. Write flat rows.", source=source, row=row) from None
    except ValueError as error:
        # JSON may hold numbers beyond Python's limits.
        raise DataError(f"this JSON cannot be read: {error}", source=source, row=row) from None


def _undecodable_row(data: bytes) -> int | None:
    """The first object of a list that is not UTF-8, counted from 1; None if this is no list."""
    try:
        # Bytes that are not UTF-8 become surrogates, which no UTF-8 text holds.
        rows = json.loads(data.decode(errors="surrogateescape"))
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    except (ValueError, RecursionError, TypeError):
        return None
    return next((row for row, text in enumerate(texts, 1) if re.search("[\udc80-\udcff]", text)), None)


def is_begun(line: bytes) -> bool:
    """Whether a line is the start of an object that ends on a later line."""
    text = line.decode(errors="replace").rstrip()
    try:
        DECODER.decode(text)
    except json.JSONDecodeError as error:
        return text.lstrip().startswith("{") and error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return False


def _all_values(text: str) -> list[object]:
    """The JSON values that stand one after the other in a text, whatever their lines."""
    values: list[object] = []
    place = cast("re.Match[str]", SPACE.match(text)).end()
    while place < len(text):
        value, place = DECODER.raw_decode(text, place)
        values.append(value)
        place = cast("re.Match[str]", SPACE.match(text, place)).end()
    return values


def _table_of_rows(source: str, rows: list[object]) -> Table:
    table = table_of_rows(rows, source)

    def cells(name: str) -> list[object]:
        for row, record in enumerate(rows, 1):
            if isinstance(record, _RepeatedKeys) and name in record.repeated:
                problem = f"the object has more than one key {quote(name)}. Keep one of them."
                raise DataError(problem, source=source, row=row)
        return table.cells(name)

    return replace(table, cells=cells)


def _table_of_object(source: str, value: dict[str, Any]) -> Table:
    """The table that one object holds, which is noted unless the object is a row.

    It is the only list of objects in it, ``{"data": [{...}, ...]}``, which has no key of the object itself; or a list
    for each column; or what pandas writes: for each column an object of cells by row number, or for each row number an
    object of cells by column. An object of values and lists of values is one row.

    Raises:
        DataError: it is none of these, or it may be a row that holds such a list.
    """
    tables = [name for name, cells in value.items() if _is_list_of(dict, cells)]
    if len(tables) == 1:
        table = _table_of_rows(source, value[tables[0]])
        # The object may be a row with a list of its tokens or spans.
        if shared := [name for name in table.names if name in value]:
            problem = f"the keys {list_names(shared)} are in the JSON object and in its list {quote(tables[0])}, so "
            problem += "either may be the rows. Write a list of objects, or .jsonl with one object on each line."
            raise DataError(problem, source=source)
        return replace(table, notes=(f"the rows are the list {quote(tables[0])} of a JSON object.",))
    parts = list(value.values())
    note = "the JSON object has a column under each key."
    if not tables and parts and all(isinstance(part, list) for part in parts):
        return replace(table_of_columns(value, source), notes=(note,))
    if _is_list_of(dict, parts):
        keys = list(parts[0])
        if keys and all(part.keys() == parts[0].keys() for part in parts):
            if _are_numbers(keys) and not _are_numbers(list(value)):
                columns = {name: [part[key] for key in keys] for name, part in value.items()}
                return replace(table_of_columns(columns, source), notes=(note,))
            if _are_numbers(list(value)) and not _are_numbers(keys):
                rows = _table_of_rows(source, parts)
                return replace(rows, notes=("the JSON object has a row under each key.",))
    if not tables and not any(isinstance(part, dict) for part in parts):
        return _table_of_rows(source, [value])
    problem = f"the file is one JSON object with the keys {list_names(list(value))}, not a list of rows. "
    raise DataError(f"{problem}Write a list of objects, or .jsonl with one object on each line.", source=source)


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, kind) for part in value)


def _are_numbers(keys: list[str]) -> bool:
    return all(key.isascii() and key.isdigit() for key in keys)

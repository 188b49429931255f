"""Cells of a label column -> label names, sets of names or numbers; complaints name row and column."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Literal, NoReturn

import numpy as np

from ytuning.labels import Kind, shown
from ytuning.tables import Column
from ytuning.targets import Labels

__all__ = ["SEPARATORS", "UNKNOWN", "read_labels"]

LISTS = (list, tuple, set, np.ndarray)
SEPARATORS = ("|", ";", ",")
UNKNOWN = ""  # separator
MOSTLY = 0.9  # of the labels are numbers: then the others are taken for mistakes, not for names
LARGEST_NUMBER = 1e150  # in size: squares of larger ones are beyond what 64 bits hold, and so is their spread
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def read_labels(
    column: Column,
    kind: Kind | Literal["auto"],
    known: Collection[str] = (),
    separator: str | None = UNKNOWN,
) -> tuple[Labels, Kind, str | None]:
    """The labels of the rows, the kind of task that they are for, and the mark at which texts were split."""
    if kind == "multi" or (kind == "auto" and any(isinstance(cell, LISTS) for cell in column.cells)):
        separator = _separator(column, set(known), separator)
        return _label_lists(column, separator), "multi", separator
    guessed = kind == "auto" and _are_numbers(column.cells)
    if kind == "regression" or guessed:
        numbers = [_number(column, row, cell, guessed=guessed) for row, cell in enumerate(column.cells, 1)]
        return numbers, "regression", None
    names = [_label_name(column, row, cell) for row, cell in enumerate(column.cells, 1)]
    return names, "single" if kind == "auto" else kind, None


def _are_numbers(cells: Sequence[object]) -> bool:
    """Whether all labels, or all but a few mistakes, are numbers and one of them has a fraction."""
    numbers = [text for cell in cells if NUMBER.fullmatch(text := str(cell).strip())]
    return len(numbers) >= MOSTLY * len(cells) and not all(map(_is_whole, numbers))


def _is_whole(number: str) -> bool:
    return number.lstrip("+-").isdigit() or float(number).is_integer()


def _number(column: Column, row: int, cell: object, *, guessed: bool) -> float:
    """A regression target; ``guessed``: the kind was inferred from the labels, and may be another."""
    infinite = isinstance(cell, float | np.floating) and np.isinf(cell)
    text = str(cell) if infinite else _label_name(column, row, cell)
    number = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        remedy = "Write it as 3 or 3.5"
        if guessed:
            remedy = f"The labels are taken for numbers, as nearly all are. {remedy}, remove the row, or say that the "
            remedy += "labels are names: kind='single' (--kind single)"
        raise column.error(row, f"the label {shown(text)} is not a number that is finite. {remedy}")
    if abs(number) > LARGEST_NUMBER:
        problem = f"the number {shown(cell)} is too large: up to {LARGEST_NUMBER:g} can be reckoned with. "
        raise column.error(row, f"{problem}Correct it or remove the row")
    return number


def _separator(column: Column, known: set[str], first: str | None) -> str | None:
    """The first mark that occurs in texts with several labels, or that under which most hold ``known`` labels only."""
    texts = [cell for cell in column.cells if isinstance(cell, str) and not cell.lstrip().startswith("[")]
    marks: list[str | None] = [*(mark for mark in SEPARATORS if any(mark in text for text in texts)), None]
    if not known:
        return marks[0]
    if first != UNKNOWN:
        marks.sort(key=lambda mark: (mark != first, mark is not None))
    return max(marks, key=lambda mark: sum(known.issuperset(_split(text, mark)) for text in texts))


def _split(text: str, separator: str | None) -> list[str]:
    parts = [text] if separator is None else text.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _label_lists(column: Column, separator: str | None) -> list[tuple[str, ...]]:
    """The label names of each row, each once."""
    rows: list[tuple[str, ...]] = []
    for row, cell in enumerate(column.cells, 1):
        names = _several(column, row, cell, separator)
        rows.append(tuple(dict.fromkeys(_label_name(column, row, name) for name in names)))
    return rows


def _several(column: Column, row: int, cell: object, separator: str | None) -> list[object]:
    if isinstance(cell, LISTS):
        return sorted(cell, key=str) if isinstance(cell, set) else list(cell)
    if not isinstance(cell, str):  # a missing cell is refused as a name would be: it may be a mistake
        text = "the labels are missing. Write an empty list, or an empty text, if the row has none"
        number = isinstance(cell, int | float | np.number) and math.isfinite(cell)
        return [_label_name(column, row, cell)] if number else _refuse(column, row, text)
    if cell.lstrip().startswith("["):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError) as error:
            reason = "it is too deep" if isinstance(error, RecursionError) else str(error)
            raise column.error(row, f'the labels {shown(cell)} are no list ({reason}). Write ["a", "b"]') from error
        return list(found)
    return list(_split(cell, separator))


def _refuse(column: Column, row: int, problem: str) -> NoReturn:
    raise column.error(row, problem)


def _label_name(column: Column, row: int, cell: object) -> str:
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float) and math.isfinite(cell):
        return str(int(cell)) if cell.is_integer() else repr(cell)
    if isinstance(cell, LISTS):
        problem = f"the label is a list, {shown(cell)}, where one label is wanted. "
        raise column.error(row, f"{problem}Give each row one label, or use kind='multi' (--kind multi)")
    return column.text(row, cell, "label").strip()  # of all white space that Unicode knows: nobody means it

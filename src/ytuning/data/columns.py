"""Which columns of a table are texts and labels, and what their cells say: names, sets of names or numbers."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np

from ytuning.data.kinds import Labels
from ytuning.data.labels import Kind, did_you_mean, listed, shown
from ytuning.data.tables import Column, Table
from ytuning.errors import DataError, InputError

__all__ = ["SEPARATORS", "UNKNOWN", "Columns", "Role", "choose_columns", "label_sets", "read_labels"]

Role = Literal["text", "text_pair", "label", "group"]
DEFAULT_NAMES: dict[Role, tuple[str, ...]] = {
    "text": ("text", "sentence"),
    "text_pair": ("text_pair",),
    "label": ("label", "labels"),
}
"""Of a group column there is none: nobody should find rows kept together without having asked for it."""
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a data set was made of, named by the user or inferred.

    Attributes:
        text, text_pair: of the texts.
        label: of the labels; a tuple of columns of 0 and 1, each of which is a label.
        group: whose equal values keep rows on one side of a split.
    """

    text: str
    text_pair: str | None = None
    label: str | tuple[str, ...] | None = None
    group: str | None = None

    @property
    def spelt(self) -> dict[Role, str]:
        """Each column that was found as an option names it, of several all with commas, by its role."""
        found: list[tuple[Role, str | tuple[str, ...] | None]] = [
            ("text", self.text),
            ("text_pair", self.text_pair),
            ("label", self.label),
            ("group", self.group),
        ]
        return {role: name if isinstance(name, str) else ",".join(name) for role, name in found if name is not None}


def choose_columns(
    table: Table,
    text: str | None,
    text_pair: str | None,
    label: str | Sequence[str] | None,
    *,
    labelled: bool,
    group: str | None = None,
) -> Columns:
    """The column for each role: the one the user named, else one that has a default name and no other role.

    Args:
        table: has the columns.
        text: name.
        text_pair: name.
        label: name; several as a sequence, or with commas where no column has the whole as its name.
        labelled: False: no label column is looked for, and one that is named is ignored.
        group: name; it may be that of a text column, so that rows with the same text stay together.

    Raises:
        InputError: a column is named twice.
        DataError: a column is not there.
    """
    named: dict[Role, list[str] | None] = {
        "text": None if text is None else [text],
        "text_pair": None if text_pair is None else [text_pair],
        "label": _label_names(table, label) if labelled else None,
    }
    chosen = {role: [_existing(table, role, name) for name in names] for role, names in named.items() if names}
    used = [name for names in chosen.values() for name in names]
    if len(set(used)) < len(used):
        uses = ", ".join(f"{role}={shown(','.join(names))}" for role, names in chosen.items())
        raise InputError(f"each column can have only one use. Got {uses}.")
    for role in named:
        if role in chosen or (role == "label" and not labelled):
            continue
        if free := [name for name in DEFAULT_NAMES[role] if name in table.names and name not in used]:
            chosen[role] = free[:1]
            used += free[:1]
        elif role != "text_pair":
            raise _not_there(table, role, chosen)
    single = {role: names[0] for role, names in chosen.items()}
    several = label is not None and labelled and single["label"] != label
    labels = tuple(chosen["label"]) if several else single.get("label")
    together = None if group is None else _existing(table, "group", group)
    return Columns(single["text"], single.get("text_pair"), labels, together)


def _not_there(table: Table, role: Role, chosen: dict[Role, list[str]]) -> DataError:
    """That no column has a default name of ``role``, or that the one that has it was given another use."""
    looked_for = " or ".join(shown(name) for name in DEFAULT_NAMES[role])
    problem = f"there is no column {looked_for}"
    for other, names in chosen.items():
        if taken := [name for name in names if name in DEFAULT_NAMES[role]]:
            option = f"{other}= (--{other.replace('_', '-')})"
            problem = f"{option} uses the column {shown(taken[0])} already, and there is no other column {looked_for}"
    remedy = f"Name the {role} column with {role}= (--{role}); the columns are {listed(table.names)}."
    return DataError(f"{problem}. {remedy}", source=table.source)


def _label_names(table: Table, label: str | Sequence[str] | None) -> list[str] | None:
    """The columns that a user names; blanks around a comma belong to a name only where the table has it so."""
    if label is None:
        return None
    if not isinstance(label, str):
        if not label:
            raise InputError("label= names no column. Give at least one or leave it out.")
        return list(label)
    if label in table.names or "," not in label:
        return [label]
    return [name if name in table.names else name.strip() for name in label.split(",")]


def _existing(table: Table, role: Role, name: str) -> str:
    if name not in table.names:
        option = f"{role}= (--{role.replace('_', '-')})"
        problem = f"{option} names the column {shown(name)}, which is not there.{did_you_mean(name, table.names)} "
        raise DataError(f"{problem}The columns are {listed(table.names)}.", source=table.source)
    return name


def label_sets(columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """The names of the columns that are 1 in each row, in the order of the columns, without white space around them.

    Args:
        columns: of 0 and 1, or of false and true, as numbers or as text.

    Raises:
        DataError: a cell is something else, or two columns are one label but for white space.
    """
    flags = [_flags(column) for column in columns]
    names = [column.name.strip() for column in columns]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        same = " and ".join(shown(column.name) for column in columns if column.name.strip() == twice)
        problem = f"the names of the label columns {same} differ only in white space. Rename or leave out one of them."
        raise DataError(problem, source=columns[0].source)
    return [tuple(name for name, flag in zip(names, row, strict=True) if flag) for row in zip(*flags, strict=True)]


def _flags(column: Column) -> list[bool]:
    # As text every form of a number or truth value is one of few: 1, 1.0, True, numpy's, and what a CSV file has.
    found = [FLAGS.get(str(cell).strip().lower()) for cell in column.cells]
    for row, (cell, flag) in enumerate(zip(column.cells, found, strict=True), 1):
        if flag is None:
            problem = f"each cell of a label column must be 0 or 1 (or false or true). Got {shown(cell)} instead. "
            raise column.error(row, f"{problem}Correct it or remove the row.")
    return [bool(flag) for flag in found]


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
        remedy = "Write it as 3 or 3.5."
        if guessed:
            remedy = (
                "Nearly all labels are numbers. Correct this one, remove the row, or read all labels as names with "
            )
            remedy += "kind='single' (--kind single)."
        raise column.error(row, f"the label {shown(text)} is not a finite number. {remedy}")
    if abs(number) > LARGEST_NUMBER:
        problem = f"{shown(cell)} is too large; the limit is 1e150. Correct it or remove the row."
        raise column.error(row, problem)
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
        text = "the labels are missing. If the row has no label, write an empty list or an empty text."
        number = isinstance(cell, int | float | np.number) and math.isfinite(cell)
        return [_label_name(column, row, cell)] if number else _refuse(column, row, text)
    if cell.lstrip().startswith("["):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError) as error:
            reason = "too many nested lists" if isinstance(error, RecursionError) else str(error)
            raise column.error(
                row, f'the labels {shown(cell)} are not a valid list ({reason}). Write them as ["a", "b"].'
            ) from error
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
        problem = f"the label {shown(cell)} is a list, but a row of this kind has one label. "
        raise column.error(row, f"{problem}Give each row one label or use kind='multi' (--kind multi).")
    return column.text(row, cell, "label").strip()  # of all white space that Unicode knows: nobody means it

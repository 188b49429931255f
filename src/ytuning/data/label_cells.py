"""Cells of labels in the forms of annotation tools and of lists written as text -> names, numbers and lists of them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ytuning.data.kinds.multi import FLAGS
from ytuning.data.labels import Kind, label_name, list_names, quote
from ytuning.data.tables import LISTS, Column, Table

__all__ = ["check_answers", "open_cells"]

# A text in brackets that begins with a letter and holds letters, digits and spaces only is a name, such as "[UNK]".
BRACKETED_NAME = re.compile(r"[\[{][^\W\d][\w -]*[\]}]")
STRING = re.compile(r"""'(?:[^'\\]|\\['"\\nrt])*'|"(?:[^"\\]|\\['"\\nrt])*\"""")
# Python would join two texts without a comma between them, as NumPy writes lists, and refuses other signs anyway.
LITERAL = re.compile(r"(?![\s\S]*S\s*S)[\sS,:\[\](){}0-9.eE+-]*")
LONGEST_LITERAL = 100_000
QUOTED = re.compile(r"""\s*(?:'[^']+'|"[^"]+")\s*""")
CHOICES = 'Label Studio\'s {"choices": [...]}'
CLOSING = {"[": "]", "{": "}", "(": ")"}
SPAN_KEYS = ("start", "end", "start_offset", "end_offset")
ANSWERS = ("accept", "reject", "ignore")
WAYS = "Write the name of the label, or a list of names."


def open_cells(column: Column, kind: Kind | None) -> tuple[Column, list[str]]:
    """A column whose cells are names, numbers or lists of them, and a sentence for each other form that was read.

    Read are a list as JSON or as the text of a Python list; an object of Label Studio with its "choices"; an object
    that gives 0 or 1 to each label; Argilla's responses, where all annotators agree; and, where ``kind`` has one label
    a row, a list of one.

    Raises:
        DataError: a cell holds another object, spans of a text, annotators who disagree, or text in brackets that is
            neither a list nor a name.
    """
    one_label = kind not in (None, "multi")
    cells: list[object] = []
    forms: dict[str, int] = {}
    for row, cell in enumerate(column.cells, 1):
        # Nearly all cells are names, which begin with a letter or a digit.
        if type(cell) is str and cell[:1].isalnum():
            cells.append(cell)
            continue
        form, value = _open_cell(column, row, cell)
        if one_label and isinstance(value, LISTS) and len(value) == 1:
            (value,) = value
            form = form or "a list of one label"
        cells.append(value)
        if form:
            forms.setdefault(form, column.row_number(row))
    if kind == "multi" or (kind is None and any(isinstance(cell, LISTS) for cell in cells)):
        # A text beside objects is the one choice of its row. As in a text in quotes, a mark in it is part of the name.
        whole = any(form.startswith(CHOICES) for form in forms)
        names = [isinstance(cell, str) and bool((whole and cell.strip()) or QUOTED.fullmatch(cell)) for cell in cells]
        cells = [[cell] if name else cell for cell, name in zip(cells, names, strict=True)]
    notes = [f"column {column.name!r}: {form} is read as labels (first in row {row})." for form, row in forms.items()]
    return replace(column, cells=cells), notes


def check_answers(table: Table, used: Sequence[str]) -> None:
    """Refuse rows that an annotator rejected or ignored: Prodigy's column ``answer`` says so.

    Args:
        table: the rows.
        used: columns that are read as texts or labels.

    Raises:
        DataError: names the first such row.
    """
    if "answer" not in table.names or "answer" in used:
        return
    column = table.column("answer")
    if not all(cell is None or cell in ANSWERS for cell in column.cells if not isinstance(cell, (*LISTS, Mapping))):
        return
    others = [row for row, cell in enumerate(column.cells, 1) if cell in ANSWERS[1:]]
    if others:
        problem = f"the answer is {quote(column.cells[others[0] - 1])}, so its label was not accepted (as in "
        problem += f"{len(others)} of {table.rows} rows). Remove these rows, or the column if it means something else."
        raise column.error(others[0], problem)


def _open_cell(column: Column, row: int, cell: object) -> tuple[str, object]:
    """The value that a cell holds, and in words its form, if that is not the plain one."""
    text, value = "", cell
    if isinstance(cell, frozenset):
        value = set(cell)
    elif hasattr(cell, "tolist") and getattr(cell, "ndim", None):
        # An array or a tensor.
        value = cast("Any", cell).tolist()
    elif isinstance(cell, str):
        text, value = _open_text(column, row, cell)
    form = ""
    if isinstance(value, Mapping):
        form, value = _open_object(column, row, value)
    elif isinstance(value, list | tuple):
        form, value = _open_list(column, row, value)
    return f"{form or 'a list'} as {text} text" if text else form, value


def _open_text(column: Column, row: int, cell: str) -> tuple[str, object]:
    """The list or object that a text holds and the name of its form, or the text as it is."""
    text = cell.strip()
    if text[:1] not in CLOSING:
        return "", cell
    closed = text.endswith(CLOSING[text[0]])
    reason = ""
    try:
        value = json.loads(text) if text[0] != "(" else None
        if isinstance(value, list | dict):
            return "JSON", value
    except RecursionError:
        reason = "too many nested lists"
    except ValueError as error:
        reason = str(error)
    if closed and len(text) <= LONGEST_LITERAL and LITERAL.fullmatch(_without_words(STRING.sub("S", text))):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = None
        if isinstance(value, (*LISTS, dict)):
            return "Python", sorted(value, key=str) if isinstance(value, set) else value
    if text[0] == "(" or BRACKETED_NAME.fullmatch(text):
        return "", cell
    if closed or text[1:].lstrip()[:1] in ("'", '"', "[", "{"):
        form = 'list ({reason}). Write them as ["a", "b"].' if text[0] == "[" else "object ({reason}). " + WAYS
        problem = f"the labels {quote(cell)} are not a valid {form.format(reason=reason)}"
        raise column.error(row, problem)
    return "", cell


def _without_words(literal: str) -> str:
    return re.sub(r"\b(?:True|False|None)\b", "0", literal)


def _open_object(column: Column, row: int, value: Mapping[Any, Any]) -> tuple[str, object]:
    if list(value) == ["choices"] and isinstance(value["choices"], str | list | tuple):
        choices = value["choices"]
        return CHOICES, [choices] if isinstance(choices, str) else list(choices)
    if len(value) > 1 and not set(value) & set(SPAN_KEYS) and all(_is_flag(flag) for flag in value.values()):
        return "an object of 0 and 1", [name for name, flag in value.items() if flag]
    keys = list_names([str(key) for key in value])
    problem = (
        f'the label is an object with the keys {keys}. Read are {{"choices": ["a", "b"]}} and {{"a": 1, "b": 0}}. '
    )
    raise column.error(row, problem + WAYS)


def _open_list(column: Column, row: int, value: Sequence[Any]) -> tuple[str, object]:
    if value and all(isinstance(part, Mapping) and "value" in part and not _is_span(part) for part in value):
        answers = [part["value"] for part in value if part.get("status") in (None, "submitted")]
        return "Argilla's list of responses", _agreed(column, row, answers)
    if column.name.endswith(".responses"):
        return "Argilla's list of responses", _agreed(column, row, value)
    for part in value:
        if _is_span(part):
            problem = f"the labels {quote(value)} are spans of the text, and a task here labels whole texts. "
            raise column.error(row, problem + WAYS)
        if isinstance(part, Mapping):
            keys = list_names([str(key) for key in part])
            raise column.error(row, f"the labels are a list of objects with the keys {keys}. {WAYS}")
    return "", value


def _agreed(column: Column, row: int, answers: Sequence[Any]) -> object:
    """The answer that all annotators of a row gave."""
    if not answers:
        raise column.error(row, "there is no submitted response. Fill it in or remove the row.")
    kinds = {tuple(sorted(map(str, answer))) if isinstance(answer, list | tuple) else answer for answer in answers}
    if len(kinds) > 1:
        raise column.error(row, f"the annotators disagree: {quote(answers)}. Keep one response or remove the row.")
    return answers[0]


def _is_flag(value: object) -> bool:
    return label_name(value) in FLAGS and not isinstance(value, str)


def _is_span(part: object) -> bool:
    """Whether a part of a list is a labelled piece of a text: two places and a name, or an object with such places."""
    if isinstance(part, Mapping):
        inner = part.get("value")
        keys = set(part) | (set(inner) if isinstance(inner, Mapping) else set())
        return bool(keys & set(SPAN_KEYS))
    if not isinstance(part, list | tuple) or len(part) != 3:
        return False
    return isinstance(part[0], int) and isinstance(part[1], int) and isinstance(part[2], str)

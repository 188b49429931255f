"""Tables -> :class:`Dataset`: which columns are texts and labels, and what their cells say.

Every complaint names source, row and column.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from ytuning.data.columns import Columns, Known, Role, choose_columns
from ytuning.data.files import read_table
from ytuning.data.kinds import KINDS, Labels, Reading, SingleLabel
from ytuning.data.kinds.multi import FLAGS, HASH, SEPARATORS, split_labels
from ytuning.data.kinds.regression import are_numbers
from ytuning.data.label_cells import check_answers, open_cells
from ytuning.data.labels import Kind, describe_alike, describe_misspelt, describe_read_as, label_name, list_names, quote
from ytuning.data.sequences import as_cells
from ytuning.data.tables import LISTS, Column, Table
from ytuning.errors import DataError, InputError, argument, must_be_one_of, parameter

__all__ = [
    "EMPTY_CELLS",
    "Dataset",
    "TextInput",
    "check_not_blank",
    "from_lists",
    "labels_of",
    "names_in",
    "read_dataset",
    "read_inputs",
    "unsplit_names",
]

TextInput = tuple[str, str | None]
"""A text and, for pairs, its second text."""
EMPTY_CELLS = "empty label cells"
"""The reason in ``Dataset.left_out`` of rows that say nothing about their task."""
PAIR_TYPES = (list, tuple, np.ndarray)
"""What may hold the two texts of a pair."""
# A name of which brackets or quotes are the first and the last character may come from a list written as text.
MARKED = re.compile(r"""\[.*\]|\{.*\}|'.*'|".*\"""", re.DOTALL)

# A number as programs write it in countries where a comma stands before the fraction; also a list of two numbers.
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
# Programs write these where a value is missing.
NULL_WORDS = ("null", "none", "nan", "na", "n/a", "nil", r"\n", "<na>", "#n/a", "nat")


@dataclass(frozen=True)
class Dataset:
    """Rows of text, checked.

    Attributes:
        texts: one a row.
        labels: one a row, or None without labels: a name; of the kind "multi" a tuple of names, which may be empty; of
            the kind "regression" a number.
        text_pairs: the second text of each row, or None for single texts.
        source: file name, or what the rows came from; messages start with it.
        rows: number of each row in the source, counted from 1; None if they are all there in order.
        columns: columns of the source; None if it has none.
        kind: kind of task that the labels are for.
        separator: where texts with several labels were split; None if none was.
        groups: the group of each row; rows of one group stay together when validation rows are held out
            (`splits.split_holdout`), a row of None is a group of its own. None without groups.
        left_out: what the source holds beside these rows, as reasons with numbers of rows: ``{"blank lines": 2}``.
        rows_read: number of rows that the source holds: these, and those that were left out. A selection of rows
            keeps the number of its source.
        notes: what the user should know of how the source was read, a sentence each; so of labels that were read from
            another form, and of labels that look alike.

    Raises:
        DataError: there are no rows, or not as many labels, pairs, groups or row numbers as texts.
    """

    texts: list[str]
    labels: Labels | None = None
    text_pairs: list[str] | None = None
    source: str = "the rows"
    rows: list[int] | None = None
    columns: Columns | None = None
    kind: Kind = "single"
    separator: str | None = None
    groups: Sequence[str | None] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    rows_read: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows_read:
            object.__setattr__(self, "rows_read", len(self.texts) + sum(self.left_out.values()))
        if not self.texts:
            raise DataError("there are no rows. Give at least one.", source=self.source)
        for name in ("labels", "text_pairs", "rows", "groups"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.texts):
                problem = f"there are {len(self.texts)} texts but {len(values)} {name}. Give one for each text."
                raise DataError(problem, source=self.source)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[TextInput]:
        """Each row as the encoder takes it: text and second text, or None."""
        pairs: Sequence[str | None] = self.text_pairs or [None] * len(self)
        return list(zip(self.texts, pairs, strict=True))

    @property
    def has_pairs(self) -> bool:
        """Whether each row is a pair of texts."""
        return self.text_pairs is not None

    @property
    def summary(self) -> dict[str, Any]:
        """The source, the columns that were read, and the numbers of rows read, used and left out, for JSON."""
        return {
            "file": self.source,
            "columns": None if self.columns is None else self.columns.to_json(),
            "rows_read": self.rows_read,
            "rows_used": len(self),
            "left_out": self.left_out,
        }

    @property
    def known(self) -> Known:
        """What these rows say about further rows for the same task."""
        return Known(names_in(self), self.separator, self.columns, self.has_pairs)

    @property
    def names(self) -> list[str]:
        """The labels of rows that have one name each.

        Raises:
            DataError: there are no labels, or they are of another kind.
        """
        if not issubclass(KINDS[self.kind], SingleLabel):
            raise DataError(f"each row must have one label, but the kind is {self.kind!r}.", source=self.source)
        return [str(label) for label in labels_of(self)]

    def select(self, indices: Iterable[int] | np.ndarray) -> Dataset:
        """The rows at ``indices`` (from 0), which keep the row numbers they have in the source.

        Raises:
            DataError: ``indices`` is empty.
            IndexError: an index is out of range.
        """
        places = [int(i) for i in indices]
        return replace(
            self,
            texts=[self.texts[i] for i in places],
            labels=None if self.labels is None else cast("Labels", [self.labels[i] for i in places]),
            text_pairs=None if self.text_pairs is None else [self.text_pairs[i] for i in places],
            rows=[i + 1 if self.rows is None else self.rows[i] for i in places],
            groups=None if self.groups is None else [self.groups[i] for i in places],
        )

    def error(self, index: int, role: Role, problem: str) -> DataError:
        """An error about one cell: the row at ``index`` (from 0) and the column that plays ``role``."""
        column = self.columns.spelt.get(role) if self.columns else role
        return DataError(problem, source=self.source, row=self.rows[index] if self.rows else index + 1, column=column)


def labels_of(dataset: Dataset) -> Labels:
    """The labels, which must be there.

    Raises:
        DataError: there are no labels.
    """
    if dataset.labels is None:
        raise DataError("the rows have no labels. Give a label for each row.", source=dataset.source)
    return dataset.labels


def check_not_blank(dataset: Dataset) -> None:
    """Refuse rows to train on whose text has no characters but white space.

    Raises:
        DataError: there is such a row.
    """
    sides: tuple[tuple[Role, str, list[str] | None], ...]
    sides = (("text", "text", dataset.texts), ("text_pair", "text pair", dataset.text_pairs))
    for role, what, texts in sides:
        for index, text in enumerate(texts or []):
            if not text.strip():
                state = "has only white space" if text else "is empty"
                raise dataset.error(index, role, f"the {what} {state}. Fill it in or remove the row.")


def names_in(dataset: Dataset) -> set[str]:
    """The names of the labels that rows have; none where they are numbers, or there are no labels."""
    return {name for names in KINDS[dataset.kind].label_names(dataset.labels or []) for name in names}


def unsplit_names(dataset: Dataset) -> list[str]:
    """Labels that hold another mark than the one at which their texts were split: each may be several labels."""
    others = set(SEPARATORS) - {dataset.separator}
    return sorted(name for name in names_in(dataset) if dataset.separator and others.intersection(name))


def read_dataset(
    source: object,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | Sequence[str] | None = None,
    kind: Kind | Literal["auto"] = "auto",
    labelled: bool = True,
    known: Known | Collection[str] = (),
    group: str | None = None,
    label_names: str | Sequence[str] = (),
    skip_empty: bool = False,
) -> Dataset:
    """Read rows from a file or an object; ``columns`` of the result says which columns were used.

    A column that is not named is that of the training, if ``known`` has it and the table too. Else it is inferred:
    ``text`` or ``sentence``; ``text_pair`` if there is one; ``label`` or ``labels``. Texts are kept exactly. Labels
    are read in the form of `labels.label_name`: 3 and 3.0 are "3", True and the text "TRUE" are "true"; a
    ``ClassLabel`` of ``datasets`` gets its name. Several labels of a row are a list, the text of a list (JSON or
    Python), or text with one of ``| ; , #`` between them, the first of these that occurs in the column; an empty list
    or text is no label. Or they are several columns of 0 and 1, whose names are the labels, or lists of 0 and 1 with
    ``label_names``. Cells of annotation tools are read as `label_cells.open_cells` says; the result has ``notes`` of
    them.

    Args:
        source: a file as :func:`ytuning.data.files.read_table` reads it, "-" for the standard input, an open file, a
            ``pandas.DataFrame``, a ``datasets.Dataset``, a list of mappings (rows), a mapping of lists (columns), or
            what ``read_table`` makes of these.
        text: column of the text.
        text_pair: column of the second text, for tasks on pairs.
        label: column of the label; or several of 0 and 1 (also false and true), as a sequence of names or as text with
            commas between them, unless a column has that text as its name.
        kind: "auto": "multi" if there are several label columns, a cell is a list, or the column's name was inferred
            and is ``labels``; "regression" if all are numbers and one has a fraction (of nearly all, the others are
            refused); else "single", which takes numbers for label names. "ordinal": the labels have an order.
        labelled: False for prediction: no label column is looked for, one that is there is ignored, and texts may be
            blank.
        known: what the training says about the rows of its task: ``task.known``, or ``train.known`` of its rows; or
            the names of the task's labels. Texts with several labels are then split at the mark that leaves most rows
            with known labels only, or at none; of several such marks it is that of the training, else the first.
        group: column whose equal values keep rows together when validation rows are held out; it may be that of a
            text, so that rows with the same text stay together.
        label_names: labels by their place, where each cell is a list of 0 and 1; as a sequence, or as text with commas
            between them.
        skip_empty: whether rows whose label cell is missing or blank are left out and counted in ``left_out``, of one
            label column. Rows of a task that was trained so are always read so.

    Raises:
        DataError: the source cannot be read, or a cell is missing, empty or of the wrong type.
        InputError: a column is missing, or ``kind`` or the type of the source is unknown.
        MissingExtraError: the file is a Parquet file and pyarrow is not installed.
    """
    if kind not in (kinds := ("auto", *KINDS)):
        raise InputError(must_be_one_of(parameter("kind"), kind, kinds))
    table = source if isinstance(source, Table) else read_table(source)
    known = known if isinstance(known, Known) else Known(known)
    named: dict[Role, str | None] = {"text": text, "text_pair": text_pair, "group": group}
    columns = choose_columns(table, named, label, known, labelled=labelled)
    # A column that was found by its name `labels` holds several labels a row; one that the caller names may not.
    if kind == "auto" and label is None and columns.label == "labels":
        kind = "multi"
    if columns.label is not None:
        check_answers(table, [name for name in columns.spelt.values() if name])
    left_out = {"blank lines": table.blank_lines} if table.blank_lines else {}
    skip_empty = skip_empty or (known.columns is not None and known.columns.empty_labels)
    if skip_empty and isinstance(column := columns.label, str):
        columns, before = replace(columns, empty_labels=True), table.rows
        table = table.without_empty(column)
        left_out |= {EMPTY_CELLS: before - table.rows} if table.rows < before else {}
    places = [name.strip() for name in label_names.split(",")] if isinstance(label_names, str) else label_names
    read = _read_label_columns(table, columns, kind, known, places)
    return Dataset(
        texts=table.column(columns.text).texts("text", blank=not labelled),
        labels=read.labels,
        text_pairs=None
        if columns.text_pair is None
        else table.column(columns.text_pair).texts("text pair", blank=not labelled),
        source=table.source,
        columns=columns,
        kind=read.kind,
        separator=read.separator,
        groups=None if columns.group is None else table.column(columns.group).groups,
        rows=None if table.row_numbers is None else list(table.row_numbers),
        left_out=left_out,
        notes=(*table.notes, *read.notes),
    )


def from_lists(
    texts: object,
    labels: object = None,
    text_pairs: object = None,
    kind: Kind | Literal["auto"] = "auto",
    groups: object = None,
) -> Dataset:
    """A data set from lists, tuples, generators, arrays, series or columns of pandas, polars, pyarrow or ``datasets``.

    Args:
        texts: texts; or pairs of texts as tuples or lists of two, or as an array or frame of two columns. One column
            of an array or a frame is texts.
        labels: labels as :func:`read_dataset` takes them; None for prediction, where texts may be blank.
        text_pairs: second texts, unless ``texts`` holds pairs.
        kind: kind of task, as for :func:`read_dataset`.
        groups: one value for each row; rows with the same one stay together when validation rows are held out.

    Raises:
        DataError: a text or label is missing, blank or of the wrong type, or their numbers differ; there are no rows.
        InputError: an argument is not a list.
    """
    cells, source, blank = as_cells(texts, "texts"), Dataset.source, labels is None
    pairs = None if text_pairs is None else as_cells(text_pairs, "text_pairs")
    if pairs is None and cells and isinstance(cells[0], PAIR_TYPES):
        cells, pairs = _unzip_rows(cells, source)
    read = _LabelsRead(None)
    if labels is not None:
        read = _read_labels(Column(source, "label", as_cells(labels, "labels")), kind, Known())
    return Dataset(
        texts=Column(source, "text", cells).texts("text", blank=blank),
        labels=read.labels,
        text_pairs=None if pairs is None else Column(source, "text_pair", pairs).texts("text pair", blank=blank),
        kind=read.kind,
        separator=read.separator,
        groups=None if groups is None else Column(source, "groups", as_cells(groups, "groups")).groups,
        notes=read.notes,
    )


def _unzip_rows(cells: list[Any], source: str) -> tuple[list[object], list[object] | None]:
    """Rows of a list each as first and second texts, or only first ones where each list has one text."""
    size = len(cells[0])
    for row, cell in enumerate(cells, 1):
        if size not in (1, 2) or not isinstance(cell, PAIR_TYPES) or len(cell) != size:
            wanted = "a text or a pair of texts" if size not in (1, 2) else ("a text", "a pair of texts")[size - 1]
            problem = f"every row must be {wanted}{', as the first is' * (row > 1)}. Got {quote(cell)} instead."
            raise DataError(problem, source=source, row=row)
    return [cell[0] for cell in cells], None if size == 1 else [cell[1] for cell in cells]


def read_inputs(cells: Iterable[object]) -> Iterator[TextInput]:
    """Texts to predict, one after the other as they are asked for.

    Args:
        cells: texts, pairs of texts, or pairs of a text and None, which are single texts. They may be blank.

    Raises:
        DataError: a cell is none of these.
    """
    text, text_pair = Column("the inputs", "text", []), Column("the inputs", "text_pair", [])
    for row, cell in enumerate(cells, 1):
        first, second = cell, None
        if isinstance(cell, PAIR_TYPES):
            if len(cell) not in (1, 2):
                problem = f"every input must be a text or a pair of texts. Got {quote(cell)} instead."
                raise DataError(problem, source=text.source, row=row)
            first, second = cell[0], cell[1] if len(cell) == 2 else None
        pair = None if second is None else text_pair.text(row, second, "text pair", blank=True)
        yield text.text(row, first, "text", blank=True), pair


# --- what the cells of labels say -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LabelsRead:
    """Labels of rows, and how they were read; attributes as those of `Dataset`."""

    labels: Labels | None
    kind: Kind = "single"
    separator: str | None = None
    notes: tuple[str, ...] = ()


def _read_label_columns(
    table: Table, columns: Columns, kind: Kind | Literal["auto"], known: Known, places: Sequence[str]
) -> _LabelsRead:
    """Read the labels in the columns that were chosen.

    Raises:
        InputError: several columns for a kind of task that has one label a row.
    """
    if columns.label is None:
        return _LabelsRead(None)
    if not isinstance(columns.label, tuple):
        return _read_labels(table.column(columns.label), kind, known, places)
    if kind not in ("auto", "multi"):
        problem = f"several label columns need the kind 'multi'. Got {kind!r} instead. "
        raise InputError(f"{problem}Change the kind or name one column with {argument('label')}.")
    if places:
        raise InputError(
            f"{argument('label_names')} names places in lists, and several columns have names. Leave it out."
        )
    return _flagged_names([table.column(name) for name in columns.label])


def _flagged_names(columns: Sequence[Column]) -> _LabelsRead:
    """The names of the columns that are 1 in each row, in the order of the columns.

    Raises:
        DataError: a cell is neither 0 nor 1, or the names of two columns are one label.
    """
    flags = [_flags(column) for column in columns]
    names = [label_name(column.name) or "" for column in columns]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        same = " and ".join(quote(column.name) for column, name in zip(columns, names, strict=True) if name == twice)
        problem = (
            f"the names of the label columns {same} are one label, {quote(twice)}. Rename or leave out one of them."
        )
        raise DataError(problem, source=columns[0].source)
    read_as = {column.name: name for column, name in zip(columns, names, strict=True) if column.name.strip() != name}
    labels = [tuple(name for name, flag in zip(names, row, strict=True) if flag) for row in zip(*flags, strict=True)]
    notes = [describe_read_as(read_as)] if read_as else []
    return _LabelsRead(labels, "multi", None, (*notes, *_notes(names)))


def _flags(column: Column) -> list[bool]:
    flags: list[bool] = []
    for row, cell in enumerate(column.cells, 1):
        flag = FLAGS.get(label_name(cell) or "")
        if flag is None:
            problem = f"each cell of a label column must be 0 or 1 (or false or true). Got {quote(cell)} instead. "
            raise column.error(row, f"{problem}Correct it or remove the row.")
        flags.append(flag)
    return flags


def _read_labels(
    column: Column,
    kind: Kind | Literal["auto"],
    known: Known,
    places: Sequence[str] = (),
) -> _LabelsRead:
    """Read the labels in one column; arguments as :func:`read_dataset` takes them."""
    guessed = kind == "auto"
    column, notes = open_cells(column, None if kind == "auto" else kind)
    if kind == "auto":
        lists = any(isinstance(cell, LISTS) for cell in column.cells)
        kind = "multi" if lists else "regression" if are_numbers(column.cells) else "single"
    if places and kind != "multi":
        problem = f"{argument('label_names')} is for lists of 0 and 1 of the kind 'multi'. Got {kind!r} instead. "
        raise InputError(f"{problem}Leave it out.")
    reading = Reading(known.names, known.separator, guessed, places)
    labels, separator = KINDS[kind].read_labels(column, reading)
    rows: dict[str, int] = {}
    for row, of_row in enumerate(KINDS[kind].label_names(labels), 1):
        for name in of_row:
            rows.setdefault(name, column.row_number(row))
    # Numbers have no names, and their texts are told to nobody.
    if rows and column.read_as:
        notes.append(describe_read_as(column.read_as))
    if not known.names:
        # Of the names of a task this was told when it was trained, and it takes no others.
        notes += _notes(rows, rows) + (_joined_note(rows) if kind == "single" else [])
        misspelt = describe_misspelt(Counter(name for names in KINDS[kind].label_names(labels) for name in names))
        notes += [] if misspelt is None else [misspelt]
    if separator == HASH:
        notes.append(f"column {column.name!r}: {HASH!r} separates the labels of a row, as in files of doccano.")
    return _LabelsRead(labels, kind, separator, tuple(notes))


def _notes(names: Collection[str], rows: Mapping[str, int] | None = None) -> list[str]:
    """Tell of names that have brackets or quotes around them, that mean a missing value, or that look alike."""
    marked = [name for name in names if MARKED.fullmatch(name)]
    notes = [f"brackets or quotes are part of these labels: {list_names(marked)}."] if marked else []
    if missing := [name for name in names if name.casefold() in NULL_WORDS]:
        shown = [quote(name) + (f" (row {rows[name]})" if rows else "") for name in missing]
        notes.append(
            f"these labels may stand for a missing value and are read as names: {', '.join(shown)}. Remove their rows "
            "if they have no label."
        )
    alike = describe_alike(names, rows)
    return notes if alike is None else [*notes, alike]


def _joined_note(names: Collection[str]) -> list[str]:
    """Tell of names that may be several labels of a row: a part is a name itself, or all parts occur in other names.

    Numbers with a decimal comma are told as such.
    """
    if all(DECIMAL_COMMA.fullmatch(name) for name in names):
        shown = list_names(list(names))
        return [f"these labels are read as names: {shown}. If they are numbers, write a point instead of the comma."]
    for mark in (*SEPARATORS, HASH):
        parts = {name: split_labels(name, mark) for name in names}
        counts = Counter(part for of_name in parts.values() for part in set(of_name))
        for name, of_name in parts.items():
            if len(of_name) > 1 and (
                any(part in parts for part in of_name) or all(counts[part] > 1 for part in of_name)
            ):
                problem = (
                    f"{mark!r} in labels such as {quote(name)} may separate several labels of a row. They are read as "
                )
                return [f"{problem}one; {argument('kind', 'multi')} splits them."]
    return []

"""Tables -> :class:`Dataset`: chosen columns, checked cells. Every complaint names source, row and column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from ytuning.data.columns import SEPARATORS, UNKNOWN, Columns, Role, choose_columns, label_sets, read_labels
from ytuning.data.kinds import KINDS, Labels, TaskKind
from ytuning.data.labels import Kind, did_you_mean, listed, shown
from ytuning.data.tables import Column, Table, as_cells, read_table
from ytuning.errors import DataError, InputError, must_be_one_of

__all__ = [
    "Columns",
    "Dataset",
    "TextInput",
    "check_groups",
    "check_labels_known",
    "check_trainable",
    "count_shared",
    "from_lists",
    "labels_of",
    "names_in",
    "read_dataset",
    "unsplit_names",
]


TextInput = tuple[str, str | None]
"""A text and, for pairs, its second text."""


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
        columns: of the source; None if it has none.
        kind: of task that the labels are for.
        separator: where texts with several labels were split; None if none was.
        groups: the group of each row; rows of one group stay together when validation rows are held out
            (`splits.split_holdout`), a row of None is a group of its own. None without groups.

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

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError("there are no rows. Give at least one.", source=self.source)
        for name in ("labels", "text_pairs", "rows", "groups"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.texts):
                raise DataError(
                    f"there are {len(self.texts)} texts but {len(values)} {name}. Give one for each text.",
                    source=self.source,
                )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[TextInput]:
        """Each row as the encoder takes it: text and second text, or None."""
        pairs: Sequence[str | None] = self.text_pairs or [None] * len(self)
        return list(zip(self.texts, pairs, strict=True))

    @property
    def names(self) -> list[str]:
        """The labels of rows that have one name each.

        Raises:
            DataError: there are no labels, or they are of another kind.
        """
        if self.kind not in ("single", "ordinal"):
            raise DataError(f"each row must have one label, but the kind is {self.kind!r}.", source=self.source)
        return [str(label) for label in labels_of(self)]

    def select(self, indices: Iterable[int] | np.ndarray) -> Dataset:
        """The rows at ``indices`` (from 0), which keep the row numbers they have in the source.

        Raises:
            DataError: there is no index.
        """
        places = [int(i) for i in indices]
        return Dataset(
            texts=[self.texts[i] for i in places],
            labels=None if self.labels is None else cast("Labels", [self.labels[i] for i in places]),
            text_pairs=None if self.text_pairs is None else [self.text_pairs[i] for i in places],
            source=self.source,
            rows=[i + 1 if self.rows is None else self.rows[i] for i in places],
            columns=self.columns,
            kind=self.kind,
            separator=self.separator,
            groups=None if self.groups is None else [self.groups[i] for i in places],
        )

    def error(self, index: int, role: Role, problem: str) -> DataError:
        """An error about one cell: the row at ``index`` (from 0) and the column that plays ``role``."""
        column = self.columns.spelt.get(role) if self.columns else role
        return DataError(problem, source=self.source, row=self.rows[index] if self.rows else index + 1, column=column)


def read_dataset(
    source: object,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | Sequence[str] | None = None,
    kind: Kind | Literal["auto"] = "auto",
    labelled: bool = True,
    known: Collection[str] = (),
    separator: str | None = UNKNOWN,
    group: str | None = None,
) -> Dataset:
    """Read rows from a file or an object; ``columns`` of the result says which columns were used.

    A column that is not named is inferred: ``text`` or ``sentence``; ``text_pair`` if there is one; ``label`` or
    ``labels``. Texts are kept exactly, labels without the white space around them. Labels that are not text get the
    text of their value: 3 -> "3", 3.0 -> "3", 0.5 -> "0.5", True -> "true"; a ``ClassLabel`` of ``datasets`` gets its
    name. Several labels of a row are a list, the JSON text of one, or text with one of ``| ; ,`` between them, the
    first of these that occurs in the column; an empty list or text is no label. Or they are several columns of 0 and
    1, whose names are the labels.

    Args:
        source: a file (.csv, .tsv, .tab, .jsonl, .ndjson, .json, each also .gz; .parquet, .pq), a
            ``pandas.DataFrame``, a ``datasets.Dataset``, a list of mappings (rows) or a mapping of lists (columns).
        text: column of the text.
        text_pair: column of the second text, for tasks on pairs.
        label: column of the label; or several of 0 and 1 (also false and true), as a sequence of names or as text with
            commas between them, unless a column has that text as its name.
        kind: "auto": "multi" if there are several label columns, a cell is a list, or the column's name was inferred
            and is ``labels``; "regression" if all are numbers and one has a fraction (of nearly all, the others are
            refused); else "single", which takes numbers for label names. "ordinal": the labels have an order.
        labelled: False for prediction: no label column is looked for, and one that is there is ignored.
        known: labels of the task, if there is one: then texts with several labels are split at the mark that leaves
            most rows with these only, or at none...
        separator: ...and of several at this one, that of the train rows, else at none; "" (unknown): at the first.
        group: column whose equal values keep rows together when validation rows are held out.

    Raises:
        DataError: the source cannot be read, or a cell is missing, empty or of the wrong type.
        InputError: a column that is not there, or an unknown ``kind`` or type of source.
        MissingExtraError: a Parquet file without pyarrow.
    """
    kinds = ("auto", *KINDS)
    if kind not in kinds:
        raise InputError(must_be_one_of("kind", kind, kinds))
    table = read_table(source)
    columns = choose_columns(table, text, text_pair, label, labelled=labelled, group=group)
    # A column that was found by its name `labels` holds several labels a row; one that the caller names may not.
    several = kind == "auto" and label is None and columns.label == "labels"
    labels, found, split = _read_label_columns(table, columns, "multi" if several else kind, known, separator)
    return Dataset(
        texts=table.column(columns.text).texts("text"),
        labels=labels,
        text_pairs=None if columns.text_pair is None else table.column(columns.text_pair).texts("text pair"),
        source=table.source,
        columns=columns,
        kind=found,
        separator=split,
        groups=None if columns.group is None else table.column(columns.group).groups,
    )


def _read_label_columns(
    table: Table, columns: Columns, kind: Kind | Literal["auto"], known: Collection[str], separator: str | None
) -> tuple[Labels | None, Kind, str | None]:
    """Labels, their kind and the mark that parts several of a row, of the columns that were chosen.

    Raises:
        InputError: several columns for a kind of task that has one label a row.
    """
    if columns.label is None:
        return None, "single", None
    if not isinstance(columns.label, tuple):
        return read_labels(table.column(columns.label), kind, known, separator)
    if kind not in ("auto", "multi"):
        problem = f"several label columns need the kind 'multi'. Got {kind!r} instead. "
        raise InputError(f"{problem}Change the kind or name one column with label= (--label).")
    return label_sets([table.column(name) for name in columns.label]), "multi", None


def from_lists(
    texts: object,
    labels: object = None,
    text_pairs: object = None,
    kind: Kind | Literal["auto"] = "auto",
    groups: object = None,
) -> Dataset:
    """A data set from lists, tuples, NumPy arrays or pandas series.

    Args:
        texts: texts; or pairs of texts as tuples or lists of two, or as an array or frame of two columns.
        labels: as :func:`read_dataset` takes them; None for prediction.
        text_pairs: second texts, unless ``texts`` holds pairs.
        kind: as for :func:`read_dataset`.
        groups: one value for each row; rows with the same one stay together when validation rows are held out.

    Raises:
        DataError: a text or label is missing, empty or of the wrong type, or their numbers differ; there are no rows.
        InputError: an argument is not a list.
    """
    cells = as_cells(texts, "texts")
    pairs = None if text_pairs is None else as_cells(text_pairs, "text_pairs")
    source = Dataset.source
    if pairs is None and cells and isinstance(cells[0], list | tuple | np.ndarray):
        cells, pairs = _unzip_pairs(cells, source)
    found: tuple[Labels | None, Kind, str | None] = (None, "single", None)
    if labels is not None:
        found = read_labels(Column(source, "label", as_cells(labels, "labels")), kind)
    return Dataset(
        texts=Column(source, "text", cells).texts("text"),
        labels=found[0],
        text_pairs=None if pairs is None else Column(source, "text_pair", pairs).texts("text pair"),
        kind=found[1],
        separator=found[2],
        groups=None if groups is None else Column(source, "groups", as_cells(groups, "groups")).groups,
    )


def _unzip_pairs(cells: list[Any], source: str) -> tuple[list[object], list[object]]:
    """Pairs of texts as first and second texts."""
    for row, cell in enumerate(cells, 1):
        if not isinstance(cell, list | tuple | np.ndarray) or len(cell) != 2:
            problem = f"every row must be a pair of texts, as the first is. Got {shown(cell)} instead."
            raise DataError(problem, source=source, row=row)
    return [pair[0] for pair in cells], [pair[1] for pair in cells]


# --- checks between rows and between data sets ----------------------------------------------------------------------


def check_trainable(dataset: Dataset, *, holdout: bool) -> None:
    """Whether a head can be trained on these rows.

    Args:
        dataset: the train rows.
        holdout: whether validation rows are to be taken from them; then every label needs a second row.

    Raises:
        DataError: there are no labels, all rows have one label, a column of 0 and 1 has no 1, or (``holdout``) a label
            occurs once.
    """
    labels = labels_of(dataset)
    different = set(labels)
    if dataset.kind == "multi" and different == {()}:
        raise dataset.error(
            0, "label", f"none of the {len(labels)} rows has a label. Training needs at least one label."
        )
    columns = dataset.columns.label if dataset.columns else None
    used = names_in(dataset)
    if isinstance(columns, tuple) and (idle := {name for name in columns if name.strip() not in used}):
        problem = "no row has 1, so nothing can be learnt about this label. Leave the column out of --label."
        raise DataError(problem, source=dataset.source, column=min(idle, key=columns.index))
    if dataset.kind != "multi" and len(different) == 1:
        problem = f"all {len(labels)} rows have the label {shown(labels[0])}. Training needs at least two labels."
        raise dataset.error(0, "label", problem)
    if not holdout or dataset.kind in ("multi", "regression"):
        return
    counts = Counter(labels)
    for index, label in enumerate(labels):
        if counts[label] == 1:
            problem = f"the label {shown(label)} occurs once. Add a second row with it, remove this row, "
            raise dataset.error(index, "label", f"{problem}or give a validation set (--validation).")


def check_groups(*, grouped: bool, validation: bool) -> None:
    """Refuse groups of train rows where no row is held out of them.

    Raises:
        InputError: there are both groups and validation rows.
    """
    if grouped and validation:
        raise InputError(
            "--group (groups=) has no effect together with --validation, because it keeps rows together when rows of "
            "the training set are held out. Leave out one of the two."
        )


def check_labels_known(dataset: Dataset, target: TaskKind, role: str) -> None:
    """Whether a ``role`` ("validation", "test") data set is labelled for the kind of task, with labels trained on.

    Raises:
        DataError: its labels are for another kind, or names the first row whose label is not in ``target``, and the
            labels closest to it.
    """
    labels = labels_of(dataset)
    if dataset.kind != target.kind:
        problem = f"the labels are of the kind {dataset.kind!r}, but those of the training set are of the kind "
        raise DataError(f"{problem}{target.kind!r}. Use the same --kind for both.", source=dataset.source)
    known = target.labels
    if known is None:
        return
    rows = [row if isinstance(row, tuple) else (str(row),) for row in labels]
    unknown = [(index, name) for index, row in enumerate(rows) for name in row if name not in known]
    if unknown:
        index, label = unknown[0]
        such = f"{len(unknown)} {role} {'rows have unknown labels' if len(unknown) > 1 else 'row has an unknown label'}"
        hint = did_you_mean(label, known.names)
        if not hint or all(name not in known for row in rows for name in row):  # of another task, or the wrong column
            hint += f" The {len(known)} labels are {listed(known.names)}."
        problem = f"the label {shown(label)} does not occur in the training set ({such}).{hint}"
        raise dataset.error(index, "label", problem)


def count_shared(a: Dataset, b: Dataset) -> int:
    """Rows of ``b`` whose text (and second text) is exactly that of a row of ``a``, whatever their labels."""
    known = set(a.inputs)
    return sum(row in known for row in b.inputs)


def labels_of(dataset: Dataset) -> Labels:
    """The labels, which must be there.

    Raises:
        DataError: they are not.
    """
    if dataset.labels is None:
        raise DataError("the rows have no labels. Give a label for each row.", source=dataset.source)
    return dataset.labels


def names_in(dataset: Dataset) -> set[str]:
    """The names of the labels that rows have; none where they are numbers, or there are no labels."""
    rows = [(label,) if isinstance(label, str) else label for label in dataset.labels or ()]
    return {name for row in rows if isinstance(row, tuple) for name in row}


def unsplit_names(dataset: Dataset) -> list[str]:
    """Labels that hold another mark than the one at which their texts were split: each may be several labels."""
    others = set(SEPARATORS) - {dataset.separator}
    return sorted(name for name in names_in(dataset) if dataset.separator and others.intersection(name))

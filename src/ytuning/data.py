"""Tables -> :class:`Dataset`: chosen columns, checked cells, hold-out. Every complaint names source, row and column."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ytuning.errors import DataError, InputError, allowed
from ytuning.labels import Kind, LabelSet, did_you_mean, listed, shown
from ytuning.tables import Column, Table, as_cells, read_table

__all__ = [
    "Columns",
    "Dataset",
    "check_labels_known",
    "check_trainable",
    "count_shared",
    "from_lists",
    "read_dataset",
    "split_holdout",
]

Role = Literal["text", "text_pair", "label"]
DEFAULT_NAMES: dict[Role, tuple[str, ...]] = {
    "text": ("text", "sentence"),
    "text_pair": ("text_pair",),
    "label": ("label", "labels"),
}
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a data set was made of, named by the user or inferred."""

    text: str
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Rows of text, checked.

    Attributes:
        texts: one a row.
        labels: one a row, or None without labels.
        text_pairs: the second text of each row, or None for single texts.
        source: file name, or what the rows came from; messages start with it.
        rows: number of each row in the source, counted from 1; None if they are all there in order.
        columns: of the source; None if it has none.

    Raises:
        DataError: there are no rows, or not as many labels, pairs or row numbers as texts.
    """

    texts: list[str]
    labels: list[str] | None = None
    text_pairs: list[str] | None = None
    source: str = "the rows"
    rows: list[int] | None = None
    columns: Columns | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError("there are no rows", source=self.source)
        for name in ("labels", "text_pairs", "rows"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.texts):
                raise DataError(f"{len(self.texts)} texts but {len(values)} {name}", source=self.source)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def inputs(self) -> list[tuple[str, str | None]]:
        """Each row as the encoder takes it: text and second text, or None."""
        pairs: Sequence[str | None] = self.text_pairs or [None] * len(self)
        return list(zip(self.texts, pairs, strict=True))

    def select(self, indices: Iterable[int] | np.ndarray) -> Dataset:
        """The rows at ``indices`` (from 0), which keep the row numbers they have in the source.

        Raises:
            DataError: there is no index.
        """
        places = [int(i) for i in indices]
        return Dataset(
            texts=[self.texts[i] for i in places],
            labels=None if self.labels is None else [self.labels[i] for i in places],
            text_pairs=None if self.text_pairs is None else [self.text_pairs[i] for i in places],
            source=self.source,
            rows=[i + 1 if self.rows is None else self.rows[i] for i in places],
            columns=self.columns,
        )

    def error(self, index: int, role: Role, problem: str) -> DataError:
        """An error about one cell: the row at ``index`` (from 0) and the column that plays ``role``."""
        column = getattr(self.columns, role) if self.columns else role
        return DataError(problem, source=self.source, row=self.rows[index] if self.rows else index + 1, column=column)


def read_dataset(
    source: object,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    kind: Kind | Literal["auto"] = "auto",
    labelled: bool = True,
) -> Dataset:
    """Read rows from a file or an object; ``columns`` of the result says which columns were used.

    A column that is not named is inferred: ``text`` or ``sentence``; ``text_pair`` if there is one; ``label`` or
    ``labels``. Texts and labels are kept exactly. Labels that are not text get the text of their value: 3 -> "3",
    3.0 -> "3", 0.5 -> "0.5", True -> "true"; a ``ClassLabel`` of ``datasets`` gets its name.

    Args:
        source: a file (.csv, .tsv, .tab, .jsonl, .ndjson, .json, each also .gz; .parquet, .pq), a
            ``pandas.DataFrame``, a ``datasets.Dataset``, a list of mappings (rows) or a mapping of lists (columns).
        text: column of the text.
        text_pair: column of the second text, for tasks on pairs.
        label: column of the label.
        kind: "auto" finds labels that need "multi" or "regression", which this version refuses; "single" takes numbers
            for label names.
        labelled: False for prediction: no label column is looked for, and one that is there is ignored.

    Raises:
        DataError: the source cannot be read, or a cell is missing, empty or of the wrong type.
        InputError: a column that is not there, or an unknown ``kind`` or type of source.
        MissingExtraError: a Parquet file without pyarrow.
    """
    kinds = ("auto", *get_args(Kind))
    if kind not in kinds:
        raise InputError(allowed("kind", kind, kinds))
    table = read_table(source)
    columns = _choose_columns(table, {"text": text, "text_pair": text_pair, "label": label}, labelled)
    labels = None
    if columns.label is not None:
        several = kind == "multi" or (kind == "auto" and label is None and columns.label == "labels")
        labels = _label_names(table.column(columns.label), "multi" if several else kind)
    return Dataset(
        texts=table.column(columns.text).texts("text"),
        labels=labels,
        text_pairs=None if columns.text_pair is None else table.column(columns.text_pair).texts("text pair"),
        source=table.source,
        columns=columns,
    )


def from_lists(texts: object, labels: object = None, text_pairs: object = None) -> Dataset:
    """A data set from lists, tuples, NumPy arrays or pandas series.

    Args:
        texts: texts; or pairs of texts as tuples or lists of two, or as an array or frame of two columns.
        labels: text or integers, as :func:`read_dataset` takes them; None for prediction.
        text_pairs: second texts, unless ``texts`` holds pairs.

    Raises:
        DataError: a text or label is missing, empty or of the wrong type, or their numbers differ; there are no rows.
        InputError: an argument is not a list.
    """
    cells = as_cells(texts, "texts")
    pairs = None if text_pairs is None else as_cells(text_pairs, "text_pairs")
    source = Dataset.source
    if pairs is None and cells and isinstance(cells[0], list | tuple | np.ndarray):
        cells, pairs = _unzip_pairs(cells, source)
    return Dataset(
        texts=Column(source, "text", cells).texts("text"),
        labels=None if labels is None else _label_names(Column(source, "label", as_cells(labels, "labels")), "auto"),
        text_pairs=None if pairs is None else Column(source, "text_pair", pairs).texts("text pair"),
    )


# --- columns --------------------------------------------------------------------------------------------------------


def _choose_columns(table: Table, named: dict[Role, str | None], labelled: bool) -> Columns:
    """The column for each role: the one the user named, else one that has a default name and no other role."""
    wanted = [role for role in named if labelled or role != "label"]
    chosen = {role: _existing(table, role, name) for role in wanted if (name := named[role]) is not None}
    if len(set(chosen.values())) < len(chosen):
        uses = ", ".join(f"{role}={shown(name)}" for role, name in chosen.items())
        raise InputError(f"each column can be used once. Got {uses}")
    for role in wanted:
        if role not in chosen:
            free = [name for name in DEFAULT_NAMES[role] if name in table.names and name not in chosen.values()]
            if free:
                chosen[role] = free[0]
            elif role != "text_pair":
                looked_for = " or ".join(shown(name) for name in DEFAULT_NAMES[role])
                problem = f"there is no column {looked_for}. Name the {role} column with {role}= (--{role}); "
                raise DataError(f"{problem}the columns are {listed(table.names)}", source=table.source)
    return Columns(**chosen)


def _existing(table: Table, role: Role, name: str) -> str:
    if name not in table.names:
        option = f"{role}= (--{role.replace('_', '-')})"
        problem = f"{option} names the column {shown(name)}, which is not there.{did_you_mean(name, table.names)} "
        raise DataError(f"{problem}The columns are {listed(table.names)}", source=table.source)
    return name


# --- labels ---------------------------------------------------------------------------------------------------------


def _label_names(column: Column, kind: Kind | Literal["auto"]) -> list[str]:
    """The label of each row as text; refuses what asks for another kind of task than single-label."""
    if kind in ("multi", "regression"):
        what = "several labels a row (multi-label)" if kind == "multi" else "numbers as targets (regression)"
        problem = f"{what} are not supported yet. Use a column that holds one label a row"
        raise column.error(1, f"{problem}, named with label= (--label)")
    names = [_label_name(column, row, cell) for row, cell in enumerate(column.cells, 1)]
    if kind == "auto" and all(NUMBER.fullmatch(name) for name in names):
        for row, name in enumerate(names, 1):
            if not float(name).is_integer():
                problem = f"the labels are numbers such as {shown(name)}, and regression is not supported yet. If each "
                raise column.error(row, f"{problem}number is the name of a label, use kind='single' (--kind single)")
    return names


def _label_name(column: Column, row: int, cell: object) -> str:
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float) and math.isfinite(cell):
        return str(int(cell)) if cell.is_integer() else repr(cell)
    if isinstance(cell, list | tuple | set | np.ndarray):
        problem = f"the label is a list, {shown(cell)}: several labels a row (multi-label) are not supported yet. "
        raise column.error(row, f"{problem}Give each row one label")
    return column.text(row, cell, "label")


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
        DataError: there are no labels, all rows have one label, or (``holdout``) a label occurs once.
    """
    labels = _labels(dataset)
    counts = Counter(labels)
    if len(counts) == 1:
        problem = f"all {len(labels)} rows have the label {shown(labels[0])}. Training needs two labels or more"
        raise dataset.error(0, "label", problem)
    for index, label in enumerate(labels):
        if holdout and counts[label] == 1:
            problem = f"the label {shown(label)} occurs once. Add a second row with it, remove this row, "
            raise dataset.error(index, "label", f"{problem}or give a validation file (--validation)")


def check_labels_known(dataset: Dataset, label_set: LabelSet, role: str) -> None:
    """Whether every label of a ``role`` ("validation", "test") data set is one that was trained on.

    Raises:
        DataError: names the first row whose label is not in ``label_set``, and the labels closest to it.
    """
    unknown = [(index, label) for index, label in enumerate(_labels(dataset)) if label not in label_set]
    if unknown:
        index, label = unknown[0]
        such = f"{len(unknown)} {role} row{'s have such labels' if len(unknown) > 1 else ' has such a label'}"
        hint = did_you_mean(label, label_set.names) or f" The {len(label_set)} labels are {listed(label_set.names)}"
        problem = f"the label {shown(label)} does not occur in the training data ({such}).{hint}"
        raise dataset.error(index, "label", problem)


def count_shared(a: Dataset, b: Dataset) -> int:
    """Rows of ``b`` whose text (and second text) is exactly that of a row of ``a``, whatever their labels."""
    known = set(a.inputs)
    return sum(row in known for row in b.inputs)


def _labels(dataset: Dataset) -> list[str]:
    if dataset.labels is None:
        raise DataError("the rows have no labels", source=dataset.source)
    return dataset.labels


# --- hold-out -------------------------------------------------------------------------------------------------------


def split_holdout(
    dataset: Dataset, seed: int, fraction: float = 0.1, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose validation rows from train rows, stratified by label; the same for the same rows and seed.

    About ``fraction`` of the rows are held out, at least one. Every label keeps a train row, and every label with two
    or more different inputs gets a validation row if there is room for one of each. Rows with exactly the same input
    stay together, so that no validation row was seen in training; where only such a group can stand for a label, more
    than ``fraction`` may be held out, but never more than ``most``.

    Args:
        dataset: with labels.
        seed: chooses the rows.
        fraction: of the rows to hold out, between 0 and 1.
        most: rows to hold out at most.

    Returns:
        Indices of the train rows and of the validation rows, each (rows,) int64 and sorted.

    Raises:
        DataError: no row can be held out.
        InputError: ``fraction`` or ``most`` is out of range.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction must be between 0 and 1. Got {fraction!r} instead.")
    if most is not None and most < 1:
        raise InputError(f"most must be 1 or more. Got {most!r} instead.")
    labels = _labels(dataset)
    ids: list[int] = LabelSet.from_labels(labels).encode(labels).tolist()
    by_input: dict[tuple[str, str | None], list[int]] = {}
    for index, row in enumerate(dataset.inputs):
        by_input.setdefault(row, []).append(index)
    groups = list(by_input.values())
    most = most or len(ids)
    held = _hold_out(groups, ids, seed, min(max(1, round(fraction * len(ids))), most), most)
    if not held:
        problem = "no row can be held out for validation, as each label needs another, different row to train on. "
        raise DataError(f"{problem}Add rows or give a validation file (--validation)", source=dataset.source)
    return np.delete(np.arange(len(ids)), held), np.array(sorted(held), np.int64)


def _hold_out(groups: list[list[int]], ids: list[int], seed: int, target: int, most: int) -> list[int]:
    """Rows of whole groups: first at random within each label's quota, then whatever stands for a label left out."""
    counts = np.bincount(ids).tolist()
    inputs = np.bincount([i for group in groups for i in {ids[row] for row in group}]).tolist()
    spare = [count - 1 if different > 1 else 0 for count, different in zip(counts, inputs, strict=True)]
    quotas = _apportion(counts, spare, target)
    taken = [0] * len(counts)
    held: list[int] = []

    def take(group: list[int], limits: Sequence[int]) -> None:
        """Hold a group out if no label gets beyond its limit."""
        for row in group:
            taken[ids[row]] += 1
        if len(held) + len(group) <= most and all(taken[ids[row]] <= limits[ids[row]] for row in group):
            held.extend(group)
        else:
            for row in group:
                taken[ids[row]] -= 1

    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    for group in order:
        take(group, quotas)
    keep_one = [count - 1 for count in counts]
    for group in sorted(order, key=len):
        if not held or any(quotas[ids[row]] and not taken[ids[row]] for row in group):
            take(group, keep_one)
    return held


def _apportion(counts: list[int], spare: list[int], total: int) -> list[int]:
    """Share ``total`` rows among labels in proportion to their ``counts``, at most ``spare`` for each.

    Sainte-Laguë's method, one row at a time to the label with the largest count / (2 * rows so far + 1), after one row
    for each label if there are enough.
    """
    able = [label for label, room in enumerate(spare) if room]
    quotas = [0] * len(counts)
    if total >= len(able):
        for label in able:
            quotas[label] = 1
    queue = [(-counts[label] / (2 * quotas[label] + 1), label) for label in able if quotas[label] < spare[label]]
    heapq.heapify(queue)
    for _ in range(total - sum(quotas)):
        if not queue:
            break
        label = heapq.heappop(queue)[1]
        quotas[label] += 1
        if quotas[label] < spare[label]:
            heapq.heappush(queue, (-counts[label] / (2 * quotas[label] + 1), label))
    return quotas

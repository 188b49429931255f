"""The rows that train, choose and report: checked, put together, and validation rows cut from the train rows."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ytuning.data.dataset import Dataset, TextInput, labels_of, names_in
from ytuning.data.kinds import KINDS, TaskKind, fit_kind
from ytuning.data.label_texts import DescribedLabels
from ytuning.data.labels import did_you_mean, label_name, list_names, quote
from ytuning.errors import DataError, InputError, argument

__all__ = [
    "MOST_HELD_OUT",
    "TaskRows",
    "apportion",
    "check_groups",
    "check_labels_known",
    "check_same_form",
    "check_trainable",
    "count_shared",
    "linked_rows",
    "split_holdout",
    "target_of",
    "task_rows",
]

# Maximum number of rows that are held out of a large training set; more would hardly measure better.
MOST_HELD_OUT = 2000


# --- checks between rows and between data sets ----------------------------------------------------------------------


def check_trainable(dataset: Dataset) -> None:
    """Whether a head can be trained on these rows.

    Raises:
        DataError: there are no labels, a column of 0 and 1 has no 1, or the kind's `training_problem`.
    """
    problem = KINDS[dataset.kind].training_problem(labels_of(dataset))
    columns = dataset.columns.label if dataset.columns else None
    if isinstance(columns, tuple):
        used = names_in(dataset)
        idle = next((name for name in columns if used and (label_name(name) or "") not in used), None)
        if idle is not None:
            none = "no row has 1, so nothing can be learnt about this label. "
            none += f"Leave the column out of {argument('label')}."
            raise DataError(none, source=dataset.source, column=idle)
    if problem:
        raise dataset.error(problem[0], "label", problem[1])


def check_groups(*, grouped: bool, validation: bool) -> None:
    """Refuse groups of train rows where no row is held out of them.

    Raises:
        InputError: there are both groups and validation rows.
    """
    if grouped and validation:
        raise InputError(
            f"{argument('groups', option='--group')} has no effect together with {argument('validation')}, because it "
            "keeps rows together when rows of the training set are held out. Leave out one of the two."
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
        raise DataError(f"{problem}{target.kind!r}. Use the same {argument('kind')} for both.", source=dataset.source)
    known = set(target.names)
    rows = target.label_names(labels)
    unknown = [(index, name) for index, names in enumerate(rows) for name in names if name not in known]
    if unknown:
        index, label = unknown[0]
        such = f"{len(unknown)} {role} {'rows have unknown labels' if len(unknown) > 1 else 'row has an unknown label'}"
        hint = did_you_mean(label, target.names)
        # The labels may come from another task or the wrong column, so the message lists those that are known.
        if not hint or known.isdisjoint(names_in(dataset)):
            hint += f" The {len(known)} labels are {list_names(target.names)}."
        problem = f"the label {quote(label)} does not occur in the training set ({such}).{hint}"
        raise dataset.error(index, "label", problem)


def count_shared(a: Dataset, b: Dataset) -> int:
    """Rows of ``b`` whose text (and second text) is exactly that of a row of ``a``, whatever their labels."""
    known = set(a.inputs)
    return sum(row in known for row in b.inputs)


# --- held-out rows --------------------------------------------------------------------------------------------------


def split_holdout(
    dataset: Dataset, seed: int, fraction: float = 0.1, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose validation rows from train rows, stratified by label; the same for the same rows and seed.

    A row of several labels stands for its rarest one, a number for the tenth of the rows that it is in.
    About ``fraction`` of the rows are held out, at least one. Every label keeps a train row, and every label with two
    or more different inputs gets a validation row if there is room for one of each. Rows with exactly the same input
    stay together, so that no validation row was seen in training; where only such a group can stand for a label, more
    than ``fraction`` may be held out, but never more than ``most``.

    The rows of a group (`Dataset.groups`) stay together too. Labels then keep their shares as far
    as whole groups permit. Where every group has more than ``most`` rows, the smallest one is held out.

    Args:
        dataset: rows with labels.
        seed: chooses the rows.
        fraction: share of the rows to hold out, between 0 and 1.
        most: rows to hold out at most.

    Returns:
        Indices of the train rows and of the validation rows, each (rows,) int64 and sorted.

    Raises:
        DataError: no row can be held out, or all rows are of one group.
        InputError: ``fraction`` or ``most`` is out of range.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction must be between 0 and 1. Got {fraction!r} instead.")
    if most is not None and most < 1:
        raise InputError(f"most must be 1 or more. Got {most!r} instead.")
    kind, labels = KINDS[dataset.kind], labels_of(dataset)
    ids, names = kind.strata(labels), kind.label_names(labels)
    parts = linked_rows(dataset)
    _check_several(dataset, parts)
    most = most or len(ids)
    target = min(max(1, round(fraction * len(ids))), most)
    also = names if any(len(row) > 1 for row in names) else None
    grouped = dataset.groups is not None
    held = _hold_out(parts, ids, seed, target, most, also, fill=grouped)
    if grouped and not held:
        held = _hold_out(parts, ids, seed, 1, len(ids), also, fill=False)
    if not held:
        other = "a row of another group" if grouped else "another, different row"
        problem = f"no row can be held out for validation, because each label needs {other} for training. "
        problem += f"Add rows or give a validation set ({argument('validation')})."
        raise DataError(problem, source=dataset.source)
    return np.delete(np.arange(len(ids)), held), np.array(sorted(held), np.int64)


def linked_rows(dataset: Dataset) -> list[list[int]]:
    """Rows that have to be on one side: those with exactly the same input, and those of one group."""
    if dataset.groups is None:
        alike: dict[TextInput, list[int]] = {}
        for row, content in enumerate(dataset.inputs):
            alike.setdefault(content, []).append(row)
        return list(alike.values())
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # In this graph each row is linked to its input and its group.
    nodes: dict[object, int] = {}
    links: list[tuple[int, int]] = []
    for row, (content, group) in enumerate(zip(dataset.inputs, dataset.groups, strict=True)):
        for key in (content,) if group is None else (content, group):
            links.append((row, nodes.setdefault(key, len(dataset) + len(nodes))))
    size = len(dataset) + len(nodes)
    graph = coo_array((np.ones(len(links), bool), tuple(zip(*links, strict=True))), shape=(size, size))
    parts: dict[int, list[int]] = {}
    for row, part in enumerate(connected_components(graph, directed=False)[1][: len(dataset)].tolist()):
        parts.setdefault(part, []).append(row)
    return list(parts.values())


def _check_several(dataset: Dataset, parts: list[list[int]]) -> None:
    """Raise an error if all rows are in a single group."""
    if dataset.groups is None or len(parts) > 1:
        return
    column = dataset.columns.group if dataset.columns else None
    values = argument("groups", option="--group") if column is None else f"the column {quote(column)}"
    names = sorted({name for name in dataset.groups if name is not None})
    which = f"the value {quote(names[0])}" if len(names) == 1 else "linked values"
    raise DataError(
        f"all {len(dataset)} rows have {which} in {values}, so they are one group, which cannot be split into a "
        f"training and a validation set. Use another column for {argument('groups', option='--group')} or give a "
        f"validation set ({argument('validation')}).",
        source=dataset.source,
    )


def _hold_out(
    groups: list[list[int]],
    ids: list[int],
    seed: int,
    target: int,
    most: int,
    also: list[tuple[str, ...]] | None,
    *,
    fill: bool,
) -> list[int]:
    """Rows of whole groups: first at random within each label's quota, then whatever stands for a label left out.

    ``ids`` are what rows stand for, ``also`` are all their labels, where they may have several: each keeps a row. With
    ``fill`` what comes second is every group that brings the rows held out closer to the quotas.
    """
    counts = np.bincount(ids).tolist()
    inputs = np.bincount([i for group in groups for i in {ids[row] for row in group}]).tolist()
    spare = [count - 1 if different > 1 else 0 for count, different in zip(counts, inputs, strict=True)]
    quotas = apportion(counts, spare, target)
    taken = [0] * len(counts)
    held: list[int] = []
    left = Counter(label for labels in also or () for label in labels)

    def take(group: list[int], limits: Sequence[int]) -> None:
        """Hold a group out if no label gets beyond its limit or loses its last row."""
        if len(held) + len(group) > most:
            return
        if len(group) == 1 and also is None:
            # Nearly all groups are one row of one label.
            label = ids[group[0]]
            if taken[label] < limits[label]:
                held.append(group[0])
                taken[label] += 1
            return
        gained = Counter(ids[row] for row in group)
        lost = Counter(label for row in group for label in also[row]) if also else Counter[str]()
        within = all(taken[label] + count <= limits[label] for label, count in gained.items())
        if within and all(count < left[label] for label, count in lost.items()):
            held.extend(group)
            left.subtract(lost)
            for label, count in gained.items():
                taken[label] += count

    def helps(group: list[int]) -> bool:
        """Whether a group stands for a label left out, or most of its rows are among those the quotas have room for."""
        if not fill:
            return any(quotas[ids[row]] and not taken[ids[row]] for row in group)
        counts = Counter(ids[row] for row in group)
        wanted = sum(min(count, max(0, quotas[label] - taken[label])) for label, count in counts.items())
        return group[0] not in first_held and wanted > len(group) / 2

    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    for group in order:
        take(group, quotas)
    keep_one = [count - 1 for count in counts]
    first_held = set(held)
    for group in sorted(order, key=len):
        if helps(group) or not held:
            take(group, keep_one)
    return held


def apportion(counts: Sequence[int], spare: Sequence[int], total: int) -> list[int]:
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


# --- rows of a task -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskRows:
    """Labelled rows of all data sets, one after the other.

    Attributes:
        target: kind of the task and its labels, of the train rows.
        inputs: texts or pairs (N,).
        truth: target array (N, ...).
        train: positions (rows,) int64 of the training rows.
        validation: positions (rows,) int64 of the validation rows.
        test: positions (rows,) int64 of the test rows.
        held: the validation rows.
        shared: rows of a part whose text is also one of another.
        label_texts: positions (rows,) int64 of the labels' own texts, which are rows of their labels; none unless
            :meth:`with_label_texts` has added them.
    """

    target: TaskKind
    inputs: list[TextInput]
    truth: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    held: Dataset
    shared: dict[str, int]
    label_texts: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """Positions (rows,) int64 of all rows that the task reads."""
        return np.concatenate((self.train, self.validation, self.test, self.label_texts))

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows of each part."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    @property
    def median_of_labels(self) -> float:
        """The median over labels of the number of training rows."""
        return float(np.median(self.target.count_labels(self.truth[self.train])))

    def with_label_texts(self, described: DescribedLabels | None) -> TaskRows:
        """Return the same rows, followed by the labels' texts."""
        if described is None:
            return self
        truth = self.target.encode_names(described.labels)
        places = len(self.inputs) + np.arange(len(described.texts))
        inputs = [*self.inputs, *((text, None) for text in described.texts)]
        return replace(self, inputs=inputs, truth=np.concatenate((self.truth, truth)), label_texts=places)


def task_rows(
    train: Dataset,
    validation: Dataset | None,
    test: Dataset | None,
    *,
    seed: int,
    order: Sequence[str] | None = None,
    held: np.ndarray | None = None,
) -> TaskRows:
    """Check the rows of a task and put them together; arguments as `train.train_task` takes them.

    Raises:
        DataError: the rows cannot be trained on.
    """
    target = target_of(train, validation, test, order)
    parts = [part for part in (train, validation, test) if part is not None]
    ends = np.cumsum([0, len(train), len(validation or ()), len(test or ())])
    train_rows, held_rows, test_rows = (np.arange(start, end) for start, end in itertools.pairwise(ends))
    shared = {"validation": 0}
    if validation is None:
        if held is None:
            train_rows, held_rows = split_holdout(train, seed, most=MOST_HELD_OUT)
        else:
            train_rows, held_rows = np.setdiff1d(train_rows, held), held
    else:
        shared["validation"] = count_shared(train, validation)
    if test is not None:
        shared["test"] = count_shared(train, test)
        if validation is not None:
            shared["test_and_validation"] = count_shared(validation, test)
    return TaskRows(
        target=target,
        inputs=[row for part in parts for row in part.inputs],
        truth=np.concatenate([target.encode(labels_of(part)) for part in parts]),
        train=train_rows,
        validation=held_rows,
        test=test_rows,
        held=train.select(held_rows) if validation is None else validation,
        shared=shared,
        label_texts=np.arange(0),
    )


def target_of(
    train: Dataset, validation: Dataset | None, test: Dataset | None, label_order: Sequence[str] | None = None
) -> TaskKind:
    """The target of train rows, which can be trained on, chosen by and tested on all these rows.

    Raises:
        DataError: rows cannot be used so; an ordinal task's labels have no order, or ``label_order`` is not theirs.
        InputError: training rows have groups beside validation rows, or the kind of task has no label order.
    """
    check_groups(grouped=train.groups is not None, validation=validation is not None)
    check_trainable(train)
    if label_order is not None and not KINDS[train.kind].has_order:
        raise InputError(
            f"{argument('label_order')} needs labels of the kind 'ordinal'. Got {train.kind!r} instead. "
            f"Add {argument('kind', 'ordinal')} or leave out {argument('label_order')}."
        )
    try:
        target = fit_kind(train.kind, labels_of(train), label_order)
    except InputError as error:
        raise DataError(str(error), source=train.source) from error
    for role, part in (("validation", validation), ("test", test)):
        if part is not None:
            check_same_form(train, part)
            check_labels_known(part, target, role)
    return target


def check_same_form(train: Dataset, other: Dataset) -> None:
    """Refuse pairs beside single texts.

    Raises:
        DataError: the rows of one are pairs, and those of the other are not.
    """
    if train.has_pairs != other.has_pairs:
        paired, single = (train, other) if train.has_pairs else (other, train)
        raise DataError(
            f"the rows are single texts, but those of {paired.source} are pairs. Use the same columns for both.",
            source=single.source,
        )

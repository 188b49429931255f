"""Validation rows that several tasks share: a text that one of them holds out is held out of all that have it.

Tasks with the same rows then share all that is computed from these, and no task learns from a text that chooses for
another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ytuning.data.dataset import Dataset, TextInput, labels_of
from ytuning.data.kinds import KINDS
from ytuning.data.splits import MOST_HELD_OUT, apportion, split_holdout

__all__ = ["common_holdout"]

# Where the labels of all tasks leave too few rows, a label may exceed its quota by this share and one row.
LEEWAY = 0.2
# Groups of rows that are compared with the quotas at a time.
COMPARED = 256


def common_holdout(
    tasks: Mapping[str, Dataset], seed: int, fraction: float = 0.1, most: int = MOST_HELD_OUT
) -> dict[str, np.ndarray]:
    """Choose validation rows from the train rows of several tasks; the same for the same rows and seed.

    Each task holds out about ``fraction`` of its rows and at most ``most``, and keeps the promises of
    `splits.split_holdout`: every label keeps a train row, and every label with two or more different inputs gets a
    validation row if there is room. Rows with the same input, or of the same group, are on one side in all tasks. The
    rows are drawn at random, as long as no task has more of a label than its share.

    A task for which this leaves no validation row has those of `split_holdout`, and so does a single task.

    Args:
        tasks: rows with labels, by the name of the task. A task without some of the rows has fewer validation rows.
        seed: chooses the rows.
        fraction: share of the rows to hold out, between 0 and 1.
        most: rows of a task to hold out at most.

    Returns:
        Indices of each task's validation rows, (rows,) int64 and sorted.

    Raises:
        DataError: a task can hold out no row.
    """
    held: dict[str, np.ndarray] = {}
    if len(tasks) > 1:
        units = _Units.of(list(tasks.values()), fraction, most)
        chosen = units.choose(seed)
        for name, unit in zip(tasks, units.of_rows, strict=True):
            held[name] = np.flatnonzero(chosen[unit])
    return {
        name: held[name] if len(held.get(name, ())) else split_holdout(rows, seed, fraction, most)[1]
        for name, rows in tasks.items()
    }


@dataclass(frozen=True)
class _Units:
    """What is held out as a whole: the rows of all tasks that have one input or are of one group.

    What is counted are the rows of a label of a task, and of each task. Of several labels a row, the label that
    stands for it has a share, and all labels are counted beside, as each has to keep a train row.

    Attributes:
        of_rows: for each task the unit (rows,) of each row.
        start: (U + 1,): the counts of unit u are those from ``start[u]`` to ``start[u + 1]``.
        counted: (counts,) what each of them counts.
        count: (counts,) rows.
        quota: for everything that is counted the rows to hold out.
        leeway: the same, where quotas leave too few rows.
        limit: the most that may ever be held out.
        is_share: (everything that is counted,) bool: whether it is a label that rows stand for.
        grouped: whether there are groups of rows.
    """

    of_rows: list[np.ndarray]
    start: np.ndarray
    counted: np.ndarray
    count: np.ndarray
    quota: np.ndarray
    leeway: np.ndarray
    limit: np.ndarray
    is_share: np.ndarray
    grouped: bool

    @classmethod
    def of(cls, tasks: list[Dataset], fraction: float, most: int) -> _Units:
        """The units of the rows of tasks, and what is to be held out of them."""
        of_rows = _linked(tasks)
        size = 1 + max(int(unit.max()) for unit in of_rows)
        pairs: list[np.ndarray] = []
        # (3, counted) for each of these: quota, leeway and limit.
        bounds: list[np.ndarray] = []
        is_share: list[np.ndarray] = []
        offset = 0
        for rows, unit in zip(tasks, of_rows, strict=True):
            kind, labels = KINDS[rows.kind], labels_of(rows)
            ids = np.asarray(kind.strata(labels))
            counts, of_labels = np.bincount(ids), _counted(unit, ids)
            # Labels with a single unit have nothing to spare.
            different = np.bincount(of_labels[1], minlength=len(counts))
            spare = np.where(different > 1, counts - 1, 0)
            target = min(max(1, round(fraction * len(ids))), most)
            quota = np.array(apportion(counts.tolist(), spare.tolist(), target))
            # The rows of the labels, then those of the task.
            of_task = _counted(unit, np.full(len(unit), len(counts)))
            pairs += [_moved(of_labels, offset), _moved(of_task, offset)]
            leeway = np.minimum(spare, np.ceil((1 + LEEWAY) * quota).astype(np.int64) + 1)
            bounds += [np.stack((quota, leeway, np.maximum(counts - 1, 0))), np.array([[target], [target], [most]])]
            is_share += [np.ones(len(counts), bool), np.zeros(1, bool)]
            offset += len(counts) + 1
            if rows.kind == "multi":
                names = kind.label_names(labels)
                places: dict[str, int] = {}
                each = np.array([places.setdefault(name, len(places)) for row in names for name in row])
                own = np.repeat(unit, [len(row) for row in names])
                pairs.append(_moved(_counted(own, each), offset))
                left = np.bincount(each) - 1
                bounds.append(np.stack((left, left, left)))
                is_share.append(np.zeros(len(left), bool))
                offset += len(left)
        units, counted, count = np.concatenate(pairs, axis=1)
        order = np.argsort(units, kind="stable")
        start = np.searchsorted(units[order], np.arange(size + 1))
        quotas, leeways, limits = np.concatenate(bounds, axis=1)
        grouped = any(rows.groups is not None for rows in tasks)
        of_labels = np.concatenate(is_share)
        return cls(of_rows, start, counted[order], count[order], quotas, leeways, limits, of_labels, grouped)

    def choose(self, seed: int) -> np.ndarray:
        """Choose units (U,) bool to hold out."""
        order = np.random.default_rng(seed).permutation(len(self.start) - 1)
        chosen, taken = np.zeros(len(order), bool), np.zeros(len(self.quota), np.int64)
        for limits in (self.quota, self.leeway):
            self._take(order[~chosen[order]], limits, chosen, taken)
        # Then what stands for labels that were left out, small units first.
        rest = order[~chosen[order]]
        of_count = np.repeat(np.arange(len(order)), np.diff(self.start))
        weight = np.bincount(of_count, self.count, minlength=len(order))
        for unit in rest[np.argsort(weight[rest], kind="stable")] if self._lacks(taken).any() else ():
            if self._helps(unit, taken):
                self._take(np.array([unit]), self.limit, chosen, taken)
        return chosen

    def _lacks(self, taken: np.ndarray) -> np.ndarray:
        """Of everything that is counted, which labels have no validation row and should have one, or more of them."""
        return self.is_share & (taken < self.quota if self.grouped else (taken == 0) & (self.quota > 0))

    def _helps(self, unit: int, taken: np.ndarray) -> bool:
        """Whether a unit stands for a label left out, or with groups most of its rows are among those still wanted."""
        own = slice(self.start[unit], self.start[unit + 1])
        counted, count = self.counted[own], self.count[own]
        share = self.is_share[counted]
        if not self.grouped:
            return bool(self._lacks(taken)[counted].any())
        room = np.maximum(self.quota[counted] - taken[counted], 0)
        return not taken.any() or 2 * np.minimum(count, room)[share].sum() > count[share].sum()

    def _take(self, order: np.ndarray, limits: np.ndarray, chosen: np.ndarray, taken: np.ndarray) -> None:
        """Hold out the units of an order that keep within limits; ``chosen`` and ``taken`` say what is held out."""
        for first in range(0, len(order), COMPARED):
            units = order[first : first + COMPARED]
            # Most units exceed a limit once many are held out, and are found together.
            sizes = self.start[units + 1] - self.start[units]
            ends = np.cumsum(sizes)
            places = np.repeat(self.start[units] - (ends - sizes), sizes) + np.arange(ends[-1])
            counted, count = self.counted[places], self.count[places]
            fits = np.add.reduceat(taken[counted] + count > limits[counted], ends - sizes) == 0
            for position in np.flatnonzero(fits):
                own = slice(ends[position] - sizes[position], ends[position])
                after = taken[counted[own]] + count[own]
                if (after <= limits[counted[own]]).all():
                    taken[counted[own]] = after
                    chosen[units[position]] = True


def _counted(unit: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(3, pairs) int64: each pair of a unit and what is counted, and how many of these rows (rows,) have it."""
    kinds = int(counted.max()) + 1
    pairs, count = np.unique(unit * kinds + counted, return_counts=True)
    return np.stack((pairs // kinds, pairs % kinds, count))


def _moved(pairs: np.ndarray, offset: int) -> np.ndarray:
    """The same pairs (3, pairs) where what is counted is numbered from an offset on."""
    return pairs + np.array([[0], [offset], [0]])


def _linked(tasks: list[Dataset]) -> list[np.ndarray]:
    """For each task the unit (rows,) of each row: rows with one input are linked, and rows of one group."""
    nodes: dict[object, int] = {}
    of_rows: list[np.ndarray] = []
    before: list[TextInput] = []
    for rows in tasks:
        # Most columns of a table have the same rows.
        if (inputs := rows.inputs) == before:
            of_rows.append(of_rows[-1])
        else:
            before = inputs
            of_rows.append(np.array([nodes.setdefault(given, len(nodes)) for given in inputs]))
    if all(rows.groups is None for rows in tasks):
        return of_rows
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = [
        (node, nodes.setdefault(("group", group, None), len(nodes)))
        for rows, own in zip(tasks, of_rows, strict=True)
        for node, group in zip(own.tolist(), rows.groups or [None] * len(own), strict=True)
        if group is not None
    ]
    graph = coo_array((np.ones(len(links), bool), tuple(zip(*links, strict=True))), shape=(len(nodes), len(nodes)))
    part = connected_components(graph, directed=False)[1]
    # Numbered by the inputs alone, as they come.
    _, dense = np.unique(part[np.concatenate(of_rows)], return_inverse=True)
    return np.split(dense, np.cumsum([len(own) for own in of_rows])[:-1])

"""How far figures depend on which rows there are: 95 % percentile bootstrap intervals (Efron 1979), rows resampled.

A resample is how often it has each row, so its figures follow from sums over rows weighted by these counts.

Rows that are all right, or all wrong, look alike in every resample, which says nothing of how far the figure may be
off. There accuracy, the share of right rows, has the score interval (Wilson 1927); other metrics have none where all
rows are right or their resamples agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
from scipy.stats import binomtest, rankdata

from ytuning.data.labels import Kind

__all__ = [
    "PERCENTILES",
    "Intervals",
    "multi_intervals",
    "number_intervals",
    "resample_counts",
    "resampled_figures",
    "single_intervals",
]

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
SAME = 1e-9  # between two ends, is rounding and no interval
MEMORY = 64 * 2**20  # bytes of a chunk of resamples
FLAT = 1e-12  # of a sum of squares, is rounding and no variance
Intervals = dict[str, tuple[float, float]]
"""Lower and upper end, by the metric's name; a metric whose resamples agree may have none."""
Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Sums (r, K) of columns over the rows of resamples -> figures (r,), by the metric's name."""


def single_intervals(
    truth: np.ndarray, predicted: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Intervals:
    """Intervals of ``accuracy``, ``macro_f1`` and ``matthews``, of single-label and ordinal tasks.

    Macro F1 is over the labels that occur in truth or prediction of a resample. Matthews is the coefficient for several
    labels (Gorodkin 2004), to which abstaining is one more prediction; as in `evaluation/metrics.py`, it is 0 where it
    has no value.

    Args:
        truth: (rows,) label ids.
        predicted: (rows,) label ids, -1 = abstained.
        resamples: number of them.
        seed: of the resamples.
    """
    # Rows with the same two ids are drawn together: most tasks have few such pairs, however many rows they have.
    pairs, sizes = np.unique(np.stack([truth, predicted], 1), axis=0, return_counts=True)
    return _ends(_figures(sizes, *_single_sums(pairs), resamples, seed), len(truth))


def multi_intervals(
    truth: np.ndarray, predicted: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Intervals:
    """Intervals of ``accuracy``, ``macro_f1`` and ``micro_f1`` of a multi-label task, as its metrics define them.

    Args:
        truth: (rows, C) bool.
        predicted: (rows, C) bool.
        resamples: number of them.
        seed: of the resamples.
    """
    figures = _figures(np.ones(len(truth), np.int64), *_multi_sums(truth, predicted), resamples, seed)
    return _ends(figures, len(truth))


def number_intervals(truth: np.ndarray, values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Intervals:
    """Intervals of ``pearson`` and ``spearman``, of regression tasks; both are 0 where one side is constant.

    Spearman's is the correlation of the ranks in the whole sample: a resample's rows are not ranked anew.

    Args:
        truth: (rows,) numbers.
        values: (rows,) predicted numbers.
        resamples: number of them.
        seed: of the resamples.
    """
    figures = _figures(np.ones(len(truth), np.int64), *_number_sums(truth, values), resamples, seed)
    return _ends(figures, len(truth))


def resampled_figures(
    kind: Kind, truth: np.ndarray, predicted: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """(resamples,) of each metric that has an interval.

    The resamples depend on the number of rows and the seed only, so figures of different predictions for the same rows
    can be subtracted from each other (paired bootstrap).

    Args:
        kind: of the task.
        truth: as for the function that gives the kind's intervals.
        predicted: in the same form.
        resamples: number of them.
        seed: of the resamples.
    """
    if kind == "regression":
        columns, statistics = _number_sums(truth, predicted)
    elif kind == "multi":
        columns, statistics = _multi_sums(truth, predicted)
    else:
        columns, statistics = _single_sums(np.stack([truth, predicted], 1))
    return _figures(np.ones(len(truth), np.int64), columns, statistics, resamples, seed)


def resample_counts(sizes: np.ndarray, resamples: int, seed: int, columns: int = 1) -> Iterator[np.ndarray]:
    """How many rows of each group resamples have: as many rows as there are, drawn with replacement.

    Args:
        sizes: (groups,) int64, rows of each.
        resamples: number of them.
        seed: of the draws.
        columns: sums that are taken of each resample, which make chunks smaller.

    Yields:
        (r, groups) float64 whole numbers; how the resamples are cut into chunks does not change them.
    """
    chooser = np.random.default_rng(seed)
    rows, groups = int(sizes.sum()), len(sizes)
    few = 4 * groups < rows  # a group's count takes about four times as long to draw as a row
    group = None if few else np.repeat(np.arange(groups), sizes)
    most = max(1, MEMORY // (8 * (4 * groups + (0 if few else 2 * rows) + 4 * columns)))
    for start in range(0, resamples, most):
        count = min(most, resamples - start)
        if group is None:
            yield chooser.multinomial(rows, sizes / rows, size=count).astype(np.float64)
            continue
        cells = group[chooser.integers(rows, size=(count, rows))]
        cells += groups * np.arange(count)[:, None]
        yield np.bincount(cells.ravel(), minlength=count * groups).reshape(count, groups).astype(np.float64)


def _single_sums(pairs: np.ndarray) -> tuple[scipy.sparse.csr_array, Statistics]:
    """Of true and predicted ids (groups, 2): columns (groups, K), and what their sums say."""
    names = np.unique(pairs[pairs >= 0])
    true, other = (np.searchsorted(names, column) for column in pairs.T)
    answered, right = pairs[:, 1] >= 0, pairs[:, 0] == pairs[:, 1]
    place = np.arange(len(pairs))
    flags = [
        scipy.sparse.csr_array((np.ones(len(rows)), (rows, ids)), shape=(len(pairs), len(names)))
        for rows, ids in ((place, true), (place[answered], other[answered]), (place[right], true[right]))
    ]

    def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
        true, other, right = np.split(sums, 3, axis=1)  # (r, labels) each
        rows, hits = true.sum(1), right.sum(1)
        abstained = rows - other.sum(1)
        spread = rows**2 - np.square(true).sum(1), rows**2 - np.square(other).sum(1) - abstained**2
        return {
            "accuracy": hits / rows,
            "macro_f1": _macro_f1(true, other, right),
            "matthews": _ratio(hits * rows - (true * other).sum(1), np.sqrt(spread[0] * spread[1])),
        }

    return scipy.sparse.hstack(flags, format="csr"), statistics


def _multi_sums(truth: np.ndarray, predicted: np.ndarray) -> tuple[scipy.sparse.csr_array, Statistics]:
    """Of (rows, C) bool: columns (rows, K), and what their sums say."""
    true, other = truth.astype(bool), predicted.astype(bool)
    flags = [true, other, true & other, (true == other).all(1)[:, None]]
    columns = scipy.sparse.hstack([scipy.sparse.csr_array(each, dtype=np.float64) for each in flags], format="csr")

    def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
        true, other, right = np.split(sums[:, :-1], 3, axis=1)  # (r, C) each
        return {
            "accuracy": sums[:, -1] / len(truth),
            "macro_f1": _macro_f1(true, other, right),
            "micro_f1": _ratio(2 * right.sum(1), true.sum(1) + other.sum(1)),
        }

    return columns, statistics


def _number_sums(truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, Statistics]:
    """Of (rows,) numbers: columns (rows, K), and what their sums say."""
    columns = np.concatenate([_moments(truth, values), _moments(rankdata(truth), rankdata(values))], axis=1)

    def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
        pearson, spearman = np.split(sums, 2, axis=1)
        return {"pearson": _correlation(pearson, len(truth)), "spearman": _correlation(spearman, len(truth))}

    return columns, statistics


def _figures(
    sizes: np.ndarray,
    columns: np.ndarray | scipy.sparse.csr_array,
    statistics: Statistics,
    resamples: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """(resamples,) of statistics of sums that weigh ``columns`` (groups, K) by a resample's counts."""
    chunks = [statistics(counts @ columns) for counts in resample_counts(sizes, resamples, seed, columns.shape[1])]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _ends(figures: dict[str, np.ndarray], rows: int) -> Intervals:
    found: Intervals = {}
    for name, values in figures.items():
        low, high = np.percentile(values, PERCENTILES)
        if high - low > SAME:
            found[name] = float(low), float(high)
        elif name == "accuracy":
            score = binomtest(round(low * rows), rows).proportion_ci(0.95, "wilson")
            found[name] = float(score.low), float(score.high)
    # Resamples of a few rows that are all right may lack labels, and so differ in other metrics: that says no more.
    right = "accuracy" in figures and float(figures["accuracy"].min()) == 1
    return {"accuracy": found["accuracy"]} if right else found


def _macro_f1(true: np.ndarray, other: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(r,) of rows (r, labels) that have a label, that were given it, and both."""
    either = true + other
    return _ratio(_ratio(2 * right, either).sum(1), np.count_nonzero(either, axis=1))


def _moments(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(rows, 5): what sums over rows make a correlation of. Centred and scaled, so that little of them cancels."""
    units = []
    for values in (one, other):
        centred = values.astype(np.float64) - values.mean(dtype=np.float64)
        units.append(centred / (np.abs(centred).max() or 1.0))
    x, y = units
    return np.stack([x, y, x * x, y * y, x * y], 1)


def _correlation(sums: np.ndarray, rows: int) -> np.ndarray:
    """(r,) of sums (r, 5)."""
    x, y, xx, yy, xy = sums.T
    spread = [
        np.where(rows * squares - total**2 > FLAT * rows * squares, rows * squares - total**2, 0.0)
        for total, squares in ((x, xx), (y, yy))
    ]
    return _ratio(rows * xy - x * y, np.sqrt(spread[0] * spread[1])).clip(-1, 1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where the whole is."""
    found = np.zeros(part.shape)
    np.divide(part, whole, out=found, where=whole > 0)
    return found

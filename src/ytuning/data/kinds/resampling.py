"""How far figures depend on which rows there are: 95 % percentile bootstrap intervals (Efron 1979), rows resampled.

A resample is how often it has each row, so its figures follow from sums over rows weighted by these counts.

Rows that are all right, or all wrong, look alike in every resample, which says nothing of how far the figure may be
off. There accuracy, the share of right rows, has the score interval (Wilson 1927); other metrics have none where all
rows are right or their resamples agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = [
    "PERCENTILES",
    "Intervals",
    "Sums",
    "interval_ends",
    "moments",
    "ratio",
    "resample_counts",
    "resampled_correlation",
    "resampled_macro_f1",
    "resampled_sums",
]

PERCENTILES = (2.5, 97.5)
# A smaller distance between two ends is rounding and no interval.
SAME = 1e-9
# Bytes of a chunk of resamples.
MEMORY = 64 * 2**20
# A smaller share of a sum of squares is rounding and no variance.
FLAT = 1e-12
Intervals = dict[str, tuple[float, float]]
"""Lower and upper end, by the metric's name; a metric whose resamples agree may have none."""
Sums = tuple[Any, Callable[[np.ndarray], dict[str, np.ndarray]]]
"""Columns (rows, K), an array or a sparse one; and their sums (r, K) over the rows of r resamples -> metrics (r,)."""


def resampled_sums(sizes: np.ndarray, sums: Sums, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """(resamples,) of each metric.

    Args:
        sizes: (groups,) int64, rows of each group of rows that are alike.
        sums: columns (groups, K), and what their sums over a resample's rows say.
        resamples: number of them.
        seed: of the resamples.
    """
    columns, statistics = sums
    chunks = [statistics(counts @ columns) for counts in resample_counts(sizes, resamples, seed, columns.shape[1])]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


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
    # A group's count takes about four times as long to draw as a row.
    few = 4 * groups < rows
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


def interval_ends(figures: dict[str, np.ndarray], rows: int) -> Intervals:
    """The intervals of metrics, of their resamples (resamples,) and the number of rows."""
    from scipy.stats import binomtest

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


def resampled_macro_f1(true: np.ndarray, other: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(r,) macro F1 of the rows (r, labels) that have a label, that were given it, and both."""
    either = true + other
    return ratio(ratio(2 * right, either).sum(1), np.count_nonzero(either, axis=1))


def moments(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(rows, 5): what sums over rows make a correlation of. Centred and scaled, so that little of them cancels."""
    units = []
    for values in (one, other):
        centred = values.astype(np.float64) - values.mean(dtype=np.float64)
        units.append(centred / (np.abs(centred).max() or 1.0))
    x, y = units
    return np.stack([x, y, x * x, y * y, x * y], 1)


def resampled_correlation(sums: np.ndarray, rows: int) -> np.ndarray:
    """(r,) correlations of sums (r, 5) of :func:`moments`."""
    x, y, xx, yy, xy = sums.T
    spread = [
        np.where(rows * squares - total**2 > FLAT * rows * squares, rows * squares - total**2, 0.0)
        for total, squares in ((x, xx), (y, yy))
    ]
    return ratio(rows * xy - x * y, np.sqrt(spread[0] * spread[1])).clip(-1, 1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, and 0 where the whole is not above 0."""
    found = np.zeros(part.shape)
    np.divide(part, whole, out=found, where=whole > 0)
    return found

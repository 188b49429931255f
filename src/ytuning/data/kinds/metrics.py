"""What the metrics of several kinds of task share, and how far they depend on which rows there are.

That is told by 95 % percentile bootstrap intervals (Efron 1979). A resample is how often it has each row, so its
figures follow from sums over rows weighted by these counts.

Rows that are all right, or all wrong, look alike in every resample, which says nothing of how far the figure may be
off. There accuracy, the share of right rows, has the score interval (Wilson 1927); other metrics have none where all
rows are right or their resamples agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = [
    "CALIBRATION_BINS",
    "PERCENTILES",
    "Intervals",
    "LabelFigures",
    "Sums",
    "correlation",
    "expected_calibration_error",
    "figures_of_counts",
    "interval_ends",
    "macro_f1",
    "moments",
    "rank_correlation",
    "ratio",
    "reliability",
    "resample_counts",
    "resampled_correlation",
    "resampled_macro_f1",
    "resampled_sums",
    "threshold_sweep",
]

CALIBRATION_BINS = 15
PERCENTILES = (2.5, 97.5)
# A smaller distance between two ends is rounding and no interval.
SAME = 1e-9
# Maximum number of bytes in a chunk of resamples.
MEMORY = 64 * 2**20
# A smaller share of a sum of squares is rounding and no variance.
FLAT = 1e-12
Intervals = dict[str, tuple[float, float]]
"""Lower and upper end, by the metric's name; a metric whose resamples agree may have none."""
Sums = tuple[Any, Callable[[np.ndarray], dict[str, np.ndarray]]]
"""Columns (rows, K), an array or a sparse one; and their sums (r, K) over the rows of r resamples -> metrics (r,)."""


class LabelFigures(dict[str, float]):
    """The ``precision``, ``recall``, ``f1`` and number of ``rows`` of one label."""


def figures_of_counts(true: np.ndarray, given: np.ndarray, right: np.ndarray) -> list[LabelFigures]:
    """Figures of each label, of the rows (C,) that have it, that were given it, and both; 0 where there are none."""
    columns = (ratio(right, given), ratio(right, true), ratio(2 * right, true + given), true)
    return [
        LabelFigures(precision=float(p), recall=float(r), f1=float(f), rows=int(n))
        for p, r, f, n in zip(*columns, strict=True)
    ]


def macro_f1(true: np.ndarray, given: np.ndarray, right: np.ndarray) -> float:
    """The mean F1 of the labels that occur in truth or prediction; counts (C,) as of :func:`figures_of_counts`."""
    either = true + given
    return float(ratio(2 * right, either)[either > 0].sum() / max(1, np.count_nonzero(either)))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide ``part`` by ``whole``; the ratio is 0 where ``whole`` is not above 0."""
    quotient = np.zeros(part.shape)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of (rows,) and (rows,); 0 where one side is constant."""
    from scipy.stats import rankdata

    return correlation(rankdata(one), rankdata(other))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant, also if its mean is not exactly that constant."""
    if one.min() == one.max() or other.min() == other.max():
        return 0.0
    x, y = (values / np.linalg.norm(values) for values in (_centred(one), _centred(other)))
    return float(np.clip(x @ y, -1, 1))


def _centred(values: np.ndarray) -> np.ndarray:
    """Values (rows,) float64 around 0, the farthest at 1: squares of very large or small ones would leave the range."""
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    return centred / (np.abs(centred).max() or 1.0)


# --- confidence -----------------------------------------------------------------------------------------------------


def expected_calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence (Guo et al., arXiv 1706.04599).

    Arguments are those of :func:`reliability`.
    """
    totals, hits, rows = _confidence_bins(truth, probabilities, bins)
    return float(np.abs(hits - totals).sum() / rows.sum())


def reliability(
    truth: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS
) -> list[tuple[float, float, int]]:
    """Points of a calibration curve, from the lowest confidence: ``(mean confidence, accuracy, rows)`` of each bin.

    Args:
        truth: (rows,) label ids, or of a multi-label task (rows, C) bool, whose decisions are counted in place of rows:
            the confidence is then the probability of a label, and it is right if the label is there.
        probabilities: (rows, C).
        bins: number of bins of confidence between 0 and 1; bins without rows are left out.
    """
    return [
        (float(total / count), float(good / count), int(count))
        for total, good, count in zip(*_confidence_bins(truth, probabilities, bins), strict=True)
        if count
    ]


def _confidence_bins(
    truth: np.ndarray, probabilities: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for the bins (bins,) the sum of confidence, the number of right rows or decisions, and their number."""
    if truth.ndim == 2:
        confidence, right = probabilities.ravel(), truth.ravel().astype(bool)
    else:
        confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.bincount(place, confidence, bins), np.bincount(place, right, bins), np.bincount(place, minlength=bins)


def threshold_sweep(scores: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ways to split scores (N,) >= 0, N > 0, by a threshold, from the highest threshold down.

    Returns:
        Thresholds (splits,) halfway to the next lower score (the last one to 0), how many scores reach them, and how
        many of these have a flag.
    """
    order = np.argsort(-scores)
    ordered, hits = scores[order], flags[order].cumsum()
    below = np.append(ordered[1:], 0.0)
    # Of equal scores only the last one is a split.
    last = np.append(ordered[1:] < ordered[:-1], True)
    halfway = (ordered + below) / 2
    # The middle between neighbouring numbers may be rounded to the lower one.
    thresholds = np.where(halfway > below, halfway, ordered)
    return thresholds[last], np.flatnonzero(last) + 1, hits[last]


# --- resamples ------------------------------------------------------------------------------------------------------


def resampled_sums(
    sizes: np.ndarray, sums: Sums, resamples: int, seed: int, memory: int = MEMORY
) -> dict[str, np.ndarray]:
    """Return the values (resamples,) of each metric.

    Args:
        sizes: (groups,) int64, rows of each group of rows that are alike.
        sums: columns (groups, K), and what their sums over a resample's rows say.
        resamples: number of them.
        seed: seed of the resamples.
        memory: bytes of a chunk of resamples, at most.
    """
    columns, statistics = sums
    chunks = [
        statistics(counts @ columns) for counts in resample_counts(sizes, resamples, seed, columns.shape[1], memory)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def resample_counts(
    sizes: np.ndarray, resamples: int, seed: int, columns: int = 1, memory: int = MEMORY
) -> Iterator[np.ndarray]:
    """How many rows of each group resamples have: as many rows as there are, drawn with replacement.

    ``columns`` is the number of sums that are taken of each resample; other arguments as of :func:`resampled_sums`.

    Yields:
        (r, groups) float64 whole numbers; how the resamples are cut into chunks does not change them.
    """
    chooser = np.random.default_rng(seed)
    rows, groups = int(sizes.sum()), len(sizes)
    # A group's count takes about four times as long to draw as a row.
    few = 4 * groups < rows
    group = None if few else np.repeat(np.arange(groups), sizes)
    most = max(1, memory // (8 * (4 * groups + (0 if few else 2 * rows) + 4 * columns)))
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

    intervals: Intervals = {}
    for name, values in figures.items():
        low, high = np.percentile(values, PERCENTILES)
        if high - low > SAME:
            intervals[name] = float(low), float(high)
        elif name == "accuracy":
            score = binomtest(round(low * rows), rows).proportion_ci(0.95, "wilson")
            intervals[name] = float(score.low), float(score.high)
    # Resamples of a few rows that are all right may lack labels, and so differ in other metrics: that says no more.
    right = "accuracy" in figures and float(figures["accuracy"].min()) == 1
    return {"accuracy": intervals["accuracy"]} if right else intervals


def resampled_macro_f1(true: np.ndarray, given: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the macro F1 (r,), from counts (r, labels) of rows that have a label, that were given it, and both."""
    either = true + given
    return ratio(ratio(2 * right, either).sum(1), np.count_nonzero(either, axis=1))


def moments(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return columns (rows, 5) whose sums over rows give a correlation; centred and scaled against rounding."""
    x, y = _centred(one), _centred(other)
    return np.stack([x, y, x * x, y * y, x * y], 1)


def resampled_correlation(sums: np.ndarray, rows: int) -> np.ndarray:
    """Return the correlations (r,) for sums (r, 5) of :func:`moments`."""
    x, y, xx, yy, xy = sums.T
    spread = [
        np.where(rows * squares - total**2 > FLAT * rows * squares, rows * squares - total**2, 0.0)
        for total, squares in ((x, xx), (y, yy))
    ]
    return ratio(rows * xy - x * y, np.sqrt(spread[0] * spread[1])).clip(-1, 1)

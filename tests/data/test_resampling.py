"""Bootstrap intervals against loops over the same resamples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tests.kinds import kind_of
from ytuning.data.kinds.metrics import resample_counts, resampled_sums

SINGLE, MULTI, NUMBERS = kind_of("single"), kind_of("multi"), kind_of("unbounded")
RESAMPLES = 60


def loop(
    truth: np.ndarray, predicted: np.ndarray, sizes: np.ndarray, figures: Callable[..., dict[str, float]]
) -> dict[str, object]:
    """Intervals of ``figures`` of the rows of each resample; the arrays have a row for each group."""
    found = []
    for chunk in resample_counts(sizes, RESAMPLES, 3):
        for counts in chunk.astype(int):
            assert counts.sum() == sizes.sum()
            rows = np.repeat(np.arange(len(sizes)), counts)
            found.append(figures(truth[rows], predicted[rows]))
    assert len(found) == RESAMPLES
    return {
        name: pytest.approx(tuple(np.percentile([each[name] for each in found], [2.5, 97.5])), abs=1e-12)
        for name in found[0]
    }


def single_figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    labels = np.union1d(truth, predicted[predicted >= 0])
    one = len(np.union1d(truth, predicted)) == 1
    return {
        "accuracy": sklearn.metrics.accuracy_score(truth, predicted),
        "macro_f1": sklearn.metrics.f1_score(truth, predicted, labels=labels, average="macro", zero_division=0),
        "matthews": 0.0 if one else sklearn.metrics.matthews_corrcoef(truth, predicted),
    }


def multi_figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    f1 = sklearn.metrics.f1_score(truth, predicted, average=None, zero_division=0)
    return {
        "accuracy": sklearn.metrics.accuracy_score(truth, predicted),
        "macro_f1": f1[truth.any(0) | predicted.any(0)].mean(),
        "micro_f1": sklearn.metrics.f1_score(truth, predicted, average="micro", zero_division=0),
    }


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return 0.0 if np.ptp(one) == 0 or np.ptp(other) == 0 else float(np.corrcoef(one, other)[0, 1])


def choices(rows: int, labels: int, abstained: float) -> tuple[np.ndarray, np.ndarray]:
    chooser = np.random.default_rng(rows)
    truth = np.minimum(chooser.geometric(0.3, rows) - 1, labels - 1) * 5  # ids with gaps, some of them rare
    predicted = np.where(chooser.random(rows) < 0.7, truth, chooser.integers(5 * labels, size=rows))
    return truth, np.where(chooser.random(rows) < abstained, -1, predicted)


def wilson(right: int, rows: int) -> object:
    """The score interval, as Wilson's formula has it."""
    z, share = 1.959963984540054, right / rows
    middle, half = share + z**2 / (2 * rows), z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return pytest.approx(((middle - half) / (1 + z**2 / rows), (middle + half) / (1 + z**2 / rows)), abs=1e-12)


@pytest.mark.parametrize("abstained", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "labels"), [(40, 12), (300, 2)])  # drawn row by row, and as groups
def test_single_label_against_a_loop(rows: int, labels: int, abstained: float) -> None:
    truth, predicted = choices(rows, labels, abstained)
    pairs, sizes = np.unique(np.stack([truth, predicted], 1), axis=0, return_counts=True)
    assert (4 * len(pairs) < rows) == (rows == 300 or abstained == 1)
    expected = loop(pairs[:, 0], pairs[:, 1], sizes, single_figures)
    if abstained == 1:  # every resample is wrong
        expected = {"accuracy": wilson(0, rows)}
    assert SINGLE.intervals(truth, predicted, resamples=RESAMPLES, seed=3) == expected


def test_several_labels_against_a_loop() -> None:
    chooser = np.random.default_rng(0)
    truth = chooser.random((30, 6)) < [0.5, 0.4, 0.3, 0.1, 0.03, 0.0]
    predicted = truth ^ (chooser.random((30, 6)) < 0.1)
    predicted[:, 5] = False  # a label that occurs nowhere
    expected = loop(truth, predicted, np.ones(30, int), multi_figures)
    assert MULTI.intervals(truth, predicted, resamples=RESAMPLES, seed=3) == expected


@pytest.mark.parametrize("rows", [3, 50])  # resamples of 3 rows are often of one row only
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_numbers_against_a_loop(rows: int, offset: float) -> None:
    chooser = np.random.default_rng(rows)
    truth = chooser.normal(size=rows)
    values = np.round(truth + chooser.normal(size=rows), 1) + offset
    ones = np.ones(rows, int)
    found = NUMBERS.intervals(truth, values, resamples=RESAMPLES, seed=3)
    assert found["pearson"] == loop(truth, values, ones, lambda one, other: {"r": correlation(one, other)})["r"]
    ranks = scipy.stats.rankdata(truth), scipy.stats.rankdata(values)
    assert found["spearman"] == loop(*ranks, ones, lambda one, other: {"r": correlation(one, other)})["r"]


def test_resamples_that_are_constant_are_0() -> None:
    truth = np.array([0.1] * 9 + [0.2])  # a third of the resamples lacks the last row
    values = np.random.default_rng(10).random(10).round(2)
    expected = loop(truth, values, np.ones(10, int), lambda one, other: {"r": correlation(one, other)})
    assert NUMBERS.intervals(truth, values, resamples=RESAMPLES, seed=3)["pearson"] == expected["r"]
    low, high = NUMBERS.intervals(truth, values)["pearson"]
    assert low == 0.0 < high  # exactly, though the squares are rounded


@pytest.mark.parametrize("sizes", [np.ones(50, int), np.array([5, 1, 10, 4]), np.array([900, 90, 10])])
def test_draws_have_the_moments_of_a_multinomial(sizes: np.ndarray) -> None:
    counts = np.concatenate(list(resample_counts(sizes, 4000, 0)))
    share = sizes / sizes.sum()
    deviation = np.sqrt(sizes * (1 - share))
    assert np.abs(counts.mean(0) - sizes).max() < 5 * deviation.max() / np.sqrt(4000)
    assert counts.std(0) == pytest.approx(deviation, rel=0.1)
    assert (counts.sum(1) == sizes.sum()).all()


def test_draws_do_not_depend_on_chunks() -> None:
    truth, predicted = choices(40, 12, 0.1)
    sums = SINGLE.resampling_sums(truth, predicted)
    whole_sums, sums_of_parts = (resampled_sums(np.ones(40, int), sums, 100, 0, memory) for memory in (10**9, 20_000))
    for name, values in whole_sums.items():
        assert (sums_of_parts[name] == values).all()
    grouped = np.array([900, 90, 10])
    whole = list(resample_counts(grouped, 100, 0))
    parts = list(resample_counts(grouped, 100, 0, columns=9, memory=20_000))
    assert len(whole) == 1 < len(parts)
    assert max(part.nbytes for part in parts) < 20_000
    assert (np.concatenate(parts) == whole[0]).all()


def test_seed_decides() -> None:
    truth, predicted = choices(40, 12, 0.1)
    assert SINGLE.intervals(truth, predicted, seed=1) == SINGLE.intervals(truth, predicted, seed=1)
    assert SINGLE.intervals(truth, predicted, seed=1) != SINGLE.intervals(truth, predicted, seed=2)


def test_accuracy_has_the_width_of_a_binomial() -> None:
    truth = np.zeros(2500, int)
    predicted = (np.arange(2500) % 5 == 0).astype(int)  # 80 % right, with a deviation of 0.8 %
    low, high = SINGLE.intervals(truth, predicted, resamples=4000)["accuracy"]
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.008, 0.8 + 1.96 * 0.008), abs=0.001)


@pytest.mark.parametrize("rows", [1, 8])
def test_rows_that_are_all_alike_show_no_certainty(rows: int) -> None:
    right, wrong = {"accuracy": wilson(rows, rows)}, {"accuracy": wilson(0, rows)}
    ids = np.zeros(rows, int)
    assert SINGLE.intervals(ids, ids) == right
    assert SINGLE.intervals(ids, ids + 1) == wrong
    flags = np.ones((rows, 2), bool)
    assert MULTI.intervals(flags, flags) == right
    assert MULTI.intervals(flags, ~flags) == wrong
    assert MULTI.intervals(~flags, ~flags) == right
    constant, rising = np.full(rows, 0.1), np.arange(rows) + 0.6
    for truth, values in ((constant, rising), (rising, constant), (constant, constant)):
        assert NUMBERS.intervals(truth, values) == {}


def test_rows_that_are_all_right_show_no_certainty() -> None:
    ids = np.arange(12) % 2  # a few resamples have one label only, whose Matthews is 0, but none of the ends is theirs
    found = SINGLE.intervals(ids, ids)
    assert found == {"accuracy": wilson(12, 12)}
    assert found["accuracy"][1] == 1.0  # exactly, though the formula is rounded
    assert NUMBERS.intervals(np.arange(20.0), np.arange(20.0) * 0.3) == {}  # correlations of 1, but for rounding


def test_a_rare_label_shows_no_more_where_all_rows_are_right() -> None:
    for ids in (np.arange(20) // 19, np.arange(2), np.arange(4) % 2):  # of whose resamples many have one label only
        assert SINGLE.intervals(ids, ids) == {"accuracy": wilson(len(ids), len(ids))}
    flags = np.eye(2, dtype=bool)[[0] * 19 + [1]]
    assert MULTI.intervals(flags, flags) == {"accuracy": wilson(20, 20)}


def test_one_wrong_row_is_enough_for_resamples() -> None:
    truth, predicted = np.arange(12) % 2, np.arange(12) % 2
    predicted[0] = 1
    assert SINGLE.intervals(truth, predicted)["accuracy"] == (0.75, 1.0)

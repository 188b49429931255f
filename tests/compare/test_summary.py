"""Scores, differences and intervals over rows and seeds, beside resampling by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compare.test_compare import fake_run
from tests.kinds import KindName, kind_of
from ytuning.compare.compare import Comparison
from ytuning.compare.methods import Run, Work, work_on
from ytuning.compare.summary import standings_of
from ytuning.data.dataset import Dataset


def work_of(rows: int = 400, *, test: bool = True) -> Work:
    train = Dataset([f"text {number}" for number in range(600)], ["a", "b", "c"] * 200)
    judges = Dataset([f"other {number}" for number in range(rows)], (["a", "b", "c"] * rows)[:rows])
    return work_on(train, "encoder", test=judges if test else None)


def comparison_of(work: Work, runs: list[Run]) -> Comparison:
    methods, seeds = (list(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("method", "seed"))
    encoders = list(dict.fromkeys(run.encoder["name"] for run in runs))
    return Comparison(work, encoders, methods, sorted(seeds), runs, {}, False)


def accuracy(runs: list[Run], work: Work) -> np.ndarray:
    """(seeds, rows) bool."""
    return np.stack([np.array(run.predicted) == work.judged(run.seed) for run in runs])


@pytest.mark.parametrize("test", [True, False], ids=["test", "validation"])
def test_intervals_are_those_of_resampling_rows_and_seeds(test: bool) -> None:
    work = work_of(test=test)
    ours = [fake_run("ytuning", work, seed, 0.8) for seed in range(3)]
    theirs = [fake_run("full", work, seed, right) for seed, right in enumerate((0.6, 0.7, 0.75))]
    found = standings_of(comparison_of(work, [*ours, *theirs]))
    assert (found.metric, found.split) == ("accuracy", "test" if test else "validation")
    right = {"ytuning": accuracy(ours, work), "full": accuracy(theirs, work)}
    chooser = np.random.default_rng(1)
    rows = right["full"].shape[1]
    naive: dict[str, list[float]] = {"ytuning": [], "full": [], "difference": []}
    for _ in range(4000):
        seeds = chooser.integers(3, size=3)
        # Rows that judge all seeds are drawn once; each seed has validation rows of its own.
        drawn = np.tile(chooser.integers(rows, size=rows), (3, 1)) if test else chooser.integers(rows, size=(3, rows))
        means = {name: np.mean([values[seed, drawn[seed]].mean() for seed in seeds]) for name, values in right.items()}
        for name, mean in means.items():
            naive[name].append(float(mean))
        naive["difference"].append(float(means["full"] - means["ytuning"]))
    by_name = {each.method: each for each in found.methods}
    difference = by_name["full"].difference
    assert difference is not None and by_name["ytuning"].difference is None
    for figure, values in (
        (by_name["ytuning"].score, naive["ytuning"]),
        (by_name["full"].score, naive["full"]),
        (difference, naive["difference"]),
    ):
        low, high = np.percentile(values, (2.5, 97.5))
        assert [figure.low, figure.high] == pytest.approx([low, high], abs=0.12 * (high - low))
    assert by_name["full"].score.mean == pytest.approx(right["full"].mean())
    assert by_name["full"].score.deviation == pytest.approx(right["full"].mean(1).std(ddof=1))
    assert difference.mean == pytest.approx(right["full"].mean() - right["ytuning"].mean())


def test_a_difference_on_the_same_rows_is_surer_than_two_scores() -> None:
    work = work_of()
    ours = fake_run("ytuning", work, 0, 0.6)
    better = list(ours.predicted)
    wrong = np.flatnonzero(np.array(better) != work.judged(0))[:12]
    for row in wrong:
        better[row] = int(work.judged(0)[row])
    theirs = replace(ours, method="full", predicted=better, metrics={"accuracy": ours.metrics["accuracy"] + 12 / 400})
    mine, other = standings_of(comparison_of(work, [ours, theirs])).methods
    assert other.told_apart and other.difference is not None and other.difference.low > 0
    assert other.score.low < mine.score.high  # though their intervals overlap
    same = standings_of(comparison_of(work, [ours, replace(ours, method="lora")])).methods[1]
    assert not same.told_apart
    assert same.difference is not None and (same.difference.low, same.difference.high) == (0, 0)


def test_costs_are_medians_and_the_largest_peak() -> None:
    work = work_of()
    runs = [fake_run(name, work, seed) for seed in range(3) for name in ("ytuning", "full")]
    ours, full = standings_of(comparison_of(work, runs)).methods
    assert (ours.seconds, ours.seconds_with_stored_features, ours.peak_bytes) == (11.0, 3.0, 5 * 10**8 + 2)
    assert (ours.texts_per_second, ours.stored_bytes) == (301, 1_234_502)
    assert ours.bytes_per_text == pytest.approx(1234.501)
    assert full.seconds_with_stored_features is None
    assert (full.texts_per_second, full.stored_bytes, full.bytes_per_text) == (None, None, None)
    assert [run.seed for run in full.runs] == [0, 1, 2]


def test_differences_are_over_the_seeds_that_both_have() -> None:
    work = work_of()
    runs = [fake_run("ytuning", work, 0), fake_run("full", work, 0), fake_run("full", work, 1, 0.1)]
    full = standings_of(comparison_of(work, runs)).methods[1]
    assert full.difference is not None
    assert full.difference.mean == pytest.approx(runs[1].metrics["accuracy"] - runs[0].metrics["accuracy"])
    alone = standings_of(comparison_of(work, runs[1:])).methods
    assert [each.difference for each in alone] == [None]
    assert not alone[0].told_apart


def encoder_runs(work: Work, methods: dict[str, float], encoders: str = "ab", seeds: int = 2) -> list[Run]:
    """Runs of encoders with one-letter names; each is better than the one before it."""
    return [
        fake_run(method, replace(work, encoder=encoder), seed, right + number / 10)
        for seed in range(seeds)
        for number, encoder in enumerate(encoders)
        for method, right in methods.items()
    ]


def test_encoders_are_compared_with_our_method_of_the_first() -> None:
    work = work_of()
    runs = encoder_runs(work, {"logistic": 0.4, "ytuning": 0.5})
    found = standings_of(comparison_of(work, runs))
    assert [(each.encoder, each.method) for each in found.methods] == [
        ("a", "logistic"), ("a", "ytuning"), ("b", "logistic"), ("b", "ytuning"),
    ]  # fmt: skip
    assert [each.name for each in found.methods][:2] == ["a, logistic", "a, ytuning"]
    assert [each.is_reference for each in found.methods] == [False, True, False, False]
    assert found.reference is found.methods[1] and found.reference.difference is None
    for each in (found.methods[0], *found.methods[2:]):
        assert each.difference is not None
        assert each.difference.mean == pytest.approx(each.score.mean - found.methods[1].score.mean)
    # The figures of an encoder are those of a comparison with this encoder alone.
    alone = standings_of(comparison_of(work, [run for run in runs if run.encoder["name"] == "b"]))
    assert [each.score for each in alone.methods] == [each.score for each in found.methods[2:]]


def test_encoders_are_compared_even_without_our_method_or_the_first_encoder() -> None:
    work = work_of()
    found = standings_of(comparison_of(work, encoder_runs(work, {"logistic": 0.5, "full": 0.5})))
    assert [each.name for each in found.methods if each.is_reference] == ["a, logistic"]
    second = replace(
        comparison_of(work, encoder_runs(work, {"ytuning": 0.5}, "bc")),
        encoders=["a", "b", "c"],
        skipped={("a", "ytuning"): "broken"},
    )
    standings = standings_of(second)
    assert [(each.name, each.is_reference) for each in standings.methods] == [("b", True), ("c", False)]
    assert standings.methods[1].difference is not None


def test_json_of_encoders_has_the_form_of_one_for_each() -> None:
    work = work_of()
    runs = encoder_runs(work, {"ytuning": 0.5})
    broken = replace(comparison_of(work, runs), encoders=["a", "b", "c"], skipped={("c", "ytuning"): "broken"})
    several = standings_of(broken).to_json()
    single = standings_of(comparison_of(work, runs[::2])).to_json()
    assert several["reference"] == single["reference"] == {"encoder": "a", "method": "ytuning"}
    assert set(single) - set(several) == {"encoder", "methods", "skipped"} == set(several["encoders"][0])
    assert several["encoders"][0] == {name: single[name] for name in several["encoders"][0]}
    assert [entry["encoder"]["name"] for entry in several["encoders"]] == ["a", "b", "c"]
    assert several["encoders"][2] == {"encoder": {"name": "c"}, "methods": {}, "skipped": {"ytuning": "broken"}}


@pytest.mark.parametrize("kind", ["single", "multi", "unbounded"])
def test_resampled_figures_have_the_ends_of_intervals(kind: KindName) -> None:
    chooser = np.random.default_rng(0)
    truth: Any = chooser.integers(3, size=300)
    predicted: Any = np.where(chooser.random(300) < 0.7, truth, 0)
    if kind == "multi":
        truth, predicted = (truth[:, None] > [0, 1]), (predicted[:, None] > [0, 1])
    elif kind == "unbounded":
        truth, predicted = truth.astype(float), predicted + chooser.normal(size=300)
    target = kind_of(kind)
    found = target.resampled_metrics(truth, predicted, resamples=1000, seed=0)
    ends = target.intervals(truth, predicted)
    assert set(found) == set(ends)
    for name, (low, high) in ends.items():
        assert np.percentile(found[name], (2.5, 97.5)) == pytest.approx((low, high), abs=0.15 * (high - low))
    # The same rows are drawn whatever was predicted, so where all is right each figure is the highest there is.
    right = target.resampled_metrics(truth, truth, resamples=1000, seed=0)
    np.testing.assert_allclose(right[next(iter(ends))], 1.0)


def test_several_labels_and_numbers(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(60)]
    several = Dataset(texts, [("a", "b"), ("a",), ()] * 20, kind="multi")
    numbers = Dataset(texts, [float(number) for number in range(60)], kind="regression")
    for rows, metric in ((several, "macro_f1"), (numbers, "pearson")):
        work = work_on(rows.select(range(40)), "encoder", test=rows.select(range(40, 60)))
        truth = work.judged(0)
        answers: Any = [np.flatnonzero(row).tolist() for row in truth] if rows is several else truth.tolist()
        run = replace(fake_run("ytuning", work_of(), 0), predicted=answers, metrics={metric: 1.0})
        (found,) = standings_of(comparison_of(work, [run])).methods
        assert (found.score.mean, found.score.deviation) == (1, 0)
        assert found.score.low == pytest.approx(1) and found.score.high == pytest.approx(1)

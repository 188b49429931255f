"""What a comparison says of each method: its score, how far it is from ours, what it costs, and how sure that is.

Intervals are 95 % percentile bootstraps over rows and seeds at once: a resample draws as many seeds as there are, with
replacement, and rows in the same way, and its figure is the mean over its seeds of the metric on its rows. A difference
takes the same draws for both methods. Few seeds tell little about the spread over seeds, so of two or three of them the
interval is rather too narrow; of one it is of the rows only.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from ytuning.compare.compare import Comparison
from ytuning.compare.methods import Run
from ytuning.data.kinds.metrics import PERCENTILES
from ytuning.system.machine import version_of

__all__ = ["OURS", "Figure", "Standing", "Standings", "standings_of"]

# All other methods are compared with this one.
OURS = "ytuning"
RESAMPLES = 1000
REPORTED_PACKAGES = ("ytuning", "torch", "transformers", "scikit-learn", "numpy", "peft", "setfit")


@dataclass(frozen=True)
class Figure:
    """A figure over seeds and rows.

    Attributes:
        mean: mean over the seeds.
        deviation: standard deviation over the seeds; 0 with one seed.
        low: lower end of its interval.
        high: upper end of its interval.
    """

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """The results of one method.

    Attributes:
        method: its name.
        score: the headline metric.
        difference: the score minus our score, over the seeds that both have; ``None`` if there is no such seed.
        parameters: number of trained parameters.
        seconds: median over the seeds, see `methods.Run`.
        seconds_with_stored_features: the same with stored features.
        peak_bytes: the largest.
        runs: runs of the method, seed by seed.
    """

    method: str
    score: Figure
    difference: Figure | None
    parameters: int
    seconds: float
    seconds_with_stored_features: float | None
    peak_bytes: int | None
    runs: list[Run]

    @property
    def told_apart(self) -> bool:
        """Whether the difference's interval has no 0 in it."""
        return self.difference is not None and not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True)
class Standings:
    """All methods that have a run, in their order.

    Attributes:
        comparison: the comparison that they belong to.
        metric: the score's name.
        split: what judged, ``"test"`` or ``"validation"``.
        methods: one for each method that has a run.
    """

    comparison: Comparison
    metric: str
    split: str
    methods: list[Standing]

    def to_json(self) -> dict[str, Any]:
        """Everything but the answers to single rows."""
        work, first = self.comparison.work, self.comparison.runs[0]
        parts = {"train": work.train, "validation": work.validation, "test": work.test}
        versions = {package: version for package in REPORTED_PACKAGES if (version := version_of(package))}
        return {
            "kind": work.target.kind,
            "labels": len(work.target.names),
            "metric": self.metric,
            "split": self.split,
            "rows": first.rows,
            "files": {use: part.summary for use, part in parts.items() if part is not None},
            "encoder": first.encoder,
            "seeds": self.comparison.seeds,
            "settings": {"epochs": work.epochs, "search_rates": work.search_rates},
            "methods": {standing.method: _standing_json(standing) for standing in self.methods},
            "skipped": self.comparison.skipped,
            "interrupted": self.comparison.interrupted,
            "machine": {"system": platform.platform(), "processors": os.cpu_count()},
            "versions": {"python": platform.python_version(), **versions},
        }


def standings_of(comparison: Comparison) -> Standings:
    """Scores, differences and costs of a comparison's runs."""
    work, target = comparison.work, comparison.work.target
    metric = target.headlines[0]
    runs: dict[str, dict[int, Run]] = {name: {} for name in comparison.methods}
    for run in comparison.runs:
        runs[run.method][run.seed] = run
    # Each run has (resamples,) values. Seeds with the same test rows get the same resamples of them.
    same_rows = work.test is not None or work.validation is not None
    truths = {seed: target.decode(work.judged(seed)) for seed in comparison.seeds}
    figures = {
        name: {
            seed: target.resampled_metrics(
                truths[seed],
                target.answers_from_json(run.predicted),
                resamples=RESAMPLES,
                seed=0 if same_rows else seed,
            )[metric]
            for seed, run in of_method.items()
        }
        for name, of_method in runs.items()
    }

    def figure(seeds: list[int], value: Callable[[int], float], resampled: Callable[[int], np.ndarray]) -> Figure:
        drawn = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
        means = np.take_along_axis(np.stack([resampled(seed) for seed in seeds], 1), drawn, axis=1).mean(1)
        low, high = np.percentile(means, PERCENTILES)
        values = [value(seed) for seed in seeds]
        return Figure(fmean(values), stdev(values) if len(values) > 1 else 0.0, float(low), float(high))

    def standing(name: str) -> Standing:
        mine, ours = runs[name], runs.get(OURS, {})
        shared = [seed for seed in mine if seed in ours and name != OURS]
        seconds = [run.seconds_with_stored_features for run in mine.values()]
        stored = [number for number in seconds if number is not None]
        peaks = [run.peak_bytes for run in mine.values() if run.peak_bytes is not None]
        difference = None
        if shared:
            difference = figure(
                shared,
                lambda seed: mine[seed].metrics[metric] - ours[seed].metrics[metric],
                lambda seed: figures[name][seed] - figures[OURS][seed],
            )
        return Standing(
            method=name,
            score=figure(list(mine), lambda seed: mine[seed].metrics[metric], lambda seed: figures[name][seed]),
            difference=difference,
            parameters=max(run.parameters for run in mine.values()),
            seconds=median(run.seconds for run in mine.values()),
            seconds_with_stored_features=median(stored) if stored else None,
            peak_bytes=max(peaks) if peaks else None,
            runs=list(mine.values()),
        )

    split = "validation" if work.test is None else "test"
    return Standings(comparison, metric, split, [standing(name) for name in runs if runs[name]])


def _standing_json(standing: Standing) -> dict[str, Any]:
    fields = asdict(standing)
    del fields["method"]
    runs = [{name: value for name, value in run.items() if name != "predicted"} for run in fields.pop("runs")]
    return {**fields, "told_apart": standing.told_apart, "runs": runs}

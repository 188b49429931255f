"""What a comparison says of each method and encoder: its score, how far it is from the reference, what it costs, and
how sure that is.

Intervals are 95 % percentile bootstraps over rows and seeds at once: a resample draws as many seeds as there are, with
replacement, and rows in the same way, and its figure is the mean over its seeds of the metric on its rows. A difference
takes the same draws for both. Few seeds tell little about the spread over seeds, so of two or three of them the
interval is rather too narrow; of one it is of the rows only.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from ytuning.compare.compare import Comparison, Contestant
from ytuning.compare.methods import Run
from ytuning.data.kinds.metrics import PERCENTILES
from ytuning.system.machine import version_of

__all__ = ["OURS", "Figure", "Standing", "Standings", "standings_of"]

# All other methods are compared with this one, and all other encoders with the first.
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
    """The results of one method with one encoder.

    Attributes:
        encoder: name or folder of the encoder.
        method: name of the method.
        name: what tells it from the others: the method, the encoder, or both.
        is_reference: whether the others are compared with it.
        score: the headline metric.
        difference: the score minus the reference's, over the seeds that both have; ``None`` if there is no such seed.
        parameters: number of trained parameters.
        seconds: median over the seeds, see `methods.Run`.
        seconds_with_stored_features: the same with stored features.
        peak_bytes: the largest.
        stored_bytes: the largest, see `methods.Run`.
        bytes_per_text: stored bytes of one text.
        texts_per_second: median over the seeds, see `methods.Run`.
        runs: its runs, seed by seed.
    """

    encoder: str
    method: str
    name: str
    is_reference: bool
    score: Figure
    difference: Figure | None
    parameters: int
    seconds: float
    seconds_with_stored_features: float | None
    peak_bytes: int | None
    stored_bytes: int | None
    bytes_per_text: float | None
    texts_per_second: float | None
    runs: list[Run]

    @property
    def told_apart(self) -> bool:
        """Whether the difference's interval has no 0 in it."""
        return self.difference is not None and not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True)
class Standings:
    """All methods and encoders that have a run, in their order.

    Attributes:
        comparison: the comparison that they belong to.
        metric: the score's name.
        split: what judged, ``"test"`` or ``"validation"``.
        methods: one for each method of each encoder that has a run.
    """

    comparison: Comparison
    metric: str
    split: str
    methods: list[Standing]

    @property
    def reference(self) -> Standing | None:
        """The one that the others are compared with, if it has a run."""
        return next((standing for standing in self.methods if standing.is_reference), None)

    def to_json(self) -> dict[str, Any]:
        """Everything but the answers to single rows.

        With several encoders ``encoders`` has for each of them what the whole has of a single one: ``encoder``,
        ``methods`` and ``skipped``.
        """
        work, first = self.comparison.work, self.comparison.runs[0]
        parts = {"train": work.train, "validation": work.validation, "test": work.test}
        versions = {package: version for package in REPORTED_PACKAGES if (version := version_of(package))}
        encoders = [self._encoder_json(encoder) for encoder in self.comparison.encoders]
        return {
            "kind": work.target.kind,
            "labels": len(work.target.names),
            "metric": self.metric,
            "split": self.split,
            "rows": first.rows,
            "files": {use: part.summary for use, part in parts.items() if part is not None},
            "seeds": self.comparison.seeds,
            "settings": {"epochs": work.epochs, "search_rates": work.search_rates},
            "workers": self.comparison.workers,
            "reference": self.reference and {"encoder": self.reference.encoder, "method": self.reference.method},
            **(encoders[0] if len(encoders) == 1 else {"encoders": encoders}),
            "interrupted": self.comparison.interrupted,
            "machine": {"system": platform.platform(), "processors": os.cpu_count()},
            "versions": {"python": platform.python_version(), **versions},
        }

    def _encoder_json(self, encoder: str) -> dict[str, Any]:
        """Return the facts, methods and failures of an encoder; only its name is known if it has no run."""
        standings = [standing for standing in self.methods if standing.encoder == encoder]
        skipped = {method: reason for (name, method), reason in self.comparison.skipped.items() if name == encoder}
        return {
            "encoder": standings[0].runs[0].encoder if standings else {"name": encoder},
            "methods": {standing.method: _standing_json(standing) for standing in standings},
            "skipped": skipped,
        }


def standings_of(comparison: Comparison) -> Standings:
    """Scores, differences and costs of a comparison's runs."""
    work, target = comparison.work, comparison.work.target
    metric = target.headlines[0]
    runs: dict[Contestant, dict[int, Run]] = {contestant: {} for contestant in comparison.contestants}
    for run in comparison.runs:
        runs[run.encoder["name"], run.method][run.seed] = run
    reference = _reference(comparison, [contestant for contestant in runs if runs[contestant]])
    # Each run has (resamples,) values. Seeds with the same test rows get the same resamples of them.
    same_rows = work.test is not None or work.validation is not None
    truths = {seed: target.decode(work.judged(seed)) for seed in comparison.seeds}
    figures = {
        contestant: {
            seed: target.resampled_metrics(
                truths[seed],
                target.answers_from_json(run.predicted),
                resamples=RESAMPLES,
                seed=0 if same_rows else seed,
            )[metric]
            for seed, run in of_contestant.items()
        }
        for contestant, of_contestant in runs.items()
    }

    def figure(seeds: list[int], value: Callable[[int], float], resampled: Callable[[int], np.ndarray]) -> Figure:
        drawn = np.random.default_rng(0).integers(len(seeds), size=(RESAMPLES, len(seeds)))
        means = np.take_along_axis(np.stack([resampled(seed) for seed in seeds], 1), drawn, axis=1).mean(1)
        low, high = np.percentile(means, PERCENTILES)
        values = [value(seed) for seed in seeds]
        return Figure(fmean(values), stdev(values) if len(values) > 1 else 0.0, float(low), float(high))

    def standing(contestant: Contestant) -> Standing:
        mine, difference = runs[contestant], None
        if reference is not None and reference != contestant and runs[reference].keys() & mine:
            theirs, base = runs[reference], figures[reference]
            shared = [seed for seed in mine if seed in theirs]
            difference = figure(
                shared,
                lambda seed: mine[seed].metrics[metric] - theirs[seed].metrics[metric],
                lambda seed: figures[contestant][seed] - base[seed],
            )
        return Standing(
            *contestant,
            name=comparison.shown_name(contestant),
            is_reference=contestant == reference,
            score=figure(list(mine), lambda seed: mine[seed].metrics[metric], lambda seed: figures[contestant][seed]),
            difference=difference,
            **_costs(list(mine.values())),
            runs=list(mine.values()),
        )

    split = "validation" if work.test is None else "test"
    return Standings(comparison, metric, split, [standing(contestant) for contestant in runs if runs[contestant]])


def _reference(comparison: Comparison, finished: Sequence[Contestant]) -> Contestant | None:
    """Return the contestant that the others are compared with: our method of the first encoder that has a run of it.

    Encoders that are compared without our method are compared with another one, the first.
    """
    method = OURS
    if len(comparison.encoders) > 1 and OURS not in comparison.methods:
        method = comparison.methods[0]
    return next((contestant for contestant in finished if contestant[1] == method), None)


def _costs(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the fields of a :class:`Standing` that say what its runs cost."""

    def known(name: str) -> list[Any]:
        return [value for run in runs if (value := getattr(run, name)) is not None]

    def middle(name: str) -> Any:
        return median(known(name)) if known(name) else None

    stored = known("stored_bytes")
    return {
        "parameters": max(known("parameters")),
        "seconds": middle("seconds"),
        "seconds_with_stored_features": middle("seconds_with_stored_features"),
        "peak_bytes": max(known("peak_bytes"), default=None),
        "stored_bytes": max(stored, default=None),
        "bytes_per_text": sum(stored) / sum(known("stored_texts")) if stored else None,
        "texts_per_second": middle("texts_per_second"),
    }


def _standing_json(standing: Standing) -> dict[str, Any]:
    fields = asdict(standing)
    for name in ("encoder", "method", "name", "is_reference"):
        del fields[name]
    runs = [{name: value for name, value in run.items() if name != "predicted"} for run in fields.pop("runs")]
    return {**fields, "told_apart": standing.told_apart, "runs": runs}

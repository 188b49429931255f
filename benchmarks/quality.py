"""Scores of the default recipe on every kind of task, beside tuned logistic regression and full fine-tuning.

python -m benchmarks.quality --data ../shared/data --out results

Validation rows are held out of train (a set's own where it has a test split too); the test split only reports, for GLUE
sets the public dev set. Full fine-tuning's scores are not computed here: they are those that FULL states, each with the
settings that gave it. Retention is the mean of the seeds' scores divided by full fine-tuning's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import bar, head_option, parser, recipe
from benchmarks.machine import record
from ytuning.data import Dataset, read_dataset
from ytuning.encoder import load_encoder
from ytuning.pipeline import Stopwatch, train_task
from ytuning.store import FeatureStore


@dataclass(frozen=True)
class Set:
    """One data set.

    Attributes:
        metric: that it is judged by.
        full: score of full fine-tuning, None where it has not been computed with a fair search.
    """

    metric: str
    full: float | None = None


SETS = {
    "sst2": Set("accuracy"),
    "cola": Set("matthews"),
    "rte": Set("accuracy"),
    "mrpc": Set("accuracy"),
    "stsb": Set("spearman"),
    "qnli": Set("accuracy"),
    "mnli": Set("accuracy"),
    "banking77": Set("accuracy"),
    "trec6": Set("accuracy"),
    "ag_news": Set("accuracy"),
    "goemotions": Set("macro_f1"),
    "imdb": Set("accuracy"),
    "germeval2018": Set("macro_f1"),
}
CALIBRATED = ("sst2", "banking77", "ag_news")  # whose calibration error has a bar


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", type=int, help="train rows of each set at most; default: all")
    options.add_argument("--long-text", choices=("truncate", "window"), default="truncate")
    arguments = options.parse_args(argv)
    figures = [one_set(name, arguments) for name in arguments.sets]
    bars = [
        bar(f"calibration error, {entry['set']}", entry["metrics"]["ece"]["mean"], at_most=0.03)
        for entry in figures
        if entry["set"] in CALIBRATED
    ]
    bars += [
        bar("macro F1, goemotions", entry["score"], at_least=0.46) for entry in figures if entry["set"] == "goemotions"
    ]
    kept = [entry["retention"] for entry in figures if entry["retention"] is not None]
    if kept:
        bars.append(bar("mean retention", statistics.fmean(kept), at_least=1.0))
    record("quality", figures, arguments.out, bars)


def parts_of(folder: Path, rows: int | None) -> tuple[Dataset, Dataset | None, Dataset]:
    """Train, validation (None: to be held out) and test rows."""
    there = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    found = {name: read_dataset(file) for name, file in there.items() if file.exists()}
    train = found["train"]
    if rows is not None and rows < len(train):
        train = train.select(np.linspace(0, len(train) - 1, rows))
    return (train, found.get("validation"), found["test"]) if "test" in found else (train, None, found["validation"])


def one_set(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All seeds on one set, their heads trained one by one on hold-outs of their own."""
    train, validation, test = parts_of(arguments.data / name, arguments.rows)
    encoder = load_encoder(arguments.encoder, long_text=arguments.long_text)
    runs = []
    with tempfile.TemporaryDirectory() as root:
        for seed in range(arguments.seeds):
            watch = Stopwatch()
            trained = train_task(
                train,
                encoder,
                FeatureStore(root),
                recipe(arguments),
                validation=validation,
                test=test,
                seed=seed,
                watch=watch,
            )
            runs.append(
                {
                    "seed": seed,
                    "test": trained.reports["test"].metrics,
                    "validation": trained.reports["validation"].metrics,
                    "intervals": trained.reports["test"].intervals,
                    "pair": trained.task.pair,
                    "steps": trained.task.training["steps"],
                    "parameters": trained.task.head_parameters,
                    "share_of_encoder": trained.task.head_parameters / encoder.identity.parameters,
                    "seconds": watch.seconds,
                }
            )
    of = SETS[name]
    tests = [run["test"] for run in runs]
    metrics = {key: spread([each[key] for each in tests]) for key in tests[0]}
    return {
        "set": name,
        "kind": trained.task.kind,
        "rows": {"train": len(train), "test": len(test)},
        "metric": of.metric,
        "score": metrics[of.metric]["mean"],
        "full_fine_tuning": of.full,
        "retention": None if of.full is None else metrics[of.metric]["mean"] / of.full,
        "metrics": metrics,
        "runs": runs,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Mean and deviation."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


if __name__ == "__main__":
    main()

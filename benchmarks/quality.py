"""Scores of a preset on every kind of task, beside tuned logistic regression and full fine-tuning.

python -m benchmarks.quality --data ../shared/data --out results

Validation rows are held out of train (a set's own where it has a test split too); the test split only reports, for GLUE
sets the public dev set. Logistic regression reads the means of the hidden states that the first seed's head reads (of
pairs in both ways), tuned on that seed's validation rows. Full fine-tuning's scores are not computed here:
`full_tuning.py` has put them into a file, each with its settings. Of the rates that were tried, at least three,
validation takes one for each seed, on all rows or on a part of them (`searched`); retention is the mean of the seeds'
scores divided by the mean of full fine-tuning's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import bar, head_option, parser, shortened
from benchmarks.machine import record
from ytuning.compare.linear_probe import tuned_probe
from ytuning.data.dataset import Dataset, read_dataset
from ytuning.data.splits import task_rows
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.evaluation.evaluate import evaluate
from ytuning.features.features import mean_pooled, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.choices import pair_modes
from ytuning.tasks.choose_recipe import train_cheapest
from ytuning.tasks.train import TrainOptions
from ytuning.training.calibration import fit_calibration
from ytuning.training.recipes import AUTO_PRESET, PRESETS, Recipe, preset_recipes

FULL = Path(__file__).with_name("full_tuning.json")


SETS = {
    "sst2": "accuracy",
    "cola": "matthews",
    "rte": "accuracy",
    "mrpc": "accuracy",
    "stsb": "spearman",
    "qnli": "accuracy",
    "mnli": "accuracy",
    "banking77": "accuracy",
    "trec6": "accuracy",
    "ag_news": "accuracy",
    "goemotions": "macro_f1",
    "imdb": "accuracy",
    "germeval2018": "macro_f1",
}
"""Set -> metric that it is judged by."""
# Full fine-tuning of the default encoder with fewer rates was not searched fairly.
FEWEST_RATES = 3
FEW_LABELS, SHARE = 8, 0.02  # up to so many labels a head may have this share of the encoder's parameters
CALIBRATED = ("sst2", "banking77", "ag_news")  # whose calibration error has a bar


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--preset", default="default", choices=(*PRESETS, AUTO_PRESET))
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", type=int, help="train rows of each set at most; default: all")
    options.add_argument("--no-logistic", action="store_true", help="leave out logistic regression")
    options.add_argument("--store", type=Path, help="feature store to use and keep; default: one for each set")
    options.add_argument("--full", type=Path, default=FULL, help="JSON file of full_tuning.py")
    options.add_argument(
        "--fewest-rates",
        type=int,
        default=FEWEST_RATES,
        help="learning rates that full fine-tuning was tried with, or it is left out",
    )
    options.add_argument("--layers", choices=("default", "auto"), default="default", help="as for ytuning train")
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
    for entry in figures:
        name, runs = entry["set"], entry["runs"]
        if entry["logistic"] is not None:
            bars.append(bar(f"beside logistic regression, {name}", entry["score"] - entry["logistic"], at_least=0.0))
        if entry["retention"] is not None:
            bars.append(bar(f"retention, {name}", entry["retention"], at_least=0.9))
        if entry["outputs"] <= FEW_LABELS:
            bars.append(bar(f"head, {name}", max(run["share_of_encoder"] for run in runs), at_most=SHARE))
    kept = [entry["retention"] for entry in figures if entry["retention"] is not None]
    if kept:
        bars.append(bar(f"mean retention, {len(kept)} sets", statistics.fmean(kept), at_least=1.0))
    record("quality", figures, arguments.out, bars)


def recipes(arguments: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes of the preset, with the steps of `head_option`."""
    steps, named = arguments.head_steps, preset_recipes(arguments.preset)
    return named if steps is None else {name: shortened(recipe, steps) for name, recipe in named.items()}


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
    runs, tasks = [], []
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.store or temporary
        for seed in range(arguments.seeds):
            trained = train_cheapest(
                train,
                encoder,
                FeatureStore(root),
                recipes(arguments),
                validation=validation,
                test=test,
                options=TrainOptions(seed=seed, layers="auto" if arguments.layers == "auto" else None),
            )
            tasks.append(trained.task)
            runs.append(
                {
                    "seed": seed,
                    "test": trained.reports["test"].metrics,
                    "validation": trained.reports["validation"].metrics,
                    "intervals": trained.reports["test"].intervals,
                    "pair": trained.task.pair_mode,
                    "layers": trained.task.states,
                    "steps": trained.task.training["steps"],
                    "auto": trained.task.training.get("auto"),
                    "parameters": trained.task.head_parameters,
                    "share_of_encoder": trained.task.head_parameters / encoder.identity.parameters,
                    "seconds": trained.seconds,
                }
            )
        parts, states = (train, validation, test), tasks[0].states
        probe = None if arguments.no_logistic else logistic(name, parts, encoder, FeatureStore(root), states)
    full = full_score(name, arguments)
    metric = SETS[name]
    tests = [run["test"] for run in runs]
    metrics = {key: spread([each[key] for each in tests]) for key in tests[0]}
    return {
        "set": name,
        "kind": trained.task.kind,
        "rows": {"train": len(train), "test": len(test)},
        "outputs": trained.task.target.outputs,
        "metric": metric,
        "score": metrics[metric]["mean"],
        "logistic": probe,
        "full_fine_tuning": full,
        "retention": None if full is None else metrics[metric]["mean"] / full,
        "metrics": metrics,
        "runs": runs,
    }


def logistic(
    name: str,
    parts: tuple[Dataset, Dataset | None, Dataset],
    encoder: Encoder,
    store: FeatureStore,
    states: Sequence[int],
) -> float:
    """Score of tuned logistic (of numbers: ridge) regression; of pairs, validation takes the way of reading them."""
    train, validation, test = parts
    rows = task_rows(train, validation, test, seed=0)
    found = []
    for mode in pair_modes("auto", has_pairs=train.has_pairs):
        pooled = mean_pooled(stored_inputs(rows.inputs, encoder, store, Progress(), states=states, pair_mode=mode)[0])
        probe = tuned_probe(
            rows.target,
            pooled,
            rows.truth,
            rows.train,
            rows.validation,
            refit=validation is None,
        )
        calibration = fit_calibration(rows.target, probe.validation_logits, rows.truth[rows.validation])
        report = evaluate(rows.target, calibration, rows.truth[rows.test], probe.logits(pooled[rows.test]))
        found.append((probe.validation_loss, report.metrics[SETS[name]]))
    return min(found)[1]


def full_score(name: str, arguments: argparse.Namespace) -> float | None:
    """Mean over seeds of full fine-tuning's score with each seed's best rate; None without a fair search."""
    entries = json.loads(arguments.full.read_text()) if arguments.full.exists() else []
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        mine = {"encoder": Path(arguments.encoder).name, "set": name, "rows": arguments.rows}
        if mine.items() <= entry.items():
            by_seed.setdefault(entry["seed"], []).append(entry)
    scores = []
    for trained in by_seed.values():
        tried = {rate for entry in trained for rate in (entry["rate"], *entry.get("searched", {}).get("rates", []))}
        if len(tried) >= arguments.fewest_rates:
            whole = [entry for entry in trained if entry["test"]]  # others have diverged
            if whole:
                best = max(whole, key=lambda entry: float(entry["validation"]))
                scores.append(float(best["test"][SETS[name]]))
    return statistics.fmean(scores) if scores else None


def spread(values: list[float]) -> dict[str, float]:
    """Mean and deviation."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


if __name__ == "__main__":
    main()

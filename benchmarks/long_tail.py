"""Labels whose rows fall geometrically to 1: the default recipe beside tuned logistic regression on the same states.

python -m benchmarks.long_tail --data ../shared/data --out results

Each seed draws an order of the labels, and train rows so that the labels' counts fall from ``TOP`` to 1 in that order.
The test split stays whole. Validation rows are held out of the train rows that are left, as `ytuning train` does.
Logistic regression reads the means of the hidden states that the head reads. The validation rows choose its strength
and whether labels weigh the same or by their rows, by macro F1, and fit its temperature and thresholds by the rules
that a task's follow. Then it is fitted on all train rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.harness import bar, head_option, parser, recipe, rows_of
from benchmarks.machine import record
from ytuning.compare.linear_probe import STRENGTHS, tuned_probe
from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import KINDS
from ytuning.data.splits import TaskRows, task_rows
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.evaluation.evaluate import Report, evaluate
from ytuning.features.features import mean_pooled, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.calibration import fit_calibration

# Set -> rows of its most frequent label.
TOP = {"goemotions": 500, "banking77": 120}
# Labels with fewer train rows than this are rare.
FEW = 10
NEVER = -1e4
METRICS = ("macro_f1", "macro_f1_rare", "micro_f1")


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=list(TOP), choices=list(TOP))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each cuts, splits and trains anew")
    options.add_argument("--test-rows", type=int, help="at most; default: all")
    options.add_argument("--layers", type=int, nargs="+", help="hidden states; default: the encoder's default ones")
    options.add_argument("--store", type=Path, help="feature store to use and keep; default: a temporary one")
    arguments = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        store = FeatureStore(arguments.store or temporary)
        figures = [one_set(name, store, arguments) for name in arguments.sets]
    bars = [
        bar(
            f"macro F1 beside logistic regression, {entry['set']}",
            entry["means"]["ytuning"]["macro_f1"]
            - max(entry["means"][name]["macro_f1"] for name in ("logistic", "logistic_by_macro_f1")),
            at_least=0.0,
        )
        for entry in figures
    ]
    record("long_tail", figures, arguments.out, bars)


def one_set(name: str, store: FeatureStore, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every seed of one set."""
    everything = rows_of(arguments.data / name, "train")
    test = rows_of(arguments.data / name, "test", arguments.test_rows)
    encoder = load_encoder(arguments.encoder)
    runs = [
        one_seed(seed, cut(everything, TOP[name], seed), test, encoder, store, arguments) for seed in arguments.seeds
    ]
    return {
        "set": name,
        "test_rows": len(test),
        "runs": runs,
        "means": {
            method: {metric: statistics.fmean(run[method][metric] for run in runs) for metric in METRICS}
            for method in ("ytuning", "logistic", "logistic_by_macro_f1")
        },
    }


def one_seed(
    seed: int, train: Dataset, test: Dataset, encoder: Encoder, store: FeatureStore, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Scores of all methods after one cut."""
    settings = recipe(arguments)
    if arguments.layers:
        settings = replace(settings, layers=tuple(arguments.layers))
    trained = train_task(train, encoder, store, settings, test=test, options=TrainOptions(seed=seed))
    rows = task_rows(train, None, test, seed=seed)
    counts = rows.target.count_labels(np.concatenate((rows.truth[rows.train], rows.truth[rows.validation])))
    rare = [name for name, count in zip(rows.target.names, counts, strict=True) if count < FEW]
    features, _ = stored_inputs(rows.inputs, encoder, store, Progress(), states=trained.task.states, pair_mode=None)
    pooled = mean_pooled(features)
    reports = {
        "ytuning": trained.reports["test"],
        "logistic": probe_report(rows, pooled),
        "logistic_by_macro_f1": macro_report(rows, pooled),
    }
    return {
        "seed": seed,
        "train_rows": len(train),
        "rows_of_labels": sorted(map(int, counts), reverse=True),
        "rare_labels": len(rare),
        **{method: scores(report, rare) for method, report in reports.items()},
    }


def cut(rows: Dataset, top: int, seed: int) -> Dataset:
    """Rows of which the labels' counts fall geometrically from ``top`` to 1, in an order drawn with the seed.

    A row is kept if each of its labels has room, so no label exceeds its count; a few may lack rows. Rows without a
    label are left out.
    """
    chooser = np.random.default_rng(seed)
    owned = KINDS[rows.kind].label_names(labels_of(rows))
    names = sorted({name for own in owned for name in own})
    wanted = np.round(top ** np.linspace(1, 0, len(names))).astype(int)
    room = dict(zip(chooser.permutation(names).tolist(), wanted.tolist(), strict=True))
    kept = []
    for row in chooser.permutation(len(rows)).tolist():
        if owned[row] and all(room[name] for name in owned[row]):
            kept.append(row)
            for name in owned[row]:
                room[name] -= 1
    return rows.select(sorted(kept))


def probe_report(rows: TaskRows, pooled: np.ndarray) -> Report:
    """The opponent of ``ytuning compare``, whose strength accuracy or the loss of the validation rows chooses."""
    probe = tuned_probe(rows.target, pooled, rows.truth, rows.train, rows.validation)
    calibration = fit_calibration(rows.target, probe.validation_logits, rows.truth[rows.validation])
    return evaluate(rows.target, calibration, rows.truth[rows.test], probe.logits(pooled[rows.test]))


def macro_report(rows: TaskRows, pooled: np.ndarray) -> Report:
    """Logistic regression whose strength and label weights the macro F1 of the validation rows chooses."""
    held = rows.truth[rows.validation]
    best = (-1.0, STRENGTHS[0], "")
    for balance in ("", "balanced"):
        for strength in STRENGTHS:
            logits = linear_logits(rows, pooled, rows.train, rows.validation, strength, balance)
            calibration = fit_calibration(rows.target, logits, held)
            score = evaluate(rows.target, calibration, held, logits).metrics["macro_f1"]
            if score > best[0]:
                best, chosen = (score, strength, balance), calibration
    everything = np.union1d(rows.train, rows.validation)
    logits = linear_logits(rows, pooled, everything, rows.test, *best[1:])
    return evaluate(rows.target, chosen, rows.truth[rows.test], logits)


def linear_logits(
    rows: TaskRows, pooled: np.ndarray, learned: np.ndarray, asked: np.ndarray, strength: float, balance: str
) -> np.ndarray:
    """Logits (asked, C) float32 of logistic regression on the rows ``learned``; several labels have a model each."""
    scaler = StandardScaler().fit(pooled[learned])
    values, others = scaler.transform(pooled[learned]), scaler.transform(pooled[asked])
    goal = rows.truth[learned]
    logits = np.full((len(asked), rows.target.outputs), NEVER, np.float32)
    for label, column in enumerate(goal.T) if goal.ndim == 2 else [(None, goal)]:
        met = np.unique(column)
        if len(met) == 1:
            continue
        model = LogisticRegression(C=strength, max_iter=300, class_weight=balance or None)
        with warnings.catch_warnings():
            # The validation set shows whether a fit that has not converged is good enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            decided = model.fit(values, column).decision_function(others)
        if label is not None:
            logits[:, label] = decided
        elif len(met) == 2:
            logits[:, met] = np.stack([np.zeros(len(asked)), decided], 1)
        else:
            logits[:, met] = decided
    return logits


def scores(report: Report, rare: Sequence[str]) -> dict[str, float]:
    """Macro F1 of all labels and of the rare ones, and micro F1, which is accuracy where a row has one label."""
    return {
        "macro_f1": report.metrics["macro_f1"],
        "macro_f1_rare": statistics.fmean(report.labels[name]["f1"] for name in rare) if rare else 0.0,
        "micro_f1": report.metrics["micro_f1"],
    }


if __name__ == "__main__":
    main()

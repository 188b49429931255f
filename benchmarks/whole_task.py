"""A whole task, from a cold store to a saved task, against what people would run instead with the same encoder.

python -m benchmarks.whole_task --data ../shared/data --max-steps 40 --out results

Opponents: full fine-tuning and LoRA for 5 epochs (both stop when validation gets no better), SetFit, and tuned logistic
regression on pooled features. Seconds run from the rows to the trained model; reading and scoring the test rows is
not counted for anyone. With --max-steps those that train the encoder are stopped after so many optimiser steps; their
seconds are then those of all steps by the mean of these ("extrapolated": true), and they have no test score.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import WARM_STEPS, bar, head_option, in_turn, parser, planned_seconds, recipe, rows_of
from benchmarks.limits import matrix_rate
from benchmarks.machine import record
from ytuning.compare.fine_tuning import (
    FULL_RATES,
    LORA_RATES,
    TunedEncoder,
    TuningConfig,
    TuningRows,
    full_fine_tuning,
    load_setfit,
    lora,
    setfit,
)
from ytuning.compare.linear_probe import tuned_probe
from ytuning.data.dataset import Dataset
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.data.splits import MOST_HELD_OUT, split_holdout
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError
from ytuning.features.features import mean_pooled, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.task import save_task
from ytuning.tasks.train import TrainOptions, train_task

OPPONENTS = ("logistic", "full_fine_tuning", "lora", "setfit")
FASTER = {"full_fine_tuning": 15, "lora": 10}  # so many times at least
SCORES = {"banking77": 0.936, "sst2": 0.87}  # the main job's bars


@dataclass(frozen=True)
class Work:
    """What everybody gets: rows, the rows that choose, and the encoder.

    Attributes:
        target: kind of the task.
        targets: label ids of train rows.
        test_targets: label ids of test rows.
        split: positions of rows to train on and of rows that choose, among the train rows.
    """

    train: Dataset
    test: Dataset
    target: SingleLabel
    targets: np.ndarray
    test_targets: np.ndarray
    split: tuple[np.ndarray, np.ndarray]
    encoder: Encoder
    seed: int
    arguments: argparse.Namespace

    def score(self, predicted: np.ndarray) -> float:
        """Accuracy of (test rows,) label ids."""
        return float((predicted == self.test_targets).mean())


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=1)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=["banking77", "sst2"])
    options.add_argument("--opponents", nargs="*", default=OPPONENTS, choices=OPPONENTS)
    options.add_argument("--rows", type=int, help="of each set's train rows; default: all")
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--max-steps", type=int, help="time so many steps and extrapolate")
    options.add_argument("--full-rate", type=float, default=FULL_RATES[0], help="learning rate of full fine-tuning")
    options.add_argument("--lora-rate", type=float, default=LORA_RATES[0], help="learning rate of LoRA")
    options.add_argument("--setfit-pairs", type=int, default=1, help="of each kind for each train row")
    arguments = options.parse_args(argv)
    figures = [one_set(name, arguments) for name in arguments.sets]
    record("whole_task", figures, arguments.out, [wanted for entry in figures for wanted in bars(entry)])


def one_set(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and test scores of everybody on one set, in turn."""
    train, test = rows_of(arguments.data / name, "train", arguments.rows), rows_of(arguments.data / name, "test")
    target = SingleLabel(LabelSet.from_labels(train.names))
    targets, test_targets = target.encode(train.names), target.encode(test.names)
    encoder = load_encoder(arguments.encoder)
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in ("ytuning", *arguments.opponents)}
    limits: list[float] = []

    def measure(who: str) -> Callable[[], float]:
        def run() -> float:
            seed = len(runs[who])
            split = split_holdout(train, seed, most=MOST_HELD_OUT)
            work = Work(train, test, target, targets, test_targets, split, encoder, seed, arguments)
            runs[who].append(COMPETITORS[who](work))
            return 0.0

        return run

    def limit() -> float:
        limits.append(matrix_rate(encoder))
        return 0.0

    in_turn(arguments.rounds, {**{who: measure(who) for who in runs}, "limit": limit})
    return {
        "set": name,
        "rows": {"train": len(train), "test": len(test)},
        "precision": encoder.identity.precision,
        "limit_gflops": statistics.median(limits),
        **{who: summary(found) for who, found in runs.items()},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of an opponent's runs, or why there are none."""
    if "skipped" in runs[0]:
        return runs[0]
    scores = [run["test_accuracy"] for run in runs if run["test_accuracy"] is not None]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "test_accuracy": float(np.mean(scores)) if scores else None,
        "extrapolated": any(run["extrapolated"] for run in runs),
        "runs": runs,
    }


def bars(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wanted of one set's figures."""
    ours = entry["ytuning"]
    found = [
        bar(
            f"{who}'s seconds against a whole task, {entry['set']}",
            entry[who]["seconds"] / ours["seconds"],
            at_least=by,
        )
        for who, by in FASTER.items()
        if who in entry
    ]
    if entry["set"] in SCORES:
        name = f"test accuracy of the whole task, {entry['set']}"
        found.append(bar(name, ours["test_accuracy"], at_least=SCORES[entry["set"]]))
    return found


# --- competitors ----------------------------------------------------------------------------------------------------


def ytuning(work: Work) -> dict[str, Any]:
    """The main job, its encoder's loading included."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        encoder, store = load_encoder(work.arguments.encoder), FeatureStore(f"{root}/store")
        trained = train_task(work.train, encoder, store, recipe(work.arguments), options=TrainOptions(seed=work.seed))
        save_task(trained.task, f"{root}/task")
        elapsed = time.perf_counter() - start
        report = evaluate_task(trained.task, work.test, encoder, store).report
    return run_of(elapsed, report.metrics["accuracy"])


def logistic(work: Work) -> dict[str, Any]:
    """Encoder pass, pooling, and a strength chosen on the held-out rows."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        encoder, store = load_encoder(work.arguments.encoder), FeatureStore(root)
        states = encoder.resolve_states(None)
        pooled = mean_pooled(stored_features(work.train.inputs, encoder, store, Progress(), states=states)[0])
        result = tuned_probe(work.target, pooled, work.targets, *work.split)
        elapsed = time.perf_counter() - start
        tested = mean_pooled(stored_features(work.test.inputs, encoder, store, Progress(), states=states)[0])
    return run_of(elapsed, work.score(result.logits(tested).argmax(1)))


def tuned(work: Work, train: Callable[..., TunedEncoder], rate: float) -> dict[str, Any]:
    """One that trains the encoder by ytuning.compare.fine_tuning."""
    config = TuningConfig(rate, epochs=work.arguments.epochs, most_steps=work.arguments.max_steps)
    start = time.perf_counter()
    rows = TuningRows(work.target, work.train.inputs, work.targets, *work.split)
    result = train(work.encoder, rows, config=config, seed=work.seed)
    elapsed = time.perf_counter() - start
    steps = {"steps": len(result.step_seconds), "planned_steps": result.planned_steps, "rate": rate}
    if config.most_steps is not None and config.most_steps < result.planned_steps:
        other = elapsed - sum(result.step_seconds) - sum(result.validation_seconds)
        return run_of(other + planned_seconds(result, config.epochs), None, extrapolated=True) | steps
    score = work.score(result.logits(work.test.inputs).argmax(1))
    return run_of(elapsed, score) | steps | {"validation_accuracy": result.validation_scores}


def tuned_by_setfit(work: Work) -> dict[str, Any]:
    """SetFit on all train rows; no validation rows."""
    if work.train.has_pairs:
        return {"skipped": "SetFit takes single texts only"}
    try:
        load_setfit()
    except InputError as error:
        return {"skipped": str(error)}
    pairs = work.arguments.setfit_pairs
    start = time.perf_counter()
    steps = work.arguments.max_steps
    found = setfit(work.encoder, work.train.texts, work.targets, pairs=pairs, most_steps=steps, seed=work.seed)
    elapsed = time.perf_counter() - start
    ticks, planned = found.step_ends, found.planned_steps
    said = {"steps": len(ticks), "planned_steps": planned, "pairs_of_each_kind_for_a_row": pairs}
    if len(ticks) < planned:
        each = float(np.mean(np.diff(ticks)[WARM_STEPS:] if len(ticks) > WARM_STEPS + 2 else np.diff(ticks)))
        return run_of(elapsed + (planned - len(ticks)) * each, None, extrapolated=True) | said
    return run_of(elapsed, work.score(found.logits(work.test.texts).argmax(1))) | said


def run_of(elapsed: float, score: float | None, *, extrapolated: bool = False) -> dict[str, Any]:
    """What is kept of every run."""
    return {"seconds": elapsed, "test_accuracy": score, "extrapolated": extrapolated}


COMPETITORS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "ytuning": ytuning,
    "logistic": logistic,
    "full_fine_tuning": lambda work: tuned(work, full_fine_tuning, work.arguments.full_rate),
    "lora": lambda work: tuned(work, lora, work.arguments.lora_rate),
    "setfit": tuned_by_setfit,
}


if __name__ == "__main__":
    main()

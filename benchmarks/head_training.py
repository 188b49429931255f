"""Head training, refit included, against its own encoder pass, beside tuned logistic regression on the same store.

python -m benchmarks.head_training --data ../shared/data --rounds 3 --out results

Then a second task over the same texts, which the store holds, against the first with a cold store; each from rows to
trained head. The second labels of trec6 are its fine ones, those of other sets tell long texts from short ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.harness import bar, head_option, in_turn, medians, parser, recipe, rows_of, seconds
from benchmarks.machine import record
from ytuning.compare.linear_probe import tuned_probe
from ytuning.data.dataset import Dataset
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.data.splits import MOST_HELD_OUT, split_holdout
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.features import mean_pooled, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.train import TrainOptions, train_task

WANTED = {"sst2": 0.25, "ag_news": 0.25, "banking77": 0.75}  # of the encoder pass, to convergence
FINE = {"trec6": "label_fine"}


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=3)
    head_option(options)
    options.add_argument("--sets", nargs="*", default=["sst2", "ag_news", "banking77"])
    options.add_argument("--second-sets", nargs="*", default=["sst2", "trec6"])
    options.add_argument("--rows", type=int, help="of each set's train rows; default: all")
    arguments = options.parse_args(argv)
    encoder = load_encoder(arguments.encoder)
    training = [one_set(name, encoder, arguments) for name in arguments.sets]
    second = [second_task(name, encoder, arguments) for name in arguments.second_sets]
    bars = [
        bar(
            f"head training against the encoder pass, {entry['set']}",
            entry["train_over_encode"],
            at_most=WANTED[entry["set"]],
        )
        for entry in training
        if entry["set"] in WANTED
    ]
    bars += [
        bar(f"second task on stored texts against the first, {entry['set']}", entry["second_over_first"], at_most=0.3)
        for entry in second
    ]
    record("head_training", {"training": training, "second_task": second}, arguments.out, bars)


def one_set(name: str, encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """Encoder pass into an empty store, head training and logistic regression on it, in turn."""
    train, states = rows_of(arguments.data / name, "train", arguments.rows), encoder.resolve_states(None)
    steps: list[int] = []
    accuracy: list[float] = []
    logistic_accuracy: list[float] = []
    with tempfile.TemporaryDirectory() as root:
        stores = (FeatureStore(f"{root}/{number}") for number in range(arguments.rounds))
        current = FeatureStore(root)

        def encode() -> float:
            nonlocal current
            current = next(stores)
            return seconds(lambda: stored_features(train.inputs, encoder, current, Progress(), states=states))

        def head() -> float:
            options = TrainOptions(seed=len(steps))
            trained = train_task(train, encoder, current, recipe(arguments), options=options)
            steps.append(trained.task.training["steps"])
            accuracy.append(trained.reports["validation"].metrics["accuracy"])
            return trained.seconds["train"]

        def logistic() -> float:
            features = stored_features(train.inputs, encoder, current, Progress(), states=states)[0]
            target = SingleLabel(LabelSet.from_labels(train.names))
            targets = target.encode(train.names)
            held = split_holdout(train, len(logistic_accuracy), most=MOST_HELD_OUT)

            def fit() -> None:
                result = tuned_probe(target, mean_pooled(features), targets, *held)
                logistic_accuracy.append(result.validation_score)

            return seconds(fit)

        found = in_turn(arguments.rounds, {"encode": encode, "train": head, "logistic": logistic})
    return {
        "set": name,
        "rows": len(train),
        "seconds": found,
        "train_over_encode": ratio(found, "train", "encode"),
        "ratios": [mine / other for mine, other in zip(found["train"], found["encode"], strict=True)],
        "logistic_over_encode": ratio(found, "logistic", "encode"),
        "steps_chosen": steps,
        "validation_accuracy": accuracy,
        "logistic_validation_accuracy": logistic_accuracy,
    }


def second_task(name: str, encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """A task from an empty store, then another labelling of the same texts from the full one, in turn."""
    first = rows_of(arguments.data / name, "train", arguments.rows)
    second = relabelled(first, name, arguments)
    encoded: list[int] = []
    with tempfile.TemporaryDirectory() as root:

        def task(rows: Dataset, round_number: int) -> float:
            store = FeatureStore(f"{root}/{round_number}")

            def train() -> None:
                options = TrainOptions(seed=round_number)
                encoded.append(train_task(rows, encoder, store, recipe(arguments), options=options).cache.misses)

            return seconds(train)

        numbers = {role: iter(range(arguments.rounds)) for role in ("first", "second")}
        found = in_turn(
            arguments.rounds,
            {
                "first": lambda: task(first, next(numbers["first"])),
                "second": lambda: task(second, next(numbers["second"])),
            },
        )
    return {
        "set": name,
        "rows": len(first),
        "labels": [len(set(rows.names)) for rows in (first, second)],
        "seconds": found,
        "second_over_first": ratio(found, "second", "first"),
        "texts_encoded_by_first_and_second": encoded[:2],
    }


def relabelled(rows: Dataset, name: str, arguments: argparse.Namespace) -> Dataset:
    """The same texts with other labels."""
    if name in FINE:
        return rows_of(arguments.data / name, "train", arguments.rows, label=FINE[name])
    words = np.array([len(text.split()) for text in rows.texts])
    return replace(rows, labels=np.where(words > np.median(words), "long", "short").tolist())


def ratio(found: dict[str, list[float]], one: str, other: str) -> float:
    """Of two medians."""
    middle = medians(found)
    return middle[one] / middle[other]


if __name__ == "__main__":
    main()

"""A label added to a trained task against training all labels again: seconds and accuracy.

python -m benchmarks.added_label --data ../shared/data --out results
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.harness import bar, head_option, parser, recipe, rows_of
from benchmarks.machine import record
from ytuning.data.dataset import Dataset
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.add_label import grow_task
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.train import train_task


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=["banking77"])
    options.add_argument("--labels", nargs="*", help="to be added, each to a task without it; default: some of them")
    options.add_argument("--count", type=int, default=3, help="how many of the labels, where none is named")
    options.add_argument("--rows", type=int, help="of the train rows; default: all")
    arguments = options.parse_args(argv)
    figures = [entry for name in arguments.sets for entry in one_set(name, arguments)]
    bars = []
    for entry in figures:
        share, lost = entry["seconds"] / entry["seconds_all"], entry["accuracy_all"] - entry["accuracy"]
        where = f"{entry['label']}, {entry['set']}"
        bars.append(bar(f"seconds to add {where}, against training all labels", share, at_most=0.05))
        bars.append(bar(f"accuracy lost by adding {where}, later", lost, at_most=0.01))
    record("added_label", figures, arguments.out, bars)


def one_set(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Some of a set's labels, each added to a task without it; all features are stored before."""
    train, test = rows_of(arguments.data / name, "train", arguments.rows), rows_of(arguments.data / name, "test")
    names = sorted(set(train.names))
    chosen = arguments.labels or names[:: max(1, len(names) // arguments.count)][: arguments.count]
    encoder = load_encoder(arguments.encoder)
    with tempfile.TemporaryDirectory() as root:
        store = FeatureStore(root)
        stored_features([*train.inputs, *test.inputs], encoder, store, Progress(), states=encoder.resolve_states(None))
        start = time.perf_counter()
        whole = train_task(train, encoder, store, recipe(arguments)).task
        elapsed = time.perf_counter() - start
        everything = evaluate_task(whole, test, encoder, store).report.metrics["accuracy"]
        return [
            {"set": name, "seconds_all": elapsed, "accuracy_all": everything}
            | one_label(label, train, test, encoder, store, arguments)
            for label in chosen
        ]


def one_label(
    label: str, train: Dataset, test: Dataset, encoder: Encoder, store: FeatureStore, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A task of the other labels, and what adding this one takes and gives."""
    rest = train.select([row for row, each in enumerate(train.names) if each != label])
    examples = train.select([row for row, each in enumerate(train.names) if each == label])
    task = train_task(rest, encoder, store, recipe(arguments)).task
    start = time.perf_counter()
    grown = grow_task(task, label, replace(examples, labels=None), encoder, store)
    elapsed = time.perf_counter() - start
    report = evaluate_task(grown.task, test, encoder, store).report
    return {
        "label": label,
        "examples": len(examples),
        "seconds": elapsed,
        "accuracy": report.metrics["accuracy"],
        "new_label": report.labels[label],
        "kept_before": grown.before,
        "kept_after": grown.after,
    }


if __name__ == "__main__":
    main()

"""What a step costs with 10 to 5,000 labels over the same texts (synthetic labels, real features).

python -m benchmarks.many_labels --data ../shared/data --out results
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.harness import bar, in_turn, medians, parser, rows_of
from benchmarks.machine import record
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.encoder.encoder import load_encoder
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.training.fit import HeadJob, fit_heads
from ytuning.training.recipes import preset

LABELS = (10, 50, 100, 1000, 5000)
SLOWER = 3  # times that 5,000 labels may take of what 50 take


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--sets", nargs="+", default=["banking77"])
    options.add_argument("--labels", nargs="+", type=int, default=LABELS)
    options.add_argument("--rows", type=int, default=8000, help="of the set's train rows")
    options.add_argument("--head-steps", type=int, default=63, help="default: an epoch of 8,000 rows")
    options.add_argument("--presets", nargs="+", default=["default"], choices=["default", "paper"])
    arguments = options.parse_args(argv)
    figures = [one_set(name, chosen, arguments) for name in arguments.sets for chosen in arguments.presets]
    bars = []
    for entry in figures:
        if {"50", "5000"} <= set(entry["medians"]):
            ratio = entry["medians"]["5000"] / entry["medians"]["50"]
            name = f"seconds of training, 5,000 labels against 50, {entry['set']}, {entry['preset']}"
            bars.append(bar(name, ratio, at_most=SLOWER))
    record("many_labels", figures, arguments.out, bars)


def one_set(name: str, chosen: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the same steps with each number of labels, in turn."""
    rows, form = rows_of(arguments.data / name, "train", arguments.rows), preset(chosen)
    steps = {"fewest_steps": arguments.head_steps, "most_steps": arguments.head_steps, "rounds": 1}
    short = replace(form, training=replace(form.training, **steps))
    order = np.random.default_rng(0).permutation(len(rows))
    held = max(1, len(rows) // 50)
    with tempfile.TemporaryDirectory() as root:
        encoder = load_encoder(arguments.encoder)
        states, store = encoder.resolve_states(form.layers), FeatureStore(root)
        features, _ = stored_features(rows.inputs, encoder, store, Progress(), states=states)

        def train_with(labels: int) -> Callable[[], float]:
            targets = np.random.default_rng(1).integers(labels, size=len(rows))

            def train() -> float:
                # Of 5,000 labels some occur in no row.
                job = HeadJob(SingleLabel(LabelSet(tuple(map(str, range(labels))))), targets, short)
                start = time.perf_counter()
                fit_heads(features, [job], train=order[held:], validation=order[:held], refit=False)
                return time.perf_counter() - start

            return train

        train_with(arguments.labels[0])()  # the first one also brings the features into memory
        found = in_turn(arguments.rounds, {str(labels): train_with(labels) for labels in arguments.labels})
    return {"set": name, "preset": chosen, "rows": len(rows), "seconds": found, "medians": medians(found)}


if __name__ == "__main__":
    main()

"""A few rows of each label: the presets, with and without label texts, beside tuned logistic regression.

python -m benchmarks.few_shot --data ../shared/data --out results

Each draw takes so many train rows of each label at random and nothing else; validation rows are held out of them. The
labels' texts are their names. Logistic regression reads the mean of the same hidden states, its strength is chosen on
the same held-out rows, and it is then fitted on all rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import bar, head_option, parser, rows_of, shortened
from benchmarks.machine import record
from ytuning.compare.linear_probe import tuned_probe
from ytuning.data.dataset import Dataset
from ytuning.data.splits import task_rows
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.features import mean_pooled, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import preset

WANTED = {"banking77": 82.0}  # percent, with 8 rows of each label
VARIANTS = {
    "few-shot": ("few-shot", "names"),
    "few-shot, no texts": ("few-shot", "none"),
    "default, names": ("default", "names"),
    "default": ("default", "none"),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=["banking77"])
    options.add_argument("--each", type=int, default=8, help="rows of each label")
    options.add_argument("--draws", type=int, default=10)
    options.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options.add_argument("--test-rows", type=int, help="at most; default: all")
    arguments = options.parse_args(argv)
    figures = []
    with tempfile.TemporaryDirectory() as root:
        for name in arguments.sets:
            figures.append(one_set(name, FeatureStore(root), arguments))
    bars = [
        bar(f"accuracy, {entry['set']}, 8 rows a label", entry["accuracy"]["few-shot"]["mean"], at_least=wanted)
        for entry in figures
        for wanted in [WANTED.get(entry["set"])]
        if wanted and arguments.each == 8 and "few-shot" in entry["accuracy"]
    ]
    record("few_shot", figures, arguments.out, bars)


def one_set(name: str, store: FeatureStore, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every draw of one set."""
    everything = rows_of(arguments.data / name, "train")
    test = rows_of(arguments.data / name, "test", arguments.test_rows)
    found: dict[str, list[float]] = {variant: [] for variant in (*arguments.variants, "logistic", "zero-shot")}
    seconds: dict[str, list[float]] = {variant: [] for variant in arguments.variants}
    encoder = load_encoder(arguments.encoder)
    for draw in range(arguments.draws):
        train = drawn(everything, arguments.each, draw)
        for variant in arguments.variants:
            preset_name, texts = VARIANTS[variant]
            recipe = preset(preset_name)
            if arguments.head_steps is not None:
                recipe = shortened(recipe, arguments.head_steps)
            trained = train_task(
                train,
                encoder,
                store,
                recipe,
                test=test,
                options=TrainOptions(seed=draw, label_texts=texts),
            )
            found[variant].append(100 * trained.reports["test"].metrics["accuracy"])
            seconds[variant].append(trained.seconds["train"])
            if variant == "few-shot":
                found["zero-shot"].append(100 * trained.zero_shot["test"]["accuracy"])
        found["logistic"].append(100 * logistic(train, test, encoder, store, draw))
    return {
        "set": name,
        "rows_of_a_label": arguments.each,
        "draws": arguments.draws,
        "test_rows": len(test),
        "accuracy": {variant: spread(values) for variant, values in found.items() if values},
        "training_seconds": {variant: statistics.median(values) for variant, values in seconds.items()},
    }


def drawn(rows: Dataset, each: int, draw: int) -> Dataset:
    """So many rows of each label, in random order."""
    chooser = np.random.default_rng(draw)
    labels = np.array(rows.names)
    chosen = [chooser.choice(np.flatnonzero(labels == name), each, replace=False) for name in np.unique(labels)]
    return rows.select(chooser.permutation(np.concatenate(chosen)))


def logistic(train: Dataset, test: Dataset, encoder: Encoder, store: FeatureStore, seed: int) -> float:
    """Accuracy on test of tuned logistic regression on the mean of the encoder's last hidden state."""
    rows = task_rows(train, None, test, seed=seed)
    features, _ = stored_features(rows.inputs, encoder, store, Progress(), states=[-1])
    pooled = mean_pooled(features)
    probe = tuned_probe(rows.target, pooled, rows.truth, rows.train, rows.validation)
    return float((probe.logits(pooled[rows.test]).argmax(1) == rows.truth[rows.test]).mean())


def spread(values: list[float]) -> dict[str, float]:
    """Mean, deviation and the lowest."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "lowest": min(values),
    }


if __name__ == "__main__":
    main()

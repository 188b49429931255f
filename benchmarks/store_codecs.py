"""Bytes a token and hidden state against test score, for each codec of the store.

python -m benchmarks.store_codecs --data ../shared/data --sets banking77 trec6 cola germeval2018 ag_news --out results

The encoder reads each set once, into fp16; the other codecs' stores are written from there. A set's runs differ in
nothing but codec and seed. Validation rows are held out of train; the test split only reports (where a set has none, it
is the public validation split).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import bar, head_option, parser, recipe, rows_of
from benchmarks.machine import record
from ytuning.data.dataset import Dataset
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.codecs import CODECS, DEFAULT_CODEC, row_bytes
from ytuning.features.features import keep_inputs, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.train import TrainOptions, train_task

SETS = ("banking77", "trec6", "cola", "germeval2018", "ag_news")
METRICS = ("accuracy", "macro_f1", "matthews")
WANTED = {DEFAULT_CODEC: (0.52, 0.2), "compact": (0.26, 0.5)}
"""Codec -> bytes against fp16, and points of accuracy that it may lose."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=list(SETS))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--rows", type=int, help="train and test rows of each set at most; default: all")
    arguments = options.parse_args(argv)
    figures = [one_set(arguments.data / name, arguments) for name in arguments.sets]
    print(table(figures), file=sys.stderr)
    record("store_codecs", figures, arguments.out, [wanted for name in WANTED for wanted in bars(name, figures)])


def bars(name: str, figures: list[dict[str, Any]]) -> list[Any]:
    """Bytes of a codec, and what it loses on the mean of the sets."""
    size, points_lost = WANTED[name]
    lost = -100 * float(np.mean([one["codecs"][name]["accuracy"]["minus_fp16"]["mean"] for one in figures]))
    return [
        bar(f"{name} store, bytes against fp16", figures[0]["codecs"][name]["share_of_fp16"], at_most=size),
        bar(f"{name} store, points of accuracy lost, mean of {len(figures)} sets", lost, at_most=points_lost),
    ]


def one_set(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of every codec on one data set, from one encoder pass."""
    train, test = rows_of(folder, "train", arguments.rows), rows_of(folder, "test", arguments.rows)
    encoder = load_encoder(arguments.encoder)
    states = encoder.resolve_states(None)
    inputs = [*train.inputs, *test.inputs]
    result: dict[str, Any] = {"set": folder.name, "rows": {"train": len(train), "test": len(test)}, "codecs": {}}
    with tempfile.TemporaryDirectory() as root:
        store = FeatureStore(root)
        full, _ = stored_features(inputs, encoder, store, Progress(), codec="fp16", states=states)
        # The basis of a store comes from its first texts; test texts should have no part in it.
        ours, _ = stored_features(train.inputs, encoder, store, Progress(), codec="fp16", states=states)
        for codec in CODECS:
            keep_inputs(train.inputs, ours, encoder, store, Progress(), codec=codec, held=states, states=states)
            keep_inputs(inputs, full, encoder, store, Progress(), codec=codec, held=states, states=states)
            result["codecs"][codec] = one_codec(train, test, encoder, store, codec, arguments)
            if codec != "fp16":
                (space,) = (each for each in store.spaces() if each.codec_name == codec)
                store.remove(space.folder.name)
    for metric in METRICS:
        reference = np.array(result["codecs"]["fp16"][metric]["runs"])
        for figures in result["codecs"].values():
            figures[metric]["minus_fp16"] = summary((np.array(figures[metric]["runs"]) - reference).tolist())
    return result


def one_codec(
    train: Dataset, test: Dataset, encoder: Encoder, store: FeatureStore, codec: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Test scores of every seed from features in one codec, and what these take."""
    layers, width = len(encoder.resolve_states(None)), encoder.identity.width
    runs = []
    for seed in arguments.seeds:
        options = TrainOptions(seed=seed, codec=codec)
        trained = train_task(train, encoder, store, recipe(arguments), test=test, options=options)
        assert trained.cache.misses == 0  # the encoder has read everything once
        runs.append(trained.reports["test"].metrics)
        print(train.source, codec, seed, runs[-1]["accuracy"], file=sys.stderr)
    return {
        "bytes_per_token_and_state": row_bytes(codec, layers, width) / layers,
        "share_of_fp16": row_bytes(codec, layers, width) / row_bytes("fp16", layers, width),
        "bytes_of_the_set": trained.cache.bytes,
        **{metric: summary([run[metric] for run in runs]) for metric in METRICS},
    }


def summary(runs: list[float]) -> dict[str, Any]:
    """Mean and deviation over seeds."""
    deviation = float(np.std(runs, ddof=1)) if len(runs) > 1 else None
    return {"mean": float(np.mean(runs)), "deviation": deviation, "runs": runs}


def table(figures: list[dict[str, Any]]) -> str:
    """Markdown, test accuracy in %: mean +- deviation over seeds, and the difference to fp16 paired by seed."""
    lines = ["| set | codec | bytes per token and state | x fp16 | accuracy | minus fp16 |", "|" + " --- |" * 6]
    for one in figures:
        for codec, found in one["codecs"].items():
            score = found["accuracy"]
            lines.append(
                f"| {one['set']} | {codec} | {found['bytes_per_token_and_state']:.0f} | {found['share_of_fp16']:.3f} | "
                f"{points(score)} | {points(score['minus_fp16'], '+')} |"
            )
    return "\n".join(lines)


def points(score: dict[str, Any], sign: str = "") -> str:
    deviation = "" if score["deviation"] is None else f" +- {100 * score['deviation']:.2f}"
    return f"{100 * score['mean']:{sign}.2f}{deviation}"


if __name__ == "__main__":
    main()

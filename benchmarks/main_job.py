"""The main job on real data: accuracy of the presets beside tuned logistic regression, and training against encoding.

    python benchmarks/main_job.py --data ../shared/data --sets banking77 sst2 trec6 ag_news --seeds 0 1 2 --out results

Validation rows are held out of train. The test split only reports (for GLUE sets, whose test labels are not public, it
is the public dev set). A preset's figures on a set come from one store, filled by the one encoder pass that is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import record
from ytuning.compare.linear_probe import tuned_probe
from ytuning.data.dataset import Dataset, read_dataset
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.data.splits import MOST_HELD_OUT, split_holdout
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.features import mean_pooled, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="folder or name")
    parser.add_argument("--sets", nargs="+", default=["banking77", "sst2", "trec6", "ag_news"])
    parser.add_argument("--presets", nargs="+", default=["default", "paper"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--no-logistic", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for main_job.json")
    arguments = parser.parse_args()
    figures = [one_set(arguments.data / name, arguments) for name in arguments.sets]
    record("main_job", figures, arguments.out)


def one_set(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of one data set: each preset on the hidden states that it reads, from a store and a pass of its own."""
    train = read_dataset(folder / "train.jsonl")
    test = read_dataset(
        next(folder / f"{name}.jsonl" for name in ("test", "validation") if (folder / f"{name}.jsonl").exists())
    )
    result: dict[str, Any] = {"set": folder.name, "rows": {"train": len(train), "test": len(test)}}
    for name in arguments.presets:
        encoder = load_encoder(arguments.encoder)
        states = encoder.resolve_states(preset(name).layers)
        with tempfile.TemporaryDirectory() as root:
            store = FeatureStore(root)
            start = time.perf_counter()
            stored_features(train.inputs, encoder, store, Progress(), states=states)
            encode = time.perf_counter() - start
            if name == "default" and not arguments.no_logistic:
                result["logistic"] = logistic(train, test, encoder, store, arguments.seeds)
            runs = [one_run(train, test, encoder, store, name, seed, encode) for seed in arguments.seeds]
        accuracy = [run["test_accuracy"] for run in runs]
        result[name] = {
            "mean": float(np.mean(accuracy)),
            "deviation": float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else None,
            "seconds_encode_train": encode,
            "runs": runs,
        }
        print(folder.name, name, result[name]["mean"], file=sys.stderr)
    return result


def one_run(
    train: Dataset, test: Dataset, encoder: Encoder, store: FeatureStore, name: str, seed: int, encode: float
) -> dict[str, Any]:
    """One training of one preset, refit included."""
    trained = train_task(train, encoder, store, preset(name), test=test, options=TrainOptions(seed=seed))
    return {
        "seed": seed,
        "test_accuracy": trained.reports["test"].metrics["accuracy"],
        "validation_accuracy": trained.reports["validation"].metrics["accuracy"],
        "rounds": [round(entry.score, 4) for entry in trained.fit.history],
        "chosen": trained.fit.chosen,
        "parameters": trained.task.head_parameters,
        "seconds_train": trained.seconds["train"],
        "train_over_encode": trained.seconds["train"] / encode,
        "texts_encoded_beside_train": trained.cache.misses,
    }


def logistic(train: Dataset, test: Dataset, encoder: Encoder, store: FeatureStore, seeds: list[int]) -> dict[str, Any]:
    """Tuned logistic regression on mean-pooled features of the same store, with the same held-out rows."""
    target = SingleLabel(LabelSet.from_labels(train.names))
    truth = np.concatenate([target.encode(part.names) for part in (train, test)])
    states = encoder.resolve_states(None)
    inputs = [*train.inputs, *test.inputs]
    pooled = mean_pooled(stored_features(inputs, encoder, store, Progress(), states=states)[0])
    start = time.perf_counter()
    runs = []
    for seed in seeds:
        result = tuned_probe(target, pooled, truth, *split_holdout(train, seed, most=MOST_HELD_OUT))
        rows = np.arange(len(train), len(truth))
        runs.append(
            {
                "seed": seed,
                "strength": result.strength,
                "test_accuracy": float((result.logits(pooled[rows]).argmax(1) == truth[rows]).mean()),
            }
        )
    mean = float(np.mean([run["test_accuracy"] for run in runs]))
    print(train.source, "logistic", mean, file=sys.stderr)
    return {"mean": mean, "seconds": (time.perf_counter() - start) / len(seeds), "runs": runs}


if __name__ == "__main__":
    main()

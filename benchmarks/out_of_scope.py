"""Out of scope: texts of labels that a task was not trained on, and of other data sets, against texts in scope.

python -m benchmarks.out_of_scope --data ../shared/data --out results

Of the first set's labels some are left out of training at random, and their texts are out of scope. With ``--split
train`` texts in scope are training rows that were held out, too, and texts out of scope are training rows: constants
are chosen there. ``--others`` also judges each of those sets against the texts of all others.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.harness import bar, parser, rows_of
from benchmarks.machine import record
from ytuning.data.dataset import Dataset, labels_of
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.store import FeatureStore
from ytuning.tasks.evaluate import task_features
from ytuning.tasks.task import Task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.fit import logits_of
from ytuning.training.recipes import preset
from ytuning.training.scope import text_directions

SHARE = 0.05
# With --split train every so many training rows are judged and not learned.
JUDGED = 8
# Texts of each other set.
OTHER_TEXTS = 500


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--set", default="banking77")
    options.add_argument("--without", type=int, default=20, help="labels that are left out of training")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the labels that are left out")
    options.add_argument("--presets", nargs="+", default=["light", "default"])
    options.add_argument("--split", choices=["test", "train"], default="test", help="that is judged")
    options.add_argument("--others", nargs="*", default=[], help="sets that are judged against each other's texts")
    options.add_argument("--held-every", type=int, help="every so many rows validate; default: as in any training")
    options.add_argument("--rows", type=int, help="train rows of a set at most; default: all")
    options.add_argument("--store", help="folder of the feature store, to keep it; default: a temporary one")
    arguments = options.parse_args(argv)
    encoder = load_encoder(arguments.encoder)
    with tempfile.TemporaryDirectory() as root:
        store = FeatureStore(arguments.store or root)
        figures = [
            entry
            for chosen in arguments.presets
            for entry in (
                *(without_labels(chosen, seed, encoder, store, arguments) for seed in arguments.seeds),
                *(against_others(chosen, name, encoder, store, arguments) for name in arguments.others),
            )
        ]
    bars = []
    for chosen in arguments.presets:
        own = [entry for entry in figures if entry["preset"] == chosen and "seed" in entry]
        auroc, alarms = (float(np.mean([entry[key] for entry in own])) for key in ("auroc", "false_alarms"))
        bars += [
            bar(f"AUROC, {arguments.without} labels left out, {chosen}", auroc, at_least=0.93),
            bar(f"false alarms at {SHARE:g}, {chosen}", alarms, at_least=0.03),
            bar(f"false alarms at {SHARE:g}, {chosen}", alarms, at_most=0.07),
        ]
    record("out_of_scope", figures, arguments.out, bars)


def without_labels(
    chosen: str, seed: int, encoder: Encoder, store: FeatureStore, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A task without some of the labels of a set, and how well it tells the texts of these labels."""
    train = rows_of(arguments.data / arguments.set, "train", arguments.rows)
    names = sorted({str(label) for label in labels_of(train)})
    left_out = {names[number] for number in np.random.default_rng(seed).permutation(len(names))[: arguments.without]}

    def known(rows: Dataset) -> np.ndarray:
        return np.array([str(label) not in left_out for label in labels_of(rows)])

    inside = np.flatnonzero(known(train))
    if arguments.split == "train":
        judged = train.select(np.concatenate((inside[::JUDGED], np.flatnonzero(~known(train)))))
        inside = np.setdiff1d(inside, inside[::JUDGED])
    else:
        judged = rows_of(arguments.data / arguments.set, "test")
    task = _trained(train.select(inside), chosen, seed, encoder, store, arguments)
    scores, in_scope = _scores(task, judged, encoder, store), known(judged)
    return {
        "preset": chosen,
        "set": arguments.set,
        "seed": seed,
        "left_out": sorted(left_out),
        **_figures(task, scores[in_scope], scores[~in_scope]),
    }


def against_others(
    chosen: str, name: str, encoder: Encoder, store: FeatureStore, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A set's task, and how well it tells the texts of other sets."""
    train = rows_of(arguments.data / name, "train", arguments.rows)
    numbers = np.arange(len(train))
    kept = numbers % JUDGED != 0 if arguments.split == "train" else numbers >= 0
    task = _trained(train.select(numbers[kept]), chosen, 0, encoder, store, arguments)
    own = train.select(numbers[~kept]) if arguments.split == "train" else rows_of(arguments.data / name, "test")
    scores = _scores(task, own, encoder, store)
    by_set = {
        other: _figures(
            task, scores, _scores(task, rows_of(arguments.data / other, "train", OTHER_TEXTS), encoder, store)
        )
        for other in arguments.others
        if other != name
    }
    means = {key: float(np.mean([entry[key] for entry in by_set.values()])) for key in ("auroc", "found")}
    return {
        "preset": chosen,
        "set": name,
        **means,
        "false_alarms": next(iter(by_set.values()))["false_alarms"],
        "others": by_set,
    }


def _trained(
    rows: Dataset, chosen: str, seed: int, encoder: Encoder, store: FeatureStore, arguments: argparse.Namespace
) -> Task:
    options, held = TrainOptions(seed=seed, out_of_scope=SHARE), None
    if arguments.held_every:
        validate = np.arange(len(rows)) % arguments.held_every == 0
        rows, held = rows.select(np.flatnonzero(~validate)), rows.select(np.flatnonzero(validate))
    return train_task(rows, encoder, store, preset(chosen), validation=held, options=options).task


def _scores(task: Task, rows: Dataset, encoder: Encoder, store: FeatureStore) -> np.ndarray:
    """The scores (N,) of rows."""
    assert task.scope is not None
    features, _ = task_features(task, rows, encoder, store)
    texts = text_directions(features, len(task.states), np.arange(len(features)))
    scores: np.ndarray = task.scope.scores(texts, torch.from_numpy(logits_of(task.head, features))).numpy()
    return scores


def _figures(task: Task, inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    assert task.scope is not None and task.scope.threshold is not None
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    return {
        "auroc": float(roc_auc_score(truth, np.concatenate((inside, outside)))),
        "false_alarms": float((inside > task.scope.threshold).mean()),
        "found": float((outside > task.scope.threshold).mean()),
    }


if __name__ == "__main__":
    main()

"""Prediction from text to probabilities: one task and eight on one encoder pass, against sentence-transformers and
scikit-learn's logistic regression, which also encodes once for all of its tasks.

python -m benchmarks.prediction --data ../shared/data --rounds 3 --out results
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.harness import (
    head_option,
    in_turn,
    medians,
    parser,
    recipe,
    rows_of,
    seconds,
    sentence_transformer,
)
from benchmarks.limits import matrix_rate, multiply_adds, share
from benchmarks.machine import record
from ytuning.encoder.encoder import load_encoder
from ytuning.features.store import FeatureStore
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.task import save_task
from ytuning.tasks.train import TrainOptions, train_task

TASKS = (1, 8)


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=3)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=["sst2", "banking77", "ag_news"])
    options.add_argument("--texts", type=int, default=3000, help="of each set's test rows, repeated if there are fewer")
    options.add_argument("--train-rows", type=int, default=2000, help="to train a task on; its quality does not matter")
    arguments = options.parse_args(argv)
    record("prediction", [one_set(name, arguments) for name in arguments.sets], arguments.out)


def one_set(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median texts per second of both, for each number of tasks, in turn."""
    encoder = load_encoder(arguments.encoder)
    train = rows_of(arguments.data / name, "train", arguments.train_rows)
    texts = varied(rows_of(arguments.data / name, "test").texts, arguments.texts)
    opponent = sentence_transformer(encoder)
    embedded = opponent.encode(train.texts, show_progress_bar=False)
    regression = LogisticRegression(max_iter=300).fit(embedded, train.labels)
    with tempfile.TemporaryDirectory() as root:
        options = TrainOptions(refit=False)
        task = train_task(train, encoder, FeatureStore(f"{root}/store"), recipe(arguments), options=options).task
        folders = [f"{root}/{number}" for number in range(max(TASKS))]
        for number, folder in enumerate(folders):
            save_task(replace(task, name=f"task{number}"), folder)
        predictors = {count: Predictor(folders[:count]) for count in TASKS}

        def ours(count: int) -> float:
            answers = predictors[count].predict((text, None) for text in texts)
            return seconds(lambda: sum(1 for _ in answers))

        def theirs(count: int) -> float:
            def predict() -> None:
                vectors = opponent.encode(texts, show_progress_bar=False)
                for _ in range(count):
                    regression.predict_proba(vectors)

            return seconds(predict)

        limits: list[float] = []

        def limit() -> float:
            limits.append(matrix_rate(encoder))
            return 0.0

        measures: dict[str, Callable[[], float]] = {"limit": limit}
        for count in TASKS:
            measures[f"ytuning_{count}"] = partial(ours, count)
            measures[f"sentence_transformers_{count}"] = partial(theirs, count)
        found = in_turn(arguments.rounds, measures)
    del found["limit"]
    middle = medians(found)
    work = multiply_adds(encoder, encoder.tokenize([(text, None) for text in texts]).lengths)
    return {
        "set": name,
        "texts": len(texts),
        "labels": len(set(train.names)),
        "precision": encoder.identity.precision,
        "texts_per_second": {key: len(texts) / elapsed for key, elapsed in middle.items()},
        "ratio": {count: middle[f"sentence_transformers_{count}"] / middle[f"ytuning_{count}"] for count in TASKS},
        "encoder_share": share(work, middle["ytuning_1"], float(np.median(limits))),
        "seconds": found,
    }


def varied(texts: list[str], count: int) -> list[str]:
    """So many different texts: those given, then again with a number before them, as the same text is encoded once."""
    distinct = list(dict.fromkeys(texts))
    return [
        distinct[row % len(distinct)] if row < len(distinct) else f"{row} {distinct[row % len(distinct)]}"
        for row in range(count)
    ]


if __name__ == "__main__":
    main()

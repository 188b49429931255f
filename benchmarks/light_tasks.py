"""Many light tasks: answering with a thousand against one, and training all columns of a table against one of them.

python -m benchmarks.light_tasks --data ../shared/data --out results

The texts are those of BANKING77. The task that answers has its first ten labels and is copied as often as wanted. The
columns of the table are drawn from the labels, two to five groups each. Texts are stored before a training is timed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import bar, grouped_columns, in_turn, medians, parser, rows_of, seconds
from benchmarks.machine import record
from ytuning.data.dataset import Dataset, labels_of
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.pools import stored_pools
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.task import save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.tasks.train_many import train_tasks
from ytuning.training.recipes import preset

LABELS = 10


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--tasks", type=int, default=1000, help="that answer together")
    options.add_argument("--columns", type=int, default=20, help="of the table")
    options.add_argument("--rows", type=int, help="train rows at most; default: all")
    options.add_argument("--texts", type=int, help="test texts at most; default: all")
    arguments = options.parse_args(argv)
    train = rows_of(arguments.data / "banking77", "train", arguments.rows)
    test = rows_of(arguments.data / "banking77", "test", arguments.texts)
    encoder = load_encoder(arguments.encoder)
    with tempfile.TemporaryDirectory() as root:
        store = FeatureStore(f"{root}/store")
        figures = {
            **answering(train, test, encoder, store, Path(root), arguments),
            **training(train, encoder, store, arguments),
        }
    bars = [
        bar("texts a second, all tasks against one", figures["answering_ratio"], at_least=0.5),
        bar("seconds to load all tasks", figures["load_seconds"], at_most=10),
        bar("megabytes of all tasks beyond the encoder", figures["megabytes"], at_most=400),
        bar("kilobytes of a task folder", figures["folder_kilobytes"], at_most=100),
        bar("seconds of all columns against one", figures["training_ratio"], at_most=2),
    ]
    record("light_tasks", [figures], arguments.out, bars)


def answering(
    train: Dataset, test: Dataset, encoder: Encoder, store: FeatureStore, root: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of the scores of one task and of many, in turn, and what many cost to load and to hold."""
    names = [str(label) for label in labels_of(train)]
    some = sorted(set(names))[:LABELS]
    rows = train.select([row for row, name in enumerate(names) if name in some])
    options = TrainOptions(name="task0")
    save_task(train_task(rows, encoder, store, preset("light"), options=options).task, root / "task0")
    for number in range(1, arguments.tasks):
        shutil.copytree(root / "task0", root / f"task{number}")
    texts = [text for text, _ in test.inputs]
    one = Predictor(root / "task0", encoder=arguments.encoder)
    one.scores(texts[:64])
    before, start = _resident_megabytes(), time.perf_counter()
    many = Predictor([root / f"task{number}" for number in range(arguments.tasks)], encoder=arguments.encoder)
    loading = time.perf_counter() - start
    many.scores(texts[:64])
    megabytes = _resident_megabytes() - before
    timed = in_turn(
        arguments.rounds,
        {"one": lambda: seconds(lambda: one.scores(texts)), "many": lambda: seconds(lambda: many.scores(texts))},
    )
    middle = medians(timed)
    return {
        "tasks": arguments.tasks,
        "texts": len(texts),
        "answering_seconds": timed,
        "answering_ratio": middle["one"] / middle["many"],
        "load_seconds": loading,
        # A second encoder is among them, as each predictor has its own.
        "megabytes": megabytes,
        "folder_kilobytes": sum(file.stat().st_size for file in (root / "task0").iterdir()) / 1000,
    }


def training(train: Dataset, encoder: Encoder, store: FeatureStore, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of training the first column alone and all columns together, in turn, on stored texts."""
    columns = grouped_columns(train, arguments.columns, "column")
    stored_pools(
        train.inputs, encoder, store, Progress(), states=encoder.resolve_states(None), pair_mode=None, codec="int8"
    )
    light, first = preset("light"), columns["column0"]
    timed = in_turn(
        arguments.rounds,
        {
            "one": lambda: seconds(lambda: train_task(first, encoder, store, light)),
            "all": lambda: seconds(lambda: train_tasks(columns, encoder, store, light)),
        },
    )
    middle = medians(timed)
    return {
        "rows": len(train),
        "columns": arguments.columns,
        "training_seconds": timed,
        "training_ratio": middle["all"] / middle["one"],
    }


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    main()

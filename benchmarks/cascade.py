"""Cascades: how many answers a light head gives and changes on test rows, and what many tasks with two heads cost.

python -m benchmarks.cascade --data ../shared/data --out results
python -m benchmarks.cascade --data ../shared/data --out results --sets trec6 cola --no-tasks

Both heads are trained on the same rows, as preset auto does, and the figures say which one it would keep. Validation
rows bound the share of changed answers. Test rows only report, which of GLUE sets are the public dev set. A regression
has no cascade, so nothing changes there.

The tasks of the second part group the labels of BANKING77 at random, into 2 to 5 groups, a different grouping for each
task. So all of them are about every text. Their default heads learn for fewer steps than the recipe says. All of them
answer all test texts (`Predictor.scores`), with a cascade and without, in turn with the first of them alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import (
    bar,
    grouped_columns,
    head_option,
    in_turn,
    medians,
    parser,
    recipe,
    rows_of,
    seconds,
    shortened,
)
from benchmarks.machine import record
from benchmarks.quality import SETS, parts_of
from ytuning.data.dataset import Dataset
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.add_cascade import add_cascade
from ytuning.tasks.choose_recipe import choose_cheapest
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.task import Task, load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.tasks.train_many import train_tasks
from ytuning.training.recipes import preset

# Figures of each seed whose means are shown.
SHOWN = ("answered", "changed", "default", "light", "auto")


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=3)
    head_option(options)
    options.add_argument("--share", type=float, default=0.01, help="of the answers that may change")
    options.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--tasks", type=int, default=50, help="that answer together")
    options.add_argument("--task-steps", type=int, default=300, help="of their default heads' optimisers")
    options.add_argument("--keep", type=Path, help="folder of the second part's tasks: used if it has any, or made")
    options.add_argument("--no-tasks", action="store_true", help="leave out the second part")
    options.add_argument("--rows", type=int, help="train rows of each set at most; default: all")
    options.add_argument("--texts", type=int, help="test texts of the second part at most; default: all")
    arguments = options.parse_args(argv)
    encoder = load_encoder(arguments.encoder)
    figures = [one_set(name, encoder, arguments) for name in arguments.sets]
    bars = [bar(f"share of changed answers, {entry['set']}", entry["changed"], at_most=0.015) for entry in figures]
    if figures:
        behind = [entry["light"] - entry["default"] for entry in figures]
        lost = [entry["auto"] - max(entry["light"], entry["default"]) for entry in figures]
        bars.append(bar("score of light against default, mean of the sets", statistics.fmean(behind), at_least=-0.02))
        bars.append(bar("score of auto against the better, mean of the sets", statistics.fmean(lost), at_least=-0.002))
    if not arguments.no_tasks:
        figures.append(many_tasks(encoder, arguments))
        name = f"texts a second, {arguments.tasks} tasks against one"
        bars.append(bar(name, figures[-1]["ratio"], at_least=0.6))
    record("cascade", figures, arguments.out, bars)


def one_set(name: str, encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """A cascade on one set, for each seed with a hold-out of its own."""
    train, validation, test = parts_of(arguments.data / name, arguments.rows)
    runs = []
    with tempfile.TemporaryDirectory() as root:
        for seed in arguments.seeds:
            default, light = (
                train_task(
                    train,
                    encoder,
                    FeatureStore(root),
                    own,
                    validation=validation,
                    test=test,
                    options=TrainOptions(name=name, seed=seed),
                )
                for own in (recipe(arguments), preset("light"))
            )
            trained, sentence = add_cascade(default, light)
            run: dict[str, Any] = {"seed": seed, "said": sentence, "answered": 0.0, "changed": 0.0}
            if (cascade := trained.task.cascade) is not None:
                target = trained.task.target
                given = trained.task.calibration.answers(target, default.judged["test"].logits)
                use = cascade.measure(target, given, light.judged["test"].logits, arguments.share)
                run |= vars(use) | {"validation": vars(cascade.curve.figures(arguments.share))}
            for which, one in (("default", default), ("light", light)):
                run[which] = one.reports["test"].metrics[SETS[name]]
            auto = choose_cheapest({"light": light, "default": default}, Progress(), complete=True)
            run["auto_preset"] = auto.task.training["auto"]["preset"]
            run["auto"] = run[run["auto_preset"]]
            runs.append(run)
    shares = {what: statistics.fmean(run[what] for run in runs) for what in SHOWN}
    return {"set": name, "rows": {"train": len(train), "test": len(test)}, **shares, "runs": runs}


def many_tasks(encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the scores of many tasks with two heads and of one, in turn."""
    train = rows_of(arguments.data / "banking77", "train", arguments.rows)
    test = rows_of(arguments.data / "banking77", "test", arguments.texts)
    kept = [] if arguments.keep is None else sorted(arguments.keep.glob("task*"))
    tasks = [load_task(folder) for folder in kept] or grouped_tasks(train, encoder, arguments)
    if arguments.keep is not None and not kept:
        for task in tasks:
            save_task(task, arguments.keep / task.name)
    texts = [text for text, _ in test.inputs]
    asked = {
        "one": Predictor(tasks[0], encoder=arguments.encoder, cascade=arguments.share),
        "one_without": Predictor(tasks[0], encoder=arguments.encoder),
        "many": Predictor(tasks, encoder=arguments.encoder, cascade=arguments.share),
        "many_without": Predictor(tasks, encoder=arguments.encoder),
    }
    answers = list(asked["many"].predict(texts[:256]))
    timed = in_turn(
        arguments.rounds,
        {
            name: lambda predictor=predictor: seconds(lambda: predictor.scores(texts))  # type: ignore[misc]
            for name, predictor in asked.items()
        },
    )
    middle = medians(timed)
    # The one task is answered in the way that is faster for it.
    one = min(middle["one"], middle["one_without"])
    cascades = [task.cascade.curve.figures(arguments.share) for task in tasks if task.cascade is not None]
    return {
        "tasks": len(tasks),
        "texts": len(texts),
        "answered": float(np.mean([answer.head == "light" for answer in answers])),
        "answered_in_validation": statistics.fmean(figures.answered for figures in cascades),
        "scores_in_validation": statistics.fmean(task.metrics["validation"]["accuracy"] for task in tasks),
        "seconds": timed,
        "texts_a_second": {name: len(texts) / value for name, value in middle.items()},
        "ratio": one / middle["many"],
        "ratio_without_cascade": one / middle["many_without"],
    }


def grouped_tasks(train: Dataset, encoder: Encoder, arguments: argparse.Namespace) -> list[Task]:
    """Tasks with two heads, each about a random grouping of the labels."""
    columns = grouped_columns(train, arguments.tasks, "task")
    steps = arguments.head_steps or arguments.task_steps
    with tempfile.TemporaryDirectory() as root:
        default, light = (
            train_tasks(columns, encoder, FeatureStore(root), own)
            for own in (shortened(preset("default"), steps), preset("light"))
        )
    made = {name: add_cascade(default[name], light[name])[0].task for name in columns}
    return [replace(task, name=name) for name, task in made.items()]


if __name__ == "__main__":
    main()

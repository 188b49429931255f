"""What the benchmarks share: options, rounds in which opponents take turns, and the bars they are held against."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ytuning.compare.fine_tuning import TunedEncoder
from ytuning.data.dataset import Dataset, labels_of, read_dataset
from ytuning.encoder.download import DEFAULT_ENCODER, find_encoder
from ytuning.encoder.encoder import Encoder
from ytuning.training.recipes import Recipe, preset

GROUPS = (2, 3, 4, 5)  # of labels, for columns in turn
WARM_STEPS = 3  # the first steps of a training, which allocate and compile, are not timed


def parser(
    description: str | None, *, data: bool = True, encoder: bool = True, rounds: int | None = None
) -> argparse.ArgumentParser:
    """A benchmark's options: those that most of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        made.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help="in each of which all opponents take their turn")
    if encoder:
        made.add_argument("--encoder", default=DEFAULT_ENCODER, help="folder or name")
    made.add_argument("--out", type=Path, help="folder for the JSON file")
    return made


def head_option(options: argparse.ArgumentParser) -> None:
    """Let the head train for fewer steps than the recipe says, for a quick look."""
    options.add_argument("--head-steps", type=int, help="of the head's optimiser; default: as many as the recipe says")


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The default preset, with the steps of :func:`head_option`."""
    default = preset("default")
    return default if arguments.head_steps is None else shortened(default, arguments.head_steps)


def shortened(of: Recipe, steps: int) -> Recipe:
    """A recipe that trains for so many steps."""
    return replace(of, training=replace(of.training, fewest_steps=steps, most_steps=steps))


def rows_of(folder: Path, split: str, most: int | None = None, label: str | None = None) -> Dataset:
    """Rows of a set's ``train`` or ``test`` (of GLUE sets, whose test labels are not public: dev), at most so many.

    They are spread evenly over the file, as some files are sorted by label.
    """
    names = ["test", "validation"] if split == "test" else [split]
    found = read_dataset(
        next(folder / f"{name}.jsonl" for name in names if (folder / f"{name}.jsonl").exists()), label=label
    )
    return found if most is None or most >= len(found) else found.select(np.linspace(0, len(found) - 1, most))


def grouped_columns(rows: Dataset, count: int, name: str) -> dict[str, Dataset]:
    """So many columns of labels for the same rows: random groupings of their labels into 2 to 5 groups each."""
    names = np.array([str(label) for label in labels_of(rows)])
    kinds, place = np.unique(names, return_inverse=True)
    draws = np.random.default_rng(0)
    columns = {}
    for number in range(count):
        groups = draws.permutation(np.arange(len(kinds)) % GROUPS[number % len(GROUPS)])
        columns[f"{name}{number}"] = replace(rows, labels=[f"group{group}" for group in groups[place]], kind="single")
    return columns


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def planned_seconds(result: TunedEncoder, epochs: int) -> float:
    """What all epochs of a training with their validations would take, by the mean of the steps after the first few."""
    warm = result.step_seconds[WARM_STEPS:] or result.step_seconds
    return result.planned_steps * float(np.mean(warm)) + epochs * float(np.mean(result.validation_seconds))


def in_turn(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every measure once a round, in turn, so that a machine that slows down slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each measure."""
    return {name: statistics.median(values) for name, values in found.items()}


def bar(name: str, measured: float | None, *, at_least: float | None = None, at_most: float | None = None) -> Any:
    """A figure beside what is wanted of it, JSON-ready; ``measured`` is None where it cannot be had.

    ``reached`` is then None too.
    """
    if (at_least is None) == (at_most is None):
        raise ValueError("a bar has one limit: give either at_least or at_most")
    wanted = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    reached = None
    if measured is not None:
        reached = measured >= at_least if at_least is not None else measured <= (at_most or 0.0)
    return {"bar": name, "wanted": wanted, "measured": measured, "reached": reached}


def sentence_transformer(encoder: Encoder) -> Any:
    """The same weights in sentence-transformers, on the same device."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(find_encoder(encoder.identity.name)), device=str(encoder.device))

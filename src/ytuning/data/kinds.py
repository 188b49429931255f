"""What rows are labelled with: each kind of task's labels as an array, and logits as answers.

| kind | labels of a row | target array | a head's outputs |
| --- | --- | --- | --- |
| ``single`` | one name | (rows,) int64, the label's id | C logits, softmax |
| ``ordinal`` | one name, of labels that have an order | the same | the same |
| ``multi`` | any number of names, none included | (rows, C) float32, 0 or 1 | C logits, a sigmoid each |
| ``regression`` | a number | (rows,) float32, on a scale of the train rows | 2 anchors, their logits' difference |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.special

from ytuning.data.labels import Kind, LabelSet, listed, shown
from ytuning.errors import InputError

__all__ = ["KINDS", "Labels", "Names", "Objective", "Scale", "Target", "fit_target", "target_from_json"]

KINDS: tuple[Kind, ...] = get_args(Kind)
Labels = Sequence[str] | Sequence[tuple[str, ...]] | Sequence[float]
Objective = Literal["single", "ordinal", "multi", "bounded", "unbounded"]
FARTHEST = 1e9  # lengths of a scale
ENDS_SHARE = 0.005  # of the rows at the lowest number, and as many at the highest, make a scale that ends there


@dataclass(frozen=True)
class Names:
    """Targets that are label names: kinds ``single``, ``ordinal`` and ``multi``.

    Attributes:
        labels: for ``ordinal`` from the lowest to the highest.
        kind: of the task.
    """

    labels: LabelSet
    kind: Literal["single", "ordinal", "multi"] = "single"

    @property
    def names(self) -> tuple[str, ...]:
        """One for each of the head's outputs."""
        return self.labels.names

    @property
    def objective(self) -> Objective:
        """What training minimises, see `training/losses.py`."""
        return self.kind

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.labels)

    def encode(self, labels: Labels) -> np.ndarray:
        """Target array of the labels of rows.

        Raises:
            InputError: a label is not in the set; names it and the ones closest to it.
        """
        if self.kind != "multi":
            return self.labels.encode([str(label) for label in labels])
        rows = [tuple(row) for row in labels if isinstance(row, tuple | list)]
        targets = np.zeros((len(labels), len(self.labels)), np.float32)
        for number, row in enumerate(rows):
            targets[number, self.labels.encode(row)] = 1
        return targets

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(rows, C) of logits (rows, C): softmax, or a sigmoid for each label of ``multi``."""
        values = logits.astype(np.float64)
        found: np.ndarray = scipy.special.expit(values) if self.kind == "multi" else scipy.special.softmax(values, 1)
        return found

    def to_json(self) -> dict[str, Any]:
        """Fields of ``task.json``."""
        return {"kind": self.kind, "labels": list(self.names)}


@dataclass(frozen=True)
class Scale:
    """Targets that are numbers: kind ``regression``.

    The head has a logit for each of two anchors, low and high, and their difference says where between them, or beyond
    them, a text lies.

    Attributes:
        low, high: what the positions 0 and 1 stand for. Bounded: the lowest and the highest number; else the mean and
            a standard deviation above it.
        bounded: whether there are no numbers beyond them.
    """

    low: float
    high: float
    bounded: bool
    kind: Literal["regression"] = "regression"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"a scale goes from a number to a larger one. Got {self.low!r} to {self.high!r} instead.")

    @property
    def names(self) -> tuple[str, ...]:
        """No label."""
        return ()

    @property
    def objective(self) -> Objective:
        """What training minimises, see `training/losses.py`."""
        return "bounded" if self.bounded else "unbounded"

    @property
    def outputs(self) -> int:
        """The two anchors."""
        return 2

    def encode(self, labels: Labels) -> np.ndarray:
        """Positions (rows,) float32 of numbers; of a test row beyond a bounded scale it lies beyond 0 or 1."""
        numbers = np.array([float(label) for label in labels], np.float64)  # type: ignore[arg-type]
        # Absurdly far is as good as infinitely far, but can be reckoned with.
        return np.clip((numbers - self.low) / (self.high - self.low), -FARTHEST, FARTHEST).astype(np.float32)

    def values(self, logits: np.ndarray) -> np.ndarray:
        """Numbers (rows,) float64 that logits (rows, 2) stand for."""
        position = logits[:, 1].astype(np.float64) - logits[:, 0]
        if self.bounded:
            position = scipy.special.expit(position)
        found: np.ndarray = self.low + (self.high - self.low) * position
        return found

    def numbers(self, targets: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`encode`."""
        found: np.ndarray = self.low + (self.high - self.low) * targets.astype(np.float64)
        return found

    def to_json(self) -> dict[str, Any]:
        """Fields of ``task.json``."""
        return {"kind": self.kind, "labels": [], "low": self.low, "high": self.high, "bounded": self.bounded}


Target = Names | Scale


def fit_target(kind: Kind, labels: Labels, order: Sequence[str] | None = None) -> Target:
    """The target of train rows.

    Args:
        kind: of the task.
        labels: of the train rows, as `dataset.Dataset` holds them.
        order: of an ordinal task's label names, from the lowest; ``None``: that of their numbers.

    Raises:
        InputError: the labels of an ordinal task have no order, or ``order`` is not theirs; numbers that are all equal.
    """
    if kind == "regression":
        return _fit_scale(np.array([float(label) for label in labels], np.float64))  # type: ignore[arg-type]
    if kind == "multi":
        return Names(LabelSet.from_labels(name for row in labels for name in row), "multi")  # type: ignore[union-attr]
    found = LabelSet.from_labels(str(label) for label in labels)
    return Names(found if kind == "single" else _in_order(found, order), kind)


def target_from_json(content: dict[str, Any]) -> Target:
    """The inverse of ``to_json``.

    Raises:
        InputError, KeyError, TypeError, ValueError: not such fields.
    """
    if content["kind"] == "regression":
        if content["labels"]:
            raise ValueError("a regression task has no labels")
        return Scale(float(content["low"]), float(content["high"]), bool(content["bounded"]))
    if content["kind"] not in KINDS:
        raise ValueError(f"unknown kind {shown(content['kind'])}")
    return Names(LabelSet(tuple(content["labels"])), content["kind"])


def _fit_scale(numbers: np.ndarray) -> Scale:
    """Bounded if the lowest and the highest number are common: ratings end there, measurements rarely repeat them."""
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        raise InputError(f"all {len(numbers)} rows have the number {low:g}. Training needs different ones")
    often = max(2, math.ceil(ENDS_SHARE * len(numbers)))
    if min((numbers == low).sum(), (numbers == high).sum()) >= often:
        return Scale(low, high, bounded=True)
    mean, deviation = float(numbers.mean()), float(numbers.std())
    return Scale(mean, mean + deviation, bounded=False)


def _in_order(found: LabelSet, order: Sequence[str] | None) -> LabelSet:
    if order is None:
        # No order to paste: that of the names' letters is a wrong one that works.
        give = f"Give it: --label-order LOWEST,...,HIGHEST. The labels are {listed(found.names)}"
        if wrong := next((name for name in found.names if not _is_number(name)), None):
            raise InputError(f"the label {shown(wrong)} is no number, so the labels' order is not known. {give}")
        ordered = sorted(found.names, key=float)
        for name, other in itertools.pairwise(ordered):
            if float(name) == float(other):
                same = f"the labels {shown(name)} and {shown(other)} are one number"
                raise InputError(f"{same}, so their order is not known. {give}")
        return LabelSet(tuple(ordered))
    order = [name.strip() for name in order]  # as the labels of rows are
    if differing := set(order) ^ set(found.names):
        where = "the train rows" if min(differing) in order else "--label-order"
        raise InputError(f"the order must name each label once. {shown(min(differing))} is missing in {where}")
    return LabelSet(tuple(order))


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False

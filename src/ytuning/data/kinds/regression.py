"""Tasks whose rows have a number each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.special

from ytuning.data.kinds.base import Answers, Labels, Loss, Mistake, Reading, ReportWords, TaskKind
from ytuning.data.kinds.metrics import Sums, correlation, moments, rank_correlation, resampled_correlation
from ytuning.data.labels import label_name, quote
from ytuning.data.tables import Column
from ytuning.errors import InputError, argument, parameter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Regression", "are_numbers"]

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Squares of numbers that are larger in size are beyond what 64 bits hold, and so is their spread.
LARGEST_NUMBER = 1e150
# Where at least this share of the labels are numbers, the others are taken for mistakes, not for names.
MOSTLY = 0.9
# Positions on a scale are clipped to this number of lengths of the scale.
FARTHEST = 1e9
# A scale is bounded if at least this share of the rows has its lowest number, and as many its highest.
ENDS_SHARE = 0.005
# A stratified choice takes its share of each of ten quantiles, with at least four rows, or none could be spared.
QUANTILES, FEWEST_IN_QUANTILE = 10, 4
# A linear model's position on a bounded scale keeps at least this distance from both ends.
EDGE = 1e-6


@dataclass(frozen=True)
class Regression(TaskKind):
    """Each row has a number: targets (rows,) float32 are its position on a scale, and C is 2.

    The two logits belong to anchors, low and high. Their difference says where between them, or beyond them, a text
    lies; on a bounded scale through a sigmoid.

    Attributes:
        low: number at position 0: the lowest number if the scale is bounded, else the mean.
        high: number at position 1: the highest number if the scale is bounded, else a standard deviation above ``low``.
        bounded: whether there are no numbers beyond them.
    """

    labels: None = field(default=None, init=False)
    low: float
    high: float
    bounded: bool
    kind = "regression"
    headlines = ("pearson", "spearman")
    score_name = "squared error"
    answer_key = "value"
    dtype = np.float32
    training_options = ()
    drawings = ("scatter", "residuals")
    words = ReportWords(worst="the largest error", size="error", size_format="%+.4g", right="number is exact")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"a scale goes from a number to a larger one. Got {self.low!r} to {self.high!r} instead.")

    @property
    def outputs(self) -> int:
        """The number of logits, one for each of the two anchors."""
        return 2

    @property
    def facts(self) -> dict[str, str]:
        """Return the scale in words."""
        return {"scale": f"{self.low:g} to {self.high:g}" + ("" if self.bounded else " (not bounded)")}

    @property
    def answer_sentence(self) -> str:
        """Names the ends of the scale."""
        ends = f"from {self.low:g} to {self.high:g}" if self.bounded else "without bounds"
        return f"It answers with a number {ends}."

    def to_json(self) -> dict[str, Any]:
        """Return the scale's fields of ``task.json``."""
        return {**super().to_json(), "low": self.low, "high": self.high, "bounded": self.bounded}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read the scale from the fields of ``task.json``."""
        if content["labels"]:
            raise ValueError("a regression task has no labels")
        return cls(float(content["low"]), float(content["high"]), bool(content["bounded"]))

    @classmethod
    def fit(cls, labels: Labels, order: Sequence[str] | None) -> Self:
        """Bounded if the lowest and the highest number are common: ratings end there, measurements rarely repeat them.

        Raises:
            InputError: all numbers are equal.
        """
        numbers = _as_numbers(labels)
        low, high = float(numbers.min()), float(numbers.max())
        if low == high:
            raise InputError(f"all {len(numbers)} rows have the number {low:g}. Training needs different ones")
        often = max(2, math.ceil(ENDS_SHARE * len(numbers)))
        if min((numbers == low).sum(), (numbers == high).sum()) >= often:
            return cls(low, high, bounded=True)
        mean, deviation = float(numbers.mean()), float(numbers.std())
        return cls(mean, mean + deviation, bounded=False)

    @classmethod
    def read_labels(cls, column: Column, reading: Reading) -> tuple[Labels, str | None]:
        """Each cell is a number, or its text."""
        return [
            _read_number(column, row, cell, guessed=reading.guessed) for row, cell in enumerate(column.cells, 1)
        ], None

    @classmethod
    def label_names(cls, labels: Labels) -> list[tuple[str, ...]]:
        """Return no names, because numbers have none."""
        return [()] * len(labels)

    @classmethod
    def training_problem(cls, labels: Labels) -> tuple[int, str] | None:
        """Report that all rows have the same number."""
        if len(set(labels)) > 1:
            return None
        return 0, f"all {len(labels)} rows have the label {quote(labels[0])}. Training needs at least two labels."

    @classmethod
    def strata(cls, labels: Labels) -> list[int]:
        """The quantile that the row's number is in."""
        numbers = _as_numbers(labels)
        parts = max(1, min(QUANTILES, len(numbers) // FEWEST_IN_QUANTILE))
        inner = np.unique(np.quantile(numbers, np.linspace(0, 1, parts + 1)[1:-1]))
        return list(np.unique(np.searchsorted(inner, numbers), return_inverse=True)[1].tolist())

    def encode(self, labels: Labels) -> np.ndarray:
        """Positions (rows,) float32; of a test row beyond a bounded scale it lies beyond 0 or 1."""
        numbers = _as_numbers(labels)
        # Absurdly far is as good as infinitely far, but can be computed with.
        return np.clip((numbers - self.low) / (self.high - self.low), -FARTHEST, FARTHEST).astype(np.float32)

    def decode(self, targets: np.ndarray) -> np.ndarray:
        """Numbers (rows,) float64 of positions."""
        numbers: np.ndarray = self.low + (self.high - self.low) * targets.astype(np.float64)
        return numbers

    def _batch_loss(self, name: str, margin: float, smoothing: float, weights: Tensor | None) -> Loss:
        """The one loss of numbers, whatever its name: cross-entropy on a bounded scale, else half the squared error.

        The cross-entropy is that of the position as a probability. It is steep where a squared error of a sigmoid is
        flat. A number beyond the scale, which other rows than those of training may have, counts as its end:
        cross-entropy with it would fall without limit.
        """
        return lambda logits, goal: self._cross_entropy(logits, goal, "mean")

    def _label_weights(self, given: str | tuple[float, ...] | None, targets: Tensor) -> None:
        if given is not None:
            weights = parameter("label_weights")
            raise InputError(f"a regression task has no labels, which {weights} is for. Leave it out")

    def _cross_entropy(self, logits: Tensor, goal: Tensor, reduction: str) -> Tensor:
        from torch.nn import functional

        position, goal = logits[:, 1] - logits[:, 0], goal.to(logits.dtype)
        if self.bounded:
            return functional.binary_cross_entropy_with_logits(position, goal.clamp(0, 1), reduction=reduction)
        return 0.5 * functional.mse_loss(position, goal, reduction=reduction)

    def constant_loss(self, targets: np.ndarray) -> float:
        """The loss of the mean: its binary entropy on a bounded scale, else half the variance."""
        if not self.bounded:
            return float(0.5 * targets.var(dtype=np.float64))
        mean = targets.clip(0, 1).mean(dtype=np.float64)
        return float(scipy.special.entr(mean) + scipy.special.entr(1 - mean))

    def row_scores(self, logits: Tensor, goal: Tensor) -> Tensor:
        """The negative squared error, in lengths of the scale."""
        position = (logits[:, 1] - logits[:, 0]).double()
        return -((position.sigmoid() if self.bounded else position) - goal.double()).square()

    def answers(
        self, logits: np.ndarray, thresholds: tuple[float, ...] | None = None, abstain_below: float | None = None
    ) -> Answers:
        """Answer with numbers (rows,) float64."""
        position = logits[:, 1].astype(np.float64) - logits[:, 0]
        if self.bounded:
            position = scipy.special.expit(position)
        return Answers(self.decode(position), np.empty((len(logits), 0)))

    def logits_of_linear(self, values: np.ndarray) -> np.ndarray:
        """The logits (rows, 2) of positions (rows, 1): the lower anchor has 0."""
        if self.bounded:
            values = scipy.special.logit(values.clip(EDGE, 1 - EDGE))
        return np.concatenate((np.zeros_like(values), values), axis=1)

    def metrics(self, truth: np.ndarray, answers: Answers) -> dict[str, float]:
        """Return ``mae`` and ``rmse``, and ``pearson`` and ``spearman``, which are 0 where one side is constant."""
        gap = answers.values - truth
        return {
            "pearson": correlation(truth, answers.values),
            "spearman": rank_correlation(truth, answers.values),
            "mae": float(np.abs(gap).mean()),
            "rmse": float(np.sqrt(np.square(gap).mean())),
        }

    def resampling_sums(self, truth: np.ndarray, values: np.ndarray) -> Sums:
        """Return the sums for ``pearson`` and ``spearman``. A resample's rows keep their ranks in the whole sample."""
        from scipy.stats import rankdata

        columns = np.concatenate([moments(truth, values), moments(rankdata(truth), rankdata(values))], axis=1)

        def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
            # Each has the shape (r, 5).
            pearson, spearman = np.split(sums, 2, axis=1)
            rows = len(truth)
            return {"pearson": resampled_correlation(pearson, rows), "spearman": resampled_correlation(spearman, rows)}

        return columns, statistics

    def mistakes(self, truth: np.ndarray, answers: Answers, most: int) -> list[Mistake]:
        """Return the rows with the largest errors."""
        gaps = answers.values - truth
        order = [row for row in np.argsort(-np.abs(gaps), kind="stable")[:most].tolist() if gaps[row]]
        return [
            Mistake(row, [f"{truth[row]:.4g}"], [f"{answers.values[row]:.4g}"], float(gaps[row]), 1, 0) for row in order
        ]

    def token_effects(self, mistake: Mistake, effects: np.ndarray) -> np.ndarray:
        """What raises an answer that is too high is for it, and so is what lowers one that is too low."""
        rise = effects[:, 1] - effects[:, 0]
        signed = rise if mistake.size > 0 else -rise
        return np.stack([signed, -signed], 1)


def are_numbers(cells: Sequence[object]) -> bool:
    """Whether all labels, or all but a few mistakes, are numbers and one of them has a fraction."""
    numbers, others = [], 0
    for cell in cells:
        text = label_name(cell) or ""
        if NUMBER.fullmatch(text):
            numbers.append(text)
        else:
            others += 1
            # Names are told from numbers after a tenth of the rows.
            if len(cells) - others < MOSTLY * len(cells):
                return False
    return not all(text.lstrip("+-").isdigit() or float(text).is_integer() for text in numbers)


def _read_number(column: Column, row: int, cell: object, *, guessed: bool) -> float:
    infinite = isinstance(cell, float | np.floating) and np.isinf(cell)
    text = str(cell) if infinite else column.label(row, cell)
    number = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        remedy = "Write it as 3 or 3.5."
        if guessed:
            remedy = "Nearly all labels are numbers. Correct this one, remove the row, or read all labels as names "
            remedy += f"with {argument('kind', 'single')}."
        raise column.error(row, f"the label {quote(text)} is not a finite number. {remedy}")
    if abs(number) > LARGEST_NUMBER:
        raise column.error(row, f"{quote(cell)} is too large; the limit is 1e150. Correct it or remove the row.")
    return number


def _as_numbers(labels: Labels) -> np.ndarray:
    """Return the labels as numbers (rows,) float64."""
    return np.array([float(label) for label in labels], np.float64)  # type: ignore[arg-type]

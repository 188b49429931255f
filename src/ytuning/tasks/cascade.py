"""A cascade of two heads: the light head answers what it is sure of, and only the rest is put to the default head.

Validation rows, which were new to both heads, bound how often that changes an answer. From the most confident row on,
the light head takes row after row, until the share of all validation rows whose answer it changes could exceed what is
allowed: the upper bound of Clopper and Pearson (Biometrika 26:404, 1934). That share never falls on the way. So the
choice is wrong only if the bound is wrong at the one confidence where the true share is just what is allowed, which has
a probability of at most 10 % (risk-controlling prediction sets: Bates et al., arXiv 2101.02703).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import scipy.special

from ytuning.data.kinds import Answers, TaskKind
from ytuning.encoder.pretrained import States
from ytuning.errors import InputError, argument, parameter, quantity
from ytuning.heads.light import LightHead
from ytuning.heads.scope import ScopeModel
from ytuning.training.calibration import Calibration

__all__ = [
    "DEFAULT_SHARE",
    "Cascade",
    "CascadeCurve",
    "CascadeFigures",
    "CascadeUse",
    "Head",
    "check_share",
    "confidence_of",
    "differ",
    "fit_cascade_curve",
    "notes_on_cascades",
]

Head = Literal["light", "default"]
# The share of changed answers that reports speak of where none is asked for, and the highest that can be asked for.
DEFAULT_SHARE, MOST_SHARE = 0.01, 0.5
# Probability with which a bound holds.
CERTAINTY = 0.9
# Counts above it are no longer exact as floats.
MOST_ROWS = 2**53
# A task keeps at most about so many thresholds.
MOST_STEPS = 128


@dataclass(frozen=True)
class CascadeFigures:
    """What validation says of a cascade.

    Attributes:
        share: share of changed answers that is allowed.
        answered: share of the rows that the light head answers.
        changed: share of the rows whose answer differs from that of the default head.
        bound: upper bound of ``changed`` for further rows, which holds with a probability of 90 %.
    """

    share: float
    answered: float
    changed: float
    bound: float


def check_share(share: float) -> None:
    """Whether a cascade can be asked for this share of changed answers.

    Raises:
        InputError: it is not a share above 0 and at most ``MOST_SHARE``.
    """
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    # Also false for what is not a number.
    if not (is_number and 0 < share <= MOST_SHARE):
        problem = f"{parameter('cascade')} must be a share of changed answers above 0 and at most {MOST_SHARE}."
        raise InputError(f"{problem} Got {share!r} instead. 0.01 lets one answer in a hundred change.")


@dataclass(frozen=True)
class CascadeCurve:
    """How many answers a light head changes, by the lowest confidence at which it answers.

    The S steps begin with the surest. Of the thresholds that change equally many answers each is the lowest.

    Attributes:
        rows: number of validation rows.
        thresholds: (S,) confidences, falling.
        answered: (S,) validation rows of at least this confidence, rising.
        changed: (S,) how many of them the default head answers differently, rising.
    """

    rows: int
    thresholds: tuple[float, ...] = ()
    answered: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()

    def bounds(self) -> np.ndarray:
        """(S,) the upper bound of the share of changed answers for each threshold, rising."""
        return _upper_bounds(np.array(self.changed, np.int64), self.rows)

    def step_at(self, share: float) -> int | None:
        """The last step whose bound is at most a share; None if the first has a higher one."""
        steps = int((self.bounds() <= share).sum())
        return steps - 1 if steps else None

    def figures(self, share: float) -> CascadeFigures:
        """What validation says of a cascade that may change a share of the answers; without any light answer all 0."""
        step = self.step_at(share)
        if step is None:
            return CascadeFigures(share, 0.0, 0.0, 0.0)
        rows = self.rows
        return CascadeFigures(share, self.answered[step] / rows, self.changed[step] / rows, float(self.bounds()[step]))

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``task.json``."""
        lists = {name: list(getattr(self, name)) for name in ("thresholds", "answered", "changed")}
        return {"rows": self.rows, **lists}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or wrong.
        """
        rows, lists = content["rows"], [content[name] for name in ("thresholds", "answered", "changed")]
        thresholds, answered, changed = map(tuple, lists)
        whole = (rows, *answered, *changed)
        if not (all(type(count) is int for count in whole) and all(type(value) is float for value in thresholds)):
            raise ValueError("a cascade has counts that are whole numbers and thresholds that are not")
        steps = list(zip(answered, changed, strict=True))
        if (
            not len(thresholds) == len(steps)
            or not 0 <= rows <= MOST_ROWS
            or any(not 0 <= k <= n <= rows for n, k in steps)
        ):
            raise ValueError("the counts of a cascade do not fit its rows or its thresholds")
        rising = all(
            above > below and fewer <= more and less < greater
            for above, below, fewer, more, less, greater in zip(
                thresholds, thresholds[1:], answered, answered[1:], changed, changed[1:], strict=False
            )
        )
        if not (rising and all(map(math.isfinite, thresholds))):
            raise ValueError("the thresholds of a cascade must fall, and its counts rise")
        return cls(rows, thresholds, answered, changed)


def fit_cascade_curve(confidence: np.ndarray, changed: np.ndarray) -> CascadeCurve:
    """Count the changed answers of validation rows by confidence; rows of the same confidence stay together.

    Args:
        confidence: (N,) how sure the light head is.
        changed: (N,) bool, whether the default head answers differently.
    """
    # Falling, and each row's place among the distinct ones.
    levels, place = np.unique(-confidence, return_inverse=True)
    answered = np.bincount(place, minlength=len(levels)).cumsum()
    different = np.bincount(place, weights=changed, minlength=len(levels)).cumsum().astype(np.int64)
    # The last of the levels that change equally many answers is the lowest, where no greater share than any that can
    # be asked for is reached.
    last = np.append(np.diff(different) > 0, True) if len(levels) else np.empty(0, bool)
    steps = np.flatnonzero(last & (_upper_bounds(different, len(confidence)) <= MOST_SHARE))
    if len(steps) > MOST_STEPS:
        # The first ones, which small shares ask for, are all kept.
        places = np.geomspace(1, len(steps), MOST_STEPS).round().astype(int) - 1
        steps = steps[np.unique(np.concatenate((np.arange(MOST_STEPS // 2), places)))]
    return CascadeCurve(
        len(confidence),
        tuple((-levels[steps]).tolist()),
        tuple(answered[steps].tolist()),
        tuple(different[steps].tolist()),
    )


def _upper_bounds(changed: np.ndarray, rows: int) -> np.ndarray:
    """The upper bound of Clopper and Pearson for each count of changed answers among all rows."""
    # Where every row is changed the bound is 1, and the quantile is not defined.
    bounds: np.ndarray = np.where(
        changed < rows, scipy.special.betaincinv(changed + 1.0, np.maximum(rows - changed, 1.0), CERTAINTY), 1.0
    )
    return bounds


def confidence_of(target: TaskKind, calibration: Calibration, answers: Answers) -> np.ndarray:
    """How sure a head is of its answers, (rows,) float64.

    With one label a row it is the probability of the answer, and where it abstains the highest one. With several it is
    the smallest distance between the probability of a label and its threshold, as each of them decides.
    """
    probabilities = answers.probabilities
    if target.gives_many:
        thresholds = 0.5 if calibration.thresholds is None else np.array(calibration.thresholds)
        nearest: np.ndarray = np.abs(probabilities - thresholds).min(1)
        return nearest
    rows = np.arange(len(answers.values))
    given: np.ndarray = np.where(
        answers.values < 0, probabilities.max(1, initial=0.0), probabilities[rows, answers.values]
    )
    return given


def differ(target: TaskKind, answers: Answers, others: Answers) -> np.ndarray:
    """(rows,) bool: where two heads do not answer alike."""
    unlike: np.ndarray = ~target.are_right(answers.values, others.values)
    return unlike


@dataclass(frozen=True)
class CascadeUse:
    """What a cascade has done with some rows.

    Attributes:
        share: share of changed answers that was allowed.
        answered: share of the rows that the light head has answered.
        changed: share of the rows whose answer differs from that of the default head.
    """

    share: float
    answered: float
    changed: float

    @property
    def sentence(self) -> str:
        """What the cascade has done."""
        return (
            f"With a cascade at {100 * self.share:g} %, the light head answers {self.answered:.1%} of these rows, and "
            f"{self.changed:.2%} of all answers differ from those of the default head alone."
        )


@dataclass(frozen=True)
class Cascade:
    """The light head beside a task's default head.

    Attributes:
        head: the light head, in evaluation mode.
        calibration: what makes probabilities and decisions of its logits.
        states: numbers of the encoder's hidden states that it reads.
        curve: how many answers it changes, by the threshold.
        scope: what tells by its logits how unlike the training rows a text is; None with too few validation rows.
        threshold: confidence from which it answers; None: it answers nothing.
    """

    head: LightHead
    calibration: Calibration
    states: States
    curve: CascadeCurve
    threshold: float | None = None
    scope: ScopeModel | None = None

    def at(self, share: float | None) -> Cascade:
        """The cascade that changes at most a share of the answers, as far as validation tells; None: no answer at all.

        Raises:
            InputError: as :func:`check_share`.
        """
        if share is None:
            return replace(self, threshold=None)
        check_share(share)
        step = self.curve.step_at(share)
        return replace(self, threshold=None if step is None else self.curve.thresholds[step])

    def answers(self, target: TaskKind, logits: np.ndarray) -> tuple[Answers, np.ndarray]:
        """The light head's answers to its logits (rows, C), and which of them it is sure enough of, (rows,) bool."""
        answers = self.calibration.answers(target, logits)
        if self.threshold is None:
            return answers, np.zeros(len(logits), bool)
        sure: np.ndarray = confidence_of(target, self.calibration, answers) >= self.threshold
        return answers, sure

    def measure(self, target: TaskKind, given: Answers, logits: np.ndarray, share: float) -> CascadeUse:
        """What a cascade that may change a share of the answers does with some rows.

        Args:
            target: kind of the task.
            given: answers of the default head.
            logits: (rows, C) of the light head.
            share: the share.

        Raises:
            InputError: as :func:`check_share`.
        """
        answers, sure = self.at(share).answers(target, logits)
        changed = sure & differ(target, given, answers)
        return CascadeUse(share, float(sure.mean()), float(changed.mean()))

    def sentence(self, share: float) -> str:
        """What validation says of the cascade that changes at most a share of the answers."""
        curve, allowed = self.curve, f"{100 * share:g} %"
        if curve.step_at(share) is not None:
            figures = curve.figures(share)
            return (
                f"the light head answers {figures.answered:.1%} of the texts. {figures.changed:.2%} of all answers "
                f"change, and at most {figures.bound:.2%} with a confidence of {CERTAINTY:.0%}"
            )
        rows, fewest = curve.rows, math.ceil(math.log(1 - CERTAINTY) / math.log(1 - share))
        if rows < fewest:
            return (
                f"the light head answers nothing, because {quantity(rows, 'validation row')} cannot bound the changed "
                f"answers at {allowed}. At least {fewest:,} are needed"
            )
        return f"the light head answers nothing, because even its surest answers change too often for {allowed}"


def notes_on_cascades(cascades: Mapping[str, Cascade | None], share: float) -> list[str]:
    """What to tell of tasks that a cascade with a share does nothing for.

    Args:
        cascades: by the name of each task; None where it has one head.
        share: share of the answers that may change.
    """
    two_heads = {name: cascade for name, cascade in cascades.items() if cascade is not None}
    if not two_heads:
        remedy = f"Train with {argument('preset', 'auto')}, which keeps a light head beside a default head."
        return [f"{argument('cascade', share)} changes nothing: no task has two heads. {remedy}"]
    return [
        f"task {name!r}: with {argument('cascade', share)} {cascade.sentence(share)}."
        for name, cascade in two_heads.items()
        if cascade.curve.step_at(share) is None
    ]

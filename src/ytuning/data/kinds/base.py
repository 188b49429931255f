"""What every kind of task can be asked, and the answers and mistakes that it speaks of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ytuning.data.kinds.metrics import Intervals, LabelFigures, Sums, figures_of_counts, interval_ends, resampled_sums
from ytuning.data.labels import Kind, LabelSet
from ytuning.data.tables import Column
from ytuning.errors import InputError, argument, must_be_one_of, parameter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FOCUS", "LOSSES", "Answer", "Answers", "Confusion", "Labels", "Loss", "Mistake", "Reading", "ReportWords",
    "TaskKind",
]  # fmt: skip

LOSSES = ("cross_entropy", "triplet", "focal")
# Gamma: the focal loss multiplies a loss by this power of 1 minus the probability of the true answer.
FOCUS = 2.0

Labels = Sequence[str] | Sequence[tuple[str, ...]] | Sequence[float]
Answer = str | list[str] | float | None
Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Logits (B, C) and targets (B,) or (B, C) -> the batch's loss, a scalar."""


@dataclass(frozen=True)
class Answers:
    """A task's answers to some rows.

    Attributes:
        values: (rows,) int64 label ids, where -1 is an abstention; (rows, C) bool; or (rows,) float64 numbers.
        probabilities: (rows, C) float64, the calibrated probability of each label; (rows, 0) without labels.
    """

    values: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Confusion:
    """``rows`` rows of the label ``true`` were given the label ``predicted``."""

    true: str
    predicted: str
    rows: int


@dataclass(frozen=True)
class Mistake:
    """A row whose answer is wrong.

    Attributes:
        row: its position among the evaluated rows.
        true: the true labels, or the true number; for ``multi`` only the labels that ``predicted`` lacks.
        predicted: the predicted labels, or the number; for ``multi`` only the labels that ``true`` lacks.
        size: probability of the wrong answer; for a regression the error.
        towards: logit of what was answered, or None.
        against: logit of what should have been answered, or None.
        about: for ``multi``, the label whose decision ``size`` is about.
    """

    row: int
    true: list[str]
    predicted: list[str]
    size: float
    towards: int | None
    against: int | None
    about: str | None = None


@dataclass(frozen=True)
class Reading:
    """What is known of a column of labels before it is read.

    Attributes:
        known: labels of the task, if there is one.
        separator: where texts of the train rows were split, or `multi.UNKNOWN`.
        guessed: whether the kind was inferred from the labels, and may be another.
        places: labels by their place in lists of 0 and 1, for kinds with several labels a row.
    """

    known: Collection[str] = ()
    separator: str | None = None
    guessed: bool = False
    places: Sequence[str] = ()


@dataclass(frozen=True)
class ReportWords:
    """What a report calls the answers of a kind of task.

    Attributes:
        worst: the mistake that the list of mistakes starts with.
        true, predicted: what stands before the two labels, or numbers, of a mistake.
        size: what the size of a mistake is.
        size_format: how that is written, for the operator %.
        right: what every answer is where there is no mistake.
        reliability: what the points and bars of the reliability diagram are; empty: there is none.
    """

    worst: str
    true: str = "true"
    predicted: str = "predicted"
    size: str = "confidence"
    size_format: str = "%.4f"
    right: str = "answer is right"
    reliability: str = ""


@dataclass(frozen=True)
class TaskKind(ABC):
    """A kind of task with its labels or its scale.

    Arrays named ``targets`` or ``goal`` are what :meth:`encode` gives. Those named ``truth`` and ``values`` have the
    form of answers (:class:`Answers`), which :meth:`decode` gives. Logits are (rows, C), C being ``outputs``.

    Attributes:
        labels: labels of the task; ``None`` if its answers are numbers.
        kind: its name.
        has_order: whether the labels go from a lowest to a highest one.
        is_nominal: whether a row has exactly one label, and the labels have no order.
        gives_many: whether a row may have several labels.
        headlines: the metrics that a task is judged by first.
        score_name: what the mean of :meth:`row_scores` is called.
        score_sign: -1 where ``score_name`` is an error and so the negative of the score; else 1.
        answer_key: where the JSON of a prediction has the answer.
        dtype: dtype of targets.
        training_options: names of the options that only some kinds have.
        drawings: names of the drawings that a report shows.
        words: that a report uses.
        can_abstain: whether a task may give no answer where it is not sure.
        can_grow: whether a label can be added to a task, or taken away.
        fewest_labels: the lowest number of labels that a task can have.
        undoes_smoothing: whether the effect of label smoothing on probabilities is known, so that it can be undone.
    """

    labels: LabelSet | None
    kind: ClassVar[Kind]
    has_order: ClassVar[bool] = False
    is_nominal: ClassVar[bool] = False
    gives_many: ClassVar[bool] = False
    headlines: ClassVar[tuple[str, ...]]
    score_name: ClassVar[str]
    score_sign: ClassVar[int] = -1
    answer_key: ClassVar[str]
    dtype: ClassVar[type[np.generic]]
    training_options: ClassVar[tuple[str, ...]]
    drawings: ClassVar[tuple[str, ...]]
    words: ClassVar[ReportWords]
    can_abstain: ClassVar[bool] = False
    can_grow: ClassVar[bool] = False
    fewest_labels: ClassVar[int] = 2
    undoes_smoothing: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the labels; none where the answers are numbers."""
        return () if self.labels is None else self.labels.names

    @property
    def outputs(self) -> int:
        """C, the number of a head's logits."""
        return len(self.names)

    @property
    def facts(self) -> dict[str, str]:
        """What a report says of the task, by name."""
        return {"labels": f"{len(self.names):,}"}

    @property
    @abstractmethod
    def answer_sentence(self) -> str:
        """The sentence of the model card that says what the task answers with."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``task.json``."""
        return {"kind": self.kind, "labels": list(self.names)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError, KeyError, TypeError, ValueError: the fields are wrong.
        """
        return cls(LabelSet(tuple(content["labels"])))

    @classmethod
    def fit(cls, labels: Labels, order: Sequence[str] | None) -> Self:
        """The kind with the labels that occur, sorted, or with their scale; arguments as of `kinds.fit_kind`."""
        return cls(LabelSet.from_labels(name for names in cls.label_names(labels) for name in names))

    def with_label(self, name: str) -> Self:
        """The kind with one label more, after the others; of kinds that can grow."""
        return self.from_json({**self.to_json(), "labels": [*self.names, name]})

    def without_label(self, label: int) -> Self:
        """The kind without the label of an id; of kinds that can grow."""
        return self.from_json({**self.to_json(), "labels": [*self.names[:label], *self.names[label + 1 :]]})

    @classmethod
    def check_option(cls, name: str) -> None:
        """Whether this kind has a training option that every kind with labels has.

        Raises:
            InputError: its rows have numbers.
        """
        if name not in cls.training_options:
            problem = f"{parameter(name)} is for tasks with labels, and these rows have numbers. "
            raise InputError(f"{problem}Leave out {argument(name)}.")

    # --- labels of rows -----------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_labels(cls, column: Column, reading: Reading) -> tuple[Labels, str | None]:
        """The labels in a column that `label_cells.open_cells` has opened, and the mark at which texts were split.

        Raises:
            DataError: a cell holds no label of this kind.
        """

    @classmethod
    def label_names(cls, labels: Labels) -> list[tuple[str, ...]]:
        """The names that each row's label holds; none where it is a number."""
        return [(str(label),) for label in labels]

    @classmethod
    @abstractmethod
    def strata(cls, labels: Labels) -> list[int]:
        """Return for each row the number of the stratum that it belongs to in a stratified choice of rows."""

    @classmethod
    @abstractmethod
    def training_problem(cls, labels: Labels) -> tuple[int, str] | None:
        """Why a head cannot be trained on these rows, with the position of a row that shows it; None: it can."""

    # --- targets ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, labels: Labels) -> np.ndarray:
        """Targets of the labels of rows.

        Raises:
            InputError: a label is unknown; the message names it and the ones closest to it.
        """

    def encode_names(self, names: Sequence[str]) -> np.ndarray:
        """Targets of rows that each have the one label of a name."""
        return self.encode(names)

    def decode(self, targets: np.ndarray) -> np.ndarray:
        """Return targets in the form of answers."""
        return targets

    def are_targets(self, values: np.ndarray) -> bool:
        """Whether an array that was read from a file has the form of targets; never of kinds without labels."""
        return False

    def widen_targets(self, targets: np.ndarray) -> np.ndarray:
        """Targets of the same rows for this kind, given for one that has only the first of its labels."""
        return targets

    def narrow_targets(self, targets: np.ndarray, label: int) -> np.ndarray:
        """Targets of the same rows for the kind :meth:`without_label`; of one label a row, none of them has it."""
        return targets

    def count_labels(self, targets: np.ndarray) -> np.ndarray:
        """(C,): the rows that have each label; empty where there are no labels."""
        return np.empty(0)

    def has_label(self, targets: np.ndarray, label: int) -> np.ndarray:
        """(rows,) bool: which targets, or answers, hold a label's id; only of kinds with labels."""
        raise NotImplementedError

    def are_right(self, truth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(rows,) bool: which rows have just their labels.

        The answers may be those of a kind with further labels: of several labels a row only the others are compared.
        """
        right: np.ndarray = values == truth
        return right

    # --- losses and scores --------------------------------------------------------------------------------------------

    def loss(
        self,
        name: str,
        targets: Tensor,
        *,
        margin: float = 0.0,
        smoothing: float = 0.0,
        weights: str | tuple[float, ...] | None = None,
        rare_rows: float = 0.0,
    ) -> Loss:
        """Return the loss that training minimises.

        ``focal`` weighs what is predicted well already less (Lin et al., arXiv 1708.02002). ``triplet`` wants a margin
        between right and wrong labels.

        Args:
            name: one of ``LOSSES``.
            targets: targets of all training rows; label weights are scaled by them.
            margin: margin of the triplet loss.
            smoothing: share of the target that cross-entropy spreads over all labels, where a row has one.
            weights: weights of the labels, as in `recipes.TrainingConfig`.
            rare_rows: k of :meth:`_rarity`; has an effect on kinds with one label a row.

        Raises:
            InputError: the loss is unknown, or the label weights do not fit.
        """
        if name not in LOSSES:
            raise InputError(must_be_one_of(parameter("loss"), name, LOSSES))
        loss = self._batch_loss(name, margin, smoothing, self._label_weights(weights, targets))
        # Weights say already what a rare label counts, and the triplet loss knows no probabilities.
        rarity = None if weights is not None or name == "triplet" else self._rarity(targets, rare_rows)
        return loss if rarity is None else lambda logits, goal: loss(logits + rarity.to(logits.device), goal)

    def _rarity(self, targets: Tensor, rare_rows: float) -> Tensor | None:
        """Return what is added to the logits (C,) while they learn, or None for nothing."""
        return None

    @abstractmethod
    def _batch_loss(self, name: str, margin: float, smoothing: float, weights: Tensor | None) -> Loss:
        """Return the loss that :meth:`loss` describes, with the weights (C,) of the labels."""

    def _label_weights(self, given: str | tuple[float, ...] | None, targets: Tensor) -> Tensor | None:
        """Return weights (C,) whose mean over the training rows is 1, or None for a loss without weights."""
        import torch

        if given is None:
            return None
        counts = torch.from_numpy(self.count_labels(targets.numpy()))
        if given == "balanced":
            return self._balanced_weights(counts, len(targets))
        if isinstance(given, str):
            choices = (None, "balanced", "a weight for each label")
            raise InputError(must_be_one_of(parameter("label_weights"), given, choices))
        if len(given) != len(counts) or not all(0 <= weight < math.inf for weight in given) or max(given) == 0:
            raise InputError(
                f"{parameter('label_weights')} must be {len(counts)} weights of at least 0, not all of them 0. "
                f"Got {given!r} instead."
            )
        weights = torch.tensor(given)
        total = (weights * counts).sum()
        if not total > 0:
            raise InputError(
                f"{parameter('label_weights')} must be above 0 for a label that a train row has. "
                f"Got {given!r}, and the labels above 0 have no row. Raise another's"
            )
        return weights * counts.sum() / total

    def row_weights(self, given: str | tuple[float, ...] | None, targets: np.ndarray) -> np.ndarray | None:
        """Return the weight (rows,) float64 of each row by its label, or None where all weigh alike.

        Raises:
            InputError: the label weights do not fit, or this kind has no one weight for a row.
        """
        if given is None:
            return None
        problem = f"with {argument('preset', 'light')}, {parameter('label_weights')} is for one label a row, and this "
        problem += f"task is {self.kind}. Leave it out, or use {argument('preset', 'default')}"
        raise InputError(problem)

    def _balanced_weights(self, counts: Tensor, rows: int) -> Tensor:
        """Return the weights (C,) of ``"balanced"``, from the number of training rows (C,) of each label and of all."""
        return rows / (self.outputs * counts.clamp_min(1))

    @abstractmethod
    def _cross_entropy(self, logits: Tensor, goal: Tensor, reduction: str) -> Tensor:
        """Return the unweighted cross-entropy, or half the squared error, in the precision of the logits.

        It is (N,) or (N, C), or a scalar where ``reduction`` is ``"mean"``.
        """

    def row_losses(self, logits: Tensor, goal: Tensor) -> Tensor:
        """Return each row's part of :meth:`mean_loss`, (N,) float64."""
        losses = self._cross_entropy(logits.double(), goal, "none")
        return losses.mean(1) if losses.ndim == 2 else losses

    def mean_loss(self, logits: Tensor, goal: Tensor) -> float:
        """The unweighted cross-entropy or half the squared error, in the precision of the logits."""
        return self._cross_entropy(logits, goal, "mean").item()

    @abstractmethod
    def constant_loss(self, targets: np.ndarray) -> float:
        """The lowest :meth:`mean_loss` that one answer for all rows has, of their targets."""

    @abstractmethod
    def row_scores(self, logits: Tensor, goal: Tensor) -> Tensor:
        """Return how good each row's answer is, (N,) float64; higher is better."""

    def shown_score(self, score: float) -> str:
        """A mean of :meth:`row_scores` as people read it: errors by their size, a zero without a minus sign."""
        return f"{self.score_sign * score + 0.0:.4f}"

    # --- answers ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def answers(
        self, logits: np.ndarray, thresholds: tuple[float, ...] | None = None, abstain_below: float | None = None
    ) -> Answers:
        """Answers of calibrated logits; the other arguments are those of `calibration.Calibration`."""

    def logits_of_linear(self, values: np.ndarray) -> np.ndarray:
        """Logits (rows, C) of what a linear model predicts: (rows, C), or positions (rows, 1) on a scale."""
        return values

    def margins(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return by how much labels' logits exceed the right answer's, (rows, C); only kinds with labels do so."""
        raise NotImplementedError

    def margin_loss(self, margins: np.ndarray) -> float:
        """The mean negative log-likelihood of :meth:`margins`."""
        raise NotImplementedError

    def fit_thresholds(self, probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, ...] | None:
        """The probability (C,) from which on each label is given; None where labels exclude each other."""
        return None

    def fit_abstaining(self, probabilities: np.ndarray, targets: np.ndarray, precision: float) -> float | None:
        """The probability below which no answer is given, so that answered rows are right often enough."""
        return None

    def named_answers(self, answers: Answers) -> list[Answer]:
        """Each row's answer as people read it: a name or None, names from the most probable on, or a number."""
        return list(self.answers_to_json(answers.values))

    def answers_to_json(self, values: np.ndarray) -> list[Any]:
        """Each row's answer: a label id, a list of them, or a number."""
        return list(values.tolist())

    def answers_from_json(self, content: Sequence[Any]) -> np.ndarray:
        """The inverse of :meth:`answers_to_json`."""
        return np.array(content)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def metrics(self, truth: np.ndarray, answers: Answers) -> dict[str, float]:
        """Return the metrics by name."""

    @abstractmethod
    def resampling_sums(self, truth: np.ndarray, values: np.ndarray) -> Sums:
        """Columns (rows, K) whose sums over the rows of a resample give metrics, and the function that does so."""

    def resampled_metrics(
        self, truth: np.ndarray, values: np.ndarray, *, resamples: int, seed: int
    ) -> dict[str, np.ndarray]:
        """Return the values (resamples,) of each metric that has an interval.

        The resamples depend on the number of rows and the seed only. So metrics of different predictions for the same
        rows can be subtracted from each other (paired bootstrap).
        """
        return resampled_sums(np.ones(len(truth), np.int64), self.resampling_sums(truth, values), resamples, seed)

    def intervals(self, truth: np.ndarray, values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Intervals:
        """The 95 % intervals of some metrics, see `kinds/metrics.py`."""
        return interval_ends(self.resampled_metrics(truth, values, resamples=resamples, seed=seed), len(truth))

    def label_counts(self, truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the rows that have a label, that were given it, and both, (C,) each; empty without labels."""
        return np.empty(0), np.empty(0), np.empty(0)

    def label_figures(self, truth: np.ndarray, values: np.ndarray) -> list[LabelFigures]:
        """Precision, recall and F1 of each label."""
        return figures_of_counts(*self.label_counts(truth, values))

    def confusions(self, truth: np.ndarray, values: np.ndarray, most: int = 5) -> list[Confusion]:
        """The most frequent confusions of two labels, the most frequent first."""
        return []

    @abstractmethod
    def mistakes(self, truth: np.ndarray, answers: Answers, most: int) -> list[Mistake]:
        """The worst mistakes, the worst first; rows without an answer are none."""

    @abstractmethod
    def token_effects(self, mistake: Mistake, effects: np.ndarray) -> np.ndarray:
        """Return what tokens do for and against a wrong answer, (T, 2), from their effects (T, C) on the logits."""

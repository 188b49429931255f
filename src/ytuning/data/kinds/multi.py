"""Tasks whose rows have any number of labels, none included."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.special

from ytuning.data.kinds.base import FOCUS, Answer, Answers, Labels, Loss, Mistake, Reading, ReportWords, TaskKind
from ytuning.data.kinds.metrics import (
    Sums,
    expected_calibration_error,
    macro_f1,
    ratio,
    resampled_macro_f1,
    threshold_sweep,
)
from ytuning.data.labels import LabelSet, label_name, quote
from ytuning.data.tables import LISTS, Column
from ytuning.errors import argument, quantity

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FLAGS", "HASH", "SEPARATORS", "UNKNOWN", "MultiLabel", "split_labels"]

# These marks may separate the labels of a row; the empty text stands for a mark that is not known.
SEPARATORS, UNKNOWN = ("|", ";", ","), ""
# doccano writes this mark between the labels of a row; in names such as "C#" it has no text after it.
HASH, BETWEEN_LABELS = "#", re.compile(r"(?<=\S)#(?=[^\s#])")
FLAGS = {"0": False, "false": False, "1": True, "true": True}
# The threshold that all labels share lies between these two.
SHARED_ENDS = (0.05, 0.95)
# With this number of rows, a label's own threshold and the shared one have the same weight.
OWN_ROWS = 10
# The odds at which a label is given fall with this power of its mean odds. It was chosen on rows of GoEmotions whose
# labels were cut to few rows (benchmarks/LOG.md).
RARITY = 0.5
# Thresholds are blended as logits, which 0 and 1 have none of.
EDGE = 1e-9


@dataclass(frozen=True)
class MultiLabel(TaskKind):
    """Each row has any number of labels: targets (rows, C) float32 are 0 or 1, and each logit has its own sigmoid."""

    labels: LabelSet
    kind = "multi"
    gives_many = True
    headlines = ("macro_f1", "micro_f1")
    score_name = "cross-entropy"
    answer_key = "labels"
    dtype = np.float32
    training_options = ("loss", "label_weights")
    drawings = ("reliability", "thresholds")
    words = ReportWords(
        worst="the wrong decision of the highest confidence",
        true="missed",
        predicted="wrongly given",
        reliability="Each point groups decisions (a row and a label) of similar probability and shows how often the "
        "row has the label. Points on the dashed line are perfectly calibrated. The bars show the number of decisions "
        "on a logarithmic scale.",
    )
    can_grow = True
    fewest_labels = 1

    @property
    def answer_sentence(self) -> str:
        """Names the labels."""
        names = ", ".join(f"`{name}`" for name in self.names)
        return f"It answers with any number of {len(self.names)} labels: {names}"

    @classmethod
    def read_labels(cls, column: Column, reading: Reading) -> tuple[Labels, str | None]:
        """Each cell is a list, or text that is split at a mark; each label counts once.

        Lists of 0 and 1, all of one length, say by place which labels a row has; ``reading.places`` names them.
        """
        separator = _choose_separator(column, set(reading.known), reading.separator)
        rows = [_parts(column, row, cell, separator) for row, cell in enumerate(column.cells, 1)]
        other = _row_without_flags(column, rows)
        if other is None:
            rows = _names_of_flags(column, rows, reading.places)
        elif reading.places:
            problem = (
                f"{argument('label_names')} is for lists of 0 and 1 of one length. Got {quote(column.cells[other])} "
            )
            raise column.error(other + 1, f"{problem}instead. Correct it or leave out {argument('label_names')}.")
        names = [dict.fromkeys(column.label(row, part) for part in parts) for row, parts in enumerate(rows, 1)]
        return [tuple(row) for row in names], separator

    @classmethod
    def label_names(cls, labels: Labels) -> list[tuple[str, ...]]:
        """Return the labels as they are."""
        return list(cast("Sequence[tuple[str, ...]]", labels))

    @classmethod
    def strata(cls, labels: Labels) -> list[int]:
        """The row's rarest label, or that it has none."""
        rows = cls.label_names(labels)
        counts = Counter(name for row in rows for name in row)
        rarest = [min(row, key=lambda name: (counts[name], name), default="") for row in rows]
        numbered = {name: number for number, name in enumerate(sorted(set(rarest)))}
        return [numbered[name] for name in rarest]

    @classmethod
    def training_problem(cls, labels: Labels) -> tuple[int, str] | None:
        """Report that no row has a label. A label that occurs once is no problem: it stays with the training rows."""
        if any(cls.label_names(labels)):
            return None
        return 0, f"none of the {len(labels)} rows has a label. Training needs at least one label."

    def encode(self, labels: Labels) -> np.ndarray:
        """Return targets (rows, C) float32, 0 or 1."""
        targets = np.zeros((len(labels), self.outputs), np.float32)
        for row, names in enumerate(self.label_names(labels)):
            targets[row, self.labels.encode(names)] = 1
        return targets

    def encode_names(self, names: Sequence[str]) -> np.ndarray:
        """Return targets (rows, C) float32, with a single 1 in each row."""
        return self.encode([(name,) for name in names])

    def decode(self, targets: np.ndarray) -> np.ndarray:
        """Return the labels of each row, (rows, C) bool."""
        there: np.ndarray = targets > 0
        return there

    def are_targets(self, values: np.ndarray) -> bool:
        """(rows, C) float32, 0 or 1."""
        fits = values.dtype == self.dtype and values.shape[1:] == (self.outputs,)
        return fits and bool(np.isin(values, (0, 1)).all())

    def widen_targets(self, targets: np.ndarray) -> np.ndarray:
        """No row has one of the further labels."""
        return np.pad(targets, ((0, 0), (0, self.outputs - targets.shape[1])))

    def narrow_targets(self, targets: np.ndarray, label: int) -> np.ndarray:
        """The label's column is gone."""
        return np.delete(targets, label, axis=1)

    def count_labels(self, targets: np.ndarray) -> np.ndarray:
        """(C,) float32."""
        counts: np.ndarray = targets.sum(0)
        return counts

    def has_label(self, targets: np.ndarray, label: int) -> np.ndarray:
        """Those with a 1 for the label."""
        return self.decode(targets[:, label])

    def are_right(self, truth: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Those of which each decision is right."""
        right: np.ndarray = (values[:, : truth.shape[1]] == truth).all(1)
        return right

    def _batch_loss(self, name: str, margin: float, smoothing: float, weights: Tensor | None) -> Loss:
        """The mean over rows and labels, each label against its own absence.

        The absence is the task row in the paper's terms. Label weights are only of the rows with the label, not of
        those without it.
        """
        import torch

        def loss(logits: Tensor, goal: Tensor) -> Tensor:
            # (B, C) and (B, C) -> (B, C)
            if name == "triplet":
                parts = (margin - (2 * goal - 1) * logits).clamp_min(0)
            else:
                parts = self._cross_entropy(logits, goal, "none")
            if name == "focal":
                # This is the probability of the true answer.
                right = logits.sigmoid() * (2 * goal - 1) + (1 - goal)
                parts = parts * (1 - right) ** FOCUS
            if weights is not None:
                parts = parts * torch.where(goal > 0, weights.to(goal.device), 1.0)
            return parts.mean()

        return loss

    def _balanced_weights(self, counts: Tensor, rows: int) -> Tensor:
        # Rare labels of many would weigh thousands against their absence: the root is the usual compromise.
        return super()._balanced_weights(counts, rows).clamp_min(1).sqrt()

    def _cross_entropy(self, logits: Tensor, goal: Tensor, reduction: str) -> Tensor:
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(logits, goal.to(logits.dtype), reduction=reduction)

    def constant_loss(self, targets: np.ndarray) -> float:
        """The mean over labels of the binary entropy of the share of rows that have the label."""
        shares = targets.mean(0, dtype=np.float64)
        return float((scipy.special.entr(shares) + scipy.special.entr(1 - shares)).mean())

    def row_scores(self, logits: Tensor, goal: Tensor) -> Tensor:
        """The negative sum of the labels' cross-entropies."""
        return -self._cross_entropy(logits.double(), goal, "none").sum(1)

    def answers(
        self, logits: np.ndarray, thresholds: tuple[float, ...] | None = None, abstain_below: float | None = None
    ) -> Answers:
        """Give each row the labels whose probability reaches its threshold, (rows, C) bool; 0.5 unless given."""
        probabilities = scipy.special.expit(logits.astype(np.float64))
        return Answers(probabilities >= (0.5 if thresholds is None else np.array(thresholds)), probabilities)

    def margins(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """How far the logit of the wrong one of a label's two answers is ahead of the right one's."""
        return np.where(targets > 0, -logits, logits)

    def margin_loss(self, margins: np.ndarray) -> float:
        """Return the mean over rows and labels."""
        return float(np.logaddexp(0, margins).mean())

    def fit_thresholds(self, probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """Fit each label's threshold between the one with its highest F1 and the shared one with the highest micro F1.

        The more rows have the label, the nearer it is to the label's own, which few rows tell little about. The shared
        one is lower for rare labels, whose probabilities rarely become high: of the labels' odds it takes away what
        they are below the most frequent label's in the mean, to the power of ``RARITY``. The mean probability says how
        rare a label is, also if no row has it.
        """
        truth = self.decode(targets)
        if not truth.any():
            return (0.5,) * self.outputs
        logits, mean = (_logit(values) for values in (probabilities, probabilities.mean(0)))
        # (C,): the most frequent label's is 0, others are below.
        rarity = RARITY * (mean - mean.max())
        common = scipy.special.expit(logits - rarity)
        shared = _logit(np.clip(_best_f1(common.ravel(), truth.ravel()), *SHARED_ENDS)) + rarity
        own = _logit(np.array([_best_f1(*columns) for columns in zip(probabilities.T, truth.T, strict=True)]))
        rows = truth.sum(0)
        weight = rows / (rows + OWN_ROWS)
        return tuple(scipy.special.expit(weight * own + (1 - weight) * shared).tolist())

    def named_answers(self, answers: Answers) -> list[Answer]:
        """Return lists of names, the most probable first."""
        order = np.argsort(-answers.probabilities, axis=1, kind="stable")
        given = np.take_along_axis(answers.values, order, axis=1)
        return [[self.names[label] for label in row[there]] for row, there in zip(order, given, strict=True)]

    def answers_to_json(self, values: np.ndarray) -> list[Any]:
        """Return lists of label ids."""
        return [np.flatnonzero(row).tolist() for row in values]

    def answers_from_json(self, content: Sequence[Any]) -> np.ndarray:
        """Return the labels of each row, (rows, C) bool."""
        given = np.zeros((len(content), self.outputs), bool)
        for row, ids in enumerate(content):
            given[row, ids] = True
        return given

    def metrics(self, truth: np.ndarray, answers: Answers) -> dict[str, float]:
        """Return ``accuracy``, ``macro_f1``, ``micro_f1`` and ``ece``.

        Accuracy is the share of rows whose labels are all right. Macro F1 is over the labels that occur in truth or
        prediction. The calibration error is of all decisions: the probability of a label, and whether it is there. F1
        is 0 where no label occurs.
        """
        true, given, right = self.label_counts(truth, answers.values)
        return {
            "accuracy": float(self.are_right(truth, answers.values).mean()),
            "macro_f1": macro_f1(true, given, right),
            "micro_f1": float(ratio(2 * right.sum(), true.sum() + given.sum())),
            "ece": expected_calibration_error(truth, answers.probabilities),
        }

    def resampling_sums(self, truth: np.ndarray, values: np.ndarray) -> Sums:
        """Return the sums for ``accuracy``, ``macro_f1`` and ``micro_f1``, as :meth:`metrics` defines them."""
        import scipy.sparse

        flags = [truth, values, truth & values, self.are_right(truth, values)[:, None]]
        columns = scipy.sparse.hstack(
            [scipy.sparse.csr_array(columns, dtype=np.float64) for columns in flags], format="csr"
        )

        def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
            # Each has the shape (r, C).
            true, given, right = np.split(sums[:, :-1], 3, axis=1)
            return {
                "accuracy": sums[:, -1] / len(truth),
                "macro_f1": resampled_macro_f1(true, given, right),
                "micro_f1": ratio(2 * right.sum(1), true.sum(1) + given.sum(1)),
            }

        return columns, statistics

    def label_counts(self, truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the labels' flags (C,): true ones, predicted ones, and both."""
        return truth.sum(0), values.sum(0), (truth & values).sum(0)

    def mistakes(self, truth: np.ndarray, answers: Answers, most: int) -> list[Mistake]:
        """Return the rows with a wrong decision that the task was surest of."""
        given, missed = answers.values & ~truth, truth & ~answers.values
        # A wrong label was as sure as its probability p, and a missed one as sure as 1 - p.
        over = np.where(given, answers.probabilities, -1.0)
        under = np.where(missed, 1 - answers.probabilities, -1.0)
        worst = np.maximum(over, under)
        sure = worst.max(1)
        order = [row for row in np.argsort(-sure, kind="stable")[:most].tolist() if sure[row] >= 0]
        return [
            Mistake(
                row,
                [self.names[label] for label in np.flatnonzero(missed[row])],
                [self.names[label] for label in np.flatnonzero(given[row])],
                float(sure[row]),
                int(over[row].argmax()) if given[row].any() else None,
                int(under[row].argmax()) if missed[row].any() else None,
                self.names[worst[row].argmax()],
            )
            for row in order
        ]

    def token_effects(self, mistake: Mistake, effects: np.ndarray) -> np.ndarray:
        """Return the effects on the logits of the two labels; 0 where there is no such label."""
        nothing = np.zeros(len(effects))
        columns = (mistake.towards, mistake.against)
        return np.stack([nothing if column is None else effects[:, column] for column in columns], 1)


def _choose_separator(column: Column, known: set[str], first: str | None) -> str | None:
    """The first mark that occurs in texts with several labels, or that under which most hold ``known`` labels only."""
    texts = [cell for cell in column.cells if isinstance(cell, str)]
    marks: list[str | None] = [mark for mark in SEPARATORS if any(mark in text for text in texts)]
    if any(BETWEEN_LABELS.search(text) for text in texts):
        marks.append(HASH)
    marks.append(None)
    if not known:
        return marks[0]
    if first != UNKNOWN:
        marks.sort(key=lambda mark: (mark != first, mark is not None))
    return max(
        marks, key=lambda mark: sum(known.issuperset(map(label_name, split_labels(text, mark))) for text in texts)
    )


def split_labels(text: str, separator: str | None) -> list[str]:
    """The parts of a text between marks, without white space around them; none is empty."""
    parts = [text] if separator is None else BETWEEN_LABELS.split(text) if separator == HASH else text.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _parts(column: Column, row: int, cell: object, separator: str | None) -> list[object]:
    """The labels that a cell holds, as they stand there."""
    if isinstance(cell, LISTS):
        return sorted(cell, key=str) if isinstance(cell, set | frozenset) else list(cell)
    if isinstance(cell, str):
        return list(split_labels(cell, separator))
    # A missing cell may be a mistake, so it is an error, as a missing name of a label is.
    if label_name(cell) is None:
        problem = "the labels are missing. If the row has no label, write an empty list or an empty text."
        raise column.error(row, problem)
    return [cell]


def _row_without_flags(column: Column, rows: Sequence[Sequence[object]]) -> int | None:
    """The first place of a row that is no list of 0 and 1 as long as the first, and no text of several such parts.

    None if all rows are such lists.
    """
    size = len(rows[0])
    for place, (cell, parts) in enumerate(zip(column.cells, rows, strict=True)):
        listed = isinstance(cell, list | tuple) or (isinstance(cell, str) and size > 1)
        if not (listed and size and len(parts) == size and all(label_name(part) in FLAGS for part in parts)):
            return place
    return None


def _names_of_flags(column: Column, rows: Sequence[Sequence[object]], places: Sequence[str]) -> list[list[object]]:
    """The names of the places at which each row has a 1."""
    size = len(rows[0])
    if len(places) != size:
        problem = (
            f"every row is a list of {quantity(size, 'value')}, each 0 or 1, which says by place what labels it has. "
        )
        problem += f"Name the labels in their order with {argument('label_names', 'A,B,...')}"
        given = f". Got {quantity(len(places), 'name')} instead." if places else ", or write their names in the lists."
        raise column.error(1, problem + given)
    return [[name for name, part in zip(places, parts, strict=True) if FLAGS[label_name(part) or ""]] for parts in rows]


def _logit(probabilities: np.ndarray) -> np.ndarray:
    """Logits of probabilities, finite also of 0 and 1."""
    logits: np.ndarray = scipy.special.logit(np.clip(probabilities, EDGE, 1 - EDGE))
    return logits


def _best_f1(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Threshold, of those between probabilities (N,), with the highest F1 for truth (N,) bool; 0.5 if that is empty."""
    if not truth.any():
        return 0.5
    thresholds, given, right = threshold_sweep(probabilities, truth)
    return float(thresholds[np.argmax(2 * right / (given + truth.sum()))])

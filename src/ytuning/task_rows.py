"""Data sets of one task, checked and put together: the rows that train, choose and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ytuning.data import Dataset, check_groups, check_labels_known, check_trainable, count_shared, labels_of
from ytuning.errors import DataError, InputError
from ytuning.head import HeadConfig, LabelTuningConfig
from ytuning.holdout import split_holdout
from ytuning.label_texts import LABEL_NAMES, DescribedLabels, LabelTexts, meaningful_names
from ytuning.targets import Names, Target, fit_target
from ytuning.tokens import TextInput

__all__ = ["MOST_HELD_OUT", "TaskRows", "default_label_texts", "target_of", "task_rows"]

MOST_HELD_OUT = 2000  # rows of a large train set; more would cost train rows and hardly measure better


@dataclass(frozen=True)
class TaskRows:
    """Labelled rows of all data sets, one after the other.

    Attributes:
        target: kind of the task and its labels, of the train rows.
        inputs: texts or pairs (N,).
        truth: target array (N, ...).
        train, validation, test: positions (rows,) int64 of each part.
        shared: rows of a part whose text is also one of another.
        label_texts: positions (rows,) int64 of the labels' own texts, which are rows of their labels; none unless
            :meth:`with_label_texts` has added them.
    """

    target: Target
    inputs: list[TextInput]
    truth: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    shared: dict[str, int]
    label_texts: np.ndarray

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each part."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    @property
    def median_of_labels(self) -> float:
        """Train rows of the label in the middle."""
        truth = self.truth[self.train]
        counts = truth.sum(0) if truth.ndim == 2 else np.bincount(truth, minlength=self.target.outputs)
        return float(np.median(counts))

    def with_label_texts(self, described: DescribedLabels | None) -> TaskRows:
        """The same rows and, after them, the labels' texts."""
        if described is None:
            return self
        assert isinstance(self.target, Names)
        one = self.target.kind != "multi"
        truth = self.target.encode(described.labels if one else [(name,) for name in described.labels])
        places = len(self.inputs) + np.arange(len(described.texts))
        inputs = [*self.inputs, *((text, None) for text in described.texts)]
        return replace(self, inputs=inputs, truth=np.concatenate((self.truth, truth)), label_texts=places)


def task_rows(
    train: Dataset,
    validation: Dataset | None,
    test: Dataset | None,
    *,
    seed: int,
    order: Sequence[str] | None = None,
) -> TaskRows:
    """Check the rows of a task and put them together; arguments as :func:`ytuning.pipeline.train_task` takes them.

    Raises:
        DataError: rows that cannot be trained on.
    """
    target = target_of(train, validation, test, order)
    parts = [part for part in (train, validation, test) if part is not None]
    inputs = [row for part in parts for row in part.inputs]
    truth = np.concatenate([target.encode(labels_of(part)) for part in parts])
    train_rows, held, test_rows, shared = _splits(train, validation, test, seed)
    return TaskRows(target, inputs, truth, train_rows, held, test_rows, shared, label_texts=np.arange(0))


def default_label_texts(config: HeadConfig, target: Target, *, pairs: bool) -> LabelTexts | None:
    """What a head learns of its labels unless told: label tuning their names in words, where these say something."""
    named = isinstance(config, LabelTuningConfig) and not pairs and meaningful_names(target)
    return LABEL_NAMES if named else None


def target_of(
    train: Dataset, validation: Dataset | None, test: Dataset | None, label_order: Sequence[str] | None = None
) -> Target:
    """The target of train rows, which can be trained on, chosen by and tested on all these rows.

    Raises:
        DataError: rows that cannot; the labels of an ordinal task have no order, or ``label_order`` is not theirs.
        InputError: train rows have groups although there are validation rows; a label order of another kind of task.
    """
    check_groups(grouped=train.groups is not None, validation=validation is not None)
    check_trainable(train, holdout=validation is None)
    if label_order is not None and train.kind != "ordinal":
        raise InputError(
            f"a label order is for tasks of kind 'ordinal', and this one is {train.kind!r}. "
            "Give --kind ordinal or leave out --label-order"
        )
    try:
        target = fit_target(train.kind, labels_of(train), label_order)
    except InputError as error:
        raise DataError(str(error), source=train.source) from error
    for role, part in (("validation", validation), ("test", test)):
        if part is not None:
            _check_same_form(train, part)
            check_labels_known(part, target, role)
    return target


def _splits(
    train: Dataset, validation: Dataset | None, test: Dataset | None, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Positions of train, validation and test rows in the three data sets one after the other, and texts they share."""
    after = len(train) + (0 if validation is None else len(validation))
    test_rows = np.arange(after, after + (0 if test is None else len(test)))
    if validation is None:
        train_rows, held_rows = split_holdout(train, seed, most=MOST_HELD_OUT)
        shared = {"validation": 0}
    else:
        train_rows, held_rows = np.arange(len(train)), np.arange(len(train), after)
        shared = {"validation": count_shared(train, validation)}
    if test is not None:
        shared["test"] = count_shared(train, test)
        if validation is not None:
            shared["test_and_validation"] = count_shared(validation, test)
    return train_rows, held_rows, test_rows, shared


def _check_same_form(train: Dataset, other: Dataset) -> None:
    if (train.text_pairs is None) != (other.text_pairs is None):
        paired, single = (train, other) if train.text_pairs is not None else (other, train)
        raise DataError(
            f"the rows are single texts, but those of {paired.source} are pairs. Use the same columns in both",
            source=single.source,
        )

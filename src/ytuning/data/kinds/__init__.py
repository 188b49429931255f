"""The kinds of task, a class each: targets, losses, answers, metrics, intervals and mistakes.

| kind | labels of a row | targets | a head's outputs |
| --- | --- | --- | --- |
| ``single`` | one name | (rows,) int64, the label's id | C logits, softmax |
| ``ordinal`` | one name, of labels that have an order | the same | the same |
| ``multi`` | any number of names, none included | (rows, C) float32, 0 or 1 | C logits, a sigmoid each |
| ``regression`` | a number | (rows,) float32, on a scale of the train rows | 2 anchors, their logits' difference |

Another kind is a file with a class, its name in `labels.Kind`, and a line in ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ytuning.data.kinds.base import (
    LOSSES,
    Answer,
    Answers,
    Confusion,
    Labels,
    Loss,
    Mistake,
    Reading,
    ReportWords,
    TaskKind,
)
from ytuning.data.kinds.multi import MultiLabel
from ytuning.data.kinds.ordinal import Ordinal
from ytuning.data.kinds.regression import Regression
from ytuning.data.kinds.single import SingleLabel
from ytuning.data.labels import Kind, quote

__all__ = [
    "KINDS",
    "LOSSES",
    "Answer",
    "Answers",
    "Confusion",
    "Labels",
    "Loss",
    "Mistake",
    "MultiLabel",
    "Ordinal",
    "Reading",
    "Regression",
    "ReportWords",
    "SingleLabel",
    "TaskKind",
    "fit_kind",
    "kind_from_json",
]

KINDS: dict[Kind, type[TaskKind]] = {
    "single": SingleLabel,
    "ordinal": Ordinal,
    "multi": MultiLabel,
    "regression": Regression,
}


def fit_kind(kind: Kind, labels: Labels, order: Sequence[str] | None = None) -> TaskKind:
    """The kind of task with the labels or the scale of train rows.

    Args:
        kind: its name.
        labels: labels of the training rows, as `dataset.Dataset` holds them.
        order: an ordinal task's label names, from the lowest; ``None`` takes the order of their numbers.

    Raises:
        InputError: the labels of an ordinal task have no order, or ``order`` is not theirs; numbers that are all equal.
    """
    return KINDS[kind].fit(labels, order)


def kind_from_json(content: dict[str, Any]) -> TaskKind:
    """The inverse of ``to_json``.

    Raises:
        InputError, KeyError, TypeError, ValueError: the fields are wrong.
    """
    if content["kind"] not in KINDS:
        raise ValueError(f"unknown kind {quote(content['kind'])}")
    return KINDS[content["kind"]].from_json(content)

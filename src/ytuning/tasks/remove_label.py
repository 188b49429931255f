"""Remove a label from a trained task. A light task is fitted again without it, any other loses the label's row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ytuning.data.kinds import TaskKind
from ytuning.data.labels import did_you_mean, label_name, list_names, quote
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError, argument, quantity
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LightHead, MatchingHead
from ytuning.tasks.add_label import decide, share_right
from ytuning.tasks.light_labels import LightRows, shrunk_light_task
from ytuning.tasks.task import Exemplars, Task

__all__ = ["RemovedLabel", "check_can_shrink", "shrink_task"]


@dataclass(frozen=True)
class RemovedLabel:
    """A task without a label, and the effect on the others.

    Attributes:
        task: the task without the label.
        before: share of the kept texts of the other labels that the old task labels correctly.
        after: the same share with the new task.
    """

    task: Task
    before: float
    after: float


def check_can_shrink(task: Task, name: str) -> int:
    """The id of the label that a task can lose.

    Raises:
        InputError: its kind or form has no rows to take away, it lacks the label, or too few would stay.
    """
    target = task.target
    if not target.can_grow:
        raise InputError(f"a label is removed from tasks of kind single or multi, and {task.name!r} is {task.kind}")
    if not isinstance(task.head, MatchingHead | LightHead):
        problem = f"the task {task.name!r} was trained with the paper preset, whose label rows attend to each other. "
        raise InputError(f"{problem}Train it again without the label, or with {argument('preset', 'default')}")
    if name not in target.names:
        problem = f"the task {task.name!r} has no label {quote(name)}.{did_you_mean(name, target.names)}"
        raise InputError(f"{problem} Its labels are {list_names(target.names)}")
    if len(target.names) <= target.fewest_labels:
        raise InputError(
            f"the task {task.name!r} has {quantity(len(target.names), 'label')}, and a task of kind {task.kind} needs "
            f"at least {target.fewest_labels}. Train another task"
        )
    return target.names.index(name)


def shrink_task(task: Task, name: str, encoder: Encoder, store: FeatureStore) -> RemovedLabel:
    """Remove a label from a trained task.

    Args:
        task: the task.
        name: name of the label.
        encoder: encoder of the task.
        store: has the texts that a light task was fitted on; other tasks do not need it.

    Raises:
        InputError: as :func:`check_can_shrink`.
        StoreError: the store no longer has those texts.
    """
    # The name has the form of those in data files.
    name = label_name(name) or ""
    label = check_can_shrink(task, name)
    columns = None if task.columns is None else task.columns.without_label(name)
    training = {**task.training, "removed": [*task.training.get("removed", []), name]}
    if isinstance(task.head, LightHead):
        smaller, truth, before, after = shrunk_light_task(LightRows(task, encoder, store), label)
        training["light"] = smaller.training["light"]
    else:
        assert isinstance(task.head, MatchingHead)
        smaller = replace(
            task,
            target=task.target.without_label(label),
            head=task.head.without_label(label),
            calibration=task.calibration.without_label(label),
            # A light head beside it still has the label, and no rows tell how often both would agree now.
            cascade=None,
            scope=None if task.scope is None else task.scope.without_label(),
        )
        smaller, truth, before, after = _with_other_exemplars(task, smaller, label)
    return RemovedLabel(
        replace(smaller, columns=columns, training=training),
        share_right(task.target.without_label(label), truth, _without(task.target, before, label)),
        share_right(smaller.target, truth, after),
    )


def _with_other_exemplars(task: Task, smaller: Task, label: int) -> tuple[Task, np.ndarray, np.ndarray, np.ndarray]:
    """The smaller task with the exemplars of other labels, their targets, and the answers before and after."""
    target, kept = task.target, task.exemplars
    if kept is None:
        empty = np.empty(0, np.int64)
        return smaller, empty, empty, empty
    targets = kept.targets.numpy()
    stay = np.ones(len(targets), bool) if target.gives_many else ~target.has_label(targets, label)
    narrow = target.narrow_targets(targets[stay], label)
    vectors = kept.vectors[torch.from_numpy(stay)]
    before, after = (
        decide(one.target, one.calibration, head, vectors.float())
        for one in (task, smaller)
        if isinstance(head := one.head, MatchingHead)
    )
    return replace(smaller, exemplars=Exemplars(vectors, torch.from_numpy(narrow))), narrow, before, after


def _without(target: TaskKind, values: np.ndarray, label: int) -> np.ndarray:
    """Answers in terms of the labels that stay; an answer with the label that is gone is none of them."""
    if target.gives_many:
        return target.narrow_targets(values, label)
    gone = values == label
    values = target.narrow_targets(values, label)
    values[gone] = -1
    return values

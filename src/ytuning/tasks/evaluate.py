"""A trained task and more rows: its report on them, and a label more."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ytuning.data.dataset import Dataset, check_labels_known, labels_of
from ytuning.encoder.encoder import Encoder
from ytuning.errors import DataError
from ytuning.evaluation.evaluate import EvaluatedRows, Report, evaluate
from ytuning.features.features import CacheUse, Features, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import MatchingHead
from ytuning.progress import Progress
from ytuning.tasks.add_label import AddedLabel, add_label, check_can_grow
from ytuning.tasks.task import Task
from ytuning.training.fit import logits_of
from ytuning.training.joint import label_space

__all__ = ["TaskEvaluation", "evaluate_task", "grow_task"]


@dataclass(frozen=True)
class TaskEvaluation:
    """What a task's evaluation gives.

    Attributes:
        report: on the rows.
        judged: what it is about.
        cache: use of the feature store.
        truncated: rows whose text was cut.
    """

    report: Report
    judged: EvaluatedRows
    cache: CacheUse
    truncated: int


def evaluate_task(
    task: Task, dataset: Dataset, encoder: Encoder, store: FeatureStore, *, progress: Progress | None = None
) -> TaskEvaluation:
    """A task's report on labelled rows, through the store.

    The features are those of the codec that the task was trained in.

    Raises:
        DataError: rows that do not fit the task.
    """
    _check_pairs(task, dataset)
    check_labels_known(dataset, task.target, "evaluation")
    features, cache = _features(task, dataset, encoder, store, progress)
    judged = EvaluatedRows(dataset, task.target.encode(labels_of(dataset)), logits_of(task.head, features), task.head)
    report = evaluate(task.target, task.calibration, judged.truth, judged.logits)
    return TaskEvaluation(report, judged, cache, int(features.truncated_rows.sum()))


def grow_task(
    task: Task,
    name: str,
    examples: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    *,
    progress: Progress | None = None,
) -> AddedLabel:
    """Give a trained task a label more, see `tasks/add_label.py`.

    Raises:
        InputError: the task cannot grow, or has a label of this name.
        DataError: examples that do not fit the task.
    """
    name = name.strip()  # as the labels of rows are
    check_can_grow(task, name)
    _check_pairs(task, examples)
    assert isinstance(task.head, MatchingHead)
    features, _ = _features(task, examples, encoder, store, progress)
    return add_label(task, name, label_space(task.head, features, torch.arange(len(features))))


def _features(
    task: Task, dataset: Dataset, encoder: Encoder, store: FeatureStore, progress: Progress | None
) -> tuple[Features, CacheUse]:
    """Features of rows, read as the task reads them."""
    return stored_inputs(
        dataset.inputs,
        encoder,
        store,
        progress or Progress(),
        states=task.states,
        pair_mode=task.pair_mode,
        codec=task.codec,
    )


def _check_pairs(task: Task, dataset: Dataset) -> None:
    if bool(task.pair_mode) != (dataset.text_pairs is not None):
        wanted = (
            "pairs of texts: give a second text column"
            if task.pair_mode
            else "single texts: give rows without a second text"
        )
        raise DataError(f"the task {task.name!r} was trained on {wanted}", source=dataset.source)

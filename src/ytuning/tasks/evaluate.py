"""A trained task and more rows: their features as its head reads them, and its report on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.splits import check_labels_known
from ytuning.encoder.encoder import Encoder
from ytuning.errors import DataError
from ytuning.evaluation.evaluate import EvaluatedRows, Report, evaluate
from ytuning.features.features import CacheUse, Features, stored_inputs
from ytuning.features.pools import stored_pools
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.tasks.cascade import DEFAULT_SHARE, CascadeUse, check_share
from ytuning.tasks.task import Task
from ytuning.training.fit import logits_of
from ytuning.training.scope import ScopeTexts, share_out_of_scope

__all__ = ["TaskEvaluation", "evaluate_task", "task_features"]


@dataclass(frozen=True)
class TaskEvaluation:
    """The result of a task's evaluation.

    Attributes:
        report: report on the rows.
        judged: rows that the report is about.
        cache: use of the feature store.
        truncated: rows whose text was cut.
        cascade: what a cascade does with the rows; None where the task has one head.
        out_of_scope: share of the rows that the task says are out of its scope; None without a threshold.
    """

    report: Report
    judged: EvaluatedRows
    cache: CacheUse
    truncated: int
    cascade: CascadeUse | None = None
    out_of_scope: float | None = None


def evaluate_task(
    task: Task,
    dataset: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    *,
    cascade: float = DEFAULT_SHARE,
    progress: Progress | None = None,
) -> TaskEvaluation:
    """Report on a task's labelled rows, whose features are read from the store or added to it.

    Features have the codec that the task was trained with. The report is about the default head, if there are two.

    Args:
        task: the task.
        dataset: labelled rows.
        encoder: encoder of the task.
        store: where features are kept.
        cascade: share of the answers that a cascade may change, if the task has two heads.
        progress: is told every step.

    Raises:
        InputError: ``cascade`` is not a share above 0 and at most 0.5.
        DataError: the rows do not fit the task.
        StoreError: the feature store cannot be read or written.
    """
    check_share(cascade)
    check_labels_known(dataset, task.target, "evaluation")
    features, cache = task_features(task, dataset, encoder, store, progress=progress)
    judged = EvaluatedRows(dataset, task.target.encode(labels_of(dataset)), logits_of(task.head, features), task.head)
    report = evaluate(task.target, task.calibration, judged.truth, judged.logits)
    use: CascadeUse | None = None
    if task.cascade is not None:
        light = task.cascade
        pools, _ = stored_pools(
            dataset.inputs,
            encoder,
            store,
            progress or Progress(),
            states=light.states,
            pair_mode=task.pair_mode,
            codec=task.codec.name,
        )
        given = task.calibration.answers(task.target, judged.logits)
        use = light.measure(task.target, given, logits_of(light.head, pools), cascade)
    texts, rows = ScopeTexts(features, len(task.states)), np.arange(len(features))
    out_of_scope = share_out_of_scope(task.scope, texts, rows, judged.logits)
    return TaskEvaluation(report, judged, cache, int(features.truncated_rows.sum()), use, out_of_scope)


def task_features(
    task: Task, dataset: Dataset, encoder: Encoder, store: FeatureStore, *, progress: Progress | None = None
) -> tuple[Features, CacheUse]:
    """Features of rows from the store, in the hidden states and the codec that the task's head was trained with.

    Raises:
        DataError: the rows are single texts and the task is for pairs, or the other way round.
        StoreError: the feature store cannot be read or written.
    """
    if problem := task.form_problem(pairs=dataset.has_pairs):
        raise DataError(problem, source=dataset.source)
    inputs, progress, mode = dataset.inputs, progress or Progress(), task.pair_mode
    return stored_inputs(inputs, encoder, store, progress, states=task.states, pair_mode=mode, codec=task.codec)

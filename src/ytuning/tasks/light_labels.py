"""Add a label to a light task, or take one away, exactly: its rows are fitted again from the stored pools.

The store keeps which texts a light task was fitted on (`features/pools.py`). So the closed form is computed on the rows
that a training would have, at the strength that validation has chosen before. It takes a moment and reads no old text.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ytuning.data.dataset import Dataset
from ytuning.data.kinds import TaskKind
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError, StoreError
from ytuning.features.features import Features
from ytuning.features.pools import RowSet, keep_rows, kept_rows, stored_pools
from ytuning.features.store import FeatureStore
from ytuning.heads.light import LightHead
from ytuning.heads.pooled import LabelHead
from ytuning.heads.scope import ScopeModel
from ytuning.progress import Progress
from ytuning.tasks.task import Task
from ytuning.training.calibration import Calibration
from ytuning.training.fit import logits_of
from ytuning.training.light import LightFit, LightJob, fit_light
from ytuning.training.scope import ScopeTexts, fit_scope

__all__ = ["LightRows", "grown_light_task", "row_record", "scope_of_fit", "shrunk_light_task", "some_logits"]


class LightRows:
    """The rows that a light task was fitted on, and their stored pools.

    Raises:
        InputError: the task does not say which rows these are.
        StoreError: the store no longer has them.
    """

    def __init__(self, task: Task, encoder: Encoder, store: FeatureStore) -> None:
        self.task, self.encoder, self.store = task, encoder, store
        record = task.training.get("light", {})
        name = record.get("rows") if isinstance(record, dict) else None
        if not isinstance(name, str):
            raise InputError(
                f"task.json of the task {task.name!r} does not say which rows it was trained on. Copy the folder again "
                "or train it again with all labels"
            )
        self.strength = float(record["strength"])
        rows = kept_rows(name, encoder, store, states=task.states, codec=task.codec.name)
        if rows is None:
            raise self.lost()
        self.rows = rows

    def lost(self) -> StoreError:
        """That the store lacks what is needed."""
        return StoreError(
            f"the feature store {self.store.name} no longer has the texts that the task {self.task.name!r} was trained "
            "on. Train it again with all labels"
        )

    def fit(self, target: TaskKind, rows: RowSet) -> tuple[LightFit, Features]:
        """Fit the task's head on rows with the targets of a kind; returns the features of these rows, too."""
        task = self.task
        features = rows.features(self.encoder, self.store, states=task.states, codec=task.codec.name)
        if features is None:
            raise self.lost()
        job = LightJob(target, rows.targets, np.flatnonzero(rows.held), self.strength)
        weights = target.row_weights(_label_weights(task), rows.targets)
        (fitted,) = fit_light(
            features,
            [job],
            rows=np.arange(len(rows.held)),
            row_weights=weights,
            refit=bool(task.training.get("refitted")),
        )
        return fitted, features

    def changed(
        self, target: TaskKind, calibration: Calibration, fitted: LightFit, rows: RowSet, features: Features
    ) -> Task:
        """The task with other labels, a head that was fitted on rows with these features, and a record of them."""
        task = self.task
        scope = None
        if task.scope is not None:
            train = np.flatnonzero(~rows.held)
            scope = scope_of_fit(fitted, target, rows, features, calibration.temperature, task, train=train)
        record = row_record(rows, self.strength, self.encoder, self.store, states=task.states, codec=task.codec.name)
        return replace(
            task,
            target=target,
            calibration=calibration,
            head=fitted.head,
            scope=scope,
            training={**task.training, "light": record},
        )


def scope_of_fit(
    fitted: LightFit,
    target: TaskKind,
    rows: RowSet,
    features: Features,
    temperature: float,
    task: Task,
    *,
    train: np.ndarray,
) -> ScopeModel | None:
    """The scope of a light head that was fitted on rows with these features.

    Args:
        fitted: the fit.
        target: kind of the task.
        rows: its rows.
        features: their pools.
        temperature: of the head's calibration.
        task: has the scope that this one takes the place of.
        train: positions of the rows that are in scope.
    """
    held = np.flatnonzero(rows.held)
    return fit_scope(
        ScopeTexts(features, len(task.states)),
        target,
        rows.targets,
        train=train,
        validation=held,
        head=fitted.chosen_head,
        validation_logits=some_logits(fitted.chosen_head, features, torch.from_numpy(held)),
        temperature=temperature,
        share=None if task.scope is None else task.scope.share,
    )


def row_record(
    rows: RowSet, strength: float, encoder: Encoder, store: FeatureStore, *, states: tuple[int, ...], codec: str
) -> dict[str, str | float]:
    """What the task's JSON says of a light head: the strength, and the name of the rows that the store keeps."""
    return {"rows": keep_rows(rows, encoder, store, states=states, codec=codec), "strength": strength}


def some_logits(head: LabelHead, features: Features, rows: torch.Tensor) -> np.ndarray:
    """Logits (N, C) float32 of rows (N,), of which there may be none."""
    return logits_of(head, features, rows if len(rows) else torch.arange(1))[: len(rows)]


def _label_weights(task: Task) -> str | None:
    """The label weights that the task was trained with; those of single labels do not fit other labels."""
    given = task.training.get("label_weights")
    if given is None or given == "balanced":
        return given
    raise InputError(
        f"the task {task.name!r} was trained with a weight for each of its labels, so it is not known what "
        "others weigh. Train it again with all labels"
    )


def grown_light_task(
    light: LightRows, name: str, examples: Dataset, threshold: float, progress: Progress
) -> tuple[Task, Features, RowSet]:
    """The task with one more label, of which all ``examples`` are training rows.

    Returns:
        The task, the features of all rows, and the rows, of which the last ones are the examples.
    """
    task = light.task
    bigger = task.target.with_label(name)
    stored_pools(
        examples.inputs,
        light.encoder,
        light.store,
        progress,
        states=task.states,
        pair_mode=task.pair_mode,
        codec=task.codec.name,
    )
    count = len(examples.inputs)
    new = RowSet.of_inputs(examples.inputs, task.pair_mode, bigger.encode_names([name] * count), np.zeros(count, bool))
    old = replace(light.rows, targets=bigger.widen_targets(light.rows.targets))
    rows = old.with_rows(new)
    fitted, features = light.fit(bigger, rows)
    thresholds = task.calibration.thresholds
    calibration = replace(task.calibration, thresholds=None if thresholds is None else (*thresholds, threshold))
    return light.changed(bigger, calibration, fitted, rows, features), features, rows


def shrunk_light_task(light: LightRows, label: int) -> tuple[Task, np.ndarray, np.ndarray, np.ndarray]:
    """The task without one of its labels, given by its id: rows that have only this label no longer count.

    Returns:
        The task, and of the held rows that stay the targets, the answers before and those after.
    """
    task, target = light.task, light.task.target
    smaller = target.without_label(label)
    stay = light.rows if target.gives_many else light.rows.select(~target.has_label(light.rows.targets, label))
    rows = replace(stay, targets=target.narrow_targets(stay.targets, label))
    fitted, features = light.fit(smaller, rows)
    calibration = task.calibration.without_label(label)
    held = torch.from_numpy(np.flatnonzero(rows.held))
    assert isinstance(task.head, LightHead)
    before, after = (
        one.answers(kind, some_logits(head, features, held)).values
        for one, kind, head in ((task.calibration, target, task.head), (calibration, smaller, fitted.head))
    )
    return light.changed(smaller, calibration, fitted, rows, features), rows.targets[rows.held], before, after

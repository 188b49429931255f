"""Tasks with two heads, for tests that want a certain part of the texts answered by the light one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np

from ytuning.data.dataset import Dataset, TextInput
from ytuning.encoder.encoder import Encoder
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledConfig
from ytuning.tasks.cascade import CascadeCurve, confidence_of
from ytuning.tasks.shared_encoder import share_encoders
from ytuning.tasks.task import Task
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.training import members
from ytuning.training.recipes import Recipe, TrainingConfig, preset

# It learns so little that without a light member it often disagrees with the light head.
DEFAULT = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=20, most_steps=20, label_steps=0))


def two_trainings(
    rows: Dataset, encoder: Encoder, store: FeatureStore, options: TrainOptions
) -> tuple[Trained, Trained]:
    """Trainings of a default and of a light head on every second row; the others are validation rows."""
    train, held = rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2))
    with patch.object(members, "MOST_NUMBERS", 0):
        default = train_task(train, encoder, store, DEFAULT, validation=held, options=options)
    return default, train_task(train, encoder, store, preset("light"), validation=held, options=options)


def answering_from(task: Task, threshold: float) -> Task:
    """The task as if validation had allowed its light head to answer from a confidence on at a share of 0.01."""
    assert task.cascade is not None
    return replace(task, cascade=replace(task.cascade, curve=CascadeCurve(1000, (threshold,), (500,), (0,))))


def logits_of(task: Task, inputs: Sequence[TextInput]) -> np.ndarray:
    """Live logits of a task's only head."""
    (shared,) = share_encoders([task])
    return shared.logits(shared.read(inputs, [task], pair_mode=task.pair_mode), [task])[0]


def surest_half(light: Task, inputs: Sequence[TextInput]) -> tuple[np.ndarray, float]:
    """Which inputs a light head is surer of than of the others, (inputs,) bool, and the confidence between them."""
    confidence = confidence_of(
        light.target, light.calibration, light.calibration.answers(light.target, logits_of(light, inputs))
    )
    below, above = np.sort(confidence)[[len(inputs) // 2 - 1, len(inputs) // 2]]
    middle = float(below + above) / 2
    return confidence >= middle, middle

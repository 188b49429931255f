"""Trials of a search: heads that are trained on stored features, here or in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ytuning.batch.stored_encoder import StoredEncoder
from ytuning.data.splits import TaskRows
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.pretrained import States
from ytuning.features.features import Features, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress
from ytuning.search.log import Trial
from ytuning.search.space import Choices, Space
from ytuning.system.machine import versions
from ytuning.training.calibration import calibrated_losses
from ytuning.training.fit import FitResult, HeadJob, fit_heads
from ytuning.training.recipes import Recipe, default_label_texts

__all__ = ["SearchWork", "TrialRunner", "TrialUnit", "read_features"]


def read_features(
    rows: TaskRows,
    encoder: Encoder,
    store: FeatureStore,
    *,
    states: States,
    modes: Sequence[PairMode | None],
    progress: Progress,
) -> dict[PairMode | None, Features]:
    """Features of all rows in every state of a search, by how pairs are read; the encoder reads what is not stored."""
    return {
        mode: stored_inputs(rows.inputs, encoder, store, progress, states=states, pair_mode=mode)[0] for mode in modes
    }


@dataclass(frozen=True)
class TrialUnit:
    """Trials that are trained together, in one read of the features.

    Attributes:
        proposed: choices of each of them, which share their states and their form.
        first: number of the first one.
    """

    proposed: list[Choices]
    first: int


@dataclass(frozen=True)
class SearchWork:
    """What workers need for the trials of a search; see `pool.Work`.

    Attributes:
        space: space that proposals come from.
        states: numbers of the hidden states of the search, rising.
        rows: rows of the task.
        seed: seed of the weights and the order of rows.
        encoder: what is known of the encoder.
        store: has the features of all rows.
    """

    space: Space
    states: States
    rows: TaskRows
    seed: int
    encoder: StoredEncoder
    store: FeatureStore

    def start(self) -> _TrialWorker:
        """Find the features.

        Raises:
            InputError: the store, or some of them, are not there.
        """
        self.encoder.check()
        features = read_features(
            self.rows, self.encoder, self.store, states=self.states, modes=self.space.modes, progress=Progress()
        )
        device = self.encoder.device
        return _TrialWorker(TrialRunner(self.space, features, self.states, self.rows, self.seed, device, Progress()))


class _TrialWorker:
    """Trains trials; see `pool.Worker`."""

    def __init__(self, runner: TrialRunner) -> None:
        self._runner = runner
        self.about: dict[str, Any] = dict(versions())

    def __call__(self, unit: TrialUnit, tell: Callable[[int], None]) -> list[Trial]:
        """Train the trials of a unit."""
        return self._runner.train(unit.proposed, unit.first)


@dataclass(frozen=True)
class TrialRunner:
    """What all trials of a search share.

    Attributes:
        space: space that proposals come from.
        features: features of all rows in every state of the search, by how pairs are read.
        states: numbers of these hidden states, rising.
        rows: rows of the task.
        seed: seed of the weights and the order of rows.
        device: device that heads are trained on.
        progress: is told every step.
    """

    space: Space
    features: Mapping[PairMode | None, Features]
    states: States
    rows: TaskRows
    seed: int
    device: torch.device
    progress: Progress

    def train(self, proposed: list[Choices], first: int) -> list[Trial]:
        """Trials of proposals that share a read of the features, numbered from ``first``.

        Raises:
            KeyboardInterrupt: also where Ctrl-C ended the training early: heads that were trained for a part of their
                steps say little of their recipes.
        """
        recipes = [self.space.recipe(choices) for choices in proposed]
        mode, layers = self.space.mode(proposed[0]), recipes[0].layers or ()
        start = time.monotonic()
        fits = self._fit(recipes, mode, layers)
        if fits[0].interrupted:
            raise KeyboardInterrupt
        seconds = (time.monotonic() - start) / len(fits)
        trials = []
        for number, (choices, recipe, fit) in enumerate(zip(proposed, recipes, fits, strict=True), first):
            trials.append(
                Trial(
                    number=number,
                    choices=choices,
                    recipe=recipe,
                    pair_mode=mode,
                    loss=self._calibrated_loss(fit, recipe),
                    score=fit.validation.score,
                    error=fit.validation.error,
                    steps=fit.validation.step,
                    parameters=self.space.size(recipe.head, len(layers), mode),
                    seconds=seconds,
                )
            )
        return trials

    def _fit(self, recipes: list[Recipe], mode: PairMode | None, layers: tuple[int, ...]) -> list[FitResult]:
        """One head for each recipe, trained together; they share their preset, their states and how pairs are read."""
        rows, target = self.rows, self.rows.target
        # Heads of some presets learn nothing of the labels' texts, as in training.
        texts = rows.label_texts
        if default_label_texts(recipes[0].head, target, pairs=mode is not None) is None:
            texts = texts[:0]
        return fit_heads(
            self.features[mode].at_positions([self.states.index(layer) for layer in layers]),
            [HeadJob(target, rows.truth, recipe, self.seed, texts) for recipe in recipes],
            train=np.concatenate((rows.train, texts)),
            validation=rows.validation,
            seed=self.seed,
            refit=False,
            device=self.device,
            progress=self.progress,
        )

    def _calibrated_loss(self, fit: FitResult, recipe: Recipe) -> float:
        """The mean loss of the validation rows after calibration."""
        target, truth = self.rows.target, self.rows.truth[self.rows.validation]
        smoothing = recipe.training.smoothing_of(target)
        return float(calibrated_losses(target, fit.validation_logits, truth, smoothing=smoothing).mean())

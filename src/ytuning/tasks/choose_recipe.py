"""Train with several recipes and keep the cheapest that is no worse on validation rows: preset ``auto``.

Where that is no light head, the light head that was trained, too, stays beside it for a cascade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ytuning.data.dataset import Dataset
from ytuning.data.splits import check_same_form
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError, StoreError, argument
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LightConfig, LightHead
from ytuning.progress import Progress
from ytuning.tasks.add_cascade import add_cascade
from ytuning.tasks.distill import distill_light_head
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.tasks.train_many import FitTasks, train_tasks
from ytuning.training.fit import clearly_lower
from ytuning.training.recipes import AUTO_PRESET, Recipe

__all__ = ["choose_cheapest", "train_cheapest", "train_tasks_cheapest"]

# A dearer head is taken if its loss or its score on validation rows is better by more than this many standard errors of
# the difference. A default head has a light head as a member, so it is seldom better by chance, and a cascade asks it
# for few texts. With 1.0, CoLA, MRPC and RTE kept light heads that were 2 to 6 points behind on test rows.
BETTER = 0.0

Result = TypeVar("Result")


class _Once(Progress):
    """Says each message once, as every recipe reads the same rows."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._said = progress, set[str]()

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report it as it is."""
        self._progress.step(stage, done, total, note)

    def say(self, message: str) -> None:
        """Report it if it is new."""
        if message not in self._said:
            self._said.add(message)
            self._progress.say(message)


def train_cheapest(
    train: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    recipes: Mapping[str, Recipe],
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    options: TrainOptions | None = None,
    unlabelled: Dataset | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a task with each recipe and keep the cheapest head that is no worse on validation rows.

    Arguments are those of `train_task`, but that there are several recipes by name, the cheapest first. ``unlabelled``
    are rows without labels. A light head beside another head learns from its answers to them (`tasks/distill.py`).
    Ctrl-C in a later training keeps the best of those that are finished.

    Raises: as `train_task`.
    """
    said, options = _Once(progress or Progress()), options or TrainOptions()
    distill = _distiller(unlabelled, recipes, [train], encoder, store, options, said)

    def run(recipe: Recipe, options: TrainOptions) -> Trained:
        return train_task(
            train, encoder, store, recipe, validation=validation, test=test, options=options, progress=said
        )

    trained = _in_turn(recipes, run, _keeping_encoder(distill, options), lambda one: one.fit.interrupted)
    return choose_cheapest(trained, said, complete=len(trained) == len(recipes), distill=distill)


def train_tasks_cheapest(
    train: Mapping[str, Dataset],
    encoder: Encoder,
    store: FeatureStore,
    recipes: Mapping[str, Recipe],
    *,
    validation: Mapping[str, Dataset] | None = None,
    test: Mapping[str, Dataset] | None = None,
    options: TrainOptions | None = None,
    label_orders: Mapping[str, Sequence[str]] | None = None,
    unlabelled: Dataset | None = None,
    fit: FitTasks | None = None,
    progress: Progress | None = None,
) -> dict[str, Trained]:
    """Train several tasks with each recipe, and choose for each task as :func:`train_cheapest` does.

    Arguments are those of `train_tasks`, but that there are several recipes by name, the cheapest first, and
    ``unlabelled``, as for :func:`train_cheapest`.

    Raises: as `train_tasks`.
    """
    said, options = _Once(progress or Progress()), options or TrainOptions()
    distill = _distiller(unlabelled, recipes, train.values(), encoder, store, options, said)

    def run(recipe: Recipe, options: TrainOptions) -> dict[str, Trained]:
        return train_tasks(
            train,
            encoder,
            store,
            recipe,
            validation=validation,
            test=test,
            options=options,
            label_orders=label_orders,
            fit=fit,
            progress=said,
        )

    def was_interrupted(tasks: dict[str, Trained]) -> bool:
        return len(tasks) < len(train) or any(one.fit.interrupted for one in tasks.values())

    trained = _in_turn(recipes, run, _keeping_encoder(distill, options), was_interrupted)
    complete, chosen = len(trained) == len(recipes), dict[str, Trained]()
    for name in next(iter(trained.values())):
        of_task = {recipe: tasks[name] for recipe, tasks in trained.items()}
        chosen[name] = choose_cheapest(of_task, said, complete=complete, distill=distill)
        # Ctrl-C ends the work on all tasks.
        complete = complete and not chosen[name].fit.interrupted
    return chosen


Distill = Callable[[Trained, Trained], tuple[Trained, str]]
"""From the training of a default head and of a light one to that of a light one that has learned from the other."""


def _distiller(
    unlabelled: Dataset | None,
    recipes: Mapping[str, Recipe],
    train: Iterable[Dataset],
    encoder: Encoder,
    store: FeatureStore,
    options: TrainOptions,
    progress: Progress,
) -> Distill | None:
    """What rows without labels are for; None without such rows.

    Raises:
        DataError: they are pairs and the training rows are not, or the other way round.
        InputError: there are no two heads of which one can learn from the other.
    """
    if unlabelled is None:
        return None
    if len(recipes) < 2:
        raise InputError(
            f"{argument('unlabelled')} needs {argument('preset', AUTO_PRESET)}, which trains a head that says what "
            "these texts are, and one that learns it. Leave it out, or use that preset"
        )
    for rows in train:
        check_same_form(rows, unlabelled)
    return partial(
        distill_light_head,
        unlabelled=unlabelled.inputs,
        encoder=encoder,
        store=store,
        progress=progress,
        abstain_at=options.abstain_at,
    )


def _keeping_encoder(distill: Distill | None, options: TrainOptions) -> TrainOptions:
    """The options, with which the encoder is kept as long as there are texts to read."""
    return options if distill is None else replace(options, release_encoder=False)


def _in_turn(
    recipes: Mapping[str, Recipe],
    run: Callable[[Recipe, TrainOptions], Result],
    options: TrainOptions,
    was_interrupted: Callable[[Result], bool],
) -> dict[str, Result]:
    """What each recipe gives; Ctrl-C leaves out the one that it ends and those after it, but for the first."""
    results: dict[str, Result] = {}
    last = list(recipes)[-1]
    for name, recipe in recipes.items():
        # The encoder reads texts until the last recipe has its features.
        own = replace(options, release_encoder=options.release_encoder and name == last)
        if len(recipes) > 1 and isinstance(recipe.head, LightConfig):
            # Seeds and ensembles are for the heads that have a random start.
            own = replace(own, seeds=1, ensemble=False)
        try:
            result = run(recipe, own)
        except KeyboardInterrupt:
            if not results:
                raise
            return results
        if results and was_interrupted(result):
            return results
        results[name] = result
        if was_interrupted(result):
            return results
    return results


def choose_cheapest(
    trained: Mapping[str, Trained], progress: Progress, *, complete: bool, distill: Distill | None = None
) -> Trained:
    """The first training, unless a later one is better on 20 validation rows or more; says what was measured.

    Where Ctrl-C has left out recipes or ``distill``, the training that is taken counts as interrupted.
    """
    names = list(trained)
    chosen = names[0]
    if complete and len(names) == 1:
        return trained[chosen]
    measured = {name: _measure(one) for name, one in trained.items()}
    for name in names[1:]:
        pairs = zip(measured[name], measured[chosen], strict=True)
        if any(clearly_lower(ours, theirs, errors=BETTER) for ours, theirs in pairs):
            chosen = name
    target, one = trained[chosen].task.target, trained[chosen]
    figures = {
        name: {"loss": float(losses.mean()), "score": float(-errors.mean())}
        for name, (losses, errors) in measured.items()
    }
    said = ", ".join(
        f"{name} {own['loss']:.4f} ({target.score_name} {target.shown_score(own['score'])})"
        for name, own in figures.items()
    )
    progress.say(f"task {one.task.name!r}: preset {chosen} is kept. Calibrated validation loss and score: {said}")
    record: dict[str, Any] = {"preset": chosen, "tried": figures}
    lights = [other for other in trained.values() if isinstance(other.task.head, LightHead)]
    if lights and not isinstance(one.task.head, LightHead):
        light, complete = _distilled(one, lights[0], distill if complete else None, progress, complete=complete)
        one, sentence = add_cascade(one, light)
        progress.say(sentence)
        if "unlabelled" in light.task.training:
            record["unlabelled"] = light.task.training["unlabelled"]
            trained = {**trained, "unlabelled": light}
    elif distill is not None:
        progress.say(f"task {one.task.name!r}: the texts without labels are not used, because the light head is kept")
    seconds: dict[str, float] = {}
    for other in trained.values():
        for stage, more in other.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + more
    interrupted = one.fit.interrupted or not complete
    training = {**one.task.training, "auto": record, "interrupted": interrupted}
    return replace(
        one,
        task=replace(one.task, training=training),
        fit=replace(one.fit, interrupted=interrupted),
        # The first training has stored the texts that the store lacked.
        cache=trained[names[0]].cache,
        seconds=seconds,
    )


def _distilled(
    default: Trained, light: Trained, distill: Distill | None, progress: Progress, *, complete: bool
) -> tuple[Trained, bool]:
    """The light head that has learned from the other, if it can; and whether nothing was interrupted."""
    if distill is None:
        return light, complete
    try:
        light, sentence = distill(default, light)
    # Both heads are trained, and should not be lost for this.
    except KeyboardInterrupt:
        return light, False
    except (StoreError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        sentence = f"task {default.task.name!r}: the light head has not learned from texts without labels: {error}"
    progress.say(sentence)
    return light, complete


def _measure(trained: Trained) -> tuple[Tensor, Tensor]:
    """Each validation row's calibrated loss and its negative score, (rows,) float64 each."""
    rows, task = trained.judged["validation"], trained.task
    logits = torch.from_numpy(task.calibration.scale(rows.logits).astype(np.float32))
    goal = torch.from_numpy(np.asarray(rows.truth, task.target.dtype))
    return task.target.row_losses(logits, goal), -task.target.row_scores(logits, goal)

"""Search for a recipe: Optuna proposes, heads are trained on stored features, and validation rows choose.

    <folder>/search.json   what was searched and every trial so far; a search that was ended goes on from there
    <folder>/recipe.json   the winner's recipe, for `ytuning train --recipe`
    <folder>/task/         the winner, trained as `ytuning train` does

The hidden states that a search may read are chosen on a sample (`tasks/layers.py`) and stored once. Trials
are proposed a few at a time; those share their states and their form, so that one read of each batch serves all of
them. What is minimised is the validation loss as it is after calibration: other than the accuracy of few rows it
tells close recipes apart, and other than the plain loss it compares heads whose logits are of different size.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import Target
from ytuning.data.label_texts import describe_labels
from ytuning.data.splits import TaskRows, task_rows
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError, allowed
from ytuning.features.features import Features, keep_features
from ytuning.features.pairs import keep_pairs, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.search.log import RECIPE_FILE, TASK_FOLDER, Log, Trial, best_of
from ytuning.search.space import SHARED, Choices, Interval, Options, Space
from ytuning.system.versions import require, versions
from ytuning.tasks.layers import rank_layers
from ytuning.tasks.task import PAIR_MODES, PairMode, holds_finished_task, save_task
from ytuning.tasks.train import Stopwatch, Trained, pair_modes, train_task
from ytuning.training.calibration import calibrated
from ytuning.training.fit import FitResult, Job, fit_heads
from ytuning.training.losses import row_losses
from ytuning.training.recipes import PRESETS, Recipe, default_label_texts, preset, recipe_to_json

__all__ = ["Searched", "propose", "search"]

TOGETHER = 4  # trials proposed, and trained, at a time
AT_RANDOM = 8  # trials before Optuna's sampler follows those that did well
SETS = 3  # of hidden states: the default one and the best of a sample


@dataclass(frozen=True)
class Searched:
    """What a search gives.

    Attributes:
        trials: in order.
        trained: the winner, saved in the folder ``task`` unless it was interrupted and a finished one is there.
        interrupted: whether Ctrl-C ended the search or the winner's training.
    """

    trials: list[Trial]
    trained: Trained
    interrupted: bool

    @property
    def best(self) -> Trial:
        """The winner."""
        return best_of(self.trials)


def search(  # noqa: PLR0913  # every choice of the whole job
    train: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    folder: Path,
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    presets: Sequence[str] = tuple(PRESETS),
    pairs: PairMode | Literal["auto"] = "auto",
    order: Sequence[str] | None = None,
    trials: int = 30,
    minutes: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
) -> Searched:
    """Search for a recipe and train it; the same for the same rows, seed and versions, in one go or in several.

    Args:
        train: labelled rows; without ``validation`` a part is held out, as in training.
        encoder: reads the texts.
        store: where features are kept.
        folder: for the results; a search of the same rows and options in it goes on.
        validation: rows that choose.
        test: rows that the winner, once chosen, is reported on.
        presets: to start from; the first one's own recipe is the first trial.
        pairs: how the encoder reads two texts; ``"auto"`` is searched over.
        order: of an ordinal task's labels, from the lowest.
        trials: to make in all.
        minutes: after which no more are begun; of a new search the first batch is, even with 0.
        seed: of the hold-out, the proposals, weights and the order of rows.
        progress: is told every step; Ctrl-C ends the search, and the best so far, if there is one, is trained.
        watch: takes the seconds of each stage.

    Raises:
        MissingExtraError: Optuna is not installed.
        InputError: an option that is not allowed, or a folder that holds something else.
        DataError: rows that cannot be trained on.
        StoreError, WriteError: the disk is full or broken.
    """
    progress, watch = progress or Progress(), watch or Stopwatch()
    require("optuna", "search")
    if pairs not in ("auto", *PAIR_MODES):
        raise InputError(allowed("pairs", pairs, ("auto", *PAIR_MODES)))
    bases = {name: preset(name) for name in presets}
    rows = task_rows(train, validation, None, seed=seed, order=order)
    if test is not None:
        task_rows(train, validation, test, seed=seed, order=order)  # its mistakes should not wait for the end
    modes: tuple[PairMode | None, ...] = (None,)
    if train.text_pairs is not None:
        modes = pair_modes(pairs)  # the first is where the search starts
    for recipe in bases.values():
        if texts := default_label_texts(recipe.head, rows.target, pairs=train.text_pairs is not None):
            rows = rows.with_label_texts(describe_labels(texts, rows.target))
            break
    about = {
        "versions": versions("optuna"),
        "rows": _digest(train, validation),
        "encoder": encoder.identity.fingerprint,
        "presets": {name: recipe_to_json(recipe) for name, recipe in bases.items()},
        "pairs": list(modes),
        "order": None if order is None else list(order),
        "seed": seed,
    }
    log = Log(folder, about)
    with watch.stage("encode"):
        if not log.layers:
            learned = train.select(rows.train)
            log.layers = _layer_sets(learned, encoder, next(iter(bases.values())), modes, seed, rows.target, progress)
        states = sorted({layer for layers in log.layers for layer in layers})
        features = {
            mode: stored_inputs(rows.inputs, encoder, store, progress, states=states, separate=mode == "separate")[0]
            for mode in modes
        }
    space = Space(
        bases, log.layers, modes, rows.target.objective, rows.target.outputs,
        encoder.identity.width, encoder.identity.parameters,
    )  # fmt: skip
    with watch.stage("search"):
        done, interrupted = _run(space, features, states, rows, log, trials, minutes, seed, encoder.device, progress)
    best = best_of(done)
    with watch.stage("encode"):
        chosen = encoder.resolve_states(best.recipe.layers or states)
        keep = keep_pairs if best.pair == "separate" else keep_features
        view = features[best.pair].at_positions([states.index(state) for state in chosen])
        keep(rows.inputs, view, encoder, store, progress, states=chosen)
    trained = train_task(
        train,
        encoder,
        store,
        best.recipe,
        validation=validation,
        test=test,
        name=TASK_FOLDER,
        seed=seed,
        label_order=order,
        pairs=best.pair or "auto",
        progress=progress,
        watch=watch,
    )
    place = folder / TASK_FOLDER
    if trained.fit.interrupted and holds_finished_task(place):
        progress.say(f"the finished task in {place} is kept; the same command trains the best of these trials")
    else:
        save_task(trained.task, place)
        log.write_file(RECIPE_FILE, recipe_to_json(best.recipe))
    return Searched(done, trained, interrupted or trained.fit.interrupted)


def propose(space: Space, done: Sequence[Trial], count: int, seed: int) -> list[Choices]:
    """The next choices after the trials ``done``, which differ in what they do not share; the same for the same seed.

    The very first are the first preset's own, and each of the space's openings comes before the sampler is free. A
    study is made anew each time, so that what a search proposes depends on its trials alone and not on whether it was
    ended in between.
    """
    optuna = require("optuna", "search")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        number = int(np.random.SeedSequence([seed, len(done)]).generate_state(1)[0])
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=number, n_startup_trials=AT_RANDOM))
        for trial in done:
            known = space.parameters_of(trial.choices["preset"])
            distributions = {name: _distribution(known[name]) for name in trial.choices}
            study.add_trial(
                optuna.trial.create_trial(params=trial.choices, distributions=distributions, value=trial.loss)
            )
        untried = [each for each in space.openings if not any(each.items() <= trial.choices.items() for trial in done)]
        found: list[Choices] = []
        for _ in range(count):
            if found:
                study.enqueue_trial({name: value for name, value in found[0].items() if name in SHARED})
            elif not done:
                study.enqueue_trial(space.start)
            elif untried:
                study.enqueue_trial(untried[0])
            found.append(_suggested(space, study.ask()))
        return found
    finally:
        optuna.logging.set_verbosity(verbosity)


def _run(
    space: Space,
    features: dict[PairMode | None, Features],
    states: list[int],
    rows: TaskRows,
    log: Log,
    trials: int,
    minutes: float | None,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> tuple[list[Trial], bool]:
    """All trials, and whether Ctrl-C ended the search."""
    begun = time.monotonic()

    def train(proposed: list[Choices], first: int) -> list[Trial]:
        recipes = [space.recipe(choices) for choices in proposed]
        mode, layers = space.mode(proposed[0]), recipes[0].layers or ()
        view = features[mode].at_positions([states.index(layer) for layer in layers])
        start = time.monotonic()
        # Those that share a batch are of one preset. Others learn nothing of the labels' texts, as in training.
        texts = rows.label_texts
        if default_label_texts(recipes[0].head, rows.target, pairs=mode is not None) is None:
            texts = texts[:0]
        jobs = [Job(rows.truth, recipe, seed, rows.target.objective, rows.target.outputs, texts) for recipe in recipes]
        fits = fit_heads(
            view,
            jobs,
            train=np.concatenate((rows.train, texts)),
            validation=rows.validation,
            seed=seed,
            refit=False,
            device=device,
            progress=progress,
        )
        if fits[0].interrupted:  # heads that were trained for a part of their steps say little of their recipes
            raise KeyboardInterrupt
        seconds = (time.monotonic() - start) / len(fits)
        found = []
        for number, (choices, recipe, fit) in enumerate(zip(proposed, recipes, fits, strict=True), first):
            taken, size = fit.history[fit.chosen], space.size(recipe.head, len(layers), mode)
            loss = _calibrated_loss(rows, fit, recipe.training.smoothing_of(rows.target.objective))
            found.append(
                Trial(number, choices, recipe, mode, loss, taken.score, taken.error, taken.step, size, seconds)
            )
        return found

    while len(log.trials) < trials:
        if minutes is not None and log.trials and time.monotonic() - begun > 60 * minutes:
            break
        try:
            # A batch that an earlier call had no trials for the rest of is proposed again, and its rest is trained.
            done = len(log.trials)
            before = done - done % TOGETHER
            proposed = propose(space, log.trials[:before], TOGETHER, seed)
            log.add(train(proposed[done - before : trials - before], done))
        except KeyboardInterrupt:
            if not log.trials:
                raise
            return log.trials, True
        best = best_of(log.trials)
        progress.step("search", len(log.trials), trials, f"best: trial {best.number}, validation loss {best.loss:.4f}")
    return log.trials, False


def _calibrated_loss(rows: TaskRows, fit: FitResult, smoothing: float) -> float:
    truth = rows.truth[rows.validation]
    logits = torch.from_numpy(calibrated(rows.target, fit.validation_logits, truth, smoothing=smoothing))
    return float(row_losses(rows.target.objective, logits, torch.from_numpy(truth)).mean())


def _layer_sets(
    train: Dataset,
    encoder: Encoder,
    recipe: Recipe,
    modes: Sequence[PairMode | None],
    seed: int,
    target: Target,
    progress: Progress,
) -> list[tuple[int, ...]]:
    """The default set of hidden states and those that do best on a sample."""
    ranking = rank_layers(train, encoder, recipe, modes=modes, seed=seed, progress=progress, target=target)
    found = list(dict.fromkeys([ranking.default, *(each.states for each in ranking.ranked)]))[:SETS]
    sets = "; ".join(", ".join(map(str, layers)) for layers in found)
    progress.say(f"layers to search over: {sets}: the default and the best of {len(ranking.ranked)} sets on a sample")
    return found


def _digest(*parts: Dataset | None) -> str:
    """SHA-256 of labelled rows."""
    content = [None if part is None else [part.inputs, list(labels_of(part)), part.kind, part.groups] for part in parts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _distribution(parameter: Options | Interval) -> Any:
    distributions = require("optuna", "search").distributions
    if isinstance(parameter, Options):
        return distributions.CategoricalDistribution(parameter.values)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _suggested(space: Space, trial: Any) -> Choices:
    """A study's next choices: those of the shared parameters, then of whatever else there is."""

    def suggest(name: str, parameter: Options | Interval) -> Any:
        if isinstance(parameter, Options):
            return trial.suggest_categorical(name, parameter.values)
        return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)

    chosen = suggest("preset", Options(tuple(space.presets)))
    return {name: suggest(name, parameter) for name, parameter in space.parameters_of(chosen).items()}

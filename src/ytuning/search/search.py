"""Search for a recipe: Optuna proposes, heads are trained on stored features, and validation rows choose.

    <folder>/search.json   what was searched and every trial so far; a search that was ended goes on from there
    <folder>/recipe.json   the winner's recipe, for `ytuning train --recipe`
    <folder>/task/         the winner, trained as `ytuning train` does

The hidden states that a search may read are chosen on a sample (`tasks/choices.py`) and stored once. Trials
are proposed a few at a time; those share their states and their form, so that one read of each batch serves all of
them. The search minimises the validation loss after calibration. Unlike accuracy on few rows, it tells close recipes
apart. Unlike the plain loss, it compares heads whose logits differ in size.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import TaskKind
from ytuning.data.label_texts import describe_labels
from ytuning.data.splits import TaskRows, task_rows
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.pretrained import States
from ytuning.errors import InputError, must_be_one_of, parameter
from ytuning.features.features import Features, keep_inputs, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PAIR_MODES, PairChoice, PairMode
from ytuning.progress import Progress
from ytuning.search.log import RECIPE_FILE, TASK_FOLDER, Log, Trial, best_of
from ytuning.search.space import SHARED, Choices, Interval, Options, Space
from ytuning.system.machine import require, versions
from ytuning.tasks.choices import pair_modes, rank_layers
from ytuning.tasks.task import holds_finished_task, save_task
from ytuning.tasks.train import Stopwatch, Trained, TrainOptions, train_task
from ytuning.training.calibration import calibrated_losses
from ytuning.training.fit import FitResult, HeadJob, fit_heads
from ytuning.training.recipes import Recipe, default_label_texts, preset, recipe_to_json, stepwise_presets

__all__ = ["SearchOptions", "Searched", "propose", "search"]

# This number of trials is proposed and trained at a time.
TOGETHER = 4
# The first trials are random; after this number Optuna's sampler follows the good ones.
AT_RANDOM = 8
# Number of sets of hidden states in the search: the default one and the best ones on a sample.
SETS = 3


@dataclass(frozen=True)
class SearchOptions:
    """What a user chooses for one search, beside the data and the encoder.

    Attributes:
        presets: presets to start from; the first one's own recipe is the first trial.
        pairs: how the encoder reads two texts; ``"auto"`` is searched over.
        label_order: an ordinal task's labels, from the lowest.
        trials: total number of trials.
        minutes: after which no more are begun; of a new search the first batch is, even with 0.
        seed: seed of the validation split, the proposals, the weights and the order of rows.
    """

    presets: Sequence[str] = stepwise_presets()
    pairs: PairChoice = "auto"
    label_order: Sequence[str] | None = None
    trials: int = 30
    minutes: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Searched:
    """The result of a search.

    Attributes:
        trials: all trials in order.
        trained: the winner, saved in the folder ``task`` unless it was interrupted and a finished one is there.
        interrupted: whether Ctrl-C ended the search or the winner's training.
        seconds: seconds of each stage, including the training of the winner.
    """

    trials: list[Trial]
    trained: Trained
    interrupted: bool
    seconds: dict[str, float]

    @property
    def best(self) -> Trial:
        """The trial that won the search."""
        return best_of(self.trials)


def search(
    train: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    folder: Path,
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    options: SearchOptions | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Search for a recipe and train it; the same for the same rows, seed and versions, in one go or in several.

    Args:
        train: labelled rows; without ``validation`` a part is held out, as in training.
        encoder: reads the texts.
        store: where features are kept.
        folder: folder for the results; a search there with the same rows and options is resumed.
        validation: rows that choose.
        test: rows that the winner, once chosen, is reported on.
        options: everything else that can be chosen.
        progress: is told every step; Ctrl-C ends the search, and the best so far, if there is one, is trained.

    Raises:
        MissingExtraError: Optuna is not installed.
        InputError: an option is not allowed, or the folder holds something else.
        DataError: the rows cannot be trained on.
        StoreError, WriteError: the disk is full or broken.
    """
    options, progress, watch = options or SearchOptions(), progress or Progress(), Stopwatch()
    require("optuna", "search")
    for name in options.presets:
        if name not in stepwise_presets():
            raise InputError(must_be_one_of(parameter("preset"), name, stepwise_presets()))
    bases = {name: preset(name) for name in options.presets}
    rows = _checked_rows(train, validation, test, options, bases)
    modes = pair_modes(options.pairs, has_pairs=train.has_pairs)
    log = Log(folder, _description(train, validation, encoder, options, bases))
    with watch.stage("encode"):
        if not log.layers:
            learned, base = train.select(rows.train), next(iter(bases.values()))
            log.layers = _layer_sets(learned, encoder, base, modes, options.seed, rows.target, progress)
        # The default ones too: the store keeps all of them for a winner that reads some.
        states = tuple(sorted({*encoder.resolve_states(None), *(layer for layers in log.layers for layer in layers)}))
        features = {
            mode: stored_inputs(rows.inputs, encoder, store, progress, states=states, pair_mode=mode)[0]
            for mode in modes
        }
    space = Space(bases, log.layers, modes, rows.target, encoder.identity.width, encoder.identity.parameters)
    with watch.stage("search"):
        runner = _TrialRunner(space, features, states, rows, options.seed, encoder.device, progress)
        interrupted = _run_trials(runner, log, options)
    best = best_of(log.trials)
    with watch.stage("encode"):
        chosen = encoder.resolve_states(best.recipe.layers or states)
        keep_inputs(rows.inputs, features[best.pair_mode], encoder, store, progress, held=states, states=chosen)
    winner = _training_of(options, best)
    trained = train_task(
        train, encoder, store, best.recipe, validation=validation, test=test, options=winner, progress=progress
    )
    watch.add(trained.seconds)
    _save(trained, best, log, progress)
    return Searched(log.trials, trained, interrupted or trained.fit.interrupted, watch.seconds)


def _training_of(options: SearchOptions, best: Trial) -> TrainOptions:
    """How the best trial's recipe is trained."""
    pairs = best.pair_mode or "auto"
    return TrainOptions(name=TASK_FOLDER, seed=options.seed, label_order=options.label_order, pairs=pairs)


def _checked_rows(
    train: Dataset,
    validation: Dataset | None,
    test: Dataset | None,
    options: SearchOptions,
    bases: dict[str, Recipe],
) -> TaskRows:
    """The rows that trials learn and are chosen by, and the labels' texts if the head of a preset reads them."""
    if options.pairs not in ("auto", *PAIR_MODES):
        raise InputError(must_be_one_of(parameter("pairs"), options.pairs, ("auto", *PAIR_MODES)))
    rows = task_rows(train, validation, None, seed=options.seed, order=options.label_order)
    if test is not None:
        # Mistakes in the test rows should not wait for the end.
        task_rows(train, validation, test, seed=options.seed, order=options.label_order)
    for recipe in bases.values():
        if texts := default_label_texts(recipe.head, rows.target, pairs=train.has_pairs):
            return rows.with_label_texts(describe_labels(texts, rows.target))
    return rows


def _description(
    train: Dataset,
    validation: Dataset | None,
    encoder: Encoder,
    options: SearchOptions,
    bases: dict[str, Recipe],
) -> dict[str, Any]:
    """What a search must have in common with an earlier one to go on from there."""
    order = options.label_order
    return {
        "versions": versions("optuna"),
        "rows": _digest(train, validation),
        "encoder": encoder.identity.fingerprint,
        "presets": {name: recipe_to_json(recipe) for name, recipe in bases.items()},
        "pairs": list(pair_modes(options.pairs, has_pairs=train.has_pairs)),
        "order": None if order is None else list(order),
        "seed": options.seed,
    }


def _save(trained: Trained, best: Trial, log: Log, progress: Progress) -> None:
    """Write the winner and its recipe; an interrupted one does not replace a finished one."""
    task_folder = log.folder / TASK_FOLDER
    if trained.fit.interrupted and holds_finished_task(task_folder):
        progress.say(f"the finished task in {task_folder} is kept; the same command trains the best of these trials")
        return
    save_task(trained.task, task_folder)
    log.write_file(RECIPE_FILE, recipe_to_json(best.recipe))


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
        # Each batch has random numbers of its own, whichever call proposes it.
        sampler_seed = int(np.random.SeedSequence([seed, len(done)]).generate_state(1)[0])
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=AT_RANDOM))
        for trial in done:
            known = space.parameters_of(trial.choices["preset"])
            distributions = {name: _distribution(known[name]) for name in trial.choices}
            study.add_trial(
                optuna.trial.create_trial(params=trial.choices, distributions=distributions, value=trial.loss)
            )
        untried = [
            opening for opening in space.openings if not any(opening.items() <= trial.choices.items() for trial in done)
        ]
        proposed: list[Choices] = []
        for _ in range(count):
            if proposed:
                study.enqueue_trial({name: value for name, value in proposed[0].items() if name in SHARED})
            elif not done:
                study.enqueue_trial(space.start)
            elif untried:
                study.enqueue_trial(untried[0])
            proposed.append(_suggest(space, study.ask()))
        return proposed
    finally:
        optuna.logging.set_verbosity(verbosity)


@dataclass(frozen=True)
class _TrialRunner:
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
    features: dict[PairMode | None, Features]
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


def _run_trials(runner: _TrialRunner, log: Log, options: SearchOptions) -> bool:
    """Add trials to the log until there are enough of them; returns whether Ctrl-C ended the search."""
    begun = time.monotonic()
    while len(log.trials) < options.trials:
        if options.minutes is not None and log.trials and time.monotonic() - begun > 60 * options.minutes:
            break
        try:
            # A batch that an earlier call had no trials for the rest of is proposed again, and its rest is trained.
            done = len(log.trials)
            before = done - done % TOGETHER
            proposed = propose(runner.space, log.trials[:before], TOGETHER, options.seed)
            log.add(runner.train(proposed[done - before : options.trials - before], done))
        except KeyboardInterrupt:
            if not log.trials:
                raise
            return True
        best = best_of(log.trials)
        note = f"best: trial {best.number}, validation loss {best.loss:.4f}"
        runner.progress.step("search", len(log.trials), options.trials, note)
    return False


def _layer_sets(
    train: Dataset,
    encoder: Encoder,
    recipe: Recipe,
    modes: Sequence[PairMode | None],
    seed: int,
    target: TaskKind,
    progress: Progress,
) -> list[tuple[int, ...]]:
    """The default set of hidden states and those that do best on a sample."""
    ranking = rank_layers(train, encoder, recipe, modes=modes, seed=seed, progress=progress, target=target)
    if not ranking.ranked:
        progress.say(ranking.message())
        return [ranking.default]
    sets = list(dict.fromkeys([ranking.default, *(ranked.states for ranked in ranking.ranked)]))[:SETS]
    named = "; ".join(", ".join(map(str, layers)) for layers in sets)
    progress.say(f"layers to search over: {named}: the default and the best of {len(ranking.ranked)} sets on a sample")
    return sets


def _digest(*parts: Dataset | None) -> str:
    """Return the SHA-256 of labelled rows."""
    content = [None if part is None else [part.inputs, list(labels_of(part)), part.kind, part.groups] for part in parts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _distribution(parameter: Options | Interval) -> Any:
    distributions = require("optuna", "search").distributions
    if isinstance(parameter, Options):
        return distributions.CategoricalDistribution(parameter.values)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _suggest(space: Space, trial: Any) -> Choices:
    """A study's next choices: those of the shared parameters, then of whatever else there is."""

    def suggest(name: str, parameter: Options | Interval) -> Any:
        if isinstance(parameter, Options):
            return trial.suggest_categorical(name, parameter.values)
        return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)

    chosen = suggest("preset", Options(tuple(space.presets)))
    return {name: suggest(name, parameter) for name, parameter in space.parameters_of(chosen).items()}

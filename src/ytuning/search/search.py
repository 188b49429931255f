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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ytuning.batch.stored_encoder import StoredEncoder
from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import TaskKind
from ytuning.data.label_texts import describe_labels
from ytuning.data.splits import TaskRows, task_rows
from ytuning.encoder.encoder import Encoder
from ytuning.engines.engine import Engine
from ytuning.engines.schedule import Finished, GivenUp, Scheduler
from ytuning.engines.workers import check_same_results, open_workers
from ytuning.errors import InputError, must_be_one_of, parameter
from ytuning.features.features import keep_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PAIR_MODES, PairChoice, PairMode
from ytuning.progress import Progress
from ytuning.search.log import RECIPE_FILE, TASK_FOLDER, Log, Trial, best_of
from ytuning.search.propose import TOGETHER, propose_round
from ytuning.search.space import Space
from ytuning.search.trials import SearchWork, TrialRunner, TrialUnit, read_features
from ytuning.system.machine import require, versions
from ytuning.tasks.choices import pair_modes, rank_layers
from ytuning.tasks.task import holds_finished_task, save_task
from ytuning.tasks.train import Stopwatch, Trained, TrainOptions, train_task
from ytuning.training.recipes import Recipe, default_label_texts, preset, recipe_to_json, stepwise_presets

__all__ = ["SearchOptions", "Searched", "search"]

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
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Search for a recipe and train it; the same for the same rows, seed and versions, in one go or in several.

    Several workers try as many batches of trials at the same time. Their proposals know nothing of each other's
    results, so the trials are others than those of one worker, and are the same for the same number of workers.

    Args:
        train: labelled rows; without ``validation`` a part is held out, as in training.
        encoder: reads the texts.
        store: where features are kept.
        folder: folder for the results; a search there with the same rows and options is resumed.
        validation: rows that choose.
        test: rows that the winner, once chosen, is reported on.
        options: everything else that can be chosen.
        engine: workers that train the trials; None: this process, whose trials are those of one worker.
        progress: is told every step; Ctrl-C ends the search, and the best so far, if there is one, is trained.

    Raises:
        MissingExtraError: Optuna is not installed.
        InputError: an option is not allowed, the folder holds something else, or a worker does not find the features.
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
    workers = 1 if engine is None else engine.workers
    log = Log(folder, {**_description(train, validation, encoder, options, bases), "workers": workers})
    with watch.stage("encode"):
        if not log.layers:
            learned, base = train.select(rows.train), next(iter(bases.values()))
            log.layers = _layer_sets(learned, encoder, base, modes, options.seed, rows.target, progress)
        # The default ones too: the store keeps all of them for a winner that reads some.
        states = tuple(sorted({*encoder.resolve_states(None), *(layer for layers in log.layers for layer in layers)}))
        features = read_features(rows, encoder, store, states=states, modes=modes, progress=progress)
    space = Space(bases, log.layers, modes, rows.target, encoder.identity.width, encoder.identity.parameters)
    runner = TrialRunner(space, features, states, rows, options.seed, encoder.device, progress)
    work = SearchWork(space, states, rows, options.seed, StoredEncoder(encoder, store), store)
    left = options.trials - len(log.trials)
    with watch.stage("search"), _train_on(engine, work, runner, left) as train_units:
        interrupted = _run_trials(train_units, space, log, options, workers=workers, progress=progress)
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


TrainUnits = Callable[[Sequence[TrialUnit]], Iterator[list[Trial]]]
"""Trains units, and gives the trials of each in the order of their numbers."""


def _run_trials(
    train: TrainUnits, space: Space, log: Log, options: SearchOptions, *, workers: int, progress: Progress
) -> bool:
    """Add trials to the log until there are enough of them; returns whether Ctrl-C ended the search."""
    begun = time.monotonic()
    while len(log.trials) < options.trials:
        if options.minutes is not None and log.trials and time.monotonic() - begun > 60 * options.minutes:
            break
        try:
            for trials in train(_next_units(space, log.trials, options, workers)):
                log.add(trials)
                best = best_of(log.trials)
                note = f"best: trial {best.number}, validation loss {best.loss:.4f}"
                progress.step("search", len(log.trials), options.trials, note)
        except KeyboardInterrupt:
            if not log.trials:
                raise
            return True
    return False


def _next_units(space: Space, trials: Sequence[Trial], options: SearchOptions, workers: int) -> list[TrialUnit]:
    """The units of the next round, which has one for each worker.

    A round that an earlier call has not finished, or had no trials for the rest of, is proposed again, and its rest is
    trained. So it is proposed from the trials before it, whichever of its own are finished.
    """
    done = len(trials)
    before = done - done % (TOGETHER * workers)
    units = []
    for number, batch in enumerate(propose_round(space, trials[:before], workers, options.seed)):
        first = before + TOGETHER * number
        rest = batch[max(0, done - first) : max(0, options.trials - first)]
        if rest:
            units.append(TrialUnit(rest, max(first, done)))
    return units


@contextmanager
def _train_on(engine: Engine | None, work: SearchWork, runner: TrialRunner, left: int) -> Iterator[TrainUnits]:
    """What trains units: the workers of an engine, or this process.

    Args:
        engine: says which workers; None: this process.
        work: what workers do.
        runner: what this process does.
        left: number of trials that are not finished.
    """
    if engine is None or left < 1:
        yield lambda units: (runner.train(unit.proposed, unit.first) for unit in units)
        return
    # More batches are never trained at the same time.
    with open_workers(engine, work, units=-(-left // TOGETHER), progress=runner.progress) as scheduler:
        check_same_results(scheduler, dict(versions()))
        yield partial(_train_on_workers, scheduler)


def _train_on_workers(scheduler: Scheduler, units: Sequence[TrialUnit]) -> Iterator[list[Trial]]:
    finished: dict[int, list[Trial]] = {}
    waiting = deque(unit.first for unit in units)
    for end in scheduler.run(units, lambda unit: False, lambda rows: None):
        if isinstance(end, GivenUp):
            raise end.problem.error()
        assert isinstance(end, Finished)
        finished[end.unit.first] = end.result
        while waiting and waiting[0] in finished:
            yield finished[waiting.popleft()]


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

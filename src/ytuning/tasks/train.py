"""The main job: split -> choose -> encode -> fit -> calibrate -> report. The CLI and the estimator call it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch

from ytuning.data.dataset import Dataset
from ytuning.data.label_texts import LabelTexts, describe_labels, meaningful_names
from ytuning.data.labels import list_names
from ytuning.data.splits import TaskRows, task_rows
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.pretrained import States
from ytuning.errors import InputError, argument, must_be_one_of, parameter
from ytuning.evaluation.evaluate import EvaluatedRows, Report, evaluate
from ytuning.features.codecs import CODECS, DEFAULT_CODEC, POOL_CODECS, PcaInt8Codec
from ytuning.features.features import CacheUse, Features, stored_inputs
from ytuning.features.in_memory import mean_features
from ytuning.features.pools import RowSet, mean_pools, row_keys, stored_pools
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PAIR_MODES, PairChoice, PairMode
from ytuning.heads.pooled import LabelTuningConfig, LabelTuningHead, LightConfig, PooledConfig, PooledHead
from ytuning.heads.scope import ScopeModel
from ytuning.progress import Progress
from ytuning.system.machine import workers
from ytuning.tasks.add_label import keep_exemplars
from ytuning.tasks.choices import choose_pair_mode, pair_modes, rank_layers
from ytuning.tasks.light_labels import row_record
from ytuning.tasks.task import Exemplars, Task
from ytuning.training.calibration import Calibration, calibrated_losses, check_abstain_at, fit_calibration
from ytuning.training.fit import FitResult, HeadJob, fit_heads, logits_of, standard_error
from ytuning.training.joint import start_label_rows
from ytuning.training.recipes import AUTO_LAYERS, Recipe, TrainingConfig, default_label_texts, recipe_to_json
from ytuning.training.scope import ScopeTexts, check_out_of_scope, fit_scope, share_out_of_scope

__all__ = [
    "PairModeRun", "Stopwatch", "TrainContext", "TrainOptions", "Trained", "check_options", "finish_task",
    "fit_pair_modes", "read_inputs", "split_rows", "train_task", "zero_shot",
]  # fmt: skip

# With at most this number of rows for a label, the label's name or description often helps.
FEW_ROWS = 16


class Stopwatch:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time within to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds of stages that another stopwatch has measured."""
        for name, more in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more


@dataclass(frozen=True)
class TrainOptions:
    """What a user chooses for one training, beside the data, the encoder and the recipe.

    Attributes:
        name: name of the task.
        seed: seed of the validation split, the head's weights and the order of rows.
        seeds: heads to train together on the same hold-out, of this seed and those after it; the first of those with
            the best validation score is taken.
        ensemble: take one head whose logits are the mean of theirs instead.
        refit: go on for some steps on all of the train rows once the held-out ones have chosen the head.
        codec: how the features are stored, see `features/codecs.py`.
        label_order: an ordinal task's labels, from the lowest.
        abstain_at: the precision below which a task of one label a row gives none.
        out_of_scope: the share of the texts in scope that the task may say are out of it (`training/scope.py`); None:
            it says of no text that it is.
        pairs: how the encoder reads pairs of texts; ``"auto"`` tries both ways, and takes ``"joint"`` only where its
            calibrated validation loss is clearly lower (`choices.choose_pair_mode`).
        layers: ``"auto"``: the hidden states are chosen on a sample (`tasks/choices.py`); else they are those of the
            recipe, or the encoder's default ones for such rows.
        label_texts: what the labels mean, see `data/label_texts.py`. The encoder reads them like any text; label rows
            start from them, they are train rows of their labels, and how the labels' texts alone do is reported.
            Default: the names of the labels in words for a head of label tuning (unless they are numbers), else none.
        release_encoder: let the encoder's weights go once all features are stored, so that the head's training has
            their memory; the encoder reads no text after that.
    """

    name: str = "task"
    seed: int = 0
    seeds: int = 1
    ensemble: bool = False
    refit: bool = True
    codec: str = DEFAULT_CODEC
    label_order: Sequence[str] | None = None
    abstain_at: float | None = None
    out_of_scope: float | None = None
    pairs: PairChoice = "auto"
    layers: Literal["auto"] | None = None
    label_texts: LabelTexts | None = None
    release_encoder: bool = False


@dataclass(frozen=True)
class Trained:
    """The result of the main job.

    Attributes:
        task: ready to be saved.
        fit: how the training went.
        reports: reports on ``validation`` and, if there was one, ``test``.
        judged: what each of them is about.
        zero_shot: metrics of the same rows from the labels' texts alone, before any training; of none without texts.
        by_seed: metrics of each seed's head in the same form, seed by seed; ``task`` is the one validation prefers.
        rows: numbers of rows of ``train``, ``validation`` and ``test``.
        shared: rows of ``validation`` and ``test`` whose text is also a train row.
        out_of_scope: share of ``validation`` and ``test`` rows that the task says are out of its scope; none without a
            threshold.
        cache: use of the feature store.
        truncated: rows whose text was cut.
        seconds: seconds of the stages ``encode``, ``train`` and ``evaluate``.
    """

    task: Task
    fit: FitResult
    reports: dict[str, Report]
    judged: dict[str, EvaluatedRows]
    zero_shot: dict[str, dict[str, float]]
    by_seed: dict[int, dict[str, dict[str, float]]]
    rows: dict[str, int]
    shared: dict[str, int]
    out_of_scope: dict[str, float]
    cache: CacheUse
    truncated: int
    seconds: dict[str, float]


def train_task(
    train: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    recipe: Recipe,
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    held: np.ndarray | None = None,
    options: TrainOptions | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a task on labelled rows.

    Without ``validation`` a stratified part of ``train`` is held out (`splits.split_holdout`), where the rows of a
    group (``train.groups``) stay together. The validation rows choose the head and fit what makes probabilities and
    decisions of its logits (`training/calibration.py`); the test rows only report.

    Args:
        train: labelled rows.
        encoder: reads the texts.
        store: where features are kept.
        recipe: form of the head and its training.
        validation: rows that choose.
        test: rows that the task is reported on.
        held: (V,) int64, rising: positions in ``train`` of the rows that are held out for validation, such as those
            that several tasks share (`common_holdout.common_holdout`). None: the rows are drawn. Not with
            ``validation``.
        options: everything else that can be chosen.
        progress: is told every step; Ctrl-C ends the training and gives the best head so far.

    Raises:
        InputError: an option is not allowed, or no confidence gives the precision of ``abstain_at``.
        EncoderError: the encoder does not have the hidden states that the recipe reads.
        DataError: the rows cannot be trained on.
        StoreError: the feature store cannot be used.
    """
    if validation is not None and held is not None:
        raise ValueError("both validation rows and rows to hold out are given; give one of them")
    options, progress = options or TrainOptions(), progress or Progress()
    states = encoder.resolve_states(recipe.layers)
    context = TrainContext(train, validation, test, encoder, states, store, recipe, options, progress, held=held)
    check_options(context)
    rows = split_rows(context)
    modes = pair_modes(options.pairs, has_pairs=train.has_pairs)
    context, sampled = _resolve_auto(context, rows, modes)
    (runs,), complete = fit_pair_modes([(context, rows)], modes)
    return finish_task(context, rows, runs, complete=complete, sampled=sampled)


@dataclass(frozen=True)
class TrainContext:
    """What the steps of one training share: the arguments of :func:`train_task`, the hidden states, a stopwatch.

    Tasks that are trained together have one each, with the same encoder, states, store, form of the head and stopwatch.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    encoder: Encoder
    states: States
    store: FeatureStore
    recipe: Recipe
    options: TrainOptions
    progress: Progress
    watch: Stopwatch = field(default_factory=Stopwatch)
    held: np.ndarray | None = None


# --- split and choose -----------------------------------------------------------------------------------------------


def check_options(context: TrainContext) -> None:
    """Refuse options that are not allowed or would do nothing, before any work is done."""
    options, recipe = context.options, context.recipe
    for name, given, choices in (
        ("store", options.codec, CODECS),
        ("pairs", options.pairs, ("auto", *PAIR_MODES)),
        ("layers", options.layers, (None, AUTO_LAYERS)),
    ):
        if given not in choices:
            raise InputError(must_be_one_of(parameter(name), given, choices))
    if isinstance(recipe.head, LightConfig) and options.codec not in POOL_CODECS:
        problem = must_be_one_of(parameter("store"), options.codec, tuple(POOL_CODECS))
        raise InputError(f"{problem} With {argument('preset', 'light')} the other codecs are too coarse")
    if isinstance(recipe.head, LightConfig) and recipe.training.loss != TrainingConfig().loss:
        problem = (
            f"{argument('preset', 'light')} has no loss to choose, because its head is fitted in closed form. Got "
        )
        raise InputError(f"{problem}{recipe.training.loss!r}. Leave out {argument('loss')}.")
    if isinstance(recipe.head, LightConfig) and options.seeds > 1:
        problem = f"{argument('preset', 'light')} has no random start, so several seeds give the same head. Got "
        raise InputError(f"{problem}{options.seeds}. Leave out {argument('seeds')}.")
    if options.ensemble and not (options.seeds > 1 and isinstance(recipe.head, PooledConfig)):
        problem = "an ensemble is of several seeds' heads of the default preset. "
        problem += f"Give {argument('seeds', 2)} or more and {argument('preset', 'default')}"
        raise InputError(f"{problem}, or leave out {argument('ensemble')}")


def split_rows(context: TrainContext) -> TaskRows:
    """The rows of all parts, checked, and after them the labels' texts."""
    options = context.options
    rows = task_rows(
        context.train,
        context.validation,
        context.test,
        seed=options.seed,
        order=options.label_order,
        held=context.held,
    )
    check_abstain_at(rows.target, options.abstain_at, len(rows.validation))
    check_out_of_scope(options.out_of_scope, len(rows.validation))
    held = rows.target.count_labels(rows.truth[rows.validation])
    if unseen := [name for name, count in zip(rows.target.names, held, strict=True) if not count]:
        context.progress.say(
            f"no validation row has these labels, so validation figures say nothing about them: {list_names(unseen)}"
        )
    if options.pairs != "auto" and not context.train.has_pairs:
        raise InputError(
            f"{parameter('pairs')} is for two texts a row, and these are single texts. Got {options.pairs!r}. "
            "Leave it out"
        )
    if context.recipe.training.label_weights is not None:
        rows.target.check_option("label_weights")
    label_texts = options.label_texts
    if label_texts is None:
        label_texts = default_label_texts(context.recipe.head, rows.target, pairs=context.train.has_pairs)
        may_help = label_texts is None and not context.train.has_pairs and meaningful_names(rows.target)
        if may_help and rows.median_of_labels <= FEW_ROWS:
            context.progress.say(
                f"few rows of each label: training with {argument('preset', 'few-shot')}, or with "
                f"{argument('label_texts')} and what the labels mean, often helps"
            )
    return rows.with_label_texts(describe_labels(label_texts, rows.target, pairs=context.train.has_pairs))


def _resolve_auto(context: TrainContext, rows: TaskRows, modes: Sequence[PairMode | None]) -> tuple[TrainContext, int]:
    """The context with the hidden states that ``layers="auto"`` chooses, and how many texts that has stored."""
    options, recipe, progress = context.options, context.recipe, context.progress
    if options.layers != AUTO_LAYERS:
        return context, 0
    with context.watch.stage("encode"):
        # Validation rows report on the choice of hidden states, so they must not take part in it.
        learned = context.train.select(rows.train)
        ranking = rank_layers(
            learned, context.encoder, recipe, modes=modes, seed=options.seed, progress=progress, target=rows.target
        )
        states = ranking.choice
        written = ranking.keep(states, context.encoder, context.store, progress, options.codec)
        progress.say(ranking.message())
    return replace(context, states=states, recipe=replace(recipe, layers=states)), written


# --- encode and fit, for each way of reading pairs ------------------------------------------------------------------


@dataclass(frozen=True)
class PairModeRun:
    """A task's heads, one for each seed, on features for which pairs were read in one way.

    Attributes:
        pair_mode: how pairs were read; None for single texts.
        features: features of all rows, as the heads read them.
        texts: the same for scopes, which tasks that are trained together share.
        cache: use of the feature store.
        fits: how each head was trained.
        keys: of light heads the keys of all rows, see `pools.row_keys`.
    """

    pair_mode: PairMode | None
    features: Features
    texts: ScopeTexts
    cache: CacheUse
    fits: list[FitResult]
    keys: np.ndarray | None = None


def fit_pair_modes(
    tasks: Sequence[tuple[TrainContext, TaskRows]], modes: Sequence[PairMode | None]
) -> tuple[list[list[PairModeRun]], bool]:
    """For each task a run for each way of reading pairs, and whether all came to their end.

    Ctrl-C leaves out later runs, and a later run that it has ended early is not compared.

    Args:
        tasks: tasks to train together, whose rows have the same ``inputs``.
        modes: ways of reading pairs.
    """
    (context, rows), by_task = tasks[0], [list[PairModeRun]() for _ in tasks]
    for mode in modes:
        try:
            features, cache = _encode(context, rows, mode)
            if context.options.release_encoder and mode == modes[-1]:
                context.encoder.release()
            fits = _fit(tasks, features)
            keys = row_keys(rows.inputs, mode) if isinstance(context.recipe.head, LightConfig) else None
        except KeyboardInterrupt:
            if not by_task[0]:
                raise
            return by_task, False
        interrupted = fits[0][0].interrupted
        if not (interrupted and by_task[0]):
            texts = ScopeTexts(features, len(context.states))
            for runs, own in zip(by_task, fits, strict=True):
                runs.append(PairModeRun(mode, features, texts, cache, own, keys))
        if interrupted:
            return by_task, False
    return by_task, True


def _encode(context: TrainContext, rows: TaskRows, mode: PairMode | None) -> tuple[Features, CacheUse]:
    """What the form of the head reads of all rows."""
    features, cache = read_inputs(context, rows, mode)
    if isinstance(context.recipe.head, LabelTuningConfig) and context.encoder.device.type == "cpu":
        with context.watch.stage("train"), workers() as pool:
            features = mean_features(features, pool)
    return features, cache


def read_inputs(context: TrainContext, rows: TaskRows, mode: PairMode | None) -> tuple[Features, CacheUse]:
    """Features of all rows through the store, of light heads their pools."""
    read = stored_pools if isinstance(context.recipe.head, LightConfig) else stored_inputs
    with context.watch.stage("encode"):
        return read(
            rows.inputs,
            context.encoder,
            context.store,
            context.progress,
            states=context.states,
            pair_mode=mode,
            codec=context.options.codec,
        )


def _fit(tasks: Sequence[tuple[TrainContext, TaskRows]], features: Features) -> list[list[FitResult]]:
    """For each task one head for each seed, all trained together."""
    context = tasks[0][0]
    options = context.options
    jobs = [
        HeadJob(
            rows.target,
            rows.truth,
            own.recipe,
            seed,
            rows.label_texts,
            train=np.concatenate((rows.train, rows.label_texts)),
            validation=rows.validation,
        )
        for own, rows in tasks
        for seed in range(options.seed, options.seed + options.seeds)
    ]
    with context.watch.stage("train"):
        fits = fit_heads(
            features,
            jobs,
            seed=options.seed,
            # Validation rows that were given stay validation rows.
            refit=options.refit and context.validation is None,
            device=context.encoder.device,
            progress=context.progress,
        )
    return [fits[first : first + options.seeds] for first in range(0, len(fits), options.seeds)]


# --- choose, calibrate and report -----------------------------------------------------------------------------------


def finish_task(
    context: TrainContext, rows: TaskRows, runs: Sequence[PairModeRun], *, complete: bool, sampled: int = 0
) -> Trained:
    """The task of trained heads, calibrated and evaluated.

    Args:
        context: the training.
        rows: rows of the task.
        runs: heads, for each way of reading pairs.
        complete: whether all runs came to their end.
        sampled: texts that the choice of hidden states has stored.

    Raises:
        InputError: no confidence gives the precision of ``abstain_at``.
    """
    run = _choose_pair_mode(context, rows, runs)
    heads = _pick_head(context, run, complete)
    with context.watch.stage("evaluate"):
        calibrations = _calibrate(context, rows, heads)
        evaluated = _evaluate_seeds(context, rows, run.features, heads, calibrations)
        before = zero_shot(mean_pools(run.features, len(context.states)), rows)
        scope, out_of_scope = _fit_scope(context, rows, run.texts, heads.fit, evaluated[heads.best])
    run = replace(run, cache=_cache_use(runs, sampled))
    return _report(context, rows, run, heads, evaluated, before, scope=scope, out_of_scope=out_of_scope)


def _choose_pair_mode(context: TrainContext, rows: TaskRows, runs: Sequence[PairModeRun]) -> PairModeRun:
    """The run to take: of two, the joint one where its calibrated validation loss is clearly lower."""
    if len(runs) == 1:
        return runs[0]
    losses = {run.pair_mode: _calibrated_losses(context, rows, run.fits) for run in runs}
    joint, separate = losses["joint"], losses["separate"]
    chosen = choose_pair_mode(joint, separate)
    context.progress.say(
        f"pairs: {chosen}, as the calibrated validation loss is {float(joint.mean()):.4f} joint and "
        f"{float(separate.mean()):.4f} separate; the standard error of the difference is "
        f"{standard_error(separate - joint):.4f}"
    )
    return next(run for run in runs if run.pair_mode == chosen)


def _calibrated_losses(context: TrainContext, rows: TaskRows, fits: Sequence[FitResult]) -> torch.Tensor:
    """Return the heads' mean loss (validation rows,) float64 after calibration, or a surer head would look worse.

    The loss tells two ways of reading apart on fewer rows than a score does.
    """
    target, truth = rows.target, rows.truth[rows.validation]
    smoothing = context.recipe.training.smoothing_of(target)
    losses = [calibrated_losses(target, fit.validation_logits, truth, smoothing=smoothing) for fit in fits]
    return torch.stack(losses).mean(0)


@dataclass(frozen=True)
class _Heads:
    """The trained heads, seed by seed, with an ensemble after them, and which of them becomes the task."""

    fits: list[FitResult]
    best: int

    @property
    def fit(self) -> FitResult:
        """How the head that becomes the task was trained."""
        return self.fits[self.best]


def _pick_head(context: TrainContext, run: PairModeRun, complete: bool) -> _Heads:
    """The first head with the best validation score, or the mean of all heads."""
    fits = run.fits if complete else [replace(fit, interrupted=True) for fit in run.fits]
    best = max(range(len(fits)), key=lambda position: fits[position].validation.score)
    if context.options.ensemble:
        return _Heads([*fits, _ensemble(fits, fits[best])], len(fits))
    return _Heads(fits, best)


def _ensemble(fits: Sequence[FitResult], best: FitResult) -> FitResult:
    """The heads of several fits as one, with the history of the best of them."""
    heads = cast("list[PooledHead]", [fit.head for fit in fits])
    chosen = cast("list[PooledHead]", [fit.chosen_head for fit in fits])
    logits = np.mean([fit.validation_logits for fit in fits], axis=0)
    return replace(best, head=PooledHead.joined(heads), chosen_head=PooledHead.joined(chosen), validation_logits=logits)


def _calibrate(context: TrainContext, rows: TaskRows, heads: _Heads) -> list[Calibration]:
    """Each head's calibration; only the best head has to reach the precision of ``abstain_at``."""
    truth = rows.truth[rows.validation]
    smoothing = context.recipe.training.smoothing_of(rows.target)
    calibrations = []
    for position, fit in enumerate(heads.fits):
        fitted = partial(fit_calibration, rows.target, fit.validation_logits, truth, smoothing=smoothing)
        try:
            calibrations.append(fitted(abstain_at=context.options.abstain_at))
        except InputError:
            if position == heads.best:
                raise
            calibrations.append(fitted())
    return calibrations


@dataclass(frozen=True)
class _EvaluatedHead:
    """A head's calibration, its reports by split, and its logits of the test rows once they are known."""

    calibration: Calibration
    reports: dict[str, Report]
    test_logits: np.ndarray | None = None

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each report."""
        return {split: report.metrics for split, report in self.reports.items()}


def _evaluate_seeds(
    context: TrainContext, rows: TaskRows, features: Features, heads: _Heads, calibrations: Sequence[Calibration]
) -> list[_EvaluatedHead]:
    """Each head's reports; Ctrl-C leaves out the test reports of later heads."""
    held = rows.truth[rows.validation]
    evaluated = [
        _EvaluatedHead(calibration, {"validation": evaluate(rows.target, calibration, held, fit.validation_logits)})
        for fit, calibration in zip(heads.fits, calibrations, strict=True)
    ]
    if context.test is None:
        return evaluated
    # The heads are trained, and should not be lost for their reports.
    with suppress(KeyboardInterrupt):
        for position, fit in enumerate(heads.fits):
            logits = logits_of(fit.head, features, torch.from_numpy(rows.test))
            head = evaluated[position]
            report = evaluate(rows.target, head.calibration, rows.truth[rows.test], logits)
            evaluated[position] = replace(head, reports={**head.reports, "test": report}, test_logits=logits)
    return evaluated


def zero_shot(features: Features, rows: TaskRows) -> dict[str, dict[str, float]]:
    """Metrics of ``validation`` and ``test`` rows from label rows that are the labels' texts; none without such texts.

    Validation rows fit the temperature and, of a multi-label task, the thresholds, as they do for a trained head.

    Args:
        features: features of all rows.
        rows: rows of the task.
    """
    metrics: dict[str, dict[str, float]] = {}
    if not len(rows.label_texts):
        return metrics
    head = LabelTuningHead(
        LabelTuningConfig(), labels=rows.target.outputs, layers=features.layers, width=features.width
    ).eval()
    start_label_rows(head, features, rows.train, rows.label_texts, rows.truth)
    # The heads are trained, and should not be lost for this.
    with suppress(KeyboardInterrupt):
        held_logits = logits_of(head, features, torch.from_numpy(rows.validation))
        calibration = fit_calibration(rows.target, held_logits, rows.truth[rows.validation])
        for split, positions in (("validation", rows.validation), ("test", rows.test)):
            if len(positions):
                logits = (
                    held_logits if split == "validation" else logits_of(head, features, torch.from_numpy(positions))
                )
                metrics[split] = evaluate(rows.target, calibration, rows.truth[positions], logits).metrics
    return metrics


def _fit_scope(
    context: TrainContext, rows: TaskRows, texts: ScopeTexts, fit: FitResult, evaluated: _EvaluatedHead
) -> tuple[ScopeModel | None, dict[str, float]]:
    """The task's scope, and the share of the rows of each split that are out of it, if there is a threshold."""
    out_of_scope = dict[str, float]()
    logits = {"validation": fit.validation_logits, "test": evaluated.test_logits}
    # The heads are trained, and should not be lost for this.
    with suppress(KeyboardInterrupt):
        scope = fit_scope(
            texts,
            rows.target,
            rows.truth,
            train=np.concatenate((rows.train, rows.label_texts)),
            validation=rows.validation,
            head=fit.chosen_head,
            validation_logits=fit.validation_logits,
            temperature=evaluated.calibration.temperature,
            share=context.options.out_of_scope,
        )
        for split, own in logits.items():
            if own is not None:
                share = share_out_of_scope(scope, texts, getattr(rows, split), own)
                out_of_scope |= {} if share is None else {split: share}
        return scope, out_of_scope
    return None, {}


def _report(
    context: TrainContext,
    rows: TaskRows,
    run: PairModeRun,
    heads: _Heads,
    evaluated: Sequence[_EvaluatedHead],
    before: dict[str, dict[str, float]],
    *,
    scope: ScopeModel | None,
    out_of_scope: dict[str, float],
) -> Trained:
    """The task and everything that is known about it."""
    best, fit = evaluated[heads.best], heads.fit
    if context.test is not None and any(head.test_logits is None for head in evaluated):
        fit = replace(fit, interrupted=True)
    judged = {
        "validation": EvaluatedRows(rows.held, rows.truth[rows.validation], fit.validation_logits, fit.chosen_head)
    }
    if context.test is not None and best.test_logits is not None:
        judged["test"] = EvaluatedRows(context.test, rows.truth[rows.test], best.test_logits, fit.head)
    first, seeds = context.options.seed, context.options.seeds
    return Trained(
        task=replace(_task(context, rows, run, fit, best, _record(context, rows, heads, fit, before)), scope=scope),
        fit=fit,
        reports=best.reports,
        judged=judged,
        zero_shot=before,
        by_seed={first + position: head.metrics for position, head in enumerate(evaluated[:seeds])},
        rows=rows.counts,
        shared=rows.shared,
        out_of_scope=out_of_scope,
        cache=run.cache,
        truncated=int(run.features.truncated_rows[rows.positions].sum()),
        seconds=context.watch.seconds,
    )


def _task(
    context: TrainContext,
    rows: TaskRows,
    run: PairModeRun,
    fit: FitResult,
    evaluated: _EvaluatedHead,
    training: dict[str, Any],
) -> Task:
    """The task, with the texts that a label can be added with later; of a light task the store keeps them."""
    exemplars: Exemplars | None = None
    if fit.strength is not None:
        training = {**training, "light": _keep_light_rows(context, rows, run, fit.strength)}
    # The task should not be lost for its exemplars.
    with suppress(KeyboardInterrupt):
        exemplars = keep_exemplars(fit.head, rows.target, run.features, rows.truth, rows.validation, rows.train)
    return Task(
        context.options.name,
        rows.target,
        context.encoder.identity,
        context.states,
        # An ensemble has more members than the recipe says.
        fit.head.config if isinstance(fit.head, PooledHead) else context.recipe.head,
        fit.head,
        evaluated.calibration,
        metrics=evaluated.metrics,
        training=training,
        pair_mode=run.pair_mode,
        columns=context.train.columns,
        exemplars=exemplars,
        basis=run.features.codec if isinstance(run.features.codec, PcaInt8Codec) else None,
    )


def _keep_light_rows(
    context: TrainContext, rows: TaskRows, run: PairModeRun, strength: float
) -> dict[str, str | float]:
    """Keep in the store which rows a light task was fitted on, as a label can be added or removed with them."""
    # In the order in which they were summed.
    positions = np.unique(np.concatenate((rows.train, rows.label_texts, rows.validation)))
    held = np.isin(positions, rows.validation)
    assert run.keys is not None
    row_set = RowSet(run.keys[positions], rows.truth[positions], held)
    return row_record(
        row_set, strength, context.encoder, context.store, states=context.states, codec=context.options.codec
    )


def _record(
    context: TrainContext, rows: TaskRows, heads: _Heads, fit: FitResult, before: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """What a task's JSON says of its training."""
    options, recipe = context.options, context.recipe
    return {
        "seed": None if options.ensemble else options.seed + heads.best,
        "seeds": [options.seed, options.seeds],
        "store": options.codec,
        "label_weights": recipe.training.label_weights,
        "recipe": recipe_to_json(recipe),
        "rows": rows.counts,
        "steps": fit.history[fit.chosen].step,
        "label_texts": len(rows.label_texts),
        "zero_shot": before,
        "refitted": fit.refitted,
        "interrupted": fit.interrupted,
    }


def _cache_use(runs: Sequence[PairModeRun], sampled: int) -> CacheUse:
    """The use of the store by all runs; texts that choosing hidden states has stored are no hits."""
    hits, misses, size = (sum(getattr(run.cache, name) for run in runs) for name in ("hits", "misses", "bytes"))
    # Ctrl-C may have come before all of the sample was read again.
    sampled = min(sampled, hits)
    return CacheUse(hits - sampled, misses + sampled, size)

"""The main job end to end: data sets -> features -> head -> task and reports. The CLI and the estimator call it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import numpy as np
import torch

from ytuning.data.dataset import Dataset
from ytuning.data.kinds import Target
from ytuning.data.label_texts import LabelTexts, describe_labels, meaningful_names
from ytuning.data.splits import TaskRows, task_rows
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.pretrained import States
from ytuning.errors import InputError, allowed
from ytuning.evaluation.evaluate import Judged, Report, evaluate
from ytuning.features.codecs import CODECS, DEFAULT_CODEC, PcaInt8Codec
from ytuning.features.features import CacheUse, Features
from ytuning.features.pairs import stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledConfig, PooledHead
from ytuning.progress import Progress
from ytuning.tasks.add_label import keep_exemplars
from ytuning.tasks.layers import choose_layers
from ytuning.tasks.task import PAIR_MODES, Exemplars, PairMode, Task
from ytuning.tasks.zero_shot import zero_shot
from ytuning.training.calibration import Calibration, calibrate, calibrated, check_abstain_at
from ytuning.training.fit import FitResult, Job, fit_heads, logits_of
from ytuning.training.losses import clearly_lower, row_losses, standard_error
from ytuning.training.recipes import AUTO_LAYERS, Recipe, default_label_texts, recipe_to_json

__all__ = ["Stopwatch", "Trained", "pair_modes", "train_task"]

FEW_ROWS = 16  # of a label


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
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Trained:
    """What the main job gives.

    Attributes:
        task: ready to be saved.
        fit: how the training went.
        reports: of ``validation`` and, if there was one, ``test``.
        judged: what each of them is about.
        zero_shot: metrics of the same rows from the labels' texts alone, before any training; of none without texts.
        by_seed: metrics of each seed's head in the same form, seed by seed; ``task`` is the one validation prefers.
        rows: of ``train``, ``validation`` and ``test``.
        shared: rows of ``validation`` and ``test`` whose text is also a train row.
        cache: use of the feature store.
        truncated: rows whose text was cut.
    """

    task: Task
    fit: FitResult
    reports: dict[str, Report]
    judged: dict[str, Judged]
    zero_shot: dict[str, dict[str, float]]
    by_seed: dict[int, dict[str, dict[str, float]]]
    rows: dict[str, int]
    shared: dict[str, int]
    cache: CacheUse
    truncated: int


def train_task(  # noqa: PLR0913  # every choice of the whole job
    train: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    recipe: Recipe,
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    name: str = "task",
    seed: int = 0,
    seeds: int = 1,
    ensemble: bool = False,
    refit: bool = True,
    codec: str = DEFAULT_CODEC,
    label_order: Sequence[str] | None = None,
    abstain_at: float | None = None,
    pairs: PairMode | Literal["auto"] = "auto",
    layers: Literal["auto"] | None = None,
    label_texts: LabelTexts | None = None,
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
) -> Trained:
    """Train a task on labelled rows.

    Without ``validation`` a stratified part of ``train`` is held out (`splits.split_holdout`), where the
    rows of a group (``train.groups``) stay together. The head goes on for some steps on all of ``train`` once these
    rows have chosen it, unless ``refit`` is off. With several ``seeds``, heads of this seed and those after it are
    trained together on the same hold-out, and the first of those with the best validation score is taken, or with
    ``ensemble`` one whose logits are the mean of theirs. The features are stored in ``codec`` (`features/codecs.py`).

    The validation rows also fit what makes probabilities and decisions of the logits (`training/calibration.py`), of
    the head before it went on on all rows: ``abstain_at`` is the precision below which a task of one label a row gives
    none. ``label_order`` is that of an ordinal task's labels, from the lowest.

    ``pairs`` of texts are read by the encoder as one text (``"joint"``) or one by one (``"separate"``); ``"auto"``
    tries both, and takes the first only where its calibrated validation loss is clearly lower
    (`losses.clearly_lower`): the second reads a text once that many pairs share.

    With ``layers="auto"`` the hidden states are chosen on a sample (`layers.choose_layers`); else they are those of
    the recipe, or the encoder's default ones for such rows.

    ``label_texts`` say what labels mean, see `data/label_texts.py`. The encoder reads them like any text; label
    rows start from them, they are train rows of their labels, and how the labels' texts alone do is reported. Default:
    the names of the labels in words for a head of label tuning (unless they are numbers), none for others.

    Raises:
        InputError: there is no such codec; the labels' order is not known; no confidence gives the precision of
            ``abstain_at``.
        EncoderError: the encoder does not have the hidden states that the recipe reads.
        DataError: rows that cannot be trained on.
        StoreError: the feature store cannot be used.
    """
    progress, watch = progress or Progress(), watch or Stopwatch()
    for option, given, choices in (
        ("store", codec, CODECS),
        ("pairs", pairs, ("auto", *PAIR_MODES)),
        ("layers", layers, (None, AUTO_LAYERS)),
    ):
        if given not in choices:
            raise InputError(allowed(option, given, choices))
    if ensemble and not (seeds > 1 and isinstance(recipe.head, PooledConfig)):
        problem = "an ensemble is of several seeds' heads of the default preset. "
        raise InputError(f"{problem}Give --seeds 2 or more and --preset default, or leave out --ensemble")
    states = encoder.resolve_states(recipe.layers, pairs=train.text_pairs is not None)
    rows = task_rows(train, validation, test, seed=seed, order=label_order)
    target = rows.target
    check_abstain_at(target, abstain_at, len(rows.validation))
    if pairs != "auto" and train.text_pairs is None:
        raise InputError(f"pairs is for two texts a row, and these are single texts. Got {pairs!r}. Leave it out")
    if target.kind == "regression" and recipe.training.label_weights is not None:
        raise InputError("label weights are for labels, and these are numbers. Leave out --label-weights")
    rows = _with_label_texts(rows, label_texts, recipe, progress, pairs=train.text_pairs is not None)
    truth = rows.truth
    modes: Sequence[PairMode | None] = [None] if train.text_pairs is None else pair_modes(pairs)
    with watch.stage("encode"):
        states, recipe, written = _resolve_layers(
            layers,
            states,
            # Validation rows report on the choice of hidden states, so they must not take part in it.
            train.select(rows.train),
            encoder,
            store,
            recipe,
            codec=codec,
            modes=modes,
            seed=seed,
            progress=progress,
            target=target,
        )
    jobs = [
        Job(truth, recipe, number, target.objective, target.outputs, rows.label_texts)
        for number in range(seed, seed + seeds)
    ]

    def attempt(mode: PairMode | None) -> _Attempt:
        with watch.stage("encode"):
            features, cache = stored_inputs(
                rows.inputs, encoder, store, progress, states=states, separate=mode == "separate", codec=codec
            )
        with watch.stage("train"):
            fits = fit_heads(
                features,
                jobs,
                train=np.concatenate((rows.train, rows.label_texts)),
                validation=rows.validation,
                seed=seed,
                refit=refit and validation is None,
                device=encoder.device,
                progress=progress,
            )
        return _Attempt(mode, features, cache, fits)

    smoothing = recipe.training.smoothing_of(target.objective)
    taken, cache, complete = _better(attempt, modes, target, truth[rows.validation], smoothing, progress)
    fits, features = taken.fits, taken.features
    written = min(written, cache.hits)  # Ctrl-C may have come before all of the sample was read again
    cache = replace(cache, hits=cache.hits - written, misses=cache.misses + written)
    best = max(range(seeds), key=lambda number: fits[number].history[fits[number].chosen].score)
    if ensemble:
        best, fits = seeds, [*fits, _together(fits, fits[best])]
    fit = fits[best] if complete else replace(fits[best], interrupted=True)
    with watch.stage("evaluate"):
        calibrations, found, logits = _judged(target, fits, best, rows, features, smoothing, abstain_at)
        before = zero_shot(features, rows)
        held = train.select(rows.validation) if validation is None else validation
        judged = {"validation": Judged(held, truth[rows.validation], fit.validation_logits, fit.chosen_head)}
        if test is not None and len(logits) > best:
            judged["test"] = Judged(test, truth[rows.test], logits[best], fit.head)
        if test is not None and len(logits) < len(fits):
            fit = replace(fit, interrupted=True)
    reports = found[best]
    by_seed = {
        seed + number: {split: report.metrics for split, report in each.items()}
        for number, each in enumerate(found[:seeds])
    }
    task = Task(
        name,
        target,
        encoder.identity,
        states,
        fit.head.config if isinstance(fit.head, PooledHead) else recipe.head,
        fit.head,
        calibrations[best],
        metrics={split: report.metrics for split, report in reports.items()},
        training={
            "seed": None if ensemble else seed + best,
            "seeds": [seed, seeds],
            "store": codec,
            "label_weights": recipe.training.label_weights,
            "recipe": recipe_to_json(recipe),
            "rows": rows.counts,
            "steps": fit.history[fit.chosen].step,
            "label_texts": len(rows.label_texts),
            "zero_shot": before,
            "refitted": fit.refitted,
            "interrupted": fit.interrupted,
        },
        pair=taken.pair,
        exemplars=_exemplars(fit, features, rows),
        basis=features.codec if isinstance(features.codec, PcaInt8Codec) else None,
    )
    judged = {split: judged[split] for split in reports}
    cut = int(features.truncated_rows.sum())
    return Trained(task, fit, reports, judged, before, by_seed, rows.counts, rows.shared, cache, cut)


def _with_label_texts(
    rows: TaskRows, label_texts: LabelTexts | None, recipe: Recipe, progress: Progress, *, pairs: bool
) -> TaskRows:
    """The rows with the labels' texts, or with those that stand for none being given."""
    if label_texts is None:
        label_texts = default_label_texts(recipe.head, rows.target, pairs=pairs)
        may_help = label_texts is None and not pairs and meaningful_names(rows.target)
        if may_help and rows.median_of_labels <= FEW_ROWS:
            progress.say(
                "few rows of each label: --preset few-shot, or --label-texts with what the labels mean, often helps"
            )
    return rows.with_label_texts(describe_labels(label_texts, rows.target, pairs=pairs))


def _resolve_layers(
    layers: str | None,
    states: States,
    train: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    recipe: Recipe,
    *,
    codec: str,
    modes: Sequence[PairMode | None],
    seed: int,
    progress: Progress,
    target: Target,
) -> tuple[States, Recipe, int]:
    """The hidden states, which ``auto`` chooses, the recipe with them, and how many texts the choice has stored."""
    if layers != AUTO_LAYERS:
        return states, recipe, 0
    choice = choose_layers(
        train, encoder, store, recipe, codec=codec, modes=modes, seed=seed, progress=progress, target=target
    )
    progress.say(choice.message)
    return choice.states, replace(recipe, layers=choice.states), choice.written


def _exemplars(fit: FitResult, features: Features, rows: TaskRows) -> Exemplars | None:
    """For labels that are added later; the task is not lost for them."""
    with suppress(KeyboardInterrupt):
        return keep_exemplars(fit.head, features, rows.truth, rows.validation, rows.train)
    return None


@dataclass(frozen=True)
class _Attempt:
    """Heads on features that pairs were read in one way for."""

    pair: PairMode | None
    features: Features
    cache: CacheUse
    fits: list[FitResult]

    def losses(self, target: Target, truth: np.ndarray, smoothing: float) -> torch.Tensor:
        """(validation rows,) float64: the chosen heads' mean calibrated loss; a score of a few rows is noisier."""
        logits = [
            torch.from_numpy(calibrated(target, fit.validation_logits, truth, smoothing=smoothing)) for fit in self.fits
        ]
        found = [row_losses(target.objective, each, torch.from_numpy(truth)) for each in logits]
        return torch.stack(found).mean(0)


def _judged(
    target: Target,
    fits: list[FitResult],
    best: int,
    rows: TaskRows,
    features: Features,
    smoothing: float,
    abstain_at: float | None,
) -> tuple[list[Calibration], list[dict[str, Report]], list[np.ndarray]]:
    """Each head's calibration and reports, and its logits of the test rows; Ctrl-C leaves out those of later heads.

    Only the best head has to reach the precision of ``abstain_at``.
    """
    truth, held, test = rows.truth, rows.validation, rows.test
    calibrations = [_calibrated(target, fit, rows, smoothing, abstain_at, must=fit is fits[best]) for fit in fits]
    found = [
        {"validation": evaluate(target, calibration, truth[held], fit.validation_logits)}
        for fit, calibration in zip(fits, calibrations, strict=True)
    ]
    logits: list[np.ndarray] = []
    with suppress(KeyboardInterrupt):  # the heads are trained, and should not be lost for their reports
        for fit, calibration, reports in zip(fits, calibrations, found, strict=True) if len(test) else ():
            each = logits_of(fit.head, features, torch.from_numpy(test))
            reports["test"] = evaluate(target, calibration, truth[test], each)
            logits.append(each)
    return calibrations, found, logits


def _calibrated(
    target: Target, fit: FitResult, rows: TaskRows, smoothing: float, abstain_at: float | None, *, must: bool
) -> Calibration:
    truth = rows.truth[rows.validation]
    fitted = partial(calibrate, target, fit.validation_logits, truth, smoothing=smoothing)
    try:
        return fitted(abstain_at=abstain_at)
    except InputError:
        if must:
            raise
        return fitted()


def _together(fits: list[FitResult], best: FitResult) -> FitResult:
    """The heads of several fits as one, with the history of the best of them."""
    heads = cast("list[PooledHead]", [fit.head for fit in fits])
    chosen = cast("list[PooledHead]", [fit.chosen_head for fit in fits])
    logits = np.mean([fit.validation_logits for fit in fits], axis=0)
    return replace(best, head=PooledHead.joined(heads), chosen_head=PooledHead.joined(chosen), validation_logits=logits)


def pair_modes(pairs: PairMode | Literal["auto"]) -> tuple[PairMode, ...]:
    """Ways of reading pairs to try, the one first that is taken where the other is not clearly better."""
    return ("separate", "joint") if pairs == "auto" else (pairs,)


def _better(
    attempt: Callable[[PairMode | None], _Attempt],
    modes: Sequence[PairMode | None],
    target: Target,
    truth: np.ndarray,
    smoothing: float,
    progress: Progress,
) -> tuple[_Attempt, CacheUse, bool]:
    """The attempt to take, the use of the store by all, and whether all came to their end.

    Of two ways of reading pairs the joint one is taken where its calibrated loss on the validation rows, of targets
    ``truth``, is clearly lower.

    Ctrl-C leaves out later ones, and one that it has ended early is not compared.
    """
    attempts = [attempt(modes[0])]
    complete = not attempts[0].fits[0].interrupted
    for mode in modes[1:] if complete else ():
        try:
            found = attempt(mode)
        except KeyboardInterrupt:
            complete = False
            break
        if found.fits[0].interrupted:
            complete = False
            break
        attempts.append(found)
    best = attempts[0]
    if len(attempts) > 1:
        losses = {each.pair: each.losses(target, truth, smoothing) for each in attempts}
        taken = "joint" if clearly_lower(losses["joint"], losses["separate"]) else "separate"
        best = next(each for each in attempts if each.pair == taken)
        progress.say(
            f"pairs: {taken}, as the calibrated validation loss is {float(losses['joint'].mean()):.4f} joint and "
            f"{float(losses['separate'].mean()):.4f} separate; the standard error of the difference is "
            f"{standard_error(losses['separate'] - losses['joint']):.4f}"
        )
    use = CacheUse(*(sum(getattr(each.cache, name) for each in attempts) for name in ("hits", "misses", "bytes")))
    return best, use, complete

"""Texts without labels, and what a default head says of them -> a light head that has learned it, too.

This is distillation (arXiv 1503.02531). A light head learns from texts without labels how probable the default head
takes each label to be, so that it needs fewer labelled rows to answer as that would. The default head that is asked has
not learned from the validation rows, so these stay new to both heads, and still bound what a cascade changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import Answers
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError, quantity
from ytuning.evaluation.evaluate import EvaluatedRows, evaluate
from ytuning.features.features import Features, stored_inputs
from ytuning.features.pools import RowSet, row_keys, stored_pools
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress
from ytuning.tasks.add_cascade import why_no_cascade
from ytuning.tasks.light_labels import LightRows, scope_of_fit
from ytuning.tasks.train import Stopwatch, Trained
from ytuning.training.batches import sample_rows
from ytuning.training.calibration import calibrated_losses, fit_calibration
from ytuning.training.fit import logits_of
from ytuning.training.light import MOST_ROWS, WHOLE, LightFit, LightJob, fit_light

__all__ = ["distill_light_head"]

# Rows whose shares are computed at a time.
SHARED_ROWS = 1024


def distill_light_head(
    default: Trained,
    light: Trained,
    unlabelled: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    abstain_at: float | None = None,
) -> tuple[Trained, str]:
    """Fit the light head of a task again, also on what the default head says of texts without labels.

    Args:
        default: the training of the default head.
        light: the training of the light head, with the same validation rows.
        unlabelled: texts or pairs, as those of the training. Those that are blank, come again or are rows of the
            training, of validation or of test are left out, and so is what would be more than ``light.MOST_ROWS`` rows.
        encoder: reads the texts.
        store: has the texts that the light head was fitted on.
        progress: is told what the encoder reads.
        abstain_at: the precision below which the task gives no label.

    Returns:
        The training of a light head that stands beside the default head, without a record of its rows. Or the one that
        was given, if no text can be learned from, or if the new one answers less like the default head on validation
        rows: texts of another kind make it worse. And a sentence about it.

    Raises:
        ValueError: the two are no trainings of the same task (`add_cascade.why_no_cascade`).
        StoreError: the store cannot be used.
    """
    task, watch = light.task, Stopwatch()
    name = f"task {task.name!r}"
    if why_no_cascade(default, light):
        return light, f"{name}: the texts without labels are not used, because there is no cascade"
    record = LightRows(task, encoder, store)
    known = [record.rows.keys, *(row_keys(own.data.inputs, task.pair_mode) for own in light.judged.values())]
    texts = _new_texts(unlabelled, known, max(0, MOST_ROWS - len(record.rows.held)), task.pair_mode)
    if not texts:
        return light, f"{name}: the texts without labels are not used, because none is new, or there is no room for any"
    with watch.stage("encode"):
        answers, shares = _ask(default, texts, encoder, store, progress)
        mode, codec = task.pair_mode, task.codec.name
        stored_pools(texts, encoder, store, progress, states=task.states, pair_mode=mode, codec=codec)
    with watch.stage("train"):
        rows = record.rows.with_rows(
            RowSet.of_inputs(texts, mode, answers.astype(record.rows.targets.dtype), np.zeros(len(texts), bool))
        )
        pools = rows.features(encoder, store, states=task.states, codec=codec)
        if pools is None:
            raise record.lost()
        fitted, logits = _fit(default, light, rows, pools, shares)
    before, after = (_gap(default, own) for own in (light.judged["validation"].logits, logits))
    of_texts = f"{quantity(len(texts), 'text')} without labels"
    measure = "loss on the validation rows, with the default head's answers as labels,"
    figures = f"its {measure} is {after:.4f} with them and {before:.4f} without"
    if not after < before:
        return light, f"{name}: the light head does not learn from {of_texts}, as {figures}"
    try:
        learned = _with_head(light, fitted, logits, len(texts), abstain_at)
    except InputError:
        return light, f"{name}: the light head stays as it was, because the new one does not reach the precision"
    scope = None
    if task.scope is not None:
        # Texts without labels may be out of scope.
        train = np.flatnonzero(~record.rows.held)
        scope = scope_of_fit(fitted, task.target, rows, pools, learned.task.calibration.temperature, task, train=train)
    learned = replace(learned, task=replace(learned.task, scope=scope), seconds=watch.seconds)
    return learned, f"{name}: the light head has also learned from {of_texts}: {figures}"


def _new_texts(
    unlabelled: Sequence[TextInput], known: Sequence[np.ndarray], most: int, pair_mode: PairMode | None
) -> list[TextInput]:
    """At most so many of the texts that are not blank and have none of the known keys (N, S, 16), each once."""
    if not unlabelled:
        return []
    seen, new = {key.tobytes() for keys in known for key in keys}, dict[bytes, TextInput]()
    for text, key in zip(unlabelled, row_keys(unlabelled, pair_mode), strict=True):
        if key.tobytes() not in seen and all(part is None or part.strip() for part in text):
            new.setdefault(key.tobytes(), text)
    texts = list(new.values())
    return [texts[place] for place in sample_rows(np.arange(len(texts)), most)]


def _order(inputs: Sequence[TextInput], keys: np.ndarray, pair_mode: PairMode | None) -> np.ndarray:
    """(N,): for each of the keys (N, S, 16) the place of its row among the inputs, which are the same N rows."""
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(row_keys(inputs, pair_mode)):
        places.setdefault(key.tobytes(), []).append(place)
    return np.array([places[key.tobytes()].pop(0) for key in keys], np.int64)


def _ask(
    default: Trained, texts: Sequence[TextInput], encoder: Encoder, store: FeatureStore, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """What the default head answers to N texts, as targets, and its probabilities as shares (N, C)."""
    task = default.task
    features, _ = stored_inputs(
        texts, encoder, store, progress, states=task.states, pair_mode=task.pair_mode, codec=task.codec.name
    )
    logits = logits_of(default.fit.chosen_head, features)
    return _answers(default, logits).values, _shares(default, logits)


def _fit(
    default: Trained, light: Trained, rows: RowSet, pools: Features, shares: np.ndarray
) -> tuple[LightFit, np.ndarray]:
    """Fit a light head on rows with these pools, of which the last ones have shares (n, C) and no labels.

    Returns:
        The fit, and its logits of the validation rows in the order in which these are judged.
    """
    task, judged, held = light.task, default.judged["validation"], np.flatnonzero(rows.held)
    everything, count = np.arange(len(rows.held)), len(rows.held) - len(shares)
    labelled = WHOLE * LightJob(task.target, rows.targets, held).columns(torch.arange(count)).numpy()
    # Of validation rows what the default head says is to be learned, too: by that they choose the strength.
    order = _order(judged.data.inputs, rows.keys[held], task.pair_mode)
    labelled[held] = _shares(default, judged.logits[order])
    job = LightJob(task.target, rows.targets, held, shares=np.concatenate((labelled, shares)))
    weights = task.target.row_weights(task.training["label_weights"], rows.targets)
    (fitted,) = fit_light(pools, [job], rows=everything, row_weights=weights, refit=light.fit.refitted)
    return fitted, fitted.validation_logits[order.argsort()]


def _gap(default: Trained, logits: np.ndarray) -> float:
    """The calibrated loss of logits (N, C) where what a default head answers to the validation rows is true.

    With its probabilities in place of its answers, texts without labels that helped on test rows were refused in 5 of
    12 trainings, and with its answers in 1 (benchmarks/LOG.md).
    """
    judged = default.judged["validation"]
    answers = _answers(default, judged.logits).values.astype(judged.truth.dtype)
    return float(calibrated_losses(default.task.target, logits, answers).mean())


def _answers(default: Trained, logits: np.ndarray) -> Answers:
    """What a default head answers by its logits (N, C), never abstaining."""
    return replace(default.task.calibration, abstain_below=None).answers(default.task.target, logits)


def _shares(default: Trained, logits: np.ndarray) -> np.ndarray:
    """(N, C) int8: the probabilities of a default head's logits (N, C), as `LightJob.shares`.

    Rounding up or down is drawn by chance, so that the mean over many rows is that of the probabilities, also of a
    label that is improbable in each.
    """
    shares, generator = np.empty(logits.shape, np.int8), np.random.default_rng(0)
    for start in range(0, len(logits), SHARED_ROWS):
        rows = slice(start, start + SHARED_ROWS)
        steps = WHOLE * _answers(default, logits[rows]).probabilities
        shares[rows] = np.floor(steps + generator.random(steps.shape))
    return shares


def _with_head(light: Trained, fitted: LightFit, logits: np.ndarray, count: int, abstain_at: float | None) -> Trained:
    """The training of a light head with what was fitted in its place, judged by the logits of validation rows.

    Raises:
        InputError: no confidence gives the precision of ``abstain_at``.
    """
    task, judged = light.task, light.judged["validation"]
    calibration = fit_calibration(
        task.target, logits, judged.truth, smoothing=task.calibration.smoothing, abstain_at=abstain_at
    )
    report = evaluate(task.target, calibration, judged.truth, logits)
    # The rows that it was fitted on are more than those with labels, so labels cannot be added to it.
    training = {key: value for key, value in task.training.items() if key != "light"} | {"unlabelled": count}
    return replace(
        light,
        task=replace(
            task,
            head=fitted.head,
            calibration=calibration,
            metrics={"validation": report.metrics},
            training=training,
        ),
        fit=replace(
            light.fit,
            head=fitted.head,
            chosen_head=fitted.chosen_head,
            validation_logits=logits,
            strength=fitted.strength,
        ),
        reports={"validation": report},
        judged={"validation": EvaluatedRows(judged.data, judged.truth, logits, fitted.chosen_head)},
    )

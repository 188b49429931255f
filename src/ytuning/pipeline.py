"""The main job end to end: data sets -> features -> head -> task and reports. The CLI and the estimator call it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import scipy.special
import torch

from ytuning.artifact import Task
from ytuning.codec_choice import AUTO, choose_codec
from ytuning.codecs import CODECS, DEFAULT_CODEC
from ytuning.data import Dataset, check_labels_known, check_trainable, count_shared, split_holdout
from ytuning.encoder import Encoder
from ytuning.errors import DataError, InputError, allowed
from ytuning.evaluation import Report, evaluate
from ytuning.features import CacheUse, Features, stored_features
from ytuning.labels import LabelSet
from ytuning.progress import Progress
from ytuning.store import FeatureStore
from ytuning.training import FitResult, Job, Recipe, fit_heads, logits_of

__all__ = ["Stopwatch", "Trained", "evaluate_task", "train_task"]


MOST_HELD_OUT = 2000  # rows of a large train set; more would cost train rows and hardly measure better


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
        by_seed: metrics of each seed's head in the same form, seed by seed; ``task`` is the one validation prefers.
        rows: of ``train``, ``validation`` and ``test``.
        shared: rows of ``validation`` and ``test`` whose text is also a train row.
        cache: use of the feature store.
        truncated: rows whose text was cut.
    """

    task: Task
    fit: FitResult
    reports: dict[str, Report]
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
    refit: bool = True,
    codec: str = DEFAULT_CODEC,
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
) -> Trained:
    """Train a task on labelled rows.

    Without ``validation`` a stratified part of ``train`` is held out (:func:`ytuning.data.split_holdout`), and the head
    goes on for some steps on all of ``train`` once they have chosen it, unless ``refit`` is off. With several
    ``seeds``, heads of this seed and those after it are trained together on the same hold-out, and the first of those
    with the best validation accuracy is taken. The features are stored in ``codec`` (:mod:`ytuning.codecs`), or in the
    one that :func:`ytuning.codec_choice.choose_codec` takes.

    Raises:
        InputError: the encoder does not give the hidden states that the recipe reads; there is no such codec.
        DataError: rows that cannot be trained on.
        StoreError: the feature store cannot be used.
    """
    progress, watch = progress or Progress(), watch or Stopwatch()
    if codec not in (*CODECS, AUTO):
        raise InputError(allowed("store", codec, (*CODECS, AUTO)))
    encoder.check_layers(recipe.layers)
    check_trainable(train, holdout=validation is None)
    labels = LabelSet.from_labels(train.labels or [])
    extra = {role: part for role, part in (("validation", validation), ("test", test)) if part is not None}
    for role, part in extra.items():
        _check_same_form(train, part)
        check_labels_known(part, labels, role)
    with watch.stage("encode"):
        everything = [*train.inputs, *(row for part in extra.values() for row in part.inputs)]
        written = 0
        if codec == AUTO:
            choice = choose_codec(train, encoder, store, recipe, seed=seed, progress=progress)
            codec, written = choice.codec, choice.written
            progress.say(choice.message)
        features, cache = stored_features(everything, encoder, store, progress, codec=codec)
        cache = replace(cache, hits=cache.hits - written, misses=cache.misses + written)
    truth = np.concatenate([labels.encode(part.labels or []) for part in (train, *extra.values())])
    bounds = np.cumsum([len(train), *(len(part) for part in extra.values())])
    spans = dict(zip(extra, map(np.arange, bounds[:-1], bounds[1:]), strict=True))
    if validation is None:
        train_rows, held_rows = split_holdout(train, seed, most=MOST_HELD_OUT)
        shared = {"validation": 0}
    else:
        train_rows, held_rows = np.arange(len(train)), spans["validation"]
        shared = {"validation": count_shared(train, validation)}
    if test is not None:
        shared["test"] = count_shared(train, test)
        if validation is not None:
            shared["test_and_validation"] = count_shared(validation, test)
    with watch.stage("train"):
        fits = fit_heads(
            features,
            [Job(truth, recipe, number) for number in range(seed, seed + seeds)],
            train=train_rows,
            validation=held_rows,
            seed=seed,
            refit=refit and validation is None,
            progress=progress,
        )
    best = max(range(seeds), key=lambda number: fits[number].history[fits[number].chosen].accuracy)
    fit = fits[best]
    with watch.stage("evaluate"):
        found = [
            {"validation": evaluate(labels, truth[held_rows], scipy.special.softmax(each.validation_logits, axis=1))}
            for each in fits
        ]
        if test is not None:
            try:
                for each, reports in zip(fits, found, strict=True):
                    reports["test"] = _report(each, features, labels, truth, spans["test"])
            except KeyboardInterrupt:  # the heads are trained, and should not be lost for their reports
                fit = replace(fit, interrupted=True)
    reports = found[best]
    by_seed = {
        seed + number: {split: report.metrics for split, report in each.items()} for number, each in enumerate(found)
    }
    rows = {"train": len(train_rows), "validation": len(held_rows), "test": len(test) if test else 0}
    task = Task(
        name,
        labels,
        encoder.identity,
        recipe.head,
        fit.head,
        metrics={split: report.metrics for split, report in reports.items()},
        training={
            "seed": seed + best,
            "seeds": [seed, seeds],
            "store": codec,
            "label_weights": recipe.training.label_weights,
            "rows": rows,
            "steps": fit.history[fit.chosen].step,
            "refitted": fit.refitted,
            "interrupted": fit.interrupted,
        },
        pair=train.text_pairs is not None,
    )
    return Trained(task, fit, reports, by_seed, rows, shared, cache, int(features.truncated_rows.sum()))


def evaluate_task(
    task: Task, dataset: Dataset, encoder: Encoder, store: FeatureStore, *, progress: Progress | None = None
) -> tuple[Report, CacheUse, int]:
    """A task's report on labelled rows, through the store; also the store's use and the number of cut rows.

    The features are those of the codec that the task was trained in.

    Raises:
        InputError: a newer version trained the task in a codec that this one does not have.
        DataError: rows that do not fit the task.
    """
    if task.pair != (dataset.text_pairs is not None):
        wanted = (
            "pairs of texts: give a second text column"
            if task.pair
            else "single texts: give rows without a second text"
        )
        raise DataError(f"the task {task.name!r} was trained on {wanted}", source=dataset.source)
    check_labels_known(dataset, task.labels, "evaluation")
    features, cache = stored_features(dataset.inputs, encoder, store, progress or Progress(), codec=task.codec)
    probabilities = scipy.special.softmax(logits_of(task.head, features), axis=1)
    report = evaluate(task.labels, task.labels.encode(dataset.labels or []), probabilities)
    return report, cache, int(features.truncated_rows.sum())


def _report(fit: FitResult, features: Features, labels: LabelSet, truth: np.ndarray, rows: np.ndarray) -> Report:
    logits = logits_of(fit.head, features, torch.from_numpy(rows))
    return evaluate(labels, truth[rows], scipy.special.softmax(logits, axis=1))


def _check_same_form(train: Dataset, other: Dataset) -> None:
    if (train.text_pairs is None) != (other.text_pairs is None):
        paired, single = (train, other) if train.text_pairs is not None else (other, train)
        raise DataError(
            f"the rows are single texts, but those of {paired.source} are pairs. Use the same columns in both",
            source=single.source,
        )

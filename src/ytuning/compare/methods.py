"""The methods that can be compared: each trains on the same rows and answers the same rows, and tells what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ytuning.compare.fine_tuning import (
    FULL_RATES,
    LORA_RATES,
    TunedEncoder,
    TuningConfig,
    TuningRows,
    full_fine_tuning,
    load_setfit,
    lora,
    setfit,
    setfit_pairs,
)
from ytuning.compare.linear_probe import tuned_probe
from ytuning.data.dataset import Dataset, TextInput, labels_of
from ytuning.data.kinds import TaskKind
from ytuning.data.splits import MOST_HELD_OUT, split_holdout, target_of
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import States
from ytuning.errors import InputError, must_be_one_of, parameter
from ytuning.evaluation.evaluate import evaluate
from ytuning.features.features import Features, mean_pooled, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress
from ytuning.system.machine import peak_bytes, require
from ytuning.tasks.choices import pair_modes
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.task import Task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.calibration import Calibration, fit_calibration
from ytuning.training.fit import logits_of
from ytuning.training.recipes import preset

__all__ = ["METHODS", "TUNINGS", "Run", "Work", "check_encoders", "check_methods", "run_method", "work_on"]

ENCODER_FACTS = ("name", "parameters", "precision", "width", "max_length")
# Methods that train the encoder take this many epochs, or more to reach this many steps, as few rows need more passes.
EPOCHS, FEWEST_STEPS = 5, 300
# Such a training stops early after this share of its epochs without a better validation.
PATIENCE = 0.4
# The speed of a trained task is measured on at most this number of texts, as the median of several rounds.
SERVED_TEXTS, SERVED_ROUNDS = 256, 3
TUNINGS: dict[str, tuple[Callable[..., TunedEncoder], Sequence[float]]]
TUNINGS = {"full": (full_fine_tuning, FULL_RATES), "lora": (lora, LORA_RATES)}
"""What trains the encoder, and the learning rates that are worth a search; the first is taken without one."""


@dataclass(frozen=True)
class Work:
    """What every method gets; made by :func:`work_on`.

    Attributes:
        train: rows to train on; without ``validation`` those that choose are held out of them.
        validation: rows that choose.
        test: rows that judge; ``None``: those that chose do.
        target: kind of the task, with the labels of the training rows.
        encoder: folder or name.
        epochs: maximum for methods that train the encoder; ``None`` means 5, or more where few rows need 300 steps.
        search_rates: whether these try several learning rates.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    target: TaskKind
    encoder: str
    epochs: int | None = None
    search_rates: bool = False

    @property
    def inputs(self) -> list[TextInput]:
        """The inputs of the training rows, then of the validation rows."""
        return [row for part in (self.train, self.validation) if part for row in part.inputs]

    @property
    def targets(self) -> np.ndarray:
        """The targets of the same rows as ``inputs``."""
        return np.concatenate([self.target.encode(labels_of(part)) for part in (self.train, self.validation) if part])

    @property
    def pair_modes(self) -> Sequence[PairMode | None]:
        """Ways of reading pairs that a method may choose from; ``None`` of single texts."""
        return pair_modes("auto", has_pairs=self.train.has_pairs)

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of rows to train on and of rows that choose; a seed's are the same for every method."""
        if self.validation is None:
            return split_holdout(self.train, seed, most=MOST_HELD_OUT)
        return np.arange(len(self.train)), len(self.train) + np.arange(len(self.validation))

    def calibrated(self, held: np.ndarray, logits: np.ndarray) -> Calibration:
        """What the rows that choose, at these positions, teach about using a method's logits (rows, C) of them."""
        return fit_calibration(self.target, logits, self.targets[held])

    def judged(self, seed: int) -> np.ndarray:
        """Targets of the rows that judge a seed's methods."""
        if self.test is not None:
            return self.target.encode(labels_of(self.test))
        targets: np.ndarray = self.targets[self.split(seed)[1]]
        return targets


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Attributes:
        method: its name.
        seed: seed of the split, the weights and the order of rows.
        metrics: metrics on the rows that judge.
        predicted: answers there: label ids, lists of them, or numbers.
        seconds: time from the rows to the trained model.
        seconds_with_stored_features: the same for a further task on the same texts; ``None``: the method reads no
            stored features.
        parameters: number of trained parameters.
        peak_bytes: peak memory of the process, Python and packages included.
        stored_bytes: bytes of all stored features, those of test texts included; ``None``: the method stores none.
        stored_texts: number of distinct texts, or of pairs encoded together, that these are of.
        texts_per_second: that the trained task answers without stored features; ``None``: the method trains no task.
        rows: numbers of rows of ``train``, ``validation`` and ``judged``.
        encoder: name, fingerprint, parameters, precision, width and maximum length of a text in tokens.
        details: what was chosen, by name.
        workers: number of runs that were measured at the same time at most, this one included.
    """

    method: str
    seed: int
    metrics: dict[str, float]
    predicted: list[Any]
    seconds: float
    seconds_with_stored_features: float | None
    parameters: int
    peak_bytes: int | None
    stored_bytes: int | None
    stored_texts: int | None
    texts_per_second: float | None
    rows: dict[str, int]
    encoder: dict[str, Any]
    details: dict[str, Any]
    workers: int = 1


def work_on(
    train: Dataset,
    encoder: str,
    *,
    validation: Dataset | None = None,
    test: Dataset | None = None,
    label_order: Sequence[str] | None = None,
    epochs: int | None = None,
    search_rates: bool = False,
) -> Work:
    """What is compared on, checked as `train.train_task` does, with the same errors."""
    target = target_of(train, validation, test, label_order)
    return Work(train, validation, test, target, encoder, epochs, search_rates)


def check_methods(names: Sequence[str]) -> None:
    """Whether these can be compared.

    Raises:
        InputError: there is no name, one twice, or an unknown one.
    """
    for name in names:
        if name not in METHODS:
            raise InputError(must_be_one_of(parameter("methods"), name, METHODS))
    if not names or len(set(names)) < len(names):
        problem = f"{parameter('methods')} must name each method once, and at least one. "
        raise InputError(f"{problem}Got {','.join(names)!r} instead.")


def check_encoders(names: Sequence[str]) -> None:
    """Whether these can be compared with each other.

    Raises:
        InputError: there are fewer than two names, an empty one, or one twice.
    """
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        problem = f"{parameter('encoders')} must name each encoder once, and at least two. "
        raise InputError(f"{problem}Got {','.join(names)!r} instead.")


def run_method(name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
    """Train and judge one method with one seed.

    Args:
        name: one of ``METHODS``.
        work: rows and settings.
        seed: seed of the run, as in :class:`Run`.
        store: folder for a feature store that nobody has written to.
        progress: is told every step.

    Raises:
        MissingExtraError: a package that the method needs is not installed.
        InputError: it cannot do this kind of task.
    """
    outcome = METHODS[name](work, seed, store, progress)
    # Before the task is served, which is not part of the training. The predictor loads an encoder of its own.
    peak = peak_bytes()
    outcome.encoder.release()
    spaces = FeatureStore(store).spaces()
    truth = work.judged(seed)
    rows = dict(zip(("train", "validation"), map(len, work.split(seed)), strict=True))
    identity = outcome.encoder.identity
    return Run(
        method=name,
        seed=seed,
        metrics=evaluate(work.target, outcome.calibration, truth, outcome.logits).metrics,
        predicted=work.target.answers_to_json(outcome.calibration.answers(work.target, outcome.logits).values),
        seconds=outcome.seconds,
        seconds_with_stored_features=outcome.seconds_with_stored_features,
        parameters=outcome.parameters,
        peak_bytes=peak,
        stored_bytes=sum(space.size for space in spaces) if spaces else None,
        stored_texts=sum(len(space) for space in spaces) if spaces else None,
        texts_per_second=None if outcome.task is None else _texts_per_second(work, seed, outcome.task),
        rows={**rows, "judged": len(truth)},
        encoder={"fingerprint": identity.fingerprint, **{fact: getattr(identity, fact) for fact in ENCODER_FACTS}},
        details=outcome.details,
    )


@dataclass(frozen=True)
class _Outcome:
    """What a method gives; ``logits`` (rows, C) of the rows that judge, ``task`` if a predictor can answer with it."""

    encoder: Encoder
    logits: np.ndarray
    calibration: Calibration
    seconds: float
    parameters: int
    task: Task | None = None
    seconds_with_stored_features: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


def _texts_per_second(work: Work, seed: int, task: Task) -> float:
    """Return the texts or pairs a second that a trained task answers, the encoder pass included.

    This is the median of some rounds after one that is not counted, over distinct texts of the rows that judge.
    """
    rows = work.test.inputs if work.test is not None else [work.inputs[row] for row in work.split(seed)[1]]
    distinct = list(dict.fromkeys(rows))
    # Rows may be sorted, so those that are taken lie evenly between the first and the last.
    places = np.linspace(0, len(distinct) - 1, min(len(distinct), SERVED_TEXTS)).astype(int).tolist()
    texts, seconds, predictor = [distinct[place] for place in places], [], Predictor(task)
    for _ in range(1 + SERVED_ROUNDS):
        start = time.perf_counter()
        list(predictor.predict(texts))
        seconds.append(time.perf_counter() - start)
    return len(texts) / median(seconds[1:])


# --- on stored features ---------------------------------------------------------------------------------------------


def _head(work: Work, seed: int, store: Path, progress: Progress, preset_name: str) -> _Outcome:
    """Run our own method with a preset: the main job, as ``ytuning train`` runs it."""
    recipe = preset(preset_name)
    start = time.perf_counter()
    encoder, features = load_encoder(work.encoder), FeatureStore(store)
    trained = train_task(
        work.train,
        encoder,
        features,
        recipe,
        validation=work.validation,
        options=TrainOptions(seed=seed, label_order=work.target.names if work.target.has_order else None),
        progress=progress,
    )
    seconds = time.perf_counter() - start
    if trained.fit.interrupted:
        raise KeyboardInterrupt
    task = trained.task
    logits = trained.fit.validation_logits
    if work.test is not None:
        inputs, mode = work.test.inputs, task.pair_mode
        logits = logits_of(task.head, _encode(inputs, encoder, features, progress, task.states, mode))
    reading = _reading_seconds(work, encoder, features, task.states)
    return _Outcome(
        encoder,
        logits,
        task.calibration,
        seconds,
        task.head_parameters,
        task,
        seconds - trained.seconds["encode"] + reading,
        {"steps": trained.fit.history[trained.fit.chosen].step, "pairs": task.pair_mode},
    )


def _logistic(work: Work, seed: int, store: Path, progress: Progress) -> _Outcome:
    """Tuned logistic or ridge regression; of pairs that are read in both ways, validation chooses."""
    start = time.perf_counter()
    encoder, features = load_encoder(work.encoder), FeatureStore(store)
    states = encoder.resolve_states(None)
    inputs, targets, split = work.inputs, work.targets, work.split(seed)
    encode, probes = 0.0, []
    for mode in work.pair_modes:
        begun = time.perf_counter()
        encoded = _encode(inputs, encoder, features, progress, states, mode)
        encode += time.perf_counter() - begun
        probe = tuned_probe(work.target, mean_pooled(encoded), targets, *split, refit=work.validation is None)
        probes.append((probe, mode))
    probe, mode = min(probes, key=lambda tried: tried[0].validation_loss)
    calibration = work.calibrated(split[1], probe.validation_logits)
    seconds = time.perf_counter() - start
    logits = probe.validation_logits
    if work.test is not None:
        logits = probe.logits(mean_pooled(_encode(work.test.inputs, encoder, features, progress, states, mode)))
    reading = _reading_seconds(work, encoder, features, states)
    details = {"strength": probe.strength, "pairs": mode}
    return _Outcome(encoder, logits, calibration, seconds, probe.parameters, None, seconds - encode + reading, details)


def _encode(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    states: States,
    mode: PairMode | None,
) -> Features:
    return stored_inputs(inputs, encoder, store, progress, states=states, pair_mode=mode)[0]


def _reading_seconds(work: Work, encoder: Encoder, store: FeatureStore, states: States) -> float:
    """Return the seconds that reading stored features takes in place of the encoder pass."""
    start = time.perf_counter()
    for mode in work.pair_modes:
        _encode(work.inputs, encoder, store, Progress(), states, mode)
    return time.perf_counter() - start


# --- training the encoder -------------------------------------------------------------------------------------------


def _tune(work: Work, seed: int, progress: Progress, name: str) -> _Outcome:
    """Run a method that trains the encoder. The two texts of a pair are encoded together, as is usual."""
    train, rates = TUNINGS[name]
    if name == "lora":
        # Importing takes seconds, which are not to be timed.
        require("peft", "peft")
    start = time.perf_counter()
    encoder, split, targets = load_encoder(work.encoder), work.split(seed), work.targets
    # Training loads its own copy of the model, and this one would be counted as part of its memory.
    encoder.release()
    tuned = train(
        encoder,
        TuningRows(work.target, work.inputs, targets, *split),
        config=_config(work, rates[0], len(split[0])),
        rates=rates if work.search_rates else None,
        seed=seed,
        progress=progress,
    )
    if not np.isfinite(tuned.validation_logits).all():
        tried = ", ".join(f"{rate:g}" for rate in tuned.rates)
        raise InputError(f"the training diverged with a learning rate of {tried}. Try several with --search-rates")
    calibration = work.calibrated(split[1], tuned.validation_logits)
    seconds = time.perf_counter() - start
    logits = tuned.validation_logits if work.test is None else tuned.logits(work.test.inputs)
    epoch = 1 + int(np.argmax(tuned.validation_scores))
    rates_tried = {f"{rate:g}": score if math.isfinite(score) else None for rate, score in tuned.rates.items()}
    details = {"learning_rate": tuned.learning_rate, "epoch": epoch, "rates": rates_tried}
    return _Outcome(encoder, logits, calibration, seconds, tuned.parameters, details=details)


def _config(work: Work, rate: float, rows: int) -> TuningConfig:
    config = TuningConfig(rate)
    epochs = work.epochs or max(EPOCHS, math.ceil(FEWEST_STEPS / math.ceil(rows / config.batch_size)))
    return replace(config, epochs=epochs, patience=math.ceil(PATIENCE * epochs))


def _setfit(work: Work, seed: int, _: Path, progress: Progress) -> _Outcome:
    """Run SetFit, which is not trained on the rows that judge.

    It has no validation rows, so its logits are not calibrated.
    """
    if not work.target.is_nominal or work.train.has_pairs:
        kind = "pairs" if work.train.has_pairs else f"kind {work.target.kind!r}"
        raise InputError(f"SetFit takes single texts with one label each, and these rows are of {kind}. Leave it out")
    # Importing takes seconds, which are not to be timed.
    load_setfit()
    held = work.split(seed)[1]
    rows = np.arange(len(work.train)) if work.test is not None else work.split(seed)[0]
    pairs = setfit_pairs(len(rows))
    start = time.perf_counter()
    encoder = load_encoder(work.encoder)
    # SetFit loads its own copy of the model, and this one would be counted as part of its memory.
    encoder.release()
    texts = [text for text, _ in work.inputs]
    model = setfit(encoder, [texts[row] for row in rows], work.targets[rows], pairs=pairs, seed=seed)
    seconds = time.perf_counter() - start
    logits = model.logits(work.test.texts if work.test is not None else [texts[row] for row in held])
    details = {"pairs_of_each_kind_for_a_row": pairs}
    return _Outcome(encoder, logits, Calibration(), seconds, model.parameters, details=details)


METHODS: dict[str, Callable[[Work, int, Path, Progress], _Outcome]] = {
    "ytuning": lambda work, seed, store, progress: _head(work, seed, store, progress, "default"),
    "paper": lambda work, seed, store, progress: _head(work, seed, store, progress, "paper"),
    "few-shot": lambda work, seed, store, progress: _head(work, seed, store, progress, "few-shot"),
    "logistic": _logistic,
    "full": lambda work, seed, _, progress: _tune(work, seed, progress, "full"),
    "lora": lambda work, seed, _, progress: _tune(work, seed, progress, "lora"),
    "setfit": _setfit,
}

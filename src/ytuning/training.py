"""Fits a label head on stored features: early stopping on validation rows, then a refit on all rows."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ytuning.errors import InputError, allowed
from ytuning.features import Features, ordered_batches
from ytuning.head import CrossAttentionConfig, HeadConfig, LabelHead, PooledConfig, build_head
from ytuning.progress import Progress

__all__ = [
    "PRESETS",
    "FitResult",
    "Recipe",
    "Round",
    "TrainingConfig",
    "fit_head",
    "logits_of",
    "preset",
    "weighing_labels",
]

LOSSES = ("cross_entropy", "triplet")
SORTED_BATCHES = 32  # shuffled rows are sorted by length within so many batches, which saves most of the padding
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained; steps follow from the number of rows by one rule for every data set.

    Attributes:
        loss: ``"cross_entropy"``, or ``"triplet"`` with ``margin``.
        margin: by which the true label's logit should exceed every other.
        label_smoothing: share of the target that cross-entropy spreads over all labels.
        epochs: wanted passes over the train rows...
        fewest_steps: ...but at least so many optimiser steps, as small sets are under-trained otherwise...
        most_steps: ...and at most so many.
        batch_size: rows in a step, and at most a sixteenth of the train rows (but 16).
        learning_rate: highest rate of AdamW, reached after ``warmup`` (share of the steps), then linear decay to 0.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        rounds: validations, at equal distances.
        patience: rounds in a row, each worse than the best by over a standard error, that end the training.
        label_weights: of a row's loss, by its label: ``None``, ``"balanced"`` (n / (C * count)), or the weight of each
            label by id; scaled so that the train rows' mean is 1.
    """

    loss: str = "cross_entropy"
    margin: float = 2.0
    label_smoothing: float = 0.1
    epochs: int = 7
    fewest_steps: int = 500
    most_steps: int = 1200
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    rounds: int = 10
    patience: int = 3
    label_weights: str | tuple[float, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """A head's form, how it is trained, and the hidden states that it reads.

    Attributes:
        head: form and sizes.
        training: losses, steps and rates.
        layers: hidden states of the encoder, as for :func:`ytuning.encoder.load_encoder`; ``None``: its default ones.
    """

    head: HeadConfig = field(default_factory=PooledConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    layers: tuple[int, ...] | None = None


def default_recipe() -> Recipe:
    """Pool first, then match: chosen by experiment on validation rows (benchmarks/RESULTS.md)."""
    return Recipe(PooledConfig(), TrainingConfig())


def paper_recipe() -> Recipe:
    """Label rows that attend to every token of the last hidden state, triplet loss: Y-Tuning (arXiv 2202.09817)."""
    return Recipe(CrossAttentionConfig(), TrainingConfig(loss="triplet", learning_rate=1e-3), layers=(-1,))


PRESETS: dict[str, Callable[[], Recipe]] = {"default": default_recipe, "paper": paper_recipe}


def preset(name: str) -> Recipe:
    """The recipe of a preset's name.

    Raises:
        InputError: unknown name.
    """
    if name not in PRESETS:
        raise InputError(allowed("preset", name, PRESETS))
    return PRESETS[name]()


def weighing_labels(recipe: Recipe, weights: str | tuple[float, ...] | None) -> Recipe:
    """The recipe with label weights, see :class:`TrainingConfig`."""
    return replace(recipe, training=replace(recipe.training, label_weights=weights))


@dataclass(frozen=True)
class Round:
    """One validation: after ``step`` optimiser steps, ``loss`` (cross-entropy) and ``accuracy`` on validation rows."""

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class FitResult:
    """A trained head and how it came about.

    Attributes:
        head: in evaluation mode.
        history: every validation round.
        chosen: position in ``history`` of the round whose steps were taken.
        validation_logits: (validation rows, C) float32 of the head that validation chose, before any refit.
        refitted: whether ``head`` was trained again on all rows.
        interrupted: whether Ctrl-C ended the training early.
    """

    head: LabelHead
    history: list[Round]
    chosen: int
    validation_logits: np.ndarray
    refitted: bool
    interrupted: bool


def fit_head(
    features: Features,
    targets: np.ndarray,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    recipe: Recipe,
    seed: int = 0,
    refit: bool = True,
    progress: Progress | None = None,
) -> FitResult:
    """Train one head; the same arguments give the same weights, bit for bit, on one machine.

    Of all validation rounds the last one within half a standard error of the best is chosen: on a few rows accuracy is
    mostly noise, and the later head has been annealed further.

    Args:
        features: of all rows.
        targets: (rows,) label ids; every id below the largest occurs.
        train: positions of train rows.
        validation: positions of validation rows, which choose the number of steps.
        recipe: form of the head and its training.
        seed: of the weights, the order of rows and dropout.
        refit: whether to train again on train and validation rows together, for the chosen share of the steps.
        progress: is told every step; Ctrl-C ends the training and gives the best head so far.

    Raises:
        InputError: an unknown loss or label weights that do not fit.
    """
    progress = progress or Progress()
    goal = torch.from_numpy(np.asarray(targets, np.int64))
    with torch.random.fork_rng(devices=[]), _one_thread():
        run = _Run(features, goal, train, recipe, seed)
        if not refit:
            return _search(run, torch.from_numpy(validation), progress)
        with _Refit(_Run(features, goal, np.union1d(train, validation), recipe, seed)) as aside:
            best = _search(run, torch.from_numpy(validation), progress, aside)
            if best.interrupted:
                return best
            try:
                return replace(best, head=aside.head(best.chosen, progress), refitted=True)
            except KeyboardInterrupt:
                return replace(best, interrupted=True)


def logits_of(head: LabelHead, features: Features, rows: Tensor | None = None) -> np.ndarray:
    """Logits (rows, C) float32 of some rows (default: all), in their order."""
    rows = torch.arange(len(features)) if rows is None else rows
    head.eval()
    out: np.ndarray | None = None
    with torch.inference_mode():
        for batch in ordered_batches(features.lengths[rows]):
            logits = head(*features.batch(rows[batch])).numpy()
            out = np.empty((len(rows), logits.shape[1]), np.float32) if out is None else out
            out[batch.numpy()] = logits
    if out is None:
        raise ValueError("there are no rows")
    return out


class _Run:
    """One training run: a fresh head, its optimiser, its random numbers and its endless supply of shuffled batches."""

    def __init__(self, features: Features, goal: Tensor, rows: np.ndarray, recipe: Recipe, seed: int) -> None:
        self.features, self.goal = features, goal
        self.config = recipe.training
        labels = int(goal.max()) + 1
        size = max(16, min(self.config.batch_size, len(rows) // 16))
        epochs = self.config.epochs * math.ceil(len(rows) / size)
        self.total = max(self.config.fewest_steps, min(epochs, self.config.most_steps))
        self.step = 0
        torch.manual_seed(seed)
        self.head = build_head(recipe.head, labels=labels, layers=features.layers, width=features.width)
        self.loss = _loss(self.config, goal[torch.from_numpy(rows)], labels)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        self.generator = torch.Generator().manual_seed(seed)  # of its own, for two runs train side by side
        self.batches = _shuffled_batches(features.lengths, torch.from_numpy(rows), size, seed)

    @property
    def rounds(self) -> list[int]:
        """Steps after which a round ends."""
        return [round(self.total * number / self.config.rounds) for number in range(1, self.config.rounds + 1)]

    def train(self, until: int) -> Iterator[int]:
        """Train up to step ``until``, giving every step's number once it is taken."""
        self.head.train()
        for batch in itertools.islice(self.batches, until - self.step):
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * self._schedule()
            logits = self.head(*self.features.batch(batch), self.generator).flatten(0, -2)  # (B, C), or (E * B, C)
            loss = self.loss(logits, self.goal[batch].repeat(len(logits) // len(batch)))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.step += 1
            yield self.step
        self.features.release()

    def _schedule(self) -> float:
        """Share of the highest learning rate at this step: linear warm-up, linear decay."""
        warmup = max(1, round(self.config.warmup * self.total))
        return min((self.step + 1) / warmup, (self.total - self.step) / (self.total - warmup))


class _Refit:
    """Trains on all rows in a thread of its own and keeps the head of every round, while validation is still searching.

    The steps up to a round are the same whichever round validation will choose: only those after it are in vain.
    """

    def __init__(self, run: _Run) -> None:
        self.run = run
        self._heads: list[LabelHead] = []
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, "refit", initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> _Refit:
        self._work = self._pool.submit(self._train)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True)

    def report(self, progress: Progress) -> None:
        """Tell how far it is, from the caller's thread."""
        progress.step("refit", self.run.step, self.run.total)

    def head(self, chosen: int, progress: Progress) -> LabelHead:
        """The head at the end of round ``chosen``, waited for."""
        while len(self._heads) <= chosen and not self._work.done():
            wait([self._work], timeout=0.1)
            self.report(progress)
        if self._work.done():
            self._work.result()
        return self._heads[chosen].eval()

    def _train(self) -> None:
        for end in self.run.rounds:
            for _ in self.run.train(end):
                if self._stopped.is_set():
                    return
            self._heads.append(copy.deepcopy(self.run.head))


def _search(run: _Run, validation: Tensor, progress: Progress, aside: _Refit | None = None) -> FitResult:
    """Train round by round until validation says that nothing is gained, and take the chosen round's head."""
    goal = run.goal[validation]
    rounds: list[tuple[Round, LabelHead, np.ndarray]] = []

    def validate() -> None:
        logits = logits_of(run.head, run.features, validation)
        loss = functional.cross_entropy(torch.from_numpy(logits), goal).item()
        entry = Round(run.step, loss, float((logits.argmax(1) == goal.numpy()).mean()))
        rounds.append((entry, copy.deepcopy(run.head), logits))
        progress.step("train", run.step, run.total, f"validation accuracy {entry.accuracy:.4f}")

    interrupted = False
    try:
        for end in run.rounds:
            for step in run.train(end):
                progress.step("train", step, run.total)
                if aside is not None:
                    aside.report(progress)
            validate()
            if _hopeless([entry for entry, _, _ in rounds], len(goal), run.config.patience):
                break
    except KeyboardInterrupt:
        interrupted = True
        if not rounds:
            validate()
    history = [entry for entry, _, _ in rounds]
    best = max(entry.accuracy for entry in history)
    margin = 0.5 * _standard_error(best, len(goal))
    chosen = max(position for position, entry in enumerate(history) if entry.accuracy >= best - margin)
    _, head, logits = rounds[chosen]
    return FitResult(head.eval(), history, chosen, logits, refitted=False, interrupted=interrupted)


def _standard_error(accuracy: float, rows: int) -> float:
    return math.sqrt(accuracy * (1 - accuracy) / rows)


def _hopeless(history: list[Round], rows: int, patience: int) -> bool:
    best = max(entry.accuracy for entry in history)
    floor = best - _standard_error(best, rows)
    return len(history) > patience and all(entry.accuracy < floor for entry in history[-patience:])


def _shuffled_batches(lengths: Tensor, rows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Epoch after epoch, every row once in a batch of ``size`` rows of similar length."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        batches: list[Tensor] = []
        for part in rows[torch.randperm(len(rows), generator=generator)].split(size * SORTED_BATCHES):
            batches.extend(part[torch.argsort(lengths[part], stable=True)].split(size))
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[number]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread, and so give the same bytes on any number of cores.

    A step's operations take microseconds each: a second thread gains little on an idle machine, and on a busy one every
    operation waits for it (measured on two loaded cores: 20 x slower).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _loss(config: TrainingConfig, targets: Tensor, labels: int) -> Loss:
    """The loss of a batch: logits (B, C), targets (B,) -> scalar."""
    weights = _label_weights(config.label_weights, targets, labels)
    if config.loss not in LOSSES:
        raise InputError(allowed("loss", config.loss, LOSSES))

    def loss(logits: Tensor, goal: Tensor) -> Tensor:
        if config.loss == "triplet":
            rows = _triplet(logits, goal, config.margin)
        else:
            smoothing = config.label_smoothing
            rows = functional.cross_entropy(logits, goal, label_smoothing=smoothing, reduction="none")
        # Over the number of rows, not the sum of their weights: that is 0 in a batch of labels that weigh nothing.
        return (rows if weights is None else rows * weights[goal]).mean()

    return loss


def _triplet(logits: Tensor, goal: Tensor, margin: float) -> Tensor:
    """(B,): each row's mean over (true label, other label) pairs of max(0, margin - true + other)."""
    gap = (margin - logits.gather(1, goal[:, None]) + logits).clamp_min(0)
    return gap.scatter(1, goal[:, None], 0.0).sum(1) / (logits.shape[1] - 1)


def _label_weights(given: str | tuple[float, ...] | None, targets: Tensor, labels: int) -> Tensor | None:
    if given is None:
        return None
    counts = torch.bincount(targets, minlength=labels)
    if given == "balanced":
        return len(targets) / (labels * counts.clamp_min(1))
    if isinstance(given, str):
        raise InputError(allowed("label_weights", given, (None, "balanced", "a weight for each label")))
    if len(given) != labels or not all(0 <= weight < math.inf for weight in given) or max(given) == 0:
        raise InputError(
            f"label_weights must be {labels} weights of at least 0, not all of them 0. Got {given!r} instead."
        )
    weights = torch.tensor(given)
    return weights * len(targets) / (weights * counts).sum()

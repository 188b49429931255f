"""Fits label heads on stored features: early stopping on validation rows, then a short refit on all rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ytuning.data.kinds import Objective
from ytuning.errors import InputError
from ytuning.features.features import CPU, Features
from ytuning.heads.pooled import LabelHead, PooledConfig, PooledHead, build_head
from ytuning.progress import Progress
from ytuning.system.machine import Workers, give_back_freed_memory, workers
from ytuning.training.batches import shuffled_batches
from ytuning.training.joint import Learner, stack_logits, stack_step, start_label_rows
from ytuning.training.losses import SCORES, build_loss, mean_loss, row_scores, shown_score, standard_error
from ytuning.training.projection import Reduced, reduced_features
from ytuning.training.recipes import Recipe, TrainingConfig

__all__ = [
    "FitResult",
    "Job",
    "Round",
    "fit_heads",
    "logits_of",
]


RESIDENT_SHARE = 0.5  # of a GPU's free memory that features may take


@dataclass(frozen=True)
class Round:
    """One validation, after ``step`` optimiser steps.

    Attributes:
        step: counted from the start.
        loss: on validation rows, cross-entropy or squared error, see `losses.mean_loss`.
        score: mean of `losses.row_scores` there, the more the better: of a single-label task accuracy.
        error: standard error of ``score``.
    """

    step: int
    loss: float
    score: float
    error: float


@dataclass(frozen=True)
class FitResult:
    """A trained head and how it came about.

    Attributes:
        head: in evaluation mode.
        history: every validation round.
        chosen: position in ``history`` of the round whose steps were taken.
        validation_logits: (validation rows, C) float32 of the head that validation chose, before any refit, on what it
            was trained on: the pooled head on coordinates, so they differ a little from those on the features.
        chosen_head: that head, in evaluation mode; ``head`` itself unless it was refitted.
        refitted: whether ``head`` went on on all rows.
        interrupted: whether Ctrl-C ended the training early.
    """

    head: LabelHead
    history: list[Round]
    chosen: int
    validation_logits: np.ndarray
    chosen_head: LabelHead
    refitted: bool
    interrupted: bool


@dataclass(frozen=True)
class Job:
    """What one head of several learns from the same rows.

    Attributes:
        targets: of all rows, as `data/kinds.py` has them.
        recipe: form of the head and its training.
        seed: of the weights and of dropout.
        objective: what the targets are.
        outputs: of the head; default: as many as there are label ids (rows,), or columns (rows, C).
        label_texts: positions of rows that label rows start from, each of them of one label; they are train rows, too.
    """

    targets: np.ndarray
    recipe: Recipe
    seed: int = 0
    objective: Objective = "single"
    outputs: int | None = None
    label_texts: np.ndarray | None = None

    @property
    def size(self) -> int:
        """C, the head's outputs."""
        if self.outputs is not None:
            return self.outputs
        if self.objective in ("bounded", "unbounded"):
            return 2
        return self.targets.shape[1] if self.targets.ndim == 2 else int(self.targets.max()) + 1


def fit_heads(
    features: Features,
    jobs: Sequence[Job],
    *,
    train: np.ndarray,
    validation: np.ndarray,
    seed: int = 0,
    refit: bool = True,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> list[FitResult]:
    """Train heads together, in one read of the features; each stops by its own validation.

    A head learns the same weights, bit for bit on one machine, alone or in company, from the same order of rows. Of all
    its validation rounds the last one within half a standard error of the best is chosen: on a few rows a score is
    mostly noise, and the later head has been annealed further. Then it goes on for a few steps on all rows. A pooled
    head is trained on half as many directions (`training/projection.py`), which is faster.

    Args:
        features: of all rows.
        jobs: one for each head: seeds, losses, learning rates, label rows or different tasks.
        train: positions of train rows.
        validation: positions of validation rows, which choose the number of steps.
        seed: of the order of rows.
        refit: whether to go on on train and validation rows together.
        device: a GPU trains on the features themselves in its own memory, where they fit; else the CPU trains.
        progress: is told every step; Ctrl-C ends the training and gives the best heads so far.

    Raises:
        InputError: an unknown loss, label weights that do not fit, jobs that cannot share their batches, or a training
            that diverges.
    """
    progress = progress or Progress()
    size = _batch_size(jobs, len(train))
    everything = np.union1d(train, validation)
    with torch.random.fork_rng(devices=[]), workers() as pool, _given_back():
        goals = [_goal(job) for job in jobs]
        totals = [_steps(job.recipe.training, len(train), size, job.size) for job in jobs]
        if device.type == "cuda" and _fit_there(features, torch.from_numpy(everything), device):
            features = features.resident(torch.from_numpy(everything), device)
        space = None
        if not features.is_resident and isinstance(jobs[0].recipe.head, PooledConfig):
            space = reduced_features(features, everything, pool, progress)
        view = features if space is None else space.features
        runs = []
        for job, goal, total in zip(jobs, goals, totals, strict=True):
            head = _fresh_head(job, view, space, train)
            runs.append(_Run(job, goal, _learner(job, head, goal, train, total), total))
        batches = shuffled_batches(
            view.lengths, torch.from_numpy(train), size, seed, stored=None if view.is_resident else view
        )
        interrupted = _search(runs, view, batches, torch.from_numpy(validation), pool, progress)
        for run in runs:
            run.choose()
        heads = [run.best for run in runs]
        refitted = False
        if refit and not interrupted:
            try:
                heads = _refitted(runs, view, everything, len(everything) - len(train), size, seed, pool, progress)
                refitted = True
            except KeyboardInterrupt:
                interrupted = True
        view.release()
        heads = [_widened(head, space, features).to(CPU).eval() for head in heads]
        return [
            FitResult(
                head=head,
                history=run.history,
                chosen=run.chosen,
                validation_logits=run.logits.cpu().numpy(),
                chosen_head=_widened(run.best, space, features).to(CPU).eval() if refitted else head,
                refitted=refitted,
                interrupted=interrupted,
            )
            for run, head in zip(runs, heads, strict=True)
        ]


def _fit_there(features: Features, rows: Tensor, device: torch.device) -> bool:
    """Whether the features of some rows fit into a GPU's memory, with room for what training needs."""
    return features.bytes_of(rows) <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


@contextmanager
def _given_back() -> Iterator[None]:
    """Freed memory goes back to the system in the end, however that comes."""
    try:
        yield
    finally:
        give_back_freed_memory()


def logits_of(head: LabelHead, features: Features, rows: Tensor | None = None) -> np.ndarray:
    """Logits (rows, C) float32 of some rows (default: all), in their order."""
    rows = torch.arange(len(features)) if rows is None else rows
    if not len(rows):
        raise ValueError("there are no rows")
    with workers() as pool:
        found: np.ndarray = stack_logits([head], features, rows, pool)[0].numpy()
    return found


class _Run:
    """One head's search: its learner and, for each validation round, what was found and the head of then."""

    def __init__(self, job: Job, goal: Tensor, learner: Learner, total: int) -> None:
        self.job, self.goal, self.learner = job, goal, learner
        count = job.recipe.training.rounds
        self.ends = {round(total * number / count) for number in range(1, count + 1)}
        self.chosen = 0
        # Every round, and of those that may still be chosen the head and the logits: one value, so that Ctrl-C never
        # finds a round without its head.
        self._rounds: tuple[list[Round], dict[int, tuple[LabelHead, Tensor]]] = ([], {})
        self.finished = False

    def validated(self, logits: Tensor, goal: Tensor) -> None:
        """Keep a round: logits (N, C) and targets (N,) of the validation rows; one that has diverged ends the run.

        Raises:
            InputError: it is the first.
        """
        objective = self.job.objective
        if not logits.isfinite().all():
            if not self.history:
                raise InputError(
                    f"the training diverged: after {self.learner.step} steps the head's logits are no numbers. Give a "
                    f"lower learning_rate in the recipe (--recipe). Got {self.job.recipe.training.learning_rate:g}."
                )
            self.finished = True
            return
        scores = row_scores(objective, logits, goal)
        error = standard_error(scores)
        entry = Round(self.learner.step, mean_loss(objective, logits, goal), float(scores.mean()), error)
        history, kept = self._rounds
        # Only a round that no later one equals can still be chosen.
        kept = {place: found for place, found in kept.items() if history[place].score > entry.score}
        kept[len(history)] = copy.deepcopy(self.learner.head), logits
        self._rounds = ([*history, entry], kept)
        hopeless = _hopeless(self.history, self.job.recipe.training.patience)
        self.finished = hopeless or self.learner.step == self.learner.total

    def choose(self) -> None:
        """Choose the last round within half a standard error of the best one."""
        best = max(self.history, key=lambda entry: entry.score)
        floor = best.score - 0.5 * best.error
        self.chosen = max(place for place, entry in enumerate(self.history) if entry.score >= floor)

    @property
    def history(self) -> list[Round]:
        """Every round so far."""
        return self._rounds[0]

    @property
    def best(self) -> LabelHead:
        """The chosen round's head."""
        return self._rounds[1][self.chosen][0]

    @property
    def logits(self) -> Tensor:
        """(N, C): the chosen round's, of the validation rows."""
        return self._rounds[1][self.chosen][1]


def _search(
    runs: list[_Run], features: Features, batches: Iterator[Tensor], validation: Tensor, pool: Workers,
    progress: Progress,
) -> bool:  # fmt: skip
    """Train until every run has finished; returns whether Ctrl-C ended it early. Every run has a round then."""
    longest = max(run.learner.total for run in runs)

    def validate(chosen: list[_Run]) -> None:
        found = stack_logits([run.learner.head for run in chosen], features, validation, pool)
        for run, logits in zip(chosen, found, strict=True):
            run.validated(logits, run.goal[validation])
            run.learner.head.train()
        objective = chosen[0].job.objective
        found_now = sorted({shown_score(objective, run.history[-1].score) for run in chosen})
        scores = found_now[0] if len(found_now) == 1 else f"{found_now[0]} to {found_now[-1]}"
        progress.step("train", chosen[0].learner.step, longest, f"validation {SCORES[objective][0]} {scores}")

    try:
        for step in range(1, longest + 1):
            active = [run for run in runs if not run.finished]
            if not active:
                break
            stack_step([run.learner for run in active], features, next(batches), pool)
            progress.step("train", step, longest)
            if due := [run for run in active if step in run.ends]:
                validate(due)
                features.release()
    except KeyboardInterrupt:
        if unseen := [run for run in runs if not run.history]:
            validate(unseen)
        return True
    return False


def _refitted(
    runs: list[_Run],
    features: Features,
    rows: np.ndarray,
    new: int,
    size: int,
    seed: int,
    pool: Workers,
    progress: Progress,
) -> list[LabelHead]:
    """Copies of the chosen heads after a few more steps on all rows, of which so many are ``new`` to them.

    So the validation rows count for the head too. A tenth of the rows held out and a fifth of the steps gave the same
    cross-entropy on unseen rows as a second training on all of them (benchmarks/LOG.md).
    """
    learners = []
    for run in runs:
        config = run.job.recipe.training
        total = max(1, round(config.refit_factor * new / len(rows) * run.history[run.chosen].step))
        gentle = replace(
            run.job.recipe, training=replace(config, learning_rate=config.refit_rate * config.learning_rate)
        )
        learners.append(_learner(replace(run.job, recipe=gentle), copy.deepcopy(run.best), run.goal, rows, total))
    longest = max(learner.total for learner in learners)
    batches = shuffled_batches(
        features.lengths, torch.from_numpy(rows), size, seed, stored=None if features.is_resident else features
    )
    for step in range(1, longest + 1):
        stack_step([learner for learner in learners if learner.step < learner.total], features, next(batches), pool)
        progress.step("refit", step, longest)
    return [learner.head for learner in learners]


def _learner(job: Job, head: LabelHead, goal: Tensor, rows: np.ndarray, total: int) -> Learner:
    config = job.recipe.training
    loss = build_loss(
        config.loss,
        goal[torch.from_numpy(rows)],
        job.size,
        margin=config.margin,
        smoothing=config.label_smoothing,
        weights=config.label_weights,
        objective=job.objective,
    )
    return Learner(
        head.train(),
        goal,
        loss,
        total=total,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        seed=job.seed,
    )


def _batch_size(jobs: Sequence[Job], rows: int) -> int:
    """Rows of a batch, at most a sixteenth of the train rows (but 16)."""
    sizes = {job.recipe.training.batch_size for job in jobs}
    forms = {type(job.recipe.head) for job in jobs}
    if len(sizes) != 1 or len(forms) != 1:
        what = "batch_size" if len(sizes) > 1 else "form of the head"
        raise InputError(
            f"heads that are trained together share their batches, so their {what} must be the same. "
            "Train the others on their own"
        )
    return max(16, min(sizes.pop(), rows // 16))


def _steps(config: TrainingConfig, rows: int, size: int, labels: int) -> int:
    wanted = max(config.epochs * math.ceil(rows / size), config.label_steps * labels)
    return max(config.fewest_steps, min(wanted, config.most_steps))


def _goal(job: Job) -> Tensor:
    """The job's targets as its loss takes them."""
    names = job.objective in ("single", "ordinal")
    return torch.from_numpy(np.asarray(job.targets, np.int64 if names else np.float32))


def _fresh_head(job: Job, view: Features, space: Reduced | None, train: np.ndarray) -> LabelHead:
    """Weights drawn from the job's seed; label rows start from the labels' texts, if there are any."""
    torch.manual_seed(job.seed)
    config, labels = job.recipe.head, job.size
    head: LabelHead
    if space is not None and isinstance(config, PooledConfig):
        # The same energy on fewer directions.
        energy = space.directions.shape[1] / space.directions.shape[0]
        head = PooledHead(
            config, labels=labels, layers=view.layers, width=view.width, paired=view.paired, energy=energy
        )
    else:
        head = build_head(config, labels=labels, layers=view.layers, width=view.width, paired=view.paired)
    texts = np.arange(0) if job.label_texts is None else job.label_texts
    head = head.to(view.device)
    start_label_rows(head, view, train, texts, job.targets)
    return head


def _widened(head: LabelHead, space: Reduced | None, features: Features) -> LabelHead:
    """The head on the features themselves that gives the logits of ``head`` on their coordinates."""
    if space is None or not isinstance(head, PooledHead):
        return head
    return head.on_directions(space.directions, layers=features.layers, width=features.width)


def _hopeless(history: list[Round], patience: int) -> bool:
    best = max(history, key=lambda entry: entry.score)
    floor = best.score - best.error
    return len(history) > patience and all(entry.score < floor for entry in history[-patience:])

"""Fits label heads on stored features: early stopping on validation rows, then a short refit on all rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ytuning.data.kinds import TaskKind
from ytuning.errors import InputError, argument
from ytuning.features.features import CPU, Features
from ytuning.features.in_memory import decoded_features, pool_features
from ytuning.heads.light import text_width
from ytuning.heads.pooled import LabelHead, LightConfig, PooledConfig, PooledHead, build_head
from ytuning.progress import Progress
from ytuning.system.machine import Workers, give_back_freed_memory, workers
from ytuning.training.batches import shuffled_batches
from ytuning.training.calibration import fit_calibration
from ytuning.training.joint import Learner, group_logits, stack_logits, stack_step, start_label_rows
from ytuning.training.light import LightFit, LightJob, fit_light, rows_read
from ytuning.training.members import (
    LightMember,
    fits_light_member,
    group_weights,
    light_member,
    light_weight,
    mean_logits,
    temperature_ratio,
)
from ytuning.training.rare_labels import blend_heads, discriminant_head
from ytuning.training.recipes import Recipe, TrainingConfig

__all__ = [
    "CLEARLY", "FitResult", "HeadJob", "Validation", "clearly_lower", "fit_heads", "logits_of", "standard_error",
]  # fmt: skip

# Share of a GPU's free memory that features may take; the rest is for the training.
RESIDENT_SHARE = 0.5
# A loss is clearly lower if it is lower by this many standard errors. A difference of one often arises by chance.
CLEARLY = 2.0
# With fewer rows than this, neither a standard error nor the loss of a group of members says much.
FEWEST_ROWS = 20


@dataclass(frozen=True)
class Validation:
    """One validation of a head, after ``step`` optimiser steps.

    Attributes:
        step: counted from the start.
        loss: cross-entropy or squared error on the validation rows, see `kinds.TaskKind.mean_loss`.
        score: mean of the kind's `row_scores` there, the more the better: of a single-label task accuracy.
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
        head: the trained head, in evaluation mode.
        history: every validation.
        chosen: position in ``history`` of the validation whose head was taken.
        validation: validation of ``chosen_head``, which differs from the one in ``history`` where its members have been
            weighed or rare labels mended since.
        validation_logits: (validation rows, C) float32 of the head that validation chose, before any refit.
        chosen_head: head of the chosen validation, in evaluation mode; ``head`` itself unless it was refitted.
        refitted: whether ``head`` went on on all rows.
        interrupted: whether Ctrl-C ended the training early.
        strength: strength of the regularisation of a light head; None of heads that learn step by step.
    """

    head: LabelHead
    history: list[Validation]
    chosen: int
    validation: Validation
    validation_logits: np.ndarray
    chosen_head: LabelHead
    refitted: bool
    interrupted: bool
    strength: float | None = None


@dataclass(frozen=True)
class HeadJob:
    """What one head of several learns.

    Attributes:
        target: kind of the task.
        targets: targets of all rows, as ``target`` encodes them; whatever in rows that the head does not read.
        recipe: form of the head and its training.
        seed: seed of the weights and of dropout.
        label_texts: positions of rows that label rows start from, each of them of one label; they are train rows, too.
        train: positions of its train rows, of a head that has rows of its own; None: those of all heads.
        validation: positions of its validation rows; None: those of all heads.
    """

    target: TaskKind
    targets: np.ndarray
    recipe: Recipe
    seed: int = 0
    label_texts: np.ndarray | None = None
    train: np.ndarray | None = None
    validation: np.ndarray | None = None

    @property
    def goal(self) -> Tensor:
        """The targets as the loss takes them: (rows,) int64 or float32, or (rows, C) float32."""
        return torch.from_numpy(np.asarray(self.targets, self.target.dtype))


def fit_heads(
    features: Features,
    jobs: Sequence[HeadJob],
    *,
    train: np.ndarray | None = None,
    validation: np.ndarray | None = None,
    seed: int = 0,
    refit: bool = True,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> list[FitResult]:
    """Train heads together, in one read of the features; each stops by its own validation.

    Heads with the same rows share their batches. A head with rows of its own has the batches, the steps and the
    validations that it would have alone. So a head learns the same weights, bit for bit on one machine, alone or in
    company.

    Of all its validations the last one within half a standard error of the best is chosen: on a few rows a score is
    mostly noise, and the later head has been annealed further. Then it goes on for a few steps on all of its rows. A
    pooled head gets a light member, and its members count by what their group knows of the validation rows.

    Args:
        features: features of all rows, of light heads their pools (`features/pools.py`).
        jobs: one for each head: seeds, losses, learning rates, label rows or different tasks.
        train: positions of the train rows of heads that have no rows of their own.
        validation: positions of the validation rows of these heads; they choose the number of steps.
        seed: seed of the order of rows.
        refit: whether to go on on train and validation rows together.
        device: a GPU trains on the features themselves in its own memory, where they fit; else the CPU trains.
        progress: is told every step; Ctrl-C ends the training and gives the best heads so far.

    Raises:
        InputError: an unknown loss, label weights that do not fit, jobs that cannot share their batches, or a training
            that diverges.
    """
    progress = progress or Progress()
    rows_of_jobs = _rows_of_jobs(jobs, train, validation)
    if isinstance(jobs[0].recipe.head, LightConfig):
        return _fit_light_heads(features, jobs, rows_of_jobs, refit=refit, progress=progress)
    rows = torch.from_numpy(np.unique(np.concatenate([own.all.numpy() for own in set(rows_of_jobs)])))
    # Freed memory goes back to the system in the end, however that comes.
    with ExitStack() as ending:
        ending.callback(give_back_freed_memory)
        if device.type == "cuda" and features.bytes_of(rows) <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            features = features.resident(rows, device)
        with workers() as pool:
            features = decoded_features(features, rows, pool)
            shared = _Shared(features, seed, pool, progress)
            by_job = zip(jobs, rows_of_jobs, strict=True)
            runs = [_HeadRun(job, own, _fresh_head(job, own, features)) for job, own in by_job]
            interrupted = _train_until_stopped(runs, shared)
            outcomes = [run.outcome for run in runs]
            if not interrupted:
                outcomes, interrupted = _finish(runs, outcomes, shared, refit=refit)
        features.release()
        return [run.result(outcome, interrupted) for run, outcome in zip(runs, outcomes, strict=True)]


def _finish(
    runs: list[_HeadRun], outcomes: list[_Outcome], shared: _Shared, *, refit: bool
) -> tuple[list[_Outcome], bool]:
    """What the chosen heads become: refitted, with light members, weighed, and with rows of rare labels mended.

    Returns:
        The outcomes, and whether Ctrl-C has ended it early.
    """
    interrupted = False
    try:
        # A light member needs one core and no steps, so it is fitted while the heads are refitted.
        lights = _start_light_members(runs, shared)
        if refit:
            try:
                heads = _refit(runs, outcomes, shared)
                outcomes = [replace(own, refitted=head) for own, head in zip(outcomes, heads, strict=True)]
            except KeyboardInterrupt:
                interrupted = True
        members = lights.result()
        outcomes = [_weigh_members(*each, shared) for each in zip(runs, outcomes, members, strict=True)]
        return [_mend_rare_labels(run, own, shared) for run, own in zip(runs, outcomes, strict=True)], interrupted
    except KeyboardInterrupt:
        return outcomes, True


def _fit_light_heads(
    features: Features,
    jobs: Sequence[HeadJob],
    rows_of_jobs: Sequence[_Rows],
    *,
    refit: bool,
    progress: Progress,
) -> list[FitResult]:
    """Heads in closed form; those without label weights share the sums over their rows, if these are the same.

    Which of the rows are validation rows may differ. Arguments as of `fit_heads`.
    """
    results = []
    for job, own, fit in zip(
        jobs, rows_of_jobs, _light_fits(features, jobs, rows_of_jobs, refit=refit, progress=progress), strict=True
    ):
        if not np.isfinite(fit.validation_logits).all():
            raise InputError(
                "the light head's logits are no numbers, because the encoder's hidden states are too large or are "
                f"no numbers. Use {argument('preset', 'default')} or another encoder"
            )
        now = _validation(job.target, 0, torch.from_numpy(fit.validation_logits), job.goal[own.validation])
        results.append(
            FitResult(
                fit.head, [now], 0, now, fit.validation_logits, fit.chosen_head, refit, False, strength=fit.strength
            )
        )
    return results


def _light_fits(
    features: Features,
    jobs: Sequence[HeadJob],
    rows_of_jobs: Sequence[_Rows],
    *,
    refit: bool,
    progress: Progress | None = None,
) -> list[LightFit]:
    """What each job's light head is; jobs with the same rows share their sums. Features are pools."""
    fits: dict[int, LightFit] = {}
    for group, light_jobs, all_rows in _same_rows(jobs, rows_of_jobs):
        job, rows = jobs[group[0]], all_rows.all.numpy()
        weights = job.target.row_weights(job.recipe.training.label_weights, job.targets[rows])
        own = fit_light(features, light_jobs, rows=rows, row_weights=weights, refit=refit, progress=progress)
        fits |= dict(zip(group, own, strict=True))
    return [fits[number] for number in range(len(jobs))]


def _same_rows(jobs: Sequence[HeadJob], rows_of_jobs: Sequence[_Rows]) -> list[tuple[list[int], list[LightJob], _Rows]]:
    """Jobs in groups that share the sums over all of their rows: their numbers, what each learns, and the rows.

    Jobs with label weights are alone.
    """
    groups: dict[tuple[bytes, int | None], list[int]] = {}
    for number, (job, own_rows) in enumerate(zip(jobs, rows_of_jobs, strict=True)):
        weighed = job.recipe.training.label_weights is not None
        groups.setdefault((own_rows.all.numpy().tobytes(), number if weighed else None), []).append(number)
    return [
        (group, [_light_job(jobs[number], rows_of_jobs[number]) for number in group], rows_of_jobs[group[0]])
        for group in groups.values()
    ]


def _light_job(job: HeadJob, rows: _Rows) -> LightJob:
    return LightJob(job.target, np.asarray(job.targets), rows.validation.numpy())


def _validation(target: TaskKind, step: int, logits: Tensor, goal: Tensor) -> Validation:
    """The validation of a head after ``step`` steps from its logits (N, C) and the targets of the same rows."""
    scores = target.row_scores(logits, goal)
    return Validation(step, target.mean_loss(logits, goal), float(scores.mean()), standard_error(scores))


def standard_error(values: Tensor) -> float:
    """The standard error of the mean of (N,) values, such as losses or scores of rows."""
    return float(values.std(correction=0)) / math.sqrt(len(values))


def clearly_lower(losses: Tensor, others: Tensor, *, errors: float = CLEARLY) -> bool:
    """Whether the mean of losses (N,) of some rows is below that of others of the same rows by so many errors.

    Those are standard errors of the difference. Losses that are no numbers are above all others, and of fewer than
    ``FEWEST_ROWS`` rows none are clearly lower.
    """
    if not losses.isfinite().all() or len(losses) < FEWEST_ROWS:
        return False
    lead = others - losses
    return not float(lead.mean()) <= errors * standard_error(lead)


def logits_of(head: LabelHead, features: Features, rows: Tensor | None = None) -> np.ndarray:
    """Logits (rows, C) float32 of some rows (default: all), in their order."""
    rows = torch.arange(len(features)) if rows is None else rows
    if not len(rows):
        raise ValueError("there are no rows")
    with workers() as pool:
        return stack_logits([head], features, rows, pool)[0].numpy()


# Equality is identity, so that jobs with the same rows can be told by having the same value.
@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that one head or several learn from and are chosen by."""

    # (N,) int64 positions of rows.
    train: Tensor
    validation: Tensor
    # Both together, sorted.
    all: Tensor
    # Of the train rows, and of all rows in the refit.
    batch_size: int


def _rows_of_jobs(jobs: Sequence[HeadJob], train: np.ndarray | None, validation: np.ndarray | None) -> list[_Rows]:
    """Each job's rows; jobs whose rows are equal get the same value.

    Raises:
        InputError: the jobs cannot be trained together.
        ValueError: a job has no rows.
    """
    known: dict[tuple[bytes, bytes], _Rows] = {}
    rows = []
    for job in jobs:
        learned, held = (
            (train if job.train is None else job.train),
            (validation if job.validation is None else job.validation),
        )
        if learned is None or held is None:
            raise ValueError("a job must have train rows and validation rows")
        key = learned.tobytes(), held.tobytes()
        if key not in known:
            split = torch.from_numpy(learned), torch.from_numpy(held)
            known[key] = _Rows(*split, torch.from_numpy(np.union1d(learned, held)), _batch_size(jobs, len(learned)))
        rows.append(known[key])
    return rows


@dataclass(frozen=True)
class _Shared:
    """What all heads of one training have in common."""

    features: Features
    # The seed sets the order of rows.
    seed: int
    pool: Workers
    progress: Progress

    def batches(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Yield endless shuffled batches (B,) of at most ``size`` positions among rows (N,)."""
        # Features in a GPU's memory are no store on a disk, which would be read block by block.
        stored = None if self.features.is_resident else self.features
        return shuffled_batches(self.features.lengths, rows, size, self.seed, stored=stored)


@dataclass(frozen=True)
class _Outcome:
    """The heads that the training of one head gives.

    Attributes:
        chosen: head of the chosen validation.
        logits: (N, C), those of the validation rows that it gives.
        validation: what these say.
        refitted: the same after the refit, if there was one.
    """

    chosen: LabelHead
    logits: Tensor
    validation: Validation
    refitted: LabelHead | None = None

    def with_chosen(self, head: LabelHead, logits: Tensor, job: HeadJob, rows: Tensor) -> _Outcome:
        """The same with another chosen head, which gives logits (N, C) of the validation rows (N,)."""
        validation = _validation(job.target, self.validation.step, logits, job.goal[rows])
        return replace(self, chosen=head, logits=logits, validation=validation)


class _HeadRun:
    """The training of one head: its learner, its validations, and the heads that may still be chosen."""

    def __init__(self, job: HeadJob, rows: _Rows, head: LabelHead) -> None:
        config = job.recipe.training
        total = _steps(config, len(rows.train), rows.batch_size, job.target.outputs)
        self.job, self.rows = job, rows
        self.learner = _learner(job, config, head, rows.train, total)
        # The head is validated after these steps, at equal distances; the last one is the end.
        self.validation_steps = {round(total * part / config.rounds) for part in range(1, config.rounds + 1)}
        # Every validation, and of those that may still be chosen the head and the logits (N, C): one value, so that
        # Ctrl-C never finds a validation without its head.
        self._validations: tuple[list[Validation], dict[int, tuple[LabelHead, Tensor]]] = ([], {})
        self.finished = False

    @property
    def history(self) -> list[Validation]:
        """Every validation so far."""
        return self._validations[0]

    @property
    def chosen(self) -> int:
        """The last validation within half a standard error of the best one."""
        best = max(self.history, key=lambda validation: validation.score)
        floor = best.score - 0.5 * best.error
        return max(position for position, validation in enumerate(self.history) if validation.score >= floor)

    @property
    def outcome(self) -> _Outcome:
        """The head of the chosen validation."""
        return _Outcome(*self._validations[1][self.chosen], self.history[self.chosen])

    def validate(self, logits: Tensor, goal: Tensor) -> None:
        """Keep a validation: logits (N, C) and targets (N,) of its rows; a head that has diverged ends the run.

        Raises:
            InputError: it has diverged before its first validation.
        """
        target, config = self.job.target, self.job.recipe.training
        if not logits.isfinite().all():
            if not self.history:
                raise InputError(
                    f"the training diverged: after {self.learner.step} steps the head's logits are no numbers. Give a "
                    f"lower learning_rate in the recipe ({argument('recipe')}). Got {config.learning_rate:g}."
                )
            self.finished = True
            return
        now = _validation(target, self.learner.step, logits, goal)
        history, heads = self._validations
        # A head is worth its memory only while no later one has reached its score.
        heads = {position: kept for position, kept in heads.items() if history[position].score > now.score}
        heads[len(history)] = copy.deepcopy(self.learner.head), logits
        self._validations = ([*history, now], heads)
        self.finished = self.learner.step == self.learner.total or _should_stop_early(self.history, config.patience)

    def result(self, outcome: _Outcome, interrupted: bool) -> FitResult:
        """What the training gives; its heads are on the CPU, ready for use."""
        chosen_head, refitted = outcome.chosen.to(CPU).eval(), outcome.refitted
        return FitResult(
            head=chosen_head if refitted is None else refitted.to(CPU).eval(),
            history=self.history,
            chosen=self.chosen,
            validation=outcome.validation,
            validation_logits=outcome.logits.cpu().numpy(),
            chosen_head=chosen_head,
            refitted=refitted is not None,
            interrupted=interrupted,
        )


def _train_until_stopped(runs: list[_HeadRun], shared: _Shared) -> bool:
    """Train until every run has finished; returns whether Ctrl-C ended it early. Every run has a validation then."""
    longest = max(run.learner.total for run in runs)
    batches = {run.rows: shared.batches(run.rows.train, run.rows.batch_size) for run in runs}
    try:
        for step in range(1, longest + 1):
            active = [run for run in runs if not run.finished]
            if not active:
                break
            groups = [(next(batches[rows]), [run.learner for run in own]) for rows, own in _by_rows(active).items()]
            stack_step(groups, shared.features, shared.pool)
            shared.progress.step("train", step, longest)
            if due := [run for run in active if step in run.validation_steps]:
                _validate(due, shared, longest)
                # The pages that these rows brought in are not needed until the next validation.
                shared.features.release()
    except KeyboardInterrupt:
        if unseen := [run for run in runs if not run.history]:
            _validate(unseen, shared, longest)
        return True
    return False


def _validate(runs: list[_HeadRun], shared: _Shared, longest: int) -> None:
    """Validate the heads of some runs, all at the same step of ``longest``."""
    for rows, own in _by_rows(runs).items():
        all_logits = stack_logits([run.learner.head for run in own], shared.features, rows.validation, shared.pool)
        for run, logits in zip(own, all_logits, strict=True):
            run.validate(logits, run.learner.goal[rows.validation])
            run.learner.head.train()
    by_name: dict[str, set[str]] = {}
    for run in runs:
        target = run.job.target
        by_name.setdefault(target.score_name, set()).add(target.shown_score(run.history[-1].score))
    scores = ", ".join(
        f"{name} {min(shown)}" if len(shown) == 1 else f"{name} {min(shown)} to {max(shown)}"
        for name, shown in by_name.items()
    )
    shared.progress.step("train", runs[0].learner.step, longest, f"validation {scores}")


def _by_rows(runs: Sequence[_HeadRun]) -> dict[_Rows, list[_HeadRun]]:
    """The runs whose heads share their rows, by these."""
    groups: dict[_Rows, list[_HeadRun]] = {}
    for run in runs:
        groups.setdefault(run.rows, []).append(run)
    return groups


def _should_stop_early(history: list[Validation], patience: int) -> bool:
    """Whether the last ``patience`` validations are all worse than the best by more than a standard error."""
    best = max(history, key=lambda validation: validation.score)
    floor = best.score - best.error
    return len(history) > patience and all(validation.score < floor for validation in history[-patience:])


def _refit(runs: list[_HeadRun], outcomes: list[_Outcome], shared: _Shared) -> list[LabelHead]:
    """Copies of the chosen heads after a few more steps on all of their rows, validation rows included.

    So the validation rows count for the head too. A tenth of the rows held out and a fifth of the steps gave the same
    cross-entropy on unseen rows as a second training on all of them (benchmarks/LOG.md).
    """
    learners: list[Learner] = []
    groups: dict[_Rows, list[Learner]] = {}
    for run, outcome in zip(runs, outcomes, strict=True):
        rows, config = run.rows, run.job.recipe.training
        new_share = (len(rows.all) - len(rows.train)) / len(rows.all)
        total = max(1, round(config.refit_factor * new_share * run.history[run.chosen].step))
        gentler = replace(config, learning_rate=config.refit_rate * config.learning_rate)
        learners.append(_learner(run.job, gentler, copy.deepcopy(outcome.chosen), rows.all, total))
        groups.setdefault(rows, []).append(learners[-1])
    longest = max(learner.total for learner in learners)
    batches = {rows: shared.batches(rows.all, rows.batch_size) for rows in groups}
    for step in range(1, longest + 1):
        active = {rows: [learner for learner in own if learner.step < learner.total] for rows, own in groups.items()}
        stack_step([(next(batches[rows]), own) for rows, own in active.items() if own], shared.features, shared.pool)
        shared.progress.step("refit", step, longest)
    return [learner.head for learner in learners]


@dataclass(frozen=True)
class _FittedMember:
    """A light member of the head of all rows and of the one that validation chose, and what the latter says.

    Attributes:
        whole: learned from all rows.
        part: learned from the training rows.
        validation_logits: (validation rows, C) of ``part``.
    """

    whole: LightMember
    part: LightMember
    validation_logits: Tensor


def _start_light_members(runs: Sequence[_HeadRun], shared: _Shared) -> Future[list[_FittedMember | None]]:
    """Begin to fit each run's light member; there may be none.

    That is where too few validation rows would tell how much it counts, and where it cannot be fitted. Runs that learn
    the same from the same rows, as those of several seeds, share one.
    """
    # What the steps have freed is needed now.
    give_back_freed_memory()
    # By what tells runs apart, the runs that share a fit.
    alike: dict[tuple[int, _Rows, object], list[int]] = {}
    for number, run in enumerate(runs):
        if _may_have_light_member(run, shared.features):
            weights = run.job.recipe.training.label_weights
            alike.setdefault((id(run.job.targets), run.rows, weights), []).append(number)
    firsts = [runs[numbers[0]] for numbers in alike.values()]
    jobs, rows_of_jobs = [run.job for run in firsts], [run.rows for run in firsts]
    read = [rows_read(light_jobs, rows.all.numpy()) for _, light_jobs, rows in _same_rows(jobs, rows_of_jobs)]
    rows = torch.from_numpy(np.unique(np.concatenate(read))) if read else torch.arange(0)
    pools = pool_features(shared.features, rows, shared.pool)

    def fit() -> list[_FittedMember | None]:
        members: list[_FittedMember | None] = [None] * len(runs)
        # Also fitted on all rows if no head is, because what learns without the validation rows would not be the same
        # to the last bit.
        try:
            fits = _light_fits(pools, jobs, rows_of_jobs, refit=True)
            for numbers, own in zip(alike.values(), fits, strict=True):
                if np.isfinite(own.validation_logits).all():
                    member = _fitted_member(runs[numbers[0]], own, pools)
                    for number in numbers:
                        members[number] = member
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # Numbers beyond all measure have no factor. The other members have learned without them.
            pass
        return members

    return shared.pool.start(fit)


def _fitted_member(run: _HeadRun, fit: LightFit, pools: Features) -> _FittedMember:
    """The light member of a run's head."""
    config, target = run.job.recipe.head, run.job.target
    assert isinstance(config, PooledConfig)
    whole, part = (light_member(head, fit.center, target, config.width) for head in (fit.head, fit.chosen_head))
    return _FittedMember(whole, part, torch.from_numpy(part.logits(pools, run.rows.validation)))


def _may_have_light_member(run: _HeadRun, features: Features) -> bool:
    """Whether a light member can be fitted for a run's head, and weighed."""
    if not isinstance(run.job.recipe.head, PooledConfig) or len(run.rows.validation) < FEWEST_ROWS:
        return False
    # A light head has one weight for a row, and none for each of several labels.
    weighable = run.job.recipe.training.label_weights is None or not run.job.target.gives_many
    numbers = text_width(features.layers, features.width, features.pair_mode)
    return weighable and fits_light_member(numbers, run.job.target.outputs)


def _weigh_members(run: _HeadRun, outcome: _Outcome, light: _FittedMember | None, shared: _Shared) -> _Outcome:
    """The heads with a light member, in whose mean each member counts by what its group knows of validation rows."""
    job, held, head = run.job, run.rows.validation, outcome.chosen
    target = job.target
    if not isinstance(head, PooledHead) or len(held) < FEWEST_ROWS or (light is None and head.layers == 1):
        return outcome
    truth = job.targets[held.numpy()]
    # Of each group (N, C), the mean over its members.
    logits = group_logits(head, shared.features, held, shared.pool)
    weights, factor = group_weights(target, logits, truth, job.recipe.training.smoothing_of(target)), 1.0
    if light is not None:
        given = light.validation_logits
        if any(weights):
            factor = temperature_ratio(target, mean_logits(logits, weights), given, truth)
        logits.append(factor * given)
        weights.append(light_weight(group_weights(target, [given], truth, 0.0)[0], weights))
    if not any(weights):
        # Nothing tells which members know something, so all that have learned step by step count alike.
        weights = [float(size) for size in head.group_sizes] + [0.0] * (light is not None)

    def finished(head: LabelHead, member: LightMember | None) -> PooledHead:
        assert isinstance(head, PooledHead)
        return (head if member is None else member.added_to(head, factor)).with_group_weights(weights)

    whole, part = (None, None) if light is None else (light.whole, light.part)
    refitted = None if outcome.refitted is None else finished(outcome.refitted, whole)
    outcome = replace(outcome, refitted=refitted)
    return outcome.with_chosen(finished(head, part), mean_logits(logits, weights), job, held)


def _mend_rare_labels(run: _HeadRun, outcome: _Outcome, shared: _Shared) -> _Outcome:
    """The heads with rows of rare labels in closed form, where a row may have several labels; else as they are.

    A label of n rows takes the share k / (n + k) from the closed form, k being the recipe's ``rare_rows``. The
    validation rows, which the chosen head has not learned from, scale the logits of the closed form.
    """
    job, rows = run.job, run.rows
    rare_rows, chosen, refitted = job.recipe.training.rare_rows, outcome.chosen, outcome.refitted
    if not (rare_rows and job.target.gives_many and isinstance(chosen, PooledHead)):
        return outcome
    other = discriminant_head(chosen, shared.features, job.targets, rows.train, rare_rows, shared.pool)
    logits = stack_logits([other], shared.features, rows.validation, shared.pool)[0]
    temperature = fit_calibration(job.target, logits.numpy(), job.targets[rows.validation.numpy()]).temperature

    def mended(head: PooledHead, other: PooledHead, learned: Tensor) -> PooledHead:
        counts = job.target.count_labels(job.targets[learned.numpy()])
        return blend_heads(head, other, torch.from_numpy(rare_rows / (counts + rare_rows)), temperature)

    chosen = mended(chosen, other, rows.train)
    if isinstance(refitted, PooledHead):
        other = discriminant_head(refitted, shared.features, job.targets, rows.all, rare_rows, shared.pool)
        refitted = mended(refitted, other, rows.all)
    logits = stack_logits([chosen], shared.features, rows.validation, shared.pool)[0]
    return replace(outcome, refitted=refitted).with_chosen(chosen, logits, job, rows.validation)


def _learner(job: HeadJob, config: TrainingConfig, head: LabelHead, rows: Tensor, total: int) -> Learner:
    """A learner of rows (N,) for ``total`` steps; their shares of the labels give the weights of a balanced loss."""
    loss = job.target.loss(
        config.loss,
        job.goal[rows],
        margin=config.margin,
        smoothing=config.label_smoothing,
        weights=config.label_weights,
        rare_rows=config.rare_rows,
    )
    return Learner(head.train(), job.goal, loss, config=config, total=total, seed=job.seed)


def _batch_size(jobs: Sequence[HeadJob], rows: int) -> int:
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


def _steps(config: TrainingConfig, rows: int, batch_size: int, labels: int) -> int:
    """Steps in all: for small sets and for many labels more than the wanted epochs."""
    wanted = max(config.epochs * math.ceil(rows / batch_size), config.label_steps * labels)
    return max(config.fewest_steps, min(wanted, config.most_steps))


def _fresh_head(job: HeadJob, rows: _Rows, features: Features) -> LabelHead:
    """Weights drawn from the job's seed; label rows start from the labels' texts, if there are any."""
    config = job.recipe.head
    head = build_head(
        # A light member has no steps to learn by, and comes last.
        replace(config, light_width=0) if isinstance(config, PooledConfig) else config,
        labels=job.target.outputs,
        layers=features.layers,
        width=features.width,
        pair_mode=features.pair_mode,
        # One of its own: other threads draw from torch's, so the weights would depend on what these do.
        generator=torch.Generator().manual_seed(job.seed),
    ).to(features.device)
    texts = np.arange(0) if job.label_texts is None else job.label_texts
    start_label_rows(head, features, rows.train.numpy(), texts, job.targets)
    return head

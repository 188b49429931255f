"""Label rows of a light head in closed form: ridge regression, or with several labels a row discriminant analysis.

Both need only sums over the rows: of the numbers that describe a text, of their products with each other, and of their
products with the targets. The numbers are standardised and rounded to int8, in 32 steps a deviation. The rounding adds
0.01 % to their variance, and the sums are whole numbers. So they are the same on every processor and in any order, and
processors multiply bytes 5 to 10 times as fast as floats.

A head is fitted twice: without the validation rows, which choose, and then on all rows. Half of the time of a fit would
be the Cholesky factor of P x P products, so both share that of all rows. What the validation rows add to the products
has a low rank, and conjugate gradients that start from the factor take it away in 2 to 4 steps.

Shapes: N rows, P numbers that describe a text (`heads/light.py`), K columns of targets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from ytuning.data.kinds import TaskKind
from ytuning.features.features import Features
from ytuning.heads.light import LightHead, match_pairs
from ytuning.heads.pooling import POOLS
from ytuning.progress import Progress
from ytuning.training.batches import sample_rows
from ytuning.training.calibration import calibrated_losses, calibrated_soft_loss

__all__ = ["MOST_ROWS", "WHOLE", "LightFit", "LightJob", "fit_light", "rows_read"]

# Strengths of the regularisation, of which validation takes one for each task: 0.01 to 0.1 on BANKING77, 0.3 to 1 on
# TREC-6, CoLA and SST-2, 3 on pairs and 10 on MNLI (benchmarks/LOG.md). Lower ones than these were hardly better.
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# With too few validation rows to choose one.
MIDDLE_STRENGTH = 0.3
# The strength is chosen with every third number only, which takes a thirtieth of the time. With fewer numbers each of
# them explains more, so the same strength regularises less.
EVERY, WEAKER = 3, 1 / 3
# Maximum number of validation rows that the strength is chosen on.
CHOOSING_ROWS = 4096
# Maximum number of rows to learn from. Labels with fewer rows than KEPT_ROWS keep all of theirs.
MOST_ROWS, KEPT_ROWS = 32_768, 50
# The mean and the deviation of each number are those of at most so many rows. They need not be exact: a number whose
# deviation is 2 % off counts 2 % more or less.
SAMPLE_ROWS = 1024
# Steps of a number in one deviation, and the highest step: what is farther from the mean than 4 deviations is cut.
STEPS, HIGHEST = 32, 127
# Numbers of a smaller deviation, in shares of their mean, are constant.
LEAST_DEVIATION = 1e-5
# Rows that are multiplied at a time. Sums of the products of two steps are exact in int32 and, of FLOAT_ROWS rows, in
# float32: FLOAT_ROWS * 127 ** 2 is below 2 ** 24.
BLOCK_ROWS, FLOAT_ROWS = 16_384, 1024
# Rows whose numbers are rounded at a time: they stay in the cache.
PART_ROWS = 256
# Products are summed for so many numbers and those after them at a time, as only one half of them is needed.
BLOCK_NUMBERS = 384
# Validation rows that are read at a time to be judged.
JUDGED_ROWS = 1024
# A whole row, in the steps of its shares.
WHOLE = 127
# Stands for 0 where something is divided by it.
TINY = torch.finfo(torch.float32).tiny
# Steps of a position in the length of a scale.
POSITION_STEPS = 2**20
# Scores of ridge regression lie between 0 and 1. Times this they are logits whose temperature is between 0.5 and 5.
SCORE_SCALE = 10.0
# Of several labels a row, a label's mean counts as if so many further rows lay in the middle of all rows. With 10 in
# place of 2, macro F1 of GoEmotions is 0.433 and not 0.437.
MIDDLE_ROWS = 2.0
# With fewer validation rows than this the strength and the slope of a bounded scale are not fitted.
FEWEST_ROWS = 20
# What validation rows add is taken away in steps until the residual is this share of the right side. Scores are then
# within 0.4 % of the exact ones: on BANKING77 after three steps, or two at a strength of 0.3. More than MOST_STEPS,
# which few rows may need, or more than MOST_TAKEN rows take longer than a factor of the other rows.
TOLERANCE, MOST_STEPS, MOST_TAKEN = 0.015, 12, 2048
# Factor and offset of a score as a logit: the score itself, and the line that the sigmoid has in its middle.
SLOPES = ((1.0, 0.0), (4.0, -2.0))


@dataclass(frozen=True)
class LightJob:
    """What one light head of several learns from rows that all of them read.

    Attributes:
        target: kind of the task.
        targets: targets of all rows, as ``target`` encodes them.
        validation: positions of the rows that choose the strength; the others are training rows.
        strength: strength of the regularisation; None: validation chooses one of ``STRENGTHS``.
        shares: (all rows, C) int8, how much of a row each label has, in steps of which ``WHOLE`` are a row: what is
            learned where labels are known as probabilities. None: the labels of ``targets`` have all of it.
    """

    target: TaskKind
    targets: np.ndarray
    validation: np.ndarray
    strength: float | None = None
    shares: np.ndarray | None = None

    @property
    def width(self) -> int:
        """K, the number of columns of the targets."""
        return 1 if self.target.labels is None else self.target.outputs

    @property
    def whole(self) -> int:
        """How many steps of :meth:`columns` are a whole row."""
        return 1 if self.shares is None else WHOLE

    def columns(self, rows: Tensor) -> Tensor:
        """(N, K) int8 of rows (N,): a label's part of a row in steps; or (N, 1) float64: its position on the scale."""
        if self.shares is not None:
            return torch.from_numpy(self.shares)[rows]
        targets = torch.from_numpy(np.asarray(self.targets))[rows]
        if self.target.labels is None:
            # Sums of such positions are exact, whatever their order.
            return ((targets.double() * POSITION_STEPS).round() / POSITION_STEPS)[:, None]
        if targets.ndim == 2:
            return targets.to(torch.int8)
        return torch.zeros(len(rows), self.width, dtype=torch.int8).scatter_(1, targets[:, None], 1)


@dataclass(frozen=True)
class LightFit:
    """What a fit gives.

    Attributes:
        head: fitted on all rows where the validation rows were to be learned, too; else ``chosen_head``.
        chosen_head: fitted on the training rows.
        validation_logits: (validation rows, C) float32 of ``chosen_head``.
        strength: strength of the regularisation.
        center: (P,) float32, the mean of the numbers of some rows.
    """

    head: LightHead
    chosen_head: LightHead
    validation_logits: np.ndarray
    strength: float
    center: Tensor


def fit_light(
    features: Features,
    jobs: Sequence[LightJob],
    *,
    rows: np.ndarray,
    row_weights: np.ndarray | None = None,
    refit: bool = True,
    progress: Progress | None = None,
) -> list[LightFit]:
    """Fit light heads, for all of which the products of the numbers are summed once.

    What a head learns from are these sums less those of its validation rows. Sums of whole numbers are exact, so a head
    is the same alone and in company, except among more than ``MOST_ROWS`` rows, where rare labels keep theirs for all.

    Args:
        features: pools of all rows (`features/pools.py`).
        jobs: one for each head.
        rows: (N,) positions of the training and validation rows, rising.
        row_weights: (N,) float64, how much each of them counts; None: all alike.
        refit: whether to learn from the validation rows too, once they have chosen.
        progress: is told every step.
    """
    weights = None
    if row_weights is not None:
        weights = torch.zeros(len(features), dtype=torch.float64)
        weights[torch.from_numpy(rows)] = torch.from_numpy(row_weights)
    numbers = _Numbers.measured(features, torch.from_numpy(rows))
    kept = _thinned(jobs, rows)
    ordered = torch.from_numpy(kept)
    if weights is None:
        # Whole numbers have the same sums in any order.
        ordered, _ = _as_stored(features, ordered)
    blocks = ordered.split(BLOCK_ROWS)
    # Jobs with the same validation rows share what is computed from the others.
    groups: dict[bytes, list[int]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault(job.validation.tobytes(), []).append(number)
    ticks = _ticks(progress or Progress(), len(blocks) + len(groups) + len(jobs))
    whole, products = _sum_products(numbers, jobs, blocks, weights, ticks)
    some, thinner = products[::EVERY, ::EVERY].clone(), whole.thinned()
    strengths: dict[int, float] = {}

    @lru_cache(maxsize=1)
    def hold(place: int) -> _Held:
        """The validation rows of a group, which are kept while there is no other group."""
        return _Held.read(numbers, jobs, list(groups.values())[place], kept, weights)

    for place, group in enumerate(groups.values()):
        strengths |= _choose_strengths(thinner, some, hold(place), numbers, jobs, group)
        next(ticks)
    solver = _Solver(whole, products)
    heads: dict[int, LightHead] = {}
    chosen: dict[int, tuple[LightHead, np.ndarray]] = {}
    for strength in sorted(set(strengths.values())):
        # The factor of all rows.
        factor = solver.factor(strength) if refit else None
        for place, group in enumerate(groups.values()):
            if not (own := [number for number in group if strengths[number] == strength]):
                continue
            learned = _solve_without(solver, factor, strength, hold(place), jobs, own)
            slopes, judged = _judge(numbers, jobs, learned)
            chosen |= judged
            for number in own:
                if factor is not None:
                    # The slopes stay: they were fitted where the rows were new to the heads.
                    linear = _solve_job(jobs[number], whole.of_job(jobs, number), factor)
                    heads[number] = numbers.head(jobs[number], linear, slopes[number])
                next(ticks)
    features.release()
    return [
        LightFit(heads.get(number, chosen[number][0]), *chosen[number], strengths[number], numbers.center)
        for number in range(len(jobs))
    ]


def rows_read(jobs: Sequence[LightJob], rows: np.ndarray) -> np.ndarray:
    """Those of rows (N,) that :func:`fit_light` reads for these jobs, rising."""
    held = [job.validation for job in jobs]
    return np.unique(np.concatenate((_thinned(jobs, rows), sample_rows(rows, SAMPLE_ROWS), *held)))


def _ticks(progress: Progress, steps: int) -> Iterator[None]:
    """Tell of one step more at each turn."""
    for step in range(1, steps + 1):
        progress.step("train", step, steps)
        yield


# --- numbers and their sums -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Numbers:
    """The numbers that describe the rows, and what standardises them.

    Attributes:
        features: pools of all rows.
        center: (P,) float32.
        deviation: (P,) float32; infinite where a number is constant.
    """

    features: Features
    center: Tensor
    deviation: Tensor

    @classmethod
    def measured(cls, features: Features, rows: Tensor) -> _Numbers:
        """Take the mean and the deviation of at most ``SAMPLE_ROWS`` of the rows (N,)."""
        sample = _raw(features, torch.from_numpy(sample_rows(rows.numpy(), SAMPLE_ROWS)))
        center = sample.mean(0)
        deviation = sample.sub_(center).square_().mean(0).sqrt_()
        deviation[deviation <= LEAST_DEVIATION * center.abs()] = torch.inf
        return cls(features, center, deviation)

    def in_steps(self, rows: Tensor) -> Tensor:
        """(N, P) int8: the standardised numbers of rows (N,) in steps."""
        steps = torch.empty(len(rows), len(self.center), dtype=torch.int8)
        factor = STEPS / self.deviation
        for part, out in zip(rows.split(PART_ROWS), steps.split(PART_ROWS), strict=True):
            values = _raw(self.features, part).sub_(self.center).mul_(factor)
            out.copy_(values.round_().clamp_(-HIGHEST, HIGHEST))
        return steps

    def head(self, job: LightJob, linear: _Linear, slope: tuple[float, float]) -> LightHead:
        """The head whose logits are the scores of a linear map times a slope, plus an offset."""
        factor, offset = slope
        rows, bias = factor * linear.rows / self.deviation, factor * linear.bias + offset
        if job.target.labels is None:
            # The lower of the two anchors has a logit of 0.
            rows, bias = (torch.cat((torch.zeros_like(values), values)) for values in (rows, bias))
        features = self.features
        layers = features.layers // len(POOLS)
        return LightHead.fitted(
            rows, bias, self.center, layers=layers, width=features.width, pair_mode=features.pair_mode
        )


def _raw(features: Features, rows: Tensor) -> Tensor:
    """The numbers (N, P) float32 that describe rows (N,)."""
    values, _ = features.batch(rows)
    pools = values.flatten(1)
    return match_pairs(*pools.chunk(2)) if features.pair_mode == "separate" else pools


def _as_stored(features: Features, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N,), none of them twice, in the order in which they are read fastest, and the place of each in the rows."""
    ordered = torch.cat(features.blocks(rows))
    rising, places = rows.sort()
    return ordered, places[torch.searchsorted(rising, ordered)]


@dataclass(frozen=True)
class _Sums:
    """Sums over rows, each times the weight of its row, but for the products of numbers; numbers are in steps.

    Attributes:
        weight: sum of the weights.
        numbers: (P,) float64.
        targets: (K,) float64, in the steps of `LightJob.columns`, so that they are whole numbers.
        cross: (P, K) float64, products of the numbers with these.
    """

    weight: float
    numbers: Tensor
    targets: Tensor
    cross: Tensor

    @classmethod
    def of(cls, steps: Tensor, jobs: Sequence[LightJob], rows: Tensor, weights: Tensor | None) -> _Sums:
        """The sums over rows (N,) with steps (N, P), and with the columns of the targets of all jobs."""
        weight = torch.ones(len(rows), 1) if weights is None else weights[rows].float()[:, None]
        columns = [job.columns(rows) for job in jobs]
        flags = torch.cat(
            [torch.ones(len(rows), 1, dtype=torch.int8), *(own for own in columns if not _is_scale(own))], 1
        )
        # (P, 1 + flags)
        if weights is None:
            of_flags = _product(steps, flags).double()
        else:
            of_flags = ((steps.float() * weight).T @ flags.float()).double()
        numbers, of_flags = of_flags[:, 0], of_flags[:, 1:]
        cross = torch.empty(steps.shape[1], sum(own.shape[1] for own in columns), dtype=torch.float64)
        start = taken = 0
        for own in columns:
            end = start + own.shape[1]
            if _is_scale(own):
                cross[:, start:end] = 0
                for part, goal in zip(steps.split(FLOAT_ROWS), (own * weight).split(FLOAT_ROWS), strict=True):
                    cross[:, start:end] += part.T.double() @ goal
            else:
                cross[:, start:end] = of_flags[:, taken : taken + own.shape[1]]
                taken += own.shape[1]
            start = end
        targets = torch.cat([(own * weight.double()).sum(0) for own in columns])
        return cls(float(weight.double().sum()), numbers, targets, cross)

    @property
    def mean(self) -> Tensor:
        """(P,) float64: mean of the standardised numbers."""
        return self.numbers / (self.weight * STEPS)

    def plus(self, part: _Sums, sign: int = 1) -> _Sums:
        """The sums over these rows and others; with a sign of -1 over those that are not in a part."""
        return _Sums(
            self.weight + sign * part.weight,
            self.numbers + sign * part.numbers,
            self.targets + sign * part.targets,
            self.cross + sign * part.cross,
        )

    def in_rows(self, job: LightJob) -> _Sums:
        """The sums with the targets of a job, as parts of whole rows."""
        if job.whole == 1:
            return self
        return _Sums(self.weight, self.numbers, self.targets / job.whole, self.cross / job.whole)

    def thinned(self) -> _Sums:
        """The sums of every n-th number."""
        return _Sums(self.weight, self.numbers[::EVERY], self.targets, self.cross[::EVERY])

    def of_job(self, jobs: Sequence[LightJob], number: int) -> _Sums:
        """The sums with the targets of one of the jobs."""
        start = sum(job.width for job in jobs[:number])
        columns = slice(start, start + jobs[number].width)
        return _Sums(self.weight, self.numbers, self.targets[columns], self.cross[:, columns])


def _is_scale(columns: Tensor) -> bool:
    """Whether columns of targets are positions on a scale and no flags."""
    return columns.is_floating_point()


def _sum_products(
    numbers: _Numbers,
    jobs: Sequence[LightJob],
    blocks: Sequence[Tensor],
    weights: Tensor | None,
    ticks: Iterator[None],
) -> tuple[_Sums, Tensor]:
    """The sums over the rows of some blocks, and the lower half (P, P) of the products of their numbers."""
    sums, products = None, None
    for block in blocks:
        steps = numbers.in_steps(block)
        own = _Sums.of(steps, jobs, block, weights)
        sums = own if sums is None else sums.plus(own)
        products = _add_products(products, steps, None if weights is None else weights[block])
        next(ticks)
    assert sums is not None and products is not None
    return sums, products


def _add_products(total: Tensor | None, steps: Tensor, weights: Tensor | None) -> Tensor:
    """Add to a total (P, P) what the rows (N, P) int8 make of it, of the numbers' products only the lower half.

    Args:
        total: None is 0.
        steps: numbers of at most ``BLOCK_ROWS`` rows.
        weights: (N,), how much each row counts. None: all alike, and the products are whole numbers.

    Returns:
        (P, P) int32, of weighted rows float32; what stands above the blocks of the diagonal is to be overlooked.
    """
    size = steps.shape[1]
    if total is None:
        # The system gives pages of zeros once something is written to them, and half of them are not.
        total = torch.from_numpy(np.zeros((size, size), np.int32 if weights is None else np.float32))
    values = None if weights is None else steps.float()
    weighted = None if values is None or weights is None else values * weights.float()[:, None]
    for rows, columns in _lower_blocks(size):
        if values is None or weighted is None:
            total[rows, columns] += _product(steps[:, rows], steps[:, columns])
        else:
            total[rows, columns] += values[:, rows].T @ weighted[:, columns]
    return total


def _lower_blocks(size: int) -> list[tuple[slice, slice]]:
    """Rows and columns of blocks that hold the lower half of a matrix (P, P)."""
    return [(slice(start, size), slice(start, start + BLOCK_NUMBERS)) for start in range(0, size, BLOCK_NUMBERS)]


def _product(first: Tensor, second: Tensor) -> Tensor:
    """The product (P, K) int32 of matrices (N, P) and (N, K) int8 over their rows, N being at most ``BLOCK_ROWS``."""
    if len(first) and _multiplies_bytes(torch._int_mm):
        product: Tensor = torch._int_mm(first.T, second)
        return product
    total = torch.zeros(first.shape[1], second.shape[1], dtype=torch.int32)
    for one, other in zip(first.split(FLOAT_ROWS), second.split(FLOAT_ROWS), strict=True):
        total += (one.float().T @ other.float()).int()
    return total


@cache
def _multiplies_bytes(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether torch multiplies int8 matrices exactly here: processors without the instruction saturate at int16."""
    signs = torch.ones(64, 64, dtype=torch.int8)
    signs[:, ::2] = -1
    extremes = HIGHEST * signs
    try:
        return bool((multiply(extremes, extremes.T.contiguous()) == (extremes.int() @ extremes.T.int())).all())
    except RuntimeError:
        return False


def _thinned(jobs: Sequence[LightJob], rows: np.ndarray) -> np.ndarray:
    """At most about ``MOST_ROWS`` of rows (N,), and all rows of labels with few of them."""
    if len(rows) <= MOST_ROWS:
        return rows
    kept = np.isin(rows, sample_rows(rows, MOST_ROWS))
    for job in jobs:
        targets = job.targets[rows]
        counts = job.target.count_labels(targets)
        for label in np.flatnonzero(counts < KEPT_ROWS):
            kept |= job.target.has_label(targets, int(label))
    return rows[kept]


@dataclass(frozen=True)
class _Held:
    """Validation rows of some jobs, which have the same ones, as far as they are among the rows that were summed.

    Attributes:
        rows: (N,) positions.
        steps: (N, P) int8.
        weights: (N,) float64, how much each row counts; None: all alike.
        sums: over these rows, with the targets of the jobs.
    """

    rows: Tensor
    steps: Tensor
    weights: Tensor | None
    sums: dict[int, _Sums]

    @classmethod
    def read(
        cls, numbers: _Numbers, jobs: Sequence[LightJob], own: Sequence[int], kept: np.ndarray, weights: Tensor | None
    ) -> _Held:
        """Read those of ``kept`` that are validation rows of the jobs of some numbers."""
        rows = torch.from_numpy(np.intersect1d(jobs[own[0]].validation, kept))
        steps = torch.empty(len(rows), len(numbers.center), dtype=torch.int8)
        if len(rows):
            ordered, places = _as_stored(numbers.features, rows)
            steps[places] = numbers.in_steps(ordered)
        together = _Sums.of(steps, [jobs[number] for number in own], rows, weights)
        of_jobs = {number: together.of_job([jobs[other] for other in own], place) for place, number in enumerate(own)}
        return cls(rows, steps, None if weights is None else weights[rows], of_jobs)


# --- solutions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Linear:
    """Scores of standardised numbers z (N, P): ``z @ rows.T + bias``, with rows (K, P) and bias (K,) float32."""

    rows: Tensor
    bias: Tensor


class _Solver:
    """The covariance of the standardised numbers of some rows, and its factors.

    Attributes:
        sums: over the rows.
    """

    def __init__(self, sums: _Sums, products: Tensor) -> None:
        """Take the sums and the lower half of the products (P, P), which are overwritten, as they are large."""
        self.sums = sums
        self._covariance = products.view(torch.float32)
        mean = sums.mean.float()
        for block in _lower_blocks(len(products)):
            # What is computed first stands elsewhere, because the numbers before and after lie in the same place.
            covariance = products[block].float() / (sums.weight * STEPS**2)
            self._covariance[block] = covariance.addr_(mean[block[0]], mean[block[1]], alpha=-1)
        self._variance = self._covariance.diagonal().clone()

    def factor(self, strength: float) -> Tensor:
        """The lower Cholesky factor (P, P) of the covariance whose diagonal is larger by a strength."""
        self._covariance.diagonal().copy_(self._variance + strength)
        return torch.linalg.cholesky(self._covariance)

    def without(self, held: _Held, learned: _Sums) -> _Solver:
        """The same of the rows that are not held, over which the sums are ``learned``."""
        taken = _add_products(None, held.steps, held.weights)
        other = copy.copy(self)
        other.sums = learned
        mean, own = self.sums.mean.float(), learned.mean.float()
        ratio = self.sums.weight / learned.weight
        other._covariance = self._covariance * ratio
        other._covariance.diagonal().copy_(self._variance * ratio)
        other._covariance.addr_(mean, mean, alpha=ratio).addr_(own, own, alpha=-1)
        other._covariance -= taken.float() / (learned.weight * STEPS**2)
        other._variance = other._covariance.diagonal().clone()
        return other


def _solve(factor: Tensor, side: Tensor) -> Tensor:
    """The solution (P, K) for a Cholesky factor (P, P) and a right side (P, K); faster than ``cholesky_solve``."""
    half = torch.linalg.solve_triangular(factor, side, upper=False)
    return torch.linalg.solve_triangular(factor.T, half, upper=True)


def _right_side(job: LightJob, sums: _Sums) -> Tensor:
    """(P, K) float32: what the penalised covariance has to make of the label rows (see :func:`_linear`)."""
    sums = sums.in_rows(job)
    centered = sums.cross / STEPS - sums.mean[:, None] * sums.targets
    return (centered / (sums.targets + MIDDLE_ROWS if job.target.gives_many else sums.weight)).float()


def _linear(job: LightJob, sums: _Sums, side: Tensor, rows: Tensor) -> _Linear:
    """Ridge regression on the targets or, with several labels a row, the log odds of each label by itself.

    The latter are x' S^-1 m - m' S^-1 m / 2 plus the log odds of the label among the rows, where x and the mean m of
    the label's texts are standardised and S is the covariance of all texts (see `training/rare_labels.py`). A rare
    label is then predicted as readily as its texts are told from others.

    Args:
        job: says which.
        sums: over the rows, with the targets of the job.
        side: (P, K), see :func:`_right_side`.
        rows: (P, K), the solution.
    """
    targets, middle = sums.in_rows(job).targets, sums.mean @ rows.double()
    if not job.target.gives_many:
        return _Linear(rows.T, (targets / sums.weight - middle).float())
    # Half a row is added on both sides, as a label may have all rows or none.
    log_odds = ((targets + 0.5) / (sums.weight - targets + 0.5)).log()
    return _Linear(rows.T, (log_odds - (rows * side).double().sum(0) / 2 - middle).float())


def _solve_job(job: LightJob, sums: _Sums, factor: Tensor) -> _Linear:
    """The linear map of a job from the sums over the rows whose factor it is."""
    side = _right_side(job, sums)
    return _linear(job, sums, side, _solve(factor, side))


def _solve_without(
    solver: _Solver, factor: Tensor | None, strength: float, held: _Held, jobs: Sequence[LightJob], own: Sequence[int]
) -> dict[int, _Linear]:
    """The linear map of the rows that are not held, of each of the jobs with some numbers.

    Args:
        solver: of all rows.
        factor: (P, P), its factor at the strength. None: the rows that are not held get one of their own.
        strength: of the regularisation.
        held: validation rows of these jobs.
        jobs: all jobs.
        own: numbers of the jobs.
    """
    of_all = {number: solver.sums.of_job(jobs, number) for number in own}
    of_others = {number: whole.plus(held.sums[number], -1) for number, whole in of_all.items()}
    update = None
    if factor is not None and len(held.rows) <= MOST_TAKEN:
        update = _Update.of(factor, strength, of_all[own[0]], of_others[own[0]], held)
    other: Tensor | None = None
    solved = {}
    for number, learned in of_others.items():
        job = jobs[number]
        side = _right_side(job, learned)
        rows = None if update is None else update.solve(side)
        if rows is None:
            other = solver.without(held, learned).factor(strength) if other is None else other
            rows = _solve(other, side)
        solved[number] = _linear(job, learned, side, rows)
    return solved


@dataclass(frozen=True)
class _Update:
    """The penalised covariance of the rows that are not held, as the factor of that of all rows and a few terms.

    Attributes:
        factor: (P, P).
        ratio: weight of all rows in that of the rows that are not held.
        rest: what is left of the strength.
        terms: (2 + N, P): the means of all rows and of those that are not held, and the held rows.
        factors: (2 + N, 1) of these.
    """

    factor: Tensor
    ratio: float
    rest: float
    terms: Tensor
    factors: Tensor

    @classmethod
    def of(cls, factor: Tensor, strength: float, whole: _Sums, learned: _Sums, held: _Held) -> _Update:
        """Make it from the factor (P, P) of all rows and the sums over them and over those that are not held."""
        ratio = whole.weight / learned.weight
        terms = torch.empty(2 + len(held.rows), len(factor))
        terms[0], terms[1] = whole.mean, learned.mean
        torch.div(held.steps, STEPS, out=terms[2:])
        factors = torch.full((len(terms), 1), -1 / learned.weight)
        factors[0], factors[1] = ratio, -1
        if held.weights is not None:
            factors[2:] *= held.weights.float()[:, None]
        return cls(factor, ratio, (1 - ratio) * strength, terms, factors)

    def solve(self, side: Tensor) -> Tensor | None:
        """The solution (P, K) of a right side (P, K), or None where it is not reached in a few steps.

        The steps are those of conjugate gradients that the factor preconditions.
        """
        # (P, K) each: the residual and the direction, both times the inverse of the factor.
        residual = torch.linalg.solve_triangular(self.factor, side, upper=False)
        direction, solution = residual.clone(), torch.zeros_like(side)
        size = (residual * residual).sum(0)
        enough = TOLERANCE**2 * size
        for _ in range(MOST_STEPS):
            x = torch.linalg.solve_triangular(self.factor.T, direction, upper=True)
            added = ((self.factors * (self.terms @ x)).T @ self.terms).T.add(x, alpha=self.rest)
            image = torch.linalg.solve_triangular(self.factor, added, upper=False).add_(direction, alpha=self.ratio)
            # A column without targets is all 0.
            step = size / (direction * image).sum(0).clamp_min(TINY)
            solution += step * x
            residual -= step * image
            before, size = size, (residual * residual).sum(0)
            direction = residual + size / before.clamp_min(TINY) * direction
            if bool((size <= enough).all()):
                # One step more, as long as the last one, costs half as much and makes the error four times as small.
                return solution + step * torch.linalg.solve_triangular(self.factor.T, direction, upper=True)
        return None


# --- what validation rows choose ------------------------------------------------------------------------------------


def _choose_strengths(
    thinner: _Sums, products: Tensor, held: _Held, numbers: _Numbers, jobs: Sequence[LightJob], group: Sequence[int]
) -> dict[int, float]:
    """For each job of a group its own strength, else the one with the lowest calibrated loss on validation rows.

    Args:
        thinner: sums over all rows of every n-th number.
        products: the same of the products of these numbers, the lower half (P, P).
        held: validation rows of the group.
        numbers: of all rows.
        jobs: all jobs.
        group: numbers of the jobs, which have the same validation rows.
    """
    validation = jobs[group[0]].validation
    if len(validation) < FEWEST_ROWS or all(jobs[number].strength is not None for number in group):
        return {number: jobs[number].strength or MIDDLE_STRENGTH for number in group}
    learned = {
        number: thinner.of_job(jobs, number).plus(held.sums[number].thinned(), -1)
        for number in group
        if jobs[number].strength is None
    }
    solver = _Solver(
        next(iter(learned.values())),
        products - _add_products(None, held.steps[:, ::EVERY].contiguous(), held.weights),
    )
    some = torch.from_numpy(sample_rows(validation, CHOOSING_ROWS))
    steps = held.steps if torch.equal(some, held.rows) else numbers.in_steps(some)
    values = steps[:, ::EVERY].float() / STEPS
    factors: dict[float, Tensor] = {}

    def loss(number: int, strength: float) -> float:
        """The calibrated loss of a job's validation rows."""
        if strength not in factors:
            factors[strength] = solver.factor(WEAKER * strength)
        job = jobs[number]
        linear = _solve_job(job, learned[number], factors[strength])
        logits = _logits(job.target, torch.addmm(linear.bias, values, linear.rows.T).numpy())
        if job.shares is not None:
            # What is learned are probabilities, of which the labels of few rows say less.
            return calibrated_soft_loss(job.target, logits, job.shares[some.numpy()] / WHOLE)
        return float(calibrated_losses(job.target, logits, job.targets[some.numpy()]).mean())

    # The loss may have several minima, above all where the targets are numbers, so every strength is tried.
    return {number: jobs[number].strength or min(STRENGTHS, key=partial(loss, number)) for number in group}


def _logits(target: TaskKind, scores: np.ndarray) -> np.ndarray:
    """The logits (N, C) of scores (N, K), those of a bounded scale before their slope is fitted."""
    logits = target.logits_of_linear(scores)
    return logits if target.labels is None or target.gives_many else SCORE_SCALE * logits


def _judge(
    numbers: _Numbers, jobs: Sequence[LightJob], solved: Mapping[int, _Linear]
) -> tuple[dict[int, tuple[float, float]], dict[int, tuple[LightHead, np.ndarray]]]:
    """The slope of each job that was solved, its head, and the head's logits (N, C) of the validation rows.

    The jobs have the same validation rows, which are read once.
    """
    slopes: dict[int, tuple[float, float]] = {}
    heads: dict[int, LightHead] = {}
    logits: dict[int, Tensor] = {}
    validation = torch.from_numpy(jobs[next(iter(solved))].validation)
    for number, linear in solved.items():
        target = jobs[number].target
        # That of a scale is fitted to what this one gives.
        slopes[number] = (1.0 if target.labels is None or target.gives_many else SCORE_SCALE), 0.0
        heads[number] = numbers.head(jobs[number], linear, slopes[number])
        logits[number] = torch.empty(len(validation), len(heads[number].label_bias))
    for start in range(0, len(validation), JUDGED_ROWS):
        rows = slice(start, start + JUDGED_ROWS)
        text = _raw(numbers.features, validation[rows])
        for number, head in heads.items():
            logits[number][rows] = head.match(text)
    for number, scores in list(logits.items()):
        job = jobs[number]
        if job.target.labels is None:
            slopes[number] = factor, offset = _slope(job, scores)
            heads[number] = numbers.head(job, solved[number], (factor, offset))
            logits[number] = (factor * scores.double() + torch.tensor([0.0, offset])).float()
    return slopes, {number: (head, logits[number].numpy()) for number, head in heads.items()}


def _slope(job: LightJob, scores: Tensor) -> tuple[float, float]:
    """The factor and the offset that make logits of scores (N, 2), where the targets are numbers.

    They minimise the loss of the validation rows (Platt scaling): on a bounded scale a score of ridge regression is a
    position and not its logit.
    """
    goal = torch.from_numpy(job.targets[job.validation])

    def loss(given: Sequence[float]) -> float:
        return job.target.mean_loss(scores.double() * given[0] + torch.tensor([0.0, given[1]]), goal)

    start = min(SLOPES, key=loss)
    if len(goal) < FEWEST_ROWS:
        return start
    factor, offset = scipy.optimize.minimize(loss, start, method="Nelder-Mead").x.tolist()
    return factor, offset

"""Label rows of a light head in closed form: ridge regression, or with several labels a row discriminant analysis.

Both need only sums over the rows: of the numbers that describe a text, of their products with each other, and of their
products with the targets. The numbers are standardised and rounded to int8, in 32 steps a deviation. The rounding adds
0.01 % to their variance, and the sums are whole numbers. So they are the same on every processor and in any order, and
processors multiply bytes 5 to 10 times as fast as floats.

Shapes: N rows, P numbers that describe a text (`heads/light.py`), K columns of targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.nn import functional

from ytuning.data.kinds import TaskKind
from ytuning.features.features import Features
from ytuning.heads.light import LightHead, match_pairs
from ytuning.heads.pooling import POOLS
from ytuning.progress import Progress
from ytuning.training.calibration import calibrated_losses

__all__ = ["LightFit", "LightJob", "fit_light"]

# Strengths of the regularisation, of which validation takes one for each task: 0.01 to 0.1 on BANKING77, 0.3 to 1 on
# TREC-6, CoLA and SST-2, 3 on pairs and 10 on MNLI (benchmarks/LOG.md). Lower ones than these were hardly better.
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# The strength is chosen with every third number only, which takes a thirtieth of the time. With fewer numbers each of
# them explains more, so the same strength regularises less.
EVERY, WEAKER = 3, 1 / 3
# Maximum number of validation rows that the strength is chosen on.
CHOOSING_ROWS = 4096
# Maximum number of rows to learn from. Labels with fewer rows than KEPT_ROWS keep all of theirs.
MOST_ROWS, KEPT_ROWS = 32_768, 50
# The mean and the deviation of each number are those of at most so many rows.
SAMPLE_ROWS = 4096
# Steps of a number in one deviation, and the highest step: what is farther from the mean than 4 deviations is cut.
STEPS, HIGHEST = 32, 127
# Numbers of a smaller deviation, in shares of their mean size, are constant.
LEAST_DEVIATION = 1e-5
# Rows that are multiplied at a time. Sums of so many steps are exact in float32, and those of products of two steps in
# int32 and, of FLOAT_ROWS, in float32: BLOCK_ROWS * 127 and FLOAT_ROWS * 127 ** 2 are below 2 ** 24.
BLOCK_ROWS, FLOAT_ROWS = 8192, 1024
# Steps of a position in the length of a scale.
POSITION_STEPS = 2**20
# Scores of ridge regression lie between 0 and 1. Times this they are logits whose temperature is between 0.5 and 5.
SCORE_SCALE = 10.0
# Of several labels a row, a label's mean counts as if so many further rows lay in the middle of all rows. With 10 in
# place of 2, macro F1 of GoEmotions is 0.433 and not 0.437.
MIDDLE_ROWS = 2.0
# With fewer validation rows than this the strength and the slope of a bounded scale are not fitted.
FEWEST_ROWS, MIDDLE_STRENGTH = 20, 0.3
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
    """

    target: TaskKind
    targets: np.ndarray
    validation: np.ndarray
    strength: float | None = None

    @property
    def width(self) -> int:
        """K, the number of columns of the targets."""
        return 1 if self.target.labels is None else self.target.outputs

    def columns(self, rows: Tensor) -> Tensor:
        """(N, K) float32 of rows (N,): a 1 for each label of a row, or its position on the scale."""
        targets = torch.from_numpy(np.asarray(self.targets))[rows]
        if self.target.labels is None:
            # Sums of such positions are exact in float64, whatever their order.
            return ((targets.float() * POSITION_STEPS).round() / POSITION_STEPS)[:, None]
        return targets.float() if targets.ndim == 2 else functional.one_hot(targets, self.width).float()


@dataclass(frozen=True)
class LightFit:
    """What a fit gives.

    Attributes:
        head: fitted on all rows where the validation rows were to be learned, too; else ``chosen_head``.
        chosen_head: fitted on the training rows.
        strength: strength of the regularisation.
    """

    head: LightHead
    chosen_head: LightHead
    strength: float


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
    progress = progress or Progress()
    weights = None
    if row_weights is not None:
        weights = torch.zeros(len(features), dtype=torch.float64)
        weights[torch.from_numpy(rows)] = torch.from_numpy(row_weights)
    numbers = _Numbers.measured(features, torch.from_numpy(rows))
    kept = _thinned(jobs, rows)
    blocks = torch.from_numpy(kept).split(BLOCK_ROWS)
    # Jobs with the same validation rows share what is computed from the others.
    by_held: dict[bytes, list[int]] = {}
    for number, job in enumerate(jobs):
        by_held.setdefault(job.validation.tobytes(), []).append(number)
    ticks = _ticks(progress, len(blocks) + len(by_held) + 1)
    whole = _sum_products(numbers, jobs, blocks, weights, ticks)
    strengths: dict[int, float] = {}
    slopes: dict[int, tuple[float, float]] = {}
    chosen: dict[int, LightHead] = {}
    for group in by_held.values():
        held = np.intersect1d(jobs[group[0]].validation, kept)
        learned = whole.without(_sum_products(numbers, jobs, torch.from_numpy(held).split(BLOCK_ROWS), weights))
        chosen_strengths = _choose_strengths(learned, numbers, jobs, group)
        strengths |= chosen_strengths
        for number, linear in _Solver(learned, jobs).solve(chosen_strengths).items():
            slopes[number] = _slope(jobs[number], numbers, linear)
            chosen[number] = numbers.head(jobs[number], linear, slopes[number])
        next(ticks)
    heads = chosen
    if refit:
        # The slopes stay: they were fitted where the rows were new to the heads.
        solved = _Solver(whole, jobs).solve(strengths)
        heads = {number: numbers.head(jobs[number], linear, slopes[number]) for number, linear in solved.items()}
    next(ticks)
    features.release()
    return [LightFit(heads[number], chosen[number], strengths[number]) for number in range(len(jobs))]


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
        sample = _raw(features, torch.from_numpy(_sample(rows.numpy(), SAMPLE_ROWS)))
        center, deviation = sample.mean(0), sample.std(0, correction=0)
        deviation[deviation <= LEAST_DEVIATION * sample.abs().mean(0)] = torch.inf
        return cls(features, center, deviation)

    def in_steps(self, rows: Tensor) -> Tensor:
        """(N, P) int8: the standardised numbers of rows (N,) in steps."""
        steps = torch.empty(len(rows), len(self.center), dtype=torch.int8)
        factor = STEPS / self.deviation
        # In parts that stay in the cache.
        for part, out in zip(rows.split(256), steps.split(256), strict=True):
            values = (_raw(self.features, part) - self.center).mul_(factor)
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


@dataclass(frozen=True)
class _Sums:
    """Sums over rows, each times the weight of its row; numbers are in steps.

    Attributes:
        weight: sum of the weights.
        numbers: (P,) float64.
        products: (P, P), int32 or, of weighted rows, float32.
        targets: (K,) float64.
        cross: (P, K) float64, products of the numbers with the targets.
    """

    weight: float
    numbers: Tensor
    products: Tensor
    targets: Tensor
    cross: Tensor

    def without(self, part: _Sums) -> _Sums:
        """The sums over the rows that are not in a part, whose products are overwritten, as they are large."""
        return _Sums(
            self.weight - part.weight,
            self.numbers - part.numbers,
            torch.sub(self.products, part.products, out=part.products),
            self.targets - part.targets,
            self.cross - part.cross,
        )


def _sum_products(
    numbers: _Numbers,
    jobs: Sequence[LightJob],
    blocks: Sequence[Tensor],
    weights: Tensor | None,
    ticks: Iterator[None] | None = None,
) -> _Sums:
    """The sums over the rows of some blocks, which may be empty, with the columns of the targets of all jobs."""
    size, count = len(numbers.center), sum(job.width for job in jobs)
    products = torch.zeros(size, size, dtype=torch.int32 if weights is None else torch.float32)
    total, sums = 0.0, torch.zeros(size, dtype=torch.float64)
    of_targets, cross = torch.zeros(count, dtype=torch.float64), torch.zeros(size, count, dtype=torch.float64)
    for block in blocks:
        if not len(block):
            continue
        steps, goal = numbers.in_steps(block), torch.cat([job.columns(block) for job in jobs], 1)
        # (N, P) and (N, 1)
        values, weight = steps.float(), torch.ones(len(block), 1)
        if weights is None:
            products += _products(steps)
        else:
            weight = weights[block].float()[:, None]
            products.addmm_(values.T, values * weight)
            values *= weight
        total += float(weight.double().sum())
        # Sums of steps are exact in float32, and so are those of their products with 0 and 1; with positions they are
        # exact in float64.
        sums += values.sum(0).double()
        of_targets += (weight.double() * goal.double()).sum(0)
        if bool(((goal == 0) | (goal == 1)).all()):
            cross += (values.T @ goal).double()
        else:
            for part, own in zip(values.split(FLOAT_ROWS), goal.split(FLOAT_ROWS), strict=True):
                cross += part.double().T @ own.double()
        if ticks is not None:
            next(ticks)
    return _Sums(total, sums, products, of_targets, cross)


def _products(steps: Tensor) -> Tensor:
    """The sum (P, P) int32 over rows (N, P) int8 of the products of their numbers, N being at most ``BLOCK_ROWS``."""
    if _multiplies_bytes():
        return _byte_product(steps.T.contiguous(), steps)
    total = torch.zeros(steps.shape[1], steps.shape[1], dtype=torch.int32)
    for part in steps.split(FLOAT_ROWS):
        values = part.float()
        total += (values.T @ values).int()
    return total


def _byte_product(first: Tensor, second: Tensor) -> Tensor:
    """The product (M, N) int32 of matrices (M, K) and (K, N) int8."""
    product: Tensor = torch._int_mm(first, second)
    return product


def _multiplies_bytes() -> bool:
    """Whether torch multiplies int8 matrices exactly here: processors without the instruction saturate at int16."""
    signs = torch.ones(64, 64, dtype=torch.int8)
    signs[:, ::2] = -1
    extremes = HIGHEST * signs
    try:
        return bool((_byte_product(extremes, extremes.T.contiguous()) == (extremes.int() @ extremes.T.int())).all())
    except (RuntimeError, AttributeError):
        return False


def _thinned(jobs: Sequence[LightJob], rows: np.ndarray) -> np.ndarray:
    """At most about ``MOST_ROWS`` of rows (N,), and all rows of labels with few of them."""
    if len(rows) <= MOST_ROWS:
        return rows
    kept = np.isin(rows, _sample(rows, MOST_ROWS))
    for job in jobs:
        targets = job.targets[rows]
        counts = job.target.count_labels(targets)
        for label in np.flatnonzero(counts < KEPT_ROWS):
            kept |= job.target.has_label(targets, int(label))
    return rows[kept]


def _sample(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of rows (N,), in their order, drawn at random, because labels may follow each other in turn."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:most])]


# --- solutions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Linear:
    """Scores of standardised numbers z (N, P): ``z @ rows.T + bias``, with rows (K, P) and bias (K,) float32."""

    rows: Tensor
    bias: Tensor


class _Solver:
    """Linear maps from sums over rows, of every n-th number only, at any strength."""

    def __init__(self, sums: _Sums, jobs: Sequence[LightJob], every: int = 1) -> None:
        self._jobs, self._sums, self._every = jobs, sums, every
        self._mean = sums.numbers[::every] / (sums.weight * STEPS)
        # (P, P): the covariance of the standardised numbers, to whose diagonal the strength is added in place.
        self._penalised = sums.products[::every, ::every] / (sums.weight * STEPS**2)
        self._penalised.addr_(self._mean.float(), self._mean.float(), alpha=-1)
        self._variance = self._penalised.diagonal().clone()
        self._starts = np.cumsum([0, *(job.width for job in jobs)]).tolist()

    def solve(self, strengths: Mapping[int, float]) -> dict[int, _Linear]:
        """The linear map of some jobs by number, each at its strength."""
        solved: dict[int, _Linear] = {}
        for strength in sorted(set(strengths.values())):
            self._penalised.diagonal().copy_(self._variance + strength)
            factor = torch.linalg.cholesky(self._penalised)
            for number, own in strengths.items():
                if own == strength:
                    solved[number] = self._solve_one(number, factor)
        return solved

    def _solve_one(self, number: int, factor: Tensor) -> _Linear:
        columns = slice(self._starts[number], self._starts[number + 1])
        cross = self._sums.cross[:: self._every, columns] / STEPS
        return _solve_one(self._jobs[number], factor, self._mean, cross, self._sums.targets[columns], self._sums.weight)


def _solve_one(job: LightJob, factor: Tensor, mean: Tensor, cross: Tensor, targets: Tensor, weight: float) -> _Linear:
    """Ridge regression on the targets or, with several labels a row, the log odds of each label by itself.

    The latter are x' S^-1 m - m' S^-1 m / 2 plus the log odds of the label among the rows, where x and the mean m of
    the label's texts are standardised and S is the covariance of all texts (see `training/rare_labels.py`). A rare
    label is then predicted as readily as its texts are told from others.

    Args:
        job: says which.
        factor: (P, P), Cholesky factor of the penalised covariance.
        mean: (P,), of the numbers.
        cross: (P, K), sums of products with the targets.
        targets: (K,), sums of the targets.
        weight: sum of the rows' weights.
    """
    centered = cross - mean[:, None] * targets
    if not job.target.gives_many:
        rows = torch.cholesky_solve((centered / weight).float(), factor)
        return _Linear(rows.T, (targets / weight - mean @ rows.double()).float())
    means = (centered / (targets + MIDDLE_ROWS)).float()
    rows = torch.cholesky_solve(means, factor)
    # Half a row is added on both sides, as a label may have all rows or none.
    log_odds = ((targets + 0.5) / (weight - targets + 0.5)).log()
    return _Linear(rows.T, (log_odds - (rows * means).double().sum(0) / 2 - mean @ rows.double()).float())


def _choose_strengths(
    sums: _Sums, numbers: _Numbers, jobs: Sequence[LightJob], group: Sequence[int]
) -> dict[int, float]:
    """For each job of a group its own strength, else the one with the lowest calibrated loss on validation rows.

    The jobs of the group have the same validation rows.
    """
    validation = jobs[group[0]].validation
    if len(validation) < FEWEST_ROWS or all(jobs[number].strength is not None for number in group):
        return {number: jobs[number].strength or MIDDLE_STRENGTH for number in group}
    some = _sample(validation, CHOOSING_ROWS)
    values = numbers.in_steps(torch.from_numpy(some))[:, ::EVERY].float() / STEPS
    losses: dict[int, dict[float, float]] = {number: {} for number in group}
    solver = _Solver(sums, jobs, EVERY)
    for strength in STRENGTHS:
        for number, linear in solver.solve(dict.fromkeys(group, WEAKER * strength)).items():
            job = jobs[number]
            logits = _logits(job.target, torch.addmm(linear.bias, values, linear.rows.T).numpy())
            losses[number][strength] = float(calibrated_losses(job.target, logits, job.targets[some]).mean())
    return {number: jobs[number].strength or min(of_job, key=of_job.__getitem__) for number, of_job in losses.items()}


def _logits(target: TaskKind, scores: np.ndarray) -> np.ndarray:
    """The logits (N, C) of scores (N, K), those of a bounded scale before their slope is fitted."""
    logits = target.logits_of_linear(scores)
    return logits if target.labels is None or target.gives_many else SCORE_SCALE * logits


def _slope(job: LightJob, numbers: _Numbers, linear: _Linear) -> tuple[float, float]:
    """The factor and the offset that make logits of scores.

    Where the targets are numbers they minimise the loss of the validation rows (Platt scaling): on a bounded scale a
    score of ridge regression is a position and not its logit.
    """
    target, validation = job.target, job.validation
    if target.labels is not None:
        return (1.0 if target.gives_many else SCORE_SCALE), 0.0
    head = numbers.head(job, linear, (1.0, 0.0))
    scores = torch.cat([head(*numbers.features.batch(rows)) for rows in torch.from_numpy(validation).split(BLOCK_ROWS)])
    goal = torch.from_numpy(job.targets[validation])

    def loss(given: Sequence[float]) -> float:
        return target.mean_loss(scores.double() * given[0] + torch.tensor([0.0, given[1]]), goal)

    start = min(SLOPES, key=loss)
    return (
        start
        if len(validation) < FEWEST_ROWS
        else tuple(scipy.optimize.minimize(loss, start, method="Nelder-Mead").x.tolist())
    )

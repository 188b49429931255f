"""Fit what tells a task that a text is out of its scope (`heads/scope.py`), on its training and validation rows alone.

Prototypes come from spherical k-means (Dhillon and Modha, Machine Learning 42, 2001) on directions that are rounded to
whole numbers. Their products are exact in float32, so the prototypes are the same on every processor. Training rows
give the prototypes and the distributions of the logits. Validation rows, which are new to both, give the scale of the
scores and the threshold: a text in scope is above it no more often than was asked for (conformal prediction).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ytuning.data.kinds import TaskKind
from ytuning.errors import InputError, parameter
from ytuning.features.features import Features, ordered_batches
from ytuning.heads.pooled import LabelHead, LightHead
from ytuning.heads.scope import MOST_SHARE, LabelGaussians, ScopeModel, directions, prototype_distances
from ytuning.system.machine import one_thread
from ytuning.training.batches import sample_rows
from ytuning.training.joint import side_by_side

__all__ = ["ScopeTexts", "check_out_of_scope", "fit_scope", "new_prototypes", "share_out_of_scope", "text_directions"]

# Maximum numbers of rows that are looked at: for the prototypes, for the distributions, and of the validation rows.
PROTOTYPE_ROWS, GAUSSIAN_ROWS, VALIDATION_ROWS = 4096, 8192, 4096
# Rows whose pools are read at a time, and the largest size of what is kept of them in float32.
READ_ROWS, NUMBERS_BYTES = 1024, 128 << 20
# Prototypes of a task: so many for each label beyond the first four, between a lowest and a highest number. More do
# better on training rows of BANKING77 with 20 labels left out, 5, 10 and 20 for each label by 0.003 and 0.002, and of
# TREC-6, AG News, CoLA and SST-2 against each other's texts. But a light task of ten labels should not be larger than
# 100 kB (benchmarks/LOG.md).
PROTOTYPES_OF_LABEL, FIRST_LABELS, FEWEST_PROTOTYPES, MOST_PROTOTYPES = 10, 4, 48, 2048
# Prototypes are at most so large a share of the training rows.
PROTOTYPES_OF_ROWS = 1 / 4
# Steps of k-means. After 3 of them 8 are hardly better.
STEPS = 3
# Fewer validation rows say too little about the scale of the scores.
FEWEST_ROWS = 20
# With more labels the free energy of a light head's logits is taken, because distributions grow with their square.
GAUSSIAN_LABELS = 256
# A covariance is pulled towards a multiple of the identity by this share, and by more with few rows.
SHRINKAGE = 0.02


def check_out_of_scope(share: float | None, rows: int) -> None:
    """Whether a threshold may be asked for; called before any work is done.

    Args:
        share: share of the texts in scope that may be taken for others; None: no threshold.
        rows: number of validation rows.

    Raises:
        InputError: the share is not above 0 and at most ``MOST_SHARE``, or there are too few rows for it.
    """
    if share is None:
        return
    if not 0 < share <= MOST_SHARE:
        problem = f"{parameter('out_of_scope')} must be a share above 0 and at most {MOST_SHARE}."
        raise InputError(f"{problem} Got {share!r} instead. 0.05 takes one text in scope of twenty for another.")
    fewest = max(FEWEST_ROWS, math.ceil(1 / share - 1))
    if rows < fewest:
        raise InputError(
            f"{parameter('out_of_scope')} {share:g} needs at least {fewest} validation rows. Got {rows} instead. Give "
            "more rows, a validation file or a larger share"
        )


class ScopeTexts:
    """What scopes need of the rows of some features; what several tasks ask for is read and computed once.

    Attributes:
        features: features of all rows, as heads read them.
        layers: number of hidden states that the tasks read, the last of which gives the directions.
    """

    def __init__(self, features: Features, layers: int) -> None:
        self.features, self.layers = features, layers
        self._directions: dict[bytes, Tensor] = {}
        self._prototypes: dict[tuple[bytes, int], Tensor] = {}
        # The numbers (N, P) that describe to light heads the rows which were asked for last.
        self._numbers: tuple[bytes, Tensor] | None = None

    def directions(self, rows: np.ndarray) -> Tensor:
        """The directions (N, S) float32 of rows (N,)."""
        key = rows.tobytes()
        if key not in self._directions:
            self._directions[key] = text_directions(self.features, self.layers, rows)
        return self._directions[key]

    def prototypes(self, rows: np.ndarray, count: int) -> Tensor:
        """``count`` prototypes (M, S) int8 of rows (N,)."""
        key = rows.tobytes(), count
        if key not in self._prototypes:
            self._prototypes[key] = _prototypes(self.directions(rows), count)
        return self._prototypes[key]

    def light_logits(self, head: LightHead, rows: np.ndarray) -> Tensor:
        """The logits (N, C) float32 of a light head for rows (N,); numbers that are too many are rounded to float16."""
        key = rows.tobytes()
        if self._numbers is None or self._numbers[0] != key:
            parts = []
            for part in torch.from_numpy(rows).split(READ_ROWS):
                with torch.inference_mode():
                    numbers = head.text(*self.features.batch(part))
                    is_large = len(rows) * numbers.shape[1] * numbers.itemsize > NUMBERS_BYTES
                    parts.append(numbers.half() if is_large else numbers)
            self._numbers = key, torch.cat(parts)
        with one_thread(), torch.inference_mode():
            weights = head.rows().T
            return torch.cat([part.float() @ weights for part in self._numbers[1].split(READ_ROWS)]) + head.label_bias


def fit_scope(
    texts: ScopeTexts,
    target: TaskKind,
    targets: np.ndarray,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    head: LabelHead,
    validation_logits: np.ndarray,
    temperature: float = 1.0,
    share: float | None = None,
) -> ScopeModel | None:
    """Fit a task's scope model; None with fewer than ``FEWEST_ROWS`` validation rows.

    Args:
        texts: all rows, as the head reads them.
        target: kind of the task.
        targets: targets of all rows.
        train: positions of the training rows.
        validation: positions of the validation rows.
        head: head that was trained on the training rows alone.
        validation_logits: (validation rows, C), its logits.
        temperature: divisor of logits, from the task's calibration.
        share: share of the texts in scope that may be above the threshold; None: no threshold.
    """
    if len(validation) < FEWEST_ROWS:
        return None
    # The order decides which rows are looked at, and is that of the rows that a light task keeps.
    ordered = np.sort(train)
    some = sample_rows(ordered, PROTOTYPE_ROWS)
    held = sample_rows(np.arange(len(validation)), VALIDATION_ROWS)
    labels = target.outputs if target.labels is not None and not target.gives_many and target.outputs > 2 else 0
    gaussians = None
    if labels and isinstance(head, LightHead) and labels <= GAUSSIAN_LABELS:
        more = sample_rows(ordered, GAUSSIAN_ROWS)
        gaussians = _label_gaussians(texts.light_logits(head, more).double(), torch.from_numpy(targets[more]))
    count = PROTOTYPES_OF_LABEL * max(0, target.outputs - FIRST_LABELS) if target.labels is not None else 0
    count = min(max(FEWEST_PROTOTYPES, min(MOST_PROTOTYPES, count)), max(1, int(PROTOTYPES_OF_ROWS * len(some))))
    prototypes = texts.prototypes(some, count)
    plain = ScopeModel(prototypes, torch.ones(2, 2, dtype=torch.float64), temperature, labels, gaussians, share)
    own, places = torch.from_numpy(validation_logits[held]), texts.directions(validation[held])
    with one_thread():
        from_texts = prototype_distances(places, prototypes)
        model = _standardised(plain, from_texts, plain.label_distances(own))
        scores = model.combine(from_texts, model.label_distances(own))
    texts.features.release()
    return _with_threshold(model, scores)


def share_out_of_scope(
    model: ScopeModel | None, texts: ScopeTexts, rows: np.ndarray, logits: np.ndarray
) -> float | None:
    """The share of rows (N,) that are out of scope by their logits (N, C); None without a threshold."""
    if model is None or model.threshold is None or not len(rows):
        return None
    places = texts.directions(rows)
    with one_thread():
        scores = model.scores(places, torch.from_numpy(logits))
    flags = model.are_out_of_scope(scores.numpy())
    return None if flags is None else float(flags.mean())


def text_directions(features: Features, layers: int, rows: np.ndarray) -> Tensor:
    """The directions (N, S) float32 of rows (N,) in the last of ``layers`` hidden states, whose means pools hold."""
    last = features.at_positions([layers - 1])
    positions = torch.from_numpy(rows)
    batches = list(ordered_batches(last.lengths[positions]))

    def compute(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return directions(*last.batch(positions[batch]), last.pair_mode).cpu()

    return torch.cat(side_by_side(compute, batches))[torch.cat(batches).argsort()]


def new_prototypes(texts: Tensor) -> Tensor:
    """Prototypes (m, S) int8 of the texts of one more label, given by their directions (N, S)."""
    return _prototypes(texts, min(PROTOTYPES_OF_LABEL, max(1, int(PROTOTYPES_OF_ROWS * len(texts)))))


def _prototypes(texts: Tensor, count: int) -> Tensor:
    """Prototypes (M, S) int8: mean directions of ``count`` groups of directions (N, S), by spherical k-means."""
    values = _in_steps(texts)
    start = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:count].sort().values
    prototypes = values[start]
    for _ in range(STEPS):
        # (N, M): the products are whole numbers, and so exact.
        nearness = (values @ prototypes.T).mul_(1 / prototypes.square().sum(1).clamp_min(1).sqrt())
        sums = torch.zeros_like(prototypes).index_add_(0, nearness.argmax(1), values)
        # A group that has lost all of its texts stays where it is.
        prototypes = torch.where(sums.any(1, keepdim=True), _in_steps(sums), prototypes)
    return prototypes.to(torch.int8)


def _in_steps(vectors: Tensor) -> Tensor:
    """Vectors (N, S) scaled and rounded to whole numbers, float32, so small that sums of products are below 2 ** 24."""
    highest = min(127, math.isqrt(2**24 // vectors.shape[1]))
    size = vectors.double().abs().amax(1, keepdim=True).clamp_min(1e-12)
    return (vectors.double() * (highest / size)).round().float()


def _label_gaussians(logits: Tensor, truth: Tensor) -> LabelGaussians:
    """The distributions of logits (N, C) float64 of rows with label ids (N,)."""
    labels = logits.shape[1]
    center = logits.mean(0)
    sums = torch.zeros(labels, labels, dtype=torch.float64).index_add_(0, truth, logits)
    counts = torch.bincount(truth, minlength=labels)
    # A label without rows among these has none that a text could be near to.
    means = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], center)
    within, whole = (_whitening(values) for values in (logits - means[truth], logits - center))
    return LabelGaussians((means @ within).float(), within.float(), center.float(), whole.float())


def _whitening(values: Tensor) -> Tensor:
    """The map (C, C) that makes the covariance of centered values (N, C) the identity."""
    count, labels = values.shape
    covariance = values.T @ values / count
    share = max(SHRINKAGE, labels / (labels + count))
    size = float(covariance.diagonal().mean())
    # Logits that are all equal tell nothing, whatever they are multiplied by.
    size = size if size > 1e-9 else 1.0
    shrunk = (1 - share) * covariance + share * size * torch.eye(labels, dtype=torch.float64)
    # With the inverse's lower Cholesky factor L the squared length of x L is x' inverse x.
    return torch.linalg.cholesky(torch.linalg.inv(shrunk))


def _standardised(model: ScopeModel, from_texts: Tensor, from_labels: Tensor | None) -> ScopeModel:
    """The model with means and deviations of the distances (N,) of validation rows."""
    rows = []
    for values in (from_texts, from_labels):
        known = torch.zeros(1) if values is None else values
        deviation = float(known.double().std(correction=0))
        # Equal distances tell nothing, whatever they are divided by.
        rows.append([float(known.double().mean()), deviation if deviation > 1e-9 else 1.0])
    return replace(model, standard=torch.tensor(rows, dtype=torch.float64))


def _with_threshold(model: ScopeModel, scores: Tensor) -> ScopeModel:
    """The model with the threshold that its share of texts like these, with scores (N,), may be above."""
    if model.share is None:
        return model
    # Of n + 1 exchangeable scores, the new one is among the k highest with a probability of k / (n + 1).
    above = math.floor(model.share * (len(scores) + 1))
    threshold = float(scores.sort(descending=True).values[max(1, above) - 1])
    return replace(model, threshold=threshold)

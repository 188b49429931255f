"""The losses of a batch, and what a row weighs by its label."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, bincount, tensor
from torch.nn import functional

from ytuning.errors import InputError, allowed

__all__ = ["LOSSES", "Loss", "build_loss"]

LOSSES = ("cross_entropy", "triplet")
Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C) and targets (B,) -> the batch's loss, a scalar."""


def build_loss(
    name: str,
    targets: Tensor,
    labels: int,
    *,
    margin: float,
    smoothing: float,
    weights: str | tuple[float, ...] | None,
) -> Loss:
    """The loss of a name.

    Args:
        name: one of ``LOSSES``.
        targets: (rows,) label ids of all train rows, which label weights are scaled by.
        labels: C.
        margin: of the triplet loss.
        smoothing: share of the target that cross-entropy spreads over all labels.
        weights: of the labels, as in :class:`ytuning.training.TrainingConfig`.

    Raises:
        InputError: an unknown loss or label weights that do not fit.
    """
    if name not in LOSSES:
        raise InputError(allowed("loss", name, LOSSES))
    by_label = _label_weights(weights, targets, labels)

    def loss(logits: Tensor, goal: Tensor) -> Tensor:
        if name == "triplet":
            rows = _triplet(logits, goal, margin)
        else:
            rows = functional.cross_entropy(logits, goal, label_smoothing=smoothing, reduction="none")
        # Over the number of rows, not the sum of their weights: that is 0 in a batch of labels that weigh nothing.
        return (rows if by_label is None else rows * by_label[goal]).mean()

    return loss


def _triplet(logits: Tensor, goal: Tensor, margin: float) -> Tensor:
    """(B,): each row's mean over (true label, other label) pairs of max(0, margin - true + other)."""
    gap = (margin - logits.gather(1, goal[:, None]) + logits).clamp_min(0)
    return gap.scatter(1, goal[:, None], 0.0).sum(1) / (logits.shape[1] - 1)


def _label_weights(given: str | tuple[float, ...] | None, targets: Tensor, labels: int) -> Tensor | None:
    if given is None:
        return None
    counts = bincount(targets, minlength=labels)
    if given == "balanced":
        return len(targets) / (labels * counts.clamp_min(1))
    if isinstance(given, str):
        raise InputError(allowed("label_weights", given, (None, "balanced", "a weight for each label")))
    if len(given) != labels or not all(0 <= weight < math.inf for weight in given) or max(given) == 0:
        raise InputError(
            f"label_weights must be {labels} weights of at least 0, not all of them 0. Got {given!r} instead."
        )
    weights = tensor(given)
    return weights * len(targets) / (weights * counts).sum()

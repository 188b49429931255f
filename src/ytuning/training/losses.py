"""What training minimises for each objective, what a row weighs by its label, and by what validation rows choose.

Targets are those of `data/kinds.py`. The logits are (B, C); of ``bounded`` and ``unbounded`` C = 2 anchors, and
their difference is the position between them, through a sigmoid if it is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ytuning.data.kinds import Objective
from ytuning.errors import InputError, allowed

__all__ = [
    "LOSSES",
    "SCORES",
    "Loss",
    "build_loss",
    "clearly_lower",
    "mean_loss",
    "median_label",
    "row_losses",
    "row_scores",
    "shown_score",
    "standard_error",
]

LOSSES = ("cross_entropy", "triplet", "focal")
SCORES: dict[Objective, tuple[str, int]] = {
    "single": ("accuracy", 1),
    "ordinal": ("mean absolute error", -1),
    "multi": ("cross-entropy", -1),
    "bounded": ("squared error", -1),
    "unbounded": ("squared error", -1),
}
"""What the mean of :func:`row_scores` is, and 1 or, where less is better, -1 for its negative."""
# Gamma of the focal loss.
FOCUS = 2.0
# By one standard error the worse of two is often the lower one by chance.
CLEARLY = 2.0
# Whose standard error says something.
FEWEST_ROWS = 20
Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C) and targets (B,) or (B, C) -> the batch's loss, a scalar."""


def build_loss(
    name: str,
    targets: Tensor,
    labels: int,
    *,
    margin: float,
    smoothing: float,
    weights: str | tuple[float, ...] | None,
    objective: Objective = "single",
) -> Loss:
    """The loss of a name for an objective.

    ``cross_entropy`` is, for ``ordinal``, that of the labels and the squared distance of the cumulated probabilities
    (Hou, Yu, Samaras: arXiv 1611.05916), for ``multi`` the mean of each label's, for ``bounded`` that of the position,
    for ``unbounded`` half the squared error; numbers have only this one loss, whatever its name. ``focal`` weighs what
    is predicted well already less (Lin et al., arXiv 1708.02002), ``triplet`` wants a margin between right and wrong
    labels.

    Args:
        name: one of ``LOSSES``.
        targets: of all train rows, which label weights are scaled by.
        labels: C.
        margin: of the triplet loss.
        smoothing: share of the target that cross-entropy spreads over all labels, where a row has one.
        weights: of the labels, as in `fit.TrainingConfig`.
        objective: of the task.

    Raises:
        InputError: an unknown loss, or label weights that do not fit.
    """
    if name not in LOSSES:
        raise InputError(allowed("loss", name, LOSSES))
    if objective in ("bounded", "unbounded"):
        if weights is not None:
            raise InputError("a regression task has no labels, which label_weights is for. Leave it at its default")
        return _bounded if objective == "bounded" else _unbounded
    by_label = _label_weights(weights, targets, labels, objective)
    if objective == "multi":
        return lambda logits, goal: _multi(name, logits, goal, margin, by_label)

    def loss(logits: Tensor, goal: Tensor) -> Tensor:
        if name == "triplet":
            rows = _triplet(logits, goal, margin)
        else:
            rows = functional.cross_entropy(logits, goal, label_smoothing=smoothing, reduction="none")
        if name == "focal":
            rows = rows * (1 - logits.softmax(1).gather(1, goal[:, None])[:, 0]) ** FOCUS
        if objective == "ordinal":
            rows = rows + _cumulated(logits, goal)
        # Over the number of rows, not the sum of their weights: that is 0 in a batch of labels that weigh nothing.
        return (rows if by_label is None else rows * by_label.to(goal.device)[goal]).mean()

    return loss


def mean_loss(objective: Objective, logits: Tensor, goal: Tensor) -> float:
    """The unweighted cross-entropy, or squared error, of logits (N, C) and targets (N, ...)."""
    if objective in ("bounded", "unbounded"):
        return (_bounded if objective == "bounded" else _unbounded)(logits, goal).item()
    if objective == "multi":
        return functional.binary_cross_entropy_with_logits(logits, goal).item()
    return functional.cross_entropy(logits, goal).item()


def row_losses(objective: Objective, logits: Tensor, goal: Tensor) -> Tensor:
    """(N,) float64 of logits (N, C) and targets (N, ...): each row's part of :func:`mean_loss`."""
    values = logits.double()
    if objective in ("bounded", "unbounded"):
        position = values[:, 1] - values[:, 0]
        if objective == "unbounded":
            return 0.5 * (position - goal).square()
        return functional.binary_cross_entropy_with_logits(position, goal.double().clamp(0, 1), reduction="none")
    if objective == "multi":
        return functional.binary_cross_entropy_with_logits(values, goal.double(), reduction="none").mean(1)
    return functional.cross_entropy(values, goal, reduction="none")


def standard_error(values: Tensor) -> float:
    """Of the mean of (N,) values, such as losses or scores of rows."""
    return float(values.std(correction=0)) / math.sqrt(len(values))


def clearly_lower(losses: Tensor, others: Tensor) -> bool:
    """Whether the mean of losses (N,) of some rows is below that of others of the same rows by ``CLEARLY`` errors.

    Those are standard errors of the difference. Losses that are no numbers are above all others, and of fewer than
    ``FEWEST_ROWS`` rows none are clearly lower.
    """
    if not losses.isfinite().all() or len(losses) < FEWEST_ROWS:
        return False
    lead = others - losses
    return not float(lead.mean()) <= CLEARLY * standard_error(lead)


def row_scores(objective: Objective, logits: Tensor, goal: Tensor) -> Tensor:
    """(N,) float64 of logits (N, C) and targets (N, ...): what a row says for the head, the more the better.

    Whether the label is right; the negative distance from it in labels (ordinal), cross-entropy summed over the labels
    (multi), or squared distance in lengths of the scale (regression).
    """
    if objective == "single":
        return (logits.argmax(1) == goal).double()
    if objective == "ordinal":
        return -(median_label(logits.double().softmax(1)) - goal).abs().double()
    if objective == "multi":
        each = functional.binary_cross_entropy_with_logits(logits.double(), goal.double(), reduction="none")
        return -each.sum(1)
    position = (logits[:, 1] - logits[:, 0]).double()
    return -((position.sigmoid() if objective == "bounded" else position) - goal.double()).square()


def shown_score(objective: Objective, score: float) -> str:
    """A mean of :func:`row_scores` as people read it: errors by their size, a zero without a minus sign."""
    return f"{SCORES[objective][1] * score + 0.0:.4f}"


def median_label(probabilities: Tensor) -> Tensor:
    """(N,) int64: the label at which the cumulated probability passes one half; the least mean absolute error."""
    return (probabilities.cumsum(1) < 0.5).sum(1).clamp_max(probabilities.shape[1] - 1)


def _bounded(logits: Tensor, goal: Tensor) -> Tensor:
    """Cross-entropy of the position as a probability: steep where a squared error of a sigmoid is flat.

    A number beyond the scale, which other rows than those of training may have, counts as its end: cross-entropy with
    it would fall without limit.
    """
    return functional.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], goal.clamp(0, 1))


def _unbounded(logits: Tensor, goal: Tensor) -> Tensor:
    return 0.5 * functional.mse_loss(logits[:, 1] - logits[:, 0], goal)


def _triplet(logits: Tensor, goal: Tensor, margin: float) -> Tensor:
    """(B,): each row's mean over (true label, other label) pairs of max(0, margin - true + other)."""
    gap = (margin - logits.gather(1, goal[:, None]) + logits).clamp_min(0)
    return gap.scatter(1, goal[:, None], 0.0).sum(1) / (logits.shape[1] - 1)


def _cumulated(logits: Tensor, goal: Tensor) -> Tensor:
    """(B,): squared distance between the cumulated probabilities and those of the true label, summed over labels."""
    steps = torch.arange(logits.shape[1], device=logits.device)
    return (logits.softmax(1).cumsum(1) - (goal[:, None] <= steps).to(logits.dtype)).square().sum(1)


def _multi(name: str, logits: Tensor, goal: Tensor, margin: float, by_label: Tensor | None) -> Tensor:
    """Mean over rows and labels, each label against its own absence (in the paper's terms: against the task row)."""
    if name == "triplet":
        each = (margin - (2 * goal - 1) * logits).clamp_min(0)
    else:
        each = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    if name == "focal":
        # Probability given to what is true.
        right = logits.sigmoid() * (2 * goal - 1) + (1 - goal)
        each = each * (1 - right) ** FOCUS
    return (each if by_label is None else each * torch.where(goal > 0, by_label.to(goal.device), 1.0)).mean()


def _label_weights(
    given: str | tuple[float, ...] | None, targets: Tensor, labels: int, objective: Objective
) -> Tensor | None:
    """(C,): of the rows with a label; of multi-label tasks only of those, not of the ones without it."""
    if given is None:
        return None
    counts = targets.sum(0) if objective == "multi" else torch.bincount(targets, minlength=labels)
    if given == "balanced":
        # Rare labels of many would weigh thousands against their absence: the root is the usual compromise.
        balanced = len(targets) / (labels * counts.clamp_min(1))
        return balanced.clamp_min(1).sqrt() if objective == "multi" else balanced
    if isinstance(given, str):
        raise InputError(allowed("label_weights", given, (None, "balanced", "a weight for each label")))
    if len(given) != labels or not all(0 <= weight < math.inf for weight in given) or max(given) == 0:
        raise InputError(
            f"label_weights must be {labels} weights of at least 0, not all of them 0. Got {given!r} instead."
        )
    weights = torch.tensor(given)
    total = (weights * counts).sum()
    if not total > 0:
        raise InputError(
            "label_weights must be above 0 for a label that a train row has. "
            f"Got {given!r}, and the labels above 0 have no row. Raise another's"
        )
    return weights * counts.sum() / total

"""What the losses of several kinds of task share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ytuning.errors import InputError, must_be_one_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FOCUS", "LOSSES", "check_loss", "label_weights"]

LOSSES = ("cross_entropy", "triplet", "focal")
# Gamma of the focal loss.
FOCUS = 2.0


def check_loss(name: str) -> None:
    """Refuse the name of an unknown loss.

    Raises:
        InputError: there is no such loss.
    """
    if name not in LOSSES:
        raise InputError(must_be_one_of("loss", name, LOSSES))


def label_weights(given: str | tuple[float, ...] | None, counts: Tensor, balanced: Tensor) -> Tensor | None:
    """(C,) of which the train rows' mean is 1, or None for a loss without weights.

    Args:
        given: as in `recipes.TrainingConfig`.
        counts: (C,), train rows of each label.
        balanced: (C,), what ``"balanced"`` stands for.

    Raises:
        InputError: weights that do not fit the labels.
    """
    import torch

    if given is None:
        return None
    if given == "balanced":
        return balanced
    if isinstance(given, str):
        raise InputError(must_be_one_of("label_weights", given, (None, "balanced", "a weight for each label")))
    if len(given) != len(counts) or not all(0 <= weight < math.inf for weight in given) or max(given) == 0:
        raise InputError(
            f"label_weights must be {len(counts)} weights of at least 0, not all of them 0. Got {given!r} instead."
        )
    weights = torch.tensor(given)
    total = (weights * counts).sum()
    if not total > 0:
        raise InputError(
            "label_weights must be above 0 for a label that a train row has. "
            f"Got {given!r}, and the labels above 0 have no row. Raise another's"
        )
    return weights * counts.sum() / total

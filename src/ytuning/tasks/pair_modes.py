"""Which ways of reading pairs of texts a task tries, and which one it takes."""

from __future__ import annotations

import numpy as np
import torch

from ytuning.heads.pairs import PairChoice, PairMode
from ytuning.training.fit import clearly_lower

__all__ = ["choose_pair_mode", "pair_modes"]


def pair_modes(choice: PairChoice, *, has_pairs: bool) -> tuple[PairMode | None, ...]:
    """The ways to try, first the one that is taken unless the other is clearly better; ``(None,)`` for single texts."""
    if not has_pairs:
        return (None,)
    return ("separate", "joint") if choice == "auto" else (choice,)


def choose_pair_mode(joint: np.ndarray | torch.Tensor, separate: np.ndarray | torch.Tensor) -> PairMode:
    """``"joint"`` where its losses (N,) are clearly lower than those (N,) of the same rows read separately.

    See `fit.clearly_lower`. Otherwise ``"separate"`` is taken: it encodes a text once that many pairs share.
    """
    is_better = clearly_lower(torch.as_tensor(joint), torch.as_tensor(separate))
    return "joint" if is_better else "separate"

"""Dropout whose random numbers come from the generator that is given, which ``nn.Dropout`` does not take."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dropped"]


def dropped(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Each value 0 with a probability of ``share``, else ``1 / (1 - share)`` times itself."""
    if not share:
        return values
    # Four draws of 16 bits from each random number, for drawing is slow on a CPU.
    bits = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    bits.random_(-(2**63), None, generator=generator)
    kept = bits.view(torch.int16)[: values.numel()].view(values.shape) >= round(share * 2**16) - 2**15
    return values * (kept / (1 - share))

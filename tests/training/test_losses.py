"""Whether the losses of one head are lower than those of another."""

from __future__ import annotations

import math

import torch

from ytuning.training.fit import clearly_lower


def test_clearly_lower_is_by_two_standard_errors() -> None:
    noise = torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)  # of the difference: a standard error of 0.1
    others = torch.full((100,), 2.0, dtype=torch.float64)
    for lead, clear in ((0.25, True), (0.15, False), (0.0, False), (-0.25, False)):
        assert clearly_lower(others + noise - lead, others) == clear
    assert not clearly_lower(others, others)
    assert clearly_lower(others[:20] - 1, others[:20]) and not clearly_lower(others[:19] - 1, others[:19])
    none = torch.full_like(others, math.nan)
    assert clearly_lower(others, none) and not clearly_lower(none, others) and not clearly_lower(none, none)

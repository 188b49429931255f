"""Whether the losses of one head are lower than those of another."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["clearly_lower", "standard_error"]

# By one standard error, the worse of two is often the lower one by chance.
CLEARLY = 2.0
# The standard error of fewer rows says little.
FEWEST_ROWS = 20


def standard_error(values: Tensor) -> float:
    """The standard error of the mean of (N,) values, such as losses or scores of rows."""
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

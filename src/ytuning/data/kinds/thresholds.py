"""Every threshold of some scores, and what it does."""

from __future__ import annotations

import numpy as np

__all__ = ["threshold_sweep"]


def threshold_sweep(scores: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ways to split scores (N,) >= 0, N > 0, by a threshold, from the highest threshold down.

    Returns:
        Thresholds (splits,) halfway to the next lower score (the last one to 0), how many scores reach them, and how
        many of these have a flag.
    """
    order = np.argsort(-scores)
    ordered, hits = scores[order], flags[order].cumsum()
    below = np.append(ordered[1:], 0.0)
    # The last one of equal scores.
    last = np.append(ordered[1:] < ordered[:-1], True)
    halfway = (ordered + below) / 2
    # Between neighbouring numbers, rounding may give the lower one.
    thresholds = np.where(halfway > below, halfway, ordered)
    return thresholds[last], np.flatnonzero(last) + 1, hits[last]

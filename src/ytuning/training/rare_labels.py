"""Label rows in closed form, for labels of several a row that have too few rows to learn by gradient steps.

Where every label has a logit of its own, a rare label is absent from nearly all rows of a batch, and its logit only
learns to be low. But in the label space that the head has learned from the other labels, the mean of a few rows says
much. So label rows are computed from these means by linear discriminant analysis (Fisher 1936) once the head is trained
(decoupled training: Kang et al., arXiv 1910.09217). A label then gets a row between this one and the one that was
learned: the fewer rows of the training set have the label, the nearer to this one.

Shapes: N rows, E members, H width of a member's label space, C labels.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from ytuning.features.features import Features
from ytuning.heads.pooled import PooledHead
from ytuning.system.machine import Workers
from ytuning.training.joint import label_space

__all__ = ["blend_heads", "discriminant_head"]

# Share of the covariance that is replaced by that of independent numbers of the same variance.
SHRINKAGE = 0.3
# A label's mean counts as if so many further rows lay in the middle of all rows: one row alone says little.
MIDDLE_ROWS = 2.0
# Maximum number of rows to learn from, beside those of rare labels.
MOST_ROWS = 16_000
# Numbers of a smaller deviation are constant.
LEAST_DEVIATION = 1e-6


def discriminant_head(
    head: PooledHead, features: Features, targets: np.ndarray, rows: Tensor, rare_rows: float, pool: Workers
) -> PooledHead:
    """The head with label rows in closed form, whose logits are the log odds of each label by itself.

    They are x' S^-1 m - m' S^-1 m / 2 plus the log odds of the label among the rows. Here x is a standardised text in
    label space, m the mean of the label's texts and S the covariance of all texts. This holds if all texts and those of
    the label are both distributed normally with covariance S, the former around 0.

    Args:
        head: trained head.
        features: features that it reads.
        targets: (all rows, C) 0 and 1.
        rows: (N,) positions of the rows to learn from.
        rare_rows: labels with at most this number of rows keep all of them; of many other rows a part is read.
        pool: computes the vectors.
    """
    goal = torch.from_numpy(targets)[rows]
    # (C,): rows with each label.
    counts = goal.sum(0, dtype=torch.float64)
    part = torch.arange(len(rows)) % -(-len(rows) // MOST_ROWS) == 0
    part |= goal[:, counts <= rare_rows].any(1)
    labels = goal[part].double()
    # (N, E * H): a member that counts nothing is constant here, and gets rows of zeros.
    vectors = label_space(head, features, rows[part], pool) * head.member_weights.cpu()[:, None]
    vectors = vectors.flatten(1).double()
    middle, deviation = vectors.mean(0), vectors.std(0, correction=0).clamp_min(LEAST_DEVIATION)
    values = (vectors - middle) / deviation
    # (C, E * H)
    means = (labels.T @ values) / (labels.sum(0) + MIDDLE_ROWS)[:, None]
    covariance = (1 - SHRINKAGE) / len(values) * (values.T @ values)
    covariance.diagonal().add_(SHRINKAGE)
    weights = torch.linalg.solve(covariance, means.T).T
    # Half a row is added on both sides, as a label may have all rows or none.
    log_odds = ((counts + 0.5) / (len(rows) - counts + 0.5)).log()
    bias = log_odds - (weights * means).sum(1) / 2
    # The same map of texts that are not standardised.
    weights /= deviation
    bias -= weights @ middle
    # (E, C, H): logits are the weighted mean over members.
    return _with_labels(head, head.members * weights.unflatten(1, (head.members, -1)).transpose(0, 1), bias)


def blend_heads(head: PooledHead, other: PooledHead, share: Tensor, temperature: float) -> PooledHead:
    """A head whose logits are, by each label's share (C,), those of ``other`` divided by the temperature.

    Both heads have the same label space and the same weights of members.
    """
    share = share.to(head.label_rows)
    return _with_labels(
        head,
        torch.lerp(head.label_rows, other.label_rows / temperature, share[:, None]),
        torch.lerp(head.label_bias, other.label_bias / temperature, share),
    )


def _with_labels(head: PooledHead, label_rows: Tensor, label_bias: Tensor) -> PooledHead:
    """The head with label rows (E, C, H) and biases (E, C) or (C,) of the same labels."""
    changed = copy.deepcopy(head)
    with torch.no_grad():
        changed.label_rows.copy_(label_rows)
        changed.label_bias.copy_(label_bias)
    return changed

"""Linear probes in closed form: how well labels can be told from the mean of each hidden state, without gradient steps.

Ridge regression is solved in its dual form, on a kernel (rows, rows). The kernel of a set of hidden states is the mean
of its states' kernels, so that each state is multiplied out once, however many sets it is in. What each row's
prediction would be without that row follows from the one solution for all rows (Allen's PRESS: Allen, Technometrics
16(1), 1974), so that no row has to be held out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ytuning.data.kinds import TaskKind

__all__ = ["left_out_errors", "linear_goal", "state_kernels"]

# A column whose deviation is below this share of its mean size is constant, up to rounding.
CONSTANT = 1e-5


def linear_goal(target: TaskKind, targets: np.ndarray) -> Tensor:
    """What a linear map is fitted to, (rows, K) float32: positions on the scale, or a 1 for each label of a row.

    Of labels in an order, also the labels above a row's own have a 1, so that a near miss is a small error.

    Args:
        target: kind of the task.
        targets: targets of the rows, as ``target`` encodes them.
    """
    if target.labels is None:
        return torch.from_numpy(targets.astype(np.float32))[:, None]
    if targets.ndim == 2:
        return torch.from_numpy(targets.astype(np.float32))
    ones = np.eye(target.outputs, dtype=np.float32)[targets]
    return torch.from_numpy(ones.cumsum(1) if target.has_order else ones)


def state_kernels(pooled: Tensor) -> Tensor:
    """The linear kernel of each hidden state, (L, rows, rows) float32, the mean of its diagonal being 1.

    Args:
        pooled: (rows, P, L, D), P pools of each of L hidden states; each of the P * D columns is standardised.
    """
    kernels = torch.empty(pooled.shape[2], len(pooled), len(pooled))
    for state in range(len(kernels)):
        columns = pooled[:, :, state].flatten(1).float()
        sizes = columns.abs().mean(0)
        columns = columns - columns.mean(0)
        deviations = columns.square().mean(0).sqrt()
        varies = deviations > CONSTANT * sizes
        columns = columns[:, varies] / deviations[varies]
        torch.mm(columns, columns.T, out=kernels[state]).div_(max(1, columns.shape[1]))
    return kernels


def left_out_errors(kernel: Tensor, goal: Tensor, strength: float, linked: Sequence[Sequence[int]] = ()) -> Tensor:
    """Squared error (rows,) float64 of each row's prediction by ridge regression on the other rows.

    Args:
        kernel: (rows, rows), centred, the mean of its diagonal being 1.
        goal: (rows, K), summed over K.
        strength: of the regularisation, for each row.
        linked: positions of rows that are left out together, such as rows with the same text; of rows that are in no
            group, each is left out alone.
    """
    rows = len(kernel)
    # With A = kernel + penalty * I, the residuals are penalty * A^-1 y and the hat matrix is
    # I + 1/rows - penalty * A^-1: kernel and y are centred, which stands for the intercept.
    penalty = strength * rows
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel + penalty * torch.eye(rows))).mul_(penalty)
    residuals = inverse @ (goal - goal.mean(0))
    errors = residuals / (inverse.diagonal() - 1 / rows)[:, None]
    for group in linked:
        some = torch.tensor(group)
        errors[some] = torch.linalg.solve(inverse[some][:, some] - 1 / rows, residuals[some])
    return errors.double().square().sum(1)

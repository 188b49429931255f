"""Linear probes, what people put on a frozen encoder: logistic or ridge regression on pooled stored features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from ytuning.data.kinds import TaskKind

__all__ = ["Probe", "tuned_probe"]

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RIDGE_STRENGTHS = (0.00001, 0.00003, 0.0001, *STRENGTHS[:6])
# L-BFGS stops after this number of iterations.
MOST_ITERATIONS = 300
# A label that no training row has gets this logit.
NEVER = -1e4

Linear = tuple[np.ndarray, np.ndarray]
"""Weights (F, K) and bias (K,)."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier or regression, its strength chosen on validation rows.

    Attributes:
        weights: (F, K) float64, of the features as they are. K = C; of regression tasks 1.
        bias: (K,) float64.
        target: kind of the task.
        parameters: number of fitted parameters.
        strength: scikit-learn's ``C``, or ``1 / alpha`` of ridge regression, which is the same.
        validation_logits: (validation rows, C) float32 of that strength, fitted on train rows only.
        validation_score: mean of the kind's `row_scores` on the validation rows; accuracy for a single-label task.
        validation_loss: loss on the validation rows, see `kinds.TaskKind.mean_loss`.
    """

    weights: np.ndarray
    bias: np.ndarray
    target: TaskKind
    parameters: int
    strength: float
    validation_logits: np.ndarray
    validation_score: float
    validation_loss: float

    def logits(self, pooled: np.ndarray) -> np.ndarray:
        """Return the logits (rows, C) float32 of pooled features (rows, F), in the form that ``target`` reads."""
        return _logits(self.target, pooled, self.weights, self.bias)


def tuned_probe(
    target: TaskKind,
    pooled: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    strengths: Sequence[float] | None = None,
    refit: bool = True,
) -> Probe:
    """Fit on standardised pooled features; validation rows choose the strength, then all rows are used.

    Logistic regression for ``single`` and ``ordinal``, one for each label against the rest for ``multi``, ridge
    regression of the position on the scale for numbers (cut off at the ends of a bounded one).

    Args:
        target: kind of the task.
        pooled: (rows, F), see :func:`mean_pooled`.
        targets: targets of all rows, as ``target`` encodes them.
        train: positions of rows to fit on.
        validation: positions of rows that choose the strength.
        strengths: strengths to try; the default is eight or nine values from weak to strong regularisation.
        refit: whether to fit once more on train and validation rows together.
    """
    goal = torch.from_numpy(np.asarray(targets, target.dtype)[validation])
    fit = _fitter(target, pooled[train], targets[train])
    tried = []
    for strength in sorted(strengths or (RIDGE_STRENGTHS if target.labels is None else STRENGTHS)):
        weights, bias = fit(strength)
        logits = _logits(target, pooled[validation], weights, bias)
        score = float(target.row_scores(torch.from_numpy(logits), goal).mean())
        tried.append((score, strength, logits, weights, bias))
    score, strength, logits, weights, bias = max(tried, key=lambda fit: fit[0])
    if refit:
        rows = np.union1d(train, validation)
        weights, bias = _fitter(target, pooled[rows], targets[rows])(strength)
    # Two labels that exclude each other, or two anchors, need only one column of weights.
    columns = 1 if targets.ndim == 1 and target.outputs == 2 else target.outputs
    loss = target.mean_loss(torch.from_numpy(logits), goal)
    return Probe(weights, bias, target, columns * (len(weights) + 1), strength, logits, score, loss)


def _fitter(target: TaskKind, pooled: np.ndarray, goal: np.ndarray) -> Callable[[float], Linear]:
    """Fits one strength after the other on the same rows, standardised, each from where the one before ended."""
    scaler = StandardScaler().fit(pooled)
    values, outputs, several = scaler.transform(pooled), target.outputs, goal.ndim == 2
    # Labels that do not exclude each other have a model each.
    models = [LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True) for _ in range(outputs if several else 1)]

    def ridge(strength: float) -> Linear:
        model = Ridge(alpha=1 / strength).fit(values, goal)
        return np.ravel(model.coef_)[:, None], np.array([model.intercept_])

    def logistic(strength: float) -> Linear:
        parts = []
        for model, column in zip(models, goal.T if several else [goal], strict=True):
            ids = column.astype(np.int64)
            # Nothing can be fitted for a label that all rows have or none has; its logit is its smoothed share.
            if several and len(np.unique(ids)) == 1:
                having = float(ids.sum())
                share = np.log((having + 0.5) / (len(ids) - having + 0.5))
                parts.append((np.zeros((values.shape[1], 1)), np.array([share])))
                continue
            with warnings.catch_warnings():
                # The validation set shows whether a fit that has not converged is good enough.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(C=strength).fit(values, ids)
            parts.append(_columns(model, 1 if several else outputs))
        weights, biases = zip(*parts, strict=True)
        return np.concatenate(weights, axis=1), np.concatenate(biases)

    def fit(strength: float) -> Linear:
        weights, bias = (ridge if target.labels is None else logistic)(strength)
        # This turns the weights into those of the same map on features that are not standardised.
        weights = weights / scaler.scale_[:, None]
        return weights, bias - scaler.mean_ @ weights

    return fit


def _columns(model: LogisticRegression, outputs: int) -> Linear:
    """Weights (F, outputs) and bias (outputs,) of a model of the label ids that it has met."""
    coefficients, intercepts = model.coef_.T.astype(np.float64), model.intercept_.astype(np.float64)
    if outputs == 1:
        return coefficients, intercepts
    # With two labels the model has one column of weights, and the first label's logit is 0.
    met = model.classes_[1:] if len(model.classes_) == 2 else model.classes_
    weights, bias = np.zeros((len(coefficients), outputs)), np.full(outputs, NEVER)
    bias[model.classes_] = 0.0
    weights[:, met], bias[met] = coefficients, intercepts
    return weights, bias


def _logits(target: TaskKind, pooled: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the logits (rows, C) float32 of pooled features (rows, F)."""
    return target.logits_of_linear(pooled @ weights + bias).astype(np.float32)

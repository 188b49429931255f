"""The opponents: what people would use instead, on the same stored features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ytuning.features import Features, ordered_batches

__all__ = ["LogisticResult", "mean_pooled", "tuned_logistic_regression"]

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def mean_pooled(features: Features) -> np.ndarray:
    """(rows, L * D) float32: the mean over tokens of every stored hidden state, side by side."""
    pooled = np.empty((len(features), features.layers * features.width), np.float32)
    for rows in ordered_batches(features.lengths):
        values, mask = features.batch(rows)
        mean = (values.float() * mask[..., None, None]).sum(1) / mask.sum(1)[:, None, None]
        pooled[rows.numpy()] = mean.flatten(1).numpy()
    features.release()
    return pooled


@dataclass(frozen=True)
class LogisticResult:
    """A tuned logistic regression.

    Attributes:
        model: fitted on train and validation rows with the chosen strength.
        strength: scikit-learn's ``C``, chosen on validation rows.
        validation_accuracy: of that strength, fitted on train rows only.
    """

    model: Pipeline
    strength: float
    validation_accuracy: float


def tuned_logistic_regression(
    pooled: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
) -> LogisticResult:
    """Logistic regression on standardised pooled features; validation rows choose the strength, then all rows are used.

    Args:
        pooled: (rows, features), see :func:`mean_pooled`.
        targets: (rows,) label ids.
        train: positions of rows to fit on.
        validation: positions of rows that choose the strength.
        strengths: values of ``C`` to try.
    """

    def fit(rows: np.ndarray, strength: float) -> Pipeline:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        return model.fit(pooled[rows], targets[rows])

    scores = {strength: fit(train, strength).score(pooled[validation], targets[validation]) for strength in strengths}
    best = max(scores, key=lambda strength: scores[strength])
    return LogisticResult(fit(np.union1d(train, validation), best), best, float(scores[best]))

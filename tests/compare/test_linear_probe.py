"""Linear probes, beside scikit-learn's own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.conftest import STATES
from tests.kinds import KIND_NAMES, KindName, kind_of
from ytuning.compare.linear_probe import NEVER, tuned_probe
from ytuning.encoder.encoder import load_encoder
from ytuning.features.features import live_features, live_inputs, mean_pooled

TRAIN, HELD, TEST = np.arange(120), np.arange(120, 160), np.arange(160, 220)


@pytest.fixture(scope="module")
def pooled() -> np.ndarray:
    """(220, 12) float32 of different scales, the last column constant."""
    values = np.random.default_rng(0).normal(size=(220, 12)) * np.linspace(0.1, 5, 12) + 3
    values[:, -1] = 2
    return values.astype(np.float32)


def labels_from(pooled: np.ndarray, kind: KindName) -> np.ndarray:
    """Targets that depend on the features, with noise."""
    noise = np.random.default_rng(1).normal(size=(len(pooled), 4))
    signal = (pooled[:, :4] - 3) / np.linspace(0.1, 5, 12)[:4] + noise
    if kind == "multi":
        return (signal > 0.5).astype(np.float32)
    if kind in ("bounded", "unbounded"):
        position = scipy.special.expit(signal[:, 0]) if kind == "bounded" else signal[:, 0]
        return position.astype(np.float32)
    return np.digitize(signal[:, 0], [-1, 0, 0.5]) if kind == "ordinal" else signal.argmax(1)


@pytest.mark.parametrize("kind", ["single", "ordinal"])
def test_logistic_regression_is_scikit_learns(pooled: np.ndarray, kind: KindName) -> None:
    targets = labels_from(pooled, kind)
    probe = tuned_probe(kind_of(kind, 4), pooled, targets, TRAIN, HELD, strengths=[0.1])
    naive = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    naive.fit(pooled[:160], targets[:160])
    found = scipy.special.softmax(probe.logits(pooled[TEST]).astype(np.float64), axis=1)
    np.testing.assert_allclose(found, naive.predict_proba(pooled[TEST]), atol=2e-3)
    assert probe.parameters == naive[-1].coef_.size + naive[-1].intercept_.size
    naive.fit(pooled[TRAIN], targets[TRAIN])
    held = scipy.special.softmax(probe.validation_logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(held, naive.predict_proba(pooled[HELD]), atol=2e-3)
    if kind == "single":
        assert probe.validation_score == pytest.approx(naive.score(pooled[HELD], targets[HELD]))


def test_two_labels_take_one_column(pooled: np.ndarray) -> None:
    targets = (labels_from(pooled, "single") > 1).astype(np.int64)
    probe = tuned_probe(kind_of("single", 2), pooled, targets, TRAIN, HELD, strengths=[0.1], refit=False)
    naive = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(pooled[TRAIN], targets[TRAIN])
    logits = probe.logits(pooled[TEST])
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], naive.decision_function(pooled[TEST]), atol=1e-2)
    assert probe.parameters == 13


def test_several_labels_are_one_against_the_rest(pooled: np.ndarray) -> None:
    targets = labels_from(pooled, "multi")
    targets[:, 2], targets[:, 3] = 0, 1  # labels that no row has, and every row
    probe = tuned_probe(kind_of("multi", 4), pooled, targets, TRAIN, HELD, strengths=[0.1])
    naive = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=300)))
    naive.fit(pooled[:160], targets[:160, :2].astype(int))
    found = scipy.special.expit(probe.logits(pooled[TEST]).astype(np.float64))
    np.testing.assert_allclose(found[:, :2], naive.predict_proba(pooled[TEST]), atol=2e-3)
    np.testing.assert_allclose(found[:, 2:], np.tile([0.5 / 161, 160.5 / 161], (60, 1)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["bounded", "unbounded"])
def test_ridge_regression_is_scikit_learns(pooled: np.ndarray, kind: KindName) -> None:
    targets = labels_from(pooled, kind)
    probe = tuned_probe(kind_of(kind, 4), pooled, targets, TRAIN, HELD, strengths=[0.01])
    naive = make_pipeline(StandardScaler(), Ridge(alpha=100)).fit(pooled[:160], targets[:160])
    logits = probe.logits(pooled[TEST])
    position = logits[:, 1] - logits[:, 0]
    expected = naive.predict(pooled[TEST])
    if kind == "bounded":
        position, expected = scipy.special.expit(position), expected.clip(0, 1)
    np.testing.assert_allclose(position, expected, atol=1e-4)
    assert probe.parameters == 13


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_validation_chooses_the_strength(pooled: np.ndarray, kind: KindName) -> None:
    targets = labels_from(pooled, kind)
    strengths = [1e-4, 3e-3, 1.0]
    each = [tuned_probe(kind_of(kind, 4), pooled, targets, TRAIN, HELD, strengths=[s]) for s in strengths]
    chosen = tuned_probe(kind_of(kind, 4), pooled, targets, TRAIN, HELD, strengths=strengths[::-1])
    best = max(each, key=lambda probe: probe.validation_score)
    assert chosen.strength == best.strength
    np.testing.assert_allclose(chosen.validation_logits, best.validation_logits, atol=0.05)  # warm starts
    logits, goal = torch.from_numpy(chosen.validation_logits), torch.from_numpy(targets[HELD])
    assert chosen.validation_score == pytest.approx(float(kind_of(kind, 4).row_scores(logits, goal).mean()))
    assert chosen.validation_loss == pytest.approx(kind_of(kind, 4).mean_loss(logits, goal))


def test_without_refit_validation_rows_are_not_fitted_on(pooled: np.ndarray) -> None:
    targets = labels_from(pooled, "single")
    probe = tuned_probe(kind_of("single", 4), pooled, targets, TRAIN, HELD, strengths=[0.1], refit=False)
    np.testing.assert_allclose(probe.logits(pooled[HELD]), probe.validation_logits, atol=1e-5)


def test_a_label_that_no_train_row_has_is_never_given(pooled: np.ndarray) -> None:
    targets = labels_from(pooled, "single")
    targets[TRAIN] = np.where(targets[TRAIN] == 1, 0, targets[TRAIN])
    targets[HELD] = np.where(targets[HELD] == 1, 0, targets[HELD])
    probe = tuned_probe(kind_of("single", 4), pooled, targets, TRAIN, HELD, strengths=[0.1])
    logits = probe.logits(pooled[TEST])
    assert (logits[:, 1] == NEVER).all() and (logits.argmax(1) != 1).all()


def test_what_has_not_converged_is_no_warning(pooled: np.ndarray) -> None:
    targets = labels_from(pooled, "single")
    powers = np.concatenate([(pooled[:, :4] - 3) ** power for power in range(1, 9)], axis=1)
    with pytest.warns(ConvergenceWarning):
        LogisticRegression(C=1e6, max_iter=300).fit(StandardScaler().fit_transform(powers[TRAIN]), targets[TRAIN])
    tuned_probe(kind_of("single", 4), powers, targets, TRAIN, HELD, strengths=[1e6])


def test_pairs_that_are_read_one_by_one_are_set_beside_each_other(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, device="cpu")
    pairs: list[Any] = [("my card", "where is it"), ("refund", "my card"), ("where is it", "refund late money")]
    found = mean_pooled(live_inputs(pairs, encoder, states=STATES, pair_mode="separate"))
    for row, (first, second) in zip(found, pairs, strict=True):
        u, v = (mean_pooled(live_features([(text, None)], encoder, states=STATES))[0] for text in (first, second))
        np.testing.assert_allclose(row, np.concatenate((u, v, abs(u - v), u * v)), atol=1e-3)

"""Labels with a few rows beside labels with many: they are predicted, and their rows in closed form are right."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import STATES, WORDS
from tests.kinds import kind_of
from ytuning.encoder.encoder import load_encoder
from ytuning.features.features import Features, live_features
from ytuning.heads.pooled import PooledConfig, PooledHead
from ytuning.system.machine import workers
from ytuning.training.calibration import fit_calibration
from ytuning.training.fit import FitResult, HeadJob, fit_heads, logits_of
from ytuning.training.joint import label_space
from ytuning.training.rare_labels import blend_heads, discriminant_head
from ytuning.training.recipes import Recipe, TrainingConfig

# Rows of each label in the training set, the validation set and the test set; the last two labels are rare.
COUNTS = {"train": (90, 60, 40, 3, 2), "validation": (12, 8, 5, 0, 0), "test": (20, 20, 20, 20, 20)}
ENDS = np.cumsum([sum(counts) for counts in COUNTS.values()])
TRAIN, VALIDATION, TEST = (np.arange(end - sum(n), end) for end, n in zip(ENDS, COUNTS.values(), strict=True))
CONFIG = PooledConfig(width=16, token_width=16)
SHORT = TrainingConfig(fewest_steps=120, most_steps=120)


@pytest.fixture(scope="module")
def tail(tiny_encoder: Path) -> tuple[Features, np.ndarray]:
    """Features and label ids (rows,): a label shows in two words of its own among words of any label."""
    chooser = random.Random(0)
    ids = [label for counts in COUNTS.values() for label, count in enumerate(counts) for _ in range(count)]
    texts = []
    for label in ids:
        words = [*chooser.choices(WORDS, k=3), *WORDS[2 * label : 2 * label + 2]]
        chooser.shuffle(words)
        texts.append((" ".join(words), None))
    return live_features(texts, load_encoder(tiny_encoder, precision="fp32"), states=STATES), np.array(ids)


def several(ids: np.ndarray) -> np.ndarray:
    """Targets (rows, 5) of rows with one label each, for a task whose rows may have several."""
    return np.eye(5, dtype=np.float32)[ids]


def fit(features: Features, targets: np.ndarray, rare_rows: float) -> FitResult:
    kind = kind_of("multi" if targets.ndim == 2 else "single", 5)
    job = HeadJob(kind, targets, Recipe(CONFIG, replace(SHORT, rare_rows=rare_rows)))
    return fit_heads(features, [job], train=TRAIN, validation=VALIDATION)[0]


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_rare_labels_are_predicted(kind: str, tail: tuple[Features, np.ndarray]) -> None:
    features, ids = tail
    targets = several(ids) if kind == "multi" else ids
    target = kind_of("multi" if kind == "multi" else "single", 5)
    recall: dict[float, float] = {}
    macro: dict[float, float] = {}
    for rare_rows in (0.0, 50.0):
        result = fit(features, targets, rare_rows)
        smoothing = SHORT.smoothing_of(target)
        calibration = fit_calibration(target, result.validation_logits, targets[VALIDATION], smoothing=smoothing)
        answers = calibration.answers(target, logits_of(result.head, features, torch.from_numpy(TEST)))
        truth = target.decode(targets[TEST])
        macro[rare_rows] = target.metrics(truth, answers)["macro_f1"]
        recall[rare_rows] = sum(target.label_figures(truth, answers.values)[label]["recall"] for label in (3, 4)) / 2
    assert recall[50.0] > recall[0.0] + 0.2
    assert macro[50.0] > macro[0.0] + 0.05


def test_one_wrong_label_takes_no_rows_of_others(tail: tuple[Features, np.ndarray]) -> None:
    features, ids = tail
    # The three frequent labels, and one row whose label has a typing error.
    train, test = TRAIN[:190], TEST[:60]
    typo = np.where(ids < 3, ids, 3)
    typo[train[100]] = 3
    job = HeadJob(kind_of("single", 4), typo, Recipe(CONFIG, SHORT))
    head = fit_heads(features, [job], train=train, validation=VALIDATION)[0].head
    answers = logits_of(head, features, torch.from_numpy(test)).argmax(1)
    assert (answers == 3).sum() <= 1
    assert (answers == ids[test]).mean() > 0.9


@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 0.0, 0.5)])
def test_the_closed_form_against_a_loop(weights: tuple[float, ...] | None, tail: tuple[Features, np.ndarray]) -> None:
    features, ids = tail
    targets, rows = several(ids), torch.from_numpy(TRAIN)
    head = fit(features, targets, 0.0).head
    assert isinstance(head, PooledHead)
    head = head if weights is None else head.with_group_weights(weights)
    with workers() as pool:
        logits = logits_of(discriminant_head(head, features, targets, rows, 50.0, pool), features, rows)
    # Members that count nothing take no part.
    vectors = label_space(head, features, rows)[:, head.member_weights > 0].flatten(1).double().numpy()
    # Nor do the numbers that the light member leaves at 0.
    vectors = vectors[:, vectors.std(0) > 0]
    values = (vectors - vectors.mean(0)) / vectors.std(0)
    covariance = 0.7 * np.cov(values.T, bias=True) + 0.3 * np.eye(values.shape[1])
    for label in range(5):
        own = targets[TRAIN][:, label] > 0
        mean = values[own].sum(0) / (own.sum() + 2)
        direction = np.linalg.inv(covariance) @ mean
        odds = np.log((own.sum() + 0.5) / ((~own).sum() + 0.5))
        assert logits[:, label] == pytest.approx(values @ direction - mean @ direction / 2 + odds, abs=2e-3)


def test_of_many_rows_a_part_is_read_and_all_of_rare_labels(
    tail: tuple[Features, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, ids = tail
    targets, rows = several(ids), torch.from_numpy(TRAIN)
    head = fit(features, targets, 0.0).head
    assert isinstance(head, PooledHead)
    monkeypatch.setattr("ytuning.training.rare_labels.MOST_ROWS", 100)
    with workers() as pool:
        part = discriminant_head(head, features, targets, rows, 10.0, pool)
        # Every second row, and all of the two rare labels, which come last.
        known = torch.from_numpy(np.concatenate((TRAIN[:190:2], TRAIN[190:])))
        monkeypatch.undo()
        small = discriminant_head(head, features, targets, known, 10.0, pool)
    assert torch.allclose(part.label_rows, small.label_rows, atol=1e-6)


def test_a_blend_is_between_both_heads(tail: tuple[Features, np.ndarray]) -> None:
    features, ids = tail
    one, other = (fit(features, several(ids), rare_rows).head for rare_rows in (0.0, 50.0))
    assert isinstance(one, PooledHead) and isinstance(other, PooledHead)
    share = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    rows = torch.from_numpy(TEST)
    blend, first, second = (
        logits_of(head, features, rows) for head in (blend_heads(one, other, share, 2.0), one, other)
    )
    assert blend == pytest.approx((1 - share.numpy()) * first + share.numpy() / 2 * second, abs=1e-4)


def test_labels_with_many_rows_hardly_change(tail: tuple[Features, np.ndarray]) -> None:
    features, ids = tail
    without, little = (fit(features, several(ids), rare_rows).head for rare_rows in (0.0, 0.01))
    rows = torch.from_numpy(TEST)
    change = np.abs(logits_of(without, features, rows) - logits_of(little, features, rows)).max(0)
    assert change[:3].max() < 0.01 and change[:3].min() > 0

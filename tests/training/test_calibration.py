"""Calibration against loops, and against what is known of it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from tests.kinds import kind_of as names
from ytuning.data.kinds import Ordinal, Regression, fit_kind
from ytuning.data.kinds.metrics import expected_calibration_error, threshold_sweep
from ytuning.data.labels import LabelSet
from ytuning.errors import InputError
from ytuning.training.calibration import Calibration, calibrated_logits, fit_calibration, undo_label_smoothing

Kind = Literal["single", "ordinal", "multi"]
ABC = LabelSet(("a", "b", "c"))


def logits_of(probabilities: Any) -> np.ndarray:
    """Logits that a softmax makes these probabilities of."""
    return np.log(np.maximum(probabilities, 1e-30))


def example(kind: Kind, rows: int = 400, labels: int = 3, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, labels) float32 that are ``sharpness`` times too large, and truth that was drawn by them."""
    chooser = np.random.default_rng(rows)
    logits = chooser.normal(scale=2, size=(rows, labels))
    if kind == "multi":
        truth = (chooser.random((rows, labels)) < expit(logits)).astype(np.float32)
    else:
        truth = (logits + chooser.gumbel(size=logits.shape)).argmax(1)
    return (sharpness * logits).astype(np.float32), truth


# --- use ------------------------------------------------------------------------------------------------------------


def test_default_changes_nothing() -> None:
    for kind in ("single", "ordinal", "multi"):
        target, (logits, _) = names(kind), example(kind)
        probabilities = Calibration().answers(target, logits).probabilities
        assert probabilities.dtype == np.float64
        assert (probabilities == target.answers(logits).probabilities).all()


def test_temperature_divides_logits() -> None:
    logits = np.array([[2.0, 0.0, 0.0]], np.float32)
    each = np.exp([1.0, 0.0, 0.0])
    assert Calibration(2.0).answers(names("single"), logits).probabilities[0] == pytest.approx(each / each.sum())
    assert Calibration(2.0).answers(names("multi"), logits).probabilities[0] == pytest.approx([expit(1), 0.5, 0.5])


def test_decisions_of_single_labels() -> None:
    logits = logits_of([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0], [0.3, 0.4, 0.3]])
    assert Calibration().answers(names("single"), logits).values.tolist() == [2, 0, 1]
    decisions = Calibration(abstain_below=0.49).answers(names("single"), logits).values
    assert decisions.tolist() == [2, 0, -1]
    assert decisions.dtype == np.int64


def test_decisions_of_ordered_labels_are_medians() -> None:
    values = np.array([[0.45, 0.15, 0.4], [0.5, 0.1, 0.4], [0.1, 0.3, 0.6], [0.3, 0.4, 0.3], [0.2, 0.2, 0.05]])
    decisions = Ordinal(ABC).decide(values)
    assert decisions.tolist() == [1, 0, 2, 1, 2]
    assert decisions.dtype == np.int64
    logits = logits_of(values[:4])
    assert Calibration(abstain_below=0.44).answers(Ordinal(ABC), logits).values.tolist() == [1, 0, 2, -1]


def test_decisions_of_several_labels() -> None:
    logits = logit([[0.5, 0.49, 0.9], [0.1, 0.21, 0.31]])
    assert Calibration().answers(names("multi"), logits).values.tolist() == [[True, False, True], [False, False, False]]
    decisions = Calibration(thresholds=(0.6, 0.2, 0.3)).answers(names("multi"), logits).values
    assert decisions.tolist() == [[False, True, True], [False, True, True]]
    assert decisions.dtype == bool


# --- storage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "calibration", [Calibration(), Calibration(0.1 + 0.2, (0.1, 1 / 3, 1.0, 0.0)), Calibration(20.0, None, 0.7, 0.1)]
)
def test_stored_and_read(calibration: Calibration) -> None:
    thresholds = None if calibration.thresholds is None else list(calibration.thresholds)
    content, listed = json.loads(json.dumps([calibration.to_json(), thresholds]))
    assert set(content) == {"temperature", "smoothing", "abstain_below"}
    assert Calibration.from_json(content, listed) == calibration


STORED = {"temperature": 1.0, "smoothing": 0.0, "abstain_below": None}


@pytest.mark.parametrize(
    ("field", "wanted", "values"),
    [
        ("temperature", "above 0", (0, -1.0, math.inf, math.nan, None, "1", True, 10**400)),
        ("abstain_below", "from 0 to 1", (-0.1, 1.1, math.nan, "1", False)),
        ("smoothing", "from 0 to below 1", (-0.1, 1, math.nan, None, "1", True)),
    ],
)
def test_damaged_numbers(field: str, wanted: str, values: Iterable[object]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be a number {wanted}\. Got "):
            Calibration.from_json({**STORED, field: value}, None)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, None, "1"])
def test_damaged_thresholds(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^a threshold must be a number from 0 to 1\. Got "):
        Calibration.from_json(STORED, [0.5, value])
    for no_list in (0.5, {"a": 0.5}):
        with pytest.raises(ValueError, match=r"^thresholds must be a list or null\. Got .* instead\.$"):
            Calibration.from_json(STORED, no_list)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", [None, [1.0], {}, {"temperature": 1.0, "abstain_below": None}, {**STORED, "more": 1}]
)
def test_damaged_fields(content: Any) -> None:
    with pytest.raises(ValueError, match=r"^a calibration has temperature, smoothing and abstain_below\. Got "):
        Calibration.from_json(content, None)


# --- temperature ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "ordinal", "multi"])
def test_temperature_has_the_least_loss(kind: Kind) -> None:
    logits, truth = example(kind, sharpness=1.7)
    values, goal = torch.from_numpy(logits).double(), torch.from_numpy(truth)
    goal = goal.double() if kind == "multi" else goal

    def loss(temperature: float) -> float:
        return names(kind).mean_loss(values / temperature, goal)

    calibration = fit_calibration(names(kind), logits, truth).temperature
    assert loss(calibration) < min(loss(calibration * 1.02), loss(calibration / 1.02))
    assert loss(calibration) <= min(loss(math.exp(log)) for log in np.linspace(math.log(0.2), math.log(20), 40))


@pytest.mark.parametrize("kind", ["single", "ordinal", "multi"])
def test_larger_logits_have_a_higher_temperature(kind: Kind) -> None:
    logits, truth = example(kind)
    one, three = (fit_calibration(names(kind), factor * logits, truth) for factor in (1, 3))
    assert three.temperature == pytest.approx(3 * one.temperature, rel=1e-3)
    assert one.temperature == pytest.approx(1, abs=0.15)  # as the truth was drawn by them


def smoothed(logits: np.ndarray, smoothing: float) -> np.ndarray:
    """Of what a head learns best from labels of which a share is spread over all."""
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(1, keepdims=True)
    return np.log((1 - smoothing) * shares + smoothing / logits.shape[1])


@pytest.mark.parametrize(("labels", "smoothing"), [(2, 0.1), (3, 0.2), (50, 0.1)])
def test_smoothing_is_undone(labels: int, smoothing: float) -> None:
    logits, _ = example("single", labels=labels)
    target = names("single", labels)
    probabilities = Calibration(smoothing=smoothing).answers(target, smoothed(logits, smoothing)).probabilities
    # Softly: a probability of 0 becomes a little more, at most softness * ln 2 of what smoothing had given it.
    error = 0.1 * math.log(2) * smoothing / (1 - smoothing)
    assert np.abs(probabilities - target.answers(logits).probabilities).max() < error
    high = target.answers(logits).probabilities > smoothing / labels
    assert probabilities[high] == pytest.approx(target.answers(logits).probabilities[high], rel=1.5 * error)


def test_undoing_smoothing_keeps_every_order() -> None:
    logits, _ = example("single", labels=5)
    for sharpness in (0.5, 3.0):
        found = undo_label_smoothing(sharpness * logits, 0.1)
        assert (found.argsort(1) == logits.argsort(1)).all() and np.isfinite(found).all()
    two, _ = example("single", labels=2)
    before, after = (
        each.answers(names("single", 2), two).probabilities[:, 0]
        for each in (Calibration(), Calibration(2, None, None, 0.1))
    )
    assert (before.argsort() == after.argsort()).all()
    assert (undo_label_smoothing(logits, 0.0) == logits).all()
    assert Calibration(smoothing=0.1).answers(names("single", 1), np.zeros((2, 1))).probabilities.tolist() == [
        [1.0],
        [1.0],
    ]
    extreme = np.array([[800.0, -800.0], [0.0, 1e-9]])
    assert np.isfinite(undo_label_smoothing(extreme, 0.1)).all()


def test_smoothed_scores_get_their_certainty_back() -> None:
    logits, truth = example("single", rows=20_000, labels=2)
    seen = smoothed(logits, 0.1)
    target, half = names("single", 2), slice(10_000)
    undone, plain = (fit_calibration(target, seen[half], truth[half], smoothing=share) for share in (0.1, 0.0))
    assert undone.smoothing == 0.1 and undone.temperature == pytest.approx(1, abs=0.05)
    assert plain.temperature < 0.9
    errors = [
        expected_calibration_error(truth[10_000:], each.answers(target, seen[10_000:]).probabilities)
        for each in (undone, plain)
    ]
    assert errors[0] < errors[1] / 2
    logits = seen.astype(np.float32)
    assert calibrated_logits(target, logits, truth, smoothing=0.1) == pytest.approx(
        undo_label_smoothing(logits, 0.1) / fit_calibration(target, logits, truth, smoothing=0.1).temperature, rel=1e-5
    )
    assert fit_calibration(target, seen[:19], truth[:19], smoothing=0.1) == Calibration()


def test_smoothing_is_undone_where_that_makes_the_loss_less() -> None:
    logits, truth = example("single", rows=2000)
    target, goal = names("single"), torch.from_numpy(truth)
    for seen, undone in ((smoothed(logits, 0.2), 0.2), (logits, 0.0), (5 * logits, 0.0)):
        calibration = fit_calibration(target, seen, truth, smoothing=0.2)
        other = replace(fit_calibration(target, seen, truth), smoothing=0.2 - undone)
        assert calibration.smoothing == undone
        losses = [
            target.mean_loss(torch.from_numpy(replace(each, temperature=temperature).scale(seen)), goal)
            for each in (calibration, other)
            for temperature in (calibration.temperature, *np.geomspace(0.2, 20, 40))
        ]
        assert losses[0] <= min(losses)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_over_confidence_falls(kind: Kind) -> None:
    logits, truth = example(kind, sharpness=4)
    target, held_out = names(kind), truth[200:] > 0 if kind == "multi" else truth[200:]
    before, after = (
        expected_calibration_error(held_out, calibration.answers(target, logits[200:]).probabilities)
        for calibration in (Calibration(), fit_calibration(target, logits[:200], truth[:200]))
    )
    assert after < before / 2


def test_temperature_stays_in_its_range() -> None:
    truth = np.arange(30) % 3
    right = np.eye(3)[truth]
    assert fit_calibration(names("single"), right, truth).temperature == pytest.approx(0.2, rel=1e-3)
    assert fit_calibration(names("single"), -right, truth).temperature == pytest.approx(20, rel=1e-3)


def test_temperature_needs_rows_and_more_than_one_label() -> None:
    logits, truth = example("single", rows=20, sharpness=5)
    assert fit_calibration(names("single"), logits[:19], truth[:19]).temperature == 1.0
    assert fit_calibration(names("single"), logits, truth).temperature != 1.0
    assert fit_calibration(names("single", 1), logits[:, :1], np.zeros(20, int)).temperature == 1.0
    assert fit_calibration(names("single"), np.zeros((20, 3)), truth).temperature == 1.0


# --- thresholds -----------------------------------------------------------------------------------------------------


def naive_threshold(probabilities: Iterable[float], truth: Iterable[float]) -> float:
    """Of all midpoints, from the highest on, the first with the best F1."""
    values, flags = np.array(list(probabilities)), np.array(list(truth)) > 0
    steps = [*sorted(set(values.tolist()), reverse=True), 0.0]
    best, chosen = 0.0, 0.5
    for high, low in itertools.pairwise(steps):
        given = values >= (high + low) / 2
        f1 = 2 * (given & flags).sum() / (given.sum() + flags.sum())
        if f1 > best:
            best, chosen = f1, (high + low) / 2
    return chosen


def naive_shared(probabilities: np.ndarray, truth: np.ndarray) -> list[float]:
    """A label whose mean odds are a quarter of the most frequent label's is given at half the odds."""
    odds, means = probabilities / (1 - probabilities), probabilities.mean(0)
    odds_of_label = means / (1 - means)
    factors = np.sqrt(odds_of_label / odds_of_label.max())
    common = (odds / factors) / (1 + odds / factors)
    shared = min(0.95, max(0.05, naive_threshold(common.ravel(), truth.ravel())))
    return [float(expit(logit(shared) + math.log(factor))) for factor in factors]


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_thresholds_against_a_loop(rows: int) -> None:
    target = names("multi", 5)
    logits, truth = example("multi", rows=rows, labels=5, sharpness=1.3)
    logits = np.round(logits, 1)  # many are equal
    truth *= np.random.default_rng(0).random(truth.shape) < [1, 0.5, 0.1, 0.02, 0]
    calibration = fit_calibration(target, logits, truth)
    assert calibration.abstain_below is None and calibration.thresholds is not None
    values = calibration.answers(target, logits).probabilities
    shared = naive_shared(values, truth)
    for label, threshold in enumerate(calibration.thresholds):
        assert type(threshold) is float
        count = truth[:, label].sum()
        weight = count / (count + 10)
        own = logit(naive_threshold(values[:, label], truth[:, label]))
        assert threshold == pytest.approx(expit(weight * own + (1 - weight) * logit(shared[label])))


def test_thresholds_raise_f1_of_rare_labels() -> None:
    chooser = np.random.default_rng(0)
    truth = (chooser.random((2000, 4)) < 0.1).astype(np.float32)
    logits = 2 * truth - 3 + chooser.normal(size=truth.shape)  # rarely above 0
    target = names("multi", 4)
    calibration = fit_calibration(target, logits[:1000], truth[:1000])
    before, after = (
        target.metrics(truth[1000:] > 0, each.answers(target, logits[1000:]))["macro_f1"]
        for each in (Calibration(), calibration)
    )
    assert after > before + 0.1


def test_thresholds_of_labels_without_rows() -> None:
    logits, truth = example("multi")
    target = names("multi")
    assert fit_calibration(target, logits, np.zeros_like(truth)).thresholds == pytest.approx((0.5, 0.5, 0.5))
    truth[:, 1] = 0
    calibration = fit_calibration(target, logits, truth)
    assert calibration.thresholds is not None
    shared = naive_shared(calibration.answers(target, logits).probabilities, truth)
    assert calibration.thresholds[1] == pytest.approx(shared[1])


def test_a_rare_label_without_validation_rows_gets_a_lower_threshold() -> None:
    chooser = np.random.default_rng(0)
    truth = (chooser.random((400, 3)) < [0.3, 0.3, 0]).astype(np.float32)
    logits = 4 * truth - 2 + chooser.normal(size=truth.shape) - [0, 0, 4]
    thresholds = fit_calibration(names("multi"), logits, truth).thresholds
    assert thresholds is not None
    assert 0 < 5 * thresholds[2] < min(thresholds[:2])


def test_shared_threshold_keeps_away_from_the_ends() -> None:
    # The first nine rows are surer than the others, by each label the same.
    logits = np.repeat([[4.0] * 3, [-4.0] * 3], 9, axis=0)
    everything, first = np.ones((18, 3)), np.repeat([[1, 0, 0], [0, 0, 0]], 9, axis=0)
    target = names("multi")
    low = fit_calibration(target, logits - 15, everything).thresholds
    assert low is not None
    own = naive_threshold(expit(logits[:, 0] - 15), everything[:, 0])
    assert low == pytest.approx([expit((18 * logit(own) + 10 * logit(0.05)) / 28)] * 3)
    high = fit_calibration(target, logits + 15, first).thresholds
    assert high is not None
    assert high[1:] == pytest.approx((0.95, 0.95))


def test_thresholds_of_probabilities_that_are_0_or_1() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]] * 15)
    calibration = fit_calibration(names("multi", 2), logits, (logits > 0).astype(np.float32))
    assert calibration.thresholds == pytest.approx((0.5, 0.5))
    wrong = fit_calibration(names("multi", 2), logits, (logits < 0).astype(np.float32))
    assert wrong.thresholds is not None
    assert all(0 < threshold < 0.5 for threshold in wrong.thresholds)


def test_thresholds_between_neighbouring_numbers() -> None:
    scores = [0.3]
    while len(scores) < 9:
        scores.append(float(np.nextafter(scores[-1], 0)))  # halfway, half of them round to the lower one
    thresholds, given, _ = threshold_sweep(np.array(scores), np.ones(9, bool))
    assert (
        given.tolist() == [sum(score >= threshold for score in scores) for threshold in thresholds] == [*range(1, 10)]
    )


# --- abstaining -----------------------------------------------------------------------------------------------------


def naive_abstaining(values: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    confidence = values.max(1)
    fewest = max(10, len(right) / 100)
    for lowest in sorted(set(confidence.tolist())):
        answered = confidence >= lowest
        if answered.sum() >= fewest and right[answered].mean() >= precision:
            below = confidence[confidence < lowest]
            if not len(below):
                return 0.0
            halfway = (lowest + float(below.max())) / 2
            return halfway if halfway > below.max() else lowest  # of neighbouring numbers it may be the lower one
    return None


@pytest.mark.parametrize("kind", ["single", "ordinal"])
@pytest.mark.parametrize("share", [0.3, 0.75, 0.8, 0.85, 0.9])
def test_abstaining_against_a_loop(kind: Kind, share: float) -> None:
    target = names(kind)
    logits, truth = example(kind)
    logits = np.round(logits)  # many are equal
    calibration = fit_calibration(target, logits, truth, abstain_at=share)
    values = calibration.answers(target, logits).probabilities
    always = replace(calibration, abstain_below=None).answers(target, logits).values
    assert calibration.abstain_below == naive_abstaining(values, always == truth, share)
    predicted = calibration.answers(target, logits).values
    answered = predicted >= 0
    assert (predicted[answered] == always[answered]).all()
    assert (predicted[answered] == truth[answered]).mean() >= share
    assert answered.all() == (share == 0.3)
    assert calibration.temperature == fit_calibration(target, logits, truth).temperature


def test_abstaining_is_off_by_default() -> None:
    assert fit_calibration(names("single"), *example("single")).abstain_below is None


@pytest.mark.parametrize("share", [0, -0.5, 1.5, math.nan])
def test_abstaining_at_no_share(share: float) -> None:
    with pytest.raises(InputError, match=rf"^abstain_at must be a share above 0 and at most 1\. Got {share!r} instead"):
        fit_calibration(names("single"), *example("single"), abstain_at=share)


def test_abstaining_is_not_for_other_kinds() -> None:
    problem = "^abstain_at is for single-label and ordinal tasks, and this one is {}. Leave it out$"
    with pytest.raises(InputError, match=problem.format("multi")):
        fit_calibration(names("multi"), *example("multi"), abstain_at=0.9)
    with pytest.raises(InputError, match=problem.format("regression")):
        fit_calibration(Regression(0, 1, bounded=True), np.zeros((30, 2)), np.zeros(30), abstain_at=0.9)


def confident(right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two labels, the first row the surest, and truth that makes rows right or wrong."""
    logits = np.zeros((len(right), 2))
    logits[:, 0] = np.linspace(3, 1, len(right))
    return logits, 1 - np.array(right, int)


def test_abstaining_that_validation_does_not_reach() -> None:
    rows = confident([True] * 9 + [False] + [True] * 9 + [False] * 11)
    with pytest.raises(InputError) as caught:
        fit_calibration(names("single", 2), *rows, abstain_at=0.99)
    assert str(caught.value) == (
        "abstain_at 0.99 is not reached on the 30 validation rows by any 10 or more of them that are answered with the "
        "highest confidence. The best precision is 0.9473, of 63.3% of the rows. Ask for no more than that"
    )
    calibration = fit_calibration(names("single", 2), *rows, abstain_at=0.9473)
    assert (calibration.answers(names("single", 2), rows[0]).values >= 0).sum() == 19


def test_best_precision_is_that_of_the_most_rows() -> None:
    half = [False] + [True] * 9
    with pytest.raises(InputError, match=r"The best precision is 0\.9, of 66\.7% of the rows\."):
        fit_calibration(names("single", 2), *confident([*half, *half, *([False] * 10)]), abstain_at=0.95)


@pytest.mark.parametrize(("rows", "fewest"), [(1000, 10), (1100, 11), (1101, 12)])
def test_abstaining_needs_one_row_in_a_hundred(rows: int, fewest: int) -> None:
    target = names("single", 2)
    for right in (fewest - 1, fewest):
        example = confident([True] * right + [False] * (rows - right))
        if right < fewest:
            with pytest.raises(InputError, match=f" by any {fewest} or more of them "):
                fit_calibration(target, *example, abstain_at=1)
        else:
            calibration = fit_calibration(target, *example, abstain_at=1)
            assert (calibration.answers(target, example[0]).values >= 0).sum() == fewest


def test_abstaining_with_few_rows() -> None:
    message = r"^abstain_at needs at least 10 validation rows\. Got 9 instead\. Give more rows or a validation file$"
    with pytest.raises(InputError, match=message):
        fit_calibration(names("single", 2), *confident([True] * 9), abstain_at=0.5)
    assert fit_calibration(names("single", 2), *confident([True] * 10), abstain_at=1).abstain_below == 0.0


def test_numbers_have_nothing_to_calibrate() -> None:
    assert fit_calibration(Regression(0, 1, bounded=True), np.zeros((30, 2)), np.zeros(30)) == Calibration()


def test_calibrated_logits_are_comparable_whatever_their_scale() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=400)
    logits = (generator.normal(size=(400, 3)) / 2 + np.eye(3)[truth] / 2).astype(np.float32)
    target = fit_kind("single", ["a", "b", "c"])
    found, sure = calibrated_logits(target, logits, truth), calibrated_logits(target, 4 * logits, truth)
    assert sure.dtype == np.float32
    np.testing.assert_allclose(sure, found, rtol=1e-3)

"""Kinds of task: labels as arrays, and logits as answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ytuning.data.kinds import MultiLabel, Ordinal, Regression, SingleLabel, TaskKind, fit_kind, kind_from_json
from ytuning.data.labels import LabelSet
from ytuning.errors import InputError


def test_single_labels_are_ids_in_the_order_of_their_names() -> None:
    target = fit_kind("single", ["b", "a", "b"])
    assert (target.names, target.outputs, target.kind) == (("a", "b"), 2, "single")
    assert target.encode(["b", "a"]).tolist() == [1, 0]


def test_several_labels_are_a_row_of_0_and_1() -> None:
    target = fit_kind("multi", [("b", "a"), (), ("c",)])
    assert (target.names, target.outputs, target.kind) == (("a", "b", "c"), 3, "multi")
    found = target.encode([("c", "a"), (), ("b",)])
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    with pytest.raises(InputError, match="unknown label 'd'"):
        target.encode([("a",), ("d",)])


def test_probabilities_are_a_softmax_or_independent_sigmoids() -> None:
    logits = np.log([[1.0, 3.0]])
    for kind, expected in ((SingleLabel, [0.25, 0.75]), (Ordinal, [0.25, 0.75]), (MultiLabel, [0.5, 0.75])):
        assert kind(LabelSet(("1", "2"))).answers(logits).probabilities[0].tolist() == pytest.approx(expected)


def test_ordinal_labels_are_in_the_order_of_their_numbers_or_of_the_one_given() -> None:
    assert fit_kind("ordinal", ["10", "9", "0.5", "-3"]).names == ("-3", "0.5", "9", "10")
    assert fit_kind("ordinal", ["high", "low"], ["low", "high"]).names == ("low", "high")
    assert fit_kind("ordinal", ["high", "low"], ["low ", " high"]).names == ("low", "high")


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (
            ["low", "high", "2"],
            None,
            "^the label 'high' is no number, so the labels' order is not known. Give it from "
            "the lowest to the highest with label_order=. The labels are '2', 'high', 'low'$",
        ),
        (["1", "nan", "2"], None, "the label 'nan' is no number"),
        (["1", "2", "1.0"], None, "the labels '1' and '1.0' are one number, so their order is not known"),
        (["low", "high"], ["low"], "must name each label once. 'high' is missing in label_order$"),
        (["low", "high"], ["low", "mid", "high"], "must name each label once. 'mid' is missing in the train rows$"),
        (["low", "high"], ["low", "high", "low"], "all label names must be different, but 'low' was given"),
    ],
)
def test_an_order_that_is_not_that_of_the_labels_is_refused(
    labels: list[str], order: Sequence[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit_kind("ordinal", labels, order)


def test_a_scale_whose_ends_are_common_is_bounded() -> None:
    target = fit_kind("regression", [0.0, 5.0, 2.5, 0.0, 5.0])
    assert isinstance(target, Regression)
    assert target == Regression(0.0, 5.0, bounded=True)
    assert (target.names, target.outputs, target.labels) == ((), 2, None)
    assert target.encode([0, 5, 1]).tolist() == pytest.approx([0, 1, 0.2])
    # The position is the sigmoid of the anchors' difference, and never leaves the scale.
    logits = np.array([[0.0, math.log(3)], [50.0, -50.0], [-900.0, 900.0]])
    assert target.answers(logits).values.tolist() == pytest.approx([5 * 0.75, 0.0, 5.0])


def test_a_scale_whose_ends_are_rare_is_not_bounded() -> None:
    numbers = [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]
    target = fit_kind("regression", numbers)
    assert isinstance(target, Regression) and not target.bounded
    assert (target.low, target.high) == pytest.approx((2.5, 2.5 + float(np.std(numbers))))
    positions = target.encode(numbers)
    assert (positions.mean(), positions.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, rel=1e-6))
    logits = np.stack([np.zeros(6), positions], 1)
    assert target.answers(logits).values.tolist() == pytest.approx(numbers, rel=1e-5)
    assert target.decode(positions).tolist() == pytest.approx(numbers, rel=1e-5)


def test_absurd_numbers_stay_finite() -> None:
    assert np.isfinite(Regression(0.0, 1.0, bounded=False).encode([1e300, -1e300])).all()


def test_both_ends_must_be_common() -> None:
    prices = [0.0] * 50 + [float(price) for price in range(1, 200)]
    assert not Regression.fit(prices, None).bounded


def test_numbers_that_are_all_equal_are_refused() -> None:
    with pytest.raises(InputError, match=r"^all 3 rows have the number 2\.5\. Training needs different ones$"):
        fit_kind("regression", [2.5] * 3)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_a_scale_has_two_ends(ends: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="a scale goes from a number to a larger one"):
        Regression(*ends, bounded=True)


@pytest.mark.parametrize(
    "target",
    [
        SingleLabel(LabelSet(("a", "b"))),
        Ordinal(LabelSet(("low", "high"))),
        MultiLabel(LabelSet(("a",))),
        Regression(-1.5, 2.0, bounded=True),
        Regression(0.1, 0.7, bounded=False),
    ],
)
def test_json_and_back(target: TaskKind) -> None:
    assert kind_from_json(json.loads(json.dumps(target.to_json()))) == target


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "other", "labels": ["a"]},
        {"kind": "single", "labels": []},
        {"kind": "single"},
        {"kind": "regression", "labels": ["a"], "low": 0, "high": 1, "bounded": True},
        {"kind": "regression", "labels": [], "low": 0, "bounded": True},
        {"kind": "regression", "labels": [], "low": 1, "high": 0, "bounded": True},
    ],
)
def test_other_json_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises((InputError, KeyError, ValueError)):
        kind_from_json(content)


def test_a_label_more_comes_after_the_others_and_old_targets_stay_what_they_were() -> None:
    for small, more in ((fit_kind("single", ["b", "a"]), ["z"]), (fit_kind("multi", [("b",), ("a",)]), [("z",)])):
        grown = small.with_label("z")
        old = small.encode_names(["b", "a", "b"])
        targets = np.concatenate((grown.widen_targets(old), grown.encode(more)))
        assert type(grown) is type(small) and grown.names == ("a", "b", "z")
        assert targets.dtype == small.dtype and grown.are_targets(targets)
        assert grown.count_labels(targets).tolist() == [1, 2, 1]
        assert [grown.has_label(targets, label).tolist() for label in (1, 2)] == [
            [True, False, True, False],
            [False, False, False, True],
        ]
        # Answers of the grown task: the first is right, the second has the new label in place of its own.
        answers = grown.decode(grown.encode_names(["b", "z", "b"]))
        assert small.are_right(small.decode(old), answers).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 2]),
        np.array([-1, 0]),
        np.array([[0, 1]]),
        np.array([0.0, 1.0], np.float32),
        np.array([[0.0, 0.5]], np.float32),
        np.array([[0.0, 1.0, 1.0]], np.float32),
        np.array([[0.0, 1.0]]),
    ],
)
def test_arrays_that_are_no_targets(values: np.ndarray) -> None:
    for target in (SingleLabel(LabelSet(("a", "b"))), MultiLabel(LabelSet(("a", "b"))), Regression(0, 1, bounded=True)):
        assert not target.are_targets(values)


def test_options_of_labels_are_refused_for_numbers() -> None:
    for kind in (SingleLabel, Ordinal, MultiLabel):
        kind.check_option("label_weights")
    with pytest.raises(InputError, match=r"^label_weights is for tasks with labels, and these rows have numbers\. Le"):
        Regression.check_option("label_weights")

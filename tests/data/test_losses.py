"""Losses against loops, and what labels weigh."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from tests.kinds import KIND_NAMES, KindName, kind_of
from ytuning.data.kinds import Loss, Ordinal
from ytuning.data.labels import LabelSet
from ytuning.errors import InputError

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 2
GOAL = torch.tensor([0, 2, 1, 1, 0, 1])


def loss_of(
    name: str, weights: str | tuple[float, ...] | None = None, margin: float = 2.0, smoothing: float = 0.1
) -> Loss:
    """For ``GOAL`` as the train rows."""
    return kind_of("single").loss(name, GOAL, margin=margin, smoothing=smoothing, weights=weights)


@pytest.mark.parametrize("given", [None, (1.0, 0.5, 3.0)])
def test_triplet_loss_against_a_loop(given: tuple[float, ...] | None) -> None:
    total = share = 0.0
    for row, true in zip(LOGITS.tolist(), GOAL.tolist(), strict=True):  # the batch holds all train rows
        gaps = [max(0.0, 1.5 - row[true] + other) for label, other in enumerate(row) if label != true]
        weight = 1.0 if given is None else given[true]
        total += weight * sum(gaps) / len(gaps)
        share += weight
    loss = loss_of("triplet", given, margin=1.5)
    assert loss(LOGITS, GOAL).item() == pytest.approx(total / share, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("given", [None, (1.0, 0.5, 3.0)])
def test_cross_entropy_against_a_loop(given: tuple[float, ...] | None, smoothing: float) -> None:
    total = share = 0.0
    for row, true in zip(LOGITS.tolist(), GOAL.tolist(), strict=True):
        logs = [value - math.log(sum(map(math.exp, row))) for value in row]
        weight = 1.0 if given is None else given[true]
        targets = [smoothing / 3 + (1 - smoothing) * (label == true) for label in range(3)]
        total -= weight * sum(target * log for target, log in zip(targets, logs, strict=True))
        share += weight
    assert loss_of("cross_entropy", given, smoothing=smoothing)(LOGITS, GOAL).item() == pytest.approx(
        total / share, rel=1e-5
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "triplet"])
def test_a_batch_of_rows_that_weigh_nothing_has_no_loss(loss: str) -> None:
    assert loss_of(loss, (0.0, 1.0, 1.0))(LOGITS[[0, 4]], GOAL[[0, 4]]).item() == 0.0


@pytest.mark.parametrize("loss", ["cross_entropy", "triplet"])
def test_balanced_weights_count_the_rows_of_each_label(loss: str) -> None:
    by_hand = (6 / (3 * 2), 6 / (3 * 3), 6 / (3 * 1))
    values = [loss_of(loss, weights)(LOGITS, GOAL).item() for weights in ("balanced", by_hand, None)]
    assert values[0] == pytest.approx(values[1])
    assert values[0] != pytest.approx(values[2])


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_rare_labels_learn_with_lower_logits(name: str) -> None:
    single = kind_of("single")
    loss = single.loss(name, GOAL, smoothing=0.1, rare_rows=4)
    # Of the six rows two, three and one have the labels, so all three are rare and k is 4.
    lower = torch.tensor([2 / 6, 3 / 7, 1 / 5]).log()
    assert loss(LOGITS, GOAL).item() == pytest.approx(loss_of(name)(LOGITS + lower, GOAL).item())
    assert loss(LOGITS, GOAL).item() != pytest.approx(loss_of(name)(LOGITS, GOAL).item())


@pytest.mark.parametrize(("rare_rows", "share"), [(3, 2 / 3), (2, 1 / 3), (2.5, 2 / 3)])
def test_few_rare_labels_are_lowered_less(rare_rows: float, share: float) -> None:
    # One label has two rows, one has three and one has a single row.
    k = rare_rows * share**2
    lower = torch.tensor([2 / (2 + k), 3 / (3 + k), 1 / (1 + k)]).log()
    loss = kind_of("single").loss("cross_entropy", GOAL, smoothing=0.1, rare_rows=rare_rows)
    assert loss(LOGITS, GOAL).item() == pytest.approx(loss_of("cross_entropy")(LOGITS + lower, GOAL).item())


def test_rarity_changes_nothing_where_it_has_no_meaning() -> None:
    single, even = kind_of("single"), torch.tensor([0, 1, 2, 2, 1, 0])
    assert single.loss("cross_entropy", even, smoothing=0.1, rare_rows=50)(LOGITS, even).item() == pytest.approx(
        single.loss("cross_entropy", even, smoothing=0.1)(LOGITS, even).item()
    )
    for name, weights in (("triplet", None), ("cross_entropy", "balanced")):
        plain, rare = (single.loss(name, GOAL, margin=2.0, weights=weights, rare_rows=k) for k in (0, 50))
        assert plain(LOGITS, GOAL).item() == rare(LOGITS, GOAL).item()


# --- other kinds ----------------------------------------------------------------------------------------------------

SEVERAL = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]])
PLACES = torch.tensor([0.0, 0.25, 1.0, 0.5, 0.75, 0.1])


def loss_of_kind(
    kind: KindName,
    goal: torch.Tensor,
    name: str = "cross_entropy",
    weights: str | tuple[float, ...] | None = None,
) -> float:
    target = kind_of(kind)
    return target.loss(name, goal, margin=1.5, weights=weights)(LOGITS[:, : target.outputs], goal).item()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("given", [None, (1.0, 0.5, 3.0)])
@pytest.mark.parametrize("name", ["cross_entropy", "focal", "triplet"])
def test_multi_label_losses_against_a_loop(name: str, given: tuple[float, ...] | None) -> None:
    counts = SEVERAL.sum(0).tolist()
    scale = 1.0 if given is None else sum(counts) / sum(w * n for w, n in zip(given, counts, strict=True))
    total = 0.0
    for row, goal in zip(LOGITS.tolist(), SEVERAL.tolist(), strict=True):
        for label, (logit, there) in enumerate(zip(row, goal, strict=True)):
            right = sigmoid(logit if there else -logit)
            loss = {
                "cross_entropy": -math.log(right),
                "focal": -math.log(right) * (1 - right) ** 2,
                "triplet": max(0.0, 1.5 - (logit if there else -logit)),
            }[name]
            total += loss * (given[label] * scale if given is not None and there else 1.0)
    assert loss_of_kind("multi", SEVERAL, name, given) == pytest.approx(total / SEVERAL.numel(), rel=1e-5)


def test_balanced_weights_of_several_labels_only_raise_the_rare_ones() -> None:
    common = torch.tensor([[1.0, 1, 0]] * 5 + [[1, 0, 1]])  # of 6 rows: 6, 5 and 1
    loss = kind_of("multi").loss("cross_entropy", common, weights="balanced")
    alone = [loss(torch.zeros(1, 3), torch.eye(3)[[label]]).item() * 3 / math.log(2) - 2 for label in range(3)]
    assert alone == pytest.approx([1.0, 1.0, math.sqrt(6 / 3)], rel=1e-5)


def test_focal_loss_against_a_loop() -> None:
    total = 0.0
    for row, true in zip(LOGITS.tolist(), GOAL.tolist(), strict=True):
        right = math.exp(row[true]) / sum(map(math.exp, row))
        total -= (1 - right) ** 2 * math.log(right)
    assert loss_of_kind("single", GOAL, "focal") == pytest.approx(total / 6, rel=1e-5)


def test_ordinal_loss_against_a_loop() -> None:
    total = 0.0
    for row, true in zip(LOGITS.tolist(), GOAL.tolist(), strict=True):
        shares = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        total -= math.log(shares[true])
        total += sum((sum(shares[: label + 1]) - (true <= label)) ** 2 for label in range(3))
    assert loss_of_kind("ordinal", GOAL) == pytest.approx(total / 6, rel=1e-5)


def test_losses_of_numbers_against_a_loop() -> None:
    bounded = unbounded = 0.0
    for (low, high, _), place in zip(LOGITS.tolist(), PLACES.tolist(), strict=True):
        found = sigmoid(high - low)
        bounded -= place * math.log(found) + (1 - place) * math.log(1 - found)
        unbounded += (high - low - place) ** 2 / 2
    assert loss_of_kind("bounded", PLACES) == pytest.approx(bounded / 6, rel=1e-5)
    assert loss_of_kind("unbounded", PLACES) == pytest.approx(unbounded / 6, rel=1e-5)
    assert kind_of("bounded").mean_loss(LOGITS[:, :2], PLACES) == pytest.approx(bounded / 6, rel=1e-5)


def test_a_number_beyond_a_bounded_scale_counts_as_its_end() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 40.0], [0.0, -3.0]])
    beyond, ends = torch.tensor([1.5, 3.0, -9.0]), torch.tensor([1.0, 1.0, 0.0])
    assert kind_of("bounded").mean_loss(logits, beyond) == kind_of("bounded").mean_loss(logits, ends) > 0
    assert torch.equal(kind_of("bounded").row_losses(logits, beyond), kind_of("bounded").row_losses(logits, ends))


@pytest.mark.parametrize("kind", ["bounded", "unbounded"])
def test_numbers_have_one_loss_and_no_label_weights(kind: KindName) -> None:
    assert loss_of_kind(kind, PLACES, "triplet") == loss_of_kind(kind, PLACES)
    with pytest.raises(InputError, match="which label_weights is for"):
        loss_of_kind(kind, PLACES, weights="balanced")


def test_row_scores_against_loops() -> None:
    rows = LOGITS.tolist()
    hits = [float(row.index(max(row)) == true) for row, true in zip(rows, GOAL.tolist(), strict=True)]
    assert kind_of("single").row_scores(LOGITS, GOAL).tolist() == hits
    far = []
    for row, true in zip(rows, GOAL.tolist(), strict=True):
        shares = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        median = next(label for label in range(3) if sum(shares[: label + 1]) >= 0.5)
        far.append(-abs(median - true))
    assert kind_of("ordinal").row_scores(LOGITS, GOAL).tolist() == far
    assert kind_of("multi").row_scores(LOGITS, SEVERAL).mean().item() == pytest.approx(
        -3 * loss_of_kind("multi", SEVERAL)
    )
    scales: tuple[tuple[KindName, Any], ...] = (("bounded", sigmoid), ("unbounded", float))
    for kind, place in scales:
        wanted = [-((place(row[1] - row[0]) - goal) ** 2) for row, goal in zip(rows, PLACES.tolist(), strict=True)]
        assert kind_of(kind).row_scores(LOGITS[:, :2], PLACES).tolist() == pytest.approx(wanted, abs=1e-6)


def test_scores_are_shown_as_people_read_them() -> None:
    assert [kind_of("single").shown_score(0.5), kind_of("ordinal").shown_score(-0.25)] == ["0.5000", "0.2500"]
    assert [kind_of("multi").shown_score(0.0), kind_of("bounded").shown_score(-0.0)] == ["0.0000", "0.0000"]


def test_the_median_label_is_the_last_one_where_rounding_leaves_less_than_a_half() -> None:
    probabilities = np.array([[0.0, 0.4], [0.5, 0.5], [0.2, 0.8]])
    assert Ordinal(LabelSet(("low", "high"))).decide(probabilities).tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_row_losses_are_parts_of_the_mean(kind: KindName) -> None:
    logits, goal = (LOGITS, GOAL) if kind in ("single", "ordinal") else (LOGITS[:, :2], PLACES)
    if kind == "multi":
        logits, goal = LOGITS, SEVERAL
    found = kind_of(kind).row_losses(logits, goal)
    assert found.shape == (6,)
    for row in range(6):
        assert found[row].item() == pytest.approx(kind_of(kind).mean_loss(logits[[row]], goal[[row]]), rel=1e-5)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_no_answer_for_all_rows_has_less_than_the_constant_loss(kind: KindName) -> None:
    target, generator = kind_of(kind), np.random.default_rng(0)
    targets: np.ndarray = generator.integers(0, 3, 40) % 3
    if kind == "multi":
        targets = (generator.random((40, 3)) < [0.1, 0.5, 0.7]).astype(np.float32)
    elif kind in ("bounded", "unbounded"):
        targets = generator.random(40).astype(np.float32) ** 2
    goal = torch.from_numpy(targets)

    def loss(row: np.ndarray) -> float:
        return float(target.row_losses(torch.from_numpy(row).expand(len(goal), -1), goal).mean())

    best = scipy.optimize.minimize(loss, np.zeros(target.outputs))
    assert target.constant_loss(targets) == pytest.approx(best.fun, rel=1e-4)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_constant_loss_of_equal_targets_is_nothing(kind: KindName) -> None:
    equal: dict[str, np.ndarray] = {
        "multi": np.tile(np.array([1, 0, 1], np.float32), (9, 1)),
        "unbounded": np.full(9, 0.3),
    }
    targets = equal.get(kind, np.ones(9, np.float32 if kind == "bounded" else np.int64))
    assert kind_of(kind).constant_loss(targets) == pytest.approx(0)

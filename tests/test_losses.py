"""Losses against loops, and what labels weigh."""

from __future__ import annotations

import math

import pytest
import torch

from ytuning.losses import Loss, build_loss

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 2
GOAL = torch.tensor([0, 2, 1, 1, 0, 1])


def loss_of(
    name: str, weights: str | tuple[float, ...] | None = None, margin: float = 2.0, smoothing: float = 0.1
) -> Loss:
    """For ``GOAL`` as the train rows."""
    return build_loss(name, GOAL, 3, margin=margin, smoothing=smoothing, weights=weights)


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

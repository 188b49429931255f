"""Training: losses against loops, which head is chosen, reproducibility, and Ctrl-C."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ytuning import training
from ytuning.encoder import load_encoder
from ytuning.errors import InputError
from ytuning.features import Features, live_features
from ytuning.head import CrossAttentionConfig, LabelHead, PooledConfig
from ytuning.labels import LabelSet
from ytuning.progress import Progress
from ytuning.training import FitResult, Recipe, TrainingConfig, fit_head, logits_of, preset

SHORT = TrainingConfig(fewest_steps=30, most_steps=30, rounds=5)
RECIPE = Recipe(PooledConfig(width=16, queries=1), SHORT)
TRAIN, VALIDATION = np.arange(90), np.arange(90, 120)


@pytest.fixture(scope="module")
def toy(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]) -> tuple[Features, np.ndarray]:
    """Features and label ids of the toy rows."""
    texts, labels = toy_rows
    features = live_features([(text, None) for text in texts], load_encoder(tiny_encoder, precision="fp32"))
    return features, LabelSet.from_labels(labels).encode(labels)


@pytest.fixture
def fit(toy: tuple[Features, np.ndarray]) -> Callable[..., FitResult]:
    """``fit_head`` on the toy rows."""

    def fit(recipe: Recipe = RECIPE, **options: Any) -> FitResult:
        return fit_head(*toy, train=TRAIN, validation=VALIDATION, recipe=recipe, **options)

    return fit


def weights(head: LabelHead) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in head.state_dict().items()}


class Interrupt(Progress):
    """Ctrl-C at one report."""

    def __init__(self, stage: str, done: int) -> None:
        self.stage, self.done = stage, done

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == (self.stage, self.done) and not note:
            raise KeyboardInterrupt


# --- losses ---------------------------------------------------------------------------------------------------------

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 2
GOAL = torch.tensor([0, 2, 1, 1, 0, 1])


@pytest.mark.parametrize("given", [None, (1.0, 0.5, 3.0)])
def test_triplet_loss_against_a_loop(given: tuple[float, ...] | None) -> None:
    total = share = 0.0
    for row, true in zip(LOGITS.tolist(), GOAL.tolist(), strict=True):  # the batch holds all train rows
        gaps = [max(0.0, 1.5 - row[true] + other) for label, other in enumerate(row) if label != true]
        weight = 1.0 if given is None else given[true]
        total += weight * sum(gaps) / len(gaps)
        share += weight
    loss = training._loss(TrainingConfig(loss="triplet", margin=1.5, label_weights=given), GOAL, 3)
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
    config = TrainingConfig(loss="cross_entropy", label_smoothing=smoothing, label_weights=given)
    assert training._loss(config, GOAL, 3)(LOGITS, GOAL).item() == pytest.approx(total / share, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "triplet"])
def test_a_batch_of_rows_that_weigh_nothing_has_no_loss(loss: str) -> None:
    config = TrainingConfig(loss=loss, label_weights=(0.0, 1.0, 1.0))
    assert training._loss(config, GOAL, 3)(LOGITS[[0, 4]], GOAL[[0, 4]]).item() == 0.0


@pytest.mark.parametrize("loss", ["cross_entropy", "triplet"])
def test_balanced_weights_count_the_rows_of_each_label(loss: str) -> None:
    balanced = TrainingConfig(loss=loss, label_weights="balanced")
    by_hand = replace(balanced, label_weights=(6 / (3 * 2), 6 / (3 * 3), 6 / (3 * 1)))
    plain = replace(balanced, label_weights=None)
    values = [training._loss(config, GOAL, 3)(LOGITS, GOAL).item() for config in (balanced, by_hand, plain)]
    assert values[0] == pytest.approx(values[1])
    assert values[0] != pytest.approx(values[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, r"^loss must be one of 'cross_entropy', 'triplet'\. Got 'hinge' instead\.$"),
        ({"label_weights": "equal"}, r"^label_weights must be one of None, 'balanced', .*Got 'equal' instead\.$"),
        ({"label_weights": (1.0, 2.0)}, r"^label_weights must be 3 weights .*Got \(1\.0, 2\.0\) instead\.$"),
        ({"label_weights": (1.0, 2.0, -1.0)}, r"^label_weights must be 3 weights of at least 0"),
        ({"label_weights": (1.0, 2.0, math.nan)}, r"^label_weights must be 3 weights of at least 0"),
        ({"label_weights": (1.0, 2.0, math.inf)}, r"^label_weights must be 3 weights of at least 0"),
        ({"label_weights": (0.0, 0.0, 0.0)}, r"^label_weights must be 3 weights of at least 0, not all of them 0"),
    ],
)
def test_wrong_training_values_are_refused(fit: Callable[..., FitResult], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(replace(RECIPE, training=replace(SHORT, **change)))


def test_a_label_of_weight_0_is_not_learned(fit: Callable[..., FitResult]) -> None:
    config = replace(SHORT, fewest_steps=100, most_steps=100, label_smoothing=0.0, label_weights=(1.0, 0.0, 1.0))
    predicted = fit(replace(RECIPE, training=config), refit=False).validation_logits.argmax(1)
    assert 1 not in predicted and {0, 2} == set(predicted.tolist())


def test_the_paper_preset_reads_the_last_hidden_state() -> None:
    assert preset("paper").layers == (-1,) and preset("default").layers is None


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match=r"^preset must be one of 'default', 'paper'\. Got 'best' instead\.$"):
        preset("best")


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(PooledConfig(), TrainingConfig(fewest_steps=120, most_steps=120)),
        Recipe(CrossAttentionConfig(width=32), TrainingConfig(loss="triplet", fewest_steps=250, most_steps=250)),
    ],
    ids=["pooled", "cross_attention"],
)
def test_learns_far_above_chance(
    recipe: Recipe, fit: Callable[..., FitResult], toy: tuple[Features, np.ndarray]
) -> None:
    features, goal = toy
    result = fit(recipe, refit=False)
    most_frequent = np.bincount(goal).max() / len(goal)
    held_out = float((result.validation_logits.argmax(1) == goal[VALIDATION]).mean())
    assert held_out > most_frequent + 0.25
    assert held_out == result.history[result.chosen].accuracy
    everything = logits_of(result.head, features)
    assert float((everything.argmax(1) == goal)[TRAIN].mean()) > most_frequent + 0.25
    np.testing.assert_allclose(everything[VALIDATION], result.validation_logits, atol=1e-5)


def test_same_seed_same_bytes(fit: Callable[..., FitResult]) -> None:
    first, again, other = fit(seed=4), fit(seed=4), fit(seed=5)
    assert weights(first.head) == weights(again.head)
    assert first.history == again.history
    assert first.validation_logits.tobytes() == again.validation_logits.tobytes()
    assert all(weights(first.head)[name] != weights(other.head)[name] for name in ("queries", "label_rows"))


def test_leaves_random_state_and_threads_alone(fit: Callable[..., FitResult]) -> None:
    torch.manual_seed(9)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state(legacy=False)["state"]["key"].copy()
    fit()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)


def test_the_callers_random_state_does_not_matter(fit: Callable[..., FitResult]) -> None:
    torch.manual_seed(1)
    first = fit()
    torch.manual_seed(2)
    assert weights(first.head) == weights(fit().head)


def test_logits_keep_the_order_of_rows(fit: Callable[..., FitResult], toy: tuple[Features, np.ndarray]) -> None:
    head, (features, _) = fit().head, toy
    head.train()
    rows = torch.tensor([7, 3, 110, 3, 50])
    some = logits_of(head, features, rows)
    assert not head.training
    np.testing.assert_allclose(some, logits_of(head, features)[rows.numpy()], atol=1e-5)
    with torch.inference_mode():
        one_by_one = torch.cat([head(*features.batch(rows[place : place + 1])) for place in range(len(rows))])
    np.testing.assert_allclose(some, one_by_one.numpy(), atol=1e-5)


# --- steps and batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(100, 16), (16, 16), (700, 20), (5, 16)])
def test_every_row_once_an_epoch(rows: int, size: int) -> None:
    lengths = torch.randint(1, 30, (1000,), generator=torch.Generator().manual_seed(0))
    chosen = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:rows]
    stream = training._shuffled_batches(lengths, chosen, size, seed=0)
    epochs = []
    for _ in range(3):
        batches = [next(stream) for _ in range(math.ceil(rows / size))]
        assert max(map(len, batches)) <= size
        epochs.append(torch.cat(batches).tolist())
        assert sorted(epochs[-1]) == sorted(chosen.tolist())
    assert rows <= size or epochs[0] != epochs[1]


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = torch.randint(1, 100, (512,), generator=torch.Generator().manual_seed(0))
    stream = training._shuffled_batches(lengths, torch.arange(512), 16, seed=0)
    spreads = [int(lengths[rows].max() - lengths[rows].min()) for rows in (next(stream) for _ in range(32))]
    assert sum(spreads) / len(spreads) < 20  # of rows drawn at random: about 90


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"epochs": 4, "fewest_steps": 1, "most_steps": 1000}, 4 * math.ceil(90 / 16)),
        ({"epochs": 4, "fewest_steps": 40, "most_steps": 1000}, 40),
        ({"epochs": 4, "fewest_steps": 1, "most_steps": 10}, 10),
    ],
)
def test_number_of_steps(fit: Callable[..., FitResult], change: dict[str, int], steps: int) -> None:
    config = replace(SHORT, batch_size=16, patience=99, **change)  # type: ignore[arg-type]
    history = fit(replace(RECIPE, training=config), refit=False).history
    assert [entry.step for entry in history] == [round(steps * number / 5) for number in range(1, 6)]


def test_learning_rate_warms_up_and_decays(fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Recording(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    fit(replace(RECIPE, training=replace(SHORT, learning_rate=0.5, warmup=0.2, patience=99)), refit=False)
    assert len(rates) == 30
    up = [0.5 * (step + 1) / 6 for step in range(6)]
    down = [0.5 * (30 - step) / 24 for step in range(6, 30)]
    assert rates == pytest.approx(up + down)


def test_gradients_are_clipped(fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    class Recording(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            gradients = [p.grad.norm() for group in self.param_groups for p in group["params"]]
            norms.append(torch.stack(gradients).norm().item())
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    fit(replace(RECIPE, training=replace(SHORT, clip_norm=1e-3)), refit=False)
    assert max(norms) <= 1.001e-3 and min(norms) > 0


# --- which round ----------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(
    monkeypatch: pytest.MonkeyPatch, toy: tuple[Features, np.ndarray]
) -> Callable[..., list[dict[str, Tensor]]]:
    """Make validation rounds have given numbers of right rows of 30; returns the weights at each round."""
    goal = toy[1][VALIDATION]

    def script(*right: int) -> list[dict[str, Tensor]]:
        seen: list[dict[str, Tensor]] = []

        def logits(head: LabelHead, features: Features, rows: Tensor) -> np.ndarray:
            predicted = goal.copy()
            predicted[right[len(seen)] :] = (predicted[right[len(seen)] :] + 1) % 3
            seen.append(copy.deepcopy(dict(head.state_dict())))
            return np.eye(3, dtype=np.float32)[predicted]

        monkeypatch.setattr(training, "logits_of", logits)
        return seen

    return script


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ((10, 15, 20, 25, 29), 4),
        ((10, 25, 20, 18, 16), 1),  # half a standard error of 25 of 30 is about one row
        ((10, 25, 24, 23, 20), 2),
        ((10, 25, 23, 24, 20), 3),
        ((30, 30, 29, 30, 29), 3),  # a perfect round has no standard error
    ],
)
def test_last_round_within_half_a_standard_error(
    fit: Callable[..., FitResult], scripted: Callable[..., list[dict[str, Tensor]]], right: tuple[int, ...], chosen: int
) -> None:
    seen = scripted(*right)
    result = fit(replace(RECIPE, training=replace(SHORT, patience=99)), refit=False)
    assert [round(entry.accuracy * 30) for entry in result.history] == list(right)
    assert result.chosen == chosen
    assert all(torch.equal(tensor, seen[chosen][name]) for name, tensor in result.head.state_dict().items())
    assert not result.head.training and not result.refitted and not result.interrupted


@pytest.mark.parametrize(
    ("right", "rounds"),
    [
        ((28, 10, 10, 10, 10), 3),
        ((10, 28, 10, 10, 10), 4),
        ((28, 10, 28, 10, 10), 5),
        ((20, 19, 19, 19, 19), 5),  # within a standard error: not hopeless
        ((10, 11, 12, 13, 14), 5),
    ],
)
def test_hopeless_training_ends_early(
    fit: Callable[..., FitResult], scripted: Callable[..., list[dict[str, Tensor]]], right: tuple[int, ...], rounds: int
) -> None:
    scripted(*right)
    result = fit(replace(RECIPE, training=replace(SHORT, patience=2)), refit=False)
    assert len(result.history) == rounds
    assert not result.interrupted


# --- refit ----------------------------------------------------------------------------------------------------------


def test_refit_trains_on_all_rows_and_the_search_on_train_rows(
    fit: Callable[..., FitResult], toy: tuple[Features, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, seen = toy[0], {"MainThread": set[int](), "refit_0": set[int]()}
    gather = features.batch
    validation = set(VALIDATION.tolist())

    def batch(indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = set(indices.tolist())
        if not (threading.current_thread().name == "MainThread" and rows <= validation):  # that is a validation round
            seen[threading.current_thread().name].update(rows)
        return gather(indices)

    monkeypatch.setattr(features, "batch", batch)
    assert fit().refitted
    assert seen["MainThread"] == set(TRAIN.tolist())
    assert seen["refit_0"] == {*TRAIN.tolist(), *VALIDATION.tolist()}


@pytest.mark.parametrize("right", [(10, 28, 10, 10, 10), (10, 12, 15, 20, 25)])
def test_refit_takes_the_chosen_share_of_the_steps(
    toy: tuple[Features, np.ndarray],
    fit: Callable[..., FitResult],
    scripted: Callable[..., list[dict[str, Tensor]]],
    right: tuple[int, ...],
) -> None:
    scripted(*right)
    result = fit()
    by_hand = training._Run(toy[0], torch.from_numpy(toy[1]), np.arange(120), RECIPE, seed=0)
    assert list(by_hand.train(by_hand.rounds[result.chosen]))[-1] == result.history[result.chosen].step
    assert weights(result.head) == weights(by_hand.head)


def test_a_failing_refit_is_not_hidden(
    toy: tuple[Features, np.ndarray], fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = toy[0].batch

    def batch(indices: Tensor) -> tuple[Tensor, Tensor]:
        if threading.current_thread().name.startswith("refit"):
            raise OSError("the disk is gone")
        return gather(indices)

    monkeypatch.setattr(toy[0], "batch", batch)
    with pytest.raises(OSError, match="the disk is gone"):
        fit()


def test_refit_can_be_switched_off(fit: Callable[..., FitResult]) -> None:
    chosen, refitted = fit(refit=False), fit(refit=True)
    assert (chosen.refitted, refitted.refitted) == (False, True)
    assert chosen.history == refitted.history
    assert chosen.validation_logits.tobytes() == refitted.validation_logits.tobytes()
    assert weights(chosen.head) != weights(refitted.head)
    assert not refitted.head.training


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_interrupted_search_gives_the_best_head_so_far(
    fit: Callable[..., FitResult], scripted: Callable[..., list[dict[str, Tensor]]]
) -> None:
    seen = scripted(12, 25, 15, 30, 30)
    result = fit(progress=Interrupt("train", 20))  # rounds end at 6, 12, 18
    assert (result.interrupted, result.refitted, result.chosen) == (True, False, 1)
    assert [entry.step for entry in result.history] == [6, 12, 18]
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in result.head.state_dict().items())
    assert not result.head.training


def test_interrupted_before_the_first_round_gives_the_head_of_that_step(
    fit: Callable[..., FitResult], toy: tuple[Features, np.ndarray]
) -> None:
    result = fit(progress=Interrupt("train", 3))
    assert (result.interrupted, result.refitted, result.chosen) == (True, False, 0)
    assert [entry.step for entry in result.history] == [3]
    found = logits_of(result.head, toy[0], torch.from_numpy(VALIDATION))
    np.testing.assert_allclose(found, result.validation_logits, atol=1e-5)


def test_interrupted_refit_gives_the_head_that_validation_chose(
    toy: tuple[Features, np.ndarray], fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    class AfterTheSearch(Progress):
        finished = False

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if self.finished and stage == "refit":
                raise KeyboardInterrupt
            self.finished |= bool(note) and done == total

    gather = toy[0].batch

    def batch(indices: Tensor) -> tuple[Tensor, Tensor]:
        if threading.current_thread().name.startswith("refit"):
            time.sleep(0.1)  # so that the search ends first
        return gather(indices)

    monkeypatch.setattr(toy[0], "batch", batch)
    result = fit(replace(RECIPE, training=replace(SHORT, patience=99)), progress=AfterTheSearch())
    assert (result.interrupted, result.refitted) == (True, False)
    assert weights(result.head) == weights(fit(refit=False).head)


def test_interrupted_while_a_round_is_reported(fit: Callable[..., FitResult]) -> None:
    class AtNote(Progress):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if note and done >= 12:
                raise KeyboardInterrupt

    try:
        result = fit(progress=AtNote())
    except KeyboardInterrupt:
        pytest.fail("the interrupt went through, and the heads so far are lost")
    assert (result.interrupted, result.refitted) == (True, False)
    assert [entry.step for entry in result.history] == [6, 12]


def test_interrupted_training_leaves_the_random_state_alone(fit: Callable[..., FitResult]) -> None:
    state = torch.get_rng_state()
    fit(progress=Interrupt("train", 3))
    assert torch.equal(torch.get_rng_state(), state)

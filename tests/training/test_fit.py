"""Training: which head is chosen, the refit, several heads together, reproducibility, and Ctrl-C."""

from __future__ import annotations

import copy
import gc
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import STATES
from tests.kinds import KindName, kind_of
from ytuning.data.labels import LabelSet
from ytuning.encoder.encoder import load_encoder
from ytuning.errors import InputError
from ytuning.features.features import Features, TextFeatures, live_features
from ytuning.heads.pooled import CrossAttentionConfig, LabelHead, PooledConfig, PooledHead
from ytuning.progress import Progress
from ytuning.system.machine import Workers
from ytuning.training import fit as training
from ytuning.training.fit import FitResult, HeadJob, fit_heads, logits_of
from ytuning.training.joint import Learner, stack_logits, stack_step
from ytuning.training.recipes import Recipe, TrainingConfig, preset

SINGLE = kind_of("single")
SHORT = TrainingConfig(fewest_steps=30, most_steps=30, rounds=5)
RECIPE = Recipe(PooledConfig(width=16, queries=1), SHORT)
TRAIN, VALIDATION = np.arange(90), np.arange(90, 120)


@pytest.fixture(scope="module")
def toy(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]) -> tuple[Features, np.ndarray]:
    """Features and label ids of the toy rows."""
    texts, labels = toy_rows
    features = live_features(
        [(text, None) for text in texts], load_encoder(tiny_encoder, precision="fp32"), states=STATES
    )
    return features, LabelSet.from_labels(labels).encode(labels)


@pytest.fixture
def fit(toy: tuple[Features, np.ndarray]) -> Callable[..., FitResult]:
    """One head on the toy rows."""

    def fit(recipe: Recipe = RECIPE, seed: int = 0, **options: Any) -> FitResult:
        features, targets = toy
        job = HeadJob(SINGLE, targets, recipe, seed)
        return fit_heads(features, [job], train=TRAIN, validation=VALIDATION, seed=seed, **options)[0]

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


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, r"^loss must be one of 'cross_entropy', 'triplet', 'focal'\. Got 'hinge' instead\.$"),
        ({"label_weights": "equal"}, r"^label_weights must be one of None, 'balanced', .*Got 'equal' instead\.$"),
        ({"label_weights": (1.0, 2.0)}, r"^label_weights must be 3 weights .*Got \(1\.0, 2\.0\) instead\.$"),
        ({"label_weights": (1.0, 2.0, -1.0)}, r"^label_weights must be 3 weights of at least 0"),
        ({"label_weights": (1.0, 2.0, math.nan)}, r"^label_weights must be 3 weights of at least 0"),
        ({"label_weights": (1.0, 2.0, math.inf)}, r"^label_weights must be 3 weights of at least 0"),
        ({"label_weights": (0.0, 0.0, 0.0)}, r"^label_weights must be 3 weights of at least 0, not all of them 0"),
        (
            {"learning_rate": 1e30},
            r"^the training diverged: after \d+ steps .*lower learning_rate in the recipe \(--recipe\)\. Got 1e\+30\.$",
        ),
    ],
)
def test_wrong_training_values_are_refused(fit: Callable[..., FitResult], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(replace(RECIPE, training=replace(SHORT, **change)))


@pytest.mark.parametrize("kind", ["multi", "bounded", "unbounded"])
def test_a_training_that_diverges_is_told_of_any_kind(kind: KindName, toy: tuple[Features, np.ndarray]) -> None:
    features, ids = toy
    targets = np.eye(3, dtype=np.float32)[ids] if kind == "multi" else (ids / 2).astype(np.float32)
    recipe = replace(RECIPE, training=replace(SHORT, learning_rate=1e30))
    with pytest.raises(InputError, match="the training diverged"):
        fit_heads(features, [HeadJob(kind_of(kind), targets, recipe)], train=TRAIN, validation=VALIDATION)


def test_a_later_round_that_diverged_is_left_out(
    fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def broken(*arguments: Any) -> list[torch.Tensor]:
        seen.append(len(seen))
        return [logits if len(seen) < 3 else logits * math.nan for logits in stack_logits(*arguments)]

    monkeypatch.setattr(training, "stack_logits", broken)
    found = fit(refit=False)
    assert len(seen) == 3 and len(found.history) == 2 and found.chosen <= 1
    assert np.isfinite(found.validation_logits).all()


def test_a_weight_only_of_labels_without_rows_is_refused(toy: tuple[Features, np.ndarray]) -> None:
    features, ids = toy
    job = HeadJob(
        kind_of("single", 4), ids, replace(RECIPE, training=replace(SHORT, label_weights=(0.0, 0.0, 0.0, 1.0)))
    )
    with pytest.raises(InputError, match=r"^label_weights must be above 0 for a label that a train row has\. Got "):
        fit_heads(features, [job], train=TRAIN, validation=VALIDATION)


def test_a_label_of_weight_0_is_not_learned(fit: Callable[..., FitResult]) -> None:
    config = replace(SHORT, fewest_steps=100, most_steps=100, label_smoothing=0.0, label_weights=(1.0, 0.0, 1.0))
    predicted = fit(replace(RECIPE, training=config), refit=False).validation_logits.argmax(1)
    assert 1 not in predicted and {0, 2} == set(predicted.tolist())


def test_the_paper_preset_reads_the_last_hidden_state() -> None:
    assert preset("paper").layers == (-1,) and preset("default").layers is None


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^preset must be one of 'default', 'few-shot', 'paper'\. Got 'best' instead\.$"
    ):
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
    assert held_out == result.history[result.chosen].score
    everything = logits_of(result.head, features)
    assert float((everything.argmax(1) == goal)[TRAIN].mean()) > most_frequent + 0.25
    # Training reads the pooled head's coordinates in int8, and the head then reads the features themselves.
    np.testing.assert_allclose(everything[VALIDATION], result.validation_logits, atol=0.03)


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


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"epochs": 4, "fewest_steps": 1, "most_steps": 1000}, 4 * math.ceil(90 / 16)),
        ({"epochs": 4, "fewest_steps": 40, "most_steps": 1000}, 40),
        ({"epochs": 4, "fewest_steps": 1, "most_steps": 10}, 10),
        ({"epochs": 1, "fewest_steps": 1, "label_steps": 17, "most_steps": 1000}, 3 * 17),
        ({"epochs": 1, "fewest_steps": 1, "label_steps": 17, "most_steps": 50}, 50),
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

        def logits(heads: list[LabelHead], features: Features, rows: Tensor, pool: Workers) -> list[Tensor]:
            predicted = goal.copy()
            predicted[right[len(seen)] :] = (predicted[right[len(seen)] :] + 1) % 3
            seen.append(copy.deepcopy(dict(heads[0].state_dict())))
            return [torch.from_numpy(np.eye(3, dtype=np.float32)[predicted])]

        monkeypatch.setattr(training, "stack_logits", logits)
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
    assert [round(entry.score * 30) for entry in result.history] == list(right)
    assert result.chosen == chosen
    assert torch.equal(result.head.state_dict()["label_rows"], seen[chosen]["label_rows"])
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


class Stages(Progress):
    """Keeps the last stage and how far each one came."""

    def __init__(self) -> None:
        self.now, self.totals = "", dict[str, int]()

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.now, self.totals[stage] = stage, total


def test_refit_reads_all_rows_and_the_search_train_rows(
    fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []
    step = stack_step

    def record(learners: list[Learner], features: Features, batch: Tensor, pool: Workers) -> None:
        if not seen or learners[0].step == 0:
            seen.append(set())
        seen[-1].update(batch.tolist())
        step(learners, features, batch, pool)

    monkeypatch.setattr("ytuning.training.fit.stack_step", record)
    config = replace(SHORT, fewest_steps=60, most_steps=60, refit_factor=2.0, patience=99)
    assert fit(replace(RECIPE, training=config)).refitted
    assert seen == [set(TRAIN.tolist()), {*TRAIN.tolist(), *VALIDATION.tolist()}]


@pytest.mark.parametrize(("right", "steps"), [((10, 28, 10, 10, 10), 6), ((10, 12, 15, 20, 25), 15)])
def test_refit_takes_twice_the_share_of_new_rows_of_the_chosen_steps(
    fit: Callable[..., FitResult],
    scripted: Callable[..., list[dict[str, Tensor]]],
    right: tuple[int, ...],
    steps: int,
) -> None:
    scripted(*right)
    stages = Stages()
    fit(replace(RECIPE, training=replace(SHORT, refit_factor=2.0)), progress=stages)
    assert stages.totals["refit"] == steps


def test_refit_starts_from_the_chosen_head_at_its_own_rate(
    fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    class Recording(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    config = replace(SHORT, learning_rate=0.5, refit_rate=0.0, refit_factor=2.0, patience=99)
    still, alone = fit(replace(RECIPE, training=config)), fit(replace(RECIPE, training=config), refit=False)
    assert weights(still.head) == weights(alone.head)  # a rate of 0 changes nothing
    rates.clear()
    chosen = fit(replace(RECIPE, training=replace(config, refit_rate=0.1)))
    assert max(rates[30:]) == pytest.approx(0.05) and len(rates) == 30 + chosen.history[chosen.chosen].step // 2


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
    assert torch.equal(result.head.state_dict()["label_rows"], seen[1]["label_rows"])
    assert not result.head.training


def test_interrupted_before_the_first_round_gives_the_head_of_that_step(
    fit: Callable[..., FitResult], toy: tuple[Features, np.ndarray]
) -> None:
    result = fit(progress=Interrupt("train", 3))
    assert (result.interrupted, result.refitted, result.chosen) == (True, False, 0)
    assert [entry.step for entry in result.history] == [3]
    found = logits_of(result.head, toy[0], torch.from_numpy(VALIDATION))
    np.testing.assert_allclose(found, result.validation_logits, atol=0.03)


def test_interrupted_refit_gives_the_head_that_validation_chose(fit: Callable[..., FitResult]) -> None:
    result = fit(progress=Interrupt("refit", 3))
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


# --- several heads --------------------------------------------------------------------------------------------------


def test_heads_trained_together_are_the_heads_trained_alone(toy: tuple[Features, np.ndarray]) -> None:
    features, goal = toy
    slow = replace(SHORT, learning_rate=1e-4, rounds=3)
    jobs = [
        HeadJob(SINGLE, goal, RECIPE, seed=0),
        HeadJob(SINGLE, goal, RECIPE, seed=1),
        HeadJob(SINGLE, goal, replace(RECIPE, training=replace(SHORT, loss="triplet"))),
        HeadJob(SINGLE, goal, replace(RECIPE, training=replace(slow, fewest_steps=12, most_steps=12))),
        HeadJob(kind_of("single", 2), goal % 2, replace(RECIPE, head=replace(RECIPE.head, members=2))),  # type: ignore[arg-type]
    ]
    together = fit_heads(features, jobs, train=TRAIN, validation=VALIDATION, seed=3)
    assert len({entry.history[-1].step for entry in together}) == 2
    for job, result in zip(jobs, together, strict=True):
        alone = fit_heads(features, [job], train=TRAIN, validation=VALIDATION, seed=3)[0]
        assert weights(alone.head) == weights(result.head)
        assert alone.history == result.history
        assert alone.validation_logits.tobytes() == result.validation_logits.tobytes()


def test_one_head_is_a_stack_of_one(toy: tuple[Features, np.ndarray], fit: Callable[..., FitResult]) -> None:
    stack = fit_heads(toy[0], [HeadJob(SINGLE, toy[1], RECIPE, 7)], train=TRAIN, validation=VALIDATION, seed=7)
    assert weights(stack[0].head) == weights(fit(seed=7).head)


def test_weights_do_not_depend_on_the_number_of_threads(fit: Callable[..., FitResult]) -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(weights(fit().head))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(RECIPE, training=replace(SHORT, batch_size=64)), "batch_size"),
        (replace(RECIPE, head=CrossAttentionConfig(width=32)), "form of the head"),
    ],
)
def test_heads_that_cannot_share_batches_are_refused(
    toy: tuple[Features, np.ndarray], other: Recipe, what: str
) -> None:
    jobs = [HeadJob(SINGLE, toy[1], RECIPE), HeadJob(SINGLE, toy[1], other)]
    with pytest.raises(InputError, match=rf"^heads that are trained together .* so their {what} must be the same\. "):
        fit_heads(toy[0], jobs, train=TRAIN, validation=VALIDATION)


def test_an_interrupted_stack_gives_each_head_a_round(toy: tuple[Features, np.ndarray]) -> None:
    jobs = [HeadJob(SINGLE, toy[1], RECIPE, seed) for seed in (0, 1)]
    results = fit_heads(toy[0], jobs, train=TRAIN, validation=VALIDATION, progress=Interrupt("train", 3))
    assert [[entry.step for entry in result.history] for result in results] == [[3], [3]]
    assert all(result.interrupted and not result.refitted for result in results)


def test_a_failing_read_is_raised_and_leaves_no_thread(
    toy: tuple[Features, np.ndarray], fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Features, indices: Tensor) -> tuple[Tensor, Tensor]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(TextFeatures, "batch", broken)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        fit()
    assert threading.active_count() == before


def test_interrupted_while_a_round_is_kept(fit: Callable[..., FitResult], monkeypatch: pytest.MonkeyPatch) -> None:
    real, copies = copy.deepcopy, 0

    def interrupted(value: Any) -> Any:
        nonlocal copies
        copies += 1
        if copies == 2:
            raise KeyboardInterrupt
        return real(value)

    monkeypatch.setattr(copy, "deepcopy", interrupted)
    result = fit()
    assert (result.interrupted, result.chosen) == (True, 0)
    assert [entry.step for entry in result.history] == [6]


def test_only_heads_that_may_be_chosen_are_kept(
    fit: Callable[..., FitResult], scripted: Callable[..., list[dict[str, Tensor]]]
) -> None:
    def heads_in_memory() -> int:
        gc.collect()
        return sum(type(value) is PooledHead for value in gc.get_objects())

    class Counting(Progress):
        heads: ClassVar[list[int]] = []

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if note:  # a validation has ended
                self.heads.append(heads_in_memory() - before)

    before = heads_in_memory()
    scripted(10, 25, 20, 22, 16)
    fit(replace(RECIPE, training=replace(SHORT, patience=99)), refit=False, progress=Counting())
    assert Counting.heads == [2, 2, 3, 3, 4]  # the one that learns, and those that no later one has reached


def test_a_head_learns_the_same_from_features_in_a_devices_memory(toy: tuple[Features, np.ndarray]) -> None:
    features, targets = toy
    recipe = replace(preset("few-shot"), training=SHORT)  # of a form that is trained on the features themselves anyway
    resident = features.resident(torch.arange(120), torch.device("cpu"))
    one, other = (
        fit_heads(part, [HeadJob(SINGLE, targets, recipe)], train=TRAIN, validation=VALIDATION)[0]
        for part in (features, resident)
    )
    assert weights(one.head) == weights(other.head)

"""Training: which head is chosen, the refit, several heads together, reproducibility, and Ctrl-C."""

from __future__ import annotations

import gc
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.conftest import STATES
from tests.kinds import KindName, kind_of
from ytuning.data.kinds import Loss, Regression
from ytuning.data.kinds.single import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.encoder.encoder import load_encoder
from ytuning.errors import InputError
from ytuning.features.codecs import Float16Codec
from ytuning.features.features import Features, TextFeatures, live_features
from ytuning.features.store import StoredRows
from ytuning.heads.pooled import (
    CrossAttentionConfig,
    HeadConfig,
    LabelHead,
    LabelTuningConfig,
    PooledConfig,
    PooledHead,
)
from ytuning.progress import Progress
from ytuning.training.calibration import calibrated_losses
from ytuning.training.fit import FitResult, HeadJob, clearly_lower, fit_heads, logits_of
from ytuning.training.recipes import Recipe, TrainingConfig, preset

Fit = Callable[..., FitResult]
Toy = tuple[Features, np.ndarray]
Steps = list[tuple[float, float]]
LABELS = LabelSet(("card", "login", "refund"))
SINGLE = SingleLabel(LABELS)
SHORT = TrainingConfig(fewest_steps=30, most_steps=30, rounds=5)
RECIPE = Recipe(PooledConfig(width=16), SHORT)
TRAIN, VALIDATION = np.arange(90), np.arange(90, 120)


@pytest.fixture(scope="module")
def toy(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]) -> Toy:
    """Features and label ids of the toy rows."""
    texts, labels = toy_rows
    features = live_features(
        [(text, None) for text in texts], load_encoder(tiny_encoder, precision="fp32"), states=STATES
    )
    return features, LabelSet.from_labels(labels).encode(labels)


@pytest.fixture
def fit(toy: Toy) -> Fit:
    """One head on the toy rows."""

    def fit(recipe: Recipe = RECIPE, seed: int = 0, target: SingleLabel = SINGLE, **options: Any) -> FitResult:
        features, targets = toy
        job = HeadJob(target, targets, recipe, seed)
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
            r"^the training diverged: after \d+ steps .*lower learning_rate in the recipe \(recipe=\)\. Got 1e\+30\.$",
        ),
    ],
)
def test_wrong_training_values_are_refused(fit: Fit, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(replace(RECIPE, training=replace(SHORT, **change)))


@pytest.mark.parametrize("kind", ["multi", "bounded", "unbounded"])
def test_a_training_that_diverges_is_told_of_any_kind(kind: KindName, toy: Toy) -> None:
    features, ids = toy
    targets = np.eye(3, dtype=np.float32)[ids] if kind == "multi" else (ids / 2).astype(np.float32)
    recipe = replace(RECIPE, training=replace(SHORT, learning_rate=1e30))
    with pytest.raises(InputError, match="the training diverged"):
        fit_heads(features, [HeadJob(kind_of(kind), targets, recipe)], train=TRAIN, validation=VALIDATION)


class Diverging(SingleLabel):
    """Its loss is no number from the 16th step on: a step has two halves."""

    def loss(self, *arguments: Any, **options: Any) -> Loss:
        loss, calls = super().loss(*arguments, **options), itertools.count()
        return lambda logits, goal: loss(logits, goal) * (1.0 if next(calls) < 30 else math.nan)


def test_a_later_round_that_diverged_is_left_out(fit: Fit) -> None:
    result = fit(target=Diverging(LABELS), refit=False)  # rounds end at 6, 12, 18
    assert [entry.step for entry in result.history] == [6, 12] and result.chosen <= 1
    assert np.isfinite(result.validation_logits).all()


def test_a_weight_only_of_labels_without_rows_is_refused(toy: Toy) -> None:
    features, ids = toy
    job = HeadJob(
        kind_of("single", 4), ids, replace(RECIPE, training=replace(SHORT, label_weights=(0.0, 0.0, 0.0, 1.0)))
    )
    with pytest.raises(InputError, match=r"^label_weights must be above 0 for a label that a train row has\. Got "):
        fit_heads(features, [job], train=TRAIN, validation=VALIDATION)


def test_a_label_of_weight_0_is_not_learned(fit: Fit) -> None:
    config = replace(SHORT, fewest_steps=100, most_steps=100, label_smoothing=0.0, label_weights=(1.0, 0.0, 1.0))
    predicted = fit(replace(RECIPE, training=config), refit=False).validation_logits.argmax(1)
    assert 1 not in predicted and {0, 2} == set(predicted.tolist())


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(PooledConfig(), TrainingConfig(fewest_steps=120, most_steps=120)),
        Recipe(CrossAttentionConfig(width=32), TrainingConfig(loss="triplet", fewest_steps=250, most_steps=250)),
    ],
    ids=["pooled", "cross_attention"],
)
def test_learns_far_above_chance(recipe: Recipe, fit: Fit, toy: Toy) -> None:
    features, goal = toy
    result = fit(recipe, refit=False)
    most_frequent = np.bincount(goal).max() / len(goal)
    held_out = float((result.validation_logits.argmax(1) == goal[VALIDATION]).mean())
    assert held_out > most_frequent + 0.25
    assert held_out == pytest.approx(result.validation.score)
    everything = logits_of(result.head, features)
    assert float((everything.argmax(1) == goal)[TRAIN].mean()) > most_frequent + 0.25
    np.testing.assert_allclose(everything[VALIDATION], result.validation_logits, atol=1e-4)


def test_same_seed_same_bytes(fit: Fit) -> None:
    first, again, other = fit(seed=4), fit(seed=4), fit(seed=5)
    assert weights(first.head) == weights(again.head)
    assert first.history == again.history
    assert first.validation_logits.tobytes() == again.validation_logits.tobytes()
    assert all(weights(first.head)[name] != weights(other.head)[name] for name in ("last_map", "label_rows"))


@pytest.mark.parametrize("progress", [None, Interrupt("train", 3)], ids=["finished", "interrupted"])
def test_leaves_random_state_and_threads_alone(fit: Fit, progress: Progress | None) -> None:
    torch.manual_seed(9)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state(legacy=False)["state"]["key"].copy()
    fit(progress=progress)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)


FORMS = [PooledConfig(width=16), CrossAttentionConfig(width=16, heads=2), LabelTuningConfig()]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_heads_that_are_fitted_in_threads_are_those_fitted_alone(fit: Fit, form: HeadConfig) -> None:
    recipe = Recipe(form, replace(SHORT, fewest_steps=10, most_steps=10))
    threads = torch.get_num_threads()
    alone = [weights(fit(recipe, seed).head) for seed in range(4)]
    stopped = threading.Event()

    def draw() -> None:
        """Draw from the generators that all threads share, as other programs in the process may."""
        while not stopped.is_set():
            torch.rand(3)
            np.random.rand(3)

    with ThreadPoolExecutor(5) as pool:
        noise = pool.submit(draw)
        try:
            together = list(pool.map(lambda seed: weights(fit(recipe, seed).head), [0, 1, 2, 3] * 2))
        finally:
            stopped.set()
        noise.result()
    assert together == alone * 2
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads, "threads that start later have as many"


def test_the_callers_random_state_does_not_matter(fit: Fit) -> None:
    torch.manual_seed(1)
    first = fit()
    torch.manual_seed(2)
    assert weights(first.head) == weights(fit().head)


def test_logits_keep_the_order_of_rows(fit: Fit, toy: Toy) -> None:
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


@pytest.fixture
def steps() -> Iterator[Steps]:
    """The learning rate and the norm of the gradient of every step that an optimizer takes."""
    taken: Steps = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        groups = optimizer.param_groups
        norms = [parameter.grad.norm() for group in groups for parameter in group["params"]]
        (rate,) = {group["lr"] for group in groups}
        taken.append((rate, float(torch.stack(norms).norm())))

    hook = register_optimizer_step_pre_hook(record)
    yield taken
    hook.remove()


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
def test_number_of_steps(fit: Fit, change: dict[str, int], steps: int) -> None:
    config = replace(SHORT, batch_size=16, patience=99, **change)  # type: ignore[arg-type]
    history = fit(replace(RECIPE, training=config), refit=False).history
    assert [entry.step for entry in history] == [round(steps * number / 5) for number in range(1, 6)]


def test_learning_rate_warms_up_and_decays(fit: Fit, steps: Steps) -> None:
    fit(replace(RECIPE, training=replace(SHORT, learning_rate=0.5, warmup=0.2, patience=99)), refit=False)
    up = [0.5 * (step + 1) / 6 for step in range(6)]
    down = [0.5 * (30 - step) / 24 for step in range(6, 30)]
    assert [rate for rate, _ in steps] == pytest.approx(up + down)


def test_gradients_are_clipped(fit: Fit, steps: Steps) -> None:
    fit(replace(RECIPE, training=replace(SHORT, clip_norm=1e-3)), refit=False)
    assert steps and all(0 < norm <= 1.001e-3 for _, norm in steps)


# --- which round ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted(SingleLabel):
    """At the n-th validation ``right[n]`` of the 30 rows are right, whatever the head says; keeps what it said.

    After the last one, the members of a head are weighed.
    """

    right: tuple[int, ...] = ()
    seen: list[np.ndarray] = field(default_factory=list)

    def row_scores(self, logits: Tensor, goal: Tensor) -> Tensor:
        self.seen.append(logits.numpy())
        return (torch.arange(30) < self.right[min(len(self.seen), len(self.right)) - 1]).double()


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
def test_last_round_within_half_a_standard_error(fit: Fit, toy: Toy, right: tuple[int, ...], chosen: int) -> None:
    target = Scripted(LABELS, right)
    unprojected = Recipe(CrossAttentionConfig(width=16), replace(SHORT, patience=99))
    result = fit(unprojected, target=target, refit=False)
    assert [round(entry.score * 30) for entry in result.history] == list(right)
    assert result.chosen == chosen
    assert np.array_equal(result.validation_logits, target.seen[chosen])
    kept = logits_of(result.head, toy[0], torch.from_numpy(VALIDATION))
    assert [np.allclose(kept, logits, atol=1e-6) for logits in target.seen] == [number == chosen for number in range(5)]
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
def test_hopeless_training_ends_early(fit: Fit, right: tuple[int, ...], rounds: int) -> None:
    config = replace(SHORT, patience=2)
    result = fit(replace(RECIPE, training=config), target=Scripted(LABELS, right), refit=False)
    assert len(result.history) == rounds
    assert not result.interrupted


def test_clearly_lower_is_by_two_standard_errors() -> None:
    noise = torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)  # of the difference: a standard error of 0.1
    others = torch.full((100,), 2.0, dtype=torch.float64)
    for lead, clear in ((0.25, True), (0.15, False), (0.0, False), (-0.25, False)):
        assert clearly_lower(others + noise - lead, others) == clear
    assert not clearly_lower(others, others)
    assert clearly_lower(others[:20] - 1, others[:20]) and not clearly_lower(others[:19] - 1, others[:19])
    none = torch.full_like(others, math.nan)
    assert clearly_lower(others, none) and not clearly_lower(none, others) and not clearly_lower(none, none)


# --- refit ----------------------------------------------------------------------------------------------------------


class WatchedLoss(Regression):
    """Keeps the targets of the rows that each learner reads."""

    seen: ClassVar[list[set[float]]] = []

    def loss(self, *arguments: Any, **options: Any) -> Loss:
        loss, read = super().loss(*arguments, **options), set[float]()
        self.seen.append(read)

        def watched(logits: Tensor, goal: Tensor) -> Tensor:
            read.update(goal.tolist())
            return loss(logits, goal)

        return watched


def test_refit_reads_all_rows_and_the_search_train_rows(toy: Toy) -> None:
    target, targets = WatchedLoss(0.0, 1.0, bounded=True), np.linspace(0, 1, 120, dtype=np.float32)
    recipe = replace(RECIPE, training=replace(SHORT, refit_factor=9.0))  # an epoch or more, whichever round is chosen
    (result,) = fit_heads(toy[0], [HeadJob(target, targets, recipe)], train=TRAIN, validation=VALIDATION)
    assert result.refitted
    searched, refitted = target.seen
    assert searched == set(targets[TRAIN].tolist()) and refitted == set(targets.tolist())


@pytest.mark.parametrize(("right", "refitted"), [((10, 28, 10, 10, 10), 6), ((10, 12, 15, 20, 25), 15)])
def test_refit_takes_twice_the_share_of_new_rows_of_the_chosen_steps(
    fit: Fit, steps: Steps, right: tuple[int, ...], refitted: int
) -> None:
    config = replace(SHORT, refit_factor=2.0)
    result = fit(replace(RECIPE, training=config), target=Scripted(LABELS, right))
    assert len(steps) == result.history[-1].step + refitted


def test_refit_starts_from_the_chosen_head_at_its_own_rate(fit: Fit, steps: Steps) -> None:
    config = replace(SHORT, learning_rate=0.5, refit_rate=0.0, refit_factor=2.0, patience=99)
    still, alone = fit(replace(RECIPE, training=config)), fit(replace(RECIPE, training=config), refit=False)
    # A rate of 0 changes nothing but the light member, which has no rate.
    learned = [{name: own for name, own in weights(one.head).items() if "light" not in name} for one in (still, alone)]
    assert learned[0] == learned[1]
    steps.clear()
    chosen = fit(replace(RECIPE, training=replace(config, refit_rate=0.1)))
    rates = [rate for rate, _ in steps[30:]]
    assert max(rates) == pytest.approx(0.05) and len(rates) == chosen.history[chosen.chosen].step // 2


def test_refit_can_be_switched_off(fit: Fit) -> None:
    chosen, refitted = fit(refit=False), fit(refit=True)
    assert (chosen.refitted, refitted.refitted) == (False, True)
    assert chosen.history == refitted.history
    assert chosen.validation_logits.tobytes() == refitted.validation_logits.tobytes()
    assert weights(chosen.head) != weights(refitted.head)
    assert not refitted.head.training


# --- what groups of members know ------------------------------------------------------------------------------------


def with_noise(features: Features, seed: int = 0) -> TextFeatures:
    """The same features with one more hidden state that says nothing of the text."""
    assert isinstance(features, TextFeatures)
    values, mask = features.batch(torch.arange(len(features)))
    noise = torch.randn(*values.shape[:2], 1, values.shape[3], generator=torch.Generator().manual_seed(seed))
    states = torch.cat((values, noise * values.std()), 2)[mask].half()
    codec, lengths = Float16Codec(states.shape[1], states.shape[2]), mask.sum(1).numpy()
    start = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    whole = np.zeros(len(lengths), np.int64), start, lengths, np.zeros(len(lengths), bool)
    return TextFeatures(StoredRows([codec.encode(states).numpy()], *whole, codec), features.dtype)


LONGER = replace(RECIPE, training=replace(SHORT, fewest_steps=120, most_steps=120))


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize(("kind", "rare_rows"), [("single", 0.0), ("multi", 0.0), ("multi", 50.0), ("bounded", 0.0)])
def test_members_count_by_what_they_know(kind: KindName, rare_rows: float, refit: bool, toy: Toy) -> None:
    features, ids = with_noise(toy[0]), toy[1]
    targets: np.ndarray = ids
    if kind != "single":
        targets = np.eye(3, dtype=np.float32)[ids] if kind == "multi" else (ids == 1).astype(np.float32)
    recipe = replace(LONGER, training=replace(LONGER.training, rare_rows=rare_rows))
    job = HeadJob(kind_of(kind), targets, recipe)
    result = fit_heads(features, [job], train=TRAIN, validation=VALIDATION, refit=refit)[0]
    assert isinstance(result.head, PooledHead) and result.head.layers == 3
    lowest, shared, last, _ = (
        group.sum().item() for group in result.head.member_weights.split(result.head.group_sizes)
    )
    assert last < 0.3 * min(lowest, shared) and result.head.member_weights.mean().item() == pytest.approx(1)


def test_the_weights_are_the_squares_of_what_each_group_saves(toy: Toy) -> None:
    features, ids = with_noise(toy[0]), toy[1]
    head = fit_heads(features, [HeadJob(SINGLE, ids, LONGER)], train=TRAIN, validation=VALIDATION)[0].chosen_head
    assert isinstance(head, PooledHead)
    truth, rows = ids[VALIDATION], torch.from_numpy(VALIDATION)
    shares = np.bincount(truth, minlength=3) / len(truth)
    constant, saved = -float((shares * np.log(shares)).sum()), []
    # The light member has not learned by a smoothed loss.
    for group, smoothing in zip(np.eye(4), [LONGER.training.smoothing_of(SINGLE)] * 3 + [0.0], strict=True):
        logits = logits_of(head.with_group_weights(group.tolist()), features, rows)
        losses = calibrated_losses(SINGLE, logits, truth, smoothing=smoothing)
        saved.append(max(0.0, constant - float(losses.mean())) ** 2)
    expected = np.repeat(np.array(saved) / head.group_sizes, head.group_sizes)
    assert head.member_weights.numpy() == pytest.approx(expected / expected.mean(), rel=1e-3, abs=1e-4)


def test_the_validation_is_of_the_weighted_head(toy: Toy) -> None:
    features, ids = with_noise(toy[0]), toy[1]
    result = fit_heads(features, [HeadJob(SINGLE, ids, LONGER)], train=TRAIN, validation=VALIDATION, refit=False)[0]
    logits, truth = torch.from_numpy(result.validation_logits), torch.from_numpy(ids[VALIDATION])
    assert result.validation.score == pytest.approx(float((logits.argmax(1) == truth).float().mean()))
    assert result.validation.loss == pytest.approx(SINGLE.mean_loss(logits, truth))
    trained = result.history[result.chosen]
    assert result.validation.step == trained.step and result.validation.loss != trained.loss
    by_head = logits_of(result.head, features, torch.from_numpy(VALIDATION))
    np.testing.assert_allclose(by_head, result.validation_logits, atol=1e-4)


def test_equal_validation_targets_do_not_weigh_members(toy: Toy) -> None:
    features, numbers = with_noise(toy[0]), np.linspace(0, 1, 120, dtype=np.float32)
    numbers[VALIDATION] = 0.3
    result = fit_heads(
        features, [HeadJob(kind_of("unbounded"), numbers, RECIPE)], train=TRAIN, validation=VALIDATION, refit=False
    )[0]
    assert isinstance(result.head, PooledHead)
    *learned, light = result.head.member_weights.tolist()
    assert light == 0 and learned == pytest.approx([result.head.members / len(learned)] * len(learned))


def test_few_validation_rows_do_not_weigh_members(toy: Toy) -> None:
    features, ids = with_noise(toy[0]), toy[1]
    result = fit_heads(features, [HeadJob(SINGLE, ids, LONGER)], train=np.arange(101), validation=np.arange(101, 120))[
        0
    ]
    assert isinstance(result.head, PooledHead) and result.head.member_weights.tolist() == [1.0] * result.head.members


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_interrupted_search_gives_the_best_head_so_far(fit: Fit) -> None:
    target = Scripted(LABELS, (12, 25, 15, 30, 30))
    result = fit(target=target, progress=Interrupt("train", 20))  # rounds end at 6, 12, 18
    assert (result.interrupted, result.refitted, result.chosen) == (True, False, 1)
    assert [entry.step for entry in result.history] == [6, 12, 18]
    assert np.array_equal(result.validation_logits, target.seen[1])
    assert not result.head.training


def test_interrupted_before_the_first_round_gives_the_head_of_that_step(fit: Fit, toy: Toy) -> None:
    result = fit(progress=Interrupt("train", 3))
    assert (result.interrupted, result.refitted, result.chosen) == (True, False, 0)
    assert [entry.step for entry in result.history] == [3]
    found = logits_of(result.head, toy[0], torch.from_numpy(VALIDATION))
    np.testing.assert_allclose(found, result.validation_logits, atol=1e-4)


def test_interrupted_refit_gives_the_head_that_validation_chose(fit: Fit) -> None:
    result = fit(progress=Interrupt("refit", 3))
    assert (result.interrupted, result.refitted) == (True, False)
    assert weights(result.head) == weights(fit(refit=False).head)


def test_interrupted_while_a_round_is_reported(fit: Fit) -> None:
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


class InterruptedCopy(PooledConfig):
    """Ctrl-C while the second head is copied, as each validation does."""

    copies: ClassVar[list[int]] = []

    def __deepcopy__(self, memo: object) -> InterruptedCopy:
        self.copies.append(len(self.copies))
        if len(self.copies) == 2:
            raise KeyboardInterrupt
        return self


def test_interrupted_while_a_round_is_kept(fit: Fit) -> None:
    result = fit(replace(RECIPE, head=InterruptedCopy(width=16)))
    assert InterruptedCopy.copies == [0, 1]
    assert (result.interrupted, result.chosen) == (True, 0)
    assert [entry.step for entry in result.history] == [6]


# --- several heads --------------------------------------------------------------------------------------------------


def test_heads_trained_together_are_the_heads_trained_alone(toy: Toy) -> None:
    features, goal = toy
    # None of them stops early.
    whole = replace(SHORT, patience=SHORT.rounds)
    slow, recipe = replace(whole, learning_rate=1e-4, rounds=3), replace(RECIPE, training=whole)
    jobs = [
        HeadJob(SINGLE, goal, recipe, seed=0),
        HeadJob(SINGLE, goal, recipe, seed=1),
        HeadJob(SINGLE, goal, replace(recipe, training=replace(whole, loss="triplet"))),
        HeadJob(SINGLE, goal, replace(recipe, training=replace(slow, fewest_steps=12, most_steps=12))),
        HeadJob(kind_of("single", 2), goal % 2, replace(recipe, head=replace(recipe.head, side_by_side=2))),  # type: ignore[arg-type]
    ]
    together = fit_heads(features, jobs, train=TRAIN, validation=VALIDATION, seed=3)
    assert len({entry.history[-1].step for entry in together}) == 2
    for job, result in zip(jobs, together, strict=True):
        alone = fit_heads(features, [job], train=TRAIN, validation=VALIDATION, seed=3)[0]
        assert weights(alone.head) == weights(result.head)
        assert alone.history == result.history
        assert alone.validation_logits.tobytes() == result.validation_logits.tobytes()


@pytest.mark.parametrize("form", [PooledConfig(width=16), LabelTuningConfig()])
def test_heads_with_rows_of_their_own_are_the_heads_trained_alone(toy: Toy, form: HeadConfig) -> None:
    features, goal = toy
    recipe = Recipe(form, replace(SHORT, patience=SHORT.rounds))
    order = np.random.default_rng(0).permutation(120)
    splits = [(np.sort(order[:90]), np.sort(order[90:])), (np.sort(order[30:]), np.sort(order[:30]))]
    jobs = [HeadJob(SINGLE, goal, recipe, train=train, validation=held) for train, held in [*splits, splits[0]]]
    jobs[1] = replace(jobs[1], target=kind_of("single", 2), targets=goal % 2)
    jobs[2] = replace(jobs[2], seed=1)
    together = fit_heads(features, jobs, seed=3)
    for job, result in zip(jobs, together, strict=True):
        plain = replace(job, train=None, validation=None)
        alone = fit_heads(features, [plain], train=job.train, validation=job.validation, seed=3)[0]
        assert weights(alone.head) == weights(result.head)
        assert alone.history == result.history
        assert alone.validation_logits.tobytes() == result.validation_logits.tobytes()


def test_a_head_reads_no_row_that_is_not_its_own(toy: Toy) -> None:
    features, goal = toy
    few = HeadJob(SINGLE, goal, RECIPE, train=np.arange(0, 90, 2), validation=np.arange(90, 120, 2))
    garbage = goal.copy()
    garbage[1::2] = 0
    other = HeadJob(SINGLE, goal, RECIPE, train=TRAIN, validation=VALIDATION)
    first, second = (fit_heads(features, [job, other]) for job in (few, replace(few, targets=garbage)))
    assert weights(first[0].head) == weights(second[0].head)
    assert len(first[0].validation_logits) == 15 and len(first[1].validation_logits) == 30


def test_the_steps_of_a_head_follow_from_its_own_rows(toy: Toy) -> None:
    features, goal = toy
    recipe = replace(RECIPE, training=TrainingConfig(epochs=4, fewest_steps=1, label_steps=0, rounds=1))
    jobs = [HeadJob(SINGLE, goal, recipe, train=TRAIN[:size], validation=VALIDATION) for size in (32, 90)]
    # Batches are of 16 rows: four epochs of 2 and of 6 batches.
    assert [result.history[-1].step for result in fit_heads(features, jobs)] == [8, 24]


def test_a_job_without_rows_is_refused(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"^a job must have train rows and validation rows$"):
        fit_heads(toy[0], [HeadJob(SINGLE, toy[1], RECIPE)], train=TRAIN)


def test_weights_do_not_depend_on_the_number_of_threads(fit: Fit) -> None:
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
def test_heads_that_cannot_share_batches_are_refused(toy: Toy, other: Recipe, what: str) -> None:
    jobs = [HeadJob(SINGLE, toy[1], RECIPE), HeadJob(SINGLE, toy[1], other)]
    with pytest.raises(InputError, match=rf"^heads that are trained together .* so their {what} must be the same\. "):
        fit_heads(toy[0], jobs, train=TRAIN, validation=VALIDATION)


def test_an_interrupted_stack_gives_each_head_a_round(toy: Toy) -> None:
    jobs = [HeadJob(SINGLE, toy[1], RECIPE, seed) for seed in (0, 1)]
    results = fit_heads(toy[0], jobs, train=TRAIN, validation=VALIDATION, progress=Interrupt("train", 3))
    assert [[entry.step for entry in result.history] for result in results] == [[3], [3]]
    assert all(result.interrupted and not result.refitted for result in results)


class UnreadableFeatures(TextFeatures):
    """Features whose disk fails."""

    def __init__(self, features: Features) -> None:
        vars(self).update(vars(features))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        raise OSError("the disk is gone")

    def tokens(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        raise OSError("the disk is gone")


def test_a_failing_read_is_raised_and_leaves_no_thread(toy: Toy) -> None:
    job = HeadJob(SINGLE, toy[1], RECIPE)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        fit_heads(UnreadableFeatures(toy[0]), [job], train=TRAIN, validation=VALIDATION)
    assert threading.active_count() == before


def test_only_heads_that_may_be_chosen_are_kept(fit: Fit) -> None:
    def heads_in_memory() -> int:
        gc.collect()
        return sum(type(value) is PooledHead for value in gc.get_objects())

    class Counting(Progress):
        heads: ClassVar[list[int]] = []

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if note:  # a validation has ended
                self.heads.append(heads_in_memory() - before)

    before = heads_in_memory()
    config, target = replace(SHORT, patience=99), Scripted(LABELS, (10, 25, 20, 22, 16))
    fit(replace(RECIPE, training=config), target=target, refit=False, progress=Counting())
    assert Counting.heads == [2, 2, 3, 3, 4]  # the one that learns, and those that no later one has reached


def test_a_head_learns_the_same_from_features_in_a_devices_memory(toy: Toy) -> None:
    features, targets = toy
    recipe = replace(preset("few-shot"), training=SHORT)  # of a form that is trained on the features themselves anyway
    resident = features.resident(torch.arange(120), torch.device("cpu"))
    one, other = (
        fit_heads(part, [HeadJob(SINGLE, targets, recipe)], train=TRAIN, validation=VALIDATION)[0]
        for part in (features, resident)
    )
    assert weights(one.head) == weights(other.head)

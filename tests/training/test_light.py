"""Light heads: their pools and their rows in closed form, compared with the formulas written out in float64."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import STATES, WORDS
from tests.kinds import KIND_NAMES, KindName, kind_of
from tests.pools import of_numbers, pooled
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError
from ytuning.features.features import Features, TextFeatures, live_inputs
from ytuning.heads.light import LightConfig, LightHead
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooling import pool_states
from ytuning.training.fit import FitResult, HeadJob, fit_heads, logits_of
from ytuning.training.light import MOST_ROWS, STRENGTHS, WHOLE, LightJob, fit_light
from ytuning.training.recipes import Recipe, TrainingConfig

ROWS, TRAIN, VALIDATION, TEST = 240, np.arange(150), np.arange(150, 200), np.arange(200, 240)
READ = np.arange(200)
RECIPE = Recipe(LightConfig(), TrainingConfig(label_smoothing=0.0))


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, ROWS)


@pytest.fixture(scope="module")
def texts(ids: np.ndarray) -> list[str]:
    """A label shows in one or two of three words of its own, among other words."""
    chooser = random.Random(0)
    made = []
    for label in ids.tolist():
        words = [*chooser.choices(WORDS[9:], k=chooser.randint(1, 5)), *chooser.choices(WORDS[3 * label :][:3], k=2)]
        chooser.shuffle(words)
        made.append(" ".join(words))
    return made


@pytest.fixture(scope="module")
def tokens(texts: list[str], encoder: Encoder) -> Features:
    return live_inputs([(text, None) for text in texts], encoder, states=STATES, pair_mode=None)


@pytest.fixture(scope="module")
def pools(tokens: Features) -> Features:
    return pooled(tokens)


def targets_of(kind: KindName, ids: np.ndarray) -> np.ndarray:
    if kind == "multi":
        # The last label goes with the first one.
        targets = np.eye(3, dtype=np.float32)[ids]
        targets[:, 2] = np.maximum(targets[:, 2], targets[:, 0])
        return targets
    return (ids / 2).astype(np.float32) if kind in ("bounded", "unbounded") else ids


def fit(pools: Features, kind: KindName, ids: np.ndarray, recipe: Recipe = RECIPE, refit: bool = True) -> FitResult:
    job = HeadJob(kind_of(kind), targets_of(kind, ids), recipe)
    return fit_heads(pools, [job], train=TRAIN, validation=VALIDATION, refit=refit)[0]


def numbers_of(pools: Features, rows: np.ndarray) -> np.ndarray:
    values, _ = pools.batch(torch.from_numpy(rows))
    return values.flatten(1).double().numpy()


def test_pools_against_a_loop(tokens: Features, pools: Features) -> None:
    values, mask = tokens.batch(torch.arange(7))
    assert not mask.all()
    naive = []
    for text, there in zip(values.double(), mask, strict=True):
        # (T, L * D)
        own = text[there].flatten(1)
        naive.append(torch.cat((own.mean(0), own.amax(0), own.amin(0))))
    torch.testing.assert_close(pool_states(values, mask).double(), torch.stack(naive), rtol=1e-3, atol=1e-4)
    stored, _ = pools.batch(torch.arange(7))
    assert torch.equal(stored.flatten(1), pool_states(values, mask))


@pytest.mark.parametrize("pair_mode", [None, "separate"])
def test_tokens_and_their_pools_give_the_same_logits(
    pair_mode: PairMode | None, texts: list[str], encoder: Encoder
) -> None:
    pairs = [(text, other if pair_mode else None) for text, other in zip(texts, reversed(texts), strict=True)]
    tokens = live_inputs(pairs, encoder, states=STATES, pair_mode=pair_mode)
    size = 3 * len(STATES) * tokens.width * (2 if pair_mode else 1)
    head = LightHead.fitted(
        torch.randn(4, size, generator=torch.Generator().manual_seed(0)),
        torch.zeros(4),
        torch.zeros(size),
        layers=len(STATES),
        width=tokens.width,
        pair_mode=pair_mode,
    )
    np.testing.assert_allclose(logits_of(head, tokens), logits_of(head, pooled(tokens)), rtol=1e-4, atol=1e-3)


def test_a_pair_is_told_by_both_texts_their_distance_and_their_product(texts: list[str], encoder: Encoder) -> None:
    pairs = list(zip(texts[:6], texts[6:12], strict=True))
    features = pooled(live_inputs(pairs, encoder, states=STATES, pair_mode="separate"))
    first, second = (
        numbers_of(
            pooled(live_inputs([(text, None) for text in side], encoder, states=STATES, pair_mode=None)), np.arange(6)
        )
        for side in zip(*pairs, strict=True)
    )
    size = 2 * first.shape[1]
    # A number of each part, and the last one of the maxima.
    part, last = size // 6, size // 3 - 1
    head = LightHead.fitted(
        torch.eye(size)[[0, part, 2 * part, 2 * part + last, 4 * part, size - 1]], torch.zeros(6), torch.zeros(size),
        layers=len(STATES), width=features.width, pair_mode="separate",
    )  # fmt: skip
    apart, alike = np.abs(first - second), first * second
    expected = np.stack((first[:, 0], second[:, 0], apart[:, 0], apart[:, last], alike[:, 0], alike[:, last]), 1)
    np.testing.assert_allclose(logits_of(head, features), expected, rtol=1e-5, atol=1e-6)


def test_rounded_rows_are_exact_at_the_center() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, center = 1e-3 * torch.randn(2, 24, generator=generator), 1000 * torch.rand(24, generator=generator)
    head = LightHead.fitted(rows, torch.tensor([0.5, -2.0]), center, layers=2, width=4, pair_mode=None)
    torch.testing.assert_close(head.match(center[None])[0], torch.tensor([0.5, -2.0]), rtol=0, atol=1e-3)
    moved = center + torch.randn(24, generator=generator)
    torch.testing.assert_close(
        head.match(moved[None])[0] - head.match(center[None])[0], rows @ (moved - center), rtol=1e-2, atol=1e-3
    )


def naive(pools: Features, job: LightJob, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Logits (rows, C) of all rows from ridge regression or discriminant analysis in float64, without int8."""
    numbers, goal = numbers_of(pools, np.arange(ROWS)), job.columns(torch.arange(ROWS)).double().numpy()
    measured = numbers[:200]
    numbers = (numbers - measured.mean(0)) / measured.std(0)
    # What is fitted is cut at about four deviations, what is answered is not.
    x, y, w = (
        numbers[rows].clip(-127 / 32, 127 / 32),
        goal[rows],
        np.ones(len(rows)) if weights is None else weights[rows],
    )
    mean, share = np.average(x, axis=0, weights=w), np.average(y, axis=0, weights=w)
    centered = x - mean
    y, share = y / job.whole, share / job.whole
    assert job.strength is not None
    penalised = (w * centered.T) @ centered / w.sum() + job.strength * np.eye(x.shape[1])
    if job.target.gives_many:
        counts = y.sum(0)
        means = (centered.T @ y) / (counts + 2)
        solved = np.linalg.solve(penalised, means)
        bias = np.log((counts + 0.5) / (len(x) - counts + 0.5)) - (solved * means).sum(0) / 2
        return (numbers - mean) @ solved + bias
    solved = np.linalg.solve(penalised, (w * centered.T) @ (y - share) / w.sum())
    return 10 * ((numbers - mean) @ solved + share)


@pytest.mark.parametrize(
    ("kind", "weighted"),
    [("single", False), ("single", True), ("ordinal", False), ("ordinal", True), ("multi", False)],
)
def test_against_the_formula(kind: KindName, weighted: bool, pools: Features, ids: np.ndarray) -> None:
    job = LightJob(kind_of(kind), targets_of(kind, ids), VALIDATION, strength=0.3)
    weights = np.array([0.2, 1.0, 2.5])[ids] if weighted else None
    fitted = fit_light(pools, [job], rows=READ, row_weights=None if weights is None else weights[READ])[0]
    for head, rows in ((fitted.chosen_head, TRAIN), (fitted.head, np.arange(200))):
        expected = naive(pools, job, rows, weights)
        # The numbers are rounded to a 32nd of a deviation.
        gap = np.abs(logits_of(head, pools)[TEST] - expected[TEST])
        assert gap.max() < 0.03 * expected.std()


@pytest.mark.parametrize(("kind", "weighted"), [("single", False), ("single", True), ("multi", False)])
def test_labels_may_have_shares_of_a_row(kind: KindName, weighted: bool, pools: Features, ids: np.ndarray) -> None:
    targets = targets_of(kind, ids)
    flags = targets.astype(np.int8) if kind == "multi" else np.eye(3, dtype=np.int8)[targets]
    weights = np.array([0.2, 1.0, 2.5])[ids] if weighted else None
    whole = LightJob(kind_of(kind), targets, VALIDATION, 0.3, shares=WHOLE * flags)
    parts = (
        np.random.default_rng(0).dirichlet(np.ones(3), ROWS)
        if kind == "single"
        else np.random.default_rng(0).random((ROWS, 3))
    )
    part = replace(whole, shares=np.where(np.arange(ROWS)[:, None] % 2, WHOLE * flags, WHOLE * parts).astype(np.int8))
    given = {"rows": READ, "row_weights": None if weights is None else weights[READ]}
    plain, all_of_it, shared = (
        fit_light(pools, [job], **given)[0]  # type: ignore[arg-type]
        for job in (replace(whole, shares=None), whole, part)
    )
    if not weighted:
        assert torch.equal(plain.head.label_rows, all_of_it.head.label_rows)
        *_, beside = fit_light(pools, [replace(whole, shares=None), part], **given)  # type: ignore[arg-type]
        assert torch.equal(beside.head.label_rows, shared.head.label_rows)
    np.testing.assert_allclose(logits_of(plain.head, pools), logits_of(all_of_it.head, pools), rtol=1e-3, atol=1e-3)
    assert not torch.equal(plain.head.label_rows, shared.head.label_rows)
    expected = naive(pools, part, np.arange(200), weights)
    assert np.abs(logits_of(shared.head, pools)[TEST] - expected[TEST]).max() < 0.05 * expected.std()


@pytest.mark.parametrize(("kind", "weighted"), [("single", False), ("single", True), ("multi", False)])
def test_validation_rows_are_taken_away_from_the_factor_of_all_rows(
    kind: KindName, weighted: bool, pools: Features, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = LightJob(kind_of(kind), targets_of(kind, ids), VALIDATION, strength=1.0)
    weights = np.array([0.2, 1.0, 2.5])[ids[READ]] if weighted else None
    updated = fit_light(pools, [job], rows=READ, row_weights=weights)[0]
    # Without steps the other rows get a factor of their own.
    monkeypatch.setattr("ytuning.training.light.MOST_STEPS", 0)
    factored = fit_light(pools, [job], rows=READ, row_weights=weights)[0]
    assert torch.equal(updated.head.label_rows, factored.head.label_rows)
    ours, theirs, whole = (logits_of(head, pools) for head in (updated.chosen_head, factored.chosen_head, updated.head))
    assert np.abs(ours - theirs).max() < 0.03 * theirs.std() < 0.3 * np.abs(whole - theirs).max()
    np.testing.assert_allclose(updated.validation_logits, ours[VALIDATION], rtol=1e-4, atol=1e-4)
    only = fit_light(pools, [job], rows=READ, row_weights=weights, refit=False)[0]
    assert only.head is only.chosen_head and torch.equal(only.head.label_rows, factored.chosen_head.label_rows)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_learns_far_above_chance(kind: KindName, pools: Features, ids: np.ndarray) -> None:
    target, targets = kind_of(kind), targets_of(kind, ids)
    result = fit(pools, kind, ids)
    logits = torch.from_numpy(logits_of(result.head, pools, torch.from_numpy(TEST)))
    loss = target.mean_loss(logits, torch.from_numpy(np.asarray(targets[TEST], target.dtype)))
    assert loss < 0.6 * target.constant_loss(targets[TEST])
    assert result.refitted and not result.interrupted and result.validation.loss < target.constant_loss(targets[TRAIN])


def test_without_a_refit_the_chosen_head_is_the_head(pools: Features, ids: np.ndarray) -> None:
    result = fit(pools, "single", ids, refit=False)
    assert result.head is result.chosen_head and not result.refitted


def test_same_rows_same_bytes_alone_and_in_company(pools: Features, ids: np.ndarray) -> None:
    jobs = [HeadJob(kind_of(kind), targets_of(kind, ids), RECIPE) for kind in KIND_NAMES]
    together = fit_heads(pools, jobs, train=TRAIN, validation=VALIDATION)
    for kind, other in zip(KIND_NAMES, together, strict=True):
        state = fit(pools, kind, ids).head.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in other.head.state_dict().items()), kind


def test_validation_rows_of_each_head_are_its_own(pools: Features, ids: np.ndarray) -> None:
    jobs = [
        HeadJob(kind_of("single"), ids, RECIPE, train=np.setdiff1d(READ, held), validation=held)
        for held in (VALIDATION, np.arange(40), np.arange(3, 200, 5))
    ]
    together = fit_heads(pools, jobs)
    for job, other in zip(jobs, together, strict=True):
        alone = fit_heads(pools, [job])[0]
        for name in ("chosen_head", "head"):
            state = getattr(alone, name).state_dict()
            assert all(torch.equal(state[key], value) for key, value in getattr(other, name).state_dict().items())
    assert not torch.equal(
        together[0].chosen_head.state_dict()["label_rows"], together[1].chosen_head.state_dict()["label_rows"]
    )


def test_sums_of_floats_are_those_of_bytes(pools: Features, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such product on this processor")

    job = LightJob(kind_of("single"), ids, VALIDATION)
    heads = []
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(torch, "_int_mm", refuse)
        heads.append(fit_light(pools, [job], rows=READ)[0].head)
    assert torch.equal(heads[0].label_rows, heads[1].label_rows)
    assert torch.equal(heads[0].label_bias, heads[1].label_bias)


def test_a_constant_number_counts_nothing(ids: np.ndarray, tokens: Features) -> None:
    features = pooled(tokens)
    values, _ = features.batch(torch.arange(ROWS))
    assert (values.std(0) > 0).any()
    head = fit(features, "single", ids).head
    assert all(bool(tensor.isfinite().all()) for tensor in head.state_dict().values())


def test_every_strength_is_tried(pools: Features, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss may have several minima, as that of STS-B has: it rises on both sides of a strength that is not best."""
    losses = iter([2.0, 1.5, 1.0, 1.5, 2.0, 0.5])
    monkeypatch.setattr("ytuning.training.light.calibrated_losses", lambda *_, **__: np.array([next(losses)]))
    assert fit(pools, "bounded", ids).strength == STRENGTHS[5]
    assert not list(losses)


def test_validation_chooses_the_strength(pools: Features, ids: np.ndarray) -> None:
    noise = np.random.default_rng(1).integers(0, 2, ROWS)
    jobs = [LightJob(kind_of("single", 2), noise, VALIDATION), LightJob(kind_of("single"), ids, VALIDATION)]
    of_noise, of_labels = fit_light(pools, jobs, rows=READ)
    assert of_labels.strength < of_noise.strength and {of_labels.strength, of_noise.strength} <= set(STRENGTHS)


def test_few_validation_rows_choose_nothing(pools: Features, ids: np.ndarray) -> None:
    fitted = fit_light(pools, [LightJob(kind_of("single"), ids, VALIDATION[:5])], rows=READ)[0]
    assert fitted.strength == 0.3


def test_label_weights_move_answers(pools: Features, ids: np.ndarray) -> None:
    weights = (50.0, 1.0, 1.0)
    shares = []
    for given in (None, weights):
        recipe = Recipe(LightConfig(), TrainingConfig(label_smoothing=0.0, label_weights=given))
        logits = logits_of(fit(pools, "single", ids, recipe).head, pools)
        shares.append((logits.argmax(1) == 0).mean())
    assert shares[1] > shares[0]


def test_label_weights_of_several_labels_a_row_are_refused(pools: Features, ids: np.ndarray) -> None:
    recipe = Recipe(LightConfig(), TrainingConfig(label_weights="balanced"))
    with pytest.raises(InputError, match="is for one label a row, and this task is multi"):
        fit(pools, "multi", ids, recipe)


def test_labels_in_turn_among_many_rows_are_all_learned(pools: Features, ids: np.ndarray) -> None:
    # More rows than are learned from, every second of them of the first label.
    by_label = [np.flatnonzero(ids[:150] == label) for label in (0, 1)]
    count = MOST_ROWS + 2000
    rows = np.array([by_label[number % 2][number // 2 % len(by_label[number % 2])] for number in range(count)])
    assert isinstance(pools, TextFeatures)
    many = pools.selected(torch.from_numpy(np.concatenate((rows, np.arange(150, 240)))))
    targets = np.concatenate((ids[rows], ids[150:240])) % 2
    held = np.arange(count, count + 50)
    job = LightJob(kind_of("single", 2), targets, held)
    head = fit_light(many, [job], rows=np.arange(count + 50))[0].head
    asked = np.flatnonzero(np.isin(ids[200:240], (0, 1)))
    logits = logits_of(head, many, torch.from_numpy(count + 50 + asked))
    assert (logits.argmax(1) == ids[200:240][asked]).mean() > 0.9


def test_numbers_beyond_float16_are_cut() -> None:
    values = torch.full((1, 2, 1, 4), 1e6)
    values[0, 1] = -1e6
    found = pool_states(values, torch.ones(1, 2, dtype=torch.bool))
    assert found.tolist() == [[0.0] * 4 + [65504.0] * 4 + [-65504.0] * 4]


def test_hidden_states_that_are_no_numbers_are_told(tokens: Features, ids: np.ndarray) -> None:
    assert isinstance(tokens, TextFeatures)
    broken = pooled(tokens)
    values, _ = broken.batch(torch.arange(ROWS))
    values[:, :, 0, 0] = torch.nan
    features = of_numbers(values[:, 0], broken.truncated_rows)
    with pytest.raises(InputError, match="the light head's logits are no numbers"):
        fit(features, "single", ids)

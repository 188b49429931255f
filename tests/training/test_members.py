"""The light member of a pooled head: what it adds, where there is none, many labels, and what heads share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kinds import KindName, kind_of
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.features.codecs import Float16Codec
from ytuning.features.features import Features, PairFeatures, TextFeatures
from ytuning.features.store import StoredRows
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import LightHead, PooledConfig, PooledHead, build_head
from ytuning.training import fit, light, members
from ytuning.training.fit import FitResult, HeadJob, fit_heads, logits_of
from ytuning.training.members import fits_light_member, light_member, light_weight, light_width, temperature_ratio
from ytuning.training.recipes import Recipe, TrainingConfig

WIDTH, LAYERS = 8, 2
RECIPE = Recipe(
    PooledConfig(width=6, token_width=4, mixing_width=2),
    TrainingConfig(batch_size=16, fewest_steps=20, most_steps=20, label_steps=0),
)
TRAIN, VALIDATION = np.arange(140), np.arange(140, 200)


def features_of(rows: int, mode: PairMode | None = None) -> Features:
    """Features of random texts of 1 to 5 tokens, or of pairs of them."""
    generator = torch.Generator().manual_seed(1)
    lengths = np.arange(2 * rows) % 5 + 1
    codec = Float16Codec(LAYERS, WIDTH)
    stored = codec.encode(torch.randn(int(lengths.sum()), LAYERS, WIDTH, generator=generator)).numpy()
    where = np.zeros(2 * rows, np.int64), lengths.cumsum() - lengths, lengths, np.zeros(2 * rows, bool)
    texts = TextFeatures(StoredRows([stored], *where, codec), torch.float32)
    first, second = torch.arange(2 * rows).chunk(2)
    return PairFeatures(texts, first, second) if mode == "separate" else texts.selected(first)


def mean_of_tokens(features: Features) -> np.ndarray:
    """The mean of one number over the tokens of each row's first text, which light heads read as it is."""
    values, mask = features.batch(torch.arange(len(features)))
    values, mask = values[: len(features)], mask[: len(features)]
    return ((values[:, :, 0, 0] * mask).sum(1) / mask.sum(1)).numpy()


def targets_of(kind: KindName, features: Features) -> np.ndarray:
    numbers = mean_of_tokens(features)
    ids = np.digitize(numbers, np.quantile(numbers, [1 / 3, 2 / 3]))
    if kind == "multi":
        return np.eye(3, dtype=np.float32)[ids]
    if kind in ("bounded", "unbounded"):
        return ((numbers - numbers.min()) / np.ptp(numbers)).astype(np.float32)
    return ids


def trained(kind: KindName, features: Features, **changes: object) -> FitResult:
    job = HeadJob(kind_of(kind), targets_of(kind, features), replace(RECIPE, **changes))  # type: ignore[arg-type]
    return fit_heads(features, [job], train=TRAIN, validation=VALIDATION)[0]


@pytest.mark.parametrize("mode", [None, "separate"])
@pytest.mark.parametrize("kind", ["single", "ordinal", "multi", "bounded", "unbounded"])
def test_it_knows_what_the_others_have_not_learned(
    kind: KindName, mode: PairMode | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = features_of(200, mode)
    whole = trained(kind, features)
    monkeypatch.setattr(members, "MOST_NUMBERS", 1)
    alone = trained(kind, features)
    for result, size in ((whole, 1), (alone, 0)):
        assert isinstance(result.head, PooledHead) and isinstance(result.chosen_head, PooledHead)
        assert (result.head.light is not None) == bool(size) and result.head.members == 6 + size
        assert torch.isfinite(result.head.member_weights).all()
        found = logits_of(result.chosen_head, features, torch.from_numpy(VALIDATION))
        np.testing.assert_allclose(found, result.validation_logits, rtol=1e-3, atol=1e-3)
    assert isinstance(whole.head, PooledHead) and isinstance(whole.chosen_head, PooledHead)
    assert whole.validation.score > alone.validation.score
    # Both heads have one, that of the refitted head from all rows.
    first, second = whole.head.light, whole.chosen_head.light
    assert first is not None and second is not None and not torch.equal(first.label_rows, second.label_rows)
    assert torch.equal(whole.head.member_weights, whole.chosen_head.member_weights)


def test_no_light_member_where_it_cannot_be_weighed_or_fitted() -> None:
    assert fits_light_member(8192, 1000) and not fits_light_member(8193, 2) and not fits_light_member(8192, 1001)
    features = features_of(200)
    targets = targets_of("multi", features)
    few = fit_heads(
        features, [HeadJob(kind_of("multi"), targets, RECIPE)], train=np.arange(181), validation=np.arange(181, 200)
    )[0]
    weights = replace(RECIPE.training, label_weights="balanced")
    (weighed,) = fit_heads(
        features,
        [HeadJob(kind_of("multi"), targets, replace(RECIPE, training=weights))],
        train=TRAIN,
        validation=VALIDATION,
    )
    for result in (few, weighed):
        assert isinstance(result.head, PooledHead) and result.head.light is None
    single = trained("single", features, training=weights)
    assert isinstance(single.head, PooledHead) and single.head.light is not None


def test_heads_of_several_seeds_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(200)
    fitted: list[int] = []
    plain = light.fit_light

    def counted(features: Features, jobs: list[object], **given: object) -> object:
        fitted.append(len(jobs))
        return plain(features, jobs, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(fit, "fit_light", counted)
    jobs = [HeadJob(kind_of("single"), targets_of("single", features), RECIPE, seed) for seed in range(3)]
    # One object, as the seeds of a training have.
    jobs = [replace(job, targets=jobs[0].targets) for job in jobs]
    results = fit_heads(features, jobs, train=TRAIN, validation=VALIDATION)
    assert fitted == [1]
    heads = [result.head for result in results if isinstance(result.head, PooledHead)]
    together = PooledHead.joined(heads)
    rows = torch.arange(20)
    mean = np.mean([logits_of(head, features, rows) for head in heads], axis=0)
    np.testing.assert_allclose(logits_of(together, features, rows), mean, rtol=1e-4, atol=1e-4)
    assert len(heads) == 3 and together.members == 3 * 6 + 1


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize(
    ("labels", "rank", "exact"), [(2, 2, True), (6, 6, True), (7, 6, True), (40, 4, True), (40, 40, False)]
)
def test_of_many_labels_the_strongest_directions_are_kept(kind: KindName, labels: int, rank: int, exact: bool) -> None:
    torch.manual_seed(0)
    features = features_of(60)
    rows = torch.randn(labels, rank) @ torch.randn(rank, 3 * LAYERS * WIDTH)
    if not exact:
        # Six directions are far stronger than all others.
        rows = 0.01 * rows + torch.randn(labels, 6) @ torch.randn(6, 3 * LAYERS * WIDTH)
    # Far from 0, where the rounding of rows would add up.
    bias, center = torch.randn(labels), 300 + torch.randn(3 * LAYERS * WIDTH)
    fitted = LightHead.fitted(rows, bias, center, layers=LAYERS, width=WIDTH, pair_mode=None)
    target = kind_of(kind, labels)
    member = light_member(fitted, center, target, 6)
    assert len(member.light.label_bias) == light_width(target, 6) == min(labels - (kind == "single"), 6)
    text = center + torch.randn(50, len(center))
    numbers = member.light.match(text)
    found = 0.5 * (numbers @ member.rows[:, : numbers.shape[1]].T + member.bias)
    expected = 0.5 * fitted.match(text)
    if kind == "single":
        # What all labels share changes no answer.
        found, expected = (logits - logits.mean(1, keepdim=True) for logits in (found, expected))
    assert (found - expected).square().mean().sqrt() < (1e-3 if exact else 0.05) * expected.std()
    # As part of a head that it makes up alone.
    head = build_head(RECIPE.head, labels=labels, layers=LAYERS, width=WIDTH).eval()
    assert isinstance(head, PooledHead)
    whole = member.added_to(head, 0.5).with_group_weights([0.0, 0.0, 0.0, 1.0])
    alone = 0.5 * member.logits(features, torch.arange(len(features)))
    np.testing.assert_allclose(logits_of(whole, features), alone, rtol=1e-3, atol=1e-2 * float(expected.std()))


def test_a_member_of_few_numbers_of_a_text() -> None:
    """The label space is wider than what describes a text."""
    torch.manual_seed(0)
    size = 3 * LAYERS * WIDTH
    fitted = LightHead.fitted(
        torch.randn(60, size), torch.zeros(60), torch.zeros(size), layers=LAYERS, width=WIDTH, pair_mode=None
    )
    member = light_member(fitted, torch.zeros(size), kind_of("multi", 60), 55)
    assert member.rows.shape == (60, 55) and len(member.light.label_bias) == size
    text = torch.randn(9, size)
    torch.testing.assert_close(
        member.light.match(text) @ member.rows[:, :size].T, fitted.match(text), rtol=1e-2, atol=2e-2
    )


def test_validation_is_of_the_head_that_is_kept_where_labels_are_many() -> None:
    features = features_of(200)
    numbers = mean_of_tokens(features)
    ids = np.digitize(numbers, np.quantile(numbers, np.linspace(0, 1, 21)[1:-1]))
    (result,) = fit_heads(features, [HeadJob(kind_of("single", 20), ids, RECIPE)], train=TRAIN, validation=VALIDATION)
    assert isinstance(result.chosen_head, PooledHead) and result.chosen_head.config.light_width == 6
    found = logits_of(result.chosen_head, features, torch.from_numpy(VALIDATION))
    np.testing.assert_allclose(found, result.validation_logits, rtol=1e-3, atol=1e-3)


def test_a_light_member_that_cannot_be_fitted_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(200)

    def fail(*_: object, **__: object) -> None:
        torch.linalg.cholesky(torch.zeros(2, 2))

    monkeypatch.setattr(fit, "fit_light", fail)
    result = trained("single", features)
    assert isinstance(result.head, PooledHead) and result.head.light is None
    assert result.refitted and not result.interrupted


def test_ctrl_c_while_the_light_member_is_fitted_keeps_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(200)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "fit_light", interrupt)
    result = trained("single", features)
    assert isinstance(result.head, PooledHead) and result.head.light is None
    assert result.refitted and result.interrupted


def test_heads_with_and_without_one_are_not_joined() -> None:
    heads = [
        build_head(PooledConfig(width=6, light_width=count), labels=3, layers=LAYERS, width=WIDTH) for count in (3, 0)
    ]
    with pytest.raises(ValueError, match="some of the heads have a light member"):
        PooledHead.joined([head for head in heads if isinstance(head, PooledHead)])


def test_a_label_comes_and_goes() -> None:
    features = features_of(200)
    head = trained("single", features).head
    assert isinstance(head, PooledHead)
    row, bias = torch.randn(head.members, head.match_width), torch.randn(head.members)
    grown = head.with_label(row, bias)
    logits = logits_of(grown, features)
    np.testing.assert_allclose(logits[:, :3], logits_of(head, features), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits_of(grown.without_label(0), features), logits[:, 1:], rtol=1e-5, atol=1e-5)


def test_the_ratio_of_temperatures() -> None:
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=(4000, 3))).float()
    truth = (logits.numpy() + generator.gumbel(size=(4000, 3))).argmax(1)
    target = SingleLabel(LabelSet(("a", "b", "c")))
    # Four times too sure, and half as sure as they should be.
    assert temperature_ratio(target, 0.5 * logits, 4 * logits, truth) == pytest.approx(1 / 8, rel=0.02)


def test_the_light_member_counts_no_more_than_all_others_together() -> None:
    assert light_weight(0.2, [0.1, 0.0, 0.3]) == 0.2
    assert light_weight(9.0, [0.1, 0.0, 0.3]) == pytest.approx(0.4)
    # If they know nothing, it is all that there is.
    assert light_weight(0.2, [0.0, 0.0, 0.0]) == 0.2

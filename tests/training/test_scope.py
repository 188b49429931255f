"""Out-of-scope scores: their parts compared with the formulas written out, and what is in and out of scope."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kinds import kind_of
from tests.pools import of_numbers
from ytuning.errors import InputError
from ytuning.features.features import Features, PairFeatures, TextFeatures
from ytuning.heads.light import LightHead
from ytuning.heads.pooled import PooledConfig, build_head
from ytuning.heads.scope import JointScopes, LabelGaussians, ScopeModel, directions, label_share
from ytuning.training.fit import logits_of
from ytuning.training.light import LightJob, fit_light
from ytuning.training.scope import (
    ScopeTexts,
    check_out_of_scope,
    fit_scope,
    new_prototypes,
    share_out_of_scope,
    text_directions,
)

LAYERS, WIDTH, LABELS = 2, 16, 5
ROWS, TRAIN, VALIDATION = 600, np.arange(0, 400), np.arange(400, 600)


def draw(centers: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pools (count, 3 L, D) of texts around the centers (C, 3 L D) of labels, and the labels' ids (count,)."""
    chooser = np.random.default_rng(seed)
    ids = chooser.integers(0, len(centers), count)
    return (centers[ids] + 0.5 * chooser.normal(size=(count, centers.shape[1]))).reshape(count, -1, WIDTH), ids


def features_of(values: np.ndarray) -> Features:
    return of_numbers(torch.from_numpy(values).float(), np.zeros(len(values), bool))


CENTERS = np.random.default_rng(0).normal(size=(LABELS + 1, 3 * LAYERS * WIDTH))


@pytest.fixture(scope="module")
def known() -> tuple[Features, np.ndarray]:
    values, ids = draw(CENTERS[:LABELS], ROWS, 1)
    return features_of(values), ids


@pytest.fixture(scope="module")
def head(known: tuple[Features, np.ndarray]) -> LightHead:
    features, ids = known
    job = LightJob(kind_of("single", LABELS), ids, VALIDATION)
    return fit_light(features, [job], rows=np.arange(ROWS))[0].chosen_head


def fitted(known: tuple[Features, np.ndarray], head: LightHead, **options: Any) -> ScopeModel:
    features, ids = known
    model = fit_scope(
        ScopeTexts(features, LAYERS),
        kind_of("single", LABELS),
        ids,
        train=TRAIN,
        validation=VALIDATION,
        head=head,
        validation_logits=logits_of(head, features, torch.from_numpy(VALIDATION)),
        **options,
    )
    assert model is not None
    return model


def scores_of(model: ScopeModel, head: LightHead, features: Features) -> Tensor:
    texts = text_directions(features, LAYERS, np.arange(len(features)))
    return model.scores(texts, torch.from_numpy(logits_of(head, features)))


# --- the parts ------------------------------------------------------------------------------------------------------


def test_directions_are_those_of_the_mean_token() -> None:
    values, mask = torch.randn(3, 4, 1, WIDTH), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    given = directions(values, mask, None)
    for row in range(3):
        mean = values[row, mask[row], 0].mean(0)
        torch.testing.assert_close(given[row], mean / mean.norm())
    both = directions(torch.cat((values, 2 * values)), torch.cat((mask, mask)), "separate")
    torch.testing.assert_close(both, torch.cat((given, given), 1))


def test_directions_come_from_the_last_state_of_pools_and_of_tokens(known: tuple[Features, np.ndarray]) -> None:
    features, _ = known
    rows = np.array([5, 0, 17])
    values, _ = features.batch(torch.from_numpy(rows))
    means = values[:, 0, LAYERS - 1]
    expected = means / means.norm(dim=1, keepdim=True)
    torch.testing.assert_close(text_directions(features, LAYERS, rows), expected)
    assert isinstance(features, TextFeatures)
    pairs = PairFeatures(features, torch.tensor([0, 1]), torch.tensor([2, 0]))
    single = text_directions(features, LAYERS, np.arange(3))
    expected = torch.cat((single[[0, 1]], single[[2, 0]]), 1)
    torch.testing.assert_close(text_directions(pairs, LAYERS, np.arange(2)), expected)


def test_the_distance_of_logits_is_relative_to_all_rows(known: tuple[Features, np.ndarray], head: LightHead) -> None:
    features, ids = known
    model = fitted(known, head)
    assert model.gaussians is not None
    logits = logits_of(head, features).astype(np.float64)
    train, truth = logits[TRAIN], ids[TRAIN]
    means = np.stack([train[truth == label].mean(0) for label in range(LABELS)])

    def inverse(centered: np.ndarray) -> np.ndarray:
        share = max(0.02, LABELS / (LABELS + len(centered)))
        covariance = centered.T @ centered / len(centered)
        size = np.trace(covariance) / LABELS
        return np.linalg.inv((1 - share) * covariance + share * size * np.eye(LABELS))

    within, whole = inverse(train - means[truth]), inverse(train - train.mean(0))
    for row in range(20):
        apart = logits[row] - means
        far = logits[row] - train.mean(0)
        expected = min(one @ within @ one for one in apart) - far @ whole @ far
        given = model.gaussians.distances(torch.from_numpy(logits[row : row + 1]).float())
        assert float(given) == pytest.approx(expected, rel=1e-3, abs=0.01)


def test_the_score_adds_both_distances_in_standard_units() -> None:
    texts, prototypes = torch.randn(7, 6), torch.randint(-127, 128, (4, 6), dtype=torch.int8)
    logits, standard = torch.randn(7, 4), torch.tensor([[0.3, 0.1], [-2.0, 0.5]], dtype=torch.float64)
    model = ScopeModel(prototypes, standard, temperature=0.7, labels=4)
    share = 2 / 22
    for row in range(7):
        cosines = [
            float(texts[row] @ one.float()) / float(texts[row].norm() * one.float().norm()) for one in prototypes
        ]
        apart = (1 - max(cosines) - 0.3) / 0.1
        energy = -math.log(sum(math.exp(value / 0.7) for value in logits[row].tolist()))
        expected = math.sqrt(1 - share) * apart + math.sqrt(share) * (energy + 2) / 0.5
        assert float(model.scores(texts, logits)[row]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert label_share(2) == label_share(1) == label_share(0) == 0


def test_models_of_several_tasks_score_together_as_alone() -> None:
    chooser = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chooser)

    def model(prototypes: int, labels: int, *, gaussians: bool) -> ScopeModel:
        square = (random(labels, labels), random(labels, labels), random(labels), random(labels, labels))
        return ScopeModel(
            (40 * random(prototypes, 8)).to(torch.int8),
            random(2, 2).double().abs() + 0.5,
            temperature=1.5,
            labels=labels,
            gaussians=LabelGaussians(*square) if gaussians else None,
        )

    models = [
        model(3, 4, gaussians=True), model(5, 4, gaussians=False), model(1, 4, gaussians=True),
        model(4, 6, gaussians=True), replace(model(2, 4, gaussians=False), labels=0),
    ]  # fmt: skip
    texts, logits = random(9, 8), [random(9, 6 if number == 3 else 4) for number in range(5)]
    together = JointScopes(models).scores(texts, logits)
    for one, own, given in zip(models, logits, together, strict=True):
        torch.testing.assert_close(given, one.scores(texts, own))


# --- what is in scope -----------------------------------------------------------------------------------------------


def test_texts_of_an_unknown_label_are_out_of_scope(known: tuple[Features, np.ndarray], head: LightHead) -> None:
    model = fitted(known, head, share=0.05)
    assert model.threshold is not None
    fresh, _ = draw(CENTERS[:LABELS], 1000, 2)
    others, _ = draw(CENTERS[LABELS:], 200, 3)
    inside, outside = (scores_of(model, head, features_of(values)) for values in (fresh, others))
    # 0.05 less or more three standard errors for the 200 rows of the threshold.
    assert 0 < float((inside > model.threshold).float().mean()) < 0.1
    assert float((outside > model.threshold).float().mean()) > 0.9
    assert abs(float(inside.mean())) < 0.2 and 0.7 < float(inside.std()) < 1.4


@pytest.mark.parametrize("share", [0.005, 0.05, 0.2, 0.5])
def test_the_threshold_holds_for_the_share_of_exchangeable_texts(
    share: float, known: tuple[Features, np.ndarray], head: LightHead
) -> None:
    model = fitted(known, head, share=share)
    scores = scores_of(model, head, known[0])[VALIDATION].sort(descending=True).values
    # The next text is equally likely to take each of the 201 places among the scores.
    place = math.floor(share * 201)
    assert model.threshold == pytest.approx(float(scores[place - 1]), abs=1e-5)
    logits = logits_of(head, known[0], torch.from_numpy(VALIDATION))
    given = share_out_of_scope(model, ScopeTexts(known[0], LAYERS), VALIDATION, logits)
    assert given is not None and abs(given - (place - 1) / 200) <= 1 / 200


@pytest.mark.parametrize("kind", ["single", "ordinal", "multi", "bounded"])
def test_every_kind_has_a_score(kind: Any, known: tuple[Features, np.ndarray]) -> None:
    features, ids = known
    target = kind_of(kind)
    targets = {"multi": np.eye(3, dtype=np.float32)[ids % 3], "bounded": (ids % 3 / 2).astype(np.float32)}.get(
        kind, ids % 3
    )
    light = fit_light(features, [LightJob(target, targets, VALIDATION)], rows=np.arange(ROWS))[0].chosen_head
    logits = logits_of(light, features)
    model = fit_scope(
        ScopeTexts(features, LAYERS), target, targets, train=TRAIN, validation=VALIDATION, head=light,
        validation_logits=logits[VALIDATION],
    )  # fmt: skip
    assert model is not None and model.threshold is None
    assert model.labels == (3 if kind in ("single", "ordinal") else 0)
    assert bool(scores_of(model, light, features).isfinite().all())
    assert share_out_of_scope(model, ScopeTexts(features, LAYERS), VALIDATION, logits[VALIDATION]) is None


def test_prototypes_do_not_depend_on_the_order_of_rows(known: tuple[Features, np.ndarray], head: LightHead) -> None:
    features, ids = known
    target, logits = kind_of("single", LABELS), logits_of(head, features)[VALIDATION]
    shuffled = np.random.default_rng(5).permutation(TRAIN)
    one, other = (
        fit_scope(
            ScopeTexts(features, LAYERS),
            target,
            ids,
            train=train,
            validation=VALIDATION,
            head=head,
            validation_logits=logits,
        )
        for train in (TRAIN, shuffled)
    )
    assert one is not None and other is not None
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert 48 <= len(one.prototypes) <= 100 and int(one.prototypes.abs().max()) == 127


def test_labels_in_turn_are_all_among_the_rows_that_are_looked_at(
    known: tuple[Features, np.ndarray], head: LightHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ytuning.training.scope.GAUSSIAN_ROWS", 60)
    features, ids = known
    # Every fifth training row has the same label, and so has every fifth of those.
    by_label = np.stack([np.flatnonzero(ids[TRAIN] == label)[:60] for label in range(LABELS)], 1).ravel()[:296]
    assert isinstance(features, TextFeatures)
    texts = features.selected(torch.from_numpy(np.concatenate((by_label, VALIDATION))))
    targets = np.concatenate((ids[by_label], ids[VALIDATION]))
    count = len(by_label)
    model = fit_scope(
        ScopeTexts(texts, LAYERS), kind_of("single", LABELS), targets, train=np.arange(count),
        validation=np.arange(count, count + len(VALIDATION)), head=head,
        validation_logits=logits_of(head, features)[VALIDATION],
    )  # fmt: skip
    assert model is not None and model.gaussians is not None
    # The mean of a label without rows is that of all rows.
    middle = model.gaussians.center @ model.gaussians.within
    assert all(not torch.allclose(mean, middle, atol=1e-3) for mean in model.gaussians.means)


def test_tasks_with_the_same_rows_share_what_is_read(known: tuple[Features, np.ndarray], head: LightHead) -> None:
    features, ids = known
    texts, logits = ScopeTexts(features, LAYERS), logits_of(head, features)
    torch.testing.assert_close(
        texts.light_logits(head, TRAIN[::3]), torch.from_numpy(logits[TRAIN[::3]]), rtol=1e-4, atol=1e-4
    )
    # Other rows are read anew.
    torch.testing.assert_close(texts.light_logits(head, TRAIN[:5]), torch.from_numpy(logits[:5]), rtol=1e-4, atol=1e-4)
    target = kind_of("single", LABELS)
    for _ in range(2):
        shared, alone = (
            fit_scope(
                given, target, ids, train=TRAIN, validation=VALIDATION, head=head, validation_logits=logits[VALIDATION],
                share=0.1,
            )
            for given in (texts, ScopeTexts(features, LAYERS))
        )  # fmt: skip
        assert shared is not None and alone is not None and shared.to_json() == alone.to_json()
        assert all(torch.equal(shared.tensors[name], alone.tensors[name]) for name in shared.tensors)
    assert texts.prototypes(TRAIN, 9) is texts.prototypes(TRAIN, 9) is not texts.prototypes(TRAIN[:50], 9)


def test_equal_texts_have_a_score(known: tuple[Features, np.ndarray], head: LightHead) -> None:
    features = features_of(np.ones((ROWS, 3 * LAYERS, WIDTH)))
    model = fitted((features, known[1]), head, share=0.1)
    assert bool(scores_of(model, head, features).isfinite().all())
    other = features_of(-np.ones((1, 3 * LAYERS, WIDTH)))
    assert model.threshold is not None and float(scores_of(model, head, other)) > model.threshold


def test_too_few_validation_rows_give_no_scope(known: tuple[Features, np.ndarray], head: LightHead) -> None:
    features, ids = known
    some = VALIDATION[:19]
    logits = logits_of(head, features, torch.from_numpy(some))
    target = kind_of("single", LABELS)
    assert (
        fit_scope(
            ScopeTexts(features, LAYERS), target, ids, train=TRAIN, validation=some, head=head, validation_logits=logits
        )
        is None
    )


def test_new_prototypes_are_few() -> None:
    texts = torch.nn.functional.normalize(torch.randn(100, 8), dim=1)
    assert (
        len(new_prototypes(texts)) == 10 and len(new_prototypes(texts[:4])) == 1 and len(new_prototypes(texts[:1])) == 1
    )


@pytest.mark.parametrize(
    ("share", "rows", "message"),
    [
        (0.0, 100, "out_of_scope must be a share above 0 and at most 0.5. Got 0.0 instead."),
        (0.51, 100, "out_of_scope must be a share above 0 and at most 0.5. Got 0.51 instead."),
        (math.nan, 100, "out_of_scope must be a share above 0 and at most 0.5. Got nan instead. 0.05 takes"),
        (0.05, 18, "out_of_scope 0.05 needs at least 20 validation rows. Got 18 instead."),
        (0.01, 98, "out_of_scope 0.01 needs at least 99 validation rows. Got 98 instead."),
    ],
)
def test_shares_that_cannot_be_asked_for(share: float, rows: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_out_of_scope(share, rows)
    assert message in str(caught.value)


def test_shares_that_can_be_asked_for() -> None:
    for share, rows in ((None, 0), (0.05, 20), (0.01, 99), (0.5, 20)):
        check_out_of_scope(share, rows)


# --- from a file ----------------------------------------------------------------------------------------------------


def test_parts_make_the_same_model(known: tuple[Features, np.ndarray], head: LightHead) -> None:
    model = fitted(known, head, share=0.05)
    again = ScopeModel.from_parts(model.to_json(), model.tensors, width=WIDTH, outputs=LABELS)
    assert again.to_json() == model.to_json()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in model.tensors.items())


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a number is missing": ({"labels": ...}, {}, "a scope has temperature, labels, share, threshold"),
    "a number that is none": ({"temperature": "1"}, {}, "temperature of a scope must be a number"),
    "not finite": ({"threshold": math.inf}, {}, "threshold of a scope must be a number"),
    "too large for a float": ({"temperature": 10**400}, {}, "temperature of a scope must be a number"),
    "too large for float32": ({"threshold": 1e300}, {}, "threshold of a scope must be a number"),
    "a truth value": ({"labels": True}, {}, "labels of a scope must be a number"),
    "other labels": ({"labels": 4}, {}, "labels of a scope must be 0 or 5"),
    "temperature 0": ({"temperature": 0}, {}, "its temperature above 0"),
    "a threshold without a share": ({"share": None}, {}, "both a share and a threshold, or neither"),
    "a share above one half": ({"share": 0.6}, {}, "the share of a scope must be above 0 and at most 0.5"),
    "no prototypes": ({}, {"prototypes": ...}, "tensors of a scope must be"),
    "prototypes of another width": ({}, {"prototypes": torch.ones(3, 2, dtype=torch.int8)}, "the scope's prototypes"),
    "no rows of prototypes": ({}, {"prototypes": torch.ones(0, WIDTH, dtype=torch.int8)}, "the scope's prototypes"),
    "prototypes of floats": ({}, {"prototypes": torch.ones(3, WIDTH)}, "the scope's prototypes has another shape"),
    "means that are not finite": ({}, {"means": torch.full((5, 5), math.nan)}, "the scope's means"),
    "a deviation of 0": ({}, {"standard": torch.zeros(2, 2, dtype=torch.float64)}, "deviations of a scope"),
    "half of the distributions": ({}, {"means": ...}, "tensors of a scope must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses_parts_that_do_not_fit(name: str, known: tuple[Features, np.ndarray], head: LightHead) -> None:
    numbers, tensors, message = WRONG[name]
    model = fitted(known, head, share=0.05)

    def changed(given: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**given, **changes}.items() if value is not ...}

    with pytest.raises(ValueError, match="scope") as caught:
        ScopeModel.from_parts(
            changed(model.to_json(), numbers), changed(model.tensors, tensors), width=WIDTH, outputs=LABELS
        )
    assert message in str(caught.value)
    foreign: Any
    for foreign in (None, [], "scope"):
        with pytest.raises(ValueError, match="a scope has"):
            ScopeModel.from_parts(foreign, model.tensors, width=WIDTH, outputs=LABELS)


def test_a_label_more_and_a_label_less() -> None:
    model = ScopeModel(torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 2).double(), labels=3)
    grown = model.with_label(torch.zeros(1, 4, dtype=torch.int8))
    assert (grown.labels, len(grown.prototypes)) == (4, 3)
    assert (grown.without_label().labels, model.without_label().labels) == (3, 0)
    assert replace(model, labels=0).with_label(model.prototypes).labels == 0


def test_the_head_of_a_scope_is_a_light_one_or_its_energy_counts(known: tuple[Features, np.ndarray]) -> None:
    features, ids = known
    logits = np.random.default_rng(0).normal(size=(len(VALIDATION), LABELS)).astype(np.float32)
    stepwise = build_head(PooledConfig(), labels=LABELS, layers=LAYERS, width=WIDTH)
    model = fit_scope(ScopeTexts(features, LAYERS), kind_of("single", LABELS), ids, train=TRAIN, validation=VALIDATION,
        head=stepwise, validation_logits=logits, temperature=2.0,
    )  # fmt: skip
    assert model is not None and model.gaussians is None
    expected = -torch.logsumexp(torch.from_numpy(logits) / 2, 1)
    given = model.label_distances(torch.from_numpy(logits))
    assert given is not None
    torch.testing.assert_close(given, expected)

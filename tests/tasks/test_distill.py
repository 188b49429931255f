"""A light head learns from texts without labels what the default head beside it says of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import WORDS
from ytuning.data.dataset import Dataset, from_lists
from ytuning.data.labels import Kind
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import DataError, InputError, StoreError
from ytuning.features.features import live_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LightHead, PooledConfig
from ytuning.progress import Progress
from ytuning.tasks import choose_recipe, distill
from ytuning.tasks.choose_recipe import train_cheapest, train_tasks_cheapest
from ytuning.tasks.distill import distill_light_head
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.tasks.train_many import train_tasks
from ytuning.training.fit import logits_of
from ytuning.training.light import WHOLE
from ytuning.training.recipes import Recipe, TrainingConfig, preset

THEMES = {"card": ["card", "stolen", "lost"], "login": ["login", "password", "email"]}
RECIPES = {
    "light": preset("light"),
    "default": Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=120, most_steps=120, label_steps=0)),
}


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Overlook it."""

    def say(self, message: str) -> None:
        self.said.append(message)


def made(rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Different texts, and which theme most of their words are of."""
    chooser, texts = random.Random(seed), dict[str, str]()
    while len(texts) < rows:
        label = chooser.choice(sorted(THEMES))
        words = chooser.choices(WORDS, k=chooser.randint(1, 6)) + chooser.choices(THEMES[label], k=2)
        chooser.shuffle(words)
        texts.setdefault(" ".join(words), label)
    return list(texts), list(texts.values())


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(autouse=True)
def never_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default head is always kept."""
    monkeypatch.setattr(choose_recipe, "clearly_lower", lambda *_, **__: True)


def learn_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has learned from more texts always looks better."""
    falling = itertools.count(0, -1)
    monkeypatch.setattr(distill, "_gap", lambda *_: next(falling))


def labelled(kind: Kind = "single", rows: int = 80) -> Dataset:
    texts, labels = made(rows, 0)
    if kind == "multi":
        pairs = zip(texts, labels, strict=True)
        return from_lists(texts, [[label, "late"] if "late" in text else [label] for text, label in pairs])
    return from_lists(texts, labels, kind=kind)


def unlabelled(texts: Sequence[str]) -> Dataset:
    return from_lists(texts, None)


def both(rows: Dataset, encoder: Encoder, store: FeatureStore, **options: object) -> tuple[Trained, Trained]:
    """The trainings of a default and of a light head."""
    default, light = (
        train_task(rows, encoder, store, RECIPES[name], options=TrainOptions(**options))  # type: ignore[arg-type]
        for name in ("default", "light")
    )
    return default, light


@pytest.mark.parametrize("kind", ["single", "ordinal", "multi"])
def test_it_agrees_more_with_the_default_head_on_new_texts(kind: Kind, encoder: Encoder) -> None:
    store, heard = FeatureStore(), Heard()
    order = {"label_order": ("card", "login")} if kind == "ordinal" else {}
    default, light = both(labelled(kind), encoder, store, codec="fp16", **order)
    others, new = made(600, 1)[0], made(300, 2)[0]
    learned, sentence = distill_light_head(default, light, unlabelled(others).inputs, encoder, store, heard)
    assert sentence.startswith("task 'task': the light head has also learned from ")

    features = live_inputs([(text, None) for text in new], encoder, states=default.task.states, pair_mode=None)

    def answers(one: Trained) -> np.ndarray:
        return one.task.calibration.answers(one.task.target, logits_of(one.task.head, features)).values

    before, after = ((answers(one) == answers(default)).mean() for one in (light, learned))
    assert after > before
    judged = learned.judged["validation"]
    assert judged.truth is light.judged["validation"].truth and len(judged.logits) == len(judged.truth)
    # Its validation figures are of a head that has learned from no validation row.
    held = live_inputs(judged.data.inputs, encoder, states=default.task.states, pair_mode=None)
    np.testing.assert_allclose(judged.logits, logits_of(judged.head, held), rtol=1e-2, atol=2e-2)


def test_texts_that_say_nothing_new_are_left_out(
    encoder: Encoder, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_always(monkeypatch)
    # A tenth is held out, and fewer than 20 rows give no scope.
    rows, store, heard = labelled(rows=240), FeatureStore(), Heard()
    default, light = both(rows, encoder, store)
    new = [text for text in made(100, 1)[0] if (text, None) not in rows.inputs][:30]
    known = [text for text, _ in rows.inputs]
    encoded.clear()
    given = [*unlabelled([*new, " ", *known, *new]).inputs, ("a card", " ")]
    learned, sentence = distill_light_head(default, light, given, encoder, store, heard)
    assert "has also learned from 30 texts without labels" in sentence and sum(encoded) == 30
    assert learned.task.scope is not None and light.task.scope is not None
    again, _ = distill_light_head(default, light, unlabelled(new).inputs, encoder, store, heard)
    assert torch.equal(again.task.head.label_rows, learned.task.head.label_rows)  # type: ignore[arg-type]
    same, sentence = distill_light_head(default, light, unlabelled(known).inputs, encoder, store, heard)
    assert same is light and "none is new" in sentence
    # There is room for ten.
    monkeypatch.setattr(distill, "MOST_ROWS", len(rows) + 10)
    _, sentence = distill_light_head(default, light, given, encoder, store, heard)
    assert "10 texts without labels" in sentence
    monkeypatch.setattr(distill, "MOST_ROWS", len(rows))
    full, _ = distill_light_head(default, light, given, encoder, store, heard)
    assert full is light


def test_auto_puts_it_beside_the_default_head(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_always(monkeypatch)
    heard, others = Heard(), unlabelled(made(100, 1)[0])
    plain = train_cheapest(labelled(), encoder, FeatureStore(), RECIPES)
    options = TrainOptions(release_encoder=True)
    trained = train_cheapest(
        labelled(), encoder, FeatureStore(), RECIPES, unlabelled=others, options=options, progress=heard
    )
    assert trained.task.cascade is not None and plain.task.cascade is not None
    assert not torch.equal(trained.task.cascade.head.label_rows, plain.task.cascade.head.label_rows)
    assert [said for said in heard.said if "has also learned from" in said]
    (one,) = train_tasks_cheapest({"theme": labelled()}, encoder, FeatureStore(), RECIPES, unlabelled=others).values()
    assert one.task.cascade is not None
    assert torch.equal(one.task.cascade.head.label_rows, trained.task.cascade.head.label_rows)


def test_texts_that_make_it_worse_are_not_used(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore()
    default, light = both(labelled(rows=240), encoder, store)
    gaps = iter([0.2, 0.3])
    monkeypatch.setattr(distill, "_gap", lambda *_: next(gaps))
    others = unlabelled(made(10, 1)[0]).inputs
    same, sentence = distill_light_head(default, light, others, encoder, store, Heard())
    assert same is light and "does not learn from " in sentence
    assert sentence.endswith("as labels, is 0.3000 with them and 0.2000 without")


def test_ctrl_c_keeps_both_heads_and_ends_all_lessons(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stop(*_: object, **__: object) -> None:
        asked.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "stored_inputs", stop)
    others, tasks = unlabelled(made(10, 1)[0]), {"one": labelled(), "other": labelled()}
    trained = train_tasks_cheapest(tasks, encoder, FeatureStore(), RECIPES, unlabelled=others)
    assert len(asked) == 1
    assert all(one.task.cascade is not None and one.fit.interrupted for one in trained.values())


def test_a_store_that_fails_costs_no_head(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(distill, "stored_inputs", fail)
    heard, others = Heard(), unlabelled(made(10, 1)[0])
    trained = train_cheapest(labelled(), encoder, FeatureStore(), RECIPES, unlabelled=others, progress=heard)
    assert trained.task.cascade is not None and not trained.fit.interrupted
    assert any("has not learned from texts without labels: the disk is full" in said for said in heard.said)


def test_validation_rows_may_come_in_any_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks put rows together in the order of their texts, and judge them in that of the data set."""
    learn_always(monkeypatch)
    order = random.Random(0).sample(range(240), 240)
    rows, store = labelled(rows=240), FeatureStore()
    trained = {
        name: train_tasks({"theme": rows.select(order)}, encoder, store, recipe, options=TrainOptions(codec="fp16"))
        for name, recipe in RECIPES.items()
    }
    default, light = (trained[name]["theme"] for name in ("default", "light"))
    others = unlabelled(made(100, 1)[0]).inputs
    learned, _ = distill_light_head(default, light, others, encoder, store, Heard())
    judged = learned.judged["validation"]
    held = live_inputs(judged.data.inputs, encoder, states=learned.task.states, pair_mode=None)
    assert judged.head is not None
    np.testing.assert_allclose(judged.logits, logits_of(judged.head, held), rtol=1e-2, atol=2e-2)
    assert learned.reports["validation"].metrics["accuracy"] > 0.7


def test_shares_have_the_mean_of_the_probabilities(encoder: Encoder) -> None:
    """A label that is improbable in each row is not forgotten, and a certain one has all of a row."""
    default, _ = both(labelled("multi"), encoder, FeatureStore())
    logits = np.full((20_000, 3), -7.0, np.float32)
    logits[:, 1] = 300
    calibration = replace(default.task.calibration, temperature=1.0, smoothing=0.0)
    default = replace(default, task=replace(default.task, calibration=calibration))
    shares = distill._shares(default, logits)
    assert shares.dtype == np.int8 and (shares[:, 1] == WHOLE).all()
    rare = 1 / (1 + np.exp(7.0))
    np.testing.assert_allclose(shares[:, [0, 2]].mean(0) / WHOLE, [rare, rare], rtol=0.1)


def test_texts_without_labels_are_not_used_where_the_light_head_is_kept(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_recipe, "clearly_lower", lambda *_, **__: False)
    heard, others = Heard(), unlabelled(made(10, 1)[0])
    trained = train_cheapest(labelled(), encoder, FeatureStore(), RECIPES, unlabelled=others, progress=heard)
    assert isinstance(trained.task.head, LightHead)
    assert any("are not used, because the light head is kept" in said for said in heard.said)


def test_what_is_told_of_a_run_includes_it(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_always(monkeypatch)
    others = unlabelled(made(100, 1)[0])
    trained = train_cheapest(labelled(), encoder, FeatureStore(), RECIPES, unlabelled=others)
    assert trained.task.training["auto"]["unlabelled"] == len(set(made(100, 1)[0]) - set(made(80, 0)[0]))
    default, light = both(labelled(), encoder, FeatureStore())
    learned, _ = distill_light_head(default, light, others.inputs, encoder, FeatureStore(), Heard())
    assert "light" not in learned.task.training and learned.fit.head is learned.task.head
    assert set(learned.seconds) == {"encode", "train"}


def test_test_rows_are_no_texts_to_learn_from(encoder: Encoder) -> None:
    texts, labels = made(100, 1)
    store = FeatureStore()
    default, light = (
        train_task(labelled(), encoder, store, RECIPES[name], test=from_lists(texts, labels))
        for name in ("default", "light")
    )
    same, sentence = distill_light_head(default, light, unlabelled(texts).inputs, encoder, store, Heard())
    assert same is light and "none is new" in sentence
    assert distill_light_head(default, light, [], encoder, store, Heard())[0] is light


def test_a_scale_has_no_cascade_and_learns_nothing(encoder: Encoder) -> None:
    texts, labels = made(80, 0)
    rows = from_lists(texts, [len(text) / 4 for text in texts], kind="regression")
    store = FeatureStore()
    default, light = both(rows, encoder, store)
    same, sentence = distill_light_head(default, light, unlabelled(made(10, 1)[0]).inputs, encoder, store, Heard())
    assert same is light and sentence.endswith("because there is no cascade") and labels


def test_a_precision_that_is_out_of_reach_leaves_the_head_as_it_was(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("no confidence gives the precision")

    store = FeatureStore()
    default, light = both(labelled(), encoder, store)
    monkeypatch.setattr(distill, "fit_calibration", fail)
    others = unlabelled(made(10, 1)[0]).inputs
    same, sentence = distill_light_head(default, light, others, encoder, store, Heard(), abstain_at=0.9)
    assert same is light and "stays as it was" in sentence


def test_rows_of_another_form_and_one_recipe_are_refused(encoder: Encoder) -> None:
    pairs = from_lists(["a card"], None, ["my card"])
    with pytest.raises(DataError, match="are pairs"):
        train_cheapest(labelled(), encoder, FeatureStore(), RECIPES, unlabelled=pairs)
    only = {"default": RECIPES["default"]}
    with pytest.raises(InputError, match="unlabelled= needs preset='auto'"):
        train_cheapest(labelled(), encoder, FeatureStore(), only, unlabelled=unlabelled(["a card"]))

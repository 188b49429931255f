"""Preset auto: the cheapest head that is no worse on validation rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import WORDS
from ytuning.data.dataset import Dataset, from_lists
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError
from ytuning.features.store import FeatureStore
from ytuning.heads.light import LightHead
from ytuning.heads.pooled import PooledConfig, PooledHead
from ytuning.progress import Progress
from ytuning.tasks.choose_recipe import train_cheapest, train_tasks_cheapest
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.training import light, members
from ytuning.training.recipes import Recipe, TrainingConfig, preset, preset_recipes

Toy = tuple[list[str], list[str]]
Train = Callable[..., Trained]


class Heard(Progress):
    """Keeps what is said, and stops at a stage of a training if it is told to."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.said: list[str] = []
        self._stop_at = stop_at

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage == self._stop_at:
            raise KeyboardInterrupt

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(autouse=True)
def without_light_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default heads know only what they have learned in their steps."""
    monkeypatch.setattr(members, "MOST_NUMBERS", 0)


def recipes(steps: int) -> dict[str, Recipe]:
    """The recipes of auto, with a small default head that learns for so many steps."""
    short = TrainingConfig(fewest_steps=steps, most_steps=steps, label_steps=0)
    return {"light": preset("light"), "default": Recipe(PooledConfig(width=16), short)}


def halves(toy: Toy) -> tuple[Dataset, Dataset]:
    """Training rows and as many validation rows; of fewer than 20 nothing is clear."""
    rows = from_lists(*toy)
    return rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2))


def ordered_words() -> Dataset:
    """Rows whose label is which of two words comes first: pools of a random encoder hardly tell."""
    chooser = random.Random(0)
    texts, labels = [], []
    for number in range(240):
        pair = ["card", "login"] if number % 2 else ["login", "card"]
        filler = chooser.choices([word for word in WORDS if word not in pair], k=2)
        texts.append(" ".join([filler[0], pair[0], filler[1], pair[1]]))
        labels.append(pair[0])
    return from_lists(texts, labels)


def test_the_light_head_stays_where_it_is_as_good(toy_rows: Toy, encoder: Encoder) -> None:
    heard = Heard()
    trained = train_cheapest(from_lists(*toy_rows), encoder, FeatureStore(), recipes(5), progress=heard)
    assert isinstance(trained.task.head, LightHead) and not trained.fit.interrupted
    record = trained.task.training["auto"]
    assert record["preset"] == "light" and set(record["tried"]) == {"light", "default"}
    assert record["tried"]["light"]["loss"] < record["tried"]["default"]["loss"]
    assert (
        len(
            [
                message
                for message in heard.said
                if "preset light is kept. Calibrated validation loss and score: " in message
            ]
        )
        == 1
    )
    # The second training found the texts stored.
    assert trained.cache.misses == len(set(toy_rows[0])) and trained.cache.hits == 0


def test_a_clearly_better_head_is_taken(toy_rows: Toy, encoder: Encoder) -> None:
    # The order is turned round, so that the head that hardly learned is the cheap one.
    turned = dict(reversed(recipes(1).items()))
    train, validation = halves(toy_rows)
    trained = train_cheapest(train, encoder, FeatureStore(), turned, validation=validation)
    assert isinstance(trained.task.head, LightHead) and trained.task.training["auto"]["preset"] == "light"
    alone = train_task(train, encoder, FeatureStore(), preset("light"), validation=validation)
    assert trained.reports["validation"].metrics == alone.reports["validation"].metrics


def test_a_light_head_that_is_not_taken_stays_beside_the_default_head(
    toy_rows: Toy, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So strong a regularisation leaves little of what it could know.
    monkeypatch.setattr(light, "STRENGTHS", (1e6,))
    heard = Heard()
    train, validation = halves(toy_rows)
    trained = train_cheapest(train, encoder, FeatureStore(), recipes(400), validation=validation, progress=heard)
    alone = train_task(train, encoder, FeatureStore(), preset("light"), validation=validation)
    cascade = trained.task.cascade
    assert isinstance(trained.task.head, PooledHead) and cascade is not None
    assert torch.equal(cascade.head.rows(), alone.task.head.rows())  # type: ignore[operator]
    assert cascade.calibration == alone.task.calibration and cascade.curve.rows == len(validation)
    (told,) = [message for message in heard.said if "in a cascade at 1%, measured on the validation set, " in message]
    assert told.startswith("task 'task': ")


def test_several_tasks_choose_each_for_itself(toy_rows: Toy, encoder: Encoder) -> None:
    words = ordered_words()
    rows = {
        "order": words,
        "topic": from_lists([text for text, _ in words.inputs], [str("my" in text) for text, _ in words.inputs]),
    }
    trained = train_tasks_cheapest(rows, encoder, FeatureStore(), recipes(5))
    assert list(trained) == ["order", "topic"]
    assert {one.task.training["auto"]["preset"] for one in trained.values()} <= {"light", "default"}
    assert all(set(one.task.training["auto"]["tried"]) == {"light", "default"} for one in trained.values())


def test_ctrl_c_in_the_second_training_keeps_the_first(toy_rows: Toy, encoder: Encoder) -> None:
    # Only heads that learn step by step are refitted so.
    heard = Heard(stop_at="refit")
    trained = train_cheapest(from_lists(*toy_rows), encoder, FeatureStore(), recipes(5), progress=heard)
    assert isinstance(trained.task.head, LightHead) and trained.fit.interrupted
    # A finished task in the folder is not replaced by it.
    assert trained.task.training["interrupted"] is True
    assert trained.task.training["auto"]["preset"] == "light"


def test_one_recipe_is_trained_as_it_is(toy_rows: Toy, encoder: Encoder) -> None:
    heard = Heard()
    only = {"default": recipes(5)["default"]}
    trained = train_cheapest(from_lists(*toy_rows), encoder, FeatureStore(), only, progress=heard)
    assert isinstance(trained.task.head, PooledHead) and "auto" not in trained.task.training and not heard.said


@pytest.mark.parametrize(("name", "expected"), [("auto", ["light", "default"]), ("paper", ["paper"])])
def test_recipes_of_a_name(name: str, expected: Sequence[str]) -> None:
    assert list(preset_recipes(name)) == expected


def test_seeds_are_for_heads_with_a_random_start(toy_rows: Toy, encoder: Encoder) -> None:
    options = TrainOptions(seeds=2)
    with pytest.raises(InputError, match="has no random start, so several seeds give the same head"):
        train_task(from_lists(*toy_rows), encoder, FeatureStore(), preset("light"), options=options)
    weak_first = dict(reversed(recipes(1).items()))
    train, validation = halves(toy_rows)
    trained = train_cheapest(train, encoder, FeatureStore(), weak_first, validation=validation, options=options)
    assert isinstance(trained.task.head, LightHead) and list(trained.by_seed) == [0]


def test_auto_is_no_single_recipe() -> None:
    with pytest.raises(InputError, match="auto is two recipes, for ytuning train and the estimators"):
        preset("auto")


def test_an_unknown_name_is_told_with_auto() -> None:
    message = r"preset must be one of 'default', 'few-shot', 'paper', 'light', 'auto'\. Got 'best' instead\."
    with pytest.raises(InputError, match=message):
        preset_recipes("best")

"""Label texts: where they come from, what they do before and during training, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ytuning.data.dataset import Dataset, from_lists
from ytuning.data.kinds import Regression, SingleLabel
from ytuning.data.label_texts import LabelTexts, describe_labels, meaningful_names, read_label_texts
from ytuning.data.labels import LabelSet
from ytuning.data.splits import split_holdout
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import DataError, InputError
from ytuning.features.features import live_features
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LabelTuningConfig, PooledConfig
from ytuning.progress import Progress
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig, preset

TARGET = SingleLabel(LabelSet(("card_arrival", "login", "refund")))
SHORT = TrainingConfig(fewest_steps=40, most_steps=40)
FEW = Recipe(LabelTuningConfig(), SHORT, (-1,))
TEXTS: LabelTexts = {"card": "the card has not arrived", "login": ["cannot log in", "password"], "refund": "money back"}


# --- reading --------------------------------------------------------------------------------------------------------


def test_names_in_words_stand_in_for_texts() -> None:
    found = describe_labels("names", TARGET)
    assert found is not None and found.texts == ["card arrival", "login", "refund"]
    assert found.labels == list(TARGET.names)
    assert describe_labels("none", TARGET) is None and describe_labels(None, TARGET) is None


def test_a_label_may_have_several_texts_and_one_without_has_its_name() -> None:
    found = describe_labels({"login": ["cannot log in", "password"]}, TARGET)
    assert found is not None
    assert list(zip(found.labels, found.texts, strict=True)) == [
        ("card_arrival", "card arrival"), ("login", "cannot log in"), ("login", "password"), ("refund", "refund"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.json", json.dumps({"login": ["cannot log in", "password"], "refund": "money back"})),
        ("texts.csv", "text,label\ncannot log in,login\nmoney back,refund\npassword,login\n"),
        ("texts.jsonl", '{"label": "login", "text": "cannot log in"}\n{"label": "login", "text": "password"}\n'
                        '{"label": "refund", "text": "money back"}\n'),
    ],
)  # fmt: skip
def test_files_of_label_texts(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    found = describe_labels(read_label_texts(tmp_path / name), TARGET)
    assert found is not None and found.texts == ["card arrival", "cannot log in", "password", "money back"]


def test_white_space_around_a_label_is_none_of_it() -> None:
    found = describe_labels({" login\u00a0": "cannot log in"}, TARGET)
    assert found is not None and found.texts == ["card arrival", "cannot log in", "refund"]


def test_a_file_called_names_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_label_texts("names") == "names"
    (tmp_path / "names").write_text("text,label\n")
    with pytest.raises(DataError):
        read_label_texts("names")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", r"must map each label to its text or a list of texts\. Got \[1, 2\] instead"),
        ('{"login": 3}', r"Got 3 for 'login' instead"),
        ('{"login": []}', r"Got \[\] for 'login' instead"),
        ('{"login": " "}', r"Got ' ' for 'login' instead"),
        ("{", "are not valid JSON"),
    ],
)
def test_wrong_json(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_label_texts(tmp_path / "texts.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"texts\.json: cannot read the label texts: No such file"):
        read_label_texts(tmp_path / "texts.json")


@pytest.mark.parametrize(
    ("texts", "target", "options", "message"),
    [
        ({"logon": "x"}, TARGET, {}, r"a label that no row has: 'logon'\. Did you mean 'login'\? The task's"),
        ({"login": "x", " login": "y"}, TARGET, {}, r"'login' twice, in two forms\. Put all its"),
        ({"login": ""}, TARGET, {}, r"must be text that is not empty\. Got '' for 'login'"),
        ("texts", TARGET, {}, r"label_texts must be one of 'names', 'none'"),
        ("names", Regression(0, 1, bounded=True), {}, "a task with numbers has no labels to describe. Leave out "),
        ("names", TARGET, {"pairs": True}, "these rows are pairs. Leave out label_texts="),
    ],
)  # fmt: skip
def test_what_cannot_be_described(texts: Any, target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        describe_labels(texts, target, **options)


def test_numbers_say_nothing() -> None:
    assert meaningful_names(TARGET) and meaningful_names(SingleLabel(LabelSet(("1", "two"))))
    assert not meaningful_names(SingleLabel(LabelSet(("1", "-2", "0.5")))) and not meaningful_names(
        Regression(0, 1, bounded=True)
    )


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture
def toy(toy_rows: tuple[list[str], list[str]]) -> Dataset:
    return from_lists(*toy_rows)


def train(data: Dataset, encoder: Encoder, recipe: Recipe = FEW, **given: Any) -> Trained:
    """Train with the data sets and the options of the main job side by side."""
    parts = {name: given.pop(name) for name in ("validation", "test", "progress") if name in given}
    return train_task(data, encoder, FeatureStore(), recipe, options=TrainOptions(**given), **parts)


def test_the_few_shot_preset_learns_from_names(toy: Dataset, encoder: Encoder) -> None:
    trained = train(toy.select(range(80)), encoder, preset("few-shot"), test=toy.select(range(80, 120)))
    assert trained.task.training["label_texts"] == 3
    assert trained.reports["test"].metrics["accuracy"] > 0.7
    assert set(trained.zero_shot) == {"validation", "test"} and trained.zero_shot == trained.task.training["zero_shot"]
    assert trained.rows == {"train": 72, "validation": 8, "test": 40}  # the labels' texts are no rows of the user's


def test_zero_shot_takes_the_label_whose_text_is_nearest(toy: Dataset, encoder: Encoder) -> None:
    trained = train(toy, encoder, label_texts=TEXTS, test=toy)
    described = describe_labels(TEXTS, trained.task.target)
    assert described is not None

    def means(texts: list[str]) -> torch.Tensor:
        features = live_features([(text, None) for text in texts], encoder, states=[-1])
        return torch.stack([features.tokens(torch.tensor([row]))[:, 0].mean(0) for row in range(len(texts))])

    center = means([toy.texts[row] for row in split_holdout(toy, 0)[0]]).mean(0)
    texts = torch.nn.functional.normalize(means(toy.texts) - center, dim=1)
    labels = torch.nn.functional.normalize(means(described.texts) - center, dim=1)
    rows = torch.stack((labels[0], labels[1] + labels[2], labels[3]))
    nearest = (texts @ torch.nn.functional.normalize(rows, dim=1).T).argmax(1).numpy()
    right = float((nearest == trained.task.target.encode(toy.names)).mean())
    assert trained.zero_shot["test"]["accuracy"] == pytest.approx(right, abs=0.02)  # features are stored in int8


@pytest.mark.parametrize("recipe", [FEW, Recipe(PooledConfig(width=8), SHORT)], ids=["few-shot", "default"])
def test_texts_that_contradict_the_rows_are_heard(toy: Dataset, encoder: Encoder, recipe: Recipe) -> None:
    """With so few rows and steps a label's text decides about texts like it."""
    few = toy.select([toy.names.index(name) + extra for name in ("card", "login", "refund") for extra in (0, 1)])
    short = Recipe(recipe.head, TrainingConfig(fewest_steps=5, most_steps=5, learning_rate=1e-4), recipe.layers)
    probe = from_lists(["alpha beta gamma delta"] * 3, ["card", "login", "refund"])
    shares = []
    for name in ("card", "login", "refund"):
        texts = {name: "alpha beta gamma delta"}
        trained = train(few, encoder, short, validation=few, test=probe, label_texts=texts)
        shares.append(trained.judged["test"].logits[0].argmax() == trained.task.target.names.index(name))
    assert all(shares)


def test_several_labels_a_row(toy: Dataset, encoder: Encoder) -> None:
    rows = from_lists(toy.texts, [(name,) for name in toy.names], kind="multi")
    trained = train(rows, encoder)
    assert trained.task.training["label_texts"] == 3 and trained.zero_shot["validation"]["macro_f1"] > 0
    assert trained.reports["validation"].metrics["macro_f1"] > 0.5


def test_names_that_are_numbers_start_nothing_unless_asked(toy: Dataset, encoder: Encoder) -> None:
    numbers = {"card": "0", "login": "1", "refund": "2"}
    rows = from_lists(toy.texts, [numbers[name] for name in toy.names], kind="single")
    assert train(rows, encoder).zero_shot == {}
    assert train(rows, encoder, label_texts="names").task.training["label_texts"] == 3
    assert train(toy, encoder, label_texts="none").task.training["label_texts"] == 0


def test_the_default_preset_takes_texts_only_if_asked(toy: Dataset, encoder: Encoder) -> None:
    recipe = Recipe(PooledConfig(width=8), SHORT)
    assert train(toy, encoder, recipe).zero_shot == {}
    assert set(train(toy, encoder, recipe, label_texts=TEXTS).zero_shot) == {"validation"}


def test_pairs_by_label_tuning(toy: Dataset, encoder: Encoder) -> None:
    half = len(toy) // 2
    pairs = list(zip(toy.texts[:half], toy.texts[half:], strict=True))
    same = ["same" if a == b else "other" for a, b in zip(toy.names[:half], toy.names[half:], strict=True)]
    trained = train(from_lists(pairs, same), encoder)
    assert trained.zero_shot == {} and np.isfinite(trained.fit.validation_logits).all()


@pytest.mark.parametrize(
    ("each", "options", "told"),
    [(4, {}, True), (30, {}, False), (4, {"label_texts": "names"}, False), (4, {"recipe": FEW}, False)],
)
def test_a_hint_where_rows_are_few(
    each: int, options: dict[str, Any], told: bool, toy: Dataset, encoder: Encoder
) -> None:
    said: list[str] = []

    class Heard(Progress):
        def say(self, message: str) -> None:
            said.append(message)

    rows = [row for name in set(toy.names) for row in [i for i, each in enumerate(toy.names) if each == name][:each]]
    options = {"recipe": Recipe(PooledConfig(width=8), SHORT), **options}
    train(toy.select(rows), encoder, **options, progress=Heard())
    assert any("few rows of each label" in message for message in said) == told

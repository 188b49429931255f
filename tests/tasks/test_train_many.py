"""Many tasks in one training: what each has alone and in company, Ctrl-C, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ytuning.data.common_holdout import common_holdout
from ytuning.data.dataset import Dataset, from_lists
from ytuning.data.task_columns import read_tasks
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LabelTuningConfig, LightConfig, PooledConfig
from ytuning.progress import CollectedMessages, Progress
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.tasks.train_many import task_folders, train_tasks
from ytuning.training.recipes import Recipe, TrainingConfig

SHORT = TrainingConfig(fewest_steps=30, most_steps=30)
DEFAULT = Recipe(PooledConfig(width=16), SHORT)
FEW_SHOT = Recipe(LabelTuningConfig(), replace(SHORT, label_smoothing=0.0), layers=(-1,))
KINDS = {"theme": "auto", "urgency": "ordinal", "topics": "multi", "length": "auto", "card": "auto"}
ORDERS = {"urgency": ("low", "mid", "high")}
LIGHT = Recipe(LightConfig(), SHORT)
Rows = dict[str, Dataset]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(scope="module")
def table(toy_rows: tuple[list[str], list[str]]) -> dict[str, list[Any]]:
    """Five columns of labels, all filled, one of a kind each; two rows have one text and different labels."""
    texts, labels = [*toy_rows[0], toy_rows[0][0]], [*toy_rows[1], toy_rows[1][0]]
    chooser = random.Random(1)
    return {
        "text": texts,
        "theme": labels,
        "urgency": [chooser.choice(ORDERS["urgency"]) for _ in texts],
        "topics": [[label, "late"] if "late" in text else [label] * (number % 4 > 0) for number, (text, label)
                   in enumerate(zip(texts, labels, strict=True))],
        "length": [len(text) / 4 + 0.5 for text in texts],
        "card": ["yes" if label == "card" else "no" for label in labels],
    }  # fmt: skip


@pytest.fixture(scope="module")
def sparse(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The same table with a third of the cells empty, others in each column."""
    chooser = random.Random(2)
    return {
        name: cells if name == "text" else [None if chooser.random() < 1 / 3 else cell for cell in cells]
        for name, cells in table.items()
    }


def weights(trained: Trained) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in trained.task.head.state_dict().items()}


def train_alone(rows: Rows, name: str, encoder: Encoder, recipe: Recipe, **parts: Any) -> Trained:
    """One of the tasks on its own, with the validation rows that it has in company."""
    options = TrainOptions(name=name, label_order=ORDERS.get(name), seed=3)
    own = {part: data[name] for part, data in parts.items()}
    held = None if "validation" in parts else common_holdout(rows, options.seed)[name]
    return train_task(rows[name], encoder, FeatureStore(), recipe, held=held, options=options, **own)


def train_all(rows: Rows, encoder: Encoder, recipe: Recipe, **parts: Any) -> dict[str, Trained]:
    orders = {name: order for name, order in ORDERS.items() if name in rows}
    options = TrainOptions(seed=3)
    return train_tasks(rows, encoder, FeatureStore(), recipe, options=options, label_orders=orders, **parts)


def assert_same(alone: Trained, company: Trained) -> None:
    assert weights(alone) == weights(company)
    assert alone.fit.history == company.fit.history
    assert {split: report.metrics for split, report in alone.reports.items()} == {
        split: report.metrics for split, report in company.reports.items()
    }
    assert alone.task.calibration == company.task.calibration and alone.task.columns == company.task.columns
    assert (alone.rows, alone.shared, alone.truncated) == (company.rows, company.shared, company.truncated)
    assert alone.judged["validation"].data == company.judged["validation"].data
    assert (alone.task.exemplars is None) == (company.task.exemplars is None)
    if alone.task.exemplars is not None and company.task.exemplars is not None:
        assert alone.task.exemplars.vectors.equal(company.task.exemplars.vectors)
        assert alone.task.exemplars.targets.equal(company.task.exemplars.targets)


@pytest.mark.parametrize("recipe", [DEFAULT, FEW_SHOT, LIGHT], ids=["default", "few-shot", "light"])
def test_tasks_whose_cells_are_filled_are_those_trained_alone(
    recipe: Recipe, table: dict[str, list[Any]], encoder: Encoder
) -> None:
    rows = read_tasks(table, KINDS)  # type: ignore[arg-type]
    company = train_all(rows, encoder, recipe)
    assert list(company) == list(KINDS)
    assert {one.task.kind for one in company.values()} == {"single", "ordinal", "multi", "regression"}
    for name, one in company.items():
        assert one.task.name == name
        assert_same(train_alone(rows, name, encoder, recipe), one)


def test_tasks_with_empty_cells_are_those_trained_alone_where_nothing_is_fitted_on_all_rows(
    sparse: dict[str, list[Any]], encoder: Encoder
) -> None:
    parts = [{name: cells[:80] for name, cells in sparse.items()}, {name: cells[80:] for name, cells in sparse.items()}]
    rows = read_tasks(parts[0], KINDS)  # type: ignore[arg-type]
    test = read_tasks(parts[1], KINDS, train=rows)  # type: ignore[arg-type]
    company = train_all(rows, encoder, FEW_SHOT, test=test)
    for name, one in company.items():
        assert sum(one.rows.values()) == sum(cell is not None for cell in sparse[name])
        assert_same(train_alone(rows, name, encoder, FEW_SHOT, test=test), one)


def test_default_heads_with_empty_cells_are_nearly_those_trained_alone(
    sparse: dict[str, list[Any]], encoder: Encoder
) -> None:
    recipe = replace(DEFAULT, training=replace(SHORT, fewest_steps=150, most_steps=150))
    rows = read_tasks(sparse, ["theme", "card"])
    company = train_all(rows, encoder, recipe)
    for name, one in company.items():
        alone = train_alone(rows, name, encoder, recipe)
        assert one.rows == alone.rows and one.fit.history[0].step == alone.fit.history[0].step
        np.testing.assert_array_equal(one.judged["validation"].truth, alone.judged["validation"].truth)
        # The components differ, so the weights do: both know the labels of nearly the same rows.
        scores = [entry.reports["validation"].metrics["accuracy"] for entry in (alone, one)]
        assert min(scores) > 0.6 and abs(scores[0] - scores[1]) <= 0.2


def test_given_validation_rows_choose_and_nothing_is_held_out(sparse: dict[str, list[Any]], encoder: Encoder) -> None:
    rows = read_tasks(sparse, ["theme", "card"])
    held = {name: data.select(range(20)) for name, data in rows.items()}
    company = train_all(rows, encoder, FEW_SHOT, validation=held)
    assert {one.rows["validation"] for one in company.values()} == {20}
    assert all(one.rows["train"] == len(rows[name]) and not one.fit.refitted for name, one in company.items())
    assert_same(train_alone(rows, "card", encoder, FEW_SHOT, validation=held), company["card"])


def test_each_text_is_encoded_once(sparse: dict[str, list[Any]], encoder: Encoder, encoded: list[int]) -> None:
    company = train_all(read_tasks(sparse, KINDS), encoder, DEFAULT)  # type: ignore[arg-type]
    some = {text for name in KINDS for text, cell in zip(sparse["text"], sparse[name], strict=True) if cell is not None}
    assert sum(encoded) == len(some) == company["theme"].cache.misses


def test_tasks_need_not_come_from_one_table(toy_rows: tuple[list[str], list[str]], encoder: Encoder) -> None:
    texts, labels = toy_rows
    rows = {"first": from_lists(texts[:70], labels[:70]), "second": from_lists(texts[50:][::-1], labels[50:][::-1])}
    for name, one in train_all(rows, encoder, FEW_SHOT).items():
        assert_same(train_alone(rows, name, encoder, FEW_SHOT), one)


def test_pairs_choose_how_they_are_read_for_each_task(toy_rows: tuple[list[str], list[str]], encoder: Encoder) -> None:
    texts, labels = toy_rows
    same = ["yes" if a == b else "no" for a, b in zip(labels, labels[::-1], strict=True)]
    rows = {"theme": from_lists(texts, labels, texts[::-1]), "same": from_lists(texts, same, texts[::-1])}
    said = CollectedMessages()
    company = train_all(rows, encoder, DEFAULT, progress=said)
    for name, one in company.items():
        assert_same(train_alone(rows, name, encoder, DEFAULT), one)
        assert any(message.startswith(f"task '{name}': pairs: {one.task.pair_mode}") for message in said.messages)


def test_several_seeds_for_each_task(table: dict[str, list[Any]], encoder: Encoder) -> None:
    rows = read_tasks(table, ["theme", "card"])
    options = TrainOptions(seeds=2, ensemble=True)
    company = train_tasks(rows, encoder, FeatureStore(), DEFAULT, options=options)
    held = common_holdout(rows, options.seed)["card"]
    alone = train_task(rows["card"], encoder, FeatureStore(), DEFAULT, held=held, options=options)
    assert [list(one.by_seed) for one in company.values()] == [[0, 1], [0, 1]]
    assert weights(company["card"]) == weights(alone) and company["card"].by_seed == alone.by_seed


def test_a_saved_task_evaluates_the_table_it_came_from(
    sparse: dict[str, list[Any]], encoder: Encoder, tmp_path: Path
) -> None:
    rows = read_tasks(sparse, KINDS)  # type: ignore[arg-type]
    for name, one in train_all(rows, encoder, FEW_SHOT).items():
        save_task(one.task, tmp_path / name)
        task = load_task(tmp_path / name)
        assert task.columns is not None and task.columns.empty_labels and task.columns.label == name
        report = evaluate_task(task, rows[name], encoder, FeatureStore()).report
        assert report.rows == len(rows[name]) and set(report.metrics) == set(one.reports["validation"].metrics)


# --- messages and Ctrl-C --------------------------------------------------------------------------------------------


def test_what_all_tasks_have_to_say_is_said_once(toy_rows: tuple[list[str], list[str]], encoder: Encoder) -> None:
    texts = toy_rows[0][:24]
    rows = {"a": from_lists(texts, ["x", "y"] * 12), "b": from_lists(texts, [*"xxxxx", "rare", *"yyy" * 6])}
    said = CollectedMessages()
    train_all(rows, encoder, DEFAULT, progress=said)
    assert [message for message in said.messages if message.startswith("few rows of each label")]
    assert len([message for message in said.messages if "few rows of each label" in message]) == 1
    assert "task 'b': no validation row has these labels" in "\n".join(said.messages)


class Interrupt(Progress):
    """Ctrl-C at a step of a stage, once."""

    def __init__(self, stage: str, step: int) -> None:
        self.at: tuple[str, int] | None = (stage, step)

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == self.at:
            self.at = None
            raise KeyboardInterrupt


def test_an_interrupted_training_gives_the_best_head_of_each_task(
    sparse: dict[str, list[Any]], encoder: Encoder
) -> None:
    company = train_all(read_tasks(sparse, ["theme", "card"]), encoder, DEFAULT, progress=Interrupt("train", 9))
    assert list(company) == ["theme", "card"] and all(one.fit.interrupted for one in company.values())
    assert all(one.reports["validation"].metrics for one in company.values())


def test_ctrl_c_while_tasks_are_evaluated_keeps_the_finished_ones(
    sparse: dict[str, list[Any]], encoder: Encoder
) -> None:
    rows = read_tasks(sparse, ["theme", "card", "length"])
    company = train_all(rows, encoder, FEW_SHOT, progress=Interrupt("evaluate", 2))
    assert list(company) == ["theme", "card"] and not any(one.fit.interrupted for one in company.values())


# --- what is refused ------------------------------------------------------------------------------------------------


def test_tasks_that_cannot_be_trained_are_named_before_any_work(
    table: dict[str, list[Any]], encoder: Encoder, encoded: list[int]
) -> None:
    odd = {**table, "one": ["x"] * 121, "unordered": table["theme"]}
    rows = read_tasks(odd, {"one": "auto", "theme": "auto", "unordered": "ordinal"})
    message = r"^2 of 3 tasks cannot be trained\. 'one': .*all 121 rows have the label 'x'.* 'unordered': .*order.*"
    with pytest.raises(InputError, match=message):
        train_tasks(rows, encoder, FeatureStore(), DEFAULT)
    assert encoded == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_order": ("a", "b")}, r"label_order= is for one task\. Several tasks have an order each in "),
        ({"label_texts": {"a": "b"}}, r"texts for labels are for one task.* Give label_texts='names'"),
        ({"abstain_at": 0.9}, r"abstain_at= is for one task: a precision that one of several tasks cannot reach"),
        ({"layers": "auto"}, r"layers='auto' chooses hidden states for one task"),
        ({"codec": "tiny"}, r"store must be one of 'fp16', 'int8', 'compact'\. Got 'tiny'"),
    ],
)  # fmt: skip
def test_options_of_one_task_are_refused(
    options: dict[str, Any], message: str, table: dict[str, list[Any]], encoder: Encoder
) -> None:
    with pytest.raises(InputError, match=message):
        train_tasks(read_tasks(table, ["theme"]), encoder, FeatureStore(), DEFAULT, options=TrainOptions(**options))


def test_parts_of_other_tasks_are_refused(table: dict[str, list[Any]], encoder: Encoder) -> None:
    rows = read_tasks(table, ["theme", "card"])
    pairs = from_lists(table["text"], table["theme"], table["text"])
    for call, message in (
        ({"test": {"theme": rows["theme"]}}, r"test has rows of the tasks 'theme', and train of 'card', 'theme'\."),
        ({"label_orders": {"thme": ("a",)}}, r"label_orders names the task 'thme', which has no rows\. The tasks are"),
        ({"train": {}}, "train must have the rows of at least one task"),
        ({"train": {**rows, "two": pairs}}, "the rows of these tasks are pairs of texts.*: 'two'"),
    ):
        given: dict[str, Any] = {"train": rows, **call}
        with pytest.raises(InputError, match=message):
            train_tasks(given.pop("train"), encoder, FeatureStore(), DEFAULT, **given)


@pytest.mark.parametrize("name", ["a/b", "..", ".", ".hidden", "a\\b", "c:", "x.", " x", "", 'say "x"', "what?", "a*"])
def test_names_that_are_no_folders_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be the name of a task's folder: .* Rename the column"):
        task_folders(tmp_path, ["fine", name])


def test_folders_of_tasks(tmp_path: Path) -> None:
    assert task_folders(tmp_path / "new", ["one", "zwei ü"]) == {
        "one": tmp_path / "new" / "one", "zwei ü": tmp_path / "new" / "zwei ü",
    }  # fmt: skip
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="folders of the tasks 'One' and 'one' would be one on some systems"):
        task_folders(tmp_path, ["One", "one"])
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="one is not empty and was not written by ytuning train"):
        task_folders(tmp_path, ["one"])
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(InputError, match="holds a task, and other tasks should not be written into it"):
        task_folders(tmp_path, ["two"])
    with pytest.raises(InputError, match="control character"):
        task_folders(tmp_path / "new", ["a\nb"])

"""Light tasks from training to answers, and labels that are added and removed exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ytuning.data.dataset import Dataset, from_lists
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError, StoreError
from ytuning.features.store import FeatureStore
from ytuning.heads.light import LightHead
from ytuning.heads.pooled import PooledConfig
from ytuning.tasks.add_label import grow_task
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.remove_label import shrink_task
from ytuning.tasks.task import Task, load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig, preset, weighing_labels

Train = Callable[..., Task]
Toy = tuple[list[str], list[str]]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


@pytest.fixture
def train(encoder: Encoder, store: FeatureStore) -> Train:
    def trained(rows: Dataset, recipe: Recipe | None = None, **options: object) -> Task:
        chosen = TrainOptions(name="toy", **options)  # type: ignore[arg-type]
        return train_task(rows, encoder, store, recipe or preset("light"), options=chosen).task

    return trained


def several(toy: Toy) -> Dataset:
    """Rows with one to three labels: the toy label, and those of words that a text has."""
    texts, labels = toy
    rows = [
        tuple(dict.fromkeys((label, *({"why", "please"} & set(text.split())))))
        for text, label in zip(texts, labels, strict=True)
    ]
    return from_lists(texts, rows)


def parts_of(rows: Dataset, names: list[str], name: str) -> tuple[Dataset, Dataset]:
    """The rows of other labels, and those of one as examples without labels."""
    examples = rows.select([row for row, label in enumerate(names) if label == name])
    return rows.select([row for row, label in enumerate(names) if label != name]), replace(examples, labels=None)


def same_head(task: Task, other: Task) -> bool:
    states = task.head.state_dict(), other.head.state_dict()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_light_task_is_saved_read_and_answers(toy_rows: Toy, train: Train, tmp_path: Path) -> None:
    task = train(from_lists(*toy_rows))
    save_task(task, tmp_path / "toy")
    again = load_task(tmp_path / "toy")
    assert same_head(task, again) and isinstance(again.head, LightHead) and again.exemplars is None
    # Three labels of float16 rows, and no texts.
    assert (tmp_path / "toy" / "head.safetensors").stat().st_size < 3 * 2 * 192 + 1000
    answers = list(Predictor(tmp_path / "toy").predict(toy_rows[0]))
    right = [answer.label == label for answer, label in zip(answers, toy_rows[1], strict=True)]
    assert np.mean(right) > 0.9


def test_same_rows_same_bytes(toy_rows: Toy, train: Train) -> None:
    assert same_head(train(from_lists(*toy_rows)), train(from_lists(*toy_rows)))


def test_added_and_removed_again_it_is_the_same_task(
    toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore
) -> None:
    rows, examples = parts_of(from_lists(*toy_rows), toy_rows[1], "refund")
    task = train(rows)
    added = grow_task(task, "refund", examples, encoder, store)
    assert added.task.target.names == ("card", "login", "refund")
    assert added.recall > 0.9 and added.before > 0.9 and added.after <= added.before
    assert set(added.lost) <= {"card", "login"}
    removed = shrink_task(added.task, "refund", encoder, store)
    assert removed.task.target.names == ("card", "login") and same_head(removed.task, task)
    assert removed.after == added.before


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_an_added_label_is_the_one_that_training_on_all_rows_gives(
    kind: str, toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore
) -> None:
    texts, labels = toy_rows
    if kind == "single":
        rows, examples = parts_of(from_lists(texts, labels), labels, "refund")
    else:
        rows, examples = parts_of(from_lists(texts, [(label,) for label in labels]), labels, "refund")
    task = train(rows)
    grown = grow_task(task, "refund", examples, encoder, store).task
    inputs = [*rows.inputs, *examples.inputs]
    names = [*(rows.labels or ()), *(["refund" if kind == "single" else ("refund",)] * len(examples.inputs))]
    whole = train(from_lists([text for text, _ in inputs], names))
    assert isinstance(grown.head, LightHead) and isinstance(whole.head, LightHead)
    # Both saw all rows. The strength may be another one, and so may the rows that the deviations are measured on.
    first, second = (head.rows().flatten() for head in (grown.head, whole.head))
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.95


def test_a_label_of_several_a_row_is_removed_from_its_rows(
    toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore
) -> None:
    rows = several(toy_rows)
    task = train(rows)
    removed = shrink_task(task, "why", encoder, store).task
    assert "why" not in removed.target.names and len(removed.target.names) == len(task.target.names) - 1
    assert removed.calibration.thresholds is not None
    assert len(removed.calibration.thresholds) == len(removed.target.names)
    # The other labels have the same rows, as each is told from its own absence.
    stay = [number for number, name in enumerate(task.target.names) if name != "why"]
    torch.testing.assert_close(removed.head.state_dict()["label_rows"], task.head.state_dict()["label_rows"][stay])


def test_a_label_is_removed_from_a_head_that_learned_step_by_step(
    toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore, tmp_path: Path
) -> None:
    recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=60, most_steps=60))
    task = train(from_lists(*toy_rows), recipe)
    removed = shrink_task(task, "login", encoder, store)
    assert removed.task.target.names == ("card", "refund")
    assert removed.task.exemplars is not None and removed.after >= removed.before
    save_task(removed.task, tmp_path / "less")
    assert load_task(tmp_path / "less").training["removed"] == ["login"]
    answers = [{answer.label for answer in Predictor(tmp_path / "less").predict(toy_rows[0])}]
    assert answers == [{"card", "refund"}]


def test_labels_that_cannot_be_removed(toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore) -> None:
    task = train(from_lists(*toy_rows))
    with pytest.raises(InputError, match=r"'toy' has no label 'refunds'\. Did you mean 'refund'\?"):
        shrink_task(task, "refunds", encoder, store)
    smaller = shrink_task(task, "refund", encoder, store).task
    with pytest.raises(InputError, match="'toy' has 2 labels, and a task of kind single needs at least 2"):
        shrink_task(smaller, "card", encoder, store)
    numbers = train(from_lists(toy_rows[0], [0.1 + number for number in range(len(toy_rows[0]))]))
    with pytest.raises(InputError, match="is removed from tasks of kind single or multi, and 'toy' is regression"):
        shrink_task(numbers, "card", encoder, store)


def test_rows_that_the_store_lacks_are_told(
    toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore, tmp_path: Path
) -> None:
    rows, examples = parts_of(from_lists(*toy_rows), toy_rows[1], "refund")
    task = train(rows)
    message = "no longer has the texts that the task 'toy' was trained on. Train it again with all labels"
    with pytest.raises(StoreError, match=message):
        grow_task(task, "refund", examples, encoder, FeatureStore(tmp_path / "other"))
    foreign = replace(task, training={})
    with pytest.raises(InputError, match="'toy' does not say which rows it was trained on"):
        grow_task(foreign, "refund", examples, encoder, store)


def test_compact_features_are_too_coarse(toy_rows: Toy, train: Train) -> None:
    with pytest.raises(InputError, match=r"store must be one of 'fp16', 'int8'\. Got 'compact' instead\. .*too coarse"):
        train(from_lists(*toy_rows), codec="compact")


def test_a_label_with_all_validation_rows_is_removed(toy_rows: Toy, encoder: Encoder, store: FeatureStore) -> None:
    rows = from_lists(*toy_rows)
    refunds = [row for row, label in enumerate(toy_rows[1]) if label == "refund"]
    train = rows.select([row for row in range(len(rows)) if row not in refunds[:8]])
    task = train_task(train, encoder, store, preset("light"), validation=rows.select(refunds[:8])).task
    removed = shrink_task(task, "refund", encoder, store).task
    assert removed.target.names == ("card", "login")
    examples = replace(rows.select(refunds), labels=None)
    assert grow_task(removed, "refund", examples, encoder, store).recall > 0.8


def test_a_store_that_can_only_be_read_is_enough(
    toy_rows: Toy, train: Train, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    task = train(from_lists(*toy_rows))
    monkeypatch.setattr("ytuning.features.store.commit", refuse)
    assert same_head(train(from_lists(*toy_rows)), task)


def test_weights_of_single_labels_do_not_fit_other_labels(
    toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore
) -> None:
    rows, examples = parts_of(from_lists(*toy_rows), toy_rows[1], "refund")
    balanced = train(rows, weighing_labels(preset("light"), "balanced"))
    assert grow_task(balanced, "refund", examples, encoder, store).recall > 0.9
    weighed = train(rows, weighing_labels(preset("light"), (1.0, 2.0)))
    with pytest.raises(InputError, match="with a weight for each of its labels"):
        grow_task(weighed, "refund", examples, encoder, store)


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_pairs(pairs: str, toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore) -> None:
    texts, labels = toy_rows
    rows = from_lists(list(zip(texts, reversed(texts), strict=True)), labels)
    old, examples = parts_of(rows, labels, "refund")
    task = train(old, pairs=pairs)
    assert task.pair_mode == pairs
    grown = grow_task(task, "refund", examples, encoder, store)
    assert grown.recall > 0.8
    report = evaluate_task(grown.task, rows, encoder, store).report
    assert report.metrics["accuracy"] > 0.8


def test_a_loss_is_refused(toy_rows: Toy, train: Train) -> None:
    light = preset("light")
    with pytest.raises(InputError, match="has no loss to choose, because its head is fitted in closed form"):
        train(from_lists(*toy_rows), replace(light, training=replace(light.training, loss="focal")))


def test_label_texts_are_rows_of_their_labels(toy_rows: Toy, train: Train) -> None:
    plain = train(from_lists(*toy_rows))
    told = train(from_lists(*toy_rows), label_texts={"card": "stolen card", "login": "my login", "refund": "money"})
    assert not same_head(plain, told) and told.training["label_texts"] == 3 and told.training["zero_shot"]

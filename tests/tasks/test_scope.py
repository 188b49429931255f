"""Out-of-scope scores of tasks: fitted by training, saved with the task, and kept when a label is added or removed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ytuning.data.dataset import Dataset, from_lists
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError, TaskFolderError
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LabelTuningConfig, LightConfig, PooledConfig
from ytuning.tasks.add_label import grow_task
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.remove_label import shrink_task
from ytuning.tasks.task import Task, load_task, save_task
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig

Train = Callable[..., Trained]
Toy = tuple[list[str], list[str]]
SHORT = TrainingConfig(fewest_steps=30, most_steps=30)
RECIPES = {
    "light": Recipe(LightConfig(), TrainingConfig(label_smoothing=0.0)),
    "default": Recipe(PooledConfig(width=16), SHORT),
    "few-shot": Recipe(LabelTuningConfig(), SHORT, layers=(1, 3)),
}


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


@pytest.fixture
def train(encoder: Encoder, store: FeatureStore, toy_rows: Toy) -> Train:
    """Train on given rows; all toy rows of their labels are the validation rows."""

    def trained(rows: Dataset, recipe: str, **options: Any) -> Trained:
        chosen = TrainOptions(name="toy", **options)
        known = {str(label) for label in rows.labels or ()}
        held = [row for row, label in enumerate(toy_rows[1]) if label in known]
        validation = from_lists(*toy_rows).select(held)
        return train_task(rows, encoder, store, RECIPES[recipe], validation=validation, test=validation, options=chosen)

    return trained


def tensors_of(task: Task) -> dict[str, torch.Tensor]:
    assert task.scope is not None
    return task.scope.tensors


def same_scope(task: Task, other: Task) -> bool:
    first, second = tensors_of(task), tensors_of(other)
    assert task.scope is not None and other.scope is not None
    same = task.scope.to_json() == other.scope.to_json() and set(first) == set(second)
    return same and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_form_of_head_has_a_scope_that_is_saved(
    recipe: str, toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore, tmp_path: Path
) -> None:
    trained = train(from_lists(*toy_rows), recipe, out_of_scope=0.2)
    task = trained.task
    assert task.scope is not None and task.scope.share == 0.2 and task.scope.labels == 3
    assert (task.scope.gaussians is not None) == (recipe == "light")
    # A fifth of 121 places is 24, and the threshold itself is not above it.
    rows = len(toy_rows[0])
    assert trained.out_of_scope["validation"] == pytest.approx((int(0.2 * (rows + 1)) - 1) / rows, abs=2.5 / rows)
    assert set(trained.out_of_scope) == {"validation", "test"}
    save_task(task, tmp_path / "toy")
    again = load_task(tmp_path / "toy")
    assert same_scope(task, again)
    evaluation = evaluate_task(again, from_lists(*toy_rows), encoder, store)
    assert evaluation.out_of_scope == pytest.approx(trained.out_of_scope["test"], abs=2.5 / rows)


def test_without_a_share_there_is_a_score_and_no_threshold(toy_rows: Toy, train: Train) -> None:
    trained = train(from_lists(*toy_rows), "light")
    assert trained.task.scope is not None and trained.task.scope.threshold is None and trained.out_of_scope == {}


def test_the_same_training_has_the_same_scope(toy_rows: Toy, train: Train) -> None:
    for recipe in ("light", "default"):
        one, other = (train(from_lists(*toy_rows), recipe, out_of_scope=0.1).task for _ in range(2))
        assert same_scope(one, other)


def test_too_few_validation_rows_are_refused_before_any_work(
    toy_rows: Toy, encoder: Encoder, store: FeatureStore, encoded: list[int]
) -> None:
    few = from_lists(toy_rows[0][:60], toy_rows[1][:60])
    with pytest.raises(InputError, match=r"out_of_scope 0.05 needs at least 20 validation rows. Got 6 instead"):
        train_task(few, encoder, store, RECIPES["light"], options=TrainOptions(out_of_scope=0.05))
    assert not encoded
    # Without a threshold the task has no score.
    assert train_task(few, encoder, store, RECIPES["light"]).task.scope is None


def parts_of(rows: Dataset, names: list[str], name: str) -> tuple[Dataset, Dataset]:
    """The rows of other labels, and those of one as examples without labels."""
    examples = rows.select([row for row, label in enumerate(names) if label == name])
    return rows.select([row for row, label in enumerate(names) if label != name]), replace(examples, labels=None)


@pytest.mark.parametrize("recipe", ["light", "default"])
def test_a_label_that_is_added_is_in_scope(
    recipe: str, toy_rows: Toy, train: Train, encoder: Encoder, store: FeatureStore
) -> None:
    rows, examples = parts_of(from_lists(*toy_rows), toy_rows[1], "refund")
    task = train(rows, recipe, out_of_scope=0.1).task
    assert task.scope is not None
    added = grow_task(task, "refund", examples, encoder, store).task
    assert added.scope is not None and added.scope.share == 0.1
    of_label = replace(examples, labels=["refund"] * len(examples), kind="single")
    before = evaluate_task(task, replace(of_label, labels=["card"] * len(of_label)), encoder, store).out_of_scope
    after = evaluate_task(added, of_label, encoder, store).out_of_scope
    assert before is not None and after is not None and after < before
    removed = shrink_task(added, "refund", encoder, store).task
    if recipe == "light":
        assert same_scope(removed, task)
    else:
        assert removed.scope is not None and removed.scope.labels == task.scope.labels


def edit(folder: Path, numbers: Any = ..., **tensors: torch.Tensor | None) -> None:
    """Change the scope in a folder; its weights get the right checksum."""
    content = json.loads((folder / "task.json").read_text())
    if numbers is not ...:
        content["scope"] = numbers
    stored = safetensors.torch.load((folder / "head.safetensors").read_bytes())
    for name, tensor in tensors.items():
        if tensor is None:
            del stored[f"scope.{name}"]
        else:
            stored[f"scope.{name}"] = tensor
    data = safetensors.torch.save(stored)
    (folder / "head.safetensors").write_bytes(data)
    (folder / "task.json").write_text(json.dumps({**content, "head_sha256": hashlib.sha256(data).hexdigest()}))


WRONG: dict[str, dict[str, Any]] = {
    "numbers without tensors": {"prototypes": None, "standard": None, "means": None, "within": None, "center": None,
                                "whole": None},
    "tensors without numbers": {"numbers": None},
    "numbers of another form": {"numbers": {"share": 0.1}},
    "prototypes of another encoder": {"prototypes": torch.ones(2, 7, dtype=torch.int8)},
    "a tensor that is none of a scope": {"extra": torch.ones(2)},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_scope_that_does_not_fit_is_refused(name: str, toy_rows: Toy, train: Train, tmp_path: Path) -> None:
    save_task(train(from_lists(*toy_rows), "light", out_of_scope=0.1).task, tmp_path / "toy")
    edit(tmp_path / "toy", **WRONG[name])
    with pytest.raises(TaskFolderError, match=r"does not fit the task's features: .*Copy the folder again or train"):
        load_task(tmp_path / "toy")


def test_a_task_whose_json_says_nothing_of_a_scope_is_damaged(toy_rows: Toy, train: Train, tmp_path: Path) -> None:
    save_task(train(from_lists(*toy_rows), "light").task, tmp_path / "toy")
    content = json.loads((tmp_path / "toy" / "task.json").read_text())
    del content["scope"]
    (tmp_path / "toy" / "task.json").write_text(json.dumps(content))
    with pytest.raises(TaskFolderError, match=r"task.json is damaged \(KeyError: 'scope'\)"):
        load_task(tmp_path / "toy")


def test_pairs_have_directions_of_both_texts(toy_rows: Toy, encoder: Encoder, store: FeatureStore) -> None:
    texts, labels = toy_rows
    pairs = from_lists(list(zip(texts, reversed(texts), strict=True)), labels)
    for pair_mode, times in (("separate", 2), ("joint", 1)):
        options = TrainOptions(pairs=pair_mode, out_of_scope=0.1)  # type: ignore[arg-type]
        task = train_task(pairs, encoder, store, RECIPES["light"], validation=pairs, options=options).task
        assert task.scope is not None and task.scope.prototypes.shape[1] == times * encoder.identity.width
        share = evaluate_task(task, pairs, encoder, store).out_of_scope
        # These are the validation rows, of which a tenth is above the threshold.
        assert share == pytest.approx(0.1, abs=0.03)

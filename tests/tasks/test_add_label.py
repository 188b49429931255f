"""Adding a label to a trained task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from tests.kinds import kind_of
from ytuning.data.dataset import Dataset, from_lists
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import DataError, InputError
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig, PooledHead
from ytuning.tasks.add_label import exemplar_rows, fit_label_row, grow_task
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.task import Task, load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig

RECIPE = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=120, most_steps=120))


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(scope="module")
def parts(toy_rows: tuple[list[str], list[str]]) -> tuple[Dataset, Dataset, Dataset]:
    """Train rows of card and login, examples of refund, and test rows of all three."""
    texts, labels = toy_rows
    rows = {name: [number for number, label in enumerate(labels) if label == name] for name in set(labels)}
    old = sorted(rows["card"][8:] + rows["login"][8:])
    test = sorted(rows["card"][:8] + rows["login"][:8] + rows["refund"][:8])
    everything = from_lists(texts, labels)
    return everything.select(old), replace(everything.select(rows["refund"][8:]), labels=None), everything.select(test)


@pytest.fixture(scope="module")
def task(encoder: Encoder, parts: tuple[Dataset, Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Task:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YTUNING_CACHE", str(tmp_path_factory.mktemp("grown")))
        half = [parts[0].select(range(first, len(parts[0]), 2)) for first in (0, 1)]
        return train_task(
            half[0], encoder, FeatureStore(), RECIPE, validation=half[1], options=TrainOptions(name="toy")
        ).task


def test_the_new_label_is_given_and_old_answers_change_only_to_it(
    task: Task, encoder: Encoder, parts: tuple[Dataset, Dataset, Dataset], tmp_path: Path
) -> None:
    added = grow_task(task, "refund", parts[1], encoder, FeatureStore())
    assert added.task.target.names == ("card", "login", "refund")
    assert added.recall > 0.8 and added.after > 0.6 and added.after <= added.before
    folders = [tmp_path / "old", tmp_path / "new"]
    for grown, folder in zip((task, added.task), folders, strict=True):
        save_task(grown, folder)
    answers = list(Predictor(folders).predict(parts[2].inputs))
    for before, after in zip(answers[::2], answers[1::2], strict=True):
        assert after.label in (before.label, "refund")
    report = evaluate_task(added.task, parts[2], encoder, FeatureStore()).report
    assert report.labels["refund"]["recall"] > 0.5
    # The old labels' logits are the same bits.
    assert isinstance(task.head, PooledHead) and isinstance(added.task.head, PooledHead)
    assert torch.equal(task.head.label_rows, added.task.head.label_rows[:, :2])
    assert load_task(folders[1]).training["added"] == ["refund"]


def test_what_it_did_to_the_old_labels_is_counted(
    task: Task, encoder: Encoder, parts: tuple[Dataset, Dataset, Dataset]
) -> None:
    cards = parts[0].select([row for row, name in enumerate(parts[0].names) if name == "card"])
    added = grow_task(task, "another", replace(cards, labels=None), encoder, FeatureStore())  # cannot be told apart
    kept = task.exemplars
    assert kept is not None and isinstance(added.task.head, PooledHead)
    logits = added.task.head.average(added.task.head.match(kept.vectors.float().transpose(0, 1)))
    given = logits.argmax(1)
    assert added.after == pytest.approx(float((given == kept.targets).double().mean()))
    assert added.before == pytest.approx(float((logits[:, :2].argmax(1) == kept.targets).double().mean()))
    taken = {
        name: float((given[kept.targets == number] == 2).double().mean())
        for number, name in enumerate(("card", "login"))
    }
    assert added.lost == pytest.approx({name: share for name, share in taken.items() if share})
    assert added.lost["card"] > added.lost.get("login", 0.0) and added.after < added.before


def test_an_old_label_without_validation_rows_keeps_its_texts(
    encoder: Encoder, parts: tuple[Dataset, Dataset, Dataset]
) -> None:
    rows = {name: [row for row, each in enumerate(parts[0].names) if each == name] for name in ("card", "login")}
    train, held = rows["card"][::2] + rows["login"], rows["card"][1::2]
    told = train_task(
        parts[0].select(train),
        encoder,
        FeatureStore(),
        RECIPE,
        validation=parts[0].select(held),
        options=TrainOptions(name="toy"),
    ).task
    added = grow_task(told, "refund", parts[1], encoder, FeatureStore())
    for task in (told, added.task):
        report = evaluate_task(
            task,
            parts[2].select([row for row, name in enumerate(parts[2].names) if name == "login"]),
            encoder,
            FeatureStore(),
        ).report
        assert report.labels["login"]["recall"] >= 0.75


@pytest.mark.parametrize("multi", [False, True])
def test_every_label_has_some_texts(multi: bool) -> None:
    chooser = np.random.default_rng(0)
    ids = np.sort(chooser.integers(4, size=200))
    targets = ids if not multi else np.eye(4, dtype=np.float32)[ids]
    rows = np.flatnonzero((ids < 2) | (np.arange(200) == 199))
    others = np.setdiff1d(np.arange(200), rows)
    target = kind_of("multi" if multi else "single", 4)
    found = exemplar_rows(target, targets, rows, others, most=30)
    assert len(set(found.tolist())) == len(found)
    assert (found[:30] == rows[np.linspace(0, len(rows) - 1, 30).astype(int)]).all()
    counts = np.bincount(ids[found])
    assert counts.tolist()[2:] == [5, 5] and 199 in found.tolist()
    few = exemplar_rows(target, targets, rows[:12], np.setdiff1d(np.arange(200), rows[:12]), most=30)
    assert (few[:12] == rows[:12]).all() and np.bincount(ids[few]).tolist() == [12, 5, 5, 5]
    assert len(exemplar_rows(target, targets, rows, others, most=3)) <= 3 + 4


@pytest.mark.parametrize("multi", [False, True])
def test_the_new_row_is_the_best_one(multi: bool) -> None:
    torch.manual_seed(0)
    head = PooledHead(PooledConfig(side_by_side=1, alone=1, members=1, width=4), labels=3, layers=1, width=8)
    old, examples = torch.randn(30, 3, 4), torch.randn(7, 3, 4) + 0.7
    goal: Any = torch.arange(30) % 3
    if multi:
        goal = torch.nn.functional.one_hot(goal, 3).float()
    row, bias = fit_label_row(head, kind_of("multi" if multi else "single"), old, goal, examples)
    counts = [10.0] * 3
    for member in range(3):
        rows, biases = head.label_rows[member].detach().numpy(), head.label_bias[member].detach().numpy()
        length = np.linalg.norm(rows, axis=1).mean()
        direction = (examples.mean(0) - old.mean(0))[member].numpy()
        start = direction / np.linalg.norm(direction) * length

        def loss(value: np.ndarray, member=member, rows=rows, biases=biases, start=start) -> float:
            total = 1e-3 * ((value[:4] - start) ** 2).sum()
            for text, true in zip(old[:, member].numpy(), (goal.argmax(1) if multi else goal).tolist(), strict=True):
                ours = value[:4] @ text + value[4]
                others = rows @ text + biases
                lost = np.logaddexp(0, ours) if multi else np.logaddexp.reduce([*others, ours]) - others[true]
                total += lost / counts[true]
            for text in examples[:, member].numpy():
                ours = value[:4] @ text + value[4]
                lost = np.logaddexp(0, -ours) if multi else np.logaddexp.reduce([*(rows @ text + biases), ours]) - ours
                total += lost / len(examples)
            return float(total)

        best = scipy.optimize.minimize(loss, np.zeros(5)).fun
        assert loss(np.array([*row[member].tolist(), float(bias[member])])) == pytest.approx(best, rel=1e-2)


def test_a_task_of_several_labels_grows_too(
    encoder: Encoder, toy_rows: tuple[list[str], list[str]], parts: tuple[Dataset, Dataset, Dataset]
) -> None:
    texts, labels = toy_rows
    several = [[] if label == "refund" else [label] for label in labels]
    task = train_task(from_lists(texts, several), encoder, FeatureStore(), RECIPE).task
    added = grow_task(task, "refund", parts[1], encoder, FeatureStore())
    assert added.task.calibration.thresholds == (*(task.calibration.thresholds or ()), 0.5)
    judged = from_lists(parts[2].texts, [[name] for name in parts[2].names])
    report = evaluate_task(added.task, judged, encoder, FeatureStore()).report
    assert report.labels["refund"]["f1"] > 0.5
    assert 0 <= added.after <= added.before <= 1


def test_a_second_label_knows_the_first(task: Task, encoder: Encoder, parts: tuple[Dataset, Dataset, Dataset]) -> None:
    once = grow_task(task, "refund", parts[1], encoder, FeatureStore()).task
    rows = once.exemplars
    assert rows is not None and task.exemplars is not None
    assert len(rows.vectors) == len(task.exemplars.vectors) + len(parts[1])
    assert (rows.targets == 2).sum() == len(parts[1])
    twice = grow_task(once, "card again", replace(parts[0], labels=None), encoder, FeatureStore())
    assert twice.task.target.names == ("card", "login", "refund", "card again")
    kept = twice.task.exemplars
    assert kept is not None and torch.bincount(kept.targets).tolist()[2:] == [len(parts[1]), len(parts[0])]


def test_tasks_that_cannot_grow(task: Task, encoder: Encoder, toy_rows: tuple[list[str], list[str]]) -> None:
    texts, labels = toy_rows
    paper = Recipe(CrossAttentionConfig(width=16), TrainingConfig(fewest_steps=10, most_steps=10))
    numbers = from_lists(texts, np.linspace(0.5, 9, len(texts)))
    refused = {
        "trained with the paper preset": train_task(from_lists(texts, labels), encoder, FeatureStore(), paper).task,
        "is regression": train_task(numbers, encoder, FeatureStore(), RECIPE).task,
        "keeps no texts of its labels": replace(task, exemplars=None),
        "has the label 'new' already": replace(task, target=SingleLabel(LabelSet(("new", "b")))),
    }
    for message, grown in refused.items():
        with pytest.raises(InputError, match=message):
            grow_task(grown, "new", from_lists(["a text"]), encoder, FeatureStore())
    with pytest.raises(InputError, match="has the label 'card' already"):
        grow_task(task, "\u00a0card ", from_lists(["a text"]), encoder, FeatureStore())
    with pytest.raises(InputError, match=r"^the name of the new label is empty or only white space\. Give one that"):
        grow_task(task, " ", from_lists(["a text"]), encoder, FeatureStore())
    with pytest.raises(DataError, match="was trained on single texts"):
        grow_task(task, "new", from_lists([("a", "b")]), encoder, FeatureStore())


def test_exemplars_are_checked_with_the_weights(task: Task, tmp_path: Path) -> None:
    save_task(task, tmp_path / "toy")
    loaded = load_task(tmp_path / "toy")
    assert loaded.exemplars is not None and task.exemplars is not None
    assert torch.equal(loaded.exemplars.vectors, task.exemplars.vectors)
    assert torch.equal(loaded.exemplars.targets, task.exemplars.targets)
    assert "exemplars" not in json.loads((tmp_path / "toy" / "task.json").read_text())

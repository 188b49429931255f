"""Validation rows that several tasks share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ytuning.data.common_holdout import common_holdout
from ytuning.data.dataset import Dataset, from_lists, labels_of
from ytuning.data.splits import split_holdout
from ytuning.errors import DataError

ROWS = 600
TEXTS = [f"text {number}" for number in range(ROWS)]


def columns(seed: int = 0) -> dict[str, Dataset]:
    """Columns of several kinds on the same rows, with frequent and rare labels."""
    draws = np.random.default_rng(seed)
    skewed = draws.choice(["a", "b", "c", "d"], ROWS, p=[0.7, 0.2, 0.08, 0.02]).tolist()
    several = [tuple(name for name in ("x", "y", "z") if draws.random() < 0.3) for _ in TEXTS]
    numbers = draws.normal(size=ROWS).tolist()
    return {
        "skewed": from_lists(TEXTS, skewed),
        "even": from_lists(TEXTS, draws.choice(["yes", "no"], ROWS).tolist()),
        "several": from_lists(TEXTS, several),
        "numbers": from_lists(TEXTS, numbers),
    }


def shares(rows: Dataset, held: np.ndarray) -> dict[object, float]:
    """The share of each label's rows that is held out."""
    labels = np.array([str(label) for label in labels_of(rows)])
    return {name: float(np.isin(np.flatnonzero(labels == name), held).mean()) for name in np.unique(labels)}


def test_all_tasks_hold_out_the_same_texts_in_their_shares() -> None:
    tasks = columns()
    held = common_holdout(tasks, seed=0)
    first = held["skewed"]
    assert all(np.array_equal(own, first) for own in held.values()) and 58 <= len(first) <= 66
    assert np.array_equal(first, np.unique(first))
    for name in ("skewed", "even"):
        assert all(0.05 <= share <= 0.2 for share in shares(tasks[name], first).values()), name
    assert not np.array_equal(first, common_holdout(tasks, seed=1)["skewed"])
    assert np.array_equal(first, common_holdout(columns(), seed=0)["skewed"])


@pytest.mark.parametrize("seed", range(5))
def test_every_label_keeps_a_train_row_and_gets_a_validation_row(seed: int) -> None:
    draws = np.random.default_rng(seed)
    texts = TEXTS[:120]
    # A label with two rows and one with a single row in each column, all at other places.
    tasks = {}
    for name, places in zip("abcdef", draws.permutation(len(texts)).reshape(-1, 3)[:6].tolist(), strict=True):
        labels = np.array(["often"] * len(texts))
        labels[places] = "twice", "twice", "once"
        tasks[name] = from_lists(texts, labels.tolist())
    for name, own in common_holdout(tasks, seed).items():
        labels = np.array(labels_of(tasks[name]))
        assert (labels[own] == "twice").sum() == 1 and "often" in labels[own]
        assert "once" not in labels[own]


def test_labels_of_several_a_row_keep_train_rows() -> None:
    labels = [("a", "rare") if number in (3, 4) else ("a",) if number % 2 else ("b",) for number in range(60)]
    tasks = {"several": from_lists(TEXTS[:60], labels), "other": from_lists(TEXTS[:60], ["x", "y"] * 30)}
    for seed in range(20):
        held = common_holdout(tasks, seed)["several"]
        assert len(set(held.tolist()) & {3, 4}) == 1


def test_empty_cells_leave_the_common_rows() -> None:
    tasks = columns()
    some = [row for row in range(ROWS) if row % 3]
    tasks["sparse"] = tasks["even"].select(some)
    held = common_holdout(tasks, seed=0)
    common = {TEXTS[row] for row in held["skewed"].tolist()}
    own = {tasks["sparse"].texts[row] for row in held["sparse"].tolist()}
    assert own == common & set(tasks["sparse"].texts) and 30 <= len(own) <= 50


def test_same_texts_are_on_one_side_in_all_tasks() -> None:
    tasks = {"first": from_lists([*TEXTS[:100], *TEXTS[:30]], ["a", "b"] * 65), "second": columns()["even"]}
    held = common_holdout(tasks, seed=2)
    texts = {name: {tasks[name].texts[row] for row in own.tolist()} for name, own in held.items()}
    assert len(held["first"]) > len(texts["first"]) and texts["first"] <= texts["second"]
    left = {tasks["first"].texts[row] for row in np.setdiff1d(np.arange(130), held["first"]).tolist()}
    assert not left & texts["second"]


def test_groups_stay_together() -> None:
    groups = [f"g{number % 40}" for number in range(ROWS)]
    tasks = {name: replace(rows, groups=groups) for name, rows in columns().items()}
    held = common_holdout(tasks, seed=0)["even"]
    whole = {groups[row] for row in held.tolist()}
    assert len(held) == 15 * len(whole) and 2 <= len(whole) <= 6


def test_no_task_holds_out_more_than_the_most() -> None:
    held = common_holdout(columns(), seed=0, most=20)
    assert {len(own) for own in held.values()} <= {18, 19, 20}


def test_a_single_task_holds_out_what_it_would_without_others() -> None:
    rows = columns()["skewed"]
    assert np.array_equal(common_holdout({"one": rows}, 4)["one"], split_holdout(rows, 4)[1])


def test_a_task_without_common_validation_rows_has_its_own() -> None:
    few = from_lists(["other 1", "other 2", "other 3"], ["a", "a", "b"])
    held = common_holdout({"few": few, "even": columns()["even"]}, seed=0)
    assert len(held["few"]) == 1
    lone = from_lists(["same"] * 4, ["a", "b", "a", "b"])
    with pytest.raises(DataError, match="no row can be held out for validation"):
        common_holdout({"lone": lone, "even": columns()["even"]}, seed=0)

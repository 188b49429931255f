"""The hold-out: shares of labels, copies of a row, other kinds of task."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_data import complaint
from ytuning.data.dataset import Dataset, from_lists
from ytuning.data.splits import count_shared, split_holdout
from ytuning.errors import DataError

pairs_and_labels = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from([None, "p"]), st.sampled_from("abcde")), min_size=1, max_size=120
)


def rows_of(rows: list[tuple[int, str | None, str]]) -> Dataset:
    """Rows of text number, second text and label; many are the same."""
    return Dataset([f"text {row[0]}" for row in rows], [row[2] for row in rows], [row[1] or "-" for row in rows])


@settings(deadline=None)
@given(pairs_and_labels, st.integers(0, 9), st.floats(0.01, 0.9), st.none() | st.integers(1, 20))
def test_laws_of_the_hold_out(
    rows: list[tuple[int, str | None, str]], seed: int, fraction: float, most: int | None
) -> None:
    dataset = rows_of(rows)
    try:
        train, validation = split_holdout(dataset, seed, fraction, most)
    except DataError:
        # Then no input can be taken out of train without a label losing its last row, or it is on too many rows.
        counts, inputs = Counter(dataset.names), Counter(zip(dataset.inputs, dataset.names, strict=True))
        for row, size in Counter(dataset.inputs).items():
            last = any(inputs[row, label] == count for label, count in counts.items())
            assert last or (most is not None and size > most)
        return
    assert train.dtype == validation.dtype == np.int64
    assert sorted([*train, *validation]) == list(range(len(rows)))
    assert train.tolist() == sorted(train)
    assert validation.tolist() == sorted(validation)
    assert len(validation) >= 1
    assert most is None or len(validation) <= most
    assert set(dataset.select(train).names) == set(dataset.names)
    assert count_shared(dataset.select(train), dataset.select(validation)) == 0
    again = split_holdout(dataset, seed, fraction, most)
    assert [part.tolist() for part in again] == [train.tolist(), validation.tolist()]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sets(st.sampled_from("abcdef"), max_size=3)), min_size=2, max_size=80),
    st.integers(0, 9),
    st.floats(0.05, 0.6),
)
def test_every_one_of_several_labels_keeps_a_train_row(
    rows: list[tuple[int, set[str]]], seed: int, fraction: float
) -> None:
    dataset = Dataset([f"text {row[0]}" for row in rows], [tuple(sorted(row[1])) for row in rows], kind="multi")
    try:
        train, validation = split_holdout(dataset, seed, fraction)
    except DataError:
        return
    labels = [{name for row in part for name in rows[row][1]} for part in (train, range(len(rows)))]
    assert labels[0] == labels[1]
    assert len(validation) and sorted([*train, *validation]) == list(range(len(rows)))


def test_a_label_that_is_never_the_rarest_of_its_rows_keeps_one() -> None:
    rows = [("a", "z"), ("a",), ("b", "z"), ("b",), *[("m",)] * 30]
    dataset = Dataset([f"text {number}" for number in range(len(rows))], rows, kind="multi")
    for seed in range(50):
        train, validation = split_holdout(dataset, seed)
        assert {"a", "b", "z", "m"} == {name for row in train for name in rows[row]}
        assert len(validation) >= 2


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8).filter(lambda counts: max(counts) > 1),
    st.integers(0, 9),
    st.floats(0.02, 0.5),
)
def test_a_hold_out_of_different_rows_is_exact_and_in_proportion(counts: list[int], seed: int, fraction: float) -> None:
    labels = [f"label {label}" for label, count in enumerate(counts) for _ in range(count)]
    dataset = from_lists([f"text {i}" for i in range(len(labels))], labels)
    _, validation = split_holdout(dataset, seed, fraction)
    target = max(1, round(fraction * len(labels)))
    assert len(validation) == min(target, sum(counts) - len(counts))
    held = Counter(dataset.select(validation).names)
    able = [f"label {label}" for label, count in enumerate(counts) if count > 1]
    if target >= len(able):
        assert set(held) == set(able)
    if len(able) == len(counts):  # nothing is capped by a label that has to stay
        for label, count in enumerate(counts):
            share = target * count / len(labels)
            assert held[f"label {label}"] <= max(1, np.ceil(share) + 1)


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=30), st.integers(0, 9), st.floats(0.3, 0.6))
def test_a_label_of_repeated_rows_is_held_out_too(copies: list[int], seed: int, fraction: float) -> None:
    texts = [f"text {text}" for text, count in enumerate(copies) for _ in range(count)]
    labels = [f"label {text % 2}" for text, count in enumerate(copies) for _ in range(count)]
    dataset = from_lists(texts, labels)
    different = Counter(label for _, label in set(zip(texts, labels, strict=True)))
    able = {label for label, count in different.items() if count > 1}
    if able and max(1, round(fraction * len(labels))) >= len(able):
        _, validation = split_holdout(dataset, seed, fraction)
        assert set(dataset.select(validation).names) == able


def test_balanced_labels_get_equal_shares_and_seeds_differ() -> None:
    labels = [f"label {i % 77}" for i in range(7700)]
    dataset = from_lists([f"text {i}" for i in range(7700)], labels)
    train, validation = split_holdout(dataset, seed=0)
    assert (len(train), len(validation)) == (6930, 770)
    assert set(Counter(dataset.select(validation).labels).values()) == {10}
    assert split_holdout(dataset, seed=1)[1].tolist() != validation.tolist()
    assert len(split_holdout(dataset, seed=0, most=100)[1]) == 100


def test_a_repeated_table_is_held_out_by_pairs_of_rows() -> None:
    texts = [f"text {i}" for i in range(100)] * 2
    dataset = from_lists(texts, ["x", "y"] * 100)
    _, validation = split_holdout(dataset, seed=3)
    assert len(validation) == 20
    assert (validation[:10] + 100).tolist() == validation[10:].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_where_repeated_rows_leave_little_choice(seed: int) -> None:
    # Only groups can stand for "x": the smallest does, whole, though its share is one row.
    small = from_lists([*"aaabb", *"cdefgh"], [*"xxxxx", *"yyyyyy"])
    assert split_holdout(small, seed, fraction=0.2)[1].tolist()[:2] == [3, 4]
    # "x" has nothing to give, so its share goes to "y".
    same = from_lists(["a"] * 10 + [f"text {i}" for i in range(10)], ["x"] * 10 + ["y"] * 10)
    assert Counter(same.select(split_holdout(same, seed)[1]).labels) == {"y": 2}
    # Each text of "a" is also the only row of another label: "b" gives the row, whose share it was not.
    tied = Dataset([*"ppqqrs"], [*"acadbb"])
    assert split_holdout(tied, seed)[1].tolist() in ([4], [5])
    # No group is small enough.
    groups = from_lists([*"aaabbb", "c"], [*"xxxxxx", "y"])
    assert "no row can be held out" in complaint(split_holdout, groups, seed, most=2)
    assert len(split_holdout(groups, seed, most=3)[1]) == 3


def test_the_same_text_with_another_second_text_is_another_input() -> None:
    dataset = from_lists([("q", f"answer {i}") for i in range(10)], ["x"] * 10)
    assert len(split_holdout(dataset, seed=0, fraction=0.3)[1]) == 3


# --- groups ---------------------------------------------------------------------------------------------------------

grouped_rows = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from("abc"), st.none() | st.sampled_from("pqrstuvw")),
    min_size=2,
    max_size=120,
)


@settings(deadline=None)
@given(grouped_rows, st.integers(0, 9), st.floats(0.02, 0.9), st.none() | st.integers(1, 20))
def test_no_group_is_on_both_sides(
    rows: list[tuple[int, str, str | None]], seed: int, fraction: float, most: int | None
) -> None:
    texts, labels, groups = (list(part) for part in zip(*rows, strict=True))
    dataset = Dataset([f"text {text}" for text in texts], labels, groups=groups)
    try:
        train, validation = split_holdout(dataset, seed, fraction, most)
    except DataError:
        return
    names = [{groups[row] for row in part} - {None} for part in (train, validation)]
    assert not names[0] & names[1]
    assert sorted([*train, *validation]) == list(range(len(rows))) and len(validation) >= 1
    assert {labels[row] for row in train} == set(labels)
    assert count_shared(dataset.select(train), dataset.select(validation)) == 0
    again = split_holdout(dataset, seed, fraction, most)
    assert [part.tolist() for part in again] == [train.tolist(), validation.tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_groups_keep_the_shares_of_labels_as_far_as_they_can(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = ["common" if number % 4 else "rare" for number in range(2000)]
    groups: list[str | None] = [f"user {number}" for number in generator.integers(0, 100, 2000)]
    dataset = Dataset([f"text {number}" for number in range(2000)], labels, groups=groups)
    _, validation = split_holdout(dataset, seed)
    held = Counter(labels[row] for row in validation)
    assert 160 <= len(validation) <= 240
    assert held["rare"] / len(validation) == pytest.approx(0.25, abs=0.08)


def test_few_large_groups_give_the_smallest() -> None:
    groups = ["large"] * 60 + ["small"] * 40
    dataset = Dataset([f"text {number}" for number in range(100)], ["x", "y"] * 50, groups=groups)
    for most in (None, 20):  # no group is so small
        assert split_holdout(dataset, 0, most=most)[1].tolist() == list(range(60, 100))


def test_a_row_without_a_group_is_a_group_of_its_own() -> None:
    texts = [f"text {number}" for number in range(100)]
    plain = from_lists(texts, ["x", "y"] * 50)
    held = split_holdout(plain, 3)[1].tolist()
    for empty in (None, float("nan"), "", "  "):
        alone = from_lists(texts, ["x", "y"] * 50, groups=[empty] * 100)
        assert alone.groups == [None] * 100
        assert split_holdout(alone, 3)[1].tolist() == held


def test_rows_with_the_same_text_link_their_groups() -> None:
    dataset = Dataset([*"abbcdefgh"], [*"xyxyxyxyx"], groups=[*"112233445"])
    for seed in range(10):
        train, validation = split_holdout(dataset, seed, 0.4)
        assert len({row in validation for row in (0, 1, 2, 3)}) == 1 and len(train)


def test_a_single_group_cannot_be_split() -> None:
    one = from_lists([*"abcd"], [*"xyxy"], groups=[7] * 4)
    remedy = (
        "so they are one group, which cannot be split into a training and a validation set. "
        "Use another column for groups= or give a validation set (validation=)."
    )
    assert complaint(split_holdout, one, 0) == f"the rows: all 4 rows have the value '7' in groups=, {remedy}"
    linked = from_lists([*"abbc"], [*"xyxy"], groups=[1, 1, 2, 2])
    assert complaint(split_holdout, linked, 0) == f"the rows: all 4 rows have linked values in groups=, {remedy}"


def test_a_label_of_one_group_stays_in_train() -> None:
    dataset = Dataset([*"abcdef"], [*"xxxyyy"], groups=[*"111223"])
    for seed in range(10):
        assert not set(split_holdout(dataset, seed, 0.5)[1]) & {0, 1, 2}
    apart = Dataset([*"abcd"], [*"xxyy"], groups=[*"1122"])
    assert complaint(split_holdout, apart, 0).startswith(
        "the rows: no row can be held out for validation, because each label needs a row of another group for "
    )


def test_the_hold_out_does_not_depend_on_the_hash_seed() -> None:
    program = """
from ytuning.data.dataset import from_lists
from ytuning.data.splits import split_holdout
texts = [f"some text of number {i % 90} and" + " more" * (i // 90 % 2) for i in range(200)]
rows = from_lists(texts, [f"label {i % 9}" for i in range(200)])
print(*split_holdout(rows, 5)[1])
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != "\n"


def test_nothing_to_hold_out() -> None:
    problem = "no row can be held out for validation, because each label needs another, different row for training. "
    same = from_lists(["a", "a", "b", "b"], ["x", "x", "y", "y"])
    assert complaint(split_holdout, same, 0) == (f"the rows: {problem}Add rows or give a validation set (validation=).")
    assert (
        complaint(split_holdout, from_lists(["a"]), 0)
        == "the rows: the rows have no labels. Give a label for each row."
    )


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_out_of_range(fraction: float) -> None:
    message = complaint(split_holdout, from_lists(["a", "b"], ["x", "x"]), 0, fraction)
    assert message == f"fraction must be between 0 and 1. Got {fraction!r} instead."


def test_most_out_of_range() -> None:
    message = complaint(split_holdout, from_lists(["a", "b"], ["x", "x"]), 0, most=0)
    assert message == "most must be 1 or more. Got 0 instead."


# --- other kinds ----------------------------------------------------------------------------------------------------


def test_a_row_of_several_labels_stands_for_its_rarest_one() -> None:
    labels = [["common"]] * 60 + [["common", "rare"]] * 20 + [[]] * 20
    _, held = split_holdout(from_lists([f"text {i}" for i in range(100)], labels), seed=1)
    found = Counter(tuple(labels[row]) for row in held)
    assert found == {("common",): 6, ("common", "rare"): 2, (): 2}


def test_a_label_of_one_row_among_several_stays_in_train() -> None:
    labels = [["a"], ["a"], ["a", "once"], ["a"]]
    for seed in range(8):
        assert 2 not in split_holdout(from_lists(list("wxyz"), labels), seed, fraction=0.5)[1]


def test_numbers_are_held_out_over_their_whole_range() -> None:
    numbers = np.random.default_rng(0).exponential(size=200)
    _, held = split_holdout(from_lists([f"text {i}" for i in range(200)], numbers), seed=0)
    places = np.argsort(np.argsort(numbers))[held]
    assert Counter((places // 20).tolist()) == dict.fromkeys(range(10), 2)


def test_numbers_most_of_which_are_equal() -> None:
    numbers = [0.0] * 90 + [0.5] * 10
    _, held = split_holdout(from_lists([f"text {i}" for i in range(100)], numbers), seed=0)
    assert Counter(numbers[row] for row in held) == {0.0: 9, 0.5: 1}

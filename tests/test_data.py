"""Data sets: columns, labels, complaints, and the hold-out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ytuning.data import (
    Columns,
    Dataset,
    check_labels_known,
    check_trainable,
    count_shared,
    from_lists,
    read_dataset,
    split_holdout,
)
from ytuning.errors import DataError, InputError
from ytuning.labels import LabelSet


def complaint(call: Any, *args: Any, **kwargs: Any) -> str:
    """What a call says about its input, in one line."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def labelled(*cells: object) -> list[dict[str, object]]:
    return [{"text": f"text {number}", "label": cell} for number, cell in enumerate(cells)]


# --- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "named", "chosen"),
    [
        ("text label", {}, Columns("text", None, "label")),
        ("label sentence", {}, Columns("sentence", None, "label")),
        ("sentence text label", {}, Columns("text", None, "label")),
        ("text text_pair label labels", {}, Columns("text", "text_pair", "label")),
        ("q a label", {"text": "q", "text_pair": "a"}, Columns("q", "a", "label")),
        ("text intent label", {"label": "intent"}, Columns("text", None, "intent")),
        ("text labels", {"label": "labels"}, Columns("text", None, "labels")),
        ("text labels", {"kind": "single"}, Columns("text", None, "labels")),
        ("text text_pair label", {"text": "text_pair"}, Columns("text_pair", None, "label")),
        ("text label labels", {"text": "label", "label": "labels"}, Columns("label", None, "labels")),
        ("text label", {"labelled": False}, Columns("text", None, None)),
        ("text other", {"labelled": False, "label": "gone"}, Columns("text", None, None)),
    ],
)
def test_columns_are_named_or_inferred(names: str, named: dict[str, Any], chosen: Columns) -> None:
    dataset = read_dataset([{name: f"in {name}" for name in names.split()}], **named)
    assert dataset.columns == chosen
    assert dataset.texts == [f"in {chosen.text}"]
    assert dataset.text_pairs == (chosen.text_pair and [f"in {chosen.text_pair}"])
    assert dataset.labels == (chosen.label and [f"in {chosen.label}"])


def test_a_named_column_that_is_missing_is_compared_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,lable\na,b\n")
    assert complaint(read_dataset, path, label="label") == (
        f"{path}: label= (--label) names the column 'label', which is not there. Did you mean 'lable'? "
        "The columns are 'text', 'lable'"
    )
    assert complaint(read_dataset, path, label="lable", text_pair="other") == (
        f"{path}: text_pair= (--text-pair) names the column 'other', which is not there. "
        "The columns are 'text', 'lable'"
    )


def test_columns_that_cannot_be_inferred_are_asked_for() -> None:
    assert complaint(read_dataset, [{"body": "a", "label": "b"}]) == (
        "the rows: there is no column 'text' or 'sentence'. Name the text column with text= (--text); "
        "the columns are 'body', 'label'"
    )
    assert complaint(read_dataset, [{"text": "a", "Label": "b"}]) == (
        "the rows: there is no column 'label' or 'labels'. Name the label column with label= (--label); "
        "the columns are 'text', 'Label'"
    )


def test_a_column_has_one_use() -> None:
    message = complaint(read_dataset, [{"text": "a", "label": "b"}], text="text", label="text")
    assert message == "each column can be used once. Got text='text', label='text'"


# --- sources --------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_rows(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "text_pair": ["c", "d"], "label": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (tmp_path / "t.tsv").write_text("text\ttext_pair\tlabel\na\tc\tx\nb\td\ty\n")
    sources = {
        str(tmp_path / "t.parquet"): tmp_path / "t.parquet",
        str(tmp_path / "t.tsv"): str(tmp_path / "t.tsv"),
        "the data frame": pd.DataFrame(columns),
        "the dataset": datasets.Dataset.from_dict(columns),
        "the columns": columns,
        "the rows": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }
    for name, source in sources.items():
        dataset = read_dataset(source)
        assert dataset == Dataset(
            ["a", "b"], ["x", "y"], ["c", "d"], source=name, columns=Columns("text", "text_pair", "label")
        )
        assert dataset.inputs == [("a", "c"), ("b", "d")]


def test_every_source_complains_about_its_cells_in_the_same_words(tmp_path: Path) -> None:
    columns = {"text": ["a", " "], "label": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("text,label\na,x\n ,y\n")
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": " ", "label": "y"}\n')
    problem = "row 2, column 'text': the text is only white space, ' '. Fill it in or remove the row"
    for path in sorted(tmp_path.iterdir()):
        assert complaint(read_dataset, path) == f"{path}, {problem}"
    assert complaint(read_dataset, pd.DataFrame(columns)) == f"the data frame, {problem}"
    assert complaint(read_dataset, datasets.Dataset.from_dict(columns)) == f"the dataset, {problem}"


def test_an_empty_second_text_is_refused() -> None:
    message = complaint(read_dataset, [{"text": "a", "text_pair": "", "label": "b"}])
    assert message == "the rows, row 1, column 'text_pair': the text pair is empty. Fill it in or remove the row"


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "b"],
        ("a", "b"),
        np.array(["a", "b"]),
        np.array(["a", "b"], object),
        pd.Series(["a", "b"], index=[5, 5]),
        pd.Series(["a", "b"], dtype="category"),
        iter(["a", "b"]),
    ],
)
def test_lists_of_texts(texts: object) -> None:
    assert from_lists(texts, np.array([1, 0])) == Dataset(["a", "b"], ["1", "0"])


@pytest.mark.parametrize(
    "pairs",
    [
        [("a", "c"), ("b", "d")],
        [["a", "c"], ["b", "d"]],
        np.array([["a", "c"], ["b", "d"]]),
        pd.DataFrame({"x": ["a", "b"], "y": ["c", "d"]}),
    ],
)
def test_lists_of_pairs(pairs: object) -> None:
    assert from_lists(pairs) == from_lists(["a", "b"], text_pairs=["c", "d"]) == Dataset(["a", "b"], None, ["c", "d"])
    assert from_lists(["a", "b"]).inputs == [("a", None), ("b", None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", ("b", "c")],), "the rows, row 2, column 'text': the text is not text but ('b', 'c') (tuple). Write "),
        (([("b", "c"), "de"],), "the rows, row 2: every row must be a pair of texts, as the first is. Got 'de' "),
        (([("b", "c", "d")],), "the rows, row 1: every row must be a pair of texts, as the first is. Got ('b', 'c', "),
        (([("a", "")],), "the rows, row 1, column 'text_pair': the text pair is empty. Fill it in or remove the row"),
        (([("a", "b")], None, ["c"]), "the rows, row 1, column 'text': the text is not text but ('a', 'b') (tuple)."),
        ((["a"], ["x", "y"]), "the rows: 1 texts but 2 labels"),
        ((["a"], None, ["x", "y"]), "the rows: 1 texts but 2 text_pairs"),
        ((["a"], "x"), "labels must be a list, an array or a series. Got 'x' instead."),
        (("a",), "texts must be a list, an array or a series. Got 'a' instead."),
        ((["a", None],), "the rows, row 2, column 'text': the text is missing. Fill it in or remove the row"),
        ((["a"], [None]), "the rows, row 1, column 'label': the label is missing. Fill it in or remove the row"),
        (([],), "the rows: there are no rows"),
    ],
)
def test_lists_that_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    assert complaint(from_lists, *arguments).startswith(message)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([3, -1, "007"], ["3", "-1", "007"]),
        ([True, np.bool_(False)], ["true", "false"]),
        ([np.int64(2), np.float32(1), 10.0, np.str_("x")], ["2", "1", "10", "x"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),
        (["0.5", "high"], ["0.5", "high"]),
        ([0.5, "high"], ["0.5", "high"]),
        (["1_0.5", "\u0663.\u0665"], ["1_0.5", "\u0663.\u0665"]),
        (["nan", "NA", " a "], ["nan", "NA", " a "]),
    ],
)
def test_labels_become_text(cells: list[object], names: list[str]) -> None:
    dataset = read_dataset(labelled(*cells))
    assert dataset.labels == names
    assert {type(name) for name in dataset.labels} == {str}


def test_labels_of_pandas_columns() -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1, 2]})
    for dtype in ("int8", "float64", "Int64", "category", "string"):
        assert read_dataset(frame.astype({"label": dtype})).labels == ["1", "2"]


@pytest.mark.parametrize("dtype", ["float64", "Int64", "string", "category", "object"])
def test_a_label_missing_in_pandas(dtype: str) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": pd.Series([1, None, 0.5 if dtype == "float64" else 2])})
    message = complaint(read_dataset, frame.astype({"label": dtype}))
    assert message == "the data frame, row 2, column 'label': the label is missing. Fill it in or remove the row"


@pytest.mark.parametrize("cell", [["x"], ("x", "y"), [], {"x"}, np.array(["x"])])
@pytest.mark.parametrize("kind", ["auto", "single"])
def test_a_list_of_labels_is_not_supported_yet(cell: object, kind: Any) -> None:
    message = complaint(read_dataset, labelled("x", cell), kind=kind)
    assert message.startswith("the rows, row 2, column 'label': the label is a list, ")
    assert message.endswith(": several labels a row (multi-label) are not supported yet. Give each row one label")


NO_MULTI = (
    "several labels a row (multi-label) are not supported yet. "
    "Use a column that holds one label a row, named with label= (--label)"
)


def test_multi_label_is_not_supported_yet() -> None:
    rows = [{"text": "a", "labels": ["x"]}]
    assert complaint(read_dataset, rows) == f"the rows, row 1, column 'labels': {NO_MULTI}"
    assert complaint(read_dataset, labelled("x"), kind="multi") == f"the rows, row 1, column 'label': {NO_MULTI}"
    assert "the label is a list, ['x']" in complaint(read_dataset, rows, label="labels")


def test_regression_is_not_supported_yet() -> None:
    message = complaint(read_dataset, labelled("x"), kind="regression")
    assert message.startswith("the rows, row 1, column 'label': numbers as targets (regression) are not supported yet.")


@pytest.mark.parametrize(
    "cells", [[1, 3.8], ["1", "3.8", "4.0"], [2.0, 1e-7], ["+.5e0", "1."][::-1], [np.float32(2), 0.5]]
)
def test_labels_that_are_fractions_are_regression(cells: list[object]) -> None:
    message = complaint(read_dataset, labelled(*cells))
    assert message.startswith("the rows, row 2, column 'label': the labels are numbers such as ")
    assert message.endswith(
        ", and regression is not supported yet. "
        "If each number is the name of a label, use kind='single' (--kind single)"
    )
    assert "such as" in complaint(from_lists, ["x"] * len(cells), cells)


def test_fractions_can_be_the_names_of_labels() -> None:
    assert read_dataset(labelled(0.5, 1.0, "2.50"), kind="single").labels == ["0.5", "1", "2.50"]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("", "the label is empty. Fill it in or remove the row"),
        ("\t", r"the label is only white space, '\t'. Fill it in or remove the row"),
        (None, "the label is missing. Fill it in or remove the row"),
        (float("nan"), "the label is missing. Fill it in or remove the row"),
        (np.float32("nan"), "the label is missing. Fill it in or remove the row"),
        (float("inf"), "the label is not text but inf (float). Write it as text"),
        ({"a": "b" * 80}, "the label is not text but {'a': '" + "b" * 50 + "... (dict). Write it as text"),
        ("\ud800", r"the label '\ud800' holds half a surrogate pair. Write whole characters"),
    ],
)
def test_a_cell_without_a_label(cell: object, problem: str) -> None:
    assert complaint(read_dataset, labelled("x", cell)) == f"the rows, row 2, column 'label': {problem}"


def test_kinds_are_listed() -> None:
    assert complaint(read_dataset, labelled("x"), kind="other") == (
        "kind must be one of 'auto', 'single', 'multi', 'regression'. Got 'other' instead."
    )


def test_prediction_ignores_labels() -> None:
    assert read_dataset([{"text": "a", "label": ["x"]}], labelled=False, kind="regression").labels is None


# --- Dataset --------------------------------------------------------------------------------------------------------


def test_selected_rows_keep_their_numbers() -> None:
    rows = [{"body": f"t{i}", "text_pair": f"p{i}", "tag": f"l{i}"} for i in range(5)]
    dataset = read_dataset(rows, text="body", label="tag")
    part = dataset.select(np.array([4, 1, 3])).select([2, 0])
    assert len(part) == 2
    assert part.inputs == [("t3", "p3"), ("t4", "p4")]
    assert part.labels == ["l3", "l4"]
    assert part.rows == [4, 5]
    assert str(part.error(1, "label", "no")) == "the rows, row 5, column 'tag': no"
    assert str(dataset.error(1, "text", "no")) == "the rows, row 2, column 'body': no"
    assert str(from_lists(["a"]).error(0, "text", "no")) == "the rows, row 1, column 'text': no"


def test_a_data_set_has_rows_of_one_number() -> None:
    assert complaint(from_lists(["a"]).select, []) == "the rows: there are no rows"
    assert complaint(Dataset, ["a"], ["x"], source="t.csv", rows=[1, 2]) == "t.csv: 1 texts but 2 rows"


# --- checks ---------------------------------------------------------------------------------------------------------


def test_training_needs_labels_that_differ() -> None:
    for holdout in (False, True):
        assert complaint(check_trainable, from_lists(["a", "b"], ["x", "x"]), holdout=holdout) == (
            "the rows, row 1, column 'label': all 2 rows have the label 'x'. Training needs two labels or more"
        )
    assert complaint(check_trainable, from_lists(["a"]), holdout=True) == "the rows: the rows have no labels"


def test_a_hold_out_needs_two_rows_of_each_label() -> None:
    dataset = from_lists(list("abcd"), ["x", "y", "x", "z"]).select([2, 1, 0, 3])
    check_trainable(dataset, holdout=False)
    assert complaint(check_trainable, dataset, holdout=True) == (
        "the rows, row 2, column 'label': the label 'y' occurs once. Add a second row with it, remove this row, "
        "or give a validation file (--validation)"
    )
    check_trainable(from_lists(list("abcd"), ["x", "y", "x", "y"]), holdout=True)


def test_labels_that_were_not_trained_on() -> None:
    label_set = LabelSet(("billing", "login"))
    check_labels_known(from_lists(["a"], ["login"]), label_set, "test")
    dataset = from_lists(list("abcd"), ["login", "biling", "shipping", "login"])
    assert complaint(check_labels_known, dataset, label_set, "test") == (
        "the rows, row 2, column 'label': the label 'biling' does not occur in the training data "
        "(2 test rows have such labels). Did you mean 'billing'?"
    )
    assert complaint(check_labels_known, dataset.select([2]), label_set, "validation") == (
        "the rows, row 3, column 'label': the label 'shipping' does not occur in the training data "
        "(1 validation row has such a label). The 2 labels are 'billing', 'login'"
    )


def test_shared_rows_are_counted_in_the_second() -> None:
    first, second = from_lists(["a", "a", "b", "c"]), from_lists(["a", "b", "b", "B", "b "])
    assert count_shared(first, second) == 3
    assert count_shared(second, first) == 3
    pairs = from_lists([("a", "b"), ("b", "a"), ("a", "c")])
    assert count_shared(first, pairs) == 0
    assert count_shared(from_lists([("b", "a")]), pairs) == 1


# --- hold-out -------------------------------------------------------------------------------------------------------

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
        counts, inputs = Counter(dataset.labels), Counter(zip(dataset.inputs, dataset.labels or [], strict=True))
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
    assert set(dataset.select(train).labels or []) == set(dataset.labels or [])
    assert count_shared(dataset.select(train), dataset.select(validation)) == 0
    again = split_holdout(dataset, seed, fraction, most)
    assert [part.tolist() for part in again] == [train.tolist(), validation.tolist()]


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
    held = Counter(dataset.select(validation).labels)
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
        assert set(dataset.select(validation).labels or []) == able


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


def test_the_hold_out_does_not_depend_on_the_hash_seed() -> None:
    program = """
from ytuning.data import from_lists, split_holdout
print(*split_holdout(from_lists([f"text {i % 90}" for i in range(100)], [f"label {i % 9}" for i in range(100)]), 5)[1])
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
    problem = "no row can be held out for validation, as each label needs another, different row to train on. "
    same = from_lists(["a", "a", "b", "b"], ["x", "x", "y", "y"])
    assert complaint(split_holdout, same, 0) == (
        f"the rows: {problem}Add rows or give a validation file (--validation)"
    )
    assert complaint(split_holdout, from_lists(["a"]), 0) == "the rows: the rows have no labels"


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_out_of_range(fraction: float) -> None:
    message = complaint(split_holdout, from_lists(["a", "b"], ["x", "x"]), 0, fraction)
    assert message == f"fraction must be between 0 and 1. Got {fraction!r} instead."


def test_most_out_of_range() -> None:
    message = complaint(split_holdout, from_lists(["a", "b"], ["x", "x"]), 0, most=0)
    assert message == "most must be 1 or more. Got 0 instead."

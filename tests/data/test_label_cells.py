"""Cells of labels in the forms of annotation tools, lists written as text, and lists of 0 and 1."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_data import complaint, labelled
from ytuning.data.dataset import from_lists, read_dataset
from ytuning.data.labels import label_name
from ytuning.errors import InputError

FORMS = ("rows", "csv", "tsv", "jsonl", "json", "parquet", "pandas", "datasets")


def source_of(form: str, folder: Path, cells: list[Any], name: str = "label") -> Any:
    """Rows with these labels, as a file or an object of one form."""
    rows = [{"text": f"text {number}", name: cell} for number, cell in enumerate(cells)]
    path = folder / f"t.{form}"
    if form in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if form == "csv" else "\t")
            writer.writerows([["text", name], *(row.values() for row in rows)])
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        return {"rows": rows, "pandas": pd.DataFrame(rows), "datasets": datasets.Dataset.from_list(rows)}[form]
    return path


# --- the same value, wherever it comes from ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("cells", "names"),
    [([True, False], ["true", "false"]), ([1, 2], ["1", "2"]), ([1.0, 2.0], ["1", "2"]), (["a", " a"], ["a", "a"])],
)
def test_one_value_is_one_label_from_every_source(
    form: str, cells: list[Any], names: list[str], tmp_path: Path
) -> None:
    for kind in ("single", "ordinal"):
        assert read_dataset(source_of(form, tmp_path, cells), kind=kind).labels == names
    several = read_dataset(source_of(form, tmp_path, cells), kind="multi")
    assert several.labels == [(name,) for name in names]


def test_texts_that_were_read_in_another_form_are_told() -> None:
    found = read_dataset(labelled("2.0", "pos\u200b", "2", "TRUE"))
    assert found.labels == ["2", "pos", "2", "true"]
    assert found.notes == (
        "these labels are read in another form: '2.0' as '2', 'pos\\u200b' as 'pos', 'TRUE' as 'true'.",
    )
    assert read_dataset(labelled("2", " pos ", 2.0, True)).notes == ()
    assert read_dataset(labelled("1.0", "2.5")).notes == ()


def test_labels_that_look_alike_are_told_with_their_rows() -> None:
    found = read_dataset(labelled("pos", "pos", "p\u043es", "Pos"))
    assert found.notes == (
        "these labels look alike and are different labels: 'Pos' (row 4), 'pos' (row 1), 'p\u043es' (row 3). "
        "They differ in '\u043e' (U+043E CYRILLIC SMALL LETTER O). Give labels that mean the same one spelling.",
    )
    assert from_lists(list("abcd"), [["x"], ["X"], [], ["x"]]).notes[0].startswith("these labels look alike")
    assert read_dataset({"text": ["a"], "x\u200b": [1], "X": [0]}, label=["x\u200b", "X"]).notes == (
        "these labels are read in another form: 'x\\u200b' as 'x'.",
        "these labels look alike and are different labels: 'X', 'x'. Give labels that mean the same one spelling.",
    )


def test_groups_have_the_form_of_labels() -> None:
    rows = [{"text": "a", "label": "x", "user": user} for user in (1, 1.0, "1.0", " 1", None, "", (1, 2))]
    assert read_dataset(rows, group="user").groups == ["1", "1", "1", "1", None, None, "(1, 2)"]


# --- lists and objects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_choices_of_label_studio(form: str, tmp_path: Path) -> None:
    cells: list[Any] = [{"choices": ["delivery"]}, {"choices": ["delivery", "late"]}]
    if form in ("csv", "tsv"):
        cells = [json.dumps(cell) for cell in cells]
    found = read_dataset(source_of(form, tmp_path, cells))
    assert (found.kind, found.labels) == ("multi", [("delivery",), ("delivery", "late")])
    assert any("Label Studio's" in note and "row 1" in note for note in found.notes)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["['a', 'b']", "['a']", "[]"], [("a", "b"), ("a",), ()]),
        (["('a',)", '("b", "a")'], [("a",), ("b", "a")]),
        (["{'b', 'a'}", "['it\\'s']"], [("a", "b"), ("it's",)]),
        (['["a", "b"]', "[1.0, true, 2]"], [("a", "b"), ("1", "true", "2")]),
        (["{'choices': ['a', 'b']}", '{"choices": "b"}'], [("a", "b"), ("b",)]),
        (["a, b", '{"choices": ["a, b", "c"]}'], [("a, b",), ("a, b", "c")]),
        (['{"a": 1, "b": 0}', '{"a": true, "b": 1.0}', "{'a': False, 'b': False}"], [("a",), ("a", "b"), ()]),
        ([{"a": 1.0, "b": 0.0}, {"a": 0, "b": 1}], [("a",), ("b",)]),
        ([frozenset("a"), frozenset("ba")], [("a",), ("a", "b")]),
        ([np.array(["a", "b"]), np.array(["a"])], [("a", "b"), ("a",)]),
        ([[{"value": "a", "status": "submitted"}, {"value": "b", "status": "discarded"}], ["b"]], [("a",), ("b",)]),
        ([[{"value": ["a", "b"]}, {"value": ["b", "a"]}], [{"value": ["a"]}]], [("a", "b"), ("a",)]),
    ],
)
def test_lists_and_objects_in_cells(cells: list[Any], expected: list[tuple[str, ...]]) -> None:
    for kind in ("auto", "multi"):
        found = read_dataset(labelled(*cells), kind=kind)
        assert (found.kind, found.labels) == ("multi", expected)
        assert bool(found.notes) == isinstance(cells[0], str | dict) or "Argilla" in found.notes[0]


def test_a_list_of_one_label_is_that_label_where_a_row_has_one() -> None:
    cells = ["['a']", '{"choices": ["b"]}', ["c"], [{"value": "d"}], "e"]
    assert read_dataset(labelled(*cells), kind="single").labels == ["a", "b", "c", "d", "e"]
    assert read_dataset(labelled([1.5], ["2"]), kind="regression").labels == [1.5, 2.0]


def test_responses_of_argilla() -> None:
    rows = [{"text": "a", "label.responses": ["x", "x"]}, {"text": "b", "label.responses": ["y"]}]
    found = read_dataset(rows, label="label.responses")
    assert (found.kind, found.labels) == ("single", ["x", "y"])
    rows[1]["label.responses"] = ["y", "x"]
    assert complaint(read_dataset, rows, label="label.responses") == (
        "the rows, row 2, column 'label.responses': the annotators disagree: ['y', 'x']. Keep one response or remove "
        "the row."
    )


@pytest.mark.parametrize("kind", ["auto", "multi", "single"])
@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("['a' 'b']", "the labels \"['a' 'b']\" are not a valid list ("),
        ("[1 0 0]", "the labels '[1 0 0]' are not a valid list ("),
        ("[a, b]", "the labels '[a, b]' are not a valid list ("),
        ('["a"', "the labels '[\"a\"' are not a valid list ("),
        ('{"choices": ["a"', 'the labels \'{"choices": ["a"\' are not a valid object ('),
        ("['a', b]", "the labels \"['a', b]\" are not a valid list ("),
        ("['\\d']", "the labels \"['\\\\d']\" are not a valid list ("),
        ("[" * 100_000 + "]" * 100_000, "the labels '[[[[["),
        ([[0, 5, "PER"]], "the labels [[0, 5, 'PER']] are spans of the text"),
        ('[[0, 5, "PER"]]', "the labels [[0, 5, 'PER']] are spans of the text"),
        ([{"start": 0, "end": 5, "label": "PER"}], "the labels [{'start': 0, 'end': 5, 'label': 'PER'}] are spans of "),
        ([{"value": {"start": 0, "end": 5, "labels": ["PER"]}}], "the labels [{'value': {'start': 0, 'end': 5, 'label"),
        ([{"label": "a", "score": 0.9}], "the labels are a list of objects with the keys 'label', 'score'. Write the"),
        ([{"value": "a"}, {"value": "b"}], "the annotators disagree: ['a', 'b']. Keep one response or remove the row."),
        ([{"value": "a", "status": "draft"}], "there is no submitted response. Fill it in or remove the row."),
        ({"a": 0.9, "b": 0.1}, "the label is an object with the keys 'a', 'b'. Read are "),
        ('{"rating": 1}', "the label is an object with the keys 'rating'. Read are "),
        ('{"taxonomy": [["a", "b"]]}', "the label is an object with the keys 'taxonomy'. Read are "),
        ({"start": 0, "end": 1}, "the label is an object with the keys 'start', 'end'. Read are "),
        ("[null]", "the label is missing. Fill it in or remove the row."),
        ("[None]", "the label is missing. Fill it in or remove the row."),
    ],
)
def test_cells_that_are_refused_with_their_row(cell: object, problem: str, kind: Any) -> None:
    message = complaint(read_dataset, labelled("x", cell), kind=kind)
    assert message.startswith(f"the rows, row 2, column 'label': {problem}")


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_brackets_that_are_part_of_a_name(kind: Any) -> None:
    names = ["refund [EU]", "[EU] refund", "(other)", "a {b}", "(a", "[UNK]", "{x}"]
    found = read_dataset(labelled(*names), kind=kind)
    assert found.labels == (names if kind == "single" else [(name,) for name in names])
    assert found.notes == ("brackets or quotes are part of these labels: '[UNK]', '{x}'.",)


def test_quotes_around_a_label_are_none_of_it() -> None:
    for kind in ("single", "multi"):
        found = read_dataset(labelled('"a, b"', "'c'", "c"), kind=kind)
        assert found.labels == (["a, b", "c", "c"] if kind == "single" else [("a, b",), ("c",), ("c",)])
        assert found.notes[0].startswith("these labels are read in another form: ")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["a#b", "a", "C#"], [("a", "b"), ("a",), ("C#",)]),
        (["C##a", "b"], [("C#", "a"), ("b",)]),
        (["C#", "F#"], [("C#",), ("F#",)]),
        (["C#|a#b"], [("C#", "a#b")]),
    ],
)
def test_the_mark_of_doccano(cells: list[str], expected: list[tuple[str, ...]]) -> None:
    found = read_dataset(labelled(*cells), kind="multi")
    assert found.labels == expected
    assert any("'#' separates" in note for note in found.notes) == (found.separator == "#")


@pytest.mark.parametrize("cells", [("a#b", "a", "c"), ("1,0,0", "0,1,1"), ("a|b", "b|a"), ("x; y", "y")])
def test_names_that_may_be_several_labels_are_told(cells: tuple[str, ...]) -> None:
    found = read_dataset(labelled(*cells))
    assert found.labels == list(cells)
    assert f"in labels such as {cells[0]!r} may separate several labels of a row" in found.notes[0]
    assert read_dataset(labelled("food, fruit", "meat")).notes == ()


# --- Prodigy ----------------------------------------------------------------------------------------------------------


def test_rows_that_an_annotator_did_not_accept_are_refused() -> None:
    rows = [{"text": "a", "accept": ["x"], "answer": "accept"}, {"text": "b", "accept": ["y"], "answer": "accept"}]
    assert read_dataset(rows, label="accept").labels == [("x",), ("y",)]
    assert read_dataset(rows, label="accept", kind="single").labels == ["x", "y"]
    rows.append({"text": "c", "accept": [], "answer": "ignore"})
    assert complaint(read_dataset, rows, label="accept") == (
        "the rows, row 3, column 'answer': the answer is 'ignore', so its label was not accepted (as in 1 of 3 rows). "
        "Remove these rows, or the column if it means something else."
    )
    assert read_dataset(rows, label="answer").labels == ["accept", "accept", "ignore"]
    assert read_dataset(rows, labelled=False).labels is None
    rows.append({"text": "d", "accept": ["x"], "answer": "42"})
    assert len(read_dataset(rows, label="accept")) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"id": 1, "data": {"text": "a"}, "annotations": [{"result": []}]},
            "the rows: there is no column 'text' or 'sentence'. This is a full export of Label Studio. Export as "
            "JSON-MIN, CSV or TSV.",
        ),
        (
            {"id": 1, "fields": {"text": "a"}, "responses": {"label": [{"value": "x"}]}},
            "the rows: there is no column 'text' or 'sentence'. These are records of Argilla. Export them with "
            "to_datasets().",
        ),
    ],
)
def test_exports_whose_rows_are_nested_are_named(row: dict[str, Any], message: str) -> None:
    assert complaint(read_dataset, [row]) == message


# --- lists of 0 and 1 -------------------------------------------------------------------------------------------------

FLAGS = [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
NAMED = [("x",), ("y", "z"), ()]


@pytest.mark.parametrize("form", FORMS)
def test_lists_of_0_and_1_need_names(form: str, tmp_path: Path) -> None:
    source = source_of(form, tmp_path, FLAGS)
    message = complaint(read_dataset, source)
    assert message.endswith(
        "row 1, column 'label': every row is a list of 3 values, each 0 or 1, which says by place what labels it has. "
        "Name the labels in their order with label_names='A,B,...', or write their names in the lists."
    )
    for names in ("x, y,z", ["x", "y", "z"]):
        found = read_dataset(source, label_names=names)
        assert (found.kind, found.labels) == ("multi", NAMED)


@pytest.mark.parametrize(
    "cells",
    [
        [tuple(row) for row in FLAGS],
        [[bool(flag) for flag in row] for row in FLAGS],
        [[float(flag) for flag in row] for row in FLAGS],
        [[str(flag) for flag in row] for row in FLAGS],
        list(np.array(FLAGS)),
        list(np.array(FLAGS, np.float32)),
        list(torch.tensor(FLAGS)),
        ["1,0,0", "0, 1, 1", "0,0,0"],
        ["1|0|0", "0|1|1", "0|0|0"],
        ["[True, False, False]", "[False, True, True]", "[0, 0, 0]"],
    ],
)
def test_forms_of_lists_of_0_and_1(cells: list[Any]) -> None:
    assert "label_names" in complaint(read_dataset, labelled(*cells), kind="multi")
    assert read_dataset(labelled(*cells), kind="multi", label_names="x,y,z").labels == NAMED


def test_arrays_of_0_and_1_in_memory() -> None:
    for labels in (np.array(FLAGS), torch.tensor(FLAGS), FLAGS):
        assert "label_names" in complaint(from_lists, ["a", "b", "c"], labels)


@pytest.mark.parametrize("cells", [[[0], [1]], [[1], [1]], [["0"], ["1"]]])
def test_lists_of_a_single_0_or_1_are_lists_of_0_and_1(cells: list[Any]) -> None:
    assert "a list of 1 value, each 0 or 1" in complaint(read_dataset, labelled(*cells))
    assert read_dataset(labelled(*cells), kind="single").kind == "single"


@pytest.mark.parametrize("cells", [[[0, 1], [1], []], [[0, 2], [1, 0]], [{0, 1}, {1}], [["0", "a"], ["1", "a"]]])
def test_lists_of_other_things_are_lists_of_labels(cells: list[Any]) -> None:
    found = read_dataset(labelled(*cells))
    assert found.kind == "multi" and {"0", "1"} <= {name for row in found.labels or () for name in row}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cells", "options", "problem"),
    [
        ([[1, 0], [0, 1]], {"label_names": "a,b,c"}, "label_names='A,B,...'. Got 3 names instead."),
        ([[1, 0], [0, 2]], {"label_names": "a,b"}, "Got [0, 2] instead. Correct it or leave out label_names=."),
        ([[1, 0], [0]], {"label_names": "a,b"}, "row 2, column 'label': label_names= is for lists of"),
        (["a", "b"], {"label_names": "a,b"}, "of the kind 'multi'. Got 'single' instead. Leave it out."),
    ],
)
def test_names_of_places_that_do_not_fit(cells: list[Any], options: dict[str, Any], problem: str) -> None:
    assert problem in complaint(read_dataset, labelled(*cells), **options)


def test_columns_have_names_of_their_own() -> None:
    table = {"text": ["a"], "x": [1], "y": [0]}
    assert "Leave it out" in complaint(read_dataset, table, label="x,y", label_names="a,b")


# --- class names of `datasets` ----------------------------------------------------------------------------------------

CLASSES = datasets.ClassLabel(names=["admiration", "anger", "joy"])


@pytest.mark.parametrize(
    "feature",
    [datasets.Sequence(CLASSES), datasets.List(CLASSES), datasets.LargeList(CLASSES)],
    ids=["s", "l", "large"],
)
def test_lists_of_class_labels_give_names(feature: Any) -> None:
    rows = {"text": ["a", "b", "c", "d"], "labels": [[0], [1, 2], [], [2]]}
    features = datasets.Features({"text": datasets.Value("string"), "labels": feature})
    data = datasets.Dataset.from_dict(rows, features=features)
    assert read_dataset(data).labels == [("admiration",), ("anger", "joy"), (), ("joy",)]
    assert read_dataset(data.with_format("numpy")).labels == read_dataset(data).labels
    missing = datasets.Dataset.from_dict({**rows, "labels": [[0], [-1], [], [2]]}, features=features)
    assert complaint(read_dataset, missing) == (
        "the dataset, row 2, column 'labels': the label is missing. Fill it in or remove the row."
    )


def test_lists_of_class_labels_that_look_like_0_and_1_give_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(CLASSES)})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [[0, 1], [1, 0]]}, features=features)
    assert read_dataset(data).labels == [("admiration", "anger"), ("anger", "admiration")]


@pytest.mark.parametrize("feature", [CLASSES, datasets.List(CLASSES)], ids=["one", "list"])
def test_class_names_in_parquet_files_of_datasets(feature: Any, tmp_path: Path) -> None:
    labels = [0, 2] if feature is CLASSES else [[0], [2, 1]]
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)
    data.to_parquet(tmp_path / "t.parquet")
    found = read_dataset(tmp_path / "t.parquet")
    assert found.labels == read_dataset(data).labels
    assert found.kind == ("single" if feature is CLASSES else "multi")


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": 1}', b'{"info": {"features": {"label": [], "x": null}}}'])
def test_foreign_metadata_of_parquet_files_says_nothing(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read_dataset(tmp_path / "t.parquet").labels == ["1"]


# --- laws -------------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: label_name(name) == name)


@given(st.lists(st.lists(NAMES, unique=True), min_size=1), st.sampled_from([repr, json.dumps]))
def test_a_list_as_text_is_the_list_or_is_refused(rows: list[list[str]], written: Callable[[list[str]], str]) -> None:
    texts = [f"text {number}" for number in range(len(rows))]
    try:
        read = from_lists(texts, [written(row) for row in rows], kind="multi").labels
    except InputError as error:
        # Python's other escapes are not read, and lists of 0 and 1 need names.
        assert (
            "is not a valid list" in str(error) or "are not a valid list" in str(error) or "label_names" in str(error)
        )
    else:
        assert read == [tuple(row) for row in rows]


def test_labels_that_may_stand_for_a_missing_value_are_told() -> None:
    found = read_dataset(labelled("x", "NULL", "y", r"\N"))
    assert found.labels == ["x", "NULL", "y", r"\N"]
    expected = r"may stand for a missing value and are read as names: 'NULL' (row 2), '\\N' (row 4). Remove their rows"
    assert expected in found.notes[0]
    assert read_dataset(labelled("x", "nano", "Nancy")).notes == ()


def test_numbers_with_a_decimal_comma_are_told() -> None:
    found = read_dataset(labelled("0,5", "1,5", "-0,7"))
    assert (found.kind, found.labels) == ("single", ["0,5", "1,5", "-0,7"])
    assert found.notes == (
        "these labels are read as names: '0,5', '1,5', '-0,7'. If they are numbers, write a point instead of the "
        "comma.",
    )

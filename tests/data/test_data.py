"""Data sets: columns, labels, complaints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ytuning.data.columns import Columns
from ytuning.data.dataset import (
    Dataset,
    from_lists,
    labels_of,
    read_dataset,
    unsplit_names,
)
from ytuning.data.kinds import MultiLabel, Regression, SingleLabel, fit_kind
from ytuning.data.labels import LabelSet
from ytuning.data.splits import check_labels_known, check_trainable, count_shared
from ytuning.errors import InputError


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
        f"{path}: label= names the column 'label', which is not there. Did you mean 'lable'? "
        "The columns are 'text', 'lable'."
    )
    assert complaint(read_dataset, path, label="lable", text_pair="other") == (
        f"{path}: text_pair= names the column 'other', which is not there. The columns are 'text', 'lable'."
    )


def test_columns_that_cannot_be_inferred_are_asked_for() -> None:
    assert complaint(read_dataset, [{"body": "a", "label": "b"}]) == (
        "the rows: there is no column 'text' or 'sentence'. Name the text column with text=; "
        "the columns are 'body', 'label'."
    )
    assert complaint(read_dataset, [{"text": "a", "Label": "b"}]) == (
        "the rows: there is no column 'label' or 'labels'. Did you mean 'Label'? Name the label column with "
        "label=; the columns are 'text', 'Label'."
    )


def test_a_column_that_has_another_use_is_told() -> None:
    table = [{"text": "a", "label": "b"}]
    assert complaint(read_dataset, table, label="text") == (
        "the rows: label= uses the column 'text' already, and there is no other column 'text' or 'sentence'. "
        "Name the text column with text=; the columns are 'text', 'label'."
    )
    assert complaint(read_dataset, table, text="label") == (
        "the rows: text= uses the column 'label' already, and there is no other column 'label' or 'labels'. "
        "Name the label column with label=; the columns are 'text', 'label'."
    )
    assert complaint(read_dataset, table, text_pair="text").startswith(
        "the rows: text_pair= uses the column 'text' already, and there is no other column 'text' or "
    )


def test_a_group_column_may_be_that_of_the_texts() -> None:
    rows = [
        {"text": "a", "text_pair": "p", "label": "x", "user": 1},
        {"text": "b", "text_pair": "p", "label": "y", "user": None},
    ]
    assert read_dataset(rows).groups is None
    found = read_dataset(rows, group="user")
    assert found.groups == ["1", None]
    assert found.columns is not None and found.columns.spelt["group"] == "user"
    assert found.select([1]).groups == [None]
    assert read_dataset(rows, group="text_pair").groups == ["p", "p"]


def test_a_column_has_one_use() -> None:
    message = complaint(read_dataset, [{"text": "a", "label": "b"}], text="text", label="text")
    assert message == "each column can have only one use. Got text='text', label='text'."


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
    problem = "row 2, column 'text': the text ' ' has only white space. Fill it in or remove the row."
    for path in sorted(tmp_path.iterdir()):
        assert complaint(read_dataset, path) == f"{path}, {problem}"
    assert complaint(read_dataset, pd.DataFrame(columns)) == f"the data frame, {problem}"
    assert complaint(read_dataset, datasets.Dataset.from_dict(columns)) == f"the dataset, {problem}"


def test_an_empty_second_text_is_refused() -> None:
    message = complaint(read_dataset, [{"text": "a", "text_pair": "", "label": "b"}])
    assert message == "the rows, row 1, column 'text_pair': the text pair is empty. Fill it in or remove the row."


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
        ((["a", ("b", "c")],), "the rows, row 2, column 'text': the text is ('b', 'c') (tuple), not text. Write "),
        (([("b", "c"), "de"],), "the rows, row 2: every row must be a pair of texts, as the first is. Got 'de' "),
        (
            ([("b", "c", "d")],),
            "the rows, row 1: every row must be a text or a pair of texts. Got ('b', 'c', 'd') instead.",
        ),
        (
            ([("a", "")], ["x"]),
            "the rows, row 1, column 'text_pair': the text pair is empty. Fill it in or remove the ",
        ),
        (([["a"], ["b", "c"]],), "the rows, row 2: every row must be a text, as the first is. Got ['b', 'c'] instead."),
        (([("a", "b")], None, ["c"]), "the rows, row 1, column 'text': the text is ('a', 'b') (tuple), not text."),
        ((["a"], ["x", "y"]), "the rows: there are 1 texts but 2 labels. Give one for each text."),
        ((["a"], None, ["x", "y"]), "the rows: there are 1 texts but 2 text_pairs. Give one for each text."),
        ((["a"], "x"), "labels must be a list, an array or a series. Got 'x' instead."),
        (("a",), "texts must be a list, an array or a series. Got 'a' instead."),
        ((["a", None],), "the rows, row 2, column 'text': the text is missing. Fill it in or remove the row."),
        ((["a"], [None]), "the rows, row 1, column 'label': the label is missing. Fill it in or remove the row."),
        (([],), "the rows: there are no rows. Give at least one."),
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
        (["1.0", "2.0", "v2.0"], ["1", "2", "v2.0"]),
        (["0.5", "high"], ["0.5", "high"]),
        ([0.5, "high"], ["0.5", "high"]),
        (["1_0.5", "\u0663.\u0665"], ["1_0.5", "\u0663.\u0665"]),
        (["nan", "NA", "a b"], ["nan", "NA", "a b"]),
    ],
)
def test_labels_become_text(cells: list[object], names: list[str]) -> None:
    dataset = read_dataset(labelled(*cells))
    assert dataset.labels == names
    assert {type(name) for name in dataset.labels} == {str}


@pytest.mark.parametrize("kind", ["single", "ordinal", "multi", "auto"])
def test_white_space_around_a_label_is_none_of_it(kind: Any) -> None:
    cells = ["card", " card", "card\t", "\u00a0card\u2003", "card x"]
    names = ["card", "card", "card", "card", "card x"]
    expected = [(name,) for name in names] if kind == "multi" else names
    assert read_dataset(labelled(*cells), kind=kind).labels == from_lists(list("abcde"), cells, kind=kind).labels
    assert read_dataset(labelled(*cells), kind=kind).labels == expected
    assert from_lists(["a"], [["card ", " card", "x"]]).labels == [("card", "x")]
    assert read_dataset(labelled('["card ", " x"]'), kind="multi").labels == [("card", "x")]


def test_labels_of_pandas_columns() -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1, 2]})
    for dtype in ("int8", "float64", "Int64", "category", "string"):
        assert read_dataset(frame.astype({"label": dtype})).labels == ["1", "2"]


@pytest.mark.parametrize("dtype", ["float64", "Int64", "string", "category", "object"])
def test_a_label_missing_in_pandas(dtype: str) -> None:
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": pd.Series([1, None, 0.5 if dtype == "float64" else 2])})
    message = complaint(read_dataset, frame.astype({"label": dtype}))
    assert message == "the data frame, row 2, column 'label': the label is missing. Fill it in or remove the row."


@pytest.mark.parametrize("cell", [["x", "y"], ("x", "y"), [], {"x", "y"}, np.array(["x", "y"])])
def test_a_list_is_no_single_label(cell: object) -> None:
    message = complaint(read_dataset, labelled("x", cell), kind="single")
    assert message.startswith("the rows, row 2, column 'label': the label ")
    assert message.endswith(
        " is a list, but a row of this kind has one label. Give each row one label or use kind='multi'."
    )


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([["x"], ["y", "x"], []], [("x",), ("y", "x"), ()]),
        ([[1], {1, "a"}, 2.0], [("1",), ("1", "a"), ("2",)]),
        ([("x", "x"), {"b", "a"}, np.array(["z"])], [("x",), ("a", "b"), ("z",)]),
        ([[1, 2.0], [True], "3"], [("1", "2"), ("true",), ("3",)]),
        (['["x, y", "z"]', "[]", " [1]"], [("x, y", "z"), (), ("1",)]),
    ],
)
def test_lists_are_several_labels(cells: list[object], expected: list[tuple[str, ...]]) -> None:
    found = read_dataset(labelled(*cells), kind="auto" if not isinstance(cells[0], str) else "multi")
    assert (found.kind, found.labels) == ("multi", expected)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["a|b;c", "d", "", " "], [("a", "b;c"), ("d",), (), ()]),
        (["a; b ;", "c,d"], [("a", "b"), ("c,d",)]),
        (["a, b", "a,a"], [("a", "b"), ("a",)]),
        (["a b", "c"], [("a b",), ("c",)]),
    ],
)
def test_several_labels_in_a_text_are_split_at_one_mark(cells: list[object], expected: list[tuple[str, ...]]) -> None:
    rows = [{"text": f"text {number}", "labels": cell} for number, cell in enumerate(cells)]
    found = read_dataset(rows)
    assert (found.kind, found.labels) == ("multi", expected)
    assert read_dataset(rows, label="labels", kind="multi").labels == expected


@pytest.mark.parametrize(
    ("cells", "known", "expected"),
    [
        (["food, fruit", "meat"], {"food, fruit", "meat"}, [("food, fruit",), ("meat",)]),
        (["food, fruit", "meat"], {"food", "fruit", "meat"}, [("food", "fruit"), ("meat",)]),
        (["food, fruit; meat", "meat|", "meat; meat"], {"food, fruit", "meat"}, [
            ("food, fruit", "meat"), ("meat|",), ("meat",),
        ]),
        (["a, b", ""], {"a, b", "a", "b"}, [("a", "b"), ()]),
        (["x|y", "z,a"], {"a"}, [("x", "y"), ("z,a",)]),
        (["b, c|x", "b, c", "no"], {"b, c", "x"}, [("b, c", "x"), ("b, c",), ("no",)]),
    ],
)  # fmt: skip
def test_texts_of_a_task_are_split_into_its_labels(
    cells: list[object], known: set[str], expected: list[tuple[str, ...]]
) -> None:
    assert read_dataset(labelled(*cells), kind="multi", known=known).labels == expected


def test_of_several_marks_that_do_the_one_of_the_train_rows_is_taken() -> None:
    for separator, expected in ((";", [("a,b",), ("c",)]), (",", [("a", "b"), ("c",)]), (None, [("a,b",), ("c",)])):
        train = Dataset(["text"], [("a,b", "a", "b", "c")], kind="multi", separator=separator)
        found = read_dataset(labelled("a,b", "c"), kind="multi", known=train.known)
        assert found.labels == expected


def test_names_that_hold_another_mark_are_found() -> None:
    found = from_lists(list("abcde"), ["a|a", "b", "a;b", "c, d|b", ""], kind="multi")
    assert (found.separator, found.labels) == ("|", [("a",), ("b",), ("a;b",), ("c, d", "b"), ()])
    assert unsplit_names(found) == unsplit_names(found.select([2, 3])) == ["a;b", "c, d"]
    assert unsplit_names(read_dataset(labelled("a|b", "c"), kind="multi")) == []
    for data in (
        from_lists(["a"], [["x, y"]]),
        from_lists(["a"], ["x, y"]),
        from_lists(["a"], [0.5]),
        from_lists(["a"]),
    ):
        assert data.separator is None and unsplit_names(data) == []


def test_a_named_column_of_texts_is_not_split() -> None:
    rows = [{"text": "a", "labels": "x,y"}, {"text": "b", "labels": "z"}]
    assert read_dataset(rows, label="labels").labels == ["x,y", "z"]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (None, "the labels are missing. If the row has no label, write an empty list or an empty text."),
        (float("nan"), "the labels are missing. If the row has no label, write an empty list or an empty text."),
        ("[" * 100_000, "the labels '[[[[["),
        ('["a"', "the labels '[\"a\"' are not a valid list"),
        ([None], "the label is missing. Fill it in or remove the row."),
        (["a", ""], "the label is empty. Fill it in or remove the row."),
        ([["a"]], "the label ['a'] is a list, but a row of this kind has one label."),
    ],
)
def test_a_cell_of_labels_that_is_none(cell: object, problem: str) -> None:
    message = complaint(read_dataset, labelled(["x"], cell), kind="multi")
    assert message.startswith(f"the rows, row 2, column 'label': {problem}")


@pytest.mark.parametrize(
    "cells", [[1, 3.8], ["1", "3.8", "4.0"], [2.0, 1e-7], ["+.5e0", "1."][::-1], [np.float32(2), 0.5]]
)
def test_labels_of_which_one_has_a_fraction_are_numbers(cells: list[object]) -> None:
    for found in (read_dataset(labelled(*cells)), from_lists(["x"] * len(cells), cells)):
        assert (found.kind, found.labels) == ("regression", [float(cell) for cell in cells])  # type: ignore[arg-type]


def test_whole_numbers_are_names_unless_told() -> None:
    assert read_dataset(labelled(1, 2)).labels == ["1", "2"]
    found = read_dataset(labelled(1, " 2 ", -3), kind="regression")
    assert (found.kind, found.labels) == ("regression", [1.0, 2.0, -3.0])
    assert read_dataset(labelled(1, 2), kind="ordinal").kind == "ordinal"


@pytest.mark.parametrize("cell", ["nan", "inf", "1,5", "abc", float("inf"), "1e999"])
def test_one_cell_that_is_no_number_among_many_is_told(cell: object) -> None:
    cells: list[object] = [0.96, "5.0", 3, *["0.5"] * 15]
    told = complaint(read_dataset, labelled(*cells, cell, 1.5))
    assert told == (
        f"the rows, row 19, column 'label': the label {str(cell)!r} is not a finite number. Nearly all "
        "labels are numbers. Correct this one, remove the row, or read all labels as names with kind='single'."
    )
    assert complaint(from_lists, ["x"] * 19, [*cells, cell]) == told
    if isinstance(cell, str):
        names = ["0.96", "5", "3", *["0.5"] * 15, cell]
        assert read_dataset(labelled(*cells, cell), kind="single").labels == names


def test_names_beside_a_few_numbers_are_names() -> None:
    assert read_dataset(labelled(*[0.5] * 8, "high")).kind == "single"
    assert read_dataset(labelled(*[5] * 50, "high")).kind == "single"


@pytest.mark.parametrize("kind", ["auto", "regression"])
def test_a_number_whose_square_overflows_is_refused(kind: Any) -> None:
    for cell in (1e300, "-2e150"):
        assert complaint(read_dataset, labelled(0.5, cell), kind=kind) == (
            f"the rows, row 2, column 'label': {cell!r} is too large; the limit is 1e150. Correct it or remove the row."
        )
    target = fit_kind("regression", labels_of(read_dataset(labelled(0.5, 1e150, -1e150), kind=kind)))
    assert isinstance(target, Regression) and np.isfinite(target.encode([0.5, 1e150])).all()


def test_whole_numbers_without_end_are_names() -> None:
    assert read_dataset(labelled("1" * 400, "2")).kind == "single"


def test_a_number_that_is_not_finite_is_named_also_where_the_kind_is_inferred() -> None:
    message = complaint(read_dataset, labelled("1.5", "1e999"))
    assert message.startswith("the rows, row 2, column 'label': the label '1e999' is not a finite number")


@pytest.mark.parametrize("cell", ["x", "1e999", "nan", "1,5", True])
def test_what_is_no_number_is_refused(cell: object) -> None:
    message = complaint(read_dataset, labelled(0.5, cell), kind="regression")
    assert message.startswith("the rows, row 2, column 'label': the label ")
    assert message.endswith("is not a finite number. Write it as 3 or 3.5.")


def test_fractions_can_be_the_names_of_labels() -> None:
    assert read_dataset(labelled(0.5, 1.0, "2.50"), kind="single").labels == ["0.5", "1", "2.50"]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("", "the label is empty. Fill it in or remove the row."),
        ("\t", r"the label '\t' has only white space. Fill it in or remove the row."),
        (None, "the label is missing. Fill it in or remove the row."),
        (float("nan"), "the label is missing. Fill it in or remove the row."),
        (np.float32("nan"), "the label is missing. Fill it in or remove the row."),
        (float("inf"), "the label is inf (float), not text. Write it as text."),
        (
            {"a": "b"},
            'the label is an object with the keys \'a\'. Read are {"choices": ["a", "b"]} and {"a": 1, "b": 0}. '
            "Write the name of the label, or a list of names.",
        ),
        (b"x" * 80, "the label is b'" + "x" * 55 + "... (bytes), not text. Decode it: .decode('utf-8')."),
        ("\ud800", r"the label '\ud800' contains an invalid Unicode character (an unpaired surrogate). Replace it."),
    ],
)
def test_a_cell_without_a_label(cell: object, problem: str) -> None:
    assert complaint(read_dataset, labelled("x", cell)) == f"the rows, row 2, column 'label': {problem}"


def test_kinds_are_listed() -> None:
    assert complaint(read_dataset, labelled("x"), kind="other") == (
        "kind must be one of 'auto', 'single', 'ordinal', 'multi', 'regression'. Got 'other' instead."
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "text,label\n\na,x\n\nb,y\n"),
        ("t.tsv", "text\tlabel\r\n\r\n\r\na\tx\r\nb\ty\r\n"),
        ("t.jsonl", '\n{"text": "a", "label": "x"}\n \n{"text": "b", "label": "y"}\n'),
    ],
)
def test_a_data_set_tells_what_was_left_out(tmp_path: Path, name: str, content: str) -> None:
    (path := tmp_path / name).write_bytes(content.encode())
    data = read_dataset(path)
    assert (data.texts, data.rows_read, data.left_out) == (["a", "b"], 4, {"blank lines": 2})
    selected = data.select([1])
    assert (len(selected), selected.rows_read, selected.left_out) == (1, 4, {"blank lines": 2})
    whole = from_lists(["a", "b", "c"])
    assert (whole.rows_read, whole.left_out, whole.notes) == (3, {}, ())


def test_a_data_set_has_rows_of_one_number() -> None:
    assert complaint(from_lists(["a"]).select, []) == "the rows: there are no rows. Give at least one."
    assert (
        complaint(Dataset, ["a"], ["x"], source="t.csv", rows=[1, 2])
        == "t.csv: there are 1 texts but 2 rows. Give one for each text."
    )


# --- checks ---------------------------------------------------------------------------------------------------------


def test_training_needs_labels_that_differ() -> None:
    assert complaint(check_trainable, from_lists(["a", "b"], ["x", "x"])) == (
        "the rows, row 1, column 'label': all 2 rows have the label 'x'. Training needs at least two labels."
    )
    assert (
        complaint(check_trainable, from_lists(["a"])) == "the rows: the rows have no labels. Give a label for each row."
    )


def test_what_other_kinds_need_to_be_trained() -> None:
    several = from_lists(["a", "b", "c"], [["x"], [], ["y"]])
    check_trainable(several)  # a label that occurs once stays in train
    assert complaint(check_trainable, from_lists(["a", "b"], [[], []])) == (
        "the rows, row 1, column 'label': none of the 2 rows has a label. Training needs at least one label."
    )
    check_trainable(from_lists(["a", "b"], [0.5, 1.5]))
    assert "all 2 rows have the label 0.5" in complaint(check_trainable, from_lists(["a", "b"], [0.5, 0.5]))


def test_labels_must_be_for_the_kind_of_task() -> None:
    several = from_lists(["a"], [["x", "z"]])
    known = MultiLabel(LabelSet(("x", "y")))
    assert complaint(check_labels_known, several, known, "test").startswith(
        "the rows, row 1, column 'label': the label 'z' does not occur in the training set (1 test row has an"
    )
    check_labels_known(from_lists(["a", "b"], [["x"], []]), known, "test")
    assert complaint(check_labels_known, from_lists(["a"], ["x"]), known, "test") == (
        "the rows: the labels are of the kind 'single', but those of the training set are of the kind 'multi'. "
        "Use the same kind= for both."
    )
    check_labels_known(from_lists(["a"], [9.5]), Regression(0, 1, bounded=True), "test")


def test_a_label_may_have_a_single_row() -> None:
    check_trainable(from_lists(list("abcd"), ["x", "y", "x", "z"]))


def test_labels_that_were_not_trained_on() -> None:
    label_set = SingleLabel(LabelSet(("billing", "login")))
    check_labels_known(from_lists(["a"], ["login"]), label_set, "test")
    dataset = from_lists(list("abcd"), ["login", "biling", "shipping", "login"])
    assert complaint(check_labels_known, dataset, label_set, "test") == (
        "the rows, row 2, column 'label': the label 'biling' does not occur in the training set "
        "(2 test rows have unknown labels). Did you mean 'billing'?"
    )
    assert complaint(check_labels_known, dataset.select([2]), label_set, "validation") == (
        "the rows, row 3, column 'label': the label 'shipping' does not occur in the training set "
        "(1 validation row has an unknown label). The 2 labels are 'billing', 'login'."
    )
    assert complaint(check_labels_known, dataset.select([1, 2]), label_set, "test") == (
        "the rows, row 2, column 'label': the label 'biling' does not occur in the training set "
        "(2 test rows have unknown labels). Did you mean 'billing'? The 2 labels are 'billing', 'login'."
    )


def test_shared_rows_are_counted_in_the_second() -> None:
    first, second = from_lists(["a", "a", "b", "c"]), from_lists(["a", "b", "b", "B", "b "])
    assert count_shared(first, second) == 3
    assert count_shared(second, first) == 3
    pairs = from_lists([("a", "b"), ("b", "a"), ("a", "c")])
    assert count_shared(first, pairs) == 0
    assert count_shared(from_lists([("b", "a")]), pairs) == 1

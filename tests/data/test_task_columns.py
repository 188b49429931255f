"""Many tasks in one table: the columns that are named, and what their empty cells do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ytuning.data.columns import Columns
from ytuning.data.dataset import EMPTY_CELLS, labels_of, read_dataset
from ytuning.data.tables import table_in_memory
from ytuning.data.task_columns import TaskColumn, kinds_of, parse_task_columns, read_tasks
from ytuning.errors import DataError, InputError, naming_options

TABLE = {
    "text": ["one", "two", "three", "four"],
    "intent": ["a", "", "b", None],
    "topics": [["x"], [], None, ["x", "y"]],
    "price": [1.5, math.nan, 2.0, 0.25],
    "whole": ["yes", "no", "no", "yes"],
}
NAMES = ["text", *list(TABLE)[1:], "a:b", "a:single"]


# --- what --tasks says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("intent", [TaskColumn("intent")]),
        ("intent, topics:multi", [TaskColumn("intent"), TaskColumn("topics", "multi")]),
        ("whole:ordinal=no|yes", [TaskColumn("whole", "ordinal", ("no", "yes"))]),
        ("whole:ordinal", [TaskColumn("whole", "ordinal")]),
        ("a:b", [TaskColumn("a:b")]),
        ("a:b:single", [TaskColumn("a:b", "single")]),
        ("a:single", [TaskColumn("a:single")]),
        ("missing:auto", [TaskColumn("missing")]),
    ],
)
def test_columns_with_kinds_and_orders(text: str, columns: list[TaskColumn]) -> None:
    assert parse_task_columns(text, NAMES) == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intent,", r"--tasks has a part without a column\. Got ''\. Write --tasks 'intent,urgency:ordinal=low|high'"),
        (":single", r"--tasks has a part without a column\. Got ':single'"),
        ("whole:ordnal", r"the kind of the column 'whole' must be one of 'auto', .*Got 'ordnal' .*mean 'ordinal'\?"),
        ("whole:", r"the kind of the column 'whole' must be one of .* Got '' instead"),
        ("whole:single=no|yes", r"an order of labels is for the kind 'ordinal'\. .* Write whole:ordinal=no\|yes, or"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str) -> None:
    with naming_options(), pytest.raises(InputError, match=message):
        parse_task_columns(text, NAMES)


def test_a_column_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="names the column 'whole' more than once"):
        kinds_of(parse_task_columns("whole,intent,whole:ordinal", NAMES))
    with pytest.raises(InputError, match="names the column 'whole' more than once"):
        read_tasks(TABLE, ["whole", "whole"])


# --- rows -----------------------------------------------------------------------------------------------------------


def test_an_empty_cell_says_nothing_about_its_task_only() -> None:
    rows = read_tasks(TABLE, ["intent", "topics", "price", "whole"])
    assert {name: data.kind for name, data in rows.items()} == {
        "intent": "single", "topics": "multi", "price": "regression", "whole": "single",
    }  # fmt: skip
    assert {name: data.texts for name, data in rows.items()} == {
        "intent": ["one", "three"],
        # An empty list is a row without labels.
        "topics": ["one", "two", "four"],
        "price": ["one", "three", "four"],
        "whole": TABLE["text"],
    }
    assert list(labels_of(rows["topics"])) == [("x",), (), ("x", "y")]
    assert rows["intent"].rows == [1, 3] and rows["whole"].rows is None
    for data in rows.values():
        assert len(data) + data.left_out.get(EMPTY_CELLS, 0) == data.rows_read == 4
    assert rows["price"].columns == Columns("text", label="price", empty_labels=True)


@pytest.mark.parametrize("blank", ["", "  ", "\u200b"])
def test_cells_of_files_without_a_visible_character_are_empty(tmp_path: Path, blank: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"text,intent,topics\none,a,x|y\n\ntwo,{blank},[]\nthree,b,{blank}\n")
    rows = read_tasks(file, {"intent": "auto", "topics": "multi"})
    assert rows["intent"].texts == ["one", "three"] and list(labels_of(rows["topics"])) == [("x", "y"), ()]
    assert rows["intent"].left_out == {"blank lines": 1, EMPTY_CELLS: 1} and rows["intent"].rows_read == 4


def test_messages_name_the_row_of_the_source() -> None:
    table = {"text": ["one", "two", "three"], "flag": [None, "a", ["a", "b"]]}
    with pytest.raises(DataError, match=r"^the columns, row 3, column 'flag': the label .* is a list"):
        read_tasks(table, {"flag": "single"})
    frame = pd.DataFrame({"text": ["one", "two", "three"], "n": [None, "7", "007"]})
    assert any("'7' (row 2)" in note and "'007' (row 3)" in note for note in read_tasks(frame, ["n"])["n"].notes)
    with pytest.raises(DataError, match=r"row 2, column 'text': the text is empty"):
        read_tasks({"text": ["one", ""], "flag": [None, "a"]}, ["flag"])


def test_a_blank_text_does_not_matter_where_no_task_reads_it() -> None:
    assert read_tasks({"text": ["", "two"], "flag": [None, "a"]}, ["flag"])["flag"].texts == ["two"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["intnt"], r"tasks= names the column 'intnt', which is not there\. Did you mean 'intent'\? The columns are"),
        (["a", "b"], r"tasks= names the columns 'a', 'b', which are not there\. The columns are 'text', 'intent'"),
        ([], r"tasks= must name at least one column\. Got \[\] instead"),
        ("intent", r"tasks= must name at least one column\. Got 'intent' instead"),
        ({"intent": "several"}, r"the kind of a task must be one of 'auto', .* Got 'several' instead"),
        (["text"], r"label= uses the column 'text' already"),
    ],
)
def test_columns_that_cannot_be_tasks_are_refused(tasks: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tasks(TABLE, tasks)


def test_a_column_without_a_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"column 'none': all 2 cells are empty, so no row has a label"):
        read_tasks({"text": ["one", "two"], "none": [None, " "]}, ["none"])


def test_further_rows_are_read_like_the_training_rows() -> None:
    train = read_tasks({**TABLE, "digits": [1, 2, 1, 2]}, {"digits": "ordinal", "topics": "auto"}, text="text")
    other = {"sentence": ["five"], "text": ["six"], "digits": [2.0], "topics": ["x"]}
    rows = read_tasks(other, {"digits": "auto", "topics": "auto"}, train=train)
    assert (rows["digits"].kind, rows["topics"].kind) == ("ordinal", "multi") and rows["digits"].texts == ["six"]


def test_a_table_is_read_once() -> None:
    table, asked = table_in_memory(TABLE), []

    def cells(name: str) -> list[object]:
        asked.append(name)
        return list(TABLE[name])  # type: ignore[call-overload]

    read_tasks(type(table)("the table", 4, table.names, cells), ["intent", "price", "whole"])
    assert sorted(asked) == ["intent", "price", "text", "whole"]


# --- a task that was trained so -------------------------------------------------------------------------------------


def test_rows_of_such_a_task_are_always_read_so() -> None:
    known = read_tasks(TABLE, ["intent"])["intent"].known
    assert read_dataset({**TABLE, "text": ["p", "q", "r", "s"]}, known=known).texts == ["p", "r"]
    with pytest.raises(DataError, match="the label is empty"):
        read_dataset(TABLE, label="intent")


def test_columns_in_json() -> None:
    columns = Columns("text", label="intent", empty_labels=True)
    assert columns.to_json() == {"text": "text", "label": "intent", "empty_labels": True}
    assert Columns.from_json(columns.to_json()) == columns
    assert "empty_labels" not in Columns("text", label="intent").to_json()
    with pytest.raises(TypeError, match="empty_labels must be true or false"):
        Columns.from_json({"text": "text", "empty_labels": "yes"})

"""Several columns of 0 and 1 as labels, in every form of data and in the commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.test_cli import Run, run
from tests.data.test_data import complaint
from ytuning.data.columns import Columns, Known
from ytuning.data.dataset import Dataset, read_dataset
from ytuning.data.kinds import MultiLabel
from ytuning.data.labels import LabelSet
from ytuning.data.splits import check_trainable
from ytuning.tasks.task import load_task

__all__ = ["run"]  # a fixture

NAMES = ("toxic", "obscene", "threat")
TABLE: dict[str, list[Any]] = {
    "id": ["a", "b", "c"],
    "text": ["one", "two", "three"],
    "toxic": [1, 0, 1],
    "obscene": [1, 0, 0],
    "threat": [0, 0, 1],
}
SETS = [("toxic", "obscene"), (), ("toxic", "threat")]


def rows_of(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def write(path: Path, table: dict[str, list[Any]]) -> Path:
    """A table as a file of the form that its name tells."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(table)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([list(table), *zip(*table.values(), strict=True)])
    return path


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("form", [int, bool, float])
def test_columns_of_a_file(name: str, form: type, tmp_path: Path) -> None:
    table = {key: [form(cell) for cell in cells] if key in NAMES else cells for key, cells in TABLE.items()}
    found = read_dataset(write(tmp_path / name, table), label="toxic,obscene,threat")
    assert (found.kind, found.labels) == ("multi", SETS)
    assert found.columns == Columns("text", None, NAMES)


@pytest.mark.parametrize("label", ["toxic,obscene,threat", " toxic, obscene ,threat", list(NAMES), NAMES])
@pytest.mark.parametrize("kind", ["auto", "multi"])
def test_columns_in_memory(label: Any, kind: Any) -> None:
    for source in (TABLE, rows_of(TABLE), pd.DataFrame(TABLE), datasets.Dataset.from_dict(TABLE)):
        assert read_dataset(source, label=label, kind=kind).labels == SETS


@pytest.mark.parametrize(
    ("zero", "one"),
    [("0", "1"), (" 0", "1 "), ("0.0", "1.0"), ("False", "TRUE"), (False, True), (np.int8(0), np.float32(1))],
)
def test_forms_of_zero_and_one(zero: object, one: object) -> None:
    rows = [{"text": "a", "x": zero, "y": one}, {"text": "b", "x": one, "y": zero}]
    assert read_dataset(rows, label="x,y").labels == [("y",), ("x",)]


def test_the_columns_give_the_order_and_a_list_of_one_is_a_column_of_zero_and_one() -> None:
    assert read_dataset(TABLE, label="threat,toxic").labels == [("toxic",), (), ("threat", "toxic")]
    found = read_dataset(TABLE, label=["toxic"])
    assert (found.kind, found.labels) == ("multi", [("toxic",), (), ("toxic",)])
    assert read_dataset(TABLE, label="toxic").labels == ["1", "0", "1"]


def test_a_column_whose_name_has_a_comma_is_one_column(tmp_path: Path) -> None:
    table: dict[str, list[Any]] = {
        "text": ["one", "two"],
        "toxic,obscene": ["x", "y"],
        "toxic": [1, 0],
        " obscene": [0, 1],
    }
    path = write(tmp_path / "t.csv", table)
    found = read_dataset(path, label="toxic,obscene")
    assert (found.kind, found.labels, found.columns) == ("single", ["x", "y"], Columns("text", None, "toxic,obscene"))
    assert read_dataset(path, label="toxic, obscene").labels == [("toxic",), ("obscene",)]
    flagged = {**table, "toxic,obscene": [0, 1]}
    assert read_dataset(flagged, label=["toxic,obscene", "toxic"]).labels == [("toxic",), ("toxic,obscene",)]


def test_a_text_column_that_is_inferred_is_none_of_the_labels() -> None:
    rows = [{"text": "1", "other": "0", "sentence": "a card"}, {"text": "0", "other": "1", "sentence": "a card"}]
    found = read_dataset(rows, label="text,other")
    assert found.columns == Columns("sentence", None, ("text", "other"))
    assert read_dataset(rows, label="text,other", labelled=False).columns == Columns("text")


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["2", "-1", "", "0.7", "yes", None, float("nan"), [1], pd.NA])
def test_a_cell_that_is_neither_zero_nor_one(cell: object) -> None:
    rows = rows_of(TABLE)
    rows[1]["obscene"] = cell
    assert complaint(read_dataset, rows, label="toxic,obscene,threat") == (
        "the rows, row 2, column 'obscene': each cell of a label column must be 0 or 1 (or false or true). "
        f"Got {cell!r} instead. Correct it or remove the row."
    )


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"label": "toxic,obscen"},
            "the columns: label= names the column 'obscen', which is not there. Did you mean 'obscene'? "
            "The columns are 'id', 'text', 'toxic', 'obscene', 'threat'",
        ),
        (
            {"label": "toxic,"},
            "the columns: label= names the column '', which is not there. The columns are ",
        ),
        ({"label": []}, "label= names no column. Give at least one or leave it out."),
        ({"label": "toxic,toxic"}, "each column can have only one use. Got label='toxic,toxic'."),
        (
            {"label": "toxic,id", "text": "id"},
            "each column can have only one use. Got text='id', label='toxic,id'.",
        ),
        (
            {"label": "toxic,threat", "kind": "single"},
            "several label columns need the kind 'multi'. Got 'single' instead. Change the kind or name one column "
            "with label=.",
        ),
    ],
)
def test_columns_that_are_refused(named: dict[str, Any], message: str) -> None:
    assert complaint(read_dataset, TABLE, **named).startswith(message)


def test_white_space_around_the_name_of_a_column_is_none_of_its_label() -> None:
    table = {"text": ["a", "b"], " toxic": [1, 0], "threat\u00a0": [1, 1]}
    found = read_dataset(table, label=[" toxic", "threat\u00a0"])
    assert found.labels == [("toxic", "threat"), ("threat",)]
    check_trainable(found)
    assert complaint(read_dataset, {**table, "toxic": [0, 1]}, label=[" toxic", "toxic"]) == (
        "the columns: the names of the label columns ' toxic' and 'toxic' are one label, 'toxic'. Rename or leave out "
        "one of them."
    )


def test_a_label_that_no_row_has_cannot_be_trained() -> None:
    table = {**TABLE, "obscene": [0, 0, 0]}
    found = read_dataset(table, label="toxic,obscene,threat")
    assert complaint(check_trainable, found) == (
        "the columns, column 'obscene': no row has 1, so nothing can be learnt about this label. Leave the column out "
        "of label=."
    )
    none = {**table, "toxic": [0, 0, 0]}
    assert "none of the 3 rows has a label" in complaint(check_trainable, read_dataset(none, label="toxic,obscene"))


def test_a_complaint_about_a_row_names_the_columns() -> None:
    found = read_dataset(TABLE, label="toxic,obscene")
    error = found.error(1, "label", "something")
    assert str(error) == "the columns, row 2, column 'toxic,obscene': something"


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def jigsaw(tmp_path: Path, toy_rows: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with train.csv, and test.jsonl and more.parquet, in the form of the Jigsaw set."""
    texts, labels = toy_rows
    table: dict[str, list[Any]] = {
        "comment_text": texts,
        "card": [int(label == "card") for label in labels],
        "refund": [int(label == "refund") for label in labels],
        "any": [int(label != "login") for label in labels],
    }
    parts = {"train.csv": slice(0, 80), "test.jsonl": slice(80, 100), "more.parquet": slice(100, 120)}
    for name, part in parts.items():
        write(tmp_path / name, {key: cells[part] for key, cells in table.items()})
    monkeypatch.chdir(tmp_path)
    return tmp_path


COLUMNS = ("--text", "comment_text", "--label", "card,refund,any")


def test_train_evaluate_and_add_a_label(run: Run, jigsaw: Path, tiny_encoder: Path) -> None:
    encoder = ("--encoder", tiny_encoder)
    done = run(
        "train", "train.csv", "--test", "test.jsonl", "--kind", "multi", *COLUMNS, *encoder, "--out", "t", "--json"
    )
    assert (done.status, done.json["kind"], done.json["labels"]) == (0, "multi", 3)
    assert "columns text = 'comment_text', label = 'card,refund,any'; kind = 'multi'" in done.err
    assert load_task(jigsaw / "t").target == MultiLabel(LabelSet(("any", "card", "refund")))
    judged = run("evaluate", "t", "more.parquet", *COLUMNS, "--json")
    assert judged.status == 0 and set(judged.json["labels"]) == {"any", "card", "refund"}
    assert run("evaluate", "t", "more.parquet", "--text", "comment_text", "--label", "card,rfund").mistake() == (
        "more.parquet: --label names the column 'rfund', which is not there. Did you mean 'refund'? "
        "The columns are 'comment_text', 'card', 'refund', 'any'."
    )
    read = read_dataset(jigsaw / "more.parquet", text="comment_text", labelled=False)
    (jigsaw / "new.csv").write_text("\n".join(["comment_text", *read.texts[:10]]) + "\n")
    added = run(
        "add-label", "t", "new", "--examples", "new.csv", "--test", "more.parquet", *COLUMNS, *encoder, "--json"
    )
    assert (added.status, added.json["labels"], set(added.json["test"])) == (0, 4, {
        "after", "before_on_rows_of_old_labels", "after_on_rows_of_old_labels",
    })  # fmt: skip


def test_a_task_of_one_label_a_row_is_not_judged_by_several_columns(run: Run, jigsaw: Path, tiny_encoder: Path) -> None:
    column = ("--text", "comment_text", "--label", "card")
    assert run("train", "train.csv", *column, "--encoder", tiny_encoder, "--out", "t").status == 0
    assert run("evaluate", "t", "test.jsonl", *COLUMNS).mistake() == (
        "several label columns need the kind 'multi'. Got 'single' instead. Change the kind or name one column "
        "with --label."
    )


def test_compare_and_search(run: Run, jigsaw: Path, tiny_encoder: Path) -> None:
    options = (*COLUMNS, "--test", "test.jsonl", "--encoder", tiny_encoder, "--json")
    compared = run("compare", "train.csv", *options, "--methods", "setfit", "--seeds", "1", "--out", "c")
    assert compared.status == 1
    assert "kind = 'multi'" in compared.err and "these rows are of kind 'multi'" in compared.err
    searched = run("search", "train.csv", *options, "--trials", "1", "--preset", "default", "--out", "s")
    assert (searched.status, searched.json["kind"], searched.json["labels"]) == (0, "multi", 3)


def test_a_cell_that_is_wrong_is_one_line(run: Run, jigsaw: Path, tiny_encoder: Path) -> None:
    text = (jigsaw / "train.csv").read_text().splitlines()
    text[7] = text[7].rsplit(",", 1)[0] + ",-1"
    (jigsaw / "train.csv").write_text("\n".join(text) + "\n")
    assert run("train", "train.csv", *COLUMNS, "--encoder", tiny_encoder, "--out", "t").mistake() == (
        "train.csv, row 7, column 'any': each cell of a label column must be 0 or 1 (or false or true). "
        "Got '-1' instead. Correct it or remove the row."
    )


def test_data_sets_of_rows_chosen_keep_their_columns() -> None:
    found: Dataset = read_dataset(TABLE, label="toxic,threat").select([2, 0])
    assert found.columns == Columns("text", None, ("toxic", "threat")) and found.labels == [
        ("toxic", "threat"),
        ("toxic",),
    ]


ROW = {"a": "1st", "b": "2nd", "text": "3rd", "text_pair": "4th", "sentence": "5th", "x": 1, "y": 0, "label": "l"}


@pytest.mark.parametrize(
    ("known", "named", "chosen"),
    [
        (Known(columns=Columns("a", "b", "label")), {}, Columns("a", "b", "label")),
        (Known(columns=Columns("a")), {"text": "b"}, Columns("b", "text_pair", "label")),
        (Known(columns=Columns("a"), pairs=False), {}, Columns("a", None, "label")),
        (Known(columns=Columns("a"), pairs=False), {"text_pair": "b"}, Columns("a", "b", "label")),
        (Known(columns=Columns("gone", "b", "gone")), {}, Columns("text", "b", "label")),
        (Known(columns=Columns("a", None, ("x", "y"))), {}, Columns("a", "text_pair", ("x", "y"))),
        (Known(columns=Columns("a", None, ("x",))), {}, Columns("a", "text_pair", ("x",))),
        (Known(columns=Columns("a", None, "x"), pairs=False), {"label": "x,y"}, Columns("a", None, ("x", "y"))),
        (Known(columns=Columns("a", None, ("gone", "away"))), {}, Columns("a", "text_pair", "label")),
        (Known(columns=Columns("a", "b")), {"text": "b"}, Columns("b", "text_pair", "label")),
        (Known(columns=Columns("a", "b", "label", "y")), {"labelled": False}, Columns("a", "b")),
        (Known(columns=Columns("a", "b", "label")), {"label": "a"}, Columns("text", "b", "a")),
    ],
)
def test_columns_of_the_training_come_before_the_defaults(known: Known, named: dict[str, Any], chosen: Columns) -> None:
    assert read_dataset([ROW], known=known, **named).columns == chosen


@pytest.mark.parametrize(
    ("row", "known", "message"),
    [
        (
            ROW,
            Known(columns=Columns("text", None, ("x", "y", "z"))),
            "the rows: the task was trained on 3 label columns, of which these are not there: 'z'. Add them, or name "
            "the columns to read with label=; the columns are 'a', 'b', 'text',",
        ),
        (
            {"text": "a", "label": "b"},
            Known(columns=Columns("text", "gone"), pairs=True),
            "the rows: there is no column 'gone' or 'text_pair'; the task was trained on 'gone'. Name the text pair "
            "column with text_pair=; the columns are 'text', 'label'.",
        ),
        ({"text": "a", "label": "b"}, Known(pairs=True), "the rows: there is no column 'text_pair'. Name the"),
        (
            {"text": "a"},
            Known(columns=Columns("text", None, "gold")),
            "the rows: there is no column 'gold', 'label' or",
        ),
    ],
)
def test_columns_of_the_training_that_are_missing(row: dict[str, Any], known: Known, message: str) -> None:
    assert complaint(read_dataset, [row], known=known).startswith(message)


@pytest.mark.parametrize(
    "columns",
    [Columns("a"), Columns("ä b", "c", "d", "e"), Columns("a", None, ("x",)), Columns("a", None, ("x", "y,z"))],
)
def test_columns_are_written_and_read_again(columns: Columns) -> None:
    assert Columns.from_json(json.loads(json.dumps(columns.to_json()))) == columns


@pytest.mark.parametrize(
    "content",
    [{}, {"text": 1}, {"text": ["a"]}, {"text": "a", "label": []}, {"text": "a", "other": "b"}, {"label": "b"}],
)
def test_columns_that_are_damaged_are_refused(content: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Columns.from_json(content)

"""A task remembers the columns of its training: which columns later commands read, and what they say about it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.test_cli import QUICK, Run, files, run
from ytuning.data.columns import Columns
from ytuning.data.dataset import read_dataset
from ytuning.encoder.encoder import load_encoder
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledConfig
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import Recipe

__all__ = ["files", "run"]  # fixtures

# The columns text and label mean something else than body and gold.
TICKETS = [
    {"text": f"ticket {number}", "body": body, "label": "odd" if number % 2 else "even", "gold": gold}
    for number, (body, gold) in enumerate(
        [("card lost", "card"), ("card stolen", "card")] * 10 + [("login", "door")] * 20
    )
]


@pytest.fixture(scope="module")
def tickets(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task named ``tickets`` that was trained on the columns ``body`` and ``gold``, and ``lists`` without columns."""
    root = tmp_path_factory.mktemp("tickets")
    data = read_dataset(TICKETS, text="body", label="gold")
    recipe, options = Recipe(PooledConfig(width=16), QUICK), TrainOptions(name="tickets")
    task = train_task(data, load_encoder(tiny_encoder), FeatureStore(root / "store"), recipe, options=options).task
    save_task(task, root / "tickets")
    save_task(replace(task, columns=None), root / "lists")
    save_task(replace(task, columns=Columns("text")), root / "others")
    return root


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def renamed(**names: str) -> list[dict[str, str]]:
    """The rows with columns under other names; those without a new name are left out."""
    return [{new: row[old] for old, new in names.items()} for row in TICKETS]


ALL = {"text": "text", "body": "body", "label": "label", "gold": "gold"}
CASES = {
    "those of the training": (ALL, (), "columns text = 'body', label = 'gold'; kind = 'single'", {"card", "door"}),
    "named": (
        ALL,
        ("--text", "text", "--label", "gold"),
        "columns text = 'text', label = 'gold'; kind = 'single'; but the task was trained on text = 'body'",
        {"card", "door"},
    ),
    "defaults": (
        {"body": "sentence", "gold": "labels"},
        (),
        "columns text = 'sentence', label = 'labels'; kind = 'single'; "
        "but the task was trained on text = 'body', label = 'gold'",
        {"card", "door"},
    ),
    "one of the training, one default": (
        {"body": "body", "text": "text", "gold": "label"},
        (),
        "columns text = 'body', label = 'label'; kind = 'single'; but the task was trained on label = 'gold'",
        {"card", "door"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_evaluate_reads_the_columns_of_the_training(case: str, run: Run, files: Path, tickets: Path) -> None:
    names, options, told, labels = CASES[case]
    write_rows(files / "rows.jsonl", renamed(**names))
    found = run("evaluate", tickets / "tickets", "rows.jsonl", *options, "--json")
    assert found.status == 0, found.err
    assert f"rows.jsonl: 40 rows; {told}" in found.err.splitlines()
    entry = found.json["files"]["data"]
    assert f"text = {entry['columns']['text']!r}, label = {entry['columns']['label']!r}" in told
    assert (entry["file"], entry["rows_read"], entry["rows_used"], entry["left_out"]) == ("rows.jsonl", 40, 40, {})
    assert set(found.json["labels"]) == labels
    # A difference that nobody has asked for is told with --quiet too.
    quiet = run("evaluate", tickets / "tickets", "rows.jsonl", *options, "--quiet").err
    assert ("was trained on" in quiet) == ("but the task" in told and not options)


def test_predict_reads_the_columns_of_the_training(run: Run, files: Path, tickets: Path) -> None:
    write_rows(files / "rows.jsonl", renamed(**ALL))
    found = run("predict", tickets / "tickets", "--input", "rows.jsonl")
    assert "rows.jsonl: 40 rows; columns text = 'body'" in found.err.splitlines()
    answers = [json.loads(line) for line in found.out.splitlines()]
    assert [answer["text"] for answer in answers] == [row["body"] for row in TICKETS]
    named = run("predict", tickets / "tickets", "--input", "rows.jsonl", "--text", "text")
    assert json.loads(named.out.splitlines()[0])["text"] == "ticket 0"
    assert "; but the task 'tickets' was trained on text = 'body'" in named.err
    without = run("predict", tickets / "lists", "--input", "rows.jsonl")
    assert json.loads(without.out.splitlines()[0])["text"] == "ticket 0" and "but" not in without.err


def test_tasks_with_different_columns_are_not_mixed(run: Run, files: Path, tickets: Path) -> None:
    write_rows(files / "rows.jsonl", renamed(**ALL))
    both = ("predict", tickets / "tickets", tickets / "others", "--input", "rows.jsonl")
    assert run(*both).mistake() == (
        "the tasks were trained on different columns of rows.jsonl: 'tickets' on text = 'body'; 'others' on "
        "text = 'text'. Name the columns for all of them with --text and --text-pair, or run ytuning predict for each "
        "task."
    )
    found = run(*both, "--text", "body")
    assert found.status == 0 and len(found.out.splitlines()) == 2 * len(TICKETS)
    assert "but the task 'others' was trained on text = 'text'" in found.err
    # Where the file has the columns of one task only, the defaults are one choice for all.
    write_rows(files / "plain.jsonl", renamed(body="text"))
    found = run("predict", tickets / "tickets", tickets / "others", "--input", "plain.jsonl")
    assert found.status == 0 and "; but the task 'tickets' was trained on text = 'body'" in found.err


def test_add_label_reads_the_columns_of_the_training(run: Run, files: Path, tickets: Path) -> None:
    shutil.copytree(tickets / "tickets", files / "tickets")
    more = [{"text": "ticket", "body": f"refund money {word}", "label": "no", "gold": "refund"} for word in "abcd"]
    write_rows(files / "more.jsonl", more)
    write_rows(files / "test.jsonl", [*TICKETS, *more])
    found = run("add-label", "tickets", "refund", "--examples", "more.jsonl", "--test", "test.jsonl", "--json")
    assert found.status == 0, found.err
    assert found.json["files"]["examples"]["columns"] == {"text": "body"}
    assert found.json["files"]["test"]["columns"] == {"text": "body", "label": "gold"}
    assert load_task(files / "tickets").columns == Columns("body", None, "gold")


def test_add_label_tells_of_examples_that_have_another_label(run: Run, files: Path, tickets: Path) -> None:
    rows = [{"body": f"refund money {word}", "gold": "refund"} for word in "abcd"]
    write_rows(files / "more.jsonl", [*rows, {"body": "card stolen", "gold": "card"}])
    new_label = ("add-label", tickets / "tickets", "refund", "--examples", "more.jsonl", "--out", "grown")
    told = "column 'gold' gives another label than 'refund' to 1 of the 5 rows (the first is row 5: 'card')"
    assert f"more.jsonl: {told}. It is not read, and all rows are examples of 'refund'." in run(*new_label).err
    write_rows(files / "more.jsonl", rows)
    assert "another label" not in run(*new_label).err


def test_a_table_without_any_of_the_columns_names_them_all(run: Run, files: Path, tickets: Path) -> None:
    write_rows(files / "rows.jsonl", renamed(body="Body", gold="gold"))
    assert run("evaluate", tickets / "tickets", "rows.jsonl").mistake() == (
        "rows.jsonl: there is no column 'body', 'text' or 'sentence'; the task was trained on 'body'. "
        "Did you mean 'Body'? Name the text column with --text; the columns are 'Body', 'gold'."
    )
    with pytest.raises(ValueError, match=r"Name the text column with text=; the columns are 'Body', 'gold'\.$"):
        read_dataset(files / "rows.jsonl", known=load_task(tickets / "tickets").known)


def test_train_states_rows_and_columns(run: Run, files: Path, tiny_encoder: Path) -> None:
    (files / "train.csv").write_text((files / "train.csv").read_text().replace("\n", "\n\n", 3))
    (files / "other.csv").write_text((files / "test.csv").read_text().replace("text,label", "sentence,label"))
    found = run(
        "train", "train.csv", "--test", "other.csv", "--encoder", tiny_encoder, "--out", "toy", "--json", "--group",
        "text",
    )  # fmt: skip
    assert found.status == 0, found.err
    lines = found.err.splitlines()
    assert (
        "train.csv: 103 rows read, 100 used (left out: 3 blank lines); columns text = 'text', label = 'label', "
        "group = 'text'; kind = 'single'"
    ) in lines
    assert (
        "other.csv: 20 rows; columns text = 'sentence', label = 'label'; kind = 'single'; "
        "but the task was trained on text = 'text'"
    ) in lines
    held = found.json["rows"]["validation"]
    assert f"train.csv: {held} of the 100 rows were held out for validation." in lines
    assert found.json["files"]["train"] == {
        "file": "train.csv",
        "columns": {"text": "text", "label": "label", "group": "text"},
        "rows_read": 103,
        "rows_used": 100,
        "left_out": {"blank lines": 3},
    }
    assert load_task(files / "toy").columns == Columns("text", None, "label", "text")

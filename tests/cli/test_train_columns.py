"""``ytuning train --tasks``: tasks from the columns of one table, through the program."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import Outcome, Run, run
from ytuning.progress import Progress
from ytuning.tasks import choose_recipe, distill
from ytuning.tasks.task import load_task
from ytuning.tasks.train import TrainContext, Trained, finish_task

__all__ = ["run"]  # a fixture

TASKS = "theme,urgency:ordinal=low|high,topics:multi,length,late"
NAMES = ["theme", "urgency", "topics", "length", "late"]
HEADER = ["text", *NAMES, "constant", "a/b", "group"]


def write_table(path: Path, texts: list[str], labels: list[str]) -> Path:
    """A table of five kinds of labels, with empty cells, a blank line, a misspelt label, and blanks."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
            theme = "" if number % 10 == 3 else "refunds" if number == 7 else f" {label} "
            urgency = "  " if number % 5 == 2 else "high" if "card" in text else "low"
            topics = ["card|late", "[]", "", "late", "card"][number % 5]
            length = "" if number % 7 == 0 else f"{len(text) / 4 + 0.5}"
            writer.writerow([text, theme, urgency, topics, length, "late" in text, "x", label, number % 9])
            if number == 4:
                file.write("\n")
    return path


@pytest.fixture
def table(tmp_path: Path, toy_rows: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``table.csv`` of 100 rows and a blank line, and ``test.csv`` of 20 rows and another."""
    texts, labels = toy_rows
    write_table(tmp_path / "test.csv", texts[100:], labels[100:])
    monkeypatch.chdir(tmp_path)
    return write_table(tmp_path / "table.csv", texts[:100], labels[:100])


@pytest.fixture
def train(run: Run, table: Path, tiny_encoder: Path) -> Run:
    """``ytuning train table.csv`` with the tiny encoder and more options."""

    def train(*options: object) -> Outcome:
        return run("train", table.name, "--encoder", tiny_encoder, "--out", "tasks", *options)

    return train


def test_five_kinds_from_a_table_with_mistakes(train: Run, run: Run, encoded: list[int]) -> None:
    found = train("--tasks", TASKS, "--test", "test.csv", "--json")
    assert found.status == 0, found.err
    assert list(found.json) == NAMES and sum(encoded) == 120
    kinds = {name: one["kind"] for name, one in found.json.items()}
    assert kinds == dict(zip(NAMES, ["single", "ordinal", "multi", "regression", "single"], strict=True))
    empty = {"theme": 10, "urgency": 20, "topics": 20, "length": 15, "late": 0}
    for name, one in found.json.items():
        assert one["task_dir"] == str(Path("tasks", name))
        # Rows in are rows out.
        file = one["files"]["train"]
        assert file["left_out"] == {"blank lines": 1} | ({"empty label cells": empty[name]} if empty[name] else {})
        assert file["rows_used"] + sum(file["left_out"].values()) == file["rows_read"] == 101
        assert one["rows"]["train"] + one["rows"]["validation"] == file["rows_used"]
        assert one["rows"]["test"] == one["files"]["test"]["rows_used"] <= 20
        assert load_task(one["task_dir"]).metrics == one["metrics"]
    assert load_task("tasks/urgency").target.names == ("low", "high")
    assert (
        "table.csv: 101 rows read; columns text = 'text'; tasks 'theme' (single, 90 used, 1 blank lines, 10 empty"
        in (found.err)
    )
    assert "task 'theme': table.csv: " in found.err and "'refunds'" in found.err


def test_the_json_of_a_task_has_the_keys_of_a_task_alone(train: Run, run: Run, tiny_encoder: Path) -> None:
    beside = train("--tasks", "late,theme", "--json").json["late"]
    # A single task holds out the rows that it would hold out without --tasks.
    several = train("--tasks", "late", "--json").json["late"]
    alone = run("train", "table.csv", "--label", "late", "--encoder", tiny_encoder, "--out", "alone", "--json").json
    assert list(several) == list(alone) == list(beside)
    assert several["metrics"] == alone["metrics"] and several["seeds"] == alone["seeds"]
    assert {key: type(value) for key, value in several.items()} == {key: type(value) for key, value in alone.items()}
    assert Path("tasks/late/head.safetensors").read_bytes() == Path("alone/head.safetensors").read_bytes()


def test_tasks_read_their_own_columns_of_the_same_table(train: Run, run: Run) -> None:
    assert train("--tasks", TASKS, "--quiet").status == 0
    used = {"theme": 90, "urgency": 80, "topics": 80, "length": 85, "late": 100}
    for name, rows in used.items():
        found = run("evaluate", f"tasks/{name}", "table.csv", "--json")
        assert found.status == 0, found.err
        assert found.json["rows"] == rows and found.json["files"]["data"]["columns"]["label"] == name
    answers = run("predict", *(f"tasks/{name}" for name in NAMES), "--input", "test.csv", "--quiet")
    assert answers.status == 0 and len(answers.out.splitlines()) == 5 * 20


def test_one_table_at_the_end(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    found = train("--tasks", TASKS)
    assert found.status == 0
    lines = [line.split() for line in found.out.splitlines()]
    rows = {line[0]: line for line in lines if line and line[0] in NAMES}
    assert list(rows) == NAMES
    assert {name: line[-2:] for name, line in rows.items()} == {
        "theme": ["90", "10"], "urgency": ["80", "20"], "topics": ["80", "20"], "length": ["85", "15"],
        "late": ["100", "0"],
    }  # fmt: skip
    assert "5 tasks, validation" in found.out and "Saved in tasks: 5 heads with " in found.out
    assert "these scores are from the validation set, which also chose the heads" in found.out
    assert "task 'late': table.csv: 12 of the 100 rows were held out for validation" in found.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("theme,constant",),
            r"1 of 2 tasks cannot be trained. 'constant': table.csv, row 1, column 'constant': all 100",
        ),
        (("theme,thmee",), "table.csv: --tasks names the column 'thmee', which is not there. Did you mean 'theme'?"),
        (("theme:ordnal",), "the kind of the column 'theme' must be one of 'auto', 'single', 'ordinal', 'multi'"),
        (("theme,late,theme",), "--tasks names the column 'theme' more than once. Name it once."),
        (("a/b",), "'a/b' cannot be the name of a task's folder"),
        (("theme:regression",), "table.csv, row 1, column 'theme':"),
        (("theme:ordinal",), "1 of 1 task cannot be trained. 'theme':"),
        (("",), "--tasks has a part without a column. Got ''."),
        (("theme", "--label", "late"), "--label is for one task and cannot be used with --tasks. Name the column in"),
        (("theme", "--kind", "single"), "--kind is for one task and cannot be used with --tasks. Write the kind after"),
        (("theme", "--label-order", "a,b"), "--label-order is for one task and cannot be used with --tasks."),
        (("theme", "--label-names", "a,b"), "--label-names is for one task and cannot be used with --tasks."),
        (
            ("theme", "--report", "x.html"),
            "--report is for one task and cannot be used with --tasks. Make it afterwards",
        ),
        (("theme", "--label-texts", "x.json"), "a file of label texts is for one task. Got 'x.json' with --tasks."),
        (("theme", "--abstain-at", "0.9"), "--abstain-at is for one task: "),
        (("theme", "--layers", "auto"), "--layers auto chooses hidden states for one task"),
        (("theme,length", "--loss", "focal"), "--loss is for tasks with labels, and these rows have numbers."),
        (("theme,length", "--label-weights", "balanced"), "1 of 2 tasks cannot be trained. 'length': --label-weights"),
        (("theme", "--worker-gpus", "1"), "--worker-gpus is for the engine 'ray'. Leave it out, or use --engine ray."),
        (("theme", "--validation", "test.csv", "--group", "group"), "--group has no effect together with --validation"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_encoded(
    options: tuple[str, ...], message: str, train: Run, encoded: list[int]
) -> None:
    found = train("--tasks", *options)
    assert found.status == 2 and found.out == "" and "Traceback" not in found.err
    last = found.err.strip().splitlines()[-1]
    assert last.startswith(f"error: {message}"), last
    assert encoded == [] and not Path("tasks").exists()


def test_a_column_that_a_test_file_lacks_is_named(train: Run) -> None:
    Path("test.csv").write_text("text,theme\nmy card,card\n", encoding="utf-8")
    found = train("--tasks", "theme,late", "--test", "test.csv")
    assert found.status == 2 and "error: test.csv: --tasks names the column 'late', which is not there." in found.err


def test_folders_that_hold_something_else_are_kept(train: Run) -> None:
    Path("tasks/late").mkdir(parents=True)
    Path("tasks/late/notes.txt").write_text("mine", encoding="utf-8")
    found = train("--tasks", "theme,late")
    assert found.status == 2 and "the folder tasks/late is not empty and was not written by ytuning train" in found.err
    assert [path.name for path in Path("tasks").iterdir()] == ["late"]


def test_groups_stay_together_in_each_task(train: Run) -> None:
    found = train("--tasks", "theme,late", "--group", "group", "--json")
    assert found.status == 0
    # The rows of a group are 11 or 12 of 100, a tenth of which are held out.
    assert found.json["late"]["rows"]["validation"] in (11, 12)
    assert found.json["theme"]["files"]["train"]["columns"]["group"] == "group"


def test_workers_train_the_heads_that_one_process_trains(train: Run) -> None:
    assert train("--tasks", "theme,late", "--quiet").status == 0
    before = {name: Path("tasks", name, "head.safetensors").read_bytes() for name in ("theme", "late")}
    found = train("--tasks", "theme,late", "--workers", "2", "--json")
    assert found.status == 0, found.err
    assert list(found.json) == ["theme", "late"]
    assert {name: Path("tasks", name, "head.safetensors").read_bytes() for name in before} == before
    assert found.json["late"]["cache"]["misses"] == 0 and found.json["late"]["seconds"]["train"] > 0


def test_options_about_workers_are_for_several_tasks(train: Run) -> None:
    found = train("--label", "late", "--workers", "2")
    assert found.status == 2
    assert found.err == "error: --workers is for several tasks, which --tasks names. Leave it out, or use --tasks.\n"


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_training_saves_the_best_head_of_each_task(
    train: Run, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path
) -> None:
    assert train("--tasks", "late", "--quiet").status == 0
    before = Path("tasks/late/task.json").read_bytes()

    class Interrupt(Progress):
        pressed = False

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "train" and done == 5 and not Interrupt.pressed:
                Interrupt.pressed = True
                raise KeyboardInterrupt

    monkeypatch.setattr("ytuning.cli.console.Messages", lambda: Interrupt())
    found = train("--tasks", "late,theme", "--quiet", "--json")
    assert found.status == 1
    assert "Interrupted. The best heads so far of 2 tasks are saved." in found.err
    # The finished task is kept, and the interrupted one is beside it.
    assert Path("tasks/late/task.json").read_bytes() == before
    assert {name: one["task_dir"] for name, one in found.json.items()} == {
        "late": str(Path("tasks/late-interrupted").resolve()), "theme": "tasks/theme",
    }  # fmt: skip
    assert all(one["interrupted"] for one in found.json.values())
    assert json.loads(Path("tasks/theme/task.json").read_text())["training"]["interrupted"]


def test_ctrl_c_after_the_training_keeps_finished_tasks(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[str] = []

    def interrupted(context: TrainContext, *arguments: Any, **options: Any) -> Trained:
        if finished:
            raise KeyboardInterrupt
        finished.append(context.options.name)
        return finish_task(context, *arguments, **options)

    monkeypatch.setattr("ytuning.tasks.train_many.finish_task", interrupted)
    found = train("--tasks", "late,theme,topics", "--json")
    assert found.status == 1 and list(found.json) == ["late"] and Path("tasks/late/task.json").is_file()
    assert "Interrupted. 1 task saved; 2 tasks were not finished." in found.err
    assert not Path("tasks/theme").exists()


def test_the_tasks_learn_from_texts_without_labels(train: Run, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_recipe, "clearly_lower", lambda *_, **__: True)
    falling = itertools.count(0, -1)
    monkeypatch.setattr(distill, "_gap", lambda *_: next(falling))
    (table.parent / "more.csv").write_text("text\nmy card is gone\nwhere is my refund\n", encoding="utf-8")
    (table.parent / "held.csv").write_bytes((table.parent / "test.csv").read_bytes())
    options = ("--preset", "auto", "--validation", "held.csv", "--unlabelled", "more.csv", "--json")
    found = train("--tasks", "theme,late", *options)
    assert found.status == 0, found.err
    assert "more.csv: 2 rows; columns text = 'text'" in found.err
    for name in ("theme", "late"):
        assert f"task {name!r}: the light head has also learned from 2 texts without labels" in found.err
        assert found.json[name]["files"]["unlabelled"]["rows_used"] == 2
        assert load_task(f"tasks/{name}").training["auto"]["unlabelled"] == 2

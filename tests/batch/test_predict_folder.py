"""Prediction over folders: the parts have what the tasks answer, and every row once, whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import WORDS
from tests.engines.works import Trapped
from tests.object_store import MakeFolder
from ytuning.batch.batch_predictor import BatchPredictor
from ytuning.batch.plan import read_plan
from ytuning.batch.predict_folder import BatchRun, predict_folder
from ytuning.batch.predict_work import PredictUnit, PredictWork
from ytuning.data.places import DiskFolder, open_folder
from ytuning.engines.processes import ProcessPool
from ytuning.engines.schedule import GivenUp, Scheduler
from ytuning.errors import DataError, InputError, WriteError
from ytuning.progress import CollectedMessages
from ytuning.tasks.predictor import Predictor

ROOT = Path(__file__).parents[2]
KINDS = ("single", "ordinal", "multi", "number", "careful")


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chooser = random.Random(seed)
    return [
        {"id": number, "text": " ".join(chooser.choices(WORDS, k=chooser.randint(1, 60))), "tags": [number % 3, "x"]}
        for number in range(count)
    ]


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def parts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name.startswith("part-")}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for name in parts(folder) for row in pq.read_table(folder / name).to_pylist()]


@pytest.fixture(scope="module")
def folders(served_tasks: Path) -> list[str]:
    return [str(served_tasks / name) for name in KINDS]


@pytest.fixture(scope="module")
def whole(served_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``in/rows.jsonl`` of 400 rows, and ``out`` with the answers of the task "single" in 40 units."""
    root = tmp_path_factory.mktemp("whole")
    write_rows(root / "in", make_rows(400))
    predict_folder(served_tasks / "single", root / "in", root / "out", unit_rows=10, workers=2)
    return root


def test_parts_have_what_each_kind_of_task_answers(folders: list[str], tmp_path: Path) -> None:
    rows = make_rows(150)
    write_rows(tmp_path / "in", rows)
    run = predict_folder(folders, tmp_path / "in", tmp_path / "out", unit_rows=64, keep=["id", "tags"], scores="all")
    found = rows_of(tmp_path / "out")
    assert (run.rows, run.units, len(found)) == (150, 3, 150)
    assert [(row["id"], json.loads(row["tags"])) for row in found] == [(row["id"], row["tags"]) for row in rows]
    expected = Predictor(folders).predict(row["text"] for row in rows)
    for row in found:
        for name in KINDS:
            answer = next(expected)
            assert row[f"{name}.truncated"] == answer.truncated
            if name == "number":
                assert math.isclose(row["number.value"], answer.answer, rel_tol=1e-4)  # type: ignore[arg-type]
                continue
            assert row[f"{name}.{'labels' if name == 'multi' else 'label'}"] == answer.answer
            assert row[f"{name}.scores"] == pytest.approx(answer.scores, abs=1e-4)
            if name != "multi":
                assert row[f"{name}.abstained"] == (answer.answer is None)
    assert {row["careful.abstained"] for row in found} == {True, False}
    assert run.answers["careful"][None] == sum(row["careful.abstained"] for row in found)
    assert run.truncated["single"] == sum(row["single.truncated"] for row in found) > 0


def test_the_score_is_that_of_the_answer(folders: list[str]) -> None:
    predictor, rows = BatchPredictor(folders), make_rows(100)
    table = predictor(pa.table({"text": [row["text"] for row in rows]}))
    expected = Predictor(folders).predict(row["text"] for row in rows)
    for row in table.to_pylist():
        for name in KINDS:
            answer = next(expected)
            if name == "multi":
                wanted = [answer.scores[label] for label in answer.answer]  # type: ignore[union-attr]
                assert row["multi.scores"] == pytest.approx(wanted, abs=1e-4)
            elif name != "number":
                wanted_score = answer.scores[answer.answer or max(answer.scores, key=lambda one: answer.scores[one])]  # type: ignore[index]
                assert row[f"{name}.score"] == pytest.approx(wanted_score, abs=1e-4)


def test_batch_predictor_keeps_rows_and_says_what_it_cannot_read(served_tasks: Path) -> None:
    predictor = BatchPredictor(served_tasks / "single", scores="none")
    batch = pa.RecordBatch.from_pydict({"n": [1, 2, 3], "text": ["my card", "login", "my card"]})
    answered = predictor(batch)
    assert isinstance(answered, pa.RecordBatch)
    assert answered.column("n").to_pylist() == [1, 2, 3]
    labels = answered.column("single.label").to_pylist()
    assert labels[0] == labels[2] == next(Predictor(served_tasks / "single").predict(["my card"])).label
    assert predictor(batch.slice(0, 0)).num_rows == 0
    for wrong, problem in (
        ({"text": ["x"]}, "must be a pyarrow.Table or RecordBatch"),
        (pa.table({"body": ["x"]}), "no column 'text'"),
        (pa.table({"text": ["x", None]}), "row 2, column 'text': the text is missing"),
        (pa.table({"text": ["x"], "single.label": ["y"]}), "already"),
    ):
        with pytest.raises(InputError, match=problem):
            predictor(wrong)


def test_pairs_are_read_by_the_columns_of_the_training(served_tasks: Path, tmp_path: Path) -> None:
    rows = [{"text": "my card", "text_pair": "lost card"}, {"text": "login", "text_pair": "late"}]
    write_rows(tmp_path / "in", rows)
    predict_folder(served_tasks / "apart", tmp_path / "in", tmp_path / "out", keep="none")
    expected = [one.label for one in Predictor(served_tasks / "apart").predict([tuple(row.values()) for row in rows])]
    assert [row["apart.label"] for row in rows_of(tmp_path / "out")] == expected
    with pytest.raises(InputError, match=r"the tasks cannot read the same rows: pairs of texts are for 'apart'"):
        predict_folder([served_tasks / "apart", served_tasks / "single"], tmp_path / "in", tmp_path / "other")


def test_a_run_that_was_stopped_does_only_what_is_missing(whole: Path, served_tasks: Path, tmp_path: Path) -> None:
    before = parts(whole / "out")
    assert len(before) == 40
    (tmp_path / "out").symlink_to(whole / "out")
    missing = sorted(before)[5:25]
    for name in missing:
        (whole / "out" / name).unlink()
    (whole / "out" / "_SUCCESS").unlink()
    messages = CollectedMessages()
    run = predict_folder(served_tasks / "single", whole / "in", whole / "out", progress=messages)
    assert (run.units, run.skipped, run.rows) == (40, 20, 200)
    assert parts(whole / "out") == before
    assert (whole / "out" / "_SUCCESS").exists()
    assert any("20 of 40 units are done already" in message for message in messages.messages)
    again = predict_folder(served_tasks / "single", whole / "in", whole / "out")
    assert (again.skipped, again.rows) == (40, 0)


def test_another_plan_in_the_same_folder_is_refused_with_what_differs(
    whole: Path, served_tasks: Path, tmp_path: Path
) -> None:
    for tasks, options, problem in (
        ("ordinal", {}, r"started with the tasks 'single', now 'ordinal'"),
        ("single", {"unit_rows": 20}, r"started with unit_rows=10, now unit_rows=20"),
        (
            "single",
            {"scores": "all", "keep": "id"},
            r"keep='id,text,tags', now keep='id'; scores='top', now scores='all'",
        ),
    ):
        with pytest.raises(InputError, match=problem):
            predict_folder(served_tasks / tasks, whole / "in", whole / "out", **options)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"is not empty \(1 file\) and has no plan"):
        predict_folder(served_tasks / "single", whole / "in", tmp_path)


def test_files_may_be_added_after_the_others_and_may_not_change(served_tasks: Path, tmp_path: Path) -> None:
    rows, task = make_rows(30), served_tasks / "single"
    write_rows(tmp_path / "in", rows[:10], "b.jsonl")
    predict_folder(task, tmp_path / "in", tmp_path / "out", unit_rows=5)
    write_rows(tmp_path / "in", rows[10:20], "c.jsonl")
    run = predict_folder(task, tmp_path / "in", tmp_path / "out")
    assert (run.units, run.skipped, run.rows) == (4, 2, 10)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == list(range(20))
    write_rows(tmp_path / "in", rows[20:], "a.jsonl")
    with pytest.raises(InputError, match=r"'a.jsonl' comes before files that are planned"):
        predict_folder(task, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.jsonl").unlink()
    same_size = (tmp_path / "in" / "b.jsonl").read_text().replace('"id": 3', '"id": 4')
    (tmp_path / "in" / "b.jsonl").write_text(same_size)
    with pytest.raises(InputError, match=r"'b.jsonl' has changed"):
        predict_folder(task, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "b.jsonl").unlink()
    with pytest.raises(InputError, match=r"'b.jsonl' of the plan is missing"):
        predict_folder(task, tmp_path / "in", tmp_path / "out")


def test_a_bad_row_fails_its_unit_alone_or_gets_empty_answers(served_tasks: Path, tmp_path: Path) -> None:
    rows, task = make_rows(40), served_tasks / "single"
    rows[17]["text"] = None
    write_rows(tmp_path / "in", rows)
    run = predict_folder(task, tmp_path / "in", tmp_path / "out", unit_rows=10)
    (failed,) = run.failed
    assert (failed.unit, failed.file, failed.first_row, failed.rows, failed.attempts) == (1, "rows.jsonl", 11, 10, 1)
    assert "rows.jsonl, row 18, column 'text': the text is missing" in failed.why
    assert (run.rows, len(parts(tmp_path / "out"))) == (30, 3)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    (record,) = (tmp_path / "out" / "_ytuning" / "failed").iterdir()
    assert json.loads(record.read_text())["why"] == failed.why
    run = predict_folder(task, tmp_path / "in", tmp_path / "nulls", unit_rows=10, bad_rows="null")
    found = rows_of(tmp_path / "nulls")
    assert (run.bad_rows, run.failed, [row["id"] for row in found]) == (1, [], list(range(40)))
    assert [row["id"] for row in found if row["single.label"] is None] == [17]
    # The same folder can go on so.
    run = predict_folder(task, tmp_path / "in", tmp_path / "out", unit_rows=10, bad_rows="null")
    assert (run.skipped, run.rows, run.bad_rows, run.failed) == (3, 10, 1, [])
    assert parts(tmp_path / "out") == parts(tmp_path / "nulls")


def test_json_lines_out_keep_the_values_of_the_input(served_tasks: Path, tmp_path: Path) -> None:
    rows = make_rows(10)
    write_rows(tmp_path / "in", rows)
    predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out", format="jsonl", scores="none")
    (content,) = parts(tmp_path / "out").values()
    found = [json.loads(line) for line in content.splitlines()]
    assert [{name: row[name] for name in ("id", "text", "tags")} for row in found] == rows
    assert {type(row["single.label"]) for row in found} == {str}


def test_columns_of_several_files_must_agree(served_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a"], "id": [1]}), tmp_path / "in" / "a.parquet")
    for other, problem in (({"body": ["b"], "id": [2]}, "columns 'text'"), ({"text": ["b"], "id": ["2"]}, "int64 in")):
        pq.write_table(pa.table(other), tmp_path / "in" / "b.parquet")
        with pytest.raises(InputError, match=rf"b.parquet.*{problem}"):
            predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out")
    for keep, problem in (("idd", "Did you mean 'id'"), ("text", "")):
        if problem:
            with pytest.raises(InputError, match=problem):
                predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out", keep=keep)
        else:
            predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out", keep=keep)
            assert [row["text"] for row in rows_of(tmp_path / "out")] == ["a", "b"]


def test_what_could_be_lost_in_silence_is_told_or_refused(served_tasks: Path, tmp_path: Path) -> None:
    task, rows = served_tasks / "single", make_rows(3)
    write_rows(tmp_path / "in", rows)
    # A second run would read the parts of the first one.
    for source, form in (("", "parquet"), ("/**/*.parquet", "parquet"), ("/**/*.jsonl", "jsonl")):
        with pytest.raises(InputError, match=r"lies in the input|no file matches"):
            predict_folder(task, f"{tmp_path}/in{source}", tmp_path / "in" / "answers", format=form)  # type: ignore[arg-type]
    pq.write_table(pa.Table.from_arrays([["a"], ["b"], [1]], ["text", "id", "id"]), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="more than one column is named 'id'"):
        predict_folder(task, tmp_path / "twice.parquet", tmp_path / "out")
    # A column may appear after the first rows, which say what is kept.
    lines = [*rows, *({"text": "my card"} for _ in range(2100)), {"text": "my card", "late": 1}]
    write_rows(tmp_path / "late", lines)
    messages = CollectedMessages()
    run = predict_folder(task, tmp_path / "late", tmp_path / "out", progress=messages, unit_rows=5000)
    assert run.rows == len(lines)
    assert any("not in the first rows of the input" in message and "'late'" in message for message in messages.messages)
    # A cascade needs a task with two heads.
    predict_folder(task, tmp_path / "in", tmp_path / "alone", cascade=0.01, progress=messages)
    assert any("no task has two heads" in message for message in messages.messages)


def test_dates_and_decimals_are_kept_in_json_lines_and_bytes_are_refused(served_tasks: Path, tmp_path: Path) -> None:
    values = {"day": [date(2026, 11, 28)], "price": [Decimal("1.50")], "raw": [b"1"]}
    pq.write_table(pa.table({"text": ["my card"], **values}), tmp_path / "rows.parquet")
    options: Any = {"format": "jsonl", "keep": ["day", "price"]}
    predict_folder(served_tasks / "single", tmp_path / "rows.parquet", tmp_path / "out", **options)
    (content,) = parts(tmp_path / "out").values()
    assert json.loads(content) | {"day": "2026-11-28", "price": "1.50"} == json.loads(content)
    options["keep"] = "raw"
    with pytest.raises(InputError, match="column 'raw': JSON lines cannot have bytes"):
        predict_folder(served_tasks / "single", tmp_path / "rows.parquet", tmp_path / "other", **options)


def test_files_without_rows_are_told_and_do_not_end_a_run(served_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("text,id\n")
    (tmp_path / "in" / "b.csv.gz").write_bytes(gzip.compress(b"text,id\n"))
    (tmp_path / "in" / "c.csv").write_text("\ntext,id\nmy card,1\n")
    (tmp_path / "in" / "d.csv").write_bytes("text,id\n".encode("utf-16"))
    messages = CollectedMessages()
    first = predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out", progress=messages)
    again = predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out")
    assert (first.rows, first.units, again.skipped) == (1, 1, 1)
    assert any("have no rows: 'a.csv', 'b.csv.gz', 'd.csv'" in message for message in messages.messages)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["1"]


def test_what_is_no_table_of_its_name_is_refused_while_planning(served_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.csv").write_text("text,id\nmy card,1\n")
    for name, content in (("json.csv", '[{"text": "lost"}]'), ("line.csv", '{"text": "lost"}\n')):
        (tmp_path / "in" / name).write_text(content)
        with pytest.raises(InputError, match=rf"{name}: this is JSON"):
            predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out")
        (tmp_path / "in" / name).unlink()
    pq.write_table(pa.table({"text": ["my card"], "id": [1]}), tmp_path / "in" / "a.parquet")
    with pytest.raises(InputError, match=r"good.csv, column 'id': the cells of CSV are text, and int64 in other files"):
        predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out")
    data = bytearray((tmp_path / "in" / "a.parquet").read_bytes())
    data[-20:-10] = b"x" * 10
    (tmp_path / "in" / "a.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"a.parquet: the file is not a Parquet file or is damaged"):
        predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out")


def test_blank_and_broken_texts_are_counted(served_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = ['{"text": "my card"}', '{"text": " "}', '{"text": "half \\ud800 a pair"}', '{"text": ""}']
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(lines))
    run = predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out", bad_rows="null", workers=20)
    assert (run.rows, run.bad_rows, run.blank_rows, run.failed) == (4, 1, 2, [])
    assert [row["text"] for row in rows_of(tmp_path / "out")] == ["my card", " ", None, ""]
    failing = predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "other")
    assert "rows.jsonl, row 3, column 'text'" in failing.failed[0].why


def test_a_file_that_changes_during_the_run_fails_its_unit(served_tasks: Path, tmp_path: Path) -> None:
    task, rows = served_tasks / "single", make_rows(20)
    file = write_rows(tmp_path / "in", rows)
    predict_folder(task, tmp_path / "in", tmp_path / "out", unit_rows=10)
    plan = read_plan(open_folder(tmp_path / "out"))
    assert plan is not None
    worker = PredictWork((str(task),), None, "top", None, None, None).start()
    unit = PredictUnit(plan.units[1], plan.files[0][0], plan.job, str(tmp_path / "in"), str(tmp_path / "other"))
    # There may be other rows, or as many and others, or none any more.
    for others in (rows[:15], [{**row, "text": "my card"} for row in rows], [*rows, rows[0]]):
        write_rows(tmp_path / "in", others)
        with pytest.raises(DataError, match=rf"{file.name}: the file has changed since it was planned"):
            worker(unit, lambda rows: None)
    file.unlink()
    with pytest.raises(DataError, match=rf"{file.name}: there is no such file"):
        worker(unit, lambda rows: None)
    assert not list((tmp_path / "other").glob("part-*"))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_damaged_parts_are_computed_again_and_foreign_ones_are_named(
    served_tasks: Path, tmp_path: Path, form: Any
) -> None:
    task, output, messages = served_tasks / "single", tmp_path / "out", CollectedMessages()
    write_rows(tmp_path / "in", make_rows(30))
    predict_folder(task, tmp_path / "in", output, unit_rows=10, format=form)
    before = parts(output)
    damaged, whole_one, _ = before
    (output / damaged).write_bytes(before[damaged][:100])
    (output / f"part-000009-0123456789ab.{form}").write_bytes(before[whole_one])
    run = predict_folder(task, tmp_path / "in", output, format=form, progress=messages)
    assert (run.rows, run.skipped) == (10, 2)
    assert {name: content for name, content in parts(output).items() if name in before} == before
    for words in (("damaged", damaged), ("not of this run", "part-000009-0123456789ab")):
        assert any(all(word in message for word in words) for message in messages.messages), words


def test_a_damaged_plan_is_told_as_such(served_tasks: Path, tmp_path: Path) -> None:
    task, plan = served_tasks / "single", tmp_path / "out" / "_ytuning" / "plan.json"
    write_rows(tmp_path / "in", make_rows(30))
    predict_folder(task, tmp_path / "in", tmp_path / "out", unit_rows=10)
    content = json.loads(plan.read_text())
    (file,) = content["files"]
    for files in (
        [{**file, "parts": [file["parts"][0], ["a", None, 10, 10]]}],
        [{**file, "parts": file["parts"][::2]}],
        [file, file],
    ):
        plan.write_text(json.dumps({**content, "files": files}))
        with pytest.raises(InputError, match=r"plan\.json is damaged"):
            predict_folder(task, tmp_path / "in", tmp_path / "out")


def test_of_two_plans_that_are_written_at_once_the_first_stays(
    served_tasks: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "in", make_rows(30))
    predict_folder(served_tasks / "ordinal", tmp_path / "in", tmp_path / "other")
    write = DiskFolder.write_first

    def write_second(folder: DiskFolder, path: str, data: bytes) -> None:
        write(folder, path, (tmp_path / "other" / path).read_bytes())
        write(folder, path, data)

    monkeypatch.setattr(DiskFolder, "write_first", write_second)
    with pytest.raises(InputError, match=r"started with the tasks 'ordinal', now 'single'"):
        predict_folder(served_tasks / "single", tmp_path / "in", tmp_path / "out")
    assert not parts(tmp_path / "out")
    # A run of the same units on another machine is joined, whatever becomes of bad rows.
    plan = tmp_path / "other" / "_ytuning" / "plan.json"
    content = json.loads(plan.read_text())
    content["job"]["bad_rows"], content["about"] = "null", {"machine": "another"}
    plan.write_text(json.dumps(content))
    assert predict_folder(served_tasks / "ordinal", tmp_path / "in", tmp_path / "joined").rows == 30
    assert parts(tmp_path / "joined") == parts(tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"engine": "spark"}, "engine must be one of 'local', 'ray'"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"scores": "some"}, "scores must be one of 'all', 'top', 'none'"),
        ({"unit_rows": 0}, "unit_rows must be at least 1"),
        ({"address": "auto"}, "address is for the engine 'ray'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    whole: Path, served_tasks: Path, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        predict_folder(served_tasks / "single", whole / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_task_is_told_as_such(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no task folder"):
        predict_folder(tmp_path / "none", whole / "in", tmp_path / "out")


def test_object_stores_are_read_and_written(
    whole: Path, served_tasks: Path, make_folder: MakeFolder, tmp_path: Path
) -> None:
    reading, writing = make_folder(), make_folder()
    open_folder(reading).write("rows.jsonl", (whole / "in" / "rows.jsonl").read_bytes())
    run = predict_folder(served_tasks / "single", reading, writing, unit_rows=10)
    folder = open_folder(writing)
    found = {file.path: folder.read(file.path) for file in folder.files()}
    assert run.rows == 400
    assert found == parts(whole / "out")


# --- what may happen in the middle of a run -------------------------------------------------------------------------


def command(task: Path, folder: Path, output: Path, *more: str) -> list[str]:
    words = ["predict", str(task), "--input", str(folder), "--output", f"{output}/", "--unit-rows", "10", *more]
    return [sys.executable, "-m", "ytuning", *words]


def start(words: list[str], mark: str = "") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RUN_OF_A_TEST": mark}
    # A session of its own, so that signals reach only this run.
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=environment
    )


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(list(output.glob("part-*"))) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_whole_parts_and_no_workers(
    whole: Path, served_tasks: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    output = tmp_path / "out"
    process = start(command(served_tasks / "single", whole / "in", output, "--workers", "2"), str(output))
    wait_for_parts(output, 5, process)
    os.kill(process.pid, sent)
    _, told = process.communicate(timeout=60)
    if sent != signal.SIGKILL:
        assert process.returncode == 1
        assert told.decode().strip().endswith("run the same command again to resume.")
    expected = parts(whole / "out")
    assert all(expected[name] == content for name, content in parts(output).items())
    check_no_workers(str(output))
    done = len(parts(output))
    run = predict_folder(served_tasks / "single", whole / "in", output)
    assert (run.skipped, parts(output)) == (done, expected)


def check_no_workers(mark: str) -> None:
    """No process is left that has a mark in its environment."""
    deadline = time.monotonic() + 30
    while found := [
        entry for entry in Path("/proc").glob("[0-9]*") if mark.encode() in read_or_nothing(entry / "environ")
    ]:
        assert time.monotonic() < deadline, [read_or_nothing(entry / "cmdline") for entry in found]
        time.sleep(0.1)


def read_or_nothing(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_two_runs_over_one_folder_share_the_work(whole: Path, served_tasks: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    both = [start([*command(served_tasks / "single", whole / "in", output), "--json"]) for _ in range(2)]
    runs = []
    for process in both:
        out, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        runs.append(json.loads(out))
    # Either skips what the other has done; only units that both have begun are computed twice.
    assert all(run["rows"] // 10 + run["skipped"] == 40 for run in runs)
    assert 400 <= sum(run["rows"] for run in runs) < 700
    assert parts(output) == parts(whole / "out")
    assert (output / "_SUCCESS").exists()


def test_a_row_that_kills_its_worker_costs_its_unit_alone(whole: Path, served_tasks: Path, tmp_path: Path) -> None:
    plan = read_plan(open_folder(whole / "out"))
    assert plan is not None
    trap = make_rows(400)[234]["text"]
    work = Trapped(PredictWork((str(served_tasks / "single"),), None, "top", None, None, None), trap)
    messages = CollectedMessages()
    with closing(ProcessPool(work)) as pool:
        scheduler = Scheduler(pool, workers=2, attempts=3, progress=messages)
        scheduler.about()
        file = plan.files[0][0]
        units = [PredictUnit(unit, file, plan.job, str(whole / "in"), str(tmp_path)) for unit in plan.units]
        ends = list(scheduler.run(units, lambda unit: False, lambda rows: None))
    (given_up,) = [end for end in ends if isinstance(end, GivenUp)]
    assert (given_up.unit.unit.number, given_up.attempts) == (23, 3)
    expected = parts(whole / "out")
    del expected[given_up.unit.unit.name]
    assert parts(tmp_path) == expected


def test_a_full_disk_stops_the_run_with_one_message(whole: Path, served_tasks: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine cannot make a small disk")
    try:
        with pytest.raises(WriteError, match=r"No space left on device.*Free some space"):
            predict_folder(served_tasks / "single", whole / "in", disk / "out", unit_rows=10)
        expected, done = parts(whole / "out"), parts(disk / "out")
        assert done
        assert all(expected[name] == content for name, content in done.items())
        assert not list((disk / "out" / "_ytuning" / "partial").iterdir())
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        run = predict_folder(served_tasks / "single", whole / "in", disk / "out")
        assert (run.skipped, parts(disk / "out")) == (len(done), expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_results_do_not_depend_on_the_number_of_workers(whole: Path, served_tasks: Path, tmp_path: Path) -> None:
    run: BatchRun = predict_folder(served_tasks / "single", whole / "in", tmp_path / "out", unit_rows=10, worker_cpus=2)
    assert run.units == 40
    assert parts(tmp_path / "out") == parts(whole / "out")

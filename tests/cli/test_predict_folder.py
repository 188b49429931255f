"""``ytuning predict`` over folders: when it is one, what it prints, and which options fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ytuning.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"id": number, "text": "my card is late"}) for number in range(30)]
    lines[20] = json.dumps({"id": 20, "text": None})
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "in"


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["predict", *map(str, words)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_failed_unit_is_named_and_ends_the_run_with_status_1(
    capsys: Capture, served_tasks: Path, rows: Path, tmp_path: Path
) -> None:
    output = f"{tmp_path}/out/"
    status, out, err = run(
        capsys, served_tasks / "single", served_tasks / "multi", "--input", rows, "--output", output, "--unit-rows", 10
    )
    assert status == 1
    assert "20 rows answered in 2 units; " in out
    assert "failed: rows.jsonl, from row 21:" in out
    assert "Answers of this run" in out
    last = err.splitlines()[-1]
    assert last.startswith("error: 1 unit of 3 failed; all others are done.")
    assert "rows.jsonl, row 21, column 'text': the text is missing" in last
    assert "Run the same command again to try only these." in last
    assert last.endswith("With --bad-rows null, rows without a text get empty answers.")
    # The same run can go on with empty answers for such rows; a run of other tasks cannot.
    options = ["--input", rows, "--output", output, "--bad-rows", "null"]
    status, _, err = run(capsys, served_tasks / "single", *options)
    assert status == 2
    assert "started with the tasks 'single', 'multi', now 'single'" in err
    status, out, _ = run(capsys, served_tasks / "single", served_tasks / "multi", *options)
    assert status == 0
    assert "10 rows answered in 1 unit; 2 of 3 units were done before" in out


def test_json_is_one_value_and_quiet_shows_no_bar(
    capsys: Capture, served_tasks: Path, rows: Path, tmp_path: Path
) -> None:
    options = ["--input", rows / "rows.jsonl", "--output", f"{tmp_path}/out/", "--bad-rows", "null", "--keep", "id"]
    status, out, err = run(capsys, served_tasks / "single", *options, "--json", "--quiet")
    assert status == 0
    found = json.loads(out)
    assert (found["rows"], found["bad_rows"], found["failed"], found["units"]) == (30, 1, [], 1)
    assert set(found["seconds"]) == {"start", "units", "total"}
    assert err == "1 row without a text, whose answers are empty.\n"
    (part,) = (tmp_path / "out").glob("part-*.parquet")
    assert pq.read_schema(part).names[:2] == ["id", "single.label"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["--input", "{rows}/rows.jsonl", "--output", "{out}.jsonl", "--workers", "2"],
            "--workers is for runs over fo",
        ),
        (["--input", "{rows}"], "Give --output a folder for the answers"),
        (["--output", "{out}/", "my card"], "which takes the answers to --input FILE or FOLDER"),
        (["--input", "-", "--output", "{out}/"], "the standard input cannot be resumed"),
        (["--input", "{rows}", "--output", "{out}/", "--above", "0.5"], "files have all answers"),
        (["--input", "{rows}", "--output", "{out}/", "--engine", "spark"], "--engine must be one of 'local', 'ray'"),
        (["--input", "{rows}/*.csv", "--output", "{out}/"], "no file matches"),
        (["--input", "{rows}/rows.json", "--output", "{out}/"], "Did you mean 'rows.jsonl'?"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    capsys: Capture, served_tasks: Path, rows: Path, tmp_path: Path, words: list[str], problem: str
) -> None:
    names = {"rows": str(rows), "out": str(tmp_path / "out")}
    status, _, err = run(capsys, served_tasks / "single", *(word.format(**names) for word in words))
    assert status == 2
    assert problem in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()

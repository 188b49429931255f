"""``ytuning compare``: what goes where, and one line for each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.cli.test_cli import Run, files, run
from tests.compare.test_compare import Starts
from tests.conftest import build_tiny_encoder
from ytuning.compare.compare import LOCK_FILE
from ytuning.compare.methods import METHODS

__all__ = ["files", "run"]  # fixtures


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """In place of processes."""
    made = Starts()
    monkeypatch.setattr("ytuning.compare.compare.in_own_process", made)
    return made


def test_json_and_files(run: Run, files: Path, tiny_encoder: Path, starts: Starts) -> None:
    options = ("compare", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "found")
    outcome = run(*options, "--seeds", "2", "--json")
    assert outcome.status == 0
    assert outcome.json == json.loads((files / "found" / "comparison.json").read_text())
    assert list(outcome.json["methods"]) == ["ytuning", "paper", "logistic", "full", "lora"]
    assert (outcome.json["seeds"], outcome.json["split"], outcome.json["metric"]) == ([0, 1], "test", "accuracy")
    assert outcome.json["settings"] == {"epochs": None, "search_rates": False}
    assert (files / "found" / "comparison.html").exists()
    again = run(*options, "--seeds", "2")
    assert len(starts.asked) == 10  # none the second time
    assert "ytuning" in again.out and "The results are in found" in again.out
    assert "train.csv: 100 rows; columns" in again.err


def test_encoders(run: Run, files: Path, tiny_encoder: Path, starts: Starts) -> None:
    other = build_tiny_encoder(files / "other", seed=1)
    options = ("compare", "train.csv", "--test", "test.csv", "--encoders", f"{tiny_encoder}, {other}", "--out", "found")
    outcome = run(*options, "--seeds", "1", "--json")
    assert outcome.json == json.loads((files / "found" / "comparison.json").read_text())
    assert [entry["encoder"]["name"] for entry in outcome.json["encoders"]] == [str(tiny_encoder), str(other)]
    assert [list(entry["methods"]) for entry in outcome.json["encoders"]] == [["ytuning"], ["ytuning"]]
    assert outcome.json["encoders"][1]["methods"]["ytuning"]["difference"]
    starts.failures["logistic", 0] = KeyboardInterrupt()
    more = run(*options, "--seeds", "2", "--methods", "ytuning,logistic")
    assert more.status == 1 and "other, ytuning" not in more.out and f"{tiny_encoder.name}, ytuning" in more.out
    assert more.err.endswith("Interrupted. 1 of 8 runs are finished; run the same command again to resume.\n")
    assert [seed for _, seed in starts.asked] == [0, 0, 0]


def test_every_method_is_named_in_the_help_and_the_readme(run: Run) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Is it good enough?")[1].split("\n## ")[0]
    told = run("compare", "--help").out
    for name in METHODS:
        assert f"`{name}`" in section and re.search(rf"\b{name}\b[ ,]", told), name


def test_quiet_says_only_what_must_be_known(run: Run, files: Path, tiny_encoder: Path, starts: Starts) -> None:
    options = ("compare", "train.csv", "--encoder", tiny_encoder, "--seeds", "1", "--methods", "ytuning, full")
    outcome = run(*options, "--out", "found", "--quiet", "--json")
    lines = [line for line in outcome.err.splitlines() if not line.endswith("something")]
    assert len(lines) == 1 and lines[0].startswith("there is no test set (--test)")
    assert outcome.json["split"] == "validation"


def test_options_reach_the_methods(run: Run, files: Path, tiny_encoder: Path, starts: Starts) -> None:
    chosen = ("--epochs", "2", "--search-rates", "--rows", "60", "--methods", "full", "--seeds", "1")
    found = run(
        "compare", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "x", *chosen, "--json"
    )
    assert found.json["settings"] == {"epochs": 2, "search_rates": True}
    assert sum(found.json["rows"][role] for role in ("train", "validation")) == 60


def test_interrupted(run: Run, files: Path, tiny_encoder: Path, starts: Starts) -> None:
    starts.failures["full", 0] = KeyboardInterrupt()
    options = ("compare", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "x", "--seeds", "1")
    outcome = run(*options, "--methods", "ytuning,full")
    assert outcome.status == 1 and "ytuning" in outcome.out
    assert outcome.err.endswith("Interrupted. 1 of 2 runs are finished; run the same command again to resume.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--methods", "ytuning,bert"),
            "methods must be one of 'ytuning', 'paper', 'few-shot', 'logistic', 'full', 'lora', 'setfit'",
        ),
        (("--methods", ""), "methods must be one of"),
        (
            ("--encoders", "a,b"),
            "give either --encoder or --encoders, not both. --encoders names all that are compared",
        ),
        (("--encoders", "a"), "--encoders must name each encoder once, and at least two. Got 'a' instead."),
        (("--methods", "full,full"), "methods must name each method once"),
        (("--encoder", "./nowhere"), "there is no encoder folder './nowhere'"),
        (("--test", "nowhere.csv"), "nowhere.csv"),
        (("--label", "nothing"), "nothing"),
        (("--rows", "3"), "rows must be at least 6, two of each label. Got 3 instead."),
        (("--rows", "0"), "--rows must be a whole number of at least 1. Got '0' instead."),
        (("--out", "train.csv"), "cannot write train.csv"),
        (("--kind", "ordinal"), "so the labels' order is not known"),
        (("--address", "auto"), "--address is for the engine 'ray'. Leave it out, or use --engine ray."),
        (("--workers", "0"), "--workers must be a whole number of at least 1. Got '0' instead."),
    ],
)
def test_mistakes_are_one_line(
    options: tuple[str, str], message: str, run: Run, files: Path, tiny_encoder: Path, starts: Starts
) -> None:
    given = {"--encoder": str(tiny_encoder), "--out": "x", **dict([options])}
    words = [word for pair in given.items() for word in pair]
    assert message in run("compare", "train.csv", *words).mistake()
    assert starts.asked == []


def test_one_worker_needs_no_engine(run: Run, files: Path, tiny_encoder: Path, starts: Starts) -> None:
    options = ("compare", "train.csv", "--encoder", tiny_encoder, "--out", "x", "--methods", "logistic", "--seeds", "1")
    found = run(*options, "--workers", "1", "--json")
    assert found.status == 0 and found.json["workers"] == 1 and starts.asked == [("logistic", 0)]


def test_two_at_once(run: Run, files: Path, tiny_encoder: Path, starts: Starts) -> None:
    (files / "x").mkdir()
    command = ("compare", "train.csv", "--encoder", tiny_encoder, "--out", "x", "--methods", "logistic", "--seeds", "1")
    # What another process, which compares into the folder, would hold.
    with FileLock(files / "x" / LOCK_FILE):
        assert run(*command).mistake() == (
            "another comparison is running in x. Wait until it has ended, then give the command again, or choose "
            "another folder with --out"
        )
    assert starts.asked == [] and run(*command).status == 0


def test_ctrl_c_prints_what_is_finished(files: Path, tiny_encoder: Path) -> None:
    """The real thing: processes of their own, and a signal to the whole group as a terminal sends it."""
    options = ["--encoder", str(tiny_encoder), "--out", "x", "--methods", "logistic,full", "--epochs", "5000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ytuning", "compare", "train.csv", "--test", "test.csv", *options, "--quiet"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list((files / "x" / "runs").glob("logistic-0-*.json")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "logistic" in out and "Traceback" not in err
    assert err.splitlines()[-1] == "Interrupted. 1 of 6 runs are finished; run the same command again to resume."
    found: Any = json.loads((files / "x" / "comparison.json").read_text())
    assert found["interrupted"] and list(found["methods"]) == ["logistic"]
    assert not (files / "x" / "working").exists()

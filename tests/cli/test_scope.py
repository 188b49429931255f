"""Out-of-scope scores of a task whose labels change, through the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import Run, run, write_csv
from ytuning.tasks.task import load_task

__all__ = ["run"]  # a fixture


@pytest.mark.parametrize(("held", "kept"), [(24, False), (60, True)])
def test_a_light_task_with_too_few_rows_left_says_that_its_score_is_gone(
    held: int,
    kept: bool,
    run: Run,
    toy_rows: tuple[list[str], list[str]],
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    texts, labels = toy_rows
    write_csv(tmp_path / "train.csv", texts[held:], labels[held:])
    write_csv(tmp_path / "held.csv", texts[:held], labels[:held])
    trained = run(
        "train", "train.csv", "--validation", "held.csv", "--preset", "light", "--out-of-scope", "0.1",
        "--encoder", tiny_encoder, "--out", "toy",
    )  # fmt: skip
    assert trained.status == 0
    found = run("remove-label", "toy", "refund", "--json")
    assert found.status == 0 and found.json["labels"] == 2
    told = "Without the label 'refund' the task has too few validation rows for an out-of-scope score, so it gives none"
    assert (told in found.err) is not kept
    assert (load_task(tmp_path / "toy").scope is not None) is kept
    assert ("out_of_scope" in json.loads(run("predict", "toy", "my card").out)) is kept

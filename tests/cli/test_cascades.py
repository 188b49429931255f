"""What ``ytuning train`` prints of a task with two heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import Run, run
from ytuning.tasks import choose_recipe
from ytuning.tasks.task import load_task

__all__ = ["run"]  # a fixture


def test_the_size_of_the_head_is_that_of_the_default_head(
    run: Run, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The default head is kept, however much better the light one is.
    monkeypatch.setattr(choose_recipe, "BETTER", -1e6)
    table, folder = tmp_path / "table.csv", tmp_path / "toy"
    table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(*toy_rows, strict=True)))
    options = ("--preset", "auto", "--validation", table, "--encoder", tiny_encoder, "--out", folder)
    printed = " ".join(run("train", table, *options).out.split())
    task = load_task(folder)
    assert task.cascade is not None and "With --cascade 0.01, the light head answers nothing" in printed
    share = f"{task.head_parameters / task.encoder.parameters:.1%}"
    # It is not the share of changed answers, 0.01, which is told before it.
    assert share != "1.0%"
    assert f"The head has {task.head_parameters:,} parameters, {share} of the encoder's." in printed

"""Each command reads and hashes the encoder's weights once, however many hidden states it looks at."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ytuning.cli import app

opened: list[str] = []
watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    """Python's audit hook, which cannot be taken off again: it hears of every file that is opened."""
    if watching and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        opened.append(os.path.basename(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def counted_loads() -> Iterator[Callable[[], int]]:
    """How often the weights of an encoder have been read to be hashed."""
    global watching
    opened.clear()
    watching = True
    try:
        yield lambda: opened.count("model.safetensors")
    finally:
        watching = False


@pytest.fixture
def files(tmp_path: Path, toy_rows: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "label": label} for text, label in zip(*toy_rows, strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"text": row["text"]}) for row in rows[:9]))
    return tmp_path


def loads(*arguments: str) -> int:
    """How often a command loads an encoder."""
    with counted_loads() as count:
        result = CliRunner().invoke(app, [*arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    return count()


@pytest.mark.usefixtures("short_choice")
def test_commands_on_a_task_load_the_encoder_once(files: Path, tiny_encoder: Path) -> None:
    encoder = ["--encoder", str(tiny_encoder)]
    assert loads("train", "train.jsonl", *encoder, "--layers", "auto", "--out", "task") == 1
    assert loads("predict", "task", "my card") == 1
    assert loads("evaluate", "task", "train.jsonl", "--report", "report.html") == 1
    grow = ("add-label", "task", "new", "--examples", "more.jsonl", "--test", "train.jsonl", "--out", "grown")
    assert loads(*grow) == 1
    assert loads("predict", "task", "grown", "my card") == 1


@pytest.mark.usefixtures("short_choice")
def test_a_search_loads_the_encoder_once(files: Path, tiny_encoder: Path) -> None:
    pytest.importorskip("optuna")
    options = ("--encoder", str(tiny_encoder), "--trials", "2", "--preset", "few-shot", "--out", "found")
    assert loads("search", "train.jsonl", *options) == 1

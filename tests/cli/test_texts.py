"""Texts and tables from the standard input and from pipes, and texts that look like something else."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_cli import Run, files, run, trained
from ytuning.tasks.task import load_task

__all__ = ["files", "run", "trained"]  # fixtures

Typed = Callable[[bytes], None]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Puts bytes into the standard input."""

    def put(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))

    return put


def answers(out: str) -> list[str]:
    return [json.loads(line)["text"] for line in out.strip().split("\n")]


@pytest.mark.parametrize(
    ("content", "texts", "blank"),
    [
        (b"my card\nlogin\n", ["my card", "login"], 0),
        (b"my card\r\nlogin", ["my card", "login"], 0),
        (b"\xef\xbb\xbfmy card\n", ["my card"], 0),
        (b"\nmy card\n\n  \nlogin\n", ["my card", "login"], 3),
        (b" my card \n-5 degrees\n", [" my card ", "-5 degrees"], 0),
        ("one\x0btext\u2028of\x85all\n".encode(), ["one\x0btext\u2028of\x85all"], 0),
        (b"text,label\nmy card,card\n", ["text,label", "my card,card"], 0),
    ],
)
def test_predict_reads_a_text_per_line(
    content: bytes, texts: list[str], blank: int, run: Run, typed: Typed, trained: Path
) -> None:
    typed(content)
    found = run("predict", trained, "-")
    assert (found.status, answers(found.out)) == (0, texts)
    told = f"the standard input: {len(texts) + blank} rows read, {len(texts)} used (left out: {blank} blank lines)"
    assert (told in found.err) == (blank > 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the standard input: there are no rows. Give at least one."),
        (b" \n\n", "the standard input: there are no rows. Give at least one."),
        (b"my card\nlogin\xff\n", "the standard input, row 2: the text is not UTF-8. Write it as UTF-8."),
    ],
)
def test_lines_that_are_refused(content: bytes, message: str, run: Run, typed: Typed, trained: Path) -> None:
    typed(content)
    assert run("predict", trained, "-").mistake() == message


def test_a_closed_standard_input_is_told(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert run("predict", trained, "-").mistake() == (
        "the standard input: it cannot be read: Bad file descriptor. Give texts as arguments or with --input FILE."
    )


@pytest.mark.parametrize("text", ["-5 degrees", "--quiet", "-", "-x"])
def test_a_text_may_begin_with_a_dash(text: str, run: Run, typed: Typed, trained: Path) -> None:
    typed(b"from the standard input\n")
    found = run("predict", trained, "--", text)
    assert answers(found.out) == ["from the standard input" if text == "-" else text]


def test_a_text_that_is_a_file_is_read_as_a_text_and_told(run: Run, files: Path, trained: Path) -> None:
    found = run("predict", trained, "train.csv", "README")
    assert answers(found.out) == ["train.csv", "README"]
    assert "These arguments are read as texts, not as paths: 'train.csv'. Only folders before" in found.err


def test_tables_from_the_standard_input(run: Run, files: Path, typed: Typed, trained: Path, tiny_encoder: Path) -> None:
    content = (files / "train.csv").read_bytes()
    typed(content)
    found = run("predict", trained, "--input", "-")
    assert (found.status, len(found.out.splitlines())) == (0, 100)
    assert "the standard input: 100 rows; columns text = 'text'" in found.err
    typed(content)
    assert run("evaluate", trained, "-", "--json").json["files"]["data"]["rows_used"] == 100
    typed(content)
    done = run("train", "-", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "toy", "--json")
    assert (done.status, done.json["files"]["train"]["file"]) == (0, "the standard input")
    typed(b'{"text": "a new thing"}\n{"text": "new things"}\n')
    grown = run("add-label", "toy", "new", "--examples", "-", "--json")
    assert (grown.status, grown.json["files"]["examples"]["rows_used"]) == (0, 2)


@pytest.mark.parametrize(
    "content",
    [
        '{"card": ["lost", "stolen"], "login": "password"}',
        "text,label\nlost,card\nstolen,card\npassword,login\n",
        '{"text": "lost", "label": "card"}\n{"text": "stolen", "label": "card"}\n'
        '{"text": "password", "label": "login"}',
    ],
)
def test_label_texts_from_a_pipe(content: str, run: Run, files: Path, typed: Typed, tiny_encoder: Path) -> None:
    train = ("train", "train.csv", "--encoder", tiny_encoder, "--out", "toy", "--label-texts")
    typed(content.encode())
    found = run(*train, "-")
    assert found.status == 0 and "-: 3 texts for 2 labels" in found.err.splitlines()
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=(content,))
    writer.start()
    found = run(*train, "pipe")
    writer.join()
    assert found.status == 0 and "pipe: 3 texts for 2 labels" in found.err.splitlines()


def test_a_recipe_from_the_standard_input(run: Run, files: Path, typed: Typed, tiny_encoder: Path) -> None:
    train = ("train", "train.csv", "--encoder", tiny_encoder, "--out")
    assert run(*train, "first").status == 0
    recipe = load_task(files / "first").training["recipe"]
    typed(json.dumps(recipe).encode())
    assert run(*train, "second", "--recipe", "-").status == 0
    assert load_task(files / "second").training["recipe"] == recipe

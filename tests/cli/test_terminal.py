"""``ytuning predict`` on a terminal, where people read the answers; it is a pseudo-terminal here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SERVED_TEXTS
from ytuning.tasks.predictor import Predictor

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals on this system")


def on_terminal(*arguments: object, columns: int = 100) -> list[str]:
    """Lines that the program writes to a terminal, without colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "ytuning", "predict", *map(str, arguments), "--quiet"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment) as program:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # Linux' way to say that the program has closed the terminal
            pass
        assert program.stderr is not None
        assert (program.wait(60), program.stderr.read()) == (0, b"")
    os.close(ours)
    return re.sub(r"\x1b\[[\d;]*m", "", seen.decode()).splitlines()


def test_every_kind_of_answer_can_be_read(served_tasks: Path) -> None:
    names = ["single", "ordinal", "multi", "number", "careful"]
    folders = [served_tasks / name for name in names]
    lines = on_terminal(*folders, *SERVED_TEXTS[:5])
    found = list(Predictor(folders).predict([(text, None) for text in SERVED_TEXTS[:5]]))
    assert lines[:: len(names) + 1] == SERVED_TEXTS[:5]
    answers = [line for number, line in enumerate(lines) if number % (len(names) + 1)]
    assert len(answers) == len(found)
    for line, prediction in zip(answers, found, strict=True):
        assert line.startswith(f"  {prediction.task}: ")
        told = line.removeprefix(f"  {prediction.task}: ")
        if isinstance(prediction.answer, float):
            assert told == f"{prediction.answer:.4f}"
            continue
        given = [prediction.answer] if isinstance(prediction.answer, str) else prediction.answer or []
        best = ", ".join(f"{name} {prediction.scores[name]:.4f}" for name in given) or "no label"
        assert told.startswith(best)
        assert ("the confidence is too low" in told) is (prediction.answer is None)
        others = sorted(set(prediction.scores) - set(given), key=lambda name: -prediction.scores[name])[:2]
        assert told.endswith("; next: " + ", ".join(f"{name} {prediction.scores[name]:.4f}" for name in others))
    assert any(prediction.answer is None for prediction in found), "one task abstains"


def test_pairs_and_hostile_texts(served_tasks: Path, tmp_path: Path) -> None:
    rows = [{"text": "my card\n\x1b[31mred", "text_pair": "login " * 15}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = on_terminal(served_tasks / "joint", "--input", tmp_path / "rows.jsonl", columns=60)
    assert lines[0] == "my card \ufffd[31mred"
    assert lines[1].startswith("+ login login") and lines[1].endswith("…") and len(lines[1]) == 60
    assert re.fullmatch(r"  \w+ 0\.\d{4}; next: \w+ 0\.\d{4}, \w+ 0\.\d{4}", lines[2]) and len(lines) == 3


def test_many_tasks_are_a_table_with_the_most_probable_answers_first(served_tasks: Path, tmp_path: Path) -> None:
    kinds = ["single", "ordinal", "multi", "number", "careful"]
    folders = [tmp_path / f"[b]{kind}-{number}" for number in range(3) for kind in kinds]
    for folder in folders:
        shutil.copytree(served_tasks / folder.name[3:-2], folder)
    texts = SERVED_TEXTS[:2]
    found = list(Predictor(folders).predict([(text, None) for text in texts]))
    lines = on_terminal(*folders, *texts)
    for text, predictions in zip(texts, (found[:15], found[15:]), strict=True):
        start = lines.index(text)
        header, _, *cells = (line.split() for line in lines[start + 1 :] if line.strip())
        assert header == ["task", "answer", "probability"]
        rows = cells[:15]
        assert sorted(row[0] for row in rows) == sorted(folder.name for folder in folders)
        by_task = {prediction.task: prediction for prediction in predictions}
        ranks = []
        for name, *answer in rows:
            prediction = by_task[name]
            given = [prediction.answer] if isinstance(prediction.answer, str) else prediction.answer
            if isinstance(given, float):
                assert answer == [f"{given:.4f}"]
                ranks.append((1, 0.0))
            elif not given:
                assert answer[:2] == ["no", "label"]
                ranks.append((2, 0.0))
            else:
                best = max(prediction.scores[label] for label in given)
                assert answer == [*", ".join(given).split(), f"{best:.4f}"]
                ranks.append((0, -best))
        assert ranks == sorted(ranks)
    assert {prediction.answer is None for prediction in found if "careful" in prediction.task} == {True, False}


@pytest.mark.parametrize(("copies", "enough"), [(1, True), (1, False), (3, False)], ids=["equal", "lines", "table"])
def test_only_answers_above_a_probability(copies: int, enough: bool, served_tasks: Path, tmp_path: Path) -> None:
    kinds = ["single", "ordinal", "multi", "number", "careful"]
    folders = [tmp_path / f"{kind}-{number}" for number in range(copies) for kind in kinds]
    for folder in folders:
        shutil.copytree(served_tasks / folder.name[:-2], folder)
    text = SERVED_TEXTS[0]
    found = {prediction.task: prediction for prediction in Predictor(folders).predict([(text, None)])}
    answer, scores = found["single-0"].label, found["single-0"].scores
    assert answer is not None
    above = scores[answer] + (0 if enough else 1e-9)
    lines = on_terminal(*folders, text, "--above", above)
    shown = {word.rstrip(":") for line in lines[1:] for word in line.split()[:1]} & found.keys()
    assert ("single-0" in shown) is enough and "number-0" in shown
    hidden = len(folders) - len(shown)
    assert hidden >= copies * (not enough)
    told = f"  Not shown: {hidden} task{'s' * (hidden > 1)} without an answer of probability {above} or more."
    assert (lines[-1] == told) is (hidden > 0)


def test_json_lines_where_they_are_asked_for(served_tasks: Path) -> None:
    (line,) = on_terminal(served_tasks / "single", "my card", "--json")
    assert list(json.loads(line)) == ["text", "task", "label", "scores"]

"""What the documents say is true: commands parse, the example runs, the reference is fresh, the example data sound."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ytuning.cli.main import app

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "support"
OPERATORS = set("();<>|&")


def blocks(document: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def ytuning_commands(document: str) -> list[list[str]]:
    """Arguments of every ``ytuning ...`` command in the document's bash blocks, up to a pipe or redirection."""
    found = []
    for line in "".join(blocks(document, "bash")).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        words = words[1:] if words[:1] == ["$"] else words
        end = next((place for place, word in enumerate(words) if set(word) <= OPERATORS), len(words))
        if words[:1] == ["ytuning"]:
            found.append(words[1:end])
    return found


def parse(arguments: list[str]) -> None:
    """Parse as the command line does, without running anything."""
    command: Any = typer.main.get_command(app)
    name = "ytuning"
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    command.make_context(name, arguments)


@pytest.mark.parametrize("document", ["README.md", "docs/cli.md"])
def test_every_command_in_the_documents_parses(document: str) -> None:
    commands = ytuning_commands(document)
    assert {words[0] for words in commands} >= {"train", "predict", "evaluate", "cache"}
    for words in commands:
        parse(list(words))


def test_every_command_of_the_serving_document_parses() -> None:
    commands = ytuning_commands("docs/serving.md")
    assert {words[0] for words in commands} == {"train", "serve"}
    for words in commands:
        parse(list(words))


def test_the_serving_document_names_every_metric_and_no_other() -> None:
    from ytuning.server.telemetry import Telemetry

    families = Telemetry().registry.collect()
    real = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    table = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split("## Metrics")[1].split("## Logs")[0]
    named = re.findall(r"`(ytuning_\w+)`", "".join(line.split("|")[1] for line in re.findall(r"^\|.*\|$", table, re.M)))
    assert sorted(named) == sorted(real)


def test_the_parser_of_these_tests_refuses_what_the_command_line_refuses() -> None:
    with pytest.raises(Exception, match="--oot"):
        parse(["train", "a.csv", "--oot", "b"])
    with pytest.raises(AssertionError, match="cash"):
        parse(["cache", "cash"])


def test_scripts_in_the_readme_exist_and_can_be_run() -> None:
    named = re.findall(r"^(scripts/\S+)", "".join(blocks("README.md", "bash")), re.MULTILINE)
    assert {"scripts/demo", "scripts/test"} <= set(named)
    for script in named:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/support/README.md", "docs/serving.md"]
)
def test_links_in_the_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}, which is not there"


def test_the_python_example_in_the_readme_runs(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ytuning.encoder.download import DEFAULT_ENCODER
    from ytuning.estimator import YTuningClassifier

    defaults = YTuningClassifier.__init__.__defaults__
    assert defaults == (DEFAULT_ENCODER,)
    monkeypatch.setattr(YTuningClassifier.__init__, "__defaults__", (str(tiny_encoder),))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    code = "".join(blocks("README.md", "python"))
    assert "YTuningClassifier" in code
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out, "the example shows something"


def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "cli-reference", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def example_rows(name: str) -> list[dict[str, str]]:
    with (EXAMPLE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_example_data_is_large_enough_and_its_files_share_no_text() -> None:
    train, holdout = example_rows("train.csv"), example_rows("holdout.csv")
    assert len(train) >= 400
    assert len({row["label"] for row in train}) >= 12
    assert {row["label"] for row in train} == {row["label"] for row in holdout}
    texts = Counter(" ".join(row["text"].casefold().split()) for row in train + holdout)
    assert [text for text, count in texts.items() if count > 1] == []
    assert "" not in texts


def test_the_counts_in_the_example_readme_are_those_of_its_files() -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    train, holdout = (example_rows(name) for name in ("train.csv", "holdout.csv"))
    assert f"{len(train)} rows" in text
    assert f"has {len(train)} rows and `holdout.csv` {len(holdout)}" in text
    stated = {
        label: (int(a), int(b)) for label, a, b in re.findall(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|$", text, re.M)
    }
    counts = [Counter(row["label"] for row in rows) for rows in (train, holdout)]
    assert stated == {label: (counts[0][label], counts[1][label]) for label in counts[0]}

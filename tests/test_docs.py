"""The documents are true and easy to read: commands and examples run, links lead somewhere, sentences are short.

Comments in the code stand above what they explain.
"""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from ytuning.cli import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ytuning"
EXAMPLE = ROOT / "examples" / "support"
OPERATORS = set("();<>|&")
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md") if file.name != "cli.md")]
"""README and the pages that are written by hand; the reference of the command line is generated."""
OTHERS = ["CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "benchmarks/RESULTS.md"]
MOST_README_WORDS, MOST_SENTENCE_WORDS, MOST_RESULT_LINES = 1200, 35, 150
DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


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


COMMANDS = {
    "README.md": {"train", "predict", "evaluate", "cache", "compare", "serve"},
    "docs/cli.md": {
        "encode",
        "train",
        "predict",
        "evaluate",
        "cache",
        "compare",
        "serve",
        "search",
        "add-label",
        "remove-label",
    },
    "docs/guide.md": {"train", "predict", "evaluate", "add-label", "remove-label", "search", "compare", "cache"},
    "docs/encoders.md": {"train", "compare"},
    "docs/scale.md": {"predict", "encode", "train"},
    "docs/serving.md": {"train", "serve"},
}


@pytest.mark.parametrize("document", [*PAGES, "docs/cli.md"])
def test_every_command_in_the_documents_parses(document: str) -> None:
    commands = ytuning_commands(document)
    assert {words[0] for words in commands} == COMMANDS.get(document, set())
    for words in commands:
        parse(list(words))


def test_the_commands_of_the_readme_run_and_print_what_it_shows(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    printed = ""
    for words in ytuning_commands("README.md"):
        # A server runs until it is stopped.
        if words[0] == "serve":
            continue
        encoder = ["--encoder", str(tiny_encoder)] if words[0] in ("train", "compare") else []
        done = CliRunner().invoke(app, [*words, *encoder], catch_exceptions=False)
        assert done.exit_code == 0, (words, done.output)
        printed += done.output
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "compared" / "comparison.html").is_file()
    # Numbers depend on the encoder and the machine; headings, columns and words do not.
    lines = {" ".join(line.split()) for line in printed.splitlines()}
    shown = [" ".join(line.split()) for line in "".join(blocks("README.md", "text")).splitlines()]
    wordy = [line for line in shown if re.search(r"[a-z]", line) and not re.search(r"\b\d", line)]
    assert len(wordy) >= 6
    assert [line for line in wordy if line not in lines] == []
    rows = re.compile(r"examples/\S+: \d+ rows; .*")
    assert [line for line in shown if rows.fullmatch(line) and line not in lines] == []


def sentences(text: str) -> list[str]:
    """Sentences of a document's paragraphs, list items and table cells; a piece of code counts as one word."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    parts: list[list[str]] = [[]]
    for line in map(str.strip, text.splitlines()):
        if line.startswith("|"):
            parts += [[cell.strip()] for cell in line.split("|")]
        elif not line or line.startswith("#"):
            parts.append([])
        elif re.match(r"([-*]|\d+\.) ", line):
            parts.append([line.split(" ", 1)[1]])
        else:
            parts[-1].append(line)
    return [found for part in parts for found in re.split(r"(?<=[.!?])\s+", " ".join(part)) if re.search(r"\w", found)]


def length(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("document", [*PAGES, *OTHERS])
def test_no_sentence_is_long(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    lengths = {sentence: length(sentence) for sentence in sentences(text)}
    assert [sentence for sentence, words in lengths.items() if words > MOST_SENTENCE_WORDS] == []
    assert statistics.median(words for words in lengths.values() if words > 4) < 18


def test_the_measure_of_sentences() -> None:
    prose = "# Not this\n\nOne `--two 3` [three\nfour](x.md). Two.\n- Three: a, b.\n\n"
    text = prose + "| x | y z |\n\n```bash\nno. no.\n```\n"
    assert sentences(text) == ["One code three four.", "Two.", "Three: a, b.", "x", "y z"]
    assert length("one - two, three.") == 3


def test_the_readme_and_the_results_are_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.split()) <= MOST_README_WORDS
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert len(results.splitlines()) <= MOST_RESULT_LINES


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page for page in [*PAGES[1:], "docs/cli.md"] if f"]({page})" not in readme] == []


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


def anchors(document: Path) -> set[str]:
    """Names by which GitHub links to the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "document", [*PAGES, *OTHERS, "docs/cli.md", "benchmarks/LOG.md", "examples/support/README.md"]
)
def test_links_in_the_documents_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = (ROOT / document).parent / name if name else ROOT / document
            assert file.exists(), f"{document} links to {target}, which is not there"
            assert not anchor or anchor in anchors(file), f"{document} links to {target}, and there is no such heading"


def test_the_python_examples_run(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    # The page about scale goes on with the tasks of the page about Python.
    code = "".join(blocks("docs/python.md", "python") + blocks("docs/scale.md", "python"))
    assert code.count(DEFAULT_ENCODER) == 1
    names = {"__name__": "__main__"}
    exec(compile(code.replace(DEFAULT_ENCODER, str(tiny_encoder)), "docs/python.md", "exec"), names)
    shown = capsys.readouterr().out
    assert re.search(r"^support \w+ 0\.\d+$", shown, re.MULTILINE)
    assert re.search(r"^logistic 0\.\d+$", shown, re.MULTILINE)
    assert "there is no task folder tasks/missing" in shown
    assert re.search(r"^156 1 0 \[\]$", shown, re.MULTILINE)
    assert "'cards.label': 'login'" in shown


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


PRAGMAS = ("# type:", "# noqa", "# fmt:")
"""Comments for tools, which have to stand behind the code that they are about."""


def trailing_comments(file: Path) -> list[str]:
    """Line number and text of each comment that stands behind code, pragmas left out."""
    with file.open("rb") as stream:
        comments = [token for token in tokenize.tokenize(stream.readline) if token.type == tokenize.COMMENT]
    return [
        f"{token.start[0]}: {token.string}"
        for token in comments
        if token.line[: token.start[1]].strip() and not token.string.startswith(PRAGMAS)
    ]


def test_comments_stand_above_what_they_explain() -> None:
    files = list(SOURCE.rglob("*.py"))
    assert len(files) > 50
    found = {str(file.relative_to(SOURCE)): trailing_comments(file) for file in files}
    assert {name: comments for name, comments in found.items() if comments} == {}


def test_the_measure_of_trailing_comments(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("# above\na = 1  # why\nb = 'x # y'  # noqa: E501\n    # alone\nc = (\n    2,  # two\n)\n")
    assert trailing_comments(file) == ["2: # why", "6: # two"]

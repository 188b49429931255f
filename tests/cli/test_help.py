"""What ``--help`` shows: groups of options, plain sentences, the defaults, and no word that is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from tests.cli.test_cli import Run, run
from ytuning.cli import app

__all__ = ["run"]  # a fixture

WIDTH = 100
MOST_WORDS = 35
GROUPS = {"train": {"Data", "Head and training", "Encoder", "Output"}, "serve": {"Server", "Access", "Limits"}}


def commands(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command, and the words that call it."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from commands(inner, (*name, word))


COMMANDS = dict(commands(typer.main.get_command(app)))
every_command = pytest.mark.parametrize("name", COMMANDS, ids=" ".join)


def sentences(text: str) -> list[str]:
    """The sentences of a help text; a colon or a semicolon ends none."""
    return [part for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if part]


@every_command
def test_help_has_an_example(name: tuple[str, ...], run: Run) -> None:
    found = run(*name, "--help")
    assert (found.status, found.err) == (0, "")
    assert f"Example: ytuning {' '.join(name)}" in found.out


@every_command
def test_help_is_made_of_short_sentences(name: tuple[str, ...]) -> None:
    command = COMMANDS[name]
    for text in (command.help, *(parameter.help for parameter in command.params)):
        assert text[0].isupper() and text.endswith("."), text
        assert max(len(sentence.split()) for sentence in sentences(text)) <= MOST_WORDS, text


@every_command
def test_every_option_tells_its_default(name: tuple[str, ...]) -> None:
    for option in COMMANDS[name].params:
        if option.opts[0].startswith("--") and not (option.required or option.is_flag or "--help" in option.opts):
            assert option.default is not None or isinstance(option.show_default, str), option.opts


@every_command
def test_help_fits_a_terminal_and_cuts_no_word(
    name: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    shown = run(*name, "--help").out
    assert max(map(len, shown.splitlines())) <= WIDTH and "…" not in shown
    words = set(re.sub(r"[\[\]()│`]", " ", shown).split())
    for parameter in COMMANDS[name].params:
        default = parameter.default if isinstance(parameter.default, str) else ""
        told = f"{parameter.help} {parameter.metavar or ''} {default} {' '.join(parameter.opts)}"
        missing = set(re.sub(r"[\[\]()`]", " ", told).split()) - words
        assert not missing or not parameter.opts[0].startswith("--"), (parameter.opts, missing)


@pytest.mark.parametrize("name", GROUPS)
def test_options_are_shown_in_groups(name: str, run: Run) -> None:
    shown = run(name, "--help").out
    assert set(re.findall(r"╭─ ([\w ]+) ─", shown)) >= GROUPS[name]


@every_command
def test_every_command_takes_json_and_quiet(name: tuple[str, ...]) -> None:
    options = {spelling for parameter in COMMANDS[name].params for spelling in parameter.opts}
    assert name == ("serve",) or {"--json", "--quiet"} <= options


def test_without_arguments_it_shows_help(run: Run) -> None:
    found = run()
    assert found.status == 2
    for command in ("train", "predict", "evaluate", "cache"):
        assert command in found.out + found.err
    assert "Traceback" not in found.err

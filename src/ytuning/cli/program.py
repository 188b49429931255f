"""The program: its commands, and how a mistake or a failure ends it."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, get_args, get_type_hints

import typer

from ytuning import __version__
from ytuning.cli.cache import cache
from ytuning.cli.encode import encode
from ytuning.cli.experiments import compare, search
from ytuning.cli.options import choices_of
from ytuning.cli.predict import predict
from ytuning.cli.serve import serve
from ytuning.cli.streams import prepare_streams
from ytuning.cli.tasks import add_label, evaluate, remove_label
from ytuning.cli.train import train
from ytuning.errors import InputError, YTuningError, must_be_one_of, naming_options, nearest

__all__ = ["app", "main"]

# Newer versions of typer return this status after Ctrl-C; older ones raise Abort.
TYPER_INTERRUPTED = 130

# Modules that load torch are imported inside the commands: --help and mistakes should answer at once.

app = typer.Typer(
    name="ytuning",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"ytuning {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and use text classifiers on a frozen encoder."""


app.add_typer(cache, name="cache")
for _name, _command, _example in (
    ("encode", encode, "tickets.csv --workers 2"),
    ("train", train, "tickets.csv --test holdout.csv --out tasks/tickets"),
    ("add-label", add_label, "tasks/tickets refund --examples refunds.csv"),
    ("remove-label", remove_label, "tasks/tickets refund"),
    ("search", search, "tickets.csv --test holdout.csv --out searches/tickets"),
    ("predict", predict, 'tasks/tickets "I was charged twice"'),
    ("evaluate", evaluate, "tasks/tickets holdout.csv"),
    ("serve", serve, "tasks/*"),
    ("compare", compare, "tickets.csv --test holdout.csv --out compared"),
):
    app.command(_name, epilog=f"Example: ytuning {_name} {_example}")(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program: a user's mistake is one line on stderr and exit status 2, any other failure status 1.

    Args:
        arguments: words of the command line; those of the process by default.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    prepare_streams()
    # SIGTERM from schedulers or `docker stop` should lose no more than Ctrl-C. Only the main thread can handle it.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        with naming_options():
            _check_current_folder()
            _check_repeated(words)
            status = app(words, prog_name="ytuning", standalone_mode=False)
        sys.stdout.flush()
        if status == TYPER_INTERRUPTED:
            raise KeyboardInterrupt
    except typer.Exit as stop:
        status = stop.exit_code
    except InputError as error:
        status = _fail(str(error), 2)
    except YTuningError as error:
        status = _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        status = _fail("Interrupted. Finished work is kept; run the same command again to resume.", 1)
    except BrokenPipeError:
        # What is still buffered has no reader: without this, closing stdout would fail once more.
        _close_stdout()
        status = 1
    except OSError as error:
        # Every other file has its own message for a full disk, so only stdout can end here.
        if error.errno != errno.ENOSPC:
            raise
        _close_stdout()
        status = _fail(
            "cannot write to stdout: no space is left on the device. Free some space and run the command again.", 1
        )
    except Exception as error:
        # Typer's usage errors have no public base class, but all of them can format themselves.
        if not hasattr(error, "format_message"):
            raise
        status = _fail(_usage_mistake(error, words), 2)
    sys.exit(status if isinstance(status, int) else 0)


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError(
            "the current folder has been deleted. Change to another one and run the command again."
        ) from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    one_line = " ".join(message.split())
    # Without arguments typer has shown the help, and there is no message to add.
    if one_line:
        print(f"error: {one_line}", file=sys.stderr)
    return status


def _usage_mistake(error: Any, arguments: Sequence[str]) -> str:
    """What a usage error of Typer's says, with the value that was given and what is allowed.

    Typer's own words differ between its versions and may lack both, so the value is looked up in the command line, and
    what is allowed in the command's annotations.
    """
    message = str(error.format_message())
    command: Any = getattr(getattr(error, "ctx", None), "command", None)
    if message.startswith("No such option"):
        return _unknown_option(error, command)
    if message.startswith("No such command"):
        return f"{message} The commands are {', '.join(map(repr, command.commands))}."
    option = getattr(error, "param", None)
    given = [value for name, value in _given_values(command, arguments) if option is not None and name in option.opts]
    if option is None or not given:
        return message
    value = given[-1]
    kind, info = get_args(get_type_hints(inspect.unwrap(command.callback), include_extras=True)[option.name])
    if choices := choices_of(kind):
        return must_be_one_of(option.opts[0], value, choices)
    kind = next(part for part in get_args(kind) or [kind] if part is not type(None))
    if kind not in (int, float):
        return message
    what = "a whole number" if kind is int else "a number"
    bounds = f" of at least {info.min}" if info.max is None else f" from {info.min} to {info.max}"
    return f"{option.opts[0]} must be {what}{'' if info.min is None else bounds}. Got {value!r} instead."


def _unknown_option(error: Any, command: Any) -> str:
    """What is said of an option that a command does not have, which may be a text that begins with a dash."""
    names = [name for option in command.params for name in option.opts if name.startswith("--")]
    message = f"No such option: {error.option_name}.{nearest(error.option_name, [*names, '--help'])}"
    if command.name == "predict":
        return f"{message} Put -- before texts that begin with a dash: ytuning predict TASK_DIR -- TEXT"
    return f"{message} The options are in: ytuning {command.name} --help"


def _check_repeated(words: Sequence[str]) -> None:
    """Refuse an option that is given twice, as one of its values would be dropped without a word.

    Raises:
        InputError: there is one.
    """
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while rest and rest[0] in (commands := getattr(command, "commands", {})):
        command = commands[rest.pop(0)]
    single = {name for option in command.params if not option.multiple for name in option.opts}
    values: dict[str, str] = {}
    for name, value in _given_values(command, rest):
        if name in single and name in values:
            several = " Separate the names of several columns by commas." if name == "--label" else ""
            given = f"{name} can be given only once. Got {values[name]!r} and {value!r}."
            raise InputError(f"{given}{several or ' Leave out one of them.'}")
        values[name] = value


def _given_values(command: Any, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options in the words of a command line that have a value, each with its value."""
    takes_value = {
        name
        for option in getattr(command, "params", ())
        if not getattr(option, "is_flag", True)
        for name in option.opts
    }
    rest = iter(words)
    for word in rest:
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if name in takes_value:
            following = value if equals else next(rest, None)
            if following is not None:
                yield name, following

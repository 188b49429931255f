"""The program: its commands, and how a mistake or a failure ends it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from ytuning import __version__
from ytuning.cli.add_label import add_label
from ytuning.cli.cache import cache
from ytuning.cli.compare import compare
from ytuning.cli.evaluate import evaluate
from ytuning.cli.options import usage_mistake
from ytuning.cli.predict import predict
from ytuning.cli.search import search
from ytuning.cli.serve import serve
from ytuning.cli.train import train
from ytuning.errors import InputError, YTuningError

__all__ = ["app", "main"]

TYPER_INTERRUPTED = 130  # what newer versions of typer make of Ctrl-C; older ones raise Abort

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
app.command(epilog="Example: ytuning train tickets.csv --test holdout.csv --out tasks/tickets")(train)
app.command(name="add-label", epilog="Example: ytuning add-label tasks/tickets refund --examples refunds.csv")(
    add_label
)
app.command(epilog="Example: ytuning search tickets.csv --test holdout.csv --out searches/tickets")(search)


app.command(epilog='Example: ytuning predict tasks/tickets "I was charged twice"')(predict)
app.command(epilog="Example: ytuning evaluate tasks/tickets holdout.csv")(evaluate)
app.command(epilog="Example: ytuning serve tasks/*")(serve)
app.command(epilog="Example: ytuning compare tickets.csv --test holdout.csv --out compared")(compare)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program: a user's mistake is one line on stderr and exit status 2, any other failure status 1.

    Args:
        arguments: words of the command line; those of the process by default.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with suppress(AttributeError):  # a stream that a test or a caller has put there
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    with suppress(ValueError):  # only the main thread may; schedulers and `docker stop` should lose no more than Ctrl-C
        signal.signal(signal.SIGTERM, _interrupt)
    try:
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
        if error.errno != errno.ENOSPC:  # nothing but stdout is written without a message of its own
            raise
        _close_stdout()
        status = _fail(
            "cannot write to stdout: no space is left on the device. Free some space and run the command again.", 1
        )
    except Exception as error:
        # Typer's usage errors have no public base class, but all of them can format themselves.
        if not hasattr(error, "format_message"):
            raise
        status = _fail(usage_mistake(error, words), 2)
    sys.exit(status if isinstance(status, int) else 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    one_line = " ".join(message.split())
    if one_line:  # without arguments the help has been shown, and there is nothing to add
        print(f"error: {one_line}", file=sys.stderr)
    return status

"""What the commands share: the options that all of them have, progress, and where results go."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ytuning.errors import cannot_write
from ytuning.progress import Messages, Progress, ProgressBar

__all__ = ["Json", "Quiet", "print_json", "result_file", "shown_progress"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """Progress on stderr, or only the messages that --quiet leaves."""
    with nullcontext(Messages()) if quiet else ProgressBar() as progress:
        yield progress


@contextmanager
def result_file(path: Path | None) -> Iterator[Any]:
    """Stdout, or a file that appears whole or not at all."""
    if path is None:
        yield sys.stdout
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            yield stream
        partial.replace(path)
    except OSError as error:
        raise cannot_write(str(path), error, "--output") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))

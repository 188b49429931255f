"""What the commands share: the options that all of them have, progress, and where results go."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
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
def result_file(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Writes to stdout, to a file that appears whole or not at all, or to a pipe or device that is already there.

    Raises:
        InputError: the file cannot be written, which is found before any work.
        WriteError: the disk is full or broken.
    """
    if path is None:
        yield sys.stdout.write
        return
    target = Path(os.path.realpath(path))  # a link stays one
    special = os.path.exists(target) and not os.path.isfile(target)
    partial = target if special else target.with_name(target.name + ".partial")
    with _written(path):
        stream = partial.open("w", encoding="utf-8")

    def write(text: str) -> None:
        with _written(path):  # here, as other errors of the work that writes are not the file's
            stream.write(text)

    try:
        yield write
        with _written(path):
            stream.close()
            if not special:
                partial.replace(target)
    finally:
        with suppress(OSError):
            stream.close()
        if not special:
            partial.unlink(missing_ok=True)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(str(path), error, "--output") from error


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))

"""Every exception that ytuning raises on purpose.

    YTuningError
    ├── InputError               the user's input or usage: exit status 2
    │   ├── DataError            a table: names file, row and column
    │   ├── EncoderError         an encoder that cannot be found, loaded or trusted
    │   ├── PathError            the system refuses a path that something should be written to
    │   ├── TaskFolderError      a task folder that is damaged, foreign, of another schema or for another encoder
    │   └── MissingExtraError    an optional package is needed: names the install command
    ├── StoreError               the feature store cannot do its work (full disk, no permission): exit status 1
    └── WriteError               a full or broken disk keeps a result from being written: exit status 1

A message is one line: what was wrong, the value that was given, what is allowed, and the next step.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path

__all__ = [
    "DataError", "EncoderError", "InputError", "MissingExtraError", "PathError", "StoreError", "TaskFolderError",
    "WriteError", "YTuningError", "are_options_named", "argument", "must_be_one_of", "naming_options", "nearest",
    "parameter", "quantity", "write_errors", "wrong_schema",
]  # fmt: skip


# Whether a message is for somebody who types options, rather than for somebody who writes Python.
_NAMES_OPTIONS = ContextVar("names_options", default=False)


class YTuningError(Exception):
    """Base of every error that ytuning raises on purpose.

    Attributes:
        may_pass: whether the same may work at another attempt, as with an object store.
    """

    may_pass = False


class InputError(YTuningError, ValueError):
    """The user's input or usage is wrong; also a ``ValueError``, as scikit-learn's callers expect."""


class DataError(InputError):
    """A table or a list of rows is wrong; the message starts with where.

    Args:
        problem: what is wrong and what to do about it.
        source: file name, or what the rows came from (``"the data frame"``).
        row: 1-based number of the data row (a header line is not counted).
        column: column name.
    """

    def __init__(self, problem: str, *, source: str | Path, row: int | None = None, column: str | None = None) -> None:
        place = str(source)
        if row is not None:
            place += f", row {row}"
        if column is not None:
            place += f", column {column!r}"
        super().__init__(f"{place}: {problem}")
        self.problem, self.source, self.row, self.column = problem, source, row, column

    def after(self, rows: int) -> DataError:
        """The same error about a part of a file that this number of rows stand before."""
        row = None if self.row is None else self.row + rows
        return DataError(self.problem, source=self.source, row=row, column=self.column)


class EncoderError(InputError):
    """An encoder cannot be found, loaded or trusted."""


class PathError(InputError):
    """The system refuses a path that something should be written to."""


class TaskFolderError(InputError):
    """A task folder is damaged, foreign, of another schema, or made with another encoder."""


class MissingExtraError(InputError):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        clone = f"in a clone of the repository: pip install -c constraints.txt '.[{extra}]'"
        super().__init__(
            f"the package {package!r} is not installed. Install it with: pip install 'ytuning[{extra}]' ({clone})"
        )


class StoreError(YTuningError):
    """The feature store cannot do its work: disk full, no permission, not a store."""


class WriteError(YTuningError):
    """A task folder or an output file cannot be written, for a reason that lies in the disk, not in the path given."""


@contextmanager
def naming_options() -> Iterator[None]:
    """Within it messages name options of the command line, such as ``--text``, instead of arguments of Python."""
    before = _NAMES_OPTIONS.set(True)
    try:
        yield
    finally:
        _NAMES_OPTIONS.reset(before)


def are_options_named() -> bool:
    """Whether messages name options of the command line at the moment."""
    return _NAMES_OPTIONS.get()


def argument(name: str, value: object = None, *, option: str | None = None) -> str:
    """An argument as the reader of a message gives it: ``text='body'`` in Python, ``--text body`` in a command.

    Args:
        name: name of the argument in Python.
        value: its value; None leaves it out.
        option: name of the option, if it is not that of the argument.
    """
    if not _NAMES_OPTIONS.get():
        return f"{name}={'' if value is None else repr(value)}"
    spelt = parameter(name, option=option)
    return spelt if value is None else f"{spelt} {shlex.quote(str(value))}"


def parameter(name: str, *, option: str | None = None) -> str:
    """The name of an argument, for a message about its value: ``text`` in Python, ``--text`` on the command line."""
    return (option or f"--{name.replace('_', '-')}") if _NAMES_OPTIONS.get() else name


@contextmanager
def write_errors(what: object, option: str) -> Iterator[None]:
    """Says what could not be written and which option chooses another place.

    Raises:
        WriteError: the disk is full or broken.
        PathError: another error of the system, whose reason is the path that the user has given.
    """
    try:
        yield
    except OSError as error:
        problem = f"cannot write {what}: {error.strerror or error}."
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise PathError(f"{problem} Choose another path with {option}.") from error
        remedy = "Check the disk" if error.errno == errno.EIO else "Free some space and run the command again"
        raise WriteError(f"{problem} {remedy}, or choose another disk with {option}.") from error


def must_be_one_of(name: str, given: object, choices: Iterable[object]) -> str:
    """The message for a value that is not allowed: ``"kind must be one of 'auto', 'single'. Got 'x' instead."``"""
    choices = list(choices)
    hint = nearest(given, map(str, choices)) if isinstance(given, str) else ""
    return f"{name} must be one of {', '.join(map(repr, choices))}. Got {given!r} instead.{hint}"


def nearest(given: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'single'?"`` with the choice that is most like a word, or nothing."""
    # The word is cut, because matching is slow for long texts.
    close = get_close_matches(given[:60], list(choices), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def wrong_schema(what: object, found: object, read: int, remedy: str) -> str:
    """The message for a file of another schema; ``remedy`` is the next step."""
    return f"{what} has schema {found!r}, but this version of ytuning reads schema {read}. {remedy}"


def quantity(number: int, what: str) -> str:
    """A number and a noun in the right form, such as ``"1 row"`` or ``"2,000 rows"``; ``what`` is the singular."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"

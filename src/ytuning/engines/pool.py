"""What an engine is: workers that run units, and what they report. The scheduler gives them their units."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ytuning.errors import InputError, StoreError, WriteError, YTuningError

__all__ = [
    "Done", "Event", "Failed", "Lost", "Pool", "Problem", "Ready", "Refused", "Rows", "Work", "Worker", "problem_of",
]  # fmt: skip

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Worker(Protocol):
    """What a process of an engine has loaded, and runs units with."""

    @property
    def about(self) -> dict[str, Any]:
        """What it computes with. All workers of a run must agree, or their results would differ."""

    def __call__(self, unit: Any, tell: Callable[[int], None], /) -> Any:
        """The result of a unit; ``tell`` is called with a number of rows that have been finished."""


class Work(Protocol):
    """What workers do; it is sent to each of them, and is started there."""

    def start(self) -> Worker:
        """Load what units need; called once in each worker."""


@dataclass(frozen=True)
class Problem:
    """Why a worker or a unit has failed, in words that another process can receive.

    Attributes:
        kind: "input": the user's input is wrong, and would be again; "write": nothing can be written, so that no unit
            can be finished; "other": anything else, which another attempt may not meet.
        message: one line.
        details: the traceback; empty where the message says all.
        may_pass: whether what could not be written may be at another attempt, as in an object store.
    """

    kind: Literal["input", "write", "other"]
    message: str
    details: str = ""
    may_pass: bool = False

    def error(self) -> YTuningError:
        """The problem as an exception."""
        return {"input": InputError, "write": WriteError, "other": YTuningError}[self.kind](self.message)


def problem_of(error: BaseException) -> Problem:
    """Make a problem of an exception."""
    details = "".join(traceback.format_exception(error))
    message = " ".join(str(error).split())
    if isinstance(error, WriteError | StoreError):
        return Problem("write", message, details, error.may_pass)
    if isinstance(error, OSError) and error.errno in FULL:
        return Problem("write", message, details)
    if isinstance(error, InputError):
        return Problem("input", message, details)
    if isinstance(error, YTuningError):
        return Problem("other", message, details)
    return Problem("other", f"{type(error).__name__}: {message}".rstrip(": "), details)


@dataclass(frozen=True)
class Ready:
    """A worker has loaded what it needs and can be given a unit."""

    worker: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """A worker could not be started, and another one in its place would not be either."""

    worker: int
    problem: Problem


@dataclass(frozen=True)
class Rows:
    """A worker has finished some rows of its unit."""

    worker: int
    rows: int


@dataclass(frozen=True)
class Done:
    """A worker has finished its unit."""

    worker: int
    result: Any


@dataclass(frozen=True)
class Failed:
    """A unit has failed, and its worker has not."""

    worker: int
    problem: Problem


@dataclass(frozen=True)
class Lost:
    """A worker has ended, by itself or with its machine."""

    worker: int
    why: str


Event = Ready | Refused | Rows | Done | Failed | Lost


class Pool(Protocol):
    """The workers of an engine. A worker is known by a number, which is never used again."""

    def start_worker(self) -> int:
        """Ask for another worker, which reports when it is ready."""

    def give(self, worker: int, unit: Any) -> None:
        """Give a unit to a worker that is ready and has none."""

    def wait(self, seconds: float) -> Event | None:
        """The next report; None if there is none within some seconds."""

    def end(self, worker: int) -> None:
        """End a worker, which reports nothing any more."""

    def close(self) -> None:
        """End all workers."""

    @property
    def waiting_for(self) -> str:
        """What a worker that does not become ready may be waiting for, for a message."""

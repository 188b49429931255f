"""The processes that write to a feature space at the moment, on one machine or on several with a shared folder.

They do not wait for each other. Each holds a lock on a file of its own, which the system gives back if the process is
killed, so that others can count those at work: `remove` does not take the folder away from under them, and a writer
that is not the first begins somewhere else in its texts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

__all__ = ["joined_writers", "locked", "writers_at_work"]

SUFFIX = ".lock"


@contextmanager
def joined_writers(folder: Path) -> Iterator[int]:
    """Be one of the writers, each of which has a file in a folder; yields how many others have begun before.

    The folder is made if it is not there. Names begin with the time, so that of writers that begin together each knows
    a place of its own.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    file = folder / f"{time.time_ns():020}-{uuid.uuid4().hex[:16]}{SUFFIX}"
    try:
        with locked(file):
            yield writers_at_work(folder, before=file.name)
    finally:
        _remove(file)


def writers_at_work(folder: Path, *, before: str | None = None) -> int:
    """The number of writers that have a file in a folder and still live; files of others are removed.

    Args:
        folder: need not be there.
        before: counts only files whose names come before this one; default: all.

    Raises:
        OSError: a file cannot be opened.
    """
    count = 0
    for file in folder.glob(f"*{SUFFIX}"):
        if before is not None and file.name >= before:
            continue
        try:
            with locked(file, wait=False):
                pass
        except filelock.Timeout:
            count += 1
        else:
            _remove(file)
    return count


def _remove(file: Path) -> None:
    """Remove a file that nobody needs; where another process has it open just now, as some systems mind, it stays."""
    with suppress(OSError):
        file.unlink()


@contextmanager
def locked(file: Path, *, wait: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file. Where the file system has none, as some shared ones, go on without.

    Args:
        file: is made if it is not there.
        wait: whether to wait for another process that holds it.
        on_wait: is called before that.

    Raises:
        filelock.Timeout: another process holds it, and nobody wants to wait.
        OSError: the file cannot be made.
    """
    lock = filelock.FileLock(file)
    with suppress(NotImplementedError):
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if not wait:
                raise
            # A user is told why nothing happens.
            if on_wait is not None:
                on_wait()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()

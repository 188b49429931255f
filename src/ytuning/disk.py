"""Files that are whole on the disk or not there, and what to say when the disk fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ytuning.errors import StoreError

__all__ = ["PARTIAL_SUFFIX", "commit", "explained"]

PARTIAL_SUFFIX = ".partial"


def commit(file: Path, data: bytes | memoryview) -> None:
    """Write a file so that it is whole on the disk, or not there."""
    partial = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def explained(folder: Path, size: int) -> Iterator[None]:
    """Turn the system's error into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk is full: cannot store {size / 1e6:.0f} MB of features in {folder}. What was stored is kept "
                "and the run resumes there: free some space (ytuning cache remove), or set YTUNING_CACHE to a folder "
                "on another disk"
            ) from error
        raise StoreError(
            f"cannot use the feature store {folder}: {error.strerror or error}. "
            "Set YTUNING_CACHE to a folder you can write"
        ) from error

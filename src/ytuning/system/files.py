"""Files that are whole on the disk or not there, and what to say when the disk fails."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ytuning.errors import StoreError

__all__ = [
    "PARTIAL_SUFFIX", "STANDARD_INPUT", "NewFile", "ReadFile", "commit", "commit_all", "is_plain_name", "read_input",
    "store_errors",
]  # fmt: skip

PARTIAL_SUFFIX = ".partial"
# Letters of a host's name that a temporary name has: who reads it sees where the file comes from.
HOST_LETTERS = 24
# This name stands for the standard input.
STANDARD_INPUT = "-"
# Unicode's categories of control characters, surrogates (bytes that are not UTF-8) and ends of lines and paragraphs.
UNPLAIN = ("Cc", "Cs", "Zl", "Zp")


def is_plain_name(name: str) -> bool:
    """Whether the name of a file or folder can stand in JSON, on a line of its own: it is UTF-8 without controls."""
    return not any(unicodedata.category(character) in UNPLAIN for character in name)


def _own_name() -> str:
    """A name that nobody else takes: on several machines with a shared folder, process ids repeat."""
    host = re.sub(r"[^0-9A-Za-z-]", "-", platform.node())[:HOST_LETTERS]
    return f"{host}-{uuid.uuid4().hex[:16]}"


class NewFile:
    """A file that is written beside its place, and takes it once it is whole on the disk.

    A pipe or a device is no file to be replaced: what is written goes into it at once.

    Attributes:
        file: its place.
        stream: takes its bytes.
    """

    def __init__(self, file: Path, *, beside: Path | None = None) -> None:
        """Open it.

        Args:
            file: its place.
            beside: folder on the same disk that it is written in until it is whole; that of its place by default.

        Raises:
            OSError: it cannot be written.
        """
        self.file = file
        self._replaces = os.path.isfile(file) or not os.path.exists(file)
        partial = f"{file.name}.{_own_name()}{PARTIAL_SUFFIX}"
        self._partial = (beside or file.parent) / partial if self._replaces else file
        self.stream = self._partial.open("wb")

    def finish(self) -> None:
        """Nothing more is written; on return all of it is on the disk."""
        self.stream.flush()
        if self._replaces:
            os.fsync(self.stream.fileno())
        self.stream.close()

    def place(self) -> None:
        """Put the finished file into its place."""
        if self._replaces:
            os.replace(self._partial, self.file)

    def place_first(self) -> None:
        """Put the finished file into its place, unless another one with content is there."""
        try:
            os.link(self._partial, self.file)
        except FileExistsError:
            # One without bytes was left by a disk that failed.
            if not self.file.stat().st_size:
                self.place()
        except OSError:
            # The file system has no links.
            if not self.file.exists():
                self.place()

    def discard(self) -> None:
        """Remove what is not in its place; nothing of a file that is."""
        with suppress(OSError):
            self.stream.close()
        if self._replaces:
            self._partial.unlink(missing_ok=True)


class ReadFile:
    """A file that threads read from places of their own; it is closed once nobody holds it, like a memory map.

    Attributes:
        file: its place.
        reads_into: whether the system can read into memory that is given.
    """

    reads_into = hasattr(os, "preadv")

    def __init__(self, file: Path) -> None:
        """Open it.

        Raises:
            OSError: it cannot be opened.
        """
        self.file = file
        self.descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill a target (bytes) with what stands from byte ``start`` on.

        Raises:
            StoreError: the disk fails, or the file ends before.
        """
        try:
            while len(target):
                count = os.preadv(self.descriptor, [target], start)
                if not count:
                    raise OSError(errno.EIO, f"{self.file.name} is shorter than it was")
                target, start = target[count:], start + count
        except OSError as error:
            raise StoreError(
                f"cannot read {self.file}: {error.strerror or error}. Run ytuning cache verify, which puts it aside, "
                "and then the same command again"
            ) from error


def commit(file: Path, data: bytes | memoryview) -> None:
    """Write a file so that it is whole on the disk, or not there."""
    commit_all(file.parent, {file.name: data})


def commit_all(folder: Path, files: Mapping[str, bytes | memoryview]) -> None:
    """Write files of a folder so; none takes an older one's place before all of them are on the disk."""
    new: list[NewFile] = []
    try:
        for name, data in files.items():
            new.append(NewFile(folder / name))
            new[-1].stream.write(data)
            new[-1].finish()
        for file in new:
            file.place()
    finally:
        for file in new:
            file.discard()
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_input(file: str | Path) -> bytes:
    """The content of a file, or of the standard input where its name is ``-``.

    Raises:
        OSError: it cannot be read, or the standard input is closed.
    """
    if str(file) != STANDARD_INPUT:
        return Path(file).read_bytes()
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdin.buffer.read()


@contextmanager
def store_errors(folder: Path, size: int) -> Iterator[None]:
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
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise StoreError(
                f"too many files are open to read the feature store {folder}. Allow more (ulimit -n 4096), or remove "
                "what is not needed (ytuning cache remove)"
            ) from error
        raise StoreError(
            f"cannot use the feature store {folder}: {error.strerror or error}. "
            "Set YTUNING_CACHE to a folder you can write"
        ) from error

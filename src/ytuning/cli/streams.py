"""The standard streams: a closed one is replaced, odd names are escaped, and messages never stop the work."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import IO

__all__ = ["prepare_streams"]


class _Tolerant(io.FileIO):
    """A file that takes whatever is written, even if its disk is full or nobody reads it any more."""

    # The base class declares a buffer of another type in some versions of its stubs.
    def write(self, data: object, /) -> int:
        size = len(memoryview(data))  # type: ignore[arg-type]
        with suppress(OSError):
            super().write(data)  # type: ignore[arg-type]
        return size


def prepare_streams() -> None:
    """Make the standard streams fit for any work; called once, before it begins.

    A stream that was closed becomes the null device: Python has none then, and the next file that is opened would get
    its number. On stdout, bytes of a file's name that are not UTF-8 become escapes, which JSON reads as such, too. A
    message that cannot be written to stderr is lost without an error, because the work matters more.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, _null_device(mode))
    # A test or a caller may have replaced stdout by a stream that cannot be reconfigured.
    with suppress(AttributeError):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    # The same holds for stderr.
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        tolerant = _Tolerant(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(tolerant), sys.stderr.encoding, errors="backslashreplace", line_buffering=True
        )


def _null_device(mode: str) -> IO[str]:
    stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
    # Processes that are started get the stream too, or their first file would get its number.
    os.set_inheritable(stream.fileno(), True)
    return stream

"""What the C library does with freed memory, and the most memory that a process has held.

A step of training, or a batch of the encoder, frees buffers of megabytes and asks for the same ones again. glibc gives
them back to the system each time, and the system clears every page anew: a quarter of head training and up to a tenth
of the encoder pass (benchmarks/RESULTS.md). So freed memory is kept from the first such work on, and given back each
time that heads have been trained.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

__all__ = ["give_back_freed_memory", "keep_freed_memory", "peak_bytes"]

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # as in malloc.h
KEPT = {
    TRIM_THRESHOLD: 2**31 - 1,  # bytes at the end of the heap that are kept
    TOP_PAD: 64 << 20,  # by which the heap grows
    MMAP_THRESHOLD: 32 << 20,  # the largest that glibc takes; larger blocks always come from the system
}


@cache
def keep_freed_memory() -> None:
    """From now on keep freed memory in this process; where the C library is not glibc, nothing happens."""
    library = _glibc()
    if library is not None:
        for option, value in KEPT.items():
            library.mallopt(option, value)


def give_back_freed_memory() -> None:
    """Give back what is kept and not in use."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def peak_bytes() -> int | None:
    """The most memory (resident set) that this process has held so far; ``None`` where the system does not tell."""
    try:
        # Not of getrusage, which on Linux starts a child with what its parent holds.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # Windows has no library of that kind
        return None

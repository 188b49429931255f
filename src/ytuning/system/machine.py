"""The machine and what is installed on it: freed memory, the most memory held, threads, packages and versions.

A step of training, or a batch of the encoder, frees buffers of megabytes and asks for the same ones again. glibc gives
them back to the system each time, and the system clears every page anew: a quarter of head training and up to a tenth
of the encoder pass (benchmarks/LOG.md). So freed memory is kept from the first such work on, and given back each
time that heads have been trained.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ytuning.errors import MissingExtraError

__all__ = [
    "Workers", "give_back_freed_memory", "keep_few_compiled_shapes", "keep_freed_memory", "one_thread", "peak_bytes",
    "require", "shared_threads", "source_hash", "stay_on_one_thread", "version_of", "versions", "workers",
]  # fmt: skip

ALWAYS = ("numpy", "scipy", "scikit-learn", "tokenizers", "torch", "transformers")
"""Packages that every result depends on."""

# These are the numbers of the options in glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
KEPT = {
    # The C library keeps up to this many free bytes at the end of the heap.
    TRIM_THRESHOLD: 2**31 - 1,
    # The heap grows by this many bytes.
    TOP_PAD: 64 << 20,
    # This is the maximum that glibc accepts; blocks of more bytes always come from the system.
    MMAP_THRESHOLD: 32 << 20,
}


@cache
def keep_freed_memory() -> None:
    """Keep freed memory in this process from now on. Without glibc as the C library, nothing happens."""
    library = _glibc()
    if library is not None:
        for option, value in KEPT.items():
            library.mallopt(option, value)


def keep_few_compiled_shapes() -> None:
    """Let oneDNN keep little of what it compiles; called before torch computes anything in this process.

    It compiles a program for each shape that it meets, and keeps 1,024 of them, some 400 MB. Texts have so many shapes
    that hardly one of the older ones is met again: with 64 the encoder is as fast (SST-2, benchmarks/LOG.md). A number
    that the user has set stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def give_back_freed_memory() -> None:
    """Give back what is kept and not in use."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def peak_bytes() -> int | None:
    """The most memory (resident set) that this process has held so far; ``None`` where the system does not tell."""
    try:
        # On Linux getrusage is not used, because it starts a child with the memory of its parent.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        # Windows has no such module.
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):
        # Windows has no library of that kind.
        return None


Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Threads that compute side by side, each on one core. Made by :func:`workers`.

    Every one of a step's operations takes microseconds: two threads inside each of them gain little on an idle machine
    and wait for each other on a busy one (measured on two loaded cores: 20 x slower).
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in order. An error or Ctrl-C is raised only once nothing runs any more."""
        running: list[Future[Result]] = []
        try:
            for item in items:
                # Submitted work is kept in a list, so that it can be cancelled and waited for after an error.
                running.append(self._pool.submit(function, item))
            return [future.result() for future in running]
        finally:
            for future in running:
                # This cancels the work that has not started yet.
                future.cancel()
            wait(running)

    def start(self, function: Callable[[], Result]) -> Future[Result]:
        """Begin a computation on one core beside others; it must not ask these workers for more.

        Nothing waits for it but its result and the end of :func:`workers`.
        """
        return self._pool.submit(function)


class _TorchThreads:
    """The number of threads that torch had before computations of this module lowered it.

    torch keeps one number for each thread, and one for the process that new threads start with; setting the first sets
    the second too. So of computations that run at once, each would take what another has set for what the user wants.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the computations of other threads."""
        self._lock = threading.Lock()
        self._computations = 0
        self._before = 1

    def enter(self, own: int) -> int:
        """Begin a computation in a thread that has ``own`` threads; returns how many it should have."""
        with self._lock:
            self._computations += 1
            if self._computations == 1:
                self._before = own
            # The thread started while another computation had lowered the number for new threads.
            return self._before if own == 1 else own

    def leave(self) -> None:
        """End it."""
        with self._lock:
            self._computations -= 1


_torch_threads = _TorchThreads()
_this_thread = threading.local()


def _use_one_thread_after_fork() -> None:
    """Let a forked process compute on one thread: torch waits for ever for those of the parent, which it has not."""
    # The thread that forked is the only one here, and another may have held the lock.
    _torch_threads.reset()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


# Windows cannot fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread_after_fork)


@contextmanager
def shared_threads() -> Iterator[int]:
    """Give the number of threads that torch should use; threads that are started within may lower theirs to one."""
    # torch is imported here, because callers that only measure memory should not take the memory of torch.
    import torch

    if getattr(_this_thread, "is_limited", False):
        yield 1
        return
    threads = _torch_threads.enter(torch.get_num_threads())
    try:
        yield threads
    finally:
        _torch_threads.leave()
        # An iterator may end within a computation that began after it.
        if not getattr(_this_thread, "is_limited", False):
            torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[int]:
    """Within, the caller's operations run on one thread; gives the number of threads that it had."""
    import torch

    with shared_threads() as threads:
        outer, _this_thread.is_limited = getattr(_this_thread, "is_limited", False), True
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            _this_thread.is_limited = outer


def stay_on_one_thread() -> None:
    """At a thread's start: all its operations run on one thread, and :func:`one_thread` gives it no others back."""
    import torch

    _this_thread.is_limited = True
    torch.set_num_threads(1)


@contextmanager
def workers() -> Iterator[Workers]:
    """Make as many workers as torch has threads; within, the caller's operations run on one thread too."""
    keep_freed_memory()
    with one_thread() as threads:
        pool = ThreadPoolExecutor(threads, "head", initializer=stay_on_one_thread)
        try:
            yield Workers(pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def versions(*packages: str) -> dict[str, str]:
    """Versions of ytuning, of what every result depends on, and of further packages; "" of one that is not installed.

    What is kept of one version must not be mixed with what another would compute. The version of ytuning is a hash of
    its source: its number changes with releases only, its results may change with any line.
    """
    return {"ytuning": source_hash(), **{package: version_of(package) or "" for package in (*ALWAYS, *packages)}}


@cache
def source_hash() -> str:
    """First half of the SHA-256 of the package's modules."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def version_of(package: str) -> str | None:
    """The version of an installed package; ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package, which ``extra`` of ytuning installs.

    Raises:
        MissingExtraError: the package, or one that it needs, is not installed.
        ImportError: a package is there but lacks something, as other versions of it do not.
    """
    try:
        importlib.import_module(module.partition(".")[0])
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = error.name or module
        if "." in package:
            raise
        raise MissingExtraError(package.replace("_", "-"), extra) from error

"""A run of a comparison in a process of its own, so that the peaks of memory of several runs do not mix."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

from ytuning.compare.methods import Run, Work, run_method
from ytuning.engines.pool import problem_of
from ytuning.engines.processes import how_ended
from ytuning.errors import YTuningError, are_options_named, naming_options
from ytuning.progress import Progress

__all__ = ["in_own_process"]

# A method's process reports its progress at most once in this many seconds.
PAUSE = 0.1


def in_own_process(name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
    """Call `methods.run_method` in a new process, which ends with this call.

    Raises:
        YTuningError: the run failed; the message says why.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, are_options_named(), name, work, seed, store), daemon=True)
    with _deaf_children():
        process.start()
    theirs.close()
    try:
        while True:
            what, *content = ours.recv()
            if what == "step":
                progress.step(*content)
            elif what == "say":
                progress.say(*content)
            elif what == "failed":
                raise YTuningError(*content)
            else:
                process.join(timeout=10)
                run: Run = content[0]
                return run
    except EOFError:
        process.join()
        assert process.exitcode is not None
        raise YTuningError(how_ended(process.exitcode)) from None
    finally:
        process.kill()
        process.join()
        ours.close()


def _serve(connection: Connection, names_options: bool, name: str, work: Work, seed: int, store: Path) -> None:
    """What the new process does."""
    # Packages print to stdout, which is kept for results.
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(store,), daemon=True).start()
    try:
        # Messages are for the reader of the process that waits.
        with naming_options() if names_options else nullcontext():
            run = run_method(name, work, seed, store, _Sent(connection))
    except Exception as error:
        # The waiting process reports the error.
        connection.send(("failed", problem_of(error).message))
    else:
        connection.send(("done", run))


def _end_with_parent(store: Path) -> None:
    """End this process, and remove its store, once nobody waits for it any more: a killed process cannot end others."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(store, ignore_errors=True)
    os._exit(1)


class _Sent(Progress):
    """Reports for another process; steps not more often than anybody can read."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._last = connection, 0.0

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        if time.perf_counter() - self._last > PAUSE:
            self._last = time.perf_counter()
            self._connection.send(("step", stage, done, total, note))

    def say(self, message: str) -> None:
        self._connection.send(("say", message))


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started within do not hear Ctrl-C, which is for the one that waits for them.

    The signal is held back, not ignored, so that one that comes meanwhile is heard at the end.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # A child inherits the mask, and keeps it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""The local engine: processes of this machine, each of which has the encoder, and ends when the run does.

A worker is a new Python process, not a fork: torch's threads do not survive a fork. The two sides send each other
objects over pipes, of which the worker reads its units from the standard input. When the run is killed this ends, and
so does the worker.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from typing import IO, Any

from ytuning.engines.pool import Done, Event, Failed, Lost, Ready, Refused, Rows, Work, problem_of
from ytuning.errors import are_options_named, naming_options

__all__ = ["ProcessPool", "how_ended", "serve"]

# Where the parent's packages are is told in the words of the command, as the first import needs it.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ytuning.engines.processes import serve; serve()"
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
END_SECONDS = 5.0


class ProcessPool:
    """Workers that are processes of this machine; see `pool.Pool`.

    Args:
        work: what they do.
        threads: threads of each for its computations; None leaves what the environment or torch chooses.
    """

    def __init__(self, work: Work, *, threads: int | None = None) -> None:
        self._work, self._threads = work, threads
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._started = 0

    def start_worker(self) -> int:
        """Ask for another worker, which reports when it is ready."""
        number, self._started = self._started, self._started + 1
        environment = dict(os.environ)
        if self._threads is not None:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(self._threads))
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # A group of its own, so that Ctrl-C reaches the run alone, which then ends its workers.
            start_new_session=True,
        )
        self._processes[number] = process
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()
        # Messages of a worker are for the reader of this process.
        self._send(number, (self._work, are_options_named()))
        return number

    def give(self, worker: int, unit: Any) -> None:
        """Give a unit to a worker that is ready and has none."""
        self._send(worker, unit)

    def wait(self, seconds: float) -> Event | None:
        """The next report; None if there is none within some seconds."""
        try:
            while (event := self._events.get(timeout=seconds)).worker not in self._processes:
                # It was ended, and what it had reported before does not matter any more.
                pass
        except queue.Empty:
            return None
        if isinstance(event, Lost | Refused):
            self.end(event.worker)
        return event

    def end(self, worker: int) -> None:
        """End a worker, which reports nothing any more."""
        process = self._processes.pop(worker, None)
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    assert stream is not None
                    stream.close()

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._processes):
            self.end(worker)

    @property
    def waiting_for(self) -> str:
        """What a worker that does not become ready may be waiting for."""
        return "its process loads the encoder"

    def _send(self, worker: int, message: object) -> None:
        # A worker that has ended reports that by itself.
        with suppress(OSError):
            stream = self._processes[worker].stdin
            assert stream is not None
            pickle.dump(message, stream)
            stream.flush()

    def _listen(self, number: int, process: subprocess.Popen[bytes]) -> None:
        """Pass on what a worker reports, and at last that it has ended."""
        with suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
            while True:
                kind, content = pickle.load(process.stdout)  # type: ignore[arg-type]
                self._events.put(kind(number, content))
        self._events.put(Lost(number, _why_ended(process)))


def _why_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        return how_ended(process.wait(END_SECONDS))
    except subprocess.TimeoutExpired:
        return "its process closed the pipe to the run"


def how_ended(status: int) -> str:
    """How a process ended, in words, by its exit status; that of a signal is negative."""
    if status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name if -status in signal.Signals.__members__.values() else f"signal {-status}"
    hint = " (the system does so when the memory is full)" if -status == getattr(signal, "SIGKILL", 9) else ""
    return f"its process was ended by {name}{hint}"


# --- in the worker --------------------------------------------------------------------------------------------------


def serve() -> None:
    """Run units until the standard input ends; the main program of a worker's process."""
    # What libraries print must not come between the reports.
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def report(kind: type, content: object) -> None:
        try:
            with lock:
                pickle.dump((kind, content), reports)
                reports.flush()
        except BrokenPipeError:
            # The run has ended.
            os._exit(0)

    context = ExitStack()
    try:
        work, names_options = pickle.load(sys.stdin.buffer)
        if names_options:
            context.enter_context(naming_options())
        worker = work.start()
    except Exception as error:
        report(Refused, problem_of(error))
        return
    units: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_units, args=(units, reports), daemon=True).start()
    report(Ready, worker.about)
    while True:
        try:
            result = worker(units.get(), lambda rows: report(Rows, rows))
        except Exception as error:
            report(Failed, problem_of(error))
        else:
            report(Done, result)


def _read_units(units: queue.SimpleQueue[Any], reports: IO[bytes]) -> None:
    """Take units as they come; the run has ended, or was killed, when there will be none any more."""
    with suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            units.put(pickle.load(sys.stdin.buffer))
    os._exit(0)

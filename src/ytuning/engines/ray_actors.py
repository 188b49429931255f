"""The Ray engine: actors of a cluster, each of which has the encoder. Only this module imports Ray.

Only Ray Core is used: actors, ``wait`` and ``get``. Ray starts an actor where there is room and says when it is lost;
which unit goes where, and how often it is tried, is decided by the scheduler.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from ytuning.engines.pool import Done, Event, Failed, Lost, Problem, Ready, Refused, Work, Worker, problem_of
from ytuning.errors import InputError, are_options_named, argument, naming_options
from ytuning.system.machine import require

__all__ = ["RayPool"]

# Memory for objects that actors share, on a machine where this run starts Ray. Units and results are small.
OBJECT_BYTES = 100 << 20
# A head that does not answer for so long is not there.
REACH_SECONDS = 10.0


class _Actor:
    """A worker in a process of Ray's."""

    def __init__(self, work: Work, names_options: bool) -> None:
        self._work = work
        # Messages are for the reader of the process that has started the run.
        self._naming = naming_options if names_options else nullcontext
        self._worker: Worker | None = None

    def start(self) -> dict[str, Any] | Problem:
        """Load what units need; what it computes with, or why it cannot."""
        try:
            with self._naming():
                self._worker = self._work.start()
        except Exception as error:
            problem = problem_of(error)
            return Problem(problem.kind, f"on {socket.gethostname()}: {problem.message}", problem.details)
        return self._worker.about

    def run(self, unit: Any) -> tuple[Any, Problem | None]:
        """The result of a unit, or why it has failed."""
        assert self._worker is not None
        try:
            with self._naming():
                return self._worker(unit, _no_rows), None
        except Exception as error:
            return None, problem_of(error)


def _check_reachable(address: str) -> None:
    """Refuse an address at which nothing listens, which Ray would try for minutes.

    Raises:
        InputError: nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        # Such as "auto".
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot reach the Ray cluster at {address}: {reason}. Check {argument('address')}, and that "
            "ray start --head runs there."
        ) from error


def _no_rows(rows: int) -> None:
    """Do nothing: an actor reports whole units."""


class RayPool:
    """Workers that are actors of Ray; see `pool.Pool`.

    Args:
        work: what they do.
        workers: how many there will be, for a cluster that is started here.
        cpus: processors of each.
        gpus: graphics processors of each, also a fraction of one.
        address: address of a cluster, or "auto" for the one that this machine belongs to; None starts one here.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """

    def __init__(
        self, work: Work, *, workers: int, cpus: float = 1, gpus: float = 0, address: str | None = None
    ) -> None:
        # Nothing is sent to anybody about the use of Ray, unless the user has said so.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = require("ray", "ray")
        self._owned = not self._ray.is_initialized()
        if self._owned:
            self._connect(address, max(1, round(workers * cpus + 0.499)))
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actor: Callable[[Work, bool], Any] = self._ray.remote(**options)(_Actor).remote
        self._wanted = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        self._work, self._actors = work, dict[int, Any]()
        # What is waited for: the answer of a worker, and whether that is to its start.
        self._answers: dict[Any, tuple[int, bool]] = {}
        self._started = 0

    def _connect(self, address: str | None, cpus: int) -> None:
        if address is not None:
            _check_reachable(address)
        quiet = {"logging_level": "WARNING", "log_to_driver": False}
        # Without an address Ray would take any cluster that a file of its own names.
        of_own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_BYTES}
        try:
            self._ray.init(address=address or "local", **quiet, **({} if address else of_own))
        except (ConnectionError, ValueError, RuntimeError, OSError, self._ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            problem = f"cannot use the Ray cluster {address or 'on this machine'}: {reason}. "
            raise InputError(
                f"{problem}Check {argument('address')}, and the token of the cluster (RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH) if it asks for one."
            ) from error

    def start_worker(self) -> int:
        """Ask for another worker, which reports when it is ready."""
        number, self._started = self._started, self._started + 1
        self._actors[number] = self._actor(self._work, are_options_named())
        self._answers[self._actors[number].start.remote()] = number, True
        return number

    def give(self, worker: int, unit: Any) -> None:
        """Give a unit to a worker that is ready and has none."""
        self._answers[self._actors[worker].run.remote(unit)] = worker, False

    def wait(self, seconds: float) -> Event | None:
        """The next report; None if there is none within some seconds."""
        ready, _ = self._ray.wait(list(self._answers), num_returns=1, timeout=seconds)
        if not ready:
            return None
        worker, is_start = self._answers.pop(ready[0])
        try:
            answer = self._ray.get(ready[0])
        except self._ray.exceptions.RayError as error:
            self.end(worker)
            return Lost(worker, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        if is_start:
            if isinstance(answer, Problem):
                self.end(worker)
                return Refused(worker, answer)
            return Ready(worker, answer)
        result, problem = answer
        return Done(worker, result) if problem is None else Failed(worker, problem)

    def end(self, worker: int) -> None:
        """End a worker, which reports nothing any more."""
        actor = self._actors.pop(worker, None)
        self._answers = {answer: of for answer, of in self._answers.items() if of[0] != worker}
        if actor is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._actors):
            self.end(worker)
        if self._owned:
            self._ray.shutdown()

    @property
    def waiting_for(self) -> str:
        """What a worker that does not become ready may be waiting for."""
        total = self._ray.cluster_resources()
        has = f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU"
        return f"each needs {self._wanted}, and the cluster has {has}"

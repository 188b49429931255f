"""Units on the workers of any engine: at least once each, and not more often than is worth it.

A unit goes only to a worker that has answered. A unit that fails, or whose worker is lost, is tried again after the
others, and is given up after some attempts. Correctness does not depend on any of this: a unit may be computed any
number of times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ytuning.engines.pool import Done, Failed, Lost, Pool, Problem, Ready, Refused, Rows
from ytuning.errors import YTuningError
from ytuning.progress import Progress

__all__ = ["Finished", "GivenUp", "Scheduler", "Skipped", "difference"]

# Reports are waited for this long before the user is told what a run is waiting for.
PATIENCE_SECONDS = 30.0

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Finished(Generic[Unit]):
    """A unit with its result."""

    unit: Unit
    result: Any


@dataclass(frozen=True)
class Skipped(Generic[Unit]):
    """A unit that somebody else has finished."""

    unit: Unit


@dataclass(frozen=True)
class GivenUp(Generic[Unit]):
    """A unit that has failed too often, or cannot succeed."""

    unit: Unit
    problem: Problem
    attempts: int


class Scheduler:
    """The workers of a run.

    Args:
        pool: makes the workers.
        workers: how many there should be.
        attempts: times that a unit is tried, and that a worker is started in a row without having become ready.
        progress: is told of workers that are lost or refuse.
    """

    def __init__(self, pool: Pool, *, workers: int, attempts: int, progress: Progress) -> None:
        self._pool, self._attempts, self._progress = pool, attempts, progress
        self._about: dict[str, Any] | None = None
        self._idle: list[int] = []
        self._starting = {pool.start_worker() for _ in range(workers)}
        self._running: dict[int, int] = {}
        self._failed_starts = 0
        # Why workers are not used, and how many of the reasons the user knows.
        self._refusals, self._told = list[str](), 0

    def about(self) -> dict[str, Any]:
        """What the first worker that becomes ready computes with; all others must agree.

        Raises:
            YTuningError: no worker becomes ready; an InputError where the user's input is the reason.
        """
        while self._about is None:
            event = self._pool.wait(PATIENCE_SECONDS)
            if event is None:
                self._progress.say(f"Still waiting for a worker: {self._pool.waiting_for}.")
            elif isinstance(event, Ready | Refused | Lost):
                self._start_event(event)
        return self._about

    def run(
        self, units: Sequence[Unit], is_done: Callable[[Unit], bool], tell: Callable[[int], None]
    ) -> Iterator[Finished[Unit] | Skipped[Unit] | GivenUp[Unit]]:
        """Run units, and give what became of each, in the order in which they end.

        Args:
            units: the units.
            is_done: asked before a unit is given to a worker.
            tell: is called with the numbers of rows that workers finish; a unit that is tried again counts again.

        Raises:
            WriteError: nothing can be written any more.
            YTuningError: no worker is left.
        """
        # Units are known by their places; a worker has at most one.
        waiting, tries = deque(range(len(units))), [0] * len(units)
        while waiting or self._running:
            while waiting and self._idle:
                place = waiting.popleft()
                if is_done(units[place]):
                    yield Skipped(units[place])
                else:
                    worker = self._idle.pop()
                    self._running[worker] = place
                    self._pool.give(worker, units[place])
            if not waiting and not self._running:
                return
            event = self._pool.wait(PATIENCE_SECONDS)
            if isinstance(event, Rows):
                tell(event.rows)
            elif isinstance(event, Done):
                self._idle.append(event.worker)
                yield Finished(units[self._running.pop(event.worker)], event.result)
            elif isinstance(event, Failed | Lost) and event.worker in self._running:
                place = self._running.pop(event.worker)
                problem = self._after_unit(event)
                tries[place] += 1
                if problem.kind == "write" and (not problem.may_pass or tries[place] >= self._attempts):
                    raise problem.error()
                if problem.kind == "input" or tries[place] >= self._attempts:
                    yield GivenUp(units[place], problem, tries[place])
                else:
                    waiting.append(place)
            elif isinstance(event, Ready | Refused | Lost):
                self._start_event(event)

    def _after_unit(self, event: Failed | Lost) -> Problem:
        """Make room for the next unit, and say why this one has failed."""
        if isinstance(event, Failed):
            self._idle.append(event.worker)
            return event.problem
        self._progress.say(f"A worker was lost in the middle of a unit: {event.why}. Another one is started.")
        self._starting.add(self._pool.start_worker())
        return Problem("other", f"the unit ended its worker: {event.why}")

    def _start_event(self, event: Ready | Refused | Lost) -> None:
        """What becomes of a worker that has no unit.

        Raises:
            YTuningError: it was the last one.
        """
        self._starting.discard(event.worker)
        if isinstance(event, Ready):
            self._failed_starts = 0
            self._about = self._about or event.about
            if differing := difference(self._about, event.about):
                self._pool.end(event.worker)
                self._check_left(Problem("other", f"a worker would compute otherwise: {differing}"))
            else:
                self._idle.append(event.worker)
                self._tell_refusals()
        elif isinstance(event, Refused):
            self._check_left(event.problem)
        else:
            if event.worker in self._idle:
                self._idle.remove(event.worker)
            else:
                self._failed_starts += 1
            if self._failed_starts >= self._attempts:
                raise YTuningError(
                    f"workers do not start: {event.why}. Check the memory, and that ytuning is installed there."
                )
            self._starting.add(self._pool.start_worker())

    def _check_left(self, problem: Problem) -> None:
        """Go on without a worker that refuses, if others are left."""
        if not (self._idle or self._starting or self._running):
            raise problem.error()
        # Many workers may have one reason. If all refuse, it is the error.
        if problem.message not in self._refusals:
            self._refusals.append(problem.message)
        if self._about is not None:
            self._tell_refusals()

    def _tell_refusals(self) -> None:
        for message in self._refusals[self._told :]:
            self._progress.say(f"A worker is not used: {message}")
        self._told = len(self._refusals)


def difference(wanted: dict[str, Any], given: dict[str, Any]) -> str:
    """In what a worker differs from the first one, in words; empty where it does not."""
    names = [name for name in wanted if given.get(name) != wanted[name]]
    return "; ".join(f"{name} {given.get(name)!r} instead of {wanted[name]!r}" for name in names)

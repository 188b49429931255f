"""Opens the workers of an engine, and for trainings checks that they compute what this process would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from ytuning.engines.engine import Engine
from ytuning.engines.pool import Work
from ytuning.engines.schedule import Scheduler, difference
from ytuning.errors import InputError
from ytuning.progress import Progress

__all__ = ["check_same_results", "open_workers"]


@contextmanager
def open_workers(engine: Engine, work: Work, *, units: int, progress: Progress) -> Iterator[Scheduler]:
    """Begin to start the workers of an engine, and end them when the block ends, however that comes.

    Args:
        engine: says which workers.
        work: what they do.
        units: how many units can run at the same time; there are no more workers than that.
        progress: is told of workers that are lost or refuse.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """
    engine = replace(engine, workers=max(1, min(engine.workers, units)))
    with closing(engine.open_pool(work)) as pool:
        yield Scheduler(pool, workers=engine.workers, attempts=engine.attempts, progress=progress)


def check_same_results(scheduler: Scheduler, own: dict[str, Any]) -> None:
    """Wait for the first worker, and refuse it where it would give other results than this process.

    Args:
        scheduler: has the workers.
        own: what this process computes with, in the form of `pool.Worker.about`.

    Raises:
        InputError: the worker computes with something else.
        YTuningError: no worker becomes ready.
    """
    if differing := difference(own, scheduler.about()):
        raise InputError(
            f"the workers would compute otherwise than this process: {differing}. Install the same versions, and give "
            "the same files, on all machines"
        )

"""Threads that compute side by side, each on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from ytuning.memory import keep_freed_memory

__all__ = ["Workers", "workers"]

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
                running.append(self._pool.submit(function, item))  # what runs must be known
            return [future.result() for future in running]
        finally:
            for future in running:
                future.cancel()  # those that have not begun
            wait(running)


@contextmanager
def workers() -> Iterator[Workers]:
    """As many workers as torch has threads; within, the caller's operations run on one thread too."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "head", initializer=torch.set_num_threads, initargs=(1,))
    torch.set_num_threads(1)
    try:
        yield Workers(pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)

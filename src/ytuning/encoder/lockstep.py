"""Calls of a model that go on in turn from product to product, so that one product has the rows of all of them.

A model reads texts of one length at once. For texts of many lengths each length is a call in a thread of its own. Where
a call needs a product, it waits until all others need one or have ended. Then the rows for the same weights are
multiplied together, and the weights are read once. Only one of the threads runs at any time, so that calls cannot wait
for each other for ever, whichever products they ask for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ytuning.encoder.products import Product
from ytuning.system.machine import stay_on_one_thread

__all__ = ["in_lockstep", "multiply"]

# Whoever waits for the calls looks again after this number of seconds. Only threads whose calls have ended are joined,
# because in Python 3.11 a join misses a Ctrl-C that comes just before it waits, and takes a thread for ended when it is
# interrupted.
POLL_SECONDS = 0.2

Result = TypeVar("Result")
_this_thread = threading.local()


def multiply(product: Product, rows: Tensor) -> Tensor:
    """The product of rows (N, D); within :func:`in_lockstep` computed together with the rows of other calls."""
    turns: _Turns | None = getattr(_this_thread, "turns", None)
    return product(rows) if turns is None else turns.multiply(_this_thread.number, product, rows)


def in_lockstep(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of calls, in order. A single call runs in the caller's thread.

    Raises:
        BaseException: the first error of a call or of a product, or Ctrl-C. By then no call runs any more.
    """
    if len(calls) == 1:
        return [calls[0]()]
    turns, results = _Turns(len(calls)), dict[int, Result]()

    def run(number: int) -> None:
        turns.running.add(number)
        try:
            stay_on_one_thread()
            _this_thread.turns, _this_thread.number = turns, number
            with suppress(_Stopped):
                turns.wait(number)
                try:
                    results[number] = calls[number]()
                except BaseException as error:
                    turns.stop(error)
            turns.pass_on()
        except BaseException as error:
            # Where it is not this call's turn yet, nobody would pass on the turn that it is going to get.
            turns.abort(error)
        finally:
            turns.end(number)

    threads = [
        threading.Thread(target=run, args=(number,), name=f"lockstep-{number}", daemon=True)
        for number in range(len(calls))
    ]
    todo = deque[Callable[[], None]]([*(thread.start for thread in threads), turns.begin, turns.wait_for_all])
    while todo:
        try:
            while todo:
                todo[0]()
                todo.popleft()
        except BaseException as error:
            # Ctrl-C, or no more threads to be had. A call that has not begun will not begin any more.
            todo = deque([partial(turns.abort, error), turns.wait_for_all])
    # No call goes on, so only the last steps of the threads are waited for; Ctrl-C there is raised at once.
    for thread in threads:
        if thread.is_alive():
            thread.join()
    if turns.error is not None:
        raise turns.error
    return [results[number] for number in range(len(calls))]


class _Stopped(BaseException):
    """Ends a call because another one failed."""


class _Turns:
    """Whose turn it is, and the rows that wait to be multiplied, which only the call whose turn it is uses.

    Attributes:
        error: why all calls have to end, or None.
        running: numbers of the calls that have begun and not ended.
        ended: numbers of the calls that have ended.
    """

    def __init__(self, count: int) -> None:
        self.error: BaseException | None = None
        self.running: set[int] = set()
        self.ended: set[int] = set()
        self._ready: deque[int] = deque()
        self._waiting: dict[int, tuple[Product, Tensor]] = {}
        self._results: dict[int, Tensor] = {}
        # The owner of a lock goes on when another call has released it.
        self._locks = [threading.Lock() for _ in range(count)]
        self._one_ended = threading.Lock()
        for lock in (*self._locks, self._one_ended):
            lock.acquire()

    def begin(self) -> None:
        """Let the calls run in turn, which all wait for that."""
        self._ready.extend(range(len(self._locks)))
        self.pass_on()

    def multiply(self, number: int, product: Product, rows: Tensor) -> Tensor:
        """The product of a call's rows (N, D), when it is this call's turn again."""
        self._waiting[number] = product, rows
        self.pass_on()
        self.wait(number)
        return self._results.pop(number)

    def wait(self, number: int) -> None:
        """Wait for a call's turn.

        Raises:
            _Stopped: another call has failed.
        """
        self._locks[number].acquire()
        if self.error is not None:
            raise _Stopped

    def end(self, number: int) -> None:
        """A call has ended."""
        self.ended.add(number)
        self.running.discard(number)
        _release(self._one_ended)

    def wait_for_all(self) -> None:
        """Wait until all calls have ended; after an error, until none runs, as no other call begins any more.

        Unlike a thread's join, it misses no Ctrl-C and can be called again after one.
        """
        while self.running or (self.error is None and len(self.ended) < len(self._locks)):
            self._one_ended.acquire(timeout=POLL_SECONDS)

    def stop(self, error: BaseException) -> None:
        """End each call when it is its turn. Only the first error counts."""
        self.error = error if self.error is None else self.error

    def abort(self, error: BaseException) -> None:
        """End all calls at once, or as soon as they need a product, from a thread whose turn it is not."""
        self.stop(error)
        for lock in self._locks:
            _release(lock)

    def pass_on(self) -> None:
        """It is the next call's turn; if all wait for products, these are computed first."""
        if not self._ready and self._waiting:
            try:
                if self.error is None:
                    self._compute()
            except BaseException as error:
                self.stop(error)
            self._ready.extend(self._waiting)
            self._waiting.clear()
        if self._ready:
            _release(self._locks[self._ready.popleft()])

    def _compute(self) -> None:
        of_product: dict[Product, list[int]] = {}
        for number, (product, _) in self._waiting.items():
            of_product.setdefault(product, []).append(number)
        with torch.inference_mode():
            for product, numbers in of_product.items():
                rows = [self._waiting[number][1] for number in numbers]
                results = product(torch.cat(rows)).split(list(map(len, rows)))
                self._results.update(zip(numbers, results, strict=True))


def _release(lock: threading.Lock) -> None:
    # It may be released already, after an abort or by another call that has ended.
    with suppress(RuntimeError):
        lock.release()

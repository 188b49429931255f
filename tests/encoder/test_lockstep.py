"""Calls in lockstep: which products they share, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ytuning.encoder.lockstep import in_lockstep, multiply


class Doubled:
    """A product that keeps the numbers of rows it was given."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.rows.append(len(rows))
        return rows * 2


def chain(count: int, *products: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A call that needs these products one after the other, of so many rows (count, 3)."""

    def call() -> Tensor:
        states = torch.arange(count * 3.0).view(count, 3)
        for product in products:
            states = multiply(product, states) + count
        return states

    return call


def others() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("lockstep")}


def test_calls_share_their_products() -> None:
    first, second = Doubled(), Doubled()
    counts = (4, 1, 7)
    results = in_lockstep([chain(count, first, second, first) for count in counts])
    assert first.rows == [12, 12] and second.rows == [12]
    for count, result in zip(counts, results, strict=True):
        assert torch.equal(result, chain(count, Doubled(), Doubled(), Doubled())())


def test_calls_may_need_other_products_than_their_neighbours() -> None:
    first, second = Doubled(), Doubled()
    calls = [chain(2, first, second), chain(3, second), chain(5, first, first, first, second), chain(1)]
    results = in_lockstep(calls)
    assert sorted(first.rows) == [5, 5, 7] and sorted(second.rows) == [2, 3, 5]
    assert all(torch.equal(result, call()) for result, call in zip(results, calls, strict=True))


def test_a_single_call_needs_no_thread() -> None:
    assert in_lockstep([threading.current_thread]) == [threading.current_thread()]


def test_an_error_ends_all_calls() -> None:
    ended = []

    def careful() -> Tensor:
        try:
            return chain(2, *[Doubled()] * 50)()
        finally:
            ended.append(True)

    def wrong() -> Tensor:
        chain(1, Doubled())()
        raise ValueError("no such token")

    with pytest.raises(ValueError, match="no such token"):
        in_lockstep([careful, wrong, careful])
    assert ended == [True, True] and not others()


@pytest.mark.parametrize("last", [True, False])
def test_an_error_in_a_product_ends_all_calls(last: bool) -> None:
    def broken(rows: Tensor) -> Tensor:
        raise MemoryError(f"{len(rows)} rows")

    with pytest.raises(MemoryError, match=r"^5 rows$"):
        in_lockstep([chain(2, broken, Doubled()), chain(3, broken), *([chain(1)] if last else [])])
    assert not others()


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("late", [False, True])
def test_a_call_that_cannot_begin_ends_all_calls(failing: int, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory() -> None:
        if threading.current_thread().name == f"lockstep-{failing}":
            # The other calls run by then, or not yet.
            time.sleep(0.05 if late else 0)
            raise MemoryError("no thread")

    monkeypatch.setattr("ytuning.encoder.lockstep.stay_on_one_thread", without_memory)
    with pytest.raises(MemoryError, match="no thread"):
        in_lockstep([chain(count, Doubled(), Doubled()) for count in (2, 3, 4)])
    assert not others()


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_ends_all_calls(twice: bool) -> None:
    def endless(interrupts: bool) -> Tensor:
        product, rounds = Doubled(), 0
        try:
            while True:
                multiply(product, torch.ones(1, 1))
                rounds += 1
                if rounds == 3 and interrupts:
                    os.kill(os.getpid(), signal.SIGINT)
        finally:
            # The second Ctrl-C comes while the first one ends the calls.
            if twice:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        in_lockstep([partial(endless, True), partial(endless, False)])
    assert not others()


def test_calls_in_lockstep_run_beside_others() -> None:
    results: dict[int, list[Tensor]] = {}

    def run(number: int) -> None:
        results[number] = in_lockstep([chain(count, *[Doubled()] * 20) for count in (2, 3, number + 4)])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, found in results.items():
        for count, result in zip((2, 3, number + 4), found, strict=True):
            assert torch.equal(result, chain(count, *[Doubled()] * 20)())

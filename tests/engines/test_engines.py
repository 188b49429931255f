"""The contract of engines: what the scheduler makes of units that fail in every way, on processes and on Ray."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engines.works import Unit, Work
from ytuning.engines.pool import Pool
from ytuning.engines.processes import ProcessPool
from ytuning.engines.schedule import Finished, GivenUp, Scheduler, Skipped
from ytuning.errors import InputError, WriteError, YTuningError
from ytuning.progress import CollectedMessages

MakePool = Callable[[Work], Pool]


@pytest.fixture(params=["local", "ray"])
def make_pool(request: pytest.FixtureRequest) -> Iterator[MakePool]:
    """Makes a pool of each engine; all are closed in the end."""
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    pools: list[Pool] = []

    def make(work: Work) -> Pool:
        if request.param == "local":
            pools.append(ProcessPool(work, threads=1))
        else:
            from ytuning.engines.ray_actors import RayPool

            pools.append(RayPool(work, workers=2))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def ends(
    pool: Pool, units: Sequence[Unit], *, workers: int = 2, messages: CollectedMessages | None = None
) -> list[Any]:
    scheduler = Scheduler(pool, workers=workers, attempts=3, progress=messages or CollectedMessages())
    scheduler.about()
    return list(scheduler.run(units, lambda unit: False, lambda rows: None))


def test_every_unit_has_one_result(make_pool: MakePool, tmp_path: Path) -> None:
    units = [Unit(number, str(tmp_path)) for number in range(20)]
    found = ends(make_pool(Work()), units)
    assert sorted((end.unit.number, end.result) for end in found) == [(number, 2 * number) for number in range(20)]
    assert all(unit.attempts == 1 for unit in units)


@pytest.mark.parametrize("what", ["raise", "exit", "kill"])
def test_a_unit_that_always_fails_is_given_up_and_the_others_finish(
    make_pool: MakePool, tmp_path: Path, what: str
) -> None:
    units = [Unit(number, str(tmp_path), what if number == 3 else "return") for number in range(10)]
    found = ends(make_pool(Work()), units)
    assert {end.unit.number for end in found if isinstance(end, Finished)} == set(range(10)) - {3}
    (given_up,) = [end for end in found if isinstance(end, GivenUp)]
    assert (given_up.unit.number, given_up.attempts, units[3].attempts) == (3, 3, 3)
    wanted = "RuntimeError: unit 3 cannot" if what == "raise" else "the unit ended its worker"
    assert wanted in given_up.problem.message
    assert all(unit.attempts == 1 for unit in units if unit.number != 3)


@pytest.mark.parametrize("what", ["raise", "kill"])
def test_a_unit_that_fails_once_is_tried_again(make_pool: MakePool, tmp_path: Path, what: str) -> None:
    units = [Unit(number, str(tmp_path), what, first=1 if number == 0 else 0) for number in range(4)]
    found = ends(make_pool(Work()), units)
    assert sorted(end.result for end in found) == [0, 2, 4, 6]
    assert [unit.attempts for unit in units] == [2, 1, 1, 1]


def test_wrong_data_are_not_tried_again(make_pool: MakePool, tmp_path: Path) -> None:
    unit = Unit(0, str(tmp_path), "data")
    (end,) = ends(make_pool(Work()), [unit])
    assert isinstance(end, GivenUp)
    assert (end.problem.kind, end.problem.message) == ("input", "rows.csv, row 7: the text is missing.")
    assert unit.attempts == 1


def test_a_full_disk_stops_the_run(make_pool: MakePool, tmp_path: Path) -> None:
    units = [Unit(number, str(tmp_path), "full") for number in range(50)]
    with pytest.raises(WriteError, match=r"cannot write out: no space left"):
        ends(make_pool(Work()), units)
    assert sum(unit.attempts for unit in units) <= 4


def test_what_an_object_store_refuses_is_tried_again(make_pool: MakePool, tmp_path: Path) -> None:
    units = [Unit(number, str(tmp_path), "refused", first=2) for number in range(4)]
    assert all(isinstance(end, Finished) for end in ends(make_pool(Work()), units))
    assert [unit.attempts for unit in units] == [3] * 4


def test_what_an_object_store_always_refuses_ends_the_run(make_pool: MakePool, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="slow down"):
        ends(make_pool(Work()), [Unit(number, str(tmp_path), "refused") for number in range(4)])


def test_a_worker_that_is_killed_from_outside_is_replaced(make_pool: MakePool, tmp_path: Path) -> None:
    units = [Unit(0, str(tmp_path), "wait", first=1), *(Unit(number, str(tmp_path)) for number in range(1, 6))]
    messages, done = CollectedMessages(), []
    scheduler = Scheduler(make_pool(Work()), workers=2, attempts=3, progress=messages)
    scheduler.about()
    run = scheduler.run(units, lambda unit: False, lambda rows: None)
    for end in run:
        done.append(end.unit.number)
        if len(done) == 5:
            (mark,) = tmp_path.glob("0-0-*")
            os.kill(int(mark.name.rpartition("-")[2]), signal.SIGKILL)
    assert sorted(done) == list(range(6))
    assert units[0].attempts == 2
    assert any("A worker was lost in the middle of a unit" in message for message in messages.messages)


def test_a_worker_that_refuses_says_why(make_pool: MakePool) -> None:
    messages = CollectedMessages()
    scheduler = Scheduler(make_pool(Work(refuse="no such task")), workers=2, attempts=3, progress=messages)
    with pytest.raises(InputError, match="no such task"):
        scheduler.about()
    assert messages.messages == []


def test_a_worker_that_refuses_first_does_not_end_the_run(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    units, messages = [Unit(number, str(tmp_path / "units")) for number in range(3)], CollectedMessages()
    found = ends(make_pool(Work(bad_machine=str(tmp_path / "first"))), units, messages=messages)
    assert all(isinstance(end, Finished) for end in found)
    assert len(found) == 3
    assert any("A worker is not used: " in message and "no encoder" in message for message in messages.messages)


def test_a_cluster_that_is_not_there_is_told_at_once(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from ytuning.engines.ray_actors import RayPool

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://[::1]:1", "..:6379", "127.0.0.1:99999"):
        with pytest.raises(InputError, match=rf"cannot reach the Ray cluster at {re.escape(address)}: "):
            RayPool(Work(), workers=1, address=address)


def test_workers_that_end_at_their_start_are_not_started_for_ever(make_pool: MakePool) -> None:
    scheduler = Scheduler(make_pool(Work(exits=True)), workers=1, attempts=2, progress=CollectedMessages())
    with pytest.raises(YTuningError, match="workers do not start"):
        scheduler.about()


def test_a_worker_that_would_compute_otherwise_is_not_used(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    messages = CollectedMessages()
    pool = make_pool(Work(others=str(tmp_path / "first")))
    scheduler = Scheduler(pool, workers=2, attempts=3, progress=messages)
    scheduler.about()
    found: list[Any] = []
    # There are units until the other worker has answered, too.
    deadline = time.monotonic() + 120
    while not any("would compute otherwise" in message for message in messages.messages):
        assert time.monotonic() < deadline
        units = [Unit(len(found) + number, str(tmp_path / "units")) for number in range(5)]
        found += scheduler.run(units, lambda unit: False, lambda rows: None)
    assert all(isinstance(end, Finished) for end in found)
    # All units were run by one process.
    assert len({file.name.rpartition("-")[2] for file in (tmp_path / "units").iterdir()}) == 1


def test_units_that_are_done_meanwhile_are_skipped(make_pool: MakePool, tmp_path: Path) -> None:
    units = [Unit(number, str(tmp_path)) for number in range(6)]
    scheduler = Scheduler(make_pool(Work()), workers=1, attempts=3, progress=CollectedMessages())
    scheduler.about()
    found = list(scheduler.run(units, lambda unit: unit.number % 2 == 1, lambda rows: None))
    assert {end.unit.number for end in found if isinstance(end, Skipped)} == {1, 3, 5}
    assert [unit.attempts for unit in units] == [1, 0, 1, 0, 1, 0]


def test_closing_ends_workers_in_the_middle_of_a_unit(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(Work())
    worker = pool.start_worker()
    while pool.wait(60) is None:
        pass
    pool.give(worker, Unit(0, str(tmp_path), "wait"))
    deadline = time.monotonic() + 60
    while not (marks := list(tmp_path.glob("0-*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    pool.end(worker)
    process = int(marks[0].name.rpartition("-")[2])
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")

"""Machines of a Ray cluster that are lost, cut off or killed in the middle of a run: every row once, the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.batch.cluster import Cluster
from tests.conftest import WORDS
from ytuning.batch.predict_folder import predict_folder

pytestmark = pytest.mark.cluster
UNITS, UNIT_ROWS = 40, 1200


@pytest.fixture(scope="module")
def rows(served_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows ``in`` and ``local``, the parts of a run of the local engine."""
    root, chooser = tmp_path_factory.mktemp("rows"), random.Random(0)
    (root / "in").mkdir()
    with (root / "in" / "rows.jsonl").open("w") as file:
        for number in range(UNITS * UNIT_ROWS):
            file.write(json.dumps({"id": number, "text": " ".join(chooser.choices(WORDS, k=30))}) + "\n")
    predict_folder(served_tasks / "single", root / "in", root / "local", unit_rows=UNIT_ROWS, worker_cpus=1)
    return root


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Run:
    """The command on the cluster, with a worker on each of the two nodes."""

    def __init__(self, cluster: Cluster, task: Path, rows: Path, output: Path) -> None:
        self._cluster, self.output = cluster, output
        options = ["--unit-rows", str(UNIT_ROWS), "--engine", "ray", "--address", cluster.address, "--workers", "2"]
        self._words = ["predict", str(task), "--input", str(rows), "--output", f"{output}/", *options, "--json"]
        self.start()

    def start(self) -> None:
        self.process = self._cluster.run(self._words)

    def wait_until_both_work(self) -> int:
        """Wait until some parts are there and each node is in the middle of a unit; returns the number of parts."""
        before = len(parts(self.output))
        deadline = time.monotonic() + 120
        while len(parts(self.output)) < before + 3 or not all(map(self._cluster.runs_a_unit, self._cluster.nodes)):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return len(parts(self.output))

    def finish(self) -> dict[str, Any]:
        told, messages = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, messages.decode()
        found: dict[str, Any] = json.loads(told)
        return found


@pytest.fixture
def run(cluster: Cluster, served_tasks: Path, rows: Path, tmp_path: Path) -> Run:
    return Run(cluster, served_tasks / "single", rows / "in", tmp_path / "out")


def check(run: Run, rows: Path, *, most_rows: int = UNITS * UNIT_ROWS) -> None:
    """All rows are there once, in the parts of the local engine, and the run has answered at most so many of them."""
    found = run.finish()
    assert (found["units"], found["failed"]) == (UNITS, [])
    assert found["rows"] + found["skipped"] * UNIT_ROWS == UNITS * UNIT_ROWS
    assert found["rows"] <= most_rows
    assert parts(run.output) == parts(rows / "local")


def parts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("part-*"))}


def test_a_worker_that_is_killed(run: Run, cluster: Cluster, rows: Path) -> None:
    run.wait_until_both_work()
    cluster.kill_actors("first")
    check(run, rows)


def test_a_driver_that_is_killed_and_started_again(run: Run, cluster: Cluster, rows: Path) -> None:
    done = run.wait_until_both_work()
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate(timeout=60)
    run.start()
    check(run, rows, most_rows=(UNITS - done) * UNIT_ROWS)


def test_a_machine_that_is_lost(run: Run, cluster: Cluster, rows: Path) -> None:
    run.wait_until_both_work()
    cluster.kill_node("first")
    check(run, rows)
    cluster.renew("first")


def test_a_machine_that_is_cut_off(run: Run, cluster: Cluster, rows: Path) -> None:
    # It goes on by itself for a while, and may write the part that another worker writes, too.
    run.wait_until_both_work()
    cluster.pull_cable("second")
    check(run, rows)
    cluster.renew("second")

"""Prediction over folders as whole commands: units beside the plain command, one and two workers, both engines; many
tasks beside one; memory over many rows.

python -m benchmarks.scale --data ../shared/data --out results
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import bar, head_option, in_turn, medians, parser, recipe, rows_of, shortened
from benchmarks.machine import record
from benchmarks.prediction import varied
from ytuning.encoder.encoder import load_encoder
from ytuning.features.store import FeatureStore
from ytuning.system.machine import version_of
from ytuning.tasks.task import save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import preset

SAMPLE_SECONDS = 0.2
# How a run is started: cores that it may use, and options. All have one thread a worker.
RUNS: dict[str, tuple[int, list[str]]] = {
    "plain": (1, []),
    "local_1": (1, ["--workers", "1"]),
    "local_2": (2, ["--workers", "2"]),
    "ray_1": (1, ["--engine", "ray", "--workers", "1"]),
    "ray_2": (2, ["--engine", "ray", "--workers", "2"]),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=3)
    head_option(options)
    options.add_argument("--set", default="sst2")
    options.add_argument("--rows", type=int, default=20_000, help="of the runs of engines")
    options.add_argument("--unit-rows", type=int, default=2048)
    options.add_argument("--engines", nargs="+", default=["local", "ray"], choices=["local", "ray"])
    options.add_argument("--task-rows", type=int, default=200_000, help="of the runs of many tasks")
    options.add_argument("--tasks", type=int, default=50)
    options.add_argument("--memory-rows", type=int, default=20_000, help="of the run whose memory is watched")
    stages = {"engines": engines, "encode": encode, "tasks": many_tasks, "memory": memory}
    options.add_argument("--stages", nargs="+", default=list(stages), choices=list(stages))
    arguments = options.parse_args(argv)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as root:
        work = _Folder(Path(root), arguments)
        for stage in arguments.stages:
            figures[stage] = stages[stage](work, arguments)
    record("scale", figures, arguments.out, bars(figures))


def bars(figures: dict[str, Any]) -> list[Any]:
    """What is wanted, and what was measured."""
    found = []
    if engines_found := figures.get("engines"):
        ratio = engines_found["ratio"]
        found += [
            bar("local units against the plain command, time", ratio["local_1"], at_most=1.05),
            bar("two local workers against one, rate", ratio["local_2_against_1"], at_least=1.7),
        ]
        if "ray_1" in ratio:
            found += [
                bar("one Ray worker against the plain command, rate without start", ratio["ray_1"], at_least=0.9),
                bar("two Ray workers against one, rate", ratio["ray_2_against_1"], at_least=1.7),
            ]
    if encode_found := figures.get("encode"):
        found.append(bar("encoding by two workers against one, rate", encode_found["ratio"], at_least=1.6))
    if tasks_found := figures.get("tasks"):
        found.append(bar(f"{tasks_found['tasks']} tasks against one, time", tasks_found["ratio"], at_most=1.5))
    if memory_found := figures.get("memory"):
        found.append(bar("peak memory of the local engine, GB", memory_found["peak_bytes"] / 1e9, at_most=1.0))
    return found


class _Folder:
    """A folder with trained tasks and inputs, and the commands that are run there."""

    def __init__(self, root: Path, arguments: argparse.Namespace) -> None:
        self.root, self._encoder = root, load_encoder(arguments.encoder)
        self._texts = rows_of(arguments.data / arguments.set, "train").texts
        self._train = rows_of(arguments.data / arguments.set, "train", 2000)
        self._arguments = arguments
        (root / "token").write_text(secrets.token_hex(32))

    def rows(self, count: int) -> Path:
        """A file of so many rows with different texts."""
        file = self.root / f"rows{count}.jsonl"
        if not file.exists():
            with file.open("w") as stream:
                for number, text in enumerate(varied(self._texts, count)):
                    stream.write(json.dumps({"id": number, "text": text}) + "\n")
        return file

    def tasks(self, count: int, name: str) -> list[Path]:
        """Folders of so many tasks of a preset, which all have the same head."""
        own = preset("light") if name == "light" else recipe(self._arguments)
        own = (
            own if self._arguments.head_steps is None or name == "light" else shortened(own, self._arguments.head_steps)
        )
        store = FeatureStore(self.root / "store")
        task = train_task(self._train, self._encoder, store, own, options=TrainOptions(refit=False)).task
        folders = [self.root / f"{name}{number}" for number in range(count)]
        for folder in folders:
            save_task(replace(task, name=folder.name), folder)
        return folders

    def run(
        self, tasks: Sequence[Path], file: Path, cores: int, options: Sequence[str], *, watched: bool = False
    ) -> dict[str, float]:
        """Seconds of a command and of its units, CPU seconds, and where it is watched the most memory of its processes.

        A run that is watched is slower: the kernel walks through all pages of a process to count them.
        """
        with tempfile.TemporaryDirectory(dir=self.root) as output:
            answers = f"{output}/answers.jsonl" if not options else f"{output}/answers/"
            words = [sys.executable, "-c", "from ytuning.cli import main; main()", "predict", *map(str, tasks)]
            words += ["--input", str(file), "--output", answers, "--quiet", "--encoder", self._arguments.encoder]
            words += [*options, "--json", "--unit-rows", str(self._arguments.unit_rows)] if options else []
            own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.root / "token"), "OMP_NUM_THREADS": "1"}
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.perf_counter()
            process = subprocess.Popen(
                words,
                env={**os.environ, **own},
                stdout=subprocess.PIPE,
                preexec_fn=lambda: _use_cores(cores),
            )
            watch = _Memory(process.pid) if watched else None
            told, _ = process.communicate()
            seconds = time.perf_counter() - start
            if watch is not None:
                watch.stop()
            if process.returncode:
                raise RuntimeError(f"the command ended with status {process.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {
            "seconds": seconds,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        }
        if watch is not None:
            found |= {"peak_bytes": watch.peak, "late_bytes": watch.late}
        if options:
            run = json.loads(told)
            found |= {"start_seconds": run["seconds"]["start"], "unit_seconds": run["seconds"]["units"]}
        return found


def engines(work: _Folder, arguments: argparse.Namespace) -> dict[str, Any]:
    """One task over the rows by the plain command and by one and two workers of the engines, in turn."""
    task, file = work.tasks(1, "default"), work.rows(arguments.rows)
    with_ray = "ray" in arguments.engines and version_of("ray") is not None
    runs = {name: how for name, how in RUNS.items() if with_ray or "ray" not in name}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}

    def measure(name: str) -> float:
        found[name].append(work.run(task, file, *runs[name]))
        return found[name][-1]["seconds"]

    middle = medians(in_turn(arguments.rounds, {name: lambda name=name: measure(name) for name in runs}))  # type: ignore[misc]
    steady = {
        name: statistics.median(run.get("unit_seconds", run["seconds"]) for run in some) for name, some in found.items()
    }
    # The plain command does not tell how long it takes to start: as long as a local worker.
    start = statistics.median(run["start_seconds"] for run in found["local_1"])
    ratio = {
        "local_1": middle["local_1"] / middle["plain"],
        "local_2_against_1": steady["local_1"] / steady["local_2"],
    }
    if "ray_2" in runs:
        ratio["ray_1"] = (middle["plain"] - start) / steady["ray_1"]
        ratio["ray_2_against_1"] = steady["ray_1"] / steady["ray_2"]
    return {"rows": arguments.rows, "ratio": ratio, "seconds": middle, "unit_seconds": steady, "runs": found}


def encode(work: _Folder, arguments: argparse.Namespace) -> dict[str, Any]:
    """The rows into an empty feature store, by one worker and by two, in turn."""
    file, found = work.rows(arguments.rows), dict[str, list[float]]()
    for _ in range(arguments.rounds):
        for workers in (1, 2):
            with tempfile.TemporaryDirectory(dir=work.root) as store:
                words = [sys.executable, "-c", "from ytuning.cli import main; main()", "encode", str(file), "--json"]
                words += ["--quiet", "--encoder", arguments.encoder, "--workers", str(workers)]
                done = subprocess.run(
                    words,
                    env={**os.environ, "YTUNING_CACHE": store, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    check=True,
                    preexec_fn=lambda cores=workers: _use_cores(cores),  # type: ignore[misc]
                )
            found.setdefault(str(workers), []).append(json.loads(done.stdout)["seconds"]["units"])
    middle = medians(found)
    return {"rows": arguments.rows, "ratio": middle["1"] / middle["2"], "unit_seconds": found}


def many_tasks(work: _Folder, arguments: argparse.Namespace) -> dict[str, Any]:
    """Many tasks over the rows beside one, with two workers: default heads with one, and light heads with many."""
    file, options = work.rows(arguments.task_rows), RUNS["local_2"]
    one, many = work.tasks(1, "default"), work.tasks(arguments.tasks, "default")
    light = work.tasks(arguments.tasks, "light")
    timed = {name: work.run(tasks, file, *options) for name, tasks in (("one", one), ("many", many), ("light", light))}
    return {
        "rows": arguments.task_rows,
        "tasks": arguments.tasks,
        "ratio": timed["many"]["seconds"] / timed["one"]["seconds"],
        "ratio_light": timed["light"]["seconds"] / timed["one"]["seconds"],
        "runs": timed,
    }


def memory(work: _Folder, arguments: argparse.Namespace) -> dict[str, Any]:
    """The most memory of a run over many rows, and how much of it there was in the last quarter."""
    found = work.run(work.tasks(1, "default"), work.rows(arguments.memory_rows), *RUNS["local_1"], watched=True)
    return {"rows": arguments.memory_rows, **found}


def _use_cores(count: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


class _Memory:
    """Watches the memory of a process and of all that it starts; pages that several have count once (PSS)."""

    def __init__(self, pid: int) -> None:
        self._pid, self._ended, self._seen = pid, threading.Event(), list[int]()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def peak(self) -> int:
        """The most bytes that were seen."""
        return max(self._seen, default=0)

    @property
    def late(self) -> int:
        """The most bytes in the last quarter of the time."""
        return max(self._seen[len(self._seen) * 3 // 4 :], default=0)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._seen.append(sum(map(_bytes_of, _tree(self._pid))))


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = list[int](), [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _bytes_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()

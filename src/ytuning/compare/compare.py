"""Methods and encoders on the same rows, one run after the other or several on the workers of an engine. Each run has a
process of its own, so that their peaks of memory do not mix; finished runs are kept, and the same comparison goes on
from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ytuning.compare.methods import TUNINGS, Run, Work, check_encoders, check_methods
from ytuning.compare.own_process import in_own_process
from ytuning.compare.run_work import METHOD_PACKAGES, CompareWork, RunUnit, compared_with, encoder_digest
from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import KINDS
from ytuning.encoder.encoder import load_encoder
from ytuning.engines.engine import Engine
from ytuning.engines.pool import problem_of
from ytuning.engines.schedule import Finished, GivenUp
from ytuning.engines.workers import check_same_results, open_workers
from ytuning.errors import InputError, YTuningError, parameter, write_errors
from ytuning.progress import Progress
from ytuning.system.files import commit
from ytuning.system.machine import versions

__all__ = ["Comparison", "Contestant", "compare", "some_rows"]

# The folder of results has a folder of finished runs, the stores of current runs, and the lock of the comparing
# process.
RUNS, STORE, LOCK_FILE = "runs", "working", "lock"
# A sample needs two rows of each label: one to train on and one to validate on.
FEWEST_OF_A_LABEL = 2

Start = Callable[[str, Work, int, Path, Progress], Run]
"""Starts a run: takes a method, the work, a seed, a folder for the store and a progress."""
Contestant = tuple[str, str]
"""An encoder, as the user gave it, and a method."""


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        work: what was compared on; its encoder is the first.
        encoders: names or folders of the compared encoders, in the order of the request.
        methods: names of the methods that each encoder was compared with, in the order of the request.
        seeds: the seeds of each contestant.
        runs: the finished runs.
        skipped: why a contestant has fewer runs than seeds.
        interrupted: whether Ctrl-C ended it early.
    """

    work: Work
    encoders: list[str]
    methods: list[str]
    seeds: list[int]
    runs: list[Run]
    skipped: dict[Contestant, str]
    interrupted: bool

    @property
    def workers(self) -> int:
        """The most runs that were measured at the same time."""
        return max((run.workers for run in self.runs), default=1)

    @property
    def contestants(self) -> list[Contestant]:
        """Every method of every encoder, encoder by encoder."""
        return [(encoder, method) for encoder in self.encoders for method in self.methods]

    def shown_name(self, contestant: Contestant) -> str:
        """Return what tells a contestant from the others: its method, its encoder, or both."""
        encoder, method = contestant
        if len(self.encoders) == 1:
            return method
        # The last part of a name is enough where no other encoder's is the same.
        short = Path(encoder).name
        if not short or [Path(other).name for other in self.encoders].count(short) > 1:
            short = encoder
        return short if len(self.methods) == 1 else f"{short}, {method}"


def compare(
    work: Work,
    methods: Sequence[str],
    out: Path,
    *,
    encoders: Sequence[str] = (),
    seeds: int = 3,
    progress: Progress | None = None,
    start: Start | None = None,
    engine: Engine | None = None,
) -> Comparison:
    """Run every method of every encoder with every seed, seed by seed, so that a slower machine slows all of them.

    What fails, or lacks a package, is left out from then on, and the rest goes on. Ctrl-C ends the comparison with the
    runs that are finished.

    Args:
        work: see `methods.work_on`.
        methods: names of :data:`ytuning.compare.methods.METHODS`.
        out: folder where finished runs are kept; those of the same rows, settings and versions are not run again.
        encoders: two or more names or folders; default: the one of ``work``.
        seeds: number of them, from 0.
        progress: is told what goes on.
        start: runs a method; default: :func:`in_own_process`. Not with ``engine``.
        engine: workers that do the runs, each of them one run at a time; None: one run after the other here. Seconds
            and memory of runs on several workers are measured beside each other.

    Raises:
        InputError: a method is unknown, two encoders are the same, ``out`` cannot be written, another process compares
            into it, or workers would compute otherwise than this process.
        EncoderError: an encoder cannot be loaded, which is found before any run.
        MissingExtraError: Ray is not installed.
        YTuningError: no method could be run.
    """
    check_methods(methods)
    if start is not None and engine is not None:
        raise ValueError("both an engine and what runs a method are given; give one of them")
    progress = progress or Progress()
    if encoders:
        check_encoders(encoders)
    names = list(encoders) or [work.encoder]
    digests = _encoder_digests(names)
    comparison = Comparison(replace(work, encoder=names[0]), names, list(methods), list(range(seeds)), [], {}, False)
    with _only_process(out):
        runs = _Runs(comparison, digests, out, progress)
        try:
            if engine is None:
                _run_in_turn(runs, start or in_own_process)
            else:
                _run_on_engine(runs, engine)
        except KeyboardInterrupt:
            if not runs.finished:
                raise
            return runs.comparison(interrupted=True)
        return runs.comparison(interrupted=False)


def some_rows(dataset: Dataset, most: int) -> Dataset:
    """At most so many rows of a data set, drawn at random, always the same ones; of each label two or more.

    Raises:
        InputError: the labels need more rows.
    """
    if most >= len(dataset):
        return dataset
    order = np.random.default_rng(0).permutation(len(dataset))
    chosen: list[int] = []
    names, met = KINDS[dataset.kind].label_names(labels_of(dataset)), Counter[str]()
    for row in order.tolist():
        if any(met[name] < FEWEST_OF_A_LABEL for name in names[row]):
            chosen.append(row)
            met.update(names[row])
    if len(chosen) > most:
        raise InputError(f"{parameter('rows')} must be at least {len(chosen)}, two of each label. Got {most} instead.")
    others = order[~np.isin(order, chosen)]
    drawn = dataset.select(sorted([*chosen, *others[: most - len(chosen)].tolist()]))
    return replace(drawn, left_out={**dataset.left_out, "rows not drawn": len(dataset) - most})


# --- the runs -------------------------------------------------------------------------------------------------------


class _Runs:
    """The runs of a comparison: those that are finished, and which contestants are left out.

    Attributes:
        given: the comparison, which has no runs yet.
        digests: the SHA-256 of each encoder's files, by its name.
        out: folder of the results.
        progress: is told what goes on.
        turns: seed and contestant of each run, in the order in which they are begun.
        finished: finished runs, by the number of their turn.
        skipped: why contestants are left out.
        ended: number of turns that need nothing more.
    """

    def __init__(self, comparison: Comparison, digests: dict[str, str], out: Path, progress: Progress) -> None:
        self.given, self.digests, self.out, self.progress = comparison, digests, out, progress
        self.turns = [(seed, contestant) for seed in comparison.seeds for contestant in comparison.contestants]
        self.finished: dict[int, Run] = {}
        self.skipped: dict[Contestant, str] = {}
        self.ended = 0
        self._rows = _rows_digest(comparison.work)
        if comparison.work.test is None:
            progress.say(
                "there is no test set (--test), so the scores are from the validation set, which also chose between "
                "heads and epochs. They are too optimistic"
            )

    def shown_name(self, turn: int) -> str:
        """What tells a run from the others."""
        seed, contestant = self.turns[turn]
        return f"{self.given.shown_name(contestant)}, seed {seed}"

    def is_kept(self, turn: int) -> bool:
        """Whether an earlier comparison has done a run."""
        return _read_run(*self._file(turn)) is not None

    def needs_nothing(self, turn: int) -> bool:
        """Whether a run need not be done: an earlier comparison has done it, or its contestant is left out."""
        if self.turns[turn][1] in self.skipped:
            self.ended += 1
            return True
        run = _read_run(*self._file(turn))
        if run is not None:
            self._add(turn, run)
        return run is not None

    def keep(self, turn: int, run: Run) -> None:
        """Take a run that was done, also to the disk."""
        file, key = self._file(turn)
        with write_errors(self.out, "--out"):
            commit(file, json.dumps({"key": key, "run": asdict(run)}, allow_nan=False).encode())
        self._add(turn, run)

    def leave_out(self, turn: int, reason: str) -> None:
        """Leave out the contestant of a run from now on."""
        contestant = self.turns[turn][1]
        self.ended += 1
        # Of several that ran at the same time, the first one is told.
        if contestant not in self.skipped:
            self.skipped[contestant] = reason
            self.progress.say(f"{self.given.shown_name(contestant)} is left out: {reason}")

    def comparison(self, *, interrupted: bool) -> Comparison:
        """The comparison with its runs.

        Raises:
            YTuningError: there is none.
        """
        if not self.finished:
            contestant, reason = next(iter(self.skipped.items()))
            what = "method" if len(self.given.encoders) == 1 else "encoder"
            raise YTuningError(f"no {what} could be run. {self.given.shown_name(contestant)}: {reason}")
        runs = [self.finished[turn] for turn in sorted(self.finished)]
        return replace(self.given, runs=runs, skipped=self.skipped, interrupted=interrupted)

    def _file(self, turn: int) -> tuple[Path, str]:
        """The file that keeps a run, and its key."""
        seed, (encoder, method) = self.turns[turn]
        key = _key(self.given.work, self.digests[encoder] + self._rows, method, seed)
        # The key is part of the name, so that runs with other rows or settings do not replace this one.
        return self.out / RUNS / f"{method}-{seed}-{key[:12]}.json", key

    def _add(self, turn: int, run: Run) -> None:
        # A finished run may be of the same encoder under another name.
        run = replace(run, encoder={**run.encoder, "name": self.turns[turn][1][0]})
        self.finished[turn] = run
        self.ended += 1
        metric = self.given.work.target.headlines[0]
        figures = f"{metric} {run.metrics[metric]:.4f}, {run.seconds:.1f} s"
        self.progress.step("compare", self.ended, len(self.turns), f"{self.shown_name(turn)}: {figures}")


def _run_in_turn(runs: _Runs, start: Start) -> None:
    """Do all runs that are left, one after the other."""
    for turn, (seed, (encoder, method)) in enumerate(runs.turns):
        if runs.needs_nothing(turn):
            continue
        told = _Told(runs.progress, runs.shown_name(turn), turn, len(runs.turns))
        try:
            run = _fresh(start, method, replace(runs.given.work, encoder=encoder), seed, runs.out / STORE, told)
        except Exception as error:
            # The others do not depend on this one, so any error leaves out this one only.
            runs.leave_out(turn, problem_of(error).message)
        else:
            runs.keep(turn, run)


def _run_on_engine(runs: _Runs, engine: Engine) -> None:
    """Do all runs that are left on the workers of an engine."""
    turns = range(len(runs.turns))
    left = [turn for turn in turns if not runs.is_kept(turn)]
    if not left and all(runs.needs_nothing(turn) for turn in turns):
        return
    # Workers of other machines do not see the folder of the results, and those of this one may have another folder.
    store = str((runs.out / STORE).absolute()) if engine.name == "local" else None
    place = {encoder: str(Path(encoder).absolute()) if Path(encoder).is_dir() else encoder for encoder in runs.digests}
    units = [
        RunUnit(turn, method, place[encoder], seed, store) for turn, (seed, (encoder, method)) in enumerate(runs.turns)
    ]
    methods, digests = tuple(runs.given.methods), {place[name]: digest for name, digest in runs.digests.items()}
    work = CompareWork(runs.given.work, tuple(digests), methods)
    try:
        with open_workers(engine, work, units=len(left), progress=runs.progress) as scheduler:
            check_same_results(scheduler, compared_with(digests, methods))
            for end in scheduler.run(units, lambda unit: runs.needs_nothing(unit.turn), lambda rows: None):
                turn = end.unit.turn
                if isinstance(end, GivenUp):
                    runs.leave_out(turn, end.problem.message)
                elif isinstance(end, Finished):
                    for message in end.result.messages:
                        runs.progress.say(f"{runs.shown_name(turn)}: {message}")
                    if end.result.run is None:
                        runs.leave_out(turn, end.result.reason)
                    else:
                        runs.keep(turn, replace(end.result.run, workers=min(engine.workers, len(left))))
    finally:
        shutil.rmtree(runs.out / STORE, ignore_errors=True)


class _Told(Progress):
    """A run's reports as parts of those of the whole comparison."""

    def __init__(self, progress: Progress, run: str, done: int, total: int) -> None:
        self._progress, self._run, self._done, self._total = progress, run, done, total

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._progress.step("compare", self._done, self._total, f"{self._run}: {stage} {done:,}/{total:,} {note}")

    def say(self, message: str) -> None:
        self._progress.say(f"{self._run}: {message}")


def _fresh(start: Start, name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
    """Start a run with an empty store and remove the store at the end."""
    # A comparison that was killed may have left its store.
    shutil.rmtree(store, ignore_errors=True)
    try:
        return start(name, work, seed, store, progress)
    finally:
        shutil.rmtree(store, ignore_errors=True)


# --- finished runs --------------------------------------------------------------------------------------------------


def _encoder_digests(names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each encoder's files by its name; each is loaded, so that no run starts if one cannot be.

    Raises:
        InputError: two names are of the same encoder.
        EncoderError: an encoder cannot be loaded.
    """
    digests: dict[str, str] = {}
    for name in names:
        own = encoder_digest(name)
        for other, known in digests.items():
            if known == own:
                problem = f"{parameter('encoders')} names one encoder twice: {other!r} and {name!r} have the same files"
                raise InputError(f"{problem}. Leave one of them out")
        digests[name] = own
    for name in names:
        load_encoder(name)
    return digests


def _rows_digest(work: Work) -> str:
    """Return the SHA-256 of the rows, which are the same for all methods and encoders."""
    digest = hashlib.sha256()
    for part in (work.train, work.validation, work.test):
        rows = None if part is None else [part.inputs, list(labels_of(part)), part.groups]
        digest.update(json.dumps([rows, work.target.to_json()]).encode())
    return digest.hexdigest()


def _key(work: Work, digest: str, name: str, seed: int) -> str:
    """Return the key of a run. Two runs with the same key would have the same result."""
    code = versions(*METHOD_PACKAGES.get(name, ()))
    settings = [work.epochs, work.search_rates] if name in TUNINGS else []
    return hashlib.sha256(json.dumps([digest, code, settings, name, seed]).encode()).hexdigest()


def _read_run(file: Path, key: str) -> Run | None:
    """The run that a file holds, if it is whole and of this key."""
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        return Run(**content["run"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _only_process(out: Path) -> Iterator[None]:
    """Make the folders and be the one process that compares into them; the system frees the lock of a killed one.

    A second one would remove the store of the run that the first is at, and measure times and memory beside it.
    """
    lock = filelock.FileLock(out / LOCK_FILE)
    with write_errors(out, "--out"):
        (out / RUNS).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            problem = f"another comparison is running in {out}. Wait until it has ended, then give the command again"
            raise InputError(f"{problem}, or choose another folder with --out") from None
    try:
        yield
    finally:
        lock.release()

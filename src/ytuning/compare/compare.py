"""Methods and encoders one after the other on the same rows, each run in a process of its own, so that their peaks of
memory do not mix; finished runs are kept, and the same comparison goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ytuning.compare.methods import TUNINGS, Run, Work, check_encoders, check_methods, run_method
from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import KINDS
from ytuning.encoder.download import find_encoder, weights_hash
from ytuning.encoder.encoder import load_encoder
from ytuning.errors import InputError, YTuningError, naming_options, parameter, write_errors
from ytuning.progress import Progress
from ytuning.system.files import commit
from ytuning.system.machine import versions

__all__ = ["Comparison", "Contestant", "compare", "in_own_process", "some_rows"]

# The folder of results has a folder of finished runs, the current run's store, and the lock of the comparing process.
RUNS, STORE, LOCK_FILE = "runs", "working", "lock"
METHOD_PACKAGES = {"lora": ["accelerate", "peft"], "setfit": ["datasets", "sentence-transformers", "setfit"]}
# A run depends on the encoder's configuration and tokenizer, which are files with these suffixes.
ENCODER_FILES = (".json", ".model", ".txt")
# A sample needs two rows of each label: one to train on and one to validate on.
FEWEST_OF_A_LABEL = 2
# A method's process reports its progress at most once in this many seconds.
PAUSE = 0.1

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
        start: runs a method; default: :func:`in_own_process`.

    Raises:
        InputError: a method is unknown, two encoders are the same, ``out`` cannot be written, or another process
            compares into it.
        EncoderError: an encoder cannot be loaded, which is found before any run.
        YTuningError: no method could be run.
    """
    check_methods(methods)
    start, progress = start or in_own_process, progress or Progress()
    if encoders:
        check_encoders(encoders)
    names = list(encoders) or [work.encoder]
    digests = _encoder_digests(names)
    comparison = Comparison(replace(work, encoder=names[0]), names, list(methods), list(range(seeds)), [], {}, False)
    with _only_process(out):
        return _compare(comparison, digests, out, progress, start)


def _compare(
    comparison: Comparison, digests: dict[str, str], out: Path, progress: Progress, start: Start
) -> Comparison:
    """What :func:`compare` does once no other process can use the folder; ``comparison`` has no runs yet."""
    work, rows = comparison.work, _rows_digest(comparison.work)
    metric = work.target.headlines[0]
    if work.test is None:
        progress.say(
            "there is no test set (--test), so the scores are from the validation set, which also chose between heads "
            "and epochs. They are too optimistic"
        )
    runs, skipped, interrupted = comparison.runs, comparison.skipped, False
    turns = [(seed, contestant) for seed in comparison.seeds for contestant in comparison.contestants]
    try:
        for number, (seed, contestant) in enumerate(turns):
            if contestant in skipped:
                continue
            encoder, method = contestant
            name = comparison.shown_name(contestant)
            key = _key(work, digests[encoder] + rows, method, seed)
            # The key is part of the name, so that runs with other rows or settings do not replace this one.
            file = out / RUNS / f"{method}-{seed}-{key[:12]}.json"
            run = _read_run(file, key)
            if run is None:
                told = _Told(progress, f"{name}, seed {seed}", number, len(turns))
                try:
                    run = _fresh(start, method, replace(work, encoder=encoder), seed, out / STORE, told)
                except Exception as error:
                    # The others do not depend on this one, so any error leaves out this one only.
                    skipped[contestant] = _reason(error)
                    progress.say(f"{name} is left out: {skipped[contestant]}")
                    continue
                with write_errors(out, "--out"):
                    commit(file, json.dumps({"key": key, "run": asdict(run)}, allow_nan=False).encode())
            # A finished run may be of the same encoder under another name.
            runs.append(replace(run, encoder={**run.encoder, "name": encoder}))
            figures = f"{metric} {run.metrics[metric]:.4f}, {run.seconds:.1f} s"
            progress.step("compare", number + 1, len(turns), f"{name}, seed {seed}: {figures}")
    except KeyboardInterrupt:
        if not runs:
            raise
        interrupted = True
    if not runs:
        contestant, reason = next(iter(skipped.items()))
        what = "method" if len(comparison.encoders) == 1 else "encoder"
        raise YTuningError(f"no {what} could be run. {comparison.shown_name(contestant)}: {reason}")
    return replace(comparison, interrupted=interrupted)


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


# --- one run --------------------------------------------------------------------------------------------------------


def in_own_process(name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
    """Call `methods.run_method` in a new process, which ends with this call.

    Raises:
        YTuningError: the run failed; the message says why.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, name, work, seed, store), daemon=True)
    with _deaf_children():
        process.start()
    theirs.close()
    try:
        while True:
            what, *content = ours.recv()
            if what == "step":
                progress.step(*content)
            elif what == "say":
                progress.say(*content)
            elif what == "failed":
                raise YTuningError(*content)
            else:
                process.join(timeout=10)
                run: Run = content[0]
                return run
    except EOFError:
        process.join()
        killed = process.exitcode == -9
        how = "was killed, perhaps for its memory" if killed else f"ended with status {process.exitcode}"
        raise YTuningError(f"its process {how}") from None
    finally:
        process.kill()
        process.join()
        ours.close()


def _serve(connection: Connection, name: str, work: Work, seed: int, store: Path) -> None:
    """What the new process does."""
    # Packages print to stdout, which is kept for results.
    os.dup2(2, 1)
    try:
        # The process that waits prints its messages for somebody who typed a command.
        with naming_options():
            run = run_method(name, work, seed, store, _Sent(connection))
    except Exception as error:
        # The waiting process reports the error.
        connection.send(("failed", _reason(error)))
    else:
        connection.send(("done", run))


class _Sent(Progress):
    """Reports for another process; steps not more often than anybody can read."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._last = connection, 0.0

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        if time.perf_counter() - self._last > PAUSE:
            self._last = time.perf_counter()
            self._connection.send(("step", stage, done, total, note))

    def say(self, message: str) -> None:
        self._connection.send(("say", message))


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


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started within do not hear Ctrl-C, which is for the one that waits for them.

    The signal is held back, not ignored, so that one that comes meanwhile is heard at the end.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # A child inherits the mask, and keeps it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reason(error: Exception) -> str:
    """Return an error's message as one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, YTuningError) else f"{type(error).__name__}: {text}".removesuffix(": ")


# --- finished runs --------------------------------------------------------------------------------------------------


def _encoder_digests(names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each encoder's files by its name; each is loaded, so that no run starts if one cannot be.

    Raises:
        InputError: two names are of the same encoder.
        EncoderError: an encoder cannot be loaded.
    """
    digests: dict[str, str] = {}
    for name in names:
        folder = find_encoder(name)
        digest = hashlib.sha256(weights_hash(folder, name).encode())
        for file in sorted(file for file in folder.iterdir() if file.suffix in ENCODER_FILES):
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        for other, known in digests.items():
            if known == digest.hexdigest():
                problem = f"{parameter('encoders')} names one encoder twice: {other!r} and {name!r} have the same files"
                raise InputError(f"{problem}. Leave one of them out")
        digests[name] = digest.hexdigest()
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

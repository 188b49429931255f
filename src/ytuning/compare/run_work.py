"""What a worker does for a comparison: it starts a process of its own for each run, as a comparison without workers."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ytuning.compare.methods import Run, Work
from ytuning.compare.own_process import in_own_process
from ytuning.encoder.download import find_encoder, weights_hash
from ytuning.engines.pool import problem_of
from ytuning.progress import CollectedMessages
from ytuning.system.machine import versions

__all__ = ["METHOD_PACKAGES", "CompareWork", "RunEnd", "RunUnit", "compared_with", "encoder_digest"]

METHOD_PACKAGES = {"lora": ["accelerate", "peft"], "setfit": ["datasets", "sentence-transformers", "setfit"]}
# A run depends on the encoder's configuration and tokenizer, which are files with these suffixes.
ENCODER_FILES = (".json", ".model", ".txt")


@dataclass(frozen=True)
class RunUnit:
    """A run that a worker shall do.

    Attributes:
        turn: number of the run in the comparison.
        method: its name.
        encoder: name of the encoder, or its folder.
        seed: its seed.
        store: folder for its features; None: a temporary one of the worker's machine.
    """

    turn: int
    method: str
    encoder: str
    seed: int
    store: str | None


@dataclass(frozen=True)
class RunEnd:
    """What became of a run.

    Attributes:
        run: the run; None if it has failed.
        reason: why it has failed.
        messages: what it had to say.
    """

    run: Run | None
    reason: str
    messages: list[str]


@dataclass(frozen=True)
class CompareWork:
    """What the runs of a comparison share; see `pool.Work`.

    Attributes:
        work: rows and settings.
        encoders: names or folders of the compared encoders.
        methods: names of the compared methods.
    """

    work: Work
    encoders: tuple[str, ...]
    methods: tuple[str, ...]

    def start(self) -> _CompareWorker:
        """Find the encoders, whose files must be those of all workers.

        Raises:
            EncoderError: one cannot be found.
        """
        digests = {name: encoder_digest(name) for name in self.encoders}
        return _CompareWorker(self.work, compared_with(digests, self.methods))


class _CompareWorker:
    """Starts runs; see `pool.Worker`."""

    def __init__(self, work: Work, about: dict[str, Any]) -> None:
        self._work, self.about = work, about

    def __call__(self, unit: RunUnit, tell: Callable[[int], None]) -> RunEnd:
        """Do a run. One that fails is a result, too: another attempt would fail again."""
        said = CollectedMessages()
        try:
            with _store_of(unit) as store:
                work = replace(self._work, encoder=unit.encoder)
                return RunEnd(in_own_process(unit.method, work, unit.seed, store, said), "", said.messages)
        except Exception as error:
            return RunEnd(None, problem_of(error).message, said.messages)


@contextmanager
def _store_of(unit: RunUnit) -> Iterator[Path]:
    """A folder that nobody has written to, which is removed at the end."""
    parent = None
    if unit.store is not None:
        parent = Path(unit.store)
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ytuning-compare-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def compared_with(digests: dict[str, str], methods: tuple[str, ...]) -> dict[str, Any]:
    """What runs depend on beside the rows: the versions of packages, and the files of the encoders by their names."""
    packages = [package for method in methods for package in METHOD_PACKAGES.get(method, ())]
    return {**versions(*packages), **{f"encoder {name}": digest for name, digest in digests.items()}}


def encoder_digest(name: str) -> str:
    """The SHA-256 of the files of an encoder.

    Raises:
        EncoderError: the encoder cannot be found.
    """
    folder = find_encoder(name)
    digest = hashlib.sha256(weights_hash(folder, name).encode())
    for file in sorted(file for file in folder.iterdir() if file.suffix in ENCODER_FILES):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()

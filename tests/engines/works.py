"""Work for tests of engines, which their worker processes import: each unit says what becomes of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ytuning.batch.inputs import read_part
from ytuning.batch.predict_work import PartReport, PredictUnit, PredictWork, PredictWorker
from ytuning.data.places import open_folder
from ytuning.errors import DataError, InputError, WriteError


@dataclass(frozen=True)
class Unit:
    """Does something in its worker, after it has left a mark of its attempt in ``folder``."""

    number: int
    folder: str
    what: str = "return"
    first: int = 10**9
    """It does so in so many attempts, and then returns."""

    @property
    def attempts(self) -> int:
        return len(list(Path(self.folder).glob(f"{self.number}-*")))


class Loaded:
    """A worker that does what its units say."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about

    def __call__(self, unit: Unit, tell: Callable[[int], None]) -> int:
        attempt = unit.attempts
        (Path(unit.folder) / f"{unit.number}-{attempt}-{os.getpid()}").touch()
        tell(1)
        if attempt < unit.first:
            if unit.what == "raise":
                raise RuntimeError(f"unit {unit.number} cannot")
            if unit.what == "data":
                raise DataError("the text is missing.", source="rows.csv", row=7)
            if unit.what == "full":
                raise WriteError("cannot write out: no space left.")
            if unit.what == "refused":
                error = WriteError("cannot write s3://bucket/part: slow down.")
                error.may_pass = True
                raise error
            if unit.what == "exit":
                os._exit(3)
            if unit.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if unit.what == "wait":
                time.sleep(600)
        return unit.number * 2


@dataclass(frozen=True)
class Work:
    """Makes workers; ``refuse`` and ``exits`` say what happens at their start."""

    about: dict[str, Any] = field(default_factory=lambda: {"precision": "fp32"})
    refuse: str = ""
    exits: bool = False
    others: str = ""
    """File that the first worker makes; all others would compute in another precision."""
    bad_machine: str = ""
    """File that the first worker makes, and then it refuses; all others start later."""

    def start(self) -> Loaded:
        if self.exits:
            os._exit(1)
        if self.refuse:
            raise InputError(self.refuse)
        if self.bad_machine:
            try:
                Path(self.bad_machine).touch(exist_ok=False)
            except FileExistsError:
                time.sleep(2)
            else:
                raise InputError("there is no encoder here")
        if self.others:
            try:
                Path(self.others).touch(exist_ok=False)
            except FileExistsError:
                return Loaded({**self.about, "precision": "bf16"})
        return Loaded(self.about)


@dataclass(frozen=True)
class Trapped:
    """Prediction whose worker dies at a row with one text."""

    work: PredictWork
    text: str

    def start(self) -> TrappedWorker:
        return TrappedWorker(self.work.start(), self.text)


class TrappedWorker:
    def __init__(self, worker: PredictWorker, text: str) -> None:
        self._worker, self._text, self.about = worker, text, worker.about

    def __call__(self, given: PredictUnit, tell: Callable[[int], None]) -> PartReport:
        for table, _ in read_part(open_folder(given.input), given.unit.path, given.unit.part, ["text"]):
            if self._text in table.cells("text"):
                os.kill(os.getpid(), signal.SIGKILL)
        return self._worker(given, tell)

"""The plan of a run: what is computed, the units, and the names of their parts.

A unit is a range of rows of an input file. The name of its part follows from its content: the file and the range, what
the tasks are and what is asked of them. So a part that is there is done, whoever has written it, and two workers that
compute one unit write the same file.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

from ytuning.batch.inputs import WINDOW_ROWS, InputFile, Part, parts_of, rows_of, signature_of
from ytuning.data.files import suffix_of
from ytuning.data.labels import list_names
from ytuning.data.places import RECORDS, Folder, FoundFile
from ytuning.engines.pool import Problem
from ytuning.errors import DataError, InputError, argument, parameter, quantity, wrong_schema

__all__ = [
    "COUNTED_BYTES", "MOST_UNIT_ROWS", "PLAN_FILE", "BadRows", "FailedUnit", "Job", "PartFormat", "Plan", "Scores",
    "Unit", "at_once", "check_rows", "check_unchanged", "choose_unit_rows", "largest_first", "plan_files", "read_plan",
]  # fmt: skip

SCHEMA = 1
PLAN_FILE = f"{RECORDS}/plan.json"
Scores = Literal["all", "top", "none"]
PartFormat = Literal["parquet", "jsonl"]
BadRows = Literal["fail", "null"]
# About this number of units is enough for any number of workers that a small input is worth.
FEW_UNITS = 64
# The most rows of a unit, which take a core one to two minutes with a small encoder.
MOST_UNIT_ROWS = 24 * WINDOW_ROWS
# Of an input with more bytes the rows are not counted before they are divided.
COUNTED_BYTES = 256 << 20
# Files that are read at once while the plan is made: an object store answers each of them slowly.
PLANNING_THREADS = 16

One = TypeVar("One")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """What is computed of every row.

    Attributes:
        tasks: name and digest of each task, in order.
        encoders: fingerprints of the encoders, which cover the precision.
        text, text_pair: columns of the texts; ``text_pair`` is None for single texts.
        keep: columns of the input that the parts have, each with its type: one of `columns.kept_type`, or of Arrow.
        scores: which probabilities the parts have.
        format: format of the parts.
        bad_rows: what happens with a row whose text is missing or no text. It does not change the name of a part. Those
            with empty answers stay, also in a later run with "fail".
        cascade: share of the answers that light heads may change; None: default heads answer alone.
    """

    tasks: tuple[tuple[str, str], ...]
    encoders: tuple[str, ...]
    text: str
    text_pair: str | None
    keep: tuple[tuple[str, str], ...]
    scores: Scores
    format: PartFormat
    bad_rows: BadRows
    cascade: float | None

    @property
    def digest(self) -> str:
        """Hash of all of it but ``bad_rows``."""
        return _digest({name: value for name, value in asdict(self).items() if name != "bad_rows"})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Job:
        """The inverse of `dataclasses.asdict`, after JSON has made lists of tuples."""
        pairs = {name: tuple((first, second) for first, second in content[name]) for name in ("tasks", "keep")}
        return cls(**{**content, **pairs, "encoders": tuple(content["encoders"])})


@dataclass(frozen=True)
class Unit:
    """Some rows of one file, which one worker answers and writes as one part.

    Attributes:
        number: place in the plan, from 0.
        name: name of its part, without folder.
        path: path of the file within the folder of the input.
        part: the rows.
    """

    number: int
    name: str
    path: str
    part: Part


@dataclass(frozen=True)
class FailedUnit:
    """A unit that was given up.

    Attributes:
        unit: number in the plan.
        part: name of the part that is missing.
        file: path of the file of the input.
        first_row: number of its first row in the file, from 1.
        rows: how many rows it has; None if nobody has counted them.
        attempts: how often it was tried.
        why: the reason of the last attempt.
    """

    unit: int
    part: str
    file: str
    first_row: int
    rows: int | None
    attempts: int
    why: str

    @classmethod
    def of(cls, unit: Unit, problem: Problem, attempts: int) -> FailedUnit:
        """A unit with the problem that it was given up for."""
        part = unit.part
        return cls(unit.number, unit.name, unit.path, part.before + 1, part.rows, attempts, problem.message)


@dataclass(frozen=True)
class Plan:
    """The units of a run.

    Attributes:
        job: what is computed.
        unit_rows: the most rows of a unit.
        files: files of the input with their parts, in order.
        about: versions of the software that made the plan, for the record.
    """

    job: Job
    unit_rows: int
    files: tuple[tuple[InputFile, tuple[Part, ...]], ...]
    about: dict[str, str]

    @property
    def units(self) -> list[Unit]:
        """All units, in the order of the input."""
        units: list[Unit] = []
        job = self.job.digest
        for file, parts in self.files:
            for part in parts:
                content = [job, file.path, file.size, file.signature, part.start, part.stop]
                name = f"part-{len(units):06d}-{_digest(content)[:12]}.{self.job.format}"
                units.append(Unit(len(units), name, file.path, part))
        return units

    def to_bytes(self) -> bytes:
        """The content of ``plan.json``."""
        files = [{**asdict(file), "parts": [part.to_json() for part in parts]} for file, parts in self.files]
        content = {"schema": SCHEMA, "job": asdict(self.job), "unit_rows": self.unit_rows, "about": self.about}
        return (json.dumps({**content, "files": files}, ensure_ascii=False) + "\n").encode()

    def check_job(self, job: Job) -> None:
        """Refuse to go on with another job in the same folder.

        Raises:
            InputError: it differs; the message says in what.
        """
        if differing := list(_differences(self.job, job)):
            raise _other_run("; ".join(differing))

    def check_files(self, folder: Folder, files: Sequence[FoundFile], unit_rows: int | None) -> None:
        """Refuse to go on with another input; further files may come after those of the plan.

        Args:
            folder: folder of the input.
            files: all files of the input, sorted.
            unit_rows: rows of a unit that are asked for; None: those of the plan.

        Raises:
            InputError: a file of the plan is missing or has changed, a new one is not after the others, or units have
                other rows.
        """
        if unit_rows not in (None, self.unit_rows):
            raise _other_run(f"{argument('unit_rows', self.unit_rows)}, now {argument('unit_rows', unit_rows)}")
        there, known = {file.path: file for file in files}, [file.path for file, _ in self.files]
        if gone := [path for path in known if path not in there]:
            raise _other_input(f"{list_names(gone)} of the plan {'are' if len(gone) > 1 else 'is'} missing")
        if early := [path for path in there if known and path not in set(known) and path < known[-1]]:
            come = "come" if len(early) > 1 else "comes"
            problem = f"{list_names(early)} {come} before files that are planned, in the order of their paths. "
            raise InputError(f"{problem}Answer new files alone, into another folder with {argument('output')}.")
        now = at_once(lambda file: signature_of(folder, file), [there[path] for path in known])
        if changed := [file.path for (file, _), one in zip(self.files, now, strict=True) if file != one]:
            raise _other_input(f"{list_names(changed)} {'have' if len(changed) > 1 else 'has'} changed")


def choose_unit_rows(folder: Folder, files: Sequence[FoundFile]) -> int:
    """Rows of a unit for an input: so many that there are some dozens of units, but never more than two minutes' work.

    The number is a multiple of the rows that are answered at once, so that answers are those of ``ytuning predict``
    for the file as a whole.

    Raises:
        DataError: a file cannot be read.
    """
    if sum(file.size for file in files) > COUNTED_BYTES:
        return MOST_UNIT_ROWS
    rows = sum(count or 0 for count in at_once(lambda file: rows_of(folder, file), files))
    return max(WINDOW_ROWS, min(MOST_UNIT_ROWS, rows // FEW_UNITS // WINDOW_ROWS * WINDOW_ROWS))


def plan_files(folder: Folder, files: Sequence[FoundFile], unit_rows: int) -> list[tuple[InputFile, tuple[Part, ...]]]:
    """Files with their parts; raises what `inputs.parts_of` does."""
    return at_once(lambda file: (signature_of(folder, file), tuple(parts_of(folder, file, unit_rows))), files)


def largest_first(units: Sequence[Unit]) -> list[Unit]:
    """Units with the small ones last, so that workers end together; those of about one size in any order.

    That order differs from run to run, so that two runs over the same files seldom compute one unit at the same time.
    """
    # Parts of Parquet have rows, others have bytes.
    largest: dict[str, int] = {}
    for unit in units:
        ending = suffix_of(unit.path)[0]
        largest[ending] = max(largest.get(ending, 1), unit.part.stop - unit.part.start)
    shuffled = random.SystemRandom().sample(units, len(units))
    return sorted(
        shuffled,
        key=lambda unit: 4 * largest[suffix_of(unit.path)[0]] // max(1, unit.part.stop - unit.part.start),
    )


def check_unchanged(folder: Folder, file: InputFile) -> None:
    """Refuse a file that is not the one that was planned.

    Raises:
        DataError: it has changed or is gone.
    """
    size = folder.size(file.path)
    if size is None or signature_of(folder, FoundFile(file.path, size)) != file:
        raise DataError("the file has changed since it was planned. Restore it.", source=folder.name_of(file.path))


def check_rows(unit: Unit, folder: Folder, rows: int) -> None:
    """Refuse rows that are not as many as were planned.

    Raises:
        DataError: the file has changed.
    """
    if unit.part.rows not in (None, rows):
        first = unit.part.before + 1
        problem = f"the file has changed since it was planned: {unit.part.rows} rows from row {first} on "
        raise DataError(f"{problem}are {rows} now. Restore it.", source=folder.name_of(unit.path))


def read_plan(folder: Folder) -> Plan | None:
    """The plan in an output folder; None where there is none.

    Raises:
        InputError: it is damaged or of another schema, or the folder has files and no plan.
    """
    other = f"Choose another folder with {argument('output')}."
    # An interrupt may have left an object without bytes.
    if not folder.size(PLAN_FILE):
        if files := folder.files():
            problem = f"{folder.name} is not empty ({quantity(len(files), 'file')}) and has no plan of a run. "
            raise InputError(problem + other)
        return None
    name = folder.name_of(PLAN_FILE)
    try:
        content = json.loads(folder.read(PLAN_FILE))
        if content["schema"] != SCHEMA:
            raise InputError(wrong_schema(name, content["schema"], SCHEMA, other))
        planned = tuple(
            (InputFile(file["path"], file["size"], file["signature"]), tuple(Part(*part) for part in file["parts"]))
            for file in content["files"]
        )
        _check_parts(planned)
        return Plan(Job.from_json(content["job"]), content["unit_rows"], planned, content["about"])
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name} is damaged ({type(error).__name__}: {error}). {other}") from error


def _check_parts(planned: Sequence[tuple[InputFile, tuple[Part, ...]]]) -> None:
    """Refuse parts that are not one after the other, and files that are there twice.

    Raises:
        ValueError: they are.
    """
    if len({file.path for file, _ in planned}) < len(planned):
        raise ValueError("a file is there twice")
    for file, parts in planned:
        numbers = [number for part in parts for number in (part.start, part.stop, part.before)]
        if not all(type(number) is int for number in [file.size, *numbers]):
            raise ValueError(f"parts of {file.path} have places that are no whole numbers")
        if any(one.stop != other.start for one, other in pairwise(parts)):
            raise ValueError(f"parts of {file.path} do not follow each other")


def at_once(function: Callable[[One], Result], items: Sequence[One]) -> list[Result]:
    """What a function gives for each item, in their order; many at a time, as an object store answers slowly."""
    # Threads have no context of their own, and messages depend on it. One cannot be entered twice at once.
    contexts = [copy_context() for _ in items]
    with ThreadPoolExecutor(PLANNING_THREADS) as pool:
        return list(pool.map(lambda context, item: context.run(function, item), contexts, items))


def _differences(before: Job, now: Job) -> Iterator[str]:
    """In what two jobs differ, as their user knows it."""
    for name, old in vars(before).items():
        new = getattr(now, name)
        if old == new or name == "bad_rows":
            continue
        if name == "tasks":
            yield _other_tasks(dict(old), dict(new))
        elif name == "encoders":
            yield "another encoder, or the same one in another precision"
        elif name == "keep":
            columns = [",".join(column for column, _ in one) or "none" for one in (old, new)]
            if columns[0] == columns[1]:
                yield "other types of the columns to keep"
            else:
                yield f"{argument(name, columns[0])}, now {argument(name, columns[1])}"
        else:
            given = [f"no {parameter(name)}" if one is None else argument(name, one) for one in (old, new)]
            yield f"{given[0]}, now {given[1]}"


def _other_tasks(before: dict[str, str], now: dict[str, str]) -> str:
    if list(before) == list(now):
        changed = [name for name, digest in now.items() if before[name] != digest]
        return f"{list_names(changed)} of another training"
    return f"the tasks {list_names(list(before))}, now {list_names(list(now))}"


def _other_run(differing: str) -> InputError:
    return InputError(
        f"the output folder belongs to another run. It was started with {differing}. Give the same tasks and options "
        f"to go on with it, or another folder with {argument('output')}."
    )


def _other_input(problem: str) -> InputError:
    return InputError(
        f"the input is not the one that the output folder was started with: {problem}. Restore the input, or choose "
        f"another folder with {argument('output')}."
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()

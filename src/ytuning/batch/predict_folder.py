"""Prediction over folders of files: plan the units, let an engine run them, and say what became of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack, get_args

from ytuning.batch.columns import KEPT_TYPES, kept_type
from ytuning.batch.inputs import InputFile, Part, find_readable, head_of, no_rows
from ytuning.batch.plan import (
    PLAN_FILE,
    BadRows,
    FailedUnit,
    Job,
    PartFormat,
    Plan,
    Scores,
    Unit,
    at_once,
    choose_unit_rows,
    largest_first,
    plan_files,
    read_plan,
)
from ytuning.batch.predict_work import PartReport, PredictUnit, PredictWork, read_task_files
from ytuning.batch.rows_bar import RowsBar
from ytuning.data.columns import Role, common_columns
from ytuning.data.files import suffix_of
from ytuning.data.labels import did_you_mean, list_names, quote
from ytuning.data.places import RECORDS, Folder, FoundFile, names_inside, open_folder
from ytuning.data.tables import Table
from ytuning.engines.engine import Engine, EngineName
from ytuning.engines.pool import Problem
from ytuning.engines.schedule import Finished, GivenUp, Scheduler, Skipped
from ytuning.engines.workers import open_workers
from ytuning.errors import DataError, InputError, YTuningError, argument, must_be_one_of, parameter, quantity
from ytuning.progress import Progress
from ytuning.system.machine import require

__all__ = ["BatchRun", "PredictKeywords", "predict_folder"]

SUCCESS_FILE, SUMMARY_FILE, FAILED_FOLDER = "_SUCCESS", f"{RECORDS}/summary.json", f"{RECORDS}/failed"
ALL, NONE = "all", "none"
# A file that another machine has written is there after this time.
LATE_SECONDS = 65.0


class PredictKeywords(TypedDict, total=False):
    """What is computed of each row, and how parts look; all of it is left out by default.

    Attributes:
        text, text_pair: columns of the texts; those that the tasks were trained on.
        keep: columns of the input that the parts have: names, "all" (the default) or "none".
        scores: "top" (the default): the probability of each answer; "all": those of all labels; "none".
        format: "parquet" (the default) or "jsonl".
        unit_rows: the most rows of a unit; chosen by the size of the input.
        bad_rows: "fail" (the default): a row without a text fails its unit; "null": its answers are empty.
        encoder, device, cascade: as of `tasks.predictor.Predictor`.
    """

    text: str | None
    text_pair: str | None
    keep: Sequence[str] | str
    scores: Scores
    format: PartFormat
    unit_rows: int | None
    bad_rows: BadRows
    encoder: str | None
    device: str | None
    cascade: float | None


@dataclass(frozen=True)
class _Asked:
    """The keywords with their defaults, checked."""

    text: str | None = None
    text_pair: str | None = None
    keep: Sequence[str] | str = ALL
    scores: Scores = "top"
    format: PartFormat = "parquet"
    unit_rows: int | None = None
    bad_rows: BadRows = "fail"
    encoder: str | None = None
    device: str | None = None
    cascade: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("scores", Scores), ("format", PartFormat), ("bad_rows", BadRows)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(must_be_one_of(parameter(name), getattr(self, name), get_args(choices)))
        if self.unit_rows is not None and self.unit_rows < 1:
            raise InputError(f"{parameter('unit_rows')} must be at least 1. Got {self.unit_rows} instead.")

    @property
    def named(self) -> dict[Role, str | None]:
        """The columns of texts that the user names, by their roles."""
        return {"text": self.text, "text_pair": self.text_pair}


@dataclass(frozen=True)
class BatchRun:
    """What became of a run.

    Attributes:
        output: address of the output folder.
        units: units of the plan.
        skipped: units that were done before, or by another run meanwhile.
        rows: rows that this run has answered.
        bad_rows: rows without a text among them.
        blank_rows: rows among them whose text has no character but white space.
        truncated: texts that were cut, by task.
        answers: rows of each label, by task; None stands for an abstention.
        failed: units that were given up.
        seconds: seconds of the run, and of its parts: until the first worker was ready, and of the units.
    """

    output: str
    units: int
    skipped: int
    rows: int
    bad_rows: int
    blank_rows: int
    truncated: dict[str, int]
    answers: dict[str, dict[str | None, int]]
    failed: list[FailedUnit]
    seconds: dict[str, float] = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """What ``ytuning predict --json`` prints of a run."""
        answers = {
            task: {
                "abstained": counts.get(None, 0),
                "labels": {name: n for name, n in counts.items() if name is not None},
            }
            for task, counts in self.answers.items()
        }
        return {
            **{
                name: getattr(self, name)
                for name in ("output", "units", "skipped", "rows", "bad_rows", "blank_rows", "truncated")
            },
            "answers": answers,
            "failed": [vars(unit) for unit in self.failed],
            "seconds": self.seconds,
        }


def predict_folder(
    tasks: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    input: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    engine: EngineName = "local",
    workers: int = 1,
    attempts: int = 3,
    worker_cpus: int | None = None,
    worker_gpus: float = 0,
    address: str | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[PredictKeywords],
) -> BatchRun:
    """Answer all rows of files and folders, also of those in an object store; the answers are files of a folder.

    Parts that are in the output folder already are left alone, so the same call again does what is missing.

    Args:
        tasks: folders of trained tasks.
        input: path or address of a file, a folder or a pattern of files; or several of them. Parquet, CSV, TSV and
            JSON lines, also .gz.
        output: path or address of a folder.
        engine: "local" for processes of this machine; "ray" for actors of a Ray cluster.
        workers: number of workers, each of which loads the encoder.
        attempts: times that a unit is tried.
        worker_cpus: processors of a worker; by default all of this machine are shared out, and with Ray it is 1.
        worker_gpus: graphics processors of a worker of Ray.
        address: address of a Ray cluster, or "auto"; by default Ray is started on this machine.
        progress: is told of the progress and of what the user should know.
        keywords: what is computed; see `PredictKeywords`.

    Raises:
        InputError: the input, the output or an option is wrong, or the output folder belongs to another run.
        WriteError: the output is full or broken; what was finished stays.
        MissingExtraError: pyarrow or Ray is not installed.
        YTuningError: workers do not start.
    """
    started, progress, asked = time.monotonic(), progress or Progress(), _Asked(**keywords)
    chosen = Engine(engine, workers, attempts, worker_cpus, worker_gpus, address)
    folders = [os.fspath(task) for task in ([tasks] if isinstance(tasks, str | os.PathLike) else tasks)]
    if not folders:
        raise InputError("there is no task. Give at least one task folder.")
    reading, files = find_readable(input, progress)
    writing = open_folder(output)
    if names_inside(input, writing, f"part-000000-000000000000.{asked.format}"):
        problem = f"the output folder {writing.name} lies in the input, so its files would be read as input later."
        raise InputError(f"{problem} Choose another folder with {argument('output')}.")
    before = read_plan(writing)
    if before is not None:
        # A changed input is reported before any worker starts.
        before.check_files(reading, files, asked.unit_rows)
    shipped = {folder: read_task_files(folder) for folder in folders} if engine == "ray" else None
    work = PredictWork(tuple(folders), shipped, asked.scores, asked.encoder, asked.device, asked.cascade)
    divided = _divide(before, asked, reading, files, progress)
    there = () if before is None else _whole_parts(before, writing, progress)
    left = sum(len(parts) for _, parts in divided.files) - len(there)
    with open_workers(chosen, work, units=left, progress=progress) as scheduler:
        about = scheduler.about()
        for note in about["notes"]:
            progress.say(note)
        ready = time.monotonic()
        plan = _plan(about, asked, before, divided, reading, files, writing)
        run = _Run(plan, reading, writing, progress, keeps_all=asked.keep == ALL)
        run.follow(scheduler)
    seconds = {"start": ready - started, "units": time.monotonic() - ready, "total": time.monotonic() - started}
    return run.finish({name: round(value, 3) for name, value in seconds.items()})


# --- the plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Divided:
    """Files with their parts, and the most rows of a part."""

    unit_rows: int
    files: tuple[tuple[InputFile, tuple[Part, ...]], ...]


def _divide(
    before: Plan | None, asked: _Asked, reading: Folder, files: list[FoundFile], progress: Progress
) -> _Divided:
    """Divide the files of the input, of which those of the plan keep their parts."""
    if before is None:
        unit_rows = asked.unit_rows or choose_unit_rows(reading, files)
        divided = _Divided(unit_rows, tuple(plan_files(reading, files, unit_rows)))
    else:
        planned = {file.path for file, _ in before.files}
        new = [file for file in files if file.path not in planned]
        if new:
            progress.say(f"{quantity(len(new), 'file')} of the input {'is' if len(new) == 1 else 'are'} new.")
        divided = _Divided(before.unit_rows, (*before.files, *plan_files(reading, new, before.unit_rows)))
    if empty := [file.path for file, parts in divided.files if not parts]:
        progress.say(f"{reading.name}: these files have no rows: {list_names(empty)}.")
    return divided


def _plan(
    about: dict[str, Any],
    asked: _Asked,
    before: Plan | None,
    divided: _Divided,
    reading: Folder,
    files: list[FoundFile],
    writing: Folder,
) -> Plan:
    """The plan of the output folder, made or extended where there is need, and written."""
    # The columns are those of the first file with rows, also when files are added, which come after the others.
    job = _job(about, asked, reading, files)
    if before is not None:
        before.check_job(job)
        if len(divided.files) == len(before.files):
            # What becomes of bad rows may change.
            return replace(before, job=job)
        writing.remove(SUCCESS_FILE)
    at_once(lambda file: _check_columns(job, reading, file), files)
    plan = Plan(job, divided.unit_rows, divided.files, about["versions"])
    if before is not None:
        writing.write(PLAN_FILE, plan.to_bytes())
        return plan
    writing.write_first(PLAN_FILE, plan.to_bytes())
    there = read_plan(writing)
    if there is None:
        return plan
    there.check_job(plan.job)
    if (there.unit_rows, there.files) != (plan.unit_rows, plan.files):
        problem = f"another run has begun in {writing.name} at this moment, with other files or units. "
        raise YTuningError(f"{problem}Run the command again to go on with its plan.")
    return replace(there, job=job)


def _job(about: dict[str, Any], asked: _Asked, reading: Folder, files: list[FoundFile]) -> Job:
    head = next((head for file in files if (head := head_of(reading, file)) is not None), None)
    if head is None:
        raise no_rows(reading, files)
    table = head if isinstance(head, Table) else Table(reading.name, 0, list(head.names), lambda name: [])
    known = {name: one for (name, _), one in zip(about["tasks"], about["known"], strict=True)}
    text, text_pair = common_columns(table, known, asked.named)
    keep = _keep(head, table, asked.keep, asked.format)
    if taken := [name for name in about["columns"] if name in dict(keep)]:
        raise InputError(
            f"the input has the columns {list_names(taken)} already, which are those of answers. Name the columns to "
            f"write with {argument('keep')}, without them, or rename the task."
        )
    return Job(
        tuple((name, digest) for name, digest in about["tasks"]),
        tuple(about["encoders"]),
        text,
        text_pair,
        keep,
        asked.scores,
        asked.format,
        asked.bad_rows,
        asked.cascade,
    )


def _keep(head: Any, table: Table, wanted: Sequence[str] | str, file_format: PartFormat) -> tuple[tuple[str, str], ...]:
    """The columns to keep, with their types."""
    if isinstance(wanted, str):
        names = {ALL: table.names, NONE: []}.get(wanted) if wanted not in table.names else [wanted]
        names = [name.strip() for name in wanted.split(",")] if names is None else names
    else:
        names = list(wanted)
    for name in names:
        if name not in table.names:
            hint = did_you_mean(name, table.names)
            raise DataError(
                f"{argument('keep')} names the column {quote(name)}, which is not there.{hint} The columns are "
                f"{list_names(table.names)}.",
                source=table.source,
            )
    names = list(dict.fromkeys(names))
    if twice := next((name for name in names if table.names.count(name) > 1), None):
        problem = (
            f"more than one column is named {quote(twice)}. Rename one of them, or name the columns to write with "
        )
        raise DataError(f"{problem}{argument('keep')}, without it.", source=table.source)
    if isinstance(head, Table):
        return tuple((name, kept_type(table.column(name).cells)) for name in names)
    types = require("pyarrow", "parquet").types
    for name in names:
        kind = head.field(name).type
        if file_format == "jsonl" and (types.is_binary(kind) or types.is_large_binary(kind)):
            problem = "JSON lines cannot have bytes. Name the columns to write with "
            raise DataError(
                f"{problem}{argument('keep')}, without this one, or write Parquet.", source=table.source, column=name
            )
    return tuple((name, str(head.field(name).type)) for name in names)


def _check_columns(job: Job, reading: Folder, file: FoundFile) -> None:
    """Refuse a file that lacks a column, or has another type in a column to keep.

    Raises:
        DataError: it does.
    """
    head = head_of(reading, file)
    if head is None:
        return
    schema: Any = None if isinstance(head, Table) else head
    wanted = [job.text, *([job.text_pair] if job.text_pair else [])]
    # A key of JSON lines may be missing in the first rows.
    wanted += [] if schema is None else [name for name, _ in job.keep]
    source = reading.name_of(file.path)
    if missing := [name for name in wanted if name not in head.names]:
        are = "the columns {} are" if len(missing) > 1 else "the column {} is"
        problem = f"{are.format(list_names(missing))} not there, which other files have. "
        raise DataError(
            f"{problem}The columns are {list_names(list(head.names))}. Rename them, or answer this file alone into "
            "another folder.",
            source=source,
        )
    for name, kind in job.keep:
        is_text = suffix_of(file.path)[0] in (".csv", ".tsv", ".tab")
        if schema is None and (kind not in KEPT_TYPES or (is_text and kind != KEPT_TYPES[0])):
            what = "the cells of CSV are text" if is_text else "the cells are those of JSON"
            problem = f"{what}, and {kind} in other files. "
            raise DataError(
                f"{problem}Name the columns to write with {argument('keep')}, without this one.",
                source=source,
                column=name,
            )
        if schema is not None and str(schema.field(name).type) != kind:
            problem = f"the column has the type {schema.field(name).type}, and {kind} in other files. "
            raise DataError(f"{problem}Leave it out with {argument('keep')}.", source=source, column=name)


def _whole_parts(plan: Plan, writing: Folder, progress: Progress) -> list[Unit]:
    """The units of a plan whose parts are there and can be read; damaged parts are removed.

    The user is told of these, and of parts that the plan does not have.
    """
    there, units = {file.path for file in writing.files() if file.size}, plan.units
    if foreign := sorted(name for name in there - {unit.name for unit in units} if name.startswith("part-")):
        progress.say(
            f"{writing.name} has parts that are not of this run, which readers of the folder would read: "
            f"{list_names(foreign)}. Remove them."
        )
    written = [unit for unit in units if unit.name in there]
    if writing.is_remote:
        # An object appears whole. A file can be cut by a disk that fails.
        return written
    whole = at_once(lambda unit: _is_whole(unit, writing), written)
    damaged = [unit for unit, is_whole in zip(written, whole, strict=True) if not is_whole]
    # Another run may have computed it again meanwhile.
    damaged = [unit for unit in damaged if not _is_whole(unit, writing)]
    for unit in damaged:
        writing.remove(unit.name)
    if damaged:
        names = list_names([unit.name for unit in damaged])
        progress.say(f"These parts are damaged, and are computed again: {names}.")
    return [unit for unit in written if unit not in damaged]


def _is_whole(unit: Unit, writing: Folder) -> bool:
    """Whether the file of a part ends as it should, and in Parquet has as many rows as were planned."""
    arrow = require("pyarrow", "parquet")
    try:
        if unit.name.endswith(".jsonl"):
            with writing.open(unit.name) as stream:
                stream.seek(-1, os.SEEK_END)
                return stream.read(1) == b"\n"
        with writing.open_arrow(unit.name) as stream:
            rows = require("pyarrow.parquet", "parquet").read_metadata(stream).num_rows
    except (OSError, DataError, arrow.ArrowException):
        return False
    return unit.part.rows in (None, rows)


# --- the run --------------------------------------------------------------------------------------------------------


class _Run:
    """A run in progress: which units are left, and what is known of those that have ended."""

    def __init__(self, plan: Plan, reading: Folder, writing: Folder, progress: Progress, *, keeps_all: bool) -> None:
        self._plan, self._reading, self._writing, self._progress = plan, reading, writing, progress
        self._keeps_all = keeps_all
        self._units = plan.units
        # Another run may have written more meanwhile.
        there = {file.path for file in writing.files() if file.size}
        writing.tidy()
        self._left = largest_first([unit for unit in self._units if unit.name not in there])
        self._report, self._skipped = PartReport(), len(self._units) - len(self._left)
        self._failed = list[FailedUnit]()
        if self._skipped and self._left:
            progress.say(f"{self._skipped:,} of {quantity(len(self._units), 'unit')} are done already.")
        if self._left:
            writing.remove(SUCCESS_FILE)
        self._bar = RowsBar(progress, "predict", self._left)

    def follow(self, scheduler: Scheduler) -> None:
        """Let all units be run that are left."""
        job, reading, writing = self._plan.job, self._reading.address, self._writing.address
        files = {file.path: file for file, _ in self._plan.files}
        given = [PredictUnit(unit, files[unit.path], job, reading, writing) for unit in self._left]
        for end in scheduler.run(given, self._is_done, self._bar.rows):
            unit = end.unit.unit
            if isinstance(end, GivenUp):
                self._give_up(unit, end.problem, end.attempts)
            else:
                if isinstance(end, Skipped):
                    self._skipped += 1
                else:
                    self._check_there(unit, end)
                    self._report += end.result
                self._writing.remove(f"{FAILED_FOLDER}/{unit.name}.json")
            self._bar.unit(unit)
        if self._keeps_all and (late := sorted(self._report.other_columns)):
            self._progress.say(
                f"These columns are not in the first rows of the input, and so not in the parts: {list_names(late)}. "
                "Add them to the first row, with an empty value, to keep them."
            )

    def finish(self, seconds: dict[str, float]) -> BatchRun:
        """Write the summary and, if nothing is missing, the file that says so."""
        report = self._report
        run = BatchRun(
            self._writing.name,
            len(self._units),
            self._skipped,
            report.rows,
            report.bad_rows,
            report.blank_rows,
            dict(report.truncated),
            {task: dict(counts.most_common()) for task, counts in report.answers.items()},
            sorted(self._failed, key=lambda unit: unit.unit),
            seconds,
        )
        self._writing.write(SUMMARY_FILE, (json.dumps(run.to_json(), ensure_ascii=False, indent=1) + "\n").encode())
        if not run.failed:
            self._writing.write(SUCCESS_FILE, b"")
        return run

    def _is_done(self, given: PredictUnit) -> bool:
        return bool(self._writing.size(given.unit.name))

    def _check_there(self, unit: Unit, end: Finished[PredictUnit]) -> None:
        """Refuse to go on where workers write to a folder that is not this one.

        Raises:
            InputError: the part is not here.
        """
        # A file system of a network may show a new file late.
        deadline = time.monotonic() + LATE_SECONDS
        while not self._is_done(end.unit) and time.monotonic() < deadline:
            self._writing.files()
            time.sleep(1)
        if not self._is_done(end.unit):
            raise InputError(
                f"a worker has written {unit.name}, but it is not in {self._writing.name} here. Give a folder that "
                f"all machines share, or an address in an object store, with {argument('output')}."
            )

    def _give_up(self, unit: Unit, problem: Problem, attempts: int) -> None:
        failed = FailedUnit.of(unit, problem, attempts)
        self._failed.append(failed)
        content = {**vars(failed), "details": problem.details}
        self._writing.write(f"{FAILED_FOLDER}/{unit.name}.json", (json.dumps(content, indent=1) + "\n").encode())
        self._progress.say(f"Unit {unit.number} is given up after {quantity(attempts, 'attempt')}: {problem.message}")

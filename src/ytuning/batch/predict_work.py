"""What a worker does for prediction: it answers the rows of a unit and writes them as one part."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ytuning.batch.columns import kept_array
from ytuning.batch.inputs import InputFile, read_part
from ytuning.batch.plan import Job, Scores, Unit, check_rows, check_unchanged
from ytuning.data.dataset import TextInput
from ytuning.data.files import names_like
from ytuning.data.places import open_folder
from ytuning.data.tables import Column, Table
from ytuning.errors import DataError, PathError, TaskFolderError, WriteError, argument
from ytuning.system.machine import keep_few_compiled_shapes, require, versions

__all__ = ["PartReport", "PredictUnit", "PredictWork", "PredictWorker", "read_task_files"]

# A part's rows are written when they have so many bytes, which then are a row group of Parquet.
GROUP_BYTES = 32 << 20
COMPRESSION = "zstd"
TASK_SUFFIXES = (".json", ".safetensors", ".md")


@dataclass(frozen=True)
class PredictUnit:
    """A unit with all that a worker needs to know for it.

    Attributes:
        unit: the unit.
        file: the file of its rows as it was planned.
        job: what is computed.
        input, output: addresses of the folders.
    """

    unit: Unit
    file: InputFile
    job: Job
    input: str
    output: str


@dataclass(frozen=True)
class PartReport:
    """What is known of a part that has been written.

    Attributes:
        rows: rows of it.
        bad_rows: rows without a text, whose answers are empty.
        blank_rows: rows with a text that has no character but white space.
        truncated: texts that were cut, by task.
        answers: rows of each label, by task; None stands for an abstention.
        other_columns: columns of the rows that are not kept.
    """

    rows: int = 0
    bad_rows: int = 0
    blank_rows: int = 0
    truncated: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Counter[str | None]] = field(default_factory=dict)
    other_columns: frozenset[str] = frozenset()

    def __add__(self, other: PartReport) -> PartReport:
        names = dict.fromkeys([*self.answers, *other.answers])
        # Unlike a sum of counters, this keeps tasks without such texts.
        truncated = Counter(self.truncated)
        truncated.update(other.truncated)
        return PartReport(
            rows=self.rows + other.rows,
            bad_rows=self.bad_rows + other.bad_rows,
            blank_rows=self.blank_rows + other.blank_rows,
            truncated=truncated,
            answers={name: self.answers.get(name, Counter()) + other.answers.get(name, Counter()) for name in names},
            other_columns=self.other_columns | other.other_columns,
        )


@dataclass(frozen=True)
class PredictWork:
    """The tasks that workers load.

    Attributes:
        folders: task folders, by path.
        files: content of their files by folder and name, for workers that may not see the folders; None: they do.
        scores, encoder, device, cascade: as of `batch_predictor.BatchPredictor`.
    """

    folders: tuple[str, ...]
    files: dict[str, dict[str, bytes]] | None
    scores: Scores
    encoder: str | None
    device: str | None
    cascade: float | None

    def start(self) -> PredictWorker:
        """Load the tasks and their encoders."""
        keep_few_compiled_shapes()
        if self.files is None:
            return PredictWorker(self, self.folders)
        with tempfile.TemporaryDirectory(prefix="ytuning-tasks-") as root:
            folders = [Path(root, str(number), Path(folder).name) for number, folder in enumerate(self.folders)]
            for folder, path in zip(self.folders, folders, strict=True):
                path.mkdir(parents=True)
                for name, content in self.files[folder].items():
                    (path / name).write_bytes(content)
            return PredictWorker(self, list(map(str, folders)))


class PredictWorker:
    """Loaded tasks; see `pool.Worker`."""

    def __init__(self, work: PredictWork, folders: Sequence[str]) -> None:
        from ytuning.batch.batch_predictor import BatchPredictor
        from ytuning.tasks.cascade import notes_on_cascades
        from ytuning.tasks.task import task_digest

        digests = [task_digest(folder) for folder in folders]
        self._predictor = BatchPredictor(
            folders, scores=work.scores, encoder=work.encoder, device=work.device, cascade=work.cascade
        )
        tasks = self._predictor.predictor.tasks
        cascades = {task.name: task.cascade for task in tasks}
        self.about: dict[str, Any] = {
            "tasks": [(task.name, digest) for task, digest in zip(tasks, digests, strict=True)],
            "encoders": sorted({task.encoder.fingerprint for task in tasks}),
            "known": [task.known for task in tasks],
            "columns": [field.name for field in self._predictor.fields],
            "notes": [] if work.cascade is None else notes_on_cascades(cascades, work.cascade),
            "versions": {**versions("pyarrow"), "machine": platform.machine()},
        }

    def __call__(self, given: PredictUnit, tell: Callable[[int], None]) -> PartReport:
        """Answer the rows of a unit and write its part.

        Raises:
            DataError: a row is wrong, or the file has changed since it was planned.
            WriteError: the part cannot be written.
        """
        try:
            return self._write_part(given, tell)
        except PathError as error:
            # So it would be for every unit.
            raise WriteError(str(error)) from error

    def _write_part(self, given: PredictUnit, tell: Callable[[int], None]) -> PartReport:
        reading, writing = open_folder(given.input), open_folder(given.output)
        report = PartReport()
        with writing.new(given.unit.name) as stream:
            part = _PartFile(stream, given)
            for table, rows in read_part(reading, given.unit.path, given.unit.part, _columns_to_read(given.job)):
                window, of_window = self._answer(given.job, table, rows)
                part.write(window)
                report += of_window
                tell(len(window))
            check_rows(given.unit, reading, report.rows)
            check_unchanged(reading, given.file)
            part.finish(report.rows)
        return report

    def _answer(self, job: Job, table: Table, rows: Any) -> tuple[Any, PartReport]:
        """The rows of a window as they are written, and what is known of them."""
        arrow = require("pyarrow", "parquet")
        inputs, good = _inputs_of(job, table)
        answers = self._predictor.answer(inputs)
        report = _report(answers, [name for name, _ in job.tasks], table.rows, table.rows - len(inputs))
        kept = [_kept(job, table, rows, name, kind) for name, kind in job.keep]
        if len(inputs) < table.rows:
            places = iter(range(len(inputs)))
            # Bad rows have no place among the answers, and so no answer.
            answers = answers.take(arrow.array([next(places) if is_good else None for is_good in good], arrow.int64()))
        names = [*(name for name, _ in job.keep), *answers.schema.names]
        window = arrow.RecordBatch.from_arrays([*kept, *answers.columns], names=names)
        blank = sum(not all(text is None or text.strip() for text in texts) for texts in inputs)
        others = frozenset(table.names) - {name for name, _ in job.keep}
        return window, replace(report, blank_rows=blank, other_columns=others)


def _report(answers: Any, tasks: Sequence[str], rows: int, bad_rows: int) -> PartReport:
    compute = require("pyarrow.compute", "parquet")
    truncated, labels = Counter[str](), dict[str, Counter[str | None]]()
    for task in tasks:
        truncated[task] = compute.sum(answers.column(f"{task}.truncated")).as_py() or 0
        if f"{task}.label" in answers.schema.names:
            counts = answers.column(f"{task}.label").value_counts().to_pylist()
            labels[task] = Counter({one["values"]: one["counts"] for one in counts})
    return PartReport(rows=rows, bad_rows=bad_rows, truncated=truncated, answers=labels)


def _columns_to_read(job: Job) -> list[str]:
    return list(dict.fromkeys([job.text, *([job.text_pair] if job.text_pair else []), *(name for name, _ in job.keep)]))


def _inputs_of(job: Job, table: Table) -> tuple[list[TextInput], list[bool]]:
    """The texts of rows, and which rows (rows,) have them; only where bad rows are allowed they may lack one.

    Raises:
        DataError: a text is missing or no text, and bad rows are not allowed.
    """
    columns = [(table.column(job.text), "text")]
    if job.text_pair is not None:
        columns.append((table.column(job.text_pair), "text pair"))
    if job.bad_rows == "fail":
        texts = [column.texts(what, blank=True) for column, what in columns]
        good = [True] * table.rows
    else:
        read = [
            [_text_or_none(column, row, cell, what) for row, cell in enumerate(column.cells, 1)]
            for column, what in columns
        ]
        good = [all(text is not None for text in texts) for texts in zip(*read, strict=True)]
        texts = [[text or "" for text, is_good in zip(of_column, good, strict=True) if is_good] for of_column in read]
    pairs: Sequence[str | None] = texts[1] if len(texts) > 1 else [None] * len(texts[0])
    return list(zip(texts[0], pairs, strict=True)), good


def _text_or_none(column: Column, row: int, cell: object, what: str) -> str | None:
    try:
        return column.text(row, cell, what, blank=True)
    except DataError:
        return None


def _kept(job: Job, table: Table, rows: Any, name: str, kind: str) -> Any:
    if rows is not None:
        return rows.column(name).combine_chunks()
    if name in table.names:
        return kept_array(table.column(name), kind, skip_broken=job.bad_rows == "null")
    # In JSON lines a key may be missing in all rows of a window.
    return kept_array(Column(table.source, name, [None] * table.rows, rows=table.row_numbers), kind)


class _PartFile:
    """A part while it is written."""

    def __init__(self, stream: IO[bytes], given: PredictUnit) -> None:
        self._stream, self._given = stream, given
        self._held, self._size = list[Any](), 0
        self._writer: Any = None

    def write(self, window: Any) -> None:
        self._held.append(window)
        self._size += window.nbytes
        if self._size >= GROUP_BYTES:
            self._flush()

    def finish(self, rows: int) -> None:
        """Write what is left; ``rows`` are all rows of the part."""
        self._flush()
        if self._writer is not None:
            self._writer.add_key_value_metadata({"ytuning": json.dumps({**_about(self._given), "rows": rows})})
            self._writer.close()

    def _flush(self) -> None:
        arrow = require("pyarrow", "parquet")
        if not self._held:
            return
        rows = arrow.Table.from_batches(self._held)
        self._held, self._size = [], 0
        if self._given.job.format == "jsonl":
            for line in _json_lines(rows, self._given.job):
                self._stream.write(line)
            return
        if self._writer is None:
            parquet = require("pyarrow.parquet", "parquet")
            self._writer = parquet.ParquetWriter(self._stream, rows.schema, compression=COMPRESSION)
        self._writer.write_table(rows, row_group_size=len(rows))


def _about(given: PredictUnit) -> dict[str, Any]:
    unit = given.unit
    return {"part": unit.name, "file": unit.path, "range": [unit.part.start, unit.part.stop], "job": given.job.digest}


def _json_lines(rows: Any, job: Job) -> Iterator[bytes]:
    opened = {name for name, kind in job.keep if kind == "json"}
    for row in rows.to_pylist():
        values = {
            name: json.loads(value) if name in opened and value is not None else value for name, value in row.items()
        }
        try:
            line = json.dumps(values, ensure_ascii=False, default=_as_text, allow_nan=False)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            # JSON has no number that is not finite.
            line = json.dumps(_finite(values), ensure_ascii=False, default=_as_text)
        yield line.encode(errors="backslashreplace") + b"\n"


def _finite(value: Any) -> Any:
    """A value of Arrow with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list) else value


def _as_text(value: object) -> str:
    """A date, a time or a decimal number of Arrow as JSON has it.

    Raises:
        DataError: JSON cannot have the value.
    """
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    problem = f"JSON lines cannot have a value of the type {type(value).__name__}. "
    raise DataError(f"{problem}Leave its column out with {argument('keep')}, or write Parquet.", source="a kept column")


def read_task_files(folder: str) -> dict[str, bytes]:
    """The content of the files of a task folder, by name; the workers check it.

    Raises:
        TaskFolderError: there is no such folder, or a file cannot be read.
    """
    try:
        files = sorted(file for file in Path(folder).iterdir() if file.suffix in TASK_SUFFIXES and file.is_file())
        return {file.name: file.read_bytes() for file in files}
    except OSError as error:
        problem = f"cannot read the task folder {folder}: {error.strerror or error}.{names_like(folder)}"
        raise TaskFolderError(f"{problem} Make one with: ytuning train DATA --out {folder}") from error

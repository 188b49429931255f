"""Encoding of files and folders into the feature store, by any number of workers.

The store itself says what is done: a text is encoded unless it is there. So a run that was interrupted goes on where it
was, several runs may work at once, and there is no plan to keep.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ytuning.batch.encode_work import EncodeReport, EncodeUnit, EncodeWork
from ytuning.batch.inputs import WINDOW_ROWS, find_readable, head_of, no_rows, rows_of
from ytuning.batch.plan import COUNTED_BYTES, MOST_UNIT_ROWS, FailedUnit, Unit, at_once, largest_first, plan_files
from ytuning.batch.rows_bar import RowsBar
from ytuning.data.columns import Known, Role, choose_columns
from ytuning.data.places import Folder, FoundFile, Inputs
from ytuning.data.tables import Table
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.engines.engine import Engine
from ytuning.engines.schedule import Finished, GivenUp
from ytuning.engines.workers import open_workers
from ytuning.errors import DataError, argument, quantity
from ytuning.heads.pairs import PairChoice
from ytuning.progress import Progress

__all__ = ["EncodeRun", "encode_folder"]

# Units of a worker, so that all workers end at about the same time. Each unit makes shards of its own.
UNITS_OF_A_WORKER = 4


@dataclass(frozen=True)
class EncodeRun:
    """What became of a run.

    Attributes:
        cache: folder of the feature store.
        encoder: fingerprint of the encoder.
        rows: rows that were read.
        stored: texts that were in the store before.
        encoded: texts that the encoder has read.
        failed: units that were given up.
        seconds: seconds of the run, and of its parts: until the first worker was ready, and of the units.
    """

    cache: str
    encoder: str
    rows: int
    stored: int
    encoded: int
    failed: list[FailedUnit]
    seconds: dict[str, float] = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """What ``ytuning encode --json`` prints."""
        return {**vars(self), "failed": [vars(unit) for unit in self.failed]}


def encode_folder(
    input: Inputs,
    encoder: str = DEFAULT_ENCODER,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    layers: Sequence[int] | None = None,
    pairs: PairChoice = "auto",
    codec: str = "int8",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    long_text: Literal["truncate", "window"] = "truncate",
    cache: str | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> EncodeRun:
    """Store the features of all texts of files and folders; a training on them then makes no encoder call.

    Args:
        input: path or address of a file, a folder or a pattern of files; or several of them.
        encoder: name or folder of the encoder.
        text: column of the texts; inferred as in training.
        text_pair: column of the second texts, if there is one.
        layers: numbers of the hidden states to keep; the default ones by default.
        pairs: how pairs are read; "auto" stores what a training that chooses between the two ways reads.
        codec: codec of the store.
        precision: as of `encoder.load_encoder`.
        long_text: as of `encoder.load_encoder`.
        cache: folder of the feature store; by default that of `features.store.FeatureStore`. With Ray all machines
            must share it.
        engine: workers; one process of this machine by default.
        progress: is told of the progress and of what the user should know.

    Raises:
        InputError: the input or an option is wrong.
        StoreError, WriteError: the store is full or cannot be written; what was stored stays.
        YTuningError: workers do not start.
    """
    started, progress, engine = time.monotonic(), progress or Progress(), engine or Engine()
    reading, files = find_readable(input, progress)
    chosen = _columns(reading, files, {"text": text, "text_pair": text_pair})
    units = largest_first(_units(reading, files, engine.workers))
    work = EncodeWork(encoder, precision, long_text, None if layers is None else tuple(layers), pairs, codec, cache)
    report, failed = EncodeReport(), list[FailedUnit]()
    with open_workers(engine, work, units=len(units), progress=progress) as scheduler:
        about = scheduler.about()
        ready, bar = time.monotonic(), RowsBar(progress, "encode", units)
        given = [EncodeUnit(unit, reading.address, *chosen) for unit in units]
        for end in scheduler.run(given, lambda _: False, bar.rows):
            if isinstance(end, GivenUp):
                failed.append(FailedUnit.of(end.unit.unit, end.problem, end.attempts))
                progress.say(f"Unit {end.unit.unit.number} is given up: {end.problem.message}")
            elif isinstance(end, Finished):
                report += end.result
            bar.unit(end.unit.unit)
    seconds = {"start": ready - started, "units": time.monotonic() - ready, "total": time.monotonic() - started}
    return EncodeRun(
        about["cache"],
        about["encoder"],
        report.rows,
        report.stored,
        report.encoded,
        sorted(failed, key=lambda unit: unit.unit),
        {name: round(value, 3) for name, value in seconds.items()},
    )


def _columns(reading: Folder, files: Sequence[FoundFile], named: dict[Role, str | None]) -> tuple[str, str | None]:
    """The columns of the texts, which every file with rows must have."""
    chosen: tuple[str, str | None] | None = None
    for file, head in zip(files, at_once(lambda file: head_of(reading, file), files), strict=True):
        if head is None:
            continue
        source = reading.name_of(file.path)
        table = head if isinstance(head, Table) else Table(source, 0, list(head.names), lambda name: [])
        columns = choose_columns(table, named, None, Known(), labelled=False)
        own = columns.text, columns.text_pair
        chosen = chosen or own
        if own != chosen:
            problem = f"the columns of the texts would be {own}, and {chosen} in other files. "
            raise DataError(f"{problem}Name them with {argument('text')} and {argument('text_pair')}.", source=source)
    if chosen is None:
        raise no_rows(reading, files)
    return chosen


def _units(reading: Folder, files: Sequence[FoundFile], workers: int) -> list[Unit]:
    rows = MOST_UNIT_ROWS
    if sum(file.size for file in files) <= COUNTED_BYTES:
        counts = [count or 0 for count in at_once(lambda file: rows_of(reading, file), files)]
        rows = max(WINDOW_ROWS, min(MOST_UNIT_ROWS, -(-sum(counts) // (UNITS_OF_A_WORKER * workers))))
    planned = plan_files(reading, files, rows)
    parts = [(file.path, part) for file, of_file in planned for part in of_file]
    return [
        Unit(number, f"{path}, {quantity(part.rows or 0, 'row')}", path, part)
        for number, (path, part) in enumerate(parts)
    ]

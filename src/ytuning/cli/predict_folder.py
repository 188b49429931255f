"""``ytuning predict`` over folders: its options, and what it prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console

from ytuning.cli import console
from ytuning.cli.options import EngineName, help_group, worker_options
from ytuning.errors import InputError, YTuningError, quantity

if TYPE_CHECKING:
    from ytuning.batch.predict_folder import BatchRun

__all__ = [
    "Address", "Attempts", "BadRowsOption", "EngineOption", "FolderOptions", "FormatOption", "Keep", "ScoresOption",
    "UnitRows", "WorkerCpus", "WorkerGpus", "Workers", "predict_into_folder",
]  # fmt: skip

FOLDERS = help_group("Folders of files (with --output FOLDER/)")
SHOWN_LABELS = 5
SHOWN_FAILED = 10

_ENGINE, _CPUS, _GPUS, _ADDRESS = worker_options(FOLDERS)
EngineOption = Annotated[EngineName | None, _ENGINE]
Workers = Annotated[
    int | None, FOLDERS("N", "Number of workers. Each one loads the encoder and takes unit after unit.", "1", min=1)
]
WorkerCpus = Annotated[int | None, _CPUS]
WorkerGpus = Annotated[float | None, _GPUS]
Address = Annotated[str | None, _ADDRESS]
UnitRows = Annotated[
    int | None,
    FOLDERS("N", "Maximum number of rows of a unit, which is written as one file.", "by the size of the input", min=1),
]
Attempts = Annotated[int | None, FOLDERS("N", "Number of times that a unit is tried.", "3", min=1)]
Keep = Annotated[
    str | None, FOLDERS("COLUMNS", "Input columns to write: names separated by commas, all, or none.", "all")
]
ScoresOption = Annotated[
    Literal["all", "top", "none"] | None,
    FOLDERS("WHICH", "Probabilities to write: top (of the answer), all (of every label) or none.", "top"),
]
FormatOption = Annotated[
    Literal["parquet", "jsonl"] | None, FOLDERS("FORMAT", "Format of the files: parquet or jsonl.", "parquet")
]
BadRowsOption = Annotated[
    Literal["fail", "null"] | None,
    FOLDERS(
        "WHAT",
        "What a row without a text does: fail (its unit fails and is named) or null (the row gets empty answers).",
        "fail",
    ),
]


@dataclass(frozen=True)
class FolderOptions:
    """The options that only runs over folders have; None where an option is not given."""

    engine: EngineName | None = None
    workers: int | None = None
    worker_cpus: int | None = None
    worker_gpus: float | None = None
    address: str | None = None
    unit_rows: int | None = None
    attempts: int | None = None
    keep: str | None = None
    scores: Literal["all", "top", "none"] | None = None
    format: Literal["parquet", "jsonl"] | None = None
    bad_rows: Literal["fail", "null"] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that are given, by the names of `batch.predict_folder.predict_folder`."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def check_unused(self) -> None:
        """Refuse options that would do nothing.

        Raises:
            InputError: one is given.
        """
        if self.given:
            name = f"--{next(iter(self.given)).replace('_', '-')}"
            raise InputError(
                f"{name} is for runs over folders. Give --output a folder, such as --output answers/ (with the slash), "
                "or leave the option out."
            )


def predict_into_folder(
    tasks: list[str],
    input: str,
    output: str,
    options: FolderOptions,
    common: Mapping[str, Any],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Answer files of any number into a folder, and print what became of the run.

    Raises:
        YTuningError: units were given up; what has been finished is told before.
    """
    from ytuning.batch.predict_folder import predict_folder

    # Ray prints what happens to machines on stdout, which is for the result.
    with redirect_stdout(sys.stderr), console.shown_progress(quiet) as progress:
        run = predict_folder(tasks, input, output, progress=progress, **options.given, **common)
        for task, count in run.truncated.items():
            if count:
                progress.say(f"task {task!r}: {quantity(count, 'text')} too long for the encoder, cut.")
        if run.blank_rows:
            progress.say(
                f"{quantity(run.blank_rows, 'row')} with a blank text. The encoder reads only its own special tokens "
                "of it, so the answer says nothing about the text."
            )
        if run.bad_rows:
            progress.say(f"{quantity(run.bad_rows, 'row')} without a text, whose answers are empty.")
    if as_json:
        console.print_json(run.to_json())
    else:
        _print_run(run)
    if run.failed:
        sys.stdout.flush()
        first = run.failed[0]
        lacks_text = any("the text" in unit.why for unit in run.failed) and options.bad_rows != "null"
        or_null = " With --bad-rows null, rows without a text get empty answers." if lacks_text else ""
        raise YTuningError(
            f"{quantity(len(run.failed), 'unit')} of {run.units:,} failed; all others are done. "
            f"The first is {first.file}, from row {first.first_row:,}: {first.why} What is known of each is in "
            f"{run.output}/_ytuning/failed. Run the same command again to try only these.{or_null}"
        )


def _print_run(run: BatchRun) -> None:
    from rich.markup import escape

    from ytuning.reports.console import new_table

    terminal = Console()
    seconds = run.seconds["units"]
    rate = ""
    if seconds and run.rows:
        rate = f", of which {run.seconds['start']:,.1f} s to start; then {run.rows / seconds:,.0f} rows a second"
    done = f"{quantity(run.rows, 'row')} answered in {quantity(run.units - run.skipped - len(run.failed), 'unit')}"
    if run.skipped == run.units:
        done = "nothing to do"
    skipped = f"; {run.skipped:,} of {quantity(run.units, 'unit')} were done before" if run.skipped else ""
    terminal.print(
        f"[bold]{escape(run.output)}[/bold]: {done}{skipped}; {run.seconds['total']:,.1f} s{rate}",
        highlight=False,
        soft_wrap=True,
    )
    if run.answers and run.rows:
        table = new_table("Answers of this run", ["task", "most frequent labels"], ["labels", "abstained"])
        answered = max(1, run.rows - run.bad_rows)
        for task, counts in run.answers.items():
            labels = [(name, count) for name, count in counts.items() if name is not None]
            shown = ", ".join(f"{name} {count / answered:.1%}" for name, count in labels[:SHOWN_LABELS])
            table.add_row(escape(task), escape(shown), f"{len(labels):,}", f"{counts.get(None, 0):,}")
        terminal.print(table)
    for unit in run.failed[:SHOWN_FAILED]:
        where = f"{unit.file}, from row {unit.first_row:,}"
        terminal.print(f"failed: {escape(where)}: {escape(unit.why)}", highlight=False, soft_wrap=True)

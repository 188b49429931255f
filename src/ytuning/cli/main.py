"""The command line: parse, call, print."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ytuning import __version__
from ytuning.cli.add_label import add_label
from ytuning.cli.cache import cache
from ytuning.cli.compare import compare
from ytuning.cli.console import (
    Json,
    Quiet,
    check_result_file,
    print_json,
    result_file,
    shown_progress,
    tell_cut,
    write_page,
)
from ytuning.cli.options import Label, ReportFile, Text, TextPair, usage_mistake
from ytuning.cli.search import search
from ytuning.cli.serve import serve
from ytuning.cli.train import train
from ytuning.errors import InputError, YTuningError

__all__ = ["app", "main"]

TYPER_INTERRUPTED = 130  # what newer versions of typer make of Ctrl-C; older ones raise Abort

# Modules that load torch are imported inside the commands: --help and mistakes should answer at once.

app = typer.Typer(
    name="ytuning",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"ytuning {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    """Train, evaluate and use text classifiers on a frozen encoder."""


app.add_typer(cache, name="cache")
app.command(epilog="Example: ytuning train tickets.csv --test holdout.csv --out tasks/tickets")(train)
app.command(name="add-label", epilog="Example: ytuning add-label tasks/tickets refund --examples refunds.csv")(
    add_label
)
app.command(epilog="Example: ytuning search tickets.csv --test holdout.csv --out searches/tickets")(search)


EncoderName = Annotated[
    str | None, typer.Option("--encoder", help="Folder or Hugging Face name, if it has moved since the training.")
]


@app.command(epilog='Example: ytuning predict tasks/tickets "I was charged twice"')
def predict(
    tasks_and_texts: Annotated[
        list[str], typer.Argument(metavar="TASK_DIR [TASK_DIR ...] [TEXT ...]", help="Task folders, then texts.")
    ],
    input_file: Annotated[
        Path | None, typer.Option("--input", help="File of texts to label, in place of TEXT.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File for the JSON lines. Default: stdout.")] = None,
    text: Text = None,
    text_pair: TextPair = None,
    encoder: EncoderName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of JSON lines.")] = False,
    quiet: Quiet = False,
) -> None:
    """Label texts with one or more tasks; writes a JSON line for each text and task."""
    from ytuning.data.dataset import from_lists, read_dataset
    from ytuning.data.labels import listed, shown
    from ytuning.tasks.predictor import Predictor
    from ytuning.tasks.task import task_files

    folders, texts = _split_folders(tasks_and_texts)
    if output is not None:
        own = [file for folder in folders for file in task_files(folder)]
        check_result_file(output, "--output", (input_file, *own))
    if not os.path.isdir(folders[0]):
        raise InputError(
            f"the first argument must be a task folder. Got {shown(folders[0])} instead, which is no folder. Give the "
            "folder before the texts, or make one with: ytuning train DATA --out TASK_DIR"
        )
    if (input_file is None) == (not texts):
        raise InputError(
            "give texts to label either as arguments or with --input FILE" + (", not both" if texts else "")
        )
    data = (
        from_lists(texts)
        if input_file is None
        else read_dataset(input_file, text=text, text_pair=text_pair, labelled=False)
    )
    predictor = Predictor(folders, encoder=encoder)
    with shown_progress(quiet) as progress, result_file(output) as write:
        if paths := [each for each in texts if _looks_like_a_path(each)]:
            progress.say(
                f"read as text, not as a path: {listed(paths)}. Only folders before the first text are tasks, and a "
                "file of texts takes --input"
            )
        lines: list[dict[str, Any]] = []
        cut = 0
        for number, prediction in enumerate(predictor.predict(data.inputs), 1):
            cut += prediction.truncated
            if as_json:
                lines.append(prediction.to_json())
            else:
                write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
            progress.step("predict", number, len(data) * len(predictor.tasks))
        if as_json:
            write(json.dumps(lines, ensure_ascii=False) + "\n")
        tell_cut(progress, -(-cut // len(predictor.tasks)))


@app.command(epilog="Example: ytuning evaluate tasks/tickets holdout.csv")
def evaluate(
    task_dir: Annotated[Path, typer.Argument(metavar="TASK_DIR", help="Folder of a trained task.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled rows.")],
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    encoder: EncoderName = None,
    report: ReportFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Report how a task does on labelled rows."""
    from ytuning.data.dataset import read_dataset
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.reports.console import print_report, report_to_json
    from ytuning.reports.html import render_report
    from ytuning.tasks.evaluate import evaluate_task
    from ytuning.tasks.task import check_encoder, load_task, task_files

    if report is not None:
        check_result_file(report, "--report", (data, *task_files(task_dir)))
    task, store = load_task(task_dir), FeatureStore()
    known = task.target.names
    rows = read_dataset(data, text=text, text_pair=text_pair, label=label, kind=task.kind, known=known)
    with shown_progress(quiet) as progress:
        loaded = load_encoder(encoder or task.encoder.name, **task.encoder.options)
        check_encoder(task, loaded.identity)
        found = evaluate_task(task, rows, loaded, store, progress=progress)
        tell_cut(progress, found.truncated)
        if report is not None:
            page = render_report(task, found.report, found.judged, loaded, store, progress=progress)
            write_page(report, page)
    if as_json:
        figures = {**report_to_json(found.report), "cache": asdict(found.cache), "truncated": found.truncated}
        print_json({"task": task.name, **figures, "report": None if report is None else str(report)})
    else:
        print_report(Console(), found.report, f"{task.name} on {data}")


app.command(epilog="Example: ytuning serve tasks/*")(serve)
app.command(epilog="Example: ytuning compare tickets.csv --test holdout.csv --out compared")(compare)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 2, any other failure status 1."""
    with suppress(AttributeError):  # a stream that a test or a caller has put there
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    with suppress(ValueError):  # only the main thread may; schedulers and `docker stop` should lose no more than Ctrl-C
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
        if status == TYPER_INTERRUPTED:
            raise KeyboardInterrupt
    except typer.Exit as stop:
        status = stop.exit_code
    except InputError as error:
        status = _fail(str(error), 2)
    except YTuningError as error:
        status = _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        status = _fail("interrupted; what has been stored is kept, and the same command goes on from there", 1)
    except BrokenPipeError:
        # What is still buffered has no reader: without this, closing stdout would fail once more.
        _close_stdout()
        status = 1
    except OSError as error:
        if error.errno != errno.ENOSPC:  # nothing but stdout is written without a message of its own
            raise
        _close_stdout()
        status = _fail("cannot write to stdout: no space left on device. Free some space and run again", 1)
    except Exception as error:
        # Typer's usage errors have no public base class, but all of them can format themselves.
        if not hasattr(error, "format_message"):
            raise
        status = _fail(usage_mistake(error, sys.argv[1:]), 2)
    sys.exit(status if isinstance(status, int) else 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    one_line = " ".join(message.split())
    if one_line:  # without arguments the help has been shown, and there is nothing to add
        print(f"error: {one_line}", file=sys.stderr)
    return status


def _split_folders(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Leading arguments that are folders are tasks, the rest are texts; the first is a task whatever it looks like."""
    count = 1
    while count < len(arguments) and os.path.isdir(arguments[count]):  # never raises, unlike Path
        count += 1
    return arguments[:count], arguments[count:]


def _looks_like_a_path(text: str) -> bool:
    """Whether a text may be a misspelt task folder: one beside others. Some texts look like that, too."""
    return ("/" in text or os.sep in text) and not any(map(str.isspace, text)) and os.path.isdir(os.path.dirname(text))

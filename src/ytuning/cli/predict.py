"""``ytuning predict``: label texts of the command line, of the standard input or of a file."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ytuning.cli import console, options
from ytuning.cli import predict_folder as folders
from ytuning.cli.options import DATA, OUTPUT
from ytuning.errors import DataError, InputError
from ytuning.system.files import STANDARD_INPUT, read_input
from ytuning.system.machine import keep_few_compiled_shapes

if TYPE_CHECKING:
    from ytuning.data.columns import Role
    from ytuning.data.dataset import Dataset
    from ytuning.data.tables import Table
    from ytuning.tasks.predictor import Prediction
    from ytuning.tasks.task import Task

__all__ = ["predict"]

# The answer is followed by this number of less probable labels.
NEXT = 2
# From this number of tasks on, the answers to a text are a table, the most probable first.
TABLE_FROM = 13
# This character replaces one that the terminal cannot print.
REPLACED = "\ufffd"


def predict(
    tasks_and_texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK_DIR... [TEXT...]",
            help="Task folders, and after them texts; - reads texts from the standard input, one per line.",
        ),
    ],
    input_file: Annotated[
        str | None,
        DATA(
            "FILE",
            "File of texts to label, instead of TEXT. With --output FOLDER/ also a folder, a pattern of files or an "
            "address (s3://bucket/folder).",
            "none",
            "--input",
        ),
    ] = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    encoder: options.MovedEncoder = None,
    cascade: options.CascadeShare = None,
    engine: folders.EngineOption = None,
    workers: folders.Workers = None,
    worker_cpus: folders.WorkerCpus = None,
    worker_gpus: folders.WorkerGpus = None,
    address: folders.Address = None,
    unit_rows: folders.UnitRows = None,
    attempts: folders.Attempts = None,
    keep: folders.Keep = None,
    scores: folders.ScoresOption = None,
    format: folders.FormatOption = None,
    bad_rows: folders.BadRowsOption = None,
    output: Annotated[
        str | None,
        OUTPUT("FILE", "File to write JSON lines to; or with a slash at its end a folder of files.", "stdout"),
    ] = None,
    above: Annotated[
        float | None,
        OUTPUT("PROBABILITY", "On a terminal, hide the tasks without an answer of at least this probability.", "none"),
    ] = None,
    as_json: Annotated[
        bool,
        OUTPUT(None, "Print JSON lines on a terminal, too; of a folder one JSON value about the run.", True, "--json"),
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Label texts with one or more tasks.

    On a terminal the answers are printed for people: a line for each task, or from 13 tasks on a table for each text,
    with the most probable answers first. With `--json`, with `--output` or in a pipe, each answer is one line of JSON.

    With `--output FOLDER/` any number of files is read in bounded memory by one or more workers, also of a Ray cluster.
    The answers are Parquet files, and the same command resumes a run that was interrupted.
    """
    of_folder = folders.FolderOptions(
        engine, workers, worker_cpus, worker_gpus, address, unit_rows, attempts, keep, scores, format, bad_rows
    )
    if _is_folder_run(input_file, output):
        tasks, texts = _split_folders(tasks_and_texts)
        _check_folder_run(texts, input_file, output, above)
        common = {"text": text, "text_pair": text_pair, "encoder": encoder, "cascade": cascade}
        folders.predict_into_folder(
            tasks, input_file or "", output or "", of_folder, common, as_json=as_json, quiet=quiet
        )
        return
    of_folder.check_unused()
    _predict_here(
        tasks_and_texts,
        None if input_file is None else Path(input_file),
        None if output is None else Path(output),
        text=text,
        text_pair=text_pair,
        encoder=encoder,
        cascade=cascade,
        above=above,
        as_json=as_json,
        quiet=quiet,
    )


def _is_folder_run(input_file: str | None, output: str | None) -> bool:
    """Whether the answers go into a folder: its name ends in a slash, it is there, or it is an address."""
    if output is not None and (output.endswith(("/", os.sep)) or "://" in output):
        return True
    if input_file is None:
        return False
    return "://" in input_file or os.path.isdir(input_file) or (output is not None and os.path.isdir(output))


def _check_folder_run(texts: Sequence[str], input_file: str | None, output: str | None, above: float | None) -> None:
    """Refuse what makes no sense for a run over folders."""
    if output is None:
        raise InputError(f"--input {input_file} is a folder or an address. Give --output a folder for the answers.")
    if input_file is None or texts:
        given = f" Got the text {texts[0]!r} too." if texts and input_file is not None else ""
        raise InputError(f"--output {output} is a folder, which takes the answers to --input FILE or FOLDER.{given}")
    if input_file == STANDARD_INPUT:
        raise InputError("the standard input cannot be resumed. Save it as a file, or give --output a file.")
    if above is not None:
        raise InputError("--above chooses what a terminal shows, and files have all answers. Leave it out.")


def _predict_here(
    tasks_and_texts: list[str],
    input_file: Path | None,
    output: Path | None,
    *,
    text: str | None,
    text_pair: str | None,
    encoder: str | None,
    cascade: float | None,
    above: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Label the texts of the command line or of one file in this process."""
    keep_few_compiled_shapes()
    from ytuning.data.files import read_table
    from ytuning.data.labels import list_names
    from ytuning.tasks.cascade import check_share, notes_on_cascades
    from ytuning.tasks.predictor import Predictor
    from ytuning.tasks.task import task_files

    task_folders, texts = _split_folders(tasks_and_texts)
    for_people = output is None and not as_json and sys.stdout.isatty()
    _check_above(above, for_people)
    if cascade is not None:
        check_share(cascade)
    if output is not None:
        own = [file for folder in task_folders for file in task_files(folder)]
        console.check_result_file(output, "--output", (input_file, *own))
    _check_folders(task_folders)
    _check_use(texts, input_file, options.named(text, text_pair))
    # Texts are read before the encoder, as that takes longer.
    table = None if input_file is None else read_table(input_file)
    given = _read_lines() if texts == [STANDARD_INPUT] else _check_arguments(texts) if texts else None
    predictor = Predictor(task_folders, encoder=encoder, cascade=cascade)
    if cascade is not None:
        # What does nothing is told with --quiet, too.
        for note in notes_on_cascades({task.name: task.cascade for task in predictor.tasks}, cascade):
            print(note, file=sys.stderr)
    data = given or _read_inputs(table, predictor.tasks, text, text_pair)
    # Answers on a terminal show the progress themselves, and a bar would be drawn over them.
    with console.shown_progress(quiet or for_people) as progress, console.result_file(output) as write:
        console.tell_file(
            progress,
            data,
            quiet=quiet,
            named=options.named(text, text_pair),
            trained={f"the task {task.name!r}": task.columns for task in predictor.tasks},
        )
        console.tell_blank(progress, data)
        if paths := [word for word in texts if _looks_like_a_path(word)]:
            progress.say(
                f"These arguments are read as texts, not as paths: {list_names(paths)}. Only folders before the first "
                "text are tasks; use --input for a file of texts."
            )
        cut, count = 0, len(predictor.tasks)
        predictions = predictor.predict(data.inputs)
        for number, prediction in enumerate(
            _print_answers(predictions, count, above) if for_people else predictions, 1
        ):
            cut += prediction.truncated
            if not for_people:
                write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
            progress.step("predict", number, len(data) * count)
        console.tell_cut(progress, -(-cut // count))


def _check_folders(folders: Sequence[str]) -> None:
    """Refuse folders that are no tasks, where they may be texts, and texts where a task should be."""
    from ytuning.data.files import names_like
    from ytuning.data.labels import quote
    from ytuning.tasks.task import holds_task

    first, *others = folders
    if not os.path.isdir(first):
        kind = "a file" if os.path.isfile(first) else "not a folder"
        raise InputError(
            f"the first argument must be a task folder, and {quote(first)} is {kind}.{names_like(first)} Give the "
            "folder before the texts, or make one with: ytuning train DATA --out TASK_DIR"
        )
    for folder in others:
        if not holds_task(folder):
            raise InputError(
                f"{quote(folder)} is a folder but not a task. Leave it out; if it is a text to label, send it to the "
                "standard input of: ytuning predict TASK_DIR -"
            )


def _check_use(texts: Sequence[str], input_file: Path | None, named: Collection[Role]) -> None:
    """Refuse anything but texts or a file of texts, and names of columns where there are none."""
    if (input_file is None) == (not texts):
        ways = "as arguments or with --input FILE"
        stream = "The argument - reads texts from the standard input, one per line."
        raise InputError(f"give texts to label either {ways}{', not both.' if texts else f'. {stream}'}")
    if STANDARD_INPUT in texts and len(texts) > 1:
        raise InputError("the argument - reads all texts from the standard input. Leave out the other texts, or it.")
    if texts and named:
        raise InputError("--text and --text-pair name columns of a file. Use them with --input, or leave them out.")


def _check_above(above: float | None, for_people: bool) -> None:
    """Refuse what is no probability, and a choice of answers where all of them are written."""
    if above is None:
        return
    # Also false for what is not a number.
    if not 0 <= above <= 1:
        raise InputError(f"--above must be a probability from 0 to 1. Got {above} instead.")
    if not for_people:
        raise InputError(
            "--above chooses what a terminal shows, and JSON lines have all answers. Leave it out, and use the scores."
        )


def _check_arguments(texts: Sequence[str]) -> Dataset:
    """The texts of the command line."""
    from ytuning.data.dataset import Dataset

    for number, text in enumerate(texts, 1):
        # Bytes that are not UTF-8 come as unpaired surrogates.
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"text {number} of the command line is not UTF-8. Write it as UTF-8.")
    return Dataset(list(texts), source="the command line")


def _read_lines() -> Dataset:
    """The lines of the standard input, each of which is a text; blank lines are left out.

    Raises:
        DataError: the standard input is closed or not UTF-8, or has no text.
    """
    from ytuning.data.dataset import Dataset

    source = "the standard input"
    try:
        data = read_input(STANDARD_INPUT).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}. Give texts as arguments or with --input FILE."
        raise DataError(problem, source=source) from error
    # Other marks that Unicode counts as line ends may stand within a text.
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    texts: dict[int, str] = {}
    for row, line in enumerate(lines, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise DataError("the text is not UTF-8. Write it as UTF-8.", source=source, row=row) from None
        if text and not text.isspace():
            texts[row] = text
    # What follows the last line end is no line.
    blank = len(lines) - (not lines[-1]) - len(texts)
    left_out = {"blank lines": blank} if blank else {}
    return Dataset(list(texts.values()), source=source, rows=list(texts), left_out=left_out)


def _read_inputs(table: Table | None, tasks: Sequence[Task], text: str | None, text_pair: str | None) -> Dataset:
    """The texts of a file, read by the columns that all of the tasks were trained on.

    Raises:
        InputError: the tasks would read different columns, or the columns are not there.
    """
    from ytuning.data.columns import common_columns
    from ytuning.data.dataset import read_dataset

    assert table is not None
    named: dict[Role, str | None] = {"text": text, "text_pair": text_pair}
    columns = common_columns(table, {task.name: task.known for task in tasks}, named)
    return read_dataset(table, text=columns[0], text_pair=columns[1], labelled=False, known=tasks[0].known)


def _split_folders(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Leading arguments that are folders are tasks, the rest are texts; the first is a task whatever it looks like."""
    count = 1
    # Path.is_dir raises an error for a text that cannot be a path; os.path.isdir never does.
    while count < len(arguments) and os.path.isdir(arguments[count]):
        count += 1
    return arguments[:count], arguments[count:]


def _looks_like_a_path(text: str) -> bool:
    """Whether a text may be a file, or a misspelt task folder: one beside others. Some texts look like that, too."""
    if os.path.isfile(text):
        return True
    return ("/" in text or os.sep in text) and not any(map(str.isspace, text)) and os.path.isdir(os.path.dirname(text))


def _print_answers(predictions: Iterator[Prediction], tasks: int, above: float | None) -> Iterator[Prediction]:
    """Print predictions for people while they pass: each text once, and below it the answers of ``tasks`` tasks."""
    terminal = Console(highlight=False)
    answers: list[Prediction] = []
    for prediction in predictions:
        answers.append(prediction)
        if len(answers) == tasks:
            _print_text(terminal, answers, above)
            answers = []
        yield prediction


def _print_text(terminal: Console, answers: Sequence[Prediction], above: float | None) -> None:
    """Print a text, and its answers as lines or as a table."""
    from rich.text import Text

    from ytuning.errors import quantity
    from ytuning.reports.console import answers_table

    for start, content in (("", answers[0].text), ("+ ", answers[0].text_pair)):
        if content is not None:
            heading = Text(start + _on_one_line(content))
            heading.truncate(terminal.width, overflow="ellipsis")
            terminal.print(heading)
    shown = [prediction for prediction in answers if _is_shown(prediction, above)]
    if len(answers) >= TABLE_FROM:
        rows = [(prediction.task, _labels(prediction), _probability(prediction)) for prediction in _by_rank(shown)]
        if rows:
            terminal.print(answers_table((_on_one_line(task), _on_one_line(text), value) for task, text, value in rows))
    else:
        for prediction in shown:
            answer, others = map(_on_one_line, _answer(prediction))
            task = "" if len(answers) == 1 else f"{_on_one_line(prediction.task)}: "
            terminal.print(Text.assemble("  ", task, (answer, "bold"), others), soft_wrap=True)
    if hidden := len(answers) - len(shown):
        line = f"  Not shown: {quantity(hidden, 'task')} without an answer of probability {above} or more."
        terminal.print(line, soft_wrap=True)


def _probability(prediction: Prediction) -> float | None:
    """The probability of an answer, of several labels the highest; None for a number and where there is no answer."""
    labels = [prediction.answer] if isinstance(prediction.answer, str) else prediction.answer
    return max((prediction.scores[name] for name in labels), default=None) if isinstance(labels, list) else None


def _is_shown(prediction: Prediction, above: float | None) -> bool:
    """Whether an answer is probable enough. A number has no probability, so it always is."""
    if above is None or isinstance(prediction.answer, float):
        return True
    probability = _probability(prediction)
    return probability is not None and probability >= above


def _by_rank(answers: Sequence[Prediction]) -> list[Prediction]:
    """The most probable answers first, then numbers, then tasks without an answer."""

    def rank(prediction: Prediction) -> tuple[int, float]:
        if isinstance(prediction.answer, float):
            return 1, 0.0
        probability = _probability(prediction)
        return (2, 0.0) if probability is None else (0, -probability)

    return sorted(answers, key=rank)


def _labels(prediction: Prediction) -> str:
    """An answer without probabilities."""
    answer = prediction.answer
    if isinstance(answer, float):
        return f"{answer:.4f}"
    if answer is None:
        return "no label (the confidence is too low)"
    return answer if isinstance(answer, str) else ", ".join(answer) or "no label"


def _answer(prediction: Prediction) -> tuple[str, str]:
    """The answer with its probability, and the most probable of the other labels with theirs."""
    answer, scores = prediction.answer, prediction.scores
    if isinstance(answer, float):
        return f"{answer:.4f}", ""
    labels = [answer] if isinstance(answer, str) else answer or []
    text = ", ".join(f"{name} {scores[name]:.4f}" for name in labels) or "no label"
    if answer is None:
        text += " (the confidence is too low)"
    others = sorted((name for name in scores if name not in labels), key=lambda name: -scores[name])[:NEXT]
    return text, "; next: " * bool(others) + ", ".join(f"{name} {scores[name]:.4f}" for name in others)


def _on_one_line(text: str) -> str:
    """A text without line breaks and without characters that would steer a terminal."""
    return "".join(character if character.isprintable() else REPLACED for character in " ".join(text.split()))

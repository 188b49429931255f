"""``ytuning predict``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ytuning.cli.console import check_result_file, result_file, shown_progress, tell_cut
from ytuning.cli.options import DATA, OUTPUT, MovedEncoder, Quiet, Text, TextPair
from ytuning.errors import InputError

if TYPE_CHECKING:
    from ytuning.tasks.predictor import Prediction

__all__ = ["predict"]

NEXT = 2  # labels that are shown after the answer
REPLACED = "\ufffd"  # stands for a character that cannot be printed


def predict(
    tasks_and_texts: Annotated[
        list[str], typer.Argument(metavar="TASK_DIR... [TEXT...]", help="Task folders, and after them texts.")
    ],
    input_file: Annotated[
        Path | None, DATA("--input", "FILE", "File of texts to label, instead of TEXT.", "none")
    ] = None,
    text: Text = None,
    text_pair: TextPair = None,
    encoder: MovedEncoder = None,
    output: Annotated[Path | None, OUTPUT("--output", "FILE", "File to write JSON lines to.", "stdout")] = None,
    as_json: Annotated[bool, OUTPUT("--json", None, "Print JSON lines on a terminal, too.")] = False,
    quiet: Quiet = False,
) -> None:
    """Label texts with one or more tasks.

    On a terminal the answers are printed for people. With `--json`, with `--output` or in a pipe, each answer is one
    line of JSON.
    """
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
            f"the first argument must be a task folder, and {shown(folders[0])} is not a folder. Give the folder "
            "before the texts, or make one with: ytuning train DATA --out TASK_DIR"
        )
    if (input_file is None) == (not texts):
        raise InputError(
            "give texts to label either as arguments or with --input FILE" + (", not both." if texts else ".")
        )
    data = (
        from_lists(texts)
        if input_file is None
        else read_dataset(input_file, text=text, text_pair=text_pair, labelled=False)
    )
    predictor = Predictor(folders, encoder=encoder)
    for_people = output is None and not as_json and sys.stdout.isatty()
    # Answers on a terminal show the progress themselves, and a bar would be drawn over them.
    with shown_progress(quiet or for_people) as progress, result_file(output) as write:
        if paths := [each for each in texts if _looks_like_a_path(each)]:
            progress.say(
                f"These arguments are read as texts, not as paths: {listed(paths)}. Only folders before the first text "
                "are tasks; use --input for a file of texts."
            )
        cut, count = 0, len(predictor.tasks)
        predictions = predictor.predict(data.inputs)
        for number, prediction in enumerate(_print_answers(predictions, count) if for_people else predictions, 1):
            cut += prediction.truncated
            if not for_people:
                write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
            progress.step("predict", number, len(data) * count)
        tell_cut(progress, -(-cut // count))


def _split_folders(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Leading arguments that are folders are tasks, the rest are texts; the first is a task whatever it looks like."""
    count = 1
    while count < len(arguments) and os.path.isdir(arguments[count]):  # never raises, unlike Path
        count += 1
    return arguments[:count], arguments[count:]


def _looks_like_a_path(text: str) -> bool:
    """Whether a text may be a misspelt task folder: one beside others. Some texts look like that, too."""
    return ("/" in text or os.sep in text) and not any(map(str.isspace, text)) and os.path.isdir(os.path.dirname(text))


def _print_answers(predictions: Iterator[Prediction], tasks: int) -> Iterator[Prediction]:
    """Print predictions for people while they pass: each text once, and below it a line for each of ``tasks`` tasks."""
    from rich.console import Console
    from rich.text import Text as Line

    console = Console(highlight=False)
    for number, prediction in enumerate(predictions):
        if number % tasks == 0:
            for start, text in (("", prediction.text), ("+ ", prediction.text_pair)):
                if text is not None:
                    line = Line(start + _on_one_line(text))
                    line.truncate(console.width, overflow="ellipsis")
                    console.print(line)
        answer, others = map(_on_one_line, _answer(prediction))
        task = "" if tasks == 1 else f"{_on_one_line(prediction.task)}: "
        console.print(Line.assemble("  ", task, (answer, "bold"), others), soft_wrap=True)
        yield prediction


def _answer(prediction: Prediction) -> tuple[str, str]:
    """The answer with its probability, and the most probable of the other labels with theirs."""
    answer, scores = prediction.answer, prediction.scores
    if isinstance(answer, float):
        return f"{answer:.4f}", ""
    given = [answer] if isinstance(answer, str) else answer or []
    told = ", ".join(f"{name} {scores[name]:.4f}" for name in given) or "no label"
    if answer is None:
        told += " (the confidence is too low)"
    others = sorted((name for name in scores if name not in given), key=lambda name: -scores[name])[:NEXT]
    return told, "; next: " * bool(others) + ", ".join(f"{name} {scores[name]:.4f}" for name in others)


def _on_one_line(text: str) -> str:
    """A text without line breaks and without characters that would steer a terminal."""
    return "".join(character if character.isprintable() else REPLACED for character in " ".join(text.split()))

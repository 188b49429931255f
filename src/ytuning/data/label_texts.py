"""What labels mean, in words: their names or descriptions, which the encoder reads like any other text."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ytuning.data.dataset import read_dataset
from ytuning.data.files import names_like
from ytuning.data.kinds import TaskKind
from ytuning.data.labels import did_you_mean, label_name, list_names, quote
from ytuning.errors import DataError, InputError, argument, must_be_one_of, parameter
from ytuning.system.files import read_input

__all__ = ["LABEL_NAMES", "DescribedLabels", "LabelTexts", "describe_labels", "meaningful_names", "read_label_texts"]

LABEL_NAMES: Final = "names"
NO_TEXTS: Final = "none"
LabelTexts = str | Mapping[str, str | Sequence[str]]
"""Label -> its text or texts; or ``"names"``, its name in words, or ``"none"``."""


@dataclass(frozen=True)
class DescribedLabels:
    """Texts of labels, one after the other.

    Attributes:
        texts: (N,).
        labels: (N,) the name of the label that each of them is about.
    """

    texts: list[str]
    labels: list[str]


def read_label_texts(given: str | Path) -> LabelTexts:
    """The label texts in a file, or ``"names"`` or ``"none"`` as they are.

    A JSON file maps each label to its text or a list of texts; any other file that `read_dataset` reads
    has a row for each text, with the columns ``text`` and ``label``. The content tells which of the two it is where the
    name has no ending, as that of the standard input (``-``) and of a pipe.

    Raises:
        InputError: the JSON file holds something else.
        DataError: the file cannot be read, or a text is missing.
    """
    path = Path(given)
    if str(given) in (LABEL_NAMES, NO_TEXTS) and not path.exists():
        return str(given)
    if path.suffix not in ("", ".json"):
        return _by_label(path)
    try:
        data = read_input(path)
    except OSError as error:
        like = names_like(path) if isinstance(error, FileNotFoundError) else ""
        problem = f"cannot read the label texts: {error.strerror or error}.{like} Check {argument('label_texts')}."
        raise DataError(problem, source=str(path)) from error
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        if not path.suffix:
            return _by_label(io.BytesIO(data))
        # This includes bytes that are not UTF-8.
        raise DataError(f"the label texts are not valid JSON ({error}).", source=str(path)) from error
    if not (path.suffix or isinstance(value, dict)):
        return _by_label(io.BytesIO(data))
    wrong = [quote(value)]
    if isinstance(value, dict):
        wrong = [f"{quote(text)} for {quote(name)}" for name, text in value.items() if not _is_text(text)]
    if wrong:
        raise InputError(f"{path} must map each label to its text or a list of texts. Got {wrong[0]} instead.")
    return value


def _by_label(source: object) -> dict[str, list[str]]:
    """The texts of each label in a table."""
    rows = read_dataset(source, kind="single")
    texts: dict[str, list[str]] = {}
    for name, text in zip(rows.names, rows.texts, strict=True):
        texts.setdefault(name, []).append(text)
    return texts


def describe_labels(given: LabelTexts | None, target: TaskKind, *, pairs: bool = False) -> DescribedLabels | None:
    """The texts of a task's labels; of a label that has none of its own, its name in words.

    Args:
        given: texts; None is ``"none"``.
        target: kind of the task.
        pairs: whether its rows are pairs of texts, which a label's text has no place in.

    Raises:
        InputError: the task has no labels or is one of pairs, or there are texts of a label that it does not have.
    """
    if given is None or given == NO_TEXTS:
        return None
    if target.labels is None:
        raise InputError(f"a task with numbers has no labels to describe. Leave out {argument('label_texts')}.")
    if pairs:
        raise InputError(
            f"label texts work with single texts only, and these rows are pairs. Leave out {argument('label_texts')}."
        )
    if isinstance(given, str):
        if given != LABEL_NAMES:
            choices = (LABEL_NAMES, NO_TEXTS, "a mapping from labels to texts")
            raise InputError(must_be_one_of(parameter("label_texts"), given, choices))
        given = {}
    own: dict[str, str | Sequence[str]] = {}
    for spelt, words in given.items():
        # The names have the form of those in data files.
        name = label_name(spelt) or ""
        if name not in target.labels:
            has = f"The task's labels are {list_names(target.names)}."
            raise InputError(
                f"{parameter('label_texts')} names a label that no row has: {quote(name)}."
                f"{did_you_mean(name, target.names)} {has}"
            )
        if name in own:
            problem = f"{parameter('label_texts')} names {quote(name)} twice, in two forms. "
            raise InputError(f"{problem}Put all its texts into one list.")
        own[name] = words
    described = DescribedLabels([], [])
    for name, readable in zip(target.names, target.labels.texts, strict=True):
        words = own.get(name, readable)
        for text in [words] if isinstance(words, str) else words:
            if not _is_text(text):
                problem = f"{parameter('label_texts')} must be text that is not empty. "
                raise InputError(f"{problem}Got {quote(text)} for {quote(name)}.")
            described.texts.append(text)
            described.labels.append(name)
    return described


def meaningful_names(target: TaskKind) -> bool:
    """Whether names say what their labels mean, as far as that can be seen: numbers do not."""
    return target.labels is not None and not all(
        name.strip("+-").replace(".", "", 1).isdigit() for name in target.names
    )


def _is_text(value: Any) -> bool:
    """Text, or a list of texts, that says something."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    return bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)

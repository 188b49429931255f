"""What the commands share: progress and messages, reading the data sets, and where results go."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ytuning.errors import InputError, quantity, write_errors
from ytuning.progress import Messages, Progress, ProgressBar, say_of_tasks
from ytuning.system.files import STANDARD_INPUT, NewFile

if TYPE_CHECKING:
    from ytuning.data.columns import Columns, Role
    from ytuning.data.dataset import Dataset

__all__ = [
    "check_result_file", "check_streams", "files_json", "print_json", "read_parts", "result_file", "shown_progress",
    "split_of_report", "tell_alike", "tell_blank", "tell_cut", "tell_file", "tell_held_out", "tell_tasks", "write_page",
]  # fmt: skip


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """Progress on stderr, or only the messages that --quiet leaves."""
    with nullcontext(Messages()) if quiet else ProgressBar() as progress:
        yield progress


def tell_file(
    progress: Progress,
    data: Dataset,
    *,
    quiet: bool,
    named: Container[Role] = (),
    trained: Mapping[str, Columns | None],
) -> None:
    """Say which rows and columns of a file are read, what the labels are, and which columns a training read instead.

    Args:
        progress: is told.
        data: rows of the file.
        quiet: tell only of columns that differ from those of a training without the user having named them.
        named: roles whose columns the user has named.
        trained: columns that trainings read, by whose training it was (``"the task 'tickets'"``).
    """
    if data.columns is None:
        if data.left_out and not quiet:
            progress.say(f"{data.source}: {_row_counts(data)}")
        return
    read, notes, chosen = data.columns.spelt, [], True
    for who, columns in trained.items():
        before = {} if columns is None else columns.spelt
        differing = [role for role in read if role in before and read[role] != before[role]]
        if differing:
            chosen = chosen and all(role in named for role in differing)
            other = ", ".join(f"{role} = {before[role]!r}" for role in differing)
            notes.append(f"; but {who} was trained on {other}")
    if not quiet or (notes and not chosen):
        kind = "" if data.labels is None else f"; kind = {data.kind!r}"
        progress.say(f"{data.source}: {_row_counts(data)}; columns {data.columns}{kind}{''.join(notes)}")
    for note in data.notes:
        progress.say(f"{data.source}: {note}")


def tell_tasks(progress: Progress, tasks: Mapping[str, Dataset], *, quiet: bool) -> None:
    """Say which rows and columns of a file are read for each of several tasks, unless ``quiet``, and what is odd."""
    data = next(iter(tasks.values()))
    if not quiet and data.columns is not None:
        parts = [
            f"{name!r} ({', '.join([rows.kind, f'{len(rows):,} used', *_reasons(rows)])})"
            for name, rows in tasks.items()
        ]
        read = {role: name for role, name in data.columns.spelt.items() if role != "label"}
        columns = ", ".join(f"{role} = {name!r}" for role, name in read.items())
        counts = f"{quantity(data.rows_read, 'row')} read"
        progress.say(f"{data.source}: {counts}; columns {columns}; tasks {', '.join(parts)}")
    notes = {name: [f"{rows.source}: {note}" for note in rows.notes] for name, rows in tasks.items()}
    say_of_tasks(progress, notes)


def _row_counts(data: Dataset) -> str:
    if data.rows_read == len(data):
        return quantity(len(data), "row")
    return f"{quantity(data.rows_read, 'row')} read, {len(data):,} used (left out: {', '.join(_reasons(data))})"


def _reasons(data: Dataset) -> list[str]:
    """Why rows were left out, with their number."""
    return [f"{number:,} {reason}" for reason, number in data.left_out.items()]


def tell_held_out(
    progress: Progress, train: Dataset, rows: Mapping[str, int], held: Dataset | None, *, quiet: bool
) -> None:
    """Say how many rows of a training set were held out, unless ``quiet`` or there is a validation set of its own."""
    if held is None and not quiet:
        used = f"{rows['validation']:,} of the {quantity(len(train), 'row')} were held out for validation"
        progress.say(f"{train.source}: {used}.")


def files_json(**files: Dataset | None) -> dict[str, Any]:
    """What ``--json`` says of each file, by its use."""
    return {use: data.summary for use, data in files.items() if data is not None}


def read_parts(
    progress: Progress,
    files: tuple[Path, Path | None, Path | None],
    *,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    kind: Literal["auto", "single", "ordinal", "multi", "regression"],
    group: str | None,
    label_names: str | None = None,
    quiet: bool,
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """The rows of a training, a validation and a test file, of which the last two may be left out.

    The columns and the kind are as `dataset.read_dataset` takes them; ``group`` is a column of the training file only.
    ``progress`` is told what looks like a mistake and, unless ``quiet``, which columns were read.
    """
    from ytuning.data.dataset import read_dataset, unsplit_names
    from ytuning.data.labels import list_names
    from ytuning.data.splits import check_groups

    check_streams(*files)
    check_groups(grouped=group is not None, validation=files[1] is not None)
    read = partial(read_dataset, text=text, text_pair=text_pair, label=label, label_names=label_names or ())
    train = read(files[0], kind=kind, group=group)
    # The kind is that of the training rows, as a few rows might look like another.
    alike = partial(read, kind=train.kind, known=train.known)
    validation, test = (None if file is None else alike(file) for file in files[1:])
    parts = [part for part in (train, validation, test) if part is not None]
    roles: dict[Role, str | None] = {"text": text, "text_pair": text_pair, "label": label}
    named = {role for role, name in roles.items() if name is not None}
    for part in parts:
        tell_file(progress, part, quiet=quiet, named=named, trained={"the task": train.columns})
    if empty := (train.groups or []).count(None):
        rows = f"{quantity(empty, 'row')} {'has' if empty == 1 else 'have'} no value in the group column {group!r}"
        progress.say(f"{train.source}: {rows}. Each of them is a group of its own.")
    # This is said once, because the other files were split to fit the training rows and may well have their labels.
    if whole := unsplit_names(train):
        progress.say(
            f"{train.source}: {train.separator!r} separates the labels of a row, so each of these is one label: "
            f"{list_names(whole)}. If it should be several labels, write {train.separator!r} between them."
        )
    return train, validation, test


def read_unlabelled(
    progress: Progress, file: Path | None, train: Dataset, text: str | None, text_pair: str | None, *, quiet: bool
) -> Dataset | None:
    """The rows of a file of texts without labels, read by the columns of the training rows; None without a file.

    ``progress`` is told which columns were read, unless ``quiet``.
    """
    from ytuning.data.dataset import read_dataset

    if file is None:
        return None
    rows = read_dataset(file, text=text, text_pair=text_pair, labelled=False, known=train.known)
    roles: dict[Role, str | None] = {"text": text, "text_pair": text_pair}
    named = {role for role, name in roles.items() if name is not None}
    tell_file(progress, rows, quiet=quiet, named=named, trained={"the task": train.columns})
    return rows


def check_streams(*files: str | Path | None) -> None:
    """Refuse the standard input for more than one file, as the second would be empty.

    Raises:
        InputError: more than one file is ``-``.
    """
    count = sum(str(file) in (STANDARD_INPUT, "/dev/stdin") for file in files)
    if count > 1:
        raise InputError(f"the standard input can be read for one file only. Got it for {count}. Name the others.")


def tell_alike(progress: Progress, names: Iterable[str]) -> None:
    """Tell which labels look alike, if there are any."""
    from ytuning.data.labels import describe_alike

    if alike := describe_alike(names):
        progress.say(alike)


@contextmanager
def result_file(path: Path | None, option: str = "--output") -> Iterator[Callable[[str], object]]:
    """Writes to stdout, to a file that appears whole or not at all, or to a pipe or device that is already there.

    Raises:
        InputError: the file cannot be written, which is found before any work.
        WriteError: the disk is full or broken.
    """
    if path is None:
        yield sys.stdout.write
        return
    with write_errors(path, option):
        new = NewFile(_target(path))

    def write(text: str) -> None:
        # Only errors of this write are the file's; the code that computes the text has errors of its own.
        with write_errors(path, option):
            # Bytes of a file's name that are not UTF-8 are shown as escapes, which JSON reads as such, too.
            new.stream.write(text.encode(errors="backslashreplace"))

    try:
        yield write
        with write_errors(path, option):
            new.finish()
            new.place()
    finally:
        new.discard()


def check_result_file(path: Path, option: str, inputs: Sequence[str | Path | None], made: Path | None = None) -> None:
    """Refuse a file that :func:`result_file` could not write, or should not; called before any work is done.

    Args:
        path: path of the file.
        option: option that names it.
        inputs: files that the work reads, or makes by itself, none of which it should replace.
        made: folder that the work makes, where the file may lie.
    """
    target = _target(path)
    if target in [_target(file) for file in inputs if file is not None]:
        problem = f"{option} {path} would replace a file that the command reads or that belongs to a task"
        raise InputError(f"{problem}. Choose another name.")
    folder = None if made is None else _target(made)
    with write_errors(path, option):
        if target == folder or os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # Permissions are asked for, because opening a pipe would wait for its reader.
        if os.path.exists(target) and not os.path.isfile(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        elif target.parent != folder or os.path.isdir(folder):
            NewFile(target).discard()


def _target(path: str | Path) -> Path:
    """Where a result lies in the end: a link stays one."""
    return Path(os.path.realpath(path))


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def write_page(path: Path, page: str, option: str = "--report") -> None:
    """Write the HTML file that the option names."""
    with result_file(path, option) as write:
        write(page)


def split_of_report(reports: Container[str]) -> str:
    """Say in words which rows the report of a training is about."""
    return "test" if "test" in reports else "validation"


def tell_blank(progress: Progress, data: Dataset) -> None:
    """Tell of rows to predict whose text is blank, if there are any."""
    if rows := [
        row for row, texts in enumerate(data.inputs, 1) if not all(text is None or text.strip() for text in texts)
    ]:
        progress.say(
            f"{quantity(len(rows), 'row')} (the first is row {rows[0]}) {'has' if len(rows) == 1 else 'have'} a blank "
            "text. The encoder reads only its own special tokens of it, so the answer says nothing about the text."
        )


def tell_cut(progress: Progress, count: int) -> None:
    """Tell of texts that were cut, if there are any."""
    if count:
        were = "was" if count == 1 else "were"
        progress.say(f"{quantity(count, 'text')} {were} too long for the encoder and {were} cut.")

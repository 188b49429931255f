"""Options that several commands share: columns, labels, how texts are encoded; and how a mistake in any is told."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ytuning.errors import allowed
from ytuning.heads.pairs import PairChoice

__all__ = [
    "Group", "KindOption", "Label", "LabelOrder", "LongTextOption", "PairsOption", "PrecisionOption",
    "ReportFile", "Test", "Text", "TextPair", "TrainedEncoder", "choices_of", "in_order", "usage_mistake",
]  # fmt: skip


Text = Annotated[str | None, typer.Option("--text", help="Column of the texts.", show_default="text, else sentence")]
TextPair = Annotated[str | None, typer.Option("--text-pair", help="Column of second texts.", show_default="text_pair")]
Label = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="Column of the labels; or several columns of 0 and 1, each of them a label, with commas.",
        show_default="label, else labels",
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="COLUMN",
        help="Column whose equal values keep rows together: all of them train, or all of them are held out.",
        show_default="none",
    ),
]
KindOption = Annotated[
    Literal["auto", "single", "ordinal", "multi", "regression"],
    typer.Option(
        "--kind", help="What the labels are: one a row (ordinal: in an order), any number of them, or numbers."
    ),
]
LabelOrder = Annotated[
    str | None,
    typer.Option(
        "--label-order", help="Labels of --kind ordinal from the lowest, with commas; default: by their numbers."
    ),
]
PairsOption = Annotated[
    PairChoice,
    typer.Option(
        "--pairs",
        help="How the encoder reads two texts: as one, or each; auto tries both.",
    ),
]
LongTextOption = Annotated[
    Literal["truncate", "window"],
    typer.Option("--long-text", help="Of a text longer than the encoder reads: the beginning, or all in windows."),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option("--precision", help="Arithmetic of the encoder pass. auto is bf16 where that is faster, else fp32."),
]
Test = Annotated[Path | None, typer.Option("--test", help="Rows that are only reported on.")]
TrainedEncoder = Annotated[str, typer.Option("--encoder", help="Folder or Hugging Face name.")]

ReportFile = Annotated[
    Path | None,
    typer.Option("--report", help="HTML file for figures, drawings and the worst mistakes, in which words are marked."),
]


def in_order(label_order: str | None) -> list[str] | None:
    """The labels that ``--label-order`` names."""
    return None if label_order is None else label_order.split(",")


def choices_of(kind: Any) -> tuple[str, ...]:
    """The values of a ``Literal``, which may be optional; none of another type."""
    literals = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    return get_args(literals[0]) if literals else ()


def usage_mistake(error: Any, arguments: Sequence[str]) -> str:
    """What a usage error of Typer's says, with the value that was given and what is allowed.

    Typer's own words differ between its versions and may lack both, so the value is looked up in the command line, and
    what is allowed in the command's annotations.

    Args:
        error: that can format itself; such errors have no public base class.
        arguments: of the program.
    """
    message = str(error.format_message())
    command: Any = getattr(getattr(error, "ctx", None), "command", None)
    if message.startswith("No such command"):
        return f"{message} The commands are {', '.join(map(repr, command.commands))}."
    option = getattr(error, "param", None)
    given = None if option is None else _given(option.opts, arguments)
    if option is None or given is None:
        return message
    kind, info = get_args(get_type_hints(inspect.unwrap(command.callback), include_extras=True)[option.name])
    if choices := choices_of(kind):
        return allowed(option.opts[0], given, choices)
    kind = next(part for part in get_args(kind) or [kind] if part is not type(None))
    if kind not in (int, float):
        return message
    what = "a whole number" if kind is int else "a number"
    bounds = f" of at least {info.min}" if info.max is None else f" from {info.min} to {info.max}"
    return f"{option.opts[0]} must be {what}{'' if info.min is None else bounds}. Got {given!r} instead."


def _given(spellings: Sequence[str], arguments: Sequence[str]) -> str | None:
    """The last value of an option in the command line, which is the one that counts."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name in spellings:
            found = value if equals else following
    return found

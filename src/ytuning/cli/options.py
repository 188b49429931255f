"""Options that several commands share, the groups that ``--help`` shows them in, and how a mistake in any is told."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ytuning.errors import allowed

__all__ = [
    "DATA", "ENCODER", "HEAD", "OUTPUT", "Group", "Json", "KindOption", "Label", "LabelOrder", "LongTextOption",
    "MovedEncoder", "PairsOption", "PrecisionOption", "Quiet", "ReportFile", "Seed", "Test", "Text", "TextPair",
    "TrainedEncoder", "Validation", "choices_of", "in_order", "usage_mistake",
]  # fmt: skip

# An option of a group: DATA("--text", help=...).
DATA = partial(typer.Option, rich_help_panel="Data")
HEAD = partial(typer.Option, rich_help_panel="Head and training")
ENCODER = partial(typer.Option, rich_help_panel="Encoder")
OUTPUT = partial(typer.Option, rich_help_panel="Output")

Validation = Annotated[
    Path | None,
    DATA(
        "--validation",
        metavar="FILE",
        help="Validation set: labelled rows that choose between heads.",
        show_default="rows held out of the training set",
    ),
]
Test = Annotated[
    Path | None,
    DATA("--test", metavar="FILE", help="Test set: labelled rows that are only reported on.", show_default="none"),
]
Text = Annotated[
    str | None,
    DATA("--text", metavar="COLUMN", help="Column that holds the texts.", show_default="text, else sentence"),
]
TextPair = Annotated[
    str | None,
    DATA(
        "--text-pair",
        metavar="COLUMN",
        help="Column that holds the second text of each pair.",
        show_default="text_pair, if there is one",
    ),
]
Label = Annotated[
    str | None,
    DATA(
        "--label",
        metavar="COLUMN",
        help="Column that holds the labels. Several columns of 0 and 1, separated by commas, each become one label.",
        show_default="label, else labels",
    ),
]
Group = Annotated[
    str | None,
    DATA(
        "--group",
        metavar="COLUMN",
        help="Column of group names. All rows of a group are used for training, or all of them are held out.",
        show_default="none",
    ),
]
KindOption = Annotated[
    Literal["auto", "single", "ordinal", "multi", "regression"],
    DATA(
        "--kind",
        metavar="KIND",
        help="Kind of labels: single (one per row), ordinal (one, and the labels have an order), multi (any number), "
        "regression (a number) or auto (infer the kind).",
    ),
]
LabelOrder = Annotated[
    str | None,
    DATA(
        "--label-order",
        metavar="LABELS",
        help="Labels of an ordinal task from lowest to highest, separated by commas.",
        show_default="the order of labels that are numbers",
    ),
]
PairsOption = Annotated[
    Literal["auto", "joint", "separate"],
    ENCODER(
        "--pairs",
        metavar="MODE",
        help="How pairs are encoded: joint (both texts together), separate (each text alone) or auto. auto encodes "
        "them separately, unless encoding them together is clearly better on the validation set.",
    ),
]
LongTextOption = Annotated[
    Literal["truncate", "window"],
    ENCODER(
        "--long-text",
        metavar="MODE",
        help="What is read of a text that is too long for the encoder: truncate (the beginning) or window (all of it, "
        "in windows).",
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"],
    ENCODER(
        "--precision",
        metavar="FORMAT",
        help="Number format of the encoder: fp32, bf16 or auto. auto is bf16 on machines where that is faster.",
    ),
]
TrainedEncoder = Annotated[str, ENCODER("--encoder", metavar="NAME", help="Encoder: a folder or a Hugging Face name.")]
MovedEncoder = Annotated[
    str | None,
    ENCODER(
        "--encoder",
        metavar="NAME",
        help="Folder or Hugging Face name of the encoder, if it has moved since the training.",
        show_default="the one that the task names",
    ),
]
Seed = Annotated[
    int,
    HEAD(
        "--seed",
        metavar="N",
        min=0,
        max=2**32 - 1,
        help="Random seed. It sets the held-out rows, the initial weights and the row order.",
    ),
]
ReportFile = Annotated[
    Path | None,
    OUTPUT(
        "--report",
        metavar="FILE",
        help="HTML file to write, with metrics, charts and the worst mistakes.",
        show_default="none",
    ),
]
Json = Annotated[bool, OUTPUT("--json", help="Print one JSON value on stdout instead of tables.")]
Quiet = Annotated[bool, OUTPUT("--quiet", help="Hide the progress on stderr.")]


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

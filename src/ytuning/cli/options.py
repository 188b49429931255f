"""Options that several commands share, the groups that ``--help`` shows them in, and how a mistake in any is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ytuning.errors import allowed
from ytuning.heads.pairs import PairChoice

__all__ = [
    "DATA", "ENCODER", "HEAD", "OUTPUT", "Group", "Json", "KindOption", "Label", "LabelOrder", "LongTextOption",
    "MovedEncoder", "PairsOption", "PrecisionOption", "Quiet", "ReportFile", "Seed", "Test", "Text", "TextPair",
    "TrainedEncoder", "Validation", "choices_of", "help_group", "in_order", "usage_mistake",
]  # fmt: skip


def help_group(panel: str) -> Callable[..., Any]:
    """A function that makes the options of one group of ``--help``."""

    def option(name: str, metavar: str | None, help: str, default: str | bool = True, **limits: Any) -> Any:
        return typer.Option(name, metavar=metavar, help=help, show_default=default, rich_help_panel=panel, **limits)

    return option


DATA, HEAD, ENCODER, OUTPUT = map(help_group, ("Data", "Head and training", "Encoder", "Output"))

Validation = Annotated[
    Path | None,
    DATA(
        "--validation",
        "FILE",
        "Validation set: labelled rows that choose between heads.",
        "rows held out of the training set",
    ),
]
Test = Annotated[Path | None, DATA("--test", "FILE", "Test set: labelled rows that are only reported on.", "none")]
Text = Annotated[str | None, DATA("--text", "COLUMN", "Column that holds the texts.", "text, else sentence")]
TextPair = Annotated[
    str | None,
    DATA("--text-pair", "COLUMN", "Column that holds the second text of each pair.", "text_pair, if there is one"),
]
Label = Annotated[
    str | None,
    DATA(
        "--label",
        "COLUMN",
        "Column that holds the labels. Several columns of 0 and 1, separated by commas, each become one label.",
        "label, else labels",
    ),
]
Group = Annotated[
    str | None,
    DATA(
        "--group",
        "COLUMN",
        "Column of group names. All rows of a group are used for training, or all of them are held out.",
        "none",
    ),
]
KindOption = Annotated[
    Literal["auto", "single", "ordinal", "multi", "regression"],
    DATA(
        "--kind",
        "KIND",
        "Kind of labels: single (one per row), ordinal (one, and the labels have an order), multi (any number), "
        "regression (a number) or auto (infer the kind).",
    ),
]
LabelOrder = Annotated[
    str | None,
    DATA(
        "--label-order",
        "LABELS",
        "Labels of an ordinal task from lowest to highest, separated by commas.",
        "the order of labels that are numbers",
    ),
]
PairsOption = Annotated[
    PairChoice,
    ENCODER(
        "--pairs",
        "MODE",
        "How pairs are encoded: joint (both texts together), separate (each text alone) or auto. auto encodes "
        "them separately, unless encoding them together is clearly better on the validation set.",
    ),
]
LongTextOption = Annotated[
    Literal["truncate", "window"],
    ENCODER(
        "--long-text",
        "MODE",
        "What is read of a text that is too long for the encoder: truncate (the beginning) or window (all of it, "
        "in windows).",
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"],
    ENCODER(
        "--precision",
        "FORMAT",
        "Number format of the encoder: fp32, bf16 or auto. auto is bf16 on machines where that is faster.",
    ),
]
TrainedEncoder = Annotated[str, ENCODER("--encoder", "NAME", "Encoder: a folder or a Hugging Face name.")]
MovedEncoder = Annotated[
    str | None,
    ENCODER(
        "--encoder",
        "NAME",
        "Folder or Hugging Face name of the encoder, if it has moved since the training.",
        "the one that the task names",
    ),
]
Seed = Annotated[
    int,
    HEAD(
        "--seed",
        "N",
        "Random seed. It sets the held-out rows, the initial weights and the row order.",
        min=0,
        max=2**32 - 1,
    ),
]
ReportFile = Annotated[
    Path | None, OUTPUT("--report", "FILE", "HTML file to write, with metrics, charts and the worst mistakes.", "none")
]
Json = Annotated[bool, OUTPUT("--json", None, "Print one JSON value on stdout instead of tables.")]
Quiet = Annotated[bool, OUTPUT("--quiet", None, "Hide the progress on stderr.")]


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
    given = None if option is None else _find_given(option.opts, arguments)
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


def _find_given(spellings: Sequence[str], arguments: Sequence[str]) -> str | None:
    """The last value of an option in the command line, which is the one that counts."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name in spellings:
            found = value if equals else following
    return found

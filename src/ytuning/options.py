"""Options that several commands share: what the columns are called, what the labels are, how texts are encoded."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Backend", "BackendOption", "Kind", "KindOption", "Label", "LabelOrder", "LongText", "LongTextOption", "Pairs",
    "PairsOption", "Precision", "PrecisionOption", "ReportFile", "Test", "Text", "TextPair", "TrainedEncoder",
    "in_order",
]  # fmt: skip


class Kind(StrEnum):
    """What ``--kind`` allows."""

    auto = "auto"
    single = "single"
    ordinal = "ordinal"
    multi = "multi"
    regression = "regression"


class Pairs(StrEnum):
    """What ``--pairs`` allows."""

    auto = "auto"
    joint = "joint"
    separate = "separate"


class LongText(StrEnum):
    """What ``--long-text`` allows."""

    truncate = "truncate"
    window = "window"


class Backend(StrEnum):
    """What ``--backend`` allows."""

    torch = "torch"
    openvino = "openvino"


class Precision(StrEnum):
    """What ``--precision`` allows."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


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
KindOption = Annotated[
    Kind,
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
    Pairs,
    typer.Option(
        "--pairs",
        help="How the encoder reads two texts: as one, or each; auto tries both.",
    ),
]
LongTextOption = Annotated[
    LongText,
    typer.Option("--long-text", help="Of a text longer than the encoder reads: the beginning, or all in windows."),
]
BackendOption = Annotated[
    Backend, typer.Option("--backend", help="What computes the encoder; openvino needs the extra of that name.")
]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="auto: bf16 where that is faster, else fp32; int8: openvino only, not exact."),
]
Test = Annotated[Path | None, typer.Option("--test", help="Rows that are only reported on.")]
TrainedEncoder = Annotated[str, typer.Option("--encoder", help="Folder or Hugging Face name.")]

ReportFile = Annotated[
    Path | None,
    typer.Option("--report", help="HTML file for figures, drawings and the worst mistakes, in which words are marked."),
]


def in_order(label_order: str | None) -> list[str] | None:
    """The labels that ``--label-order`` names."""
    return None if label_order is None else [name.strip() for name in label_order.split(",")]

"""Options that several commands share: what the columns are called, and what the labels are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Kind", "KindOption", "Label", "LabelOrder", "Test", "Text", "TextPair", "TrainedEncoder", "in_order",
]  # fmt: skip


class Kind(StrEnum):
    """What ``--kind`` allows."""

    auto = "auto"
    single = "single"
    ordinal = "ordinal"
    multi = "multi"
    regression = "regression"


Text = Annotated[str | None, typer.Option("--text", help="Column of the texts.", show_default="text, else sentence")]
TextPair = Annotated[str | None, typer.Option("--text-pair", help="Column of second texts.", show_default="text_pair")]
Label = Annotated[str | None, typer.Option("--label", help="Column of the labels.", show_default="label, else labels")]
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
Test = Annotated[Path | None, typer.Option("--test", help="Rows that are only reported on.")]
TrainedEncoder = Annotated[str, typer.Option("--encoder", help="Folder or Hugging Face name.")]


def in_order(label_order: str | None) -> list[str] | None:
    """The labels that ``--label-order`` names."""
    return None if label_order is None else [name.strip() for name in label_order.split(",")]

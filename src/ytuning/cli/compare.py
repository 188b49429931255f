"""``ytuning compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ytuning.cli.console import Json, Quiet, print_json, read_parts, shown_progress
from ytuning.cli.options import Group, KindOption, Label, LabelOrder, Test, Text, TextPair, TrainedEncoder, in_order
from ytuning.encoder.download import DEFAULT_ENCODER

__all__ = ["compare"]


def compare(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Train rows: CSV, TSV, JSON lines or Parquet, also .gz.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results; a comparison that was ended goes on from it.")
    ],
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Rows that choose. Default: a part of DATA for each seed.")
    ] = None,
    test: Test = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    group: Group = None,
    kind: KindOption = "auto",
    label_order: LabelOrder = None,
    encoder: TrainedEncoder = DEFAULT_ENCODER,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="With commas: ytuning, paper (its head and loss), few-shot (the preset of train), logistic (or ridge) "
            "regression, full fine-tuning, lora (extra peft), setfit (extra benchmark).",
        ),
    ] = "ytuning,paper,logistic,full,lora",
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=256, help="Of split, weights and row order, from 0.")] = 3,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="At most, of full and lora.", show_default="5, of few rows more"),
    ] = None,
    search_rates: Annotated[
        bool,
        typer.Option("--search-rates", help="Let full and lora try three learning rates, for three times as long."),
    ] = False,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Take so many of DATA's rows at random.", show_default="all")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on the same rows, splits, seeds and encoder: score, and what it costs."""
    from ytuning.compare.compare import compare, some_rows
    from ytuning.compare.methods import check_methods, work_on
    from ytuning.compare.summary import standings_of
    from ytuning.reports.comparison import print_standings, write_standings

    names = [name.strip() for name in methods.split(",")]
    check_methods(names)
    with shown_progress(quiet) as progress:
        columns = {"text": text, "text_pair": text_pair, "label": label, "group": group}
        parts = read_parts(progress, (data, validation, test), **columns, kind=kind, quiet=quiet)
        work = work_on(
            parts[0] if rows is None else some_rows(parts[0], rows),
            encoder,
            validation=parts[1],
            test=parts[2],
            label_order=in_order(label_order),
            epochs=epochs,
            search_rates=search_rates,
        )
        found = compare(work, names, out, seeds=seeds, progress=progress)
        standings = standings_of(found)
        write_standings(standings, out)
    if as_json:
        print_json(standings.to_json())
    else:
        print_standings(Console(), standings)
        print(f"written to {out}: comparison.json and comparison.html")
    if found.interrupted:
        told = f"{len(found.runs)} of {seeds * len(names)} runs are finished; the same command goes on from there"
        print(f"interrupted: {told}", file=sys.stderr)
        raise typer.Exit(1)

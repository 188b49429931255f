"""``ytuning compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ytuning.cli import options
from ytuning.cli.console import print_json, read_parts, shown_progress
from ytuning.cli.options import DATA, HEAD, OUTPUT, in_order
from ytuning.encoder.download import DEFAULT_ENCODER

__all__ = ["compare"]


def compare(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Training set: CSV, TSV, JSON lines or Parquet, also .gz.")
    ],
    *,
    validation: options.Validation = None,
    test: options.Test = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    group: options.Group = None,
    kind: options.KindOption = "auto",
    label_order: options.LabelOrder = None,
    encoder: options.TrainedEncoder = DEFAULT_ENCODER,
    methods: Annotated[
        str,
        HEAD(
            "--methods",
            "NAMES",
            "Methods, separated by commas: ytuning, paper (its head and loss), few-shot (the preset), logistic "
            "(or ridge) regression, full (fine-tuning), lora (extra peft), setfit (extra benchmark).",
        ),
    ] = "ytuning,paper,logistic,full,lora",
    seeds: Annotated[
        int,
        HEAD(
            "--seeds",
            "N",
            "Number of seeds. A seed sets the split, the initial weights and the row order.",
            min=1,
            max=256,
        ),
    ] = 3,
    epochs: Annotated[
        int | None,
        HEAD("--epochs", "N", "Maximum number of epochs of full and lora.", "5, or more for few rows", min=1),
    ] = None,
    search_rates: Annotated[
        bool,
        HEAD("--search-rates", None, "Try three learning rates for full and lora, which takes three times as long."),
    ] = False,
    rows: Annotated[
        int | None, DATA("--rows", "N", "Number of rows of DATA to use, drawn at random.", "all", min=1)
    ] = None,
    out: Annotated[
        Path, OUTPUT("--out", "FOLDER", "Folder for the results. An interrupted comparison in it is resumed.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare the scores and the costs of methods on the same rows, splits, seeds and encoder."""
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
        print(f"The results are in {out / 'comparison.html'} and {out / 'comparison.json'}.")
    if found.interrupted:
        told = f"{len(found.runs)} of {seeds * len(names)} runs are finished"
        print(f"Interrupted. {told}; run the same command again to resume.", file=sys.stderr)
        raise typer.Exit(1)

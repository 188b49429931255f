"""``ytuning encode``: store the features of texts before anything is trained on them."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Literal

import typer

from ytuning.cli import console, options
from ytuning.cli.options import ENCODER, WORKERS
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.errors import InputError, YTuningError, quantity

__all__ = ["encode"]


def encode(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="File, folder, pattern of files or address of the texts.")
    ],
    text: options.Text = None,
    text_pair: options.TextPair = None,
    encoder: options.TrainedEncoder = DEFAULT_ENCODER,
    layers: Annotated[
        str,
        ENCODER("LAYERS", "Hidden states to store: default, last, or numbers separated by commas."),
    ] = "default",
    pairs: options.PairsOption = "auto",
    long_text: options.LongTextOption = "truncate",
    precision: options.PrecisionOption = "auto",
    store: Annotated[
        Literal["fp16", "int8", "compact"],
        ENCODER(
            "FORMAT", "Format of the stored features: fp16, int8 (half the size) or compact (a quarter of the size)."
        ),
    ] = "int8",
    engine: options.EngineOption = None,
    workers: Annotated[int, WORKERS("N", "Number of workers. Each one loads the encoder.", min=1)] = 1,
    worker_cpus: options.WorkerCpus = None,
    worker_gpus: options.WorkerGpus = None,
    address: options.Address = None,
    attempts: Annotated[int, WORKERS("N", "Number of times that a part of the texts is tried.", min=1)] = 3,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Store the features of texts in the feature store, with one or more workers.

    A training on these texts then makes no encoder call. Texts that are stored already are left out, so the same
    command resumes a run that was interrupted, and several may run at once.
    """
    from ytuning.batch.encode_folder import encode_folder
    from ytuning.engines.engine import Engine

    given = Engine(engine or "local", workers, attempts, worker_cpus, worker_gpus or 0, address)
    # Ray prints what happens to machines on stdout, which is for the result.
    with redirect_stdout(sys.stderr), console.shown_progress(quiet) as progress:
        run = encode_folder(
            data,
            encoder,
            text=text,
            text_pair=text_pair,
            layers=_layers(layers),
            pairs=pairs,
            codec=store,
            precision=precision,
            long_text=long_text,
            engine=given,
            progress=progress,
        )
    if as_json:
        console.print_json(run.to_json())
    else:
        print(
            f"{quantity(run.rows, 'row')} read: {quantity(run.encoded, 'text')} encoded, {run.stored:,} stored before; "
            f"{run.seconds['total']:,.1f} s. The features are in {run.cache}."
        )
    if run.failed:
        sys.stdout.flush()
        first = run.failed[0]
        raise YTuningError(
            f"{quantity(len(run.failed), 'unit')} failed; all others are stored. The first is {first.file}, from row "
            f"{first.first_row:,}: {first.why} Run the same command again to try only these."
        )


def _layers(text: str) -> list[int] | None:
    """The hidden states that ``--layers`` names; None for the default ones."""
    if text == "default":
        return None
    try:
        return [-1] if text == "last" else [int(part) for part in text.split(",")]
    except ValueError:
        allowed = "default, last, or numbers separated by commas"
        raise InputError(f"--layers must be {allowed}. Got {text!r} instead.") from None

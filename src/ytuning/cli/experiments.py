"""``ytuning search`` and ``ytuning compare``, which train many heads on the same rows."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from ytuning.cli import options
from ytuning.cli.console import (
    files_json,
    print_json,
    read_parts,
    shown_progress,
    split_of_report,
    tell_held_out,
    write_page,
)
from ytuning.cli.options import DATA, ENCODER, HEAD, OUTPUT, engine_of, in_order
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.errors import InputError

if TYPE_CHECKING:
    from ytuning.search.search import Searched
    from ytuning.tasks.train import Stopwatch

__all__ = ["compare", "search"]

# The summary of a search shows this number of trials.
BEST = 10
PLOT_FILE = "search.html"
DEFAULT_METHODS = "ytuning,paper,logistic,full,lora"


def search(
    train_file: options.TrainFile,
    *,
    validation: options.Validation = None,
    test: options.Test = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    group: options.Group = None,
    kind: options.KindOption = "auto",
    label_order: options.LabelOrder = None,
    label_names: options.LabelNames = None,
    preset: Annotated[
        Literal["all", "default", "few-shot", "paper"],
        HEAD("NAME", "Head and training to start from: default, few-shot, paper (slow with many labels) or all three."),
    ] = "all",
    trials: Annotated[int, HEAD("N", "Number of recipes to try in total.", min=1, max=10_000)] = 30,
    minutes: Annotated[
        float | None,
        HEAD(
            "N", "Start no trial after this time. The first few trials of a new search always run.", "no limit", min=0
        ),
    ] = None,
    seed: options.Seed = 0,
    encoder: options.TrainedEncoder = DEFAULT_ENCODER,
    pairs: options.PairsOption = "auto",
    long_text: options.LongTextOption = "truncate",
    precision: options.PrecisionOption = "auto",
    engine: options.EngineOption = None,
    workers: options.Workers = None,
    worker_cpus: options.WorkerCpus = None,
    worker_gpus: options.WorkerGpus = None,
    address: options.Address = None,
    out: Annotated[Path, OUTPUT("FOLDER", "Folder for the results. A search in it is resumed.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search for the best recipe and train it.

    The search tries presets, hidden states, losses, learning rates and sizes; the validation set chooses. It needs
    the extra `search` and draws its results in `search.html`. Ctrl-C stops it and trains the best recipe so far; run
    the same command again to resume. Another number of workers tries other recipes.
    """
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.reports.html import plot_search
    from ytuning.search.search import SearchOptions
    from ytuning.search.search import search as run_search
    from ytuning.tasks.train import Stopwatch
    from ytuning.training.recipes import stepwise_presets

    start, watch = time.perf_counter(), Stopwatch()
    chosen = engine_of(engine, workers, worker_cpus, worker_gpus, address)
    # Ray prints what happens to machines on stdout, which is for the result.
    with redirect_stdout(sys.stderr), shown_progress(quiet) as progress:
        with watch.stage("read"):
            columns = {"text": text, "text_pair": text_pair, "label": label, "group": group, "label_names": label_names}
            rows, held, judged = read_parts(progress, (train_file, validation, test), **columns, kind=kind, quiet=quiet)
        with watch.stage("encode"):
            loaded = load_encoder(encoder, precision=precision, long_text=long_text)
        result = run_search(
            rows,
            loaded,
            FeatureStore(),
            out,
            validation=held,
            test=judged,
            options=SearchOptions(
                presets=stepwise_presets() if preset == "all" else (preset,),
                pairs=pairs,
                label_order=in_order(label_order),
                trials=trials,
                minutes=minutes,
                seed=seed,
            ),
            engine=chosen,
            progress=progress,
        )
        watch.add(result.seconds)
        tell_held_out(progress, rows, result.trained.rows, held, quiet=quiet)
        write_page(out / PLOT_FILE, plot_search(result.trials), "--out")
        if result.interrupted:
            progress.say(
                f"Interrupted after {len(result.trials)} of {trials} trials. The best task so far is in {out}."
            )
    watch.seconds["total"] = time.perf_counter() - start
    if as_json:
        files = files_json(train=rows, validation=held, test=judged)
        print_json({**_search_json(result, out, watch), "files": files})
    else:
        _print_search(result, out, watch)
    if result.interrupted:
        raise typer.Exit(1)


def _search_json(result: Searched, out: Path, watch: Stopwatch) -> dict[str, Any]:
    from ytuning.search.log import RECIPE_FILE, SEARCH_FILE, TASK_FOLDER, importances

    task = result.trained.task
    return {
        "task_dir": str(out / TASK_FOLDER),
        "recipe": str(out / RECIPE_FILE),
        "search": str(out / SEARCH_FILE),
        "plot": str(out / PLOT_FILE),
        "kind": task.kind,
        "labels": len(task.target.names),
        "rows": result.trained.rows,
        "best": result.best.to_json(),
        "trials": len(result.trials),
        "importances": importances(result.trials),
        "metrics": task.metrics,
        "seconds": {stage: round(seconds, 3) for stage, seconds in watch.seconds.items()},
        "interrupted": result.interrupted,
    }


def _print_search(result: Searched, out: Path, watch: Stopwatch) -> None:
    """Print the best trials and the report of the best task."""
    from ytuning.reports.console import new_table, print_report
    from ytuning.search.log import TASK_FOLDER

    console, target, reports = Console(), result.trained.task.target, result.trained.reports
    best = sorted(result.trials, key=lambda trial: (trial.loss, trial.number))[:BEST]
    rows = f"{result.trained.rows['validation']:,} validation rows"
    table = new_table(
        f"Best {len(best)} of {len(result.trials)} trials on {rows}",
        [],
        ["trial", "loss", target.score_name, "parameters", "seconds"],
    )
    table.add_column("choices", overflow="fold")
    for trial in best:
        choices = (
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in trial.choices.items()
        )
        table.add_row(
            str(trial.number),
            f"{trial.loss:.4f}",
            target.shown_score(trial.score),
            f"{trial.parameters:,}",
            f"{trial.seconds:.1f}",
            escape(", ".join(choices)),
        )
    console.print(table)
    split = split_of_report(reports)
    print_report(console, reports[split], f"trial {result.best.number}, {split}", watch.seconds)
    print(f"The best task is in {out / TASK_FOLDER}. All trials are in {out}; {PLOT_FILE} draws them.")


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
    label_names: options.LabelNames = None,
    encoder: Annotated[
        str | None, ENCODER("NAME", "Encoder: a folder or a Hugging Face name.", DEFAULT_ENCODER)
    ] = None,
    encoders: Annotated[
        str | None,
        ENCODER(
            "NAMES",
            "Encoders to compare, separated by commas, instead of --encoder. Others are compared with the first.",
            "none",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        HEAD(
            "NAMES",
            "Methods, separated by commas: ytuning, paper (its head and loss), few-shot (the preset), logistic "
            "(or ridge) regression, full (fine-tuning), lora (extra peft), setfit (extra benchmark).",
            f"{DEFAULT_METHODS}; ytuning with --encoders",
        ),
    ] = None,
    seeds: Annotated[
        int, HEAD("N", "Number of seeds. A seed sets the split, the initial weights and the row order.", min=1, max=256)
    ] = 3,
    epochs: Annotated[
        int | None, HEAD("N", "Maximum number of epochs of full and lora.", "5, or more for few rows", min=1)
    ] = None,
    search_rates: Annotated[
        bool,
        HEAD(
            None, "Try three learning rates for full and lora, which takes three times as long.", True, "--search-rates"
        ),
    ] = False,
    rows: Annotated[int | None, DATA("N", "Number of rows of DATA to use, drawn at random.", "all", min=1)] = None,
    engine: options.EngineOption = None,
    workers: options.Workers = None,
    worker_cpus: options.WorkerCpus = None,
    worker_gpus: options.WorkerGpus = None,
    address: options.Address = None,
    out: Annotated[Path, OUTPUT("FOLDER", "Folder for the results. An interrupted comparison in it is resumed.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare the scores and the costs of methods, or of encoders, on the same rows, splits and seeds.

    With several workers, runs are measured beside each other, and the results say so.
    """
    from ytuning.compare.compare import compare as run_comparison
    from ytuning.compare.compare import some_rows
    from ytuning.compare.methods import check_encoders, check_methods, work_on
    from ytuning.compare.summary import standings_of
    from ytuning.reports.comparison import print_standings, write_standings

    names = _names((DEFAULT_METHODS if encoders is None else "ytuning") if methods is None else methods)
    check_methods(names)
    compared = [] if encoders is None else _names(encoders)
    if encoders is not None:
        check_encoders(compared)
        if encoder is not None:
            raise InputError("give either --encoder or --encoders, not both. --encoders names all that are compared")
    chosen = engine_of(engine, workers, worker_cpus, worker_gpus, address)
    # Ray prints what happens to machines on stdout, which is for the result.
    with redirect_stdout(sys.stderr), shown_progress(quiet) as progress:
        columns = {"text": text, "text_pair": text_pair, "label": label, "group": group, "label_names": label_names}
        training, held, judged = read_parts(progress, (data, validation, test), **columns, kind=kind, quiet=quiet)
        if rows is not None:
            some = some_rows(training, rows)
            if not quiet and len(some) < len(training):
                progress.say(f"{training.source}: {len(some):,} of the {len(training):,} rows are drawn (--rows).")
            training = some
        work = work_on(
            training,
            DEFAULT_ENCODER if encoder is None else encoder,
            validation=held,
            test=judged,
            label_order=in_order(label_order),
            epochs=epochs,
            search_rates=search_rates,
        )
        comparison = run_comparison(work, names, out, encoders=compared, seeds=seeds, progress=progress, engine=chosen)
        standings = standings_of(comparison)
        tell_held_out(progress, training, comparison.runs[0].rows, held, quiet=quiet)
        write_standings(standings, out)
    if as_json:
        print_json(standings.to_json())
    else:
        print_standings(Console(), standings)
        print(f"The results are in {out / 'comparison.html'} and {out / 'comparison.json'}.")
    if comparison.interrupted:
        total = seeds * len(comparison.contestants)
        runs = f"{len(comparison.runs)} of {total} runs are finished"
        print(f"Interrupted. {runs}; run the same command again to resume.", file=sys.stderr)
        raise typer.Exit(1)


def _names(listed: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name.strip() for name in listed.split(",")]

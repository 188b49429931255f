"""``ytuning search``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ytuning.cli import options
from ytuning.cli.console import print_json, read_parts, shown_progress
from ytuning.cli.options import HEAD, OUTPUT, in_order
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.errors import cannot_write

if TYPE_CHECKING:
    from ytuning.search.log import Trial
    from ytuning.search.search import Searched
    from ytuning.tasks.train import Stopwatch

__all__ = ["search"]

SHOWN = 10  # of the best trials
PLOT_FILE = "search.html"


def search(
    train_file: Annotated[
        Path, typer.Argument(metavar="TRAIN", help="Training set: CSV, TSV, JSON lines or Parquet, also .gz.")
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
    preset: Annotated[
        Literal["all", "default", "few-shot", "paper"],
        HEAD(
            "--preset",
            "NAME",
            "Head and training to start from: default, few-shot, paper (slow with many labels) or all three.",
        ),
    ] = "all",
    trials: Annotated[int, HEAD("--trials", "N", "Number of recipes to try in total.", min=1, max=10_000)] = 30,
    minutes: Annotated[
        float | None,
        HEAD(
            "--minutes",
            "N",
            "Start no trial after this time. The first few trials of a new search always run.",
            "no limit",
            min=0,
        ),
    ] = None,
    seed: options.Seed = 0,
    encoder: options.TrainedEncoder = DEFAULT_ENCODER,
    pairs: options.PairsOption = "auto",
    long_text: options.LongTextOption = "truncate",
    precision: options.PrecisionOption = "auto",
    out: Annotated[Path, OUTPUT("--out", "FOLDER", "Folder for the results. A search in it is resumed.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search for the best recipe and train it.

    The search tries presets, hidden states, losses, learning rates and sizes; the validation set chooses. It needs
    the extra `search` and draws its results in `search.html`. Ctrl-C stops it and trains the best recipe so far; run
    the same command again to resume.
    """
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.search.search import SearchOptions
    from ytuning.search.search import search as run
    from ytuning.tasks.train import Stopwatch
    from ytuning.training.recipes import PRESETS

    start, watch = time.perf_counter(), Stopwatch()
    with shown_progress(quiet) as progress:
        with watch.stage("read"):
            columns = {"text": text, "text_pair": text_pair, "label": label, "group": group}
            rows, held, judged = read_parts(progress, (train_file, validation, test), **columns, kind=kind, quiet=quiet)
        with watch.stage("encode"):
            loaded = load_encoder(encoder, precision=precision, long_text=long_text)
        found = run(
            rows,
            loaded,
            FeatureStore(),
            out,
            validation=held,
            test=judged,
            options=SearchOptions(
                presets=tuple(PRESETS) if preset == "all" else (preset,),
                pairs=pairs,
                label_order=in_order(label_order),
                trials=trials,
                minutes=minutes,
                seed=seed,
            ),
            progress=progress,
        )
        watch.add(found.seconds)
        plot = _plot(found, out)
        if found.interrupted:
            progress.say(f"Interrupted after {len(found.trials)} of {trials} trials. The best task so far is in {out}.")
    watch.seconds["total"] = time.perf_counter() - start
    if as_json:
        print_json(_to_json(found, out, plot, watch))
    else:
        _print(found, out, watch)
    if found.interrupted:
        raise typer.Exit(1)


def _plot(found: Searched, out: Path) -> Path:
    """Write the page with charts."""
    from ytuning.reports.search import plot_search
    from ytuning.system.files import commit

    file = out / PLOT_FILE
    try:
        commit(file, plot_search(found.trials).encode())
    except OSError as error:
        raise cannot_write(str(file), error, "--out") from error
    return file


def _to_json(found: Searched, out: Path, plot: Path, watch: Stopwatch) -> dict[str, Any]:
    from ytuning.search.log import RECIPE_FILE, SEARCH_FILE, TASK_FOLDER, importances

    task = found.trained.task
    return {
        "task_dir": str(out / TASK_FOLDER),
        "recipe": str(out / RECIPE_FILE),
        "search": str(out / SEARCH_FILE),
        "plot": str(plot),
        "kind": task.kind,
        "labels": len(task.target.names),
        "rows": found.trained.rows,
        "best": found.best.to_json(),
        "trials": len(found.trials),
        "importances": importances(found.trials),
        "metrics": task.metrics,
        "seconds": {stage: round(seconds, 3) for stage, seconds in watch.seconds.items()},
        "interrupted": found.interrupted,
    }


def _print(found: Searched, out: Path, watch: Stopwatch) -> None:
    from ytuning.reports.console import print_report
    from ytuning.search.log import TASK_FOLDER

    console = Console()
    console.print(_table(found))
    reports = found.trained.reports
    split = "test" if "test" in reports else "validation"
    print_report(console, reports[split], f"trial {found.best.number}, {split}", watch.seconds)
    print(f"The best task is in {out / TASK_FOLDER}. All trials are in {out}; {PLOT_FILE} draws them.")


def _table(found: Searched) -> Table:
    """The best trials."""
    target = found.trained.task.target
    best = sorted(found.trials, key=lambda trial: (trial.loss, trial.number))[:SHOWN]
    title = f"Best {len(best)} of {len(found.trials)} trials on {found.trained.rows['validation']:,} validation rows"
    table = Table(title=title, box=box.SIMPLE, title_justify="left", pad_edge=False)
    for heading in ("trial", "loss", target.score_name, "parameters", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("choices", overflow="fold")
    for trial in best:
        figures = (
            f"{trial.loss:.4f}",
            target.shown_score(trial.score),
            f"{trial.parameters:,}",
            f"{trial.seconds:.1f}",
        )
        table.add_row(str(trial.number), *figures, escape(_choices(trial)))
    return table


def _choices(trial: Trial) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.choices.items()
    )

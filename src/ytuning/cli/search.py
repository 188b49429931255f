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

from ytuning.cli.console import Json, Quiet, print_json, read_parts, shown_progress
from ytuning.cli.options import (
    Group,
    KindOption,
    Label,
    LabelOrder,
    LongTextOption,
    PairsOption,
    PrecisionOption,
    Test,
    Text,
    TextPair,
    TrainedEncoder,
    in_order,
)
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.errors import cannot_write

if TYPE_CHECKING:
    from ytuning.search.log import Trial
    from ytuning.search.search import Searched
    from ytuning.tasks.train import Stopwatch

__all__ = ["search"]

SHOWN = 10  # of the best trials
PLOT_FILE = "search.html"


def search(  # one parameter for each option
    train_file: Annotated[Path, typer.Argument(metavar="TRAIN", help="CSV, TSV, JSON lines or Parquet, also .gz.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; a search in it goes on.")],
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Rows that choose. Default: a part of TRAIN.")
    ] = None,
    test: Test = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    group: Group = None,
    kind: KindOption = "auto",
    label_order: LabelOrder = None,
    pairs: PairsOption = "auto",
    encoder: TrainedEncoder = DEFAULT_ENCODER,
    long_text: LongTextOption = "truncate",
    precision: PrecisionOption = "auto",
    preset: Annotated[
        Literal["all", "default", "few-shot", "paper"],
        typer.Option("--preset", help="Forms of the head; that of paper is slow with many labels."),
    ] = "all",
    trials: Annotated[int, typer.Option("--trials", min=1, max=10_000, help="Recipes to try in all.")] = 30,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0,
            help="Begin no more trials after this time; of a new search the first few run in any case.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the hold-out, the proposals, weights and row order.")
    ] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search over presets, hidden states, losses, rates and sizes, and train the recipe that validation prefers.

    Needs the extra `search`. The results are drawn in `search.html`. Ctrl-C ends the search, and the best so
    far is trained; the same command goes on from there.
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
            progress.say(f"interrupted after {len(found.trials)} of {trials} trials; the best is saved in {out}")
    watch.seconds["total"] = time.perf_counter() - start
    if as_json:
        print_json(_to_json(found, out, plot, watch))
    else:
        _print(found, out, watch)
    if found.interrupted:
        raise typer.Exit(1)


def _plot(found: Searched, out: Path) -> Path:
    """Write the page with drawings."""
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
    saved = f"the winner is saved in {out / TASK_FOLDER}, every trial in {out}"
    console.print(saved, soft_wrap=True, markup=False, highlight=False)


def _table(found: Searched) -> Table:
    """The best trials."""
    from ytuning.training.losses import SCORES, shown_score

    objective = found.trained.task.target.objective
    best = sorted(found.trials, key=lambda trial: (trial.loss, trial.number))[:SHOWN]
    title = (
        f"the best {len(best)} of {len(found.trials)} trials, on {found.trained.rows['validation']:,} validation rows"
    )
    table = Table(title=title, box=box.SIMPLE, title_justify="left", pad_edge=False)
    for heading in ("trial", "loss", SCORES[objective][0], "parameters", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("choices", overflow="fold")
    for trial in best:
        figures = (
            f"{trial.loss:.4f}",
            shown_score(objective, trial.score),
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

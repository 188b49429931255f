"""``ytuning train``."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from ytuning.cli.console import (
    Json,
    Quiet,
    check_result_file,
    print_json,
    read_parts,
    shown_progress,
    tell_cut,
    write_page,
)
from ytuning.cli.options import (
    Group,
    KindOption,
    Label,
    LabelOrder,
    LongTextOption,
    PairsOption,
    PrecisionOption,
    ReportFile,
    Test,
    Text,
    TextPair,
    TrainedEncoder,
    in_order,
)
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.errors import InputError, counted
from ytuning.progress import Progress

if TYPE_CHECKING:
    from ytuning.tasks.train import Stopwatch, Trained

__all__ = ["train"]


def train(
    train_file: Annotated[Path, typer.Argument(metavar="TRAIN", help="CSV, TSV, JSON lines or Parquet, also .gz.")],
    out: Annotated[Path, typer.Option("--out", help="Task folder to write.")],
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Rows that choose the head. Default: a part of TRAIN.")
    ] = None,
    test: Test = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    group: Group = None,
    kind: KindOption = "auto",
    label_order: LabelOrder = None,
    abstain_at: Annotated[
        float | None,
        typer.Option(
            "--abstain-at",
            metavar="PRECISION",
            help="Give no label where it is not sure enough: this share of its answers on validation rows is right.",
        ),
    ] = None,
    pairs: PairsOption = "auto",
    encoder: TrainedEncoder = DEFAULT_ENCODER,
    long_text: LongTextOption = "truncate",
    precision: PrecisionOption = "auto",
    preset: Annotated[
        Literal["default", "few-shot", "paper"], typer.Option("--preset", help="Form of the head and its training.")
    ] = "default",
    loss: Annotated[
        Literal["cross_entropy", "triplet", "focal"] | None,
        typer.Option("--loss", help="focal: what is predicted well already weighs less.", show_default="the preset's"),
    ] = None,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="JSON recipe in place of a preset, as search writes it.")
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            "--layers",
            metavar="auto|default|last|N,N",
            help="Hidden states of the encoder to read; auto chooses them on a sample before the whole is encoded.",
        ),
    ] = "default",
    label_texts: Annotated[
        str | None,
        typer.Option(
            "--label-texts",
            metavar="FILE|names|none",
            help="What the labels mean: JSON from label to text, or rows with text and label; names: their names.",
            show_default="names for --preset few-shot, else none",
        ),
    ] = None,
    label_weights: Annotated[
        Literal["none", "balanced"],
        typer.Option("--label-weights", help="balanced: rows of a rare label weigh more in the loss."),
    ] = "none",
    store: Annotated[
        Literal["fp16", "int8", "compact"],
        typer.Option(
            "--store",
            help="How features are stored: int8 takes half the bytes of fp16, compact a quarter.",
        ),
    ] = "int8",
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the hold-out, weights and row order.")
    ] = 0,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=256, help="Heads to train together; the best on validation is saved.")
    ] = 1,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Save the mean of all the seeds' heads instead of the best one.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Go on on held-out rows too, once they have chosen.")
    ] = True,
    report: ReportFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a label head on labelled texts and save it as a task folder."""
    from ytuning.data.label_texts import read_label_texts
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.tasks.task import check_target, save_task, task_files
    from ytuning.tasks.train import Stopwatch, train_task
    from ytuning.training.recipes import AUTO_LAYERS, read_recipe, reading_layers, weighing_labels
    from ytuning.training.recipes import preset as recipe_of

    start = time.perf_counter()
    watch = Stopwatch()
    if recipe_file is not None and preset != "default":
        raise InputError("give either --preset or --recipe, which states what a preset does, not both")
    recipe = reading_layers(recipe_of(preset) if recipe_file is None else read_recipe(recipe_file), layers)
    if loss is not None:
        recipe = replace(recipe, training=replace(recipe.training, loss=loss))
    if label_weights == "balanced":
        recipe = weighing_labels(recipe, "balanced")
    check_target(out)
    if report is not None:
        check_result_file(
            report, "--report", (train_file, validation, test, recipe_file, label_texts, *task_files(out)), out
        )
    features = FeatureStore()
    with shown_progress(quiet) as progress:
        with watch.stage("read"):
            columns = {"text": text, "text_pair": text_pair, "label": label, "group": group}
            parts = read_parts(progress, (train_file, validation, test), **columns, kind=kind, quiet=quiet)
            if loss is not None and parts[0].kind == "regression":
                raise InputError(
                    "--loss is for labels, and these are numbers, which have a loss of their own. Leave it out"
                )
        with watch.stage("encode"):
            loaded = load_encoder(encoder, precision=precision, long_text=long_text)
        trained = train_task(
            parts[0],
            loaded,
            features,
            recipe,
            validation=parts[1],
            test=parts[2],
            name=out.resolve().name,
            seed=seed,
            seeds=seeds,
            ensemble=ensemble,
            refit=refit,
            codec=store,
            label_order=in_order(label_order),
            abstain_at=abstain_at,
            pairs=pairs,
            layers=AUTO_LAYERS if layers == AUTO_LAYERS else None,
            label_texts=None if label_texts is None else read_label_texts(label_texts),
            progress=progress,
            watch=watch,
        )
        if trained.fit.interrupted:
            out, report = _kept_apart(out, report)
        save_task(trained.task, out)
        _tell_training(progress, trained, out)
        if report is not None:
            from ytuning.reports.html import render_report

            split = _reported(trained)
            page = render_report(
                trained.task,
                trained.reports[split],
                trained.judged[split],
                loaded,
                features,
                title=f"{trained.task.name}, {split}",
                fit=trained.fit,
                seconds=watch.seconds,
                progress=progress,
            )
            write_page(report, page)
    watch.seconds["total"] = time.perf_counter() - start
    if as_json:
        print_json({**_train_json(trained, out, watch), "report": None if report is None else str(report)})
    else:
        _print_trained(trained, out, watch)
    if trained.fit.interrupted:
        raise typer.Exit(1)


def _kept_apart(out: Path, report: Path | None) -> tuple[Path, Path | None]:
    """Where to save a task whose training was interrupted, and its report: not over those of a finished one."""
    from ytuning.tasks.task import place_beside

    place = place_beside(out)
    if place != out:
        print(f"the finished task in {out} is kept", file=sys.stderr)
        if report is not None:
            inside = report.resolve().parent == out.resolve()
            report = place / report.name if inside else report.with_stem(f"{report.stem}-interrupted")
    return place, report


def _reported(trained: Trained) -> str:
    """Which rows a report is about."""
    return "test" if "test" in trained.reports else "validation"


def _tell_training(progress: Progress, trained: Trained, out: Path) -> None:
    tell_cut(progress, trained.truncated)
    for split, rows in trained.shared.items():
        if rows:
            other = "validation" if split == "test_and_validation" else "train"
            copies = counted(rows, f"{split.partition('_')[0]} row")
            progress.say(f"{copies} with exactly the text of a {other} row")
    if trained.fit.interrupted:
        from ytuning.training.losses import SCORES, shown_score

        best = trained.fit.history[trained.fit.chosen]
        objective = trained.task.target.objective
        score = shown_score(objective, best.score)
        figures = f"step {best.step}, validation {SCORES[objective][0]} {score}"
        saved = f"interrupted: the best head so far ({figures}) is saved in {out}"
        print(saved, file=sys.stderr)  # not progress, so --quiet does not hide it


def _train_json(trained: Trained, out: Path, watch: Stopwatch) -> dict[str, Any]:
    task = trained.task
    stages = ("read", "encode", "train", "evaluate", "total")
    return {
        "task_dir": str(out),
        "kind": task.kind,
        "labels": len(task.target.names),
        "rows": trained.rows,
        "encoder": {
            "name": task.encoder.name,
            "fingerprint": task.encoder.fingerprint,
            "parameters": task.encoder.parameters,
        },
        "head": {
            "parameters": task.head_parameters,
            "share_of_encoder": task.head_parameters / task.encoder.parameters,
        },
        "metrics": task.metrics,
        "seconds": {stage: round(watch.seconds.get(stage, 0.0), 3) for stage in stages},
        "cache": asdict(trained.cache),
        "store": task.codec.name,
        "truncated": trained.truncated,
        "shared": trained.shared,
        "seeds": {
            "saved": task.training["seed"],
            "metrics": {str(seed): metrics for seed, metrics in trained.by_seed.items()},
            "spread": {split: _spread(trained, split) for split in trained.reports},
        },
        "zero_shot": trained.zero_shot,
        "refitted": trained.fit.refitted,
        "interrupted": trained.fit.interrupted,
    }


def _spread(trained: Trained, split: str) -> dict[str, dict[str, float]]:
    """Mean and deviation (0 of one seed) of each metric over the seeds whose head has a report of the split."""
    found = [metrics[split] for metrics in trained.by_seed.values() if split in metrics]
    return {
        name: {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else 0.0}
        for name in found[0]
        for values in [[metrics[name] for metrics in found]]
    }


def _print_trained(trained: Trained, out: Path, watch: Stopwatch) -> None:
    from ytuning.evaluation.evaluate import HEADLINES
    from ytuning.reports.console import print_report

    split = _reported(trained)
    console = Console()
    print_report(console, trained.reports[split], f"{trained.task.name}, {split}", watch.seconds)
    if len(trained.by_seed) > 1:
        of = ", ".join(
            f"{name} {figures['mean']:.4f} (deviation {figures['deviation']:.4f})"
            for name, figures in _spread(trained, split).items()
        )
        best = trained.task.training["seed"]
        saved = "the mean of their heads" if best is None else f"seed {best}"
        text = f"{len(trained.by_seed)} seeds, {split}: {of}; saved is {saved}"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    if before := trained.zero_shot.get(split):
        figures = ", ".join(f"{name} {before[name]:.4f}" for name in HEADLINES[trained.task.kind])
        text = f"before any training, from the labels' texts alone, {split}: {figures}"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    share = trained.task.head_parameters / trained.task.encoder.parameters
    console.print(
        f"head: {trained.task.head_parameters:,} parameters, {share:.1%} of the encoder's; saved in {out}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )

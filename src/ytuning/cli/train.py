"""``ytuning train``: train a head and save it as a task folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from ytuning.cli import console, options, results
from ytuning.cli.options import DATA, ENCODER, HEAD, OUTPUT, engine_of, in_order
from ytuning.cli.train_columns import Output, Request, check_options_of_tasks, train_columns
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.errors import InputError, quantity
from ytuning.progress import Progress

if TYPE_CHECKING:
    from ytuning.data.dataset import Dataset
    from ytuning.data.label_texts import LabelTexts
    from ytuning.tasks.train import Stopwatch, Trained
    from ytuning.training.recipes import Recipe

__all__ = ["train"]


def train(
    train_file: options.TrainFile,
    *,
    validation: options.Validation = None,
    test: options.Test = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    tasks: Annotated[
        str | None,
        DATA(
            "COLUMNS",
            "Columns of labels, separated by commas, to train a task for each in one run, such as "
            "intent,urgency:ordinal=low|high,topics:multi. --out is then the folder of their task folders. An empty "
            "cell says nothing about its task.",
            "one task",
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        DATA(
            "FILE",
            "Texts without labels, in the same columns, for --preset auto. Where the default head is kept, the light "
            "head beside it learns from its answers to these texts.",
            "none",
        ),
    ] = None,
    group: options.Group = None,
    kind: options.KindOption = "auto",
    label_order: options.LabelOrder = None,
    label_names: options.LabelNames = None,
    preset: Annotated[
        Literal["default", "few-shot", "paper", "light", "auto"],
        HEAD(
            "NAME",
            "Form of the head and its training: default, few-shot, paper or light. A light head is computed in closed "
            "form, without training steps. auto trains light and default, and keeps light unless default is "
            "better on the validation set.",
        ),
    ] = "default",
    recipe_file: Annotated[
        Path | None,
        HEAD("FILE", "JSON recipe to use instead of a preset, as ytuning search writes it.", "none", "--recipe"),
    ] = None,
    loss: Annotated[
        Literal["cross_entropy", "triplet", "focal"] | None,
        HEAD(
            "NAME",
            "Training loss: cross_entropy, triplet or focal. focal gives less weight to rows that are already "
            "predicted well.",
            "the loss of the preset",
        ),
    ] = None,
    label_texts: Annotated[
        str | None,
        HEAD(
            "FILE|names|none",
            "Descriptions of the labels: a JSON file that maps labels to texts, a table with the columns text and "
            "label, or names to use the label names.",
            "names with --preset few-shot, else none",
        ),
    ] = None,
    label_weights: Annotated[
        Literal["none", "balanced"],
        HEAD("MODE", "Weights of labels in the loss: none, or balanced, which gives rows of rare labels more weight."),
    ] = "none",
    abstain_at: Annotated[
        float | None,
        HEAD(
            "PRECISION",
            "Give no label when the confidence is low. The threshold is set so that this share of the answers on "
            "the validation set is correct.",
            "always give a label",
        ),
    ] = None,
    out_of_scope: Annotated[
        float | None,
        HEAD(
            "SHARE",
            "Say which texts are unlike the training rows. The threshold is set so that this share of the texts in "
            "scope is taken for others, such as 0.05. Every task gives a score either way.",
            "say it of no text",
        ),
    ] = None,
    seed: options.Seed = 0,
    seeds: Annotated[
        int,
        HEAD("N", "Number of heads to train. The head that is best on the validation set is saved.", min=1, max=256),
    ] = 1,
    ensemble: Annotated[
        bool, HEAD(None, "Save the mean of all trained heads instead of the best one.", True, "--ensemble")
    ] = False,
    refit: Annotated[
        bool,
        HEAD(
            None,
            "After early stopping, train a few more steps on all rows, including the validation set.",
            True,
            "--refit/--no-refit",
        ),
    ] = True,
    encoder: options.TrainedEncoder = DEFAULT_ENCODER,
    layers: Annotated[
        str,
        ENCODER(
            "LAYERS",
            "Hidden states of the encoder to read: default, last, numbers separated by commas, or auto, which "
            "chooses them on a sample of the rows.",
        ),
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
    workers: options.Workers = None,
    worker_cpus: options.WorkerCpus = None,
    worker_gpus: options.WorkerGpus = None,
    address: options.Address = None,
    out: Annotated[Path, OUTPUT("FOLDER", "Task folder to write.")],
    report: options.ReportFile = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a classifier on labelled texts and save it as a task folder."""
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.tasks.choose_recipe import train_cheapest
    from ytuning.tasks.task import check_task_folder, save_task, task_files
    from ytuning.tasks.train import Stopwatch, TrainOptions
    from ytuning.training.recipes import AUTO_LAYERS

    start, watch = time.perf_counter(), Stopwatch()
    console.check_streams(train_file, validation, test, recipe_file, label_texts, unlabelled)
    recipes_by_name = _recipes(preset, recipe_file, layers, loss, label_weights)
    _check_unused(
        unlabelled,
        preset,
        tasks,
        {
            "--engine": engine,
            "--workers": workers,
            "--worker-cpus": worker_cpus,
            "--worker-gpus": worker_gpus,
            "--address": address,
        },
    )
    chosen = TrainOptions(
        seed=seed,
        seeds=seeds,
        ensemble=ensemble,
        refit=refit,
        codec=store,
        label_order=in_order(label_order),
        abstain_at=abstain_at,
        out_of_scope=out_of_scope,
        pairs=pairs,
        layers=AUTO_LAYERS if layers == AUTO_LAYERS else None,
        # The command reads no more texts.
        release_encoder=True,
    )
    if tasks is not None:
        one_task = {"--label": label, "--label-names": label_names, "--label-order": label_order, "--report": report}
        check_options_of_tasks({**one_task, "--kind": None if kind == "auto" else kind}, label_texts)
        train_columns(
            Request(tasks, (train_file, validation, test), text, text_pair, group, loss=loss, unlabelled=unlabelled),
            recipes_by_name,
            replace(chosen, label_texts=label_texts),
            partial(load_encoder, encoder, precision=precision, long_text=long_text),
            out,
            engine=engine_of(engine, workers, worker_cpus, worker_gpus, address),
            output=Output(as_json=as_json, quiet=quiet),
        )
        return
    check_task_folder(out)
    if report is not None:
        console.check_result_file(
            report,
            "--report",
            (train_file, validation, test, recipe_file, label_texts, unlabelled, *task_files(out)),
            out,
        )
    features = FeatureStore()
    with console.shown_progress(quiet) as progress:
        with watch.stage("read"):
            columns = {"text": text, "text_pair": text_pair, "label": label, "group": group, "label_names": label_names}
            rows, held, judged = console.read_parts(
                progress, (train_file, validation, test), **columns, kind=kind, quiet=quiet
            )
            _check_loss(rows, loss)
            others = console.read_unlabelled(progress, unlabelled, rows, text, text_pair, quiet=quiet)
        with watch.stage("encode"):
            loaded = load_encoder(encoder, precision=precision, long_text=long_text)
        trained = train_cheapest(
            rows,
            loaded,
            features,
            recipes_by_name,
            validation=held,
            test=judged,
            options=replace(
                chosen,
                # Only now is it known that the folder is no link to itself.
                name=out.resolve().name,
                label_texts=_read_label_texts(progress, label_texts, quiet=quiet),
            ),
            unlabelled=others,
            progress=progress,
        )
        watch.add(trained.seconds)
        if trained.fit.interrupted:
            out, report = results.place_beside_finished(out, report)
        save_task(trained.task, out)
        console.tell_held_out(progress, rows, trained.rows, held, quiet=quiet)
        results.tell_training(progress, trained)
        _tell_interrupted(trained, out)
        if report is not None:
            from ytuning.reports.html import render_report

            split = console.split_of_report(trained.reports)
            page = render_report(
                trained.task,
                trained.reports[split],
                trained.judged[split],
                loaded,
                features,
                title=f"{trained.task.name}, {split}",
                trained=replace(trained, seconds=watch.seconds),
                progress=progress,
            )
            console.write_page(report, page)
    watch.seconds["total"] = time.perf_counter() - start
    if as_json:
        files = console.files_json(train=rows, validation=held, test=judged, unlabelled=others)
        shown = {"files": files, "report": None if report is None else str(report)}
        console.print_json({**results.train_json(trained, out, watch), **shown})
    else:
        _print_trained(trained, out, watch)
    if trained.fit.interrupted:
        raise typer.Exit(1)


def _check_unused(unlabelled: Path | None, preset: str, tasks: str | None, workers: Mapping[str, object]) -> None:
    """Refuse options that would do nothing: texts without labels, and those about workers."""
    from ytuning.training.recipes import AUTO_PRESET

    if unlabelled is not None and preset != AUTO_PRESET:
        raise InputError(
            f"--unlabelled is for --preset {AUTO_PRESET}, in which a light head learns from the default head. The "
            f"preset is {preset}. Use --preset {AUTO_PRESET}, or leave out --unlabelled."
        )
    for option, value in workers.items():
        if tasks is None and value is not None:
            raise InputError(f"{option} is for several tasks, which --tasks names. Leave it out, or use --tasks.")


def _check_loss(rows: Dataset, loss: str | None) -> None:
    from ytuning.data.kinds import KINDS

    if loss is not None:
        KINDS[rows.kind].check_option("loss")


def _recipes(
    preset: str, recipe_file: Path | None, layers: str, loss: str | None, label_weights: str
) -> dict[str, Recipe]:
    """The recipes of a preset or a file, with what other options change in them."""
    from ytuning.training import recipes

    if recipe_file is not None and preset != "default":
        raise InputError(
            "--recipe replaces a preset, so it cannot be used together with --preset. Leave out one of the two."
        )
    if preset == recipes.AUTO_PRESET and loss is not None:
        problem = "--preset auto also trains a light head, which has no loss to choose."
        raise InputError(f"{problem} Got {loss!r}. Leave out --loss or use --preset default.")
    bases = recipes.preset_recipes(preset) if recipe_file is None else {"recipe": recipes.read_recipe(recipe_file)}
    changed = {}
    for name, base in bases.items():
        recipe = recipes.reading_layers(base, layers)
        if loss is not None:
            recipe = replace(recipe, training=replace(recipe.training, loss=loss))
        changed[name] = recipes.weighing_labels(recipe, "balanced") if label_weights == "balanced" else recipe
    return changed


def _read_label_texts(progress: Progress, given: str | None, *, quiet: bool) -> LabelTexts | None:
    """The label texts, after saying how many a file has."""
    from ytuning.data.label_texts import read_label_texts

    texts = None if given is None else read_label_texts(given)
    if not (quiet or texts is None or isinstance(texts, str)):
        count = sum(1 if isinstance(words, str) else len(words) for words in texts.values())
        progress.say(f"{given}: {quantity(count, 'text')} for {quantity(len(texts), 'label')}")
    return texts


def _tell_interrupted(trained: Trained, out: Path) -> None:
    if trained.fit.interrupted:
        best, target = trained.fit.validation, trained.task.target
        figures = f"step {best.step}, validation {target.score_name} {target.shown_score(best.score)}"
        # This is not progress, so --quiet does not hide it.
        print(f"Interrupted. The best head so far ({figures}) is saved in {out}.", file=sys.stderr)


def _print_trained(trained: Trained, out: Path, watch: Stopwatch) -> None:
    from ytuning.reports.console import print_report
    from ytuning.tasks.cascade import DEFAULT_SHARE

    task, split = trained.task, console.split_of_report(trained.reports)
    print_report(Console(), trained.reports[split], f"{task.name}, {split}", watch.seconds)
    if len(trained.by_seed) > 1:
        figures = ", ".join(
            f"{name} {values['mean']:.4f} (deviation {values['deviation']:.4f})"
            for name, values in results.spread_of_seeds(trained, split).items()
        )
        best = task.training["seed"]
        saved = "The mean of their heads" if best is None else f"The head of seed {best}"
        print(f"Mean over {len(trained.by_seed)} seeds, {split} set: {figures}. {saved} is saved.")
    if before := trained.zero_shot.get(split):
        figures = ", ".join(f"{name} {before[name]:.4f}" for name in task.target.headlines)
        print(f"Before training, from the label texts alone, {split} set: {figures}.")
    if split in trained.out_of_scope:
        print(f"Out of scope: {trained.out_of_scope[split]:.1%} of the {split} rows.")
    if task.cascade is not None:
        sentence = task.cascade.sentence(DEFAULT_SHARE)
        print(f"With --cascade {DEFAULT_SHARE}, {sentence} (measured on the validation set).")
    share = task.head_parameters / task.encoder.parameters
    print(f"The head has {task.head_parameters:,} parameters, {share:.1%} of the encoder's. Saved in {out}.")
    if split == "validation":
        print(
            "Without --test, these scores are from the validation set, which also chose the head; they are optimistic."
        )

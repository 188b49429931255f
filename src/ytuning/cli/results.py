"""What ``ytuning train`` says of trained tasks: messages, the JSON of a task, and where an interrupted one is saved."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ytuning.cli import console
from ytuning.errors import quantity
from ytuning.progress import Progress

if TYPE_CHECKING:
    from ytuning.tasks.task import Task
    from ytuning.tasks.train import Stopwatch, Trained

__all__ = ["place_beside_finished", "spread_of_seeds", "tell_training", "train_json"]


def place_beside_finished(out: Path, report: Path | None) -> tuple[Path, Path | None]:
    """Where to save a task whose training was interrupted, and its report: not over those of a finished one."""
    from ytuning.tasks.task import place_beside

    place = place_beside(out)
    if place != out:
        print(f"The finished task in {out} is kept.", file=sys.stderr)
        if report is not None:
            inside = report.resolve().parent == out.resolve()
            report = place / report.name if inside else report.with_stem(f"{report.stem}-interrupted")
    return place, report


def tell_training(progress: Progress, trained: Trained) -> None:
    """Tell of texts that were cut, and of texts that are in several parts."""
    console.tell_cut(progress, trained.truncated)
    for split, rows in trained.shared.items():
        if rows:
            other = "validation" if split == "test_and_validation" else "training"
            copies = quantity(rows, f"{split.partition('_')[0]} row")
            progress.say(f"{copies} {'has' if rows == 1 else 'have'} exactly the text of a {other} row.")


def train_json(trained: Trained, out: Path, watch: Stopwatch) -> dict[str, Any]:
    """What ``--json`` says of a trained task, but for the files that were read and the report."""
    from ytuning.tasks.cascade import DEFAULT_SHARE

    task, encoder = trained.task, trained.task.encoder
    stages = ("read", "encode", "train", "evaluate", "total")
    return {
        "task_dir": str(out),
        "kind": task.kind,
        "labels": len(task.target.names),
        "rows": trained.rows,
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint, "parameters": encoder.parameters},
        "head": {"parameters": task.head_parameters, "share_of_encoder": task.head_parameters / encoder.parameters},
        "cascade": None if task.cascade is None else asdict(task.cascade.curve.figures(DEFAULT_SHARE)),
        "metrics": task.metrics,
        "seconds": {stage: round(watch.seconds.get(stage, 0.0), 3) for stage in stages},
        "cache": asdict(trained.cache),
        "store": task.codec.name,
        "truncated": trained.truncated,
        "shared": trained.shared,
        "seeds": {
            "saved": task.training["seed"],
            "metrics": {str(seed): metrics for seed, metrics in trained.by_seed.items()},
            "spread": {split: spread_of_seeds(trained, split) for split in trained.reports},
        },
        "zero_shot": trained.zero_shot,
        "out_of_scope": _out_of_scope_json(task, trained.out_of_scope),
        "refitted": trained.fit.refitted,
        "interrupted": trained.fit.interrupted,
    }


def spread_of_seeds(trained: Trained, split: str) -> dict[str, dict[str, float]]:
    """Mean and deviation (0 of one seed) of each metric over the seeds whose head has a report of the split."""
    metrics = [splits[split] for splits in trained.by_seed.values() if split in splits]
    columns = {name: [figures[name] for figures in metrics] for name in metrics[0]}
    return {
        name: {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else 0.0}
        for name, values in columns.items()
    }


def _out_of_scope_json(task: Task, rows: dict[str, float]) -> dict[str, Any] | None:
    """What JSON says of a task's threshold, and of the share of the rows of each split above it; None without one."""
    scope = task.scope
    if scope is None or scope.threshold is None:
        return None
    return {"share": scope.share, "threshold": scope.threshold, "rows": rows}

"""Scores of full fine-tuning, learning rate by learning rate, into a file that `quality.py` reads.

python -m benchmarks.full_tuning --data ../shared/data --sets trec6 cola --into benchmarks/full_tuning.json

It takes hours, and so is resumed: a training that the file holds already is not done again. With `--search-rows` the
rates are tried on so many train rows, and only the one that validates best there on all rows. Figures belong to an
encoder by the name of its folder. Pairs are read as one
text; validation rows are those of `methods.work_on`, they choose the epoch and, of the rates, the one
that `quality.py` takes. The loss is a head's, without label smoothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import parser
from benchmarks.machine import machine
from benchmarks.quality import SETS, parts_of
from ytuning.compare.fine_tuning import FULL_RATES, TuningConfig, TuningRows, full_fine_tuning
from ytuning.compare.methods import work_on
from ytuning.encoder.encoder import load_encoder
from ytuning.evaluation.evaluate import evaluate
from ytuning.progress import Progress
from ytuning.system.files import commit


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    options.add_argument("--rates", nargs="+", type=float, default=list(FULL_RATES))
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--rows", type=int, help="train rows of each set at most; default: all")
    options.add_argument("--search-rows", type=int, help="train rows that choose the rate; default: all")
    options.add_argument("--into", type=Path, required=True, help="JSON file that gets the figures, and may hold some")
    arguments = options.parse_args(argv)
    for name in arguments.sets:
        for seed in arguments.seeds:
            part = arguments.search_rows
            if part is None or part >= len(parts_of(arguments.data / name, arguments.rows)[0]):
                part = arguments.rows
            tried = [tuned(arguments, name, part, seed, rate) for rate in arguments.rates]
            good = [entry for entry in tried if entry["test"]]
            if not good:
                print(f"{name}, seed {seed}: every rate diverged. Give lower ones with --rates", flush=True)
            elif part != arguments.rows:
                rate = max(good, key=lambda entry: entry["validation"])["rate"]
                search = {"searched": {"rows": part, "rates": arguments.rates}}
                if not tuned(arguments, name, arguments.rows, seed, rate, search)["test"]:
                    print(
                        f"{name}, seed {seed}: the rate {rate} diverged on all rows. Leave it out of --rates",
                        flush=True,
                    )


def tuned(
    arguments: argparse.Namespace,
    name: str,
    rows: int | None,
    seed: int,
    rate: float,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One training, from the file or done now and put there; ``origin`` tells how its rate was chosen."""
    settings = {
        # Without its folder, which says nothing on another machine.
        "encoder": Path(arguments.encoder).name,
        "set": name,
        "rows": rows,
        "seed": seed,
        "rate": rate,
        "epochs": arguments.epochs,
    }
    entries = kept(arguments.into)
    found = next((entry for entry in entries if settings.items() <= entry.items()), None)
    if found is not None and (origin or {}).items() <= found.items():
        return found
    entry = (found or settings | one_training(arguments, name, rows, seed, rate)) | (origin or {})
    others = [each for each in kept(arguments.into) if each != found]
    commit(arguments.into, (json.dumps([*others, entry], indent=1) + "\n").encode())
    print(json.dumps({key: entry[key] for key in (*settings, "validation", "test", "seconds")}), flush=True)
    return entry


def kept(file: Path) -> list[dict[str, Any]]:
    """The trainings that a file holds."""
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return found


def one_training(arguments: argparse.Namespace, name: str, rows: int | None, seed: int, rate: float) -> dict[str, Any]:
    """One set, one seed, one learning rate."""
    train, validation, test = parts_of(arguments.data / name, rows)
    work = work_on(train, arguments.encoder, validation=validation, test=test)
    encoder, targets, split = load_encoder(arguments.encoder), work.targets, work.split(seed)
    start = time.perf_counter()
    found = full_fine_tuning(
        encoder,
        TuningRows(work.target, work.inputs, targets, *split),
        config=TuningConfig(rate, epochs=arguments.epochs),
        seed=seed,
        progress=Progress(),
    )
    seconds = time.perf_counter() - start
    logits = found.validation_logits
    diverged = not np.isfinite(logits).all()
    calibration = None if diverged else work.calibrated(split[1], logits)
    return {
        "train_rows": len(split[0]),
        "validation_rows": len(split[1]),
        "epoch": 1 + int(np.argmax(found.validation_scores)),
        "validation": None if diverged else max(found.validation_scores),
        "test": None
        if calibration is None
        else evaluate(work.target, calibration, work.judged(seed), found.logits(test.inputs)).metrics,
        "parameters": found.parameters,
        "seconds": seconds,
        # Not its command, which the settings above say but for the paths of a machine.
        "machine": {name: value for name, value in machine().items() if name != "command"},
    }


if __name__ == "__main__":
    main()

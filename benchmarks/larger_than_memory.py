"""Training over a store larger than memory, and whether the order in which it is read costs accuracy.

python -m benchmarks.larger_than_memory --data ../shared/data --gigabytes 8 --out results

Memory: a store of made-up features, dropped from the system's cache, is trained over in a process of its own, whose
peak resident memory counts; without --head-steps it takes every row once. Reads: the system's counters of that process
and of the store's disk, which others use too; the mean size of a read, as a share of that while the checksums are
checked, is 1 when everything is read in order, and small where single rows are fetched. Accuracy: a real set stored in
three orders: as the encoder pass writes it, shuffled (so that whatever is read together is a random sample) and sorted
by label (the worst that a file can do), all of them read in blocks as a store larger than memory is; and as a set of
this size is read, in any order.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import synthetic
from benchmarks.harness import bar, head_option, parser, recipe, rows_of
from benchmarks.limits import forget
from benchmarks.machine import record
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.data.splits import MOST_HELD_OUT, split_holdout
from ytuning.encoder.encoder import load_encoder
from ytuning.features.features import Features, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.training import batches as sampling
from ytuning.training.fit import HeadJob, fit_heads, logits_of

SECTOR = 512  # bytes, in the system's counters of a disk


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--gigabytes", type=float, default=8)
    options.add_argument("--set", default="sst2", help="on which the orders are compared")
    options.add_argument("--rows", type=int, help="of its train rows; default: all")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to use")
    options.add_argument("--train-over", type=Path, help=argparse.SUPPRESS)  # what the process of its own does
    arguments = options.parse_args(argv)
    if arguments.train_over is not None:
        print(json.dumps(train_over(arguments.train_over, arguments)))
        return
    memory, orders = in_bounded_memory(arguments), accuracy_by_order(arguments)
    lost = orders["not_in_blocks"]["mean"] - orders["as_written"]["mean"]
    bars = [
        bar(
            f"peak memory of training over {memory['bytes'] / 1e9:.1f} GB, GB", memory["peak_bytes"] / 1e9, at_most=1.5
        ),
        bar("accuracy lost by reading in blocks, points", 100 * lost, at_most=0.2),
    ]
    record("larger_than_memory", {"memory": memory, "accuracy_by_order": orders}, arguments.out, bars)


def in_bounded_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and reads of a training over made-up features."""
    encoder, size = load_encoder(arguments.encoder), round(arguments.gigabytes * 1e9)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        made = synthetic.write(FeatureStore(root), encoder, size)
        dropped = forget(Path(root))
        command = [sys.executable, "-m", "benchmarks.larger_than_memory", "--data", str(arguments.data)]
        command += ["--encoder", arguments.encoder, "--gigabytes", str(arguments.gigabytes), "--train-over", root]
        command += [] if arguments.head_steps is None else ["--head-steps", str(arguments.head_steps)]
        here = Path(__file__).parents[1]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=here)
    return {
        "texts": len(made.inputs),
        "tokens": made.tokens,
        "bytes": made.bytes,
        "write_seconds": made.write_seconds,
        "dropped_from_cache": dropped,
        **json.loads(done.stdout),
    }


def train_over(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on the made-up features stored in ``root``; the process's peak memory and the disk's reads."""
    encoder = load_encoder(arguments.encoder)
    states = encoder.resolve_states(None)
    made = synthetic.plan(encoder, round(arguments.gigabytes * 1e9))[0]
    before = disk_reads(root)
    features, use = stored_features(made.inputs, encoder, FeatureStore(root), Progress(), states=states)
    in_order = mean_read(before, disk_reads(root))
    peak_before = peak_bytes()
    forget(root)  # the check of the checksums has read everything
    held = np.random.default_rng(0).choice(len(made.inputs), min(2000, len(made.inputs) // 10), replace=False)
    train = np.setdiff1d(np.arange(len(made.inputs)), held)
    chosen = recipe(arguments)
    if arguments.head_steps is None:
        chosen = replace(chosen, training=replace(chosen.training, epochs=1, most_steps=1 << 30))
    own, before = process_read_bytes(), disk_reads(root)
    start = time.perf_counter()
    (result,) = fit_heads(
        features,
        [HeadJob(SingleLabel.fit(made.targets.tolist(), None), made.targets, chosen)],
        train=train,
        validation=held,
    )
    elapsed = time.perf_counter() - start
    own_after, mean = process_read_bytes(), mean_read(before, disk_reads(root))
    return {
        "peak_bytes": peak_bytes(),
        "peak_bytes_before_training": peak_before,
        "train_seconds": elapsed,
        "texts_encoded": use.misses,
        "steps": result.history[-1].step,
        "validation_accuracy": result.validation.score,
        "bytes_read": None if own is None or own_after is None else own_after - own,
        "mean_bytes_of_a_read": mean,
        "mean_bytes_of_a_read_in_order": in_order,
        "sequential_share": None if mean is None or in_order is None else min(1.0, mean / in_order),
    }


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    Not by ``ru_maxrss`` where there is another way: Linux starts it at what the parent had at the time of the start.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def process_read_bytes() -> int | None:
    """Bytes that this process has had read from disks; None where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def disk_reads(folder: Path) -> tuple[int, int] | None:
    """Reads and bytes read so far of the disk under a folder, by anyone; None where the system does not tell."""
    number = os.stat(folder).st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
        return int(fields[0]), int(fields[2]) * SECTOR
    except OSError:
        return None


def mean_read(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Bytes of a read between two counts; None if there was none."""
    if before is None or after is None or after[0] == before[0]:
        return None
    return (after[1] - before[1]) / (after[0] - before[0])


def accuracy_by_order(arguments: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of one recipe on one set, whose features lie in three orders."""
    folder = arguments.data / arguments.set
    train, test = rows_of(folder, "train", arguments.rows), rows_of(folder, "test", arguments.rows)
    encoder = load_encoder(arguments.encoder)
    states = encoder.resolve_states(None)
    inputs = [*train.inputs, *test.inputs]
    targets = LabelSet.from_labels(train.names).encode([*(train.names), *(test.names)])
    shuffled = np.random.default_rng(0).permutation(len(inputs))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        written = stored_features(inputs, encoder, FeatureStore(f"{root}/as_written"), Progress(), states=states)[0]
        found: dict[str, Features] = {"as_written": written}
        for name, order in (("shuffled", shuffled), ("by_label", np.argsort(targets, kind="stable"))):
            store = FeatureStore(f"{root}/{name}")
            found[name] = synthetic.copy_in_order(inputs, order, written, encoder, store)
        held = {seed: split_holdout(train, seed, most=MOST_HELD_OUT) for seed in arguments.seeds}
        figures: dict[str, Any] = {"set": arguments.set, "rows": len(train)}
        found["not_in_blocks"] = written
        limit = sampling.IN_MEMORY
        for name, features in found.items():
            sampling.IN_MEMORY = limit if name == "not_in_blocks" else 0
            scores = [one_fit(features, targets, *held[seed], seed, arguments) for seed in arguments.seeds]
            figures[name] = {"mean": float(np.mean(scores)), "runs": scores}
    return figures


def one_fit(
    features: Features,
    targets: np.ndarray,
    train: np.ndarray,
    held: np.ndarray,
    seed: int,
    arguments: argparse.Namespace,
) -> float:
    """Accuracy on the rows after the train rows."""
    job = HeadJob(SingleLabel.fit(targets.tolist(), None), targets, recipe(arguments), seed)
    (result,) = fit_heads(features, [job], train=train, validation=held, seed=seed)
    test = np.arange(len(train) + len(held), len(targets))
    return float((logits_of(result.head, features, torch.from_numpy(test)).argmax(1) == targets[test]).mean())


if __name__ == "__main__":
    main()

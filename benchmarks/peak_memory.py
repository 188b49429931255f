"""Peak memory (resident set) of `ytuning train` as its own process, with a cold store.

python benchmarks/peak_memory.py --train ../shared/data/sst2/train.jsonl --test ../shared/data/sst2/validation.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import bar
from benchmarks.machine import record
from ytuning.encoder.download import DEFAULT_ENCODER


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--out", type=Path, help="folder for peak_memory.json")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="folder or name")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-c", "from ytuning.cli import main; main()", "train", str(arguments.train)]
        command += ["--out", f"{root}/task", "--json", "--quiet", "--encoder", arguments.encoder] + (
            ["--test", str(arguments.test)] if arguments.test else []
        )
        environment = {**os.environ, "YTUNING_CACHE": f"{root}/store"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    wanted = bar(f"peak memory of training {arguments.train.parent.name}, GB", peak / 1e9, at_most=2.5)
    record("peak_memory", {"peak_bytes": peak, "train": json.loads(done.stdout)}, arguments.out, [wanted])


if __name__ == "__main__":
    main()

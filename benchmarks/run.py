"""Every benchmark, one after the other, each in a process of its own, and a table of what is wanted and measured.

python -m benchmarks.run --data ../shared/data --out results
python -m benchmarks.run --data ../shared/data --out results --only encoder_pass store_io
python -m benchmarks.run --data ../shared/data --out results --quick      (tiny sizes: only to see that all of it works)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import parser

ROOT = Path(__file__).parents[1]
ON = "--encoder {encoder} --data {data}"
QUICK = f"{ON} --sets banking77 --head-steps 20 --rounds 1"
QUICK_SCALE = f"{ON} --set banking77 --tasks 2 --engines local --rows 90 --task-rows 90 --memory-rows 90"
BENCHMARKS: dict[str, tuple[str, str]] = {
    "limits": ("--encoder {encoder} --megabytes 1024", "--encoder {encoder} --megabytes 8 --seconds 0.05"),
    "encoder_pass": (
        f"{ON} --texts 1 16 4000",
        f"{ON} --sets banking77 --texts 1 64 --rounds 1 --shapes tiny --opponents fp32 bf16",
    ),
    "store_opening": ("--encoder {encoder}", "--encoder {encoder} --texts 20000 --looked-up 1000 --rounds 1"),
    "store_io": ("--encoder {encoder}", "--encoder {encoder} --megabytes 2 --rounds 1"),
    "head_training": (ON, f"{QUICK} --second-sets banking77 --rows 200"),
    "stacked_heads": (f"{ON} --rows 20000", f"{QUICK} --rows 200 --heads 3"),
    "store_codecs": (ON, f"{ON} --sets banking77 --seeds 0 --rows 90 --head-steps 20"),
    "prediction": (ON, f"{QUICK} --texts 64 --train-rows 200"),
    "whole_task": (
        f"{ON} --max-steps 60",
        f"{QUICK} --rows 200 --max-steps 6 --opponents logistic full_fine_tuning lora",
    ),
    "peak_memory": (
        "--encoder {encoder} --train {data}/sst2/train.jsonl --test {data}/sst2/validation.jsonl",
        "--encoder {encoder} --train {data}/banking77/test.jsonl",
    ),
    "larger_than_memory": (
        f"{ON} --gigabytes 8",
        f"{ON} --gigabytes 0.002 --set banking77 --rows 200 --seeds 0 --head-steps 20",
    ),
    "main_job": (f"{ON} --presets default", f"{ON} --presets default --sets banking77 --seeds 0"),
    "quality": (ON, f"{ON} --sets banking77 --seeds 1 --head-steps 20"),
    "many_labels": (ON, f"{QUICK} --labels 3 50 5000 --rows 200"),
    "cascade": (ON, f"{ON} --sets banking77 --seeds 0 --rounds 1 --tasks 3 --rows 800 --texts 64 --head-steps 20"),
    "out_of_scope": (ON, f"{ON} --without 1 --seeds 0 --presets light --held-every 3"),
    "light_tasks": (ON, f"{ON} --rounds 1 --tasks 3 --columns 2 --rows 800 --texts 64"),
    "few_shot": (ON, f"{ON} --sets banking77 --draws 1 --head-steps 20 --test-rows 100 --variants few-shot default"),
    "long_tail": (ON, f"{ON} --sets banking77 --seeds 0 --head-steps 20"),
    "added_label": (ON, f"{ON} --sets banking77 --count 1 --head-steps 20"),
    "scale": (ON, f"{QUICK_SCALE} --rounds 1 --head-steps 20"),
    "serving": (ON, f"{ON} --tasks 2 --texts 20 --seconds 2 --reloads 2 --head-steps 20"),
    "gpu": ("--data {data}", "--shape tiny --device cpu --texts 64 --tokens 16 --max-steps 4 --stages check costs"),
}
"""Benchmark -> arguments of a full run and of a quick one; folder of the data sets and encoder are filled in."""

KEPT = ("full_tuning",)
"""Not run with the others: they take hours, and their figures are kept in a file that others read."""


def main(argv: Sequence[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), metavar="NAME")
    options.add_argument("--quick", action="store_true", help="at tiny sizes, whose figures mean nothing")
    arguments = options.parse_args(argv)
    if arguments.out is None:
        options.error("--out is needed: the folder for the JSON files")
    out = arguments.out.resolve()
    failed = []
    for name in arguments.only:
        print(f"--- {name}", file=sys.stderr)
        (out / f"{name}.json").unlink(missing_ok=True)  # or a failed run would show the figures of an earlier one
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += arguments_of(name, arguments.data.resolve(), arguments.encoder, out, quick=arguments.quick)
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode != 0:
            failed.append(name)
    print(table(out, arguments.only))
    if failed:
        print(f"error: these failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def arguments_of(name: str, data: Path, encoder: str, out: Path, *, quick: bool) -> list[str]:
    """A benchmark's command line."""
    encoder = str(Path(encoder).resolve()) if Path(encoder).is_dir() else encoder
    words = BENCHMARKS[name][quick].split()  # before they are filled in: a folder's name may hold spaces
    return [*(word.format(data=data, encoder=encoder) for word in words), "--out", str(out)]


def table(folder: Path, names: Sequence[str]) -> str:
    """Every bar of the JSON files in a folder, as Markdown."""
    lines = ["| bar | wanted | measured | reached |", "| --- | --- | --- | --- |"]
    for name in names:
        file = folder / f"{name}.json"
        if not file.exists():
            lines.append(f"| {name}: no result | | | |")
            continue
        lines += [_line(entry) for entry in json.loads(file.read_text())["bars"]]
    return "\n".join(lines)


def _line(entry: dict[str, Any]) -> str:
    measured = "missing" if entry["measured"] is None else f"{entry['measured']:.3g}"
    reached = {None: "", True: "yes", False: "**no**"}[entry["reached"]]
    return f"| {entry['bar']} | {entry['wanted']} | {measured} | {reached} |"


if __name__ == "__main__":
    sys.exit(main())

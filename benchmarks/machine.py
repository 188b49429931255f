"""What every benchmark records beside its figures: machine, versions, date, command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ytuning.system.machine import version_of

PACKAGES = ("ytuning", "torch", "transformers", "scikit-learn", "sentence-transformers", "peft", "setfit")


def machine() -> dict[str, Any]:
    """Processor, threads, versions, date and command of this run."""
    try:
        words = Path("/proc/cpuinfo").read_text()
        model = next(line.partition(":")[2].strip() for line in words.splitlines() if line.startswith("model name"))
        flags = [flag for flag in ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if f" {flag}" in words]
    except (OSError, StopIteration):
        model, flags = platform.processor(), []
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "processor": model,
        "flags": flags,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def record(name: str, figures: Any, folder: Path | None, bars: Sequence[Any] = ()) -> None:
    """Print figures and the bars they are held against as JSON and, with a folder, keep them as ``name.json``."""
    text = json.dumps({"machine": machine(), "figures": figures, "bars": list(bars)}, indent=1)
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n")

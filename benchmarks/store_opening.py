"""Opening a feature space of many texts and finding the texts of a data set in it: seconds and resident memory.

python -m benchmarks.store_opening --texts 10000000 --out results

The space has as many shards as real features of so many texts, and real keys, lengths and manifests. Its features are
those of an encoder of width 1, because nothing here reads them. Each measure is taken in a process of its own, which
loads what `ytuning cache list` loads: warm, and after the system's cache has been told to forget the files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import bar, medians, parser
from benchmarks.limits import forget
from benchmarks.machine import record
from ytuning.encoder.encoder import load_encoder
from ytuning.features.codecs import DEFAULT_CODEC, row_bytes
from ytuning.features.keys import KEY_BYTES
from ytuning.features.store import FeatureStore, WriteSizes

IDENTITY = {"fingerprint": "benchmark", "name": "none", "width": 1, "precision": "fp32", "max_length": 512}
WHAT = ("seconds", "memory")
MEASURE = """
import json, sys, time
from pathlib import Path

from ytuning.features.keys import WantedKeys
from ytuning.features.store import FeatureStore

def resident(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024

root, file, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
data = file.read_bytes()
before, start = resident("VmRSS"), time.perf_counter()
(space,) = FeatureStore(root).spaces()
found = {"open": time.perf_counter() - start}
memory = {"before": before, "opened": resident("VmRSS"), "opened_peak": resident("VmHWM")}
keys = [data[first:first + size] for first in range(0, len(data), size)]
for name in ("first_look", "look"):
    start = time.perf_counter()
    held = space.holds(WantedKeys(keys))
    found[name] = time.perf_counter() - start
assert held.sum() == len(keys) - len(keys) // 10, held.sum()
start = time.perf_counter()
rows = space.rows([key for key, is_held in zip(keys, held) if is_held])
found["rows"] = time.perf_counter() - start
memory["looked_peak"] = resident("VmHWM")
print(json.dumps({"seconds": found, "memory": memory, "texts": len(space), "shards": space.shards}))
"""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, data=False, rounds=3)
    options.add_argument("--texts", type=int, default=10_000_000)
    options.add_argument("--tokens", type=int, default=24, help="of a text, on average")
    options.add_argument("--looked-up", type=int, default=100_000, help="keys, of which every tenth is not stored")
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    arguments = options.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        start = time.perf_counter()
        some = write(Path(root) / "store", arguments)
        written = time.perf_counter() - start
        file = Path(root) / "keys"
        file.write_bytes(b"".join(some))
        found: dict[str, list[dict[str, Any]]] = {"warm": [], "cold": []}
        for _ in range(arguments.rounds):
            for state, runs in found.items():
                if state == "cold":
                    forget(Path(root))
                command = [sys.executable, "-c", MEASURE, f"{root}/store", str(file), str(KEY_BYTES)]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        on_disk = sum(
            each.stat().st_size for each in Path(root, "store").rglob("*") if each.suffix in (".keys", ".json")
        )
    middle = {
        state: {what: medians({key: [run[what][key] for run in runs] for key in runs[0][what]}) for what in WHAT}
        for state, runs in found.items()
    }
    figures = {
        "texts": found["warm"][0]["texts"],
        "shards": found["warm"][0]["shards"],
        "looked_up": arguments.looked_up,
        "index_bytes_per_text": on_disk / arguments.texts,
        "write_seconds": written,
        **middle,
        "runs": found,
    }
    million, cold = f"{arguments.texts / 1e6:g} million texts", middle["cold"]
    looked = cold["seconds"]["open"] + cold["seconds"]["first_look"]
    wanted = [
        bar(f"seconds to open a space of {million}, from the disk", cold["seconds"]["open"], at_most=2),
        bar(f"the same and to look up {arguments.looked_up:,} keys for the first time", looked, at_most=2),
        bar(f"MB of memory once it is open, {million}", cold["memory"]["opened_peak"] / 1e6, at_most=100),
        bar("the same after the look-ups", cold["memory"]["looked_peak"] / 1e6, at_most=100),
    ]
    record("store_opening", figures, arguments.out, wanted)


def write(root: Path, arguments: Any) -> list[bytes]:
    """Write a space of random keys, a shard at a time; returns keys to look up, which lie in all shards."""
    encoder = load_encoder(arguments.encoder)
    token_bytes = row_bytes(DEFAULT_CODEC, len(encoder.resolve_states(None)), encoder.identity.width)
    sizes = WriteSizes()
    # A shard ends where it is full, and where a window does.
    per_shard = min(sizes.window_texts, max(1, sizes.shard_bytes // (token_bytes * arguments.tokens)))
    space = FeatureStore(root).space(IDENTITY, (1,), "fp16")
    generator = np.random.default_rng(0)
    some: list[bytes] = []
    # The keys to look up lie in all shards, which takes longer than texts that were stored together.
    every = max(1, arguments.texts * 10 // (9 * arguments.looked_up))
    for first in range(0, arguments.texts, per_shard):
        count = min(per_shard, arguments.texts - first)
        keys = [generator.bytes(KEY_BYTES) for _ in range(count)]
        lengths = generator.poisson(arguments.tokens - 1, count) + 1
        features = np.zeros((int(lengths.sum()), space.row_bytes), np.uint8)
        space.write(keys, lengths, lengths > 2 * arguments.tokens, features)
        some += keys[::every]
    stored = some[: arguments.looked_up - arguments.looked_up // 10]
    return stored + [generator.bytes(KEY_BYTES) for _ in range(len(stored) // 9)]


if __name__ == "__main__":
    main()

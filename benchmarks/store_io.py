"""Writing features to the store and reading them back, against disk and memory measured in the same round.

python -m benchmarks.store_io --megabytes 1024 --rounds 3 --out results

Rates count the features' bytes as the store keeps them. Writing includes the sync, opening the
check of every checksum; reading makes batches as head training takes them, in the order of the store or shuffled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import synthetic
from benchmarks.harness import in_turn, medians, parser, seconds
from benchmarks.limits import copy_rate, disk_rates, forget
from benchmarks.machine import record
from ytuning.encoder.encoder import load_encoder
from ytuning.features.features import Features, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress

ROWS = 128  # in a batch


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, data=False, rounds=3)
    options.add_argument("--megabytes", type=int, default=1024, help="of features")
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    arguments = options.parse_args(argv)
    encoder, size = load_encoder(arguments.encoder), arguments.megabytes << 20
    states = encoder.resolve_states(None)
    made = synthetic.plan(encoder, size)[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        stores = [FeatureStore(f"{root}/{number}") for number in range(arguments.rounds)]
        unwritten, opened = iter(stores), iter(stores)
        features: list[Features] = []

        def reopen() -> None:
            store = next(opened)
            features[:] = [stored_features(made.inputs, encoder, store, Progress(), states=states)[0]]

        def cold(read: Callable[[], None]) -> float:
            features[0].release()  # or the mapped pages would stay
            forget(Path(root))
            return seconds(read)

        limits: dict[str, list[float]] = {}

        def limit() -> float:
            rates = {**disk_rates(Path(root), size), "memory_copy": copy_rate(torch.device("cpu"), size)}
            for name, rate in rates.items():
                limits.setdefault(name, []).append(rate)
            return 0.0

        found = in_turn(
            arguments.rounds,
            {
                "limits": limit,
                "write": lambda: synthetic.write(next(unwritten), encoder, size).write_seconds,
                "open_and_check": lambda: seconds(reopen),
                "read_in_order_cold": lambda: cold(lambda: read(features[0], shuffled=False)),
                "read_in_order": lambda: seconds(lambda: read(features[0], shuffled=False)),
                "read_shuffled_cold": lambda: cold(lambda: read(features[0], shuffled=True)),
                "read_shuffled": lambda: seconds(lambda: read(features[0], shuffled=True)),
            },
        )
        on_disk = sum(file.stat().st_size for file in stores[0].root.rglob("*") if file.is_file())
    del found["limits"]
    middle = medians(found)
    figures = {
        "texts": len(made.inputs),
        "tokens": made.tokens,
        "bytes": made.bytes,
        "bytes_per_token_and_layer_on_disk": on_disk / made.tokens / len(encoder.resolve_states(None)),
        "seconds": found,
        "bytes_per_second": {name: made.bytes / elapsed for name, elapsed in middle.items()},
        "tokens_per_second": {name: made.tokens / elapsed for name, elapsed in middle.items()},
        "limit_bytes_per_second": medians(limits),
        "share_of_limit": {
            "write": made.bytes / middle["write"] / medians(limits)["write"],
            "read_in_order_cold": made.bytes / middle["read_in_order_cold"] / medians(limits)["read"],
            "read_in_order": made.bytes / middle["read_in_order"] / medians(limits)["memory_copy"],
        },
    }
    record("store_io", figures, arguments.out)


def read(features: Features, *, shuffled: bool) -> None:
    """Every row once, in batches."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(features), generator=generator) if shuffled else torch.arange(len(features))
    for batch in rows.split(ROWS):
        features.batch(batch)


if __name__ == "__main__":
    main()

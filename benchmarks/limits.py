"""The machine's own limits: matrix products of an encoder's shapes, memory bandwidth, and the disk under a folder.

python -m benchmarks.limits --folder /tmp --out results

Matrix products are those of one layer on one batch, as often as a layer does them: M x W x W four times (query, key,
value, output), M x W x I and M x I x W (feed-forward), with M tokens in a batch, W the width and I the inner width.
As in the encoder's pass, on a CPU each core computes whole batches by itself.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.harness import parser
from benchmarks.machine import record
from ytuning.encoder.encoder import TOKENS_PER_BATCH, Encoder, load_encoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHUNK = 8 << 20
COPIES = 5


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, data=False)
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    options.add_argument("--megabytes", type=int, default=512, help="of memory to copy and of a file to write")
    options.add_argument("--seconds", type=float, default=2.0, help="of matrix products in each precision")
    options.add_argument("--device", help="default: a GPU when there is one")
    arguments = options.parse_args(argv)
    encoder = load_encoder(arguments.encoder, device=arguments.device)
    width, inner = widths(encoder)
    figures = {
        "device": str(encoder.device),
        "width": width,
        "inner_width": inner,
        "tokens_in_batch": batch_tokens(encoder.device),
        "precision_in_use": encoder.identity.precision,
        "gflops": {name: matrix_rate(encoder, name, seconds=arguments.seconds) for name in DTYPES},
        "memory_bytes_per_second": copy_rate(encoder.device, arguments.megabytes << 20),
        "disk_bytes_per_second": disk_rates(arguments.folder, arguments.megabytes << 20),
    }
    record("limits", figures, arguments.out)


def widths(encoder: Encoder) -> tuple[int, int]:
    """Width and inner width of an encoder's layers."""
    config = encoder.model.config
    return int(config.hidden_size), int(config.intermediate_size)


def batch_tokens(device: torch.device) -> int:
    """Tokens in a batch of the encoder's pass."""
    return TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"])


def layer_products(width: int, inner: int) -> int:
    """Multiply-adds of a layer's weights for each token: 4 W W + 2 W I."""
    return 4 * width * width + 2 * width * inner


def multiply_adds(encoder: Encoder, lengths: np.ndarray) -> int:
    """Multiply-adds that an encoder needs for texts of these lengths.

    For each layer that is computed: T (4 W W + 2 W I) for a text of T tokens, and 2 T T W for the products of
    attention. Embeddings, normalisation, padding, and what an architecture has beside these (relative positions,
    gates) are not counted, so that a share of the machine's rate is never too high.

    Args:
        encoder: BERT-like; the layers above the last default hidden state are not computed and not counted.
        lengths: (texts,) tokens in each text, as cut.
    """
    width, inner = widths(encoder)
    layers = max(encoder.resolve_states(None))
    tokens, pairs = int(lengths.sum()), int((lengths**2).sum())
    return layers * (tokens * layer_products(width, inner) + pairs * 2 * width)


def matrix_rate(encoder: Encoder, precision: str | None = None, seconds: float = 0.5) -> float:
    """GFLOP/s (two for a multiply-add) of a layer's products on this machine, in the encoder's precision or another."""
    width, inner = widths(encoder)
    device, dtype = encoder.device, DTYPES[precision or encoder.identity.precision]
    threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    ready = threading.Barrier(workers)

    def work(_: int) -> float:
        if workers > 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            return rate_of_one(batch_tokens(device), width, inner, device, dtype, ready, seconds)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(work, range(workers)))
    finally:
        torch.set_num_threads(threads)


def rate_of_one(
    tokens: int,
    width: int,
    inner: int,
    device: torch.device,
    dtype: torch.dtype,
    ready: threading.Barrier,
    seconds: float,
) -> float:
    """GFLOP/s of one worker, which starts when all are ready."""
    square = [torch.randn(width, width, device=device, dtype=dtype) for _ in range(4)]
    up = torch.randn(inner, width, device=device, dtype=dtype)
    down = torch.randn(width, inner, device=device, dtype=dtype)
    narrow = torch.randn(tokens, width, device=device, dtype=dtype)
    wide = torch.randn(tokens, inner, device=device, dtype=dtype)

    def layer() -> None:
        for weight in square:
            functional.linear(narrow, weight)
        functional.linear(narrow, up)
        functional.linear(wide, down)

    def finish() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(3):
        layer()
    finish()
    ready.wait()
    done, start = 0, time.perf_counter()
    while (end := finish()) - start < seconds or not done:
        for _ in range(4):
            layer()
        done += 4
    return done * 2 * tokens * layer_products(width, inner) / (end - start) / 1e9


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of large copies in the device's memory by all cores."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    rates = []
    for _ in range(COPIES + 1):  # the first touches the pages
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * source.nbytes / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def disk_rates(folder: Path, size: int) -> dict[str, float]:
    """Bytes a second of one large file: written and synced, read from the disk, read again from the system's cache."""
    chunk = os.urandom(CHUNK)
    count = max(1, size // CHUNK)
    place = Path(tempfile.mkdtemp(dir=folder))
    file = place / "large"
    try:
        start = time.perf_counter()
        with file.open("wb") as stream:
            for _ in range(count):
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        rates = {"write": count * CHUNK / (time.perf_counter() - start)}
        forget(place)
        for name in ("read", "read_cached"):
            start = time.perf_counter()
            with file.open("rb", buffering=0) as stream:
                while stream.read(CHUNK):
                    pass
            rates[name] = count * CHUNK / (time.perf_counter() - start)
        return rates
    finally:
        shutil.rmtree(place)


def forget(folder: Path) -> bool:
    """Ask the system to drop a folder's files from its cache; False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def share(work: int, elapsed: float, gflops: float) -> dict[str, Any]:
    """What ``work`` multiply-adds in ``elapsed`` seconds are of the measured rate."""
    rate = 2 * work / elapsed / 1e9
    return {"gflops": rate, "limit_gflops": gflops, "share_of_limit": rate / gflops}


if __name__ == "__main__":
    main()

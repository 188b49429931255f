"""Damaged, joined and misnamed files through ``read_dataset``: which errors come, and how long and how much it takes.

    python -m tests.data.fuzz_reading --files 10000 --seed 0

It prints one JSON value: files read and refused, the slowest one, the peak memory, and each file that ended in
an error that ytuning does not raise on purpose. The exit status is 1 if there is one. A file is made from ``--seed``
and its number, so ``--first N --files 1`` makes the file N again; ``--keep FOLDER`` writes it there.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ytuning import read_dataset
from ytuning.errors import YTuningError
from ytuning.system.machine import peak_bytes

MEGABYTE = 2**20
SECONDS_A_FILE, MEMORY = 20, 1024 * MEGABYTE
SUFFIXES = [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz", "", ".gz"]
TEXTS = ["great film", 'say "hi"', "naïve 😀", "a,b;c\td", "two\nlines", "NA", "1e999", "\u200b", "x" * 300, "\\"]
DICTIONARY = [
    b'"', b'""', b"\n", b"\r", b"\t", b",", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 2000,
    b'{"a":' * 2000, b"9" * 5000, b"1e999", b"-NaN", b"\\ud800", b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"}", b"]",
]  # fmt: skip


def rows_of(dice: random.Random) -> list[dict[str, Any]]:
    labels: list[Any] = dice.choice([["a", "b"], [0, 1], [0.5, 2.0], [["a"], ["a", "b"]], [True, False]])
    return [{"text": dice.choice(TEXTS), "label": dice.choice(labels), "id": i} for i in range(dice.randint(1, 40))]


def as_delimited(separator: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def write(rows: list[dict[str, Any]]) -> bytes:
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
        return file.getvalue().encode()

    return write


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def as_zip(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.json", json.dumps(rows))
    return file.getvalue()


WRITERS: list[tuple[str, Callable[[list[dict[str, Any]]], bytes]]] = [
    (".csv", as_delimited(",")),
    (".tsv", as_delimited("\t")),
    (".csv", as_delimited(";")),
    (".jsonl", lambda rows: "\n".join(json.dumps(row) for row in rows).encode()),
    (".json", lambda rows: json.dumps(rows, ensure_ascii=False, indent=1).encode()),
    (".json", lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode()),
    (".json", lambda rows: json.dumps({"data": rows, "meta": {"n": len(rows)}}).encode()),
    (".json", lambda rows: json.dumps(rows).encode("utf-16")),
    (".parquet", as_parquet),
    (".parquet", as_parquet),
    (".zip", as_zip),
]


def flip_bits(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(data: bytes, dice: random.Random) -> bytes:
    start, end = sorted(dice.choices(range(len(data) + 1), k=2))
    return dice.choice([data[:end], data[start:], data[:start] + data[end:]])


def repeat(data: bytes, dice: random.Random) -> bytes:
    start, end = sorted(dice.choices(range(len(data) + 1), k=2))
    return data[:end] + data[start:end] * dice.choice([1, 2, 50]) + data[end:]


def insert(data: bytes, dice: random.Random) -> bytes:
    place = dice.randint(0, len(data))
    return data[:place] + dice.choice(DICTIONARY) + data[place:]


def join(data: bytes, dice: random.Random) -> bytes:
    return data + dice.choice(WRITERS)[1](rows_of(dice))


def bomb(data: bytes, dice: random.Random) -> bytes:
    """Much content in few bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = dice.choice([data or b"a", b"\n", b",", b"a\n", b'"', b"[", b"\0"])
    block = block * (MEGABYTE // len(block) + 1)
    blocks = dice.choice([4, 40, 400])
    return b"".join(packer.compress(block) for _ in range(blocks)) + packer.flush()


MUTATIONS = [flip_bits, flip_bits, cut, repeat, insert, insert, join]


def make_file(seed: int, number: int) -> tuple[str, bytes]:
    """The ending of a name and the content of one file."""
    dice = random.Random(f"{seed} {number}")
    suffix, write = dice.choice(WRITERS)
    data = write(rows_of(dice))
    for _ in range(dice.randint(0, 3)):
        data = dice.choice(MUTATIONS)(data, dice)
    if dice.random() < 0.4:
        suffix = dice.choice(SUFFIXES)
    if dice.random() < 0.003:
        suffix, data = suffix.removesuffix(".gz") + ".gz", bomb(data, dice)
    elif suffix.endswith(".gz") and dice.random() < 0.9:
        data = gzip.compress(data, mtime=0)
        if dice.random() < 0.3:
            data = dice.choice([flip_bits, cut])(data, dice)
    return suffix, data


def run(first: int, files: int, seed: int, folder: Path) -> dict[str, Any]:
    """Read the files and count what became of them."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS_A_FILE} seconds")

    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest = (0.0, -1)
    signal.signal(signal.SIGALRM, late)
    for number in range(first, first + files):
        suffix, data = make_file(seed, number)
        path = folder / f"file{suffix}"
        path.write_bytes(data)
        start = time.perf_counter()
        signal.alarm(SECONDS_A_FILE)
        try:
            read_dataset(path)
            outcomes["read"] += 1
        except YTuningError as error:
            outcomes["refused"] += 1
            if len(str(error).splitlines()) != 1:
                failures.append({"file": number, "name": path.name, "error": f"not one line: {error}"[:500]})
        except Exception as error:
            failures.append({"file": number, "name": path.name, "error": f"{type(error).__name__}: {error}"[:500]})
        finally:
            signal.alarm(0)
        slowest = max(slowest, (time.perf_counter() - start, number))
        path.unlink()
    return {
        "files": files,
        "outcomes": dict(outcomes),
        "slowest_seconds": round(slowest[0], 2),
        "slowest_file": slowest[1],
        "peak_megabytes": (peak_bytes() or 0) // MEGABYTE,
        "failures": failures,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Write the files into this folder and read none.")
    options = parser.parse_args(arguments)
    if options.keep:
        for number in range(options.first, options.first + options.files):
            suffix, data = make_file(options.seed, number)
            (options.keep / f"{number}{suffix}").write_bytes(data)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.first, options.files, options.seed, Path(folder))
    print(json.dumps(result, indent=1))
    return int(bool(result["failures"]) or result["peak_megabytes"] * MEGABYTE > MEMORY)


if __name__ == "__main__":
    sys.exit(main())

"""Tables of nasty cells, written in every format, come back as they were, or are refused with the row, or are told.

YTUNING_TABLES sets the number of tables for each format; a full check takes 5,000.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ytuning.data.files import read_table
from ytuning.errors import DataError

TABLES = int(os.environ.get("YTUNING_TABLES", "40"))
MARKS = [
    '"',
    '""',
    '"""',
    ",",
    ";",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "|",
    "\\",
    "\\n",
    '\\"',
    "'",
    " ",
    "#",
    "=",
    "[",
    "{",
    "}",
]
INVISIBLE = [
    "\u200b",
    "\u0301",
    "e\u0301",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1a",
    "\x00",
    "\xa0",
    "\u202e",
]
WORDS = ["NA", "null", "None", "nan", "NaN", "1", "1.0", "007", "1e5", "true", "-", "a", "word", "é", "😀", "label"]
NAMES = ["text", "label", "third", "fourth"]

Columns = dict[str, list[str]]
Writer = Callable[[Columns, random.Random], bytes]


def cell(dice: random.Random) -> str:
    chance = dice.random()
    if chance < 0.1:
        return ""
    if chance < 0.3:
        return dice.choice(WORDS)
    if chance < 0.31:
        return "".join(dice.choices([*MARKS, *WORDS], k=2)) * 20_000
    if chance < 0.32:
        return dice.choice(WORDS) + dice.choice(["\ud800", "\udcff", "\udfff"])
    return "".join(dice.choices([*MARKS, *INVISIBLE, *WORDS], k=dice.randint(1, 6)))


def table(dice: random.Random) -> Columns:
    rows = dice.randint(1, 8)
    return {name: [cell(dice) for _ in range(rows)] for name in NAMES[: dice.randint(1, len(NAMES))]}


def rows_of(columns: Columns) -> list[dict[str, str]]:
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def encoded(text: str, dice: random.Random) -> bytes:
    """A text in one of the encodings that are read; half a surrogate pair stays what it is."""
    encoding = dice.choice(["utf-8", "utf-8", "utf-8", "utf-16-le", "utf-16-be"])
    mark = "\ufeff" if encoding != "utf-8" or dice.random() < 0.3 else ""
    return (mark + text).encode(encoding, "surrogatepass")


def delimited(delimiter: str, quoting: Any, quoted_header: bool = False) -> Writer:
    def write(columns: Columns, dice: random.Random) -> bytes:
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=dice.choice(["\n", "\r\n"]))
        writer.writerow(list(columns))
        writer.writerows(zip(*columns.values(), strict=True))
        return encoded(file.getvalue(), dice)

    return write


def plain_tsv(columns: Columns, dice: random.Random) -> bytes:
    end = dice.choice(["\n", "\r\n", "\r"])
    lines = ["\t".join(columns), *("\t".join(cells) for cells in zip(*columns.values(), strict=True))]
    return encoded("".join(line + end for line in lines), dice)


def by_pandas(separator: str) -> Writer:
    return lambda columns, _: pd.DataFrame(columns).to_csv(sep=separator, index=False).encode(errors="surrogatepass")


def json_lines(columns: Columns, dice: random.Random) -> bytes:
    escaped = dice.random() < 0.5
    return encoded("\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows_of(columns)), dice)


def json_list(columns: Columns, dice: random.Random) -> bytes:
    return encoded(json.dumps(rows_of(columns), ensure_ascii=False, indent=dice.choice([None, 1])), dice)


def json_columns(columns: Columns, dice: random.Random) -> bytes:
    frame = pd.DataFrame(columns)
    text = dice.choice([json.dumps(columns), json.dumps(frame.to_dict()), json.dumps(frame.to_dict(orient="index"))])
    return encoded(text, dice)


def parquet(columns: Columns, _: random.Random) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


FORMATS: dict[str, tuple[str, Writer]] = {
    "csv": (".csv", delimited(",", csv.QUOTE_MINIMAL)),
    "csv, all quoted": (".csv", delimited(",", csv.QUOTE_ALL)),
    "csv with semicolons": (".csv", delimited(";", csv.QUOTE_ALL)),
    "csv of pandas": (".csv", by_pandas(",")),
    "tsv": (".tsv", plain_tsv),
    "tsv, quoted": (".tsv", delimited("\t", csv.QUOTE_MINIMAL)),
    "tsv, all quoted": (".tab", delimited("\t", csv.QUOTE_ALL)),
    "tsv of pandas": (".tsv", by_pandas("\t")),
    "json lines": (".jsonl", json_lines),
    "json list": (".json", json_list),
    "json columns": (".json", json_columns),
    "parquet": (".parquet", parquet),
}
LINE_ENDS = re.compile(r"[\t\r\n]")


def outcome(source: object, columns: Columns) -> str:
    """What reading makes of a table, which is never other cells without a word."""
    rows = len(next(iter(columns.values())))
    try:
        read = read_table(source)
        cells = {name: read.column(name).cells for name in read.names}
    except DataError as error:
        message = str(error)
        assert re.search(rf", row \d+(, column '\w+')?: |: there are no rows, only {rows} blank line", message), message
        assert len(message.splitlines()) == 1
        return "refused"
    if cells == columns:
        return "equal"
    # A line of a single empty cell is blank, which is counted; anything else that may differ is noted.
    assert read.notes or read.blank_lines, (columns, cells)
    if not read.notes:
        assert cells == {name: [text for text in texts if text] for name, texts in columns.items()}
        assert read.rows + read.blank_lines == rows
    return "told"


@pytest.mark.parametrize("kind", FORMATS)
def test_no_cell_changes_in_silence(kind: str, tmp_path: Path) -> None:
    suffix, write = FORMATS[kind]
    outcomes: Counter[str] = Counter()
    for seed in range(TABLES):
        dice = random.Random(f"{kind} {seed}")
        columns = table(dice)
        if kind == "tsv":
            columns = {name: [LINE_ENDS.sub(" ", text) for text in texts] for name, texts in columns.items()}
        try:
            data = write(columns, dice)
        except UnicodeEncodeError:
            # Arrow, which pandas uses, has no place for half a surrogate pair.
            assert kind in ("parquet", "csv of pandas", "tsv of pandas", "json columns")
            continue
        packed = kind != "parquet" and dice.random() < 0.2
        path = tmp_path / f"t{suffix}{'.gz' * packed}"
        path.write_bytes(gzip.compress(data) if packed else data)
        outcomes[outcome(path, columns)] += 1
        # The same bytes without a name are read in the same way, if they are no TSV of one column.
        if kind != "tsv" and seed % 4 == 0:
            outcome(io.BytesIO(data), columns)
    assert outcomes["equal"] > TABLES * 0.4, outcomes
    print(f"{kind}: {dict(outcomes)}")


@pytest.mark.parametrize("kind", ["frame", "rows", "columns"])
def test_tables_in_memory_come_back(kind: str) -> None:
    for seed in range(TABLES):
        columns = table(random.Random(f"{kind} {seed}"))
        source = {"frame": pd.DataFrame(columns, dtype=object), "rows": rows_of(columns), "columns": columns}[kind]
        assert outcome(source, columns) == "equal"

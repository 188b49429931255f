"""Input files in parts: any division covers each row once, with its number, and reads as the whole file does."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from ytuning.batch import inputs
from ytuning.batch.inputs import Part, head_of, parts_of, read_part, rows_of, signature_of
from ytuning.data.files import read_table
from ytuning.data.places import FoundFile, open_folder
from ytuning.errors import DataError

# Texts with all that divides cells and rows.
TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "é", " ", ",", ";", '"', "\n", "\r\n", "\t", "{", "|"]), min_size=1, max_size=8).map(
        "".join
    ),
    min_size=1,
    max_size=40,
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_in_parts(file: Path, rows: int, columns: tuple[str, ...] = ("text", "id")) -> list[dict[str, Any]]:
    folder = open_folder(file.parent)
    there = FoundFile(file.name, file.stat().st_size)
    parts, found = parts_of(folder, there, rows), list[dict[str, Any]]()
    for part in parts:
        before = len(found)
        for table, _ in read_part(folder, file.name, part, columns):
            cells = [table.cells(name) for name in columns]
            assert table.row_numbers is not None
            assert list(table.row_numbers) == list(range(len(found) + 1, len(found) + 1 + table.rows))
            found += [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]
        if part.rows is not None:
            assert (part.before, part.rows) == (before, len(found) - before)
            assert part.rows <= rows
    return found


def whole(file: Path, columns: tuple[str, ...] = ("text", "id")) -> list[dict[str, Any]]:
    table = read_table(file)
    return [dict(zip(columns, row, strict=True)) for row in zip(*(table.cells(name) for name in columns), strict=True)]


@FEW
@given(
    texts=TEXTS, rows=st.integers(1, 9), end=st.sampled_from(["\n", "\r\n"]), mark=st.booleans(), blank=st.booleans()
)
def test_any_division_of_csv_reads_as_the_whole_file(
    tmp_path: Path, texts: list[str], rows: int, end: str, mark: bool, blank: bool
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator=end)
    writer.writerows([["id", "text"], *([f"n{number}", text] for number, text in enumerate(texts))])
    file = tmp_path / "rows.csv"
    file.write_bytes(b"\xef\xbb\xbf" * mark + end.encode() * blank + stream.getvalue().encode())
    expected = [{"text": text, "id": f"n{number}"} for number, text in enumerate(texts)]
    assert rows_in_parts(file, rows) == expected == whole(file)


@FEW
@given(texts=TEXTS, rows=st.integers(1, 9), blank=st.booleans(), packed=st.booleans())
def test_any_division_of_json_lines_reads_as_the_whole_file(
    tmp_path: Path, texts: list[str], rows: int, blank: bool, packed: bool
) -> None:
    lines = [json.dumps({"text": text, "id": number}, ensure_ascii=False) for number, text in enumerate(texts)]
    data = ("\n\n" if blank else "\n").join(lines).encode()
    file = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    file.write_bytes(gzip.compress(data) if packed else data)
    assert rows_in_parts(file, rows) == [{"text": text, "id": number} for number, text in enumerate(texts)]


@FEW
@given(groups=st.lists(st.integers(1, 30), min_size=1, max_size=6), rows=st.integers(1, 40))
def test_any_division_of_parquet_reads_as_the_whole_file(tmp_path: Path, groups: list[int], rows: int) -> None:
    file, place = tmp_path / "rows.parquet", 0
    with pq.ParquetWriter(file, pa.schema([("text", pa.string()), ("id", pa.int64())])) as writer:
        for size in groups:
            ids = list(range(place, place + size))
            writer.write_table(pa.table({"text": [f"t{number}" for number in ids], "id": ids}))
            place += size
    assert rows_in_parts(file, rows) == [{"text": f"t{number}", "id": number} for number in range(place)]


def test_windows_of_parquet_begin_at_the_same_rows_whatever_the_row_groups_are(tmp_path: Path) -> None:
    count = 2 * inputs.WINDOW_ROWS + 500
    table = pa.table({"text": [f"t{number}" for number in range(count)]})
    for name, size in (("few", count), ("many", 700)):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=size)
        windows = read_part(open_folder(tmp_path), f"{name}.parquet", Part(100, count, 100, count - 100), ["text"])
        assert [(table.rows, table.cells("text")[0]) for table, _ in windows] == [
            (2048, "t100"),
            (2048, "t2148"),
            (400, "t4196"),
        ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", json.dumps([{"text": "a", "id": 1}, {"text": "b", "id": 2}]).encode()),
        ("array.jsonl", json.dumps([{"text": "a", "id": 1}, {"text": "b", "id": 2}]).encode()),
        ("rows.csv", "id,text\n1,a\n2,b\n".encode("utf-16")),
        ("quotes.tsv", b'id\ttext\n1\t"a\n2\tb\n'),
        ("returns.csv", b"id,text\r1,a\r2,b\r"),
    ],
)
def test_what_cannot_be_divided_is_one_part(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    file = FoundFile(name, len(content))
    assert parts_of(open_folder(tmp_path), file, 1) == [Part(0, len(content))]
    assert rows_of(open_folder(tmp_path), file) is None
    assert rows_in_parts(tmp_path / name, 1) == whole(tmp_path / name)


def test_a_file_that_cannot_be_divided_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WHOLE_BYTES", 20)
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "a" * 30}]))
    with pytest.raises(DataError, match=r"can only be read as a whole, .* Parquet"):
        rows_in_parts(tmp_path / "rows.json", 1, ("text",))


def test_parts_have_a_largest_size_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PART_BYTES", 100)
    (tmp_path / "rows.csv").write_text("text\n" + "x" * 39 + "\n" + 20 * ("y" * 39 + "\n"))
    parts = parts_of(open_folder(tmp_path), FoundFile("rows.csv", 845), 1000)
    assert [part.rows for part in parts] == [3] * 7
    pq.write_table(pa.table({"text": ["z" * 50 + str(number) for number in range(40)]}), tmp_path / "rows.parquet")
    size = (tmp_path / "rows.parquet").stat().st_size
    assert len(parts_of(open_folder(tmp_path), FoundFile("rows.parquet", size), 1000)) > 3


def test_errors_name_the_row_of_the_file(tmp_path: Path) -> None:
    for name, lines, problem in (
        ("rows.csv", ["text,id", *(f"t,{number}" for number in range(9)), "u", "t,1"], "the row has 1 cell"),
        ("rows.jsonl", [*(f'{{"text": "t", "id": {number}}}' for number in range(9)), "{x}", '{"text": "t"}'], "JSON"),
    ):
        (tmp_path / name).write_text("\n".join(lines))
        with pytest.raises(DataError, match=rf"{name}, row 10: .*{problem}"):
            rows_in_parts(tmp_path / name, 4)


def test_a_row_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ytuning.data.blocks.LARGEST_ROW", 1000)
    (tmp_path / "rows.csv").write_text('text,id\n"open,1\n' + "more,2\n" * 500)
    with pytest.raises(DataError, match="A double quote may not be closed"):
        rows_in_parts(tmp_path / "rows.csv", 4)


def test_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    for name, content, problem in (
        ("rows.parquet", b"text\na\n", "not a Parquet file"),
        ("rows.jsonl", b"%PDF-1.4\n", "this is a document"),
        ("rows.csv.gz", b"text\na\n", "not packed with gzip"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=problem):
            rows_in_parts(tmp_path / name, 4)


def test_a_signature_notices_a_change_of_the_first_or_last_bytes(tmp_path: Path) -> None:
    folder, data = open_folder(tmp_path), bytearray(b"x" * 300_000)
    (tmp_path / "rows.csv").write_bytes(data)
    before = signature_of(folder, FoundFile("rows.csv", len(data)))
    assert signature_of(folder, FoundFile("rows.csv", len(data))) == before
    for place in (0, -1):
        changed = data.copy()
        changed[place] = 0
        (tmp_path / "rows.csv").write_bytes(changed)
        assert signature_of(folder, FoundFile("rows.csv", len(data))).signature != before.signature


def test_the_head_of_a_file_without_rows_is_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    (tmp_path / "none.csv").write_text("text,id\n")
    (tmp_path / "none.jsonl").write_text("\n\n")
    (tmp_path / "empty.csv").touch()
    for name in ("none.parquet", "none.csv", "none.jsonl", "empty.csv"):
        file = FoundFile(name, (tmp_path / name).stat().st_size)
        assert head_of(open_folder(tmp_path), file) is None, name
        assert parts_of(open_folder(tmp_path), file, 10) == [], name

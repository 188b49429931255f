"""The rule for reading files: what is read as it stands, what is told, what is refused; and streams without a name."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from tests.data import fuzz_reading
from ytuning.data.dataset import read_dataset
from ytuning.data.files import read_table
from ytuning.errors import InputError

Cells = dict[str, list[object]]
Write = Callable[[str, "str | bytes"], Path]
TABLE = "text,label\na,x\nb,y\n"
AB: Cells = {"text": ["a", "b"], "label": ["x", "y"]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        (path := tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def contents(source: object) -> tuple[Cells, tuple[str, ...]]:
    """Columns and notes."""
    table = read_table(source)
    return {name: table.column(name).cells for name in table.names}, table.notes


def complaint(source: object, text: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(source, text=text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(source)) if isinstance(source, Path) else message


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, TABLE)
    return file.getvalue()


def parquet_bytes(columns: dict[str, list[str]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def feather_bytes() -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(pa.table({"text": ["a"]}), file)
    return file.getvalue()


def numpy_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


# --- quotes ---------------------------------------------------------------------------------------------------------

QUOTES_NOTED = (
    "quotes are characters in a TSV file; cells start with one in {}. If the file quotes its cells, save it as CSV."
)


@pytest.mark.parametrize(
    ("rows", "texts", "note"),
    [
        # A quote within a cell is a character, and nobody needs to hear of it.
        ('5" pipe\tx\nsay "hi" now\ty\n', ['5" pipe', 'say "hi" now'], None),
        ('"a small wonder\tx\ndull stuff"\ty\n', ['"a small wonder', 'dull stuff"'], QUOTES_NOTED.format("row 1")),
        ('"lone\tx\nb\ty\n', ['"lone', "b"], QUOTES_NOTED.format("row 1")),
        ('"all"\tx\n"of it"\ty\n', ['"all"', '"of it"'], QUOTES_NOTED.format("rows 1, 2")),
        ('"a ""b"""\tx\n5"\ty\n', ['"a ""b"""', '5"'], QUOTES_NOTED.format("row 1")),
        ("a\\tb\tx\n\\\ty\n", ["a\\tb", "\\"], None),
        # These files clearly quote.
        ('"a\tb"\tx\nc\ty\n', ["a\tb", "c"], None),
        ('"a\nb"\tx\nc\ty\n', ["a\nb", "c"], None),
        (
            '"a ""b"""\tx\nc\ty\n',
            ['a "b"', "c"],
            "cells in double quotes were read as quoted, because quotes within them are doubled.",
        ),
    ],
)
def test_quotes_in_tsv_are_characters_unless_the_file_clearly_quotes(
    write: Write, rows: str, texts: list[object], note: str | None
) -> None:
    for end in ("\n", "\r\n"):
        path = write("t.tsv", f"text\tlabel\n{rows}".replace("\n", end))
        columns = {"text": [str(text).replace("\n", end) for text in texts], "label": ["x", "y"]}
        assert contents(path) == (columns, () if note is None else (note,))


def test_a_quoted_header_makes_a_quoted_tsv(write: Write) -> None:
    content = '"text"\t"label"\n"a\tb\nc"\t"x"\n"d"\t"y"\n'
    assert contents(write("t.tsv", content))[0] == {"text": ["a\tb\nc", "d"], "label": ["x", "y"]}
    assert complaint(write("t.tsv", content + '"e\t"x\n')).startswith(", row 3: a double quote in this row (line 5)")


def test_many_rows_with_quotes_are_counted(write: Write) -> None:
    path = write("t.tsv", "text\tlabel\n" + "".join(f'"{i}\tx\n' for i in range(9)))
    assert contents(path)[1] == (QUOTES_NOTED.format("rows 1, 2, 3, 4, 5, ... (9 in all)"),)


SPANS = "a cell in double quotes spans the lines {} to {}, but each of them looks like a whole row. "


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        # The labels of both lines are those of other rows, so two rows would become one.
        ("t.csv", 'text,label\nc,x\n"a small wonder,x\ndull stuff",y\nb,y\n', ", row 2: " + SPANS.format(3, 4)),
        ("t.csv", 'label,text\nx,c\ny,d\nx,"a\ny,b"\n', ", row 3: " + SPANS.format(4, 5)),
        ("t.csv", 'text;label\nc;x\n"a;x\nd;x\nb";x\n', ", row 2: " + SPANS.format(3, 5)),
        # A blank line after each row is no part of a cell.
        ("t.csv", 'label,text\n\nx,"a\n\ny,b"\n\nx,c\n\ny,d\n', ", row 1: " + SPANS.format(3, 5)),
        ("t.csv", 'label,text\r\r\nx,"a\r\r\ny,b"\r\r\nx,c\r\r\ny,d\r\r\n', ", row 1: " + SPANS.format(3, 5)),
        # Doubled quotes say that the file quotes, and then this may be one cell or two rows.
        ("t.tsv", 'text\tlabel\n"say ""hi"""\tx\n"a\tx\nb"\ty\n', ", row 2: " + SPANS.format(3, 4)),
    ],
)
def test_rows_do_not_become_one_in_silence(write: Write, name: str, content: str, problem: str) -> None:
    assert complaint(write(name, content)).startswith(problem)


def test_a_cell_of_several_lines_that_may_be_rows_is_told(write: Write) -> None:
    note = "quoted cells span several lines, each of which could be a row by itself, in row 1."
    path = write("t.csv", 'text,label\n"Hello Bob,\nthanks",x\nb,y\n')
    assert contents(path) == ({"text": ["Hello Bob,\nthanks", "b"], "label": ["x", "y"]}, (note,))
    path = write("t.csv", 'text,label\n"Hello Bob, thanks\nfor all",x\nb,y\n')
    assert contents(path)[1] == (note,)
    path = write("t.csv", 'text,label\n"Hello\nBob",x\nb,y\n')
    assert contents(path)[1] == ()


# --- separators, headers, line ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("t.csv", "text;label\na;x\nb;y\n", "a semicolon separates the cells, not a comma."),
        ("t.csv", '"text";"label"\n"a";"x"\n"b";"y"\n', "a semicolon separates the cells, not a comma."),
        ("t.csv", "text\tlabel\na\tx\nb\ty\n", "a tab separates the cells, not a comma."),
        ("t.csv", "text|label\na|x\nb|y\n", "a vertical bar separates the cells, not a comma."),
        ("t.tsv", TABLE, "a comma separates the cells, not a tab."),
        ("t.csv", "text,label\na,x\rb,y\r\n", "lines end in different ways; rows 1, 2 not as the first line does."),
    ],
)
def test_another_form_is_read_and_told(write: Write, name: str, content: str, note: str) -> None:
    assert contents(write(name, content)) == (AB, (note,))


def test_a_carriage_return_in_a_cell_that_nobody_quoted_is_told(write: Write) -> None:
    # So writes pandas, which quotes line feeds only.
    assert complaint(write("t.csv", "text,label\na\rb,x\nc,y\n")) == (
        ", row 1: the row has 1 cell, but the header has 2. It does not end as the first line does: a carriage return "
        "or line feed in a cell may have cut it. Put cells that contain a comma or a line end in double quotes."
    )


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_repeated_header_is_refused(write: Write, name: str) -> None:
    joined = TABLE + TABLE
    path = write(name, joined.replace(",", "\t") if name.endswith("tsv") else joined)
    assert complaint(path) == ", row 3: the row repeats the header. Remove it."


def test_a_row_of_the_only_column_may_have_its_name(write: Write) -> None:
    assert contents(write("t.csv", "text\nsome\ntext\n"))[0] == {"text": ["some", "text"]}


def test_the_separator_of_the_header_holds_for_all_rows(write: Write) -> None:
    assert complaint(write("t.csv", "text;label\na;x\nb\n")) == (
        ", row 2: the row has 1 cell, but the header has 2. "
        "Put cells that contain a semicolon or a line end in double quotes."
    )
    assert contents(write("t.csv", "text\na;b\n")) == ({"text": ["a;b"]}, ())
    assert contents(write("t.csv", '"a;b",label\n1,2\n'))[0] == {"a;b": ["1"], "label": ["2"]}
    assert complaint(write("t.csv", "sep=;\ntext;label\na;x\n")) == ": the first line 'sep=;' is for Excel. Remove it."


def repeated_parquet(path: Path) -> Path:
    pq.write_table(pa.table([["a"], ["x"], ["1"], ["2"], ["3"]], names=["text", "label", "", "n", "n"]), path)
    return path


@pytest.mark.parametrize("form", [".csv", ".tsv", ".jsonl", ".json", ".parquet", "frame", "columns"])
def test_columns_that_nobody_asks_for_may_be_unnamed_or_repeated(write: Write, tmp_path: Path, form: str) -> None:
    names = ["text", "label", "", "n", "n"]
    record = '{"text": "a", "label": "x", "": 1, "n": 2, "n": 3}'
    source: object
    if form in (".csv", ".tsv"):
        separator = "," if form == ".csv" else "\t"
        source = write(f"t{form}", "\n".join(separator.join(row) for row in (names, "ax123")))
    elif form in (".jsonl", ".json"):
        source = write(f"t{form}", record if form == ".jsonl" else f"[{record}]")
    elif form == ".parquet":
        source = repeated_parquet(tmp_path / "t.parquet")
    elif form == "frame":
        source = pd.DataFrame([list("ax123")], columns=names)
    else:
        source = {"text": ["a"], "label": ["x"], 1: [1], "1": [2]}
    data = read_dataset(source)
    assert (data.texts, data.labels) == (["a"], ["x"])
    asked = "1" if form == "columns" else "n"
    many = (
        f"the object has more than one key {asked!r}" if "json" in form else f"more than one column is named {asked!r}"
    )
    assert many in complaint(source, text=asked)


def test_a_blank_line_in_a_column_alone_is_counted(write: Write) -> None:
    table = read_table(write("t.csv", "text\na\n\nb\n"))
    assert (table.rows, table.blank_lines) == (2, 1)
    assert complaint(write("t.tsv", "text\n\n\n")) == ": there are no rows, only 2 blank lines. Give at least one."


# --- JSON -----------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame(AB)
UNDER_KEYS = "the JSON object has a {} under each key."


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (FRAME.to_json(), UNDER_KEYS.format("column")),
        (FRAME.to_json(orient="index"), UNDER_KEYS.format("row")),
        (json.dumps(AB, indent=1), UNDER_KEYS.format("column")),
        (
            json.dumps({"version": 1, "data": FRAME.to_dict("records")}),
            "the rows are the list 'data' of a JSON object.",
        ),
        (FRAME.to_json(orient="records"), None),
        (FRAME.to_json(orient="records", lines=True), None),
        ('{\n"text": "a",\n"label": "x"\n}\n\n{\n"text": "b",\n"label": "y"\n}\n', None),
        ('{"text": "a", "label": "x"}\r{"text": "b", "label": "y"}\r', None),
    ],
)
def test_json_holds_rows_in_many_forms(write: Write, content: str, note: str | None) -> None:
    assert contents(write("t.json", content)) == (AB, () if note is None else (note,))


@pytest.mark.parametrize("content", ['{"text": "a", "labels": ["x"]}', '{\n"text": "a",\n"labels": ["x"]}'])
def test_one_object_may_be_one_row(write: Write, content: str) -> None:
    assert contents(write("t.json", content))[0] == {"text": ["a"], "labels": [["x"]]}
    lines = write("t.jsonl", '{"text": "a", "spans": [{"start": 1}], "meta": {"id": 2}}')
    assert contents(lines)[0] == {"text": ["a"], "spans": [[{"start": 1}]], "meta": [{"id": 2}]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            '{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
            ": the file is one JSON object with the keys 'train', 'test', not a list of rows. Write a list of",
        ),
        (
            '{"text": "ab", "label": "x", "tokens": [{"text": "a"}, {"text": "b"}]}',
            ": the keys 'text' are in the JSON object and in its list 'tokens', so either may be the rows. Write a",
        ),
        ('{"config": {"a": 1}}', ": the file is one JSON object with the keys 'config', not a list of rows."),
        ('{"text": ["a", "b"], "label": ["x"]}', ": all columns must have the same number of rows, but 'label' has 1"),
        ('"a"', ", row 1: the row must map column names to values. Got 'a' (str) instead."),
        ('{"text": "a"\n', ": this is not valid JSON: Expecting ',' delimiter (line 2, character 1)."),
        (TABLE, ", row 1: this is not valid JSON: Expecting value (character 1). If it is CSV or TSV, end its name in"),
        ('[{"text": "a"}, {"text": "é"}]'.encode("latin-1"), ", row 2: the text is not UTF-8. Save the file as UTF-8."),
    ],
)
def test_other_json_is_refused(write: Write, content: str | bytes, problem: str) -> None:
    assert complaint(write("t.json", content)).startswith(problem)


def test_deep_values_and_long_numbers_can_be_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert ": the text is a huge list (list), not text." in complaint([{"text": deep, "label": "x"}])
    assert ": the text is a huge int (int), not text." in complaint([{"text": 10**5000, "label": "x"}])
    # Taken apart from the outside, as a deep list is too much for Python's own way.
    while deep:
        deep = deep.pop()  # type: ignore[assignment]


# --- files that are something else ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            zipped("[Content_Types].xml", "xl/workbook.xml"),
            "an Excel workbook or another Office file. Save the",
        ),
        (zipped("[Content_Types].xml", "word/document.xml"), "a Word document. Give a file with a table."),
        (zipped("mimetype", "application/vnd.oasis.opendocument"), "an OpenDocument file. Save the sheet as CSV"),
        (zipped("t.csv"), "a ZIP archive. Unpack it first."),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99,
            "an old Excel workbook or another Office file. Save",
        ),
        (gzip.compress(TABLE.encode(), mtime=0), "packed with gzip. End its name in .gz after"),
        (lzma.compress(TABLE.encode()), "compressed. Unpack it first."),
        (parquet_bytes({"text": ["a"]}), "a Parquet file. End its name in .parquet."),
        (feather_bytes(), "an Arrow or Feather file. Save the table as Parquet."),
        (b"SQLite format 3\0" + b"\0" * 99, "an SQLite database. Export the table as CSV."),
        (pickle.dumps(AB), "a Python pickle, which could run code. Save the table as CSV or Parquet."),
        (numpy_bytes(), "a NumPy, HDF5, Avro or ORC file. Save the table as CSV or Parquet."),
        (b"%PDF-1.7\n", "a document. Give a file with a table."),
        (b"\n<!DOCTYPE html><html>", "a web page or XML. Download or export the table itself."),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS. Get the file itself with: git lfs",
        ),
        (b"\0" * 64, "full of zero bytes. It is damaged; get it again."),
    ],
)
def test_a_file_of_another_type_is_told_as_what_it_is(write: Write, content: bytes, told: str) -> None:
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.xlsx"):
        assert complaint(write(name, content)).startswith(f": this is {told}")
    assert complaint(write("t.csv.gz", gzip.compress(content))).startswith(f": this is {told}")
    if "Parquet file" not in told:
        assert complaint(write("t.parquet", content)).startswith(f": this is {told}")


def test_json_under_the_name_of_csv_is_told(write: Write) -> None:
    for content in ('[{"text": "a"}]', '{"text": "a"}\n', '\n[\n {"text": "a"}]'):
        assert complaint(write("t.csv", content)) == ": this is JSON. End its name in .json or .jsonl."
    assert contents(write("t.csv", "[text],[label]\na,x\n"))[0] == {"[text]": ["a"], "[label]": ["x"]}


def test_a_file_that_unpacks_to_far_more_than_it_is(write: Write) -> None:
    path = write("t.csv.gz", gzip.compress(b"text,label\n" + b"a,x\n" * 2**23))
    assert complaint(path) == (": the file unpacks to more than 200 times its size. If that is right, unpack it first.")


def test_an_address_is_no_file() -> None:
    assert complaint("https://example.org/t.csv").endswith("This is an address: download the file first.")


# --- streams --------------------------------------------------------------------------------------------------------

READ_AS = "nothing names the format, and the content was read as {}."
STREAMS: list[tuple[bytes, str | None]] = [
    (TABLE.encode(), "CSV"),
    (TABLE.replace(",", "\t").encode("utf-16"), "TSV"),
    (FRAME.to_json(orient="records", lines=True).encode(), "JSON"),
    (FRAME.to_json(orient="records").encode(), "JSON"),
    (gzip.compress(TABLE.encode(), mtime=0), "CSV"),
    (parquet_bytes({"text": ["a", "b"], "label": ["x", "y"]}), None),
    (gzip.compress(parquet_bytes({"text": ["a", "b"], "label": ["x", "y"]}), mtime=0), None),
]


@pytest.mark.parametrize(("content", "form"), STREAMS)
def test_the_first_bytes_tell_the_format_where_no_name_does(
    write: Write, monkeypatch: pytest.MonkeyPatch, content: bytes, form: str | None
) -> None:
    expected = AB, () if form is None else (READ_AS.format(form),)
    assert contents(write("rows", content)) == expected
    assert contents(io.BytesIO(content)) == expected
    with (path := write("rows.dat", content)).open("rb") as file:
        assert contents(file) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert contents("-") == expected
    # A pipe can be read once, and has no length.
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    assert contents(f"/dev/fd/{reader}") == expected
    os.close(reader)
    assert read_table(path.with_name("rows")).source == str(path.with_name("rows"))


def test_a_text_stream_and_a_named_pipe_are_read(tmp_path: Path) -> None:
    assert contents(io.StringIO(TABLE)) == (AB, (READ_AS.format("CSV"),))
    assert "unpaired surrogate" in complaint(io.StringIO('{"text": "\\ud800", "label": "x"}'))
    assert ", row 1" in complaint(io.StringIO("text,label\n\ud800,x\n"))
    os.mkfifo(path := tmp_path / "t.tsv")
    thread = threading.Thread(target=lambda: path.write_text(TABLE.replace(",", "\t")))
    thread.start()
    assert contents(path) == (AB, ())
    thread.join()


def test_standard_input_of_a_process() -> None:
    program = "from ytuning import read_dataset; data = read_dataset({!r}); print(data.source, data.texts)"
    for name, source in (("-", "the standard input"), ("/dev/stdin", "/dev/stdin")):
        command = [sys.executable, "-c", program.format(name)]
        done = subprocess.run(command, input=TABLE, capture_output=True, text=True, check=True)
        assert done.stdout == f"{source} ['a', 'b']\n"


def test_a_closed_or_empty_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert complaint("-") == "the standard input: it is closed. Give a file name or open it."
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert complaint("-") == "the standard input: the file is empty. Give one with rows."


# --- damage ---------------------------------------------------------------------------------------------------------


def test_damaged_files_end_in_errors_that_are_raised_on_purpose(tmp_path: Path) -> None:
    result = fuzz_reading.run(0, 300, seed=7, folder=tmp_path)
    assert result["failures"] == []
    assert min(result["outcomes"]["read"], result["outcomes"]["refused"]) > 30


def test_the_fuzz_tells_what_it_did(tmp_path: Path) -> None:
    # A process of its own, because the peak of this one's memory is that of all tests so far.
    command = [sys.executable, "-m", "tests.data.fuzz_reading", "--files", "2"]
    run = partial(subprocess.run, capture_output=True, check=True, cwd=Path(__file__).parents[2])
    assert json.loads(run(command).stdout)["files"] == 2
    run([*command, "--first", "7", "--keep", str(tmp_path)])
    assert sorted(path.name.split(".")[0] for path in tmp_path.iterdir()) == ["7", "8"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_end_as_other_lines_do(end: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(end.join(['{"text": "a"}', "", '{"text": "b"}', "  ", '{"text": "c"}']).encode())
    rows = read_dataset(path, labelled=False)
    assert (rows.texts, rows.rows_read, rows.left_out) == (["a", "b", "c"], 5, {"blank lines": 2})


@pytest.mark.parametrize(("others", "kind"), [(1, "regression"), (2, "single")])
def test_labels_are_numbers_where_nine_in_ten_are(others: int, kind: str, tmp_path: Path) -> None:
    path, labels = tmp_path / "rows.csv", [f"{row}.5" for row in range(10 - others)] + ["high"] * others
    path.write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels))
    if kind == "single":
        assert read_dataset(path).kind == kind
    else:
        with pytest.raises(InputError, match="row 10, column 'label': the label 'high' is not a finite number"):
            read_dataset(path)

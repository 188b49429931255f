"""Reading tables: what every source gives, and what is said about a source that cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ytuning.data.files import read_table
from ytuning.data.tables import Column
from ytuning.errors import DataError, InputError, MissingExtraError

Write = Callable[[str, "str | bytes"], Path]

ROWS = [{"text": "naïve, 'q' \"x\"", "label": "a"}, {"text": "two\nlines", "label": "NA"}]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A file of that name with that content, packed if the name says so."""

    def write(name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def delimited(rows: list[dict[str, str]], delimiter: str) -> str:
    """Rows as Python's own writer puts them."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def parquet(path: Path, columns: Mapping[str, object]) -> Path:
    pq.write_table(pa.table(dict(columns)), path)
    return path


def contents(source: object) -> dict[str, list[object]]:
    table = read_table(source)
    columns = {name: table.column(name).cells for name in table.names}
    assert all(len(cells) == table.rows for cells in columns.values())
    return columns


def complaint(source: object) -> str:
    """What reading says about a source, in one line."""
    with pytest.raises(InputError) as caught:
        contents(source)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", "list.json", ".CSV"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_text_format_gives_the_same_rows(write: Write, suffix: str, packed: str) -> None:
    if suffix == "list.json":
        content = json.dumps(ROWS, indent=1)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        content = "\n".join(json.dumps(row) for row in ROWS)
    else:
        content = delimited(ROWS, "," if suffix.lower() == ".csv" else "\t")
    path = write(f"rows.v2{suffix}{packed}", content)
    assert contents(path) == contents(str(path)) == {name: [row[name] for row in ROWS] for name in ("text", "label")}
    assert read_table(path).source == str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".pq"])
def test_parquet_keeps_types(tmp_path: Path, suffix: str) -> None:
    columns = {"text": ["a", None], "label": [1, 2], "score": [0.5, 1.0], "tags": [["x"], []]}
    assert contents(parquet(tmp_path / f"t{suffix}", columns)) == columns


def test_parquet_reads_only_the_columns_asked_for(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"text": ["a"], "image": [b"a picture"]})
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    damaged = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    damaged[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(damaged)
    assert read_table(path).column("text").cells == ["a"]
    with pytest.raises(DataError):
        read_table(path).column("image")


def test_a_csv_cell_is_never_anything_but_text(write: Write) -> None:
    cells = ["NA", "null", "1.0", "007", "", "true", " padded ", "-", 'say "hi"', "\x00nul"]
    content = "\n".join(["text,n", *(f"{cell},1" for cell in cells)])
    assert contents(write("t.csv", content))["text"] == cells


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_line_may_end_in_any_way_and_blank_lines_do_not_count(write: Write, end: str) -> None:
    path = write("t.csv", end.join(["\ufefftext,label", "", "a,b", "", '"c\u2028\x85d",e', "", ""]))
    assert contents(path) == {"text": ["a", "c\u2028\x85d"], "label": ["b", "e"]}


def test_a_cell_may_be_longer_than_pythons_limit(write: Write) -> None:
    csv.field_size_limit(131_072)
    long = "word " * 100_000
    assert contents(write("t.csv", f"text,label\n{long},a\n"))["text"] == [long]


def test_json_lines_may_start_with_a_mark_and_hold_blank_lines_and_lack_keys(write: Write) -> None:
    path = write("t.jsonl", '\ufeff\n{"text": "a\u2028b"}\r\n\n{"label": 2, "text": null}\n')
    assert contents(path) == {"text": ["a\u2028b", None], "label": [None, 2]}


texts = st.text(st.characters(exclude_categories=["Cs"]))
tables = st.lists(st.tuples(texts, texts), min_size=1)
once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@once
@given(tables)
@example([('a"b\r\n\r\x00,\t;\u2028\x1a', "\ufeff"), ("", '"')])
def test_any_text_comes_back_from_csv(write: Write, rows: list[tuple[str, str]]) -> None:
    # A TSV file may be read otherwise and says so, which the round trips of every format test.
    dicts = [{"text": text, "label": label} for text, label in rows]
    table = contents(write("t.csv", delimited(dicts, ",")))
    assert list(zip(table["text"], table["label"], strict=True)) == rows


@once
@given(tables, st.booleans(), st.booleans())
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_any_text_comes_back_from_json(
    write: Write, packed: str, rows: list[tuple[str, str]], escaped: bool, listed: bool
) -> None:
    dicts = [{"text": text, "label": label} for text, label in rows]
    lines = [json.dumps(row, ensure_ascii=escaped) for row in dicts]
    table = contents(write(f"t.json{packed}", f"[{','.join(lines)}]" if listed else "\n".join(lines)))
    assert list(zip(table["text"], table["label"], strict=True)) == rows


@once
@given(tables)
def test_any_text_comes_back_from_parquet(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    first, second = [text for text, _ in rows], [label for _, label in rows]
    assert contents(parquet(tmp_path / "t.parquet", {"text": first, "label": second})) == {
        "text": first,
        "label": second,
    }


def test_rows_and_columns_in_memory() -> None:
    expected = {"text": ["a", "b"], "label": [1, None]}
    assert contents([{"text": "a", "label": 1}, {"text": "b"}]) == expected
    assert contents(({"text": "a", "label": 1, 7: "not a column name"}, {"text": "b"})) == expected
    assert contents({"text": ("a", "b"), "label": [1, None]}) == expected
    arrays = contents({"text": np.array(["a", "b"]), "label": pd.Series([1, 2])})
    assert arrays == {"text": ["a", "b"], "label": [1, 2]}
    assert [type(cell) for cell in arrays["label"]] == [int, int]


def test_a_data_frame_gives_plain_values_by_position() -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["x", "y"]), 0: [1, 2]}, index=[7, 7])
    assert contents(frame) == {"text": ["a", "b"], "label": ["x", "y"], "0": [1, 2]}
    assert read_table(frame).source == "the data frame"

    class Special(pd.DataFrame):  # type: ignore[misc]
        """Such as geopandas has."""

    assert contents(Special({"text": ["a"]})) == {"text": ["a"]}


def test_an_arrow_table_gives_plain_values() -> None:
    columns = {"text": ["a", None], "label": [1, 2], "tags": [["x"], []]}
    assert contents(pa.table(columns)) == columns
    assert read_table(pa.table(columns)).source == "the Arrow table"
    assert read_table(pa.table([["a"], ["b"], ["c"]], names=["text", "n", "n"])).column("text").cells == ["a"]
    ends, data = pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"ok\xff")
    broken = pa.table({"text": pa.StringArray.from_buffers(2, ends, data)})
    assert complaint(broken) == "the Arrow table, row 2, column 'text': the text is not UTF-8. Save the file as UTF-8."


def test_a_dataset_gives_the_names_of_its_class_labels() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [1, 0, -1, None]}, features=features)
    assert contents(data) == {"text": ["a", "b", "c", "d"], "label": ["pos", "neg", None, None]}
    assert contents(data.select([2, 0]).with_format("numpy")) == {"text": ["c", "a"], "label": [None, "pos"]}
    assert read_table(data).source == "the dataset"


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "count"),
    [("one", "1 cell"), ("a,b,c", "3 cells"), ("  ", "1 cell")],
)
def test_a_row_of_another_width_is_counted(write: Write, row: str, count: str) -> None:
    path = write("t.csv", f"text,label\n\na,b\n{row}\n")
    assert complaint(path) == (
        f"{path}, row 2: the row has {count}, but the header has 2. "
        "Put cells that contain a comma or a line end in double quotes."
    )
    assert "Replace the tabs" in complaint(write("t.tsv", "text\tlabel\na\tb\tc\n"))


@pytest.mark.parametrize(
    ("rows", "row", "line"),
    [
        ('a,b\n"c,d\n', 2, 3),  # open until the end
        ('a,b\n"c,d\ne,"f"\n', 2, 3),  # open until the next quote
        ('"a\nb",c\n\n"d" e,f\n', 2, 5),  # text after the closing quote
        ('"a,b\n', 1, 2),
    ],
)
def test_a_broken_quote_is_found_where_it_opens(write: Write, rows: str, row: int, line: int) -> None:
    path = write("t.csv", f"text,label\n{rows}")
    assert complaint(path) == (
        f"{path}, row {row}: a double quote in this row (line {line}) is never closed, or text follows the closing "
        "quote. Inside a quoted cell write each quote twice."
    )


def test_a_broken_quote_in_the_header_has_no_row(write: Write) -> None:
    path = write("t.csv", '"text,label\na,b\n')
    assert complaint(path).startswith(f"{path}: a double quote in this row (line 1)")


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_that_is_not_utf8_names_row_and_column(write: Write, packed: str, mark: bytes) -> None:
    path = write(f"t.csv{packed}", mark + b"text,label\n" + b'ok,a\n\n"two\nlines, caf\xe9",b\nok,a\n')
    assert complaint(path) == f"{path}, row 2, column 'text': the text is not UTF-8. Save the file as UTF-8."
    many = b"ok,a\n" * 20_000  # far beyond the block that a decoder reads
    path = write(f"t.csv{packed}", mark + b"text,label\n" + many + b"ok,\xff\n" + many)
    assert complaint(path).startswith(f"{path}, row 20001, column 'label': the text is not UTF-8")


def test_csv_that_is_cut_within_a_character(write: Write) -> None:
    path = write("t.csv", b"text,label\na,b\nc,\xe2\x82")
    assert complaint(path).startswith(f"{path}, row 2, column 'label': the text is not UTF-8")


def test_a_header_that_is_not_utf8_has_no_row(write: Write) -> None:
    path = write("t.csv", b"te\xffxt,label\na,b\n")
    assert complaint(path) == f"{path}: the text is not UTF-8. Save the file as UTF-8."


def test_a_bad_cell_beyond_the_header_has_no_column(write: Write) -> None:
    path = write("t.csv", b"text,label\na,b,\xff\n")
    assert complaint(path).startswith(f"{path}, row 1: the text is not UTF-8")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_utf16_needs_its_mark_and_is_read(write: Write, suffix: str, encoding: str) -> None:
    content = '{"text": "naïve 😀"}\n{"text": "b"}\n' if suffix == ".jsonl" else "text\nnaïve 😀\nb\n"
    path = write(f"t{suffix}", ("\ufeff" + content).encode(encoding))
    assert contents(path) == {"text": ["naïve 😀", "b"]}
    assert complaint(write(f"t{suffix}", content.encode(encoding))) == (
        f"{path}: the file is UTF-16 without a byte order mark. Save it as UTF-8."
    )
    broken = ("\ufeff" + content).encode(encoding)[:-1]
    assert complaint(write(f"t{suffix}", broken)).startswith(f"{path}, row 2")
    half = ("\ufeff" + content.replace("b", "\ud83d")).encode(encoding, "surrogatepass")
    assert complaint(write(f"t{suffix}", half)).startswith(f"{path}, row 2")


def test_utf32_is_recognised(write: Write) -> None:
    path = write("t.csv", "text\na\n".encode("utf-32"))
    assert complaint(path) == f"{path}: the file is UTF-32. Save it as UTF-8."


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b'{"text": "a"}\n\n{"text": \n', ", row 2", "this is not valid JSON: Expecting value (character 9)."),
        (b'{"text": "a"}\n{"text": "\xff"}\n', ", row 2", "the text is not UTF-8. Save the file as UTF-8."),
        (b'{"text": "a\tb"}', ", row 1", "this is not valid JSON: Invalid control character (character 12)."),
        (
            b'[\n{"text": "a"},\n{"text" "b"}]',
            "",
            "this is not valid JSON: Expecting ':' delimiter (line 3, character 9).",
        ),
        (b'["a"]', ", row 1", "the row must map column names to values. Got 'a' (str) instead."),
        (b'{"text": "a"}\n[1]\n', ", row 2", "the row must map column names to values. Got [1] (list) instead."),
        (b'{"text": "a"}\n3\n', ", row 2", "the row must map column names to values. Got 3 (int) instead."),
    ],
)
def test_broken_json_names_the_row(write: Write, content: bytes, where: str, what: str) -> None:
    path = write("t.jsonl", content)
    assert complaint(path) == f"{path}{where}: {what}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[" * 100_000, "this JSON is nested too deeply. Write flat rows."),
        ('{"text": ' * 100_000, "this JSON is nested too deeply. Write flat rows."),
        ('{"text": ' + "1" * 5000 + "}", "this JSON cannot be read: Exceeds the limit"),
    ],
)
def test_json_beyond_pythons_limits_is_refused(write: Write, content: str, problem: str) -> None:
    path = write("t.jsonl", content)
    assert problem in complaint(path)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json", "t.csv.gz", "t.ndjson.gz"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file(write: Write, name: str, content: str) -> None:
    path = write(name, content)
    assert complaint(path) == f"{path}: the file is empty. Give one with rows."


def test_no_rows(write: Write, tmp_path: Path) -> None:
    rowless = parquet(tmp_path / "t.parquet", {"text": pa.array([], pa.string())})
    for path in (write("t.csv", "text,label\n"), write("t.json", "[]"), rowless):
        assert complaint(path) == f"{path}: there are no rows. Give at least one."
    assert complaint([]) == "the rows: there are no rows. Give at least one."
    assert complaint({}) == complaint({"text": []}) == "the columns: there are no rows. Give at least one."
    assert complaint(pd.DataFrame({"text": []})) == "the data frame: there are no rows. Give at least one."
    assert complaint(datasets.Dataset.from_dict({"text": []})) == "the dataset: there are no rows. Give at least one."


def test_two_columns_of_one_name(write: Write, tmp_path: Path) -> None:
    problem = "more than one column is named 'text'. Rename one of them."
    path = write("t.csv", "text,label,text\na,b,c\n")
    assert complaint(path) == f"{path}: {problem}"
    assert complaint(pd.DataFrame([["a", "b"]], columns=["text", "text"])) == f"the data frame: {problem}"
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    assert complaint(path) == f"{path}: {problem}"


@pytest.mark.parametrize(("name", "got"), [("t.xlsx", ".xlsx"), ("t.v2.txt", ".txt"), ("t.pq.gz", ".pq.gz")])
def test_an_unknown_suffix_lists_the_known_ones(write: Write, name: str, got: str) -> None:
    path = write(name, "text\na\n")
    likely = "" if name.endswith(".gz") else ", and the content looks like CSV"
    assert complaint(path) == (
        f"{path}: the file name must end in one of .csv, .tsv, .tab, .jsonl, .ndjson, .json, .parquet, .pq; "
        f".gz may follow, except for Parquet. Got {got!r} instead{likely}."
    )


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl.gz", "t.parquet"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    assert complaint(tmp_path / name) == f"{tmp_path / name}: there is no such file. Check its name."


def test_a_folder(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path}: this is a folder. Give the name of a file in it."


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl.gz"])
def test_a_damaged_gz_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"text,label\na,b\n")
    assert complaint(path) == f"{path}: the file is not packed with gzip. Remove .gz from its name."
    packed = gzip.compress(b'{"text": "a"}\n' * 50)
    path.write_bytes(packed[:-10])
    assert complaint(path).startswith(f"{path}: the file cannot be read: Compressed file ended")
    path.write_bytes(packed[:12] + b"\xff\xff\xff" + packed[15:])
    assert complaint(path).startswith(f"{path}: the file cannot be read: Error -3 while decompressing")


def test_a_file_the_system_refuses(tmp_path: Path) -> None:
    (path := tmp_path / "t.csv").symlink_to("t.csv")
    assert complaint(path) == f"{path}: the file cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize("cut", [0, 7, 100])
def test_a_damaged_parquet_file(tmp_path: Path, cut: int) -> None:
    path = parquet(tmp_path / "t.parquet", {"text": ["a"]})
    path.write_bytes(path.read_bytes()[:cut])
    assert complaint(path).startswith(f"{path}: the file is not a Parquet file or is damaged: ")


def test_parquet_damaged_where_a_column_lies(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"text": [f"text {i}" for i in range(100)]})
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 100 + data[104:])
    assert complaint(path).startswith(f"{path}: the file is not a Parquet file or is damaged: ")


def test_parquet_text_that_is_not_utf8_names_row_and_column(tmp_path: Path) -> None:
    ends, data = pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"ok\xff")
    path = parquet(tmp_path / "t.parquet", {"text": pa.StringArray.from_buffers(2, ends, data)})
    assert complaint(path) == f"{path}, row 2, column 'text': the text is not UTF-8. Save the file as UTF-8."


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "t.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ytuning\[parquet\]'"):
        read_table(path)


def test_several_splits_and_streams_are_refused() -> None:
    data = datasets.Dataset.from_dict({"text": ["a"]})
    splits = datasets.DatasetDict(train=data, test=data)
    assert complaint(splits) == "a DatasetDict has several splits. Pass one of them as data[...]: 'train', 'test'."
    streams = datasets.IterableDatasetDict({"train": data.to_iterable_dataset()})
    assert complaint(streams).startswith("a IterableDatasetDict has several splits")
    assert complaint(data.to_iterable_dataset()) == (
        "an IterableDataset has no length. Pass a datasets.Dataset: load it with streaming=False."
    )


def test_other_objects_are_refused() -> None:
    assert complaint(pd.Series(["a"])) == (
        "data must be a file name, an open file, a data frame, a pyarrow.Table, a datasets.Dataset, a list of mappings "
        "or a mapping of lists. Got Series instead."
    )
    assert complaint([{"text": "a"}, "b"]) == (
        "the rows, row 2: the row must map column names to values. Got 'b' (str) instead."
    )
    assert (
        complaint({"text": "abc"})
        == "the column 'text' must be a list, an array or a series. Got 'abc' instead. Put a single text in a list."
    )
    assert complaint({"text": ["a", "b"], "label": ["x"]}) == (
        "the columns: all columns must have the same number of rows, but 'label' has 1 and 'text' has 2."
    )


# --- cells that must be text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (None, "the text is missing. Fill it in or remove the row."),
        (float("nan"), "the text is missing. Fill it in or remove the row."),
        (np.float64("nan"), "the text is missing. Fill it in or remove the row."),
        (pd.NA, "the text is missing. Fill it in or remove the row."),
        (pd.NaT, "the text is missing. Fill it in or remove the row."),
        ("", "the text is empty. Fill it in or remove the row."),
        (" \n\u3000", r"the text ' \n\u3000' has only white space. Fill it in or remove the row."),
        (3, "the text is 3 (int), not text. Write it as text."),
        (b"raw", "the text is b'raw' (bytes), not text. Decode it: .decode('utf-8')."),
        (["a"], "the text is ['a'] (list), not text. Write it as text."),
        (
            "half \ud800",
            r"the text 'half \ud800' contains an invalid Unicode character (an unpaired surrogate). Replace it.",
        ),
    ],
)
def test_a_cell_without_text(cell: object, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        Column("t.csv", "body\n", ["fine", cell]).texts("text")
    assert str(caught.value) == rf"t.csv, row 2, column 'body\n': {problem}"


@given(st.lists(texts.filter(lambda text: text and not text.isspace())))
def test_text_is_kept_exactly(cells: list[str]) -> None:
    assert Column("t", "c", list(cells)).texts("text") == cells


def test_numpy_text_becomes_plain_text() -> None:
    [text] = Column("t", "c", [np.str_("a")]).texts("text")
    assert type(text) is str


# --- imports --------------------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_for_csv(write: Write) -> None:
    path = write("t.csv", "text,label\na,b\n")
    program = f"""
import sys
from ytuning.data.dataset import from_lists, read_dataset
read_dataset({str(path)!r}), read_dataset([{{"text": "a", "label": 1}}]), from_lists(["a"])
print(*sorted({{"pandas", "pyarrow", "datasets", "torch", "transformers", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"

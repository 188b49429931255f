"""Lists, arrays, series and columns of every package are read alike, or refused in words."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch

from ytuning.data.dataset import Dataset, from_lists, read_dataset, read_inputs
from ytuning.data.sequences import as_cells, frame_columns
from ytuning.errors import DataError, InputError

TEXTS = ["ab", "c d", "é"]


class PolarsSeries:
    """What is used of a series of polars, which the tests do not install. Its iterator gives lists as series."""

    def __init__(self, name: str, values: list[object]) -> None:
        self.name, self.values = name, values

    def __iter__(self) -> Iterator[object]:
        return (PolarsSeries("", cell) if isinstance(cell, list) else cell for cell in self.values)

    def __len__(self) -> int:
        return len(self.values)

    def to_list(self) -> list[object]:
        return self.values


class PolarsFrame:
    """The same of a frame."""

    def __init__(self, columns: dict[str, list[object]]) -> None:
        self.columns = columns

    def get_columns(self) -> list[PolarsSeries]:
        return [PolarsSeries(name, values) for name, values in self.columns.items()]


PolarsFrame.__name__, PolarsFrame.__module__ = "DataFrame", "polars.dataframe.frame"

ONE_COLUMN: dict[str, Callable[[list[str]], object]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda texts: (text for text in texts),
    "iterator": iter,
    "deque": collections.deque,
    "values of a dict": lambda texts: dict(enumerate(texts)).values(),
    "array": np.array,
    "object array": lambda texts: np.array(texts, object),
    "array (n, 1)": lambda texts: np.array(texts)[:, None],
    "object array (n, 1)": lambda texts: np.array(texts, object)[:, None],
    "masked array": np.ma.array,
    "array that is reversed": lambda texts: np.array(texts[::-1])[::-1],
    "series": lambda texts: pd.Series(texts, index=[5, 5, 0]),
    "string series": lambda texts: pd.Series(texts, dtype="string"),
    "pyarrow series": lambda texts: pd.Series(texts, dtype=pd.ArrowDtype(pa.string())),
    "categorical series": lambda texts: pd.Series(texts, dtype="category"),
    "categorical": pd.Categorical,
    "index": pd.Index,
    "frame of one column": lambda texts: pd.DataFrame({"text": texts}, index=[5, 5, 0]),
    "polars series": lambda texts: PolarsSeries("text", list(texts)),
    "polars frame of one column": lambda texts: PolarsFrame({"text": list(texts)}),
    "arrow array": pa.array,
    "arrow dictionary": lambda texts: pa.array(texts).dictionary_encode(),
    "arrow chunked array": lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
    "arrow table of one column": lambda texts: pa.table({"text": texts}),
    "arrow batch of one column": lambda texts: pa.record_batch({"text": texts}),
    "datasets column": lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
    "datasets column as numpy": lambda texts: datasets.Dataset.from_dict({"text": texts}).with_format("numpy")["text"],
    "datasets of one column": lambda texts: datasets.Dataset.from_dict({"text": texts}),
}
PAIRS: dict[str, Callable[[list[str], list[str]], object]] = {
    "tuples": lambda first, second: list(zip(first, second, strict=True)),
    "iterator": lambda first, second: zip(first, second, strict=True),
    "lists": lambda first, second: [[*pair] for pair in zip(first, second, strict=True)],
    "arrays": lambda first, second: [np.array(pair) for pair in zip(first, second, strict=True)],
    "array": lambda first, second: np.array([first, second]).T,
    "object array": lambda first, second: np.array([first, second], object).T,
    "series of tuples": lambda first, second: pd.Series(list(zip(first, second, strict=True))),
    "index of two levels": lambda first, second: pd.MultiIndex.from_arrays([first, second]),
    "frame": lambda first, second: pd.DataFrame({"b": first, "a": second}, index=[5, 5, 0]),
    "string frame": lambda first, second: pd.DataFrame({"b": first, "a": second}, dtype="string"),
    "polars frame": lambda first, second: PolarsFrame({"b": list(first), "a": list(second)}),
    "arrow table": lambda first, second: pa.table({"b": first, "a": second}),
    "datasets": lambda first, second: datasets.Dataset.from_dict({"b": first, "a": second}),
    "list column": lambda first, second: pa.array([[*pair] for pair in zip(first, second, strict=True)]),
}


@pytest.mark.parametrize("form", ONE_COLUMN)
def test_one_column_is_texts(form: str) -> None:
    values = ONE_COLUMN[form](TEXTS)
    data = from_lists(values)
    assert data == Dataset(TEXTS)
    assert {type(text) for text in data.texts} == {str}


@pytest.mark.parametrize("form", PAIRS)
def test_two_columns_are_pairs(form: str) -> None:
    assert from_lists(PAIRS[form](TEXTS, TEXTS[::-1])) == Dataset(TEXTS, None, TEXTS[::-1])


@pytest.mark.parametrize("values", [[["ab"], ["cd"]], [("ab",), ("cd",)], ["ab", "cd"], ("ab", "cd")])
def test_texts_are_never_pairs_of_letters(values: object) -> None:
    assert from_lists(values) == Dataset(["ab", "cd"])
    assert list(read_inputs(as_cells(values, "inputs"))) == [("ab", None), ("cd", None)]


@pytest.mark.parametrize("form", ONE_COLUMN)
def test_one_column_is_labels(form: str) -> None:
    labels = from_lists(TEXTS, ONE_COLUMN[form](["x", "y", "x"])).labels
    assert labels == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (np.array([1, 2]), [1, 2]),
        (np.array([[1], [2]]), [1, 2]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor([[1], [2]]), [1, 2]),
        (pa.array([1, 2]), [1, 2]),
        (pd.Series([1, 2], dtype="Int64"), [1, 2]),
        (pd.Series([True, False], dtype="boolean"), [True, False]),
        (range(2), [0, 1]),
        (PolarsSeries("labels", [["a"], ["a", "b"]]), [["a"], ["a", "b"]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ],
)
def test_numbers_stay_numbers(values: object, numbers: list[object]) -> None:
    assert as_cells(values, "labels") == numbers


LAZY = type("LazyFrame", (), {"columns": ["a"], "__iter__": lambda self: iter(["a"]), "__module__": "polars.lazyframe"})
TENSOR = type("Tensor", (), {"numpy": lambda self: 1, "__iter__": lambda self: iter([]), "__module__": "tensorflow.x"})

DASK = type(
    "Array", (), {"compute": lambda self: 1, "__iter__": lambda self: iter([]), "__module__": "dask.array.core"}
)


@pytest.mark.parametrize(
    ("values", "given"),
    [
        ("ab", "'ab' instead. Put a single text in a list."),
        (np.str_("ab"), "numpy.str_ instead. Put a single text in a list."),
        (b"ab", "b'ab' instead. Put a single text in a list."),
        (3, "3 instead."),
        (None, "None instead."),
        (np.array("ab"), "numpy.ndarray instead. Its shape is ()."),
        (np.array([[["ab"]]]), "numpy.ndarray instead. Its shape is (1, 1, 1)."),
        ({"a": 1}, "{'a': 1} instead. Give one of its values."),
        ({"a"}, "{'a'} instead. A set has no order of rows."),
        (frozenset("a"), "frozenset({'a'}) instead. A set has no order of rows."),
        (scipy.sparse.csr_array(np.eye(2)), "scipy.csr_array instead. Make an array of a sparse matrix with .toarray"),
        (pd.DataFrame(index=[1, 2]), "pandas.DataFrame instead. Give one of its columns as a list."),
        (LAZY(), "polars.LazyFrame instead. Give one of its columns as a list."),
        (DASK(), "dask.Array instead. Compute it first with .compute()."),
        (TENSOR(), "tensorflow.Tensor instead. Make an array of a tensor with .numpy()."),
        (object(), "<object object at"),
    ],
)
def test_what_is_no_list_is_refused(values: object, given: str) -> None:
    words = re.escape(f"texts must be a list, an array or a series. Got {given}")
    for read in (lambda: as_cells(values, "texts"), lambda: from_lists(values)):
        with pytest.raises(InputError, match=f"^{words}"):
            read()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([b"ab"]), "row 1, column 'text': the text is b'ab' (bytes), not text. Decode it: .decode('utf-8')."),
        (np.array(["a", 3], object), "row 2, column 'text': the text is 3 (int), not text."),
        (np.array(["a", None], object), "row 2, column 'text': the text is missing."),
        (pd.Series(["a", None], dtype="string"), "row 2, column 'text': the text is missing."),
        (pd.Series(["a", None], dtype=pd.ArrowDtype(pa.string())), "row 2, column 'text': the text is missing."),
        (pd.Series(["a", None], dtype="category"), "row 2, column 'text': the text is missing."),
        (np.ma.array(["a", "b"], mask=[False, True]), "row 2, column 'text': the text is missing."),
        (pa.array(["a", None]), "row 2, column 'text': the text is missing."),
        (pd.DataFrame({"a": ["x"], "b": [None]}), "row 1, column 'text_pair': the text pair is missing."),
        (pd.DataFrame([["a", "b", "c"]]), "row 1: every row must be a text or a pair of texts. Got ('a', 'b', 'c')"),
        (np.array([["a", "b", "c"]]), "row 1: every row must be a text or a pair of texts. Got ['a', 'b', 'c']"),
        ([{"text": "a"}], "row 1, column 'text': the text is {'text': 'a'} (dict), not text."),
        (torch.tensor([1, 2]), "row 1, column 'text': the text is 1 (int), not text."),
    ],
)
def test_cells_that_are_no_text_are_told_with_their_row(values: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^the rows, {re.escape(message)}"):
        from_lists(values)
    if "text pair is missing" not in message:
        words = message.replace("every row", "every input")
        with pytest.raises(DataError, match=f"^the inputs, {re.escape(words)}"):
            list(read_inputs(as_cells(values, "inputs")))


def test_inputs_are_read_as_they_are_asked_for() -> None:
    stream = read_inputs(iter(["a", ("b", "c"), ("d", None), ["e"], np.array(["f", "g"]), 5]))
    assert [next(stream) for _ in range(5)] == [("a", None), ("b", "c"), ("d", None), ("e", None), ("f", "g")]
    with pytest.raises(DataError, match=r"^the inputs, row 6, column 'text': the text is 5 \(int\), not text"):
        next(stream)


def test_texts_may_be_blank_only_without_labels() -> None:
    blank: list[Any] = ["", " \n", "\u3000"]
    assert from_lists(blank).texts == blank == [text for text, _ in read_inputs(blank)]
    assert from_lists([("a", ""), ("", "")]).text_pairs == ["", ""]
    with pytest.raises(DataError, match=r"row 2, column 'text': the text .* has only white space"):
        from_lists(["a", " \n"], ["x", "y"])


@pytest.mark.parametrize("form", [pd.DataFrame, PolarsFrame, pa.table, pa.record_batch, datasets.Dataset.from_dict])
def test_every_frame_is_a_data_set(form: Callable[[Any], object]) -> None:
    data = read_dataset(form({"label": ["x", "y"], "text": ["a", "b"]}))
    assert (data.texts, data.labels, len(data)) == (["a", "b"], ["x", "y"], 2)


def test_columns_of_frames() -> None:
    expected = [("b", ["x", "y"]), ("a", [1, 2])]
    columns: dict[str, Any] = dict(expected)
    for frame in (
        pd.DataFrame(columns, index=[3, 3]),
        PolarsFrame(columns),
        pa.table(columns),
        pa.record_batch(columns),
        datasets.Dataset.from_dict(columns),
        datasets.Dataset.from_dict(columns).with_format("numpy"),
    ):
        assert frame_columns(frame) == expected
    assert frame_columns(pd.DataFrame([[1, 2]], columns=["a", "a"])) == [("a", [1]), ("a", [2])]
    assert frame_columns([1]) is frame_columns(np.eye(2)) is frame_columns(pd.Series([1])) is None

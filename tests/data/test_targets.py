"""Every form in which users of scikit-learn hold labels is read as the same labels, or refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch

from ytuning.data.targets import label_array, label_matrix, label_sets, read_targets
from ytuning.errors import InputError

NAMES = ["b", "a", "b", "c"]
SINGLE: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "array": np.array,
    "object array": lambda labels: np.array(labels, object),
    "array (n, 1)": lambda labels: np.array(labels)[:, None],
    "series": lambda labels: pd.Series(labels, index=[3, 3, 1, 0]),
    "categorical series": lambda labels: pd.Series(labels, dtype="category"),
    "categorical": pd.Categorical,
    "index": pd.Index,
    "frame of one column": lambda labels: pd.DataFrame({"y": labels}),
    "arrow array": pa.array,
    "arrow chunked array": lambda labels: pa.chunked_array([labels]),
    "arrow table": lambda labels: pa.table({"y": labels}),
    "datasets column": lambda labels: datasets.Dataset.from_dict({"y": labels})["y"],
}


@pytest.mark.parametrize("form", SINGLE)
def test_one_label_a_row(form: str) -> None:
    targets = read_targets(SINGLE[form](NAMES))
    assert (targets.kind, targets.names, targets.labels) == ("single", ["a", "b", "c"], NAMES)
    assert targets.classes.tolist() == ["a", "b", "c"]
    assert targets.order is None and targets.container is None
    assert label_array(SINGLE[form](NAMES)).tolist() == NAMES


@pytest.mark.parametrize("form", SINGLE)
@pytest.mark.parametrize(
    ("values", "kind", "names"), [([10, 2, 10, 3], "i", ["2", "3", "10"]), ([True, False, True, True], "b", None)]
)
def test_numbers_and_truth_values_keep_their_type(
    form: str, values: list[Any], kind: str, names: list[str] | None
) -> None:
    targets = read_targets(SINGLE[form](values))
    assert targets.classes.dtype.kind == kind
    assert targets.classes.tolist() == sorted(set(values))
    assert targets.names == (names or ["false", "true"])


@pytest.mark.parametrize(
    ("y", "classes", "names"),
    [
        (np.array([2.0, 1.0]), [1.0, 2.0], ["1", "2"]),
        ([np.int8(2), 1], [1, 2], ["1", "2"]),
        ([np.str_("x"), "y"], ["x", "y"], ["x", "y"]),
        ([np.bool_(True), False], [False, True], ["false", "true"]),
        (pd.Series([2, 1], dtype="Int64"), [1, 2], ["1", "2"]),
        (pd.Series([True, False], dtype="boolean"), [False, True], ["false", "true"]),
        (pd.Series([2, 1], dtype=pd.ArrowDtype(pa.int64())), [1, 2], ["1", "2"]),
        (pd.Series(["y", "x"], dtype="string"), ["x", "y"], ["x", "y"]),
        (pd.Series(["y", "x"], dtype=pd.ArrowDtype(pa.string())), ["x", "y"], ["x", "y"]),
        (pd.Series([2, 1], dtype="category"), [1, 2], ["1", "2"]),
        (torch.tensor([2, 1]), [1, 2], ["1", "2"]),
        (sp.csr_matrix([[1], [0]]).toarray(), [0, 1], ["0", "1"]),
        (np.array([2, 1], object), [1, 2], ["1", "2"]),
        ([" y", "x "], [" y", "x "], ["y", "x"]),
    ],
)
def test_types_of_labels(y: object, classes: list[object], names: list[str]) -> None:
    targets = read_targets(y)
    assert targets.classes.tolist() == classes and targets.names == names
    assert {type(label) for label in targets.classes.tolist()} == {type(label) for label in classes}


def test_an_ordered_categorical_is_ordinal() -> None:
    order = ["low", "mid", "high", "never"]
    y = pd.Series(pd.Categorical(["mid", "low", "high", "low"], order, ordered=True))
    for form in (y, y.array, y.to_frame()):
        targets = read_targets(form)
        assert targets.kind == "ordinal" and targets.order == ["low", "mid", "high"]
        assert targets.names == ["high", "low", "mid"] and targets.labels == ["mid", "low", "high", "low"]
    assert read_targets(y.cat.as_unordered()).kind == "single"
    numbers = pd.Series(pd.Categorical([3, 1, 2, 1], [3, 2, 1], ordered=True))
    assert read_targets(numbers).order == ["3", "2", "1"]


SETS = [["quality"], ["complaint", "quality"], [], ["price", "complaint"]]
HOT = [[0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]]
COLUMNS = ["complaint", "price", "quality"]
MATRICES: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda hot: hot,
    "int8 array": lambda hot: hot.astype(np.int8),
    "truth values": lambda hot: hot.astype(bool),
    "floats": lambda hot: hot.astype(float),
    "object array": lambda hot: hot.astype(object),
    "lists": lambda hot: hot.tolist(),
    "tuples": lambda hot: [tuple(row) for row in hot.tolist()],
    "lists of truth values": lambda hot: hot.astype(bool).tolist(),
    "list of arrays": list,
    "series of lists": lambda hot: pd.Series(hot.tolist()),
    "csr matrix": sp.csr_matrix,
    "csr array": sp.csr_array,
    "csc array": sp.csc_array,
    "coo array of truth values": lambda hot: sp.coo_array(hot.astype(bool)),
    "tensor": torch.tensor,
    "column of lists": lambda hot: pa.array(hot.tolist()),
}
FRAMES: dict[str, Callable[[np.ndarray], Any]] = {
    "frame": lambda hot: pd.DataFrame(hot, columns=COLUMNS, index=[4, 4, 0, 1]),
    "frame of truth values": lambda hot: pd.DataFrame(hot.astype(bool), columns=COLUMNS),
    "nullable frame": lambda hot: pd.DataFrame(hot, columns=COLUMNS, dtype="Int64"),
    "nullable truth values": lambda hot: pd.DataFrame(hot.astype(bool), columns=COLUMNS, dtype="boolean"),
    "sparse frame": lambda hot: pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(hot), columns=COLUMNS),
    "mixed frame": lambda hot: pd.DataFrame(hot, columns=COLUMNS).astype({"price": bool, "quality": float}),
    "arrow table": lambda hot: pa.table(dict(zip(COLUMNS, hot.T, strict=True))),
    "datasets": lambda hot: datasets.Dataset.from_dict(dict(zip(COLUMNS, hot.T.tolist(), strict=True))),
}


@pytest.mark.parametrize("form", MATRICES)
def test_a_matrix_of_0_and_1(form: str) -> None:
    targets = read_targets(MATRICES[form](np.array(HOT)))
    assert targets.kind == "multi" and targets.container is None
    assert targets.classes.tolist() == [0, 1, 2] and targets.names == ["0", "1", "2"]
    assert targets.labels == [("2",), ("0", "2"), (), ("0", "1")]


@pytest.mark.parametrize("form", FRAMES)
def test_the_names_of_a_frames_columns_are_labels(form: str) -> None:
    targets = read_targets(FRAMES[form](np.array(HOT)))
    assert targets.kind == "multi" and targets.container is None
    assert targets.classes.tolist() == targets.names == COLUMNS
    assert targets.labels == [("quality",), ("complaint", "quality"), (), ("complaint", "price")]


@pytest.mark.parametrize("container", [list, tuple, set, frozenset])
@pytest.mark.parametrize("outer", [list, tuple, iter, pd.Series])
def test_names_of_several_labels(container: type, outer: Callable[[Any], Any]) -> None:
    targets = read_targets(outer([container(names) for names in SETS]))
    assert targets.kind == "multi" and targets.container is container
    assert targets.classes.tolist() == targets.names == COLUMNS
    assert targets.labels == [("quality",), ("complaint", "quality"), (), ("complaint", "price")]


@pytest.mark.parametrize(
    ("y", "classes", "labels"),
    [
        ([[27], [2, 5], [2]], [2, 5, 27], [("27",), ("2", "5"), ("2",)]),
        ([[0], [1], [0, 1]], [0, 1], [("0",), ("1",), ("0", "1")]),
        ([[1], [0]], [0, 1], [("1",), ("0",)]),
        ([["a", "b"], ["b", "c"]], ["a", "b", "c"], [("a", "b"), ("b", "c")]),
        ([("a", "b"), ("b", "c")], ["a", "b", "c"], [("a", "b"), ("b", "c")]),
        ([{"a", "b"}, {"b", "c"}], ["a", "b", "c"], [("a", "b"), ("b", "c")]),
        ([["a", "a"], ["b", "b"]], ["a", "b"], [("a",), ("b",)]),
        ([["0", "1"], ["1", "1"]], ["0", "1"], [("0", "1"), ("1",)]),
        ([{0, 1}, {1}], [0, 1], [("0", "1"), ("1",)]),
        ([np.array(["a"]), np.array(["a", "b"])], ["a", "b"], [("a",), ("a", "b")]),
        ([np.array([1, 2]), np.array([1])], [1, 2], [("1", "2"), ("1",)]),
        (pa.array([["a"], ["a", "b"]]), ["a", "b"], [("a",), ("a", "b")]),
        (datasets.Dataset.from_dict({"y": [["a"], ["a", "b"]]})["y"], ["a", "b"], [("a",), ("a", "b")]),
    ],
)
def test_lists_of_labels(y: Any, classes: list[object], labels: list[tuple[str, ...]]) -> None:
    targets = read_targets(y)
    assert (targets.kind, targets.classes.tolist(), targets.labels) == ("multi", classes, labels)


MISSING = "the label is missing. Fill it in or remove the row."


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ("abc", "y must be a list, an array or a series. Got 'abc' instead."),
        ({"a": 1}, "y must be a list, an array or a series. Got {'a': 1} instead."),
        ({"a", "b"}, "y must be a list"),
        (3, "y must be a list, an array or a series. Got 3 instead."),
        (["a", None], f"the rows, row 2, column 'y': {MISSING}"),
        (np.array(["a", np.nan], object), f"the rows, row 2, column 'y': {MISSING}"),
        (pd.Series(["a", pd.NA], dtype="string"), f"the rows, row 2, column 'y': {MISSING}"),
        (pd.Series([1, pd.NA], dtype="Int64"), f"the rows, row 2, column 'y': {MISSING}"),
        (pd.Series([1, pd.NA], dtype=pd.ArrowDtype(pa.int64())), f"the rows, row 2, column 'y': {MISSING}"),
        (pd.Series(["a", None], dtype="category"), f"the rows, row 2, column 'y': {MISSING}"),
        (np.ma.array([1, 2], mask=[False, True]), f"the rows, row 2, column 'y': {MISSING}"),
        (pa.array([1, None]), f"the rows, row 2, column 'y': {MISSING}"),
        (["a", ""], "the rows, row 2, column 'y': the label is empty."),
        ([b"a", b"b"], "the rows, row 1, column 'y': the label is b'a' (bytes), not text. Decode it"),
        (["a", 1], "y must hold labels of one type, as they are sorted. Got 'a' and 1 instead."),
        ([0.5, 1.5], "y holds fractional or missing numbers. Use labels, or YTuningRegressor"),
        (pd.Series(pd.to_datetime(["2020-01-01"])), "the rows, row 1, column 'y': the label is Timestamp("),
        ([{"a": 1}], "the rows, row 1, column 'y': the label is {'a': 1} (dict), not text."),
        ([["a"], "b"], "the rows, row 2, column 'y': every row must be a list of labels, as others are. Got 'b'"),
        ([["a"], None], "the rows, row 2, column 'y': every row must be a list of labels, as others are. Got None"),
        ([["a"], [None]], f"the rows, row 2, column 'y': {MISSING}"),
        ([["a"], [["b"]]], "the rows, row 2, column 'y': every row must be a list of labels, and one of them "),
        ([["a"], [1]], "y must hold labels of one type, as they are sorted. Got 'a' and 1 instead."),
        (np.array([[0, 1], [2, 0]]), "the rows, row 2: y of two dimensions must hold 0 and 1, a column for each "),
        (np.array([["a", "b"], ["c", "d"]]), "the rows, row 1: y of two dimensions must hold 0 and 1"),
        (np.array([["0", "1"], ["1", "1"]]), "the rows, row 1: y of two dimensions must hold 0 and 1"),
        (sp.csr_array([[0, 3], [1, 0]]), "the rows, row 1: y of two dimensions must hold 0 and 1"),
        (np.zeros((2, 2, 2)), "y must be a list, an array or a series. Got numpy.ndarray instead. Its shape is "),
        (pd.DataFrame({"a": [0, 1], "b": [1, None]}), "the rows, row 2: y of two dimensions must hold 0 and 1"),
        (pd.DataFrame({"a": [0, 1], "b": ["x", "y"]}), "the rows, row 1: y of two dimensions must hold 0 and 1"),
        (pd.DataFrame([[0, 1]], columns=["a", " a"]), "y holds labels that are one label, 'a', in "),
        (["a", " a"], "y holds labels that are one label, 'a', in several forms: ' a', 'a'. Give it one form"),
    ],
)  # fmt: skip
def test_what_is_refused(y: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        read_targets(y)


@pytest.mark.parametrize("form", [*MATRICES, *FRAMES])
def test_a_matrix_for_a_score(form: str) -> None:
    made = {**MATRICES, **FRAMES}[form](np.array(HOT))
    classes = np.array(COLUMNS) if form in FRAMES else np.arange(3)
    assert label_matrix(made, classes).tolist() == HOT


def test_the_columns_of_a_frame_are_brought_into_order() -> None:
    frame = pd.DataFrame(HOT, columns=COLUMNS)
    assert label_matrix(frame[COLUMNS[::-1]], np.array(COLUMNS)).tolist() == HOT
    with pytest.raises(InputError, match=r"^y has a column that the task was not fitted on: 'cheap'\.$"):
        label_matrix(frame.rename(columns={"price": "cheap"}), np.array(COLUMNS))
    for other in (np.array(HOT)[:, :2], ["a", "b"], [["a"], ["b"]]):
        with pytest.raises(InputError, match=r"^y must be an array or a frame \(rows, 3\) of 0 and 1"):
            label_matrix(other, np.array(COLUMNS))


def test_label_sets() -> None:
    assert label_sets([{"a"}, ("b", "a"), np.array([1, 2])]) == [["a"], ["b", "a"], [1, 2]]


@pytest.mark.parametrize(
    ("y", "notes"),
    [
        (["a", "b"], []),
        ([1, 2], []),
        (["TRUE", "b"], ["these labels are read in another form: 'TRUE' as 'true'."]),
        (["Card", "card"], ["these labels look alike and are different labels: 'Card', 'card'."]),
        ([["Card"], ["card", "b"]], ["these labels look alike and are different labels: 'Card', 'card'."]),
        (pd.DataFrame([[0, 1]], columns=["Card", "card"]), ["these labels look alike and are different labels"]),
    ],
)
def test_labels_that_need_a_note(y: Any, notes: list[str]) -> None:
    told = read_targets(y).notes
    assert len(told) == len(notes) and all(note.startswith(start) for note, start in zip(told, notes, strict=True))

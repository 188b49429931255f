"""Label sets, and how messages show values and names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ytuning.data.labels import LabelSet, alike_but_for_case, did_you_mean, list_names, quote
from ytuning.errors import InputError


def test_labels_are_sorted_as_plain_strings() -> None:
    assert LabelSet.from_labels(["b", "a", "B", "b", "10", "2"]).names == ("10", "2", "B", "a", "b")


def test_integers_are_sorted_by_value() -> None:
    assert LabelSet.from_labels(["10", "2", "-1", "2"]).names == ("-1", "2", "10")
    same = ["1", "01", "0001", "+1", "001"]
    assert LabelSet.from_labels([*same, "0"]).names == ("0", "+1", "0001", "001", "01", "1")


def test_an_integer_too_long_to_be_one_is_a_string() -> None:
    assert LabelSet.from_labels(["9", "1" * 5000]).names == ("1" * 5000, "9")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_ids_are_the_places_of_names(labels: list[str]) -> None:
    label_set = LabelSet.from_labels(labels)
    ids = label_set.encode(labels)
    assert ids.dtype == np.int64
    assert [label_set.names[i] for i in ids] == labels
    assert set(ids.tolist()) == set(range(len(label_set)))
    assert label_set == LabelSet.from_labels(reversed(labels))


def test_encode_of_nothing_is_an_empty_array_of_ids() -> None:
    ids = LabelSet(("a",)).encode([])
    assert ids.shape == (0,)
    assert ids.dtype == np.int64


def test_an_unknown_label_is_named_with_its_neighbours_and_the_count() -> None:
    label_set = LabelSet(("card_arrival", "card_arrived", "top_up"))
    with pytest.raises(InputError) as caught:
        label_set.encode(["top_up", "card_arival"])
    assert str(caught.value) == (
        "unknown label 'card_arival'. Did you mean 'card_arrival' or 'card_arrived'? "
        "The 3 known labels are 'card_arrival', 'card_arrived', 'top_up'."
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "a label set needs at least one label name. Got none."),
        (("a", ""), "a label name must be text that is not empty. Got '' instead."),
        (("a", 3), "a label name must be text that is not empty. Got 3 instead."),
        (("a", "b", "a"), "all label names must be different, but 'a' was given more than once."),
    ],
)
def test_names_must_be_there_and_differ(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        LabelSet(names)
    assert str(caught.value) == message


def test_no_labels_make_no_label_set() -> None:
    with pytest.raises(InputError, match="at least one label name"):
        LabelSet.from_labels([])


def test_size_membership_and_readable_texts() -> None:
    label_set = LabelSet(("card_arrival", "Refund__not_showing_up", "pay-as-you-go", "_"))
    assert label_set.texts == ("card arrival", "Refund not showing up", "pay-as-you-go", "_")
    assert len(label_set) == 4
    assert "card_arrival" in label_set
    assert "card arrival" not in label_set


def test_values_are_shown_short_and_on_one_line() -> None:
    assert quote("a\nb") == r"'a\nb'"
    assert quote("x" * 58) == f"'{'x' * 58}'"
    assert quote("x" * 59) == f"'{'x' * 56}..."
    assert "\n" not in quote(np.eye(2))


def test_many_names_are_cut_and_counted() -> None:
    assert list_names(["a", "b"]) == "'a', 'b'"
    assert list_names([]) == "none"
    text = list_names([f"n{i}" for i in range(13)])
    assert text.endswith("'n11', ... (13 in all)")


def test_did_you_mean_says_nothing_when_nothing_is_close() -> None:
    assert did_you_mean("lable", ["label", "text"]) == " Did you mean 'label'?"
    assert did_you_mean("zzz", ["label", "text"]) == ""


def test_names_that_are_equal_but_for_case() -> None:
    names = ["card", "x", "Card", "STRASSE", "card", "stra\u00dfe", "cards", "CARD"]
    assert alike_but_for_case(names) == [["CARD", "Card", "card"], ["STRASSE", "stra\u00dfe"]]
    assert alike_but_for_case(["a", "b", "a"]) == []

"""Label sets, and how messages show values and names."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ytuning.data.dataset import from_lists
from ytuning.data.labels import (
    LabelSet,
    describe_alike,
    describe_misspelt,
    describe_read_as,
    did_you_mean,
    label_name,
    list_names,
    look_alikes,
    quote,
)
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


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (True, "true"),
        (np.bool_(False), "false"),
        ("TRUE", "true"),
        ("False", "false"),
        ("tRue", "tRue"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        ("-0", "0"),
        ("-0.0", "0"),
        (np.int8(1), "1"),
        (np.uint64(2**64 - 1), str(2**64 - 1)),
        (np.float32(1), "1"),
        (np.array(1.0), "1"),
        (np.str_("1.0"), "1"),
        (Decimal("1.00"), "1"),
        (Decimal("1.10"), "1.1"),
        (Decimal("1E+2"), "100"),
        ("1.0", "1"),
        ("-12.0", "-12"),
        (0.5, "0.5"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        ("0.10", "0.10"),
        ("1.10", "1.10"),
        ("1.00", "1.00"),
        ("007", "007"),
        ("00.0", "00.0"),
        ("1e3", "1e3"),
        ("+1", "+1"),
        ("1.0.0", "1.0.0"),
        ("nan", "nan"),
        ("None", "None"),
        (" a \t b\n", "a b"),
        ("a\u00a0b\u2003c", "a b c"),
        ("pos\u200b", "pos"),
        ("\ufeffpos", "pos"),
        ("po\u00ads", "pos"),
        ("\u200epos\u200f", "pos"),
        ("\u200d pos\u200c", "pos"),
        ("cafe\u0301", "caf\u00e9"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("\u2764\ufe0f", "\u2764\ufe0f"),
        ("\u0646\u0645\u06cc\u200c\u062e\u0648", "\u0646\u0645\u06cc\u200c\u062e\u0648"),
        ('"delivery"', "delivery"),
        ("'1.0'", "1"),
        ("'tis", "'tis"),
        ('"a" or "b"', '"a" or "b"'),
        ('""', '""'),
        ("refund [EU]", "refund [EU]"),
        ("\u200b", ""),
        (" ", ""),
        (None, None),
        (float("nan"), None),
        (np.float64("inf"), None),
        (Decimal("NaN"), None),
        ([1], None),
        (b"a", None),
        (pd.Timestamp(0), None),
    ],
)  # fmt: skip
def test_a_value_has_one_form_as_a_label(value: object, name: str | None) -> None:
    assert label_name(value) == name


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.decimals())
def test_the_form_of_a_label_is_its_own_form(value: object) -> None:
    name = label_name(value)
    assert name is None or label_name(name) == name or (isinstance(value, float) and "e" in name)


@given(st.integers(-(10**15), 10**15))
def test_a_whole_number_is_one_label_in_all_types(number: int) -> None:
    forms = (number, float(number), np.int64(number), np.float64(number), Decimal(number), str(number), f"{number}.0")
    assert {label_name(form) for form in forms} == {str(number)}


@pytest.mark.parametrize(
    "names",
    [
        ["CARD", "Card", "card"],
        ["STRASSE", "stra\u00dfe"],
        ["pos", "p\u043es"],
        ["\u041c\u041e\u0421\u0422", "MOCT"][::-1],
        ["pos", "po\u200ds"],
        ["pos", "pos\x00"],
        ["refund", "refund."],
        ["pre-sale", "pre\u2013sale"],
        ["I'm in", "I\u2019m in"],
        ["007", "7"],
        ["1", "1.00", "1e0"],
        ["1", "true"],
        ["0", "false"],
        ["ABC", "\uff21\uff22\uff23"],
        ["\u2764", "\u2764\ufe0f"],
    ],
)
def test_names_that_look_alike(names: list[str]) -> None:
    assert look_alikes(["x", *names, "Y", names[0]]) == [names]
    assert describe_alike(names, {names[1]: 7}) is not None
    assert f"{names[1]!r} (row 7)" in str(describe_alike(names, {names[1]: 7}))


@pytest.mark.parametrize(
    "names",
    [["cafe", "caf\u00e9"], ["1", "2"], ["1.10", "1.01"], ["?", "!"], ["C", "C#", "C++"], ["no", "false"], ["a"]],
)
def test_names_that_differ_visibly(names: list[str]) -> None:
    assert look_alikes(names) == []
    assert describe_alike(names) is None


def test_names_that_look_alike_are_told_with_their_code_points() -> None:
    assert describe_alike(["pos", "p\u043es", "caf\u00e9", "Caf\u00e9"], {"p\u043es": 3, "pos": 1}) == (
        "these labels look alike and are different labels: 'Caf\u00e9', 'caf\u00e9', 'pos' (row 1), 'p\u043es' "
        "(row 3). They differ in '\u043e' (U+043E CYRILLIC SMALL LETTER O). Give labels that mean the same one "
        "spelling."
    )
    assert did_you_mean("p\u043es", ["neg", "pos", "poss"]) == (
        " Did you mean 'pos'? They differ in '\u043e' (U+043E CYRILLIC SMALL LETTER O)."
    )
    assert did_you_mean("True", ["0", "1"]) == " Did you mean '1'?"
    assert did_you_mean("CARD", ["card", "cart"]) == " Did you mean 'card'?"


def test_what_is_read_in_another_form_is_told() -> None:
    assert describe_read_as({"1.0": "1", "cafe\u0301": "caf\u00e9", "pos\u200b": "pos"}) == (
        "these labels are read in another form: '1.0' as '1', 'cafe\\u0301' as 'caf\u00e9', 'pos\\u200b' as 'pos'."
    )
    many = describe_read_as({f"{number}.0": f"{number}" for number in range(20)})
    assert many.endswith("'11.0' as '11', ... (20 in all).")


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"billing": 20, "biling": 2, "login": 9}, "'biling' (2 rows; 'billing' has 20)"),
        ({"card_lost": 10, "cardlost": 1}, "'cardlost' (1 row; 'card_lost' has 10)"),
        # Enough rows of its own, too few of the other, another word, another number, words that are short.
        ({"billing": 20, "biling": 3}, None),
        ({"billing": 9, "biling": 2}, None),
        ({"unhappy": 20, "happy": 1}, None),
        ({"version 10": 20, "version 11": 1}, None),
        ({"pos": 20, "post": 1}, None),
        # A long tail.
        ({"billing": 20, "biling": 2, **{f"label {number}": 1 for number in range(50)}}, None),
    ],
)
def test_rare_labels_that_are_almost_common_ones_are_told(counts: dict[str, int], told: str | None) -> None:
    wanted = told and f"these labels may be misspelt: {told}. Correct them if they are."
    assert describe_misspelt(counts) == wanted
    data = from_lists(["a text"] * sum(counts.values()), list(Counter(counts).elements()))
    assert list(data.notes) == [wanted] * bool(wanted)

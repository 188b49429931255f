"""The worst mistakes, and what is marked in their texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ytuning.data.kinds import Mistake, MultiLabel, Ordinal, Regression, SingleLabel, TaskKind
from ytuning.data.labels import LabelSet
from ytuning.evaluation.attribution import SHOWN_CHARACTERS, Effects, Piece, mark_texts, strongest_pieces
from ytuning.training.calibration import Calibration

ABC = LabelSet(("a", "b", "c"))
SINGLE, ORDINAL, MULTI = SingleLabel(ABC), Ordinal(ABC), MultiLabel(ABC)
NUMBERS = Regression(0.0, 10.0, bounded=False)


def worst(target: TaskKind, truth: Any, logits: Any, most: int = 20, **options: Any) -> list[Mistake]:
    answers = Calibration(**options).answers(target, np.array(logits, np.float32))
    return target.mistakes(target.decode(np.array(truth)), answers, most)


def test_single_label_mistakes_come_from_the_surest_on() -> None:
    logits = [[3, 0, 0], [9, 0, 0], [0, 0, 2], [5, 0, 0]]
    found = worst(SINGLE, [1, 2, 2, 0], logits)
    assert [(one.row, one.true, one.predicted, one.towards, one.against) for one in found] == [
        (1, ["c"], ["a"], 0, 2),
        (0, ["b"], ["a"], 0, 1),
    ]
    assert found[1].size == pytest.approx(np.exp(3) / (np.exp(3) + 2))
    assert [one.row for one in worst(SINGLE, [1, 2, 2, 0], logits, most=1)] == [1]


def test_rows_without_an_answer_are_no_mistakes() -> None:
    assert [one.row for one in worst(SINGLE, [1, 1], [[9, 0, 0], [0.1, 0, 0]], abstain_below=0.9)] == [0]
    assert worst(SINGLE, [0, 0], [[9, 0, 0], [8, 0, 0]]) == []


def test_ordinal_mistakes_come_from_the_farthest_on() -> None:
    found = worst(ORDINAL, [1, 0, 2], [[9, 0, 0], [0, 0, 3], [5, 0, 0]])
    assert [one.row for one in found] == [2, 1, 0]


def test_multi_label_mistakes_come_from_the_surest_decision_on() -> None:
    truth = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0]], np.float32)
    logits = [[4, 1, -9], [3, -5, 2], [-9, 9, -9]]  # b given; a given and b missed; all right
    first, second = worst(MULTI, truth, logits)
    assert (first.row, first.true, first.predicted, first.towards, first.against) == (1, ["b"], ["a"], 0, 1)
    assert first.size == pytest.approx(1 / (1 + np.exp(-5))) and (first.about, second.about) == ("b", "b")
    assert (second.row, second.true, second.predicted, second.towards, second.against) == (0, [], ["b"], 1, None)
    # A threshold decides what is given, and so what is a mistake.
    assert [one.row for one in worst(MULTI, truth, logits, thresholds=(0.5, 0.8, 0.5))] == [1]


def test_regression_mistakes_are_the_largest_errors() -> None:
    found = worst(NUMBERS, [0.5, 0.1, 0.3], [[0, 0.6], [0, 0.9], [0, 0]])
    assert [(one.row, one.true, one.predicted) for one in found][:2] == [(1, ["1"], ["9"]), (2, ["3"], ["0"])]
    assert [one.size for one in found] == pytest.approx([8, -3, 1], abs=1e-5)
    assert worst(NUMBERS, [0.5], [[0, 0.5]]) == []


# --- marks ----------------------------------------------------------------------------------------------------------


def mistake(towards: int | None = 0, against: int | None = 1, size: float = 0.9) -> Mistake:
    return Mistake(0, ["b"], ["a"], size, towards, against)


def test_marks_are_shares_of_the_strongest_effect() -> None:
    spans = [(0, 0, 0), (0, 0, 2), (0, 3, 7), (0, 8, 12)]
    values = np.array([[99, 99, 99], [4, 0, 2], [0, 1, 2], [1, 1, 1]], np.float32)  # [CLS] weighs on all alike
    (pieces,) = mark_texts(SINGLE, mistake(), ("my card lost", None), Effects(spans, values))
    # 4 - 2 of its mean over the labels; 1 - 1 is nothing.
    assert pieces == [Piece("my", 1.0, 0.0), Piece(" "), Piece("card"), Piece(" "), Piece("lost")]
    (pieces,) = mark_texts(MULTI, mistake(), ("my card lost", None), Effects(spans, values))
    assert [(piece.text, piece.towards, piece.against) for piece in pieces if piece.text != " "] == [
        ("my", 1.0, 0.0),
        ("card", 0.0, 0.25),
        ("lost", 0.25, 0.25),
    ]
    assert strongest_pieces([pieces], "towards") == ["my", "lost"] and strongest_pieces([pieces], "against", 1) == [
        "card"
    ]
    assert strongest_pieces([pieces, pieces], "towards") == ["my", "lost"]
    (pieces,) = mark_texts(MULTI, mistake(against=None), ("my card lost", None), Effects(spans, values))
    assert strongest_pieces([pieces], "against") == []


def test_what_makes_a_number_wrong_is_for_the_answer() -> None:
    effects = Effects([(0, 0, 1), (0, 2, 3)], np.array([[-1, 1], [0.5, -0.5]], np.float32))
    (high,) = mark_texts(NUMBERS, mistake(1, 0, size=3.0), ("a b", None), effects)
    assert (high[0].towards, high[2].against) == (1.0, 0.5)
    (low,) = mark_texts(NUMBERS, mistake(1, 0, size=-3.0), ("a b", None), effects)
    assert (low[0].against, low[2].towards) == (1.0, 0.5)


def test_tokens_that_share_a_character_are_marked_as_one() -> None:
    effects = Effects([(0, 0, 1), (0, 0, 1), (0, 0, 3)], np.array([[1, 0], [1, 0], [2, 0]], np.float32))
    assert mark_texts(MultiLabel(LabelSet(("a", "b"))), mistake(), ("\U0001f600ab", None), effects) == [
        [Piece("\U0001f600ab", 1.0)]
    ]


def test_both_texts_of_a_pair_are_marked() -> None:
    effects = Effects([(1, 0, 3), (0, 0, 4)], np.array([[2, 0, 0], [1, 0, 0]], np.float32))
    found = mark_texts(MULTI, mistake(), ("card", "app is"), effects)
    assert found == [[Piece("card", 0.5)], [Piece("app", 1.0), Piece(" is")]]


def test_without_places_nothing_is_marked() -> None:
    effects = Effects([(0, 0, 0)] * 3, np.ones((3, 3), np.float32))
    assert mark_texts(MULTI, mistake(), ("my card", None), effects) == [[Piece("my card")]]
    assert strongest_pieces([[Piece("my card")]], "towards") == []


def test_of_a_long_text_the_beginning_is_shown() -> None:
    text = "card " * 1000
    spans = [(0, 5 * number, 5 * number + 4) for number in range(1000)]
    (pieces,) = mark_texts(MULTI, mistake(), (text, None), Effects(spans, np.ones((1000, 3), np.float32)))
    shown = "".join(piece.text for piece in pieces)
    assert text.startswith(shown) and SHOWN_CHARACTERS <= len(shown) < SHOWN_CHARACTERS + 5


@given(st.text(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6), st.floats(-1, 1)), max_size=12))
def test_pieces_are_the_text(text: str, tokens: list[tuple[int, int, float]]) -> None:
    spans = [(0, min(start, len(text)), min(start + size, len(text))) for start, size, _ in tokens]
    values = np.array([[weight, -weight, 0] for *_, weight in tokens], np.float32).reshape(-1, 3)
    (pieces,) = mark_texts(MULTI, mistake(), (text, None), Effects(spans, values))
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 <= piece.towards <= 1 and 0 <= piece.against <= 1 for piece in pieces)

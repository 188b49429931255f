"""The two ways in which an encoder can read a pair of texts; every room says it with this one word."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["INPUT_WORDS", "PAIR_MODES", "PairChoice", "PairMode"]

PairMode = Literal["joint", "separate"]
"""``"joint"``: both texts are one input. ``"separate"``: each text is one input, so that a text which many pairs share
is encoded once. A batch of B separate pairs is (2 * B, T, L, D): all first texts, then all second ones."""
PairChoice = Literal["auto", "joint", "separate"]
"""What a user may ask for: ``"auto"`` tries both."""
PAIR_MODES: tuple[PairMode, ...] = get_args(PairMode)
INPUT_WORDS: dict[PairMode | None, str] = {
    None: "one text",
    "joint": "a pair of texts, encoded together",
    "separate": "a pair of texts, encoded separately",
}
"""What a task reads; the words go on with ", cut at N tokens"."""

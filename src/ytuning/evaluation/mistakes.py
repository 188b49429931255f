"""What in the text of a mistake speaks for which answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import Mistake, TaskKind
from ytuning.evaluation.attribution import Effects

__all__ = ["Piece", "marked", "strongest"]

# Of a text.
SHOWN_CHARACTERS = 2000
# A token with a smaller share of the strongest effect is not marked.
FAINTEST = 0.05


@dataclass(frozen=True)
class Piece:
    """A part of a text: ``towards`` and ``against`` say from 0 to 1 how strongly it speaks for either answer."""

    text: str
    towards: float = 0.0
    against: float = 0.0


def marked(target: TaskKind, mistake: Mistake, content: TextInput, effects: Effects) -> list[list[Piece]]:
    """The beginning of each of a row's texts in pieces, marked by what the tokens do for either answer.

    Only what speaks for an answer is marked, in shares of the row's strongest effect.
    """
    groups = list(_groups(effects.spans, target.token_effects(mistake, effects.values).clip(min=0)))
    strongest = max((weight for *_, weights in groups for weight in weights.tolist()), default=0.0)
    texts = [text for text in content if text is not None]
    found = []
    for side, text in enumerate(texts):
        pieces, place = [], 0
        for start, end, weights in [group[1:] for group in groups if group[0] == side]:
            if start >= SHOWN_CHARACTERS:
                break
            shares = [round(float(weight), 3) if weight >= FAINTEST else 0.0 for weight in weights / (strongest or 1.0)]
            pieces += [Piece(text[place:start]), Piece(text[start:end], *shares)]
            place = end
        pieces.append(Piece(text[place : max(place, SHOWN_CHARACTERS)]))
        found.append([piece for piece in pieces if piece.text])
    return found


def strongest(texts: list[list[Piece]], side: str, most: int = 3) -> list[str]:
    """The different pieces that speak the most for an answer, ``"towards"`` or ``"against"``."""
    weighed = [(getattr(piece, side), piece.text.strip()) for pieces in texts for piece in pieces]
    found = dict.fromkeys(text for share, text in sorted(weighed, key=lambda entry: -entry[0]) if share and text)
    return list(found)[:most]


def _groups(spans: list[tuple[int, int, int]], weights: np.ndarray) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Tokens in the order of the text as (side, start, end, weights (2,)), those that share characters as one."""
    there = [(span, place) for place, span in enumerate(spans) if span[2] > span[1]]
    held: tuple[int, int, int, np.ndarray] | None = None
    for (side, start, end), place in sorted(there):
        if held is not None and held[0] == side and start < held[2]:
            held = (side, held[1], max(end, held[2]), held[3] + weights[place])
            continue
        if held is not None:
            yield held
        held = (side, start, end, weights[place])
    if held is not None:
        yield held

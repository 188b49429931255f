"""The worst mistakes on labelled rows, and what in their texts speaks for which answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import Names, Scale, Target
from ytuning.evaluation.attribution import Effects
from ytuning.evaluation.evaluate import Judged
from ytuning.training.calibration import Calibration

__all__ = ["Mistake", "Piece", "marked", "strongest", "worst_mistakes"]

SHOWN_CHARACTERS = 2000  # of a text
FAINTEST = 0.05  # share of the strongest effect below which a token is not marked


@dataclass(frozen=True)
class Mistake:
    """A row whose answer is wrong.

    Attributes:
        row: its position among the judged rows.
        true, predicted: the labels (of ``multi`` those that only one of them has), or the number.
        size: probability of what is wrong; of a regression the error.
        towards: logit of what was answered, or None.
        against: logit of what should have been answered, or None.
        about: of ``multi`` the label of the decision that ``size`` is of.
    """

    row: int
    true: list[str]
    predicted: list[str]
    size: float
    towards: int | None
    against: int | None
    about: str | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a text: ``towards`` and ``against`` say from 0 to 1 how strongly it speaks for either answer."""

    text: str
    towards: float = 0.0
    against: float = 0.0


def worst_mistakes(target: Target, calibration: Calibration, judged: Judged, most: int) -> list[Mistake]:
    """The mistakes from the worst on.

    Single-label: those that the task was surest of. Ordinal: the farthest from the true label, then the surest.
    Multi-label: rows with the decision that the task was surest of. Regression: the largest errors. Rows without an
    answer are none.
    """
    if isinstance(target, Scale):
        truth, values = target.numbers(judged.truth), target.values(judged.logits)
        gaps = values - truth
        order = [row for row in np.argsort(-np.abs(gaps), kind="stable")[:most].tolist() if gaps[row]]
        return [Mistake(row, [f"{truth[row]:.4g}"], [f"{values[row]:.4g}"], float(gaps[row]), 1, 0) for row in order]
    probabilities = calibration.probabilities(target, judged.logits)
    decided = calibration.decide(target, probabilities)
    if target.kind == "multi":
        return _of_several(target, judged.truth > 0, decided, probabilities, most)
    wrong = np.flatnonzero((decided >= 0) & (decided != judged.truth))
    sure = probabilities[wrong, decided[wrong]]
    distance = np.abs(decided - judged.truth)[wrong] if target.kind == "ordinal" else np.zeros(len(wrong))
    worst = wrong[np.lexsort((-sure, -distance))[:most]]
    return [
        Mistake(row, [target.names[true]], [target.names[other]], float(probabilities[row, other]), other, true)
        for row, true, other in zip(worst.tolist(), judged.truth[worst].tolist(), decided[worst].tolist(), strict=True)
    ]


def _of_several(
    target: Names, truth: np.ndarray, decided: np.ndarray, probabilities: np.ndarray, most: int
) -> list[Mistake]:
    """Of truth, decisions and probabilities (rows, C)."""
    given, missed = decided & ~truth, truth & ~decided
    # How sure a wrong decision was: of a label that was given its probability, of a missed one the rest.
    over, under = np.where(given, probabilities, -1.0), np.where(missed, 1 - probabilities, -1.0)
    worst = np.maximum(over, under)
    sure = worst.max(1)
    order = [row for row in np.argsort(-sure, kind="stable")[:most].tolist() if sure[row] >= 0]
    return [
        Mistake(
            row,
            [target.names[label] for label in np.flatnonzero(missed[row])],
            [target.names[label] for label in np.flatnonzero(given[row])],
            float(sure[row]),
            int(over[row].argmax()) if given[row].any() else None,
            int(under[row].argmax()) if missed[row].any() else None,
            target.names[worst[row].argmax()],
        )
        for row in order
    ]


def marked(target: Target, mistake: Mistake, content: TextInput, effects: Effects) -> list[list[Piece]]:
    """The beginning of each of a row's texts in pieces, marked by what the tokens do for either answer.

    Only what speaks for an answer is marked, in shares of the row's strongest effect. Of a softmax only differences
    between logits count, so there an effect is that beyond its mean over the labels.
    """
    groups = list(_groups(effects.spans, _weights(target, mistake, effects.values)))
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


def _weights(target: Target, mistake: Mistake, values: np.ndarray) -> np.ndarray:
    """(T, 2), at least 0: what tokens do towards and against the answer, of effects (T, C)."""
    if isinstance(target, Scale):
        rise = values[:, 1] - values[:, 0]
        # The answer was too high: what raises it is for the answer; too low: what lowers it.
        signed = rise if mistake.size > 0 else -rise
        both = np.stack([signed, -signed], 1)
    else:
        if target.kind != "multi":
            values = values - values.mean(1, keepdims=True)
        nothing = np.zeros(len(values))
        columns = (mistake.towards, mistake.against)
        both = np.stack([nothing if column is None else values[:, column] for column in columns], 1)
    weights: np.ndarray = both.clip(min=0)
    return weights


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

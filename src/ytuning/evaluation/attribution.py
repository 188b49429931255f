"""What a head's logits rest on: how much they fall when a token is hidden. Exact, as the features are frozen.

Then what in the text of a mistake speaks for which answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import Mistake, TaskKind
from ytuning.encoder.encoder import Encoder, Span
from ytuning.features.codecs import Codec
from ytuning.features.features import Features, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import LabelHead
from ytuning.progress import Progress

__all__ = ["Effects", "Piece", "explain", "explain_one", "mark_texts", "strongest_pieces", "token_effects"]

# Maximum number of tokens in a pass, over all copies of a text, whose tokens grow with the square of its length.
TOKENS_AT_ONCE = 4096
# Maximum number of characters of a text that are shown in pieces.
SHOWN_CHARACTERS = 2000
# A token with a smaller share of the strongest effect is not marked.
FAINTEST = 0.05


@dataclass(frozen=True)
class Effects:
    """What each token of a row does for each logit.

    Attributes:
        spans: (T,) places of the tokens, as `Encoder.spans` gives them.
        values: (T, C) float32, see :func:`token_effects`.
    """

    spans: list[Span]
    values: np.ndarray


def token_effects(head: LabelHead, features: Features, row: int, tokens_at_once: int = TOKENS_AT_ONCE) -> np.ndarray:
    """How much each logit falls when the head does not see a token (leave one out).

    The encoder has seen it, so that what other tokens took over from it stays.

    Args:
        head: head on the features.
        features: features of the row, among others.
        row: its position.
        tokens_at_once: maximum number of tokens in a pass, padding included; one copy of the text in any case.

    Returns:
        (T, C) float32; of a pair that was encoded one by one (T1 + T2, C), the first text's tokens first. The only
        token of a text cannot be hidden and has 0.
    """
    # The shapes are (S, T, L, D) and (S, T) for S texts: 2 for a pair that was encoded one by one, else 1.
    values, mask = features.batch(torch.tensor([row]))
    # The shape is (N, 2): the text and the position of each token.
    places = mask.nonzero()
    fallen = []
    head.eval()
    with torch.inference_mode():
        # The shape is (1, C): the logits when no token is hidden.
        whole = head(values, mask)
        for hidden in places.split(max(1, tokens_at_once // mask.numel())):
            count = len(hidden)
            # The shape is (S, N, T): for a pair, the copies of all first texts come first.
            masks = mask[:, None].repeat(1, count, 1)
            masks[hidden[:, 0], torch.arange(count), hidden[:, 1]] = False
            copies = values[:, None].expand(-1, count, -1, -1, -1)
            fallen.append(whole - head(copies.flatten(0, 1), masks.flatten(0, 1)))
        alone = mask.sum(1)[places[:, 0]] == 1
        effects: np.ndarray = torch.cat(fallen).masked_fill_(alone[:, None], 0.0).numpy()
    return effects


def explain(
    head: LabelHead,
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    *,
    states: Sequence[int],
    pair_mode: PairMode | None,
    codec: str | Codec,
    progress: Progress,
) -> list[Effects]:
    """Effects of the tokens of texts or pairs, on features as `pairs.stored_inputs` gives them.

    Args:
        head: head on features of this encoder.
        inputs: texts or pairs.
        encoder: reads what is not stored.
        store: where features are kept.
        states: numbers of the hidden states that the head reads.
        pair_mode: how the encoder reads pairs.
        codec: codec of the features.
        progress: is told every row.
    """
    if not inputs:
        return []
    features, _ = stored_inputs(inputs, encoder, store, progress, states=states, pair_mode=pair_mode, codec=codec)
    spans = _spans_apart(inputs, encoder) if pair_mode == "separate" else encoder.spans(inputs)
    effects = []
    for row, places in enumerate(spans):
        effects.append(Effects(places, token_effects(head, features, row)))
        progress.step("explain", row + 1, len(inputs))
    return effects


def explain_one(
    head: LabelHead, content: TextInput, encoder: Encoder, features: Features, *, pair_mode: PairMode | None
) -> Effects:
    """Effects of the tokens of one text or pair, the only row of ``features``; arguments as of :func:`explain`."""
    (spans,) = _spans_apart([content], encoder) if pair_mode == "separate" else encoder.spans([content])
    return Effects(spans, token_effects(head, features, 0))


def _spans_apart(inputs: Sequence[TextInput], encoder: Encoder) -> list[list[Span]]:
    """Spans of pairs whose texts are encoded one by one."""
    sides = [encoder.spans([(pair[side] or "", None) for pair in inputs]) for side in (0, 1)]
    moved = [[(1, start, end) if end else (0, 0, 0) for _, start, end in row] for row in sides[1]]
    return [first + second for first, second in zip(sides[0], moved, strict=True)]


# --- marks in texts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A part of a text: ``towards`` and ``against`` say from 0 to 1 how strongly it speaks for either answer."""

    text: str
    towards: float = 0.0
    against: float = 0.0


def mark_texts(target: TaskKind, mistake: Mistake, content: TextInput, effects: Effects) -> list[list[Piece]]:
    """The beginning of each of a row's texts in pieces, marked by what the tokens do for either answer.

    Only what speaks for an answer is marked, in shares of the row's strongest effect.
    """
    groups = list(_groups(effects.spans, target.token_effects(mistake, effects.values).clip(min=0)))
    highest = max((weight for *_, weights in groups for weight in weights.tolist()), default=0.0) or 1.0
    marked_texts = []
    for side, text in enumerate(text for text in content if text is not None):
        pieces, place = [], 0
        for start, end, weights in [group[1:] for group in groups if group[0] == side]:
            if start >= SHOWN_CHARACTERS:
                break
            shares = [round(float(weight), 3) if weight >= FAINTEST else 0.0 for weight in weights / highest]
            pieces += [Piece(text[place:start]), Piece(text[start:end], *shares)]
            place = end
        pieces.append(Piece(text[place : max(place, SHOWN_CHARACTERS)]))
        marked_texts.append([piece for piece in pieces if piece.text])
    return marked_texts


def strongest_pieces(texts: list[list[Piece]], side: str, most: int = 3) -> list[str]:
    """The different pieces that speak the most for an answer, ``"towards"`` or ``"against"``."""
    weighed = [(getattr(piece, side), piece.text.strip()) for pieces in texts for piece in pieces]
    different = dict.fromkeys(text for share, text in sorted(weighed, key=lambda entry: -entry[0]) if share and text)
    return list(different)[:most]


def _groups(spans: list[Span], weights: np.ndarray) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Tokens in the order of the text as (side, start, end, weights (2,)), those that share characters as one."""
    group: tuple[int, int, int, np.ndarray] | None = None
    for (side, start, end), place in sorted((span, place) for place, span in enumerate(spans) if span[2] > span[1]):
        if group is not None and group[0] == side and start < group[2]:
            group = (side, group[1], max(end, group[2]), group[3] + weights[place])
            continue
        if group is not None:
            yield group
        group = (side, start, end, weights[place])
    if group is not None:
        yield group

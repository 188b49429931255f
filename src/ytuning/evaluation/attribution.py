"""What a head's logits rest on: how much they fall when a token is hidden. Exact, as the features are frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder, Span
from ytuning.features.codecs import Codec
from ytuning.features.features import Features, stored_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import LabelHead
from ytuning.progress import Progress

__all__ = ["Effects", "explain", "explain_one", "token_effects"]

TOKENS_AT_ONCE = 4096  # of all copies of a text in a pass: the copies of a long text have the square of its length


@dataclass(frozen=True)
class Effects:
    """What each token of a row does for each logit.

    Attributes:
        spans: (T,) of the tokens; of the kind that `Encoder.spans` gives.
        values: (T, C) float32, see :func:`token_effects`.
    """

    spans: list[Span]
    values: np.ndarray


def token_effects(head: LabelHead, features: Features, row: int) -> np.ndarray:
    """How much each logit falls when the head does not see a token (leave one out).

    The encoder has seen it, so that what other tokens took over from it stays.

    Args:
        head: on the features.
        features: of the row, among others.
        row: its position.

    Returns:
        (T, C) float32; of a pair that was encoded one by one (T1 + T2, C), the first text's tokens first. The only
        token of a text cannot be hidden and has 0.
    """
    values, mask = features.batch(torch.tensor([row]))  # (S, T, L, D) and (S, T), of S texts
    places = mask.nonzero()  # (N, 2), of the tokens
    fallen = []
    head.eval()
    with torch.inference_mode():
        whole = head(values, mask)  # (1, C)
        for hidden in places.split(max(1, TOKENS_AT_ONCE // mask.numel())):
            count = len(hidden)
            masks = mask[:, None].repeat(1, count, 1)  # (S, N, T): of pairs all first texts come first
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
        head: on features of this encoder.
        inputs: texts or pairs.
        encoder: reads what is not stored.
        store: where features are kept.
        states: numbers of the hidden states that the head reads.
        pair_mode: how the encoder reads pairs.
        codec: in which the features are kept.
        progress: is told every row.
    """
    if not inputs:
        return []
    features, _ = stored_inputs(inputs, encoder, store, progress, states=states, pair_mode=pair_mode, codec=codec)
    spans = _spans_apart(inputs, encoder) if pair_mode == "separate" else encoder.spans(inputs)
    found = []
    for row, places in enumerate(spans):
        found.append(Effects(places, token_effects(head, features, row)))
        progress.step("explain", row + 1, len(inputs))
    return found


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

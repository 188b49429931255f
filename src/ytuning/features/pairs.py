"""Features of single texts and of pairs; of pairs that are read separately, a text that many share is encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder
from ytuning.features.codecs import DEFAULT_CODEC, Codec
from ytuning.features.features import (
    BLOCK_BYTES,
    CacheUse,
    Features,
    TextFeatures,
    keep_features,
    live_features,
    stored_features,
)
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress

__all__ = ["PairFeatures", "keep_inputs", "live_inputs", "stored_inputs"]


class PairFeatures:
    """Features of pairs of rows of other features; a batch holds the first texts of its pairs, then the second ones.

    Attributes:
        texts: features of single texts.
        first, second: (rows,) int64, positions in ``texts`` of the texts of each pair.
    """

    pair_mode: PairMode | None = "separate"

    def __init__(self, texts: TextFeatures, first: torch.Tensor, second: torch.Tensor) -> None:
        self.texts, self.first, self.second = texts, first, second
        # (rows,): a batch pads both sides to the longer text of its pairs, so that is what a row costs.
        self.lengths = torch.maximum(texts.lengths[first], texts.lengths[second])
        self.truncated_rows = texts.truncated_rows[first.numpy()] | texts.truncated_rows[second.numpy()]
        self.layers, self.width, self.codec = texts.layers, texts.width, texts.codec
        self.device, self.is_resident = texts.device, texts.is_resident

    def __len__(self) -> int:
        return len(self.lengths)

    def with_texts(self, texts: TextFeatures) -> PairFeatures:
        """The same pairs of other features of the same texts."""
        return PairFeatures(texts, self.first, self.second)

    def texts_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Positions in ``texts`` of all texts of rows (N,), sorted, each once."""
        return torch.cat((self.first[rows], self.second[rows])).unique()

    def bytes_of(self, rows: torch.Tensor) -> int:
        """What the texts of rows (N,) take where they lie."""
        return self.texts.bytes_of(self.texts_of(rows))

    def at_positions(self, positions: Sequence[int]) -> PairFeatures:
        """The same pairs, of each token only the hidden states at these positions among the L."""
        return self.with_texts(self.texts.at_positions(positions))

    def recoded(self, codec: Codec) -> PairFeatures:
        """The same pairs with their texts in another codec; see `TextFeatures.recoded`."""
        return self.with_texts(self.texts.recoded(codec))

    def resident(self, rows: torch.Tensor, device: torch.device) -> PairFeatures:
        """The same pairs with the texts of rows (N,) in a device's memory."""
        return self.with_texts(self.texts.resident(self.texts_of(rows), device))

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Rows (N,) in runs whose first texts are neighbours; the second ones may lie anywhere."""
        # (texts,): where each text comes in the store, so that pairs are ordered by their first text.
        rank = torch.empty(len(self.texts), dtype=torch.int64)
        rank[self.texts.in_order(torch.arange(len(self.texts)))] = torch.arange(len(self.texts))
        ordered = rows[torch.argsort(rank[self.first[rows]], stable=True)]
        # Second texts may lie anywhere, so a block is only as many pairs as fit into it on average.
        bytes_each = self.bytes_of(rows) // len(rows)
        return list(ordered.split(max(1, BLOCK_BYTES // max(1, bytes_each))))

    def prefetch(self, block: torch.Tensor) -> None:
        """Ask the system to read the first texts of a block of rows (N,) at once; only a hint."""
        self.texts.prefetch(self.first[block])

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (2 * B, T, L, D) and mask (2 * B, T) of rows (B,): B first texts, then B second ones."""
        return self.texts.batch(torch.cat((self.first[indices], self.second[indices])))

    def release(self) -> None:
        """Let go of the pages of the store that reading has brought into memory."""
        self.texts.release()


def stored_inputs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    pair_mode: PairMode | None,
    codec: str | Codec = DEFAULT_CODEC,
) -> tuple[Features, CacheUse]:
    """Features through the store of single texts (``pair_mode`` None) or of pairs; see `features.stored_features`."""
    if pair_mode != "separate":
        return stored_features(inputs, encoder, store, progress, states=states, codec=codec)
    texts, first, second = _distinct_texts(inputs)
    features, use = stored_features(texts, encoder, store, progress, states=states, codec=codec)
    return PairFeatures(features, first, second), use


def live_inputs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    *,
    states: Sequence[int],
    pair_mode: PairMode | None,
    codec: Codec | None = None,
    padded: bool = False,
) -> Features:
    """The same in memory, with the store left alone; see `features.live_features`."""
    if pair_mode != "separate":
        return live_features(inputs, encoder, states=states, codec=codec, padded=padded)
    texts, first, second = _distinct_texts(inputs)
    return PairFeatures(live_features(texts, encoder, states=states, codec=codec, padded=padded), first, second)


def keep_inputs(
    inputs: Sequence[TextInput],
    features: Features,
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    codec: str = DEFAULT_CODEC,
) -> int:
    """Write features of :func:`live_inputs` or :func:`stored_inputs` into the store; see `features.keep_features`."""
    if isinstance(features, PairFeatures):
        inputs, features = _distinct_texts(inputs)[0], features.texts
    assert isinstance(features, TextFeatures)
    return keep_features(inputs, features, encoder, store, progress, states=states, codec=codec)


def _distinct_texts(inputs: Sequence[TextInput]) -> tuple[list[TextInput], torch.Tensor, torch.Tensor]:
    """The distinct texts of pairs, and the places among them of each pair's first and second text."""
    places: dict[str, int] = {}
    sides = [[places.setdefault(text or "", len(places)) for text in column] for column in zip(*inputs, strict=True)]
    return [(text, None) for text in places], torch.tensor(sides[0]), torch.tensor(sides[1])

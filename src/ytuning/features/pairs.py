"""Pairs of texts which the encoder reads one by one: one that many pairs share is read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder
from ytuning.features.codecs import DEFAULT_CODEC, Codec, Decoder
from ytuning.features.features import BLOCK_BYTES, CacheUse, Features, keep_features, live_features, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress

__all__ = ["PairedFeatures", "keep_pairs", "live_inputs", "live_pairs", "stored_inputs", "stored_pairs"]


class PairedFeatures(Features):
    """Features of pairs of rows of other features; a batch holds the first texts of its pairs, then the second ones.

    Attributes:
        texts: features of single texts.
        first, second: (rows,) int64, positions in ``texts`` of the texts of each pair.
    """

    paired = True

    def __init__(self, texts: Features, first: torch.Tensor, second: torch.Tensor) -> None:
        self.texts, self.first, self.second = texts, first, second
        self.lengths = torch.maximum(texts.lengths[first], texts.lengths[second])
        self.truncated_rows = texts.truncated_rows[first.numpy()] | texts.truncated_rows[second.numpy()]
        self.layers, self.width, self.dtype, self.codec = texts.layers, texts.width, texts.dtype, texts.codec
        self.device, self.is_resident = texts.device, texts.is_resident

    def of(self, texts: Features) -> PairedFeatures:
        """The same pairs of other features of the same texts."""
        return PairedFeatures(texts, self.first, self.second)

    def texts_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Positions in ``texts`` of all texts of rows (N,), sorted, each once."""
        return torch.cat((self.first[rows], self.second[rows])).unique()

    def bytes_of(self, rows: torch.Tensor) -> int:
        """What the texts of rows (N,) take where they lie."""
        return self.texts.bytes_of(self.texts_of(rows))

    def seen_as(self, reader: Decoder) -> PairedFeatures:
        """The same rows, decoded by another reader."""
        return self.of(self.texts.seen_as(reader))

    def recoded(self, codec: Codec) -> PairedFeatures:
        """The same pairs with their texts in another codec; see `Features.recoded`."""
        return self.of(self.texts.recoded(codec))

    def resident(self, rows: torch.Tensor, device: torch.device) -> PairedFeatures:
        """The same pairs with their texts in a device's memory; see `Features.resident`."""
        return self.of(self.texts.resident(self.texts_of(rows), device))

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (N,) in the order in which their first texts are stored."""
        places = torch.empty(len(self.texts), dtype=torch.int64)
        places[self.texts.in_order(torch.arange(len(self.texts)))] = torch.arange(len(self.texts))
        return rows[torch.argsort(places[self.first[rows]], stable=True)]

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Rows (N,) in runs whose first texts are neighbours; the second ones may lie anywhere."""
        ordered = self.in_order(rows)
        size = self.bytes_of(rows) // len(rows)
        return list(ordered.split(max(1, BLOCK_BYTES // max(1, size))))

    def prefetch(self, block: torch.Tensor) -> None:
        """Ask the system to read the first texts of a block of rows (N,) at once; only a hint."""
        self.texts.prefetch(self.first[block])

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (2 * B, T, L, D) and mask (2 * B, T) of rows (B,): B first texts, then B second ones."""
        return self.texts.batch(torch.cat((self.first[indices], self.second[indices])))

    def tokens(self, indices: torch.Tensor) -> torch.Tensor:
        """(tokens, L, D) float32: the tokens of both texts of rows (B,), first texts first."""
        return self.texts.tokens(torch.cat((self.first[indices], self.second[indices])))

    def release(self) -> None:
        """Let go of the pages of the store that reading has brought into memory."""
        self.texts.release()


def stored_pairs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    codec: str | Codec = DEFAULT_CODEC,
) -> tuple[PairedFeatures, CacheUse]:
    """Features of pairs, each text by itself, through the store; see `features.stored_features`."""
    texts, first, second = _apart(inputs)
    features, use = stored_features(texts, encoder, store, progress, states=states, codec=codec)
    return PairedFeatures(features, first, second), use


def stored_inputs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    separate: bool,
    codec: str | Codec = DEFAULT_CODEC,
) -> tuple[Features, CacheUse]:
    """Features through the store of texts or of pairs as one text, or, ``separate``, of each of a pair's texts."""
    read = stored_pairs if separate else stored_features
    return read(inputs, encoder, store, progress, states=states, codec=codec)


def live_inputs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    *,
    states: Sequence[int],
    separate: bool,
    codec: Codec | None = None,
    padded: bool = False,
) -> Features:
    """The same in memory, see `features.live_features`."""
    return (live_pairs if separate else live_features)(inputs, encoder, states=states, codec=codec, padded=padded)


def keep_pairs(
    inputs: Sequence[TextInput],
    features: Features,
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    codec: str = DEFAULT_CODEC,
) -> int:
    """Write features of :func:`live_pairs` or :func:`stored_pairs`; see `features.keep_features`."""
    assert isinstance(features, PairedFeatures)
    return keep_features(_apart(inputs)[0], features.texts, encoder, store, progress, states=states, codec=codec)


def live_pairs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    *,
    states: Sequence[int],
    codec: Codec | None = None,
    padded: bool = False,
) -> PairedFeatures:
    """Features of pairs, each text by itself, in memory; see `features.live_features`."""
    texts, first, second = _apart(inputs)
    return PairedFeatures(live_features(texts, encoder, states=states, codec=codec, padded=padded), first, second)


def _apart(inputs: Sequence[TextInput]) -> tuple[list[TextInput], torch.Tensor, torch.Tensor]:
    """The distinct texts of pairs, and the places among them of each pair's first and second text."""
    places: dict[str, int] = {}
    sides = [[places.setdefault(text or "", len(places)) for text in column] for column in zip(*inputs, strict=True)]
    return [(text, None) for text in places], torch.tensor(sides[0]), torch.tensor(sides[1])

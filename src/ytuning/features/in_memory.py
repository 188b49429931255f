"""Features in memory: decoded once for all steps, or of each text only a few vectors, such as its means or pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ytuning.encoder.tokens import padded_places
from ytuning.features.features import (
    CPU,
    LENGTH_STEP,
    Features,
    PairFeatures,
    TextFeatures,
    ordered_batches,
)
from ytuning.heads.label_tuning import LabelTuningHead
from ytuning.heads.pooling import POOLS, pool_states
from ytuning.system.machine import Workers

__all__ = [
    "DecodedTexts",
    "LivePools",
    "TextVectors",
    "decoded_features",
    "mean_features",
    "pool_features",
]

# Maximum size of a copy in bytes, and tokens that are copied at a time.
COPY_BYTES, DECODED_TOKENS = 1 << 29, 8192


class TextVectors(TextFeatures):
    """A few vectors of each text, in memory: a batch has one "token" a row, (B, 1, V, D) float32, V being ``layers``.

    Their ``lengths`` are those of the texts, so that batches hold the rows that they would hold of all tokens.
    """

    is_resident = True

    def __init__(self, features: TextFeatures, vectors: Tensor, places: Tensor | None = None) -> None:
        """Make them of vectors (N, V, D) of texts of ``features``.

        ``places`` (rows,) says where those of each text stand, in rows that will not be asked for anywhere; default: in
        order.
        """
        vars(self).update(vars(features))
        # Nothing of the store is read, or let go of.
        self._maps, self._files = [], []
        self.dtype, self.layers, self.device = torch.float32, vectors.shape[1], CPU
        self._vectors, self._places = vectors, torch.arange(len(features)) if places is None else places

    def selected(self, rows: Tensor) -> TextVectors:
        """The vectors of some rows (N,), which may repeat, in their order."""
        return TextVectors(super().selected(rows), self._vectors, self._places[rows])

    def at_positions(self, positions: Sequence[int]) -> TextVectors:
        """The same texts, of each only the vectors at these positions among the V."""
        return TextVectors(self, self._vectors[:, list(positions)], self._places)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, 1, V, D) of rows (B,), and a mask (B, 1) of True."""
        return self._vectors[self._places[indices]].float()[:, None], torch.ones(len(indices), 1, dtype=torch.bool)


class DecodedTexts(TextFeatures):
    """Token features in memory as batches have them: nothing is read or decoded again."""

    is_resident = True

    def __init__(self, features: TextFeatures, tokens: Tensor, start: Tensor) -> None:
        """Make them of tokens (N, L, D) of texts of ``features``, and of where each text begins, (rows,).

        Texts that will not be asked for begin anywhere.
        """
        vars(self).update(vars(features))
        # Nothing of the store is read, or let go of.
        self._maps, self._files = [], []
        self._tokens, self._begin = tokens, start

    def selected(self, rows: Tensor) -> DecodedTexts:
        """Features of some rows (N,), which may repeat, in their order."""
        return DecodedTexts(super().selected(rows), self._tokens, self._begin[rows])

    def at_positions(self, positions: Sequence[int]) -> TextFeatures:
        """The same texts, of each token only the hidden states at these positions among the L."""
        chosen = DecodedTexts(self, self._tokens[:, list(positions)], self._begin)
        chosen.layers = len(positions)
        return chosen

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, T, L, D) and mask (B, T) of rows (B,), as `TextFeatures.batch` gives them."""
        start, lengths = self._begin[indices].numpy(), self.lengths[indices].numpy()
        places, mask = map(torch.from_numpy, padded_places(start, lengths, LENGTH_STEP[self.dtype]))
        values = self._tokens.flatten(1).index_select(0, places.flatten())
        return values.view(*places.shape, self.layers, self.width), mask


def decoded_features(features: Features, rows: Tensor, pool: Workers, *, most_bytes: int = COPY_BYTES) -> Features:
    """The features of rows (N,) decoded once for all steps and heads, where they take at most so many bytes.

    Reading and decoding what is stored takes a quarter of a step of the default head.

    Args:
        features: features of all rows.
        rows: positions of those that will be asked for.
        pool: decodes.
        most_bytes: of the copy; where it would take more, the features are given back as they are.
    """
    if features.device != CPU or features.is_resident:
        return features
    if isinstance(features, PairFeatures):
        texts = decoded_features(features.texts, features.texts_of(rows), pool, most_bytes=most_bytes)
        assert isinstance(texts, TextFeatures)
        return features.with_texts(texts)
    count = int(features.lengths[rows].sum())
    if count * features.layers * features.width * features.dtype.itemsize > most_bytes:
        return features
    ordered = features.in_order(rows)
    lengths = features.lengths[ordered]
    ends = lengths.cumsum(0)
    tokens = torch.empty(count, features.layers, features.width, dtype=features.dtype)
    # Runs of neighbours, which lie together in the copy as they do in the store.
    runs = torch.arange(len(ordered)).tensor_split((ends // DECODED_TOKENS).diff().nonzero()[:, 0] + 1)

    def decode(run: Tensor) -> None:
        first, last = int(ends[run[0]] - lengths[run[0]]), int(ends[run[-1]])
        with torch.inference_mode():
            tokens[first:last] = features.tokens(ordered[run], features.dtype)

    pool.map(decode, runs)
    features.release()
    start = torch.zeros(len(features), dtype=torch.int64).index_copy_(0, ordered, ends - lengths)
    return DecodedTexts(features, tokens, start)


def mean_features(features: Features, pool: Workers, *, most_bytes: int = COPY_BYTES) -> Features:
    """What heads that read nothing but the mean token of a text need of it, computed once for all steps and heads.

    Args:
        features: features of all rows on a CPU.
        pool: computes the means.
        most_bytes: size of the largest copy; where the means would take more, the features are given back as they are.
    """
    size = len(features) * features.layers * features.width * torch.float32.itemsize
    if isinstance(features, PairFeatures):
        texts = mean_features(features.texts, pool, most_bytes=most_bytes)
        assert isinstance(texts, TextFeatures)
        return features.with_texts(texts)
    if isinstance(features, TextVectors) or size > most_bytes:
        return features
    means = torch.empty(len(features), features.layers, features.width)

    def compute(rows: Tensor) -> None:
        with torch.inference_mode():
            means[rows] = LabelTuningHead.mean_states(*features.batch(rows))

    _in_order(features, torch.arange(len(features)), compute, pool)
    return TextVectors(features, means)


class LivePools(TextFeatures):
    """The pools of each text, which are computed for each batch: (B, 1, 3 L, D) float32."""

    def __init__(self, features: TextFeatures) -> None:
        """Take features of tokens."""
        vars(self).update(vars(features))
        self._texts, self.layers, self.device = features, len(POOLS) * features.layers, CPU

    def selected(self, rows: Tensor) -> LivePools:
        """The pools of some rows (N,), which may repeat, in their order."""
        return LivePools(self._texts.selected(rows))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pools (B, 1, 3 L, D) of rows (B,), and a mask (B, 1) of True."""
        pools = torch.empty(len(indices), 1, self.layers, self.width)
        for batch in ordered_batches(self.lengths[indices]):
            pools[batch, 0] = pool_states(*self._texts.batch(indices[batch])).unflatten(1, pools.shape[2:]).cpu()
        return pools, torch.ones(len(indices), 1, dtype=torch.bool)

    def release(self) -> None:
        """Let go of the pages of the store that reading has brought into memory."""
        self._texts.release()


def pool_features(features: Features, rows: Tensor, pool: Workers, *, most_bytes: int = COPY_BYTES) -> Features:
    """What light heads read of rows (N,): the pools of their texts, (B, 1, 3 L, D) in a batch.

    They are computed once and kept in float16.

    Args:
        features: features of all rows.
        rows: positions of those that will be asked for.
        pool: computes the pools.
        most_bytes: that they may take; where it would be more, they are computed for each batch.
    """
    if isinstance(features, PairFeatures):
        texts = pool_features(features.texts, features.texts_of(rows), pool, most_bytes=most_bytes)
        assert isinstance(texts, TextFeatures)
        return features.with_texts(texts)
    if len(rows) * len(POOLS) * features.layers * features.width * torch.float16.itemsize > most_bytes:
        return LivePools(features)
    places = torch.full((len(features),), len(rows)).index_copy_(0, rows, torch.arange(len(rows)))
    pools = torch.empty(len(rows), len(POOLS) * features.layers, features.width, dtype=torch.float16)

    def compute(batch: Tensor) -> None:
        with torch.inference_mode():
            pools[places[batch]] = pool_states(*features.batch(batch)).unflatten(1, pools.shape[1:]).half().cpu()

    _in_order(features, rows, compute, pool)
    return TextVectors(features, pools, places)


def _in_order(features: TextFeatures, rows: Tensor, compute: Callable[[Tensor], None], pool: Workers) -> None:
    """Compute batches of rows (N,) side by side, in the order in which they are stored, which is read fastest."""
    ordered = features.in_order(rows)
    batches = [ordered[batch.sort().values] for batch in ordered_batches(features.lengths[ordered])]
    if features.is_resident and features.device != CPU:
        for batch in batches:
            compute(batch)
    else:
        pool.map(compute, batches)
    features.release()

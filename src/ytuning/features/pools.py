"""Pools of texts through the store: computed once from the token features, for all light heads of an encoder.

They have a feature space of their own, in which each text is one row of all its pools (`heads/pooling.py`). What reads
them gets :class:`~ytuning.features.features.TextFeatures` whose texts have one "token" and 3 L "hidden states".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Batches, Encoder
from ytuning.encoder.pretrained import States
from ytuning.encoder.tokens import plan_batches, remaining
from ytuning.features.codecs import POOL_CODECS, Codec, Float16Codec
from ytuning.features.features import (
    ATTEMPTS,
    CacheUse,
    Features,
    PairFeatures,
    TextFeatures,
    distinct_texts,
    lacked,
    not_intact,
    say_damages,
    stored_features,
    stored_states,
)
from ytuning.features.keys import KEY_BYTES, text_key
from ytuning.features.store import FeatureSpace, FeatureStore, StoredRows
from ytuning.features.writing import Source, write_features
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooling import POOLS, pool_states, pools_of_states
from ytuning.progress import Progress

__all__ = ["RowSet", "keep_rows", "kept_rows", "mean_pools", "row_keys", "stored_pools"]

# Tokens that are pooled at a time.
POOLED_TOKENS = 8192


@dataclass(frozen=True)
class RowSet:
    """The rows that a light task was fitted on: keys of their texts, which stand in the store, and their targets.

    Attributes:
        keys: (N, S, 16) uint8, `store.text_key` of the S texts that the encoder reads for a row: 2 for a pair that is
            read separately, else 1.
        targets: targets of the rows, as the task's kind encodes them.
        held: (N,) bool, whether the row is a validation row.
    """

    keys: np.ndarray
    targets: np.ndarray
    held: np.ndarray

    @classmethod
    def of_inputs(
        cls, inputs: Sequence[TextInput], pair_mode: PairMode | None, targets: np.ndarray, held: np.ndarray
    ) -> RowSet:
        """The rows of these texts or pairs."""
        return cls(row_keys(inputs, pair_mode), targets, held)

    def with_rows(self, other: RowSet) -> RowSet:
        """These rows, then others."""
        return RowSet(
            np.concatenate((self.keys, other.keys)),
            np.concatenate((self.targets, other.targets)),
            np.concatenate((self.held, other.held)),
        )

    def select(self, rows: np.ndarray) -> RowSet:
        """Some of the rows, by position or flag (N,)."""
        return RowSet(self.keys[rows], self.targets[rows], self.held[rows])

    def features(self, encoder: Encoder, store: FeatureStore, *, states: States, codec: str) -> Features | None:
        """The stored pools of the rows; None if the store lacks some of them."""
        space, kept = _space(encoder, store, states, codec)
        keys, places = np.unique(self.keys.reshape(-1, KEY_BYTES), axis=0, return_inverse=True)
        stored = space.rows([key.tobytes() for key in keys])
        if stored is None:
            return None
        texts = _of_states(stored, kept, states)
        # (N, S)
        rows = torch.from_numpy(places.reshape(self.keys.shape[:2]))
        return texts.selected(rows[:, 0]) if rows.shape[1] == 1 else PairFeatures(texts, rows[:, 0], rows[:, 1])


def row_keys(inputs: Sequence[TextInput], pair_mode: PairMode | None) -> np.ndarray:
    """(N, S, 16) uint8: the keys of the S texts that the encoder reads for each of N texts or pairs."""
    if pair_mode == "separate":
        keys = b"".join(text_key(text or "") for row in inputs for text in row)
    else:
        keys = b"".join(text_key(*row) for row in inputs)
    return np.frombuffer(keys, np.uint8).reshape(len(inputs), -1, KEY_BYTES)


def keep_rows(rows: RowSet, encoder: Encoder, store: FeatureStore, *, states: States, codec: str) -> str:
    """Keep which rows a task was fitted on beside their pools; returns the name.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    return store.keep_rows(*_space_of(encoder, states, codec), safetensors.numpy.save(vars(rows)))


def kept_rows(name: str, encoder: Encoder, store: FeatureStore, *, states: States, codec: str) -> RowSet | None:
    """The rows that :func:`keep_rows` has kept under a name; None if they are gone."""
    data = store.kept_rows(*_space_of(encoder, states, codec), name)
    return None if data is None else RowSet(**safetensors.numpy.load(data))


def _space(encoder: Encoder, store: FeatureStore, states: States, codec: str) -> tuple[FeatureSpace, States]:
    """The space of the pools of some hidden states, and the states that it keeps."""
    identity, kept, name = _space_of(encoder, states, codec)
    return store.space(identity, kept, name), kept


def _space_of(encoder: Encoder, states: States, codec: str) -> tuple[dict[str, Any], States, str]:
    """The encoder, the states and the codec of the space of the pools of some hidden states."""
    return encoder.identity.to_json(), stored_states(encoder, states, codec), POOL_CODECS[codec]


def _of_states(rows: StoredRows, kept: States, states: States) -> TextFeatures:
    """Stored pools as features of some of the hidden states that the space keeps."""
    positions = pools_of_states([kept.index(state) for state in states], len(kept))
    return TextFeatures(rows, torch.float32).at_positions(positions)


def mean_pools(features: Features, layers: int) -> Features:
    """Of pools of ``layers`` hidden states only the means; token features as they are."""
    return features if features.layers == layers else features.at_positions(range(layers))


def stored_pools(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    pair_mode: PairMode | None,
    codec: str,
) -> tuple[Features, CacheUse]:
    """Pools through the store of single texts (``pair_mode`` None) or of pairs.

    Where the store lacks them they are computed from the token features, which the encoder computes where the store
    lacks these, too.

    Args: as of `features.stored_inputs`; the codec is one of ``POOL_CODECS``.

    Raises: as `features.stored_features`.
    """
    texts, with_pairs = distinct_texts(inputs, pair_mode)
    states = encoder.resolve_states(states)
    space, kept = _space(encoder, store, states, codec)
    keys = [text_key(*text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    use = CacheUse(len(distinct), 0, len(distinct) * space.row_bytes)
    for _ in range(ATTEMPTS):
        if missing := lacked(space, list(distinct)):
            unread = [distinct[key] for key in missing]
            features, tokens = stored_features(unread, encoder, store, progress, states=kept, codec=codec)
            use = replace(use, hits=use.hits - tokens.misses, misses=use.misses + tokens.misses)
            _write(space, dict(zip(missing, range(len(missing)), strict=True)), features, store, progress)
        rows = space.rows(keys)
        say_damages(space, progress)
        if rows is not None:
            return with_pairs(_of_states(rows, kept, states)), use
    raise not_intact(space)


def _write(
    space: FeatureSpace, row_of: dict[bytes, int], features: TextFeatures, store: FeatureStore, progress: Progress
) -> None:
    """Add the pools of the texts that the space still lacks; ``row_of`` says where their token features are."""
    with space.writing() as others:
        say_damages(space, progress)
        # Another process may have written some of them by now.
        missing = lacked(space, list(row_of))
        rows = np.array([row_of[key] for key in missing], np.int64)
        write_features(space, missing, _pooling(features, rows), progress, store.sizes, others)


def _pooling(features: TextFeatures, rows: np.ndarray) -> Source:
    """Token features as a source of pools; position i is their row ``rows[i]``."""

    def source(
        positions: np.ndarray, codec: Codec | None, left_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Batches]:
        wanted = torch.from_numpy(rows[positions])
        batches = (
            (batch, _codec_of(features).encode(_pools(features, wanted[batch])).numpy())
            for batch in remaining(plan_batches(features.lengths[wanted].numpy(), POOLED_TOKENS, "equal"), left_out)
        )
        return np.ones(len(positions), np.int64), features.truncated_rows[rows[positions]], batches

    return source


def _codec_of(features: TextFeatures) -> Float16Codec:
    """The codec of a text's pools."""
    return Float16Codec(len(POOLS) * features.layers, features.width)


def _pools(features: TextFeatures, rows: torch.Tensor) -> torch.Tensor:
    """The pools (B, 3 L, D) float32 of texts (B,) of the same length."""
    # (B, T, L, D)
    tokens = features.tokens(rows).unflatten(0, (len(rows), -1))
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return pool_states(tokens, mask).unflatten(1, (-1, features.width))

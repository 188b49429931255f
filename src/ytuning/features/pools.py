"""Pools of texts through the store: computed once from the token features, for all light heads of an encoder.

They have a feature space of their own, in which each text is one row of all its pools (`heads/pooling.py`). What reads
them gets :class:`~ytuning.features.features.TextFeatures` whose texts have one "token" and 3 L "hidden states".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Batches, Encoder
from ytuning.encoder.tokens import plan_batches
from ytuning.errors import StoreError
from ytuning.features.codecs import POOL_CODECS, Codec, Float16Codec
from ytuning.features.features import (
    WAITING,
    CacheUse,
    Features,
    PairFeatures,
    TextFeatures,
    distinct_texts,
    say_damages,
    stored_features,
    stored_states,
)
from ytuning.features.store import FeatureSpace, FeatureStore, StoredRows, text_key
from ytuning.features.writing import Source, write_features
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooling import POOLS, pool_states, pools_of_states
from ytuning.progress import Progress

__all__ = ["mean_states", "pooled", "stored_pools"]

# Tokens that are pooled at a time.
POOLED_TOKENS = 8192
# What was just written is read back so many times before the disk is called bad.
ATTEMPTS = 3


def pooled(features: Features) -> Features:
    """The pools of features in memory, (rows, 1, 3 L, D) as a batch."""
    if isinstance(features, PairFeatures):
        return features.with_texts(_pooled_texts(features.texts))
    return _pooled_texts(features)


def mean_states(features: Features, layers: int) -> Features:
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
    codec: str | Codec,
) -> tuple[Features, CacheUse]:
    """Pools through the store of single texts (``pair_mode`` None) or of pairs.

    Where the store lacks them they are computed from the token features, which the encoder computes where the store
    lacks these, too. Pools of compact token features are not stored, because those depend on a basis.

    Args: as of `features.stored_inputs`.

    Raises: as `features.stored_features`.
    """
    texts, with_pairs = distinct_texts(inputs, pair_mode)
    name = codec if isinstance(codec, str) else codec.name
    states = encoder.resolve_states(states)
    if name not in POOL_CODECS:
        features, use = stored_features(texts, encoder, store, progress, states=states, codec=codec)
        return with_pairs(_pooled_texts(features)), use
    kept = stored_states(encoder, states, name)
    space = store.space(encoder.identity.to_json(), kept, POOL_CODECS[name])
    keys = [text_key(*text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    use = CacheUse(len(distinct), 0, len(distinct) * space.row_bytes)
    for _ in range(ATTEMPTS):
        if missing := [key for key in distinct if key not in space]:
            lacked = [distinct[key] for key in missing]
            features, tokens = stored_features(lacked, encoder, store, progress, states=kept, codec=name)
            use = replace(use, hits=use.hits - tokens.misses, misses=use.misses + tokens.misses)
            _write(space, dict(zip(missing, range(len(missing)), strict=True)), features, store, progress)
        rows = space.rows(keys)
        say_damages(space, progress)
        if rows is not None:
            positions = pools_of_states([kept.index(state) for state in states], len(kept))
            return with_pairs(TextFeatures(rows, torch.float32).at_positions(positions)), use
    raise StoreError(
        f"what is written to {space.folder} does not read back intact. Check the disk or set YTUNING_CACHE"
    )


def _write(
    space: FeatureSpace, row_of: dict[bytes, int], features: TextFeatures, store: FeatureStore, progress: Progress
) -> None:
    """Add the pools of the texts that the space still lacks; ``row_of`` says where their token features are."""
    with space.locked(lambda: progress.say(WAITING)):
        say_damages(space, progress)
        # Another process may have written some of them by now.
        missing = [key for key in row_of if key not in space]
        rows = np.array([row_of[key] for key in missing], np.int64)
        write_features(space, missing, _pooling(features, rows), progress, store.sizes)


def _pooling(features: TextFeatures, rows: np.ndarray) -> Source:
    """Token features as a source of pools; position i is their row ``rows[i]``."""

    def source(positions: np.ndarray, codec: Codec | None) -> tuple[np.ndarray, np.ndarray, Batches]:
        wanted = torch.from_numpy(rows[positions])
        batches = (
            (batch, _codec_of(features).encode(_pools(features, wanted[batch])).numpy())
            for batch in plan_batches(features.lengths[wanted].numpy(), POOLED_TOKENS, "equal")
        )
        return np.ones(len(positions), np.int64), features.truncated_rows[rows[positions]], batches

    return source


def _pooled_texts(features: TextFeatures) -> TextFeatures:
    """The pools of texts in memory."""
    codec, count = _codec_of(features), len(features)
    array = np.empty((count, 2 * codec.layers * codec.width), np.uint8)
    for batch in plan_batches(features.lengths.numpy(), POOLED_TOKENS, "equal"):
        array[batch] = codec.encode(_pools(features, torch.from_numpy(batch))).numpy()
    features.release()
    # All rows lie in the one array, in their order.
    where = np.zeros(count, np.int64), np.arange(count), np.ones(count, np.int64)
    return TextFeatures(StoredRows([array], *where, features.truncated_rows, codec), torch.float32)


def _codec_of(features: TextFeatures) -> Float16Codec:
    """The codec of a text's pools."""
    return Float16Codec(len(POOLS) * features.layers, features.width)


def _pools(features: TextFeatures, rows: torch.Tensor) -> torch.Tensor:
    """The pools (B, 3 L, D) float32 of texts (B,) of the same length."""
    # (B, T, L, D)
    tokens = features.tokens(rows).unflatten(0, (len(rows), -1))
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return pool_states(tokens, mask).unflatten(1, (-1, features.width))

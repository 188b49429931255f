"""Pools of features in memory, for tests that have no store."""

from __future__ import annotations

import numpy as np
import torch

from ytuning.features.codecs import Float16Codec
from ytuning.features.features import Features, PairFeatures, TextFeatures
from ytuning.features.store import StoredRows
from ytuning.heads.pooling import pool_states


def pooled(features: Features) -> Features:
    """The pools of features, (rows, 1, 3 L, D) as a batch."""
    if isinstance(features, PairFeatures):
        texts = pooled(features.texts)
        assert isinstance(texts, TextFeatures)
        return features.with_texts(texts)
    pools = torch.cat([pool_states(*features.batch(torch.tensor([row]))) for row in range(len(features))])
    return of_numbers(pools.unflatten(1, (-1, features.width)), features.truncated_rows)


def of_numbers(pools: torch.Tensor, truncated: np.ndarray) -> TextFeatures:
    """Features of pools (rows, 3 L, D); ``truncated`` (rows,) says which texts were cut."""
    count, codec = len(pools), Float16Codec(*pools.shape[1:])
    where = np.zeros(count, np.int64), np.arange(count), np.ones(count, np.int64), truncated
    return TextFeatures(StoredRows([codec.encode(pools).numpy()], *where, codec), torch.float32)

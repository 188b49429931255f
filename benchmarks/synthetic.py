"""A store of made-up features, written through the store's own functions, for benchmarks that need no encoder pass."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder
from ytuning.features.codecs import DEFAULT_CODEC, row_bytes
from ytuning.features.features import Features, stored_features
from ytuning.features.keys import text_key
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress

SHARD_BYTES = 128 << 20
LABELS = 4
MEAN_LENGTH = 24  # tokens; lengths are log-normal, as those of texts are
SIGNAL = 0.3  # of a row's label in each of its tokens, against noise of deviation 1


@dataclass(frozen=True)
class Synthetic:
    """Texts whose features are in a store.

    Attributes:
        inputs: in the order in which they lie in the store.
        targets: (texts,) label ids.
        tokens: of all texts.
        bytes: of their features as the default codec stores them.
        write_seconds: that the store took to write them.
    """

    inputs: list[TextInput]
    targets: np.ndarray
    tokens: int
    bytes: int
    write_seconds: float = 0.0


def plan(encoder: Encoder, size: int, seed: int = 0) -> tuple[Synthetic, np.ndarray]:
    """Texts whose features take about ``size`` bytes, and the (texts,) token count of each."""
    generator = np.random.default_rng(seed)
    token_bytes = row_bytes(DEFAULT_CODEC, len(encoder.resolve_states(None)), encoder.identity.width)
    count = max(64, round(size / token_bytes / MEAN_LENGTH))
    spread = 0.6
    drawn = generator.lognormal(np.log(MEAN_LENGTH) - spread**2 / 2, spread, count)
    lengths = np.clip(drawn.round().astype(np.int64), 3, encoder.identity.max_length)
    targets = generator.integers(LABELS, size=count)
    targets[:LABELS] = np.arange(LABELS)
    tokens = int(lengths.sum())
    return Synthetic([(f"text {row}", None) for row in range(count)], targets, tokens, tokens * token_bytes), lengths


def write(store: FeatureStore, encoder: Encoder, size: int, seed: int = 0) -> Synthetic:
    """Store about ``size`` bytes of features, a shard at a time: noise, and a direction that tells the label."""
    made, lengths = plan(encoder, size, seed)
    space = store.space(encoder.identity.to_json(), encoder.resolve_states(None), DEFAULT_CODEC)
    assert space.codec is not None
    generator = np.random.default_rng(seed + 1)
    shape = (len(encoder.resolve_states(None)), encoder.identity.width)
    directions = generator.standard_normal((LABELS, *shape), np.float32) * SIGNAL
    per_shard = max(1, SHARD_BYTES // (made.bytes // made.tokens))
    shard = np.cumsum(lengths) // per_shard
    elapsed = 0.0
    for number in np.unique(shard):
        rows = np.flatnonzero(shard == number)
        features = generator.standard_normal((int(lengths[rows].sum()), *shape), np.float32)
        features += np.repeat(directions[made.targets[rows]], lengths[rows], axis=0)
        keys = [text_key(*made.inputs[row]) for row in rows]
        half = features.astype(np.float16)
        start = time.perf_counter()
        space.write(keys, lengths[rows], np.zeros(len(rows), bool), space.codec.encode(torch.from_numpy(half)).numpy())
        elapsed += time.perf_counter() - start
    return replace(made, write_seconds=elapsed)


def copy_in_order(
    inputs: list[TextInput], order: np.ndarray, features: Features, encoder: Encoder, store: FeatureStore
) -> Features:
    """The same features in another store, where the texts lie in the order given (positions in ``inputs``)."""
    space = store.space(encoder.identity.to_json(), encoder.resolve_states(None), DEFAULT_CODEC)
    codec = space.codec
    assert codec is not None
    known: set[bytes] = set()
    waiting: list[tuple[bytes, np.ndarray, bool]] = []

    def flush() -> None:
        keys, values, cut = zip(*waiting, strict=True)
        rows = codec.encode(torch.from_numpy(np.concatenate(values))).numpy()
        space.write(keys, np.array([len(value) for value in values]), np.array(cut), rows)
        waiting.clear()

    size = 0
    for row in order.tolist():
        key = text_key(*inputs[row])
        if key in known:
            continue
        known.add(key)
        values, mask = features.batch(torch.tensor([row]))
        waiting.append((key, values[mask].to(torch.float16).numpy(), bool(features.truncated_rows[row])))
        size += waiting[-1][1].nbytes
        if size >= SHARD_BYTES:
            flush()
            size = 0
    if waiting:
        flush()
    return stored_features(inputs, encoder, store, Progress(), states=encoder.resolve_states(None))[0]

"""Pools through the store: computed once from token features, and the same live and stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import STATES
from tests.pools import pooled
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.features import Features, live_inputs, stored_inputs
from ytuning.features.pools import mean_pools, stored_pools
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.progress import CollectedMessages, Progress

TEXTS = ["my card", "login please", "my card", "refund my money late", "password", "card " * 100]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


def numbers(features: Features) -> torch.Tensor:
    values, mask = features.batch(torch.arange(len(features)))
    assert mask.all() and mask.shape[1] == 1
    return values


@pytest.mark.parametrize("codec", ["fp16", "int8"])
@pytest.mark.parametrize("pair_mode", [None, "joint", "separate"])
def test_stored_pools_are_those_of_stored_tokens(
    pair_mode: PairMode | None, codec: str, encoder: Encoder, tmp_path: Path
) -> None:
    inputs = [(text, TEXTS[0] if pair_mode else None) for text in TEXTS]
    reading = {"states": STATES, "pair_mode": pair_mode, "codec": codec}
    store = FeatureStore(tmp_path)
    features, _ = stored_pools(inputs, encoder, store, Progress(), **reading)  # type: ignore[arg-type]
    tokens, _ = stored_inputs(inputs, encoder, store, Progress(), **reading)  # type: ignore[arg-type]
    assert torch.equal(numbers(features), numbers(pooled(tokens)))
    assert features.truncated_rows.tolist() == tokens.truncated_rows.tolist()
    assert features.truncated_rows[-1] and not features.truncated_rows[0]


def test_a_text_is_encoded_and_pooled_once(encoder: Encoder, encoded: list[int], tmp_path: Path) -> None:
    store, inputs = FeatureStore(tmp_path), [(text, None) for text in TEXTS]

    def read(count: int) -> tuple[int, int, int]:
        _, use = stored_pools(inputs[:count], encoder, store, Progress(), states=STATES, pair_mode=None, codec="int8")
        return use.hits, use.misses, use.bytes

    row = 2 * 3 * len(STATES) * encoder.identity.width
    assert read(4) == (0, 3, 3 * row) and sum(encoded) == 3
    assert read(4) == (3, 0, 3 * row) and sum(encoded) == 3
    # Tokens that are stored already are only pooled.
    stored_inputs(inputs[4:5], encoder, store, Progress(), states=STATES, pair_mode=None, codec="int8")
    assert read(6) == (4, 1, 5 * row) and sum(encoded) == 5


def test_some_of_the_stored_states(encoder: Encoder, tmp_path: Path) -> None:
    store, inputs = FeatureStore(tmp_path), [(text, None) for text in TEXTS]
    for states in (STATES, STATES[:1], STATES[1:]):
        features, _ = stored_pools(inputs, encoder, store, Progress(), states=states, pair_mode=None, codec="fp16")
        live = pooled(live_inputs(inputs, encoder, states=states, pair_mode=None))
        torch.testing.assert_close(numbers(features), numbers(live), rtol=2e-3, atol=1e-4)
    assert len({space.folder for space in store.spaces()}) == 2


def test_means_of_pools_are_means_of_tokens(encoder: Encoder) -> None:
    tokens = live_inputs([(text, None) for text in TEXTS], encoder, states=STATES, pair_mode=None)
    assert mean_pools(tokens, len(STATES)) is tokens
    means = mean_pools(pooled(tokens), len(STATES))
    values, mask = tokens.batch(torch.arange(len(TEXTS)))
    naive = torch.stack([text[there].double().mean(0) for text, there in zip(values, mask, strict=True)])
    torch.testing.assert_close(numbers(means)[:, 0].double(), naive, rtol=2e-3, atol=1e-4)


def test_damaged_pools_are_named_and_computed_again(encoder: Encoder, encoded: list[int], tmp_path: Path) -> None:
    store, inputs, heard = FeatureStore(tmp_path), [(text, None) for text in TEXTS], CollectedMessages()

    def read() -> np.ndarray:
        features, _ = stored_pools(inputs, encoder, store, heard, states=STATES, pair_mode=None, codec="int8")
        whole: np.ndarray = numbers(features).clone().numpy()
        return whole

    before = read()
    (space,) = [space for space in store.spaces() if space.codec_name == "int8-pools"]
    (shard,) = (space.folder / "shards").glob("*.features")
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    assert np.array_equal(read(), before) and sum(encoded) == 5
    assert len(heard.messages) == 1 and "is damaged (checksum of the features differs)" in heard.messages[0]

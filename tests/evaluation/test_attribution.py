"""Effects of tokens against a naive loop that takes them out one by one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import STATES
from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.evaluation.attribution import explain, token_effects
from ytuning.features.features import Features, PairFeatures, live_features, live_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PAIR_MODES, PairMode
from ytuning.heads.pooled import CrossAttentionConfig, HeadConfig, LabelHead, PooledConfig, build_head
from ytuning.progress import Progress

FORMS: list[HeadConfig] = [PooledConfig(width=16), CrossAttentionConfig(width=16)]
SINGLE: list[TextInput] = [("help", None), ("my card is lost, please help", None), ("why the refund", None)]
PAIRS: list[TextInput] = [("my card is lost", "help"), ("login", "why is my login slow again")]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


def head_of(config: HeadConfig, *, mode: PairMode | None = None) -> LabelHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_head(config, labels=4, layers=2, width=32, pair_mode=mode).eval()


def naive_effects(head: LabelHead, features: Features, row: int) -> np.ndarray:
    values, mask = features.batch(torch.tensor([row]))
    texts = [list(text[kept]) for text, kept in zip(values, mask, strict=True)]

    def logits(rest: list[list[Tensor]]) -> np.ndarray:
        longest = max(map(len, rest))
        padded = torch.stack([torch.stack(text + [torch.zeros(2, 32)] * (longest - len(text))) for text in rest])
        there = torch.tensor([[place < len(text) for place in range(longest)] for text in rest])
        with torch.inference_mode():
            found: np.ndarray = head(padded, there)[0].numpy()
        return found

    whole = logits(texts)
    found = []
    for side, text in enumerate(texts):
        for place in range(len(text)):
            rest = [text[:place] + text[place + 1 :] if other == side else texts[other] for other in range(len(texts))]
            found.append(whole - logits(rest))
    return np.array(found)


@pytest.mark.parametrize("config", FORMS, ids=["pooled", "cross_attention"])
def test_effects_against_taking_tokens_out(config: HeadConfig, encoder: Encoder) -> None:
    features, head = live_features(SINGLE, encoder, states=STATES), head_of(config)
    for row, length in enumerate(features.lengths.tolist()):
        found = token_effects(head, features, row)
        assert found.shape == (length, 4) and found.dtype == np.float32
        np.testing.assert_allclose(found, naive_effects(head, features, row), atol=2e-6)
    assert np.abs(token_effects(head, features, 1)).max() > 1e-3


@pytest.mark.parametrize("config", FORMS, ids=["pooled", "cross_attention"])
def test_effects_in_pairs_that_were_encoded_one_by_one(config: HeadConfig, encoder: Encoder) -> None:
    features = live_inputs(PAIRS, encoder, states=STATES, pair_mode="separate")
    head = head_of(config, mode="separate")
    assert isinstance(features, PairFeatures)
    for row, (first, second) in enumerate(zip(features.first.tolist(), features.second.tolist(), strict=True)):
        found = token_effects(head, features, row)
        assert len(found) == features.texts.lengths[first] + features.texts.lengths[second]
        np.testing.assert_allclose(found, naive_effects(head, features, row), atol=2e-6)


def test_memory_does_not_grow_with_the_square_of_a_text(encoder: Encoder) -> None:
    features, head = live_features([("card " * 28, None)], encoder, states=STATES), head_of(FORMS[0])
    expected = token_effects(head, features, 0)
    sizes: list[int] = []
    head.register_forward_hook(lambda _, given, result: sizes.append(len(given[0])))
    # Two copies of 30 tokens.
    np.testing.assert_allclose(token_effects(head, features, 0, 70), expected, atol=2e-6)
    assert sizes == [1] + [2] * 15
    np.testing.assert_allclose(token_effects(head, features, 0, 1), expected, atol=2e-6)


def test_the_only_token_of_a_text_has_no_effect(encoder: Encoder) -> None:
    features = live_features([("help", None)], encoder, states=STATES)

    def first_token(indices: Tensor) -> tuple[Tensor, Tensor]:
        values, mask = features.batch(indices)
        return values, mask & (torch.arange(mask.shape[1]) == 0)

    alone: Any = SimpleNamespace(batch=first_token)
    np.testing.assert_array_equal(token_effects(head_of(FORMS[0]), alone, 0), np.zeros((1, 4)))


@pytest.mark.parametrize("mode", PAIR_MODES)
def test_effects_come_with_their_places(mode: PairMode, encoder: Encoder) -> None:
    told = []

    class Telling(Progress):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            told.append((stage, done, total))

    store, head = FeatureStore(), head_of(FORMS[0], mode=mode)
    options: dict[str, Any] = {"states": STATES, "pair_mode": mode, "codec": "fp16"}
    found = explain(head, PAIRS, encoder, store, progress=Telling(), **options)
    assert told[-2:] == [("explain", 1, 2), ("explain", 2, 2)]
    for pair, effects in zip(PAIRS, found, strict=True):
        words = [(pair[side] or "")[start:end] for side, start, end in effects.spans]
        assert [word for word in words if word] == " ".join(map(str, pair)).split()
        assert words.count("") == 3 + (mode == "separate") and len(words) == len(effects.values)  # [CLS] and [SEP]
    features = live_inputs(PAIRS, encoder, states=STATES, pair_mode=mode)
    np.testing.assert_allclose(found[1].values, token_effects(head, features, 1), atol=1e-6)


def test_nothing_to_explain(encoder: Encoder) -> None:
    head, store = head_of(FORMS[0]), FeatureStore()
    options: dict[str, Any] = {"states": STATES, "pair_mode": None, "codec": "int8", "progress": Progress()}
    assert explain(head, [], encoder, store, **options) == []
    assert store.spaces() == []

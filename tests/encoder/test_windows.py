"""Long texts in windows: the plan, and the encoder that reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import STATES
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.tokens import plan_windows
from ytuning.errors import EncoderError
from ytuning.features.features import live_features, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress

WORDS = ["my", "card", "is", "lost", "please", "help", "me", "now", "the", "app", "was", "slow", "again"]
LONG = " ".join(WORDS[(7 * number) % len(WORDS)] for number in range(150))


@given(st.integers(1, 400), st.integers(3, 60), st.integers(0, 2), st.integers(0, 1))
def test_windows_hold_every_token_once_and_far_from_the_edges(extra: int, inner: int, before: int, after: int) -> None:
    most = before + inner + after
    length = most + extra
    windows = plan_windows(length, most, before, after)
    assert all(len(window.tokens) == most for window in windows)
    kept = np.concatenate([window.tokens[window.kept] for window in windows])
    assert kept.tolist() == list(range(length))
    for window in windows:
        assert window.tokens[:before].tolist() == list(range(before))
        assert window.tokens[most - after :].tolist() == list(range(length - after, length))
        content = window.tokens[before : most - after]
        assert (np.diff(content) == 1).all()
        # Beside a neighbour at least an eighth of a window, less a token, is left on each side.
        first, last = window.kept.start or 0, window.kept.stop
        margin = (inner // 4) // 2
        if content[0] > before:
            assert first - before >= margin
        if content[-1] < length - after - 1:
            assert most - after - last >= margin
    shared = inner - inner // 4
    assert len(windows) <= 2 + (length - most) // max(1, shared)


@pytest.fixture(scope="module")
def windowed(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32", long_text="window")


def naive(encoder: Encoder, folder: Path, text: str) -> np.ndarray:
    """(T, L, D): every window by itself through the model."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = encoder.tokenizer(text, add_special_tokens=True)["input_ids"]
    parts = []
    for window in plan_windows(len(ids), encoder.identity.max_length, 1, 1):
        given = torch.tensor([[ids[place] for place in window.tokens]])
        with torch.no_grad():
            states = model(given, output_hidden_states=True).hidden_states
        parts.append(torch.stack([states[state][0] for state in STATES], 1)[window.kept])
    return torch.cat(parts).numpy()


def test_a_long_text_is_read_whole(windowed: Encoder, tiny_encoder: Path) -> None:
    inputs = [("my card", None), (LONG, None), ("the app was slow", None), (LONG + " again", None)]
    tokens = windowed.tokenize(inputs)
    assert tokens.lengths.tolist() == [4, 152, 6, 153] and not tokens.truncated.any()
    by_row = {
        int(row): part
        for rows, values in windowed.encode(tokens, STATES)
        for row, part in zip(rows, np.split(values, np.cumsum(tokens.lengths[rows])[:-1]), strict=True)
    }
    assert [len(by_row[row]) for row in range(4)] == [4, 152, 6, 153]
    np.testing.assert_allclose(by_row[1].astype(np.float32), naive(windowed, tiny_encoder, LONG), atol=4e-3)
    # What fits is read as ever.
    cut = load_encoder(tiny_encoder, precision="fp32")
    assert cut.tokenize(inputs).truncated.tolist() == [False, True, False, True]
    (_, same), *_ = cut.encode(cut.tokenize(inputs[:1]), STATES)
    assert (same == by_row[0]).all()


def test_a_windowed_store_is_a_space_of_its_own(windowed: Encoder, tiny_encoder: Path) -> None:
    cut = load_encoder(tiny_encoder, precision="fp32")
    assert cut.identity.fingerprint != windowed.identity.fingerprint
    assert replace(windowed.identity, long_text="truncate").fingerprint == cut.identity.fingerprint
    store = FeatureStore()
    inputs = [(LONG, None), ("my card", None)]
    _, first = stored_features(inputs, cut, store, Progress(), codec="fp16", states=STATES)
    features, second = stored_features(inputs, windowed, store, Progress(), codec="fp16", states=STATES)
    assert (first.misses, second.misses) == (2, 2)
    assert features.lengths.tolist() == [152, 4] and not features.truncated_rows.any()
    live = live_features(inputs, windowed, states=STATES)
    assert torch.equal(live.batch(torch.tensor([0]))[0], features.batch(torch.tensor([0]))[0])


def test_pairs_that_are_read_as_one_are_cut(windowed: Encoder) -> None:
    tokens = windowed.tokenize([(LONG, "my card")])
    assert tokens.lengths.tolist() == [32] and tokens.truncated.all()


def test_a_text_without_end_is_cut_all_the_same(windowed: Encoder) -> None:
    tokens = windowed.tokenize([("card " * 70_000, None)])
    assert tokens.lengths.tolist() == [65_536] and tokens.truncated.all()


def test_unknown_ways_are_refused(tiny_encoder: Path) -> None:
    with pytest.raises(EncoderError, match=r"^long_text must be one of 'truncate', 'window'\. Got 'all' instead"):
        load_encoder(tiny_encoder, long_text="all")  # type: ignore[arg-type]

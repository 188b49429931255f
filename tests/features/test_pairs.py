"""Pairs of texts that are encoded one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import STATES, build_tiny_encoder
from ytuning.cli import main
from ytuning.compare.methods import run_method, work_on
from ytuning.data.dataset import Dataset, TextInput
from ytuning.data.splits import target_of
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.estimator import YTuningClassifier
from ytuning.features.codecs import Float16Codec, Int8Codec
from ytuning.features.features import (
    BLOCK_BYTES,
    CacheUse,
    PairFeatures,
    TextFeatures,
    keep_inputs,
    live_features,
    live_inputs,
    stored_features,
    stored_inputs,
)
from ytuning.features.store import FeatureStore, StoredRows
from ytuning.heads.pairs import PAIR_MODES, PairMode
from ytuning.heads.pooled import PooledConfig
from ytuning.progress import Progress
from ytuning.tasks.choices import rank_layers
from ytuning.training import recipes
from ytuning.training.batches import shuffled_batches
from ytuning.training.recipes import Recipe, TrainingConfig

PAIRS = [
    ("my card", "the money is late"),
    ("the money is late", "my card"),
    ("a", "my card"),
    ("my card", "my card"),
    ("please help me " * 20, "a"),
]
TEXTS = list(dict.fromkeys(text for pair in PAIRS for text in pair))


def separate_live(inputs: Sequence[TextInput], encoder: Encoder, states: Sequence[int] = STATES) -> PairFeatures:
    features = live_inputs(inputs, encoder, states=states, pair_mode="separate")
    assert isinstance(features, PairFeatures)
    return features


def separate_stored(
    inputs: Sequence[TextInput], encoder: Encoder, store: FeatureStore, codec: str = "int8"
) -> tuple[PairFeatures, CacheUse]:
    features, use = stored_inputs(inputs, encoder, store, Progress(), states=STATES, pair_mode="separate", codec=codec)
    assert isinstance(features, PairFeatures)
    return features, use


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(scope="module")
def pairs(encoder: Encoder) -> PairFeatures:
    return separate_live(PAIRS, encoder)


def test_a_batch_holds_first_texts_then_second_ones(encoder: Encoder, pairs: PairFeatures) -> None:
    rows = torch.tensor([2, 4, 0])
    values, mask = pairs.batch(rows)
    assert values.shape[0] == mask.shape[0] == 6
    sides = [PAIRS[row][side] for side in (0, 1) for row in rows.tolist()]
    for text, value, there in zip(sides, values, mask, strict=True):
        alone, every = live_features([(text, None)], encoder, states=STATES).batch(torch.tensor([0]))
        assert every.all()
        torch.testing.assert_close(value[there], alone[0], atol=2e-3, rtol=2e-3)


def test_what_is_known_of_a_row_is_that_of_both_texts(encoder: Encoder, pairs: PairFeatures) -> None:
    single = {text: live_features([(text, None)], encoder, states=STATES) for text in TEXTS}
    assert len(pairs) == 5 and pairs.pair_mode == "separate" and pairs.texts.pair_mode is None
    assert pairs.lengths.tolist() == [max(int(single[text].lengths[0]) for text in pair) for pair in PAIRS]
    assert pairs.truncated_rows.tolist() == [False, False, False, False, True]
    rows = torch.tensor([0, 3])
    distinct = {text for row in rows.tolist() for text in PAIRS[row]}
    assert pairs.bytes_of(rows) == sum(single[text].bytes_of(torch.tensor([0])) for text in distinct)


def test_each_text_is_encoded_once_and_stored_like_any_other(encoder: Encoder, pairs: PairFeatures) -> None:
    store = FeatureStore()
    _, before = stored_features([(TEXTS[0], None)], encoder, store, Progress(), codec="fp16", states=STATES)
    features, use = separate_stored(PAIRS, encoder, store, codec="fp16")
    assert (before.misses, use.hits, use.misses) == (1, 1, len(TEXTS) - 1)
    rows = torch.arange(4)
    torch.testing.assert_close(features.batch(rows)[0], pairs.batch(rows)[0], atol=2e-3, rtol=2e-3)


def test_rows_in_order_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Eight first texts of one token each, stored backwards after their second ones; two pairs fill a block.
    start = np.concatenate((np.arange(15, 7, -1), np.arange(8)))
    codec, truncated = Float16Codec(1, BLOCK_BYTES // 8), np.zeros(16, bool)
    array = np.random.default_rng(0).integers(0, 99, (16, BLOCK_BYTES // 4), np.uint8)
    texts = TextFeatures(
        StoredRows([array], np.zeros(16, np.int64), start, np.ones(16, np.int64), truncated, codec), torch.float32
    )
    pairs = PairFeatures(texts, torch.arange(8), torch.arange(8, 16))
    rows = torch.tensor([5, 1, 7, 2])
    blocks = pairs.blocks(rows)
    assert [block.tolist() for block in blocks] == [[7, 5], [2, 1]]
    pairs.prefetch(blocks[0])
    monkeypatch.setattr("ytuning.training.batches.IN_MEMORY", 0)
    batches = shuffled_batches(pairs.lengths, rows, 2, seed=0, stored=pairs)
    # Three epochs.
    for _ in range(3):
        assert sorted(torch.cat([next(batches), next(batches)]).tolist()) == sorted(rows.tolist())
    pairs.release()


def test_a_view_of_pairs_and_what_is_kept_of_it(encoder: Encoder) -> None:
    features = separate_live(PAIRS, encoder, states=range(4))
    view = features.at_positions([2, 3])
    assert isinstance(view, PairFeatures) and view.layers == 2
    rows = torch.tensor([4, 1])
    assert torch.equal(view.batch(rows)[0], features.batch(rows)[0][:, :, 2:])
    store = FeatureStore()
    assert keep_inputs(PAIRS, view, encoder, store, Progress(), held=STATES, states=STATES) == len(TEXTS)
    kept, use = separate_stored(PAIRS, encoder, store)
    assert (use.hits, use.misses) == (len(TEXTS), 0)
    own, _ = separate_stored(PAIRS, encoder, FeatureStore(store.root / "own"))
    assert torch.equal(kept.batch(rows)[0], own.batch(rows)[0])


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of six layers."""
    return build_tiny_encoder(tmp_path_factory.mktemp("deep"), seed=0, layers=6)


@pytest.mark.usefixtures("short_choice")
@pytest.mark.parametrize("paired", [False, True])
def test_single_texts_and_pairs_share_their_default_hidden_states(
    paired: bool,
    deep: Path,
    toy_rows: tuple[list[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = TrainingConfig(fewest_steps=10, most_steps=10, label_steps=1)
    monkeypatch.setitem(recipes.PRESETS, "default", lambda: Recipe(PooledConfig(width=16), quick))
    texts, labels = (column[:60] for column in toy_rows)
    others = texts[::-1] if paired else None
    data = Dataset(texts, labels, text_pairs=others)

    model = YTuningClassifier(encoder=str(deep), seed=0)
    model.fit(list(zip(texts, others, strict=True)) if others else texts, labels)
    assert model.task_.states == (3, 5, 6)

    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    if others:
        rows = [{**row, "text_pair": other} for row, other in zip(rows, others, strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit, match="0"):
        main(
            ["train", str(tmp_path / "train.jsonl"), "--encoder", str(deep), "--out", str(tmp_path / "task"), "--quiet"]
        )
    assert json.loads((tmp_path / "task" / "task.json").read_text())["states"] == [3, 5, 6]

    work = work_on(data, str(deep))
    for method in ("ytuning", "logistic"):
        run_method(method, work, 0, tmp_path / method, Progress())
        assert {space.states for space in FeatureStore(tmp_path / method).spaces()} == {(3, 5, 6)}

    modes: tuple[PairMode | None, ...] = PAIR_MODES if paired else (None,)
    target = target_of(data, None, None)
    ranking = rank_layers(
        data, load_encoder(deep), recipes.preset("default"), modes=modes, seed=0, progress=Progress(), target=target
    )
    assert ranking.default == (3, 5, 6) and (3, 5, 6) in {choice.states for choice in ranking.ranked}


def test_tasks_that_read_some_of_the_default_states_share_the_stored_space(
    deep: Path, tmp_path: Path, encoded: list[int]
) -> None:
    encoder, store = load_encoder(deep, precision="fp32"), FeatureStore(tmp_path)
    inputs: list[TextInput] = [(text, None) for text in TEXTS]
    for states in ((6,), (3, 5, 6), (3, 5), (6,)):
        encoded.clear()
        features, use = stored_features(inputs, encoder, store, Progress(), states=states)
        is_first = use.hits == 0
        assert sum(encoded) == use.misses == (len(TEXTS) if is_first else 0)
        assert [space.states for space in store.spaces()] == [(3, 5, 6)]
        # The same numbers as a space of these states alone would have.
        codec = Int8Codec(len(states), encoder.identity.width)
        alone = live_features(inputs, encoder, states=states, codec=codec)
        for own, other in zip(features.batch(torch.arange(4)), alone.batch(torch.arange(4)), strict=True):
            assert torch.equal(own, other)
    for states, codec_name in (((2, 4), "int8"), ((6,), "compact")):
        assert stored_features(inputs, encoder, store, Progress(), states=states, codec=codec_name)[1].hits == 0
    assert {(space.states, space.codec_name) for space in store.spaces()} == {
        ((3, 5, 6), "int8"), ((2, 4), "int8"), ((6,), "compact"),
    }  # fmt: skip


def test_states_are_kept_only_if_all_that_the_store_wants_are_there(deep: Path, tmp_path: Path) -> None:
    encoder, store = load_encoder(deep, precision="fp32"), FeatureStore(tmp_path)
    inputs: list[TextInput] = [(text, None) for text in TEXTS]
    few = live_features(inputs, encoder, states=(5, 6))
    assert keep_inputs(inputs, few, encoder, store, Progress(), held=(5, 6), states=(6,)) == 0 and not store.spaces()
    more = live_features(inputs, encoder, states=(2, 3, 5, 6))
    assert keep_inputs(inputs, more, encoder, store, Progress(), held=(2, 3, 5, 6), states=(6,)) == len(TEXTS)
    assert stored_features(inputs, encoder, store, Progress(), states=(3,))[1].misses == 0

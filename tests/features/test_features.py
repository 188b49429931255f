"""Texts through the store: nothing is encoded twice, nothing finished is lost, and every value is the encoder's own."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import STATES
from tests.features.shard_files import keys_of, shard_of
from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Batches, Encoder, Finish, load_encoder
from ytuning.encoder.pretrained import Precision
from ytuning.encoder.tokens import TokenizedTexts
from ytuning.errors import StoreError
from ytuning.features.codecs import (
    CODECS,
    Float16Codec,
    Int8Codec,
    PcaInt8Codec,
    Selected,
    build_codec,
    row_bytes,
)
from ytuning.features.features import (
    CHUNK_TOKENS,
    TextFeatures,
    keep_inputs,
    live_features,
    live_inputs,
    ordered_batches,
    stored_features,
    stored_inputs,
)
from ytuning.features.keys import text_key
from ytuning.features.store import FeatureSpace, FeatureStore, StoredRows, WriteSizes
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress
from ytuning.system.files import ReadFile

SCRIPT = Path(__file__).with_name("encode_script.py")


class Recorder(Progress):
    """Keeps what is said, and the last step."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.last = (0, 0)

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        assert stage == "encode"
        self.last = (done, total)

    def say(self, message: str) -> None:
        self.said.append(message)


class WatchedEncoder(Encoder):
    """An encoder that remembers what it reads; the few short texts here make many batches on any number of cores.

    Attributes:
        read: token ids of every text.
        asked: texts that were cut into tokens.
    """

    def __init__(self, folder: Path, precision: Precision = "fp32") -> None:
        vars(self).update(vars(load_encoder(folder, precision=precision, device="cpu")))
        self.tokens_per_batch = 24
        self.read: list[tuple[int, ...]] = []
        self.asked = 0

    def tokenize(self, inputs: Sequence[TextInput]) -> TokenizedTexts:
        self.asked += len(inputs)
        return super().tokenize(inputs)

    def encode(
        self,
        tokens: TokenizedTexts,
        states: Sequence[int],
        finish: Finish | None = None,
        left_out: np.ndarray | None = None,
    ) -> Batches:
        for indices, features in super().encode(tokens, states, finish, left_out):
            self.read += [tuple(tokens.ids[slice(*tokens.offsets[row : row + 2])].tolist()) for row in indices]
            yield indices, features


class WatchedStore(FeatureStore):
    """A store whose spaces are of a class of the test's own."""

    def __init__(self, root: Path, space_class: type[FeatureSpace], sizes: WriteSizes | None = None) -> None:
        super().__init__(root, sizes)
        self.space_class = space_class

    def space(self, *key: Any) -> FeatureSpace:
        return self.space_class(super().space(*key).folder)


@pytest.fixture
def encoder(tiny_encoder: Path) -> WatchedEncoder:
    return WatchedEncoder(tiny_encoder)


@pytest.fixture
def inputs(toy_rows: tuple[list[str], list[str]]) -> list[TextInput]:
    texts = toy_rows[0]
    return [(text, None) for text in texts[:50]] + [(text, texts[row]) for row, text in enumerate(texts[50:60])]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "root")


def in_small_shards(store: FeatureStore, codec: str, tokens: int = 63, **sizes: int) -> FeatureStore:
    """The same store, which writes shards of so many tokens."""
    return FeatureStore(store.root, WriteSizes(shard_bytes=tokens * row_bytes(codec, 2, 32), **sizes))


def ids(encoder: Encoder, inputs: Sequence[TextInput]) -> list[tuple[int, ...]]:
    tokens = encoder.tokenize(inputs)
    return sorted(tuple(part.tolist()) for part in np.split(tokens.ids, tokens.offsets[1:-1]))


def values(features: TextFeatures) -> list[torch.Tensor]:
    """(T, L, D) of each row, each asked for alone, copied."""
    return [features.batch(torch.tensor([row]))[0][0].clone() for row in range(len(features))]


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def through(codec: str, encoder: Encoder, inputs: Sequence[TextInput], store: FeatureStore) -> list[torch.Tensor]:
    """(T, L, D) of each text: what the encoder gives, through the codec of its space, a text at a time."""
    space = store.space(encoder.identity.to_json(), STATES, codec)
    assert space.codec is not None
    live = live_features(inputs, encoder, states=STATES)
    decoded = []
    for row in range(len(inputs)):
        half = live.tokens(torch.tensor([row])).half()
        stored = space.codec.encode(half)
        decoded.append(space.codec.decode(stored, torch.float32).view(-1, 2, 32))
    return decoded


def shards(space: FeatureSpace) -> dict[str, int]:
    """Name and time of change of every file of a shard."""
    return {file.name: file.stat().st_mtime_ns for file in (space.folder / "shards").iterdir()}


# ------------------------------------------------------------------------------------------------- one pass


@pytest.mark.parametrize("codec", CODECS)
def test_a_second_task_makes_no_encoder_call(
    encoder: WatchedEncoder,
    inputs: list[TextInput],
    store: FeatureStore,
    codec: str,
) -> None:
    progress = Recorder()
    first, use = stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)
    assert sorted(encoder.read) == ids(encoder, inputs)
    assert (use.hits, use.misses) == (0, 60)
    assert (
        use.bytes
        == int(first.lengths.sum()) * row_bytes(codec, 2, 32)
        == store.space(encoder.identity.to_json(), STATES, codec).size
    )
    assert progress.last == (60, 60)
    assert progress.said == []
    assert same(values(first), through(codec, encoder, inputs, store))

    encoder.read, encoder.asked = [], 0
    second, use = stored_features(inputs[::-2], encoder, store, progress, codec=codec, states=STATES)
    assert (use.hits, use.misses, encoder.read, encoder.asked) == (30, 0, [], 0)
    assert same(values(second), values(first)[::-2])


@pytest.mark.parametrize("codec", CODECS)
def test_only_what_is_new_is_encoded(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, codec: str
) -> None:
    stored_features(inputs[:40], encoder, store, Progress(), codec=codec, states=STATES)
    encoder.read.clear()
    features, use = stored_features(inputs, encoder, store, Progress(), codec=codec, states=STATES)
    assert sorted(encoder.read) == ids(encoder, inputs[40:])
    assert (use.hits, use.misses) == (40, 20)
    assert same(values(features), through(codec, encoder, inputs, store))


def test_a_text_that_occurs_twice_is_encoded_once(encoder: WatchedEncoder, store: FeatureStore) -> None:
    twice: list[TextInput] = [("card", None), ("lost card", None), ("card", None), ("card", "lost"), ("card", "lost")]
    features, use = stored_features(twice, encoder, store, Progress(), codec="fp16", states=STATES)
    assert sorted(encoder.read) == ids(encoder, [twice[0], twice[1], twice[3]])
    assert (use.hits, use.misses) == (0, 3)
    assert use.bytes == store.space(encoder.identity.to_json(), STATES, "fp16").size
    assert same(values(features), values(live_features(twice, encoder, states=STATES)))


def test_live_features_are_the_stored_ones(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore
) -> None:
    inputs = [*inputs, ("card " * 40, None)]
    live = live_features(inputs, encoder, states=STATES)
    stored, _ = stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)
    assert torch.equal(live.lengths, stored.lengths)
    assert live.truncated_rows.tolist() == stored.truncated_rows.tolist() == [False] * 60 + [True]
    assert (live.layers, live.width) == (stored.layers, stored.width) == (2, 32)
    for rows in ordered_batches(live.lengths, 100):
        assert all(torch.equal(*pair) for pair in zip(live.batch(rows), stored.batch(rows), strict=True))


def test_other_hidden_states_have_a_space_of_their_own(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore
) -> None:
    stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)
    features, use = stored_features(inputs, encoder, store, Progress(), codec="fp16", states=[1])
    assert use.misses == 60
    assert features.layers == 1
    assert sorted(space.states for space in store.spaces()) == [(1,), (2, 3)]
    assert {space.identity["fingerprint"] for space in store.spaces()} == {encoder.identity.fingerprint}


@pytest.mark.parametrize("codec", CODECS)
def test_windows_and_shards_of_any_size_give_the_same(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, codec: str
) -> None:
    store = in_small_shards(store, codec, 16, window_texts=7, fit_tokens=100)
    progress = Recorder()
    features, _ = stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)
    assert store.space(encoder.identity.to_json(), STATES, codec).shards > 9
    assert progress.last == (60, 60)
    assert same(values(features), through(codec, encoder, inputs, store))


def test_shards_begin_small_and_double(encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore) -> None:
    token = row_bytes("fp16", 2, 32)
    written: list[int] = []

    class Recorded(FeatureSpace):
        def write(self, keys: Any, lengths: Any, truncated: Any, features: np.ndarray) -> None:
            written.append(len(features))
            super().write(keys, lengths, truncated, features)

    sizes = WriteSizes(shard_bytes=150 * token, first_shard_bytes=40 * token, window_texts=45)
    store = WatchedStore(store.root, Recorded, sizes)
    features, _ = stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)
    tokens = int(encoder.tokenize(inputs).lengths.sum())
    assert sum(written) == tokens
    # Batches have up to 24 tokens; 45 texts are a window, which ends with a shard.
    assert [16 < written[0] <= 40 < written[1] <= 80 < written[2] <= 150, max(written) <= 150] == [True, True]
    assert same(values(features), through("fp16", encoder, inputs, store))


# ------------------------------------------------------------------------------------------------- batches


def test_batches_keep_the_encoders_precision(tiny_encoder: Path, inputs: list[TextInput]) -> None:
    features = live_features(inputs, load_encoder(tiny_encoder, precision="bf16"), states=STATES)
    values, _ = features.batch(torch.arange(len(inputs)))
    stored = features.tokens(torch.arange(len(inputs))).flatten()
    assert values.dtype == torch.bfloat16
    assert set(values.float().flatten().tolist()) == set(stored.bfloat16().float().tolist())
    normal = stored.abs() > 1e-4  # smaller ones lost digits when they became float16
    assert torch.equal(stored[normal].bfloat16().float(), stored[normal])


def test_a_batch_is_what_a_loop_gathers(encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore) -> None:
    store = in_small_shards(store, "fp16", 31)
    features, _ = stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)
    assert store.spaces()[0].shards > 3
    tokens = encoder.tokenize(inputs)
    naive: dict[int, np.ndarray] = {}
    for indices, part in encoder.encode(tokens, STATES):
        naive.update(zip(indices.tolist(), np.split(part, np.cumsum(tokens.lengths[indices])[:-1]), strict=True))

    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 9, 60):
        rows = torch.randint(len(inputs), (size,), generator=generator)
        batch, mask = features.batch(rows)
        longest = max(len(naive[int(row)]) for row in rows)
        assert batch.shape == (size, longest, 2, 32)
        assert batch.dtype == torch.float32
        assert mask.shape == (size, longest)
        for position, row in enumerate(rows.tolist()):
            for token in range(longest):
                expected = naive[row][min(token, len(naive[row]) - 1)]
                assert np.array_equal(batch[position, token].numpy(), expected.astype(np.float32))
                assert bool(mask[position, token]) == (token < len(naive[row]))
        features.release()  # pages come back by themselves


def test_bfloat16_batches_have_few_lengths() -> None:
    array, start, length = np.zeros(3, np.int64), np.array([0, 1, 6]), np.array([1, 5, 9])
    rows = StoredRows([np.zeros((15, 4), np.uint8)], array, start, length, np.zeros(3, bool), Float16Codec(1, 2))
    features = TextFeatures(rows, torch.bfloat16)
    assert [features.batch(torch.tensor([row]))[0].shape[1] for row in range(3)] == [4, 8, 12]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_is_what_a_loop_decodes(
    tiny_encoder: Path,
    inputs: list[TextInput],
    store: FeatureStore,
    codec: str,
    precision: Precision,
) -> None:
    store, encoder = in_small_shards(store, codec), WatchedEncoder(tiny_encoder, precision)
    features, _ = stored_features(inputs, encoder, store, Progress(), codec=codec, states=STATES)
    space = store.space(encoder.identity.to_json(), STATES, codec)
    stored = space.rows([text_key(*pair) for pair in inputs])
    assert stored is not None and len(stored.arrays) > 3
    rows = torch.arange(0, 60, 3)
    batch, mask = features.batch(rows)
    for values, there, row in zip(batch, mask, rows.tolist(), strict=True):
        start = stored.start[row]
        for token in range(int(there.sum())):
            data = stored.arrays[stored.array[row]][start + token]
            if codec == "fp16":
                expected = data.view(np.float16).astype(float)
            elif codec == "int8":  # two scales, then 32 numbers for each
                expected = (
                    data[:4].view(np.float16)[:, None].astype(float) * data[4:].view(np.int8).reshape(2, 32)
                ).ravel()
            else:
                assert isinstance(space.codec, PcaInt8Codec)
                numbers = float(data[:2].view(np.float16)[0]) * data[2:].view(np.int8).astype(float)
                expected = (numbers * space.codec.weights) @ space.codec.components.astype(float)
            exact = torch.from_numpy(expected).to(features.dtype).view(2, 32)
            tolerance = 0 if codec != "compact" else 1e-5 if precision == "fp32" else 0.1
            assert torch.allclose(values[token], exact, rtol=0, atol=tolerance)


def test_a_basis_stands_for_texts_of_every_length_and_warns_where_it_is_fitted_on_few(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore
) -> None:
    store, progress = in_small_shards(store, "compact", fit_tokens=250), Recorder()
    features, _ = stored_features(inputs, encoder, store, progress, codec="compact", states=STATES)
    sample = slice(None, None, round(int(features.lengths.sum()) / 250))
    fitted = int(features.lengths[sample].sum())
    assert 200 < fitted < 320
    live = live_features(inputs[sample], encoder, states=STATES)
    basis = PcaInt8Codec.fitted(live.tokens(torch.arange(len(live))).half().numpy())
    assert isinstance(features.codec, PcaInt8Codec)
    np.testing.assert_allclose(features.codec.weights, basis.weights, rtol=1e-4)
    name = store.space(encoder.identity.to_json(), STATES, "compact").folder.name
    assert progress.said == [
        f"the store's compact basis is fitted on {fitted} tokens only and may fit other texts badly: before "
        f"you add many, begin anew with ytuning cache remove {name}"
    ]
    stored_features([*inputs, ("another card", None)], encoder, store, progress, codec="compact", states=STATES)
    assert len(progress.said) == 1


@pytest.mark.parametrize("codec", CODECS)
def test_features_are_written_in_another_codec_without_the_encoder(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, codec: str
) -> None:
    store = in_small_shards(store, "fp16")
    inputs = [*inputs, ("card " * 40, None), inputs[4]]
    live, _ = stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)
    twin = FeatureStore(store.root / "twin")
    encoder.read.clear()
    assert keep_inputs(inputs[:30], live, encoder, twin, Progress(), codec=codec, held=STATES, states=STATES) == 30
    assert keep_inputs(inputs, live, encoder, twin, Progress(), codec=codec, held=STATES, states=STATES) == 31
    assert keep_inputs(inputs, live, encoder, twin, Progress(), codec=codec, held=STATES, states=STATES) == 0
    features, use = stored_features(inputs, encoder, twin, Progress(), codec=codec, states=STATES)
    assert (use.hits, use.misses, encoder.read) == (61, 0, [])
    assert features.truncated_rows.tolist() == [False] * 60 + [True, False]
    assert same(values(features), through(codec, encoder, inputs, twin))


def test_the_default_codec_takes_about_half_the_bytes(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore
) -> None:
    features, use = stored_features(inputs, encoder, store, Progress(), states=STATES)
    assert [space.codec_name for space in store.spaces()] == ["int8"]
    assert isinstance(features.codec, Int8Codec)
    assert use.bytes == int(features.lengths.sum()) * 2 * (32 + 2)


@given(st.lists(st.integers(1, 60), max_size=100), st.integers(1, 200))
def test_ordered_batches_part_the_rows_within_the_bound(lengths: list[int], tokens: int) -> None:
    tensor = torch.tensor(lengths, dtype=torch.int64)
    batches = list(ordered_batches(tensor, tokens))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    assert [lengths[row] for batch in batches for row in batch.tolist()] == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * int(tensor[batch].max()) <= tokens


# ------------------------------------------------------------------------------------------------- damage


def change_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("suffix", "harm", "reason"),
    [
        (".features", change_byte, "checksum of the features differs"),
        (".features", halve, "checksum of the features differs"),
        (".features", Path.unlink, "features file missing"),
        (".keys", change_byte, "checksum of the keys differs"),
        (".keys", halve, "checksum of the keys differs"),
        (".keys", Path.unlink, "keys file missing"),
        (".json", change_byte, "unreadable manifest"),
        (".json", lambda file: file.write_text('{"name": "foreign"}'), "unreadable manifest"),
        (".json", lambda file: file.write_text('"foreign"'), "unreadable manifest"),
    ],
)
def test_a_damaged_shard_is_named_set_aside_and_computed_again(
    encoder: WatchedEncoder,
    inputs: list[TextInput],
    store: FeatureStore,
    suffix: str,
    harm: Callable[[Path], None],
    reason: str,
    codec: str,
) -> None:
    store = in_small_shards(store, codec)
    before = values(stored_features(inputs, encoder, store, Progress(), codec=codec, states=STATES)[0])
    space = store.space(encoder.identity.to_json(), STATES, codec)
    name = shard_of(space, *inputs[3])
    keys = keys_of(space.folder / "shards" / f"{name}.keys")
    lost = [pair for pair in inputs if text_key(*pair) in keys]
    assert 1 < len(lost) < len(inputs)
    untouched = {file: when for file, when in shards(space).items() if not file.startswith(name)}
    encoder.read.clear()
    harm(space.folder / "shards" / (name + suffix))

    progress = Recorder()
    features, use = stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)
    assert len(progress.said) == 1
    assert progress.said[0].startswith(f"shard {name} is damaged ({reason}")
    assert str(space.folder / "damaged") in progress.said[0]
    assert {file.name.split(".")[0] for file in (space.folder / "damaged").iterdir()} == {name}
    assert sorted(encoder.read) == ids(encoder, lost)
    assert (use.hits, use.misses) == (len(inputs) - len(lost), len(lost))
    assert same(values(features), before)
    assert untouched.items() <= shards(space).items()

    encoder.read.clear()
    assert stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)[1].misses == 0
    assert len(progress.said) == 1
    assert encoder.read == []


def test_a_disk_that_never_reads_back_is_reported(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore
) -> None:
    class Unreliable(FeatureSpace):
        def rows(self, keys: Sequence[bytes]) -> None:
            return None

    store = WatchedStore(store.root, Unreliable)
    with pytest.raises(StoreError, match=r"does not read back intact\. Check the disk or set YTUNING_CACHE"):
        stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)


# ------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "call", [9, 10, 11], ids=["features", "keys", "manifest"]
)  # of the third shard; a shard syncs four times
def test_a_full_disk_keeps_what_was_stored_and_the_run_resumes(
    encoder: WatchedEncoder,
    inputs: list[TextInput],
    store: FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    codec: str,
) -> None:
    store = in_small_shards(store, codec, fit_tokens=100)
    space = store.space(encoder.identity.to_json(), STATES, codec)
    calls = iter(range(1, 1000))

    def fsync(_: int) -> None:
        if next(calls) >= call + 2 * (codec == "compact"):  # its basis comes first
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match="the disk is full"):
            stored_features(inputs, encoder, store, Progress(), codec=codec, states=STATES)
    assert not list(space.folder.rglob("*.partial"))
    space.refresh()
    assert space.shards == 2
    missing = [pair for pair in inputs if text_key(*pair) not in space]
    kept = {
        file: when
        for file, when in shards(space).items()
        if (space.folder / "shards" / file).with_suffix(".json").exists()
    }
    encoder.read.clear()
    features, use = stored_features(inputs, encoder, store, Progress(), codec=codec, states=STATES)
    assert sorted(encoder.read) == ids(encoder, missing)
    assert use.hits == len(inputs) - len(missing) > 0
    assert kept.items() <= shards(space).items()
    assert same(values(features), through(codec, encoder, inputs, store))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"cannot mount a small file system: {error}")
    if made.returncode:
        pytest.skip(f"cannot mount a small file system: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_small_disk_fills_up_and_is_resumed_after_it_has_grown(
    encoder: WatchedEncoder,
    inputs: list[TextInput],
    small_disk: Path,
) -> None:
    store = in_small_shards(FeatureStore(small_disk), "fp16", 62)
    with pytest.raises(StoreError, match="the disk is full"):
        stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)
    assert not list(small_disk.rglob("*.partial"))
    space = store.space(encoder.identity.to_json(), STATES, "fp16")
    assert space.damages == []
    missing = [pair for pair in inputs if text_key(*pair) not in space]
    assert 0 < len(missing) < len(inputs)

    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    encoder.read.clear()
    features, _ = stored_features(inputs, encoder, store, Progress(), codec="fp16", states=STATES)
    assert sorted(encoder.read) == ids(encoder, missing)
    assert same(values(features), values(live_features(inputs, encoder, states=STATES)))

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match=r"cannot use the feature store .*Read-only file system"):
        stored_features([*inputs, ("something new", None)], encoder, store, Progress(), codec="fp16", states=STATES)


def test_ctrl_c_keeps_finished_batches(encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore) -> None:
    class Impatient(Recorder):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            super().step(stage, done, total, note)
            if done > 20:
                raise KeyboardInterrupt

    progress = Impatient()
    with pytest.raises(KeyboardInterrupt):
        stored_features(inputs, encoder, store, progress, codec="fp16", states=STATES)
    space = store.space(encoder.identity.to_json(), STATES, "fp16")
    assert 20 < len(space) == progress.last[0] < 60
    missing = [pair for pair in inputs if text_key(*pair) not in space]
    encoder.read.clear()
    features, _ = stored_features(inputs, encoder, store, Recorder(), codec="fp16", states=STATES)
    assert sorted(encoder.read) == ids(encoder, missing)
    assert same(values(features), values(live_features(inputs, encoder, states=STATES)))


def test_a_file_in_the_place_of_the_store_is_explained(
    encoder: WatchedEncoder, inputs: list[TextInput], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Set YTUNING_CACHE to a folder you can write"):
        stored_features(inputs, encoder, FeatureStore(tmp_path / "file"), Progress(), codec="fp16", states=STATES)
    assert encoder.read == []


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_view_of_some_states_is_those_of_all(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, codec: str, dtype: torch.dtype
) -> None:
    features, _ = stored_features(inputs, encoder, store, Progress(), codec=codec, states=range(4))
    features.dtype = dtype
    rows = torch.tensor([3, 41, 7])
    view = features.at_positions([1, 3])
    assert (view.layers, view.width, len(view)) == (2, features.width, len(features))
    whole, seen = features.batch(rows), view.batch(rows)
    assert torch.equal(seen[0], whole[0][:, :, [1, 3]]) and torch.equal(seen[1], whole[1])
    assert torch.equal(view.tokens(rows), features.tokens(rows)[:, [1, 3]])
    assert torch.equal(view.at_positions([1]).batch(rows)[0], whole[0][:, :, [3]])
    assert features.at_positions(range(4)) is features
    assert features.batch(rows)[0].shape[2] == 4  # the view is another object


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_view_is_what_is_stored_of_those_states_and_can_be_stored_as_it(
    encoder: WatchedEncoder, inputs: list[TextInput], tmp_path: Path, codec: str
) -> None:
    every, _ = stored_features(
        inputs, encoder, FeatureStore(tmp_path / "all"), Progress(), codec=codec, states=range(4)
    )
    view = every.at_positions([2, 3])
    own, _ = stored_features(inputs, encoder, FeatureStore(tmp_path / "own"), Progress(), codec=codec, states=STATES)
    rows = torch.arange(len(inputs))
    assert torch.equal(view.tokens(rows), own.tokens(rows))
    copied = FeatureStore(tmp_path / "copied")
    assert keep_inputs(inputs, view, encoder, copied, Progress(), codec=codec, held=STATES, states=STATES) == len(
        inputs
    )
    kept, use = stored_features(inputs, encoder, copied, Progress(), codec=codec, states=STATES)
    assert (use.hits, use.misses) == (len(inputs), 0)
    assert torch.equal(kept.tokens(rows), own.tokens(rows))


@pytest.mark.parametrize("positions", [[], [2, 1], [1, 1], [-1], [4]])
def test_a_view_needs_positions_that_there_are(encoder: WatchedEncoder, positions: list[int]) -> None:
    features = live_features([("my card", None)], encoder, states=range(4))
    with pytest.raises(ValueError, match=r"positions must differ, rise and be from 0 to 3\. Got \["):
        features.at_positions(positions)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("mode", [None, "separate"])
def test_live_features_through_a_codec_are_the_stored_ones(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, codec: str, mode: PairMode | None
) -> None:
    rows = [(text, other) for (text, _), (other, _) in zip(inputs, inputs[::-1], strict=True)] if mode else inputs
    stored, _ = stored_inputs(rows, encoder, store, Progress(), states=STATES, pair_mode=mode, codec=codec)
    assert not isinstance(stored.codec, Selected)
    direct = live_inputs(rows, encoder, states=STATES, pair_mode=mode, codec=stored.codec)
    every = live_inputs(rows, encoder, states=range(4), pair_mode=mode)
    afterwards = every.at_positions([2, 3]).recoded(stored.codec)
    batch = torch.tensor([0, 59, 17, 3])
    for live in (direct, afterwards):
        assert type(live) is type(stored) and live.codec is stored.codec
        assert all(torch.equal(*pair) for pair in zip(live.batch(batch), stored.batch(batch), strict=True))
    assert (direct.truncated_rows == stored.truncated_rows).all()


def test_compact_features_keep_the_basis_that_is_asked_for(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, tmp_path: Path
) -> None:
    first, _ = stored_features(inputs, encoder, store, Progress(), states=STATES, codec="compact")
    assert isinstance(first.codec, PcaInt8Codec)
    # An empty space takes the basis over, whatever its first texts are.
    fresh, few = FeatureStore(tmp_path / "fresh"), inputs[40:]
    taken, use = stored_features(few, encoder, fresh, Progress(), states=STATES, codec=first.codec)
    assert first.codec.has_basis_of(taken.codec) and use.misses == 20
    # A space with another basis keeps it, and nothing is added to it.
    other, recorder = FeatureStore(tmp_path / "other"), Recorder()
    stored_features(inputs[:30], encoder, other, Progress(), states=STATES, codec="compact")
    live, use = stored_features(few, encoder, other, recorder, states=STATES, codec=first.codec)
    assert (use.hits, use.misses, len(other.spaces()[0])) == (0, 20, 30)
    assert recorder.said == [
        "the store's compact features have another basis than the task's, so these texts are read again and not stored"
    ]
    rows = torch.arange(20)
    assert torch.equal(live.tokens(rows), taken.tokens(rows))
    assert torch.equal(live.tokens(rows), first.tokens(rows + 40))


def test_padded_features_are_nearly_those_of_equal_lengths(tiny_encoder: Path) -> None:
    """Of single texts, joint pairs and windows, in the order of the inputs."""
    words = ["card", "my card", "refund my money", "a b c d e f g h i j", "password " * 90, "login"]
    inputs: list[tuple[str, str | None]] = [(text, None) for text in words]
    for options, rows in (
        ({}, inputs),
        ({"long_text": "window"}, inputs),
        ({}, [(text, "your money please") for text in words]),
    ):
        encoder = load_encoder(tiny_encoder, precision="fp32", **options)  # type: ignore[arg-type]
        exact = live_features(rows, encoder, states=STATES)
        padded = live_features(rows, encoder, states=STATES, padded=True)
        assert padded.lengths.tolist() == exact.lengths.tolist()
        assert padded.truncated_rows.tolist() == exact.truncated_rows.tolist()
        for row in range(len(rows)):
            alone = [features.tokens(torch.tensor([row])) for features in (exact, padded)]
            torch.testing.assert_close(alone[1], alone[0], atol=4e-3, rtol=4e-3)
        values, mask = padded.batch(torch.arange(len(rows)))
        expected, _ = exact.batch(torch.arange(len(rows)))
        torch.testing.assert_close(values[mask], expected[mask], atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("order", ["as stored", "shuffled"])
def test_features_in_a_devices_memory_are_the_stored_ones(codec: str, order: str) -> None:
    """As stored, long runs are copied from where they lie; shuffled rows are gathered, in more than one chunk."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2, 2 * CHUNK_TOKENS, 1, 4)).astype(np.float16)
    made = build_codec(codec, 1, 4) or PcaInt8Codec.fitted(values[0])
    arrays = [made.encode(torch.from_numpy(part)).numpy() for part in values]
    start = np.concatenate([np.arange(0, 2 * CHUNK_TOKENS, 256)] * 2)
    array, lengths = np.repeat([0, 1], len(start) // 2), np.full(len(start), 256)
    features = TextFeatures(StoredRows(arrays, array, start, lengths, np.zeros(len(start), bool), made), torch.float32)
    rows = torch.arange(5, len(start) - 5)
    if order == "shuffled":
        rows = rows[torch.from_numpy(generator.permutation(len(rows)))][: 3 * len(rows) // 4]
    resident = features.resident(rows, torch.device("cpu"))
    assert resident.is_resident and not features.is_resident
    for batch in rows.split(100):
        assert all(torch.equal(*pair) for pair in zip(resident.batch(batch), features.batch(batch), strict=True))


@pytest.mark.parametrize("shortest", [1, 6])
@pytest.mark.skipif(not ReadFile.reads_into, reason="this system cannot read into memory that is given")
def test_rows_are_read_from_files_and_very_short_ones_from_the_maps(shortest: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    codec, rows = build_codec("int8", 2, 8), 60
    assert codec is not None
    lengths = generator.integers(shortest, shortest + (9 if shortest > 1 else 3), rows)
    array = generator.integers(0, 3, rows)
    start, sizes = np.zeros(rows, np.int64), np.zeros(3, int)
    for row in range(rows):
        start[row] = sizes[array[row]]
        sizes[array[row]] += lengths[row]
    arrays = [codec.encode(torch.randn(size, 2, 8)).numpy() for size in sizes]
    for number, part in enumerate(arrays):
        (tmp_path / str(number)).write_bytes(part.tobytes())
    files = [ReadFile(tmp_path / str(number)) for number in range(3)]
    where = array, start, lengths, np.zeros(rows, bool), codec
    # What is not looked at holds nothing.
    if shortest == 1:
        for number in range(3):
            (tmp_path / str(number)).write_bytes(b"")
    nothing = [np.zeros_like(part) for part in arrays]
    read = TextFeatures(StoredRows(arrays if shortest == 1 else nothing, *where, files=files), torch.float32)
    mapped = TextFeatures(StoredRows(arrays, *where), torch.float32)
    order = torch.from_numpy(generator.permutation(rows))
    for batch in (order, order[:1], torch.tensor([3, 3, 5])):
        assert all(torch.equal(*pair) for pair in zip(read.batch(batch), mapped.batch(batch), strict=True))
        assert torch.equal(read.tokens(batch), mapped.tokens(batch))


@pytest.mark.skipif(not ReadFile.reads_into, reason="this system cannot read into memory that is given")
def test_a_file_that_has_become_shorter_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    file = ReadFile(tmp_path / "file")
    target = bytearray(3)
    file.read_into(memoryview(target), 2)
    assert target == b"cde"
    with pytest.raises(StoreError, match=r"file is shorter than it was\. Run ytuning cache verify"):
        file.read_into(memoryview(target), 4)


def test_files_are_closed_with_the_features(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    file = ReadFile(tmp_path / "file")
    descriptor = file.descriptor
    assert os.fstat(descriptor).st_size == 6
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)

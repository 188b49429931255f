"""The feature store: what is written comes back, what is damaged is found, and what goes wrong is explained."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ytuning.errors import InputError, StoreError
from ytuning.features.codecs import CODECS, PcaInt8Codec
from ytuning.features.features import TextFeatures
from ytuning.features.store import FeatureSpace, FeatureStore, text_key

NEEDS_FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device without any room")


def identity(fingerprint: str = "f" * 32) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint, "width": 3, "name": "tiny", "precision": "fp32", "max_length": 9,
    }  # fmt: skip


def normal(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tokens, 2, 3)).astype(np.float16)


def write(space: FeatureSpace, texts: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Write one shard of random features; ``texts`` maps a text to its token count. Returns each text's bytes."""
    lengths = np.array(list(texts.values()), np.int64)
    if space.codec is None:
        space.establish(PcaInt8Codec.fitted(normal(20, seed)))
    assert space.codec is not None
    rows = space.codec.encode(torch.from_numpy(normal(lengths.sum(), seed))).numpy()
    space.write([text_key(text) for text in texts], lengths, lengths % 2 == 0, rows)
    return dict(zip(texts, np.split(rows, np.cumsum(lengths)[:-1]), strict=True))


def read(space: FeatureSpace, texts: list[str]) -> list[np.ndarray]:
    """(T, row bytes) of each text."""
    rows = space.rows([text_key(text) for text in texts])
    assert rows is not None
    places = zip(rows.array, rows.start, rows.length, strict=True)
    return [np.array(rows.arrays[array][start : start + length]) for array, start, length in places]


def shard_of(space: FeatureSpace, text: str) -> str:
    """Name of the shard that holds a text."""
    key = text_key(text).hex()
    (manifest,) = (
        file for file in (space.folder / "shards").glob("*.json") if key in json.loads(file.read_text())["keys"]
    )
    return manifest.stem


def fill_up(file: Path) -> None:
    """Make a file of the store full before it is written: its temporary name leads to a device without any room."""
    file.with_name(f"{file.name}.{os.getpid()}.partial").symlink_to("/dev/full")


def files(space: FeatureSpace, pattern: str = "*") -> list[str]:
    return sorted(file.name for file in (space.folder / "shards").glob(pattern))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "root")


# ------------------------------------------------------------------------------------------------- keys


def test_texts_and_pairs_have_keys_of_their_own() -> None:
    pairs = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc", None),
        ("abc", ""),
        ("", "abc"),
        ("", None),
        ("3:abc", None),
        ("a+bc", None),
    ]
    assert len({text_key(*pair) for pair in pairs}) == len(pairs)
    assert text_key("\u00e9") == text_key("\u00e9", None) != text_key("e\u0301")
    assert len(text_key("a")) == 16


# Digits, the separators, and few letters, so that two different pairs often have the same characters in a row.
scraps = st.text("1:+ab", max_size=5)


@given(*[st.tuples(scraps, st.none() | scraps)] * 2)
def test_equal_keys_mean_equal_texts(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    assert (text_key(*one) == text_key(*other)) == (one == other)


# ------------------------------------------------------------------------------------------------- round trip


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(CODECS),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4),
    st.data(),
)
def test_what_is_written_comes_back_through_reopening(codec: str, shards: list[list[int]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root, mock.patch.object(os, "fsync"):  # hundreds of them take long
        space = FeatureStore(root).space(identity(), (1, 2), codec)
        written: dict[str, np.ndarray] = {}
        for shard, lengths in enumerate(shards):
            written |= write(space, {f"{shard}.{row}": length for row, length in enumerate(lengths)}, shard)
        texts = data.draw(st.lists(st.sampled_from(sorted(written)), max_size=12))
        for opened in (space, FeatureStore(root).space(identity(), (1, 2), codec), *FeatureStore(root).spaces()):
            assert opened.codec_name == codec
            assert len(opened) == len(written)
            assert opened.shards == len(shards)
            assert opened.tokens == sum(map(sum, shards))
            assert opened.size == sum(array.nbytes for array in written.values())
            assert opened.size == sum(file.stat().st_size for file in Path(root).rglob("*.features"))
            for given_back, text in zip(read(opened, texts), texts, strict=True):
                assert np.array_equal(given_back, written[text])
            rows = opened.rows([text_key(text) for text in texts])
            assert rows is not None
            assert rows.truncated.tolist() == [len(written[text]) % 2 == 0 for text in texts]
            assert opened.verify() == []


def test_a_space_knows_what_it_holds(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2})
    assert text_key("a") in space
    assert text_key("b") not in space
    assert space.rows([text_key("a"), text_key("b")]) is None


def test_features_that_do_not_fit_are_refused(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    for features in (np.zeros((2, 12), np.uint8), np.zeros((3, 12), np.float16), np.zeros((3, 8), np.uint8)):
        with pytest.raises(ValueError, match="do not fit 3 x 12 bytes"):
            space.write([text_key("a")], np.array([3]), np.array([False]), features)
    assert files(space) == []


def test_an_open_space_takes_in_and_drops_what_others_did(store: FeatureStore) -> None:
    ours, theirs = store.space(identity(), (1, 2), "fp16"), store.space(identity(), (1, 2), "fp16")
    written = write(theirs, {"a": 2})
    assert len(ours) == 0
    ours.refresh()
    assert np.array_equal(read(ours, ["a"])[0], written["a"])
    for file in (theirs.folder / "shards").iterdir():
        file.unlink()
    ours.refresh()
    assert (len(ours), ours.shards) == (0, 0)


def test_the_root_is_the_named_folder_or_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YTUNING_CACHE", str(tmp_path))
    assert FeatureStore().root == tmp_path
    monkeypatch.delenv("YTUNING_CACHE")
    assert FeatureStore().root.name == "ytuning"
    assert FeatureStore(tmp_path / "x").root == tmp_path / "x"


# ------------------------------------------------------------------------------------------------- damage


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip, "checksum differs"),
        (lambda file: os.truncate(file, 7), "checksum differs"),
        (lambda file: os.truncate(file, 0), "checksum differs"),
        (lambda file: file.unlink(), "features file missing"),
    ],
    ids=["flipped", "truncated", "emptied", "missing"],
)
def test_verify_sets_a_damaged_shard_aside(store: FeatureStore, harm: Callable[[Path], None], reason: str) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2, "b": 3})
    written = write(space, {"c": 4}, seed=1)
    name = shard_of(space, "a")
    harm(space.folder / "shards" / f"{name}.features")
    assert store.space(identity(), (1, 2), "fp16").rows([text_key("a")]) is None  # a reader checks what it uses
    space = store.space(identity(), (1, 2), "fp16")
    assert text_key("a") not in space
    assert np.array_equal(read(space, ["c"])[0], written["c"])
    assert all(name not in file for file in files(space))
    aside = sorted(file.name for file in (space.folder / "damaged").iterdir())
    assert [file.split(".")[0] for file in aside] == [name] * len(aside)
    assert any(file.endswith(".json") for file in aside)
    assert any(file.endswith(".features") for file in aside) == (reason != "features file missing")


def test_a_damage_says_which_shard_why_and_where(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2})
    name = shard_of(space, "a")
    flip(space.folder / "shards" / f"{name}.features")
    damages = space.verify()
    assert [str(damage) for damage in damages] == [
        f"shard {name} is damaged (checksum differs); set aside in {space.folder / 'damaged'}, "
        "its texts are computed again"
    ]
    assert damages == space.damages
    assert space.verify() == []


def test_a_shard_found_damaged_is_checked_again_when_another_process_rewrites_it(store: FeatureStore) -> None:
    space, other = store.space(identity(), (1, 2), "fp16"), store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2})
    flip(next((space.folder / "shards").glob("*.features")))
    assert len(space.verify()) == 1
    write(other, {"a": 2})  # the same name
    flip(next((space.folder / "shards").glob("*.features")))
    space.refresh()
    assert text_key("a") in space
    assert space.rows([text_key("a")]) is None


def with_check(content: dict[str, Any]) -> str:
    return json.dumps({**content, "check": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"null", b"3", b'"text"', b"[1]", b"{}", b'{"check": 1}',
        b'{"name": "package", "version": 1}',
        with_check({"some": "other"}).encode(),
        with_check({"sha256": "", "keys": ["zz"], "lengths": [1], "truncated": []}).encode(),
        with_check({"sha256": "", "keys": ["00"], "lengths": [1], "truncated": [5]}).encode(),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_one_is_set_aside(store: FeatureStore, content: bytes) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    written = write(space, {"a": 2})
    write(space, {"b": 3}, seed=1)
    name = shard_of(space, "b")
    (space.folder / "shards" / f"{name}.json").write_bytes(content)
    space = store.space(identity(), (1, 2), "fp16")
    assert [(damage.shard, damage.reason.split(":")[0]) for damage in space.damages] == [(name, "unreadable manifest")]
    assert len(space) == 1
    assert np.array_equal(read(space, ["a"])[0], written["a"])
    assert len(list((space.folder / "damaged").iterdir())) == 2
    assert store.space(identity(), (1, 2), "fp16").damages == []


def test_a_changed_manifest_fails_its_own_check(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2, "b": 2})
    manifest = next((space.folder / "shards").glob("*.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "keys": content["keys"][::-1]}))
    assert len(store.space(identity(), (1, 2), "fp16")) == 0


# ------------------------------------------------------------------------------------------------- codecs


def test_each_encoder_set_of_states_and_codec_has_a_space_of_its_own(store: FeatureStore) -> None:
    keys: list[tuple[str, tuple[int, ...], str]] = [("f", (1, 2), codec) for codec in CODECS]
    keys += [("f", (1, 3), "fp16"), ("f", (2,), "fp16"), ("e", (1, 2), "fp16")]
    spaces = [store.space(identity(name), states, codec) for name, states, codec in keys]
    assert len({space.folder for space in spaces}) == len(keys)
    stated = [(space.identity["fingerprint"], space.states, space.codec_name) for space in store.spaces()]
    assert sorted(stated) == sorted(keys)
    content = json.loads((spaces[0].folder / "space.json").read_text())
    assert content == {"schema": 2, "identity": identity("f"), "states": [1, 2], "codec": "fp16"}
    for space in spaces[:3]:
        write(space, {"a": 2})
    assert [space.size for space in spaces[:3]] == [2 * 12, 2 * 10, 2 * 5]
    assert store.remove(spaces[1].folder.name[:9]) == [spaces[1].folder.name]
    with pytest.raises(InputError) as caught:
        store.space(identity(), (1, 2), "int4")
    message = "store must be one of 'fp16', 'int8', 'compact'. Got 'int4' instead. Did you mean 'int8'?"
    assert str(caught.value) == message


def test_a_space_in_an_unknown_codec_is_refused(store: FeatureStore) -> None:
    file = store.space(identity(), (1, 2), "int8").folder / "space.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "codec": "int2"}))
    message = (
        r"json: codec must be one of 'fp16', 'int8', 'compact'\. Got 'int2' instead\. Did you mean 'int8'\? "
        r"Move the folder away and run"
    )
    with pytest.raises(StoreError, match=message):
        store.space(identity(), (1, 2), "int8")


def basis_file(space: FeatureSpace) -> Path:
    (file,) = space.folder.glob("basis.*.safetensors")
    return file


def test_the_basis_is_written_once_and_belongs_to_the_space(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "compact")
    assert space.codec is None and space.rows([]) is None
    write(space, {"a": 2})
    content = basis_file(space).read_bytes()
    assert basis_file(space).name == f"basis.{hashlib.sha256(content).hexdigest()}.safetensors"
    again = store.space(identity(), (1, 2), "compact")
    write(again, {"b": 2}, seed=1)
    assert basis_file(space).read_bytes() == content
    for shard in (space.folder / "shards").glob("*.json"):
        assert json.loads(shard.read_text())["basis"] == hashlib.sha256(content).hexdigest()
    assert isinstance(again.codec, PcaInt8Codec) and again.codec.to_bytes() == content


@pytest.mark.parametrize("harm", [flip, lambda file: os.truncate(file, 0), lambda file: file.unlink()])
def test_without_its_basis_every_shard_is_damaged(store: FeatureStore, harm: Callable[[Path], None]) -> None:
    space = store.space(identity(), (1, 2), "compact")
    write(space, {"a": 2})
    write(space, {"b": 3}, seed=1)
    names = sorted(Path(file).stem for file in files(space, "*.json"))
    harm(basis_file(space))
    space = store.space(identity(), (1, 2), "compact")
    assert [(damage.shard, damage.reason) for damage in space.damages] == [
        (name, "the basis it was written with is missing or damaged") for name in names
    ]
    assert (len(space), space.codec, files(space)) == (0, None, [])
    assert list(space.folder.glob("basis.*")) == []
    written = write(space, {"a": 2})
    assert np.array_equal(read(store.space(identity(), (1, 2), "compact"), ["a"])[0], written["a"])
    assert store.space(identity(), (1, 2), "compact").damages == []


def test_a_space_that_was_begun_anew_is_taken_as_it_is(store: FeatureStore) -> None:
    ours, theirs = store.space(identity(), (1, 2), "compact"), store.space(identity(), (1, 2), "compact")
    write(ours, {"a": 2})
    theirs.refresh()
    flip(basis_file(ours))
    theirs = store.space(identity(), (1, 2), "compact")
    written = write(theirs, {"b": 2}, seed=1)  # with another basis
    ours.refresh()
    assert (text_key("a") in ours, ours.damages) == (False, [])
    assert np.array_equal(read(ours, ["b"])[0], written["b"])
    rows = ours.rows([text_key("b")])
    assert rows is not None and rows.codec is ours.codec and theirs.codec is not None
    assert ours.codec is not None
    assert np.array_equal(
        ours.codec.encode(torch.from_numpy(normal(4))).numpy(), theirs.codec.encode(torch.from_numpy(normal(4))).numpy()
    )


def test_nothing_is_written_with_a_basis_that_is_gone(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "compact")
    write(space, {"a": 2})
    basis_file(space).unlink()
    with space.locked(lambda: pytest.fail("nobody holds the lock")):
        assert space.codec is None and len(space) == 0
    assert len(space.damages) == 1


@NEEDS_FULL
def test_a_full_disk_leaves_no_basis(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "compact")
    (space.folder / f"basis.{'0' * 64}.safetensors.99.partial").write_bytes(b"half")
    with space.locked(lambda: None):
        checksum = hashlib.sha256(PcaInt8Codec.fitted(normal(20)).to_bytes()).hexdigest()
        fill_up(space.folder / f"basis.{checksum}.safetensors")
        with pytest.raises(StoreError, match="the disk is full"):
            write(space, {"a": 2})
    assert list(space.folder.glob("basis.*")) == []
    assert space.codec is None


# ------------------------------------------------------------------------------------------------- locks, leftovers


def test_unfinished_files_are_removed_by_the_next_writer(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    written = write(space, {"a": 2})
    whole = files(space)
    for name in ("x.features.99.partial", "x.json.99.partial", "x.features"):
        (space.folder / "shards" / name).write_bytes(b"half")
    with store.space(identity(), (1, 2), "fp16").locked(lambda: pytest.fail("nobody holds the lock")):
        assert files(space) == whole
    assert np.array_equal(read(space, ["a"])[0], written["a"])


def test_the_lock_is_let_go_when_its_holder_fails(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    with pytest.raises(RuntimeError, match="inside"), space.locked(lambda: None):
        raise RuntimeError("inside")
    with store.space(identity(), (1, 2), "fp16").locked(lambda: pytest.fail("nobody holds the lock")):
        pass


# ------------------------------------------------------------------------------------------------- complaints


@NEEDS_FULL
@pytest.mark.parametrize("suffix", [".features", ".json"])
def test_a_full_disk_loses_nothing_and_leaves_nothing(store: FeatureStore, tmp_path: Path, suffix: str) -> None:
    space, twin = (FeatureStore(root).space(identity(), (1, 2), "fp16") for root in (store.root, tmp_path / "twin"))
    before = write(space, {"a": 2})
    whole = files(space)
    # A shard is named by its content.
    after = write(twin, {"b": 3}, seed=1)
    fill_up(space.folder / "shards" / (shard_of(twin, "b") + suffix))
    with pytest.raises(StoreError) as caught:
        write(space, {"b": 3}, seed=1)
    message = str(caught.value)
    assert message.startswith(f"the disk is full: cannot store 0 MB of features in {space.folder}. ")
    assert "free some space (ytuning cache remove)" in message
    assert "set YTUNING_CACHE" in message
    assert files(space, "*.partial") == []
    assert text_key("b") not in space
    again = store.space(identity(), (1, 2), "fp16")
    with again.locked(lambda: None):
        assert files(again) == whole
    assert np.array_equal(read(again, ["a"])[0], before["a"])
    write(again, {"b": 3}, seed=1)
    assert np.array_equal(read(again, ["b"])[0], after["b"])


def test_another_error_of_the_disk_names_itself(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    (space.folder / "shards").rmdir()
    with pytest.raises(StoreError) as caught:
        write(space, {"a": 2})
    expected = f"cannot use the feature store {space.folder}: {os.strerror(errno.ENOENT)}. "
    assert str(caught.value) == expected + "Set YTUNING_CACHE to a folder you can write"


def test_a_file_in_the_place_of_the_root_is_explained(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StoreError, match=r"cannot use the feature store .*root.*: .*Set YTUNING_CACHE to a folder"):
        FeatureStore(tmp_path / "root").space(identity(), (1, 2), "fp16")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="every folder can be written by root")
def test_a_root_without_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"Permission denied\. Set YTUNING_CACHE to a folder you can write"):
            FeatureStore(tmp_path / "root").space(identity(), (1, 2), "fp16")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2, "identity": {"layers": 3}}'])
def test_a_folder_that_is_no_space_is_refused(store: FeatureStore, content: str) -> None:
    folder = store.space(identity(), (1, 2), "fp16").folder
    (folder / "space.json").write_text(content)
    with pytest.raises(
        StoreError,
        match=rf"is damaged, or another version of ytuning wrote it \(\w+.*: ytuning cache remove {folder.name}",
    ):
        store.space(identity(), (1, 2), "fp16")


@pytest.mark.parametrize("change", [{"states": []}, {"states": [1, 9]}, {"codec": "int8"}])
def test_a_space_of_another_name_is_refused(store: FeatureStore, change: dict[str, object]) -> None:
    file = store.space(identity(), (1, 2), "fp16").folder / "space.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreError, match="its content is not what the folder's name stands for"):
        store.space(identity(), (1, 2), "fp16")


@pytest.mark.parametrize("content", [{"schema": 1}, {"schema": None}])
def test_another_schema_is_refused(store: FeatureStore, content: dict[str, object]) -> None:
    file = store.space(identity(), (1, 2), "fp16").folder / "space.json"
    file.write_text(json.dumps(content))
    message = f"{file} has schema {content['schema']}, but this version of ytuning reads schema 2. Move the folder away"
    with pytest.raises(StoreError, match=f"^{re.escape(message)}, or set YTUNING_CACHE to another one$"):
        store.space(identity(), (1, 2), "fp16")


# ------------------------------------------------------------------------------------------------- remove


def test_spaces_are_removed_by_an_unambiguous_prefix(store: FeatureStore) -> None:
    # Of 17 names in hexadecimal digits two begin alike.
    spaces = [store.space(identity(str(number)), (1, 2), "fp16") for number in range(17)]
    for space in spaces:
        write(space, {"a": 1})
    names = sorted(space.folder.name for space in spaces)
    assert [space.folder.name for space in store.spaces()] == names
    first = next(name[0] for name, other in pairwise(names) if name[0] == other[0])
    alike = [name for name in names if name[0] == first]
    with pytest.raises(InputError) as caught:
        store.remove(first)
    begin = f"{len(alike)} feature spaces start with {first!r}"
    assert str(caught.value) == f"{begin} in {store.root}. There are: {', '.join(names)}"
    with pytest.raises(InputError, match="no feature space starts with 'x' in"):
        store.remove("x")
    assert len(store.spaces()) == 17
    assert store.remove(alike[0][:12]) == alike[:1]
    names.remove(alike[0])
    assert [space.folder.name for space in store.spaces()] == names
    assert store.remove() == names
    assert store.spaces() == []
    assert store.remove() == []
    with pytest.raises(InputError, match=r"There are: none$"):
        store.remove("ab")


def test_of_many_shards_no_file_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = FeatureStore(tmp_path).space(identity(), (1, 2), "fp16")
    texts = ["one", "two", "three"]
    written = [write(space, {text: 5}, seed)[text] for seed, text in enumerate(texts)]
    for most, files in ((3, 3), (2, 0)):
        monkeypatch.setattr("ytuning.features.store.MOST_FILES", most)
        rows = space.rows([text_key(text) for text in texts])
        assert rows is not None and len(rows.files) == files
        tokens = TextFeatures(rows, torch.float32).tokens(torch.arange(3)).half().flatten(1)
        np.testing.assert_array_equal(tokens.numpy().view(np.uint8), np.concatenate(written))

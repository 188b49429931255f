"""The feature store: what is written comes back, what is damaged is found, and what goes wrong is explained."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.features.shard_files import SUFFIXES, shard_of
from ytuning.errors import InputError, StoreError
from ytuning.features.codecs import CODECS, PcaInt8Codec
from ytuning.features.features import TextFeatures
from ytuning.features.keys import text_key
from ytuning.features.store import FeatureSpace, FeatureStore


def identity(fingerprint: str = "f" * 32) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint, "width": 3, "name": "tiny", "precision": "fp32", "max_length": 9,
    }  # fmt: skip


def normal(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tokens, 2, 3)).astype(np.float16)


def nobody_else() -> None:
    pytest.fail("no other process is there")


def write(space: FeatureSpace, texts: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Write one shard of random features; ``texts`` maps a text to its token count. Returns each text's bytes."""
    lengths = np.array(list(texts.values()), np.int64)
    if space.codec is None:
        space.establish(lambda: PcaInt8Codec.fitted(normal(20, seed)), nobody_else)
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


@contextmanager
def full_disk(call: int) -> Iterator[None]:
    """The disk is full when so many files and folders have been synced."""
    calls = iter(range(1000))

    def fsync(descriptor: int) -> None:
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(os, "fsync", fsync):
        yield


def files(space: FeatureSpace, pattern: str = "*") -> list[str]:
    return sorted(file.name for file in (space.folder / "shards").glob(pattern))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "root")


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


def empty(file: Path) -> None:
    os.truncate(file, 0)


def shorten(file: Path) -> None:
    os.truncate(file, 7)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("kind", ["features", "keys"])
@pytest.mark.parametrize("harm", [flip, shorten, empty, remove])
@pytest.mark.parametrize("found_by", ["reading", "verifying", "looking"])
def test_a_damaged_shard_is_set_aside(
    store: FeatureStore, harm: Callable[[Path], None], kind: str, found_by: str
) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2, "b": 3})
    written = write(space, {"c": 4}, seed=1)
    name = shard_of(space, "a")
    harm(space.folder / "shards" / f"{name}.{kind}")
    space = store.space(identity(), (1, 2), "fp16")
    if found_by == "reading":
        assert space.rows([text_key("a"), text_key("b")]) is None
    elif found_by == "verifying":
        space.verify()
    else:
        # A look needs the keys only.
        assert (text_key("a") in space) == (kind == "features")
        space.rows([text_key("a")])
    reason = f"{kind} file missing" if harm is remove else f"checksum of the {kind} differs"
    assert [(damage.shard, damage.reason) for damage in space.damages] == [(name, reason)]
    for opened in (space, store.space(identity(), (1, 2), "fp16")):
        assert text_key("a") not in opened and len(opened) == 1
        assert np.array_equal(read(opened, ["c"])[0], written["c"])
    assert all(name not in file for file in files(space))
    aside = {file.name.split(".")[0] + file.suffix for file in (space.folder / "damaged").iterdir()}
    assert aside == {name + suffix for suffix in SUFFIXES if harm is not remove or suffix != f".{kind}"}


def test_a_damage_says_which_shard_why_and_where(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2})
    name = shard_of(space, "a")
    flip(space.folder / "shards" / f"{name}.features")
    damages = space.verify()
    assert [str(damage) for damage in damages] == [
        f"shard {name} is damaged (checksum of the features differs); set aside in {space.folder / 'damaged'}, "
        "its texts are computed again"
    ]
    assert damages == space.damages
    assert space.verify() == []


def test_what_another_process_has_set_aside_is_no_damage(store: FeatureStore) -> None:
    space, other = store.space(identity(), (1, 2), "fp16"), store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2})
    flip(space.folder / "shards" / f"{shard_of(space, 'a')}.features")
    other.refresh()
    assert len(other.verify()) == 1
    assert space.verify() == [] and len(space) == 0
    other.refresh()
    written = write(other, {"a": 2})
    space.refresh()
    assert np.array_equal(read(space, ["a"])[0], written["a"])


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


MANIFEST = {"codec": "fp16", "features": "", "keys": "", "texts": 1, "tokens": 2, "basis": None}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"null", b"3", b'"text"', b"[1]", b"{}", b'{"check": 1}',
        b'{"name": "package", "version": 1}',
        with_check({"some": "other"}).encode(),
        with_check(MANIFEST | {"codec": "int8"}).encode(),
        with_check(MANIFEST | {"texts": "1"}).encode(),
        with_check(MANIFEST | {"more": 1}).encode(),
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
    assert len(list((space.folder / "damaged").iterdir())) == len(SUFFIXES)
    assert store.space(identity(), (1, 2), "fp16").damages == []


def test_a_changed_manifest_fails_its_own_check(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    write(space, {"a": 2, "b": 2})
    manifest = next((space.folder / "shards").glob("*.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "tokens": content["tokens"] + 1}))
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
    assert content == {"schema": 3, "identity": identity("f"), "states": [1, 2], "codec": "fp16"}
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
    with space.writing():
        assert space.codec is None and len(space) == 0
    assert len(space.damages) == 1


def test_a_full_disk_leaves_no_basis(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "compact")
    with full_disk(0), pytest.raises(StoreError, match="the disk is full"):
        write(space, {"a": 2})
    assert list(space.folder.glob("basis.*")) == []
    assert space.codec is None
    write(space, {"a": 2})


def test_a_basis_that_does_not_read_back_is_reported(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "compact")
    with pytest.raises(StoreError, match=r"does not read back intact\. Check the disk or set YTUNING_CACHE"):
        # This one is for other hidden states.
        space.establish(lambda: PcaInt8Codec.fitted(normal(20)[:, :1]), nobody_else)
    write(space, {"a": 2})


def test_who_comes_second_takes_the_basis_of_the_first(store: FeatureStore) -> None:
    ours, theirs = store.space(identity(), (1, 2), "compact"), store.space(identity(), (1, 2), "compact")
    write(theirs, {"a": 2})
    ours.establish(lambda: pytest.fail("there is a basis"), nobody_else)
    assert isinstance(ours.codec, PcaInt8Codec) and ours.codec.has_basis_of(theirs.codec)


# ------------------------------------------------------------------------------------------------- writers, leftovers


def test_old_unfinished_files_are_removed_by_the_next_writer_and_young_ones_kept(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "compact")
    written = write(space, {"a": 2})
    whole = files(space)
    shards, day = space.folder / "shards", 24 * 60 * 60
    young = ("x.features.host-1.partial", "x.keys.host-1.partial", "x.json.host-1.partial")
    old = ("y.features.host-2.partial", "y.keys.host-2.partial", "y.json.host-2.partial")
    basis = [space.folder / f"basis.{'0' * 64}.safetensors.host-{number}.partial" for number in (1, 2)]
    # Another writer has put its features into their place and not yet its manifest.
    others = ("z.features", "z.keys")
    for file in (*(shards / name for name in (*young, *old, *others)), *basis):
        file.write_bytes(b"half")
    for file in (*(shards / name for name in (*old, *others)), basis[1]):
        os.utime(file, (time.time() - 1.1 * day,) * 2)
    with store.space(identity(), (1, 2), "compact").writing():
        assert files(space) == sorted([*whole, *young, *others])
        assert [file.exists() for file in basis] == [True, False]
    again = store.space(identity(), (1, 2), "compact")
    assert again.damages == []
    assert np.array_equal(read(again, ["a"])[0], written["a"])


def test_writers_count_each_other_and_do_not_wait(store: FeatureStore) -> None:
    spaces = [store.space(identity(), (1, 2), "fp16") for _ in range(3)]
    with spaces[0].writing() as first, spaces[1].writing() as second, spaces[2].writing() as third:
        assert (first, second, third) == (0, 1, 2)
    with pytest.raises(RuntimeError, match="inside"), spaces[0].writing():
        raise RuntimeError("inside")
    with spaces[1].writing() as others:
        assert others == 0
    # A killed one leaves its file.
    (spaces[0].folder / "writers" / "0-killed.lock").write_bytes(b"")
    with spaces[1].writing() as others:
        assert others == 0
    assert list((spaces[0].folder / "writers").iterdir()) == []


def test_a_space_that_is_written_is_not_removed(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    message = f"^{re.escape(str(space.folder))} is in use by a process that encodes. Wait for it and try again$"
    with space.writing(), pytest.raises(StoreError, match=message):
        store.remove()
    assert store.remove() == [space.folder.name]
    with pytest.raises(StoreError, match=rf"cannot use the feature store {re.escape(str(space.folder))}: No such file"):
        write(space, {"a": 2})


def test_a_space_whose_basis_is_being_fitted_is_not_removed(store: FeatureStore) -> None:
    space = store.space(identity(), (1, 2), "compact")

    def fit() -> PcaInt8Codec:
        with pytest.raises(StoreError, match="is in use by a process that encodes"):
            store.remove()
        return PcaInt8Codec.fitted(normal(20))

    space.establish(fit, nobody_else)


def test_writing_the_same_shard_twice_changes_nothing(store: FeatureStore) -> None:
    ours, theirs = store.space(identity(), (1, 2), "fp16"), store.space(identity(), (1, 2), "fp16")
    written = write(ours, {"a": 2, "b": 3})
    before = {name: (ours.folder / "shards" / name).read_bytes() for name in files(ours)}
    write(theirs, {"a": 2, "b": 3})
    assert {name: (ours.folder / "shards" / name).read_bytes() for name in files(ours)} == before
    assert np.array_equal(read(ours, ["b"])[0], written["b"])


# ------------------------------------------------------------------------------------------------- complaints


@pytest.mark.parametrize("call", range(4), ids=["features", "keys", "manifest", "folder"])
def test_a_full_disk_loses_nothing_and_leaves_nothing(store: FeatureStore, call: int) -> None:
    space = store.space(identity(), (1, 2), "fp16")
    before = write(space, {"a": 2})
    whole = files(space)
    with full_disk(call), pytest.raises(StoreError) as caught:
        write(space, {"b": 3}, seed=1)
    message = str(caught.value)
    assert message.startswith(f"the disk is full: cannot store 0 MB of features in {space.folder}. ")
    assert "free some space (ytuning cache remove)" in message
    assert "set YTUNING_CACHE" in message
    assert text_key("b") not in space
    # What only the folder's sync lacks is whole already, if not sure to outlive a loss of power.
    assert len(files(space)) == len(whole) + (3 if call == 3 else 0)
    again = store.space(identity(), (1, 2), "fp16")
    assert np.array_equal(read(again, ["a"])[0], before["a"])
    after = write(again, {"b": 3}, seed=1)
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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 3, "identity": {"layers": 3}}'])
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


@pytest.mark.parametrize("content", [{"schema": 2}, {"schema": None}])
def test_another_schema_is_refused(store: FeatureStore, content: dict[str, object]) -> None:
    file = store.space(identity(), (1, 2), "fp16").folder / "space.json"
    file.write_text(json.dumps(content))
    message = f"{file} has schema {content['schema']}, but this version of ytuning reads schema 3. Move the folder away"
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


def test_a_space_of_an_older_schema_is_in_nobodys_way(tmp_path: Path) -> None:
    content = json.dumps([identity()["fingerprint"], [1, 2], "fp16"], sort_keys=True)
    old = tmp_path / hashlib.sha256(content.encode()).hexdigest()[:32]
    old.mkdir()
    (old / "space.json").write_text(
        json.dumps({"schema": 2, "identity": identity(), "states": [1, 2], "codec": "fp16"})
    )
    store = FeatureStore(tmp_path)
    write(store.space(identity(), (1, 2), "fp16"), {"a": 3})
    told: list[StoreError] = []
    assert [len(space) for space in store.spaces(told.append)] == [1]
    assert "has schema 2" in str(told[0])
    assert store.remove(old.name) == [old.name]

"""Folders on a disk and in an object store: what is in them, and files that are whole or not there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.object_store import MakeFolder, new_address
from ytuning.data.places import find_files, open_folder
from ytuning.errors import DataError, InputError


def test_what_is_written_is_read_and_found(make_folder: MakeFolder) -> None:
    folder = open_folder(make_folder())
    assert folder.files() == []
    folder.write("a.csv", b"text\nx\n")
    folder.write("deep/er/b.csv", b"text\n")
    folder.write("_own/c.csv", b"hidden")
    folder.write("deep/.d.csv", b"hidden")
    assert [(file.path, file.size) for file in folder.files()] == [("a.csv", 7), ("deep/er/b.csv", 5)]
    assert folder.read("a.csv") == b"text\nx\n"
    assert (folder.size("_own/c.csv"), folder.size("deep"), folder.size("no")) == (6, None, None)
    with folder.open("a.csv") as stream:
        stream.seek(5)
        assert stream.readline() == b"x\n"
    folder.write("a.csv", b"")
    assert folder.read("a.csv") == b""
    folder.remove("a.csv")
    folder.remove("a.csv")
    assert folder.size("a.csv") is None


@pytest.mark.parametrize("size", [10, 30 << 20])
def test_a_file_whose_writing_fails_is_not_there(make_folder: MakeFolder, size: int) -> None:
    folder = open_folder(make_folder())
    with pytest.raises(RuntimeError, match="midway"), folder.new("part") as stream:
        stream.write(b"x" * size)
        raise RuntimeError("midway")
    assert folder.size("part") is None
    assert folder.files() == []


def test_an_interrupt_while_an_object_store_takes_bytes_leaves_the_whole_object(
    object_store: str, store_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is sent by one call is sure: an interrupt comes between two calls, and closing makes an object."""
    folder = open_folder(new_address(object_store))
    sent: list[int] = []

    class Interrupted:
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def write(self, data: Any) -> None:
            sent.append(len(data))
            self._stream.write(data)
            raise KeyboardInterrupt

        def close(self) -> None:
            self._stream.close()

    filesystem = folder._filesystem  # type: ignore[attr-defined]
    opened = type(filesystem).open_output_stream
    monkeypatch.setattr(
        folder, "_filesystem", SimpleNamespace(open_output_stream=lambda path: Interrupted(opened(filesystem, path)))
    )
    with pytest.raises(KeyboardInterrupt), folder.new("part") as stream:
        stream.write(b"x" * (20 << 20))
    monkeypatch.undo()
    assert sent == [20 << 20]
    assert folder.size("part") == 20 << 20


def test_errors_of_the_user_of_a_new_file_are_not_those_of_writing(make_folder: MakeFolder) -> None:
    folder = open_folder(make_folder())
    with pytest.raises(OSError, match="a camera is missing"), folder.new("part"):
        raise OSError("a camera is missing")


def test_the_first_of_two_files_stays(make_folder: MakeFolder) -> None:
    folder = open_folder(make_folder())
    folder.write_first("plan", b"one")
    folder.write_first("plan", b"two")
    assert folder.read("plan") == b"one"
    # One without bytes was left by an interrupt.
    folder.write("empty", b"")
    folder.write_first("empty", b"two")
    assert folder.read("empty") == b"two"


def test_a_file_is_not_there_before_it_is_whole(make_folder: MakeFolder) -> None:
    folder = open_folder(make_folder())
    with folder.new("part") as stream:
        stream.write(b"x" * (12 << 20))
        stream.flush()
        assert folder.size("part") is None
    assert folder.size("part") == 12 << 20


def test_two_writers_of_a_file_leave_one_whole_file(make_folder: MakeFolder) -> None:
    folder = open_folder(make_folder())
    with folder.new("part") as first, folder.new("part") as second:
        first.write(b"one")
        second.write(b"two!")
    assert folder.read("part") in (b"one", b"two!")


def test_old_unfinished_files_are_removed_and_young_ones_are_kept(tmp_path: Path) -> None:
    partial = tmp_path / "_ytuning" / "partial"
    partial.mkdir(parents=True)
    for name, age in (("old", 2 * 24 * 3600), ("young", 60)):
        (partial / name).write_bytes(b"half")
        os.utime(partial / name, (time.time() - age,) * 2)
    open_folder(tmp_path).tidy()
    assert [file.name for file in partial.iterdir()] == ["young"]


def test_inputs_are_files_folders_and_patterns(make_folder: MakeFolder) -> None:
    address = make_folder()
    plain, _, query = address.partition("?")
    folder = open_folder(address)
    for path in ("a.csv", "b.jsonl", "in/c.csv", "in/deep/d.csv", "in/deep/e.parquet"):
        folder.write(path, b"1")

    def found(path: str) -> list[str]:
        base, files = find_files(f"{plain}{path}" + (f"?{query}" if query else ""))
        # The folder and the path together name the file.
        assert all(base.read(file.path) == b"1" for file in files)
        return [file.path for file in files]

    assert found("") == found("/") == ["a.csv", "b.jsonl", "in/c.csv", "in/deep/d.csv", "in/deep/e.parquet"]
    assert found("/a.csv") == ["a.csv"]
    assert found("/in") == ["c.csv", "deep/d.csv", "deep/e.parquet"]
    assert found("/*.csv") == ["a.csv"]
    assert found("/**/*.csv") == ["a.csv", "in/c.csv", "in/deep/d.csv"]
    assert found("/in/*/[de].*") == ["deep/d.csv", "deep/e.parquet"]
    assert found("/in/*/[!d].*") == ["deep/e.parquet"]
    assert found("/in/*/?.csv") == ["deep/d.csv"]
    with pytest.raises(InputError, match="no file matches"):
        found("/*.tsv")
    with pytest.raises(InputError, match="there is no file or folder"):
        found("/nothing")


def test_several_inputs_have_one_folder(tmp_path: Path) -> None:
    for name in ("x/a.csv", "x/y/b.csv", "z/c.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    folder, files = find_files([tmp_path / "x", tmp_path / "z" / "c.csv"])
    assert [file.path for file in files] == ["x/a.csv", "x/y/b.csv", "z/c.csv"]
    assert all(folder.read(file.path) == b"1" for file in files)
    # An address of a disk is its path.
    folder, files = find_files([f"file://{tmp_path}/x/a.csv", f"file://{tmp_path}/z/c.csv"])
    assert [folder.read(file.path) for file in files] == [b"1", b"1"]
    for nothing, problem in (([], "no input"), ("", "empty text"), (["a", ""], "empty text")):
        with pytest.raises(InputError, match=problem):
            find_files(nothing)


def test_several_inputs_of_an_object_store_have_one_folder(object_store: str, store_keys: None) -> None:
    address = new_address(object_store)
    plain, _, query = address.partition("?")
    for path in ("x/a.csv", "x/y/b.csv", "z/c.csv"):
        open_folder(address).write(path, b"1")
    folder, files = find_files([f"{plain}/x?{query}", f"{plain}/z/*.csv?{query}", f"{plain}/x/a.csv?{query}"])
    assert [file.path for file in files] == ["x/a.csv", "x/y/b.csv", "z/c.csv"]
    assert all(folder.read(file.path) == b"1" for file in files)
    with pytest.raises(InputError, match="in one place"):
        find_files([f"{plain}/x?{query}", "/tmp"])


def test_paths_of_one_file_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/a.csv", "y/b.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    folder, files = find_files(["./x/a.csv", tmp_path / "x" / "a.csv", "y"])
    assert [file.path for file in files] == ["x/a.csv", "y/b.csv"]
    assert all(folder.read(file.path) == b"1" for file in files)
    # A link that leads back to a folder above it does not multiply the files.
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    assert [file.path for file in find_files("x")[1]] == ["a.csv", "loop/y/b.csv"]


def test_keys_of_an_address_are_not_shown() -> None:
    for address in ("s3://AKIA:se/cret@bucket/in", "nosuch://user:pass@host/in?key=value"):
        try:
            shown = open_folder(address).name
        except InputError as error:
            shown = str(error)
        assert "cret" not in shown
        assert "pass" not in shown
        assert "key=value" not in shown


def test_missing_and_unreadable_files_are_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        open_folder(make_folder()).open("nothing.csv")
    (tmp_path / "train.csv").touch()
    with pytest.raises(InputError, match=r"Did you mean 'train.csv'"):
        find_files(tmp_path / "trian.csv")
    with pytest.raises(InputError, match="cannot be used"):
        open_folder("nosuchscheme://bucket/x")
    with pytest.raises(InputError, match=r"'\[z-a\]\.csv' is no pattern"):
        find_files(tmp_path / "[z-a].csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no files"):
        find_files(tmp_path / "empty")


def test_what_cannot_be_read_in_a_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"b\.csv: there is no such file"):
        find_files(tmp_path)
    (tmp_path / "b.csv").unlink()
    (tmp_path / "own").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("own"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot read the folder .*own: Permission denied"):
        find_files(tmp_path)


def test_brackets_of_a_pattern_name_characters(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "].csv", "^.csv", "-.csv", "x[].csv"):
        (tmp_path / name).touch()
    for pattern, names in (
        ("[ab]", "ab"),
        ("?[]", "x"),
        ("[!ab]", "-]^"),
        ("[]a]", "]a"),
        ("[^a]", "^a"),
        ("[!]]", "-^ab"),
    ):
        assert [file.path[0] for file in find_files(tmp_path / f"{pattern}.csv")[1]] == sorted(names), pattern

"""Token features on disk: append-only shards with checksums, shared by every task on one encoder.

    <root>/                       $YTUNING_CACHE, else the platform's cache folder
      <hash>/                     one space for each encoder identity, set of hidden states and codec, whose hash it is
        space.json                these three
        lock                      held by the process that is encoding
        basis.<sha256>.safetensors   what the codec compact decodes with, made once from the space's first tokens
        shards/<id>.features      raw bytes, (tokens, bytes of a token); see codecs.py
        shards/<id>.json          manifest: checksum and, in order, each text's key, token count and whether it was cut
        rows/<sha256>.safetensors     in spaces of pools: which texts a light task was fitted on, with their targets
        damaged/                  what failed a check, set aside

A shard exists once its manifest does: both files are written under a temporary name, synced, then renamed, the manifest
last. So a killed run leaves whole shards and one unfinished file, which the next holder of the lock deletes. A manifest
states the checksum of the basis its shard was written with: one that is not the space's own is as bad as damage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs

from ytuning.errors import InputError, StoreError, must_be_one_of, parameter, wrong_schema
from ytuning.features.codecs import CODECS, FIT_TOKENS, STORED_AS, Decoder, PcaInt8Codec, build_codec, row_bytes
from ytuning.system.files import PARTIAL_SUFFIX, ReadFile, commit, store_errors

__all__ = ["KEY_BYTES", "Damage", "FeatureSpace", "FeatureStore", "StoredRows", "WriteSizes", "text_key"]

SCHEMA = 2
SPACE_FILE, LOCK_FILE, SHARD_FOLDER, DAMAGED_FOLDER = "space.json", "lock", "shards", "damaged"
ROWS_FOLDER, ROWS_SUFFIX = "rows", ".safetensors"
DATA_SUFFIX, MANIFEST_SUFFIX = ".features", ".json"
FOLDER_DIGITS, KEY_BYTES = 32, 16
# The braces stand for the file's checksum.
BASIS_FILE = "basis.{}.safetensors"
# Of so many shards rows are read from the files, of more through memory maps alone: a file and its map each take one of
# the descriptors that a process may have, often 1,024 and on macOS 256.
MOST_FILES = 64
LOST_BASIS = "the basis it was written with is missing or damaged"


def text_key(text: str, pair: str | None = None) -> bytes:
    """16 bytes that stand for a text or a pair; the length prefix keeps ("a", "bc") and ("ab", "c") apart."""
    first = text.encode()
    content = b"%d:" % len(first) + first + (b"" if pair is None else b"+" + pair.encode())
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


@dataclass(frozen=True)
class WriteSizes:
    """How much is written, tokenised and fitted at a time."""

    # A shard is written when it holds this many bytes, so a killed run loses no more than them.
    shard_bytes: int = 256 << 20
    # The first shard of a run is small and the next ones double, so a short run that is killed loses about half.
    first_shard_bytes: int = 4 << 20
    # So many texts are tokenised and sorted by length at a time. Memory then does not grow with the data.
    window_texts: int = 16_384
    # Tokens that the basis of a compact space is fitted on.
    fit_tokens: int = FIT_TOKENS


@dataclass(frozen=True)
class Damage:
    """A shard that failed a check and was set aside."""

    shard: str
    reason: str
    folder: Path

    def __str__(self) -> str:
        return (
            f"shard {self.shard} is damaged ({self.reason}); set aside in {self.folder}, its texts are computed again"
        )


@dataclass(frozen=True)
class StoredRows:
    """Where the features of some texts lie.

    Attributes:
        arrays: one (tokens, bytes of a token) uint8 array for each shard in use.
        array: (texts,) which array; ``start``: (texts,) first token in it; ``length``: (texts,) tokens.
        truncated: (texts,) whether the text was cut at the maximum length.
        codec: decodes the arrays' rows.
        maps: the arrays' memory maps, if they have any.
        files: the files that these map; none if there are many.
    """

    arrays: list[np.ndarray]
    array: np.ndarray
    start: np.ndarray
    length: np.ndarray
    truncated: np.ndarray
    codec: Decoder
    maps: list[mmap.mmap] = field(default_factory=list)
    files: list[ReadFile] = field(default_factory=list)


@dataclass(frozen=True)
class _Shard:
    name: str
    sha256: str
    keys: list[bytes]
    lengths: np.ndarray
    truncated: np.ndarray
    basis: str | None


def _default_root() -> str:
    try:
        return os.environ.get("YTUNING_CACHE") or platformdirs.user_cache_dir("ytuning")
    # An unknown user has no home directory, nor does a process without HOME always have one.
    except (RuntimeError, KeyError) as error:
        raise StoreError(
            "there is no place for the feature store, because no home directory is known. Set YTUNING_CACHE or HOME to "
            "a folder that you can write"
        ) from error


class FeatureStore:
    """All feature spaces under one root folder: by default ``$YTUNING_CACHE``, else the platform's cache folder.

    Raises:
        StoreError: no root is given, and no home directory is known.
    """

    def __init__(self, root: str | Path | None = None, sizes: WriteSizes | None = None) -> None:
        # An absolute path stays the same folder when the process changes its current one.
        self.root = Path(os.path.abspath(_default_root() if root is None else root))
        self.sizes = sizes or WriteSizes()

    def space(self, identity: Mapping[str, Any], states: Sequence[int], codec: str) -> FeatureSpace:
        """The space for an encoder, some of its hidden states and a codec, made if it is not there.

        Args:
            identity: of the encoder, as ``EncoderIdentity.to_json()`` gives it.
            states: numbers of hidden states, rising.
            codec: name of a codec.

        Raises:
            InputError: there is no such codec.
            StoreError: the folder cannot be made, or holds something else.
        """
        if codec not in STORED_AS:
            raise InputError(must_be_one_of(parameter("store"), codec, CODECS))
        # The name is short, so that it can be typed; space.json says what it stands for.
        folder = self.root / _space_name(identity, states, codec)
        with store_errors(folder, 0):
            (folder / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
            if not (folder / SPACE_FILE).exists():
                content = {"schema": SCHEMA, "identity": dict(identity), "states": list(states), "codec": codec}
                commit(folder / SPACE_FILE, json.dumps(content, indent=1).encode())
        return FeatureSpace(folder)

    def keep_rows(self, identity: Mapping[str, Any], states: Sequence[int], codec: str, data: bytes) -> str:
        """Keep a file about some of the texts of a space, named by its content; returns the name.

        The arguments are those of :meth:`space`, but that the space is not read.

        Raises:
            StoreError: the disk is full or cannot be written.
        """
        name = hashlib.sha256(data).hexdigest()
        # What is there need not be written, which a store that can only be read would refuse.
        if self.kept_rows(identity, states, codec, name) is not None:
            return name
        folder = self.root / _space_name(identity, states, codec) / ROWS_FOLDER
        with store_errors(folder, len(data)):
            folder.mkdir(parents=True, exist_ok=True)
            commit(folder / (name + ROWS_SUFFIX), data)
        return name

    def kept_rows(self, identity: Mapping[str, Any], states: Sequence[int], codec: str, name: str) -> bytes | None:
        """What :meth:`keep_rows` has kept under a name; None if it is gone or damaged."""
        try:
            folder = self.root / _space_name(identity, states, codec) / ROWS_FOLDER
            data = (folder / (name + ROWS_SUFFIX)).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == name else None

    def spaces(self, on_unreadable: Callable[[StoreError], None] | None = None) -> list[FeatureSpace]:
        """Every space under the root, by name of its folder.

        Args:
            on_unreadable: is told of a space that cannot be read, which is then left out. Without it, such a space
                raises StoreError.
        """
        spaces = []
        for name in self._names():
            try:
                spaces.append(FeatureSpace(self.root / name))
            except StoreError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(error)
        return spaces

    def _names(self) -> list[str]:
        return [file.parent.name for file in sorted(self.root.glob(f"*/{SPACE_FILE}"))]

    def remove(self, prefix: str | None = None) -> list[str]:
        """Delete the space whose name is or starts with ``prefix``; returns the names.

        If it is None, all spaces.

        Raises:
            InputError: no space's name starts so, or several do.
        """
        names = self._names()
        removed = [name for name in names if prefix is None or (prefix and name.startswith(prefix))]
        if prefix in names:
            removed = [prefix]
        if prefix is not None and len(removed) != 1:
            problem = "no feature space starts" if not removed else f"{len(removed)} feature spaces start"
            raise InputError(f"{problem} with {prefix!r} in {self.root}. There are: {', '.join(names) or 'none'}")
        for name in removed:
            folder = self.root / name
            with store_errors(folder, 0):
                try:
                    with filelock.FileLock(folder / LOCK_FILE, timeout=0):
                        for part in (SHARD_FOLDER, DAMAGED_FOLDER, ROWS_FOLDER):
                            shutil.rmtree(folder / part, ignore_errors=not (folder / part).exists())
                        # Last, so that what is left of a killed removal is still listed.
                        (folder / SPACE_FILE).unlink()
                except filelock.Timeout:
                    raise StoreError(
                        f"{folder} is in use by a process that encodes. Wait for it and try again"
                    ) from None
                shutil.rmtree(folder)
        return removed


def _space_name(identity: Mapping[str, Any], states: Sequence[int], codec: str) -> str:
    """The folder of a space."""
    return _check([identity["fingerprint"], list(states), codec])[:FOLDER_DIGITS]


def _unreadable(folder: Path, reason: str) -> StoreError:
    """That a space does not say what it holds."""
    problem = f"{folder / SPACE_FILE} is damaged, or another version of ytuning wrote it ({reason})"
    return StoreError(f"{problem}. Remove the feature space with: ytuning cache remove {folder.name}")


class FeatureSpace:
    """The shards of one encoder's hidden states in one codec. Reading needs no lock: what is there does not change.

    Attributes:
        identity: of the encoder.
        states: numbers of the hidden states that are kept.
        codec_name: name of the codec.
        codec: decodes the rows; None until the space has the basis that it needs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = json.loads((folder / SPACE_FILE).read_text())
            schema = content["schema"]
            if schema == SCHEMA:
                self.identity, self.codec_name = content["identity"], content["codec"]
                self.states = tuple(int(state) for state in content["states"])
                # (L, D)
                self.row_shape = (len(self.states), int(self.identity["width"]))
                name = _space_name(self.identity, self.states, self.codec_name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(folder, f"{type(error).__name__}: {error}") from error
        if schema != SCHEMA:
            remedy = "Move the folder away, or set YTUNING_CACHE to another one"
            raise StoreError(wrong_schema(folder / SPACE_FILE, schema, SCHEMA, remedy))
        if missing := {"name", "precision", "max_length"} - set(self.identity):
            raise _unreadable(folder, f"it lacks {min(missing)}")
        if self.codec_name not in STORED_AS:
            problem = must_be_one_of("codec", self.codec_name, CODECS)
            raise StoreError(f"{folder / SPACE_FILE}: {problem} Move the folder away and run again")
        if folder.name != name:
            raise _unreadable(folder, "its content is not what the folder's name stands for")
        self.row_bytes = row_bytes(self.codec_name, *self.row_shape)
        self.codec = build_codec(self.codec_name, *self.row_shape)
        self.damages: list[Damage] = []
        self._basis: str | None = None
        self._shards: dict[str, _Shard] = {}
        self._place: dict[bytes, tuple[str, int]] = {}
        self._intact: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(int(shard.lengths.sum()) for shard in self._shards.values())

    @property
    def size(self) -> int:
        """Bytes of all shards' features."""
        return self.tokens * self.row_bytes

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._shards)

    def refresh(self) -> None:
        """Take in shards that other processes have written; drop those that are gone."""
        if self.codec is None:
            self._read_basis()
        names = {file.stem for file in (self.folder / SHARD_FOLDER).glob(f"*{MANIFEST_SUFFIX}")}
        self._forget(set(self._shards) - names)
        for name in sorted(names - set(self._shards)):
            try:
                with self._reading():
                    shard = self._read_manifest(name)
            # Another process has just set it aside.
            except FileNotFoundError:
                continue
            except OSError:
                self._set_aside(name, "manifest cannot be read from the disk")
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                self._set_aside(name, f"unreadable manifest: {type(error).__name__}")
            else:
                # Another process may have begun the space anew.
                if shard.basis != self._basis:
                    self._read_basis()
                if shard.basis == self._basis:
                    self._add(shard)
                else:
                    self._set_aside(name, LOST_BASIS)

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Be the one process that writes to this space; the operating system frees the lock of a killed one.

        Args:
            on_wait: called once if another process holds the lock, before waiting for it.
        """
        lock = filelock.FileLock(self.folder / LOCK_FILE)
        with store_errors(self.folder, 0):
            # First without waiting, so that a user is told why nothing happens.
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                on_wait()
                lock.acquire()
        try:
            # Whoever holds the lock is the only writer, so what is unfinished was left by a killed one.
            for file in (*(self.folder / SHARD_FOLDER).iterdir(), *self.folder.glob(f"{BASIS_FILE.format('*')}.*")):
                unfinished = file.suffix == DATA_SUFFIX and not file.with_suffix(MANIFEST_SUFFIX).exists()
                if unfinished or file.suffix == PARTIAL_SUFFIX:
                    file.unlink(missing_ok=True)
            # Nothing may be written with a basis that is no longer there.
            if self.codec_name == "compact":
                self._read_basis()
            self.refresh()
            yield
        finally:
            lock.release()

    def establish(self, codec: PcaInt8Codec) -> None:
        """Give the space its basis, once; called under the lock while ``codec`` is None.

        Raises:
            StoreError: the disk is full or cannot be written.
        """
        data = codec.to_bytes()
        checksum = hashlib.sha256(data).hexdigest()
        with store_errors(self.folder, len(data)):
            commit(self.folder / BASIS_FILE.format(checksum), data)
        self.codec, self._basis = codec, checksum

    def write(self, keys: Sequence[bytes], lengths: np.ndarray, truncated: np.ndarray, features: np.ndarray) -> None:
        """Store one shard; on return it is on the disk.

        Args:
            keys: of the texts, in the order of their tokens.
            lengths: (texts,) tokens in each.
            truncated: (texts,) bool.
            features: (tokens, row_bytes) uint8, from ``codec``.

        Raises:
            StoreError: the disk is full or cannot be written. Nothing that was stored before is lost.
        """
        if features.shape != (int(lengths.sum()), self.row_bytes) or features.dtype != np.uint8:
            raise ValueError(
                f"features of {features.shape} {features.dtype} do not fit {lengths.sum()} x {self.row_bytes} bytes"
            )
        data = np.ascontiguousarray(features).data.cast("B")
        sha256 = hashlib.sha256(data).hexdigest()
        # Named by its content, so that writing the same shard twice is harmless.
        name = hashlib.sha256(b"".join(keys) + sha256.encode()).hexdigest()[:32]
        content = {
            "sha256": sha256,
            "keys": [key.hex() for key in keys],
            "lengths": lengths.tolist(),
            "truncated": np.flatnonzero(truncated).tolist(),
            **({} if self._basis is None else {"basis": self._basis}),
        }
        with store_errors(self.folder, len(data)):
            # The manifest comes last: with it the shard exists.
            commit(self._file(name, DATA_SUFFIX), data)
            commit(self._file(name, MANIFEST_SUFFIX), json.dumps({**content, "check": _check(content)}).encode())
        self._add(_Shard(name, sha256, list(keys), lengths.astype(np.int64), truncated.astype(bool), self._basis))
        self._intact.add(name)

    def verify(self, names: Sequence[str] | None = None) -> list[Damage]:
        """Compare shards with their checksums (all of them by default) and set aside those that differ.

        Returns:
            The damages found by this call.
        """
        names, before = sorted(self._shards if names is None else names), len(self.damages)
        with ThreadPoolExecutor() as pool:
            for name, digest in zip(names, pool.map(self._digest, names), strict=True):
                if digest == self._shards[name].sha256:
                    self._intact.add(name)
                else:
                    self._set_aside(name, "checksum differs" if digest else "features file missing")
        return self.damages[before:]

    def rows(self, keys: Sequence[bytes]) -> StoredRows | None:
        """Memory-mapped features of stored texts, after one check of each shard in use against its checksum.

        Returns:
            None if a text is not stored or its shard turned out damaged (see ``damages``): compute what is missing.
        """
        if self.codec is None or any(key not in self._place for key in keys):
            return None
        names = sorted({self._place[key][0] for key in keys})
        if self.verify([name for name in names if name not in self._intact]):
            return None
        position = {name: index for index, name in enumerate(names)}
        shards = [self._shards[name] for name in names]
        # (texts,) for each shard: the first token of each text.
        starts = [np.cumsum(shard.lengths) - shard.lengths for shard in shards]
        places = [(position[name], row) for name, row in (self._place[key] for key in keys)]
        try:
            with self._reading():
                few = names if len(names) <= MOST_FILES else []
                files = [ReadFile(self._file(name, DATA_SUFFIX)) for name in few]
                maps = [self._map(name) for name in names]
        # Another process has set a shard aside since the check.
        except FileNotFoundError:
            self.refresh()
            return None
        return StoredRows(
            arrays=[np.frombuffer(view, np.uint8).reshape(-1, self.row_bytes) for view in maps],
            array=np.array([shard for shard, _ in places], np.int64),
            start=np.array([starts[shard][row] for shard, row in places], np.int64),
            length=np.array([shards[shard].lengths[row] for shard, row in places], np.int64),
            truncated=np.array([shards[shard].truncated[row] for shard, row in places], bool),
            codec=self.codec,
            maps=maps,
            files=files,
        )

    def _file(self, name: str, suffix: str) -> Path:
        return self.folder / SHARD_FOLDER / (name + suffix)

    def _add(self, shard: _Shard) -> None:
        self._shards[shard.name] = shard
        # A text that two processes have stored is read from the first of the two shards.
        for row, key in enumerate(shard.keys):
            self._place.setdefault(key, (shard.name, row))

    def _forget(self, names: set[str]) -> None:
        """Drop shards and where their texts lie."""
        if names := names & set(self._shards):
            self._shards = {name: shard for name, shard in self._shards.items() if name not in names}
            self._place = {key: place for key, place in self._place.items() if place[0] not in names}

    def _read_manifest(self, name: str) -> _Shard:
        """Raises OSError, ValueError, LookupError, TypeError or AttributeError on anything but a whole manifest."""
        content = json.loads(self._file(name, MANIFEST_SUFFIX).read_text())
        if content.pop("check") != _check(content):
            raise ValueError("the manifest does not match its own checksum")
        lengths = np.array(content["lengths"], np.int64)
        truncated = np.zeros(len(lengths), bool)
        truncated[content["truncated"]] = True
        keys = [bytes.fromhex(key) for key in content["keys"]]
        return _Shard(name, content["sha256"], keys, lengths, truncated, content.get("basis"))

    def _read_basis(self) -> None:
        """Take the basis that lies in the folder, if a whole one does, and set aside what was written with another."""
        self.codec, self._basis = build_codec(self.codec_name, *self.row_shape), None
        for file in sorted(self.folder.glob(BASIS_FILE.format("*"))):
            try:
                with self._reading():
                    data = file.read_bytes()
                checksum = hashlib.sha256(data).hexdigest()
                if file.name != BASIS_FILE.format(checksum):
                    raise ValueError("checksum differs")
                self.codec, self._basis = build_codec(self.codec_name, *self.row_shape, data), checksum
                break
            # Another process has just set it aside.
            except FileNotFoundError:
                continue
            # A bad sector is no better than a wrong byte.
            except (OSError, ValueError):
                self._move_aside(file, file.name)
        for shard in list(self._shards.values()):
            if shard.basis != self._basis:
                self._set_aside(shard.name, LOST_BASIS)

    def _digest(self, name: str) -> str | None:
        try:
            with self._reading(), self._file(name, DATA_SUFFIX).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            return None
        except OSError:
            return "unreadable"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Explains errors of the disk but those that say something of a file: it is gone, or has a bad sector."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):
                raise
            with store_errors(self.folder, 0):
                raise

    def _map(self, name: str) -> mmap.mmap:
        with self._file(name, DATA_SUFFIX).open("rb") as stream:
            # A private mapping: nothing writes to it, but tensors want writable memory.
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def _set_aside(self, name: str, reason: str) -> None:
        # The manifest goes first: without it the shard does not exist for anyone.
        for suffix in (MANIFEST_SUFFIX, DATA_SUFFIX):
            self._move_aside(self._file(name, suffix), f"{name}.{time.time_ns()}{suffix}")
        self._intact.discard(name)
        self._forget({name})
        self.damages.append(Damage(name, reason, self.folder / DAMAGED_FOLDER))

    def _move_aside(self, file: Path, name: str) -> None:
        target = self.folder / DAMAGED_FOLDER
        with store_errors(target, 0):
            target.mkdir(exist_ok=True)
            # Another process may have been faster.
            with suppress(FileNotFoundError):
                os.replace(file, target / name)


def _check(content: Any) -> str:
    """SHA-256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

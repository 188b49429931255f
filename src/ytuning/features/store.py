"""Token features on disk: append-only shards with checksums, shared by every task on one encoder.

    <root>/                       $YTUNING_CACHE, else the platform's cache folder
      <hash>/                     one space for each encoder identity, set of hidden states and codec, whose hash it is
        space.json                these three
        lock                      held by the process that fits the basis or removes the space
        writers/                  a file for each process that is encoding; see writers.py
        basis.<sha256>.safetensors   what the codec compact decodes with, made once from the space's first tokens
        shards/<id>.features      raw bytes, (tokens, bytes of a token); see codecs.py
        shards/<id>.keys          key, place, token count of each text and whether it was cut; see keys.py
        shards/<id>.json          manifest: checksums of these two files, numbers of texts and tokens, codec
        rows/<sha256>.safetensors     in spaces of pools: which texts a light task was fitted on, with their targets
        damaged/                  what failed a check, set aside

A shard exists once its manifest does: its files are written under temporary names, synced, then renamed, the manifest
last. So a killed run leaves whole shards and unfinished files, which later writers delete once they are a day old. A
manifest states the checksum of the basis its shard was written with: one that is not the space's own is as bad as
damage.

The root may be the address of an object store. Then the spaces are there, and a folder of this machine has copies of
what was needed of them; see mirror.py.

Any number of processes may write at once, also on several machines with a shared folder. A shard is named by its
content and never changes, so none of them waits for another or can spoil what another has stored. A text that several
have stored counts as often, and is read from one place.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import platformdirs

from ytuning.data.places import Folder, is_remote, open_folder, without_keys
from ytuning.errors import InputError, StoreError, must_be_one_of, parameter, wrong_schema
from ytuning.features.codecs import CODECS, FIT_TOKENS, STORED_AS, Decoder, PcaInt8Codec, build_codec, row_bytes
from ytuning.features.keys import KeyFile, WantedKeys
from ytuning.features.mirror import Mirror
from ytuning.features.writers import joined_writers, locked, writers_at_work
from ytuning.system.files import PARTIAL_SUFFIX, ReadFile, commit, commit_all, store_errors

__all__ = ["Damage", "FeatureSpace", "FeatureStore", "StoredRows", "WriteSizes"]

SCHEMA = 3
SPACE_FILE, LOCK_FILE, SHARD_FOLDER, DAMAGED_FOLDER = "space.json", "lock", "shards", "damaged"
ROWS_FOLDER, ROWS_SUFFIX, WRITERS_FOLDER = "rows", ".safetensors", "writers"
DATA_SUFFIX, KEYS_SUFFIX, MANIFEST_SUFFIX = ".features", ".keys", ".json"
FOLDER_DIGITS = 32
# In the platform's cache folder, the folder of the copies of an address begins so.
REMOTE_FOLDER = "copies"
# A writer takes minutes at most from the first byte of a file to its last one.
PARTIAL_SECONDS = 24 * 60 * 60
# The braces stand for the file's checksum.
BASIS_FILE = "basis.{}.safetensors"
# Of so many shards rows are read from the files, of more through memory maps alone: a file and its map each take one of
# the descriptors that a process may have, often 1,024 and on macOS 256.
MOST_FILES = 64
LOST_BASIS = "the basis it was written with is missing or damaged"


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


@dataclass(frozen=True, slots=True)
class _Shard:
    """What a manifest states: checksums of the files, numbers of texts and tokens, and the basis."""

    features: str
    keys: str
    texts: int
    tokens: int
    basis: str | None


def _default_root() -> str:
    return os.environ.get("YTUNING_CACHE") or _platform_root()


def _platform_root() -> str:
    try:
        return platformdirs.user_cache_dir("ytuning")
    # An unknown user has no home directory, nor does a process without HOME always have one.
    except (RuntimeError, KeyError) as error:
        raise StoreError(
            "there is no place for the feature store, because no home directory is known. Set YTUNING_CACHE or HOME to "
            "a folder that you can write"
        ) from error


class FeatureStore:
    """All feature spaces under one root: by default ``$YTUNING_CACHE``, else the platform's cache folder.

    Args:
        root: a folder, or an address in an object store such as ``s3://bucket/store``.
        sizes: how much is written at a time.

    Attributes:
        name: how messages name the root.
        root: the folder; of an address the one with the copies, which is in the platform's cache folder.

    Raises:
        StoreError: no root is given, and no home directory is known.
        InputError: the address cannot be used.
    """

    def __init__(self, root: str | Path | None = None, sizes: WriteSizes | None = None) -> None:
        given = os.fspath(_default_root() if root is None else root)
        self._remote = open_folder(given) if is_remote(given) else None
        if self._remote is not None:
            copies = f"{REMOTE_FOLDER}-{hashlib.sha256(without_keys(given).encode()).hexdigest()[:FOLDER_DIGITS]}"
            given = os.path.join(_platform_root(), copies)
        # An absolute path stays the same folder when the process changes its current one.
        self.root = Path(os.path.abspath(given))
        self.name = str(self.root) if self._remote is None else self._remote.name
        self.sizes = sizes or WriteSizes()

    def _mirror(self, name: str) -> Mirror | None:
        """The mirror of the space of a name; None where the root is a folder."""
        if self._remote is None:
            return None
        suffixes = DATA_SUFFIX, KEYS_SUFFIX, MANIFEST_SUFFIX
        return Mirror(self._remote.below(name), self.root / name, SHARD_FOLDER, suffixes)

    def check_codec(self, codec: str) -> None:
        """Refuse a codec that this store cannot use.

        Raises:
            InputError: there is no such codec, or it needs a folder.
        """
        if codec not in STORED_AS:
            raise InputError(must_be_one_of(parameter("store"), codec, CODECS))
        if codec == PcaInt8Codec.name and self._remote is not None:
            problem = f"the codec {codec!r} needs a lock that all writers share, and {self.name} has none. "
            raise InputError(f"{problem}Use 'int8', or a folder as YTUNING_CACHE.")

    def space(self, identity: Mapping[str, Any], states: Sequence[int], codec: str) -> FeatureSpace:
        """The space for an encoder, some of its hidden states and a codec, made if it is not there.

        Args:
            identity: of the encoder, as ``EncoderIdentity.to_json()`` gives it.
            states: numbers of hidden states, rising.
            codec: name of a codec.

        Raises:
            InputError: as :meth:`check_codec`.
            StoreError: the folder cannot be made, or holds something else.
        """
        self.check_codec(codec)
        # The name is short, so that it can be typed; space.json says what it stands for.
        folder = self.root / _space_name(identity, states, codec)
        mirror = self._mirror(folder.name)
        if mirror is not None:
            mirror.pull(SPACE_FILE)
        with store_errors(folder, 0):
            (folder / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
            if not (folder / SPACE_FILE).exists():
                content = {"schema": SCHEMA, "identity": dict(identity), "states": list(states), "codec": codec}
                commit(folder / SPACE_FILE, json.dumps(content, indent=1).encode())
        if mirror is not None:
            mirror.push(SPACE_FILE, (folder / SPACE_FILE).read_bytes())
        return FeatureSpace(folder, mirror)

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
        # It is sent first: what is here is taken for sent.
        if (mirror := self._mirror(folder.parent.name)) is not None:
            mirror.push(f"{ROWS_FOLDER}/{name}{ROWS_SUFFIX}", data)
        with store_errors(folder, len(data)):
            folder.mkdir(parents=True, exist_ok=True)
            commit(folder / (name + ROWS_SUFFIX), data)
        return name

    def kept_rows(self, identity: Mapping[str, Any], states: Sequence[int], codec: str, name: str) -> bytes | None:
        """What :meth:`keep_rows` has kept under a name; None if it is gone or damaged.

        Raises:
            StoreError: the object store cannot be read.
        """
        try:
            folder = self.root / _space_name(identity, states, codec) / ROWS_FOLDER
            if (mirror := self._mirror(folder.parent.name)) is not None:
                mirror.pull(f"{ROWS_FOLDER}/{name}{ROWS_SUFFIX}")
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
                mirror = self._mirror(name)
                if mirror is not None:
                    mirror.pull(SPACE_FILE)
                spaces.append(FeatureSpace(self.root / name, mirror))
            except StoreError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(error)
        return spaces

    def _names(self) -> list[str]:
        if self._remote is None:
            return [file.parent.name for file in sorted(self.root.glob(f"*/{SPACE_FILE}"))]
        paths = [file.path.split("/") for file in self._remote.files()]
        return sorted(path[0] for path in paths if path[1:] == [SPACE_FILE])

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
            raise InputError(f"{problem} with {prefix!r} in {self.name}. There are: {', '.join(names) or 'none'}")
        for name in removed:
            folder = self.root / name
            if self._remote is not None:
                _remove_remote(self._remote.below(name))
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with store_errors(folder, 0):
                try:
                    with locked(folder / LOCK_FILE, wait=False):
                        if writers_at_work(folder / WRITERS_FOLDER):
                            raise _in_use(folder)
                        for part in (SHARD_FOLDER, DAMAGED_FOLDER, ROWS_FOLDER):
                            shutil.rmtree(folder / part, ignore_errors=not (folder / part).exists())
                        # Last, so that what is left of a killed removal is still listed.
                        (folder / SPACE_FILE).unlink()
                except filelock.Timeout:
                    raise _in_use(folder) from None
                shutil.rmtree(folder)
        return removed


def _remove_remote(folder: Folder) -> None:
    """Remove a space from an object store; what describes it last, so that what is left is still listed."""
    paths = sorted((file.path for file in folder.files()), key=lambda path: path == SPACE_FILE)
    for path in paths:
        folder.remove(path)


def _space_name(identity: Mapping[str, Any], states: Sequence[int], codec: str) -> str:
    """The folder of a space; that of another schema is another one, so that older spaces are in nobody's way."""
    return _check([SCHEMA, identity["fingerprint"], list(states), codec])[:FOLDER_DIGITS]


def _in_use(folder: Path) -> StoreError:
    """That a space cannot be removed now."""
    return StoreError(f"{folder} is in use by a process that encodes. Wait for it and try again")


def _unreadable(folder: Path, reason: str) -> StoreError:
    """That a space does not say what it holds."""
    problem = f"{folder / SPACE_FILE} is damaged, or another version of ytuning wrote it ({reason})"
    return StoreError(f"{problem}. Remove the feature space with: ytuning cache remove {folder.name}")


class FeatureSpace:
    """The shards of one encoder's hidden states in one codec. Reading and writing need no lock: shards do not change.

    What is opened holds in memory only what the manifests state. Keys are looked up where they lie.

    Attributes:
        identity: of the encoder.
        states: numbers of the hidden states that are kept.
        codec_name: name of the codec.
        codec: decodes the rows; None until the space has the basis that it needs.
    """

    def __init__(self, folder: Path, mirror: Mirror | None = None) -> None:
        self.folder, self._mirror = folder, mirror
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
        # Shards that have been compared with their checksums: of their keys, and of all their files.
        self._known_keys: set[str] = set()
        self._intact: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        """Texts in all shards."""
        return sum(shard.texts for shard in self._shards.values())

    def __contains__(self, key: bytes) -> bool:
        return bool(self.holds(WantedKeys([key]))[0])

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self._shards.values())

    @property
    def size(self) -> int:
        """Bytes of all shards' features."""
        return self.tokens * self.row_bytes

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._shards)

    def refresh(self) -> list[str]:
        """Take in shards that other processes have written; drop those that are gone.

        Returns:
            Names of the shards that were taken in.
        """
        if self.codec is None:
            self._read_basis()
        remote = None if self._mirror is None else self._mirror.pull_manifests()
        names = {file.removesuffix(MANIFEST_SUFFIX) for file in self._files() if file.endswith(MANIFEST_SUFFIX)}
        if remote is not None:
            # Another machine may have removed some.
            names &= remote
        self._forget(set(self._shards) - names)
        taken = []
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
                    self._shards[name] = shard
                    taken.append(name)
                else:
                    self._set_aside(name, LOST_BASIS)
        return taken

    def holds(self, wanted: WantedKeys, names: Sequence[str] | None = None) -> np.ndarray:
        """(keys,) whether each text is in one of the shards of these names; default: in any that is known."""
        shard, _ = self._find(wanted, sorted(self._shards if names is None else names))
        return shard[wanted.place] >= 0

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Be one of the processes that write to this space; yields how many others have begun before.

        Raises:
            StoreError: the folder cannot be written.
        """
        with ExitStack() as stack:
            with store_errors(self.folder, 0):
                others = stack.enter_context(joined_writers(self.folder / WRITERS_FOLDER))
                self._remove_old_partials()
            # Nothing may be written with a basis that is no longer there.
            if self.codec_name == PcaInt8Codec.name:
                self._read_basis()
            self.refresh()
            yield others

    def establish(self, fit: Callable[[], PcaInt8Codec], on_wait: Callable[[], None]) -> None:
        """Give the space its basis, once; on return ``codec`` is there, whichever process has made it.

        Args:
            fit: makes it; called with a lock held, if no process has made one.
            on_wait: called once if another process makes one at the moment, before waiting for it.

        Raises:
            StoreError: the disk is full or cannot be written or read back.
        """
        with ExitStack() as stack:
            with store_errors(self.folder, 0):
                stack.enter_context(locked(self.folder / LOCK_FILE, on_wait=on_wait))
            self._read_basis()
            if self.codec is None:
                data = fit().to_bytes()
                with store_errors(self.folder, len(data)):
                    commit(self.folder / BASIS_FILE.format(hashlib.sha256(data).hexdigest()), data)
                # What others read from the disk counts, also where a file system's locks do not keep a second one away.
                self._read_basis()
            if self.codec is None:
                raise StoreError(
                    f"the basis that was written to {self.folder} does not read back intact. Check the disk or set "
                    "YTUNING_CACHE to a folder on another one"
                )

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
        texts = KeyFile.of_texts(keys, lengths, truncated).to_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        # Named by its content, so that writing the same shard twice is harmless.
        name = hashlib.sha256(b"".join(keys) + sha256.encode()).hexdigest()[:32]
        shard = _Shard(sha256, hashlib.sha256(texts).hexdigest(), len(keys), len(features), self._basis)
        content = {"codec": self.codec_name, **asdict(shard)}
        manifest = json.dumps({**content, "check": _check(content)}).encode()
        # The manifest comes last: with it the shard exists.
        files: dict[str, bytes | memoryview] = {DATA_SUFFIX: data, KEYS_SUFFIX: texts, MANIFEST_SUFFIX: manifest}
        with store_errors(self.folder, len(data)):
            if self._mirror is not None:
                # Here the shard exists once it does in the object store, or it would never be sent after a failure.
                self._mirror.push_shard(name, files)
            commit_all(self.folder / SHARD_FOLDER, {name + suffix: part for suffix, part in files.items()})
        self._shards[name] = shard
        self._known_keys.add(name)
        self._intact.add(name)

    def verify(self, names: Sequence[str] | None = None) -> list[Damage]:
        """Compare shards with their checksums (all of them by default) and set aside those that differ.

        Of a space in an object store the shards that were fetched are compared.

        Returns:
            The damages found by this call.
        """
        names, before = sorted(self._shards if names is None else names), len(self.damages)
        if self._mirror is not None:
            names = [name for name in names if not self._mirror.lacks(name)]
        with ThreadPoolExecutor() as pool:
            for name, problem in zip(names, pool.map(self._problem, names), strict=True):
                # Another process may have set the shard aside and written it again since it was read.
                if problem is None or (problem := self._problem(name)) is None:
                    self._known_keys.add(name)
                    self._intact.add(name)
                else:
                    self._set_aside(name, problem)
        return self.damages[before:]

    def rows(self, keys: Sequence[bytes]) -> StoredRows | None:
        """Memory-mapped features of stored texts, after one check of each shard in use against its checksum.

        Returns:
            None if a text is not stored or its shard turned out damaged (see ``damages``): compute what is missing.
        """
        if self.codec is None:
            return None
        wanted, known = WantedKeys(keys), sorted(self._shards)
        shard, row = self._find(wanted, known)
        if (shard < 0).any():
            return None
        used, array = np.unique(shard, return_inverse=True)
        names = [known[number] for number in used]
        if self._mirror is not None:
            self._mirror.pull_features(names)
        if self.verify([name for name in names if name not in self._intact]):
            return None
        place = self._places(names, array, row)
        try:
            with self._reading():
                few = names if len(names) <= MOST_FILES else []
                files = [ReadFile(self._file(name, DATA_SUFFIX)) for name in few]
                maps = [self._map(name, DATA_SUFFIX) for name in names]
        # Another process has set a shard aside since the check.
        except FileNotFoundError:
            place = None
        if place is None:
            self._intact.difference_update(names)
            self.refresh()
            return None
        start, length, truncated = (column[wanted.place] for column in place)
        return StoredRows(
            arrays=[np.frombuffer(view, np.uint8).reshape(-1, self.row_bytes) for view in maps],
            array=array[wanted.place],
            start=start,
            length=length,
            truncated=truncated,
            codec=self.codec,
            maps=maps,
            files=files,
        )

    def _places(
        self, names: Sequence[str], array: np.ndarray, row: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """First token, tokens and whether it was cut, (texts,) each: text i is row ``row[i]`` of ``names[array[i]]``.

        Returns:
            None if another process has set a shard aside.
        """
        start, length, truncated = (np.zeros(len(row), kind) for kind in (np.int64, np.int64, bool))
        # Texts of the same shard side by side.
        order = np.argsort(array, kind="stable")
        bounds = np.searchsorted(array[order], np.arange(len(names) + 1))
        for number, name in enumerate(names):
            texts = self._texts(name)
            if texts is None:
                return None
            some = order[bounds[number] : bounds[number + 1]]
            lengths = texts.length.astype(np.int64)
            start[some] = (np.cumsum(lengths) - lengths)[row[some]]
            length[some], truncated[some] = lengths[row[some]], texts.truncated[row[some]]
        return start, length, truncated

    def _find(self, wanted: WantedKeys, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(sorted keys,) which of the named shards has each text, or -1, and which of the shard's rows it is.

        A text that several shards have is read from the first of them, so that every process reads the same one.
        """
        shard, row = np.full(len(wanted), -1, np.int64), np.zeros(len(wanted), np.int64)
        for number, name in enumerate(names):
            if (shard >= 0).all():
                break
            if (texts := self._texts(name)) is not None:
                place, there = wanted.find(texts)
                new = shard[place] < 0
                shard[place[new]], row[place[new]] = number, there[new]
        return shard, row

    def _texts(self, name: str) -> KeyFile | None:
        """The keys and lengths of a shard where they lie, after one check; None if it is damaged or gone.

        The file is opened for each look-up: it takes less time than the look-up, and a store may have more shards than
        a process may have files.
        """
        if name not in self._known_keys:
            if problem := self._problem(name, (KEYS_SUFFIX,)):
                self._set_aside(name, problem)
                return None
            self._known_keys.add(name)
        try:
            with self._reading():
                return KeyFile.of_bytes(self._map(name, KEYS_SUFFIX))
        # Another process has set the shard aside, and the next refresh or check finds out.
        except FileNotFoundError:
            return None
        except ValueError:
            self._set_aside(name, "keys file has changed")
            return None

    def _files(self) -> list[str]:
        """Names of all files of shards."""
        with store_errors(self.folder, 0):
            try:
                return os.listdir(self.folder / SHARD_FOLDER)
            except FileNotFoundError:
                return []

    def _remove_old_partials(self) -> None:
        """Remove what killed writers have left unfinished. Younger files may be those of a writer at work."""
        for folder in (self.folder, self.folder / SHARD_FOLDER, self.folder / ROWS_FOLDER):
            for file in folder.glob(f"*{PARTIAL_SUFFIX}"):
                # Its writer may just have finished it.
                with suppress(FileNotFoundError):
                    if time.time() - file.lstat().st_mtime > PARTIAL_SECONDS:
                        file.unlink()

    def _file(self, name: str, suffix: str) -> Path:
        return self.folder / SHARD_FOLDER / (name + suffix)

    def _forget(self, names: set[str]) -> None:
        """Drop shards."""
        for name in names & set(self._shards):
            del self._shards[name]
        self._known_keys -= names
        self._intact -= names

    def _read_manifest(self, name: str) -> _Shard:
        """Raises OSError, ValueError, LookupError, TypeError or AttributeError on anything but a whole manifest."""
        content = json.loads(self._file(name, MANIFEST_SUFFIX).read_bytes())
        if content.pop("check") != _check(content):
            raise ValueError("the manifest does not match its own checksum")
        if content.pop("codec") != self.codec_name:
            raise ValueError("the shard is of another codec")
        if not all(isinstance(content[count], int) for count in ("texts", "tokens")):
            raise TypeError("the manifest has no numbers of texts and tokens")
        return _Shard(**content)

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
        for name, shard in list(self._shards.items()):
            if shard.basis != self._basis:
                self._set_aside(name, LOST_BASIS)

    def _problem(self, name: str, suffixes: Sequence[str] = (KEYS_SUFFIX, DATA_SUFFIX)) -> str | None:
        """What is wrong with files of a shard, compared with the checksums in its manifest; None if nothing is."""
        shard = self._shards[name]
        for suffix in suffixes:
            what, checksum = ("keys", shard.keys) if suffix == KEYS_SUFFIX else ("features", shard.features)
            try:
                with self._reading(), self._file(name, suffix).open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != checksum:
                        return f"checksum of the {what} differs"
            except FileNotFoundError:
                return f"{what} file missing"
            except OSError:
                return f"{what} file cannot be read from the disk"
        return None

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

    def _map(self, name: str, suffix: str) -> mmap.mmap:
        with self._file(name, suffix).open("rb") as stream:
            # A private mapping: nothing writes to it, but tensors want writable memory.
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def _set_aside(self, name: str, reason: str) -> None:
        if not self._file(name, MANIFEST_SUFFIX).exists():
            # Another process has done so.
            self._forget({name})
            return
        if self._mirror is not None:
            shard = self._shards.get(name)
            self._mirror.tell_damage(
                name, None if shard is None else {KEYS_SUFFIX: shard.keys, DATA_SUFFIX: shard.features}
            )
        # The manifest goes first: without it the shard does not exist for anyone.
        for suffix in (MANIFEST_SUFFIX, KEYS_SUFFIX, DATA_SUFFIX):
            self._move_aside(self._file(name, suffix), f"{name}.{time.time_ns()}{suffix}")
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

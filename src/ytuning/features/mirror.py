"""A feature space in an object store, and the folder on this machine that has what was needed of it so far.

Both have the same layout. Shards are named by their content, so a copy is never out of date. Manifests and keys of all
shards are fetched, some 25 bytes for each text; features of a shard once a text of it is needed. What is written here
is sent on with its manifest last, so that another machine sees a shard once it is whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ytuning.data.places import Folder
from ytuning.errors import StoreError, YTuningError
from ytuning.system.files import commit, store_errors

__all__ = ["Mirror"]

# Files that are fetched or sent at once. An object store answers each of them slowly.
THREADS = 8


class Mirror:
    """The copy of a space on this machine.

    Args:
        remote: folder of the space in the object store.
        local: folder of the copy.
        shards: name of the folder of shards in either.
        suffixes: of the files of a shard: features, keys and manifest.
    """

    def __init__(self, remote: Folder, local: Path, shards: str, suffixes: tuple[str, str, str]) -> None:
        self._remote, self._local, self._shards = remote, local, shards
        self._features, self._keys, self._manifest = suffixes
        self._damaged: set[str] = set()

    def pull(self, path: str) -> bool:
        """Fetch a file unless it is here; returns whether it is here now.

        Raises:
            StoreError: the object store cannot be read.
        """
        target = self._local / path
        if target.exists():
            return True
        try:
            data = self._remote.read(path) if self._remote.size(path) else None
        except (YTuningError, OSError) as error:
            raise _problem("fetch", self._remote.name_of(path), error) from error
        if data is None:
            return False
        with store_errors(self._local, len(data)):
            target.parent.mkdir(parents=True, exist_ok=True)
            commit(target, data)
        return True

    def push(self, path: str, data: bytes | memoryview) -> None:
        """Send a file, unless it is there.

        Raises:
            StoreError: the object store cannot be written.
        """
        try:
            # A file that is cut was left by an interrupt.
            if self._remote.size(path) != len(data):
                self._remote.write(path, data)
        except (YTuningError, OSError) as error:
            raise _problem("send", self._remote.name_of(path), error) from error

    def pull_manifests(self) -> set[str]:
        """Fetch keys and manifests of shards that are not known here; raises what :meth:`pull` does.

        Returns:
            Names of all shards in the object store.
        """
        try:
            there = {file.path for file in self._remote.below(self._shards).files()}
        except YTuningError as error:
            raise _problem("list", self._remote.name, error) from error
        names = sorted(path.removesuffix(self._manifest) for path in there if path.endswith(self._manifest))
        new = [name for name in names if not self._path(name, self._manifest).exists()]

        def pull(name: str) -> None:
            # The manifest comes last here, too.
            if self.pull(f"{self._shards}/{name}{self._keys}"):
                self.pull(f"{self._shards}/{name}{self._manifest}")

        _at_once(pull, new, THREADS)
        return set(names)

    def lacks(self, name: str) -> bool:
        """Whether the features of a shard have not been fetched."""
        return not self._path(name, self._features).exists()

    def pull_features(self, names: Iterable[str]) -> None:
        """Fetch the features of shards; raises what :meth:`pull` does."""
        # A shard has up to 256 MB.
        _at_once(lambda name: self.pull(f"{self._shards}/{name}{self._features}"), list(names), 2)

    def push_shard(self, name: str, files: Mapping[str, bytes | memoryview]) -> None:
        """Send the files of a shard, by their suffixes; raises what :meth:`push` does."""
        for suffix in (self._features, self._keys, self._manifest):
            self.push(f"{self._shards}/{name}{suffix}", files[suffix])

    def tell_damage(self, name: str, checksums: Mapping[str, str] | None) -> None:
        """Report a damaged copy of a shard.

        The first time it is fetched again. The second time the shard is removed from the object store, if it is damaged
        there.

        Args:
            name: of the shard.
            checksums: SHA-256 of its files by their suffixes; None if the manifest cannot be read.

        Raises:
            StoreError: the object store cannot be used.
        """
        if name not in self._damaged:
            self._damaged.add(name)
            return
        try:
            if checksums is not None and all(
                hashlib.sha256(self._remote.read(f"{self._shards}/{name}{suffix}")).hexdigest() == checksum
                for suffix, checksum in checksums.items()
            ):
                # It is this machine's disk that damages it.
                return
            # The manifest goes first: without it the shard does not exist for anyone.
            for suffix in (self._manifest, self._keys, self._features):
                self._remote.remove(f"{self._shards}/{name}{suffix}")
        except (YTuningError, OSError) as error:
            raise _problem("check a damaged shard in", self._remote.name, error) from error

    def _path(self, name: str, suffix: str) -> Path:
        return self._local / self._shards / (name + suffix)


def _at_once(function: Callable[[str], object], names: Sequence[str], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, names))


def _problem(what: str, name: str, error: Exception) -> StoreError:
    reason = str(error) if isinstance(error, YTuningError) else f"{type(error).__name__}: {error}"
    found = StoreError(f"cannot {what} {name} of the feature store: {' '.join(reason.split())}")
    found.may_pass = True
    return found

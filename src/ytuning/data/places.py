"""Folders on a disk or in an object store: what is in them, and files that are written whole or not at all.

A disk is used through the system's own calls. Every other address (``s3://``, ``gs://``, ...) goes through a file
system of pyarrow, and this is the only module that knows one.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from ytuning.data.files import names_like
from ytuning.data.labels import quote
from ytuning.errors import DataError, InputError, WriteError, YTuningError, argument, write_errors
from ytuning.system.files import NewFile
from ytuning.system.machine import require

__all__ = [
    "RECORDS", "Folder", "FoundFile", "Inputs", "find_files", "is_remote", "names_inside", "open_folder",
    "shown_address", "without_keys",
]  # fmt: skip

# Own records of a run, and files on a disk while they are written. Readers of folders skip names with an underscore.
RECORDS = "_ytuning"
PARTIALS = f"{RECORDS}/partial"
# Unfinished files of writers that vanished are removed after this time. A unit takes minutes.
OLD_SECONDS = 24 * 3600
GLOB_MARKS = re.compile(r"[*?\[]")
# The query of an address names options of the object store: s3://bucket/in?endpoint_override=localhost:9000
QUERY = re.compile(r"\?(?=\w+=)")
# An address may have a key and a secret: s3://key:secret@bucket/in
KEYS = re.compile(r"(?<=:)//[^@]*:[^@]*@")
BUFFER_BYTES = 1 << 20

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Path or address of a file or a folder, or a pattern of files; or several of them."""


@dataclass(frozen=True)
class FoundFile:
    """A file in a folder: its path within the folder, with slashes, and its size in bytes."""

    path: str
    size: int


class Folder(ABC):
    """A folder of files.

    Attributes:
        address: path or address that it can be opened with.
        name: how messages name it: the address without options and keys.
        is_remote: whether it is in an object store, where another attempt may succeed.
    """

    is_remote = False

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") or address
        self.name = shown_address(self.address).rstrip("/") or self.address

    def name_of(self, path: str) -> str:
        """How messages name a file of the folder."""
        return f"{self.name}/{path}"

    def read(self, path: str) -> bytes:
        """The content of a file; raises what :meth:`open` does."""
        with self.open(path) as stream:
            return stream.read()

    def write(self, path: str, data: bytes | memoryview) -> None:
        """Write a file whole or not at all; raises what :meth:`new` does."""
        with self.new(path) as stream:
            stream.write(data)

    @abstractmethod
    def write_first(self, path: str, data: bytes) -> None:
        """Write a file unless it is there and has content; raises what :meth:`new` does.

        Of two that write at the same moment the first one stays on a disk, and either one in an object store.
        """

    @abstractmethod
    def below(self, path: str) -> Folder:
        """A folder in this one."""

    @abstractmethod
    def files(self) -> list[FoundFile]:
        """All files below the folder but hidden ones, sorted by path; none where there is no folder.

        Names that begin with ``_`` or ``.`` are hidden, as they are for Spark, DuckDB and pyarrow.

        Raises:
            InputError: a folder or a file in it cannot be read.
            YTuningError: the object store does not answer.
        """

    @abstractmethod
    def size(self, path: str) -> int | None:
        """The size of a file in bytes; None where there is none."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A stream of a file, which can seek.

        Raises:
            DataError: there is no such file, or it cannot be read.
        """

    @abstractmethod
    def open_arrow(self, path: str) -> Any:
        """A file for pyarrow; raises what :meth:`open` does."""

    @abstractmethod
    def new(self, path: str) -> Any:
        """A context manager with a stream; at its end the file is there, whole, and after an error it is not.

        An interrupt while an object store takes the bytes may leave a file without any.

        Raises:
            PathError: it cannot be written there.
            WriteError: the disk is full or broken, or the object store refuses it (then it ``may_pass``).
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def tidy(self) -> None:
        """Remove what writers that vanished more than a day ago have left unfinished."""


class DiskFolder(Folder):
    """A folder on a disk, also one that several machines share."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._root = Path(path)

    def below(self, path: str) -> Folder:
        return DiskFolder(str(self._root / path))

    def files(self) -> list[FoundFile]:
        found, seen = [], set[str]()
        for folder, folders, names in os.walk(self._root, onerror=_check_folder, followlinks=True):
            # A link may lead back to a folder above it.
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else [name for name in folders if not _is_hidden(name)]
            if real in seen:
                continue
            seen.add(real)
            for name in names:
                if not _is_hidden(name) and (file := self._found(Path(folder, name))):
                    found.append(file)
        return sorted(found, key=lambda file: file.path)

    def _found(self, file: Path) -> FoundFile | None:
        path = file.relative_to(self._root).as_posix()
        with _read_errors(self.name_of(path), file):
            try:
                return FoundFile(path, file.stat().st_size)
            except FileNotFoundError:
                # It has vanished meanwhile, or it is a link that leads nowhere, which is an error.
                if os.path.lexists(file):
                    raise
        return None

    def size(self, path: str) -> int | None:
        try:
            status = (self._root / path).stat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, path: str) -> BinaryIO:
        with _read_errors(self.name_of(path), self._root / path):
            return (self._root / path).open("rb", buffering=BUFFER_BYTES)

    def open_arrow(self, path: str) -> Any:
        with _read_errors(self.name_of(path), self._root / path):
            return require("pyarrow", "parquet").OSFile(str(self._root / path))

    @contextmanager
    def new(self, path: str) -> Iterator[IO[bytes]]:
        file = self._start(path)
        try:
            yield cast("IO[bytes]", _NewStream(file.stream, self._write_errors))
            with self._write_errors():
                file.finish()
                file.place()
        finally:
            file.discard()

    def write_first(self, path: str, data: bytes) -> None:
        file = self._start(path)
        try:
            with self._write_errors():
                file.stream.write(data)
                file.finish()
                file.place_first()
        finally:
            file.discard()

    def _start(self, path: str) -> NewFile:
        target = self._root / path
        with self._write_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._root / PARTIALS).mkdir(parents=True, exist_ok=True)
            return NewFile(target, beside=self._root / PARTIALS)

    def _write_errors(self) -> AbstractContextManager[None]:
        return write_errors(self.name, argument("output"))

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            (self._root / path).unlink()

    def tidy(self) -> None:
        for file in (self._root / PARTIALS).glob("*"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > OLD_SECONDS:
                    file.unlink()


class RemoteFolder(Folder):
    """A folder of an object store, by a file system of pyarrow."""

    is_remote = True

    def __init__(self, address: str, filesystem: Any, root: str) -> None:
        super().__init__(address)
        self._filesystem, self._root = filesystem, root.rstrip("/")

    def below(self, path: str) -> Folder:
        address = _with_query(f"{_without_query(self.address).rstrip('/')}/{path}", self.address)
        return RemoteFolder(address, self._filesystem, self._whole(path))

    def _whole(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def files(self) -> list[FoundFile]:
        fs = require("pyarrow.fs", "parquet")
        with _store_errors("list", self.name, YTuningError):
            selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
            found = self._filesystem.get_file_info(selector)
        files = [
            FoundFile(info.path.removeprefix(f"{self._root}/"), info.size)
            for info in found
            if info.type == fs.FileType.File
        ]
        shown = [file for file in files if not any(map(_is_hidden, file.path.split("/")))]
        return sorted(shown, key=lambda file: file.path)

    def size(self, path: str) -> int | None:
        fs = require("pyarrow.fs", "parquet")
        with _store_errors("read", self.name_of(path), YTuningError):
            info = self._filesystem.get_file_info(self._whole(path))
        return info.size if info.type == fs.FileType.File else None

    def open(self, path: str) -> BinaryIO:
        return cast("BinaryIO", io.BufferedReader(self.open_arrow(path), BUFFER_BYTES))

    def open_arrow(self, path: str) -> Any:
        with _read_errors(self.name_of(path)):
            return self._filesystem.open_input_file(self._whole(path))

    @contextmanager
    def new(self, path: str) -> Iterator[IO[bytes]]:
        # A stream of the object store that ends by an error would make an object of what it got before. So the store
        # gets its first byte once all of them are there.
        with tempfile.TemporaryFile(prefix="ytuning-") as whole:
            errors = partial(write_errors, f"temporary files in {tempfile.gettempdir()}", "TMPDIR")
            yield cast("IO[bytes]", _NewStream(whole, errors))
            with errors():
                whole.flush()
                size = whole.seek(0, os.SEEK_END)
            if size:
                with mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    self._upload(path, data)
            else:
                self._upload(path, b"")

    def write(self, path: str, data: bytes | memoryview) -> None:
        self._upload(path, data)

    def write_first(self, path: str, data: bytes) -> None:
        if not self.size(path):
            self._upload(path, data)

    def _upload(self, path: str, data: bytes | memoryview | mmap.mmap) -> None:
        with _store_errors("write", self.name_of(path), WriteError):
            stream = self._filesystem.open_output_stream(self._whole(path))
            # Closing makes an object of what was written, so all is written by one call, in which no signal is handled.
            try:
                stream.write(data)
            finally:
                stream.close()

    def remove(self, path: str) -> None:
        with _store_errors("remove", self.name_of(path), WriteError), suppress(FileNotFoundError):
            self._filesystem.delete_file(self._whole(path))

    def tidy(self) -> None:
        # An object store shows nothing that is unfinished.
        pass


def without_keys(address: str) -> str:
    """An address without a key and a secret."""
    return KEYS.sub("//", address)


def shown_address(address: str) -> str:
    """An address as messages name it, without keys and options."""
    return _without_query(without_keys(address))


def is_remote(address: str) -> bool:
    """Whether an address is in an object store, and no path."""
    return _scheme(address) not in ("", "file")


def open_folder(address: str | os.PathLike[str]) -> Folder:
    """A folder by its path or address.

    Raises:
        InputError: no file system is known for the address.
        MissingExtraError: it is in an object store and pyarrow is not installed.
    """
    text = os.fspath(address)
    scheme = _scheme(text)
    if scheme in ("", "file"):
        return DiskFolder(_disk_path(text))
    fs = require("pyarrow.fs", "parquet")
    pyarrow = require("pyarrow", "parquet")
    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        # The reason may repeat the address, which then must have no keys.
        reason = f": {' '.join(str(error).split())}" if text == without_keys(text) else ""
        problem = f"the address {quote(shown_address(text))} cannot be used{reason}. "
        raise InputError(
            f"{problem}Give a path, or an address such as s3://bucket/folder or gs://bucket/folder."
        ) from None
    return RemoteFolder(text, filesystem, root)


def find_files(inputs: Inputs) -> tuple[Folder, list[FoundFile]]:
    """The files that an input names, with the folder that all of them are in.

    Args:
        inputs: path or address of a file or a folder, or a pattern of files (``*``, ``?``, ``[...]``; ``**`` for any
            folders); or several of them, which are sorted and then read in this order.

    Raises:
        InputError: nothing is there, or several inputs are not in one file system.
    """
    several = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    if not several:
        raise InputError("there is no input. Give at least one file, folder or pattern.")
    texts = [os.fspath(one) for one in several]
    if "" in texts:
        raise InputError("an input is empty text. Give a file, a folder or a pattern; . is the current folder.")
    if len(texts) == 1:
        return _find(texts[0])
    if len({(_scheme(text), _query(text)) for text in texts}) > 1:
        raise InputError("several inputs must be in one place. Give paths only, or addresses of one object store.")
    # (whole path without scheme) -> bytes; a file that two inputs name is read once.
    sizes: dict[str, int] = {}
    for text in texts:
        own, found = _find(text)
        root = own.name.partition("://")[2] if own.is_remote else os.path.abspath(own.name)
        sizes |= {f"{root}/{file.path}": file.size for file in found}
    common = os.path.commonpath([os.path.dirname(path) for path in sizes])
    if not common:
        raise InputError("several inputs must be in one bucket. Run the command for each bucket.")
    address = common
    if is_remote(texts[0]):
        scheme = _scheme(texts[0])
        keys = KEYS.search(texts[0])
        address = _with_query(f"{scheme}:{keys.group() if keys else '//'}{common}", texts[0])
    return open_folder(address), [FoundFile(os.path.relpath(path, common), sizes[path]) for path in sorted(sizes)]


def names_inside(inputs: Inputs, folder: Folder, path: str) -> bool:
    """Whether inputs name a path in a folder, be it there or not."""
    for text in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        base, pattern = _split_pattern(os.fspath(text))
        within = _path_within(open_folder(base).name, f"{folder.name}/{path}")
        if within is None or any(map(_is_hidden, within.split("/"))):
            continue
        if not pattern or _glob_expression(pattern).fullmatch(within):
            return True
    return False


def _path_within(folder: str, path: str) -> str | None:
    """A path relative to a folder; None where it lies elsewhere."""
    if not _scheme(folder) and not _scheme(path):
        folder, path = os.path.realpath(folder), os.path.realpath(path)
    prefix = folder.rstrip("/") + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _find(text: str) -> tuple[Folder, list[FoundFile]]:
    base, pattern = _split_pattern(text)
    if pattern:
        folder = open_folder(base)
        matches = _glob_expression(pattern)
        files = [file for file in folder.files() if matches.fullmatch(file.path)]
        if not files:
            shown = quote(shown_address(text))
            raise InputError(f"no file matches {shown}. Check the pattern; ** stands for any folders.")
        return folder, files
    folder = open_folder(text)
    if files := folder.files():
        return folder, files
    parent, _, name = _without_query(text).rstrip("/").rpartition("/")
    if name and not text.endswith("/"):
        above = open_folder(_with_query(parent or ("/" if text.startswith("/") else "."), text))
        if (size := above.size(name)) is not None:
            return above, [FoundFile(name, size)]
    if _scheme(text):
        shown = shown_address(text)
        raise InputError(f"there is no file or folder {shown}, or the folder is empty. Check the address.")
    empty = os.path.isdir(text)
    problem = f"the folder {text} has no files" if empty else f"there is no file or folder {text}"
    raise InputError(f"{problem}.{'' if empty else names_like(text)} Check the path.")


def _split_pattern(text: str) -> tuple[str, str]:
    """A path as the folder before the first part with a mark of a pattern, and the rest; no rest without a mark."""
    plain = _without_query(text)
    scheme = _scheme(text)
    start = len(scheme) + 3 if scheme else 0
    mark = GLOB_MARKS.search(plain, start)
    if mark is None or (not scheme and os.path.exists(plain)):
        return text, ""
    place = plain.rfind("/", 0, mark.start())
    base = plain[:place] if place > 0 else "/" if place == 0 else "."
    return _with_query(base, text), plain[place + 1 :]


def _glob_expression(pattern: str) -> re.Pattern[str]:
    """A pattern of paths as a regular expression; only ``**`` matches a slash.

    Raises:
        InputError: it is none.
    """
    parts = []
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]\]|\[!?\]?[^\]]+\]|[^*?\[]+|\[", pattern):
        if part == "**/":
            parts.append("(?:.*/)?")
        elif part == "**":
            parts.append(".*")
        elif part == "*":
            parts.append("[^/]*")
        elif part == "?":
            parts.append("[^/]")
        elif part.startswith("[") and part not in ("[", "[!]"):
            marked = part[1:-1].startswith("!")
            # All but the hyphen of a range stands for itself.
            inner = re.sub(r"[\[\]\\^&~|]", r"\\\g<0>", part[1:-1].removeprefix("!"))
            parts.append(f"[{'^' if marked else ''}{inner}]")
        else:
            parts.append(re.escape(part))
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise InputError(f"{quote(pattern)} is no pattern of files ({error}). Check what is in brackets.") from error


def _scheme(text: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)
    return match.group(1).lower() if match else ""


def _disk_path(text: str) -> str:
    return unquote(urlsplit(text).path) if _scheme(text) == "file" else text


def _without_query(text: str) -> str:
    return QUERY.split(text, maxsplit=1)[0] if _scheme(text) else text


def _query(text: str) -> str:
    return "".join(QUERY.split(text, maxsplit=1)[1:]) if _scheme(text) else ""


def _with_query(base: str, text: str) -> str:
    return f"{base}?{_query(text)}" if _query(text) else base


class _NewStream(io.RawIOBase):
    """A stream whose errors of writing say what could not be written; other errors of its user stay what they are."""

    def __init__(self, stream: IO[bytes], errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream, self._errors = stream, errors

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with self._errors():
            return self._stream.write(data)


def _check_folder(error: OSError) -> None:
    """Refuse a folder that cannot be read; one that is not there has no files.

    Raises:
        InputError: it cannot be read.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        problem = f"cannot read the folder {error.filename}: {error.strerror or error}. "
        raise InputError(f"{problem}Give yourself the right to read it, or name the files.") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


@contextmanager
def _read_errors(source: str, path: Path | None = None) -> Iterator[None]:
    """Say of a file that cannot be read why.

    Raises:
        DataError: there is no such file, or a disk cannot read it.
        YTuningError: an object store cannot read it, which another attempt may not meet.
    """
    try:
        yield
    except FileNotFoundError:
        hint = "" if path is None else names_like(path)
        raise DataError(f"there is no such file.{hint or ' Check its name.'}", source=source) from None
    except OSError as error:
        if path is None:
            raise YTuningError(f"{source}: the file cannot be read: {' '.join(str(error).split())}") from error
        raise DataError(f"the file cannot be read: {error.strerror or error}", source=source) from error


@contextmanager
def _store_errors(doing: str, address: str, kind: type[YTuningError]) -> Iterator[None]:
    """Say what an object store has refused, and why.

    Raises:
        YTuningError: it has; the error is of the ``kind``, and may pass.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        found = kind(
            f"cannot {doing} {address}: {reason}. Check the address and the rights, and run the command again."
        )
        found.may_pass = True
        raise found from error

"""Which packages are there, and which code computed a result.

What is kept of one version must not be mixed with what another would find.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from ytuning.errors import MissingExtraError

__all__ = ["require", "version_of", "versions"]

ALWAYS = ("numpy", "scipy", "scikit-learn", "tokenizers", "torch", "transformers")


def versions(*packages: str) -> dict[str, str]:
    """Of ytuning, of what every result depends on, and of further packages; "" of one that is not installed.

    That of ytuning is a hash of its source: its number changes with releases only, its results may with any line.
    """
    return {"ytuning": _source(), **{package: version_of(package) or "" for package in (*ALWAYS, *packages)}}


@functools.cache
def _source() -> str:
    """First half of the SHA-256 of the package's modules."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def version_of(package: str) -> str | None:
    """Of an installed package; ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: full name.
        extra: of ytuning that installs its package.

    Raises:
        MissingExtraError: the package, or one that it needs, is not installed.
        ImportError: a package is there but lacks something, as other versions of it do not.
    """
    try:
        importlib.import_module(module.partition(".")[0])
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = error.name or module
        if "." in package:
            raise
        raise MissingExtraError(package.replace("_", "-"), extra) from error

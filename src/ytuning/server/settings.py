"""Settings of a server and the limits of what it accepts."""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ytuning.errors import InputError

__all__ = ["ADMIN_KEYS", "USE_KEYS", "Settings", "is_loopback", "read_keys"]

USE_KEYS, ADMIN_KEYS = "YTUNING_API_KEYS", "YTUNING_ADMIN_KEYS"
FEWEST_CHARACTERS = 16  # of a key


@dataclass(frozen=True)
class Settings:
    """Settings of one server.

    Attributes:
        folders: task folders, and folders that hold task folders.
        encoder: name or folder in place of the one named in the tasks, when it has moved.
        host, port: to listen on.
        keys: keys of clients; without any, everybody may use the server.
        admin_keys: keys of those who may also reload tasks.
        origins: origins of web pages that may read the replies (CORS).
        watch: seconds between checks of the task folders; 0 means that only a request checks them.
        batch_tokens: maximum number of tokens in a batch.
        queue_tokens: maximum number of waiting tokens; requests beyond it are refused.
        requests: maximum number of requests at a time.
        body_bytes: maximum size of a request.
        texts: maximum number of texts in a request; a pair counts once.
        characters: maximum length of a text.
        seconds: maximum time that a request may take.
    """

    folders: tuple[str, ...]
    encoder: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    watch: float = 2.0
    batch_tokens: int = 16_384
    queue_tokens: int = 65_536
    requests: int = 512
    body_bytes: int = 4_000_000
    texts: int = 1_000
    characters: int = 200_000
    seconds: float = 30.0

    def to_environment(self) -> str:
        """Settings as text, for the processes of ``--workers``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls, text: str) -> Settings:
        """The inverse of :meth:`to_environment`."""
        values: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in values.items()
        }
        return cls(**fields)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_keys(file: Path | None, variable: str, option: str) -> tuple[str, ...]:
    """Keys of a file (one a line, ``#`` begins a comment) and of an environment variable (with commas).

    Raises:
        InputError: the file cannot be read or holds no key, or a key is too short.
    """
    found = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the keys in {file}: {error}. Check {option}.") from error
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise InputError(f"{file} has no key. Write one per line or leave out {option}.")
        found += keys
    for key in found:
        if len(key) < FEWEST_CHARACTERS or not key.isascii() or " " in key:
            raise InputError(
                f"a key must be at least {FEWEST_CHARACTERS} ASCII characters without spaces, but one in {option} or "
                f"{variable} is not. Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
    return tuple(dict.fromkeys(found))

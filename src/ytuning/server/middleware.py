"""Checks of every request before it is answered (keys, size, time) and its line in the log afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ytuning.errors import InputError
from ytuning.server.refusals import refusal
from ytuning.server.service import Settings
from ytuning.server.telemetry import Telemetry, log

__all__ = ["ADMIN_KEYS", "USE_KEYS", "Gate", "read_keys"]

USE_KEYS, ADMIN_KEYS = "YTUNING_API_KEYS", "YTUNING_ADMIN_KEYS"
FEWEST_CHARACTERS_OF_A_KEY = 16
OPEN_PATHS = ("/", "/health", "/v2/health/live", "/v2/health/ready", "/openapi.json")
OPEN_FOLDER, ADMIN_FOLDER = "/page/", "/admin/"
# These paths are answered however many requests there are.
UNCOUNTED = (*OPEN_PATHS, "/metrics", "/info")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 16_000_000
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
# Headers of refusals by status. The connection is closed where the rest of the body is not read.
HEADERS_OF_REFUSALS = {401: {"www-authenticate": "Bearer"}, 413: {"connection": "close"}, 429: {"retry-after": "1"}}


def read_keys(file: Path | None, variable: str, option: str) -> tuple[str, ...]:
    """Keys of a file (one a line, ``#`` begins a comment) and of an environment variable (with commas).

    Raises:
        InputError: the file cannot be read or holds no key, or a key is too short.
    """
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the keys in {file}: {error}. Check {option}.") from error
        keys_of_file = [line for line in lines if line and not line.startswith("#")]
        if not keys_of_file:
            raise InputError(f"{file} has no key. Write one per line or leave out {option}.")
        keys += keys_of_file
    for key in keys:
        if len(key) < FEWEST_CHARACTERS_OF_A_KEY or not key.isascii() or " " in key:
            raise InputError(
                f"a key must be at least {FEWEST_CHARACTERS_OF_A_KEY} ASCII characters without spaces, but one in "
                f"{option} or {variable} is not. "
                "Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
    return tuple(dict.fromkeys(keys))


class _TooLarge(Exception):  # noqa: N818
    """The body is longer than the limit."""


class Gate:
    """An ASGI application around another.

    Args:
        app: application that answers.
        settings: keys and limits.
        telemetry: counts every request.
        draining: whether the server is about to stop, so that clients should close their connections.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, telemetry: Telemetry, *, draining: Callable[[], bool] = lambda: False
    ) -> None:
        self._app, self._settings, self._telemetry, self._draining = app, settings, telemetry, draining
        self._keys = [_hash(key.encode()) for key in settings.keys]
        self._admin_keys = [_hash(key.encode()) for key in settings.admin_keys]
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and answer one HTTP request; other connections pass unchecked."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A path is the same with and without a slash at its end, for keys too. HEAD is GET, of whose reply the
        # server that called this application sends only the headers.
        start, path, method = time.perf_counter(), str(scope["path"]).rstrip("/") or "/", scope["method"]
        scope = {**scope, "path": path, "method": "GET" if method == "HEAD" else method}
        identifier = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state.update(id=identifier, status=0)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                own = [*HEADERS, (b"x-request-id", identifier.encode())]
                if state.get("cut"):
                    own.append((b"x-truncated-inputs", ",".join(map(str, state["cut"])).encode()))
                if self._draining():
                    own.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        limited = path not in UNCOUNTED and not path.startswith(OPEN_FOLDER)
        self._running += limited
        self._telemetry.in_flight.set(self._running)
        try:
            refusal = self._refusal(scope, limited=limited)
            if refusal is not None:
                await _refuse(scope, receive, sending, *refusal)
            else:
                await self._answer(scope, receive, sending)
        finally:
            self._running -= limited
            self._telemetry.in_flight.set(self._running)
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", None) or ("/page" if path.startswith(OPEN_FOLDER) else "other")
            self._telemetry.requests.labels(route=route, status=str(state["status"])).inc()
            self._telemetry.seconds.labels(route=route).observe(seconds)
            counts = {name: state[name] for name in ("texts", "tokens") if name in state}
            if route not in ("/health", "/metrics"):
                log("request", id=identifier, method=method, route=route, status=state["status"],
                    seconds=round(seconds, 4), **counts)  # fmt: skip

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, within the limits of size and time."""
        most, taken = self._settings.body_bytes, 0

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _TooLarge
            return message

        async def sending(message: Message) -> None:
            # The application has caught the first exception, and would say that the body is no JSON.
            if taken > most:
                raise _TooLarge
            await send(message)

        try:
            async with asyncio.timeout(self._settings.seconds):
                await self._app(scope, receiving, sending)
        except _TooLarge:
            await _refuse(scope, receive, send, *self._too_large())
        except TimeoutError:
            self._telemetry.rejected.labels(reason="time").inc()
            if not scope["state"]["status"]:
                message = f"the answer took longer than {self._settings.seconds:g} s. Send fewer texts."
                await _refuse(scope, receive, send, 504, "timeout", message)

    def _refusal(self, scope: Scope, *, limited: bool) -> tuple[int, str, str] | None:
        """Status, type and message of a request that is not let in."""
        headers = dict(scope["headers"])
        refusal = self._check_key(scope["path"], headers.get(b"authorization", b""))
        if refusal is not None:
            return refusal
        if limited and self._running > self._settings.requests:
            self._telemetry.rejected.labels(reason="requests").inc()
            return 429, "overloaded", "the server is answering too many requests. Try again in a second."
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > self._settings.body_bytes:
            return self._too_large()
        return None

    def _check_key(self, path: str, authorization: bytes) -> tuple[int, str, str] | None:
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or not (self._keys or self._admin_keys):
            return None
        scheme, _, given = authorization.partition(b" ")
        key = _hash(given.strip()) if scheme.lower() == b"bearer" else b""
        user, admin = _among(key, self._keys), _among(key, self._admin_keys)
        if path.startswith(ADMIN_FOLDER):
            if user and not admin:
                return 403, "forbidden", "this request needs an administrator's key."
        elif not self._keys:
            return None
        if user or admin:
            return None
        return 401, "unauthorized", "this request needs a valid key. Send the header 'Authorization: Bearer KEY'."

    def _too_large(self) -> tuple[int, str, str]:
        self._telemetry.rejected.labels(reason="size").inc()
        return 413, "too_large", f"a request may have {self._settings.body_bytes:,} bytes. Send fewer texts at a time."


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _among(key: bytes, known: Iterable[bytes]) -> bool:
    """Whether a key's hash is one of those known, in the same time whichever it is."""
    return any([hmac.compare_digest(key, other) for other in known])


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, kind: str, message: str) -> None:
    if status == 413:
        # A connection that is closed before its body is read may lose the reply with it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                left, more = DRAIN_BYTES, True
                while more and left > 0:
                    part = await receive()
                    left -= len(part.get("body", b""))
                    more = part.get("more_body", False)
    status, body = refusal(scope["path"], status, kind, message)
    await JSONResponse(body, status, HEADERS_OF_REFUSALS.get(status))(scope, receive, send)

"""Checks of every request before it is answered (keys, size, time) and its line in the log afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from ytuning.server.settings import Settings
from ytuning.server.telemetry import Telemetry, log

__all__ = ["Gate", "error_body", "plain"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/health", "/v2/health/live", "/v2/health/ready", "/openapi.json")
OPEN_FOLDER, ADMIN_FOLDER = "/page/", "/admin/"
UNCOUNTED = (*OPEN_PATHS, "/metrics", "/info")  # are answered however many requests there are
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DRAIN, DRAINED = 1.0, 16_000_000  # seconds and bytes, at most
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class _TooLarge(Exception):  # noqa: N818
    """The body goes on beyond the limit."""


class Gate:
    """An ASGI application around another.

    Args:
        app: that answers.
        settings: keys and limits.
        telemetry: counts every request.
    """

    def __init__(self, app: App, settings: Settings, telemetry: Telemetry) -> None:
        self._app, self._settings, self._telemetry = app, settings, telemetry
        self._keys = _hash_keys(settings.keys)
        self._admin = _hash_keys(settings.admin_keys)
        self._running = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One connection's request; what is none passes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, path = time.perf_counter(), str(scope["path"])
        identifier = uuid.uuid4().hex
        scope.setdefault("state", {})["id"] = identifier
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS, (b"x-request-id", identifier.encode())]
            await send(message)

        counted = path not in UNCOUNTED and not path.startswith(OPEN_FOLDER)
        self._running += counted
        self._telemetry.in_flight.set(self._running)
        try:
            await self._pass(scope, receive, sending, path, counted, lambda: status)
        finally:
            self._running -= counted
            self._telemetry.in_flight.set(self._running)
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", None) or ("/page" if path.startswith(OPEN_FOLDER) else "other")
            self._telemetry.requests.labels(route=route, status=str(status)).inc()
            self._telemetry.seconds.labels(route=route).observe(seconds)
            state = scope["state"]
            counts = {name: state[name] for name in ("texts", "tokens") if name in state}
            if route not in ("/health", "/metrics"):
                log("request", id=identifier, method=scope["method"], route=route, status=status,
                    seconds=round(seconds, 4), **counts)  # fmt: skip

    async def _pass(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        path: str,
        counted: bool,
        status: Callable[[], int],
    ) -> None:
        headers = {name: value for name, value in scope["headers"]}
        refusal = self._refusal(path, headers)
        if refusal is None and counted and self._running > self._settings.requests:
            self._telemetry.rejected.labels(reason="requests").inc()
            refusal = 429, "overloaded", "the server is answering too many requests. Try again in a second."
        if refusal is None and _length(headers) > self._settings.body_bytes:
            refusal = self._too_large()
        if refusal is not None:
            if refusal[0] == 413:
                await _drain(receive)
            await _reply(send, path, *refusal)
            return
        taken = 0

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._settings.body_bytes:
                raise _TooLarge
            return message

        async def sending(message: Message) -> None:
            if taken > self._settings.body_bytes:
                raise _TooLarge  # the application has caught the first, and would say that the body is no JSON
            await send(message)

        try:
            async with asyncio.timeout(self._settings.seconds):
                await self._app(scope, receiving, sending)
        except _TooLarge:
            await _drain(receive)
            await _reply(send, path, *self._too_large())
        except TimeoutError:
            self._telemetry.rejected.labels(reason="time").inc()
            if not status():
                await _reply(
                    send,
                    path,
                    504,
                    "timeout",
                    f"the answer took longer than {self._settings.seconds:g} s. Send fewer texts.",
                )

    def _too_large(self) -> tuple[int, str, str]:
        self._telemetry.rejected.labels(reason="size").inc()
        return 413, "too_large", f"a request may have {self._settings.body_bytes:,} bytes. Send fewer texts at a time."

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        """Status, type and message of a request without the key that it needs."""
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or not (self._keys or self._admin):
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        key = hashlib.sha256(given.strip()).digest() if scheme.lower() == b"bearer" else b""
        admin = _among(key, self._admin)
        if path.startswith(ADMIN_FOLDER):
            if admin:
                return None
            known = _among(key, self._keys)
            if known:
                return 403, "forbidden", "this request needs an administrator's key."
        elif admin or not self._keys or _among(key, self._keys):
            return None
        return 401, "unauthorized", "this request needs a valid key. Send the header 'Authorization: Bearer KEY'."


async def _drain(receive: Receive) -> None:
    """Read some of a body that is refused: a connection that is closed before may lose the reply with it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN):
            most = DRAINED
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _hash_keys(keys: Iterable[str]) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys]


def _among(key: bytes, known: Iterable[bytes]) -> bool:
    """Whether a key's hash is one of those known, in the same time whichever it is."""
    found = False
    for each in known:
        found |= hmac.compare_digest(key, each)
    return found


def _length(headers: dict[bytes, bytes]) -> int:
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() and len(value) < 20 else 0


async def _reply(send: Send, path: str, status: int, kind: str, message: str) -> None:
    body = json.dumps(error_body(path, kind, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", b"1"))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(path: str, kind: str, message: str) -> dict[str, Any]:
    """A refusal in the form of the path's protocol: of OpenAI under /v1, of the Open Inference Protocol under /v2."""
    message = plain(message)
    if path.startswith("/v1/"):
        return {"error": {"message": message, "type": kind, "param": None, "code": kind}}
    return {"error": message} if path.startswith("/v2") else {"error": message, "error_type": kind}


def plain(text: str) -> str:
    """The text without lone surrogates, which no reply can hold."""
    return text.encode("utf-8", "backslashreplace").decode()

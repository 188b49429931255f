"""Questions that no served task answers, sent to another server; it is left alone for a while when it keeps failing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from ytuning.errors import InputError
from ytuning.server.telemetry import Telemetry, log

__all__ = ["FALLBACK_KEY", "FORWARDED", "Fallback", "FallbackError", "check_url", "read_key"]

Read = TypeVar("Read")

FALLBACK_KEY = "YTUNING_FALLBACK_KEY"
# A server that is asked as a fallback does not ask its own, which may be the one that asked.
FORWARDED = "x-ytuning-fallback"
CONNECTIONS, KEPT_CONNECTIONS = 64, 16
MOST_BYTES = 16_000_000
# The request itself is at fault, not the server, so one bad client cannot close the way for the others.
FAULTS_OF_REQUESTS = (400, 413, 422)


class FallbackError(Exception):
    """The other server has not answered; the message is fit for a client."""


class Fallback:
    """Another server of decision routes, with a bounded pool of connections and a circuit breaker.

    After a number of failures in a row, no request is sent for some time. Then one is let through as a trial.

    Args:
        url: address of the server, to which the path of a route is added.
        telemetry: counts requests and failures.
        key: key that is sent to it.
        seconds: maximum time that it may take.
        failures: number of failures in a row after which it is left alone.
        pause: seconds for which it is then left alone.
    """

    def __init__(
        self, url: str, telemetry: Telemetry, *, key: str | None, seconds: float, failures: int, pause: float
    ) -> None:
        self._telemetry, self._seconds, self._most_failures, self._pause = telemetry, seconds, failures, pause
        self._failures = 0
        self._closed_until = 0.0
        self._trial = False
        telemetry.fallback_breaker_open.set_function(lambda: float(self._is_open()))
        headers = {"content-type": "application/json", FORWARDED: "1"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=seconds,
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=KEPT_CONNECTIONS),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, path: str, fields: dict[str, Any], read: Callable[[Any], Read], *, seconds: float) -> Read:
        """Return what is read of the server's answer to a request.

        Args:
            path: path of the route, such as ``/v1/decisions``.
            fields: body of the request.
            read: reads the JSON value of the answer, and raises ValueError if it has not the form of the route.
            seconds: time that is left for it; no more than the maximum is used.

        Raises:
            FallbackError: the server is not asked at present, or gives no such value with status 200 in time.
        """
        seconds = min(seconds, self._seconds)
        if self._is_open() or seconds <= 0:
            self._telemetry.fallback_failures.labels(reason="not_asked").inc()
            raise FallbackError("the fallback server is not asked at present, because it failed or time is short.")
        self._telemetry.fallback_requests.inc()
        # While a trial runs, no other request is let through.
        trial = self._trial = self._failures >= self._most_failures
        try:
            return await self._post(path, fields, read, seconds)
        except FallbackError as error:
            log("fallback failed", path=path, reason=str(error), level=logging.WARNING)
            raise
        finally:
            if trial:
                self._trial = False

    def _is_open(self) -> bool:
        return self._trial or time.monotonic() < self._closed_until

    async def _post(self, path: str, fields: dict[str, Any], read: Callable[[Any], Read], seconds: float) -> Read:
        """Send a request and read its answer; failures are counted."""
        body = json.dumps(fields).encode()
        try:
            async with asyncio.timeout(seconds):
                status, content = await self._exchange(path, body)
        except (TimeoutError, httpx.TimeoutException):
            self._count("timeout")
            raise FallbackError(f"the fallback server did not answer within {seconds:.3g} s.") from None
        except (httpx.HTTPError, httpx.InvalidURL):
            self._count("connection")
            raise FallbackError("the fallback server cannot be reached.") from None
        if status != 200:
            self._count("status", blame=status not in FAULTS_OF_REQUESTS)
            raise FallbackError(f"the fallback server answered with the status {status}.")
        try:
            answer = read(json.loads(content))
        except (ValueError, RecursionError):
            self._count("invalid")
            raise FallbackError("the answer of the fallback server is not valid.") from None
        self._failures = 0
        return answer

    async def _exchange(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of a reply, of whose body no more than a limit is read."""
        async with self._client.stream("POST", path, content=body) as reply:
            content = bytearray()
            async for part in reply.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    break
            return reply.status_code, bytes(content)

    def _count(self, reason: str, *, blame: bool = True) -> None:
        """Count a failure; after some in a row that the server is to blame for, it is left alone for a while."""
        self._telemetry.fallback_failures.labels(reason=reason).inc()
        self._failures = self._failures + 1 if blame else 0
        if self._failures >= self._most_failures:
            self._closed_until = time.monotonic() + self._pause


def check_url(url: str) -> str:
    """The address of a fallback server, without ``/v1`` at its end.

    Raises:
        InputError: it is no such address.
    """
    try:
        parsed = urlsplit(url)
        # The port is read only here, and refused if it is none.
        fits = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
        fits = fits and url.isprintable() and " " not in url and not (parsed.query or parsed.fragment)
    except ValueError:
        fits = False
    if not fits:
        raise InputError(f"--fallback must be an address such as https://api.openai.com. Got {url!r} instead.")
    if parsed.username is not None:
        raise InputError(f"--fallback must not contain a password. Use --fallback-key FILE or {FALLBACK_KEY}.")
    return url.rstrip("/").removesuffix("/v1")


def read_key(file: Path | None) -> str | None:
    """The key for the fallback server: the only line of a file, or the environment variable.

    Raises:
        InputError: the file cannot be read or has not one line, or the key contains spaces or is not ASCII.
    """
    if file is None:
        key, source = os.environ.get(FALLBACK_KEY, "").strip(), FALLBACK_KEY
        if not key:
            return None
    else:
        source = str(file)
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the key in {file}: {error}. Check --fallback-key.") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if len(keys) != 1:
            raise InputError(f"{file} must have one key on a line of its own. It has {len(keys)}.")
        key = keys[0]
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"the key in {source} must be ASCII characters without spaces.")
    return key

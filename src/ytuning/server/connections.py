"""How replies are written and how the server stops, so that a balancer loses no request with one of its replicas."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ytuning.server.service import Service
from ytuning.server.telemetry import log

__all__ = ["WholeReplies", "drain_on_sigterm"]

# Longer parts are copied nowhere. A reply this long needs several calls of the system in any case.
JOINED_BYTES = 65_536


class WholeReplies(H11Protocol):
    """HTTP/1.1 that hands the headers of a reply to the system together with its body.

    uvicorn hands them on one after the other. If the process is killed in between, a proxy has seen the headers and
    cannot ask another replica any more. In 20 kills under load, one request was lost in this way.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(_JoinedWrites(transport, self.loop))  # type: ignore[arg-type]


class _JoinedWrites:
    """A transport that joins what is written in one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if len(data) > JOINED_BYTES:
            self._flush()
            self._transport.write(data)
        elif data:
            if not self._parts:
                self._loop.call_soon(self._flush)
            self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts:
            self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def drain_on_sigterm(service: Service) -> None:
    """Let SIGTERM stop the server only after it has told balancers and clients for some time to go elsewhere.

    It is called in the event loop of the main thread, where uvicorn already handles signals.
    """
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    if not callable(stop):
        return

    def drain(number: int, frame: FrameType | None) -> None:
        if not service.ready:
            # Nobody has been sent here yet, or the server cannot start.
            stop(number, frame)
        # A supervisor may send the signal to all processes, and the parent sends it on. Ctrl-C still stops at once.
        elif not service.draining:
            service.draining = True
            loop.call_soon_threadsafe(begin, number, frame)

    def begin(number: int, frame: FrameType | None) -> None:
        log("draining", seconds=service.settings.drain)
        loop.call_later(service.settings.drain, stop, number, frame)

    signal.signal(signal.SIGTERM, drain)

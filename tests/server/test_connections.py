"""How replies are written, and what a server does between SIGTERM and its end."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from uvicorn.server import ServerState

from tests.server.serving import PATIENCE, Process, until
from ytuning.server.connections import WholeReplies

BODY = {"inputs": "my card", "task": "single"}


class RecordingTransport(asyncio.Transport):
    """A transport that keeps each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def resume_reading(self) -> None:
        pass


def writes_of(length: int, *, header: bytes = b"") -> RecordingTransport:
    """The transport after a reply of this length."""
    transport = RecordingTransport()

    async def answer() -> None:
        config = uvicorn.Config(Response(b"a" * length), log_config=None, ws="none", http=WholeReplies)
        protocol = WholeReplies(config, ServerState(), {}, asyncio.get_running_loop())
        protocol.connection_made(transport)
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: here\r\n" + header + b"\r\n")
        async with asyncio.timeout(PATIENCE):
            while b"a" * length not in b"".join(transport.writes):
                await asyncio.sleep(0)
        protocol.connection_lost(None)

    asyncio.run(answer())
    return transport


@pytest.mark.parametrize("header", [b"", b"connection: close\r\n"])
def test_the_headers_of_a_reply_leave_with_its_body(header: bytes) -> None:
    (reply,) = writes_of(1000, header=header).writes
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n") and reply.endswith(b"\r\n\r\n" + b"a" * 1000)


def test_a_long_body_is_not_copied() -> None:
    headers, body = writes_of(1_000_000).writes
    assert headers.endswith(b"\r\n\r\n") and body == b"a" * 1_000_000


def test_a_draining_server_answers_and_sends_everybody_elsewhere(served_tasks: Path) -> None:
    with Process(served_tasks / "single", "--drain", "60") as process:
        process.ready()
        with httpx.Client(base_url=process.url, timeout=PATIENCE) as client:
            before = client.post("/predict", json=BODY)
            process.process.send_signal(signal.SIGTERM)
            until(lambda: client.get("/health").status_code == 503)
            # A supervisor may send the signal twice.
            process.process.send_signal(signal.SIGTERM)
            for path in ("/health", "/v2/health/ready", "/infinity/health"):
                reply = client.get(path)
                assert reply.status_code == 503 and "about to stop. Use another one." in reply.text
            assert client.get("/v2/health/live").status_code == 200
            after = client.post("/predict", json=BODY)
        assert after.status_code == 200 and after.json() == before.json()
        assert "connection" not in before.headers and after.headers["connection"] == "close"
        # Ctrl-C does not wait for the end of the drain.
        assert process.end(signal.SIGINT) == 0
    assert [json.loads(line)["event"] for line in process.lines].count("draining") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_drain_ends(served_tasks: Path, workers: int) -> None:
    with Process(served_tasks / "single", "--drain", "0.2", "--workers", str(workers)) as process:
        process.ready()
        until(lambda: sum('"ready"' in line for line in process.lines) == workers)
        assert process.end() == 0
    events = [json.loads(line)["event"] for line in process.lines]
    assert events.count("draining") == events.count("stopped") == workers

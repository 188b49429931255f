"""Servers for tests: in a thread of this process, or as ``ytuning serve`` in one of its own."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder
from ytuning.heads.pairs import PairMode
from ytuning.server.app import create_app
from ytuning.server.catalog import Catalog
from ytuning.server.connections import WholeReplies
from ytuning.server.service import Settings
from ytuning.tasks.shared_encoder import LiveTexts, SharedEncoder
from ytuning.tasks.task import Task

PATIENCE = 60.0  # seconds until a test gives up; nothing waits that long unless it is broken


class HeldEncoder(SharedEncoder):
    """An encoder that waits until it is let go, and counts.

    Attributes:
        calls: number of texts of each call.
        go: set: it does not wait.
        poison: a text that it fails on.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.calls: list[int] = []
        self.go = threading.Event()
        self.poison: str | None = None

    def read(
        self, inputs: Sequence[TextInput], tasks: Sequence[Task], *, pair_mode: PairMode | None, padded: bool = False
    ) -> LiveTexts:
        self.calls.append(len(inputs))
        assert self.go.wait(PATIENCE)
        if any(self.poison == text for text, _ in inputs):
            raise RuntimeError(f"cannot encode {self.poison}")
        return super().read(inputs, tasks, pair_mode=pair_mode, padded=padded)


def held_catalog(*folders: Path) -> tuple[Catalog, HeldEncoder]:
    """An open catalog whose tasks share a held encoder."""
    catalog = Catalog(folders)
    catalog.open()
    encoder = HeldEncoder(next(iter(catalog.tasks.values())).encoder.encoder)
    catalog.tasks = {name: replace(served, encoder=encoder) for name, served in catalog.tasks.items()}
    return catalog, encoder


@dataclass
class Live:
    """A server that listens, and a client without a key."""

    url: str
    client: httpx.Client

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, or 0 before it has any."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = {
            (sample.name, tuple(sample.labels.items())): sample.value for each in families for sample in each.samples
        }
        return samples.get((f"ytuning_{name}", tuple(labels.items())), 0.0)


def settings(*folders: Path, **changes: Any) -> Settings:
    """Of a server that looks at its folders only when asked."""
    return Settings(tuple(map(str, folders)), **{"watch": 0.0, **changes})


@contextmanager
def live(given: Settings, catalog: Catalog | None = None, *, wait: bool = True) -> Iterator[Live]:
    """A server in a thread of this process; ``wait``: until it is ready."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(create_app(given, catalog), log_config=None, access_log=False, ws="none", http=WholeReplies)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            until(lambda: server.started)
            if wait:
                until(lambda: client.get("/health").status_code == 200)
            yield Live(url, client)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
    assert not thread.is_alive()


def until(done: Callable[[], object]) -> None:
    """Wait for something that comes true soon."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


class Process:
    """``ytuning serve``."""

    def __init__(self, *arguments: str | Path, port: int | None = None, **environment: str) -> None:
        self.port = free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-c",
            "from ytuning.cli import main; main()",
            "serve",
            *map(str, arguments),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.lines: list[str] = []
        self._ended: queue.Queue[None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
        self._ended.put(None)

    def ready(self) -> Process:
        def answers() -> bool:
            assert self.process.poll() is None, self.lines
            try:
                return httpx.get(f"{self.url}/health", timeout=PATIENCE).status_code == 200
            except httpx.TransportError:
                return False

        until(answers)
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(PATIENCE)
        self._ended.get(timeout=PATIENCE)
        self._close()
        return status

    def _close(self) -> None:
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE)
        self._close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])

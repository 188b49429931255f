"""Replicas that share a folder of tasks, behind nginx with the settings of ``deploy/nginx.conf``."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SERVED_TEXTS
from tests.server.serving import PATIENCE, Process, free_port, until
from ytuning.tasks.predictor import Predictor

SETTINGS = Path(__file__).parents[2] / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx. Install it: apt-get install nginx-light")

# Around the shipped file, which belongs into the http section: everything that nginx writes goes to the test's folder.
AROUND = """
{user}
worker_processes 2;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    log_format attempts '$status $upstream_status';
    access_log {folder}/access.log attempts;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/ytuning.conf;
}}
"""


@contextmanager
def nginx(folder: Path, replicas: list[int]) -> Iterator[str]:
    """The address of nginx in front of replicas on these ports."""
    assert NGINX is not None
    port = free_port()
    shipped = SETTINGS.read_text()
    for default, own in zip(("8000", "8001", "8002"), (port, *replicas), strict=True):
        assert default in shipped
        shipped = re.sub(rf":{default}\b", f":{own}", shipped)
    (folder / "ytuning.conf").write_text(shipped)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, user=user))
    command = [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, process.communicate()
            try:
                return httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200
            except httpx.TransportError:
                return False

        until(answers)
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()


@dataclass
class SharedFolder:
    """A read-only folder of tasks in which the task ``fresh`` is a link to one of two releases.

    Attributes:
        root: the folder that is served.
        answers: for each task, the most probable label and its probability for each text, once for each release.
    """

    root: Path
    answers: dict[str, list[list[tuple[str, float]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self.state()

    def release(self, number: int) -> None:
        """Let the task lead to another release in one step, as an operator does."""
        link = self.root / "releases" / "next"
        os.symlink(self.root / "releases" / str(number) / "fresh", link)
        os.replace(link, self.root / "fresh")

    def state(self) -> dict[str, tuple[int, int, int]]:
        """Inode, size and time of everything in the releases and in the task that stays."""
        paths = [path for place in ("releases/1", "releases/2", "steady") for path in (self.root / place).rglob("*")]
        return {str(path): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture
def shared(served_tasks: Path, tmp_path: Path) -> Iterator[SharedFolder]:
    root = tmp_path / "tasks"
    for source, place in (("single", "steady"), ("single", "releases/1/fresh"), ("ordinal", "releases/2/fresh")):
        shutil.copytree(served_tasks / source, root / place)
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            os.chmod(Path(folder) / name, 0o444)
        os.chmod(folder, 0o555)
    # The operator writes where the links are; the replicas only read.
    for folder in ("", "releases"):
        os.chmod(root / folder, 0o755)
    shared = SharedFolder(root)
    shared.release(1)
    texts = [(text, None) for text in SERVED_TEXTS]
    for name, places in {"steady": ["steady"], "fresh": ["releases/1/fresh", "releases/2/fresh"]}.items():
        shared.answers[name] = [
            [
                max(answer.scores.items(), key=lambda item: item[1])
                for answer in Predictor([root / place]).predict(texts)
            ]
            for place in places
        ]
    yield shared
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755)


class Clients:
    """Threads that ask all the time, without retrying.

    Attributes:
        wrong: every reply that was not right, and every request without a reply.
        right: number of right replies.
    """

    def __init__(self, url: str, shared: SharedFolder, threads: int = 4) -> None:
        self.wrong: list[Any] = []
        self.right = 0
        self._url, self._shared = url, shared
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def _ask(self, thread: int) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE) as client:
            for number in itertools.count(thread):
                if self._stop.is_set():
                    return
                index, task = number % len(SERVED_TEXTS), ("steady", "fresh")[number % 5 == 0]
                problem = self._problem(client, index, task)
                with self._lock:
                    self.right += problem is None
                    self.wrong += [] if problem is None else [problem]

    def _problem(self, client: httpx.Client, index: int, task: str) -> Any:
        try:
            reply = client.post("/predict", json={"inputs": SERVED_TEXTS[index], "task": task})
        except httpx.TransportError as error:
            return repr(error)
        if reply.status_code != 200:
            return reply.status_code, reply.text
        best = reply.json()[0]
        allowed = [answers[index] for answers in self._shared.answers[task]]
        if any(best["label"] == label and abs(best["score"] - score) < 1e-3 for label, score in allowed):
            return None
        return best, allowed

    def go_on(self, requests: int = 40) -> None:
        """Wait for this number of further right replies."""
        enough = self.right + requests
        until(lambda: self.right >= enough or self.wrong)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@needs_nginx
def test_no_request_is_lost_while_replicas_die_stop_and_reload(shared: SharedFolder, tmp_path: Path) -> None:
    (folder := tmp_path / "nginx").mkdir()
    ports = [free_port(), free_port()]
    with ExitStack() as stack:

        def start(port: int) -> Process:
            return stack.enter_context(Process(shared.root, "--watch", "0.1", port=port))

        def serves_release(number: int, replica: Process) -> bool:
            labels = httpx.get(f"{replica.url}/info", timeout=PATIENCE).json()["tasks"][0]["kind"]
            return bool(labels == ("single", "ordinal")[number - 1])

        first, second = [start(port) for port in ports]
        for replica in (first, second):
            replica.ready()
        url = stack.enter_context(nginx(folder, ports))
        with Clients(url, shared) as clients:
            clients.go_on()
            # One replica dies, and comes back. While it loads, it answers 503.
            assert first.end(signal.SIGKILL) == -signal.SIGKILL
            clients.go_on()
            first = start(ports[0]).ready()
            clients.go_on()
            # Both load another release of a task.
            assert serves_release(1, first) and serves_release(1, second)
            shared.release(2)
            until(lambda: serves_release(2, first) and serves_release(2, second))
            clients.go_on()
            # One replica stops in good order, and comes back; the other one stops at once after that.
            assert second.end() == 0
            clients.go_on()
            second = start(ports[1]).ready()
            assert first.end() == 0
            clients.go_on()
    assert clients.wrong == []
    # A request that failed on one replica was answered by another.
    attempts = [line.split(" ", 1)[1] for line in (folder / "access.log").read_text().splitlines()]
    assert any("," in statuses for statuses in attempts), set(attempts)
    # The replicas have written nothing into the shared folder. Root can write there in spite of its modes.
    assert shared.state() == shared.before

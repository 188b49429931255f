"""A server with canned replies in the form of the real one's, for tests of its page."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ytuning

__all__ = ["PAGE", "Served", "Task", "served", "task"]

PAGE = Path(ytuning.__file__).parent / "server" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
}
Task = dict[str, Any]
Input = str | list[str]


def task(name: str, labels: list[str], kind: str = "single", pair: str | None = None) -> Task:
    """As GET /info has it."""
    return {"name": name, "kind": kind, "labels": labels, "pair": pair, "encoder": "tiny", "max_input_length": 256}


class Served:
    """What the server answers, which a test may change, and what it was asked.

    Attributes:
        address: of the page.
        tasks: of GET /info.
        key: that requests must have, if any.
        busy: how many of the next requests are refused with 429.
        failure: status and body of every reply, if any.
        seconds: how long an answer takes, by its request.
        results: the result of a task for an input, in place of :func:`result`.
        asked: path and body of each request that was let in.
    """

    def __init__(self, address: str, tasks: list[Task]) -> None:
        self.address, self.tasks = address, tasks
        self.key: str | None = None
        self.busy = 0
        self.failure: tuple[int, bytes] | None = None
        self.seconds: Callable[[Any], float] = lambda body: 0.0
        self.results: Callable[[Task, Input], dict[str, Any] | None] = lambda task, content: None
        self.asked: list[tuple[str, Any]] = []

    def reply(self, path: str, body: Any, key: str | None) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers."""
        if path in FILES:
            name, kind = FILES[path]
            return 200, (PAGE / name).read_bytes(), {"Content-Type": kind}
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, b'{"error": "a key is needed", "error_type": "unauthorized"}', {}
        if self.busy:
            self.busy -= 1
            return 429, b'{"error": "busy", "error_type": "overloaded"}', {"Retry-After": "1"}
        self.asked.append((path, body))
        if self.failure is not None:
            return *self.failure, {}
        time.sleep(self.seconds(body))
        made: dict[str, Callable[[Any], Any]] = {
            "/info": lambda _: {"version": "0.1.0", "tasks": self.tasks, "max_client_batch_size": 1000},
            "/classify_many": self._classify,
            "/explain": self._explain,
        }
        return 200, json.dumps(made[path](body)).encode(), {"Content-Type": "application/json"}

    def classified(self) -> list[Any]:
        """The bodies of the requests for answers."""
        return [body for path, body in self.asked if path == "/classify_many"]

    def _classify(self, body: Any) -> Any:
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        paired = isinstance(inputs[0], list)
        asked = [each for each in self.tasks if bool(each["pair"]) == paired]
        if body["tasks"] is not None:
            asked = [each for each in asked if each["name"] in body["tasks"]]
        data = [
            {
                "task": each["name"],
                "kind": each["kind"],
                "results": [
                    _shortened(self.results(each, content) or result(each, content), body.get("top_k"))
                    for content in inputs
                ],
            }
            for each in asked
        ]
        usage = {"prompt_tokens": 7, "total_tokens": 7, "truncated": 0}
        timing = {"total": 0.02, "encoder": 0.015, "heads": 0.005}
        return {"object": "classify_many", "data": data, "usage": usage, "timing": timing}

    def _explain(self, body: Any) -> Any:
        (asked,) = [task for task in self.tasks if task["name"] == body["task"]]
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        labels = asked["labels"] or ["value"]
        tokens, effects = [{"side": 0, "start": 0, "end": 0}], [[9.0] * len(labels)]
        for side, text in enumerate(texts):
            place = 0
            for word in text.split():
                place = text.index(word, place)
                tokens.append({"side": side, "start": place, "end": place + len(word)})
                effects.append([effect(word) * (1 if label == labels[0] else -1) for label in labels])
                place += len(word)
        return {"task": body["task"], "labels": labels, "tokens": tokens, "effects": effects}


def _shortened(result: dict[str, Any], most: int | None) -> dict[str, Any]:
    return {**result, "scores": result["scores"][:most]}


def effect(word: str) -> float:
    """On the logit of the first label."""
    return {"good": 2.0, "bad": -1.0, "faint": 0.02}.get(word, 0.0)


def result(task: Task, content: Input) -> dict[str, Any]:
    """Labels that the text has come first, each half as likely as the one before it."""
    text = content if isinstance(content, str) else " ".join(content)
    if task["kind"] == "regression":
        return {"answer": -len(text) / 8, "scores": [], "truncated": False}
    ordered = sorted(task["labels"], key=lambda label: label not in text)
    scores = [{"label": label, "score": 0.5 ** (place + 1)} for place, label in enumerate(ordered)]
    answer = [label for label in ordered if label in text] if task["kind"] == "multi" else ordered[0]
    return {"answer": answer, "scores": scores, "truncated": False}


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, body: Any) -> None:
        status, content, headers = self.server.served.reply(self.path, body, self.headers["Authorization"])
        self.send_response(status)
        for name, value in {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    served: Served

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that no longer waits for a reply is part of the tests."""


@contextmanager
def served(tasks: list[Task]) -> Iterator[Served]:
    """Runs on a port of this machine until the end of the block."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.served = Served(f"http://127.0.0.1:{server.server_address[1]}/", tasks)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.served
        finally:
            server.shutdown()
            thread.join()

"""The server under load: many tasks, saturation, overload, reloads, a restart, and an endpoint without batching.

python -m benchmarks.serving --data ../shared/data --out results --seconds 300
python -m benchmarks.serving --data ../shared/data --out results --decisions 120

The server and its clients are processes of one machine, so the clients' work is part of every figure. A request holds
one text and names one task; texts are those of BANKING77, tasks differ in noise on their label rows. Every reply is
compared with the offline prediction of the same task.

With --decisions there is only a load of /v1/decisions: 20 questions a request, to tasks of several data sets and kinds.
With --served it asks the tasks of a folder, and /classify_many for the scores of one, of 50 and of all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import torch

from benchmarks.harness import bar, head_option, parser, recipe, rows_of, sentence_transformer
from benchmarks.machine import record
from ytuning.encoder.encoder import load_encoder
from ytuning.features.features import live_features
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledHead
from ytuning.tasks.predictor import Prediction, Predictor
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task

CLIENTS, OVERLOAD = 64, 10
MOMENT = 0.05  # seconds
TOLERANCE = 2e-3  # of a probability: a batch's size changes the last bits of its products


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    head_option(options)
    options.add_argument("--tasks", type=int, default=50)
    options.add_argument("--texts", type=int, default=1000)
    options.add_argument("--seconds", type=float, default=300, help="of the long load; others take a tenth")
    options.add_argument("--reloads", type=int, default=100)
    options.add_argument("--decisions", type=float, help="seconds of a load of /v1/decisions, instead of all else")
    options.add_argument("--questions", type=int, default=20, help="of a request of --decisions")
    options.add_argument("--served", type=Path, help="folder of tasks for --decisions; default: 20 of few rows")
    options.add_argument("--cascade", type=float, help="of the server for --decisions; default: none")
    options.add_argument("--opponent", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = options.parse_args(argv)
    if arguments.opponent:
        opponent(arguments)
        return
    if arguments.decisions:
        with tempfile.TemporaryDirectory() as root:
            figures = decision_figures(arguments.served or make_decision_tasks(Path(root), arguments), arguments)
        record("decisions", figures, arguments.out, bars_of_decisions(figures))
        return
    with tempfile.TemporaryDirectory() as root:
        texts = make_tasks(Path(root), arguments)
        expected = offline(Path(root) / "tasks", texts)
        figures = asyncio.run(measured(Path(root), texts, expected, arguments))
    record("serving", figures, arguments.out, bars_of(figures))


def bars_of(figures: dict[str, Any]) -> list[Any]:
    """What is wanted beside what was measured."""
    many, long, over = figures["many_tasks"], figures["long_load"], figures["overload"]
    wrong = long["wrong"] + over["wrong"] + figures["reloads"]["wrong"]
    failed = long["failed"] + figures["reloads"]["failed"]
    return [
        bar("50 tasks against 1, requests a second", many["requests_ratio"], at_least=0.7),
        bar("50 tasks against 1, median seconds", many["median_ratio"], at_most=1.4),
        bar("served against the bare encoder pass, texts a second", figures["saturation"]["ratio"], at_least=0.8),
        bar("against an endpoint without batching, 32 clients", figures["opponent"]["ratio"], at_least=4),
        bar("wrong or swapped answers", wrong, at_most=0),
        bar("failed requests under load and reloads", failed, at_most=0),
        bar("memory of the long load, growth", long["memory_growth"], at_most=0.05),
        bar("overload answered otherwise than 200 or 429", over["failed"], at_most=0),
        bar(
            "seconds from start to ready after kill -9, beyond loading", figures["restart"]["beyond_loading"], at_most=5
        ),
        bar("accepted requests lost at SIGTERM", figures["terminated"]["failed"], at_most=0),
    ]


def make_tasks(root: Path, arguments: argparse.Namespace) -> list[str]:
    """One trained task and copies with other label rows; returns the texts to ask about."""
    folder = arguments.data / "banking77"
    train = rows_of(folder, "train", 2000)
    encoder, store = load_encoder(arguments.encoder), FeatureStore(root / "store")
    task = train_task(train, encoder, store, recipe(arguments), options=TrainOptions(name="task0")).task
    head = task.head
    assert isinstance(head, PooledHead)
    rows = head.label_rows.detach().clone()
    for number in range(arguments.tasks):
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            head.label_rows.copy_(rows + 0.3 * float(rows.std()) * noise)
        save_task(replace(task, name=f"task{number}"), root / "tasks" / f"task{number}")
    return rows_of(folder, "test", arguments.texts).texts


def offline(tasks: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """Task -> probabilities (texts, C) in the order of its labels."""
    names = sorted(folder.name for folder in tasks.iterdir())
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for prediction in Predictor([tasks / name for name in names]).predict((text, None) for text in texts):
        found[prediction.task].append(list(prediction.scores.values()))
    return {name: np.array(rows) for name, rows in found.items()}


async def measured(
    root: Path, texts: list[str], expected: dict[str, np.ndarray], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Everything, one after the other."""
    labels = list(load_task(root / "tasks" / "task0").target.names)
    check = Check(texts, expected, labels)
    names, short = list(expected), arguments.seconds / 10
    figures: dict[str, Any] = {}
    with running(["serve", str(root / "tasks" / "task0")]) as server:
        await server.ready()
        await load(server, check, ["task0"], CLIENTS, short / 3)
        one = await load(server, check, ["task0"], CLIENTS, short)
        lone = await load(server, check, ["task0"], 1, short)
    with running(["serve", str(root / "tasks"), "--watch", "0"]) as server:
        started = await server.ready()
        await load(server, check, names, CLIENTS, short / 3)
        many = await load(server, check, names, CLIENTS, short)
        lone_many = await load(server, check, names, 1, short)
        all_tasks = await load(server, check, names, CLIENTS, short, together=True)
        bare = bare_pass(texts, arguments.encoder)
        figures["many_tasks"] = {
            "one": one.figures(), "many": many.figures(), "one_client": [lone.figures(), lone_many.figures()],
            "every_request_asks_all_tasks": all_tasks.figures(),
            "requests_ratio": many.rate / one.rate, "median_ratio": many.median / one.median,
        }  # fmt: skip
        batch = await load(server, check, ["task0"], 16, short, size=64)
        figures["saturation"] = {
            "bare_texts_a_second": bare, "served_texts_a_second": batch.rate * 64, "ratio": batch.rate * 64 / bare,
            "one_text_a_request": one.rate, "ratio_one_text_a_request": one.rate / bare,
        }  # fmt: skip
        before = server.memory()
        halves = [await load(server, check, names, CLIENTS, arguments.seconds / 2) for _ in range(2)]
        after = server.memory()
        middle = server.memories[len(server.memories) // 2] if server.memories else before
        figures["long_load"] = {
            "seconds": arguments.seconds, "requests": sum(half.good for half in halves),
            "wrong": sum(half.wrong for half in halves), "failed": sum(half.failed for half in halves),
            "megabytes": [before / 1e6, middle / 1e6, after / 1e6], "memory_growth": after / before - 1,
        }  # fmt: skip
        figures["reloads"] = await reloads(root, server, check, names, arguments.reloads)
        ended = asyncio.create_task(load(server, check, names, CLIENTS, short, until_refused=True))
        await asyncio.sleep(min(1.0, short / 2))
        server.terminated = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        last = await ended
        figures["terminated"] = {
            "answered": last.good, "failed": last.broken, "status": await asyncio.to_thread(server.process.wait, 60),
        }  # fmt: skip
    with running(["serve", str(root / "tasks"), "--queue-tokens", "2000", "--most-requests", "200"]) as server:
        await server.ready()
        over = await load(server, check, names, CLIENTS * OVERLOAD, short)
        figures["overload"] = {**over.figures(), "clients": CLIENTS * OVERLOAD, "refused": over.refused}
        server.process.kill()
    with running(["serve", str(root / "tasks")]) as server:
        again = await server.ready()
        load_alone = "import sys; from ytuning.tasks.predictor import Predictor; Predictor(sys.argv[1:])"
        start = time.perf_counter()
        folders = [str(folder) for folder in sorted((root / "tasks").iterdir())]
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", load_alone, *folders], check=True)
        loading = time.perf_counter() - start
        figures["restart"] = {"first": started, "again": again, "loading": loading, "beyond_loading": again - loading}
    figures["opponent"] = await beside_opponent(root, check, short, arguments)
    return figures


async def reloads(root: Path, server: Server, check: Check, names: list[str], times: int) -> dict[str, Any]:
    """Tasks are written again and reloaded while clients ask."""
    folder = root / "tasks" / "task0"
    task = load_task(folder)
    before = server.memory()
    stop = asyncio.Event()
    asking = asyncio.create_task(load(server, check, names, 16, 3600, stop=stop))
    for number in range(times):
        if number == times // 4:
            before = server.memory()  # the first ones fill what later ones use again
        await asyncio.to_thread(save_task, task, folder)
        status, body = await server.post("/admin/reload", {})
        assert status == 200 and json.loads(body)["changed"] == ["task0"], body
    stop.set()
    found = await asking
    return {
        "times": times, "requests": found.good, "wrong": found.wrong, "failed": found.failed,
        "memory_growth": server.memory() / before - 1,
    }  # fmt: skip


async def beside_opponent(root: Path, check: Check, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Requests a second of 32 clients, each server in turn."""
    with running(["serve", str(root / "tasks" / "task0")]) as server:
        await server.ready()
        ours = await load(server, check, ["task0"], 32, seconds)
    command = ["-m", "benchmarks.serving", "--data", str(arguments.data), "--encoder", arguments.encoder]
    with running([*command, "--opponent", str(root)], module=False) as server:
        await server.ready()
        theirs = await load(server, None, ["task0"], 32, seconds)
    return {"ours": ours.figures(), "theirs": theirs.figures(), "ratio": ours.rate / theirs.rate}


def opponent(arguments: argparse.Namespace) -> None:
    """What people write: sentence-transformers and scikit-learn behind FastAPI, a text at a time."""
    import uvicorn
    from fastapi import FastAPI
    from sklearn.linear_model import LogisticRegression

    encoder = sentence_transformer(load_encoder(arguments.encoder))
    train = rows_of(arguments.data / "banking77", "train", 500)  # enough for its speed
    model = LogisticRegression(max_iter=50).fit(encoder.encode(train.texts, show_progress_bar=False), train.names)
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict/task0")
    def predict(body: dict[str, str]) -> list[dict[str, Any]]:
        scores = model.predict_proba(encoder.encode([body["inputs"]], show_progress_bar=False))[0]
        return [{"label": str(model.classes_[n]), "score": float(scores[n])} for n in scores.argsort()[::-1]]

    uvicorn.run(app, port=arguments.port, log_level="error")


def bare_pass(texts: list[str], encoder: str) -> float:
    """Texts a second of the encoder alone, in memory."""
    loaded = load_encoder(encoder)
    inputs = [(text, None) for text in texts]
    live_features(inputs[:64], loaded, states=loaded.resolve_states(None))
    start = time.perf_counter()
    live_features(inputs, loaded, states=loaded.resolve_states(None))
    return len(inputs) / (time.perf_counter() - start)


# --- decisions ------------------------------------------------------------------------------------------------------

DECISION_SETS = ("banking77", "trec6", "ag_news", "goemotions", "cola", "sst2", "imdb", "germeval2018")
DECISION_TASKS, SOME_TASKS = 20, 50


def make_decision_tasks(root: Path, arguments: argparse.Namespace) -> Path:
    """Tasks of all sets in turn, each trained on a part of the rows; the sets of several labels a row among them."""
    encoder, store = load_encoder(arguments.encoder), FeatureStore(root / "store")
    for number in range(DECISION_TASKS):
        name = DECISION_SETS[number % len(DECISION_SETS)]
        rows = rows_of(arguments.data / name, "train", 200 + 40 * number)
        options = TrainOptions(name=f"{name}.{number}")
        task = train_task(rows, encoder, store, recipe(arguments), options=options).task
        save_task(task, root / "tasks" / task.name)
    return root / "tasks"


def bars_of_decisions(figures: dict[str, Any]) -> list[Any]:
    return [
        bar("wrong, lost or swapped answers", figures["wrong"], at_most=0),
        bar("failed requests", figures["failed"], at_most=0),
        bar("answers a second", figures["answers_a_second"], at_least=1500),
        bar("seconds from start to ready", figures["ready_seconds"], at_most=10),
    ]


def decision_figures(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A load of so many seconds, after one of a tenth of them."""
    sets = [arguments.data / name for name in DECISION_SETS if name != "imdb"]
    texts = [text for place in sets for text in rows_of(place, "test", arguments.texts // len(sets)).texts]
    check = DecisionCheck(folder, texts, arguments.questions, arguments.cascade)
    figures: dict[str, Any] = {"tasks": len(check.names), "questions": arguments.questions}
    cascade = [] if arguments.cascade is None else ["--cascade", str(arguments.cascade)]

    async def measured() -> None:
        short = arguments.decisions / 10
        with running(["serve", str(folder / check.names[0]), *cascade]) as server:
            await server.ready()
            await decision_load(server, check.of([check.names[0]]), CLIENTS, short)
            one = server.memory()
        with running(["serve", str(folder), "--watch", "0", *cascade]) as server:
            figures["ready_seconds"] = await server.ready()
            await decision_load(server, check, CLIENTS, short)
            found = await decision_load(server, check, CLIENTS, arguments.decisions)
            figures.update(found.figures(), answers_a_second=found.good * arguments.questions / found.wall)
            figures["megabytes_beyond_one_task"] = (server.memory() - one) / 1e6
            if arguments.served:
                LAST_TEXTS[:] = texts
                for count in sorted({1, min(SOME_TASKS, len(check.names)), len(check.names)}):
                    asked = await load(server, None, check.names[:count], 16, short, together=True)
                    figures[f"texts_a_second_{count}_tasks_asked"] = asked.rate
                figures["megabytes_beyond_one_task_all_asked"] = (server.memory() - one) / 1e6

    asyncio.run(measured())
    return figures


class DecisionCheck:
    """Random questions to tasks, and whether the answers are those of the offline predictions."""

    def __init__(self, folder: Path, texts: list[str], size: int, cascade: float | None) -> None:
        self._size = size
        tasks = {task.name: task for task in map(load_task, sorted(folder.iterdir()))}
        self._targets = {
            name: task.target
            for name, task in tasks.items()
            if task.pair_mode is None and task.target.labels is not None
        }
        self.texts, self.names = texts, list(self._targets)
        self._expected: dict[str, list[Prediction]] = {name: [] for name in self.names}
        predictor = Predictor([folder / name for name in self.names], cascade=cascade)
        for prediction in predictor.predict((text, None) for text in texts):
            self._expected[prediction.task].append(prediction)

    def of(self, names: list[str]) -> DecisionCheck:
        """The same for some of the tasks."""
        some = copy.copy(self)
        some.names = names
        return some

    def questions(self, chooser: np.random.Generator) -> list[dict[str, Any]]:
        """Those of a whole request: each about any task, so that some tasks are asked several times."""
        places = chooser.integers(len(self.names), size=self._size)
        return [self._question(self.names[place], chooser) for place in places]

    def _question(self, name: str, chooser: np.random.Generator) -> dict[str, Any]:
        target = self._targets[name]
        if target.has_order:
            return {"type": "score", "name": name, "levels": [{"label": label} for label in target.names]}
        if target.gives_many or chooser.random() < 0.5:
            return {"type": "predicate", "name": f"{name}.{chooser.choice(target.names)}"}
        some = chooser.permutation(target.names)[: chooser.integers(2, len(target.names) + 1)]
        return {"type": "choice", "name": name, "choices": [{"value": str(label)} for label in some]}

    def right(self, row: int, questions: list[dict[str, Any]], answers: list[dict[str, Any]]) -> bool:
        """Whether there is the right answer to each question about a text, in the questions' order."""
        return len(answers) == len(questions) and all(
            self._is_right(row, asked, answer) for asked, answer in zip(questions, answers, strict=True)
        )

    def _is_right(self, row: int, asked: dict[str, Any], answer: dict[str, Any]) -> bool:
        if answer["name"] != asked["name"]:
            return False
        kind, name = asked["type"], asked["name"]
        # The names of tasks contain dots, too.
        task = name if kind != "predicate" else max((n for n in self.names if name.startswith(f"{n}.")), key=len)
        expected = self._expected[task][row]
        if expected.answer is None or answer["type"] != kind:
            return expected.answer is None and bool(answer["type"] == "refusal")
        if kind == "predicate":
            return abs(answer["probability"] - expected.scores[name.removeprefix(f"{task}.")]) < TOLERANCE
        parts, key = ("levels", "label") if kind == "score" else ("choices", "value")
        options = [each[key] for each in asked[parts]]
        given = [each[key] for each in answer["probabilities"]]
        shares = np.array([each["probability"] for each in answer["probabilities"]])
        wanted = np.array([expected.scores[option] for option in options])
        top = float(shares.max())
        whole = (
            answer["choice"] == given[int(shares.argmax())]
            if kind == "choice"
            else (abs(answer["score"] - float(shares @ np.arange(len(shares)))) < TOLERANCE)
        )
        # Few labels may have little of the probability, which makes small differences large.
        near = float(np.abs(shares * wanted.sum() - wanted).max()) < TOLERANCE
        return given == options and near and whole and answer["confidence"] == top


async def decision_load(server: Server, check: DecisionCheck, clients: int, seconds: float) -> Load:
    """So many clients that ask one request after the other, each about one text."""
    found, begun = Load(), time.perf_counter()

    async def client(number: int) -> None:
        chooser = np.random.default_rng(number)
        async with connection(server.port) as ask:
            while time.perf_counter() - begun < seconds:
                row, questions = int(chooser.integers(len(check.texts))), check.questions(chooser)
                body = json.dumps({"input": check.texts[row], "questions": questions}).encode()
                start = time.perf_counter()
                status, reply = await ask("POST", "/v1/decisions", body)
                found.statuses[status] += 1
                if status == 200:
                    found.seconds.append(time.perf_counter() - start)
                    found.good += 1
                    found.wrong += not check.right(row, questions, json.loads(reply)["answers"])
                elif status == 429:
                    found.refused += 1
                    await asyncio.sleep(0.2)

    await asyncio.gather(*(client(number) for number in range(clients)))
    found.wall = time.perf_counter() - begun
    return found


# --- a server and its clients ---------------------------------------------------------------------------------------


class Server:
    """A process that serves, and requests to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
        self.process, self.port, self.log, self.memories = process, port, log, list[int]()
        self.terminated = math.inf
        self._start = time.perf_counter()

    async def ready(self) -> float:
        """Seconds from its start to its first reply to /health."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
                if (await self.get("/health"))[0] == 200:
                    return time.perf_counter() - self._start
            if self.process.poll() is not None:
                self.log.seek(0)
                raise RuntimeError("the server has ended:\n" + self.log.read().decode(errors="replace")[-4000:])
            await asyncio.sleep(0.05)

    def memory(self) -> int:
        """Bytes that it holds."""
        held = int(psutil.Process(self.process.pid).memory_info().rss)
        self.memories.append(held)
        return held

    async def get(self, path: str) -> tuple[int, bytes]:
        async with connection(self.port) as ask:
            return await ask("GET", path, b"")

    async def post(self, path: str, body: Any) -> tuple[int, bytes]:
        async with connection(self.port) as ask:
            return await ask("POST", path, json.dumps(body).encode())


@contextlib.contextmanager
def running(command: list[str], *, module: bool = True) -> Iterator[Server]:
    """A server in a process of its own, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, *(["-c", "from ytuning.cli import main; main()"] if module else [])]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    # Why a server ended is read from a file: a pipe that nobody reads would stop the server once it is full.
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [*program, *command, "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, **threads},
        ) as process,
    ):
        try:
            yield Server(process, port, log)
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def connection(port: int) -> Any:
    """A kept-alive HTTP/1.1 connection; a client as plain as can be, as its work is the server's loss."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        head = [
            f"{method} {path} HTTP/1.1",
            "host: x",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        return int(lines[0].split()[1]), await reader.readexactly(length)

    try:
        yield ask
    finally:
        writer.close()


class Check:
    """Whether a reply is the offline prediction of the same task and text."""

    def __init__(self, texts: list[str], expected: dict[str, np.ndarray], labels: list[str]) -> None:
        self.texts, self._expected = texts, expected
        self._places = {label: place for place, label in enumerate(labels)}

    def right(self, task: str, row: int, scores: list[dict[str, Any]]) -> bool:
        found = np.zeros(len(self._places))
        for each in scores:
            found[self._places[each["label"]]] = each["score"]
        return bool(np.abs(found - self._expected[task][row]).max() < TOLERANCE)


@dataclass
class Load:
    """What clients have seen."""

    good: int = 0
    wrong: int = 0
    refused: int = 0
    broken: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0

    @property
    def failed(self) -> int:
        """Neither answered nor refused."""
        return self.broken + sum(count for status, count in self.statuses.items() if status not in (200, 429))

    @property
    def rate(self) -> float:
        """Answered requests a second."""
        return self.good / self.wall

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else 0.0

    def figures(self) -> dict[str, Any]:
        p99 = float(np.quantile(self.seconds, 0.99)) if self.seconds else 0.0
        return {
            "requests_a_second": self.rate, "median_seconds": self.median, "p99_seconds": p99, "answered": self.good,
            "wrong": self.wrong, "failed": self.failed, "statuses": {str(key): n for key, n in self.statuses.items()},
        }  # fmt: skip


async def load(
    server: Server,
    check: Check | None,
    tasks: Sequence[str],
    clients: int,
    seconds: float,
    *,
    size: int = 1,
    together: bool = False,
    until_refused: bool = False,
    stop: asyncio.Event | None = None,
) -> Load:
    """So many clients that ask one request after the other; ``together``: each asks all tasks about its text."""
    found, begun = Load(), time.perf_counter()
    texts = check.texts if check else LAST_TEXTS
    LAST_TEXTS[:] = texts

    def over() -> bool:
        return time.perf_counter() - begun > seconds or bool(stop and stop.is_set())

    async def client(number: int) -> None:
        chooser = np.random.default_rng(number)
        start = math.inf
        while not over():
            try:
                async with connection(server.port) as ask:
                    while not over():
                        rows = chooser.integers(len(texts), size=size).tolist()
                        task = tasks[int(chooser.integers(len(tasks)))]
                        path, body, read = request(task, [texts[row] for row in rows], tasks if together else None)
                        start = time.perf_counter()
                        status, reply = await ask("POST", path, body)
                        found.statuses[status] += 1
                        if status == 429:
                            found.refused += 1
                            await asyncio.sleep(0.2)
                        elif status == 200:
                            found.seconds.append(time.perf_counter() - start)
                            found.good += 1
                            answers = read(json.loads(reply))
                            if check is not None:
                                found.wrong += not all(
                                    check.right(name, row, scores)
                                    for name, lists in answers.items()
                                    for row, scores in zip(rows, lists, strict=True)
                                )
                        elif until_refused:
                            return
            except (OSError, asyncio.IncompleteReadError):
                if until_refused:
                    # One that was sent at that moment may not have reached the server, so it has not accepted it.
                    found.broken += start < server.terminated - MOMENT
                    return
                found.broken += 1
                await asyncio.sleep(0.05)

    await asyncio.gather(*(client(number) for number in range(clients)))
    found.wall = time.perf_counter() - begun
    return found


LAST_TEXTS: list[str] = []

Reading = Callable[[Any], dict[str, list[list[dict[str, Any]]]]]


def request(task: str, texts: list[str], together: Sequence[str] | None) -> tuple[str, bytes, Reading]:
    """Path and body of a request, and how its reply is read."""
    if together is not None:

        def of_all(reply: Any) -> dict[str, list[list[dict[str, Any]]]]:
            return {each["task"]: [result["scores"] for result in each["results"]] for each in reply["data"]}

        return "/classify_many", json.dumps({"input": texts, "tasks": list(together)}).encode(), of_all
    if len(texts) == 1:
        return f"/predict/{task}", json.dumps({"inputs": texts[0]}).encode(), lambda reply: {task: [reply]}
    body = {"inputs": [[text] for text in texts]}
    return f"/predict/{task}", json.dumps(body).encode(), lambda reply: {task: reply}


if __name__ == "__main__":
    main()

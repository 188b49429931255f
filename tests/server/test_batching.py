"""One encoder pass for all who ask: equal texts, bounds, clients that leave, texts that fail, the end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.serving import HeldEncoder, held_catalog, live, settings, until
from ytuning.data.dataset import TextInput
from ytuning.evaluation.attribution import explain_one
from ytuning.server.batching import Batcher, Overloaded, Stopped, Unanswered
from ytuning.server.catalog import Catalog
from ytuning.server.telemetry import Telemetry


@pytest.fixture
def catalog(served_tasks: Path) -> Catalog:
    """Tasks on the encoder ``held``."""
    return held_catalog(served_tasks)[0]


@pytest.fixture
def held(catalog: Catalog) -> Iterator[HeldEncoder]:
    encoder = catalog.tasks["single"].encoder
    assert isinstance(encoder, HeldEncoder)
    yield encoder
    encoder.go.set()


@pytest.fixture
def batcher() -> Iterator[Callable[..., Batcher]]:
    """Makes batchers; each is stopped in the end."""
    made: list[Batcher] = []

    def make(batch_tokens: int = 10_000, queue_tokens: int = 10_000) -> Batcher:
        made.append(Batcher(batch_tokens, queue_tokens, Telemetry()))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.stop()


def texts(*some: str) -> list[TextInput]:
    return [(text, None) for text in some]


async def when(done: Callable[[], object]) -> None:
    for _ in range(6000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


def test_equal_texts_of_requests_and_tasks_are_encoded_once(
    catalog: Catalog, batcher: Callable[..., Batcher], held: HeldEncoder
) -> None:
    some = [catalog.tasks[name] for name in ("single", "multi", "number")]

    async def ask() -> list[object]:
        made = batcher()
        first = asyncio.create_task(made.answer(texts("first"), some[:1]))
        await when(lambda: held.calls)
        others = [asyncio.create_task(made.answer(texts("card", "login", "card"), [each])) for each in some * 5]
        others.append(asyncio.create_task(made.answer(texts("card", "refund"), some)))
        await asyncio.sleep(0)
        held.go.set()
        await first
        return [await each for each in others]

    replies = asyncio.run(ask())
    assert held.calls == [1, 3]
    assert len(replies) == 16


def test_a_batch_has_so_many_tokens(catalog: Catalog, batcher: Callable[..., Batcher], held: HeldEncoder) -> None:
    async def ask() -> None:
        made = batcher(batch_tokens=9)  # three texts of three tokens each, as they are guessed
        held.go.set()
        await made.answer(texts(*(f"card{number}" for number in range(7)), "long " * 20), [catalog.tasks["single"]])

    asyncio.run(ask())
    assert held.calls == [3, 3, 1, 1]  # a text that is longer than a batch has one of its own


def test_a_full_queue_refuses_the_whole_request(
    catalog: Catalog, batcher: Callable[..., Batcher], held: HeldEncoder
) -> None:
    task = catalog.tasks["single"]

    async def ask() -> None:
        made = batcher(queue_tokens=10)
        first = asyncio.create_task(made.answer(texts("first"), [task]))
        await when(lambda: held.calls)
        second = asyncio.create_task(made.answer(texts("second"), [task]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as raised:
            await made.answer(texts("one", "two", "three", "four", "five"), [task])
        assert raised.value.headers == {"retry-after": "1"}
        held.go.set()
        await asyncio.gather(first, second)
        await made.answer(texts("one", "two", "three", "four", "five", "six"), [task])  # alone it may be larger

    asyncio.run(ask())
    assert held.calls == [1, 1, 6]


def test_a_full_queue_is_429_over_http(served_tasks: Path, catalog: Catalog, held: HeldEncoder) -> None:
    held.go.set()
    with live(settings(served_tasks, queue_tokens=10), catalog) as server:
        held.go.clear()
        held.calls.clear()
        threads = [
            threading.Thread(target=server.post, args=("/predict/single", {"inputs": text})) for text in ("a", "b")
        ]
        threads[0].start()
        until(lambda: held.calls)
        threads[1].start()
        until(lambda: server.metric("queue_tokens"))
        reply = server.post("/predict/single", {"inputs": [["word " * 9], ["other " * 9]]})
        assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error_type"] == "overloaded"
        assert server.metric("rejected_requests_total", reason="queue") == 1
        held.go.set()
        for thread in threads:
            thread.join()
        assert held.calls == [1, 1]


def test_texts_of_those_who_left_are_dropped(
    catalog: Catalog, batcher: Callable[..., Batcher], held: HeldEncoder
) -> None:
    task = catalog.tasks["single"]

    async def ask() -> None:
        made = batcher()
        first = asyncio.create_task(made.answer(texts("first"), [task]))
        await when(lambda: held.calls)
        leaving = asyncio.create_task(made.answer(texts("mine", "shared"), [task]))
        staying = asyncio.create_task(made.answer(texts("shared"), [task]))
        explaining = asyncio.create_task(made.explain(("mine", None), task))
        await asyncio.sleep(0)
        leaving.cancel()
        explaining.cancel()
        await asyncio.wait({leaving, explaining})
        held.go.set()
        await asyncio.gather(first, staying)

    asyncio.run(ask())
    assert held.calls == [1, 1]


def test_texts_of_closed_connections_are_dropped(served_tasks: Path, catalog: Catalog, held: HeldEncoder) -> None:
    held.go.set()
    with live(settings(served_tasks), catalog) as server:
        held.go.clear()
        held.calls.clear()
        thread = threading.Thread(target=server.post, args=("/predict/single", {"inputs": "first"}))
        thread.start()
        until(lambda: held.calls)
        body = b'{"inputs": "nobody waits for this"}'
        lines = (
            "POST /predict/single HTTP/1.1",
            "host: a",
            "content-type: application/json",
            f"content-length: {len(body)}",
        )
        head = "\r\n".join(lines) + "\r\n\r\n"
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            until(lambda: server.metric("queue_tokens"))
        until(lambda: server.metric("requests_total", route="/predict/{task}", status="499"))
        held.go.set()
        thread.join()
        until(lambda: server.metric("dropped_texts_total"))
        assert held.calls == [1]


def test_a_text_that_fails_fails_alone(catalog: Catalog, batcher: Callable[..., Batcher], held: HeldEncoder) -> None:
    task = catalog.tasks["single"]
    held.poison = poison = "card card card card card"

    async def ask() -> list[object]:
        made = batcher()
        first = asyncio.create_task(made.answer(texts("first"), [task]))
        await when(lambda: held.calls)
        some = ["card", poison, "login"]
        asked = [asyncio.create_task(made.answer(texts(text), [task])) for text in some]
        await asyncio.sleep(0)
        held.go.set()
        await first
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, also = asyncio.run(ask())
    assert isinstance(bad, Unanswered) and str(bad) == "the text could not be computed"
    assert isinstance(good, list) and isinstance(also, list)
    assert held.calls == [1, 3, 1, 1, 1]


def test_stop_answers_what_was_accepted(catalog: Catalog, held: HeldEncoder) -> None:
    task = catalog.tasks["single"]

    async def ask() -> None:
        made = Batcher(4, 10_000, Telemetry())
        made.start()
        asked = [asyncio.create_task(made.answer(texts(f"text {number}"), [task])) for number in range(20)]
        asked.append(asyncio.create_task(made.explain(("my card", None), task)))  # type: ignore[arg-type]
        await when(lambda: held.calls)
        stopping = asyncio.create_task(asyncio.to_thread(made.stop))
        while True:  # until it has begun to stop, it accepts texts
            late = asyncio.create_task(made.answer(texts("late"), [task]))
            await asyncio.sleep(0.01)
            if late.done():
                break
            asked.append(late)
        assert isinstance(late.exception(), Stopped)
        with pytest.raises(Stopped):
            await made.explain(("late", None), task)
        held.go.set()
        await asyncio.gather(*asked)
        await stopping

    asyncio.run(ask())


@pytest.mark.parametrize("name", ["single", "multi", "number", "joint", "apart"])
def test_explanations_are_those_of_the_head(name: str, served_tasks: Path, catalog: Catalog, held: HeldEncoder) -> None:
    held.go.set()
    served = catalog.tasks[name]
    given = ["my card", "your login"] if served.task.pair_mode else ["my card"]
    content: TextInput = (given[0], given[1] if served.task.pair_mode else None)
    mode = served.task.pair_mode
    features = served.encoder.read([content], [served.task], pair_mode=mode).seen_by(served.task)
    effects = explain_one(served.task.head, content, served.encoder.encoder, features, pair_mode=mode)
    with live(settings(served_tasks), catalog) as server:
        reply = server.post("/explain", {"task": name, "input": given}).json()
    assert [(each["side"], each["start"], each["end"]) for each in reply["tokens"]] == effects.spans
    wanted = effects.values[:, 1:] - effects.values[:, :1] if name == "number" else effects.values
    assert reply["labels"] == (["value"] if name == "number" else list(served.task.target.names))
    for row, values in zip(reply["effects"], wanted.tolist(), strict=True):
        assert row == pytest.approx(values, abs=1e-5)

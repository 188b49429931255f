"""Texts of all requests and tasks in batches of tokens: equal texts are encoded once, what nobody waits for is not.

One thread computes. It takes what has waited longest and whatever else of the same encoder fits into the batch, so a
batch grows with the load and a lone text waits for nobody. What waits is bounded in tokens; more is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.errors import YTuningError
from ytuning.evaluation.attribution import Effects, explain_one
from ytuning.heads.pairs import PairMode
from ytuning.server.catalog import Served
from ytuning.server.telemetry import Telemetry
from ytuning.tasks.predictor import Answer, answers_of
from ytuning.tasks.shared_encoder import SharedEncoder

__all__ = ["Answered", "Batch", "Batcher", "Overloaded", "Stopped", "Unanswered"]

BYTES_OF_A_TOKEN = 4  # of texts that are not tokenised yet
SPECIAL_TOKENS = 2
MOST_CALLS = 16  # explanations that wait
FEW_TEXTS = 256  # of a batch that may be padded; of more there are enough of each length
SPEED = 2000.0  # tokens a second, before any was measured


class Overloaded(Exception):  # noqa: N818  # a state, not a fault
    """So much waits that no more is taken.

    Attributes:
        retry_after: seconds after which it may be worth another try.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many texts are waiting. Try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Stopped(Exception):  # noqa: N818
    """The server is going down."""


class Unanswered(Exception):  # noqa: N818
    """A text that the encoder or a head has failed on; the message is fit for a client."""


@dataclass(eq=False)
class Batch:
    """Seconds that a batch took in the encoder and, with calibration, in the heads."""

    encoder: float = 0.0
    heads: float = 0.0


@dataclass(frozen=True)
class Answered:
    """A task's answer for one text.

    Attributes:
        answer: as in `predictor.Prediction`.
        scores: (C,) calibrated probabilities; of a regression none.
        logits: (C,) of the head.
        tokens: that the encoder has read.
        truncated: whether it has read the beginning only.
        batch: that it was computed in.
    """

    answer: Answer
    scores: np.ndarray
    logits: np.ndarray
    tokens: int
    truncated: bool
    batch: Batch


@dataclass(eq=False)
class _Ticket:
    """A request: what it wants and, one by one, what it gets."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    found: dict[tuple[int, str], Answered]
    missing: int
    cancelled: bool = False


@dataclass(eq=False)
class _Unit:
    """One text for one encoder, and who waits for which tasks' answers for it."""

    content: TextInput
    tokens: int
    wanted: dict[int, tuple[Served, list[tuple[_Ticket, int]]]] = field(default_factory=dict)

    def alive(self) -> bool:
        return any(not ticket.cancelled for _, waiting in self.wanted.values() for ticket, _ in waiting)


Key = tuple[SharedEncoder, PairMode | None, bool]
"""What the units of a batch share: encoder, whether it reads a pair's texts one by one, whether they are pairs."""


class Batcher:
    """Computes answers in a thread of its own; all methods but :meth:`run` are for the event loop.

    Args:
        batch_tokens: of a batch, at most; a longer text has one of its own.
        queue_tokens: that wait, at most.
        telemetry: is told what happens.
    """

    def __init__(self, batch_tokens: int, queue_tokens: int, telemetry: Telemetry) -> None:
        self._batch_tokens, self._queue_tokens, self._telemetry = batch_tokens, queue_tokens, telemetry
        self._lock = threading.Condition()
        self._queues: dict[Key, dict[TextInput, _Unit]] = {}
        self._calls: deque[tuple[Callable[[], object], asyncio.AbstractEventLoop, asyncio.Future[object]]] = deque()
        self._waiting = 0  # tokens
        self._stopping = False
        self._speed = SPEED
        self._thread = threading.Thread(target=self.run, name="batcher", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what has been accepted, then end; blocks until then."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        self._thread.join()

    async def answer(self, inputs: Sequence[TextInput], tasks: Sequence[Served]) -> list[list[Answered]]:
        """For each input each task's answer.

        Raises:
            Overloaded: too much waits; nothing of the request is computed.
            Stopped: the server is going down.
            Unanswered: a text cannot be computed.
            asyncio.CancelledError: the request was given up; what only it waited for is not computed.
        """
        loop = asyncio.get_running_loop()
        distinct = {content: number for number, content in enumerate(dict.fromkeys(inputs))}
        ticket = _Ticket(loop, loop.create_future(), {}, len(distinct) * len(tasks))
        self._accept(ticket, distinct, tasks)
        try:
            await ticket.future
        finally:
            ticket.cancelled = True  # by now done, or given up
        return [[ticket.found[distinct[content], served.task.name] for served in tasks] for content in inputs]

    async def explain(self, content: TextInput, served: Served) -> Effects:
        """What each token of a text does for each logit of a task; computed between batches.

        Raises:
            Overloaded, Stopped, Unanswered: as :meth:`answer`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[object] = loop.create_future()
        task, shared = served.task, served.encoder

        def compute() -> Effects:
            features = shared.read([content], [task], pair_mode=task.pair_mode).seen_by(task)
            return explain_one(task.head, content, shared.encoder, features, pair_mode=task.pair_mode)

        with self._lock:
            if self._stopping:
                raise Stopped
            if len(self._calls) >= MOST_CALLS:
                self._telemetry.rejected.labels(reason="queue").inc()
                raise Overloaded(1.0)
            self._calls.append((compute, loop, future))
            self._lock.notify_all()
        found = await future
        assert isinstance(found, Effects)
        return found

    def _accept(self, ticket: _Ticket, distinct: dict[TextInput, int], tasks: Sequence[Served]) -> None:
        """Queue what a request wants, or refuse all of it."""
        sizes = {content: sum(map(_guessed_tokens, content)) for content in distinct}
        with self._lock:
            if self._stopping:
                raise Stopped
            new = sum(sizes.values()) * len({(served.encoder, served.task.pair_mode) for served in tasks})
            if self._waiting and self._waiting + new > self._queue_tokens:
                self._telemetry.rejected.labels(reason="queue").inc()
                raise Overloaded(max(1.0, self._waiting / self._speed))
            for served in tasks:
                for content, number in distinct.items():
                    key = (served.encoder, served.task.pair_mode, content[1] is not None)
                    queue = self._queues.setdefault(key, {})
                    if content not in queue:
                        queue[content] = _Unit(content, sizes[content])
                        self._waiting += sizes[content]
                    _, waiting = queue[content].wanted.setdefault(id(served), (served, []))
                    waiting.append((ticket, number))
            self._telemetry.queue_tokens.set(self._waiting)
            self._lock.notify_all()

    # --- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Compute batch after batch until :meth:`stop`."""
        while True:
            with self._lock:
                while not (self._calls or any(self._queues.values()) or self._stopping):
                    self._lock.wait()
                call = self._calls.popleft() if self._calls else None
                key, units = self._taken()
                if call is None and key is None and self._stopping:
                    return
            if key is not None and units:
                self._compute(key[0], key[1], units)
            if call is not None:  # one after each batch, so that neither keeps the other waiting
                self._call(*call)

    def _taken(self) -> tuple[Key | None, list[_Unit]]:
        """The next batch: of the queue whose first text has waited longest. Called with the lock held."""
        key = next((key for key, queue in self._queues.items() if queue), None)
        if key is None:
            return None, []
        queue = self._queues.pop(key)
        units: list[_Unit] = []
        tokens = 0
        for content in list(queue):
            unit = queue[content]
            if not unit.alive():
                self._waiting -= queue.pop(content).tokens
                self._telemetry.dropped.inc()
                continue
            if units and tokens + unit.tokens > self._batch_tokens:
                break
            units.append(queue.pop(content))
            tokens += unit.tokens
        self._waiting -= tokens
        if queue:
            self._queues[key] = queue  # last: the others have their turn first
        self._telemetry.queue_tokens.set(self._waiting)
        return key, units

    def _compute(self, encoder: SharedEncoder, pair_mode: PairMode | None, units: list[_Unit]) -> None:
        start = time.perf_counter()
        try:
            found = self._answers(encoder, pair_mode, units)
        except Exception as error:  # whatever it is, the server goes on
            if len(units) > 1:  # one text may be to blame, and the others are not
                for unit in units:
                    self._compute(encoder, pair_mode, [unit])
                return
            self._telemetry.failed(error)
            why = str(error) if isinstance(error, YTuningError) else "the text could not be computed"
            _deliver([(ticket, why) for _, waiting in units[0].wanted.values() for ticket, _ in waiting], [])
            return
        tokens = sum(unit.tokens for unit in units)
        self._speed += 0.2 * (tokens / (time.perf_counter() - start) - self._speed)
        _deliver([], found)

    def _answers(
        self, encoder: SharedEncoder, pair_mode: PairMode | None, units: list[_Unit]
    ) -> list[tuple[_Ticket, int, str, Answered]]:
        start = time.perf_counter()
        wanted = {id(served): served.task for unit in units for served, _ in unit.wanted.values()}
        inputs, padded = [unit.content for unit in units], len(units) <= FEW_TEXTS
        texts = encoder.read(inputs, list(wanted.values()), pair_mode=pair_mode, padded=padded)
        features = texts.features
        encoded = time.perf_counter()
        batch = Batch(encoded - start)
        # Tasks that are asked about the same texts are answered together.
        rows: dict[int, tuple[Served, list[int]]] = {}
        for row, unit in enumerate(units):
            for key, (served, _) in unit.wanted.items():
                rows.setdefault(key, (served, []))[1].append(row)
        together: dict[tuple[int, ...], list[Served]] = {}
        for served, rows_of_task in rows.values():
            together.setdefault(tuple(rows_of_task), []).append(served)
        lengths, cut = features.lengths.tolist(), features.truncated_rows.tolist()
        found: list[tuple[_Ticket, int, str, Answered]] = []
        for places, some in together.items():
            tasks = [served.task for served in some]
            for served, logits in zip(some, encoder.logits(texts, tasks, torch.tensor(places)), strict=True):
                answers, scores = answers_of(served.task, logits)
                name = served.task.name
                self._telemetry.answers.labels(task=name).inc(len(places))
                for place, row in enumerate(places):
                    answered = Answered(answers[place], scores[place], logits[place], lengths[row], cut[row], batch)
                    found += [(*each, name, answered) for each in units[row].wanted[id(served)][1]]
        batch.heads = time.perf_counter() - encoded
        self._telemetry.batch(
            texts=len(units),
            tokens=int(features.lengths.sum()),
            encoder=batch.encoder,
            heads=batch.heads,
            truncated=sum(cut),
        )
        return found

    def _call(
        self, compute: Callable[[], object], loop: asyncio.AbstractEventLoop, future: asyncio.Future[object]
    ) -> None:
        if future.done():  # it was given up
            self._telemetry.dropped.inc()
            return
        try:
            result = compute()
        except Exception as error:
            self._telemetry.failed(error)
            why = str(error) if isinstance(error, YTuningError) else "the text could not be computed"
            _soon(loop, lambda: None if future.done() else future.set_exception(Unanswered(why)))
        else:
            _soon(loop, lambda: None if future.done() else future.set_result(result))


def _guessed_tokens(text: str | None) -> int:
    """About as many tokens as a text has, to bound a batch; tokenising would cost as much again as it saves."""
    return 0 if text is None else SPECIAL_TOKENS + len(text) // BYTES_OF_A_TOKEN


def _deliver(failed: list[tuple[_Ticket, str]], found: list[tuple[_Ticket, int, str, Answered]]) -> None:
    """Give requests what they wait for, each event loop in one call."""
    loops: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
    for ticket, why in failed:
        loops.setdefault(ticket.loop, []).append(lambda ticket=ticket, why=why: _fail(ticket, why))  # type: ignore[misc]
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Ticket, int, str, Answered]]] = {}
    for each in found:
        by_loop.setdefault(each[0].loop, []).append(each)
    for loop, some in by_loop.items():
        loops.setdefault(loop, []).append(lambda some=some: _give(some))  # type: ignore[misc]
    for loop, calls in loops.items():
        for call in calls:
            _soon(loop, call)


def _give(found: list[tuple[_Ticket, int, str, Answered]]) -> None:
    for ticket, number, name, answered in found:
        if (number, name) not in ticket.found:
            ticket.found[number, name] = answered
            ticket.missing -= 1
            if ticket.missing == 0 and not ticket.future.done():
                ticket.future.set_result(None)


def _fail(ticket: _Ticket, why: str) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(Unanswered(why))


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
        loop.call_soon_threadsafe(call)

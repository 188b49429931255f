"""Texts of all requests and tasks in batches of tokens: equal texts are encoded once, what nobody waits for is not.

One thread computes. It takes what has waited longest and whatever else of the same encoder fits into the batch, so a
batch grows with the load and a lone text waits for nobody. What waits is bounded in tokens; more is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import Answer
from ytuning.errors import YTuningError
from ytuning.evaluation.attribution import Effects, explain_one
from ytuning.heads.pairs import PairMode
from ytuning.server.catalog import Served
from ytuning.server.telemetry import Telemetry, log
from ytuning.tasks.cascade import Head
from ytuning.tasks.shared_encoder import SharedEncoder

__all__ = ["Answered", "Batch", "Batcher", "Overloaded", "Refused", "Stopped", "Unanswered"]

# A text that is not tokenised yet is estimated to have one token for this number of characters.
BYTES_OF_A_TOKEN = 4
SPECIAL_TOKENS = 2
# Maximum number of waiting explanations.
MOST_CALLS = 16
# Batches of up to this number of texts may be padded; a larger one has enough texts of each length.
FEW_TEXTS = 256
# Estimated speed in tokens a second, before any was measured.
SPEED = 2000.0


class Refused(Exception):  # noqa: N818  # a state, not a fault
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        kind: kind of error, for the client's program; the message is for its user.
        headers: headers of the reply.
    """

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers


class Overloaded(Refused):
    """So much waits that no more is taken; it may be worth another try after some seconds."""

    def __init__(self, seconds: float) -> None:
        message = f"too many texts are waiting. Try again in {seconds:.0f} s"
        super().__init__(429, "overloaded", message, {"retry-after": str(math.ceil(seconds))})


class Stopped(Refused):
    """The server is going down."""

    def __init__(self) -> None:
        message = "the server is stopping. Send the request to another one or try again later."
        super().__init__(503, "unavailable", message)


class Unanswered(Refused):
    """A text that the encoder or a head has failed on; the message is fit for a client."""

    def __init__(self, message: str) -> None:
        super().__init__(424, "backend", message)


@dataclass(eq=False)
class Batch:
    """Seconds that a batch took in the encoder and, with calibration, in the heads."""

    encoder: float = 0.0
    heads: float = 0.0


@dataclass(frozen=True)
class Answered:
    """A task's answer for one text.

    Attributes:
        answer: the answer, as in `predictor.Prediction`.
        scores: (C,) calibrated probabilities; of a regression none.
        logits: (C,) logits of the head that has answered.
        head: which head of a cascade has answered, as in `predictor.Prediction`.
        out_of_scope: whether the text is unlike the training rows, as in `predictor.Prediction`.
        out_of_scope_score: how unlike them it is, as in `predictor.Prediction`.
        tokens: number of tokens that the encoder has read.
        truncated: whether it has read the beginning only.
        batch: batch that it was computed in.
    """

    answer: Answer
    scores: np.ndarray
    logits: np.ndarray
    head: Head | None
    out_of_scope: bool | None
    out_of_scope_score: float | None
    tokens: int
    truncated: bool
    batch: Batch


@dataclass(eq=False)
class _Ticket:
    """A request: how many answers it wants, and those it has, by the text's number and the task's name."""

    future: asyncio.Future[None]
    wanted: int
    answers: dict[tuple[int, str], Answered] = field(default_factory=dict)


@dataclass(eq=False)
class _Unit:
    """One text for one encoder, and who waits for which tasks' answers for it."""

    content: TextInput
    tokens: int
    wanted: dict[int, tuple[Served, list[tuple[_Ticket, int]]]] = field(default_factory=dict)

    def tickets(self) -> list[_Ticket]:
        return [ticket for _, waiting in self.wanted.values() for ticket, _ in waiting]


Key = tuple[SharedEncoder, PairMode | None, bool]
"""What the units of a batch share: their encoder, how it reads pairs, and whether they are pairs."""


class Batcher:
    """Computes answers in a thread of its own; all methods but :meth:`run` are for one event loop.

    Args:
        batch_tokens: maximum number of tokens in a batch; a longer text has a batch of its own.
        queue_tokens: maximum number of waiting tokens.
        telemetry: is told what happens.
    """

    def __init__(self, batch_tokens: int, queue_tokens: int, telemetry: Telemetry) -> None:
        self._batch_tokens, self._queue_tokens, self._telemetry = batch_tokens, queue_tokens, telemetry
        self._lock = threading.Condition()
        self._queues: dict[Key, dict[TextInput, _Unit]] = {}
        self._calls: deque[tuple[TextInput, Served, Future[Effects]]] = deque()
        self._waiting_tokens = 0
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
        """Return each task's answer for each input.

        Raises:
            Overloaded: too much waits; nothing of the request is computed.
            Stopped: the server is going down.
            Unanswered: a text cannot be computed.
            asyncio.CancelledError: the request was given up; what only it waited for is not computed.
        """
        distinct = {content: number for number, content in enumerate(dict.fromkeys(inputs))}
        ticket = _Ticket(asyncio.get_running_loop().create_future(), len(distinct) * len(tasks))
        self._accept(ticket, distinct, tasks)
        await ticket.future
        return [[ticket.answers[distinct[content], served.task.name] for served in tasks] for content in inputs]

    async def explain(self, content: TextInput, served: Served) -> Effects:
        """What each token of a text does for each logit of a task; computed between batches.

        Raises:
            Overloaded, Stopped, Unanswered: as :meth:`answer`.
        """
        future: Future[Effects] = Future()
        with self._lock:
            self._check_room(full=len(self._calls) >= MOST_CALLS, seconds=1.0)
            self._calls.append((content, served, future))
            self._lock.notify_all()
        return await asyncio.wrap_future(future)

    def _check_room(self, *, full: bool, seconds: float) -> None:
        """Refuse a request when the server stops or is full. Called with the lock held."""
        if self._stopping:
            raise Stopped
        if full:
            self._telemetry.rejected.labels(reason="queue").inc()
            raise Overloaded(seconds)

    def _accept(self, ticket: _Ticket, distinct: dict[TextInput, int], tasks: Sequence[Served]) -> None:
        """Queue what a request wants, or refuse all of it."""
        sizes = {content: sum(map(_guess_tokens, content)) for content in distinct}
        with self._lock:
            new = sum(sizes.values()) * len({(served.encoder, served.task.pair_mode) for served in tasks})
            full = self._waiting_tokens > 0 and self._waiting_tokens + new > self._queue_tokens
            self._check_room(full=full, seconds=max(1.0, self._waiting_tokens / self._speed))
            for served in tasks:
                for content, number in distinct.items():
                    key = (served.encoder, served.task.pair_mode, content[1] is not None)
                    queue = self._queues.setdefault(key, {})
                    if content not in queue:
                        queue[content] = _Unit(content, sizes[content])
                        self._waiting_tokens += sizes[content]
                    _, waiting = queue[content].wanted.setdefault(id(served), (served, []))
                    waiting.append((ticket, number))
            self._telemetry.queue_tokens.set(self._waiting_tokens)
            self._lock.notify_all()

    # --- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Compute batch after batch until :meth:`stop`."""
        while True:
            with self._lock:
                while not (self._calls or any(self._queues.values()) or self._stopping):
                    self._lock.wait()
                call = self._calls.popleft() if self._calls else None
                key, units = self._next_batch()
                if call is None and key is None and self._stopping:
                    return
            if key is not None and units:
                self._compute(*key[:2], units)
            # One call follows each batch, so that neither keeps the other waiting.
            if call is not None:
                self._explain(*call)

    def _next_batch(self) -> tuple[Key | None, list[_Unit]]:
        """Units of the queue whose first text has waited longest. Called with the lock held."""
        key = next((key for key, queue in self._queues.items() if queue), None)
        if key is None:
            return None, []
        queue = self._queues.pop(key)
        units: list[_Unit] = []
        tokens = 0
        for unit in list(queue.values()):
            dropped = all(ticket.future.done() for ticket in unit.tickets())
            if units and not dropped and tokens + unit.tokens > self._batch_tokens:
                break
            self._waiting_tokens -= queue.pop(unit.content).tokens
            if dropped:
                self._telemetry.dropped.inc()
            else:
                units.append(unit)
                tokens += unit.tokens
        if queue:
            # The queue is put back as the last one, so that the others have their turn first.
            self._queues[key] = queue
        self._telemetry.queue_tokens.set(self._waiting_tokens)
        return key, units

    def _compute(self, encoder: SharedEncoder, pair_mode: PairMode | None, units: list[_Unit]) -> None:
        start = time.perf_counter()
        try:
            answers = self._answers(encoder, pair_mode, units)
        except Exception as error:
            # The server survives any error. One text may be the cause, so each is tried alone.
            if len(units) > 1:
                for unit in units:
                    self._compute(encoder, pair_mode, [unit])
                return
            _notify(units[0].tickets(), self._report_failure(error))
            return
        tokens = sum(unit.tokens for unit in units)
        self._speed += 0.2 * (tokens / (time.perf_counter() - start) - self._speed)
        complete: list[_Ticket] = []
        for ticket, number, name, answered in answers:
            ticket.answers[number, name] = answered
            if len(ticket.answers) == ticket.wanted:
                complete.append(ticket)
        _notify(complete)

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
        # In one order, as what is kept of tasks that answer together goes by it.
        some = sorted({id(served): served for unit in units for served, _ in unit.wanted.values()}.items())
        places = {key: number for number, (key, _) in enumerate(some)}
        asked = np.zeros((len(some), len(units)), bool)
        for row, unit in enumerate(units):
            asked[[places[key] for key in unit.wanted], row] = True
        lengths, cut = features.lengths.tolist(), features.truncated_rows.tolist()
        results: list[tuple[_Ticket, int, str, Answered]] = []
        found = encoder.answers(texts, [served.task for _, served in some], asked=asked)
        for (key, served), rows, given in zip(some, asked, found, strict=True):
            answers, scores, name = given.named, given.answers.probabilities, served.task.name
            self._telemetry.count_answers(name, len(answers), given.by_light)
            for place, row in enumerate(np.flatnonzero(rows).tolist()):
                shown = answers[place], scores[place], given.logits[place], given.head(place)
                of_scope = given.is_out_of_scope(place), given.out_of_scope_score(place)
                answered = Answered(*shown, *of_scope, lengths[row], cut[row], batch)
                results += [(*waiting, name, answered) for waiting in units[row].wanted[key][1]]
        batch.heads = time.perf_counter() - encoded
        self._telemetry.batch_texts.observe(len(units))
        self._telemetry.batch_tokens.observe(sum(lengths))
        self._telemetry.encoder_seconds.inc(batch.encoder)
        self._telemetry.head_seconds.inc(batch.heads)
        self._telemetry.truncated.inc(sum(cut))
        return results

    def _explain(self, content: TextInput, served: Served, future: Future[Effects]) -> None:
        if not future.set_running_or_notify_cancel():
            self._telemetry.dropped.inc()
            return
        task, shared = served.task, served.encoder
        try:
            features = shared.read([content], [task], pair_mode=task.pair_mode).seen_by(task)
            future.set_result(explain_one(task.head, content, shared.encoder, features, pair_mode=task.pair_mode))
        except Exception as error:
            future.set_exception(Unanswered(self._report_failure(error)))

    def _report_failure(self, error: Exception) -> str:
        """Count and log a failure by its kind, as its message may hold the text; what a client may know of it."""
        kind = type(error).__name__
        self._telemetry.failures.labels(kind=kind).inc()
        log("failed", kind=kind, level=logging.ERROR)
        return str(error) if isinstance(error, YTuningError) else "the text could not be computed"


def _guess_tokens(text: str | None) -> int:
    """About as many tokens as a text has, to bound a batch; tokenising would cost as much again as it saves."""
    return 0 if text is None else SPECIAL_TOKENS + len(text) // BYTES_OF_A_TOKEN


def _notify(tickets: list[_Ticket], failure: str | None = None) -> None:
    """Tell requests that they have all answers, or why not; in one call to their event loop, as each wakes it up."""

    def settle() -> None:
        for ticket in tickets:
            if ticket.future.done():
                continue
            if failure is None:
                ticket.future.set_result(None)
            else:
                ticket.future.set_exception(Unanswered(failure))

    if tickets:
        # Once the loop has been closed, nobody waits any more.
        with contextlib.suppress(RuntimeError):
            tickets[0].future.get_loop().call_soon_threadsafe(settle)

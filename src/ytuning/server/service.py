"""A server's settings, and what its routes share: which tasks a request is for, its limits, and the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from fastapi import Request
from pydantic import TypeAdapter

from ytuning.data.dataset import TextInput
from ytuning.data.labels import did_you_mean, list_names
from ytuning.server.batching import Answered, Batcher, Refused
from ytuning.server.catalog import Catalog, Changes, Served
from ytuning.server.decisions.fallback import Fallback
from ytuning.server.telemetry import Telemetry, log

__all__ = ["Service", "Settings", "unless_gone"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """Settings of one server.

    Attributes:
        folders: task folders, and folders that hold task folders.
        encoder: name or folder in place of the one named in the tasks, when it has moved.
        cascade: share of the answers that may change where light heads answer first; None: default heads answer all.
        host: host name or address to listen on.
        port: port to listen on.
        keys: keys of clients; without any, everybody may use the server.
        admin_keys: keys of those who may also reload tasks.
        origins: origins of web pages that may read the replies (CORS).
        watch: seconds between checks of the task folders; 0 means that only a request checks them.
        batch_tokens: maximum number of tokens in a batch.
        queue_tokens: maximum number of waiting tokens; requests beyond it are refused.
        requests: maximum number of requests at a time.
        body_bytes: maximum size of a request.
        texts: maximum number of texts in a request; a pair counts once.
        characters: maximum length of a text.
        seconds: maximum time that a request may take.
        drain: seconds for which a server that stops still answers, but says that it is not ready.
        fallback: address of the server that answers questions which no task does; None for no such server.
        fallback_key: key for that server.
        fallback_seconds: maximum time that it may take.
        fallback_failures: number of its failures in a row after which it is left alone.
        fallback_pause: seconds for which it is then left alone.
    """

    folders: tuple[str, ...]
    encoder: str | None = None
    cascade: float | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    watch: float = 2.0
    batch_tokens: int = 16_384
    queue_tokens: int = 65_536
    requests: int = 512
    body_bytes: int = 4_000_000
    texts: int = 1_000
    characters: int = 200_000
    seconds: float = 30.0
    drain: float = 0.0
    fallback: str | None = None
    fallback_key: str | None = field(default=None, repr=False)
    fallback_seconds: float = 10.0
    fallback_failures: int = 5
    fallback_pause: float = 30.0

    def to_environment(self) -> str:
        """Settings as text, for the processes of ``--workers``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls, text: str) -> Settings:
        """Invert :meth:`to_environment`."""
        return TypeAdapter(cls).validate_json(text)


@dataclass
class Service:
    """The state and the work that the routes share.

    Attributes:
        ready: all tasks are loaded and warmed up.
        draining: the server is about to stop. It still answers, and tells balancers and clients to go elsewhere.
    """

    settings: Settings
    catalog: Catalog
    batcher: Batcher
    telemetry: Telemetry
    fallback: Fallback | None = None
    ready: bool = False
    draining: bool = False

    def check_ready(self) -> None:
        """Whether all tasks are loaded and warmed up.

        Raises:
            Refused: the tasks are not ready.
        """
        if not self.ready:
            raise Refused(503, "unavailable", "the tasks are still loading. Try again in a moment.")

    def check_open(self) -> None:
        """Whether balancers should send requests here.

        Raises:
            Refused: the tasks are not ready, or the server is about to stop.
        """
        self.check_ready()
        if self.draining:
            raise Refused(503, "unavailable", "the server is about to stop. Use another one.")

    def task(self, name: str | None, *, gives_many: bool = False) -> Served:
        """The task of a name, or the only one (that may give several labels).

        Raises:
            Refused: the tasks are being loaded, there is no such task, or no name where there are several.
        """
        self.check_ready()
        tasks = self.catalog.tasks
        if name is None:
            some = [served for served in tasks.values() if served.task.target.gives_many or not gives_many]
            if len(some) == 1:
                return some[0]
            what = f"name one of the {len(some)} {'multi-label ' if gives_many else ''}tasks"
            raise Refused(422, "validation", f"{what}: {list_names([served.task.name for served in some])}.")
        if name not in tasks:
            hint = f"{did_you_mean(name, tasks)} The tasks are {list_names(list(tasks))}."
            raise Refused(404, "not_found", f"there is no task {name[:80]!r}.{hint}")
        return tasks[name]

    def tasks_for(self, *, pairs: bool) -> list[Served]:
        """Every task that takes pairs of texts, or single texts."""
        return [served for served in self.catalog.tasks.values() if bool(served.task.pair_mode) == pairs]

    async def answers(
        self, request: Request, inputs: Sequence[TextInput], tasks: Sequence[Served], *, truncate: bool = True
    ) -> list[list[Answered]]:
        """Return each task's answer for each input.

        Raises:
            Refused: too many or too long inputs, a form that a task does not take, a text that would be cut, or the
                client has closed the connection.
        """
        self.check(inputs, tasks)
        request.state.texts = len(inputs)
        answers = await unless_gone(request, self.batcher.answer(inputs, tasks))
        request.state.tokens = sum(row[0].tokens for row in answers)
        # The header x-truncated-inputs is made of them.
        cut = request.state.cut = [number for number, row in enumerate(answers) if any(each.truncated for each in row)]
        if not truncate and cut:
            most = tasks[0].task.encoder.max_length
            message = (
                f"input {cut[0] + 1} has more tokens than the encoder reads ({most}). Shorten it or allow truncate."
            )
            raise Refused(413, "validation", message)
        return answers

    def show_tasks(self) -> None:
        """Show how many tasks there are, and what validation says of those in a cascade."""
        self.telemetry.tasks.set(len(self.catalog.tasks))
        self.telemetry.show_cascades(self.catalog.cascades)

    def tell(self, changes: Changes) -> None:
        """Count and log what has changed about the tasks."""
        self.show_tasks()
        if changes:
            for what, names in vars(changes).items():
                self.telemetry.reloads.labels(what=what).inc(len(names))
            log("tasks", **vars(changes))

    def check(self, inputs: Sequence[TextInput], tasks: Sequence[Served]) -> None:
        """Whether these tasks can be asked about these inputs.

        Raises:
            Refused: too many or too long inputs, none, or a form that a task does not take.
        """
        if not inputs:
            raise Refused(422, "validation", "there is no input. Give at least one text.")
        most, longest = self.settings.texts, self.settings.characters
        if len(inputs) > most:
            message = f"a request may have {most:,} inputs. Got {len(inputs):,} instead. Send fewer at a time."
            raise Refused(413, "too_large", message)
        for number, content in enumerate(inputs, 1):
            for text in content:
                if text is None:
                    continue
                if len(text) > longest:
                    message = f"input {number} has more than {longest:,} characters. Send it in parts."
                    raise Refused(413, "too_large", message)
                try:
                    text.encode()
                except UnicodeEncodeError:
                    message = f"input {number} contains an invalid Unicode character (an unpaired surrogate)."
                    raise Refused(422, "validation", message) from None
            for served in tasks:
                if problem := served.task.form_problem(pairs=content[1] is not None):
                    raise Refused(422, "validation", f"input {number}: {problem}.")


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """What the work gives, unless the client closes the connection first; then it is given up.

    Raises:
        Refused: the client has closed the connection.
    """

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.create_task(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Refused(499, "client_gone", "the client closed the connection.")
    finally:
        working.cancel()
        leaving.cancel()

"""What the routes share: which tasks a request is for, whether it can be answered, and the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from ytuning.data.dataset import TextInput
from ytuning.data.labels import did_you_mean, listed
from ytuning.server.batching import Answered, Batcher
from ytuning.server.catalog import Catalog, Changes, Served
from ytuning.server.settings import Settings
from ytuning.server.telemetry import Telemetry, log

__all__ = ["ClientGone", "NotReady", "Refused", "Service", "unless_gone"]

Found = TypeVar("Found")


class NotReady(Exception):  # noqa: N818
    """The tasks are still being loaded."""


class ClientGone(Exception):  # noqa: N818
    """Nobody waits for the reply any more."""


class Refused(Exception):  # noqa: N818
    """A request that cannot be answered, with the status and the kind of error that say why."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass
class Service:
    """What the routes share."""

    settings: Settings
    catalog: Catalog
    batcher: Batcher
    telemetry: Telemetry
    ready: bool = False

    def task(self, name: str | None, kind: str | None = None) -> Served:
        """The task of a name, or the only one (of a kind).

        Raises:
            NotReady: the tasks are being loaded.
            Refused: there is no such task, or no name where there are several.
        """
        if not self.ready:
            raise NotReady
        tasks = self.catalog.tasks
        if name is None:
            some = [served for served in tasks.values() if kind in (None, served.task.kind)]
            if len(some) == 1:
                return some[0]
            what = f"name one of the {len(some)} {'multi-label ' if kind else ''}tasks"
            raise Refused(422, "validation", f"{what}: {listed([served.task.name for served in some])}.")
        if name not in tasks:
            raise Refused(
                404,
                "not_found",
                f"there is no task {name[:80]!r}.{did_you_mean(name, tasks)} The tasks are {listed(list(tasks))}.",
            )
        return tasks[name]

    async def answers(
        self, request: Request, inputs: Sequence[TextInput], tasks: Sequence[Served], *, truncate: bool = True
    ) -> list[list[Answered]]:
        """For each input each task's answer.

        Raises:
            Refused: too many or too long inputs, a form that a task does not take, or a text that would be cut.
            ClientGone: the client has closed the connection.
        """
        self.check(inputs, tasks)
        request.state.texts = len(inputs)
        found = await unless_gone(request, self.batcher.answer(inputs, tasks))
        request.state.tokens = sum(row[0].tokens for row in found)
        if not truncate and (cut := [number for number, row in enumerate(found) if row[0].truncated]):
            most = tasks[0].task.encoder.max_length
            message = (
                f"input {cut[0] + 1} has more tokens than the encoder reads ({most}). Shorten it or allow truncate."
            )
            raise Refused(413, "validation", message)
        return found

    def tell(self, changes: Changes) -> None:
        """Count and log what has changed about the tasks."""
        self.telemetry.tasks.set(len(self.catalog.tasks))
        if changes:
            found = {what: getattr(changes, what) for what in ("added", "changed", "removed", "refused")}
            for what, names in found.items():
                self.telemetry.reloads.labels(what=what).inc(len(names))
            log("tasks", **found)

    def check(self, inputs: Sequence[TextInput], tasks: Sequence[Served]) -> None:
        """Whether these tasks can be asked about these inputs.

        Raises:
            Refused: too many or too long inputs, none, an empty one, or a form that a task does not take.
        """
        if not inputs:
            raise Refused(422, "validation", "there is no input. Give at least one text.")
        if len(inputs) > self.settings.texts:
            message = (
                f"a request may have {self.settings.texts:,} inputs. Got {len(inputs):,} instead. Send fewer at a time."
            )
            raise Refused(413, "too_large", message)
        for number, content in enumerate(inputs, 1):
            for text in content:
                if text is None:
                    continue
                if not text.strip():
                    raise Refused(422, "validation", f"input {number} is empty. Give a text.")
                if len(text) > self.settings.characters:
                    message = f"input {number} has more than {self.settings.characters:,} characters. Send it in parts."
                    raise Refused(413, "too_large", message)
                if not text.isprintable() and _unreadable(text):
                    raise Refused(
                        422,
                        "validation",
                        f"input {number} contains an invalid Unicode character (an unpaired surrogate).",
                    )
            for served in tasks:
                if bool(served.task.pair_mode) != (content[1] is not None):
                    form = "a pair of texts" if served.task.pair_mode else "a single text"
                    raise Refused(
                        422, "validation", f"input {number} must be {form} for the task {served.task.name!r}."
                    )


async def unless_gone(request: Request, work: Awaitable[Found]) -> Found:
    """What the work gives, unless the client closes the connection first; then it is given up.

    Raises:
        ClientGone: so it was.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        leaving.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unreadable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False

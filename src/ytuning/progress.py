"""Progress of long work, and the bars that show it on stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

__all__ = ["CollectedMessages", "Messages", "NamedProgress", "Progress", "ProgressBar", "say_of_tasks"]


class Progress:
    """Takes reports of long work and shows nothing; classes that show them derive from it."""

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report that ``done`` of ``total`` units of ``stage`` are finished."""

    def say(self, message: str) -> None:
        """Report something that the user should know, such as texts that were cut."""


class Messages(Progress):
    """Prints messages on stderr and no bars, for users who want quiet."""

    def say(self, message: str) -> None:
        """Print a message on a line of its own."""
        print(message, file=sys.stderr)


class CollectedMessages(Progress):
    """Keeps messages in a list."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        """Keep a message."""
        self.messages.append(message)


class NamedProgress(Progress):
    """Says of each message which of several tasks it is about."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report it as it is."""
        self._progress.step(stage, done, total, note)

    def say(self, message: str) -> None:
        """Report it with the name of the task."""
        self._progress.say(f"task {self._name!r}: {message}")


def say_of_tasks(progress: Progress, messages: Mapping[str, Sequence[str]]) -> None:
    """Report the messages of each task by its name; a message that all tasks have is reported once, without a name."""
    common = set.intersection(*map(set, messages.values())) if messages else set()
    for message in dict.fromkeys(message for own in messages.values() for message in own if message in common):
        progress.say(message)
    for name, own in messages.items():
        for message in own:
            if message not in common:
                NamedProgress(name, progress).say(message)


class ProgressBar(Progress):
    """Shows bars and messages on stderr, so that stdout stays free for results; use it as a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars: rich.progress.Progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks:
            self._bars.stop()

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of ``stage``."""
        if not self._tasks:
            # The display starts with its first bar, because stopping an empty one prints a blank line.
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(message, markup=False, highlight=False, soft_wrap=True)

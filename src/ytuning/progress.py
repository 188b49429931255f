"""What long work reports, and the bar that shows it on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

__all__ = ["Messages", "Progress", "ProgressBar"]


class Progress:
    """Reports of long work, shown to nobody; the base of anything that shows them."""

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` units of ``stage`` are finished."""

    def say(self, message: str) -> None:
        """Something the user should know, such as texts that were cut."""


class Messages(Progress):
    """Messages on stderr, no bars: what a user who wants quiet should still know."""

    def say(self, message: str) -> None:
        """Print a line."""
        print(message, file=sys.stderr)


class ProgressBar(Progress):
    """Bars and messages on stderr, so that stdout stays free for results. Used as a context manager."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            self._bars.stop()

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of ``stage``."""
        if not self._tasks:
            self._bars.start()  # not before there is a bar to show: stopping an empty display prints a blank line
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(message, markup=False, highlight=False, soft_wrap=True)

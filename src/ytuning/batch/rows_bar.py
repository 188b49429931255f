"""Progress of units: rows that have been finished, and how many of them a second."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ytuning.batch.plan import Unit
from ytuning.progress import Progress

__all__ = ["RowsBar"]

# Rates are shown from so many seconds on.
RATE_SECONDS = 1.0


class RowsBar:
    """Shows rows, or units where nobody has counted the rows, and how many of them a second."""

    def __init__(self, progress: Progress, stage: str, units: Sequence[Unit]) -> None:
        self._progress, self._stage, self._started = progress, stage, time.monotonic()
        counts = [unit.part.rows for unit in units]
        self._by_rows = None not in counts
        self._total = sum(count or 0 for count in counts) if self._by_rows else len(units)
        # Rows of units that have ended, and those that workers tell of in the others.
        self._ended = self._told = self._answered = 0

    def rows(self, rows: int) -> None:
        """Workers have finished some rows of their units."""
        self._told, self._answered = self._told + rows, self._answered + rows
        self._show()

    def unit(self, unit: Unit) -> None:
        """A unit has ended."""
        self._ended += (unit.part.rows or 0) if self._by_rows else 1
        self._show()

    def _show(self) -> None:
        seconds = time.monotonic() - self._started
        done = max(self._ended, min(self._told, self._total)) if self._by_rows else self._ended
        rows = self._answered or (self._ended if self._by_rows else 0)
        note = f"{rows / seconds:,.0f} rows/s" if seconds > RATE_SECONDS and rows else ""
        self._progress.step(self._stage if self._by_rows else "units", done, self._total, note)

"""The tasks that a server answers for: they come, change and go while it runs, and a broken one changes nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ytuning.errors import InputError, TaskFolderError, YTuningError
from ytuning.tasks.cascade import CascadeFigures, check_share, notes_on_cascades
from ytuning.tasks.shared_encoder import SharedEncoder, share_encoders
from ytuning.tasks.task import HEAD_FILE, LIGHT_FILE, TASK_FILE, Task, check_names, load_task

__all__ = ["Catalog", "Changes", "Served"]

Stamp = tuple[tuple[int, int, int], ...]
"""Inode, size and time of the last change of each of a task's files."""


@dataclass(frozen=True, eq=False)
class Served:
    """A task and the encoder that it is answered with."""

    task: Task
    encoder: SharedEncoder
    folder: Path
    stamp: Stamp


@dataclass(frozen=True)
class Changes:
    """What a look at the folders has found.

    Attributes:
        added: names of new tasks.
        changed: names of tasks that were loaded again.
        removed: names of tasks that are gone.
        refused: folder -> why it is not read; what was served from it still is.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(vars(self).values())


class Catalog:
    """Tasks by name; ``tasks`` is replaced as a whole, so that a request keeps the one it began with.

    Args:
        places: task folders, and folders whose sub-folders are task folders.
        encoder: name or folder in place of the one named in the tasks, when it has moved.
        cascade: share of the answers that may change where light heads answer first; None: default heads answer all.
    """

    def __init__(
        self, places: Sequence[str | Path], *, encoder: str | None = None, cascade: float | None = None
    ) -> None:
        if cascade is not None:
            check_share(cascade)
        self.tasks: dict[str, Served] = {}
        self._places, self._encoder, self._cascade = [Path(place) for place in places], encoder, cascade
        self._lock = threading.Lock()
        self._refused: dict[Path, tuple[Stamp, str]] = {}

    def open(self) -> None:
        """Read all folders for the first time.

        Raises:
            InputError: there is no task, or two have one name.
            TaskFolderError: a folder that was named itself cannot be used.
            EncoderError: an encoder cannot be loaded.
        """
        for place in self._places:
            if not place.is_dir():
                message = f"there is no task folder {place}. Make one with: ytuning train DATA --out {place}"
                raise TaskFolderError(message)
        with self._lock:
            tasks = [(folder, _stamp(folder), self._load(folder)) for folder in self.folders()]
            if not tasks:
                where = ", ".join(repr(str(place)) for place in self._places)
                raise InputError(
                    f"there is no task folder in {where}. Make one with: ytuning train DATA --out TASK_DIR"
                )
            check_names([task for _, _, task in tasks])
            encoders = share_encoders([task for _, _, task in tasks], encoder=self._encoder)
            self.tasks = {
                task.name: Served(task, shared, folder, stamp)
                for (folder, stamp, task), shared in zip(tasks, encoders, strict=True)
            }

    def reload(self) -> Changes:
        """Look at the folders again, and serve what is new in them from now on; one thread at a time does."""
        with self._lock:
            changes = Changes()
            before = {served.folder: served for served in self.tasks.values()}
            kept: dict[str, Served] = {}
            fresh: list[tuple[Path, Stamp, Task]] = []

            def refuse(folder: Path, stamp: Stamp, why: str) -> None:
                """Keep what was served from a broken folder, and tell of it once, not at every look."""
                if self._refused.get(folder) != (stamp, why):
                    changes.refused[str(folder)] = why
                self._refused[folder] = stamp, why
                if folder in before:
                    kept[before[folder].task.name] = before[folder]

            for folder in self.folders():
                stamp, old = _stamp(folder), before.get(folder)
                if old is not None and stamp == old.stamp:
                    kept[old.task.name] = old
                    continue
                try:
                    fresh.append((folder, stamp, self._load(folder)))
                except YTuningError as error:
                    refuse(folder, stamp, str(error))
                # One folder must not keep the others out, whatever is wrong with it.
                except Exception as error:
                    refuse(folder, stamp, f"{folder} cannot be read ({type(error).__name__}: {error})")
            for folder, stamp, task in fresh:
                try:
                    self._add(kept, folder, stamp, task)
                except YTuningError as error:
                    refuse(folder, stamp, str(error))
                else:
                    (changes.changed if folder in before else changes.added).append(task.name)
            changes.removed.extend(name for name in self.tasks if name not in kept)
            self._refused = {folder: why for folder, why in self._refused.items() if folder.is_dir()}
            self.tasks = kept
            return changes

    @property
    def cascades(self) -> dict[str, CascadeFigures]:
        """What validation says of each task whose light head answers first, by its name."""
        share = self._cascade
        tasks = {name: served.task for name, served in self.tasks.items()}
        return {
            name: task.cascade.curve.figures(share)
            for name, task in tasks.items()
            if share is not None and task.cascade is not None and task.light_task is not None
        }

    @property
    def notes(self) -> list[str]:
        """What to tell of tasks that the cascade does nothing for."""
        cascades = {name: served.task.cascade for name, served in self.tasks.items()}
        return [] if self._cascade is None else notes_on_cascades(cascades, self._cascade)

    def _load(self, folder: Path) -> Task:
        return load_task(folder).in_cascade(self._cascade)

    def _add(self, kept: dict[str, Served], folder: Path, stamp: Stamp, task: Task) -> None:
        """Serve a task with those kept, on an encoder that is loaded already if there is one for it."""
        if task.name in kept:
            raise InputError(f"another folder is named {task.name!r}, too. Rename one")
        loaded = [served.encoder for served in (*self.tasks.values(), *kept.values())]
        (shared,) = share_encoders([task], encoder=self._encoder, loaded=loaded)
        kept[task.name] = Served(task, shared, folder, stamp)

    def folders(self) -> list[Path]:
        """Every task folder, in the order of the places and of names."""
        folders: list[Path] = []
        for place in self._places:
            if (place / TASK_FILE).is_file():
                folders.append(place)
            elif place.is_dir():
                folders += sorted(folder for folder in place.iterdir() if (folder / TASK_FILE).is_file())
        return list(dict.fromkeys(folders))


def _stamp(folder: Path) -> Stamp:
    stamp = []
    for name in (TASK_FILE, HEAD_FILE, LIGHT_FILE):
        try:
            state = os.stat(folder / name)
            stamp.append((state.st_ino, state.st_size, state.st_mtime_ns))
        except OSError:
            stamp.append((0, 0, 0))
    return tuple(stamp)

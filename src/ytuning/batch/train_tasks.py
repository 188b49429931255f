"""Many tasks over the same texts on the workers of an engine: a unit is a group of tasks.

The encoder reads the texts here, once, before any unit; workers find all features in the store. There are as many
groups as workers, and not as many as tasks, because the tasks of a group share what `tasks/train_many.py` shares: a
read of the store and of each batch, and of light heads the sums over their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ytuning.batch.stored_encoder import StoredEncoder
from ytuning.data.dataset import Dataset
from ytuning.encoder.encoder import Encoder
from ytuning.engines.engine import Engine
from ytuning.engines.schedule import Finished, GivenUp, Scheduler
from ytuning.engines.workers import check_same_results, open_workers
from ytuning.features.features import CacheUse
from ytuning.features.store import FeatureStore
from ytuning.progress import CollectedMessages, NamedProgress, Progress
from ytuning.system.machine import versions
from ytuning.tasks import train_many
from ytuning.tasks.choices import pair_modes
from ytuning.tasks.train import Stopwatch, Trained, TrainOptions, read_inputs
from ytuning.tasks.train_many import FitTasks, PreparedTask, fit_tasks
from ytuning.training.recipes import Recipe

__all__ = ["TrainEnd", "TrainUnit", "TrainWork", "fit_on_engine", "train_tasks"]


@dataclass(frozen=True)
class TrainUnit:
    """Tasks that a worker trains together; their encoder is a `StoredEncoder`, and their progress says nothing."""

    tasks: tuple[PreparedTask, ...]


@dataclass(frozen=True)
class TrainEnd:
    """What became of the tasks of a unit.

    Attributes:
        trained: the result of each task, by its name.
        messages: what the training had to say.
    """

    trained: dict[str, Trained]
    messages: list[str]


@dataclass(frozen=True)
class TrainWork:
    """What workers need for tasks on an encoder; see `pool.Work`."""

    encoder: StoredEncoder

    def start(self) -> _TrainWorker:
        """Check that this machine can train as the one that has encoded.

        Raises:
            InputError: it cannot.
        """
        self.encoder.check()
        return _TrainWorker()


class _TrainWorker:
    """Trains tasks; see `pool.Worker`."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = dict(versions())

    def __call__(self, unit: TrainUnit, tell: Callable[[int], None]) -> TrainEnd:
        """Train the tasks of a unit.

        Raises:
            InputError: the store lacks texts, or a training fails.
        """
        said = CollectedMessages()
        tasks = [
            (replace(context, progress=NamedProgress(context.options.name, said)), rows) for context, rows in unit.tasks
        ]
        return TrainEnd(fit_tasks(tasks, said), said.messages)


def train_tasks(
    train: Mapping[str, Dataset],
    encoder: Encoder,
    store: FeatureStore,
    recipe: Recipe,
    *,
    validation: Mapping[str, Dataset] | None = None,
    test: Mapping[str, Dataset] | None = None,
    options: TrainOptions | None = None,
    label_orders: Mapping[str, Sequence[str]] | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> dict[str, Trained]:
    """Train several tasks as `train_many.train_tasks` does, in this process or on the workers of an engine.

    Arguments are those of `train_many.train_tasks` and ``engine``. A task gets the same head either way, with its one
    exception: where tasks have more than 32,768 rows, rare labels of those in the same group count.

    Raises:
        InputError: as `train_many.train_tasks`; or a worker does not find the features, or would compute otherwise.
        MissingExtraError: Ray is not installed.
        YTuningError: workers do not start, or are lost too often.
    """
    with fit_on_engine(engine) as fit:
        return train_many.train_tasks(
            train,
            encoder,
            store,
            recipe,
            validation=validation,
            test=test,
            options=options,
            label_orders=label_orders,
            fit=fit,
            progress=progress,
        )


@contextmanager
def fit_on_engine(engine: Engine | None) -> Iterator[FitTasks]:
    """What trains tasks on the workers of an engine, which are started when they are first needed; None: here."""
    if engine is None:
        yield fit_tasks
        return
    with ExitStack() as ending:
        opened: list[Scheduler] = []

        def fit(tasks: Sequence[PreparedTask], progress: Progress) -> dict[str, Trained]:
            cache = _encode(tasks)
            if not opened:
                work = TrainWork(_stored_encoder(tasks[0]))
                workers = open_workers(engine, work, units=len(tasks), progress=progress)
                opened.append(ending.enter_context(workers))
            trained = _fit_on_workers(opened[0], tasks, min(engine.workers, len(tasks)), progress)
            return {name: replace(one, cache=cache) for name, one in trained.items()}

        yield fit


def _fit_on_workers(
    scheduler: Scheduler, tasks: Sequence[PreparedTask], groups: int, progress: Progress
) -> dict[str, Trained]:
    """Train tasks in groups; Ctrl-C keeps the tasks of finished groups."""
    watch = Stopwatch()
    watch.add(tasks[0][0].watch.seconds)
    check_same_results(scheduler, dict(versions()))
    encoder = _stored_encoder(tasks[0])
    sent = [
        (replace(context, encoder=encoder, progress=Progress(), watch=Stopwatch()), rows) for context, rows in tasks
    ]
    trained: dict[str, Trained] = {}
    units = [TrainUnit(tuple(group)) for group in _groups(sent, groups)]
    try:
        with watch.stage("train"):
            for end in scheduler.run(units, lambda unit: False, lambda rows: None):
                if isinstance(end, GivenUp):
                    raise end.problem.error()
                assert isinstance(end, Finished)
                trained |= end.result.trained
                for message in end.result.messages:
                    progress.say(message)
                progress.step("tasks", len(trained), len(tasks))
    except KeyboardInterrupt:
        if not trained:
            raise
    names = [context.options.name for context, _ in tasks if context.options.name in trained]
    return {name: replace(trained[name], seconds=watch.seconds) for name in names}


def _encode(tasks: Sequence[PreparedTask]) -> CacheUse:
    """Let the encoder read what the store lacks; returns how all texts met the store."""
    context, rows = tasks[0]
    modes = pair_modes(context.options.pairs, has_pairs=context.train.has_pairs)
    uses = [read_inputs(context, rows, mode)[1] for mode in modes]
    if context.options.release_encoder:
        context.encoder.release()
    return CacheUse(*(sum(getattr(use, name) for use in uses) for name in ("hits", "misses", "bytes")))


def _stored_encoder(task: PreparedTask) -> StoredEncoder:
    return StoredEncoder(task[0].encoder, task[0].store)


def _groups(tasks: Sequence[PreparedTask], count: int) -> list[list[PreparedTask]]:
    """The tasks in so many groups of about one size; tasks with the same rows are neighbours, as they share most."""
    by_rows: dict[tuple[bytes, bytes], list[PreparedTask]] = {}
    for task in tasks:
        by_rows.setdefault((task[1].train.tobytes(), task[1].validation.tobytes()), []).append(task)
    ordered = [task for own in by_rows.values() for task in own]
    ends = [len(ordered) * number // count for number in range(count + 1)]
    return [ordered[first:last] for first, last in pairwise(ends)]

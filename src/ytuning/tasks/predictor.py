"""One encoder pass, many heads -> predictions, in input order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ytuning.data.dataset import Dataset, TextInput, read_inputs
from ytuning.data.kinds import KINDS, Answer
from ytuning.data.labels import Kind, quote
from ytuning.data.sequences import as_cells
from ytuning.errors import DataError, InputError
from ytuning.heads.pairs import PairMode
from ytuning.tasks.cascade import Head, check_share
from ytuning.tasks.shared_encoder import SharedEncoder, TaskAnswers, share_encoders
from ytuning.tasks.task import Task, check_names, load_task

__all__ = ["Prediction", "Predictor", "live_logits", "live_logits_of_tasks"]

# This number of texts is encoded and answered at a time, so that memory does not grow with the input.
WINDOW_TEXTS = 2048


@dataclass(frozen=True)
class Prediction:
    """One task's answer for one input.

    Attributes:
        text: the input, or its first text.
        text_pair: the second text of a pair; None for single texts.
        task: name of the task folder.
        kind: kind of the task.
        answer: a label, or None where the task abstains; of the kind "multi" the labels, most probable first; of the
            kind "regression" a number.
        scores: calibrated probability of each label, by name; none of a regression.
        truncated: whether the encoder saw only the beginning.
        head: which head of a cascade has answered, "light" or "default"; None where no cascade was asked for.
        out_of_scope: whether the input is unlike the training rows; None where the task has no threshold for it.
        out_of_scope_score: how unlike them it is, 0 being usual and 1 a standard deviation on the validation set; None
            where the task cannot tell.
    """

    text: str
    text_pair: str | None
    task: str
    kind: Kind
    answer: Answer
    scores: dict[str, float]
    truncated: bool
    head: Head | None = None
    out_of_scope: bool | None = None
    out_of_scope_score: float | None = None

    @property
    def label(self) -> str | None:
        """The answer of a task with one label a row.

        Raises:
            AttributeError: the task gives several labels or a number.
        """
        if isinstance(self.answer, str | None):
            return self.answer
        raise AttributeError(f"a task of kind {self.kind!r} gives no single label; see answer")

    def to_json(self) -> dict[str, Any]:
        """The line that ``ytuning predict`` writes."""
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        answer = {KINDS[self.kind].answer_key: self.answer}
        known = {"head": self.head, "out_of_scope": self.out_of_scope, "out_of_scope_score": self.out_of_scope_score}
        more = {name: value for name, value in known.items() if value is not None}
        return {"text": self.text, **pair, "task": self.task, **answer, "scores": self.scores, **more}


class Predictor:
    """Trained tasks; each distinct text of a window is encoded once for all that share an encoder, however many states
    of it they read.

    Args:
        folders: a task folder, a task, or several of them.
        encoder: name or folder to use in place of the encoder named in the tasks, when it has moved.
        device: see `encoder.load_encoder`.
        cascade: a share of the answers. Where a task has a light head, it answers first, as far as this changes at most
            the share of the answers (`cascade.Cascade`); the default head answers the rest. None: it answers all.

    Raises:
        TaskFolderError: a folder cannot be used, or an encoder differs from the one that a task was trained with.
        InputError: there is no folder, something is not a folder, two tasks have the same name, or ``cascade`` is no
            such share.
    """

    def __init__(
        self,
        folders: str | Path | Task | Iterable[str | Path | Task],
        *,
        encoder: str | None = None,
        device: str | None = None,
        cascade: float | None = None,
    ) -> None:
        if cascade is not None:
            check_share(cascade)
        tasks = [given if isinstance(given, Task) else load_task(given) for given in _several(folders)]
        check_names(tasks)
        self.tasks = [task.in_cascade(cascade) for task in tasks]
        self._encoder, self._device = encoder, device
        # What is wrong with an encoder is told here, not by the first prediction.
        _ = self._encoders

    @cached_property
    def _encoders(self) -> list[SharedEncoder]:
        """Each task's encoder; a copy of a predictor loads them when it is first used."""
        return share_encoders(self.tasks, encoder=self._encoder, device=self._device)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds, which is all but the encoders' weights."""
        return {name: value for name, value in vars(self).items() if name != "_encoders"}

    def predict(self, inputs: object) -> Iterator[Prediction]:
        """Predictions for inputs in their order, for each input one of each task in the order of the folders.

        Args:
            inputs: a list, an array, a series or another iterable of texts or of pairs of texts, or a data set. A
                text with None in place of the second text is a single text. An iterator is read a window at a time.

        Raises:
            InputError: ``inputs`` is a single text or not a list.
            DataError: an input is not text, is a pair and the task is for single texts, or the other way round.
        """
        if isinstance(inputs, Dataset):
            return self._predictions(iter(inputs.inputs))
        return self._predictions(read_inputs(inputs if isinstance(inputs, Iterator) else as_cells(inputs, "inputs")))

    def scores(self, inputs: object) -> dict[str, np.ndarray]:
        """Calibrated scores of inputs as arrays, by the name of the task; for many tasks far faster than `predict`.

        Args:
            inputs: as of :meth:`predict`. All of them are read before the first is encoded.

        Returns:
            Of each task the probabilities (N, C) float64 of its labels, in the order of ``task.target.names``; of a
            regression its numbers (N,) float64.

        Raises:
            InputError, DataError: as :meth:`predict`.
        """
        given = inputs if isinstance(inputs, Dataset | Iterator) else as_cells(inputs, "inputs")
        stream = list(given.inputs if isinstance(given, Dataset) else read_inputs(given))
        self._check_form(stream, 0)
        distinct = {content: number for number, content in enumerate(dict.fromkeys(stream))}
        contents, rows = list(distinct), [distinct[content] for content in stream]
        # A part of no rows, so that there are arrays without inputs, too.
        parts: list[list[np.ndarray]] = [
            [np.empty((0, len(task.target.names)) if task.target.labels is not None else 0)] for task in self.tasks
        ]
        for first in range(0, len(contents), WINDOW_TEXTS):
            found = self._answers(contents[first : first + WINDOW_TEXTS], with_scope=False)
            for of_task, (own, _) in zip(parts, found, strict=True):
                answers = own.answers
                of_task.append(answers.values if own.task.target.labels is None else answers.probabilities)
        return {task.name: np.concatenate(of_task)[rows] for task, of_task in zip(self.tasks, parts, strict=True)}

    def answers(self, inputs: Sequence[TextInput]) -> tuple[list[tuple[TaskAnswers, np.ndarray]], np.ndarray]:
        """Answers to texts as arrays, all of which are encoded at once; give at most some thousands.

        Args:
            inputs: texts or pairs, as `data.dataset.read_inputs` gives them.

        Returns:
            For each task its answers to the D distinct inputs and which of those were cut, (D,) bool; and (N,) int64,
            the place of each input among the distinct ones.

        Raises:
            InputError: as :meth:`predict`.
        """
        self._check_form(inputs, 0)
        distinct = {content: number for number, content in enumerate(dict.fromkeys(inputs))}
        return self._answers(list(distinct)), np.array([distinct[content] for content in inputs], np.int64)

    def _predictions(self, stream: Iterator[TextInput]) -> Iterator[Prediction]:
        position = 0
        while window := list(islice(stream, WINDOW_TEXTS)):
            self._check_form(window, position)
            distinct = {content: number for number, content in enumerate(dict.fromkeys(window))}
            found = [(given, given.named, truncated) for given, truncated in self._answers(list(distinct))]
            for content in window:
                row = distinct[content]
                for given, named, truncated in found:
                    task, scores = given.task, given.answers.probabilities[row].tolist()
                    by_name = dict(zip(task.target.names, scores, strict=True))
                    yield Prediction(
                        *content,
                        task.name,
                        task.kind,
                        named[row],
                        by_name,
                        bool(truncated[row]),
                        given.head(row),
                        given.is_out_of_scope(row),
                        given.out_of_scope_score(row),
                    )
            position += len(window)

    def _answers(self, inputs: list[TextInput], *, with_scope: bool = True) -> list[tuple[TaskAnswers, np.ndarray]]:
        """Return each task's answers to the inputs, and whether each input was cut, (inputs,) bool."""
        together: dict[tuple[SharedEncoder, PairMode | None], list[int]] = {}
        for number, (task, encoder) in enumerate(zip(self.tasks, self._encoders, strict=True)):
            together.setdefault((encoder, task.pair_mode), []).append(number)
        by_task: dict[int, tuple[TaskAnswers, np.ndarray]] = {}
        for (encoder, pair_mode), numbers in together.items():
            tasks = [self.tasks[number] for number in numbers]
            texts = encoder.read(inputs, tasks, pair_mode=pair_mode)
            for number, given in zip(numbers, encoder.answers(texts, tasks, with_scope=with_scope), strict=True):
                by_task[number] = given, texts.features.truncated_rows
        return [by_task[number] for number in range(len(self.tasks))]

    def _check_form(self, window: Sequence[TextInput], position: int) -> None:
        # Hundreds of tasks are asked once for either form, and not for each input.
        problems = {
            pairs: next((problem for task in self.tasks if (problem := task.form_problem(pairs=pairs))), None)
            for pairs in (False, True)
        }
        for row, (_, pair) in enumerate(window, position + 1):
            if problem := problems[pair is not None]:
                raise InputError(f"input {row}: {problem}")


def _several(folders: Any) -> list[Any]:
    """Task folders or tasks of one or several, none checked yet but for its type."""
    kinds = (str, os.PathLike, Task)
    if isinstance(folders, kinds):
        return [folders]
    if not isinstance(folders, Iterable) or isinstance(folders, bytes | Mapping):
        folders = [folders]
    several = list(folders)
    if not several:
        raise InputError("a predictor needs at least one task folder. Got none instead.")
    if wrong := [given for given in several if not isinstance(given, kinds)]:
        remedy = "Give its folder, which save() writes, as text or as a path."
        raise InputError(f"a predictor reads task folders. Got {quote(wrong[0])} instead. {remedy}")
    return several


def live_logits(task: Task, dataset: Dataset, encoder: SharedEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, C) float32 of a task and which rows were cut (rows,), with the feature store left alone.

    Raises:
        DataError: the rows are single texts and the task is for pairs, or the other way round.
    """
    (logits,), truncated = live_logits_of_tasks([task], dataset, encoder)
    return logits, truncated


def live_logits_of_tasks(
    tasks: Sequence[Task], dataset: Dataset, encoder: SharedEncoder
) -> tuple[list[np.ndarray], np.ndarray]:
    """What :func:`live_logits` gives, of tasks that read pairs in one way; each text is encoded once."""
    if problem := tasks[0].form_problem(pairs=dataset.has_pairs):
        raise DataError(problem, source=dataset.source)
    numbers = {content: number for number, content in enumerate(dict.fromkeys(dataset.inputs))}
    distinct, logits, truncated = list(numbers), list[list[np.ndarray]](), []
    for first in range(0, len(distinct), WINDOW_TEXTS):
        texts = encoder.read(distinct[first : first + WINDOW_TEXTS], tasks, pair_mode=tasks[0].pair_mode)
        logits.append(encoder.logits(texts, tasks))
        truncated.append(texts.features.truncated_rows)
    rows = [numbers[content] for content in dataset.inputs]
    by_task = [np.concatenate(windows)[rows] for windows in zip(*logits, strict=True)]
    return by_task, np.concatenate(truncated)[rows]

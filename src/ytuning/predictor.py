"""One encoder pass, many heads -> predictions, in input order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

from ytuning.artifact import check_encoder, load_task
from ytuning.encoder import Encoder, TextInput, load_encoder
from ytuning.errors import InputError
from ytuning.features import live_features
from ytuning.training import logits_of

__all__ = ["Prediction", "Predictor"]

WINDOW_TEXTS = 2048  # read, encoded and answered at a time, so that memory does not grow with the input


@dataclass(frozen=True)
class Prediction:
    """One task's answer for one input.

    Attributes:
        text, text_pair: the input.
        task: name of the task folder.
        label: with the highest score.
        scores: probability of each label, by name.
        truncated: whether the encoder saw only the beginning.
    """

    text: str
    text_pair: str | None
    task: str
    label: str
    scores: dict[str, float]
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        """The line that ``ytuning predict`` writes."""
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {"text": self.text, **pair, "task": self.task, "label": self.label, "scores": self.scores}


class Predictor:
    """Trained tasks, grouped by encoder; each distinct text of a window is encoded once for each encoder.

    Args:
        folders: task folders.
        encoder: name or folder to use in place of the encoder named in the tasks, when it has moved.
        device: see :func:`ytuning.encoder.load_encoder`.

    Raises:
        TaskFolderError: a folder that cannot be used, or an encoder that differs from the one it was trained with.
        InputError: no folder, or two tasks of one name.
    """

    def __init__(self, folders: Sequence[str | Path], *, encoder: str | None = None, device: str | None = None) -> None:
        if not folders:
            raise InputError("a predictor needs at least one task folder. Got none instead.")
        self.tasks = [load_task(folder) for folder in folders]
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two task folders are named {twice!r}; predictions could not be told apart. Rename one")
        self._encoders: dict[str, Encoder] = {}
        for task in self.tasks:
            if task.encoder.fingerprint not in self._encoders:
                wanted = task.encoder
                found = load_encoder(
                    encoder or wanted.name,
                    device=device,
                    **wanted.options,
                )
                check_encoder(task, found.identity)
                self._encoders[wanted.fingerprint] = found

    def predict(self, inputs: Iterable[TextInput]) -> Iterator[Prediction]:
        """Predictions for inputs in their order, for each input one of each task in the order of the folders.

        Raises:
            InputError: a pair for a task of single texts, or the other way round.
        """
        stream = iter(inputs)
        position = 0
        while window := list(islice(stream, WINDOW_TEXTS)):
            self._check_form(window, position)
            distinct = {content: number for number, content in enumerate(dict.fromkeys(window))}
            answers = self._answers(list(distinct))
            for content in window:
                row = distinct[content]
                for task, (scores, truncated) in zip(self.tasks, answers, strict=True):
                    yield Prediction(
                        content[0],
                        content[1],
                        task.name,
                        task.labels.names[int(scores[row].argmax())],
                        dict(zip(task.labels.names, scores[row].tolist(), strict=True)),
                        bool(truncated[row]),
                    )
            position += len(window)

    def _answers(self, inputs: list[TextInput]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each task: probabilities (inputs, C) float64 and whether each input was cut."""
        found = {name: live_features(inputs, encoder) for name, encoder in self._encoders.items()}
        answers = []
        for task in self.tasks:
            features = found[task.encoder.fingerprint]
            logits = logits_of(task.head, features)
            answers.append((scipy.special.softmax(logits.astype(np.float64), axis=1), features.truncated_rows))
        return answers

    def _check_form(self, window: list[TextInput], position: int) -> None:
        for row, (_, pair) in enumerate(window, position + 1):
            for task in self.tasks:
                if task.pair != (pair is not None):
                    wanted = "pairs of texts (give a column text_pair)" if task.pair else "single texts, not pairs"
                    raise InputError(f"input {row}: the task {task.name!r} was trained on {wanted}")

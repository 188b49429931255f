"""Arrow in, Arrow out: the answers of tasks as columns, for pipelines of the user's own and for units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ytuning.batch.columns import answer_arrays, answer_fields
from ytuning.batch.inputs import WINDOW_ROWS
from ytuning.batch.plan import Scores
from ytuning.data.columns import Role, common_columns
from ytuning.data.dataset import TextInput
from ytuning.data.labels import list_names
from ytuning.data.tables import table_in_memory
from ytuning.errors import InputError, must_be_one_of, parameter
from ytuning.system.machine import require
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.task import Task

__all__ = ["BatchPredictor"]

# Characters of the texts that are answered at once: as features they take some 300 MB with a small encoder. Where
# texts are short, a window has `inputs.WINDOW_ROWS` rows.
WINDOW_CHARACTERS = 1 << 20


class BatchPredictor:
    """Answers tables: the columns of each table and those of the answers. The encoder is loaded once.

    It is a class for ``map_batches`` of Ray Data, and a function of batches for ``mapInArrow`` of Spark::

        two = ray.data.ActorPoolStrategy(size=2)
        rows.map_batches(BatchPredictor, fn_constructor_args=("tasks/tickets",), batch_format="pyarrow", compute=two)
        frame.mapInArrow(lambda batches: map(BatchPredictor("tasks/tickets"), batches), schema)

    Args:
        folders: as of `tasks.predictor.Predictor`.
        text, text_pair: columns of the texts; by default those that the tasks were trained on.
        scores: "top": the probability of each answer; "all": those of all labels; "none".
        encoder, device, cascade: as of `tasks.predictor.Predictor`.

    Raises:
        InputError: as of `tasks.predictor.Predictor`, or ``scores`` is none of these.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(
        self,
        folders: str | Path | Task | Iterable[str | Path | Task],
        *,
        text: str | None = None,
        text_pair: str | None = None,
        scores: Scores = "top",
        encoder: str | None = None,
        device: str | None = None,
        cascade: float | None = None,
    ) -> None:
        require("pyarrow", "parquet")
        if scores not in get_args(Scores):
            raise InputError(must_be_one_of(parameter("scores"), scores, get_args(Scores)))
        self.predictor = Predictor(folders, encoder=encoder, device=device, cascade=cascade)
        self._named: dict[Role, str | None] = {"text": text, "text_pair": text_pair}
        self.scores = scores

    @property
    def fields(self) -> list[Any]:
        """Names and types of the columns of the answers, task by task (``pyarrow.Field``)."""
        return [field for task in self.predictor.tasks for field in answer_fields(task, self.scores)]

    def __call__(self, batch: Any) -> Any:
        """The rows with the columns of the answers after their own.

        Args:
            batch: a ``pyarrow.Table`` or ``RecordBatch``.

        Raises:
            InputError: it is none of these, or lacks a column of texts, or has a column of an answer's name already.
            DataError: a text is missing or no text.
        """
        arrow = require("pyarrow", "parquet")
        if not isinstance(batch, arrow.Table | arrow.RecordBatch):
            problem = f"a batch must be a pyarrow.Table or RecordBatch. Got {type(batch).__name__} instead. "
            raise InputError(f'{problem}With Ray Data set batch_format="pyarrow".')
        if taken := [field.name for field in self.fields if field.name in batch.schema.names]:
            raise InputError(f"the rows have the columns {list_names(taken)} already. Rename or drop them.")
        table = table_in_memory(batch)
        columns = common_columns(table, {task.name: task.known for task in self.predictor.tasks}, self._named)
        texts = [table.column(name).texts("text", blank=True) for name in columns if name is not None]
        pairs: Sequence[str | None] = texts[1] if len(texts) > 1 else [None] * table.rows
        answers = self.answer(list(zip(texts[0], pairs, strict=True))).columns
        schema = arrow.schema([*batch.schema, *self.fields], batch.schema.metadata)
        return type(batch).from_arrays([*batch.columns, *answers], schema=schema)

    def answer(self, inputs: Sequence[TextInput]) -> Any:
        """The columns of the answers to texts or pairs, a ``pyarrow.RecordBatch`` with :attr:`fields`.

        Raises:
            InputError: the tasks are for single texts and the inputs are pairs, or the other way round.
        """
        arrow = require("pyarrow", "parquet")
        windows = [self._window(arrow, window) for window in _windows(inputs)]
        whole = arrow.Table.from_batches(windows, schema=arrow.schema(self.fields)).combine_chunks()
        batches = whole.to_batches()
        return batches[0] if batches else arrow.RecordBatch.from_pylist([], schema=arrow.schema(self.fields))

    def _window(self, arrow: Any, inputs: Sequence[TextInput]) -> Any:
        found, places = self.predictor.answers(inputs)
        columns: dict[str, Any] = {}
        for given, truncated in found:
            columns |= answer_arrays(given, truncated, self.scores)
        batch = arrow.RecordBatch.from_arrays(
            [columns[field.name] for field in self.fields], schema=arrow.schema(self.fields)
        )
        is_distinct = len(places) == len(batch) and bool((places == np.arange(len(places))).all())
        return batch if is_distinct else batch.take(arrow.array(places))


def _windows(inputs: Sequence[TextInput]) -> Iterator[Sequence[TextInput]]:
    """Inputs in runs that are answered at once."""
    start, characters = 0, 0
    for number, (text, pair) in enumerate(inputs, 1):
        characters += len(text) + len(pair or "")
        if number - start == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield inputs[start:number]
            start, characters = number, 0
    if start < len(inputs):
        yield inputs[start:]

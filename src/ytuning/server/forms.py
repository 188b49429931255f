"""Inputs and answers in the forms of the protocols."""

from __future__ import annotations

from typing import Any

import numpy as np

import ytuning
from ytuning.server import schemas
from ytuning.server.batching import Answered
from ytuning.server.catalog import Served
from ytuning.server.service import Refused, Service
from ytuning.targets import Names
from ytuning.tokens import TextInput

__all__ = [
    "floats", "info_of", "labels_of_task", "many_inputs", "predict_inputs", "result_of", "scores_of", "usage_of",
]  # fmt: skip

VALUE = "value"  # the one "label" of a regression


def predict_inputs(given: str | list[str] | list[list[str]]) -> tuple[list[TextInput], bool]:
    """Inputs, and whether they are a batch, of text-embeddings-inference's forms."""
    if isinstance(given, str):
        return [(given, None)], False
    if given and all(isinstance(each, str) for each in given):
        return [_one_or_two([str(each) for each in given], "inputs")], False
    return [_one_or_two(list(each), f"input {number}") for number, each in enumerate(given, 1)], True


def many_inputs(given: str | list[str] | list[list[str]]) -> list[TextInput]:
    """Texts, or pairs, of the form in which several tasks are asked."""
    if isinstance(given, str):
        return [(given, None)]
    return [
        (each, None) if isinstance(each, str) else _one_or_two(list(each), f"input {number}")
        for number, each in enumerate(given, 1)
    ]


def _one_or_two(texts: list[str], what: str) -> TextInput:
    if not 1 <= len(texts) <= 2:
        message = f"{what} must be a text or a pair of texts. Got a list of {len(texts)}; a batch is a list of lists"
        raise Refused(422, "validation", message)
    return texts[0], texts[1] if len(texts) == 2 else None


def labels_of_task(served: Served) -> list[str]:
    """Names of what a task gives scores for."""
    return list(served.task.target.names) if isinstance(served.task.target, Names) else [VALUE]


def scores_of(served: Served, answered: Answered, *, raw: bool = False) -> list[dict[str, Any]]:
    """Labels and scores, highest first; equal ones in the order of the labels."""
    if not isinstance(served.task.target, Names):
        return [{"label": VALUE, "score": answered.answer}]
    values = answered.logits if raw else answered.scores
    names = served.task.target.names
    return [{"label": names[place], "score": float(values[place])} for place in np.argsort(-values, kind="stable")]


def result_of(served: Served, answered: Answered) -> dict[str, Any]:
    """A :class:`ytuning.server.schemas.Result`."""
    scores = scores_of(served, answered) if isinstance(served.task.target, Names) else []
    return {"answer": answered.answer, "scores": scores, "truncated": answered.truncated}


def usage_of(found: list[list[Answered]]) -> dict[str, int]:
    """A :class:`ytuning.server.schemas.Usage`."""
    tokens = sum(row[0].tokens for row in found)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "truncated": sum(any(each.truncated for each in row) for row in found),
    }


def floats(values: np.ndarray) -> Any:
    """Lists of plain numbers."""
    return values.astype(float).tolist()


def info_of(service: Service) -> schemas.Info:
    """The tasks and the limits."""
    tasks = list(service.catalog.tasks.values())
    only = tasks[0].task if len(tasks) == 1 else None
    names = {} if only is None else {str(number): name for number, name in enumerate(only.target.names)}
    encoders = {served.task.encoder.name for served in tasks}
    return schemas.Info(
        model_id=only.name if only else next(iter(encoders)) if len(encoders) == 1 else None,
        model_sha=tasks[0].task.encoder.weights if len(encoders) == 1 else None,
        model_dtype=tasks[0].task.encoder.precision if tasks else None,
        model_type={"classifier": {"id2label": names, "label2id": {name: int(key) for key, name in names.items()}}},
        max_concurrent_requests=service.settings.requests,
        max_input_length=max((served.task.encoder.max_length for served in tasks), default=0),
        max_batch_tokens=service.settings.batch_tokens,
        max_client_batch_size=service.settings.texts,
        version=ytuning.__version__,
        tasks=[
            schemas.TaskInfo(
                name=served.task.name,
                kind=served.task.kind,
                labels=labels_of_task(served),
                pair=served.task.pair,
                encoder=served.task.encoder.name,
                max_input_length=served.task.encoder.max_length,
            )
            for served in tasks
        ],
    )

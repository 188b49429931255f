"""What the routes of every protocol share: the service of a request, and scores and labels as replies show them."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request

from ytuning.server.batching import Answered, Refused
from ytuning.server.catalog import Served
from ytuning.server.service import Service
from ytuning.tasks.task import Task

__all__ = [
    "VALUE",
    "TheService",
    "answers_to_texts",
    "labels_given",
    "names_of_scores",
    "notes_of",
    "refusals_of",
    "scores_of",
    "usage_of",
]

# A regression answers with this as its only "label".
VALUE = "value"


def refusals_of(model: Any) -> dict[int | str, dict[str, Any]]:
    """The statuses of refusals with their form, for the OpenAPI document."""
    return {code: {"model": model} for code in (400, 401, 404, 413, 415, 422, 424, 429, 503, 504)}


async def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service_of)]


async def answers_to_texts(
    request: Request, service: Service, texts: str | list[str], served: Served
) -> list[list[Answered]]:
    """Answers of one task in a protocol that has no pairs of texts.

    Raises:
        Refused: the task takes pairs, or as `Service.answers`.
    """
    if served.task.pair_mode is not None:
        message = f"the task {served.task.name!r} takes pairs of texts, which this path does not."
        raise Refused(422, "validation", f"{message} Use /predict, /classify_many or /v2.")
    inputs = [(text, None) for text in ([texts] if isinstance(texts, str) else texts)]
    return await service.answers(request, inputs, [served])


def names_of_scores(task: Task) -> list[str]:
    """The labels of a task, or ``value``."""
    return list(task.target.names) or [VALUE]


def scores_of(served: Served, answered: Answered, *, raw: bool = False) -> list[dict[str, Any]]:
    """Labels and scores, highest first; equal ones in the order of the labels."""
    if served.task.target.labels is None:
        return [{"label": VALUE, "score": answered.answer}]
    values = answered.logits if raw else answered.scores
    names = served.task.target.names
    return [{"label": names[place], "score": float(values[place])} for place in np.argsort(-values, kind="stable")]


def labels_given(answered: Answered) -> set[str]:
    """The labels that a multi-label task gives a text."""
    return set(answered.answer) if isinstance(answered.answer, list) else set()


def notes_of(answered: Answered) -> dict[str, Any]:
    """The fields of a result that say which head of a cascade has answered and whether the text is in scope.

    A field is left out where the task has one head, no threshold, or no score.
    """
    names = ("head", "out_of_scope", "out_of_scope_score")
    return {name: value for name in names if (value := getattr(answered, name)) is not None}


def usage_of(answers: list[list[Answered]]) -> dict[str, int]:
    """The tokens that the encoder read for each input, and the number of inputs that were cut."""
    tokens = sum(row[0].tokens for row in answers)
    truncated = sum(any(answered.truncated for answered in row) for row in answers)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "truncated": truncated}

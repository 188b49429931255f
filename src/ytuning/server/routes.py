"""Routes of the server itself, of text-embeddings-inference and Hugging Face, and of several tasks at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest

import ytuning
from ytuning.data.dataset import TextInput
from ytuning.server import schemas
from ytuning.server.batching import Refused
from ytuning.server.bodies import JsonRoute
from ytuning.server.catalog import Served
from ytuning.server.decisions.routes import decision_routes
from ytuning.server.open_inference import v2
from ytuning.server.openai_style import openai_style
from ytuning.server.replies import (
    TheService,
    answers_to_texts,
    names_of_scores,
    notes_of,
    refusals_of,
    scores_of,
    usage_of,
)
from ytuning.server.service import Service, unless_gone
from ytuning.server.texts import TextsOrPairs

__all__ = ["router"]

router = APIRouter(route_class=JsonRoute, responses=refusals_of(schemas.Error))


# --- the server -------------------------------------------------------------------------------------------------------


@router.get("/health", responses={200: {"content": {"application/json": {"schema": {}}}}})
async def health(service: TheService) -> dict[str, str]:
    """Status 200 once all tasks are loaded and warmed up, 503 before and while the server stops."""
    service.check_open()
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: TheService) -> Response:
    """Prometheus' text format."""
    content = generate_latest(service.telemetry.registry)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/info")
async def info(service: TheService) -> schemas.Info:
    """The tasks and the limits."""
    service.check_ready()
    tasks = [served.task for served in service.catalog.tasks.values()]
    only = tasks[0] if len(tasks) == 1 else None
    names = {} if only is None else {str(number): name for number, name in enumerate(only.target.names)}
    encoders = {task.encoder.name for task in tasks}
    return schemas.Info(
        model_id=only.name if only else next(iter(encoders)) if len(encoders) == 1 else None,
        model_sha=tasks[0].encoder.weights if len(encoders) == 1 else None,
        model_dtype=tasks[0].encoder.precision if tasks else None,
        model_type={"classifier": {"id2label": names, "label2id": {name: int(key) for key, name in names.items()}}},
        max_concurrent_requests=service.settings.requests,
        max_input_length=max((task.encoder.max_length for task in tasks), default=0),
        max_batch_tokens=service.settings.batch_tokens,
        max_client_batch_size=service.settings.texts,
        version=ytuning.__version__,
        tasks=[
            schemas.TaskInfo(
                name=task.name,
                kind=task.kind,
                labels=names_of_scores(task),
                pair=task.pair_mode,
                encoder=task.encoder.name,
                max_input_length=task.encoder.max_length,
            )
            for task in tasks
        ],
    )


@router.post("/admin/reload", responses={403: {"model": schemas.Error}})
async def reload(service: TheService) -> schemas.AdminReply:
    """Check the task folders for changes now. If the server has keys, this needs an administrator's key."""
    service.check_ready()
    changes = await asyncio.to_thread(service.catalog.reload)
    service.tell(changes)
    return schemas.AdminReply(**vars(changes), tasks=len(service.catalog.tasks))


# --- texts in, labels and scores out ----------------------------------------------------------------------------------


def _texts_or_pairs(given: TextsOrPairs) -> list[TextInput]:
    if isinstance(given, str):
        return [(given, None)]
    return [
        (content, None) if isinstance(content, str) else _text_or_pair(content, f"input {number}")
        for number, content in enumerate(given, 1)
    ]


def _text_or_pair(texts: Sequence[str], what: str) -> TextInput:
    if not 1 <= len(texts) <= 2:
        message = f"{what} must be a text or a pair of texts. Got a list of {len(texts)} instead."
        raise Refused(422, "validation", f"{message} A batch is a list of lists.")
    return texts[0], texts[1] if len(texts) == 2 else None


def _inputs_alone_or_in_batch(given: TextsOrPairs) -> tuple[list[TextInput], bool]:
    """Inputs, and whether they are a batch, of text-embeddings-inference's forms."""
    texts = [text for text in given if isinstance(text, str)]
    if isinstance(given, str) or not texts:
        return _texts_or_pairs(given), not isinstance(given, str)
    return [_text_or_pair(texts, "inputs")], False


async def _predict(request: Request, service: Service, body: schemas.PredictRequest, name: str | None) -> JSONResponse:
    served = service.task(name)
    inputs, batch = _inputs_alone_or_in_batch(body.inputs)
    if not batch and inputs[0][1] is not None and served.task.pair_mode is None:
        message = f"inputs is a pair of texts, but the task {served.task.name!r} takes single texts."
        raise Refused(422, "validation", f'{message} A batch is a list of lists: [["a"], ["b"]].')
    answers = await service.answers(request, inputs, [served], truncate=body.truncate is not False)
    scores = [scores_of(served, row[0], raw=body.raw_scores) for row in answers]
    return JSONResponse(scores if batch else scores[0])


PREDICT_REPLY: Any = list[schemas.Score] | list[list[schemas.Score]]


@router.post("/predict", response_model=PREDICT_REPLY)
async def of_any(request: Request, service: TheService, body: schemas.PredictRequest) -> JSONResponse:
    """Labels and scores in the format of text-embeddings-inference, the most probable first."""
    return await _predict(request, service, body, body.task)


@router.post("/predict/{task}", response_model=PREDICT_REPLY)
async def of_one(request: Request, service: TheService, task: str, body: schemas.PredictRequest) -> JSONResponse:
    """The same as /predict, for clients that cannot add a field to the request."""
    return await _predict(request, service, body, task)


@router.post("/models/{model}", response_model=list[list[schemas.Score]])
async def of_hub(request: Request, service: TheService, model: str, body: schemas.HubRequest) -> JSONResponse:
    """Labels and scores of a task for each text, in the format of Hugging Face's inference API."""
    served = service.task(model)
    parameters = body.parameters or schemas.HubParameters()
    raw = _is_raw(parameters.function_to_apply, served)
    answers = await answers_to_texts(request, service, body.inputs, served)
    return JSONResponse([scores_of(served, row[0], raw=raw)[: parameters.top_k] for row in answers])


def _is_raw(function: str | None, served: Served) -> bool:
    """Whether logits are wanted instead of probabilities.

    Raises:
        Refused: other probabilities than the task has are wanted.
    """
    task = served.task
    own = "none" if task.target.labels is None else "sigmoid" if task.target.gives_many else "softmax"
    if function not in (None, "none", own):
        message = f"function_to_apply: the task {task.name!r} has {own!r}, not {function!r}. Leave it out."
        raise Refused(422, "validation", message)
    return function == "none"


@router.post("/classify_many", response_model=schemas.ClassifyManyReply)
async def classify_many(request: Request, service: TheService, body: schemas.ClassifyManyRequest) -> JSONResponse:
    """Answers of several tasks, or of all tasks that take such inputs."""
    start = time.perf_counter()
    inputs = _texts_or_pairs(body.input)
    if body.tasks is None:
        service.check_ready()
        pairs = bool(inputs) and inputs[0][1] is not None
        tasks = service.tasks_for(pairs=pairs)
        missing = f"no task takes {'pairs of texts' if pairs else 'single texts'}. GET /info lists the tasks."
    else:
        tasks = [service.task(name) for name in dict.fromkeys(body.tasks)]
        missing = "tasks is empty. Give the names of tasks, or null for all tasks."
    if not tasks:
        raise Refused(422, "validation", missing)
    answers = await service.answers(request, inputs, tasks)
    data = []
    for served, column in zip(tasks, zip(*answers, strict=True), strict=True):
        results = [
            {
                "answer": answered.answer,
                "scores": [] if served.task.target.labels is None else scores_of(served, answered)[: body.top_k],
                "truncated": answered.truncated,
                **notes_of(answered),
            }
            for answered in column
        ]
        data.append({"task": served.task.name, "kind": served.task.kind, "results": results})
    batches = {answered.batch for row in answers for answered in row}
    timing = {
        "total": time.perf_counter() - start,
        "encoder": sum(batch.encoder for batch in batches),
        "heads": sum(batch.heads for batch in batches),
    }
    return JSONResponse({"object": "classify_many", "data": data, "usage": usage_of(answers), "timing": timing})


@router.post("/explain", response_model=schemas.ExplainReply)
async def explain(request: Request, service: TheService, body: schemas.ExplainRequest) -> JSONResponse:
    """How much the logit of each label falls when the head does not see a token."""
    served = service.task(body.task)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not 1 <= len(texts) <= 2:
        raise Refused(422, "validation", "input must be a text or a pair of texts.")
    content = (texts[0], texts[1] if len(texts) == 2 else None)
    service.check([content], [served])
    effects = await unless_gone(request, service.batcher.explain(content, served))
    values = effects.values
    if served.task.target.labels is None:
        # A regression has two anchors, whose difference gives the number.
        values = values[:, 1:] - values[:, :1]
    tokens = [{"side": side, "start": start, "end": end} for side, start, end in effects.spans]
    labels = names_of_scores(served.task)
    return JSONResponse({"task": served.task.name, "labels": labels, "tokens": tokens, "effects": values.tolist()})


router.include_router(openai_style)
router.include_router(decision_routes)
router.include_router(v2)

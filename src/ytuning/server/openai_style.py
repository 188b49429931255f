"""The APIs of OpenAI's style: models and moderations of OpenAI, and ``/classify`` of vLLM and of infinity."""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ytuning.server import schemas
from ytuning.server.batching import Answered, Refused
from ytuning.server.bodies import JsonRoute
from ytuning.server.catalog import Served
from ytuning.server.replies import (
    VALUE,
    TheService,
    answers_to_texts,
    labels_given,
    notes_of,
    refusals_of,
    scores_of,
    usage_of,
)
from ytuning.server.service import Service

__all__ = ["openai_style"]

openai_style = APIRouter(route_class=JsonRoute, responses=refusals_of(schemas.V1Error))


# --- OpenAI -----------------------------------------------------------------------------------------------------------


def _model(service: Service, name: str) -> schemas.Model:
    return schemas.Model(id=name, created=int(service.telemetry.started))


@openai_style.get("/v1/models")
@openai_style.get("/models", include_in_schema=False)
async def models(service: TheService) -> schemas.Models:
    """Every task, as a model."""
    service.check_ready()
    return schemas.Models(data=[_model(service, name) for name in service.catalog.tasks])


@openai_style.get("/v1/models/{model}")
@openai_style.get("/models/{model}", include_in_schema=False)
async def one_model(service: TheService, model: str) -> schemas.Model:
    """A task, as a model."""
    return _model(service, service.task(model).task.name)


@openai_style.post("/v1/moderations", response_model=schemas.ModerationReply)
async def moderations(request: Request, service: TheService, body: schemas.ModerationRequest) -> JSONResponse:
    """Answers of a multi-label task in the format of OpenAI's moderations."""
    served = service.task(body.model, gives_many=True)
    if not served.task.target.gives_many:
        fault = f"{served.task.name!r} is of the kind {served.task.kind!r}. Use /classify."
        raise Refused(422, "validation", f"moderations need a multi-label task, but {fault}")
    labels, results = served.task.target.names, []
    for row in await answers_to_texts(request, service, body.texts(), served):
        given = labels_given(row[0])
        results.append(
            {
                "flagged": bool(given),
                "categories": {label: label in given for label in labels},
                "category_scores": dict(zip(labels, row[0].scores.tolist(), strict=True)),
                "category_applied_input_types": {label: ["text"] for label in labels},
            }
        )
    return JSONResponse({"id": f"modr-{uuid.uuid4().hex}", "model": served.task.name, "results": results})


# --- vLLM -------------------------------------------------------------------------------------------------------------


def _classification(index: int, served: Served, answered: Answered, *, raw: bool) -> dict[str, Any]:
    """One entry of vLLM's reply; ``probs`` in the order of the task's labels."""
    target = served.task.target
    if target.labels is None:
        return {"index": index, "label": VALUE, "probs": [answered.answer], "num_classes": 1}
    label = answered.answer
    if target.gives_many:
        given = labels_given(answered)
        ranked = (target.names[place] for place in np.argsort(-answered.scores, kind="stable"))
        label = next((name for name in ranked if name in given), None)
    probs = (answered.logits if raw else answered.scores).tolist()
    result = {"index": index, "label": label, "probs": probs, "num_classes": len(target.names)}
    return {**result, **notes_of(answered)}


@openai_style.post("/classify", response_model=schemas.ClassifyReply)
@openai_style.post("/v1/classify", response_model=schemas.ClassifyReply, include_in_schema=False)
async def classify(request: Request, service: TheService, body: schemas.ClassifyRequest) -> JSONResponse:
    """A label and probabilities of one task in the format of vLLM; ``model`` is the task's name."""
    served = service.task(body.model)
    answers = await answers_to_texts(request, service, body.input, served)
    raw = body.use_activation is False
    data = [_classification(index, served, row[0], raw=raw) for index, row in enumerate(answers)]
    created, usage = int(time.time()), {**usage_of(answers), "completion_tokens": 0}
    name = f"classify-{uuid.uuid4().hex}"
    reply = {"id": name, "object": "list", "created": created, "model": served.task.name, "data": data, "usage": usage}
    return JSONResponse(reply)


# --- infinity ---------------------------------------------------------------------------------------------------------


@openai_style.post("/infinity/classify", response_model=schemas.InfinityReply)
async def infinity_classify(request: Request, service: TheService, body: schemas.InfinityRequest) -> JSONResponse:
    """Labels and scores of one task in the format of infinity, the most probable first."""
    served = service.task(None if body.model == schemas.ANY_MODEL else body.model)
    answers = await answers_to_texts(request, service, body.input, served)
    data = [scores_of(served, row[0], raw=body.raw_scores) for row in answers]
    created, name, usage = int(time.time()), f"infinity-{uuid.uuid4()}", usage_of(answers)
    reply = {"object": "classify", "data": data, "model": served.task.name, "usage": usage}
    return JSONResponse({**reply, "id": name, "created": created})


@openai_style.get("/infinity/models")
async def infinity_models(service: TheService) -> schemas.InfinityModels:
    """Every task, as a model of infinity."""
    service.check_ready()
    created = int(service.telemetry.started)
    return schemas.InfinityModels(
        data=[
            schemas.InfinityModel(id=name, created=created, stats={"batch_size": service.settings.texts})
            for name in service.catalog.tasks
        ]
    )


@openai_style.get("/infinity/health")
async def infinity_health(service: TheService) -> dict[str, float]:
    """Status 200 once all tasks are loaded and warmed up, 503 before and while the server stops."""
    service.check_open()
    return {"unix": time.time()}

"""Every route: a request in one of several protocols -> texts and tasks for the batcher -> a reply in that protocol."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

import ytuning
from ytuning.server import schemas
from ytuning.server.payloads import (
    floats,
    info_of,
    labels_of_task,
    many_inputs,
    metadata_of,
    outputs_of,
    predict_inputs,
    read_infer,
    result_of,
    scores_of,
    usage_of,
)
from ytuning.server.service import NotReady, Refused, Service, unless_gone

__all__ = ["routes"]

CODES = (401, 404, 413, 422, 424, 429, 503, 504)


def routes(service: Service) -> APIRouter:
    """All routes of a service."""
    router = APIRouter(responses=_refusals(schemas.Error))
    _add_state(router, service)
    _add_predict(router, service)
    _add_classify(router, service)
    _add_explain(router, service)
    _add_moderations(router, service)
    _add_v2(router, service)
    _add_admin(router, service)
    return router


def _refusals(model: Any) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": model} for code in CODES}


def _add_state(router: APIRouter, service: Service) -> None:
    @router.head("/health", include_in_schema=False)
    @router.get("/health", responses={200: {"content": {"application/json": {"schema": {}}}}})
    async def health() -> dict[str, str]:
        """Status 200 once all tasks are loaded and warmed up, 503 before."""
        if not service.ready:
            raise NotReady
        return {"status": "ok"}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/info")
    async def info() -> schemas.Info:
        """The tasks and the limits."""
        if not service.ready:
            raise NotReady
        return info_of(service)

    @router.get("/v1/models", responses=_refusals(schemas.V1Error))
    @router.get("/models", include_in_schema=False)
    async def models() -> schemas.Models:
        """Every task, as a model."""
        if not service.ready:
            raise NotReady
        created = int(service.telemetry.started)
        return schemas.Models(data=[schemas.Model(id=name, created=created) for name in service.catalog.tasks])


def _add_predict(router: APIRouter, service: Service) -> None:
    async def predict(request: Request, body: schemas.PredictRequest, name: str | None) -> JSONResponse:
        served = service.task(name if name is not None else body.task)
        inputs, batch = predict_inputs(body.inputs)
        found = await service.answers(request, inputs, [served], truncate=body.truncate)
        scores = [scores_of(served, row[0], raw=body.raw_scores) for row in found]
        cut = ",".join(str(number) for number, row in enumerate(found) if row[0].truncated)
        return JSONResponse(scores if batch else scores[0], headers={"x-truncated-inputs": cut} if cut else None)

    reply: Any = list[schemas.Score] | list[list[schemas.Score]]

    @router.post("/predict", response_model=reply)
    async def of_any(request: Request, body: schemas.PredictRequest) -> JSONResponse:
        """Labels and scores in the format of text-embeddings-inference, the most probable first.

        The header ``x-truncated-inputs`` lists the inputs, counted from 0, that were too long and were cut.
        """
        return await predict(request, body, None)

    @router.post("/predict/{task}", response_model=reply)
    async def of_one(request: Request, task: str, body: schemas.PredictRequest) -> JSONResponse:
        """The same as /predict, for clients that cannot add a field to the request."""
        return await predict(request, body, task)


def _add_classify(router: APIRouter, service: Service) -> None:
    @router.post("/classify", response_model=schemas.ClassifyReply)
    @router.post("/v1/classify", response_model=schemas.ClassifyReply, include_in_schema=False)
    async def classify(request: Request, body: schemas.ClassifyRequest) -> JSONResponse:
        """Labels and scores of one task in the format of vLLM and infinity; ``model`` is the task's name."""
        served = service.task(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        found = await service.answers(request, [(text, None) for text in texts], [served])
        data = [scores_of(served, row[0]) for row in found]
        return JSONResponse({"object": "classify", "data": data, "model": served.task.name, "usage": usage_of(found)})

    @router.post("/classify_many", response_model=schemas.ClassifyManyReply)
    async def classify_many(request: Request, body: schemas.ClassifyManyRequest) -> JSONResponse:
        """Answers of several tasks, or of all tasks that take such inputs."""
        start = time.perf_counter()
        inputs = many_inputs(body.input)
        pairs = bool(inputs) and inputs[0][1] is not None
        if body.tasks is None:
            if not service.ready:
                raise NotReady
            tasks = [each for each in service.catalog.tasks.values() if bool(each.task.pair_mode) == pairs]
            if not tasks:
                raise Refused(
                    422,
                    "validation",
                    f"no task takes {'pairs of texts' if pairs else 'single texts'}. GET /info lists the tasks.",
                )
        else:
            tasks = [service.task(name) for name in dict.fromkeys(body.tasks)]
            if not tasks:
                raise Refused(422, "validation", "tasks is empty. Give the names of tasks, or null for all tasks.")
        found = await service.answers(request, inputs, tasks)
        data = [
            {
                "task": served.task.name,
                "kind": served.task.kind,
                "results": [result_of(served, row[number]) for row in found],
            }
            for number, served in enumerate(tasks)
        ]
        batches = {id(each.batch): each.batch for row in found for each in row}.values()
        timing = {
            "total": time.perf_counter() - start,
            "encoder": sum(batch.encoder for batch in batches),
            "heads": sum(batch.heads for batch in batches),
        }
        return JSONResponse({"object": "classify_many", "data": data, "usage": usage_of(found), "timing": timing})


def _add_explain(router: APIRouter, service: Service) -> None:
    @router.post("/explain", response_model=schemas.ExplainReply)
    async def explain(request: Request, body: schemas.ExplainRequest) -> JSONResponse:
        """How much the logit of each label falls when the head does not see a token."""
        served = service.task(body.task)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(texts) <= 2:
            raise Refused(422, "validation", "input must be a text or a pair of texts.")
        content = (texts[0], texts[1] if len(texts) == 2 else None)
        service.check([content], [served])
        effects = await unless_gone(request, service.batcher.explain(content, served))
        values = effects.values
        if served.task.target.labels is None:  # of the two anchors
            values = values[:, 1:] - values[:, :1]
        tokens = [{"side": side, "start": start, "end": end} for side, start, end in effects.spans]
        labels = labels_of_task(served)
        body_ = {"task": served.task.name, "labels": labels, "tokens": tokens, "effects": floats(values)}
        return JSONResponse(body_)


def _add_moderations(router: APIRouter, service: Service) -> None:
    @router.post("/v1/moderations", response_model=schemas.ModerationReply, responses=_refusals(schemas.V1Error))
    async def moderations(request: Request, body: schemas.ModerationRequest) -> JSONResponse:
        """Answers of a multi-label task in the format of OpenAI's moderations."""
        served = service.task(body.model, None if body.model is not None else "multi")
        if served.task.kind != "multi":
            message = (
                f"moderations need a multi-label task, but {served.task.name!r} is of the kind {served.task.kind!r}. "
                "Use /classify."
            )
            raise Refused(422, "validation", message)
        texts = [body.input] if isinstance(body.input, str) else body.input
        found = await service.answers(request, [(text, None) for text in texts], [served])
        results = []
        for row in found:
            answered, names = row[0], labels_of_task(served)
            given = answered.answer if isinstance(answered.answer, list) else []
            results.append(
                {
                    "flagged": bool(given),
                    "categories": {name: name in given for name in names},
                    "category_scores": dict(zip(names, floats(answered.scores), strict=True)),
                    "category_applied_input_types": {name: ["text"] for name in names},
                }
            )
        return JSONResponse({"id": f"modr-{uuid.uuid4().hex}", "model": served.task.name, "results": results})


def _add_v2(router: APIRouter, service: Service) -> None:
    v2 = APIRouter(prefix="/v2", responses=_refusals(schemas.V2Error) | {400: {"model": schemas.V2Error}})

    @v2.get("")
    async def server() -> schemas.ServerMetadata:
        """Name and version."""
        return schemas.ServerMetadata(version=ytuning.__version__)

    @v2.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @v2.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Whether all tasks are loaded."""
        if not service.ready:
            raise NotReady
        return {"ready": True}

    @v2.get("/models/{model}")
    @v2.get("/models/{model}/versions/{version}", include_in_schema=False)
    async def model_metadata(model: str) -> schemas.ModelMetadata:
        """A task's inputs and outputs."""
        return metadata_of(service.task(model))

    @v2.get("/models/{model}/ready")
    @v2.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(model: str) -> dict[str, Any]:
        """Whether a task is loaded."""
        return {"name": service.task(model).task.name, "ready": True}

    body: Any = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
        }
    }

    @v2.post("/models/{model}/infer", response_model=schemas.InferReply, openapi_extra=body)
    @v2.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str) -> JSONResponse:
        """A task's outputs: ``probabilities`` and ``label``, ``labels`` as 0 and 1, or ``value``."""
        served = service.task(model)
        asked, inputs = read_infer(await request.body(), request.headers.get("inference-header-content-length"), served)
        found = await service.answers(request, inputs, [served])
        outputs = outputs_of(served, [row[0] for row in found], asked)
        reply = {"model_name": served.task.name, "model_version": "1", "id": asked.id, "outputs": outputs}
        return JSONResponse({key: value for key, value in reply.items() if value is not None})

    router.include_router(v2)


def _add_admin(router: APIRouter, service: Service) -> None:
    @router.post("/admin/reload", responses={403: {"model": schemas.Error}})
    async def reload() -> schemas.AdminReply:
        """Check the task folders for changes now. If the server has keys, this needs an administrator's key."""
        if not service.ready:
            raise NotReady
        changes = await asyncio.to_thread(service.catalog.reload)
        service.tell(changes)
        return schemas.AdminReply(
            added=changes.added,
            changed=changes.changed,
            removed=changes.removed,
            refused=changes.refused,
            tasks=len(service.catalog.tasks),
        )

"""Every route: a request in one of several protocols -> texts and tasks for the batcher -> a reply in that protocol."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

import ytuning
from ytuning.labels import did_you_mean, listed
from ytuning.server import schemas
from ytuning.server.batching import Answered, Batcher
from ytuning.server.catalog import Catalog, Changes, Served
from ytuning.server.inference import metadata_of, outputs_of, read_infer
from ytuning.server.settings import Settings
from ytuning.server.telemetry import Telemetry, log
from ytuning.targets import Names
from ytuning.tokens import TextInput

__all__ = ["ClientGone", "NotReady", "Refused", "Service", "routes"]

Found = TypeVar("Found")
VALUE = "value"  # the one "label" of a regression


class NotReady(Exception):  # noqa: N818
    """The tasks are still being loaded."""


class ClientGone(Exception):  # noqa: N818
    """Nobody waits for the reply any more."""


class Refused(Exception):  # noqa: N818
    """A request that cannot be answered, with the status and the kind of error that say why."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass
class Service:
    """What the routes share."""

    settings: Settings
    catalog: Catalog
    batcher: Batcher
    telemetry: Telemetry
    ready: bool = False

    def task(self, name: str | None, kind: str | None = None) -> Served:
        """The task of a name, or the only one (of a kind).

        Raises:
            NotReady: the tasks are being loaded.
            Refused: there is no such task, or no name where there are several.
        """
        if not self.ready:
            raise NotReady
        tasks = self.catalog.tasks
        if name is None:
            some = [served for served in tasks.values() if kind in (None, served.task.kind)]
            if len(some) == 1:
                return some[0]
            what = f"there are {len(some)} {'multi-label ' if kind else ''}tasks: name one"
            raise Refused(422, "validation", f"{what}. They are {listed([served.task.name for served in some])}")
        if name not in tasks:
            raise Refused(
                404,
                "not_found",
                f"there is no task {name[:80]!r}.{did_you_mean(name, tasks)} There are {listed(list(tasks))}",
            )
        return tasks[name]

    async def answers(
        self, request: Request, inputs: Sequence[TextInput], tasks: Sequence[Served], *, truncate: bool = True
    ) -> list[list[Answered]]:
        """For each input each task's answer.

        Raises:
            Refused: too many or too long inputs, a form that a task does not take, or a text that would be cut.
            ClientGone: the client has closed the connection.
        """
        self.check(inputs, tasks)
        request.state.texts = len(inputs)
        found = await unless_gone(request, self.batcher.answer(inputs, tasks))
        request.state.tokens = sum(row[0].tokens for row in found)
        if not truncate and (cut := [number for number, row in enumerate(found) if row[0].truncated]):
            most = tasks[0].task.encoder.max_length
            message = (
                f"input {cut[0] + 1} has more tokens than the encoder reads ({most}). Allow truncate, or shorten it"
            )
            raise Refused(413, "validation", message)
        return found

    def tell(self, changes: Changes) -> None:
        """Count and log what has changed about the tasks."""
        self.telemetry.tasks.set(len(self.catalog.tasks))
        if changes:
            found = {what: getattr(changes, what) for what in ("added", "changed", "removed", "refused")}
            for what, names in found.items():
                self.telemetry.reloads.labels(what=what).inc(len(names))
            log("tasks", **found)

    def check(self, inputs: Sequence[TextInput], tasks: Sequence[Served]) -> None:
        """Whether these tasks can be asked about these inputs.

        Raises:
            Refused: too many or too long inputs, none, an empty one, or a form that a task does not take.
        """
        if not inputs:
            raise Refused(422, "validation", "there is no input: give at least one text")
        if len(inputs) > self.settings.texts:
            message = f"a request may have {self.settings.texts:,} inputs. Got {len(inputs):,}: send fewer at a time"
            raise Refused(413, "too_large", message)
        for number, content in enumerate(inputs, 1):
            for text in content:
                if text is None:
                    continue
                if not text.strip():
                    raise Refused(422, "validation", f"input {number} is empty")
                if len(text) > self.settings.characters:
                    message = f"input {number} has more than {self.settings.characters:,} characters. Send it in parts"
                    raise Refused(413, "too_large", message)
                if not text.isprintable() and _unreadable(text):
                    raise Refused(422, "validation", f"input {number} is no text: it holds half of a surrogate pair")
            for served in tasks:
                if bool(served.task.pair) != (content[1] is not None):
                    wanted = "pairs of texts" if served.task.pair else "single texts"
                    raise Refused(
                        422, "validation", f"the task {served.task.name!r} takes {wanted}; see input {number}"
                    )


def routes(service: Service) -> APIRouter:
    """All routes of a service."""
    router = APIRouter(responses={code: {"model": schemas.Error} for code in (401, 404, 413, 422, 424, 429, 503, 504)})
    _add_state(router, service)
    _add_predict(router, service)
    _add_classify(router, service)
    _add_explain(router, service)
    _add_moderations(router, service)
    _add_v2(router, service)
    _add_admin(router, service)
    return router


def _add_state(router: APIRouter, service: Service) -> None:
    @router.head("/health", include_in_schema=False)
    @router.get("/health", responses={200: {"content": {"application/json": {"schema": {}}}}})
    async def health() -> dict[str, str]:
        """200 once all tasks are loaded and have computed once, 503 before."""
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
        return _info(service)

    @router.get("/v1/models")
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
        inputs, batch = _predict_inputs(body.inputs)
        found = await service.answers(request, inputs, [served], truncate=body.truncate)
        scores = [_scores(served, row[0], raw=body.raw_scores) for row in found]
        cut = ",".join(str(number) for number, row in enumerate(found) if row[0].truncated)
        return JSONResponse(scores if batch else scores[0], headers={"x-truncated-inputs": cut} if cut else None)

    reply: Any = list[schemas.Score] | list[list[schemas.Score]]

    @router.post("/predict", response_model=reply)
    async def of_any(request: Request, body: schemas.PredictRequest) -> JSONResponse:
        """Labels and scores in the form of text-embeddings-inference, the most probable first.

        The header ``x-truncated-inputs`` numbers the inputs, from 0, of which the encoder has read the beginning only.
        """
        return await predict(request, body, None)

    @router.post("/predict/{task}", response_model=reply)
    async def of_one(request: Request, task: str, body: schemas.PredictRequest) -> JSONResponse:
        """The same for clients that can give a URL, but no further field."""
        return await predict(request, body, task)


def _add_classify(router: APIRouter, service: Service) -> None:
    @router.post("/classify", response_model=schemas.ClassifyReply)
    @router.post("/v1/classify", response_model=schemas.ClassifyReply, include_in_schema=False)
    async def classify(request: Request, body: schemas.ClassifyRequest) -> JSONResponse:
        """Labels and scores of one task in the form of vLLM and infinity; ``model`` is its name."""
        served = service.task(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        found = await service.answers(request, [(text, None) for text in texts], [served])
        data = [_scores(served, row[0]) for row in found]
        return JSONResponse({"object": "classify", "data": data, "model": served.task.name, "usage": _usage(found)})

    @router.post("/classify_many", response_model=schemas.ClassifyManyReply)
    async def classify_many(request: Request, body: schemas.ClassifyManyRequest) -> JSONResponse:
        """Answers of several tasks at once, or of all that take such inputs."""
        start = time.perf_counter()
        inputs = _many_inputs(body.input)
        pairs = bool(inputs) and inputs[0][1] is not None
        if body.tasks is None:
            if not service.ready:
                raise NotReady
            tasks = [each for each in service.catalog.tasks.values() if bool(each.task.pair) == pairs]
            if not tasks:
                raise Refused(422, "validation", f"no task takes {'pairs of texts' if pairs else 'single texts'}")
        else:
            tasks = [service.task(name) for name in dict.fromkeys(body.tasks)]
            if not tasks:
                raise Refused(422, "validation", "tasks names no task: give names, or null for all")
        found = await service.answers(request, inputs, tasks)
        data = [
            {
                "task": served.task.name,
                "kind": served.task.kind,
                "results": [_result(served, row[number]) for row in found],
            }
            for number, served in enumerate(tasks)
        ]
        batches = {id(each.batch): each.batch for row in found for each in row}.values()
        timing = {
            "total": time.perf_counter() - start,
            "encoder": sum(batch.encoder for batch in batches),
            "heads": sum(batch.heads for batch in batches),
        }
        return JSONResponse({"object": "classify_many", "data": data, "usage": _usage(found), "timing": timing})


def _add_explain(router: APIRouter, service: Service) -> None:
    @router.post("/explain", response_model=schemas.ExplainReply)
    async def explain(request: Request, body: schemas.ExplainRequest) -> JSONResponse:
        """How much each label's logit falls when a token is hidden from the head."""
        served = service.task(body.task)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(texts) <= 2:
            raise Refused(422, "validation", "input must be a text, or a pair of texts")
        content = (texts[0], texts[1] if len(texts) == 2 else None)
        service.check([content], [served])
        effects = await unless_gone(request, service.batcher.explain(content, served))
        values = effects.values
        if not isinstance(served.task.target, Names):  # of the two anchors
            values = values[:, 1:] - values[:, :1]
        tokens = [{"side": side, "start": start, "end": end} for side, start, end in effects.spans]
        labels = _labels(served)
        body_ = {"task": served.task.name, "labels": labels, "tokens": tokens, "effects": _floats(values)}
        return JSONResponse(body_)


def _add_moderations(router: APIRouter, service: Service) -> None:
    @router.post("/v1/moderations", response_model=schemas.ModerationReply)
    async def moderations(request: Request, body: schemas.ModerationRequest) -> JSONResponse:
        """A multi-label task's answers in the form of OpenAI's moderations."""
        served = service.task(body.model, None if body.model is not None else "multi")
        if served.task.kind != "multi":
            message = (
                f"moderations are of multi-label tasks, and {served.task.name!r} is {served.task.kind}: use /classify"
            )
            raise Refused(422, "validation", message)
        texts = [body.input] if isinstance(body.input, str) else body.input
        found = await service.answers(request, [(text, None) for text in texts], [served])
        results = []
        for row in found:
            answered, names = row[0], _labels(served)
            given = answered.answer if isinstance(answered.answer, list) else []
            results.append(
                {
                    "flagged": bool(given),
                    "categories": {name: name in given for name in names},
                    "category_scores": dict(zip(names, _floats(answered.scores), strict=True)),
                    "category_applied_input_types": {name: ["text"] for name in names},
                }
            )
        return JSONResponse({"id": f"modr-{uuid.uuid4().hex}", "model": served.task.name, "results": results})


def _add_v2(router: APIRouter, service: Service) -> None:
    errors: Any = {code: {"model": schemas.V2Error} for code in (400, 401, 404, 413, 422, 424, 429, 503, 504)}
    v2 = APIRouter(prefix="/v2", responses=errors)

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
        """Look at the task folders now; needs a key of an administrator where there are any keys."""
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


async def unless_gone(request: Request, work: Awaitable[Found]) -> Found:
    """What the work gives, unless the client closes the connection first; then it is given up.

    Raises:
        ClientGone: so it was.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unreadable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _predict_inputs(given: str | list[str] | list[list[str]]) -> tuple[list[TextInput], bool]:
    """Inputs, and whether they are a batch, of text-embeddings-inference's forms."""
    if isinstance(given, str):
        return [(given, None)], False
    if given and all(isinstance(each, str) for each in given):
        return [_one_or_two([str(each) for each in given], "inputs")], False
    return [_one_or_two(list(each), f"input {number}") for number, each in enumerate(given, 1)], True


def _many_inputs(given: str | list[str] | list[list[str]]) -> list[TextInput]:
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


def _labels(served: Served) -> list[str]:
    return list(served.task.target.names) if isinstance(served.task.target, Names) else [VALUE]


def _scores(served: Served, answered: Answered, *, raw: bool = False) -> list[dict[str, Any]]:
    """Labels and scores, highest first; equal ones in the order of the labels."""
    if not isinstance(served.task.target, Names):
        return [{"label": VALUE, "score": answered.answer}]
    values = answered.logits if raw else answered.scores
    names = served.task.target.names
    return [{"label": names[place], "score": float(values[place])} for place in np.argsort(-values, kind="stable")]


def _result(served: Served, answered: Answered) -> dict[str, Any]:
    scores = _scores(served, answered) if isinstance(served.task.target, Names) else []
    return {"answer": answered.answer, "scores": scores, "truncated": answered.truncated}


def _usage(found: list[list[Answered]]) -> dict[str, int]:
    tokens = sum(row[0].tokens for row in found)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "truncated": sum(any(each.truncated for each in row) for row in found),
    }


def _floats(values: np.ndarray) -> Any:
    return values.astype(float).tolist()


def _info(service: Service) -> schemas.Info:
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
                labels=_labels(served),
                pair=served.task.pair,
                encoder=served.task.encoder.name,
                max_input_length=served.task.encoder.max_length,
            )
            for served in tasks
        ],
    )

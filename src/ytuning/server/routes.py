"""Every route: a request in one of several protocols -> texts and tasks for the batcher -> a reply in that protocol."""

from __future__ import annotations

import asyncio
import math
import struct
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest

import ytuning
from ytuning.data.dataset import TextInput
from ytuning.server import schemas
from ytuning.server.batching import Answered, Refused
from ytuning.server.catalog import Served
from ytuning.server.service import Service, unless_gone
from ytuning.tasks.task import Task

__all__ = ["router"]

# A regression answers with this as its only "label".
VALUE = "value"


def _refusals(model: Any) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": model} for code in (401, 404, 413, 422, 424, 429, 503, 504)}


async def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service_of)]
router = APIRouter(responses=_refusals(schemas.Error))


# --- the server -------------------------------------------------------------------------------------------------------


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={200: {"content": {"application/json": {"schema": {}}}}})
async def health(service: TheService) -> dict[str, str]:
    """Status 200 once all tasks are loaded and warmed up, 503 before."""
    service.check_ready()
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
                labels=_names_of_scores(task),
                pair=task.pair_mode,
                encoder=task.encoder.name,
                max_input_length=task.encoder.max_length,
            )
            for task in tasks
        ],
    )


@router.get("/v1/models", responses=_refusals(schemas.V1Error))
@router.get("/models", include_in_schema=False)
async def models(service: TheService) -> schemas.Models:
    """Every task, as a model."""
    service.check_ready()
    created = int(service.telemetry.started)
    return schemas.Models(data=[schemas.Model(id=name, created=created) for name in service.catalog.tasks])


@router.post("/admin/reload", responses={403: {"model": schemas.Error}})
async def reload(service: TheService) -> schemas.AdminReply:
    """Check the task folders for changes now. If the server has keys, this needs an administrator's key."""
    service.check_ready()
    changes = await asyncio.to_thread(service.catalog.reload)
    service.tell(changes)
    return schemas.AdminReply(**vars(changes), tasks=len(service.catalog.tasks))


# --- texts in, labels and scores out ----------------------------------------------------------------------------------


def _texts_or_pairs(given: schemas.Inputs) -> list[TextInput]:
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


def _names_of_scores(task: Task) -> list[str]:
    return list(task.target.names) or [VALUE]


def _scores(served: Served, answered: Answered, *, raw: bool = False) -> list[dict[str, Any]]:
    """Labels and scores, highest first; equal ones in the order of the labels."""
    if served.task.target.labels is None:
        return [{"label": VALUE, "score": answered.answer}]
    values = answered.logits if raw else answered.scores
    names = served.task.target.names
    return [{"label": names[place], "score": float(values[place])} for place in np.argsort(-values, kind="stable")]


def _usage(answers: list[list[Answered]]) -> dict[str, int]:
    tokens = sum(row[0].tokens for row in answers)
    truncated = sum(any(answered.truncated for answered in row) for row in answers)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "truncated": truncated}


def _inputs_alone_or_in_batch(given: schemas.Inputs) -> tuple[list[TextInput], bool]:
    """Inputs, and whether they are a batch, of text-embeddings-inference's forms."""
    texts = [text for text in given if isinstance(text, str)]
    if isinstance(given, str) or not texts:
        return _texts_or_pairs(given), not isinstance(given, str)
    return [_text_or_pair(texts, "inputs")], False


async def _predict(request: Request, service: Service, body: schemas.PredictRequest, name: str | None) -> JSONResponse:
    served = service.task(name)
    inputs, batch = _inputs_alone_or_in_batch(body.inputs)
    answers = await service.answers(request, inputs, [served], truncate=body.truncate)
    scores = [_scores(served, row[0], raw=body.raw_scores) for row in answers]
    cut = ",".join(str(number) for number, row in enumerate(answers) if row[0].truncated)
    return JSONResponse(scores if batch else scores[0], headers={"x-truncated-inputs": cut} if cut else None)


PREDICT_REPLY: Any = list[schemas.Score] | list[list[schemas.Score]]


@router.post("/predict", response_model=PREDICT_REPLY)
async def of_any(request: Request, service: TheService, body: schemas.PredictRequest) -> JSONResponse:
    """Labels and scores in the format of text-embeddings-inference, the most probable first.

    The header ``x-truncated-inputs`` lists the inputs, counted from 0, that were too long and were cut.
    """
    return await _predict(request, service, body, body.task)


@router.post("/predict/{task}", response_model=PREDICT_REPLY)
async def of_one(request: Request, service: TheService, task: str, body: schemas.PredictRequest) -> JSONResponse:
    """The same as /predict, for clients that cannot add a field to the request."""
    return await _predict(request, service, body, task)


@router.post("/classify", response_model=schemas.ClassifyReply)
@router.post("/v1/classify", response_model=schemas.ClassifyReply, include_in_schema=False)
async def classify(request: Request, service: TheService, body: schemas.ClassifyRequest) -> JSONResponse:
    """Labels and scores of one task in the format of vLLM and infinity; ``model`` is the task's name."""
    served = service.task(body.model)
    answers = await service.answers(request, _texts_or_pairs(body.input), [served])
    data = [_scores(served, row[0]) for row in answers]
    return JSONResponse({"object": "classify", "data": data, "model": served.task.name, "usage": _usage(answers)})


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
                "scores": [] if served.task.target.labels is None else _scores(served, answered),
                "truncated": answered.truncated,
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
    return JSONResponse({"object": "classify_many", "data": data, "usage": _usage(answers), "timing": timing})


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
    labels = _names_of_scores(served.task)
    return JSONResponse({"task": served.task.name, "labels": labels, "tokens": tokens, "effects": values.tolist()})


@router.post("/v1/moderations", response_model=schemas.ModerationReply, responses=_refusals(schemas.V1Error))
async def moderations(request: Request, service: TheService, body: schemas.ModerationRequest) -> JSONResponse:
    """Answers of a multi-label task in the format of OpenAI's moderations."""
    served = service.task(body.model, gives_many=True)
    if not served.task.target.gives_many:
        fault = f"{served.task.name!r} is of the kind {served.task.kind!r}. Use /classify."
        raise Refused(422, "validation", f"moderations need a multi-label task, but {fault}")
    labels, results = served.task.target.names, []
    for row in await service.answers(request, _texts_or_pairs(body.input), [served]):
        given = _labels_given(row[0])
        results.append(
            {
                "flagged": bool(given),
                "categories": {label: label in given for label in labels},
                "category_scores": dict(zip(labels, row[0].scores.tolist(), strict=True)),
                "category_applied_input_types": {label: ["text"] for label in labels},
            }
        )
    return JSONResponse({"id": f"modr-{uuid.uuid4().hex}", "model": served.task.name, "results": results})


def _labels_given(answered: Answered) -> set[str]:
    """The labels that a multi-label task gives a text."""
    return set(answered.answer) if isinstance(answered.answer, list) else set()


# --- Open Inference Protocol v2 ---------------------------------------------------------------------------------------

v2 = APIRouter(prefix="/v2", responses=_refusals(schemas.V2Error) | {400: {"model": schemas.V2Error}})


class _BadTensor(Refused):
    """Inputs or outputs that a task does not have, or values that do not fit their shape."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "validation", message)


def _input_names(served: Served) -> list[str]:
    return ["text", "text_pair"] if served.task.pair_mode else ["text"]


def _outputs(served: Served, answers: Sequence[Answered] = ()) -> dict[str, tuple[str, list[int], list[Any]]]:
    """Name -> datatype, shape for one text, and values, text after text."""
    target, key = served.task.target, served.task.target.answer_key
    outputs: dict[str, tuple[str, list[int], list[Any]]] = {}
    if target.labels is not None:
        scores = [score for answered in answers for score in answered.scores.tolist()]
        outputs["probabilities"] = "FP64", [len(target.names)], scores
    if key == "labels":
        marks = [label in given for given in map(_labels_given, answers) for label in target.names]
        outputs[key] = "BOOL", [len(target.names)], marks
    elif key == "label":
        # A task that abstains answers None.
        outputs[key] = "BYTES", [], [answered.answer or "" for answered in answers]
    else:
        outputs[key] = "FP64", [], [answered.answer for answered in answers]
    return outputs


def _read_infer(body: bytes, header_length: str | None, served: Served) -> tuple[schemas.InferRequest, list[TextInput]]:
    """A request and its texts; ``header_length``: bytes of its JSON, where values of binary inputs follow."""
    header, values = body, b""
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= 12
        if not digits or int(header_length) > len(body):
            raise _BadTensor("the header inference-header-content-length must be the number of bytes of the JSON.")
        header, values = body[: int(header_length)], body[int(header_length) :]
    asked = schemas.InferRequest.model_validate_json(header)
    task, names = f"the task {served.task.name!r}", _input_names(served)
    columns: dict[str, list[str]] = {}
    for tensor in asked.inputs:
        if tensor.name not in names or tensor.name in columns:
            raise _BadTensor(f"{task} takes the inputs {', '.join(names)}, each once.")
        columns[tensor.name], values = _texts(tensor, values)
    if len(columns) < len(names) or len({len(column) for column in columns.values()}) != 1:
        raise _BadTensor(f"{task} needs the inputs {', '.join(names)}, all of the same length.")
    outputs = _outputs(served)
    if any(output.name not in outputs for output in asked.outputs or []):
        raise _BadTensor(f"{task} has only the outputs {', '.join(outputs)}.")
    pairs: list[Any] = columns.get("text_pair") or [None] * len(columns["text"])
    return asked, list(zip(columns["text"], pairs, strict=True))


def _texts(tensor: schemas.InferTensor, values: bytes) -> tuple[list[str], bytes]:
    """Texts of an input, and what is left of the binary values."""
    count, name = math.prod(tensor.shape), f"the input {tensor.name!r}"
    if tensor.datatype != "BYTES":
        raise _BadTensor(f"{name} must have the datatype BYTES.")
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        texts = [text for text in tensor.data or [] if isinstance(text, str)]
        if len(texts) != count or len(tensor.data or []) != count:
            raise _BadTensor(f"{name} must have as many texts in data as its shape says ({count}).")
        return texts, values
    if type(size) is not int or not 0 <= size <= len(values):
        raise _BadTensor(f"{name} does not have the number of bytes in its binary_data_size.")
    part, rest = values[:size], values[size:]
    texts, start = [], 0
    try:
        while start < len(part):
            (length,) = struct.unpack_from("<I", part, start)
            start += 4 + length
            if start > len(part):
                raise ValueError
            texts.append(part[start - length : start].decode())
    except (struct.error, ValueError) as error:
        # A text that is not UTF-8 is a ValueError, too.
        raise _BadTensor(f"the bytes of {name} must be lengths, each followed by a UTF-8 text.") from error
    if len(texts) != count:
        raise _BadTensor(f"{name} must have as many texts as its shape says ({count}).")
    return texts, rest


@v2.get("")
async def server() -> schemas.ServerMetadata:
    """Name and version."""
    return schemas.ServerMetadata(version=ytuning.__version__)


@v2.get("/health/live")
async def live() -> dict[str, bool]:
    """Whether the process answers."""
    return {"live": True}


@v2.get("/health/ready")
async def ready(service: TheService) -> dict[str, bool]:
    """Whether all tasks are loaded."""
    service.check_ready()
    return {"ready": True}


@v2.get("/models/{model}")
@v2.get("/models/{model}/versions/{version}", include_in_schema=False)
async def model_metadata(service: TheService, model: str) -> schemas.ModelMetadata:
    """A task's inputs and outputs."""
    served = service.task(model)
    inputs = [schemas.TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in _input_names(served)]
    outputs = [
        schemas.TensorMetadata(name=name, datatype=datatype, shape=[-1, *shape])
        for name, (datatype, shape, _) in _outputs(served).items()
    ]
    return schemas.ModelMetadata(name=served.task.name, inputs=inputs, outputs=outputs)


@v2.get("/models/{model}/ready")
@v2.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(service: TheService, model: str) -> dict[str, Any]:
    """Whether a task is loaded."""
    return {"name": service.task(model).task.name, "ready": True}


INFER_BODY: Any = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
    }
}


@v2.post("/models/{model}/infer", response_model=schemas.InferReply, openapi_extra=INFER_BODY)
@v2.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
async def infer(request: Request, service: TheService, model: str) -> JSONResponse:
    """A task's outputs: ``probabilities`` and ``label``, ``labels`` as 0 and 1, or ``value``."""
    served = service.task(model)
    asked, inputs = _read_infer(await request.body(), request.headers.get("inference-header-content-length"), served)
    answers = [row[0] for row in await service.answers(request, inputs, [served])]
    every, outputs = _outputs(served, answers), []
    for name in [output.name for output in asked.outputs] if asked.outputs else every:
        datatype, shape, data = every[name]
        outputs.append({"name": name, "datatype": datatype, "shape": [len(answers), *shape], "data": data})
    reply = {"model_name": served.task.name, "model_version": "1", "id": asked.id, "outputs": outputs}
    return JSONResponse({key: value for key, value in reply.items() if value is not None})


router.include_router(v2)

"""The Open Inference Protocol v2, as KServe and Triton speak it."""

from __future__ import annotations

import math
import struct
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

import ytuning
from ytuning.data.dataset import TextInput
from ytuning.data.labels import quote
from ytuning.server import schemas
from ytuning.server.batching import Answered, Refused
from ytuning.server.bodies import read_body, read_object
from ytuning.server.catalog import Served
from ytuning.server.replies import TheService, labels_given, refusals_of
from ytuning.server.texts import kind_of

__all__ = ["v2"]

v2 = APIRouter(prefix="/v2", responses=refusals_of(schemas.V2Error))


class _BadTensor(Refused):
    """Inputs or outputs that a task does not have, or values that do not fit their shape."""

    def __init__(self, message: str) -> None:
        super().__init__(422, "validation", message)


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
        marks = [label in given for given in map(labels_given, answers) for label in target.names]
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
    asked = schemas.InferRequest.model_validate(read_object(header))
    task, names = f"the task {served.task.name!r}", _input_names(served)
    columns: dict[str, list[str]] = {}
    for tensor in asked.inputs:
        if tensor.name not in names or tensor.name in columns:
            raise _BadTensor(f"{task} takes the inputs {', '.join(names)}, each once. Got {quote(tensor.name)}.")
        columns[tensor.name], values = _texts(tensor, values)
    if len(columns) < len(names) or len({len(column) for column in columns.values()}) != 1:
        raise _BadTensor(f"{task} needs the inputs {', '.join(names)}, all of the same length.")
    outputs = _outputs(served)
    for output in asked.outputs or []:
        if output.name not in outputs:
            raise _BadTensor(f"{task} has no output {quote(output.name)}, only {', '.join(outputs)}.")
        if "classification" in (output.parameters or {}):
            raise _BadTensor(
                "outputs have no 'classification'. Leave it out; the output 'probabilities' has all labels."
            )
    pairs: list[Any] = columns.get("text_pair") or [None] * len(columns["text"])
    return asked, list(zip(columns["text"], pairs, strict=True))


def _texts(tensor: schemas.InferTensor, values: bytes) -> tuple[list[str], bytes]:
    """Texts of an input, and what is left of the binary values."""
    count, name, parameters = math.prod(tensor.shape), f"the input {tensor.name!r}", tensor.parameters or {}
    if tensor.datatype != "BYTES":
        raise _BadTensor(f"{name} must have the datatype BYTES.")
    if sum(size != 1 for size in tensor.shape) > 1:
        raise _BadTensor(f"{name} must have the shape [n] or [n, 1]. Got {tensor.shape} instead.")
    if (content_type := parameters.get("content_type", "str")) != "str":
        raise _BadTensor(f"{name} has the content_type {quote(content_type)}. Send texts as they are ('str').")
    size = parameters.get("binary_data_size")
    if size is None:
        return _texts_of_data(tensor, count, name), values
    if type(size) is not int or not 0 <= size <= len(values):
        raise _BadTensor(f"{name} does not have the number of bytes in its binary_data_size.")
    texts = _texts_of_bytes(values[:size], name)
    if len(texts) != count:
        raise _BadTensor(f"{name} must have as many texts as its shape says ({count}). Got {len(texts)} instead.")
    return texts, values[size:]


def _texts_of_data(tensor: schemas.InferTensor, count: int, name: str) -> list[str]:
    """Texts of ``data``, which may be nested as the shape is."""
    data = tensor.data or []
    for _ in tensor.shape[1:]:
        data = [value for row in data for value in (row if isinstance(row, list) else [row])]
    if len(data) != count:
        raise _BadTensor(f"{name} must have as many texts in data as its shape says ({count}). It has {len(data)}.")
    for number, value in enumerate(data, 1):
        if not isinstance(value, str):
            raise _BadTensor(f"{name}: item {number} of data is {kind_of(value)}, not a text.")
    return data


def _texts_of_bytes(part: bytes, name: str) -> list[str]:
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
    return texts


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
    """Whether all tasks are loaded, and the server is not about to stop."""
    service.check_open()
    return {"ready": True}


@v2.get("/models")
async def model_names(service: TheService) -> dict[str, list[str]]:
    """The names of the tasks."""
    service.check_ready()
    return {"models": list(service.catalog.tasks)}


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
    length = request.headers.get("inference-header-content-length")
    asked, inputs = _read_infer(await read_body(request), length, served)
    answers = [row[0] for row in await service.answers(request, inputs, [served])]
    every, outputs = _outputs(served, answers), []
    for name in [output.name for output in asked.outputs] if asked.outputs else every:
        datatype, shape, data = every[name]
        outputs.append({"name": name, "datatype": datatype, "shape": [len(answers), *shape], "data": data})
    # KServe's clients need an id, also where the request has none.
    name, number = served.task.name, asked.id or uuid.uuid4().hex
    return JSONResponse({"model_name": name, "model_version": "1", "id": number, "outputs": outputs})

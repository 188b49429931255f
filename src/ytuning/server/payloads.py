"""Inputs and answers in the forms of the protocols, those of the Open Inference Protocol v2 included."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

import ytuning
from ytuning.data.dataset import TextInput
from ytuning.server import schemas
from ytuning.server.batching import Answered
from ytuning.server.catalog import Served
from ytuning.server.schemas import InferRequest, InferTensor, ModelMetadata, TensorMetadata
from ytuning.server.service import Refused, Service

__all__ = [
    "BadTensor",
    "floats",
    "info_of",
    "labels_of_task",
    "many_inputs",
    "metadata_of",
    "outputs_of",
    "predict_inputs",
    "read_infer",
    "result_of",
    "scores_of",
    "usage_of",
]

# The one "label" of a regression.
VALUE = "value"
# Where the JSON of a prediction has the answer -> its datatype as a tensor, and whether that is one number a text.
ANSWER_TENSORS = {"value": ("FP64", True), "label": ("BYTES", True), "labels": ("BOOL", False)}


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
        message = (
            f"{what} must be a text or a pair of texts. Got a list of {len(texts)} instead. A batch is a list of lists."
        )
        raise Refused(422, "validation", message)
    return texts[0], texts[1] if len(texts) == 2 else None


def labels_of_task(served: Served) -> list[str]:
    """Names of what a task gives scores for."""
    return list(served.task.target.names) or [VALUE]


def scores_of(served: Served, answered: Answered, *, raw: bool = False) -> list[dict[str, Any]]:
    """Labels and scores, highest first; equal ones in the order of the labels."""
    if served.task.target.labels is None:
        return [{"label": VALUE, "score": answered.answer}]
    values = answered.logits if raw else answered.scores
    names = served.task.target.names
    return [{"label": names[place], "score": float(values[place])} for place in np.argsort(-values, kind="stable")]


def result_of(served: Served, answered: Answered) -> dict[str, Any]:
    """A `schemas.Result`."""
    scores = [] if served.task.target.labels is None else scores_of(served, answered)
    return {"answer": answered.answer, "scores": scores, "truncated": answered.truncated}


def usage_of(found: list[list[Answered]]) -> dict[str, int]:
    """A `schemas.Usage`."""
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
                pair=served.task.pair_mode,
                encoder=served.task.encoder.name,
                max_input_length=served.task.encoder.max_length,
            )
            for served in tasks
        ],
    )


INPUTS = ("text", "text_pair")


class BadTensor(Exception):  # noqa: N818
    """Inputs or outputs that a task does not have, or values that do not fit their shape."""


def metadata_of(served: Served) -> ModelMetadata:
    """A task's inputs and outputs."""
    inputs = [
        TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in INPUTS[: 2 if served.task.pair_mode else 1]
    ]
    outputs = [
        TensorMetadata(name=name, datatype=datatype, shape=[-1, *([] if flat else [len(served.task.target.names)])])
        for name, (datatype, flat) in _outputs(served).items()
    ]
    return ModelMetadata(name=served.task.name, inputs=inputs, outputs=outputs)


def read_infer(body: bytes, header_length: str | None, served: Served) -> tuple[InferRequest, list[TextInput]]:
    """A request and its texts.

    Args:
        body: JSON, and after it the values of binary inputs.
        header_length: bytes of the JSON, if values follow.
        served: the task.

    Raises:
        pydantic.ValidationError: the JSON is none of this form.
        BadTensor: the inputs are not those of the task.
    """
    header, values = body, b""
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= 12
        if not digits or int(header_length) > len(body):
            raise BadTensor("the header inference-header-content-length must be the number of bytes of the JSON.")
        header, values = body[: int(header_length)], body[int(header_length) :]
    asked = InferRequest.model_validate_json(header)
    wanted = INPUTS[: 2 if served.task.pair_mode else 1]
    columns: dict[str, list[str]] = {}
    for tensor in asked.inputs:
        if tensor.name not in wanted or tensor.name in columns:
            raise BadTensor(f"the task {served.task.name!r} takes the inputs {', '.join(wanted)}, each once.")
        column, values = _texts(tensor, values)
        columns[tensor.name] = column
    if len(columns) < len(wanted) or len({len(column) for column in columns.values()}) != 1:
        raise BadTensor(f"the task {served.task.name!r} needs the inputs {', '.join(wanted)}, all of the same length.")
    unknown = [output.name for output in asked.outputs or [] if output.name not in _outputs(served)]
    if unknown:
        raise BadTensor(f"the task {served.task.name!r} has only the outputs {', '.join(_outputs(served))}.")
    pairs: Sequence[str | None] = columns.get("text_pair") or [None] * len(columns["text"])
    return asked, list(zip(columns["text"], pairs, strict=True))


def outputs_of(served: Served, found: Sequence[Answered], asked: InferRequest) -> list[dict[str, Any]]:
    """The outputs that are asked for, or all."""
    names = _outputs(served)
    chosen = [output.name for output in asked.outputs] if asked.outputs else list(names)
    return [_tensor(name, names[name][0], found, served) for name in chosen]


def _outputs(served: Served) -> dict[str, tuple[str, bool]]:
    """Name -> datatype, and whether there is one number a text and not one a label."""
    target = served.task.target
    scores = {} if target.labels is None else {"probabilities": ("FP64", False)}
    return scores | {target.answer_key: ANSWER_TENSORS[target.answer_key]}


def _tensor(name: str, datatype: str, found: Sequence[Answered], served: Served) -> dict[str, Any]:
    if name == "value":
        values = [each.answer for each in found]
    elif name == "label":
        values = [each.answer or "" for each in found]  # of a task that abstains
    elif name == "labels":
        names = served.task.target.names
        given = [set(each.answer) if isinstance(each.answer, list) else set() for each in found]
        values = [label in some for some in given for label in names]
    else:
        values = np.concatenate([each.scores for each in found]).tolist()
    flat = name in ("value", "label")
    shape = [len(found)] if flat else [len(found), len(served.task.target.names)]
    return {"name": name, "datatype": datatype, "shape": shape, "data": values}


def _texts(tensor: InferTensor, values: bytes) -> tuple[list[str], bytes]:
    """Texts of an input, and what is left of the binary values."""
    count = math.prod(tensor.shape)
    if tensor.datatype != "BYTES":
        raise BadTensor(f"the input {tensor.name!r} must have the datatype BYTES.")
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        texts = tensor.data or []
        if not all(isinstance(text, str) for text in texts) or len(texts) != count:
            raise BadTensor(f"the input {tensor.name!r} must have as many texts in data as its shape says ({count}).")
        return [str(text) for text in texts], values
    if type(size) is not int or not 0 <= size <= len(values):
        raise BadTensor(f"the input {tensor.name!r} does not have the number of bytes in its binary_data_size.")
    part, rest = values[:size], values[size:]
    found: list[str] = []
    place = 0
    try:
        while place < len(part):
            (length,) = struct.unpack_from("<I", part, place)
            text = part[place + 4 : place + 4 + length]
            if len(text) != length:
                raise ValueError
            found.append(text.decode())
            place += 4 + length
    except (struct.error, ValueError) as error:  # of UTF-8, too
        raise BadTensor(
            f"the bytes of the input {tensor.name!r} must be lengths, each followed by a UTF-8 text."
        ) from error
    if len(found) != count:
        raise BadTensor(f"the input {tensor.name!r} must have as many texts as its shape says ({count}).")
    return found, rest

"""Replies of every protocol are the predictor's answers; clients that others wrote; bodies that are nonsense."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import SERVED_TEXTS as TEXTS
from tests.server.serving import PATIENCE, Live, live, settings
from ytuning.tasks.predictor import Prediction, Predictor

SINGLES = ["single", "ordinal", "multi", "number", "careful"]
PAIRS = ["joint", "apart"]
FUZZ = int(os.environ.get("YTUNING_FUZZ", "300"))  # bodies; 10,000 take some minutes


@pytest.fixture(scope="module")
def server(served_tasks: Path) -> Iterator[Live]:
    with live(settings(served_tasks, requests=100_000)) as server:
        yield server


@pytest.fixture(scope="module")
def offline(served_tasks: Path) -> dict[str, list[Prediction]]:
    """Task -> predictions of all texts, or of the pairs of them and those in reverse."""
    singles = {name: list(Predictor([served_tasks / name]).predict([(t, None) for t in TEXTS])) for name in SINGLES}
    pairs: list[tuple[str, str | None]] = list(zip(TEXTS, TEXTS[::-1], strict=True))
    return singles | {name: list(Predictor([served_tasks / name]).predict(pairs)) for name in PAIRS}


def scores_of(answer: Prediction) -> dict[str, float]:
    return answer.scores or {"value": answer.answer}  # type: ignore[dict-item]


def check_scores(given: list[dict[str, Any]], answer: Prediction) -> None:
    """Labels with their scores, highest first."""
    wanted = scores_of(answer)
    assert {each["label"]: each["score"] for each in given} == pytest.approx(wanted, abs=1e-5)
    assert [each["score"] for each in given] == sorted((each["score"] for each in given), reverse=True)
    assert len(given) == len(wanted)


def inputs_of(name: str) -> list[list[str]]:
    return [list(each) for each in zip(TEXTS, TEXTS[::-1], strict=True)] if name in PAIRS else [[t] for t in TEXTS]


# --- replies are the predictor's ------------------------------------------------------------------------------------


def test_the_tasks_differ_and_one_abstains(offline: dict[str, list[Prediction]]) -> None:
    answers = [answer.answer for answer in offline["careful"]]
    assert None in answers and any(answers)
    assert any(isinstance(answer.answer, list) and len(answer.answer) > 1 for answer in offline["multi"])
    assert offline["joint"][0].scores != offline["apart"][0].scores


@pytest.mark.parametrize("name", SINGLES + PAIRS)
def test_predict(name: str, server: Live, offline: dict[str, list[Prediction]]) -> None:
    inputs = inputs_of(name)
    batch = server.post("/predict", {"inputs": inputs, "task": name})
    assert batch.status_code == 200
    for given, answer in zip(batch.json(), offline[name], strict=True):
        check_scores(given, answer)
    cut = [str(number) for number, answer in enumerate(offline[name]) if answer.truncated]
    assert cut and batch.headers["x-truncated-inputs"] == ",".join(cut)
    alone = server.post(f"/predict/{name}", {"inputs": inputs[0] if name in PAIRS else inputs[0][0]})
    check_scores(alone.json(), offline[name][0])
    kept = server.post(f"/predict/{name}", {"inputs": inputs, "truncate": False})
    assert kept.status_code == 413
    assert kept.json()["error"].startswith(f"input {int(cut[0]) + 1} has more tokens than the encoder reads (32)")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/classify", {"model": "single", "input": TEXTS}), ("/infinity/classify", {"model": "single", "input": TEXTS}),
     ("/models/single", {"inputs": TEXTS}), ("/v1/moderations", {"input": TEXTS}), ("/classify_many", {"input": TEXTS}),
     ("/v2/models/single/infer", {"inputs": [{"name": "text", "shape": [6], "datatype": "BYTES", "data": TEXTS}]})],
)  # fmt: skip
def test_cut_inputs_are_told(path: str, body: Any, server: Live) -> None:
    assert server.post(path, body).headers["x-truncated-inputs"] == str(len(TEXTS) - 1)
    assert "x-truncated-inputs" not in server.post("/predict/single", {"inputs": "my card"}).headers


def test_raw_scores_are_logits(server: Live) -> None:
    raw = server.post("/predict/single", {"inputs": "my card", "raw_scores": True}).json()
    even = server.post("/predict/single", {"inputs": "my card"}).json()
    assert [each["label"] for each in raw] == [each["label"] for each in even]
    assert sum(each["score"] for each in even) == pytest.approx(1)
    assert sum(each["score"] for each in raw) != pytest.approx(1)


def usage() -> dict[str, int]:
    counts = [2 + len(text.split()) for text in TEXTS]
    tokens = sum(min(count, 32) for count in counts)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "truncated": 1}


@pytest.mark.parametrize("name", SINGLES)
@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classify_as_vllm(path: str, name: str, server: Live, offline: dict[str, list[Prediction]]) -> None:
    reply = server.post(path, {"model": name, "input": TEXTS}).json()
    assert set(reply) == {"id", "object", "created", "model", "data", "usage"}
    assert reply["id"].startswith("classify-") and reply["object"] == "list" and reply["model"] == name
    assert reply["usage"] == usage() | {"completion_tokens": 0}
    for number, (item, answer) in enumerate(zip(reply["data"], offline[name], strict=True)):
        probs = list(scores_of(answer).values())
        assert item["probs"] == pytest.approx(probs, abs=1e-5)
        assert (item["index"], item["num_classes"]) == (number, len(probs))
        assert set(item) == {"index", "label", "probs", "num_classes"}
        if name == "number":
            assert item["label"] == "value"
        elif name == "multi":
            given = answer.answer
            assert isinstance(given, list)
            assert item["label"] == (max(given, key=lambda label: answer.scores[label]) if given else None)
        else:
            assert item["label"] == answer.answer


def test_classify_as_vllm_with_logits(server: Live) -> None:
    """vLLM's clients switch the probabilities off by use_activation."""
    raw = server.post("/classify", {"model": "single", "input": "my card", "use_activation": False}).json()["data"][0]
    scores = server.post("/predict/single", {"inputs": "my card", "raw_scores": True}).json()
    assert sorted(raw["probs"], reverse=True) == pytest.approx([each["score"] for each in scores])


@pytest.mark.parametrize("name", SINGLES)
def test_classify_as_infinity(name: str, server: Live, offline: dict[str, list[Prediction]]) -> None:
    reply = server.post("/infinity/classify", {"model": name, "input": TEXTS}).json()
    assert set(reply) == {"object", "data", "model", "usage", "id", "created"}
    assert reply["object"] == "classify" and reply["model"] == name and reply["usage"] == usage()
    for given, answer in zip(reply["data"], offline[name], strict=True):
        check_scores(given, answer)
    models = server.client.get("/infinity/models").json()["data"]
    assert {(model["id"], model["owned_by"]) for model in models} == {(each, "infinity") for each in SINGLES + PAIRS}
    assert all(isinstance(model["stats"], dict) for model in models)


@pytest.mark.parametrize("name", SINGLES)
def test_hub_form(name: str, server: Live, offline: dict[str, list[Prediction]]) -> None:
    """Hugging Face's inference API answers a list of lists, to a lone text too."""
    many = server.post(f"/models/{name}", {"inputs": TEXTS}).json()
    for given, answer in zip(many, offline[name], strict=True):
        check_scores(given, answer)
    (lone,) = server.post(f"/models/{name}", {"inputs": TEXTS[0], "parameters": {"top_k": 1}}).json()
    assert lone == [{**many[0][0], "score": pytest.approx(many[0][0]["score"], abs=1e-5)}]


@pytest.mark.parametrize(
    ("name", "function", "status"),
    [("single", "softmax", 200), ("single", "sigmoid", 422), ("multi", "sigmoid", 200), ("multi", "softmax", 422),
     ("number", "none", 200), ("number", "softmax", 422), ("single", "none", 200)],
)  # fmt: skip
def test_hub_functions(name: str, function: str, status: int, server: Live) -> None:
    body = {"inputs": "my card", "parameters": {"function_to_apply": function}}
    reply = server.post(f"/models/{name}", body)
    assert reply.status_code == status
    if status == 422:
        assert reply.json()["error"].startswith(f"function_to_apply: the task {name!r} has ")


@pytest.mark.parametrize("names", [SINGLES, PAIRS])
def test_classify_many(names: list[str], server: Live, offline: dict[str, list[Prediction]]) -> None:
    given: Any = inputs_of(names[0]) if names == PAIRS else TEXTS
    whole = server.post("/classify_many", {"input": given}).json()
    assert {each["task"] for each in whole["data"]} == set(names)
    some = server.post("/classify_many", {"input": given, "tasks": names[::-1]}).json()
    assert [each["task"] for each in some["data"]] == names[::-1]
    for each in whole["data"] + some["data"]:
        for result, answer in zip(each["results"], offline[each["task"]], strict=True):
            assert each["kind"] == answer.kind and result["truncated"] == answer.truncated
            if answer.kind == "regression":
                assert result == {"answer": pytest.approx(answer.answer), "scores": [], "truncated": answer.truncated}
            else:
                assert result["answer"] == answer.answer
                check_scores(result["scores"], answer)


def test_classify_many_with_scores_of_the_most_probable_labels_alone(server: Live) -> None:
    given = {"input": TEXTS, "tasks": SINGLES}
    whole, most = (server.post("/classify_many", {**given, "top_k": top}).json()["data"] for top in (None, 2))
    for each, shorter in zip(whole, most, strict=True):
        for result, short in zip(each["results"], shorter["results"], strict=True):
            assert short == {**result, "scores": result["scores"][:2]}
    assert any(len(each["results"][0]["scores"]) > 2 for each in whole)


def test_moderations(server: Live, offline: dict[str, list[Prediction]]) -> None:
    for body in ({"input": TEXTS}, {"input": TEXTS, "model": "multi"}):
        reply = server.post("/v1/moderations", body).json()
        assert reply["model"] == "multi"
        for result, answer in zip(reply["results"], offline["multi"], strict=True):
            given = answer.answer
            assert isinstance(given, list) and result["flagged"] == bool(given)
            assert result["categories"] == {name: name in given for name in answer.scores}
            assert result["category_scores"] == pytest.approx(answer.scores, abs=1e-5)
    refused = server.post("/v1/moderations", {"input": "my card", "model": "single"})
    assert (
        refused.status_code == 400
        and "'single' is of the kind 'single'. Use /classify." in refused.json()["error"]["message"]
    )


def test_moderations_of_parts(server: Live) -> None:
    """A list of parts is one input, and its texts are lines."""
    parts = [{"type": "text", "text": text} for text in ("my card", "late")]
    reply = server.post("/v1/moderations", {"model": "multi", "input": parts}).json()
    whole = server.post("/v1/moderations", {"model": "multi", "input": "my card\nlate"}).json()
    assert reply["results"] == whole["results"] and len(reply["results"]) == 1


def tensor(name: str, texts: list[str]) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts}


def binary(name: str, texts: list[str]) -> tuple[dict[str, Any], bytes]:
    values = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    head = {"name": name, "shape": [len(texts)], "datatype": "BYTES", "parameters": {"binary_data_size": len(values)}}
    return head, values


@pytest.mark.parametrize("name", SINGLES + PAIRS)
def test_v2(name: str, server: Live, offline: dict[str, list[Prediction]]) -> None:
    columns = {"text": TEXTS, "text_pair": TEXTS[::-1]} if name in PAIRS else {"text": TEXTS}
    inputs = [tensor(*column) for column in columns.items()]
    reply = server.post(f"/v2/models/{name}/infer", {"id": "7", "inputs": inputs}).json()
    assert (reply["model_name"], reply["id"]) == (name, "7")
    parts = [binary(*column) for column in columns.items()]
    head = json.dumps({"id": "7", "inputs": [part[0] for part in parts]}).encode()
    body = head + b"".join(part[1] for part in parts)
    headers = {"inference-header-content-length": str(len(head))}
    assert server.client.post(f"/v2/models/{name}/infer", content=body, headers=headers).json() == reply
    described = server.client.get(f"/v2/models/{name}").json()
    assert [each["name"] for each in described["inputs"]] == list(columns)
    assert [each["name"] for each in described["outputs"]] == [each["name"] for each in reply["outputs"]]
    outputs = {tensor["name"]: tensor for tensor in reply["outputs"]}
    answers = offline[name]
    if name == "number":
        assert outputs["value"]["data"] == pytest.approx([answer.answer for answer in answers])
        return
    labels = list(answers[0].scores)
    flat = [score for answer in answers for score in answer.scores.values()]
    assert outputs["probabilities"]["data"] == pytest.approx(flat, abs=1e-5)
    assert outputs["probabilities"]["shape"] == [len(TEXTS), len(labels)]
    if name == "multi":
        assert outputs["labels"]["data"] == [label in (answer.answer or []) for answer in answers for label in labels]  # type: ignore[operator]
    else:
        assert outputs["label"]["data"] == [answer.answer or "" for answer in answers]
        only = {"inputs": inputs, "outputs": [{"name": "label"}]}
        assert server.post(f"/v2/models/{name}/infer", only).json()["outputs"] == [outputs["label"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "words"}, "takes the inputs text, each once"),
        ({"datatype": "FP32"}, "must have the datatype BYTES"),
        ({"shape": [2]}, "as many texts in data as its shape says"),
        ({"shape": [10**4000] * 2}, "shape"),
        ({"shape": [1] * 100}, "shape"),
        ({"data": [1]}, "item 1 of data is a number, not a text"),
        ({"data": [None]}, "item 1 of data is null, not a text"),
        ({"data": ["my card"] * 2}, "as its shape says (1). It has 2"),
        ({"data": ["my card"] * 4, "shape": [2, 2]}, "must have the shape [n] or [n, 1]. Got [2, 2] instead"),
        ({"parameters": {"content_type": "base64"}}, "has the content_type 'base64'. Send texts as they are"),
        ({"parameters": {"binary_data_size": 5}}, "does not have the number of bytes"),
        ({"parameters": {"binary_data_size": True}}, "does not have the number of bytes"),
    ],
)
def test_v2_inputs_that_do_not_fit(change: dict[str, Any], message: str, server: Live) -> None:
    reply = server.post("/v2/models/single/infer", {"inputs": [{**tensor("text", ["my card"]), **change}]})
    assert reply.status_code == 400 and message in reply.json()["error"]
    assert set(reply.json()) == {"error"}


NESTED = [["my card"], ["late"]]


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 1], NESTED),
        ([2, 1], ["my card", "late"]),
        ([1, 2], [["my card", "late"]]),
        ([2, 1, 1], [[[text] for text in row] for row in NESTED]),
    ],
)
def test_v2_nested_data(shape: list[int], data: Any, server: Live) -> None:
    inputs = {"name": "text", "shape": shape, "datatype": "BYTES", "data": data, "parameters": {"content_type": "str"}}
    reply = server.post("/v2/models/single/infer", {"inputs": [inputs]}).json()
    flat = server.post("/v2/models/single/infer", {"inputs": [tensor("text", ["my card", "late"])]}).json()
    assert reply["outputs"] == flat["outputs"]
    assert isinstance(reply["id"], str) and reply["id"]


@pytest.mark.parametrize(
    ("output", "message"),
    [({"name": "logits"}, "has no output 'logits', only probabilities, label"),
     ({"name": "label", "parameters": {"classification": 2}}, "have no 'classification'")],
)  # fmt: skip
def test_v2_outputs_that_are_not_there(output: dict[str, Any], message: str, server: Live) -> None:
    body = {"inputs": [tensor("text", ["my card"])], "outputs": [output]}
    reply = server.post("/v2/models/single/infer", body)
    assert reply.status_code == 400 and message in reply.json()["error"]


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"99999", b"1e3", b"9" * 5000])
def test_v2_header_lengths_that_do_not_fit(length: bytes, server: Live) -> None:
    headers = {b"inference-header-content-length": length}
    reply = server.client.post("/v2/models/single/infer", content=b"{}", headers=headers)
    assert reply.status_code == 400 and "number of bytes of the JSON" in reply.json()["error"]


# --- refusals, and what the server says of itself -------------------------------------------------------------------


def test_unknown_and_missing_tasks(server: Live) -> None:
    reply = server.post("/predict/singel", {"inputs": "a"})
    assert reply.status_code == 404 and reply.json()["error_type"] == "not_found"
    assert reply.json()["error"].startswith("there is no task 'singel'. Did you mean 'single'?")
    assert server.post("/v2/models/singel/infer", {}).status_code == 404
    missing = server.post("/predict", {"inputs": "a"})
    assert missing.status_code == 422 and missing.json()["error"].startswith("name one of the 7 tasks: ")


NO_TEXTS = "it must be a text or a list of texts. Got"
OPENAI_PATHS = ("/classify", "/v1/classify", "/v1/moderations")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/predict/single", {"inputs": []}, "there is no input"),
        ("/predict/single", {"inputs": [["a"], []]}, "input 2 must be a text or a pair of texts. Got a list of 0"),
        ("/predict/single", {"inputs": ["a", "b"]}, "is a pair of texts, but the task 'single' takes single texts. A"),
        ("/predict/single", {"inputs": [["a", "b"]]}, "input 1: the task 'single' was trained on single texts"),
        ("/predict/joint", {"inputs": [["a", "b"], ["c"]]}, "input 2: the task 'joint' was trained on pairs of texts"),
        ("/predict/single", {"inputs": 5}, f"inputs: {NO_TEXTS} a number"),
        ("/predict/single", {"inputs": None}, f"inputs: {NO_TEXTS} null"),
        ("/predict/single", {"inputs": {"text": "a"}}, f"inputs: {NO_TEXTS} an object"),
        ("/predict/single", {"inputs": [["a"], ["b", None]]}, "inputs: item 2 contains null where a text must be"),
        ("/predict/single", {"inputs": [["a"], "b"]}, "inputs: item 2 is a text, but others are lists"),
        ("/predict/single", {"inputs": "\ud800"}, "input 1 contains an invalid Unicode character"),
        ("/predict/single", {"inputs": "a", "truncate": "no"}, "truncate: "),
        ("/predict/single", {"inputs": "a", "truncation_direction": "Left"}, "truncation_direction: "),
        ("/models/single", {"inputs": ["a", 5]}, "inputs: item 2 is a number, not a text"),
        ("/models/single", {"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k: "),
        ("/models/joint", {"inputs": "a"}, "the task 'joint' takes pairs of texts, which this path does not. Use /"),
        ("/classify", {"input": "a"}, "name one of the 7 tasks: "),
        ("/classify", {"model": "single"}, "input: Field required"),
        ("/classify", {"model": "single", "input": ["a", None]}, "input: item 2 is null, not a text"),
        ("/classify", {"model": "single", "input": [["a", "b"]]}, "item 1 is a list, not a text. Pairs of texts go to"),
        ("/classify", {"model": "single", "input": [1, 2]}, "input: item 1 is a number, not a text"),
        ("/classify", {"model": "single", "input": ["a", "\udc00"]}, "input 2 contains an invalid Unicode character"),
        ("/classify", {"model": "single", "messages": []}, "messages are not read. Send texts in input"),
        ("/classify", {"model": "single", "input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens: "),
        ("/v1/classify", {"model": "joint", "input": "a"}, "takes pairs of texts, which this path does not"),
        ("/infinity/classify", {"input": ["a"]}, "name one of the 7 tasks: "),
        ("/infinity/classify", {"model": "single", "input": [True]}, "input: item 1 is true or false, not a text"),
        ("/classify_many", {"input": ["a", ["b", "c"]]}, "input: item 1 is a text, but others are lists"),
        ("/classify_many", {"input": "a", "tasks": []}, "tasks is empty"),
        ("/classify_many", {"input": "a", "top_k": 0}, "top_k: "),
        ("/explain", {"task": "single", "input": ["a", "b", "c"]}, "input must be a text or a pair"),
        ("/v1/moderations", {"input": []}, "there is no input"),
        ("/v1/moderations", {"input": ["a", {"type": "text", "text": "b"}]}, "item 1 is a text, but others are parts"),
        ("/v1/moderations", {"input": [{"type": "text"}]}, 'item 1 must be {"type": "text", "text": "..."}'),
        ("/v1/moderations", {"input": [{"type": "image_url"}]}, "item 1 is an image, and tasks read only texts"),
    ],
)
def test_bodies_that_do_not_fit(path: str, body: Any, message: str, server: Live) -> None:
    content = json.dumps(body).encode()
    reply = server.client.post(path, content=content, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert reply.status_code == (400 if path in OPENAI_PATHS else 422)
    if path in (*OPENAI_PATHS, "/infinity/classify"):
        assert set(error) == {"message", "type", "param", "code"} and error["type"] == "validation"
        error = error["message"]
    else:
        assert reply.json()["error_type"] == "validation"
    assert message in error and "\n" not in error


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict/single", {"inputs": [["my card"], [""], [" \n"]]}),
        ("/predict/joint", {"inputs": [["my card", ""], ["", ""], [" ", "\t"]]}),
        ("/models/single", {"inputs": ["my card", "", " "]}),
        ("/classify", {"model": "single", "input": ["my card", "", " "]}),
        ("/infinity/classify", {"model": "single", "input": ["my card", "", " "]}),
        ("/v1/moderations", {"model": "multi", "input": ["my card", "", " "]}),
        ("/classify_many", {"input": ["my card", "", " "], "tasks": ["number"]}),
        ("/v2/models/single/infer", {"inputs": [tensor("text", ["my card", "", " "])], "outputs": [{"name": "label"}]}),
    ],
)
def test_blank_texts_are_answered(path: str, body: Any, server: Live) -> None:
    reply = server.post(path, body)
    assert reply.status_code == 200, reply.text
    answers: Any = reply.json()
    if isinstance(answers, dict):
        answers = answers.get("results") or answers.get("data") or answers["outputs"][0]["data"]
    assert len(answers[0]["results"] if path == "/classify_many" else answers) == 3


def test_blank_texts_are_explained(server: Live) -> None:
    assert server.post("/explain", {"task": "single", "input": ""}).json()["labels"] == ["card", "login", "refund"]


def test_the_only_task_needs_no_name(served_tasks: Path) -> None:
    with live(settings(served_tasks / "single", texts=2, characters=10)) as server:
        assert server.post("/predict", {"inputs": "my card"}).status_code == 200
        assert server.post("/classify", {"input": "my card"}).json()["model"] == "single"
        assert server.post("/infinity/classify", {"input": ["my card"]}).json()["model"] == "single"
        info = server.client.get("/info").json()
        assert info["model_id"] == "single"
        assert info["model_type"]["classifier"]["id2label"] == {"0": "card", "1": "login", "2": "refund"}
        assert info["max_client_batch_size"] == 2
        assert server.post("/predict", {"inputs": [["a"]] * 3}).status_code == 413
        assert server.post("/predict", {"inputs": "a" * 11}).status_code == 413


def test_what_is_served(server: Live) -> None:
    info = server.client.get("/info").json()
    assert {task["name"]: (task["kind"], task["pair"]) for task in info["tasks"]} == {
        "single": ("single", None),
        "careful": ("single", None),
        "ordinal": ("ordinal", None),
        "multi": ("multi", None),
        "number": ("regression", None),
        "joint": ("single", "joint"),
        "apart": ("single", "separate"),
    }
    models = server.client.get("/v1/models").json()
    assert {model["id"] for model in models["data"]} == set(SINGLES + PAIRS)
    assert server.client.get("/v1/models/single").json() in models["data"]
    assert server.client.get("/v2/models").json() == {"models": [model["id"] for model in models["data"]]}


# --- clients that others wrote --------------------------------------------------------------------------------------


def test_openai_client(server: Live, offline: dict[str, list[Prediction]]) -> None:
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        reply = client.moderations.create(model="multi", input=TEXTS)
        assert sorted(model.id for model in client.models.list()) == sorted(SINGLES + PAIRS)
        assert client.models.retrieve("multi").id == "multi"
        text: Any = {"type": "text", "text": TEXTS[0]}
        part = client.moderations.create(model="multi", input=[text])
        assert part.results[0].flagged == reply.results[0].flagged
        image: Any = {"type": "image_url", "image_url": {"url": "https://pages.example/a.png"}}
        with pytest.raises(openai.BadRequestError, match="item 1 is an image, and tasks read only texts"):
            client.moderations.create(model="multi", input=[image])
        with pytest.raises(openai.NotFoundError) as raised:
            client.moderations.create(model="mutli", input="my card")
        assert "Did you mean 'multi'" in raised.value.message and raised.value.code == "not_found"
        assert raised.value.type == "not_found" and raised.value.param is None
    assert [result.flagged for result in reply.results] == [bool(answer.answer) for answer in offline["multi"]]
    scores = dict(reply.results[0].category_scores.model_dump())
    assert {name: scores[name] for name in offline["multi"][0].scores} == pytest.approx(offline["multi"][0].scores)


def test_hub_client(server: Live, offline: dict[str, list[Prediction]]) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    client = InferenceClient(model=f"{server.url}/models/single")
    scores = {each.label: each.score for each in client.text_classification(TEXTS[0])}
    assert scores == pytest.approx(offline["single"][0].scores, abs=1e-5)
    assert len(client.text_classification(TEXTS[0], top_k=2)) == 2
    with pytest.raises(HfHubHTTPError, match="422"):
        client.text_classification("my card", function_to_apply="sigmoid")


TRITON = """
import sys
import numpy as np
import tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1].removeprefix("http://"))
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("single")
assert client.get_server_metadata()["name"] == "ytuning"
assert client.get_model_metadata("single")["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
texts = np.array([text.encode() for text in sys.argv[2:]], dtype=object)
for binary in (False, True):
    given = http.InferInput("text", [len(texts)], "BYTES")
    given.set_data_from_numpy(texts, binary_data=binary)
    for outputs in (None, [http.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]):
        reply = client.infer("single", [given], outputs=outputs)
        print(*reply.as_numpy("label").tolist())
        assert reply.as_numpy("probabilities").shape == (len(texts), 3)
"""


def test_triton_client(server: Live, offline: dict[str, list[Prediction]]) -> None:
    """In a process of its own: it patches sockets."""
    command = [sys.executable, "-c", TRITON, server.url, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    labels = " ".join(str(answer.answer) for answer in offline["single"])
    assert done.stdout.splitlines() == [labels] * 4


def test_metrics_parse(server: Live) -> None:
    server.post("/predict/single", {"inputs": "my card"})
    families = {each.name: each for each in text_string_to_metric_families(server.client.get("/metrics").text)}
    assert families["ytuning_tasks"].samples[0].value == 7
    counted = {tuple(sample.labels.items()): sample.value for sample in families["ytuning_requests"].samples}
    assert counted[("route", "/predict/{task}"), ("status", "200")] >= 1
    answers = {sample.labels["task"] for sample in families["ytuning_answers"].samples if "task" in sample.labels}
    assert answers == set(SINGLES + PAIRS)


# --- nonsense -------------------------------------------------------------------------------------------------------

PATHS = ("/predict", "/predict/single", "/classify", "/infinity/classify", "/models/single",
         "/classify_many", "/explain", "/v1/moderations",
         "/v2/models/single/infer", "/v2/models/joint/infer")  # fmt: skip
TYPES = ("application/json", "text/plain", "application/octet-stream", "multipart/form-data; boundary=x", "", "\xff")


def nonsense(chooser: random.Random) -> bytes:
    """A body: like a right one but for some of its values, or no JSON at all."""
    texts: list[Any] = [
        "my card",
        "",
        " ",
        "a\0b",
        "\ud800",
        "\ud83d\ude00",
        "é" * 50,
        "[CLS]",
        "card " * 500,
        "\u202e",
    ]
    odd: list[Any] = [None, True, -1, 10**400, 1e308, float("nan"), float("inf"), {}, [], [[]], [None], {"a": []}]

    def some(depth: int = 0) -> Any:
        kind = chooser.random()
        if kind < 0.5:
            return chooser.choice(texts)
        if kind < 0.75 or depth > 3:
            return chooser.choice(odd)
        return [some(depth + 1) for _ in range(chooser.randint(0, 4))]

    fields = ["inputs", "input", "task", "tasks", "model", "truncate", "raw_scores", "id", "outputs", "parameters"]
    body: Any = {name: some() for name in fields if chooser.random() < 0.4}
    if chooser.random() < 0.6:
        body |= {"task": "single", "model": "multi"}
    if chooser.random() < 0.5:
        row = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], "parameters": None}
        row |= {chooser.choice(list(row)): some()}
        body["inputs"] = [row] * chooser.randint(0, 2)
    whole = json.dumps(body, ensure_ascii=True).encode()
    way = chooser.randrange(8)
    if way == 0:
        return whole[: chooser.randrange(len(whole))]
    if way == 1:
        place = chooser.randrange(len(whole))
        return whole[:place] + chooser.choice([b"\xff", b"\0", b"\xed\xa0\x80", b'"']) + whole[place:]
    if way == 2:
        depth = chooser.choice([10, 1_000, 100_000])
        return b'{"inputs":' + chooser.choice([b"[", b'{"a":']) * depth
    if way == 3:
        return chooser.choice([b"", b"null", b"[]", b'"a"', b"9" * 5_000, b"1e999", chooser.randbytes(50)])
    return whole


def test_nonsense_never_fails_the_server(server: Live) -> None:
    chooser = random.Random(0)
    seen: dict[int, int] = {}
    for number in range(FUZZ):
        body, path = nonsense(chooser), chooser.choice(PATHS)
        headers = {b"content-type": chooser.choices(TYPES, [8, 1, 1, 1, 1, 1])[0].encode("latin-1")}
        if chooser.random() < 0.1:
            headers[b"inference-header-content-length"] = chooser.choice([b"0", b"5", b"x", b"\xb2", b"99999999999999"])
        reply = server.client.post(path, content=body, headers=headers)
        seen[reply.status_code] = seen.get(reply.status_code, 0) + 1
        assert reply.status_code < 500, (number, path, headers, body[:300], reply.text)
        if reply.status_code != 200:
            assert "error" in reply.json() and "Traceback" not in reply.text
    print(f"{FUZZ:,} bodies: {seen}")
    assert seen[200] and seen[422] and seen[400]
    assert server.post("/predict/single", {"inputs": "my card"}).status_code == 200


def test_the_openapi_document_holds(server: Live) -> None:
    """Requests that it allows, and some that it does not, are answered without a 5xx and as it says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import schemathesis
        from hypothesis import HealthCheck, Phase, given
        from hypothesis import settings as sought
        from schemathesis.checks import not_a_server_error

        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        asked: set[str] = set()
        for result in schema.get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]

            def check(case: Any) -> None:
                asked.add(case.operation.path)
                case.call_and_validate(checks=[not_a_server_error])

            few = sought(
                max_examples=10,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            few(given(case=operation.as_strategy())(check))()
    assert {"/predict", "/classify", "/v2/models/{model}/infer", "/explain"} <= asked
    assert httpx.get(f"{server.url}/health").status_code == 200

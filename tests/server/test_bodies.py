"""Bodies that are no JSON objects, and paths and methods that no route takes, are refused in words."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.serving import Live, live, settings, until

JSON = "application/json"
BODY = b'{"inputs": "my card"}'
KEY = "k" * 20


@pytest.fixture(scope="module")
def server(served_tasks: Path) -> Iterator[Live]:
    with live(settings(served_tasks / "single", served_tasks / "multi")) as server:
        yield server


# --- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (BODY, None, "the body has no content type. Send the header 'content-type: application/json'"),
        (BODY, "text/plain", "the body has the content type 'text/plain', which is not JSON. Send the header"),
        (BODY, "text/json", "the body has the content type 'text/json', which is not JSON"),
        (BODY, "application/x-www-form-urlencoded", "With curl, add -H 'content-type: application/json'"),
        (BODY, "\xff", "which is not JSON"),
        (BODY, f"{JSON}; charset=latin-1", "has the charset 'latin-1', but JSON is read as UTF-8"),
        (BODY, f"{JSON}; charset=nothing", "has the charset 'nothing', but JSON is read as UTF-8"),
        (b"", None, "the body is empty. Send a JSON object"),
        (b" \n", JSON, "the body is empty. Send a JSON object"),
        (b'["my card"]', JSON, "the body is a list, not a JSON object"),
        (b'"my card"', JSON, "the body is a text, not a JSON object"),
        (b"null", JSON, "the body is null, not a JSON object"),
        (b"5", JSON, "the body is a number, not a JSON object"),
        (b'{"inputs": "a"', JSON, "the body is not valid JSON (Expecting ',' delimiter, line 1, column 15)"),
        (b'{"inputs": NaN}', JSON, "the body is not valid JSON: NaN is no number of JSON"),
        (b'{"inputs": "a", "more": -Infinity}', JSON, "the body is not valid JSON: -Infinity is no number"),
        (b'{"inputs": "a", "inputs": "b"}', JSON, "the body has the name 'inputs' twice in one object"),
        (b'{"inputs": "a", "more": {"b": 1, "b": 1}}', JSON, "the body has the name 'b' twice in one object"),
        (b'{"inputs": "\xe9"}', JSON, "the body is not UTF-8 (byte 13). Send JSON in UTF-8"),
        ('{"inputs": "é"}'.encode("utf-16"), JSON, "the body is not UTF-8 (byte 1)"),
        (b'{"inputs": ' + b"[" * 100_000, JSON, "nested too deeply"),
        (b'{"inputs": ' + b"9" * 5_000 + b"}", JSON, "a number with too many digits"),
    ],
)
@pytest.mark.parametrize("path", ["/predict/single", "/classify", "/v1/moderations"])
def test_bodies_that_are_no_json_objects(
    path: str, content: bytes, kind: str | None, message: str, server: Live
) -> None:
    headers = {} if kind is None else {b"content-type": kind.encode("latin-1")}
    reply = server.client.post(path, content=content, headers=headers)
    error = reply.json()["error"]
    assert message in (error if path.startswith("/predict") else error["message"])
    unread = content == BODY
    assert reply.status_code == (415 if unread else 422 if path.startswith("/predict") else 400)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(BODY, "Application/JSON; charset=UTF-8"), (BODY, "application/vnd.texts+json"), (b"\xef\xbb\xbf" + BODY, JSON),
     (BODY, f'{JSON}; charset="utf8"'), (BODY, f"{JSON}; charset=us-ascii")],
)  # fmt: skip
def test_bodies_that_are_json(content: bytes, kind: str, server: Live) -> None:
    reply = server.client.post("/predict/single", content=content, headers={"content-type": kind})
    assert reply.status_code == 200
    parts = iter([content[:5], content[5:]])
    assert server.client.post("/predict/single", content=parts, headers={"content-type": kind}).json() == reply.json()


@pytest.mark.parametrize("path", ["/predict/single", "/v1/moderations", "/v2/models/single/infer"])
def test_compressed_bodies(path: str, server: Live) -> None:
    headers = {"content-type": JSON, "content-encoding": "gzip"}
    reply = server.client.post(path, content=gzip.compress(BODY), headers=headers)
    assert reply.status_code == 415 and reply.headers["accept-encoding"] == "identity"
    assert "has the content-encoding 'gzip', which is not read. Send it uncompressed" in reply.text
    as_it_is = server.client.post("/predict/single", content=BODY, headers={**headers, "content-encoding": "identity"})
    assert as_it_is.status_code == 200


@pytest.mark.parametrize("path", ["/predict/single", "/v2/models/single/infer"])
def test_a_client_that_goes_before_the_end_of_its_body(path: str, server: Live) -> None:
    route = path.replace("single", "{task}" if path.startswith("/predict") else "{model}")
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", path)
    connection.putheader("content-type", JSON)
    connection.putheader("content-length", "100")
    connection.endheaders(b"{")
    connection.close()
    until(lambda: server.metric("requests_total", route=route, status="499"))


def test_the_json_of_v2_is_read_alike(server: Live) -> None:
    """Its clients send no content type, or that of binary values."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["my card"]}
    content = json.dumps({"inputs": [tensor]}).encode()
    for body in (content, b"\xef\xbb\xbf" + content):
        assert server.client.post("/v2/models/single/infer", content=body).status_code == 200
    for body, message in (
        (b'{"id": "a", "id": "b"}', "'id' twice"),
        (b"[]", "is a list"),
        (b"", "is empty"),
        (b'{"id": NaN}', "NaN"),
    ):
        reply = server.client.post("/v2/models/single/infer", content=body)
        assert reply.status_code == 400 and message in reply.json()["error"]


# --- paths and methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/metrics", "/info", "/v1/models", "/v1/models/single", "/page/app.js", "/openapi.json", "/v2",
     "/v2/health/live", "/infinity/health"],
)  # fmt: skip
def test_get_head_and_options(path: str, server: Live) -> None:
    got, head = server.client.get(path), server.client.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert head.content == b"" and head.headers["content-type"] == got.headers["content-type"]
    options = server.client.options(path)
    assert options.status_code == 204 and options.headers["allow"] == "GET, HEAD, OPTIONS"
    refused = server.client.delete(path)
    assert refused.status_code == 405 and refused.headers["allow"] == "GET, HEAD, OPTIONS"
    assert "takes GET or HEAD, not 'DELETE'" in refused.text


@pytest.mark.parametrize(
    "path", ["/predict", "/classify", "/v1/moderations", "/admin/reload", "/v2/models/single/infer"]
)
def test_methods_of_paths_that_take_bodies(path: str, server: Live) -> None:
    for method, status in (("GET", 405), ("HEAD", 405), ("PUT", 405), ("OPTIONS", 204)):
        reply = server.client.request(method, path)
        assert reply.status_code == status and reply.headers["allow"] == "POST, OPTIONS"


def test_options_of_a_path_with_both_and_of_the_server(server: Live) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    for target in ("/models/single", "*"):
        connection.request("OPTIONS", target)
        reply = connection.getresponse()
        assert reply.status == 204 and reply.headers["allow"] == "GET, HEAD, POST, OPTIONS"
        reply.read()
    connection.close()


@pytest.mark.parametrize(
    ("path", "near"),
    [("/helth", "'/health'"), ("/moderations", "'/v1/moderations'"), ("/v1/v1/moderations", "'/v1/moderations'"),
     ("/v1/model", "'/v1/models'"), ("/predicts", "'/predict'"),
     ("/v2/models/single/inferr", "'/v2/models/{model}/infer'")],
)  # fmt: skip
def test_unknown_paths_name_the_nearest(path: str, near: str, server: Live) -> None:
    reply = server.client.post(path, json={})
    error = reply.json()["error"]
    message = error["message"] if path.startswith("/v1") else error
    assert reply.status_code == 404 and f"Did you mean {near}" in message and "GET /openapi.json" in message
    assert server.client.head(path).status_code == server.client.options(path).status_code == 404


@pytest.mark.parametrize("path", ["/predict/single/", "/v1/models/", "/health/", "/v2/", "/openapi.json/"])
def test_slashes_at_the_end(path: str, server: Live) -> None:
    method = "POST" if path.startswith("/predict") else "GET"
    content = BODY if method == "POST" else None
    reply = server.client.request(method, path, content=content, headers={"content-type": JSON})
    assert reply.status_code == 200 and not reply.history


def test_slashes_at_the_end_open_nothing(served_tasks: Path) -> None:
    with live(settings(served_tasks / "single", keys=(KEY,))) as server:
        for path in ("/info", "/info/", "/info//", "/v1/models/", "/health/../info", "/page/../info"):
            assert server.client.get(path).status_code in (401, 404)
            assert server.client.head(path).status_code in (401, 404)
        assert server.client.get("/info/").status_code == 401


def test_a_connection_is_used_again_after_refusals(server: Live) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    sent = [("POST", "/predict/single", b"[", 422), ("POST", "/nothing", BODY, 404), ("PUT", "/predict", BODY, 405),
            ("HEAD", "/predict", None, 405), ("POST", "/classify", b"\xff", 400), ("OPTIONS", "/predict", BODY, 204),
            ("POST", "/predict/singel", BODY, 404), ("POST", "/predict/single", BODY, 200)]  # fmt: skip
    sockets = set()
    for method, path, body, status in sent:
        connection.request(method, path, body, {"content-type": JSON})
        reply = connection.getresponse()
        reply.read()
        assert reply.status == status, (method, path)
        assert connection.sock is not None, "the server has closed the connection"
        sockets.add(connection.sock.getsockname())
    connection.close()
    assert len(sockets) == 1

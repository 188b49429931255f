"""What every request passes: keys, sizes, time, origins, headers, logs, paths."""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.serving import Live, held_catalog, live, settings
from ytuning.errors import InputError
from ytuning.server.catalog import Catalog, Changes
from ytuning.server.middleware import USE_KEYS, read_keys
from ytuning.server.service import Settings

USE, ADMIN = "u" * 20, "a" * 20
BODY = {"inputs": "my card"}
PAGE = "https://pages.example"


@pytest.fixture(scope="module")
def task(served_tasks: Path) -> Path:
    return served_tasks / "single"


@pytest.fixture(scope="module")
def locked(task: Path) -> Iterator[Live]:
    with live(settings(task, keys=(USE,), admin_keys=(ADMIN,), origins=(PAGE,), body_bytes=1000)) as server:
        yield server


@pytest.fixture(scope="module")
def unlocked(task: Path) -> Iterator[Live]:
    with live(settings(task)) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "use", "admin"),
    [
        ({}, 401, 401),
        (bearer("x" * 20), 401, 401),
        ({"authorization": "Bearer"}, 401, 401),
        ({"authorization": USE}, 401, 401),
        ({"authorization": f"Basic {USE}"}, 401, 401),
        (bearer(USE), 200, 403),
        ({"authorization": f"bearer  {USE}"}, 200, 403),
        (bearer(ADMIN), 200, 200),
    ],
)
def test_keys(headers: dict[str, str], use: int, admin: int, locked: Live) -> None:
    asked = locked.post("/predict", BODY, **headers)
    assert asked.status_code == use
    assert locked.client.get("/metrics", headers=headers).status_code == use
    assert locked.client.get("/nothing", headers=headers).status_code == (404 if use == 200 else use)
    assert locked.client.post("/admin/reload", headers=headers).status_code == admin
    assert ("www-authenticate" in asked.headers) == (use == 401)


@pytest.mark.parametrize("path", ["/", "/health", "/v2/health/live", "/v2/health/ready", "/openapi.json"])
def test_open_paths_need_no_key(path: str, locked: Live) -> None:
    assert locked.client.get(path).status_code == 200


def test_keys_of_administrators_alone(task: Path) -> None:
    with live(settings(task, admin_keys=(ADMIN,))) as server:
        assert server.post("/predict", BODY).status_code == 200
        assert server.client.post("/admin/reload").status_code == 401
        assert server.client.post("/admin/reload", headers=bearer(ADMIN)).status_code == 200


def test_reading_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# those of clients\n\n  {USE}\n{ADMIN}\n{USE}\n")
    assert read_keys(None, USE_KEYS, "--keys") == ()
    assert read_keys(file, USE_KEYS, "--keys") == (USE, ADMIN)
    monkeypatch.setenv(USE_KEYS, f"{'e' * 16}, {USE}")
    assert read_keys(file, USE_KEYS, "--keys") == ("e" * 16, USE, ADMIN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing\n", "has no key. Write one per line"),
        (b"k" * 15, "at least 16 ASCII characters"),
        (b"k" * 16 + b" k", "without spaces"),
        ("é".encode() * 16, "at least 16 ASCII characters"),
        (b"\xff" * 16, r"cannot read the keys in .*keys: .*Check --keys\.$"),
        (None, r"cannot read the keys in .*keys: .*Check --keys\.$"),
    ],
)
def test_keys_that_cannot_be_used(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_keys(tmp_path / "keys", USE_KEYS, "--keys")
    assert "kkkk" not in str(raised.value)


def test_settings_survive_the_environment_and_show_no_key() -> None:
    given = settings(Path("tasks"), keys=(USE,), admin_keys=(ADMIN,), origins=(PAGE,))
    assert Settings.from_environment(given.to_environment()) == given
    assert USE not in repr(given) and ADMIN not in repr(given)


# --- sizes and time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/predict", "/v1/moderations", "/v2/models/single/infer"])
def test_large_bodies(path: str, chunked: bool, locked: Live) -> None:
    body = json.dumps({"inputs": "card " * 1000}).encode()
    content = (body[place : place + 500] for place in range(0, len(body), 500)) if chunked else body
    headers = {**bearer(USE), "content-type": "application/json"}
    reply = locked.client.post(path, content=content, headers=headers)
    assert reply.status_code == 413
    message = "a request may have 1,000 bytes. Send fewer texts at a time."
    openai = {"message": message, "type": "too_large", "param": None, "code": "too_large"}
    assert reply.json()["error"] == (openai if path.startswith("/v1") else message)
    assert locked.post("/predict", BODY, **bearer(USE)).status_code == 200


def test_a_request_that_takes_too_long(task: Path) -> None:
    catalog, encoder = held_catalog(task)
    encoder.go.set()
    with live(settings(task, seconds=0.2), catalog) as server:
        encoder.go.clear()
        reply = server.post("/predict", BODY)
        assert reply.status_code == 504 and reply.json()["error_type"] == "timeout"
        assert server.metric("rejected_requests_total", reason="time") == 1
        encoder.go.set()
        assert server.post("/predict", BODY).status_code == 200


def test_a_body_that_never_comes(task: Path) -> None:
    with live(settings(task, seconds=0.2)) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/predict")
        connection.putheader("content-length", "10")
        connection.endheaders(b"{")
        assert connection.getresponse().status == 504
        connection.close()


# --- origins, headers, paths ----------------------------------------------------------------------------------------


def test_pages_of_other_origins_read_nothing_unless_allowed(unlocked: Live, locked: Live) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    closed = unlocked.client.options("/predict", headers=asked)
    assert closed.status_code == 204 and closed.headers["allow"] == "POST, OPTIONS"
    for reply in (closed, unlocked.post("/predict", BODY, origin=PAGE)):
        assert not [name for name in reply.headers if name.startswith("access-control")]
    preflight = locked.client.options("/predict", headers=asked)  # a browser sends no key with it
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == PAGE
    assert locked.client.options("/predict", headers={**asked, "origin": "https://evil.example"}).status_code == 400
    for key, status in ((USE, 200), ("x" * 20, 401)):  # a page sees refusals, too
        reply = locked.post("/predict", BODY, origin=PAGE, **bearer(key))
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, PAGE)


@pytest.mark.parametrize("path", ["/", "/health", "/nothing", "/predict", "/v2/models/nothing"])
def test_headers_of_every_reply(path: str, locked: Live) -> None:
    headers = locked.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["referrer-policy"] == "no-referrer" and len(headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "path",
    ["/page/../service.py", "/page/..%2fservice.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/app.py",
     "/page/..%5capp.py", "/page/%00", "/page/", "/../../etc/passwd"],
)  # fmt: skip
def test_paths_reach_no_file(path: str, unlocked: Live) -> None:
    connection = http.client.HTTPConnection(unlocked.url.removeprefix("http://"), timeout=30)
    connection.request("GET", path)  # as it stands: other clients tidy it up
    reply = connection.getresponse()
    assert reply.status == 404 and b"import" not in reply.read()
    connection.close()


# --- logs and mistakes ----------------------------------------------------------------------------------------------


def test_neither_logs_nor_replies_tell_too_much(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    catalog, encoder = held_catalog(task)
    encoder.go.set()
    with live(settings(task, keys=(USE,)), catalog) as server:
        secret = "verysecret"
        client = httpx.Client(base_url=server.url, headers=bearer(USE))
        assert client.post("/predict", json={"inputs": secret}).status_code == 200
        assert client.post("/predict", json={"inputs": [secret, secret, secret]}).status_code == 422
        assert client.post(f"/predict/{secret}", json=BODY).status_code == 404
        invalid = client.post("/predict", json={"inputs": {"text": secret}})
        assert invalid.status_code == 422 and secret not in invalid.text
        encoder.poison = secret
        failed = client.post("/predict", json={"inputs": secret})
        assert failed.status_code == 424 and failed.json()["error"] == "the text could not be computed"
        client.close()
    own = [record.getMessage() for record in caplog.records if record.name == "ytuning.server"]
    assert [json.loads(line)["kind"] for line in own if '"failed"' in line] == ["RuntimeError"]
    assert any('"request"' in line for line in own)
    told = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert secret not in told and USE not in told


def test_a_mistake_of_the_server_is_no_traceback(task: Path) -> None:
    class BrokenCatalog(Catalog):
        def reload(self) -> Changes:
            raise AttributeError("NoneType")

    with live(settings(task), BrokenCatalog([task])) as server:
        reply = server.client.post("/admin/reload")
        assert reply.status_code == 500 and reply.json()["error_type"] == "internal"
        assert "Traceback" not in reply.text and "NoneType" not in reply.text and reply.headers["x-request-id"]
        assert server.client.get("/health").status_code == 200

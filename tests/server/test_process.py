"""``ytuning serve`` as a process: signals, ports, mistakes told in a line, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.server.serving import PATIENCE, Process, free_port, settings, until
from ytuning.errors import EncoderError, InputError, TaskFolderError, YTuningError
from ytuning.server.app import check_exposure, serve
from ytuning.server.service import Settings

BODY = {"inputs": "my card", "task": "single"}


def refused(*arguments: str | Path) -> str:
    """What a server that cannot start says: one line."""
    with Process(*arguments) as process:
        assert process.wait() == 2
        (line,) = process.lines
    assert line.startswith("error: ")
    return line


def test_sigterm_under_load_answers_what_was_accepted(served_tasks: Path) -> None:
    with Process(served_tasks) as process:
        process.ready()
        statuses: list[int] = []
        broken: list[Exception] = []

        def ask(worker: int) -> None:
            with httpx.Client(base_url=process.url, timeout=PATIENCE) as client:
                for number in range(100_000):
                    text = f"my card {worker} {number} " * 20
                    try:
                        statuses.append(client.post("/predict", json={**BODY, "inputs": text}).status_code)
                    except httpx.ConnectError:
                        return  # the port is closed
                    except httpx.TransportError as error:
                        broken.append(error)
                        return

        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(statuses) > 40)
        status = process.end()
        for thread in threads:
            thread.join(PATIENCE)
    events = [json.loads(line) for line in process.lines]
    logged = [event for event in events if event["event"] == "request" and event["route"] == "/predict"]
    assert status == 0
    assert events[-1]["event"] == "stopped"
    assert set(statuses) == {200}
    assert {event["status"] for event in logged} == {200}
    # A kept connection may be closed in the moment in which a client writes to it; what the server read, it answered.
    assert len(logged) == len(statuses), broken


BROKEN = """
import sys
from ytuning.server.app import serve
from ytuning.server.service import Settings
from ytuning.tasks.shared_encoder import SharedEncoder

def broken(*_, **__):
    raise RuntimeError("no memory")

SharedEncoder.read = broken
serve(Settings(folders=(sys.argv[1],), port=0))
"""


def test_a_server_whose_first_answer_fails_ends_with_status_1(served_tasks: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN, str(served_tasks / "single")], capture_output=True, text=True)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1 and "cannot start" in [event["event"] for event in events], done.stderr


def test_interrupted_it_ends_with_status_0(served_tasks: Path) -> None:
    with Process(served_tasks / "single") as process:
        assert process.ready().end(signal.SIGINT) == 0
        assert all(json.loads(line) for line in process.lines)


def test_killed_and_started_again_on_the_same_port(served_tasks: Path) -> None:
    port = free_port()
    with Process(served_tasks / "single", port=port) as process:
        process.ready()
        with httpx.Client(base_url=process.url) as client:  # a connection that is open when it dies
            assert client.post("/predict", json=BODY).status_code == 200
            assert process.end(signal.SIGKILL) == -signal.SIGKILL
    with Process(served_tasks / "single", port=port) as process:
        assert httpx.post(f"{process.ready().url}/predict", json=BODY).status_code == 200


def test_any_free_port_is_told(served_tasks: Path) -> None:
    with Process(served_tasks / "single", port=0) as process:
        until(lambda: process.lines)
        told = json.loads(process.lines[0])
        assert told["event"] == "listening" and told["port"] > 0
        process.url = f"http://127.0.0.1:{told['port']}"
        process.ready()


def test_a_port_that_is_taken(served_tasks: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = rf"^cannot listen on 127\.0\.0\.1, port {port}: Address already in use\. Choose another --host or"
        with pytest.raises(InputError, match=message):
            serve(settings(served_tasks / "single", port=port))


def test_two_processes_answer(served_tasks: Path) -> None:
    with Process(served_tasks / "single", "--workers", "2") as process:
        process.ready()
        until(lambda: sum('"ready"' in line for line in process.lines) == 2)
        for _ in range(10):
            reply = httpx.post(f"{process.url}/predict", json=BODY, timeout=PATIENCE)
            assert reply.status_code == 200 and len(reply.json()) == 3
        assert process.end() == 0
    assert sum('"stopped"' in line for line in process.lines) == 2


def test_a_folder_that_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    assert "there is no task folder" in refused(tmp_path / "nothing")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_served_is_told_before_it_listens(served_tasks: Path, tmp_path: Path, workers: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    shutil.copytree(served_tasks / "single", tmp_path / "some" / "single")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Settings, type[YTuningError], str]] = [
        (settings(served_tasks, tmp_path / "some"), InputError, "two task folders are named 'single'"),
        (settings(tmp_path / "empty"), InputError, "there is no task folder in"),
        (settings(tmp_path / "nothing"), InputError, "there is no task folder"),
        (settings(served_tasks, encoder=str(tmp_path / "nothing")), EncoderError, "there is no encoder folder"),
        (settings(served_tasks, host="0.0.0.0"), InputError, "other machines can reach the server on 0.0.0.0"),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=message):
            serve(given, workers=workers)
    os.truncate(tmp_path / "some" / "single" / "head.safetensors", 100)
    with pytest.raises(TaskFolderError, match=r"head\.safetensors is damaged"):
        serve(settings(tmp_path / "some"), workers=workers)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    check_exposure(settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_exposure_is_refused(host: str) -> None:
    check_exposure(settings(host=host, keys=("k" * 16,)))
    for admin in ((), ("a" * 16,)):  # administrators' keys alone leave the tasks to everybody
        with pytest.raises(InputError, match="so it needs keys"):
            check_exposure(settings(host=host, admin_keys=admin))


def test_without_the_extra(served_tasks: Path) -> None:
    hidden = "import sys; sys.modules['fastapi'] = None; from ytuning.cli import main; main()"
    command = [sys.executable, "-c", hidden, "serve", str(served_tasks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "ytuning[server]" in done.stderr and done.stderr.count("\n") == 1


def test_watched_folders(served_tasks: Path, tmp_path: Path) -> None:
    shutil.copytree(served_tasks / "single", tmp_path / "single")

    def appear(task: str, name: str) -> None:
        """At once: a folder that is half copied when the server looks is rightly refused."""
        with tempfile.TemporaryDirectory(dir=tmp_path.parent) as beside:
            shutil.copytree(served_tasks / task, Path(beside) / name).rename(tmp_path / name)

    with Process(tmp_path, "--watch", "0.05") as process:
        process.ready()
        appear("multi", "new")
        until(lambda: httpx.get(f"{process.url}/v2/models/new/ready").status_code == 200)
        (tmp_path.parent / "deep.json").write_text("[" * 100_000)  # deeper than Python's parser goes
        (tmp_path.parent / "deep.json").replace(tmp_path / "new" / "task.json")
        until(lambda: any('"refused": {"' in line for line in process.lines))
        appear("number", "newer")  # it still looks
        until(lambda: httpx.get(f"{process.url}/v2/models/newer/ready").status_code == 200)
        assert httpx.get(f"{process.url}/v2/models/new/ready").status_code == 200
        time.sleep(0.2)
        assert process.end() == 0
    assert sum('"refused": {"' in line for line in process.lines) == 1  # told once

"""The examples in ``deploy/`` name options, paths and ports that the server has."""

from __future__ import annotations

import ast
import asyncio
import importlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from typer.main import get_command

from tests.server.serving import settings
from ytuning.cli import app
from ytuning.server.app import GRACE, create_app
from ytuning.server.service import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of the manifest by kind."""
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert len({document["kind"] for document in documents}) == len(documents) == 5
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> Any:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (container,) = pod["containers"]
    return container


def options_of_serve() -> set[str]:
    command: Any = get_command(app)
    return {name for parameter in command.commands["serve"].params for name in parameter.opts}


def value_of(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_the_manifest_starts_the_server_with_options_that_it_has(container: Any) -> None:
    arguments = container["args"]
    assert all(isinstance(argument, str) for argument in arguments)
    used = {argument for argument in arguments if argument.startswith("--")}
    assert used and used <= options_of_serve()
    # The image gives the address and the port.
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert entry is not None
    words = ast.literal_eval(entry[1])
    assert words[:2] == ["ytuning", "serve"] and value_of(words, "--host") == "0.0.0.0"
    assert {word for word in words if word.startswith("--")} <= options_of_serve() - used
    assert value_of(words, "--port") == str(container["ports"][0]["containerPort"])


def test_probes_ask_paths_that_need_no_key(container: Any, objects: dict[str, Any]) -> None:
    async def statuses(paths: set[str]) -> dict[str, int]:
        transport = httpx.ASGITransport(create_app(settings(keys=("k" * 16,))))
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
            return {path: (await client.get(path)).status_code for path in paths}

    asked = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    # No task has been loaded, so the server lives but is not ready.
    answered = asyncio.run(statuses({probe["path"] for probe in asked.values()}))
    assert [answered[probe["path"]] for probe in asked.values()] == [503, 503, 200]
    (port,) = container["ports"]
    assert {probe["port"] for probe in asked.values()} == {port["name"]}
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_a_pod_has_time_to_drain_and_to_answer(container: Any, pod: Any) -> None:
    drain, timeout = (float(value_of(container["args"], option)) for option in ("--drain", "--timeout"))
    assert pod["terminationGracePeriodSeconds"] > drain + timeout + GRACE
    # The Service forgets a pod while it still answers.
    readiness = container["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < drain


def test_the_tasks_are_mounted_read_only(container: Any, pod: Any, objects: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    claim = volumes["tasks"]["persistentVolumeClaim"]
    assert claim["claimName"] == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert objects["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["readOnly"] and mounts["tasks"]["readOnly"]
    assert mounts["tasks"]["mountPath"] == container["args"][0]
    assert Path(value_of(container["args"], "--keys")).parent == Path(mounts["keys"]["mountPath"])


def test_all_objects_are_about_the_same_pods(objects: dict[str, Any], container: Any) -> None:
    deployment = objects["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    scaler = objects["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["scaleTargetRef"]["kind"] == "Deployment"
    assert 2 <= deployment["spec"]["replicas"] == scaler["minReplicas"] <= scaler["maxReplicas"]
    # The autoscaler measures the processor against what was requested.
    assert container["resources"]["requests"]["cpu"]


def test_nginx_fits_the_limits_of_the_server() -> None:
    given = (DEPLOY / "nginx.conf").read_text()
    (body,) = re.findall(r"^\s*client_max_body_size (\d+)m;", given, re.MULTILINE)
    (kept,) = re.findall(r"^\s*keepalive_timeout (\d+)s;", given, re.MULTILINE)
    (read,) = re.findall(r"^\s*proxy_read_timeout (\d+)s;", given, re.MULTILINE)
    assert int(body) * 2**20 > Settings(()).body_bytes
    assert int(read) > Settings(()).seconds + GRACE - 1
    assert int(kept) < 30


def test_the_file_for_ray_serve_compiles() -> None:
    source = (DEPLOY / "ray_serve.py").read_text()
    compile(source, "ray_serve.py", "exec")
    # What it takes from ytuning is there.
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ytuning"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)

"""An object store for the tests of folders: moto's server, which speaks S3, on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MakeFolder = Callable[[], str]


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The address of a server that speaks S3."""
    server = pytest.importorskip("moto.server", reason="moto comes with: pip install 'ytuning[dev]'")
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"{host}:{port}"
    served.stop()


@pytest.fixture
def store_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that the object store accepts, for this process and those that it starts."""
    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)


def bucket_address(object_store: str, bucket: str, path: str) -> str:
    """An address in a bucket of the object store, which is made."""
    import boto3

    client: Any = boto3.client("s3", endpoint_url=f"http://{object_store}", region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/{path}?endpoint_override={object_store}&scheme=http&region=us-east-1"


@pytest.fixture(params=["disk", "s3"])
def make_folder(request: pytest.FixtureRequest, tmp_path: Path) -> MakeFolder:
    """Makes empty folders, on the disk or in the object store."""
    count = 0

    def make() -> str:
        nonlocal count
        count += 1
        if request.param == "disk":
            return str(tmp_path / f"folder{count}")
        request.getfixturevalue("store_keys")
        bucket = f"bucket-{os.urandom(6).hex()}"
        return bucket_address(request.getfixturevalue("object_store"), bucket, f"folder{count}")

    return make

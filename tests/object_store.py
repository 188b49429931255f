"""An object store for tests: moto's server, which speaks S3, on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["MakeFolder", "new_address"]

MakeFolder = Callable[[], str]


def new_address(object_store: str) -> str:
    """The address of an empty folder in a new bucket of the object store at a host and port."""
    import boto3

    bucket = f"bucket-{os.urandom(6).hex()}"
    client: Any = boto3.client("s3", endpoint_url=f"http://{object_store}", region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/folder?endpoint_override={object_store}&scheme=http&region=us-east-1"

"""ytuning's own application under Ray Serve, for those who run KubeRay. See docs/serving.md, "Ray Serve".

    pip install 'ray[serve]==2.60.0'
    serve run deploy.ray_serve:build tasks=/srv/ytuning/tasks replicas=2

Keys come from $YTUNING_API_KEYS, as for ``ytuning serve``.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from ytuning.errors import InputError
from ytuning.server.app import create_app
from ytuning.server.catalog import Catalog
from ytuning.server.middleware import USE_KEYS, read_keys
from ytuning.server.service import Settings


def build(arguments: dict[str, str]) -> serve.Application:
    """The application of ``serve run``: ``tasks`` is a folder that every node can read, ``replicas`` a number.

    Raises:
        InputError: there is no folder of tasks.
    """
    if "tasks" not in arguments:
        raise InputError("there is no folder of tasks. Give it after the application: tasks=/srv/ytuning/tasks")

    def application() -> Any:
        settings = Settings(folders=(arguments["tasks"],), keys=read_keys(None, USE_KEYS, "--keys"))
        catalog = Catalog(settings.folders)
        # Ray sends no requests to a replica before this function returns.
        catalog.open()
        return create_app(settings, catalog)

    replica = serve.deployment(
        serve.ingress(application)(),
        name="ytuning",
        num_replicas=int(arguments.get("replicas", "2")),
        # Ray's default is 5, which leaves nothing to put into batches.
        max_ongoing_requests=64,
    )
    return replica.bind()

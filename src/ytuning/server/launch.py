"""Starts the server: one process, or several that listen on one port."""

from __future__ import annotations

import os

import uvicorn

from ytuning.artifact import load_task
from ytuning.errors import InputError
from ytuning.server.app import SETTINGS, create_app
from ytuning.server.catalog import Catalog
from ytuning.server.settings import ADMIN_KEYS, USE_KEYS, Settings, is_loopback
from ytuning.server.telemetry import log, log_to_stderr

__all__ = ["check_exposure", "serve"]

GRACE = 5  # seconds beyond those that a request may take


def serve(settings: Settings, *, workers: int = 1) -> None:
    """Serve until SIGTERM or Ctrl-C; what has been accepted by then is answered.

    Args:
        settings: of the server.
        workers: processes, each with its own encoder.

    Raises:
        InputError: everybody could use it; no task; two tasks of one name.
        TaskFolderError, EncoderError: a task or its encoder cannot be loaded.
    """
    check_exposure(settings)
    log_to_stderr()
    log("listening", host=settings.host, port=settings.port, workers=workers)
    options = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": int(settings.seconds) + GRACE,
        "timeout_keep_alive": 30,
    }
    if workers == 1:
        catalog = Catalog(settings.folders, encoder=settings.encoder)
        catalog.open()  # before it listens, so that a mistake is told and not logged
        uvicorn.run(create_app(settings, catalog), **options)  # type: ignore[arg-type]
        return
    for folder in Catalog(settings.folders).folders():
        load_task(folder)
    os.environ[SETTINGS] = settings.to_environment()
    uvicorn.run("ytuning.server.app:from_environment", factory=True, workers=workers, **options)  # type: ignore[arg-type]


def check_exposure(settings: Settings) -> None:
    """Refuse to be reachable from other machines without keys.

    Raises:
        InputError: it would be.
    """
    if not settings.keys and not settings.admin_keys and not is_loopback(settings.host):
        raise InputError(
            f"on {settings.host} other machines reach the server, so it needs keys: give --keys FILE or set "
            f"{USE_KEYS}, and for reloading --admin-keys FILE or {ADMIN_KEYS}. On 127.0.0.1 it needs none"
        )

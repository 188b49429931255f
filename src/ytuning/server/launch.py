"""Starts the server: one process, or several that listen on one port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

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
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "ws": "none",  # there is none to speak to
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": int(settings.seconds) + GRACE,
        "timeout_keep_alive": 30,
    }
    catalog = Catalog(settings.folders, encoder=settings.encoder)
    with _exit_on_signals():
        catalog.open()  # before it listens, so that a mistake is told and not logged
        with _open_socket(settings) as listening:
            log_to_stderr()
            log("listening", host=settings.host, port=listening.getsockname()[1], workers=workers)
            if workers == 1:
                config = uvicorn.Config(create_app(settings, catalog), **options)
                uvicorn.Server(config).run(sockets=[listening])
                return
            options["port"] = listening.getsockname()[1]
        del catalog  # each process has its own, and its own share of the port
        os.environ[SETTINGS] = settings.to_environment()
        uvicorn.run("ytuning.server.app:from_environment", factory=True, workers=workers, **options)


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the process with status 0; uvicorn raises them once more when all is answered."""

    def leave(*_: object) -> None:
        raise SystemExit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_socket(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        why = os.strerror(error.errno) if isinstance(error.errno, int) and error.errno > 0 else str(error)
        where = f"{settings.host}, port {settings.port}"
        raise InputError(f"cannot listen on {where}: {why}. Choose another --host or --port.") from error


def check_exposure(settings: Settings) -> None:
    """Refuse to be reachable from other machines without keys.

    Raises:
        InputError: it would be.
    """
    if not settings.keys and not is_loopback(settings.host):
        raise InputError(
            f"other machines can reach the server on {settings.host}, so it needs keys. Use --keys FILE or {USE_KEYS}, "
            f"and --admin-keys FILE or {ADMIN_KEYS} for reloading. On 127.0.0.1 it needs no keys."
        )

"""``ytuning serve``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ytuning.cli.options import MovedEncoder
from ytuning.system.versions import require

__all__ = ["serve"]

LISTEN = partial(typer.Option, rich_help_panel="Server")
ACCESS = partial(typer.Option, rich_help_panel="Access")
LIMITS = partial(typer.Option, rich_help_panel="Limits")


def serve(
    folders: Annotated[
        list[Path], typer.Argument(metavar="TASK_DIR...", help="Task folders, or folders that contain task folders.")
    ],
    host: Annotated[
        str,
        LISTEN(
            "--host", metavar="ADDRESS", help="Address to listen on. An address that other machines reach needs keys."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, LISTEN("--port", metavar="N", min=0, max=65535, help="Port to listen on. 0 takes any free port.")
    ] = 8000,
    workers: Annotated[
        int, LISTEN("--workers", metavar="N", min=1, max=64, help="Number of processes. Each loads the encoder.")
    ] = 1,
    watch: Annotated[
        float,
        LISTEN(
            "--watch",
            metavar="SECONDS",
            min=0,
            help="Time between checks for changed task folders. With 0 only POST /admin/reload checks them.",
        ),
    ] = 2.0,
    encoder: MovedEncoder = None,
    keys: Annotated[
        Path | None,
        ACCESS(
            "--keys",
            metavar="FILE",
            help="File of client keys, one per line. Keys in $YTUNING_API_KEYS are accepted, too.",
            show_default="none",
        ),
    ] = None,
    admin_keys: Annotated[
        Path | None,
        ACCESS(
            "--admin-keys",
            metavar="FILE",
            help="File of administrator keys, one per line. Keys in $YTUNING_ADMIN_KEYS are accepted, too.",
            show_default="none",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        ACCESS(
            "--cors",
            metavar="ORIGIN",
            help="Origin whose web pages may read replies. Repeat the option for more.",
            show_default="none",
        ),
    ] = None,
    batch_tokens: Annotated[
        int, LIMITS("--batch-tokens", metavar="N", min=1, help="Maximum number of tokens in a batch.")
    ] = 16_384,
    queue_tokens: Annotated[
        int,
        LIMITS(
            "--queue-tokens",
            metavar="N",
            min=1,
            help="Maximum number of waiting tokens. Requests beyond it are refused with status 429.",
        ),
    ] = 65_536,
    most_requests: Annotated[
        int,
        LIMITS(
            "--most-requests",
            metavar="N",
            min=1,
            help="Maximum number of requests at a time. Requests beyond it are refused with status 429.",
        ),
    ] = 512,
    most_texts: Annotated[
        int, LIMITS("--most-texts", metavar="N", min=1, help="Maximum number of texts in a request.")
    ] = 1_000,
    timeout: Annotated[
        float, LIMITS("--timeout", metavar="SECONDS", min=0.1, help="Maximum time that a request may take.")
    ] = 30.0,
) -> None:
    """Serve many tasks over HTTP and on a web page. Each distinct text is encoded once for all tasks."""
    for package in ("fastapi", "prometheus_client", "pydantic", "uvicorn"):
        require(package, "server")
    from ytuning.server.launch import serve as start
    from ytuning.server.settings import ADMIN_KEYS, USE_KEYS, Settings, read_keys

    settings = Settings(
        folders=tuple(map(str, folders)),
        encoder=encoder,
        host=host,
        port=port,
        keys=read_keys(keys, USE_KEYS, "--keys"),
        admin_keys=read_keys(admin_keys, ADMIN_KEYS, "--admin-keys"),
        origins=tuple(cors or ()),
        watch=watch,
        batch_tokens=batch_tokens,
        queue_tokens=queue_tokens,
        requests=most_requests,
        texts=most_texts,
        seconds=timeout,
    )
    start(settings, workers=workers)

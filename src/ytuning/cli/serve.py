"""``ytuning serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ytuning.system.versions import require

__all__ = ["serve"]


def serve(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="TASK_DIR [TASK_DIR ...]", help="Task folders, or a folder that holds task folders."),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than loopback need keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Processes, each with an encoder of its own.")
    ] = 1,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="File of clients' keys, one a line; also $YTUNING_API_KEYS.")
    ] = None,
    admin_keys: Annotated[
        Path | None, typer.Option("--admin-keys", help="File of administrators' keys; also $YTUNING_ADMIN_KEYS.")
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option("--cors", metavar="ORIGIN", help="Pages of this origin may read replies; again for more."),
    ] = None,
    watch: Annotated[
        float,
        typer.Option("--watch", min=0, help="Seconds between looks at the task folders; 0: only POST /admin/reload."),
    ] = 2.0,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Of a batch, at most.")] = 16_384,
    queue_tokens: Annotated[
        int, typer.Option("--queue-tokens", min=1, help="That wait, at most; requests beyond are refused (429).")
    ] = 65_536,
    most_requests: Annotated[
        int, typer.Option("--most-requests", min=1, help="Being answered at a time; requests beyond are refused (429).")
    ] = 512,
    most_texts: Annotated[int, typer.Option("--most-texts", min=1, help="Of a request.")] = 1_000,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that a request may take.")] = 30.0,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Folder or name of the encoder, if it has moved since the training.")
    ] = None,
) -> None:
    """Answer for many tasks over HTTP, at the price of one encoder pass for each distinct text; a page is at /."""
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

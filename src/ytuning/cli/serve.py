"""``ytuning serve``: answer for tasks over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ytuning.cli.options import CascadeShare, MovedEncoder, help_group
from ytuning.errors import InputError
from ytuning.system.machine import require

__all__ = ["serve"]

LISTEN, ACCESS, LIMITS, FALLBACK = map(help_group, ("Server", "Access", "Limits", "Decisions"))


def serve(
    folders: Annotated[
        list[Path], typer.Argument(metavar="TASK_DIR...", help="Task folders, or folders that contain task folders.")
    ],
    host: Annotated[
        str, LISTEN("ADDRESS", "Address to listen on. An address that other machines reach needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, LISTEN("N", "Port to listen on. 0 takes any free port.", min=0, max=65535)] = 8000,
    workers: Annotated[int, LISTEN("N", "Number of processes. Each loads the encoder.", min=1, max=64)] = 1,
    watch: Annotated[
        float,
        LISTEN(
            "SECONDS",
            "Time between checks for changed task folders. With 0 only POST /admin/reload checks them.",
            min=0,
        ),
    ] = 2.0,
    encoder: MovedEncoder = None,
    cascade: CascadeShare = None,
    keys: Annotated[
        Path | None,
        ACCESS("FILE", "File of client keys, one per line. Keys in $YTUNING_API_KEYS are accepted, too.", "none"),
    ] = None,
    admin_keys: Annotated[
        Path | None,
        ACCESS(
            "FILE", "File of administrator keys, one per line. Keys in $YTUNING_ADMIN_KEYS are accepted, too.", "none"
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        ACCESS("ORIGIN", "Origin whose web pages may read replies. Repeat the option for more.", "none"),
    ] = None,
    batch_tokens: Annotated[int, LIMITS("N", "Maximum number of tokens in a batch.", min=1)] = 16_384,
    queue_tokens: Annotated[
        int, LIMITS("N", "Maximum number of waiting tokens. Requests beyond it are refused with status 429.", min=1)
    ] = 65_536,
    most_requests: Annotated[
        int, LIMITS("N", "Maximum number of requests at a time. Requests beyond it are refused with status 429.", min=1)
    ] = 512,
    most_texts: Annotated[int, LIMITS("N", "Maximum number of texts in a request.", min=1)] = 1_000,
    timeout: Annotated[float, LIMITS("SECONDS", "Maximum time that a request may take.", min=0.1)] = 30.0,
    drain: Annotated[
        float,
        LIMITS(
            "SECONDS",
            "Time after SIGTERM in which the server still answers, but /health says 503, so that balancers move on.",
            min=0,
        ),
    ] = 0.0,
    fallback: Annotated[
        str | None,
        FALLBACK(
            "URL",
            "Address of a server with the same routes. Questions to /v1/decisions and /v1/systemone that no task "
            "answers are sent to it.",
            "none",
        ),
    ] = None,
    fallback_key: Annotated[
        Path | None,
        FALLBACK(
            "FILE", "File with the key for the fallback server. $YTUNING_FALLBACK_KEY can hold it instead.", "none"
        ),
    ] = None,
    fallback_timeout: Annotated[
        float | None, FALLBACK("SECONDS", "Maximum time that the fallback server may take.", "10", min=0.1)
    ] = None,
) -> None:
    """Serve many tasks over HTTP and on a web page. Each distinct text is encoded once for all tasks."""
    for package in ("fastapi", "httpx", "prometheus_client", "pydantic", "uvicorn"):
        require(package, "server")
    from ytuning.server.app import serve as start
    from ytuning.server.decisions.fallback import check_url, read_key
    from ytuning.server.middleware import ADMIN_KEYS, USE_KEYS, read_keys
    from ytuning.server.service import Settings

    if fallback is None and fallback_key is not None:
        raise InputError("--fallback-key is for --fallback. Give both or leave out --fallback-key.")
    if fallback is None and fallback_timeout is not None:
        raise InputError("--fallback-timeout is for --fallback. Give both or leave out --fallback-timeout.")
    settings = Settings(
        folders=tuple(map(str, folders)),
        encoder=encoder,
        cascade=cascade,
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
        drain=drain,
        fallback=None if fallback is None else check_url(fallback),
        fallback_key=None if fallback is None else read_key(fallback_key),
        fallback_seconds=10.0 if fallback_timeout is None else fallback_timeout,
    )
    start(settings, workers=workers)

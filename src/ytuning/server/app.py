"""The application, which loads and watches the tasks and words refusals, and the processes that it runs in."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

import ytuning
from ytuning.data.labels import did_you_mean, quote
from ytuning.errors import InputError, YTuningError
from ytuning.server.batching import Batcher, Refused
from ytuning.server.catalog import Catalog
from ytuning.server.connections import WholeReplies, drain_on_sigterm
from ytuning.server.decisions.fallback import Fallback
from ytuning.server.middleware import ADMIN_KEYS, USE_KEYS, Gate
from ytuning.server.refusals import describe_errors, refusal
from ytuning.server.routes import router
from ytuning.server.schemas import InferRequest
from ytuning.server.service import Service, Settings
from ytuning.server.telemetry import Telemetry, log, log_to_stderr

__all__ = ["check_exposure", "create_app", "from_environment", "serve"]

SETTINGS = "YTUNING_SERVER_SETTINGS"
# When it stops, the server waits for replies this number of seconds longer than a request may take.
GRACE = 5
PAGE = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
WARM_TEXT = "warm up"
# A signal ends a server that cannot start, and this tells it apart from one that is asked to stop.
CANNOT_START = threading.Event()


def create_app(settings: Settings, catalog: Catalog | None = None) -> Any:
    """An ASGI application.

    Args:
        settings: settings of the server.
        catalog: default: of the settings' folders. Unless it has been opened already, it is opened while the
            application starts, which answers 503 until then.
    """
    telemetry = Telemetry()
    batcher = Batcher(settings.batch_tokens, settings.queue_tokens, telemetry)
    catalog = catalog or Catalog(settings.folders, encoder=settings.encoder, cascade=settings.cascade)
    service = Service(settings, catalog, batcher, telemetry, _fallback_of(settings, telemetry))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        # Another program that runs this application in a thread handles signals itself.
        if settings.drain and threading.current_thread() is threading.main_thread():
            drain_on_sigterm(service)
        background = asyncio.create_task(_load_and_watch(service))
        try:
            yield
        finally:
            background.cancel()
            await asyncio.to_thread(batcher.stop)
            if service.fallback is not None:
                await service.fallback.close()
            log("stopped")

    app = FastAPI(
        title="ytuning",
        version=ytuning.__version__,
        description="Text classifiers on frozen encoders: many tasks from one encoder pass. "
        "The header x-truncated-inputs of a reply lists the inputs, counted from 0, that were too long and were cut.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(router)
    _add_page(app)
    _add_handlers(app)
    _add_infer_schema(app)
    gate = Gate(app, settings, telemetry, draining=lambda: service.draining)
    if not settings.origins:
        return gate
    # CORS lies around the gate, because a browser asks without a key first, and pages should see refusals too.
    return CORSMiddleware(
        gate,
        allow_origins=list(settings.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
        expose_headers=["retry-after", "x-request-id", "x-truncated-inputs"],
    )


def _fallback_of(settings: Settings, telemetry: Telemetry) -> Fallback | None:
    if settings.fallback is None:
        return None
    return Fallback(
        settings.fallback,
        telemetry,
        key=settings.fallback_key,
        seconds=settings.fallback_seconds,
        failures=settings.fallback_failures,
        pause=settings.fallback_pause,
    )


async def _load_and_watch(service: Service) -> None:
    """Load the tasks and let every encoder and head compute once; only then is the server ready. Then watch them."""
    catalog = service.catalog
    try:
        if not catalog.tasks:
            await asyncio.to_thread(catalog.open)
        for pairs in (False, True):
            if tasks := service.tasks_for(pairs=pairs):
                await service.batcher.answer([(WARM_TEXT, WARM_TEXT if pairs else None)], tasks)
    except Exception as error:
        reason = str(error) if isinstance(error, YTuningError | Refused) else type(error).__name__
        log("cannot start", error=reason, level=logging.ERROR)
        CANNOT_START.set()
        os.kill(os.getpid(), signal.SIGTERM)
        return
    service.ready = True
    service.show_tasks()
    for note in catalog.notes:
        log("cascade", note=note, level=logging.WARNING)
    log("ready", tasks=len(catalog.tasks))
    while service.settings.watch:
        await asyncio.sleep(service.settings.watch)
        try:
            service.tell(await asyncio.to_thread(catalog.reload))
        except Exception as error:
            # The server survives any error and looks again later.
            log("cannot look at the task folders", kind=type(error).__name__, level=logging.ERROR)


def _add_page(app: FastAPI) -> None:
    folder = importlib.resources.files("ytuning.server") / "page"
    content = {name: (folder / name).read_bytes() for name in PAGE}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(content["index.html"], media_type="text/html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        # Only names known beforehand are served, so no path of a request reaches the file system.
        if name not in content:
            raise Refused(404, "not_found", "there is no such file. The page is at /.")
        return Response(content[name], media_type=PAGE[name])


def _add_handlers(app: FastAPI) -> None:
    def reply(request: Request, status: int, kind: str, message: str, headers: Any = None) -> JSONResponse:
        status, body = refusal(request.url.path, status, kind, message)
        return JSONResponse(body, status, headers)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: Any) -> JSONResponse:
        return reply(request, 422, "validation", describe_errors(error.errors(), request.url.path))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        """Answer a path or a method that no route takes."""
        path = str(request.scope["path"])
        # With * a client asks for what the server can do at all.
        methods = ["GET", "HEAD", "POST"] if path == "*" else _methods_of(app, request)
        allow = {"allow": ", ".join([*methods, "OPTIONS"])}
        if request.method == "OPTIONS" and methods:
            return Response(status_code=204, headers=allow)
        if error.status_code not in (404, 405):
            return reply(request, error.status_code, "error", f"{error.detail}.", error.headers)
        if methods:
            message = f"{quote(path)} takes {' or '.join(methods)}, not {quote(request.method)}."
            return reply(request, 405, "method_not_allowed", message, allow)
        near = did_you_mean(path, [*app.openapi()["paths"]])
        message = f"there is no path {quote(path)}.{near} GET /openapi.json describes all of them."
        return reply(request, 404, "not_found", message)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return reply(request, error.status, error.kind, str(error), error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        message = "the server failed. Its log has the error under the value of the header x-request-id."
        # uvicorn closes the connection after an exception, so the client must not send another request on it.
        return reply(request, 500, "internal", message, {"connection": "close"})


def _methods_of(app: FastAPI, request: Request) -> list[str]:
    """The methods that a path takes, beside OPTIONS."""

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in app.routes)

    return (["GET", "HEAD"] if takes("GET") else []) + (["POST"] if takes("POST") else [])


def _add_infer_schema(app: FastAPI) -> None:
    """The body of v2's infer, which is read by hand, in the OpenAPI document."""
    default = app.openapi

    def openapi() -> dict[str, Any]:
        document = default()
        infer = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, schema in {**infer.pop("$defs"), "InferRequest": infer}.items():
            document["components"]["schemas"].setdefault(name, schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


# --- processes --------------------------------------------------------------------------------------------------------


def serve(settings: Settings, *, workers: int = 1) -> None:
    """Serve until SIGTERM or Ctrl-C; what has been accepted by then is answered.

    Args:
        settings: settings of the server.
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
        "http": WholeReplies,
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": int(settings.seconds) + GRACE,
        "timeout_keep_alive": 30,
    }
    catalog = Catalog(settings.folders, encoder=settings.encoder, cascade=settings.cascade)
    with _exit_on_signals():
        # The tasks are loaded before the server listens, so that a mistake is printed and not logged.
        catalog.open()
        with _open_socket(settings) as listening:
            log_to_stderr()
            log("listening", host=settings.host, port=listening.getsockname()[1], workers=workers)
            if workers == 1:
                config = uvicorn.Config(create_app(settings, catalog), **options)
                uvicorn.Server(config).run(sockets=[listening])
                return
            options["port"] = listening.getsockname()[1]
        # Each process loads its own tasks and has its own share of the port.
        del catalog
        os.environ[SETTINGS] = settings.to_environment()
        uvicorn.run("ytuning.server.app:from_environment", factory=True, workers=workers, **options)


def from_environment() -> Any:
    """The application of a process of ``--workers``."""
    log_to_stderr()
    return create_app(Settings.from_environment(os.environ[SETTINGS]))


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the process with status 0; uvicorn raises them once more when all is answered.

    A server that could not start ends in the same way, with status 1.
    """

    def leave(*_: object) -> None:
        raise SystemExit(int(CANNOT_START.is_set()))

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
        InputError: the server would be reachable.
    """
    # A host that is a name and no address raises ValueError.
    with contextlib.suppress(ValueError):
        if settings.keys or settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback:
            return
    raise InputError(
        f"other machines can reach the server on {settings.host}, so it needs keys. Use --keys FILE or {USE_KEYS}, "
        f"and --admin-keys FILE or {ADMIN_KEYS} for reloading. On 127.0.0.1 it needs no keys."
    )

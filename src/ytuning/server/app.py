"""The application: it loads, warms up and watches the tasks, answers requests and words its refusals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import logging
import math
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

import ytuning
from ytuning.errors import YTuningError
from ytuning.server.batching import Batcher, Overloaded, Stopped, Unanswered
from ytuning.server.catalog import Catalog
from ytuning.server.middleware import Gate, error_body
from ytuning.server.payloads import BadTensor
from ytuning.server.routes import routes
from ytuning.server.schemas import InferRequest
from ytuning.server.service import ClientGone, NotReady, Refused, Service
from ytuning.server.settings import Settings
from ytuning.server.telemetry import Telemetry, log

__all__ = ["SETTINGS", "create_app", "from_environment"]

SETTINGS = "YTUNING_SERVER_SETTINGS"
KINDS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}
PAGE = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
WARM_TEXT = "warm up"


def create_app(settings: Settings, catalog: Catalog | None = None) -> Any:
    """An ASGI application.

    Args:
        settings: of the server.
        catalog: opened already; default: it is opened while the application starts, which answers 503 until then.
    """
    telemetry = Telemetry()
    batcher = Batcher(settings.batch_tokens, settings.queue_tokens, telemetry)
    service = Service(settings, catalog or Catalog(settings.folders, encoder=settings.encoder), batcher, telemetry)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        starting = asyncio.create_task(_start(service, opened=catalog is not None))
        watching = asyncio.create_task(_watch(service)) if settings.watch else None
        try:
            yield
        finally:
            for each in (starting, watching):
                if each is not None:
                    each.cancel()
            await asyncio.to_thread(batcher.stop)
            log("stopped")

    app = FastAPI(
        title="ytuning",
        version=ytuning.__version__,
        description="Text classifiers on frozen encoders: many tasks from one encoder pass.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(routes(service))
    _add_page(app)
    _add_handlers(app)
    _add_infer_schema(app)
    answering: Any = Gate(app, settings, telemetry)
    if settings.origins:  # around the gate: a browser asks without a key first, and pages should see refusals, too
        answering = CORSMiddleware(
            answering,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after", "x-request-id", "x-truncated-inputs"],
        )
    answering.service = service  # for tests
    return answering


def from_environment() -> Any:
    """The application of a process of ``--workers``."""
    from ytuning.server.telemetry import log_to_stderr

    log_to_stderr()
    return create_app(Settings.from_environment(os.environ[SETTINGS]))


async def _start(service: Service, *, opened: bool) -> None:
    """Load the tasks and let every encoder and head compute once; only then is the server ready."""
    try:
        if not opened:
            await asyncio.to_thread(service.catalog.open)
        await _warm(service)
    except Exception as error:
        told = str(error) if isinstance(error, YTuningError | Unanswered) else type(error).__name__
        log("cannot start", error=told, level=logging.ERROR)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    service.ready = True
    service.telemetry.tasks.set(len(service.catalog.tasks))
    log("ready", tasks=len(service.catalog.tasks))


async def _warm(service: Service) -> None:
    tasks = list(service.catalog.tasks.values())
    for pairs in (False, True):
        some = [served for served in tasks if bool(served.task.pair_mode) == pairs]
        if some:
            await service.batcher.answer([(WARM_TEXT, WARM_TEXT if pairs else None)], some)


async def _watch(service: Service) -> None:
    """Look at the folders again and again."""
    while True:
        await asyncio.sleep(service.settings.watch)
        if service.ready:
            try:
                service.tell(await asyncio.to_thread(service.catalog.reload))
            except Exception as error:  # whatever it is, it looks again
                log("cannot look at the task folders", kind=type(error).__name__, level=logging.ERROR)


def _add_page(app: FastAPI) -> None:
    files = importlib.resources.files("ytuning.server") / "page"
    content = {name: (files / name).read_bytes() for name in PAGE if (files / name).is_file()}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(content.get("index.html", b"ytuning"), media_type="text/html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in content:  # the names are known beforehand: no path reaches the file system
            raise HTTPException(404, "there is no such file. The page is at /.")
        return Response(content[name], media_type=PAGE[name])


def _add_handlers(app: FastAPI) -> None:
    def reply(request: Request, status: int, kind: str, message: str, **headers: str) -> JSONResponse:
        return JSONResponse(error_body(request.url.path, kind, message), status, headers or None)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: Any) -> JSONResponse:
        status = 400 if request.url.path.startswith("/v2") else 422
        return reply(request, status, "validation", _describe_errors(error.errors(), request.url.path))

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> JSONResponse:
        headers = {key: value for key, value in (error.headers or {}).items()}
        return reply(request, error.status_code, KINDS.get(error.status_code, "error"), str(error.detail), **headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return reply(request, error.status, error.kind, str(error))

    @app.exception_handler(BadTensor)
    async def bad_tensor(request: Request, error: BadTensor) -> JSONResponse:
        return reply(request, 400, "validation", str(error))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        return reply(request, 429, "overloaded", str(error), **{"retry-after": str(math.ceil(error.retry_after))})

    @app.exception_handler(NotReady)
    async def not_ready(request: Request, error: NotReady) -> JSONResponse:
        return reply(request, 503, "unavailable", "the tasks are still loading. Try again in a moment.")

    @app.exception_handler(Stopped)
    async def stopped(request: Request, error: Stopped) -> JSONResponse:
        return reply(
            request, 503, "unavailable", "the server is stopping. Send the request to another one or try again later."
        )

    @app.exception_handler(Unanswered)
    async def unanswered(request: Request, error: Unanswered) -> JSONResponse:
        return reply(request, 424, "backend", str(error))

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> JSONResponse:
        return reply(request, 499, "client_gone", "the client closed the connection.")

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return reply(
            request,
            500,
            "internal",
            "the server failed. Its log has the error under the value of the header x-request-id.",
        )


def _describe_errors(errors: list[Any], path: str) -> str:
    """The first error that pydantic found, without the value, which may be a private text."""
    if not errors:
        return f"the body is not valid for {path}. See /openapi.json."
    first = errors[0]
    if first.get("type") == "json_invalid":
        return f"the body is not valid JSON ({first.get('ctx', {}).get('error', 'it cannot be read')})."
    place = ".".join(str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path"))
    return f"{place or 'the body'}: {first.get('msg', 'is not valid')}. See /openapi.json for the fields of {path}."


def _add_infer_schema(app: FastAPI) -> None:
    """The body of v2's infer, which is read by hand, in the OpenAPI document."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        schemas = document["components"]["schemas"]
        if "InferRequest" not in schemas:
            whole = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, schema in whole.pop("$defs", {}).items():
                schemas.setdefault(name, schema)
            schemas["InferRequest"] = whole
        return document

    app.openapi = openapi  # type: ignore[method-assign]

"""Bodies of requests: JSON objects in UTF-8; all else is refused in words that name the way out."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Coroutine, Mapping
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from ytuning.data.labels import quote
from ytuning.server.batching import Refused
from ytuning.server.texts import kind_of

__all__ = ["JsonRoute", "read_body", "read_object"]

HEADER = "the header 'content-type: application/json'"


class JsonRoute(APIRoute):
    """A route whose body, where it takes one, is read here. FastAPI then only checks the fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that reads the body before the inherited one does."""
        handler, takes_body = super().get_route_handler(), self.body_field is not None

        async def handle(request: Request) -> Response:
            if not takes_body:
                return await handler(request)
            content = await read_body(request)
            if content:
                check_content_type(request.headers)
            return await handler(_ReadRequest(request, content, read_object(content)))

        return handle


class _ReadRequest(Request):
    """A request whose body has been read."""

    def __init__(self, request: Request, content: bytes, fields: dict[str, Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._content, self._fields = content, fields

    async def body(self) -> bytes:
        return self._content

    async def json(self) -> Any:
        return self._fields


async def read_body(request: Request) -> bytes:
    """The bytes of a body that was sent as it is.

    Raises:
        Refused: it was compressed, or the client has closed the connection before its end.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    try:
        content = await request.body()
    except ClientDisconnect:
        raise Refused(499, "client_gone", "the client closed the connection.") from None
    if encoding not in ("", "identity"):
        message = f"the body has the content-encoding {quote(encoding)}, which is not read. Send it uncompressed."
        raise Refused(415, "unsupported_media_type", message, {"accept-encoding": "identity"})
    return content


def check_content_type(headers: Mapping[str, str]) -> None:
    """Whether a body is said to be JSON, in UTF-8 or without a charset.

    A type that a web page may send to any server without asking it first is refused, however well the body reads.

    Raises:
        Refused: it is not.
    """
    given = headers.get("content-type", "").strip()
    if not given:
        raise Refused(415, "unsupported_media_type", f"the body has no content type. Send {HEADER}.")
    parsed = Message()
    parsed["content-type"] = given
    kind, subtype = given.split(";")[0].strip().lower(), parsed.get_content_subtype()
    if not kind.startswith("application/") or not (subtype == "json" or subtype.endswith("+json")):
        hint = " With curl, add -H 'content-type: application/json'." if "urlencoded" in kind else ""
        message = f"the body has the content type {quote(kind)}, which is not JSON. Send {HEADER}.{hint}"
        raise Refused(415, "unsupported_media_type", message)
    charset = parsed.get_content_charset("utf-8")
    try:
        known = codecs.lookup(charset).name in ("utf-8", "utf-8-sig", "ascii")
    except (LookupError, ValueError):
        known = False
    if not known:
        message = f"the body has the charset {quote(charset)}, but JSON is read as UTF-8. Send it as UTF-8."
        raise Refused(415, "unsupported_media_type", message)


def read_object(content: bytes) -> dict[str, Any]:
    """Read a JSON object; a byte order mark before it is left out.

    Raises:
        Refused: the body is empty, not UTF-8, not JSON, or no object; a name is in an object twice.
    """
    if not content.strip():
        raise _invalid("the body is empty. Send a JSON object.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not UTF-8 (byte {error.start + 1}). Send JSON in UTF-8.") from None
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _invalid(f"the body is not valid JSON ({error.msg}, {where}).") from None
    except RecursionError:
        raise _invalid("the body is not valid JSON here (its values are nested too deeply).") from None
    except ValueError:
        # Python reads no whole number with thousands of digits.
        raise _invalid("the body contains a number with too many digits.") from None
    if not isinstance(value, dict):
        raise _invalid(f"the body is {kind_of(value)}, not a JSON object. Send the fields of the request as an object.")
    return value


def _invalid(message: str) -> Refused:
    return Refused(422, "validation", message)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _invalid(f"the body has the name {quote(repeated)} twice in one object. Leave one out.")
    return fields


def _refuse_constant(name: str) -> Any:
    raise _invalid(f"the body is not valid JSON: {name} is no number of JSON. Use null or leave it out.")

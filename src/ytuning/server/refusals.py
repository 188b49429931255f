"""How a refusal is worded in the protocol of its path."""

from __future__ import annotations

from typing import Any

__all__ = ["describe_errors", "refusal"]


def _speaks_openai(path: str) -> bool:
    """Whether a path belongs to OpenAI's API or to a server whose errors have the same form (vLLM, infinity)."""
    return path == "/classify" or path.startswith(("/v1/", "/infinity/"))


def refusal(path: str, status: int, kind: str, message: str) -> tuple[int, dict[str, Any]]:
    """Status and body of a refusal, in the form of OpenAI, of the Open Inference Protocol, or else of
    text-embeddings-inference.

    OpenAI, vLLM and the Open Inference Protocol answer 400 to a body that does not fit, the others 422.
    """
    # Lone surrogates are escaped, because no reply can hold them.
    message = message.encode("utf-8", "backslashreplace").decode()
    openai, v2 = _speaks_openai(path), path == "/v2" or path.startswith("/v2/")
    if status == 422 and (openai or v2) and not path.startswith("/infinity/"):
        status = 400
    if openai:
        return status, {"error": {"message": message, "type": kind, "param": None, "code": kind}}
    return status, {"error": message} if v2 else {"error": message, "error_type": kind}


def describe_errors(errors: list[Any], path: str) -> str:
    """The first error that pydantic found, without the value, which may be a private text."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    # Checks that this package wrote itself are whole sentences already.
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{first['msg']}."
    return f"{field or 'the body'}: {said} See /openapi.json for the fields of {path}."

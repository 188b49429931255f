"""The texts of a request: which JSON values are texts, and what is said of those that are not."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["SingleTexts", "TextsOrPairs", "check_parts", "kind_of"]


def kind_of(value: Any) -> str:
    """A JSON value that is in the wrong place, in words; never the value itself, which may be private."""
    kinds = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    return kinds.get(type(value), "a list" if isinstance(value, list) else "an object")


def _check_texts(value: Any) -> Any:
    """A text or a list of texts.

    Raises:
        ValueError: it is neither. The item at fault is named.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"it must be a text or a list of texts. Got {kind_of(value)} instead.")
    for number, item in enumerate(value, 1):
        if not isinstance(item, str):
            hint = " Pairs of texts go to /predict, /classify_many or /v2." if isinstance(item, list) else ""
            raise ValueError(f"item {number} is {kind_of(item)}, not a text.{hint}")
    return value


def _check_texts_or_pairs(value: Any) -> Any:
    """A text, a list of texts, or a list of lists of texts.

    Raises:
        ValueError: it is none of them. The item at fault is named.
    """
    if not isinstance(value, list) or not any(isinstance(item, list) for item in value):
        return _check_texts(value)
    for number, item in enumerate(value, 1):
        if not isinstance(item, list):
            raise ValueError(f"item {number} is {kind_of(item)}, but others are lists. Use texts or lists, not both.")
        for text in item:
            if not isinstance(text, str):
                raise ValueError(f"item {number} contains {kind_of(text)} where a text must be.")
    return value


def check_parts(value: Any) -> Any:
    """A text, a list of texts, or a list of parts that are texts.

    Raises:
        ValueError: it is none of them. The item at fault is named.
    """
    if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
        return _check_texts(value)
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise ValueError(f"item {number} is {kind_of(item)}, but others are parts. Use texts or parts, not both.")
        if item.get("type") == "image_url":
            raise ValueError(f"item {number} is an image, and tasks read only texts. Leave it out.")
        if item.get("type") != "text" or not isinstance(item.get("text"), str):
            raise ValueError(f'item {number} must be {{"type": "text", "text": "..."}}, and its text a text.')
    return value


SingleTexts = Annotated[str | list[str], BeforeValidator(_check_texts)]
TextsOrPairs = Annotated[str | list[str] | list[list[str]], BeforeValidator(_check_texts_or_pairs)]

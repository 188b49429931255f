"""Label names, their ids and their readable texts; and how a message shows a value or a name that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ytuning.errors import InputError

__all__ = ["Kind", "LabelSet", "alike_but_for_case", "did_you_mean", "list_names", "quote"]

Kind = Literal["single", "ordinal", "multi", "regression"]

SHOWN_CHARACTERS = 60
LISTED_NAMES = 12
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def quote(value: object) -> str:
    """A value as a message shows it: its ``repr`` on one line, cut to 60 characters."""
    try:
        text = repr(value).replace("\n", " ")
    except (RecursionError, ValueError):
        # Python does not write integers of thousands of digits or deeply nested lists.
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def list_names(names: Sequence[str]) -> str:
    """Names as a message lists them: all of a few, the first of many with their number."""
    text = ", ".join(quote(name) for name in names[:LISTED_NAMES]) or "none"
    return text if len(names) <= LISTED_NAMES else f"{text}, ... ({len(names)} in all)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'label'?"`` with up to three known names spelt much like ``name``, or an empty text."""
    # The name is cut, because the comparison is quadratic and a wrong column can make whole documents into names.
    close = difflib.get_close_matches(name[:SHOWN_CHARACTERS], known)
    return f" Did you mean {' or '.join(quote(other) for other in close)}?" if close else ""


def alike_but_for_case(names: Iterable[str]) -> list[list[str]]:
    """Different names that are one when case is ignored, each such group sorted."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(name.casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True)
class LabelSet:
    """The labels of one task; a label's id is its place in ``names``.

    Attributes:
        names: the names, at least one, all different, none empty.

    Raises:
        InputError: the names are not so.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("a label set needs at least one label name. Got none.")
        if not all(isinstance(name, str) and name for name in self.names):
            wrong = next(name for name in self.names if not (isinstance(name, str) and name))
            raise InputError(f"a label name must be text that is not empty. Got {quote(wrong)} instead.")
        if len(self._ids) < len(self.names):
            twice = next(name for i, name in enumerate(self.names) if self._ids[name] != i)
            raise InputError(f"all label names must be different, but {quote(twice)} was given more than once.")

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> LabelSet:
        """The labels that occur in ``labels``, sorted.

        The order is numeric when every label is an integer written as text ("2" before "10"), else that of plain
        strings (by code point, capitals before small letters), so it never depends on the order of the rows.

        Raises:
            InputError: there is no label, or one is empty.
        """
        names = set(labels)
        if all(INTEGER.fullmatch(name) for name in names):
            return cls(tuple(sorted(names, key=lambda name: (int(name), name))))
        return cls(tuple(sorted(names)))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Names in readable form, for an encoder or a table: ``"card_arrival"`` -> ``"card arrival"``."""
        return tuple(" ".join(name.replace("_", " ").split()) or name for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def encode(self, labels: Sequence[str]) -> np.ndarray:
        """Ids of labels.

        Returns:
            (rows,) int64.

        Raises:
            InputError: a label is unknown; the message names it and the ones closest to it.
        """
        try:
            return np.array([self._ids[label] for label in labels], np.int64)
        except KeyError as error:
            name = error.args[0]
        known = f"The {len(self)} known labels are {list_names(self.names)}."
        raise InputError(f"unknown label {quote(name)}.{did_you_mean(name, self.names)} {known}")

"""Label names: the one form of a value that is a label, names that look alike, ids, and names as messages show them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from ytuning.errors import InputError, quantity

__all__ = [
    "Kind", "LabelSet", "describe_alike", "describe_misspelt", "describe_read_as", "did_you_mean", "first_of",
    "label_name", "list_names", "look_alikes", "quote",
]  # fmt: skip

Kind = Literal["single", "ordinal", "multi", "regression"]

SHOWN_CHARACTERS = 60
LISTED_NAMES = 12
# A label of at most FEW_ROWS rows may be a misspelt one of at least MANY_ROWS: they share this part of their letters.
FEW_ROWS, MANY_ROWS, SHORTEST_WORD, ALMOST_ALIKE = 2, 10, 5, 0.88
# More labels of few rows are a long tail and no mistakes, and each of them would be compared with all others.
MOST_RARE = 50
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
# Programs write a whole number that they hold as a float in this form.
WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0)?")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
# Characters without a glyph that say nothing inside a name: soft hyphen, zero-width space, marks of direction, word
# joiner, byte order mark. A zero-width joiner or non-joiner may be part of a word or an emoji.
INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
EDGES = " \u200c\u200d"
# Letters of other scripts that look like Latin ones, and signs that look like ASCII ones.
HOMOGLYPHS = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u051b\u051d\u04bb"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03b9\u03bd\u03bf\u03c1\u03c5\u0131"
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2018\u2019\u02bc\u0060\u00b4\u201c\u201d",
    "ABEKMHOPCTYXIJSaeopcyxijsdqwhABEZHIKMNOPTYXivopui-------'''''\"\"",
)


def label_name(value: object) -> str | None:
    """The one form of a value that is a label; ``None`` for a value that is no label, such as None, NaN or a list.

    True and False are "true" and "false"; a whole number of any type is its digits, so 1, 1.0 and ``Decimal("1.00")``
    are "1"; other numbers are the shortest text of their value. In a text, a run of white space is one space and none
    is kept around it, composed characters stay for decomposed ones (NFC), and characters without a glyph and a pair of
    quotes around the whole are left out. Then "True" and "TRUE" are "true", "False" and "FALSE" are "false", and a
    whole number with ".0" is its digits. All other texts stay: "007", "1e3", "1.10". The form depends on nothing but
    the value. It is empty for a text that has no visible character.
    """
    # Most values are texts, which need no further look.
    if not isinstance(value, str):
        if isinstance(value, np.floating) and math.isfinite(value) and not value.is_integer():
            # A number of 32 bits has fewer digits than the number of 64 bits that it would become.
            value = float(str(value))
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()
    if isinstance(value, str):
        return _name_of_text(str.__str__(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite():
        return str(int(value)) if value == int(value) else format(value.normalize(), "f")
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(float(value))
    return None


@lru_cache(maxsize=4096)
def _name_of_text(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    text = " ".join(text.split()).strip(EDGES)
    while text[:1] in ("'", '"') and text[-1:] == text[:1] and text[0] not in (inside := text[1:-1].strip(EDGES)):
        if not inside:
            break
        text = inside
    if text in ("True", "TRUE", "False", "FALSE"):
        return text.lower()
    whole = WHOLE_NUMBER.fullmatch(text)
    return text if whole is None else "0" if whole[1] == "-0" else whole[1]


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
    return first_of([quote(name) for name in names]) or "none"


def first_of(shown: Sequence[str], most: int = LISTED_NAMES) -> str:
    """Parts with commas between them: all of a few, the first of many with their number."""
    return ", ".join(shown[:most]) + (f", ... ({len(shown)} in all)" if len(shown) > most else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'label'?"`` with up to three known names spelt much like ``name``, or an empty text.

    Where ``name`` looks the same as a known one, the answer tells in which characters it differs.
    """
    known = list(known)
    same = [other for other in known if _appearance(other) == _appearance(name)]
    # The name is cut, because the comparison is quadratic and a wrong column can make whole documents into names.
    close = same or get_close_matches(name[:SHOWN_CHARACTERS], known)
    if not close:
        return ""
    codes = _code_points([name, *same])
    return f" Did you mean {' or '.join(quote(other) for other in close)}?{f' They differ in {codes}.' * bool(codes)}"


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Different names that a person may take for one, each such group sorted.

    Names look alike if they differ in case, in characters without a glyph, in letters of other scripts that look like
    Latin ones, in the form of dashes and quotes, or in punctuation at the end; also if they are one number ("7" and
    "007"), or "true" and "1" or "false" and "0".
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_appearance(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def describe_alike(names: Iterable[str], rows: Mapping[str, int] | None = None) -> str | None:
    """The sentences that tell of names that look alike, and of rows that have them; ``None`` if there are none."""
    groups = look_alikes(names)
    if not groups:
        return None
    shown = [
        quote(name) + (f" (row {rows[name]})" if rows and name in rows else "") for group in groups for name in group
    ]
    codes = ", ".join(dict.fromkeys(signs for group in groups if (signs := _code_points(group))))
    return (
        f"these labels look alike and are different labels: {first_of(shown)}."
        f"{f' They differ in {codes}.' * bool(codes)} Give labels that mean the same one spelling."
    )


def describe_misspelt(counts: Mapping[str, int]) -> str | None:
    """The sentence that tells of names which may be misspelt ones, from rows of each name; ``None`` if there are none.

    Such a name has few rows, and one that is spelt almost alike has many. Names that differ only in digits are none,
    and of more than ``MOST_RARE`` names with few rows none is told.
    """
    rare = {name: count for name, count in counts.items() if count <= FEW_ROWS}
    usual = [name for name, count in counts.items() if count >= MANY_ROWS and len(name) >= SHORTEST_WORD]
    shown = []
    for name, count in rare.items() if len(rare) <= MOST_RARE else ():
        close = get_close_matches(name[:SHOWN_CHARACTERS], usual, 1, ALMOST_ALIKE)
        if close and re.sub(r"\d+", "", name) != re.sub(r"\d+", "", close[0]):
            shown.append(f"{quote(name)} ({quantity(count, 'row')}; {quote(close[0])} has {counts[close[0]]})")
    if not shown:
        return None
    return f"these labels may be misspelt: {first_of(shown)}. Correct them if they are."


def describe_read_as(forms: Mapping[str, str]) -> str:
    """The sentence that tells which texts were read as which names."""
    # Where a text looks like its name, escapes show the difference.
    shown = [
        f"{ascii(text) if unicodedata.normalize('NFC', text) != text else quote(text)} as {quote(name)}"
        for text, name in forms.items()
    ]
    return f"these labels are read in another form: {first_of(shown)}."


def _appearance(name: str) -> str:
    """What a name looks like: equal for names that a person may take for one."""
    text = unicodedata.normalize("NFKC", name).translate(HOMOGLYPHS).casefold()
    text = "".join(
        sign for sign in text if unicodedata.category(sign) not in ("Cc", "Cf") and sign not in "\ufe0e\ufe0f"
    )
    text = " ".join(text.rstrip(" .,;:!?").split()) or text
    text = {"true": "1", "false": "0"}.get(text, text)
    return repr(float(text)) if NUMBER.fullmatch(text) and len(text) <= SHOWN_CHARACTERS else text


def _code_points(names: Sequence[str]) -> str:
    """The characters beyond ASCII that not all of the names hold, with their code points; an empty text without any."""
    shared = set.intersection(*(set(name) for name in names))
    signs = sorted({sign for name in names for sign in name if not sign.isascii()} - shared)
    described = [f"{sign!r} (U+{ord(sign):04X} {unicodedata.name(sign, 'without a name')})" for sign in signs]
    return ", ".join(described[:LISTED_NAMES]) if len(names) > 1 else ""


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

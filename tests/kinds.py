"""Kinds of task by name, with labels that nobody looks at."""

from __future__ import annotations

from typing import Literal

from ytuning.data.kinds import KINDS, Regression, TaskKind

KindName = Literal["single", "ordinal", "multi", "bounded", "unbounded"]
KIND_NAMES: tuple[KindName, ...] = ("single", "ordinal", "multi", "bounded", "unbounded")


def kind_of(name: KindName, labels: int = 3) -> TaskKind:
    """A kind with so many labels, or a scale from 0 to 1."""
    if name in ("bounded", "unbounded"):
        return Regression(0.0, 1.0, bounded=name == "bounded")
    return KINDS[name].from_json({"labels": [f"label-{number}" for number in range(labels)]})  # type: ignore[index]

"""Two trainings of one task, with a default head and with a light one -> one task with both (`tasks/cascade.py`)."""

from __future__ import annotations

from dataclasses import replace

from ytuning.heads.light import LightHead
from ytuning.tasks.cascade import DEFAULT_SHARE, Cascade, confidence_of, differ, fit_cascade_curve
from ytuning.tasks.train import Trained

__all__ = ["add_cascade", "why_no_cascade"]


def why_no_cascade(default: Trained, light: Trained) -> str | None:
    """What keeps two heads of one task from answering the same texts in turn; None if nothing does.

    Raises:
        ValueError: the second head is no light head, or the validation rows differ.
    """
    task, other = default.task, light.task
    if not isinstance(other.head, LightHead):
        raise ValueError("the second training must be that of a light head")
    if (
        task.target != other.target
        or default.judged["validation"].data.inputs != light.judged["validation"].data.inputs
    ):
        raise ValueError("both heads must have the same labels and the same validation rows")
    if task.target.labels is None:
        return "no two heads answer with exactly the same number"
    if task.pair_mode != other.pair_mode:
        return f"the default head reads pairs {task.pair_mode} and the light head {other.pair_mode}"
    if task.codec.name != other.codec.name:
        return f"the default head reads features in {task.codec.name} and the light head in {other.codec.name}"
    return None


def add_cascade(default: Trained, light: Trained) -> tuple[Trained, str]:
    """Put a light head beside the default head of the same task, as far as one text serves both.

    The validation rows count the answers that it changes. They chose both heads, but were new to them.

    Args:
        default: the training whose head the task keeps.
        light: the training of the light head, with the same validation rows.

    Returns:
        The training whose task has both heads, or as it was, and a sentence that says what was found.

    Raises:
        ValueError: the second head is no light head, or the validation rows differ.
    """
    task, other = default.task, light.task
    rows, theirs = default.judged["validation"], light.judged["validation"]
    name = f"task {task.name!r}"
    if reason := why_no_cascade(default, light):
        return default, f"{name}: no cascade, because {reason}"
    assert isinstance(other.head, LightHead)
    answers, quick = (one.calibration.answers(task.target, own.logits) for one, own in ((task, rows), (other, theirs)))
    sure, changed = confidence_of(task.target, other.calibration, quick), differ(task.target, answers, quick)
    curve = fit_cascade_curve(sure, changed)
    cascade = Cascade(other.head, other.calibration, other.states, curve, scope=other.scope)
    sentence = f"{name}: in a cascade at {DEFAULT_SHARE:.0%}, measured on the validation set, "
    sentence += cascade.sentence(DEFAULT_SHARE)
    return replace(default, task=replace(task, cascade=cascade)), sentence

"""A label more for a trained task: a row for it among the label rows, everything else as it was.

The head maps the examples and, as far as they were kept with the task, texts of the old labels into its label space.
There the new row is a logistic regression of the new label against the old ones, whose rows stay as they are. So it
takes a moment, and an old label can only lose texts that the new one takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ytuning.data.kinds import TaskKind
from ytuning.data.labels import shown
from ytuning.errors import InputError
from ytuning.features.features import Features
from ytuning.heads.pooled import LabelHead, MatchingHead
from ytuning.tasks.task import Exemplars, Task
from ytuning.training.calibration import Calibration
from ytuning.training.joint import label_space

__all__ = ["AddedLabel", "add_label", "check_can_grow", "keep_exemplars"]

KEPT_ROWS = 2000  # texts of which a task keeps the place in label space...
LEAST_OF_A_LABEL = 5  # ...and more where a label would have fewer than this: what is not there, a new label may take
KEPT_OF_A_LABEL = 200  # of the examples of an added one
STEPS = 60  # of L-BFGS, which ends by itself before
DECAY = 1e-3  # pull of the new row towards the direction of its examples
NEW_THRESHOLD = 0.5  # of a multi-label task: the examples are too few to fit one


@dataclass(frozen=True)
class AddedLabel:
    """A task that has grown, and what that did to the old labels.

    Attributes:
        task: with the new label.
        found: share of the examples that are now given the new label; they also made it.
        before, after: share of the kept texts of the old labels that are given their labels.
        lost: by old label, the share of its kept texts that the new label has taken, where it is not 0.
    """

    task: Task
    found: float
    before: float
    after: float
    lost: dict[str, float]


def check_can_grow(task: Task, name: str) -> None:
    """Whether a task can get a label of this name.

    Raises:
        InputError: its kind or form has no rows to add to, it keeps no exemplars, or it has the label; an empty name.
    """
    if not name:
        raise InputError("the name of the new label is empty or only white space. Give one that says something")
    if not task.target.can_grow:
        raise InputError(f"a label is added to tasks of kind single or multi, and {task.name!r} is {task.kind}")
    if not isinstance(task.head, MatchingHead):
        problem = f"the task {task.name!r} was trained with the paper preset, whose label rows attend to each other. "
        raise InputError(f"{problem}Train it again with the new label, or with --preset default")
    if task.exemplars is None:
        raise InputError(
            f"the task {task.name!r} keeps no texts of its labels, as its training was interrupted. Train it again"
        )
    if name in task.target.names:
        raise InputError(f"the task {task.name!r} has the label {shown(name)} already. Give another name")


def keep_exemplars(
    head: LabelHead, features: Features, targets: np.ndarray, rows: np.ndarray, others: np.ndarray
) -> Exemplars | None:
    """Where texts lie in the label space of a head that can grow, for :func:`add_label`.

    Args:
        head: trained.
        features: of all rows.
        targets: of all rows, (rows,) ids or (rows, C) 0 and 1.
        rows: positions of the texts, of which about ``KEPT_ROWS`` are kept.
        others: positions of texts that the head was trained on, for labels that have hardly any of ``rows``.
    """
    if not isinstance(head, MatchingHead) or (targets.dtype == np.float32 and targets.ndim == 1):
        return None
    some = _some_of_each_label(targets, rows, others)
    return Exemplars(label_space(head, features, torch.from_numpy(some)).half(), torch.from_numpy(targets[some]))


def add_label(task: Task, name: str, examples: Tensor) -> AddedLabel:
    """Give a task a label more.

    Args:
        task: see :func:`check_can_grow`.
        name: of the new label.
        examples: (n, E, H), texts of it in the task's label space, see `joint.label_space`.

    Raises:
        InputError: as :func:`check_can_grow`.
    """
    check_can_grow(task, name)
    head, target, kept = task.head, task.target, task.exemplars
    assert isinstance(head, MatchingHead) and kept is not None
    old, goal = kept.vectors.float(), kept.targets
    multi = goal.ndim == 2
    row, bias = _new_row(head, old, goal, examples, multi=multi)
    grown = head.with_label(row, bias)
    names = (*target.names, name)
    thresholds = task.calibration.thresholds
    calibration = replace(task.calibration, thresholds=None if thresholds is None else (*thresholds, NEW_THRESHOLD))
    places = goal if not multi else functional.pad(goal, (0, 1))
    new_goal = torch.full((len(examples),), len(target.names)) if not multi else _only_last(len(examples), len(names))
    bigger = type(target).from_json({**target.to_json(), "labels": names})
    result = replace(
        task,
        target=bigger,
        head=grown,
        calibration=calibration,
        exemplars=Exemplars(
            torch.cat((old, examples[:KEPT_OF_A_LABEL])).half(),
            torch.cat((places, new_goal[:KEPT_OF_A_LABEL].to(places.dtype))),
        ),
        training={**task.training, "added": [*task.training.get("added", []), name]},
    )
    before = _given(target, task.calibration, head, old)
    after = _given(bigger, calibration, grown, old)
    truth = goal.numpy()
    return AddedLabel(
        task=result,
        found=float(_has_last(_given(bigger, calibration, grown, examples), len(names)).mean()),
        before=_share_right(before, truth),
        after=_share_right(after[:, :-1] if multi else after, truth),
        lost=_lost(target.names, truth, _has_last(after, len(names))),
    )


def _new_row(head: MatchingHead, old: Tensor, goal: Tensor, examples: Tensor, *, multi: bool) -> tuple[Tensor, Tensor]:
    """Row (E, H) and bias (E,): each member's logistic regression, in which every label weighs alike."""
    logits = head.match(old.transpose(0, 1)).detach()  # (E, N, C)
    beside = head.match(examples.transpose(0, 1)).detach()
    direction = examples.mean(0) - old.mean(0)  # (E, H)
    length = head.label_rows.detach().norm(dim=-1).mean(1, keepdim=True)
    start = functional.normalize(direction, dim=-1) * length
    row, bias = start.clone().requires_grad_(), head.label_bias.detach().mean(1).clone().requires_grad_()
    counts = (goal.sum(0) if multi else torch.bincount(goal, minlength=logits.shape[-1])).clamp_min(1)
    weights = 1 / counts[goal].float() if not multi else torch.full((len(old),), 1 / max(1.0, float(counts.median())))
    new_weight = 1 / len(examples)
    # The old labels' part of the normaliser does not change.
    among, among_examples = torch.logsumexp(logits, -1), torch.logsumexp(beside, -1)  # (E, N), (E, n)
    true = 0.0 if multi else logits.gather(2, goal.expand(len(logits), -1)[..., None])[..., 0]
    optimizer = torch.optim.LBFGS([row, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        ours = torch.einsum("neh,eh->en", old, row) + bias[:, None]
        theirs = torch.einsum("neh,eh->en", examples, row) + bias[:, None]
        if multi:
            wrong, right = functional.softplus(ours), functional.softplus(-theirs)
        else:
            wrong, right = torch.logaddexp(among, ours) - true, torch.logaddexp(among_examples, theirs) - theirs
        value = (wrong * weights).sum(1).mean() + (right * new_weight).sum(1).mean()
        value = value + DECAY * (row - start).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return row.detach(), bias.detach()


def _some_of_each_label(targets: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Positions of ``KEPT_ROWS`` of ``rows``, then of more rows and others until each label has the least it should."""
    kept = rows[np.linspace(0, len(rows) - 1, min(len(rows), KEPT_ROWS)).astype(int)]
    further = np.concatenate((np.setdiff1d(rows, kept, assume_unique=True), others))
    several = targets.ndim == 2
    labels = targets.shape[1] if several else int(targets.max()) + 1
    counts = (targets[kept] > 0).sum(0) if several else np.bincount(targets[kept], minlength=labels)
    least = max(1, min(LEAST_OF_A_LABEL, KEPT_ROWS // labels))
    more: dict[int, None] = {}  # in order; a row may have several labels
    for label in np.flatnonzero(counts < least):
        has = targets[further, label] > 0 if several else targets[further] == label
        more |= dict.fromkeys(further[has][: least - counts[label]].tolist())
    return np.concatenate((kept, np.array(list(more), np.int64)))


def _given(target: TaskKind, calibration: Calibration, head: MatchingHead, vectors: Tensor) -> np.ndarray:
    """What the head decides on texts (N, E, H) in its label space."""
    with torch.inference_mode():
        logits = head.match(vectors.transpose(0, 1)).mean(0).numpy()
    return calibration.answers(target, logits).values


def _has_last(given: np.ndarray, labels: int) -> np.ndarray:
    found: np.ndarray = given[:, -1] if given.ndim == 2 else given == labels - 1
    return found


def _only_last(rows: int, labels: int) -> Tensor:
    targets = torch.zeros(rows, labels)
    targets[:, -1] = 1
    return targets


def _share_right(given: np.ndarray, truth: np.ndarray) -> float:
    """Rows that have just their labels."""
    return float((given == truth).all(1).mean() if truth.ndim == 2 else (given == truth).mean())


def _lost(names: Sequence[str], truth: np.ndarray, taken: np.ndarray) -> dict[str, float]:
    has = truth > 0 if truth.ndim == 2 else truth[:, None] == np.arange(len(names))
    shares = {name: float(taken[has[:, number]].mean()) for number, name in enumerate(names) if has[:, number].any()}
    return {name: share for name, share in shares.items() if share}

"""Add a label to a trained task: a row among the label rows, with everything else as it was.

A light task is fitted again instead, which is exact (`tasks/light_labels.py`).

The head maps the examples and, as far as they were kept with the task, texts of the old labels into its label space.
There the new row is a logistic regression of the new label against the old ones, whose rows stay as they are. So it
takes a moment, and an old label can only lose texts that the new one takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ytuning.data.dataset import Dataset, check_not_blank
from ytuning.data.kinds import TaskKind
from ytuning.data.labels import label_name, quote
from ytuning.encoder.encoder import Encoder
from ytuning.errors import DataError, InputError, argument
from ytuning.features.features import Features
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import CrossAttentionHead, LabelHead, LightHead, MatchingHead
from ytuning.progress import Progress
from ytuning.tasks.evaluate import task_features
from ytuning.tasks.light_labels import LightRows, grown_light_task, some_logits
from ytuning.tasks.task import Exemplars, Task
from ytuning.training.calibration import Calibration
from ytuning.training.joint import label_space
from ytuning.training.scope import new_prototypes, text_directions

__all__ = [
    "AddedLabel", "add_label", "check_can_grow", "decide", "exemplar_rows", "fit_label_row", "grow_task",
    "keep_exemplars", "share_right",
]  # fmt: skip

# A task keeps the vectors in label space of this number of texts.
EXEMPLARS = 2000
# It keeps more where a label would have fewer than this, because a new label may take what is not there.
FEWEST_OF_A_LABEL = 5
# Maximum number of an added label's examples that are kept.
KEPT_EXAMPLES = 200
# Maximum number of steps of L-BFGS, which converges in fewer.
STEPS = 60
# Weight decay that pulls the new row towards the direction of its examples.
DECAY = 1e-3
# A new label of a multi-label task gets this threshold, because its examples are too few to fit one.
NEW_THRESHOLD = 0.5


@dataclass(frozen=True)
class AddedLabel:
    """A task with an added label, and the effect on the old labels.

    Attributes:
        task: the task with the new label.
        recall: share of the examples that are now given the new label; they also made it.
        before: share of the kept texts of the old labels that the old task labels correctly.
        after: the same share with the new task.
        lost: for each old label, the share of its kept texts that get the new label, where it is not 0.
    """

    task: Task
    recall: float
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
    if isinstance(task.head, CrossAttentionHead):
        problem = f"the task {task.name!r} was trained with the paper preset, whose label rows attend to each other. "
        raise InputError(f"{problem}Train it again with the new label, or with {argument('preset', 'default')}")
    if task.exemplars is None and not isinstance(task.head, LightHead):
        raise InputError(
            f"the task {task.name!r} keeps no texts of its labels, as its training was interrupted. Train it again"
        )
    if name in task.target.names:
        raise InputError(f"the task {task.name!r} has the label {quote(name)} already. Give another name")


def keep_exemplars(
    head: LabelHead,
    target: TaskKind,
    features: Features,
    targets: np.ndarray,
    rows: np.ndarray,
    others: np.ndarray,
) -> Exemplars | None:
    """Where texts lie in the label space of a head that can grow, for :func:`add_label`.

    Args:
        head: the trained head.
        target: the kind of the task, with its labels.
        features: features of all rows.
        targets: targets of all rows.
        rows: positions of the texts, of which about ``EXEMPLARS`` are kept.
        others: positions of texts that the head was trained on, for labels that have hardly any of ``rows``.
    """
    if not (isinstance(head, MatchingHead) and target.can_grow):
        return None
    some = exemplar_rows(target, targets, rows, others)
    return Exemplars(label_space(head, features, torch.from_numpy(some)).half(), torch.from_numpy(targets[some]))


def grow_task(
    task: Task,
    name: str,
    examples: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    *,
    progress: Progress | None = None,
) -> AddedLabel:
    """Add a label to a trained task, of which ``examples`` are texts; see :func:`add_label`.

    Raises:
        InputError: the task cannot grow, or has a label of this name.
        DataError: the examples do not fit the task, or a text is blank.
        StoreError: the feature store cannot be read or written.
    """
    # The name has the form of those in data files.
    name = label_name(name) or ""
    check_can_grow(task, name)
    check_not_blank(examples)
    if isinstance(task.head, LightHead):
        if problem := task.form_problem(pairs=examples.has_pairs):
            raise DataError(problem, source=examples.source)
        return _grow_light(LightRows(task, encoder, store), name, examples, progress or Progress())
    assert isinstance(task.head, MatchingHead)
    features, _ = task_features(task, examples, encoder, store, progress=progress)
    added = add_label(task, name, label_space(task.head, features, torch.arange(len(features))))
    if task.scope is None:
        return added
    texts = text_directions(features, len(task.states), np.arange(len(features)))
    return replace(added, task=replace(added.task, scope=task.scope.with_label(new_prototypes(texts))))


def add_label(task: Task, name: str, examples: Tensor) -> AddedLabel:
    """Add a label to a task; its scope is left as it is.

    Args:
        task: see :func:`check_can_grow`.
        name: name of the new label.
        examples: (n, E, H), texts of it in the task's label space, see `joint.label_space`.

    Raises:
        InputError: as :func:`check_can_grow`.
    """
    check_can_grow(task, name)
    head, target, kept = task.head, task.target, task.exemplars
    assert isinstance(head, MatchingHead) and kept is not None
    old, truth = kept.vectors.float(), kept.targets.numpy()
    row, bias = fit_label_row(head, target, old, kept.targets, examples)
    grown = head.with_label(row, bias)
    thresholds = task.calibration.thresholds
    calibration = replace(task.calibration, thresholds=None if thresholds is None else (*thresholds, NEW_THRESHOLD))
    bigger, new = target.with_label(name), len(target.names)
    some = examples[:KEPT_EXAMPLES]
    targets = np.concatenate((bigger.widen_targets(truth), bigger.encode_names([name] * len(some))))
    result = replace(
        task,
        target=bigger,
        head=grown,
        calibration=calibration,
        columns=None if task.columns is None else task.columns.with_label(name),
        exemplars=Exemplars(torch.cat((old, some)).half(), torch.from_numpy(targets)),
        # A light head beside it knows the old labels alone, and no rows tell how often both would agree now.
        cascade=None,
        training={**task.training, "added": [*task.training.get("added", []), name]},
    )
    before = decide(target, task.calibration, head, old)
    after = decide(bigger, calibration, grown, old)
    return AddedLabel(
        task=result,
        recall=float(bigger.has_label(decide(bigger, calibration, grown, examples), new).mean()),
        before=share_right(target, truth, before),
        after=share_right(target, truth, after),
        lost=_lost(target, truth, bigger.has_label(after, new)),
    )


def _grow_light(light: LightRows, name: str, examples: Dataset, progress: Progress) -> AddedLabel:
    """Add a label to a light task; the texts of the old labels are the held rows of its training."""
    task, target = light.task, light.task.target
    grown, features, rows = grown_light_task(light, name, examples, NEW_THRESHOLD, progress)
    bigger, new = grown.target, len(target.names)
    # The examples are the last rows.
    own = torch.arange(len(rows.held) - len(examples.inputs), len(rows.held))
    held = torch.from_numpy(np.flatnonzero(rows.held))
    truth = light.rows.targets[light.rows.held]
    before = task.calibration.answers(target, some_logits(task.head, features, held)).values
    after, of_examples = (
        grown.calibration.answers(bigger, some_logits(grown.head, features, some)).values for some in (held, own)
    )
    columns = None if task.columns is None else task.columns.with_label(name)
    return AddedLabel(
        task=replace(
            grown, columns=columns, training={**grown.training, "added": [*task.training.get("added", []), name]}
        ),
        recall=float(bigger.has_label(of_examples, new).mean()),
        before=share_right(target, truth, before),
        after=share_right(target, truth, after),
        lost=_lost(target, truth, bigger.has_label(after, new)),
    )


def share_right(target: TaskKind, truth: np.ndarray, values: np.ndarray) -> float:
    """The share of rows whose labels are right, of those that the target array knows; 1 of no rows."""
    return float(target.are_right(truth, values).mean()) if len(truth) else 1.0


def fit_label_row(
    head: MatchingHead, target: TaskKind, old: Tensor, goal: Tensor, examples: Tensor
) -> tuple[Tensor, Tensor]:
    """A new label's row (E, H) and bias (E,): each member's logistic regression, in which every label weighs alike.

    Args:
        head: the head with the old labels' rows, which stay as they are.
        target: the kind of the task, with the old labels.
        old: (N, E, H), texts of the old labels in the head's label space.
        goal: their labels, (N,) ids or (N, C) 0 and 1.
        examples: (n, E, H), texts of the new label.
    """
    multi = target.gives_many
    # (E, N, C) and (E, n, C)
    logits = head.match(old.transpose(0, 1)).detach()
    beside = head.match(examples.transpose(0, 1)).detach()
    # (E, H)
    direction = examples.mean(0) - old.mean(0)
    length = head.label_rows.detach().norm(dim=-1).mean(1, keepdim=True)
    start = functional.normalize(direction, dim=-1) * length
    row, bias = start.clone().requires_grad_(), head.label_bias.detach().mean(1).clone().requires_grad_()
    counts = torch.from_numpy(target.count_labels(goal.numpy())).clamp_min(1)
    weights = 1 / counts[goal].float() if not multi else torch.full((len(old),), 1 / max(1.0, float(counts.median())))
    new_weight = 1 / len(examples)
    # (E, N) and (E, n): the old labels' part of the normaliser does not change.
    among, among_examples = torch.logsumexp(logits, -1), torch.logsumexp(beside, -1)
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


def exemplar_rows(
    target: TaskKind, targets: np.ndarray, rows: np.ndarray, others: np.ndarray, *, most: int = EXEMPLARS
) -> np.ndarray:
    """Positions of ``most`` of ``rows``, then of more rows and others until each label has the fewest it should.

    Arguments as of :func:`keep_exemplars`.
    """
    kept = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]
    further = np.concatenate((np.setdiff1d(rows, kept, assume_unique=True), others))
    counts = target.count_labels(targets[kept]).astype(int)
    fewest = max(1, min(FEWEST_OF_A_LABEL, most // len(counts)))
    # The dictionary keeps the order and holds each row once, because a row may have several labels.
    more: dict[int, None] = {}
    for label in np.flatnonzero(counts < fewest).tolist():
        has = target.has_label(targets[further], label)
        more |= dict.fromkeys(further[has][: fewest - counts[label]].tolist())
    return np.concatenate((kept, np.array(list(more), np.int64)))


def decide(target: TaskKind, calibration: Calibration, head: MatchingHead, vectors: Tensor) -> np.ndarray:
    """What the head decides on texts (N, E, H) in its label space."""
    with torch.inference_mode():
        logits = head.average(head.match(vectors.transpose(0, 1))).numpy()
    return calibration.answers(target, logits).values


def _lost(target: TaskKind, truth: np.ndarray, taken: np.ndarray) -> dict[str, float]:
    """The share of each label's rows that are taken, where it is not 0."""
    has = (target.has_label(truth, label) for label in range(len(target.names)))
    shares = {name: float(taken[rows].mean()) for name, rows in zip(target.names, has, strict=True) if rows.any()}
    return {name: share for name, share in shares.items() if share}

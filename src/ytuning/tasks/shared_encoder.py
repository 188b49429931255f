"""One encoder for many tasks: it runs to the deepest hidden state that any of them reads, once for each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import Answer, Answers
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import States
from ytuning.features.codecs import Codec, Float16Codec, Int8Codec
from ytuning.features.features import Features, live_inputs
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import LabelHead
from ytuning.heads.scope import JointScopes, ScopeModel
from ytuning.system.machine import one_thread
from ytuning.tasks.cascade import Head
from ytuning.tasks.task import Task, check_encoder
from ytuning.training.joint import JointHeads
from ytuning.training.scope import text_directions

__all__ = ["LiveTexts", "SharedEncoder", "TaskAnswers", "share_encoders"]

# Combinations of tasks whose heads are kept as one, and the bytes of their copies of the heads' weights.
MOST_JOINED, JOINED_BYTES = 8, 256 << 20


@dataclass(frozen=True)
class LiveTexts:
    """Features of some texts in all the hidden states that some tasks read.

    Attributes:
        features: features in memory.
        states: numbers of the hidden states that they hold.
        codec: codec that they went through.
    """

    features: Features
    states: States
    codec: Codec
    _seen: dict[tuple[States, Codec], Features] = field(default_factory=dict, repr=False)

    def seen_by(self, task: Task) -> Features:
        """The features as a task was trained to read them: in its hidden states and through its codec."""
        key = task.states, task.codec
        if key not in self._seen:
            chosen = self.features.at_positions([self.states.index(state) for state in task.states])
            self._seen[key] = chosen if task.codec.name == self.codec.name else chosen.recoded(task.codec)
        return self._seen[key]


@dataclass(frozen=True)
class TaskAnswers:
    """A task's answers to N texts.

    Attributes:
        task: the task.
        answers: answers and probabilities, as the head that has answered gives them.
        logits: (N, C) float32 logits of that head.
        by_light: (N,) bool, whether it is the light head of a cascade; None where the task has one head.
        out_of_scope_scores: (N,) float32, how unlike the training rows each text is; None where the task cannot tell.
        out_of_scope: (N,) bool, whether each text is out of scope; None where the task has no threshold for it.
    """

    task: Task
    answers: Answers
    logits: np.ndarray
    by_light: np.ndarray | None = None
    out_of_scope_scores: np.ndarray | None = None
    out_of_scope: np.ndarray | None = None

    @property
    def named(self) -> list[Answer]:
        """Each text's answer with the names of labels."""
        return self.task.target.named_answers(self.answers)

    def head(self, row: int) -> Head | None:
        """Which head of a cascade has answered a text; None where the task has one head."""
        return None if self.by_light is None else "light" if self.by_light[row] else "default"

    def is_out_of_scope(self, row: int) -> bool | None:
        """Whether a text is out of scope; None where the task has no threshold for it."""
        return None if self.out_of_scope is None else bool(self.out_of_scope[row])

    def out_of_scope_score(self, row: int) -> float | None:
        """How unlike the training rows a text is, to four places; None where the task cannot tell."""
        return None if self.out_of_scope_scores is None else round(float(self.out_of_scope_scores[row]), 4)


class SharedEncoder:
    """An encoder and the heads of the tasks that it serves."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._joint: _LastUsed[LabelHead, JointHeads] = _LastUsed()
        self._scopes: _LastUsed[ScopeModel, JointScopes] = _LastUsed()

    def read(
        self, inputs: Sequence[TextInput], tasks: Sequence[Task], *, pair_mode: PairMode | None, padded: bool = False
    ) -> LiveTexts:
        """Features of single texts or of pairs for some tasks, in memory.

        Args:
            inputs: texts or pairs.
            tasks: tasks that will ask for them.
            pair_mode: how pairs are read.
            padded: see `features.live_features`.

        Raises:
            EncoderError: a text has no tokens, or a hidden state does not exist.
        """
        heads = (head for task in tasks for head in (task, task.light_task) if head is not None)
        states = tuple(sorted({state for head in heads for state in head.states}))
        # A hidden state has the same int8 numbers whatever states lie beside it; other codecs need it whole.
        kind = Int8Codec if all(task.codec.name == Int8Codec.name for task in tasks) else Float16Codec
        codec = kind(len(states), self.encoder.identity.width)
        features = live_inputs(inputs, self.encoder, states=states, pair_mode=pair_mode, codec=codec, padded=padded)
        return LiveTexts(features, states, codec)

    def answers(
        self,
        texts: LiveTexts,
        tasks: Sequence[Task],
        rows: torch.Tensor | None = None,
        asked: np.ndarray | None = None,
        *,
        with_scope: bool = True,
    ) -> list[TaskAnswers]:
        """Each task's answers to rows (N,) (default: all), in their order, or to those of them that it is asked about.

        The light heads of all cascades answer together. Only what they are unsure of is put to the default heads, each
        of which sees its own rows alone. Whether a text is in scope is told by the head that answers first.

        Args:
            texts: as of :meth:`logits`.
            tasks: as of :meth:`logits`.
            rows: as of :meth:`logits`.
            asked: (tasks, N) bool, which of the rows each task is asked about, one or more; None: all of them.
            with_scope: whether to tell if the texts are in scope.
        """
        rows = torch.arange(len(texts.features)) if rows is None else rows
        found: list[TaskAnswers] = []
        # (tasks in a cascade, N)
        unsure: dict[int, np.ndarray] = {}
        light = [task.light_task for task in tasks]
        first = [one or task for one, task in zip(light, tasks, strict=True)]
        all_logits = self.logits(texts, first, rows, asked)
        scopes = self._out_of_scope_scores(texts, first, all_logits, rows, asked) if with_scope else {}
        for number, (task, logits) in enumerate(zip(tasks, all_logits, strict=True)):
            scores, scope = scopes.get(number), first[number].scope
            of_scope = scores, None if scores is None or scope is None else scope.are_out_of_scope(scores)
            if light[number] is None or task.cascade is None:
                found.append(TaskAnswers(task, task.calibration.answers(task.target, logits), logits, None, *of_scope))
            else:
                answers, sure = task.cascade.answers(task.target, logits)
                found.append(TaskAnswers(task, answers, logits, sure, *of_scope))
                unsure[number] = ~sure
        all_rows = np.ones((len(tasks), len(rows)), bool) if asked is None else asked
        for numbers in _alike([tasks[number] for number in unsure], list(unsure)):
            some, wanted = [tasks[number] for number in numbers], all_rows[numbers]
            for place, number in enumerate(numbers):
                wanted[place, wanted[place]] = unsure[number]
            own = self._heads(some).logits_where(texts.seen_by(some[0]), rows, torch.from_numpy(wanted))
            for number, of_default in zip(numbers, own, strict=True):
                found[number] = _completed(found[number], unsure[number], of_default.numpy())
        return found

    def logits(
        self, texts: LiveTexts, tasks: Sequence[Task], rows: torch.Tensor | None = None, asked: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The logits (N, C) float32 of each task's head for rows (N,) (default: all), in their order.

        Args:
            texts: result of :meth:`read`, in the way in which all these tasks read pairs.
            tasks: tasks that this encoder serves.
            rows: positions.
            asked: (tasks, N) bool, which of the rows each task is asked about, one or more; None: all of them.
        """
        rows = torch.arange(len(texts.features)) if rows is None else rows
        by_task: dict[int, np.ndarray] = {}
        for numbers in _alike(tasks, range(len(tasks))):
            some = [tasks[number] for number in numbers]
            heads, features = self._heads(some), texts.seen_by(some[0])
            if asked is None or asked[numbers].all():
                found = heads.logits(features, rows)
            else:
                found = heads.logits_where(features, rows, torch.from_numpy(asked[numbers]))
            by_task |= {number: logits.numpy() for number, logits in zip(numbers, found, strict=True)}
        return [by_task[number] for number in range(len(tasks))]

    def _out_of_scope_scores(
        self,
        texts: LiveTexts,
        tasks: Sequence[Task],
        logits: Sequence[np.ndarray],
        rows: torch.Tensor,
        asked: np.ndarray | None,
    ) -> dict[int, np.ndarray]:
        """How unlike the training rows of each task rows (N,) are, or those it is asked about, by the task's number."""
        by_task: dict[int, np.ndarray] = {}
        numbered = [number for number, task in enumerate(tasks) if task.scope is not None]
        for numbers in _alike([tasks[number] for number in numbered], numbered):
            first, models = tasks[numbers[0]], [tasks[number].scope for number in numbers]
            own = [torch.from_numpy(logits[number]) for number in numbers]
            if asked is not None:
                # All rows are computed together; those that nobody asks about are left out afterwards.
                own = [_spread(given, asked[number]) for given, number in zip(own, numbers, strict=True)]
            joint = self._scopes.of([model for model in models if model is not None], JointScopes)
            with one_thread(), torch.inference_mode():
                directions = text_directions(texts.seen_by(first), len(first.states), rows.numpy())
                for number, scores in zip(numbers, joint.scores(directions, own), strict=True):
                    by_task[number] = scores.numpy() if asked is None else scores.numpy()[asked[number]]
        return by_task

    def _heads(self, tasks: Sequence[Task]) -> JointHeads:
        return self._joint.of([task.head for task in tasks], JointHeads)


class _Sized(Protocol):
    """What is joined of several parts, and holds them."""

    @property
    def size(self) -> int:
        """Bytes beyond those of the parts."""


Part = TypeVar("Part")
Joined = TypeVar("Joined", bound=_Sized)


class _LastUsed(Generic[Part, Joined]):
    """What was joined last, by the ids of the parts, which stay theirs because the joined things hold them."""

    def __init__(self) -> None:
        self._joined: dict[tuple[int, ...], Joined] = {}

    def of(self, parts: Sequence[Part], join: Callable[[Sequence[Part]], Joined]) -> Joined:
        """What ``join`` makes of parts."""
        key = tuple(map(id, parts))
        found = self._joined.pop(key, None)
        joined = join(parts) if found is None else found
        # It becomes the last, so that the first is the one that has not been used for longest.
        self._joined[key] = joined
        while len(self._joined) > 1 and (
            len(self._joined) > MOST_JOINED or sum(one.size for one in self._joined.values()) > JOINED_BYTES
        ):
            del self._joined[next(iter(self._joined))]
        return joined


def _spread(values: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Values (n, C) of some of N rows, (N,) bool, as (N, C) with 0 in the others."""
    whole = values.new_zeros(len(rows), values.shape[1])
    whole[torch.from_numpy(rows)] = values
    return whole


def _alike(tasks: Sequence[Task], numbers: Sequence[int]) -> list[list[int]]:
    """The numbers of tasks that read the same features, and so run as one head."""
    alike: dict[tuple[States, Codec], list[int]] = {}
    for task, number in zip(tasks, numbers, strict=True):
        alike.setdefault((task.states, task.codec), []).append(number)
    return list(alike.values())


def _completed(first: TaskAnswers, unsure: np.ndarray, logits: np.ndarray) -> TaskAnswers:
    """The answers of a light head with those of the default head (n, C) in the rows that it is unsure of, (N,) bool."""
    if not len(logits):
        return first
    task = first.task
    answers, whole = task.calibration.answers(task.target, logits), first.logits.copy()
    whole[unsure] = logits
    values, probabilities = first.answers.values.copy(), first.answers.probabilities.copy()
    values[unsure], probabilities[unsure] = answers.values, answers.probabilities
    return replace(first, answers=Answers(values, probabilities), logits=whole)


def share_encoders(
    tasks: Sequence[Task],
    *,
    encoder: str | None = None,
    device: str | None = None,
    loaded: Sequence[SharedEncoder] = (),
) -> list[SharedEncoder]:
    """Return each task's encoder, loaded once for all tasks that can share it.

    Args:
        tasks: tasks in any order.
        encoder: name or folder to use in place of the one named in the tasks, when it has moved.
        device: see `encoder.load_encoder`.
        loaded: encoders to use where they fit.

    Raises:
        EncoderError: an encoder cannot be loaded.
        TaskFolderError: an encoder differs from the one that a task was trained with.
    """
    by_fingerprint = {shared.encoder.identity.fingerprint: shared for shared in loaded}
    for task in tasks:
        if task.encoder.fingerprint not in by_fingerprint:
            fresh = load_encoder(encoder or task.encoder.name, device=device, **task.encoder.options)
            by_fingerprint[task.encoder.fingerprint] = SharedEncoder(fresh)
        shared = by_fingerprint[task.encoder.fingerprint].encoder
        check_encoder(task, shared.identity, depth=shared.depth)
    return [by_fingerprint[task.encoder.fingerprint] for task in tasks]

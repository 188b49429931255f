"""One encoder for many tasks: it runs to the deepest hidden state that any of them reads, once for each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import EncoderIdentity
from ytuning.features.features import Features
from ytuning.features.pairs import live_inputs
from ytuning.heads.pairs import PairMode
from ytuning.tasks.task import Task, check_encoder
from ytuning.training.joint import JointHeads

__all__ = ["SharedEncoder", "share_encoders", "sharing_key"]


class SharedEncoder:
    """An encoder and what tasks ask of it.

    Attributes:
        encoder: keeps every hidden state that one of its tasks reads.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._joint: dict[tuple[int, ...], JointHeads] = {}  # they hold the heads, whose ids so stay theirs

    def read(self, inputs: Sequence[TextInput], *, pair_mode: PairMode | None, padded: bool = False) -> Features:
        """Features of single texts or of pairs, in memory; ``pair_mode``: how pairs are read.

        ``padded``: see `features.live_features`.
        """
        return live_inputs(inputs, self.encoder, pair_mode=pair_mode, padded=padded)

    def logits(self, features: Features, tasks: Sequence[Task], rows: torch.Tensor | None = None) -> list[np.ndarray]:
        """Each task's logits (N, C) float32 of rows (N,) (default: all), in their order.

        Args:
            features: of :meth:`read`, in the way in which all these tasks read pairs.
            tasks: that this encoder serves.
            rows: positions.
        """
        rows = torch.arange(len(features)) if rows is None else rows
        by_states: dict[tuple[int, ...], list[int]] = {}
        for number, task in enumerate(tasks):
            by_states.setdefault(task.encoder.layers, []).append(number)
        found: dict[int, np.ndarray] = {}
        for states, numbers in by_states.items():
            heads = self._heads([tasks[number] for number in numbers])
            for number, logits in zip(numbers, heads.logits(self.view(features, states), rows), strict=True):
                found[number] = logits.numpy()
        return [found[number] for number in range(len(tasks))]

    def _heads(self, tasks: Sequence[Task]) -> JointHeads:
        key = tuple(id(task.head) for task in tasks)
        found = self._joint.pop(key, None) or JointHeads([task.head for task in tasks])
        self._joint[key] = found  # last: the first is the one that has not been used for longest
        if len(self._joint) > MOST_JOINED:
            del self._joint[next(iter(self._joint))]
        return found

    def view(self, features: Features, states: tuple[int, ...]) -> Features:
        """Features of :meth:`read` with some of the hidden states only, as a task reads them."""
        places = [self.encoder.identity.layers.index(state) for state in states]
        return features.with_layers(places)


MOST_JOINED = 8  # combinations of tasks whose heads are kept as one; each is a copy of their weights


def sharing_key(identity: EncoderIdentity) -> str:
    """What encoders must have in common to be one: all but the name and the hidden states that are kept."""
    return replace(identity, layers=()).fingerprint


def share_encoders(
    tasks: Sequence[Task],
    *,
    encoder: str | None = None,
    device: str | None = None,
    loaded: Sequence[SharedEncoder] = (),
) -> list[SharedEncoder]:
    """For each task the encoder that serves it, loaded once for all that can share it.

    Args:
        tasks: in any order.
        encoder: name or folder to use in place of the one named in the tasks, when it has moved.
        device: see `encoder.load_encoder`.
        loaded: encoders to use where they do.

    Raises:
        EncoderError: an encoder cannot be loaded.
        TaskFolderError: an encoder differs from the one that a task was trained with.
    """
    states: dict[str, set[int]] = {}
    for task in tasks:
        states.setdefault(sharing_key(task.encoder), set()).update(task.encoder.layers)
    found: dict[str, SharedEncoder] = {}
    for task in tasks:
        key = sharing_key(task.encoder)
        if key in found:
            continue
        wanted = replace(task.encoder, layers=tuple(sorted(states[key])))
        fitting = (each for each in loaded if sharing_key(each.encoder.identity) == key)
        shared = next((each for each in fitting if states[key] <= set(each.encoder.identity.layers)), None)
        if shared is None:
            fresh = load_encoder(encoder or wanted.name, device=device, **wanted.options)
            check_encoder(replace(task, encoder=wanted), fresh.identity)
            shared = SharedEncoder(fresh)
        found[key] = shared
    return [found[sharing_key(task.encoder)] for task in tasks]

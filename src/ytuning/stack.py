"""Many heads that learn together: each batch of features is read once for all of them.

A batch is computed in two parts. A head alone has its parts computed side by side, several heads are computed side by
side, part after part: the cores are busy either way, and the same numbers are added in the same order. So a head learns
the same weights, bit for bit, alone or in company and on any number of cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ytuning.features import Features, ordered_batches
from ytuning.head import LabelHead, LabelTuningHead, MatchingHead
from ytuning.losses import Loss
from ytuning.workers import Workers

__all__ = ["Learner", "stack_logits", "stack_step"]

PARTS = 2
Part = tuple[Tensor, Tensor, Tensor]
"""Rows (b,) of a part of a batch, their features (b, T, L, D) and their mask (b, T)."""


class Learner:
    """A head, what it learns, and its optimiser: AdamW with linear warm-up and linear decay.

    Attributes:
        head: is changed by every step.
        goal: (rows,) or (rows, C); targets of all rows.
        total: steps that the schedule was made for.
        step: steps taken so far.
    """

    def __init__(
        self,
        head: LabelHead,
        goal: Tensor,
        loss: Loss,
        *,
        total: int,
        learning_rate: float,
        weight_decay: float,
        warmup: float,
        clip_norm: float,
        seed: int,
    ) -> None:
        """``learning_rate`` is the highest; ``warmup`` a share of the steps; ``seed`` is that of dropout."""
        self.head, self.goal, self.loss = head, goal, loss
        self.total, self.step = total, 0
        self.learning_rate, self.clip_norm = learning_rate, clip_norm
        self._warmup = max(1, round(warmup * total))
        self._parameters = list(head.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self._generators = [torch.Generator().manual_seed(seed * PARTS + number) for number in range(PARTS)]

    def gradients(self, number: int, part: Part, share: float) -> tuple[Tensor, ...]:
        """Of the loss of part ``number`` times its share of the batch, for each of the head's parameters."""
        rows, values, mask = part
        logits = self.head(values, mask, self._generators[number]).flatten(0, -2)  # (b, C), or (E * b, C)
        loss = share * self.loss(logits, torch.cat([self.goal[rows]] * (len(logits) // len(rows))))
        return torch.autograd.grad(loss, self._parameters)

    def take(self, parts: Sequence[tuple[Tensor, ...]]) -> None:
        """One step along the sum of the parts' gradients."""
        for parameter, *gradients in zip(self._parameters, *parts, strict=True):
            # The fused AdamW reads memory in order, whatever the strides, and those of a transposed product differ.
            parameter.grad = (gradients[0] if len(gradients) == 1 else torch.add(*gradients)).contiguous()
        torch.nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
        rate = min((self.step + 1) / self._warmup, (self.total - self.step) / max(1, self.total - self._warmup))
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        self._optimizer.step()
        self.step += 1


def stack_step(learners: Sequence[Learner], features: Features, batch: Tensor, pool: Workers) -> None:
    """One step of each learner on one batch of rows (B,), which is gathered once."""
    numbered = list(enumerate(batch.chunk(PARTS)))
    shares = [len(rows) / len(batch) for _, rows in numbered]

    def gather(rows: Tensor) -> Part:
        return rows, *features.batch(rows)

    if len(learners) == 1:
        (learner,) = learners
        learner.take(pool.map(lambda it: learner.gradients(it[0], gather(it[1]), shares[it[0]]), numbered))
        return
    parts = list(enumerate(pool.map(lambda it: gather(it[1]), numbered)))

    def learn(learner: Learner) -> None:
        learner.take([learner.gradients(number, part, shares[number]) for number, part in parts])

    pool.map(learn, learners)


def common_states(features: Features, rows: Tensor) -> Tensor:
    """(L, D): the mean of the texts' mean states, of rows (N,), for the center of a head of label tuning."""
    total = torch.zeros(features.layers, features.width, dtype=torch.float64)
    texts = 0
    for batch in ordered_batches(features.lengths[rows]):
        means = LabelTuningHead.mean_states(*features.batch(rows[batch]))
        total, texts = total + means.double().sum(0), texts + len(means)
    return (total / texts).float()


def label_space(head: MatchingHead, features: Features, rows: Tensor) -> Tensor:
    """(N, E, H): what the label rows of each of E members are matched with, of rows (N,)."""
    found = torch.empty(len(rows), head.members, head.match_width)
    with torch.inference_mode():
        for batch in ordered_batches(features.lengths[rows]):
            found[batch] = head.eval().text(*features.batch(rows[batch])).transpose(0, 1)
    return found


def stack_logits(heads: Sequence[LabelHead], features: Features, rows: Tensor, pool: Workers) -> list[Tensor]:
    """Each head's logits (N, C) of rows (N,), in their order; every batch is gathered once for all heads."""
    for head in heads:
        head.eval()

    def compute(batch: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            values, mask = features.batch(rows[batch])
            return [head(values, mask) for head in heads]

    batches = list(ordered_batches(features.lengths[rows]))
    found = pool.map(compute, batches)
    order = torch.cat(batches).argsort()
    return [torch.cat(logits)[order] for logits in zip(*found, strict=True)]

"""Many heads that learn or answer together: each batch of features is read once for all of them.

A batch is computed in two parts. A head alone has its parts computed side by side, several heads are computed side by
side, part after part: the cores are busy either way, and the same numbers are added in the same order. So a head learns
the same weights, bit for bit, alone or in company and on any number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ytuning.data.kinds import Loss
from ytuning.features.features import Features, ordered_batches
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import LabelHead, LabelTuningHead, LightHead, MatchingHead, PooledConfig, PooledHead
from ytuning.heads.token_maps import TokenMaps, masked_maxima
from ytuning.system.machine import Workers, one_thread, workers
from ytuning.training.recipes import TrainingConfig

__all__ = [
    "JointHeads",
    "Learner",
    "group_logits",
    "label_space",
    "rate_share",
    "side_by_side",
    "stack_logits",
    "stack_step",
    "start_label_rows",
]

# Names of the parameters that do not decay end so. A rare label's row and bias move far, and seldom.
NOT_DECAYED = ("bias", "label_rows")
# The next four are of default heads on all-MiniLM-L6-v2, one thread of an AMD EPYC with bf16 (benchmarks/LOG.md).
# Most texts in a batch whose heads are computed as one. 50 heads took 0.6 times as long as with shared products of
# tokens at 1 text, 0.9 at 32 and 1.0 to 1.4 at 64 to 128.
JOINED_TEXTS = 32
# Most tokens in a batch of pairs that are read separately, whose heads are computed as one.
JOINED_PAIR_TOKENS = 192
# So many heads share their products of tokens in larger batches: 50 heads took 1.29, 1.08 and 1.08 s with 4, 16 and 50.
HEADS_AT_ONCE = 16
# Of the rows that heads which are joined could be asked for, at least this share is wanted; else each head is computed
# by itself. 50 heads took 0.5 to 1.0 times as long at 0.6 and 0.5 to 1.1 at 0.4, with 1 to 32 texts of 16 tokens.
JOINED_SHARE = 0.5
# Rows of a batch that a head is asked for are filled up to so many parts of the batch. Products of a new shape are
# prepared first, and so 50 heads with 38 % of the rows each took 2.8 and not 3.5 s.
SHAPES = 16
# Label rows of light heads that are multiplied at a time.
LIGHT_ROWS = 512
# The center of a label tuning head is the mean of up to this number of training rows.
CENTER_ROWS = 2000
# Maximum number of tokens in a batch without gradients, on a CPU and on a GPU.
CPU_TOKENS, GPU_TOKENS = 4096, 65_536
# A batch is computed in this number of parts side by side, so a head learns the same on any number of cores.
PARTS = 2
Result = TypeVar("Result")
Part = tuple[Tensor, Tensor, Tensor]
"""Rows (b,) of a part of a batch, their features (b, T, L, D) and their mask (b, T)."""


def rate_share(step: int, total: int, warmup: float) -> float:
    """Return a step's share of the highest learning rate: it rises linearly, then falls linearly.

    Args:
        step: number of the step, from 0.
        total: number of steps.
        warmup: share of the steps in which the rate rises.
    """
    rising = max(1, round(warmup * total))
    return min((step + 1) / rising, (total - step) / max(1, total - rising))


class Learner:
    """A head, what it learns, and its optimiser: AdamW with linear warm-up and linear decay.

    Attributes:
        head: is changed by every step.
        goal: (rows,) or (rows, C); targets of all rows.
        total: steps that the schedule was made for.
        step: steps taken so far.
    """

    def __init__(
        self, head: LabelHead, goal: Tensor, loss: Loss, *, config: TrainingConfig, total: int, seed: int
    ) -> None:
        """Make a learner; ``config`` gives the rates, the decay and the largest norm, and ``seed`` sets the dropout."""
        self.head, self.goal, self.loss = head, goal, loss
        self.total, self.step = total, 0
        self._config = config
        self._parameters = list(head.parameters())
        matrices = [parameter for name, parameter in head.named_parameters() if not name.endswith(NOT_DECAYED)]
        others = [parameter for name, parameter in head.named_parameters() if name.endswith(NOT_DECAYED)]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        device = self._parameters[0].device
        # Each part of a batch draws its dropout from its own generator, so that the order of threads does not matter.
        self._generators = [torch.Generator(device).manual_seed(seed * PARTS + number) for number in range(PARTS)]

    def gradients(self, number: int, part: Part, share: float) -> tuple[Tensor, ...]:
        """Return the parameters' gradients for the loss of part ``number`` times its share of the batch."""
        rows, values, mask = part
        # (b, C), or of a head with E members (E * b, C): each member learns by itself.
        logits = self.head(values, mask, self._generators[number]).flatten(0, -2)
        goal = self.goal[rows].to(logits.device, non_blocking=True)
        # The goal (b,) or (b, C) is repeated for each member.
        loss = share * self.loss(logits, torch.cat([goal] * (len(logits) // len(rows))))
        return torch.autograd.grad(loss, self._parameters)

    def take(self, parts: Sequence[tuple[Tensor, ...]]) -> None:
        """One step along the sum of the parts' gradients."""
        for parameter, *gradients in zip(self._parameters, *parts, strict=True):
            # The fused AdamW reads memory in order, whatever the strides, and those of a transposed product differ.
            parameter.grad = (gradients[0] if len(gradients) == 1 else torch.add(*gradients)).contiguous()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * rate_share(self.step, self.total, self._config.warmup)
        self._optimizer.step()
        self.step += 1


def stack_step(groups: Sequence[tuple[Tensor, Sequence[Learner]]], features: Features, pool: Workers) -> None:
    """One step of each learner; those of a group learn from one batch of rows (B,), which is gathered once."""
    if features.device.type == "cuda":
        # A GPU is not kept busy by halves of a batch, and has one stream of work: threads would wait for each other.
        for batch, learners in groups:
            part = _gather(features, batch, (0, batch))
            for learner in learners:
                learner.take([learner.gradients(*part)])
        return
    # Whatever is computed side by side, a head adds the same numbers in the same order.
    lone = [(batch, learners[0]) for batch, learners in groups if len(learners) == 1]
    if len(lone) > 1:
        # Heads without a common batch are computed side by side, each one part after part.
        pool.map(partial(_learn_alone, features), lone)
        groups = [group for group in groups if len(group[1]) > 1]
    for batch, learners in groups:
        chunks, gather = list(enumerate(batch.chunk(PARTS))), partial(_gather, features, batch)
        if len(learners) == 1:
            # The parts of the batch are gathered and computed side by side.
            learners[0].take(pool.map(partial(_gradients, learners[0], gather), chunks))
        else:
            # The parts are gathered once, and the heads are computed side by side.
            pool.map(partial(_learn, pool.map(gather, chunks)), learners)


def _gather(features: Features, batch: Tensor, chunk: tuple[int, Tensor]) -> tuple[int, Part, float]:
    """Part ``chunk`` of a batch (B,), its number and rows, as `Learner.gradients` takes it."""
    number, rows = chunk
    return number, (rows, *features.batch(rows)), len(rows) / len(batch)


def _gradients(
    learner: Learner, gather: Callable[[tuple[int, Tensor]], tuple[int, Part, float]], chunk: tuple[int, Tensor]
) -> tuple[Tensor, ...]:
    return learner.gradients(*gather(chunk))


def _learn(parts: Sequence[tuple[int, Part, float]], learner: Learner) -> None:
    learner.take([learner.gradients(*part) for part in parts])


def _learn_alone(features: Features, group: tuple[Tensor, Learner]) -> None:
    batch, learner = group
    _learn([_gather(features, batch, chunk) for chunk in enumerate(batch.chunk(PARTS))], learner)


def start_label_rows(
    head: LabelHead, features: Features, train: np.ndarray, texts: np.ndarray, targets: np.ndarray
) -> None:
    """Give a fresh head what it starts from: label tuning the center of the texts, label rows the labels' own texts.

    Args:
        head: is changed, unless its form starts from nothing.
        features: features that it reads.
        train: positions of train rows.
        texts: positions of rows that are labels' texts, each of one label; there may be none.
        targets: targets of all rows, label ids (rows,) or (rows, C) 0 and 1.
    """
    if isinstance(head, LabelTuningHead):
        # Every n-th row, so that the sample is spread over the data set.
        sample = torch.from_numpy(train[:: -(-len(train) // CENTER_ROWS)])
        # (L, D): the mean of the texts' mean states.
        total, count = torch.zeros(features.layers, features.width, dtype=torch.float64), 0
        for batch in ordered_batches(features.lengths[sample]):
            means = head.mean_states(*features.batch(sample[batch]))
            total, count = total + means.double().sum(0).cpu(), count + len(means)
        head.center.copy_((total / count).float())
    if len(texts) and isinstance(head, MatchingHead):
        goal = torch.from_numpy(targets[texts])
        ids = goal if goal.ndim == 1 else goal.argmax(1)
        # (N, E, H): where the labels' texts lie in the label space of each member.
        vectors, device = label_space(head, features, torch.from_numpy(texts)), head.label_rows.device
        head.start_rows(vectors.to(device), ids.to(device))


def label_space(head: MatchingHead, features: Features, rows: Tensor, pool: Workers | None = None) -> Tensor:
    """Return the vectors (N, E, H) of rows (N,) that the label rows of each of E members are matched with."""
    vectors = torch.empty(len(rows), head.members, head.match_width)
    head.eval()

    def compute(batch: Tensor) -> None:
        with torch.inference_mode():
            # (E, B, H) -> (B, E, H)
            vectors[batch] = head.text(*features.batch(rows[batch])).transpose(0, 1).to(vectors.device)

    batches = list(ordered_batches(features.lengths[rows]))
    if pool is None:
        side_by_side(compute, batches)
    else:
        pool.map(compute, batches)
    return vectors


def stack_logits(heads: Sequence[LabelHead], features: Features, rows: Tensor, pool: Workers) -> list[Tensor]:
    """Each head's logits (N, C) of rows (N,), in their order; every batch is gathered once for all heads."""
    for head in heads:
        head.eval()
    return _by_batch(lambda values, mask: [head(values, mask) for head in heads], features, rows, pool)


def group_logits(head: PooledHead, features: Features, rows: Tensor, pool: Workers) -> list[Tensor]:
    """Logits (N, C) of rows (N,) from each group of a head's members alone (`token_maps.state_groups`), in one read."""
    head.eval()

    def compute(values: Tensor, mask: Tensor) -> list[Tensor]:
        # (E, B, C)
        logits = head.match(head.text(values, mask))
        return [members.mean(0) for members in logits.split(head.group_sizes)]

    return _by_batch(compute, features, rows, pool)


def _by_batch(
    compute: Callable[[Tensor, Tensor], list[Tensor]], features: Features, rows: Tensor, pool: Workers
) -> list[Tensor]:
    """Each of the logits (N, C) of rows (N,), in their order, that ``compute`` gives for a batch's values and mask."""
    on_gpu = features.device.type == "cuda"
    batches = list(ordered_batches(features.lengths[rows], GPU_TOKENS if on_gpu else CPU_TOKENS))

    def gathered(batch: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return compute(*features.batch(rows[batch]))

    return _in_order(batches, [gathered(batch) for batch in batches] if on_gpu else pool.map(gathered, batches))


def _in_order(batches: list[Tensor], logits: list[list[Tensor]]) -> list[Tensor]:
    """Each head's logits (N, C) in the order of the rows, from those of each batch, which are ordered by length."""
    order = torch.cat(batches).argsort()
    return [torch.cat(of_head).cpu()[order] for of_head in zip(*logits, strict=True)]


class _LightHeads:
    """Light heads that read the same numbers of a text, as one product with the label rows of all of them."""

    def __init__(self, group: dict[int, LightHead]) -> None:
        """Join light heads, each with its index."""
        self._group = group

    @property
    def size(self) -> int:
        """Bytes of the label rows, once they are joined."""
        return self._joined[0].nbytes if "_joined" in vars(self) else 0

    @cached_property
    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of C, P) float16, so that hundreds of heads take little memory, and (sum of C,) twice.

        They are joined when they are needed, as other heads may be asked for with each batch.
        """
        heads = self._group.values()
        parts = ("label_rows", "row_scale", "label_bias")
        rows, scale, bias = (torch.cat([getattr(head, part) for head in heads]) for part in parts)
        return rows, scale, bias

    def text(self, values: Tensor, mask: Tensor) -> Tensor:
        """The numbers (B, P) that all heads read, of features (B, T, L, D) and mask (B, T)."""
        return next(iter(self._group.values())).text(values, mask)

    def logits(self, values: Tensor, mask: Tensor) -> dict[int, Tensor]:
        """The logits (B, C) of each head by its index, of features (B, T, L, D) and mask (B, T)."""
        text, (joined, scale, bias) = self.text(values, mask), self._joined
        logits = torch.empty(len(text), len(joined))
        # In parts that stay in the cache in float32.
        for rows, out in zip(joined.split(LIGHT_ROWS), logits.split(LIGHT_ROWS, 1), strict=True):
            torch.mm(text, rows.float().T, out=out)
        logits = logits.mul_(scale).add_(bias)
        sizes = [len(head.label_bias) for head in self._group.values()]
        return dict(zip(self._group, logits.split(sizes, 1), strict=True))

    def logits_where(self, values: Tensor, mask: Tensor, wanted: Tensor) -> dict[int, Tensor]:
        """The logits (n, C) of each head of the rows that it is wanted for, (heads, B) bool, by its index."""
        asked = {index: head for index, head in self._group.items() if wanted[index].any()}
        text = self.text(values, mask) if asked else values
        return {index: head.match(text[wanted[index]]) for index, head in asked.items()}


class JointHeads:
    """Heads that answer for the same texts, as few large products where that is faster.

    Of a few tokens each of a head's many small operations takes as long as its call, so the members of all pooled heads
    of one form are computed as those of a single head. Of many tokens only their products with tokens are joined, as
    the rest reads more weights than a core's cache has room for.
    Light heads share the pools of a text, and their label rows are one matrix.
    """

    def __init__(self, heads: Sequence[LabelHead]) -> None:
        """Join ``heads``, which read the same hidden states and must not change afterwards."""
        self.heads = [head.eval() for head in heads]
        alike: dict[tuple[PooledConfig, PairMode | None], dict[int, PooledHead]] = {}
        shared: dict[PairMode | None, dict[int, LightHead]] = {}
        for index, head in enumerate(self.heads):
            if isinstance(head, PooledHead):
                # The number of maps and the light member may differ; everything else has to be the same.
                form = replace(head.config, side_by_side=1, alone=1, light_width=0)
                alike.setdefault((form, head.pair_mode), {})[index] = head
            if (light := head.light if isinstance(head, PooledHead) else head) and isinstance(light, LightHead):
                shared.setdefault(light.pair_mode, {})[index] = light
        self._alike = [group for group in alike.values() if len(group) > 1]
        # Heads that share their products of many tokens.
        self._sharing = [group for (_, pair_mode), group in alike.items() if pair_mode != "separate"]
        self._token_maps: dict[tuple[int, torch.dtype], list[TokenMaps]] = {}
        self._pair_modes = {head.pair_mode for group in self._alike for head in group.values()}
        self._light = [_LightHeads(group) for group in shared.values()]
        self._used = False

    @cached_property
    def _joined(self) -> list[tuple[PooledHead, dict[int, PooledHead]]]:
        """Pooled heads that are computed as one, where they have few tokens to read."""
        return [(PooledHead.joined_texts(list(group.values())), group) for group in self._alike]

    def _joined_for(self, mask: Tensor) -> list[tuple[PooledHead, dict[int, PooledHead]]]:
        """Those of :attr:`_joined` that are faster joined for tokens with a mask (B, T)."""
        fits = {mode: len(mask) <= JOINED_TEXTS for mode in (None, "joint")}
        fits["separate"] = mask.numel() <= JOINED_PAIR_TOKENS
        # They are joined when they are needed, as joined heads take as much memory again.
        if not any(fits[mode] for mode in self._pair_modes):
            return []
        return [(joined, group) for joined, group in self._joined if fits[joined.pair_mode]]

    def _token_maps_of(self, number: int, dtype: torch.dtype) -> list[TokenMaps]:
        """The maps of the heads of :attr:`_sharing` with a number, for tokens of a type; they are joined once."""
        if (found := self._token_maps.get((number, dtype))) is None:
            heads = list(self._sharing[number].values())
            # Of about the same size, as the largest one sets how many tokens are mapped at a time.
            groups = np.array_split(np.arange(len(heads)), -(-len(heads) // HEADS_AT_ONCE))
            maps = [head.token_maps for head in heads]
            joined = [TokenMaps([maps[index] for index in some], heads[0].layers, dtype) for some in groups]
            # Another thread may have joined them meanwhile.
            found = self._token_maps.setdefault((number, dtype), joined)
        return found

    @property
    def size(self) -> int:
        """Bytes of the weights beyond those of the heads themselves."""
        joined = self._joined if "_joined" in vars(self) else ()
        own = sum(parameter.nbytes for head, _ in joined for parameter in head.parameters())
        own += sum(maps.size for joined_maps in list(self._token_maps.values()) for maps in joined_maps)
        return own + sum(light.size for light in self._light)

    def __call__(self, values: Tensor, mask: Tensor) -> list[Tensor]:
        """Each head's logits (B, C) of features (B, T, L, D) and mask (B, T); of pairs both are of 2 * B texts."""
        # What light heads make of the pools: their logits (B, C), or the numbers (B, R) of a light member.
        from_pools: dict[int, Tensor] = {}
        for together in self._light:
            from_pools |= together.logits(values, mask)
        logits: dict[int, Tensor] = {}
        for joined, group in self._joined_for(mask):
            # (E, B, H) each: the texts in the label spaces of a head's members.
            texts = PooledHead.split_by_head(joined.text(values, mask), list(group.values()))
            for (index, head), text in zip(group.items(), texts, strict=True):
                logits[index] = _matched(head, text, from_pools.get(index))
        for number, some in enumerate(self._sharing if len(mask) > JOINED_TEXTS else ()):
            joined_maps = self._token_maps_of(number, values.dtype)
            of_heads = masked_maxima(joined_maps, values, mask)
            for (index, head), maxima in zip(some.items(), of_heads, strict=True):
                text = head.text_of_pools(head.pools_of_maxima(maxima))
                logits[index] = _matched(head, text, from_pools.get(index))
        return [
            logits[index] if index in logits else _logits(head, values, mask, from_pools.get(index))
            for index, head in enumerate(self.heads)
        ]

    def logits(self, features: Features, rows: Tensor) -> list[Tensor]:
        """Each head's logits (N, C) of rows (N,), in their order."""
        batches = list(ordered_batches(features.lengths[rows]))

        def compute(batch: Tensor) -> list[Tensor]:
            with torch.inference_mode():
                return self(*features.batch(rows[batch]))

        return _in_order(batches, side_by_side(compute, batches))

    def logits_where(self, features: Features, rows: Tensor, wanted: Tensor) -> list[Tensor]:
        """Each head's logits (n, C) of its own rows among rows (N,), in their order.

        Each batch is gathered once, and rows that no head wants are not gathered.

        Args:
            features: features that all heads read.
            rows: positions.
            wanted: (heads, N) bool, which rows each head is asked for; one that is asked for none has logits (0, 0).
        """
        # Other heads may be asked for the next time, so they are joined only once the same ones have come again. That
        # is decided here, because it must not depend on which batch is computed first.
        joins, self._used = self._used, True
        asked = wanted.any(0).nonzero()[:, 0]
        batches = [asked[batch] for batch in ordered_batches(features.lengths[rows[asked]])] if len(asked) else []

        def compute(places: Tensor) -> list[Tensor]:
            with torch.inference_mode():
                return self._call_where(*features.batch(rows[places]), wanted[:, places], joins=joins)

        parts = side_by_side(compute, batches)
        logits = []
        for number, own in enumerate(wanted):
            # Where each of the head's rows stands among its own, batch after batch.
            order = torch.cat([places[own[places]] for places in batches] or [asked]).argsort()
            found = [of_heads[number] for of_heads in parts if len(of_heads[number])]
            logits.append(torch.cat(found).cpu()[order] if found else torch.empty(0, 0))
        return logits

    def _call_where(self, values: Tensor, mask: Tensor, wanted: Tensor, *, joins: bool) -> list[Tensor]:
        """Each head's logits (n, C) of the rows of a batch that it is wanted for, (heads, B) bool."""
        asked = wanted.any(1).tolist()
        # What light heads make of the pools: their logits (n, C), or the numbers (n, R) of a light member.
        from_pools: dict[int, Tensor] = {}
        for together in self._light:
            from_pools |= together.logits_where(values, mask, wanted)
        logits: dict[int, Tensor] = {}
        for joined, group in self._joined_for(mask) if joins else ():
            # The members were joined before it was known which of them are asked for.
            if wanted[list(group)].float().mean() >= JOINED_SHARE:
                some = [index for index in group if asked[index]]
                texts = PooledHead.split_by_head(joined.text(values, mask), list(group.values()))
                by_head = dict(zip(group, texts, strict=True))
                for index in some:
                    logits[index] = _matched(group[index], by_head[index][:, wanted[index]], from_pools.get(index))
        for index, head in enumerate(self.heads):
            if asked[index] and index not in logits:
                logits[index] = _some_logits(head, values, mask, wanted[index], from_pools.get(index))
        return [logits[index] if index in logits else torch.empty(0, 0) for index in range(len(self.heads))]


def _matched(head: PooledHead, texts: Tensor, light: Tensor | None) -> Tensor:
    """A head's logits (B, C) of texts (E, B, H) in label space; those of a light member are added, ``light`` (B, R)."""
    return head.average(head.match(texts if light is None else head.with_light_text(texts, light)))


def _logits(head: LabelHead, values: Tensor, mask: Tensor, light: Tensor | None) -> Tensor:
    """A head's logits (B, C); ``light`` is what a light head, or a light member (B, R), has made of the pools."""
    if isinstance(head, LightHead) and light is not None:
        return light
    logits: Tensor = head(values, mask, light=light) if isinstance(head, PooledHead) else head(values, mask)
    return logits


def _some_logits(head: LabelHead, values: Tensor, mask: Tensor, wanted: Tensor, light: Tensor | None) -> Tensor:
    """A head's logits (n, C) of those rows of a batch that it is wanted for, one or more, (B,) bool.

    ``light`` (n, ..) is as for :func:`_logits`.
    """
    if isinstance(head, LightHead) and light is not None:
        return light
    own, count = wanted.nonzero()[:, 0], len(wanted)
    step = -(-count // SHAPES)
    filled = min(count, -(-len(own) // step) * step)
    if filled == count:
        whole = None if light is None else light.new_zeros(count, light.shape[1]).index_copy_(0, own, light)
        return _logits(head, values, mask, whole)[own]
    chosen = torch.cat((own, own.new_zeros(filled - len(own))))
    if len(mask) > count:
        # Of pairs that were read separately there are two texts a row, the second ones after all first ones.
        chosen = torch.cat((chosen, chosen + count))
    if light is not None:
        light = functional.pad(light, (0, 0, 0, filled - len(own)))
    return _logits(head, values.index_select(0, chosen), mask.index_select(0, chosen), light)[: len(own)]


def side_by_side(compute: Callable[[Tensor], Result], batches: Sequence[Tensor]) -> list[Result]:
    """What is computed of each batch, on all cores."""
    if len(batches) > 1:
        with workers() as pool:
            return pool.map(compute, batches)
    # One batch is not worth a thread, and a second one inside of small operations costs more than it gives.
    with one_thread():
        return [compute(batch) for batch in batches]

"""What the main job chooses by measuring: how pairs are read, and with ``--layers auto`` which hidden states.

Hidden states are chosen on a sample of the task's rows. Some sets of states (:func:`layer_sets`) are compared by the
held-out loss, which is less noisy than accuracy, of small heads that are trained together: the sample's states are
computed once, and each batch is gathered once. Beside them a head learns a softmax mix of all those states, a number
for each (ELMo, arXiv 1802.05365), and the two that it weighs most are a further set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import TaskKind
from ytuning.data.splits import split_holdout
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.pretrained import States
from ytuning.errors import DataError
from ytuning.features.codecs import row_bytes
from ytuning.features.features import Features, keep_inputs, live_inputs
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairChoice, PairMode
from ytuning.heads.pooled import CrossAttentionConfig, HeadConfig, LabelHead, PooledConfig, build_head
from ytuning.progress import Progress
from ytuning.system.machine import workers
from ytuning.training.batches import shuffled_batches
from ytuning.training.fit import clearly_lower, standard_error
from ytuning.training.joint import Learner, stack_logits, stack_step
from ytuning.training.recipes import Recipe

__all__ = [
    "LayerRanking",
    "MixedStatesHead",
    "RankedStates",
    "SampleProgress",
    "SelectedStatesHead",
    "StateComparison",
    "choose_pair_mode",
    "layer_sets",
    "pair_modes",
    "rank_layers",
    "sample_rows",
]

STEPS, BATCH_ROWS = 160, 64
# Number of validations, at equal distances. Each set counts at its best one, as sets do not overfit equally soon.
ROUNDS = 4
# A set that is this many standard errors behind the best after half the steps is not trained further.
HOPELESS = 2.0
# Adam moves a number by about the learning rate each step, which is too little for softmax weights, so they are scaled.
SHARPNESS = 10.0
# A cheaper set is taken if it is at most this many standard errors of the difference behind the best.
WITHIN = 0.5
SAMPLE_TEXTS = 2000
# Maximum number of bytes of the sample's features, which are held in memory.
SAMPLE_BYTES = 512 << 20
# The heads are measured on this share of the sample.
HELD_OUT = 0.2


def pair_modes(choice: PairChoice, *, has_pairs: bool) -> tuple[PairMode | None, ...]:
    """The ways to try, first the one that is taken unless the other is clearly better; ``(None,)`` for single texts."""
    if not has_pairs:
        return (None,)
    return ("separate", "joint") if choice == "auto" else (choice,)


def choose_pair_mode(joint: np.ndarray | Tensor, separate: np.ndarray | Tensor) -> PairMode:
    """Choose ``"joint"`` if its losses (N,) are clearly lower than those (N,) of the same rows encoded separately.

    See `fit.clearly_lower`. Otherwise ``"separate"`` is taken: it encodes a text once that many pairs share.
    """
    is_better = clearly_lower(torch.as_tensor(joint), torch.as_tensor(separate))
    return "joint" if is_better else "separate"


@dataclass(frozen=True)
class RankedStates:
    """A set of hidden states and how it did.

    Attributes:
        states: numbers of hidden states, rising.
        loss: mean over the held-out rows, see `kinds.TaskKind.row_losses`.
        behind: mean difference to the best set's, row by row.
        error: standard error of ``behind``.
    """

    states: States
    loss: float
    behind: float
    error: float


@dataclass(frozen=True)
class LayerRanking:
    """What the sample says.

    Attributes:
        default: the states that the task would read without a choice.
        ranked: every set, the best first; empty where no row could be held out.
        mix: weight of each state in the learned mix.
        mix_loss: loss of the head on the mix.
        rows: held out.
        sample: rows whose states were computed.
        states: hidden states that were computed.
        features: features of the sample, by how its pairs were read (``None``: single texts).
    """

    default: States
    ranked: tuple[RankedStates, ...]
    mix: dict[int, float]
    mix_loss: float
    rows: int
    sample: Dataset
    states: States
    features: dict[PairMode | None, Features]

    @property
    def cheapest(self) -> States:
        """The set of the shallowest states, then of the fewest, among those hardly behind the best."""
        near = [ranked for ranked in self.ranked if ranked.behind <= WITHIN * ranked.error]
        if not near:
            return self.default
        return min(near, key=lambda ranked: (ranked.states[-1], len(ranked.states), ranked.behind)).states

    def message(self, states: States) -> str:
        """What was measured, for the user whose task reads ``states``."""
        if not self.ranked:
            return f"layers: {_names(states)} (the default), as no label has rows enough to hold one out and measure"
        losses = {ranked.states: ranked.loss for ranked in self.ranked}
        best = self.ranked[0]
        weights = ", ".join(f"{state} {weight:.0%}" for state, weight in self.mix.items())
        return (
            f"layers: {_names(states)}; on {self.rows:,} held-out rows of a sample the loss is {losses[states]:.4f}, "
            f"of the default ({_names(self.default)}) {losses[self.default]:.4f}, of the best of {len(losses)} sets "
            f"({_names(best.states)}) {best.loss:.4f}, of a learned mix {self.mix_loss:.4f} ({weights})"
        )

    def keep(self, states: States, encoder: Encoder, store: FeatureStore, progress: Progress, codec: str) -> int:
        """Store some of the hidden states of the sample; returns how many of its texts are new to the store."""
        positions = [self.states.index(state) for state in states]
        written = 0
        for features in self.features.values():
            chosen = features.at_positions(positions)
            written += keep_inputs(self.sample.inputs, chosen, encoder, store, progress, states=states, codec=codec)
        return written


def layer_sets(depth: int, default: States, *, single: bool = False) -> list[States]:
    """Some sets of hidden states of an encoder of ``depth`` layers, ``default`` first.

    They are of the states at a third, half, two thirds and five sixths of the depth and of the last two: each alone
    (``single``), or two of them, neighbours and some further apart. A small head on a sample makes little of a second
    state, so that sets of one would be taken where the task's head on all rows does better on two.
    """
    third, half, lower = (max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3))
    upper, last = min(depth, max(lower + 1, round(depth * 5 / 6))), depth
    if single:
        return list(dict.fromkeys([default, (third,), (half,), (lower,), (upper,), (last,)]))
    two = [(third, half), (half, lower), (lower, upper), (upper, last), (last - 1, last), (half, upper), (lower, last)]
    return list(dict.fromkeys([default, *((below, above) for below, above in two if 0 < below < above)]))


def rank_layers(
    train: Dataset,
    encoder: Encoder,
    recipe: Recipe,
    *,
    modes: Sequence[PairMode | None],
    seed: int,
    progress: Progress,
    target: TaskKind,
) -> LayerRanking:
    """Compare sets of hidden states on up to 2,000 rows, four fifths of which small heads of the recipe learn.

    Args:
        train: rows of the task.
        encoder: reads the sample.
        recipe: form of the head; a cross-attention head reads a single state.
        modes: ways of reading pairs, ``None`` of single texts; of both the joint one ranks where the default states are
            clearly better in it (by raw losses: heads that learn for few steps are hardly too sure of themselves).
        seed: seed of the sample, the held-out rows, the weights and the order of rows.
        progress: is told every step.
        target: kind of the task, with the labels of all training rows.

    Raises:
        EncoderError, InputError: as loading and training.
    """
    single = isinstance(recipe.head, CrossAttentionConfig)
    default = encoder.resolve_states(recipe.layers, pairs=train.has_pairs)
    sets = layer_sets(encoder.depth, default, single=single)
    states = tuple(sorted({layer for layers in sets for layer in layers}))
    sample = sample_rows(train, seed, encoder, len(states))
    features: dict[PairMode | None, Features] = {
        mode: live_inputs(sample.inputs, encoder, states=states, pair_mode=mode) for mode in modes
    }
    try:
        rows, held = split_holdout(sample, seed, fraction=HELD_OUT)
    except DataError:
        return LayerRanking(default, (), {}, math.nan, 0, sample, states, features)
    truth = target.encode(labels_of(sample))
    by_mode = {
        mode: StateComparison(of_mode, target, truth, (rows, held), states, recipe, seed, progress).compare(
            sets, two=not single
        )
        for mode, of_mode in features.items()
    }
    by_set, mix, mix_loss = next(iter(by_mode.values()))
    if len(by_mode) > 1:
        # The sets are compared in the way in which the task will probably read pairs.
        joint, separate = by_mode["joint"], by_mode["separate"]
        by_set, mix, mix_loss = by_mode[choose_pair_mode(joint[0][default], separate[0][default])]
    best = min(by_set.values(), key=lambda losses: float(losses.mean()))
    ranked = [
        RankedStates(layers, float(losses.mean()), float((losses - best).mean()), standard_error(losses - best))
        for layers, losses in by_set.items()
    ]
    ranked.sort(key=lambda ranked: ranked.loss)
    return LayerRanking(default, tuple(ranked), mix, mix_loss, len(held), sample, states, features)


def _names(states: States) -> str:
    return ", ".join(map(str, states))


class SelectedStatesHead(nn.Module):
    """A head on some of the hidden states of features."""

    def __init__(self, head: LabelHead, positions: Sequence[int]) -> None:
        super().__init__()
        self.head, self.positions = head, list(positions)

    def forward(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The head's logits; arguments as it takes them."""
        logits: Tensor = self.head(features[:, :, self.positions], mask, generator)
        return logits


class MixedStatesHead(nn.Module):
    """A head on a learned softmax mix of all hidden states, each normalised first: deep ones can be far larger."""

    def __init__(self, head: LabelHead, states: int) -> None:
        super().__init__()
        self.head, self.scores = head, nn.Parameter(torch.zeros(states))

    @property
    def weights(self) -> Tensor:
        """The weights (L,) of the hidden states; their sum is 1."""
        return (SHARPNESS * self.scores).softmax(0)

    def forward(self, features: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The head's logits; arguments as it takes them."""
        states = functional.layer_norm(features, features.shape[-1:])
        mixed = torch.einsum("btld,l->btd", states, self.weights.to(states.dtype))
        logits: Tensor = self.head(mixed[:, :, None], mask, generator)
        return logits


class StateComparison:
    """Heads that learn some rows of a sample and are measured on the others."""

    def __init__(
        self,
        features: Features,
        target: TaskKind,
        truth: np.ndarray,
        split: tuple[np.ndarray, np.ndarray],
        states: States,
        recipe: Recipe,
        seed: int,
        progress: Progress,
    ) -> None:
        """Take ``split``, the positions of the rows to train on and of those held out."""
        self.features, self.target, self.states = features, target, states
        self.goal = torch.from_numpy(truth)
        self.rows, self.held = map(torch.from_numpy, split)
        self.recipe, self.seed, self.progress = recipe, seed, SampleProgress(progress)

    def compare(self, sets: Sequence[States], *, two: bool) -> tuple[dict[States, Tensor], dict[int, float], float]:
        """Losses (held rows,) of each set, and the weights and the loss of the mix.

        The mix is learned first and, with ``two``, gives a set more: the states that it weighs most.
        """
        mixed = MixedStatesHead(self._head(1), len(self.states))
        (mix_losses,) = self._losses([mixed])
        weights = dict(zip(self.states, mixed.weights.tolist(), strict=True))
        heaviest = tuple(sorted(sorted(weights, key=lambda state: -weights[state])[:2]))
        sets = list(dict.fromkeys([*sets, heaviest] if two else sets))
        positions = [[self.states.index(state) for state in states] for states in sets]
        losses = self._losses([SelectedStatesHead(self._head(len(some)), some) for some in positions])
        return dict(zip(sets, losses, strict=True)), weights, float(mix_losses.mean())

    def _head(self, layers: int) -> LabelHead:
        """A small head of the recipe's form; of any number of states the same draws, as far as its shapes allow."""
        return build_head(
            _small(self.recipe.head),
            labels=self.target.outputs,
            layers=layers,
            width=self.features.width,
            pair_mode=self.features.pair_mode,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _losses(self, heads: Sequence[nn.Module]) -> list[Tensor]:
        """Train the heads together and return each one's losses (held rows,) at its best round.

        What a head learns does not depend on the others, but how long it does; the first always learns to the end.
        """
        learners = [self._learner(cast("LabelHead", head)) for head in heads]
        size = max(16, min(BATCH_ROWS, len(self.rows) // 16))
        batches = shuffled_batches(self.features.lengths, self.rows, size, self.seed, stored=self.features)
        goal = self.goal[self.held]
        best: dict[int, Tensor] = {}
        active = list(range(len(learners)))
        with workers() as pool:
            for step in range(1, STEPS + 1):
                some = [learners[position] for position in active]
                stack_step(some, self.features, next(batches), pool)
                self.progress.step("layers", step, STEPS)
                if step % (STEPS // ROUNDS):
                    continue
                logits = stack_logits([learner.head for learner in some], self.features, self.held, pool)
                for position, learner, of_head in zip(active, some, logits, strict=True):
                    losses = self.target.row_losses(of_head, goal)
                    best[position] = min(best.get(position, losses), losses, key=_mean)
                    learner.head.train()
                if 2 * step >= STEPS:
                    lowest = min(best.values(), key=_mean)
                    active = [position for position in active if position == 0 or _is_near(best[position] - lowest)]
        return [best[position] for position in range(len(heads))]

    def _learner(self, head: LabelHead) -> Learner:
        config = self.recipe.training
        # The sets are compared by cross-entropy, whatever the recipe's loss.
        loss = self.target.loss("cross_entropy", self.goal[self.rows], smoothing=config.label_smoothing)
        return Learner(head.train(), self.goal, loss, config=config, total=STEPS, seed=self.seed)


def _mean(losses: Tensor) -> float:
    return float(losses.mean())


def _is_near(behind: Tensor) -> bool:
    """Whether losses (held rows,) that a set has more than the best are no reason to give it up."""
    return _mean(behind) <= HOPELESS * standard_error(behind)


def _small(config: HeadConfig) -> HeadConfig:
    return replace(config, members=1) if isinstance(config, PooledConfig) else config


def sample_rows(train: Dataset, seed: int, encoder: Encoder, states: int) -> Dataset:
    """Rows of ``train`` in about the labels' shares, so many that features of that many states fit in memory."""
    some = train.select(range(0, len(train), max(1, len(train) // 256)))
    tokens = encoder.tokenize(some.inputs).lengths.mean()
    most = int(SAMPLE_BYTES / (tokens * row_bytes("fp16", states, encoder.identity.width)))
    most = max(2, min(SAMPLE_TEXTS, most))
    if len(train) <= most:
        return train
    try:
        # The sample need not hold whole groups: it is split once more, and that split keeps them together.
        _, chosen = split_holdout(replace(train, groups=None), seed, fraction=most / len(train), most=most)
    except DataError:
        # Hardly a label occurs twice, so there are no shares to keep.
        chosen = np.arange(most)
    return train.select(chosen)


class SampleProgress(Progress):
    """Tells the training on the sample apart from the task's own."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report every stage as the stage of the sample."""
        self.progress.step("sample", done, total, note)

    def say(self, message: str) -> None:
        """Pass the message on."""
        self.progress.say(message)

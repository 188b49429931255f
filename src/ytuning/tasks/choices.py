"""What the main job chooses by measuring: how pairs are read, and with ``--layers auto`` which hidden states.

Hidden states are chosen on a sample of the task's rows, whose states are computed once. Some sets of states
(:func:`layer_sets`) are compared by linear probes in closed form (`tasks/probes.py`). The sample is so small that all
of this takes at most a tenth of the time of the encoder pass over all rows (:func:`affordable_rows`).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ytuning.data.dataset import Dataset, labels_of
from ytuning.data.kinds import TaskKind
from ytuning.data.splits import linked_rows, split_holdout
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.pretrained import States, state_at
from ytuning.errors import DataError
from ytuning.features.codecs import row_bytes
from ytuning.features.features import Features, keep_inputs, live_inputs, mean_pooled
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairChoice, PairMode
from ytuning.heads.pooled import CrossAttentionConfig
from ytuning.progress import Progress
from ytuning.tasks.probes import left_out_errors, linear_goal, state_kernels
from ytuning.training.fit import CLEARLY, clearly_lower, standard_error
from ytuning.training.recipes import Recipe

__all__ = [
    "LayerRanking", "RankedStates", "affordable_rows", "choose_pair_mode", "layer_sets", "pair_modes", "rank_layers",
    "sample_rows",
]  # fmt: skip

# Strengths of the ridge regression, of which the one that suits the default states best is used for all sets. On 1,000
# rows of TREC-6, CoLA and BANKING77 and the default encoder the best ones are 0.0003, 0.01 and 0.0003.
STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03)
# A cheaper set is taken if it is at most this many standard errors of the difference behind the best.
WITHIN = 0.5
SAMPLE_TEXTS = 2000
# With fewer rows in the sample nothing is compared.
FEWEST_ROWS = 200
# Maximum number of bytes of the sample's features, which are held in memory.
SAMPLE_BYTES = 512 << 20
# The comparison may take this share of the time of the encoder pass over all rows.
SHARE = 0.1
# A multiplication of a probe takes as long as so many of the encoder in bfloat16, and a token's place in a pool as so
# many more (measured on one core of an AMX Xeon).
PROBE_COST, POOL_COST = 7.0, 400.0


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
        loss: mean over the sample's rows of a linear probe's squared error, see `probes.left_out_errors`.
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
        ranked: every set, the best first; empty where the sample would have been too small.
        sample: rows that were compared on, or would have been.
        states: hidden states that were computed.
        features: features of the sample, by how its pairs were read (``None``: single texts).
    """

    default: States
    ranked: tuple[RankedStates, ...]
    sample: Dataset
    states: States
    features: dict[PairMode | None, Features]

    @property
    def choice(self) -> States:
        """The default unless the best set is clearly better; then the cheapest of those hardly behind the best.

        Clearly means that the default is more than ``CLEARLY`` standard errors of the difference behind. Tasks that
        read the default share one store and, in a server, one pass. The cheapest has the shallowest states, then the
        fewest.
        """
        if all(ranked.behind <= CLEARLY * ranked.error for ranked in self.ranked if ranked.states == self.default):
            return self.default
        near = [ranked for ranked in self.ranked if ranked.behind <= WITHIN * ranked.error]
        return min(near, key=lambda ranked: (ranked.states[-1], len(ranked.states), ranked.behind)).states

    def message(self) -> str:
        """What was measured, for the user whose task reads the choice."""
        states = self.choice
        if not self.ranked:
            return (
                f"layers: {_names(states)} (the default), as there are too few rows to choose: a sample that takes a "
                f"tenth of the encoder's time has {len(self.sample):,}, and at least {FEWEST_ROWS} are needed"
            )
        losses = {ranked.states: ranked.loss for ranked in self.ranked}
        best = self.ranked[0].states
        return (
            f"layers: {_names(states)}; the squared error of linear probes on a sample of {len(self.sample):,} rows is "
            f"{losses[states]:.4f}, of the default ({_names(self.default)}) {losses[self.default]:.4f}, of the best of "
            f"{len(losses)} sets ({_names(best)}) {losses[best]:.4f}"
        )

    def keep(self, states: States, encoder: Encoder, store: FeatureStore, progress: Progress, codec: str) -> int:
        """Store some of the hidden states of the sample; returns how many of its texts are new to the store."""
        return sum(
            keep_inputs(
                self.sample.inputs, features, encoder, store, progress, held=self.states, states=states, codec=codec
            )
            for features in self.features.values()
        )


def layer_sets(depth: int, default: States, *, single: bool = False) -> list[States]:
    """Some sets of hidden states of an encoder of ``depth`` layers, ``default`` first.

    They are one (``single``) to three of the states at a third, half, two thirds and five sixths of the depth and of
    the last one.
    """
    third, half, lower = (state_at(depth, share) for share in (1 / 3, 1 / 2, 2 / 3))
    # With few layers two thirds and five sixths are the same state.
    upper, last = min(depth, max(lower + 1, state_at(depth, 5 / 6))), depth
    if single:
        return list(dict.fromkeys([default, (third,), (half,), (lower,), (upper,), (last,)]))
    several = [
        (last,), (third, half), (half, lower), (half, upper), (half, last), (lower, last), (upper, last),
        (third, half, lower), (third, lower, last), (half, upper, last), (lower, upper, last),
    ]  # fmt: skip
    return list(dict.fromkeys([default, *(tuple(sorted(set(states))) for states in several)]))


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
    """Compare sets of hidden states by linear probes on a sample of the rows.

    Args:
        train: rows of the task.
        encoder: reads the sample.
        recipe: form of the head; a cross-attention head reads a single state.
        modes: ways of reading pairs, ``None`` of single texts; of both the joint one ranks where the default states are
            clearly better in it.
        seed: seed of the sample.
        progress: is told of every set.
        target: kind of the task, with the labels of all training rows.

    Raises:
        EncoderError, InputError: as loading and encoding.
    """
    default = encoder.resolve_states(recipe.layers)
    sets = layer_sets(encoder.depth, default, single=isinstance(recipe.head, CrossAttentionConfig))
    states = tuple(sorted({layer for layers in sets for layer in layers}))
    sample = sample_rows(train, seed, encoder, default, sets)
    if len(sample) < FEWEST_ROWS:
        return LayerRanking(default, (), sample, states, {})
    features: dict[PairMode | None, Features] = {
        mode: live_inputs(sample.inputs, encoder, states=states, pair_mode=mode) for mode in modes
    }
    goal = linear_goal(target, target.encode(labels_of(sample)))
    linked = [rows for rows in linked_rows(sample) if len(rows) > 1]
    # The default states come first: the strength is chosen with them.
    positions = [[states.index(state) for state in layers] for layers in sets]
    by_mode = {mode: _errors_of_sets(of_mode, goal, positions, linked, progress) for mode, of_mode in features.items()}
    errors = next(iter(by_mode.values()))
    if len(by_mode) > 1:
        # The sets are compared in the way in which the task will probably read pairs.
        errors = by_mode[choose_pair_mode(by_mode["joint"][0], by_mode["separate"][0])]
    best = min(errors, key=lambda of_set: float(of_set.mean()))
    ranked = [
        RankedStates(layers, float(of_set.mean()), float((of_set - best).mean()), standard_error(of_set - best))
        for layers, of_set in zip(sets, errors, strict=True)
    ]
    return LayerRanking(default, tuple(sorted(ranked, key=lambda ranked: ranked.loss)), sample, states, features)


def _names(states: States) -> str:
    return ", ".join(map(str, states))


def _errors_of_sets(
    features: Features,
    goal: Tensor,
    sets: Sequence[Sequence[int]],
    linked: Sequence[Sequence[int]],
    progress: Progress,
) -> list[Tensor]:
    """Squared errors (rows,) of each set of positions of states, with the strength that suits the first set best."""
    # (rows, P * L * D) -> (rows, P, L, D)
    pooled = torch.from_numpy(mean_pooled(features)).view(len(features), -1, features.layers, features.width)
    kernels = state_kernels(pooled)

    def errors(positions: Sequence[int], strength: float) -> Tensor:
        return left_out_errors(kernels[list(positions)].mean(0), goal, strength, linked)

    tried = {strength: errors(sets[0], strength) for strength in STRENGTHS}
    strength = min(tried, key=lambda strength: float(tried[strength].mean()))
    of_sets = [tried[strength]]
    for positions in sets[1:]:
        of_sets.append(errors(positions, strength))
        progress.step("layers", len(of_sets), len(sets))
    return of_sets


def affordable_rows(
    rows: int, tokens: float, width: int, *, default: States, sets: Sequence[States], pools: int
) -> int:
    """The size of the largest sample on which a comparison takes at most ``SHARE`` of the encoder pass.

    Multiplications are counted. A layer has about 12 * D^2 weights: 4 * D^2 of attention and 8 * D^2 of the
    feed-forward part. The sample's states up to the deepest default one are part of the pass, as they are stored.

    Args:
        rows: rows of the task.
        tokens: mean tokens of a row.
        width: D, size of a hidden state.
        default: states that the pass computes.
        sets: sets of states that are compared.
        pools: P, pools of a state that a probe reads.
    """
    states = {state for layers in sets for state in layers}
    layer = 12 * width**2
    deeper = max(0, max(states) - default[-1])

    def cost(sample: int) -> float:
        # The inverse takes half of rows^3.
        probes = pools * width * len(states) * sample**2 + (len(sets) + len(STRENGTHS)) * sample**3 / 2
        pooling = sample * tokens * len(states) * width
        return sample * tokens * deeper * layer + PROBE_COST * probes + POOL_COST * pooling

    budget = SHARE * rows * tokens * default[-1] * layer
    return bisect.bisect_right(range(1, min(rows, SAMPLE_TEXTS) + 1), budget, key=cost)


def sample_rows(train: Dataset, seed: int, encoder: Encoder, default: States, sets: Sequence[States]) -> Dataset:
    """Rows of ``train`` in about the labels' shares, so few that a comparison is cheap and fits in memory."""
    some = train.select(range(0, len(train), max(1, len(train) // 256)))
    tokens, width = float(encoder.tokenize(some.inputs).lengths.mean()), encoder.identity.width
    states = {state for layers in sets for state in layers}
    fitting = int(SAMPLE_BYTES / (tokens * row_bytes("fp16", len(states), width)))
    pools = 4 if train.has_pairs else 1
    most = min(fitting, affordable_rows(len(train), tokens, width, default=default, sets=sets, pools=pools))
    most = max(2, most)
    if len(train) <= most:
        return train
    try:
        # The sample need not hold whole groups: linked rows are left out together when errors are computed.
        _, chosen = split_holdout(replace(train, groups=None), seed, fraction=most / len(train), most=most)
    except DataError:
        # Hardly a label occurs twice, so there are no shares to keep.
        chosen = np.arange(most)
    return train.select(chosen)

"""How heads are formed and trained: configurations, and presets of them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ytuning.errors import InputError, allowed
from ytuning.head import CrossAttentionConfig, HeadConfig, PooledConfig

__all__ = ["PRESETS", "Recipe", "TrainingConfig", "preset", "weighing_labels"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained; steps follow from the number of rows by one rule for every data set.

    Attributes:
        loss: ``"cross_entropy"``, ``"focal"``, or ``"triplet"`` with ``margin``; see :func:`ytuning.losses.build_loss`.
        margin: by which the true label's logit should exceed every other, or of several labels its own absence.
        label_smoothing: share of the target that cross-entropy spreads over all labels.
        epochs: wanted passes over the train rows...
        fewest_steps: ...but at least so many optimiser steps, as small sets are under-trained otherwise...
        label_steps: ...and at least so many for each label, as a label's row learns most where the label occurs...
        most_steps: ...and at most so many.
        batch_size: rows in a step, and at most a sixteenth of the train rows (but 16).
        learning_rate: highest rate of AdamW, reached after ``warmup`` (share of the steps), then linear decay to 0.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        rounds: validations, at equal distances.
        patience: rounds in a row, each worse than the best by over a standard error, that end the training.
        refit_factor: once validation has chosen a head it takes further steps on all rows, validation rows included: of
            the steps that it was trained for, so many times the share of rows that are new to it...
        refit_rate: ...with this share of the learning rate.
        label_weights: of a row's loss, by its label: ``None``, ``"balanced"`` (n / (C * count); of several labels the
            root of that, and at least 1), or the weight of each label by id, scaled so that the train rows' mean is 1.
    """

    loss: str = "cross_entropy"
    margin: float = 2.0
    label_smoothing: float = 0.1
    epochs: int = 4
    fewest_steps: int = 300
    label_steps: int = 6
    most_steps: int = 1100
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    rounds: int = 5
    patience: int = 2
    refit_factor: float = 2.0
    refit_rate: float = 0.3
    label_weights: str | tuple[float, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """A head's form, how it is trained, and the hidden states that it reads.

    Attributes:
        head: form and sizes.
        training: losses, steps and rates.
        layers: hidden states of the encoder, as for :func:`ytuning.encoder.load_encoder`; ``None``: its default ones.
    """

    head: HeadConfig = field(default_factory=PooledConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    layers: tuple[int, ...] | None = None


def default_recipe() -> Recipe:
    """Pool first, then match: chosen by experiment on validation rows (benchmarks/RESULTS.md)."""
    return Recipe(PooledConfig(), TrainingConfig())


def paper_recipe() -> Recipe:
    """Label rows that attend to every token of the last hidden state, triplet loss: Y-Tuning (arXiv 2202.09817)."""
    training = TrainingConfig(loss="triplet", learning_rate=1e-3, epochs=7, fewest_steps=500)
    return Recipe(CrossAttentionConfig(), training, layers=(-1,))


PRESETS: dict[str, Callable[[], Recipe]] = {"default": default_recipe, "paper": paper_recipe}


def preset(name: str) -> Recipe:
    """The recipe of a preset's name.

    Raises:
        InputError: unknown name.
    """
    if name not in PRESETS:
        raise InputError(allowed("preset", name, PRESETS))
    return PRESETS[name]()


def weighing_labels(recipe: Recipe, weights: str | tuple[float, ...] | None) -> Recipe:
    """The recipe with label weights, see :class:`TrainingConfig`."""
    return replace(recipe, training=replace(recipe.training, label_weights=weights))

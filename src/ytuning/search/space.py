"""What a search chooses from, and how its choices make a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ytuning.data.kinds import LOSSES, TaskKind
from ytuning.heads.light import text_width
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import CrossAttentionConfig, HeadConfig, LightConfig, PooledConfig, build_head
from ytuning.training.members import fits_light_member, light_width
from ytuning.training.recipes import Recipe

__all__ = ["SHARED", "Choices", "Interval", "Options", "Space", "head_size"]

# Trials that are trained in one read of the features have the same values of these parameters.
SHARED = ("preset", "pairs", "layers", "layer")
WIDTHS = (32, 48, 64, 96)
# A head for up to this number of labels may have this share of the encoder's number of parameters.
BUDGET, BUDGET_LABELS = 0.02, 8

Choices = dict[str, Any]
"""Parameter -> value, JSON-ready."""


@dataclass(frozen=True)
class Options:
    """A choice of one of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Interval:
    """A number from ``low`` to ``high``, in steps of ``step`` if there is one, or even in its logarithm."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Space:
    """The recipes that a search can try, which are variations of presets.

    Attributes:
        presets: recipes to start from, by name; the first one's is the first trial.
        layers: sets of hidden states, the default one first.
        modes: ways of reading pairs, ``(None,)`` of single texts.
        target: kind of the task.
        width: D, the width of the encoder.
        parameters: number of the encoder's parameters.
    """

    presets: Mapping[str, Recipe]
    layers: Sequence[tuple[int, ...]]
    modes: Sequence[PairMode | None]
    target: TaskKind
    width: int
    parameters: int

    def parameters_of(self, preset: str) -> dict[str, Options | Interval]:
        """What there is to choose with a preset; what trials share comes first."""
        base = self.presets[preset]
        parameters: dict[str, Options | Interval] = {"preset": Options(tuple(self.presets))}
        if len(self.modes) > 1:
            parameters["pairs"] = Options(tuple(self.modes))
        # This form reads the deepest of its states only.
        if isinstance(base.head, CrossAttentionConfig):
            parameters["layer"] = Options(tuple(str(layer) for layer in self._single))
        else:
            parameters["layers"] = Options(tuple(_layers_key(layers) for layers in self.layers))
        parameters["learning_rate"] = Interval(2e-4, 2e-2, log=True)
        parameters["length"] = Interval(0.5, 2.0, log=True)
        parameters["dropout"] = Interval(0.0, 0.4, step=0.05)
        by_kind: dict[str, Options | Interval] = {
            "loss": Options(LOSSES),
            "label_weights": Options(("none", "balanced")),
            "label_smoothing": Interval(0.0, 0.2, step=0.05),
        }
        parameters |= {name: by_kind[name] for name in self.target.training_options}
        if isinstance(base.head, PooledConfig):
            parameters["token_dropout"] = Interval(0.0, 0.4, step=0.05)
            parameters["side_by_side"] = Options(tuple(range(1, 9)))
            parameters["width"] = Options(tuple(sorted({*WIDTHS, base.head.width})))
        return parameters

    @property
    def start(self) -> Choices:
        """The choices that make the first preset's own recipe."""
        preset, base = next(iter(self.presets.items()))
        training, head = base.training, base.head
        # A light head has nothing to search for.
        assert not isinstance(head, LightConfig)
        values: Choices = {
            "preset": preset,
            "pairs": self.modes[0],
            "layers": _layers_key(self.layers[0]),
            "layer": str(self.layers[0][-1]),
            "learning_rate": training.learning_rate,
            "length": 1.0,
            "dropout": head.dropout,
            "loss": training.loss,
            "label_weights": "none",
            "label_smoothing": training.label_smoothing,
        }
        if isinstance(head, PooledConfig):
            values |= {"token_dropout": head.token_dropout, "side_by_side": head.side_by_side, "width": head.width}
        return {name: values[name] for name in self.parameters_of(preset)}

    @property
    def openings(self) -> list[Choices]:
        """What the first batches of trials share, one after the other: every set of states and every form once.

        The sampler alone would settle on what one lucky batch shared.
        """
        openings: list[Choices] = []
        for name, base in self.presets.items():
            if isinstance(base.head, CrossAttentionConfig):
                openings.append({"preset": name, "layer": str(self._single[0])})
            else:
                openings += [{"preset": name, "layers": _layers_key(layers)} for layers in self.layers]
        if len(self.modes) > 1:
            openings = [{**opening, "pairs": self.modes[at % len(self.modes)]} for at, opening in enumerate(openings)]
        return openings

    def recipe(self, choices: Choices) -> Recipe:
        """The recipe of choices; members that would exceed the budget for few labels are left out."""
        base = self.presets[choices["preset"]]
        layers = tuple(int(layer) for layer in str(choices.get("layers", choices.get("layer"))).split(","))
        training, length = base.training, choices["length"]
        training = replace(
            training,
            **{
                name: max(1, round(getattr(training, name) * length))
                for name in ("epochs", "fewest_steps", "most_steps")
            },
            label_steps=round(training.label_steps * length),
            learning_rate=choices["learning_rate"],
            loss=choices.get("loss", training.loss),
            label_smoothing=choices.get("label_smoothing", training.label_smoothing),
            label_weights="balanced" if choices.get("label_weights") == "balanced" else None,
        )
        return Recipe(self._head(base.head, choices, len(layers)), training, layers)

    def mode(self, choices: Choices) -> PairMode | None:
        """Return how a trial's pairs are read."""
        mode: PairMode | None = choices.get("pairs", self.modes[0])
        return mode

    def size(self, config: HeadConfig, layers: int, mode: PairMode | None) -> int:
        """Return the number of parameters that a head of this task on this number of hidden states has at most."""
        numbers = text_width(layers, self.width, mode)
        if isinstance(config, PooledConfig) and fits_light_member(numbers, self.target.outputs):
            config = replace(config, light_width=light_width(self.target, config.width))
        return head_size(config, labels=self.target.outputs, layers=layers, width=self.width, pair_mode=mode)

    @property
    def _single(self) -> list[int]:
        """Every state of the sets, the default's deepest first."""
        return list(dict.fromkeys([self.layers[0][-1], *(layer for layers in self.layers for layer in layers)]))

    def _head(self, base: HeadConfig, choices: Choices, layers: int) -> HeadConfig:
        if not isinstance(base, PooledConfig):
            return replace(base, dropout=choices["dropout"])
        mode, width = self.mode(choices), choices["width"]
        most = max(BUDGET * self.parameters, self.size(base, len(self.layers[0]), mode))
        head = replace(
            base,
            side_by_side=choices["side_by_side"],
            width=width,
            token_width=max(1, base.token_width * width // base.width),
            mixing_width=max(1, base.mixing_width * width // base.width),
            dropout=choices["dropout"],
            token_dropout=choices["token_dropout"],
        )
        if self.target.outputs <= BUDGET_LABELS:
            while head.side_by_side > 1 and self.size(head, layers, mode) > most:
                head = replace(head, side_by_side=head.side_by_side - 1)
        return head


def head_size(config: HeadConfig, *, labels: int, layers: int, width: int, pair_mode: PairMode | None) -> int:
    """Return the number of parameters of a head; the arguments are those of `pooled.build_head`."""
    with torch.device("meta"):
        head = build_head(config, labels=labels, layers=layers, width=width, pair_mode=pair_mode)
    return sum(parameter.numel() for parameter in head.parameters())


def _layers_key(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))

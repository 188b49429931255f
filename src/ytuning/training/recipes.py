"""How heads are formed and trained: configurations, presets of them by name, and their JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ytuning.data.files import names_like
from ytuning.data.kinds import LOSSES, TaskKind
from ytuning.data.label_texts import LABEL_NAMES, LabelTexts, meaningful_names
from ytuning.errors import InputError, argument, must_be_one_of, parameter, wrong_schema
from ytuning.heads.pooled import (
    CrossAttentionConfig,
    HeadConfig,
    LabelTuningConfig,
    LightConfig,
    PooledConfig,
    config_from_json,
    config_to_json,
)
from ytuning.system.files import read_input

__all__ = [
    "AUTO_LAYERS",
    "AUTO_PRESET",
    "PRESETS",
    "Recipe",
    "TrainingConfig",
    "default_label_texts",
    "head_from_json",
    "preset",
    "preset_recipes",
    "read_recipe",
    "reading_layers",
    "recipe_from_json",
    "recipe_to_json",
    "stepwise_presets",
    "weighing_labels",
]

AUTO_LAYERS: Final = "auto"
AUTO_PRESET: Final = "auto"
RECIPE_SCHEMA = 1
# Larger sizes of a head are mistakes, and could take any time and memory.
LARGEST_SIZE, LARGEST_SIZES = 65_536, {"blocks": 64, "side_by_side": 1024, "alone": 1024, "members": 64}
# These numbers of a config lie from 0 to below 1.
SHARES = ("label_smoothing", "warmup", "dropout", "token_dropout")
FROM_ZERO = ("label_steps", "margin", "weight_decay", "refit_factor", "refit_rate", "rare_rows", "light_width")
"""These numbers of a config may be 0; other whole numbers are at least 1, others above 0."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained; steps follow from the number of rows by one rule for every data set.

    Attributes:
        loss: ``"cross_entropy"``, ``"focal"``, or ``"triplet"`` with ``margin``; see `kinds.TaskKind.loss`.
        margin: margin by which the true label's logit should exceed every other, or with several labels its absence.
        label_smoothing: share of the target that cross-entropy spreads over all labels.
        epochs: wanted passes over the train rows...
        fewest_steps: ...but at least so many optimiser steps, as small sets are under-trained otherwise...
        label_steps: ...and at least so many for each label, as a label's row learns most where the label occurs...
        most_steps: ...and at most so many.
        batch_size: rows in a step, and at most a sixteenth of the train rows (but 16).
        learning_rate: highest rate of AdamW, reached after ``warmup`` (share of the steps), then linear decay to 0.
        weight_decay: weight decay of AdamW, of matrices; label rows and biases do not decay.
        clip_norm: largest norm of the gradient.
        rounds: validations, at equal distances.
        patience: rounds in a row, each worse than the best by over a standard error, that end the training.
        refit_factor: once validation has chosen a head it takes further steps on all rows, validation rows included: of
            the steps that it was trained for, so many times the share of rows that are new to it...
        refit_rate: ...with this share of the learning rate.
        rare_rows: k; with several labels a row, a label of n training rows is treated as rare by the share k / (n + k),
            see `training/rare_labels.py`; with one label a row, see `kinds.single`. 0: not at all. Chosen on rows of
            GoEmotions and BANKING77 whose labels were cut to few rows (benchmarks/LOG.md).
        label_weights: weights of a row's loss, by its label: ``None``; ``"balanced"``, which is n / (C * count), or
            with several labels a row the root of that, at least 1; or each label's weight by id, scaled to a mean of 1
            over the training rows.
    """

    loss: str = "cross_entropy"
    margin: float = 2.0
    label_smoothing: float = 0.1
    epochs: int = 4
    fewest_steps: int = 450
    label_steps: int = 6
    most_steps: int = 1100
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.3
    warmup: float = 0.1
    clip_norm: float = 1.0
    rounds: int = 5
    patience: int = 2
    refit_factor: float = 2.0
    refit_rate: float = 0.3
    rare_rows: float = 50.0
    label_weights: str | tuple[float, ...] | None = None

    def smoothing_of(self, target: TaskKind) -> float:
        """The label smoothing whose loss is least at smoothed probabilities, so that it can be undone; else 0."""
        return self.label_smoothing if target.undoes_smoothing and self.loss == "cross_entropy" else 0.0


@dataclass(frozen=True)
class Recipe:
    """A head's form, how it is trained, and the hidden states that it reads.

    Attributes:
        head: form and sizes.
        training: losses, steps and rates.
        layers: numbers of hidden states, see `Encoder.resolve_states`; ``None``: the encoder's default ones.
    """

    head: HeadConfig = field(default_factory=PooledConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    layers: tuple[int, ...] | None = None


PRESETS: dict[str, Callable[[], Recipe]] = {
    # Pool first, then match: chosen by experiment on validation rows (benchmarks/LOG.md).
    "default": Recipe,
    # Label rows in the space of the last hidden state, for a few rows of each label: label tuning (arXiv 2203.14655).
    # Label smoothing costs where a row is most of what is known of its label.
    "few-shot": lambda: Recipe(LabelTuningConfig(), TrainingConfig(label_smoothing=0.0), layers=(-1,)),
    # Label rows that attend to every token of the last hidden state, triplet loss: Y-Tuning (arXiv 2202.09817).
    "paper": lambda: Recipe(
        CrossAttentionConfig(),
        TrainingConfig(loss="triplet", learning_rate=1e-3, epochs=7, fewest_steps=500, weight_decay=0.01),
        layers=(-1,),
    ),
    # Label rows in closed form on pools that all tasks share. There are no steps, so the training has no other choices.
    "light": lambda: Recipe(LightConfig(), TrainingConfig(label_smoothing=0.0)),
}


def preset(name: str) -> Recipe:
    """The recipe of a preset's name.

    Raises:
        InputError: the name is unknown.
    """
    if name not in PRESETS:
        hint = " auto is two recipes, for ytuning train and the estimators" if name == AUTO_PRESET else ""
        raise InputError(must_be_one_of(parameter("preset"), name, PRESETS) + hint)
    return PRESETS[name]()


def preset_recipes(name: str) -> dict[str, Recipe]:
    """The recipes that a preset's name stands for, the cheapest first: several of ``auto``, else one.

    Raises:
        InputError: the name is unknown.
    """
    if name == AUTO_PRESET:
        return {cheap: preset(cheap) for cheap in ("light", "default")}
    if name not in PRESETS:
        raise InputError(must_be_one_of(parameter("preset"), name, (*PRESETS, AUTO_PRESET)))
    return {name: preset(name)}


def stepwise_presets() -> tuple[str, ...]:
    """The presets whose heads learn step by step, with rates and losses that a search can vary."""
    return tuple(name for name, make in PRESETS.items() if not isinstance(make().head, LightConfig))


def weighing_labels(recipe: Recipe, weights: str | tuple[float, ...] | None) -> Recipe:
    """The recipe with label weights, see :class:`TrainingConfig`."""
    return replace(recipe, training=replace(recipe.training, label_weights=weights))


def reading_layers(recipe: Recipe, text: str) -> Recipe:
    """The recipe with the hidden states of ``--layers``; ``default`` and ``auto`` leave it as it is.

    Raises:
        InputError: the text is neither a known name nor numbers.
    """
    if text in ("default", AUTO_LAYERS):
        return recipe
    if text == "last":
        return replace(recipe, layers=(-1,))
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{parameter('layers')} must be auto, default, last, or numbers of hidden states with commas, such as 4,5. "
            f"Got {text!r} instead."
        ) from None
    return replace(recipe, layers=layers)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Return a JSON-ready mapping."""
    weights = recipe.training.label_weights
    training = {**asdict(recipe.training), "label_weights": list(weights) if isinstance(weights, tuple) else weights}
    layers = None if recipe.layers is None else list(recipe.layers)
    return {"schema": RECIPE_SCHEMA, "head": config_to_json(recipe.head), "training": training, "layers": layers}


def recipe_from_json(value: Any) -> Recipe:
    """The inverse of :func:`recipe_to_json`.

    Raises:
        InputError: a field is missing, unknown or out of its range; the message names it.
    """
    expected = {"schema", "head", "training", "layers"}
    if not isinstance(value, dict) or set(value) != expected:
        raise InputError(f"a recipe has the fields {', '.join(sorted(expected))}. Write one with ytuning search")
    if value["schema"] != RECIPE_SCHEMA:
        raise InputError(wrong_schema("the recipe", value["schema"], RECIPE_SCHEMA, "Write one with ytuning search"))
    head, training, layers = value["head"], value["training"], value["layers"]
    if not isinstance(head, dict) or not isinstance(training, dict):
        raise InputError("the recipe's fields 'head' and 'training' must be mappings. Write one with ytuning search")
    if differing := set(TrainingConfig.__dataclass_fields__) ^ set(training):
        problem = "missing" if min(differing) in TrainingConfig.__dataclass_fields__ else "unknown"
        raise InputError(f"the recipe's field {min(differing)!r} is {problem}. Write one with ytuning search")
    if training["loss"] not in LOSSES:
        raise InputError(must_be_one_of("loss", training["loss"], LOSSES))
    if layers is not None and not (isinstance(layers, list) and layers and all(type(layer) is int for layer in layers)):
        raise InputError(f"layers must be null or a list of whole numbers. Got {layers!r} instead.")
    weights = training["label_weights"]
    if isinstance(weights, list) and all(type(weight) in (int, float) for weight in weights):
        weights = tuple(map(float, weights))
    elif weights not in (None, "balanced"):
        raise InputError(must_be_one_of("label_weights", weights, (None, "balanced", "a weight for each label")))
    numbers = {name: number for name, number in training.items() if name not in ("loss", "label_weights")}
    config = head_from_json(head)
    if isinstance(config, PooledConfig) and config.light_width:
        raise InputError(f"light_width must be 0 in a recipe, as training sets it. Got {config.light_width!r} instead.")
    return Recipe(
        config,
        TrainingConfig(loss=training["loss"], label_weights=weights, **_check_numbers(numbers, TrainingConfig())),
        None if layers is None else tuple(layers),
    )


def head_from_json(value: dict[str, Any]) -> HeadConfig:
    """The form and the sizes of a head, as `pooled.config_to_json` writes them.

    Raises:
        InputError: unknown form, not exactly the form's fields, or a number that is out of its range.
    """
    config = config_from_json(value)
    numbers = _check_numbers(asdict(config), type(config)())
    for name, number in numbers.items():
        most = LARGEST_SIZES.get(name, LARGEST_SIZE)
        if number > most:
            raise InputError(f"{name} must be at most {most:,}. Got {number!r} instead.")
    whole = replace(config, **numbers)
    if isinstance(whole, PooledConfig) and whole.light_width > whole.width:
        raise InputError(f"light_width must be at most width, {whole.width:,}. Got {whole.light_width!r} instead.")
    return whole


def read_recipe(file: str | Path) -> Recipe:
    """The recipe in a JSON file, as ``ytuning search`` writes it.

    Raises:
        InputError: it cannot be read, is not JSON, or holds no recipe.
    """
    path = Path(file)
    try:
        value = json.loads(read_input(path).decode())
    except OSError as error:
        problem = f"cannot read the recipe {path}: {error.strerror or error}."
        like = names_like(path) if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"{problem}{like} Check {argument('file', option='--recipe')}") from error
    except ValueError as error:
        raise InputError(f"the recipe {path} is not JSON ({error}). Write one with ytuning search") from error
    try:
        return recipe_from_json(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_numbers(values: dict[str, Any], like: Any) -> dict[str, Any]:
    """Numbers of the types that a config ``like`` this has, each in its range."""
    numbers: dict[str, Any] = {}
    for name, value in values.items():
        whole = type(getattr(like, name)) is int
        number = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
        if name in SHARES:
            wanted, right = "a share from 0 to less than 1", number and 0 <= value < 1
        elif name in FROM_ZERO:
            wanted, right = f"a {'whole number' if whole else 'number'} of at least 0", number and value >= 0
        elif whole:
            wanted, right = "a whole number of at least 1", number and value >= 1
        else:
            wanted, right = "a number above 0", number and value > 0
        if not right:
            raise InputError(f"{name} must be {wanted}. Got {value!r} instead.")
        numbers[name] = value if whole else float(value)
    return numbers


def default_label_texts(config: HeadConfig, target: TaskKind, *, pairs: bool) -> LabelTexts | None:
    """What a head learns of its labels unless told: label tuning their names in words, where these say something."""
    named = isinstance(config, LabelTuningConfig) and not pairs and meaningful_names(target)
    return LABEL_NAMES if named else None

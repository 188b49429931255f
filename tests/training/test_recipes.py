"""The JSON form of recipes: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ytuning.errors import InputError
from ytuning.training.recipes import (
    PRESETS,
    Recipe,
    preset,
    read_recipe,
    reading_layers,
    recipe_from_json,
    recipe_to_json,
)


def test_presets_by_name() -> None:
    assert preset("paper").layers == (-1,) and preset("default").layers is None
    message = r"^preset must be one of 'default', 'few-shot', 'paper', 'light'\. Got 'best' instead\.$"
    with pytest.raises(InputError, match=message):
        preset("best")


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_goes_through_json(name: str) -> None:
    recipe = preset(name)
    weighed = replace(recipe, layers=(1, 2), training=replace(recipe.training, label_weights=(1.0, 0.5)))
    for each in (recipe, weighed):
        assert recipe_from_json(json.loads(json.dumps(recipe_to_json(each)))) == each


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("training", "epochs", 0, "epochs must be a whole number of at least 1. Got 0 instead."),
        ("training", "epochs", 1.5, "epochs must be a whole number of at least 1. Got 1.5 instead."),
        ("training", "epochs", True, "epochs must be a whole number of at least 1. Got True instead."),
        ("training", "learning_rate", 0, "learning_rate must be a number above 0. Got 0 instead."),
        ("training", "learning_rate", "1", "learning_rate must be a number above 0. Got '1' instead."),
        ("training", "margin", -1.0, "margin must be a number of at least 0. Got -1.0 instead."),
        ("training", "loss", "x", "loss must be one of 'cross_entropy', 'triplet', 'focal'. Got 'x' instead."),
        ("training", "loss", [], "loss must be one of 'cross_entropy', 'triplet', 'focal'. Got [] instead."),
        (
            "training", "label_weights", ["a"],
            "label_weights must be one of None, 'balanced', 'a weight for each label'. Got ['a'] instead.",
        ),
        ("training", "speed", 1, "the recipe's field 'speed' is unknown. Write one with ytuning search"),
        ("head", "dropout", 1.0, "dropout must be a share from 0 to less than 1. Got 1.0 instead."),
        ("head", "light_width", 3, "light_width must be 0 in a recipe, as training sets it. Got 3 instead."),
        ("head", "side_by_side", 0, "side_by_side must be a whole number of at least 1. Got 0 instead."),
        (
            "head", "form", "x",
            "the head's form must be one of 'pooled', 'cross_attention', 'label_tuning', 'light'. Got 'x' instead.",
        ),
        (None, "layers", [], "layers must be null or a list of whole numbers. Got [] instead."),
        (None, "layers", "4", "layers must be null or a list of whole numbers. Got '4' instead."),
        (
            None, "schema", 2,
            "the recipe has schema 2, but this version of ytuning reads schema 1. Write one with ytuning search",
        ),
        (None, "more", 2, "a recipe has the fields head, layers, schema, training. Write one with ytuning search"),
        (None, "head", 3, "the recipe's fields 'head' and 'training' must be mappings. Write one with ytuning search"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused(
    part: str | None, field: str, value: object, message: str, tmp_path: Path
) -> None:
    content: dict[str, Any] = recipe_to_json(Recipe())
    (content if part is None else content[part])[field] = value
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        recipe_from_json(content)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"^{re.escape(f'{file}: {message}')}$"):
        read_recipe(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read the recipe .*: No such file or directory\. Check file=$"):
        read_recipe(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"^the recipe .* is not JSON \(.*\)\. Write one with ytuning search$"):
        read_recipe(tmp_path / "bad.json")


def test_layers_by_name_and_number() -> None:
    assert [reading_layers(Recipe(), text).layers for text in ("default", "auto", "last", "5,4", "3")] == [
        None, None, (-1,), (5, 4), (3,),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"^layers must be auto, default, last, or numbers .* Got '4-5' instead\.$"):
        reading_layers(Recipe(), "4-5")

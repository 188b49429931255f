"""What a search has found so far: its trials, and the file that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ytuning.errors import InputError, argument, quantity, write_errors, wrong_schema
from ytuning.heads.pairs import PairMode
from ytuning.search.space import Choices
from ytuning.system.files import PARTIAL_SUFFIX, commit
from ytuning.tasks.task import check_task_folder
from ytuning.training.recipes import Recipe, recipe_from_json, recipe_to_json

__all__ = ["RECIPE_FILE", "SEARCH_FILE", "TASK_FOLDER", "Log", "Trial", "best_of", "importances"]

SCHEMA = 1
SEARCH_FILE, RECIPE_FILE, TASK_FOLDER = "search.json", "recipe.json", "task"
# A parameter's values are divided into this number of groups to measure its importance.
GROUPS = 4


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried.

    Attributes:
        number: counted from 0.
        choices: what was proposed.
        recipe: made of it.
        pair_mode: how pairs were read; ``None``: single texts.
        loss: calibrated, on validation rows, see `kinds.TaskKind.row_losses`; the less the better.
        score: score as in `fit.Validation`, with its standard error ``error``.
        steps: number of steps at the chosen validation.
        parameters: number of parameters of the head.
        seconds: its share of the time that training its batch took.
    """

    number: int
    choices: Choices
    recipe: Recipe
    pair_mode: PairMode | None
    loss: float
    score: float
    error: float
    steps: int
    parameters: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        fields = asdict(self) | {"recipe": recipe_to_json(self.recipe)}
        fields["pair"] = fields.pop("pair_mode")
        return fields

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Trial:
        """Invert :meth:`to_json`.

        Raises:
            TypeError, KeyError, InputError: the value is not such a mapping.
        """
        fields = {name: field for name, field in value.items() if name != "pair"}
        return cls(**{**fields, "recipe": recipe_from_json(value["recipe"]), "pair_mode": value["pair"]})


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest loss; the first one if several have it."""
    return min(trials, key=lambda trial: (trial.loss, trial.number))


def importances(trials: Sequence[Trial]) -> dict[str, float]:
    """Return for each parameter the share of the loss's variance between groups of its values, largest first.

    This is the correlation ratio of up to ``GROUPS`` groups with about the same number of trials. With few trials it is
    only a hint.
    """
    shares: dict[str, float] = {}
    for name in dict.fromkeys(name for trial in trials for name in trial.choices):
        some = [trial for trial in trials if name in trial.choices]
        losses = np.array([trial.loss for trial in some])
        values = [trial.choices[name] for trial in some]
        if len(set(values)) < 2 or not losses.var() > 0:
            continue
        if isinstance(values[0], str) or len(set(values)) <= GROUPS:
            groups = np.unique([str(value) for value in values], return_inverse=True)[1]
        else:
            groups = np.searchsorted(np.quantile(values, np.linspace(0, 1, GROUPS + 1)[1:-1]), values)
        means = np.array([losses[groups == group].mean() for group in groups])
        shares[name] = float(means.var() / losses.var())
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


class Log:
    """The file of a search: read when it is opened, and written whole after each batch of trials."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        self.layers: list[tuple[int, ...]] = []
        self.trials: list[Trial] = []
        check_task_folder(folder / TASK_FOLDER)
        file = folder / SEARCH_FILE
        others = os.listdir(folder) if os.path.isdir(folder) else []
        if not os.path.isfile(file) and not all(name.endswith(PARTIAL_SUFFIX) for name in others):
            raise InputError(
                f"the folder {folder} is not empty and was not written by ytuning search. Choose another with --out"
            )
        if os.path.isfile(file):
            self._read(file)
        with write_errors(f"the folder {folder}", "--out"):
            folder.mkdir(parents=True, exist_ok=True)

    def _read(self, file: Path) -> None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            schema = content["schema"]
            if schema == SCHEMA:
                about = content["about"]
                self.layers = [tuple(layers) for layers in content["layers"]]
                self.trials = [Trial.from_json(trial) for trial in content["trials"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{file} is damaged or was not written by ytuning search ({type(error).__name__}). "
            raise InputError(f"{problem}Remove it, or choose another folder with --out") from error
        if schema != SCHEMA:
            remedy = "Choose another folder with --out, or remove the file"
            raise InputError(wrong_schema(file, schema, SCHEMA, remedy))
        if differing := [name for name in self.about if about.get(name) != self.about[name]]:
            what, then = differing[0], about.get(differing[0])
            problem, remedy = f"{file} holds a search with another value of {what!r}. ", "Choose"
            if what == "versions":
                changed = [name for name, now in self.about[what].items() if dict(then or {}).get(name) != now]
                problem = f"{file} holds a search with another version of {', '.join(changed) or 'a package'}. "
            if what == "workers":
                problem = f"{file} holds a search with {quantity(then, 'worker')}, and another number would try other "
                problem, remedy = f"{problem}recipes. Got {self.about[what]}. ", f"Use {argument(what, then)}, choose"
            raise InputError(f"{problem}{remedy} another folder with --out, or remove the file")

    def add(self, trials: Sequence[Trial]) -> None:
        """Keep trials, also on the disk."""
        self.trials = [*self.trials, *trials]
        content = {
            "schema": SCHEMA,
            "about": self.about,
            "layers": [list(layers) for layers in self.layers],
            "best": best_of(self.trials).number,
            "importances": importances(self.trials),
            "trials": [trial.to_json() for trial in self.trials],
        }
        self.write_file(SEARCH_FILE, content)

    def write_file(self, name: str, content: dict[str, Any]) -> None:
        """A JSON file in the folder, whole or not at all."""
        with write_errors(self.folder / name, "--out"):
            commit(self.folder / name, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

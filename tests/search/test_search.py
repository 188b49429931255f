"""``ytuning search``: what is proposed, that a search depends on its trials alone, its files, and the command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kinds import KindName, kind_of
from ytuning.cli import program as cli
from ytuning.data.dataset import Dataset, from_lists
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.engines.engine import Engine
from ytuning.errors import InputError, MissingExtraError
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig, build_head
from ytuning.progress import Progress
from ytuning.reports.html import plot_search
from ytuning.search import log as module
from ytuning.search.log import Trial, importances
from ytuning.search.propose import propose, propose_round
from ytuning.search.search import Searched, SearchOptions, search
from ytuning.search.space import SHARED, Space, head_size
from ytuning.tasks.task import load_task
from ytuning.training import recipes
from ytuning.training.calibration import calibrated_logits
from ytuning.training.recipes import Recipe, TrainingConfig, preset, read_recipe

QUICK = TrainingConfig(fewest_steps=20, most_steps=20, epochs=1, label_steps=1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, short_choice: None) -> None:
    """Presets, and a choice of layers, of few steps."""
    monkeypatch.setitem(recipes.PRESETS, "default", lambda: Recipe(PooledConfig(width=16, token_width=16), QUICK))
    monkeypatch.setitem(recipes.PRESETS, "paper", lambda: Recipe(CrossAttentionConfig(width=16), QUICK, (-1,)))


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture
def toy(toy_rows: tuple[list[str], list[str]]) -> Dataset:
    return from_lists(*toy_rows)


def space_of(kind: KindName = "single", outputs: int = 3, presets: tuple[str, ...] = ("default", "paper")) -> Space:
    bases = {name: preset(name) for name in presets}
    return Space(bases, [(4, 5), (3,), (4, 6)], (None,), kind_of(kind, outputs), 384, 22_700_000)


def trial(number: int, loss: float, /, **choices: Any) -> Trial:
    return Trial(number, choices, Recipe(), None, loss, 0.5, 0.1, 10, 100, 1.0)


def found(toy: Dataset, encoder: Encoder, folder: Path, **options: Any) -> Searched:
    parts = {name: options.pop(name) for name in ("validation", "test", "progress", "engine") if name in options}
    return search(toy, encoder, FeatureStore(), folder, options=SearchOptions(**{"trials": 6, **options}), **parts)


def without_seconds(folder: Path) -> Any:
    content = json.loads((folder / "search.json").read_text())
    for each in content["trials"]:
        del each["seconds"]
    return content


# --- the space ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize("kind", ["single", "ordinal", "multi", "bounded"])
def test_the_first_trial_is_the_preset_itself(name: str, kind: KindName) -> None:
    space = space_of(kind, presets=(name,))
    layers = (4, 5) if name == "default" else (5,)
    assert space.recipe(space.start) == replace(preset(name), layers=layers)
    assert list(space.start) == list(space.parameters_of(name))
    regression = kind == "bounded"
    assert ("loss" in space.start, "label_weights" in space.start) == (not regression, not regression)
    assert ("label_smoothing" in space.start) == (kind in ("single", "ordinal"))


def test_choices_make_a_recipe() -> None:
    space = space_of()
    choices = {
        **space.start, "layers": "4,6", "loss": "focal", "length": 2.0, "learning_rate": 1e-3, "dropout": 0.3,
        "token_dropout": 0.0, "side_by_side": 2, "width": 32, "label_weights": "balanced", "label_smoothing": 0.0,
    }  # fmt: skip
    recipe = space.recipe(choices)
    assert recipe.layers == (4, 6)
    assert recipe.head == PooledConfig(
        side_by_side=2, width=32, token_width=32, mixing_width=64, dropout=0.3, token_dropout=0.0
    )
    assert recipe.training == TrainingConfig(
        loss="focal", label_smoothing=0.0, epochs=2, fewest_steps=40, most_steps=40, label_steps=2,
        learning_rate=1e-3, label_weights="balanced",
    )  # fmt: skip


def test_heads_of_few_labels_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real presets
    # Light members included.
    pair_head = head_size(PooledConfig(light_width=7), labels=8, layers=3, width=384, pair_mode="separate")
    assert 0.019 * 22_700_000 < pair_head <= 0.02 * 22_700_000
    for outputs, within in ((2, True), (8, True), (9, False)):
        space = space_of(outputs=outputs, presets=("default",))
        head = space.recipe({**space.start, "layers": "4,6", "side_by_side": 8, "width": 96}).head
        assert isinstance(head, PooledConfig) and head.width == 96
        assert (space.size(head, 2, None) <= 0.02 * 22_700_000) == within
        assert (head.side_by_side == 8) == (not within)
    assert space_of(outputs=2).recipe(space_of(outputs=2).start).head == PooledConfig()


@pytest.mark.parametrize("config", [PooledConfig(), CrossAttentionConfig()])
@pytest.mark.parametrize("mode", [None, "separate"])
def test_the_size_of_a_head_is_that_of_one_that_is_built(
    config: PooledConfig | CrossAttentionConfig, mode: PairMode | None
) -> None:
    head = build_head(config, labels=5, layers=2, width=24, pair_mode=mode)
    assert head_size(config, labels=5, layers=2, width=24, pair_mode=mode) == sum(
        each.numel() for each in head.parameters()
    )


# --- proposals ------------------------------------------------------------------------------------------------------


def test_proposals_share_their_states_and_form_and_are_the_same_again() -> None:
    space = space_of()
    first = propose(space, [], 4, seed=3)
    assert first[0] == space.start and first == propose(space, [], 4, seed=3) != propose(space, [], 4, seed=4)
    done = [trial(number, 1.0 - number / 10, **choices) for number, choices in enumerate(first)]
    seen = []
    for _ in range(6):
        more = propose(space, done, 4, seed=3)
        shared = [{name: choices.get(name) for name in SHARED} for choices in more]
        assert all(each == shared[0] for each in shared) and len({json.dumps(each) for each in more}) == 4
        seen.append({name: value for name, value in shared[0].items() if value is not None})
        for choices in more:
            space.recipe(choices)
            done.append(trial(len(done), 0.5, **json.loads(json.dumps(choices))))  # as it comes from the file
    assert seen[:3] == space.openings[1:] == [
        {"preset": "default", "layers": "3"}, {"preset": "default", "layers": "4,6"}, {"preset": "paper", "layer": "5"},
    ]  # fmt: skip


def test_openings_take_turns_with_the_ways_of_reading_pairs() -> None:
    space = replace(space_of(), modes=("joint", "separate"))
    assert [each["pairs"] for each in space.openings] == ["joint", "separate", "joint", "separate"]
    assert space.openings[0].items() <= space.start.items()
    assert [choices["pairs"] for choices in propose(space, [], 3, seed=0)] == ["joint"] * 3


def test_batches_of_a_round_differ_and_the_first_one_is_that_of_one_worker() -> None:
    space = space_of()
    done = [trial(number, 1.0 - number / 10, **choices) for number, choices in enumerate(propose(space, [], 4, seed=3))]
    more = propose(space, done, 4, seed=3)
    for start, first in (([], [trial.choices for trial in done]), (done, more)):
        found = propose_round(space, start, 3, seed=3)
        assert found[0] == first and found == propose_round(space, start, 3, seed=3)
        assert len({json.dumps(choices) for batch in found for choices in batch}) == 12
        # Each batch has an opening of its own.
        shared = [{name: batch[0][name] for name in SHARED if name in batch[0]} for batch in found]
        assert shared == space.openings[len(start) // 4 :][:3]


def test_importance_is_the_variance_between_groups() -> None:
    trials = [
        trial(number, float(number % 2) + number / 100, layers="4" if number % 2 else "5", dropout=number / 100)
        for number in range(8)
    ]
    shares = importances(trials)
    assert list(shares) == ["layers", "dropout"] and 0 <= shares["dropout"] < 0.1 < 0.9 < shares["layers"] <= 1
    assert importances(trials[:1]) == {}


# --- a whole search -------------------------------------------------------------------------------------------------


def test_a_search_and_its_files(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    data, test = toy.select(range(90)), toy.select(range(90, 120))
    result = found(data, encoder, tmp_path / "out", test=test)
    assert [each.number for each in result.trials] == list(range(6)) and not result.interrupted
    assert result.best.loss == min(each.loss for each in result.trials)
    content = json.loads((tmp_path / "out" / "search.json").read_text())
    assert [Trial.from_json(each) for each in content["trials"]] == result.trials
    assert content["best"] == result.best.number and content["layers"][0] == [2, 3]
    first = result.trials[0]
    assert first.recipe == replace(preset("default"), layers=(2, 3))
    task = load_task(tmp_path / "out" / "task")
    recipe = read_recipe(tmp_path / "out" / "recipe.json")
    assert recipe == result.best.recipe and task.config == recipe.head
    assert task.states == tuple(sorted(recipe.layers or ())) and task.training["refitted"]
    assert set(task.metrics) == {"validation", "test"} and result.trained.rows["test"] == 30
    # The winner is trained on the features of the search, which no text was read again for.
    assert result.trained.cache.misses == 30  # of the test rows
    # It is the head of its trial, so its validation score is the trial's.
    assert task.metrics["validation"]["accuracy"] == pytest.approx(result.best.score)


def test_the_winner_is_what_was_tried_of_label_tuning_too(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    result = found(toy, encoder, tmp_path / "out", presets=("few-shot",), trials=3)
    task = result.trained.task
    assert task.training["label_texts"] == len(set(toy.names))
    assert result.best.steps == task.training["steps"]
    assert result.best.score == pytest.approx(task.metrics["validation"]["accuracy"])
    judged = result.trained.judged["validation"]
    logits = torch.from_numpy(calibrated_logits(task.target, judged.logits, judged.truth))
    loss = task.target.row_losses(logits, torch.from_numpy(judged.truth)).mean()
    assert float(loss) == pytest.approx(result.best.loss, rel=1e-6)


@pytest.mark.parametrize("first", [4, 5])
def test_a_search_is_the_same_again_and_in_parts(first: int, toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    whole = found(toy, encoder, tmp_path / "whole", trials=10)
    found(toy, encoder, tmp_path / "parts", trials=first)
    after = without_seconds(tmp_path / "parts")["trials"]
    again = found(toy, encoder, tmp_path / "parts", trials=10)
    assert without_seconds(tmp_path / "parts")["trials"][:first] == after
    assert without_seconds(tmp_path / "parts") == without_seconds(tmp_path / "whole")
    assert again.best.number == whole.best.number
    for name in ("head.safetensors",):
        assert (tmp_path / "parts" / "task" / name).read_bytes() == (tmp_path / "whole" / "task" / name).read_bytes()


class Interrupt(Progress):
    """Ctrl-C once so many trials are done, in the middle of the next ones."""

    def __init__(self, trials: int) -> None:
        self.trials, self.done, self.raised = trials, 0, False

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.done = done if stage == "search" else self.done
        if stage == "train" and self.done >= self.trials and done == 5 and not self.raised:
            self.raised = True
            raise KeyboardInterrupt


def test_ctrl_c_ends_the_search_and_the_best_so_far_is_trained(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    result = found(toy, encoder, tmp_path / "out", trials=12, progress=Interrupt(4))
    assert result.interrupted and len(result.trials) == 4
    assert load_task(tmp_path / "out" / "task").config == result.best.recipe.head
    whole = found(toy, encoder, tmp_path / "whole", trials=8)
    found(toy, encoder, tmp_path / "out", trials=8)
    assert not whole.interrupted and without_seconds(tmp_path / "out") == without_seconds(tmp_path / "whole")


def test_one_worker_tries_what_is_tried_without_workers(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    found(toy, encoder, tmp_path / "here", trials=6)
    result = found(toy, encoder, tmp_path / "worker", trials=6, engine=Engine())
    assert without_seconds(tmp_path / "worker") == without_seconds(tmp_path / "here")
    heads = [(tmp_path / name / "task" / "head.safetensors").read_bytes() for name in ("worker", "here")]
    assert heads[0] == heads[1] and result.trained.cache.misses == 0


class InterruptLog(Progress):
    """Ctrl-C once so many trials are kept."""

    def __init__(self, trials: int) -> None:
        self.trials = trials

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == ("search", self.trials):
            raise KeyboardInterrupt


def test_a_search_on_two_workers_is_the_same_again_and_in_parts(
    ray_here: None, toy: Dataset, encoder: Encoder, tmp_path: Path
) -> None:
    found(toy, encoder, tmp_path / "whole", trials=10, engine=Engine(workers=2))
    whole = without_seconds(tmp_path / "whole")
    assert whole["about"]["workers"] == 2 and [each["number"] for each in whole["trials"]] == list(range(10))
    # Ctrl-C comes in the middle of the first round of eight, and the next part is on Ray.
    parts, progress = tmp_path / "parts", InterruptLog(4)
    assert found(toy, encoder, parts, trials=10, engine=Engine(workers=2), progress=progress).interrupted
    assert without_seconds(parts)["trials"] == whole["trials"][:4]
    found(toy, encoder, parts, trials=10, engine=Engine("ray", workers=2))
    assert without_seconds(parts) == whole
    # Nothing is left to do, so no worker is started.
    found(toy, encoder, parts, trials=10, engine=Engine("ray", workers=2, address="ray://nowhere:1"))
    with pytest.raises(InputError, match=r"with 2 workers, and another .* Got 1\. Use workers=2, choose another "):
        found(toy, encoder, parts, trials=12)


class InterruptedWinner(Progress):
    """Ctrl-C while the winner is trained, whose own progress says nothing of trials."""

    def __init__(self, trials: int) -> None:
        self.trials, self.searched = trials, False

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.searched |= (stage, done) == ("search", self.trials)
        if self.searched and (stage, done, note) == ("train", 5, ""):
            raise KeyboardInterrupt


def test_a_finished_winner_is_not_replaced_by_an_interrupted_one(
    toy: Dataset, encoder: Encoder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found(toy, encoder, out, trials=4)
    files = [out / "task" / "head.safetensors", out / "task" / "task.json", out / "recipe.json"]
    before = [file.read_bytes() for file in files]
    result = found(toy, encoder, out, trials=8, progress=InterruptedWinner(8))
    assert result.interrupted and len(result.trials) == 8
    assert before == [file.read_bytes() for file in files]
    found(toy, encoder, tmp_path / "new", trials=4, progress=InterruptedWinner(4))
    assert load_task(tmp_path / "new" / "task").training["interrupted"] is True


def test_ctrl_c_before_any_trial_leaves_nothing_to_train(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        found(toy, encoder, tmp_path / "out", progress=Interrupt(0))
    assert not (tmp_path / "out" / "task").exists()
    found(toy, encoder, tmp_path / "out", trials=1)


def test_no_trials_are_begun_after_the_time(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    assert len(found(toy, encoder, tmp_path / "out", minutes=0).trials) == 4


@pytest.mark.parametrize("kind", ["ordinal", "multi", "regression", "pairs"])
def test_every_kind_of_task(toy: Dataset, encoder: Encoder, tmp_path: Path, kind: str) -> None:
    names = sorted(set(toy.names))
    ids = [names.index(name) for name in toy.names]
    data = {
        "ordinal": lambda: from_lists(toy.texts, [str(number) for number in ids], kind="ordinal"),
        "multi": lambda: from_lists(toy.texts, [(name,) for name in toy.names], kind="multi"),
        "regression": lambda: from_lists(toy.texts, [number / 2 for number in ids], kind="regression"),
        "pairs": lambda: from_lists(toy.texts, toy.names, toy.texts[::-1]),
    }[kind]()
    result = found(data, encoder, tmp_path / "out", trials=5)
    assert load_task(tmp_path / "out" / "task").kind == data.kind
    assert result.trained.task.pair_mode == result.best.pair_mode
    assert (result.best.pair_mode is None) == (kind != "pairs")


def test_a_search_of_other_rows_options_or_versions_is_not_gone_on_with(
    toy: Dataset, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(toy, encoder, tmp_path / "out", trials=1)
    file = tmp_path / "out" / "search.json"
    for options, name in (({"seed": 1}, "seed"), ({"presets": ("paper",)}, "presets")):
        with pytest.raises(
            InputError, match=rf"^{file} holds a search with another value of '{name}'\. Choose another "
        ):
            found(toy, encoder, tmp_path / "out", **options)
    with pytest.raises(InputError, match="another value of 'rows'"):
        found(toy.select(range(100)), encoder, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("ytuning.system.machine.source_hash", lambda: "another")
        with pytest.raises(InputError, match=r"holds a search with another version of ytuning\. Choose "):
            found(toy, encoder, tmp_path / "out")
    content = file.read_text()
    file.write_text(json.dumps({"schema": 2}))
    message = f"{file} has schema 2, but this version of ytuning reads schema 1. Choose another folder with --out"
    with pytest.raises(InputError, match=f"^{re.escape(message)}, or remove the file$"):
        found(toy, encoder, tmp_path / "out")
    file.write_text(content[:-40])
    with pytest.raises(InputError, match=r"is damaged or was not written by ytuning search .*\. Remove it, or choose "):
        found(toy, encoder, tmp_path / "out")


def test_a_folder_of_something_else_is_refused(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"is not empty and was not written by ytuning search\. Choose another with --out$"
    ):
        found(toy, encoder, tmp_path)
    with pytest.raises(InputError, match=r"cannot write .*\. Choose another with --out$|is not a folder"):
        found(toy, encoder, tmp_path / "notes.txt")


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed."""

    def lack(package: str) -> None:
        monkeypatch.setitem(sys.modules, package, None)

    return lack


def test_optuna_is_an_extra(toy: Dataset, encoder: Encoder, tmp_path: Path, lacking: Callable[[str], None]) -> None:
    lacking("optuna")
    with pytest.raises(MissingExtraError, match=r"pip install 'ytuning\[search\]' "):
        found(toy, encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_draws_the_trials() -> None:
    trials = [
        trial(number, 1 / (1 + number), layers=str(number % 2), learning_rate=10.0**-number, side_by_side=number % 3)
        for number in range(9)
    ]
    page = plot_search(trials)
    assert page.count("<svg") == 4 and "By learning rate" in page and "By layers" in page and "://" not in page
    assert page.count("<circle") == 4 * len(trials)
    page = plot_search(trials[:1])
    assert page.count("<svg") == 1 and "Search: 1 trial<" in page


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(
    tmp_path: Path,
    toy_rows: tuple[list[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """The program in a folder with ``train.csv`` and ``test.csv``: status, stdout and stderr."""
    texts, labels = toy_rows
    for name, rows in (("train.csv", range(90)), ("test.csv", range(90, 120))):
        lines = ["text,label", *(f"{texts[row]},{labels[row]}" for row in rows)]
        (tmp_path / name).write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ytuning", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return run


def test_the_command(run: Callable[..., tuple[int, str, str]], tiny_encoder: Path, tmp_path: Path) -> None:
    options = ("search", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "out", "--trials", "5")
    status, out, _ = run(*options, "--json", "--quiet")
    content = json.loads(out)
    assert status == 0
    assert (content["task_dir"], content["trials"], content["interrupted"]) == ("out/task", 5, False)
    assert set(content["metrics"]) == {"validation", "test"}
    assert content["plot"] == "out/search.html" and "<svg" in (tmp_path / content["plot"]).read_text()
    status, out, _ = run(*options, "--quiet")
    assert status == 0 and "Best 5 of 5 trials on " in out and "The best task is in out/task." in out
    # The recipe trains another task.
    status, out, _ = run(
        "train", "train.csv", "--encoder", tiny_encoder, "--out", "again", "--recipe", content["recipe"], "--json"
    )
    assert status == 0
    assert (tmp_path / "again" / "head.safetensors").read_bytes() == (
        tmp_path / "out" / "task" / "head.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trials", "0"), "--trials must be a whole number from 1 to 10000. Got '0' instead."),
        (("--minutes", "nan"), "--minutes must be a number of at least 0. Got 'nan' instead."),
        (("--preset", "x"), "--preset must be one of 'all', 'default', 'few-shot', 'paper'. Got 'x' instead."),
        (
            ("--out", "full"),
            "the folder full is not empty and was not written by ytuning search. Choose another with --out",
        ),
    ],
)
def test_a_mistake_is_one_line(
    run: Callable[..., tuple[int, str, str]],
    tiny_encoder: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    folder = () if "--out" in options else ("--out", "out")
    status, out, err = run("search", "train.csv", "--encoder", tiny_encoder, "--quiet", *folder, *options)
    assert (status, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--layers", "4-5"),
            "--layers must be auto, default, last, or numbers of hidden states with commas, such as 4,5.",
        ),
        (("--layers", "9"), "--layers must be from 0 to 3 for the encoder "),
        (("--recipe", "none.json"), "cannot read the recipe none.json: No such file or directory. Check --recipe"),
        (("--recipe", "x", "--preset", "paper"), "--recipe replaces a preset, so it cannot be used together with "),
    ],
)
def test_mistakes_of_train_are_one_line(
    run: Callable[..., tuple[int, str, str]], tiny_encoder: Path, options: tuple[str, ...], message: str
) -> None:
    status, out, err = run("train", "train.csv", "--encoder", tiny_encoder, "--out", "out", "--quiet", *options)
    assert (status, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1


@pytest.mark.parametrize(("layers", "kept"), [("last", (3,)), ("1,2", (1, 2)), ("default", (2, 3)), ("auto", None)])
def test_train_reads_the_layers_that_it_is_told(
    run: Callable[..., tuple[int, str, str]],
    tiny_encoder: Path,
    tmp_path: Path,
    layers: str,
    kept: tuple[int, ...] | None,
) -> None:
    status, _, err = run(
        "train", "train.csv", "--encoder", tiny_encoder, "--out", "out", "--layers", layers, "--json", "--quiet"
    )
    task = load_task(tmp_path / "out")
    assert status == 0 and (kept is None or task.states == kept)
    assert ("layers: " in err) == (layers == "auto")
    status, _, _ = run("evaluate", "out", "test.csv", "--json", "--quiet")
    assert status == 0


def test_the_module_names_its_files() -> None:
    assert (module.SEARCH_FILE, module.RECIPE_FILE, module.TASK_FOLDER) == ("search.json", "recipe.json", "task")


def test_with_too_few_rows_to_choose_hidden_states_the_default_is_searched(
    toy: Dataset, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ytuning.tasks.choices.FEWEST_ROWS", 61)
    search(toy, encoder, FeatureStore(), tmp_path / "out", options=SearchOptions(trials=1))
    assert json.loads((tmp_path / "out" / "search.json").read_text())["layers"] == [[2, 3]]

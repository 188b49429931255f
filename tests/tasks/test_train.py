"""The main job: data sets in, task and reports out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import STATES
from tests.kinds import KIND_NAMES, kind_of
from ytuning.data.dataset import Dataset, from_lists
from ytuning.data.kinds import fit_kind
from ytuning.data.splits import split_holdout, task_rows
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import DataError, EncoderError, InputError
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore, WriteSizes
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig
from ytuning.progress import Progress
from ytuning.tasks.choices import choose_pair_mode, pair_modes, sample_rows
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import Stopwatch, Trained, TrainOptions, train_task
from ytuning.training.calibration import Calibration, calibrated_logits, fit_calibration
from ytuning.training.fit import HeadJob, fit_heads, logits_of
from ytuning.training.recipes import Recipe, TrainingConfig

RECIPE = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30))
METRICS = {"accuracy", "macro_f1", "micro_f1", "matthews", "ece"}


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture
def toy(toy_rows: tuple[list[str], list[str]]) -> Dataset:
    return from_lists(*toy_rows)


def train(
    data: Dataset, encoder: Encoder, recipe: Recipe = RECIPE, store: FeatureStore | None = None, **given: Any
) -> Trained:
    """Train with the data sets and the options of the main job side by side."""
    parts = {name: given.pop(name) for name in ("validation", "test", "held", "progress") if name in given}
    return train_task(data, encoder, store or FeatureStore(), recipe, options=TrainOptions(**given), **parts)


def test_without_validation_rows_are_held_out(toy: Dataset, encoder: Encoder) -> None:
    trained = train(toy, encoder, name="toy", seed=3)
    assert trained.rows["train"] + trained.rows["validation"] == 120
    assert trained.rows["validation"] > 0 and trained.rows["test"] == 0
    assert trained.fit.refitted
    assert set(trained.reports) == {"validation"} and set(trained.reports["validation"].metrics) == METRICS
    assert trained.reports["validation"].rows == trained.rows["validation"]
    assert trained.shared == {"validation": 0}
    assert (trained.task.name, trained.task.pair_mode, trained.task.kind) == ("toy", None, "single")
    assert trained.task.target.names == ("card", "login", "refund")
    assert trained.task.encoder == encoder.identity
    assert trained.task.metrics == {"validation": trained.reports["validation"].metrics}
    assert trained.task.training["seed"] == 3 and trained.task.training["rows"] == trained.rows
    assert set(trained.seconds) == {"encode", "train", "evaluate"} and min(trained.seconds.values()) > 0


@pytest.mark.parametrize(
    ("change", "undone"),
    [({}, 0.1), ({"label_smoothing": 0.2}, 0.2), ({"label_smoothing": 0.0}, 0.0), ({"loss": "triplet"}, 0.0)],
)
def test_smoothing_that_was_learned_is_undone(
    change: dict[str, Any], undone: float, toy: Dataset, encoder: Encoder
) -> None:
    recipe = replace(RECIPE, training=replace(RECIPE.training, **change))
    parts = toy.select(range(80)), toy.select(range(80, 120))
    trained = train_task(parts[0], encoder, FeatureStore(), recipe, validation=parts[1])
    assert trained.task.calibration.smoothing in (0.0, undone)
    rows = task_rows(*parts, None, seed=0)
    truth = rows.truth[rows.validation]
    fitted = fit_calibration(rows.target, trained.fit.validation_logits, truth, smoothing=undone)
    assert trained.task.calibration == fitted
    found = rows.target.metrics(truth, fitted.answers(rows.target, trained.fit.validation_logits))
    assert trained.reports["validation"].metrics == pytest.approx(found)


def test_only_single_labels_have_smoothing_to_undo() -> None:
    others = [kind_of(name) for name in KIND_NAMES[1:]]
    assert [TrainingConfig().smoothing_of(kind) for kind in others] == [0.0] * 4
    assert TrainingConfig().smoothing_of(kind_of("single")) == TrainingConfig().label_smoothing == 0.1
    assert TrainingConfig(loss="focal").smoothing_of(kind_of("single")) == 0


@pytest.mark.usefixtures("short_choice")
def test_what_is_measured_on_a_sample_does_not_see_validation_rows(
    toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Dataset] = []

    def sampled(data: Dataset, *arguments: Any) -> Dataset:
        seen.append(data)
        return sample_rows(data, *arguments)

    monkeypatch.setattr("ytuning.tasks.choices.sample_rows", sampled)
    train(toy, encoder, layers="auto", seed=3)
    rows, held = split_holdout(toy, 3)
    assert [data.texts for data in seen] == [toy.select(rows).texts]
    assert not set(seen[0].texts) & set(toy.select(held).texts)
    validation = toy.select(held)
    train(toy.select(rows), encoder, layers="auto", validation=validation)
    assert [len(data) for data in seen[1:]] == [len(rows)]


def test_validation_and_test_rows_that_are_given(toy: Dataset, encoder: Encoder) -> None:
    parts = [toy.select(range(*bounds)) for bounds in ((0, 80), (80, 100), (95, 120))]
    both = Dataset(texts=[*parts[2].texts, toy.texts[0]], labels=[*(parts[2].names), toy.names[0]])
    trained = train(parts[0], encoder, validation=parts[1], test=both)
    assert trained.rows == {"train": 80, "validation": 20, "test": 26}
    assert trained.shared == {"validation": 0, "test": 1, "test_and_validation": 5}
    assert not trained.fit.refitted  # validation rows that were given stay validation rows
    assert set(trained.reports) == set(trained.task.metrics) == {"validation", "test"}
    assert trained.fit.validation_logits.shape == (20, 3)
    # The test report is that of the head that is saved.
    report = evaluate_task(trained.task, both, encoder, FeatureStore()).report
    assert report.metrics == pytest.approx(trained.reports["test"].metrics)


def test_validation_rows_and_rows_to_hold_out_are_not_given_together(toy: Dataset, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="both validation rows and rows to hold out are given"):
        train(toy, encoder, validation=toy, held=np.arange(9))


def test_of_several_seeds_the_best_on_validation_is_the_task(toy: Dataset, encoder: Encoder) -> None:
    data, test = toy.select(range(90)), toy.select(range(90, 120))
    trained = train(data, encoder, test=test, seed=2, seeds=4)
    assert list(trained.by_seed) == [2, 3, 4, 5]
    accuracies = {seed: metrics["validation"]["accuracy"] for seed, metrics in trained.by_seed.items()}
    assert len({metrics["validation"]["ece"] for metrics in trained.by_seed.values()}) == 4
    chosen = trained.task.training["seed"]
    assert chosen == max(accuracies, key=accuracies.__getitem__) and trained.task.training["seeds"] == [2, 4]
    assert trained.by_seed[chosen] == trained.task.metrics
    report = evaluate_task(trained.task, test, encoder, FeatureStore()).report
    assert report.metrics == pytest.approx(trained.by_seed[chosen]["test"])


def test_refit_can_be_switched_off(toy: Dataset, encoder: Encoder) -> None:
    assert not train(toy, encoder, refit=False).fit.refitted


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs read in two ways"])
def test_an_encoder_that_is_let_go_trains_the_same_head(
    toy_rows: tuple[list[str], list[str]], tiny_encoder: Path, *, pairs: bool
) -> None:
    texts, labels = toy_rows
    data = from_lists(texts, labels, text_pairs=texts[::-1] if pairs else None)
    kept, released = (load_encoder(tiny_encoder, precision="fp32") for _ in range(2))
    heads = [
        train(data, encoder, release_encoder=encoder is released).task.head.state_dict() for encoder in (kept, released)
    ]
    assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
    assert next(kept.model.parameters()).device.type == "cpu"
    assert next(released.model.parameters()).device.type == "meta"


def test_second_task_makes_no_encoder_call(toy: Dataset, encoder: Encoder, encoded: list[int]) -> None:
    first = train(toy, encoder)
    assert (first.cache.hits, first.cache.misses, sum(encoded)) == (0, 120, 120)
    encoded.clear()
    swapped = Dataset(texts=toy.texts, labels=[label[:1] for label in toy.names])
    second = train(swapped, encoder)
    assert (second.cache.hits, second.cache.misses, second.cache.bytes) == (120, 0, first.cache.bytes)
    assert encoded == []


def test_same_seed_same_head(toy: Dataset, encoder: Encoder) -> None:
    heads = [train(toy, encoder, seed=seed).task.head.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert any(not torch.equal(heads[0][name], heads[2][name]) for name in heads[0])


def test_the_same_head_beside_other_writers(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    """The texts then lie in other shards and in another order."""
    alone = train(toy, encoder, store=FeatureStore(tmp_path / "alone"))
    store = FeatureStore(tmp_path / "shared", WriteSizes(shard_bytes=4096, window_texts=20))
    space = store.space(encoder.identity.to_json(), STATES, "int8")
    stored_features(toy.inputs[70:90], encoder, store, Progress(), states=STATES)
    with space.writing():
        beside = train(toy, encoder, store=store)
    assert (beside.cache.hits, beside.cache.misses) == (20, 100)
    assert store.spaces()[0].shards > 5
    heads = [trained.task.head.state_dict() for trained in (alone, beside)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_a_recipe_gets_the_hidden_states_that_it_reads(toy: Dataset, encoder: Encoder) -> None:
    for layers, states in (((-1,), (3,)), ((1, -1), (1, 3)), (None, STATES)):
        assert train_task(toy, encoder, FeatureStore(), replace(RECIPE, layers=layers)).task.states == states
    with pytest.raises(EncoderError, match=r"^layers must be from 0 to 3 for the encoder .* Got \[4\] instead\."):
        train_task(toy, encoder, FeatureStore(), replace(RECIPE, layers=(4,)))


def test_threads_and_random_state_are_left_alone(toy: Dataset, encoder: Encoder) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(toy, encoder)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_cut_texts_are_counted(toy: Dataset, encoder: Encoder) -> None:
    long = Dataset(texts=[*toy.texts, "card " * 100, "login " * 100], labels=[*(toy.names), "card", "login"])
    trained = train(long, encoder)
    assert trained.truncated == 2
    assert evaluate_task(trained.task, long, encoder, FeatureStore()).truncated == 2
    assert train(toy, encoder).truncated == 0


def test_pairs(toy: Dataset, encoder: Encoder) -> None:
    pairs = Dataset(texts=toy.texts, labels=toy.labels, text_pairs=toy.texts[::-1])
    trained = train(pairs, encoder)
    assert trained.task.pair_mode
    assert evaluate_task(trained.task, pairs, encoder, FeatureStore()).report.rows == 120
    with pytest.raises(DataError, match=r"the task 'task' was trained on pairs of texts: give a second text"):
        evaluate_task(trained.task, toy, encoder, FeatureStore())


def test_interrupted_training_still_gives_a_task(toy: Dataset, encoder: Encoder) -> None:
    class Interrupt(Progress):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "train" and done == 8:
                raise KeyboardInterrupt

    trained = train(toy, encoder, progress=Interrupt())
    assert trained.fit.interrupted and trained.task.training["interrupted"] and not trained.task.training["refitted"]
    assert evaluate_task(trained.task, toy, encoder, FeatureStore()).report.rows == 120


def test_evaluation_against_figures_from_logits(
    toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(train(toy, encoder).task, calibration=Calibration(temperature=1.7))
    some = toy.select([100, 5, 7, 5])
    found = evaluate_task(task, some, encoder, FeatureStore())
    features, _ = stored_features(some.inputs, encoder, FeatureStore(), Progress(), states=STATES)
    logits = logits_of(task.head, features).astype(np.float64) / 1.7
    truth = np.array([task.target.names.index(label) for label in some.names])
    assert found.report.metrics == pytest.approx(task.target.metrics(truth, task.target.answers(logits)))
    assert (found.report.rows, found.cache.hits, found.cache.misses, found.truncated) == (4, 3, 0, 0)  # distinct texts


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (
            "validation",
            r"the rows, row 2, column 'label': the label 'cart' does not occur .*1 validation row.*Did you mean",
        ),
        ("test", r"the rows, row 2, column 'label': the label 'cart' does not occur .*1 test row.*Did you mean 'card'"),
    ],
)
def test_unknown_labels_are_refused_before_encoding(role: str, message: str, toy: Dataset, encoder: Encoder) -> None:
    with pytest.raises(DataError, match=message):
        rows: Any = {role: from_lists(["a card", "a cart"], ["card", "cart"])}
        train(toy, encoder, **rows)
    assert FeatureStore().spaces() == []


def test_unknown_label_in_evaluation(toy: Dataset, encoder: Encoder) -> None:
    task = train(toy, encoder).task
    with pytest.raises(DataError, match=r"row 1, column 'label': the label 'x' does not occur in the training set"):
        evaluate_task(task, from_lists(["a card"], ["x"]), encoder, FeatureStore())
    with pytest.raises(DataError, match="single texts, not pairs: leave out the second text"):
        evaluate_task(task, from_lists(["a card"], ["card"], ["b"]), encoder, FeatureStore())


def test_single_texts_and_pairs_do_not_mix(toy: Dataset, encoder: Encoder) -> None:
    paired = from_lists(["a", "b"], ["card", "login"], ["c", "d"])
    with pytest.raises(DataError, match="the rows are single texts, but those of the rows are pairs"):
        train(toy, encoder, test=paired)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", "b"], ["x", "x"], "all 2 rows have the label 'x'"),
        (["a", "b"], ["x", "y"], "no row can be held out for validation, because each label needs another"),
        (["a", "b"], None, "the rows have no labels. Give a label for each row."),
    ],
)
def test_rows_that_cannot_be_trained_on(
    texts: list[str], labels: list[str] | None, message: str, encoder: Encoder
) -> None:
    with pytest.raises(DataError, match=message):
        train(from_lists(texts, labels), encoder)


@pytest.mark.parametrize("given", [False, True])
def test_a_label_may_occur_once(toy: Dataset, encoder: Encoder, given: bool) -> None:
    rare = Dataset(texts=[*toy.texts, "my app"], labels=[*(toy.names), "app"])
    said: list[str] = []

    class Saying(Progress):
        def say(self, message: str) -> None:
            said.append(message)

    trained = train(rare, encoder, validation=toy.select(range(10)) if given else None, progress=Saying())
    assert trained.task.target.names == ("app", "card", "login", "refund")
    assert trained.reports["validation"].labels["app"]["rows"] == 0
    assert "no validation row has these labels, so validation figures say nothing about them: 'app'" in said


def test_stopwatch_adds_up() -> None:
    watch = Stopwatch()
    with watch.stage("a"):
        pass
    first = watch.seconds["a"]
    with pytest.raises(KeyError), watch.stage("a"):
        raise KeyError
    assert watch.seconds["a"] > first > 0
    watch.add({"a": 1.0, "b": 2.0})
    assert watch.seconds["a"] > 1 and watch.seconds["b"] == 2


# --- kinds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def of_kind(toy_rows: tuple[list[str], list[str]]) -> dict[str, Dataset]:
    """The toy rows as each kind of task."""
    texts, labels = toy_rows
    several = [[label] if number % 3 else [label, "third"] for number, label in enumerate(labels)]
    several = [[] if row == ["login"] else row for row in several]
    grades = [str(["card", "login", "refund"].index(label)) for label in labels]
    numbers = [10.0 * int(grade) + 0.5 for grade in grades]
    return {
        "multi": from_lists(texts, several),
        "ordinal": from_lists(texts, grades, kind="ordinal"),
        "regression": from_lists(texts, numbers),
    }


KIND_METRICS = {
    "multi": {"accuracy", "macro_f1", "micro_f1", "ece"},
    "ordinal": METRICS | {"mae", "spearman"},
    "regression": {"pearson", "spearman", "mae", "rmse"},
}


@pytest.mark.parametrize("kind", KIND_METRICS)
def test_every_kind_goes_the_whole_way(
    kind: str, of_kind: dict[str, Dataset], encoder: Encoder, tmp_path: Path
) -> None:
    data = of_kind[kind]
    recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=150, most_steps=150))
    store = FeatureStore()
    trained = train(data.select(range(90)), encoder, recipe, store, test=data.select(range(90, 120)), seeds=2)
    assert trained.task.kind == kind and set(trained.reports["test"].metrics) == KIND_METRICS[kind]
    for name, (low, high) in trained.reports["test"].intervals.items():
        assert low <= trained.reports["test"].metrics[name] <= high
    learned = {"multi": ("micro_f1", 0.6), "ordinal": ("spearman", 0.6), "regression": ("spearman", 0.6)}[kind]
    assert trained.reports["test"].metrics[learned[0]] > learned[1]
    save_task(trained.task, tmp_path / kind)
    loaded = load_task(tmp_path / kind)
    report = evaluate_task(loaded, data.select(range(90, 120)), encoder, store).report
    assert report.metrics == pytest.approx(trained.reports["test"].metrics)
    assert report.intervals == trained.reports["test"].intervals


@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_pairs_are_read_as_told(mode: Any, toy: Dataset, encoder: Encoder) -> None:
    data = replace(toy, text_pairs=toy.texts[::-1])
    trained = train(data.select(range(90)), encoder, test=data.select(range(90, 120)), pairs=mode)
    assert trained.task.pair_mode == mode
    assert trained.cache.misses == (120 if mode == "joint" else len(set(toy.texts)))
    found = evaluate_task(trained.task, data.select(range(90, 120)), encoder, FeatureStore())
    assert found.cache.misses == 0 and found.report.metrics == pytest.approx(trained.reports["test"].metrics)


def test_validation_chooses_how_pairs_are_read(toy: Dataset, encoder: Encoder) -> None:
    data = replace(toy, text_pairs=toy.texts[::-1])
    said: list[str] = []

    class Saying(Progress):
        def say(self, message: str) -> None:
            said.append(message)

    trained = train(data, encoder, progress=Saying())
    both = {mode: train(data, encoder, pairs=mode).fit for mode in ("joint", "separate")}
    rows = task_rows(data, None, None, seed=0)
    truth = rows.truth[rows.validation]
    logits = {mode: calibrated_logits(rows.target, fit.validation_logits, truth) for mode, fit in both.items()}
    losses = {
        mode: float(rows.target.row_losses(torch.from_numpy(each), torch.from_numpy(truth)).mean())
        for mode, each in logits.items()
    }
    assert losses["separate"] < losses["joint"] and trained.task.pair_mode == "separate"
    assert trained.fit.history == both["separate"].history
    (message,) = said
    assert message.startswith(
        f"pairs: separate, as the calibrated validation loss is {losses['joint']:.4f} joint and "
        f"{losses['separate']:.4f} separate; the standard error of the difference is 0.0"
    )


@pytest.mark.parametrize(
    ("lead", "taken"),
    [(0.0, "separate"), (0.15, "separate"), (0.25, "joint"), (-0.25, "separate"), (math.nan, "separate")],
)
def test_pairs_are_read_as_one_only_where_that_is_clearly_better(lead: float, taken: str) -> None:
    separate = np.full(100, 2.0)
    noise = np.where(np.arange(100) % 2, 1.0, -1.0)  # of the difference: a standard error of 0.1
    assert choose_pair_mode(separate + noise - lead, separate) == taken


def test_ways_of_reading_pairs_to_try() -> None:
    assert pair_modes("auto", has_pairs=True) == ("separate", "joint")
    assert pair_modes("joint", has_pairs=True) == ("joint",)
    assert pair_modes("auto", has_pairs=False) == (None,)


def test_a_surer_head_is_not_a_worse_one() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(2, size=200)
    knows = np.eye(2)[truth] + 0.8 * generator.normal(size=(200, 2))
    guesses = np.eye(2)[truth] + 1.5 * generator.normal(size=(200, 2))
    logits = {"joint": guesses.astype(np.float32), "separate": (20 * knows).astype(np.float32)}
    target = fit_kind("single", ["a", "b"])

    def losses(mode: str, *, fitted: bool) -> Tensor:
        values = calibrated_logits(target, logits[mode], truth) if fitted else logits[mode]
        return target.row_losses(torch.from_numpy(values), torch.from_numpy(truth))

    assert choose_pair_mode(losses("joint", fitted=False), losses("separate", fitted=False)) == "joint"
    assert choose_pair_mode(losses("joint", fitted=True), losses("separate", fitted=True)) == "separate"
    assert choose_pair_mode(losses("separate", fitted=True), losses("joint", fitted=True)) == "joint"


def test_a_task_may_abstain(toy: Dataset, encoder: Encoder) -> None:
    recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=60, most_steps=60))
    trained = train(toy, encoder, recipe, validation=toy.select(range(60)), abstain_at=0.9)
    metrics = trained.reports["validation"].metrics
    assert trained.task.calibration.abstain_below is not None
    assert metrics["precision_answered"] >= 0.9 and 0 < metrics["coverage"] <= 1


def test_a_precision_is_refused_before_any_work(of_kind: dict[str, Dataset], encoder: Encoder) -> None:
    store = FeatureStore()
    with pytest.raises(InputError, match="abstain_at is for single-label and ordinal tasks"):
        train(of_kind["multi"], encoder, store=store, abstain_at=0.9)
    assert store.spaces() == []


def test_an_ensemble_is_the_mean_of_its_heads(toy: Dataset, encoder: Encoder, tmp_path: Path) -> None:
    data, test = toy.select(range(90)), toy.select(range(90, 120))
    alone = [train(data, encoder, seed=2, seeds=1)]
    together = train(data, encoder, test=test, seed=2, seeds=3, ensemble=True)
    assert list(together.by_seed) == [2, 3, 4] and together.task.training["seed"] is None
    single = train(data, encoder, seed=2, seeds=3)
    assert together.by_seed[2]["validation"] == alone[0].by_seed[2]["validation"] == single.by_seed[2]["validation"]
    features, _ = stored_features(test.inputs, encoder, FeatureStore(), Progress(), states=STATES)
    heads = fit_heads(
        stored_features(data.inputs, encoder, FeatureStore(), Progress(), states=STATES)[0],
        [HeadJob(together.task.target, together.task.target.encode(data.names), RECIPE, seed) for seed in (2, 3, 4)],
        train=split_holdout(data, 2, most=2000)[0],
        validation=split_holdout(data, 2, most=2000)[1],
        seed=2,
    )
    mean = np.mean([logits_of(fit.head, features) for fit in heads], axis=0)
    save_task(together.task, tmp_path / "toy")
    assert np.allclose(logits_of(load_task(tmp_path / "toy").head, features), mean, atol=1e-4)
    assert together.fit.validation_logits == pytest.approx(np.mean([fit.validation_logits for fit in heads], axis=0))
    for options in ({"seeds": 1}, {"seeds": 2, "recipe": Recipe(CrossAttentionConfig(width=16), RECIPE.training)}):
        recipe = options.pop("recipe", RECIPE)
        with pytest.raises(InputError, match="an ensemble is of several seeds' heads of the default preset"):
            train(data, encoder, recipe, ensemble=True, **options)  # type: ignore[arg-type]


def test_options_that_would_do_nothing_are_refused(toy: Dataset, of_kind: dict[str, Dataset], encoder: Encoder) -> None:
    weighed = Recipe(RECIPE.head, replace(RECIPE.training, label_weights="balanced"))
    for data, recipe, options, message in (
        (toy, RECIPE, {"label_order": ["card", "login", "refund"]}, "Add kind='ordinal' or leave out label_order="),
        (toy, RECIPE, {"pairs": "joint"}, "pairs is for two texts a row"),
        (of_kind["regression"], weighed, {}, "Leave out label_weights="),
        (toy.select(range(30)), RECIPE, {"abstain_at": 0.9}, "abstain_at needs at least 10 validation rows. Got 3"),
    ):
        store = FeatureStore()
        with pytest.raises(InputError, match=message):
            train(data, encoder, recipe, store, **options)
        assert store.spaces() == []


def test_only_the_best_head_has_to_reach_a_precision(toy: Dataset, encoder: Encoder) -> None:
    data, held = toy.select(range(60)), toy.select(range(60, 120))
    # Every second held-out row has another row's label, so that only some heads are right often enough.
    held = replace(held, labels=[held.names[number if number % 2 else -number] for number in range(len(held))])

    def reaches(seed: int, **options: Any) -> bool:
        try:
            train(data, encoder, validation=held, seed=seed, abstain_at=0.75, **options)
        except InputError as error:
            assert "precision" in str(error)
            return False
        return True

    alone = [reaches(seed) for seed in range(8)]
    assert any(alone) and not all(alone), alone
    several = train(data, encoder, validation=held, seeds=8)
    assert reaches(0, seeds=8) == alone[several.task.training["seed"]]


@pytest.mark.parametrize("stage", ["encode", "train"])
def test_ctrl_c_in_the_second_way_of_reading_pairs_keeps_the_first(
    stage: str, toy: Dataset, tiny_encoder: Path
) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32")
    # All texts would be a single batch otherwise.
    encoder.tokens_per_batch = 100
    data = replace(toy, text_pairs=toy.texts[::-1])

    class Second(Progress):
        seen = 0

        def step(self, name: str, done: int, total: int, note: str = "") -> None:
            if name == stage and done == total and not note:
                self.seen += 1
            if name == stage and self.seen == 1 and done < total and not note:
                raise KeyboardInterrupt

    # None of its heads stops early.
    recipe = replace(RECIPE, training=replace(RECIPE.training, patience=RECIPE.training.rounds))
    trained = train(data, encoder, recipe, progress=Second())
    assert trained.task.pair_mode == "separate" and trained.fit.interrupted
    alone = train(data, encoder, recipe, pairs="separate")
    assert trained.fit.history == alone.fit.history


@pytest.mark.usefixtures("short_choice")
def test_hits_are_never_fewer_than_none(toy: Dataset, encoder: Encoder) -> None:
    class Second(Progress):
        """Ctrl-C in the training on the second way of reading, of which the sample has stored texts, too."""

        trainings = 0

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            self.trainings += (stage, done) == ("train", 1)
            if self.trainings == 2:
                raise KeyboardInterrupt

    trained = train(replace(toy, text_pairs=toy.texts[::-1]), encoder, layers="auto", progress=Second())
    assert trained.fit.interrupted and trained.task.pair_mode == "separate"
    assert (trained.cache.hits, trained.cache.misses) == (0, len(toy))


def test_an_unknown_codec_is_refused_before_encoding(toy: Dataset, encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"^store must be one of 'fp16', 'int8', 'compact'\. Got 'auto' instead\.$"):
        train(toy, encoder, codec="auto")
    assert FeatureStore().spaces() == []


@pytest.mark.usefixtures("short_choice")
def test_labels_that_a_sample_lacks_are_no_mistake(toy: Dataset, encoder: Encoder) -> None:
    rare = replace(toy, labels=["once", *(["1", "2"] * 60)[:119]])
    trained = train(rare, encoder, validation=toy_like(rare), layers="auto")
    assert trained.task.target.names == ("1", "2", "once")


def toy_like(data: Dataset) -> Dataset:
    return data.select(range(1, 40))

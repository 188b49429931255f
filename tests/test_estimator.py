"""scikit-learn's contract, as far as it makes sense for texts."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from tests.conftest import build_tiny_encoder
from ytuning import YTuningClassifier, YTuningRegressor, estimator
from ytuning.data.dataset import from_lists
from ytuning.data.splits import split_holdout
from ytuning.errors import DataError, EncoderError, InputError, TaskFolderError
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig
from ytuning.progress import Progress
from ytuning.tasks.predictor import Predictor
from ytuning.training import recipes
from ytuning.training.recipes import Recipe, TrainingConfig

QUICK = TrainingConfig(fewest_steps=40, most_steps=40)
Rows = tuple[list[str], list[str]]
TASK_FILES = ("README.md", "head.safetensors", "task.json")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of few steps."""
    monkeypatch.setitem(recipes.PRESETS, "default", lambda: Recipe(PooledConfig(width=16), QUICK))
    monkeypatch.setitem(recipes.PRESETS, "paper", lambda: Recipe(CrossAttentionConfig(width=16), QUICK, (-1,)))


@pytest.fixture
def make(tiny_encoder: Path) -> Callable[..., YTuningClassifier]:
    return lambda **options: YTuningClassifier(str(tiny_encoder), **options)


@pytest.fixture(scope="module")
def fitted(tiny_encoder: Path, toy_rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Iterator[YTuningClassifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.PRESETS, "default", lambda: Recipe(PooledConfig(width=16), QUICK))
        model = YTuningClassifier(str(tiny_encoder), cache=tmp_path_factory.mktemp("own"))
        yield model.fit(*toy_rows)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_init_stores_its_arguments_and_nothing_else() -> None:
    given = {
        "encoder": object(),
        "preset": object(),
        "class_weight": object(),
        "store": object(),
        "seed": object(),
        "refit": object(),
        "cache": object(),
        "verbose": object(),
        "precision": object(),
        "pairs": object(),
        "long_text": object(),
        "layers": object(),
        "keep_features": object(),
        "label_texts": object(),
    }
    model = YTuningClassifier(**given)  # type: ignore[arg-type]
    assert vars(model) == given
    assert all(vars(model)[name] is value for name, value in given.items())
    assert set(inspect.signature(YTuningClassifier.__init__).parameters) - {"self"} == set(given)


def test_get_params_set_params_and_clone(make: Callable[..., YTuningClassifier], tiny_encoder: Path) -> None:
    model = make(preset="paper", seed=5)
    assert model.get_params() == {
        "encoder": str(tiny_encoder), "preset": "paper", "class_weight": None, "store": "int8", "seed": 5,
        "refit": True, "cache": None, "verbose": False, "precision": "auto",
        "pairs": "auto", "long_text": "truncate", "layers": None, "keep_features": False, "label_texts": None,
    }  # fmt: skip
    assert model.set_params(seed=7, preset="default") is model
    assert (model.seed, model.preset) == (7, "default")
    copied = clone(model)
    assert copied is not model and copied.get_params() == model.get_params()
    with pytest.raises(ValueError, match="depth"):
        model.set_params(depth=3)


def test_texts_that_are_cut_are_told(fitted: YTuningClassifier) -> None:
    with pytest.warns(UserWarning, match=r"^cut 1 text longer than the encoder reads$"):
        fitted.predict(["card " * 100, "my login"])


def test_the_precision_reaches_the_encoder(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    model = make(precision="bf16").fit(*toy_rows)
    assert model.task_.encoder.precision == "bf16"
    assert model.score(*toy_rows) > 0.8
    with pytest.raises(EncoderError, match=r"^precision must be one of 'auto', 'fp32', 'bf16'\. Got 'int8' instead\.$"):
        make(precision="int8").fit(*toy_rows)


def test_clone_of_a_fitted_one_is_not_fitted(fitted: YTuningClassifier) -> None:
    assert not [name for name in vars(clone(fitted)) if name.endswith("_") or name.startswith("_")]
    with pytest.raises(NotFittedError):
        clone(fitted).predict(["a"])


def test_is_a_classifier_of_texts(make: Callable[..., YTuningClassifier]) -> None:
    assert is_classifier(make())
    assert make().__sklearn_tags__().input_tags.string


def test_fit_checks_what_init_stored(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    with pytest.raises(
        InputError,
        match=r"preset must be one of 'default', 'few-shot', 'paper', 'light', 'auto'\. Got 'best' instead\.",
    ):
        make(preset="best").fit(*toy_rows)
    with pytest.raises(InputError, match=r"store must be one of 'fp16', 'int8', 'compact'\. Got 'tiny' instead"):
        make(store="tiny").fit(*toy_rows)
    for wrong in ("even", 5, ["card"], *({toy_rows[1][0]: value} for value in ("x", None, math.nan, -1))):
        with pytest.raises(InputError, match=r"^class_weight must be one of None, 'balanced', .*Got .* instead"):
            make(class_weight=wrong).fit(*toy_rows)
    with pytest.raises(InputError, match=r"class_weight names a label that y does not have: 'x'\. y has: "):
        make(class_weight={"x": 2.0}).fit(*toy_rows)
    with pytest.raises(EncoderError, match="there is no encoder folder '/nowhere'"):
        YTuningClassifier("/nowhere").fit(*toy_rows)


# --- fit and predict ------------------------------------------------------------------------------------------------


def test_class_weights_reach_the_right_label(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    texts, labels = toy_rows
    order = sorted(set(labels))
    numbers = [10 - order.index(label) for label in labels]  # 10, 9, 8: as text they sort otherwise
    for only in (8, 9, 10):
        weights = {number: float(number == only) for number in (8, 9, 10)}
        found = make(class_weight=weights).fit(texts, numbers).predict(texts)
        assert set(found.tolist()) == {only}


def test_fit_returns_self_and_leaves_parameters_alone(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    model = make(seed=2)
    before = model.get_params()
    assert model.fit(*toy_rows) is model
    assert model.get_params() == before
    assert model.validation_metrics_ == model.task_.metrics["validation"]
    assert model.task_.training["seed"] == 2


def test_predict_proba_and_score_agree(fitted: YTuningClassifier, toy_rows: Rows) -> None:
    texts, labels = toy_rows
    probabilities, predicted = fitted.predict_proba(texts), fitted.predict(texts)
    assert probabilities.shape == (len(texts), 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert list(predicted) == [fitted.classes_[row.argmax()] for row in probabilities]
    assert fitted.score(texts, labels) == pytest.approx(
        np.mean([a == b for a, b in zip(predicted, labels, strict=True)])
    )
    assert fitted.score(texts, labels) > max(map(labels.count, set(labels))) / len(labels) + 0.2


def as_types(labels: list[str]) -> dict[str, Any]:
    ids = np.array([["card", "login", "refund"].index(label) for label in labels])
    return {
        "str": labels,
        "object": np.array(labels, object),
        "int": np.array([2, 10, 1])[ids],
        "digits": np.array(["2", "10", "1"])[ids],
        "int list": [(-3, 0, 7)[number] for number in ids],
        "bool": ids > 0,
        "float": np.array([2.0, 10.0, 1.0])[ids],
        "series": pd.Series(labels, index=range(500, 500 + len(labels))),
    }


@pytest.mark.parametrize("name", ["str", "object", "int", "digits", "int list", "bool", "float", "series"])
def test_labels_keep_their_type_and_columns_follow_classes(
    name: str, make: Callable[..., YTuningClassifier], toy_rows: Rows
) -> None:
    texts, y = toy_rows[0], as_types(toy_rows[1])[name]
    model = make().fit(texts, y)
    expected = np.unique(np.asarray(y))
    assert model.classes_.dtype == expected.dtype and model.classes_.tolist() == expected.tolist()
    probabilities, predicted = model.predict_proba(texts), model.predict(texts)
    assert predicted.dtype == expected.dtype
    assert predicted.tolist() == model.classes_[probabilities.argmax(1)].tolist()
    # Columns that are mixed up would make the right label a rare one.
    assert np.mean(predicted == np.asarray(y)) > np.max(np.unique(np.asarray(y), return_counts=True)[1]) / len(y) + 0.05
    assert model.score(texts, y) == np.mean(predicted == np.asarray(y))


def test_white_space_around_labels_is_kept_in_classes_and_none_of_the_tasks_names(
    make: Callable[..., YTuningClassifier], toy_rows: Rows
) -> None:
    texts, y = toy_rows[0], [f" {label}\u00a0" for label in toy_rows[1]]
    model = make(class_weight={y[0]: 2.0}, preset="few-shot", label_texts={y[0]: "some words"}).fit(texts, y)
    assert model.task_.target.names == ("card", "login", "refund")
    assert set(model.predict(texts)) <= set(y) and np.allclose(model.predict_proba(texts).sum(1), 1)


def test_labels_that_look_alike_warn_and_class_weights_are_found_by_name(
    make: Callable[..., YTuningClassifier], toy_rows: Rows
) -> None:
    texts, names = toy_rows
    alike = ["Card" if label == "card" and number % 2 else label for number, label in enumerate(names)]
    with pytest.warns(UserWarning, match="these labels look alike and are different labels: 'Card'"):
        make().fit(texts, alike)
    flags = [label == "card" for label in names]
    weighed = [make(class_weight={key: 3.0}).fit(texts, flags).predict_proba(texts) for key in (True, "true", "TRUE")]
    np.testing.assert_array_equal(weighed[0], weighed[1])
    np.testing.assert_array_equal(weighed[0], weighed[2])
    with pytest.raises(InputError, match=r"does not have: 'ture'\. Did you mean 'true'\? y has: False, True"):
        make(class_weight={"ture": 3.0}).fit(texts, flags)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda texts: np.array(texts, object), pd.Series])
def test_kinds_of_texts(kind: Callable[[list[str]], Any], fitted: YTuningClassifier, toy_rows: Rows) -> None:
    texts = toy_rows[0][:7]
    np.testing.assert_array_equal(fitted.predict_proba(kind(texts)), fitted.predict_proba(texts))


@pytest.mark.parametrize("kind", [list, np.array, pd.DataFrame], ids=["list", "array", "frame"])
def test_pairs(kind: Callable[[Any], Any], make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    texts, labels = toy_rows
    pairs = list(zip(texts, texts[::-1], strict=True))
    model = make().fit(kind(pairs) if kind is not pd.DataFrame else pairs, labels)
    assert model.task_.pair_mode
    assert model.predict(pairs[:4]).shape == (4,)
    with pytest.raises(DataError, match="the task 'task' was trained on pairs of texts"):
        model.predict(texts[:2])


def test_same_seed_same_probabilities(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    found = [make(seed=seed).fit(*toy_rows).predict_proba(toy_rows[0]) for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_second_fit_makes_no_encoder_call(
    make: Callable[..., YTuningClassifier], toy_rows: Rows, encoded: list[int]
) -> None:
    first = make().fit(*toy_rows)
    assert sum(encoded) == 120
    encoded.clear()
    second = make(seed=1, class_weight="balanced").fit(toy_rows[0], toy_rows[1])
    assert encoded == []
    for model in (first, second):
        model.set_params(keep_features=True).predict(toy_rows[0])
    assert encoded == []


def test_a_preset_reads_its_own_hidden_states(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    assert make().fit(*toy_rows).task_.states == (2, 3)
    assert make(preset="paper").fit(*toy_rows).task_.states == (3,)


def test_cache_is_a_folder_of_its_own(make: Callable[..., YTuningClassifier], toy_rows: Rows, tmp_path: Path) -> None:
    make(cache=tmp_path / "here").fit(*toy_rows)
    assert list((tmp_path / "here").glob("*/shards/*.features"))


@pytest.mark.parametrize("store", ["int8", "compact"])
def test_store_is_the_codec_of_fit_and_predict(
    make: Callable[..., YTuningClassifier], toy_rows: Rows, tmp_path: Path, store: str, encoded: list[int]
) -> None:
    model = make(cache=tmp_path, store=store, keep_features=True).fit(*toy_rows)
    assert [space.codec_name for space in FeatureStore(tmp_path).spaces()] == [model.task_.codec.name] == [store]
    encoded.clear()
    assert model.score(*toy_rows) > 0.4 and encoded == []


def test_save_writes_a_task_that_the_predictor_reads(
    make: Callable[..., YTuningClassifier], toy_rows: Rows, tmp_path: Path
) -> None:
    fitted = make(store="fp16").fit(*toy_rows)  # the predictor's features are the encoder's own
    fitted.save(tmp_path / "mine")
    found = list(Predictor([tmp_path / "mine"]).predict(from_lists(toy_rows[0][:9]).inputs))
    assert {answer.task for answer in found} == {"mine"}
    np.testing.assert_allclose(
        [list(answer.scores.values()) for answer in found], fitted.predict_proba(toy_rows[0][:9]), atol=1e-6
    )


def test_verbose_shows_progress_on_stderr_only(
    make: Callable[..., YTuningClassifier], toy_rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    make().fit(*toy_rows)
    assert capsys.readouterr() == ("", "")
    make(verbose=True).fit(*toy_rows)
    shown = capsys.readouterr()
    assert shown.out == "" and "train" in shown.err


def test_an_interrupted_fit_leaves_it_unfitted(
    make: Callable[..., YTuningClassifier], toy_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(Progress):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "train":
                raise KeyboardInterrupt

    monkeypatch.setattr(estimator, "Progress", Interrupt)
    model = make()
    try:
        model.fit(*toy_rows)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("the interrupt was swallowed")
    with pytest.raises(NotFittedError):
        model.predict(["a"])


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("keep", [False, True])
def test_predictions_store_features_only_if_asked(
    keep: bool, make: Callable[..., YTuningClassifier], toy_rows: Rows, tmp_path: Path, encoded: list[int]
) -> None:
    model = make(cache=tmp_path, keep_features=keep).fit(*toy_rows)
    before, new = contents(tmp_path), ["a new text", "money money", "a new text"]
    encoded.clear()
    first = model.predict_proba(new)
    model.score(new, toy_rows[1][:3])
    assert (contents(tmp_path) != before) == keep
    assert sum(encoded) == (2 if keep else 4)
    model.set_params(keep_features=not keep, cache=tmp_path / "other")
    np.testing.assert_allclose(model.predict_proba(new), first, rtol=0, atol=1e-5)


# --- copies ---------------------------------------------------------------------------------------------------------


def by_joblib(model: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "joblib": by_joblib,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "copy of a copy": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_predicts_the_same(way: str, fitted: YTuningClassifier, toy_rows: Rows, tmp_path: Path) -> None:
    model = COPIES[way](fitted)
    assert model.get_params() == fitted.get_params() and model.classes_.tolist() == fitted.classes_.tolist()
    np.testing.assert_array_equal(model.predict_proba(toy_rows[0]), fitted.predict_proba(toy_rows[0]))
    # The one that was copied keeps its encoder.
    assert fitted.predict(toy_rows[0][:1]).shape == (1,)
    model.save(tmp_path / "task")
    fitted.save(tmp_path / "original" / "task")
    assert contents(tmp_path / "task").keys() == {tmp_path / "task" / name for name in TASK_FILES}
    for name in TASK_FILES:
        assert (tmp_path / "task" / name).read_bytes() == (tmp_path / "original" / "task" / name).read_bytes()


def test_a_copy_holds_the_head_and_no_weights_of_the_encoder(
    fitted: YTuningClassifier, tiny_encoder: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    copied = pickle.dumps(fitted)
    fitted.save(tmp_path / "task")
    # The task folder is the head, where some texts lie in its label space, names and figures.
    assert len(copied) < 1.1 * sum(map(len, contents(tmp_path / "task").values())) + 10_000
    with safe_open(tiny_encoder / "model.safetensors", "numpy") as weights:
        large = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118  # it is no mapping
    assert not [tensor for tensor in large if tensor.std() > 0 and tensor.tobytes()[:64] in copied]


def test_a_copy_refuses_another_encoder(
    make: Callable[..., YTuningClassifier], toy_rows: Rows, tiny_encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    copied = pickle.dumps(YTuningClassifier(str(tmp_path / "encoder")).fit(*toy_rows))
    shutil.move(tmp_path / "encoder", tmp_path / "moved")
    with pytest.raises(EncoderError, match="there is no encoder folder"):
        pickle.loads(copied).predict(["a text"])
    moved = pickle.loads(copied).set_params(encoder=str(tmp_path / "moved"))
    assert moved.predict(["a text"]).shape == (1,)
    build_tiny_encoder(tmp_path / "encoder", seed=1)
    with pytest.raises(TaskFolderError, match=r"was trained with another encoder.*weights is"):
        pickle.loads(copied).predict(["a text"])


def test_a_copy_of_one_that_is_not_fitted(make: Callable[..., YTuningClassifier]) -> None:
    copied = pickle.loads(pickle.dumps(make(seed=3)))
    assert copied.get_params() == make(seed=3).get_params()
    with pytest.raises(NotFittedError):
        copied.predict(["a text"])


def test_a_regressor_is_copied_too(tiny_encoder: Path, toy_rows: Rows) -> None:
    model = YTuningRegressor(str(tiny_encoder)).fit(toy_rows[0], [float(len(text)) for text in toy_rows[0]])
    np.testing.assert_array_equal(copy.deepcopy(model).predict(toy_rows[0]), model.predict(toy_rows[0]))


def test_fitted_estimators_come_back_from_other_processes(
    make: Callable[..., YTuningClassifier], toy_rows: Rows
) -> None:
    found = cross_validate(make(), *toy_rows, cv=2, n_jobs=2, return_estimator=True, error_score="raise")
    assert [model.predict(toy_rows[0][:3]).shape for model in found["estimator"]] == [(3,), (3,)]


# --- blank texts ----------------------------------------------------------------------------------------------------


def test_blank_texts_are_predicted_and_not_trained_on(fitted: YTuningClassifier, toy_rows: Rows) -> None:
    texts = ["my card", "", " \n", "login please"]
    probabilities = fitted.predict_proba(texts)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(probabilities[[0, 3]], fitted.predict_proba([texts[0], texts[3]]), atol=1e-6)
    np.testing.assert_array_equal(probabilities[1], probabilities[2])
    assert fitted.predict([""]).tolist() == [fitted.classes_[probabilities[1].argmax()]]
    for blank, state in (("", "is empty"), ("\u3000", "has only white space")):
        with pytest.raises(DataError, match=rf"row 121, column 'text': the text {state}\. Fill it in or remove"):
            clone(fitted).fit([*toy_rows[0], blank], [*toy_rows[1], "card"])


def test_explainers_that_leave_words_out_are_answered(fitted: YTuningClassifier) -> None:
    # LIME drops words and keeps the spaces; SHAP's masker puts "..." or nothing in their place.
    chooser, words = np.random.default_rng(0), ["my", "card", "was", "stolen"]
    kept = chooser.random((60, len(words))) > 0.6
    variations = [" ".join(word if keep else "" for word, keep in zip(words, row, strict=True)) for row in kept]
    variations += ["", "...", "... ...", " ".join(words)]
    assert sum(not text.strip() for text in variations) >= 4
    for given in (variations, np.array(variations), np.array(variations, object)):
        assert fitted.predict_proba(given).shape == (64, 3)
    by_text = dict(zip(variations, fitted.predict_proba(variations).tolist(), strict=True))
    np.testing.assert_allclose([by_text[text] for text in variations], fitted.predict_proba(variations))


# --- inside scikit-learn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, np.array, pd.Series])
def test_groups_stay_on_one_side(
    kind: Callable[[Any], Any],
    make: Callable[..., YTuningClassifier],
    toy_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = []

    def split(dataset: Any, *arguments: Any, **options: Any) -> Any:
        given.append(dataset.groups)
        return split_holdout(dataset, *arguments, **options)

    monkeypatch.setattr("ytuning.data.splits.split_holdout", split)
    groups = [row // 10 for row in range(120)]
    make().fit(*toy_rows, groups=kind(groups))
    assert given == [[str(group) for group in groups]]


def test_groups_that_cannot_be_used(make: Callable[..., YTuningClassifier], toy_rows: Rows, tiny_encoder: Path) -> None:
    with pytest.raises(DataError, match=r"^the rows: there are 120 texts but 2 groups\. Give one for each text\.$"):
        make().fit(*toy_rows, groups=[1, 2])
    with pytest.raises(DataError, match=r"all 120 rows have the value 'a' in groups=, so they are one group"):
        make().fit(*toy_rows, groups=["a"] * 120)
    numbers = [float(len(text)) for text in toy_rows[0]]
    with pytest.raises(DataError, match=r"all 120 rows have the value 'a' in groups="):
        YTuningRegressor(str(tiny_encoder)).fit(toy_rows[0], numbers, groups=["a"] * 120)
    with pytest.raises(InputError, match="groups"):
        make().fit(*toy_rows, groups=5)


def test_cross_val_score(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    scores = cross_val_score(make(), *toy_rows, cv=3)
    assert (
        scores.shape == (3,) and scores.mean() > max(map(toy_rows[1].count, set(toy_rows[1]))) / len(toy_rows[1]) + 0.1
    )


def test_grid_search(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    search = GridSearchCV(make(), {"preset": ["default", "paper"], "seed": [0]}, cv=2, error_score="raise").fit(
        *toy_rows
    )
    assert set(search.best_params_) == {"preset", "seed"}
    assert search.predict(toy_rows[0][:3]).shape == (3,)
    assert list(search.classes_) == ["card", "login", "refund"]


def test_pipeline(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    def lower(texts: list[str]) -> list[str]:
        return [text.lower() for text in texts]

    steps = Pipeline([("lower", FunctionTransformer(lower)), ("head", make(seed=1))])
    steps.fit([text.upper() for text in toy_rows[0]], toy_rows[1])
    assert steps.get_params()["head__seed"] == 1
    plain = make(seed=1).fit(*toy_rows)
    np.testing.assert_array_equal(steps.predict_proba(toy_rows[0]), plain.predict_proba(toy_rows[0]))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["predict", "predict_proba", "save"])
def test_not_fitted(call: str, make: Callable[..., YTuningClassifier]) -> None:
    with pytest.raises(NotFittedError):
        getattr(make(), call)(["a text"])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (["a", "b", "c"], ["x", "y"], "3 texts but 2 labels"),
        (["a", "b"], ["x", "x"], "all 2 rows have the label 'x'"),
        (["a", "b"], ["x", "y"], "no row can be held out for validation, because each label needs another"),
        (["a", "", "c", "d"], [1, 1, 2, 2], "row 2, column 'text': the text is empty"),
        (["a", None, "c", "d"], [1, 1, 2, 2], "row 2, column 'text': the text is missing"),
        ([1, 2, 3, 4], [1, 1, 2, 2], "row 1, column 'text': the text is 1 \\(int\\), not text"),
        (["a", "b"], np.array([[1, 2], [0, 1]]), r"row 1: y of two dimensions must hold 0 and 1, .*Got .*2.* instead"),
        (["a", "b", "c", "d"], [[[1]], [[1]], [[0]], [[0]]], r"row 1, column 'y': every row must be a list of "),
        (["a", "b"], np.zeros((2, 1, 1)), r"y must be a list, .* Its shape is \(2, 1, 1\)"),
        (["a", "b"], [[0, 0], [0, 0]], "none of the 2 rows has a label"),
        (["a", "b", "c", "d"], [0.5, 0.25, 1.5, 2.5], "Use labels, or YTuningRegressor for numbers"),
        (["a", "b", "c", "d"], [1.0, float("nan"), 2.0, 2.0], "row 2, column 'y': the label is missing"),
        (["a", "b", "c", "d"], ["x", "x", None, "y"], "row 3, column 'y': the label is missing"),
        (["a", "b", "c", "d"], ["x", "x", float("nan"), "y"], "row 3, column 'y': the label is missing"),
        (["a", "b", "c", "d"], pd.Series(["x", "x", None, "y"]), "row 3, column 'y': the label is missing"),
        (["a", "b", "c", "d"], np.array(["x", "x", 3, 3], object), "labels of one type"),
        (["a", "b", "c"], ["x", " x", "y"], "^y holds labels that are one label, 'x', in several forms: ' x', 'x'"),
        ("a text", ["x"], "texts must be a list, an array or a series"),
        ([], [], "no rows"),
    ],
)  # fmt: skip
def test_wrong_rows(x: Any, y: Any, message: str, make: Callable[..., YTuningClassifier]) -> None:
    with pytest.raises(InputError, match=message):
        make().fit(x, y)


def test_wrong_rows_to_predict(fitted: YTuningClassifier) -> None:
    with pytest.raises(DataError, match="the task 'task' was trained on single texts"):
        fitted.predict([("a", "b")])
    with pytest.raises(DataError, match="row 2, column 'text': the text is missing"):
        fitted.predict(["a", None])
    with pytest.raises(DataError, match="there are no rows"):
        fitted.predict([])


# --- several labels, and numbers -------------------------------------------------------------------------------------


def pa_table(matrix: np.ndarray) -> Any:
    return pa.table({str(place): column for place, column in enumerate(matrix.T)})


@pytest.fixture
def indicators(toy_rows: Rows) -> np.ndarray:
    """(120, 4): card, login, whether the text says please, and a column of zeros."""
    texts, labels = toy_rows
    rows = [
        (label == "card", label == "login", "please" in text, False) for text, label in zip(texts, labels, strict=True)
    ]
    return np.array(rows, int)


def test_several_labels(make: Callable[..., YTuningClassifier], toy_rows: Rows, indicators: np.ndarray) -> None:
    model = make(class_weight="balanced").fit(toy_rows[0], indicators)
    assert model.classes_.tolist() == [0, 1, 2, 3]
    predicted, probabilities = model.predict(toy_rows[0]), model.predict_proba(toy_rows[0])
    assert predicted.shape == probabilities.shape == indicators.shape
    assert set(np.unique(predicted)) <= {0, 1} and predicted.dtype.kind == "i"
    assert (predicted[:, :2] == indicators[:, :2]).mean() > 0.75
    assert not predicted[:, 3].any() and not probabilities[:, 3].any()  # nobody has the last label
    assert ((probabilities >= 0) & (probabilities <= 1)).all() and not np.allclose(probabilities[:, :3].sum(1), 1)
    assert model.task_.kind == "multi" and model.__sklearn_tags__().classifier_tags.multi_label
    assert 0 <= model.score(toy_rows[0], indicators) <= 1


def test_a_frame_names_its_labels(
    make: Callable[..., YTuningClassifier], toy_rows: Rows, indicators: np.ndarray
) -> None:
    frame = pd.DataFrame(indicators, columns=["toxic", " insult", "polite", "other"])
    model = make().fit(toy_rows[0], frame)
    assert model.task_.target.names == ("insult", "polite", "toxic")
    assert model.classes_.tolist() == list(frame.columns)
    assert model.predict(toy_rows[0]).shape == frame.shape and 0 <= model.score(toy_rows[0], frame) <= 1
    plain = make().fit(toy_rows[0], indicators[:, [1, 2, 0]])
    assert np.allclose(model.predict_proba(toy_rows[0])[:, [1, 2, 0]], plain.predict_proba(toy_rows[0]))
    with pytest.raises(InputError, match="class_weight of a multi-label task is None or 'balanced'"):
        make(class_weight={"toxic": 2.0}).fit(toy_rows[0], frame)


@pytest.mark.parametrize("container", [list, tuple, set, frozenset])
def test_sets_of_names_are_answered_by_such_sets(
    container: Callable[[Any], Any], make: Callable[..., YTuningClassifier], toy_rows: Rows, indicators: np.ndarray
) -> None:
    texts, names = toy_rows[0], np.array(["card", "login", "polite"])
    y = [container(names[row[:3] > 0].tolist()) for row in indicators]
    model = make().fit(texts, y)
    assert model.classes_.tolist() == names.tolist() and model.task_.target.names == tuple(names)
    matrix = make().fit(texts, pd.DataFrame(indicators[:, :3], columns=names))
    np.testing.assert_array_equal(model.predict_proba(texts), matrix.predict_proba(texts))
    predicted = model.predict(texts)
    assert predicted.shape == (120,) and {type(labels) for labels in predicted} == {container}
    assert [sorted(labels) for labels in predicted] == [
        sorted(names[row > 0].tolist()) for row in matrix.predict(texts)
    ]
    right = [set(true) == set(given) for true, given in zip(y, predicted, strict=True)]
    assert model.score(texts, y) == np.mean(right) == matrix.score(texts, indicators[:, :3])
    weights = np.arange(120)
    with pytest.raises(InputError, match=r"^y must have a row for each of the 120 texts\. Got 1 instead\.$"):
        model.score(texts, y[:1])
    assert model.score(texts, pd.Series(y), weights) == pytest.approx(np.average(right, weights=weights))


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array, np.ndarray.tolist, lambda y: y.astype(bool), pa_table])
def test_matrices_of_0_and_1_are_alike(
    form: Callable[[np.ndarray], Any], make: Callable[..., YTuningClassifier], toy_rows: Rows, indicators: np.ndarray
) -> None:
    plain, model = (make().fit(toy_rows[0], y) for y in (indicators[:, :3], form(indicators[:, :3])))
    predicted = model.predict(toy_rows[0])
    assert predicted.dtype.kind == "i"
    np.testing.assert_array_equal(predicted, plain.predict(toy_rows[0]))
    assert model.score(toy_rows[0], form(indicators[:, :3])) == plain.score(toy_rows[0], indicators[:, :3])


def test_an_ordered_categorical_trains_an_ordinal_task(make: Callable[..., YTuningClassifier], toy_rows: Rows) -> None:
    texts, order = toy_rows[0], ["refund", "login", "card", "unused"]
    y = pd.Series(pd.Categorical(toy_rows[1], order, ordered=True))
    model = make(class_weight={"card": 2.0}).fit(texts, y)
    assert model.task_.kind == "ordinal" and model.task_.target.names == ("refund", "login", "card")
    assert model.classes_.tolist() == ["card", "login", "refund"]
    # (rows,): the label at which the cumulated probability in the order of the labels passes one half.
    cumulated = model.predict_proba(texts)[:, [2, 1, 0]].cumsum(1)
    assert model.predict(texts).tolist() == [order[place] for place in (cumulated < 0.5).sum(1).clip(max=2)]
    assert model.score(texts, y) == np.mean(model.predict(texts) == np.array(toy_rows[1])) > 0.5


@pytest.mark.parametrize("form", [np.array, iter, pd.Series, lambda y: np.array(y)[:, None], pa.array, pd.DataFrame])
def test_forms_of_numbers(form: Callable[[list[float]], Any], tiny_encoder: Path, toy_rows: Rows) -> None:
    numbers = [float(len(text)) for text in toy_rows[0]]
    plain, model = (YTuningRegressor(str(tiny_encoder)).fit(toy_rows[0], y) for y in (numbers, form(numbers)))
    np.testing.assert_array_equal(model.predict(toy_rows[0]), plain.predict(toy_rows[0]))


@pytest.mark.parametrize("name", ["default", "paper"])
def test_numbers(name: str, tiny_encoder: Path, toy_rows: Rows, tmp_path: Path) -> None:
    texts, labels = toy_rows
    numbers = np.array([["card", "login", "refund"].index(label) for label in labels]) * 2.5 - 1
    model = YTuningRegressor(str(tiny_encoder), preset=name)
    assert is_regressor(model) and model.get_params()["preset"] == name
    with pytest.raises(NotFittedError):
        model.predict(texts)
    values = model.fit(texts, numbers).predict(texts)
    assert values.shape == (120,) and values.min() >= -1 and values.max() <= 4  # a scale whose ends are common
    assert np.corrcoef(values, numbers)[0, 1] > 0.5 and model.score(texts, numbers) > 0.1
    assert set(model.validation_metrics_) == {"pearson", "spearman", "mae", "rmse"}
    model.save(tmp_path / "stars")
    answers: list[Any] = [
        answer.answer for answer in Predictor([tmp_path / "stars"]).predict([(text, None) for text in texts])
    ]
    assert np.allclose(answers, values, atol=0.2)  # the store is int8


def test_numbers_that_are_none(tiny_encoder: Path) -> None:
    model = YTuningRegressor(str(tiny_encoder))
    with pytest.raises(InputError, match=r"y must be one number for each row, .*Got the row \[1, 2\]"):
        model.fit(["a", "b"], [[1, 2], [3, 4]])
    with pytest.raises(InputError, match="is not a finite number"):
        model.fit(["a", "b"], [1.0, float("inf")])
    with pytest.raises(InputError, match="the task 'task' was trained on single texts"):
        model.fit([f"card {word}" for word in ["a", "the", "my", "your"]], [1, 2, 1.5, 3]).predict([("a", "b")])

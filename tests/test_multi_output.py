"""scikit-learn's contract for several outputs, as far as it makes sense for texts."""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from ytuning import YTuningClassifier, YTuningMultiOutputClassifier, estimator
from ytuning.errors import DataError, InputError
from ytuning.heads.pooled import PooledConfig
from ytuning.progress import Progress
from ytuning.tasks.predictor import Predictor
from ytuning.training import recipes
from ytuning.training.recipes import Recipe, TrainingConfig

QUICK = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=40, most_steps=40))
Rows = tuple[list[str], list[str]]
Make = Callable[..., YTuningMultiOutputClassifier]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of few steps."""
    monkeypatch.setitem(recipes.PRESETS, "default", lambda: QUICK)


@pytest.fixture
def make(tiny_encoder: Path) -> Make:
    return lambda **options: YTuningMultiOutputClassifier(str(tiny_encoder), **options)


@pytest.fixture(scope="module")
def frame(toy_rows: Rows) -> pd.DataFrame:
    """Three outputs: text, whole numbers with missing ones, and truth values."""
    texts, labels = toy_rows
    digits = [math.nan if number % 4 == 0 else float(len(text) % 2) for number, text in enumerate(texts)]
    return pd.DataFrame({"theme": labels, "digit": digits, "late": ["late" in text for text in texts]})


@pytest.fixture(scope="module")
def fitted(
    tiny_encoder: Path, toy_rows: Rows, frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[YTuningMultiOutputClassifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.PRESETS, "default", lambda: QUICK)
        model = YTuningMultiOutputClassifier(str(tiny_encoder), cache=tmp_path_factory.mktemp("own"))
        yield model.fit(toy_rows[0], frame)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_classifier(make: Make) -> None:
    ours, theirs = (inspect.signature(kind.__init__).parameters for kind in (type(make()), YTuningClassifier))
    assert list(ours) == list(theirs)
    assert {name: one.default for name, one in ours.items()} == {name: one.default for name, one in theirs.items()}
    given = {name: object() for name in ours if name != "self"}
    model = YTuningMultiOutputClassifier(**given)  # type: ignore[arg-type]
    assert vars(model) == given and model.get_params() == given


def test_clone_is_not_fitted(fitted: YTuningMultiOutputClassifier) -> None:
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    for call in (copied.predict, copied.predict_proba, copied.save):
        with pytest.raises(NotFittedError):
            call(["a"])


def test_tags(make: Make) -> None:
    tags = make().__sklearn_tags__()
    assert is_classifier(make()) and tags.input_tags.string
    assert tags.target_tags.multi_output and not tags.target_tags.single_output


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"class_weight": {"a": 1.0}}, r"class_weight must be one of None, 'balanced'\. Got"),
        ({"label_texts": {"a": "b"}}, r"label_texts must be one of None, 'names', 'none'\. Got"),
        ({"layers": "auto"}, "layers='auto' chooses hidden states for one task"),
        ({"preset": "best"}, "preset must be one of"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_fit_checks_parameters(
    parameters: dict[str, Any], message: str, make: Make, toy_rows: Rows, frame: pd.DataFrame
) -> None:
    with pytest.raises(InputError, match=message):
        make(**parameters).fit(toy_rows[0], frame)


# --- fit and predict ------------------------------------------------------------------------------------------------


def test_shapes_types_and_order(fitted: YTuningMultiOutputClassifier, toy_rows: Rows) -> None:
    texts = toy_rows[0][:9]
    assert fitted.outputs_ == ["theme", "digit", "late"] == [task.name for task in fitted.tasks_]
    assert [classes.tolist() for classes in fitted.classes_] == [["card", "login", "refund"], [0.0, 1.0], [False, True]]
    probabilities, predicted = fitted.predict_proba(texts), fitted.predict(texts)
    assert [values.shape for values in probabilities] == [(9, 3), (9, 2), (9, 2)]
    assert predicted.shape == (9, 3) and predicted.dtype == object
    for place, values in enumerate(probabilities):
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)
        assert predicted[:, place].tolist() == fitted.classes_[place][values.argmax(1)].tolist()
    assert set(fitted.validation_metrics_) == set(fitted.outputs_) and fitted.truncated_ == 0


@pytest.mark.parametrize("name", ["theme", "digit"])
def test_an_output_is_the_classifier_of_its_known_rows(
    name: str, make: Make, tiny_encoder: Path, toy_rows: Rows, frame: pd.DataFrame
) -> None:
    texts = toy_rows[0]
    model = make(preset="few-shot").fit(texts, frame[[name]])
    known = frame[name].notna().to_numpy()
    assert known.sum() == (90 if name == "digit" else 120)
    alone = YTuningClassifier(str(tiny_encoder), preset="few-shot")
    alone.fit([text for text, there in zip(texts, known, strict=True) if there], frame[name][known])
    np.testing.assert_array_equal(model.classes_[0], alone.classes_)
    np.testing.assert_allclose(model.predict_proba(texts[:20])[0], alone.predict_proba(texts[:20]), atol=1e-6)
    assert model.validation_metrics_[name] == alone.validation_metrics_


def test_several_outputs_learn_from_the_same_rows_as_one(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    texts = toy_rows[0]
    model = make(preset="few-shot").fit(texts, frame)
    for place, name in enumerate(frame):
        alone = make(preset="few-shot").fit(texts, frame[[name]])
        # Which of the rows are held out differs, and after the refit all of them have been learned from.
        first, second = model.predict_proba(texts)[place], alone.predict_proba(texts)[0]
        assert (first.argmax(1) == second.argmax(1)).mean() > 0.85


def as_forms(frame: pd.DataFrame) -> dict[str, Any]:
    late = ["yes" if late else "no" for late in frame["late"]]
    rows = [[label, late[number] if number % 5 else None] for number, label in enumerate(frame["theme"])]
    return {"lists": rows, "array": np.array(rows, object), "frame": pd.DataFrame(rows), "tuples": [*map(tuple, rows)]}


def test_forms_of_y_are_alike(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    found = [make().fit(toy_rows[0], y).predict(toy_rows[0]) for y in as_forms(frame).values()]
    # Both outputs are text, so no object array is needed.
    assert {answers.dtype.kind for answers in found} <= {"U", "O"}
    for answers in found[1:]:
        assert answers.tolist() == found[0].tolist()


def test_numbers_keep_their_type(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    y = np.stack([np.arange(120) % 3, frame["late"].to_numpy().astype(int)], 1)
    model = make().fit(toy_rows[0], y)
    assert model.predict(toy_rows[0]).dtype == y.dtype and model.outputs_ == ["0", "1"]
    single = make().fit(toy_rows[0], y[:, :1])
    assert single.predict(toy_rows[0]).shape == (120, 1) and len(single.predict_proba(toy_rows[0][:2])) == 1


def test_an_ordered_categorical_is_ordinal(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    order = ["refund", "card", "login"]
    y = pd.DataFrame({"theme": pd.Categorical(frame["theme"], order, ordered=True), "late": frame["late"]})
    model = make().fit(toy_rows[0], y)
    assert [task.kind for task in model.tasks_] == ["ordinal", "single"]
    assert model.tasks_[0].target.names == ("refund", "card", "login")
    assert model.classes_[0].tolist() == sorted(order)


def test_score_compares_known_cells_only(
    fitted: YTuningMultiOutputClassifier, toy_rows: Rows, frame: pd.DataFrame
) -> None:
    texts, predicted = toy_rows[0], fitted.predict(toy_rows[0])
    right = np.ones(120, bool)
    for place, name in enumerate(frame):
        right &= [not there or a == b for a, b, there
                  in zip(predicted[:, place], frame[name], frame[name].notna(), strict=True)]  # fmt: skip
    assert 0 < right.mean() < 1 and fitted.score(texts, frame) == pytest.approx(right.mean())
    weight = np.arange(120.0)
    assert fitted.score(texts, frame, weight) == pytest.approx(np.average(right, weights=weight))
    with pytest.raises(InputError, match=r"y must have the shape \(120, 3\)\. Got \(120, 2\) instead"):
        fitted.score(texts, frame[["theme", "late"]])


def test_sklearn_selects_models(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    # scikit-learn sorts all labels of an object array, so they are of one type.
    y = np.stack([frame["theme"], frame["late"].map({True: "yes", False: "no"})], 1).astype(object)
    scores = cross_val_score(make(), toy_rows[0], y, cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()
    search = GridSearchCV(make(keep_features=True), {"refit": [True, False]}, cv=2).fit(toy_rows[0], y)
    assert search.predict(toy_rows[0][:3]).shape == (3, 2)


def test_each_text_is_encoded_once(make: Make, toy_rows: Rows, frame: pd.DataFrame, encoded: list[int]) -> None:
    model = make().fit(toy_rows[0], frame)
    assert sum(encoded) == 120
    encoded.clear()
    model.predict(toy_rows[0])
    assert sum(encoded) == 120
    encoded.clear()
    kept = model.set_params(keep_features=True).predict_proba(toy_rows[0])
    assert encoded == []
    model.set_params(keep_features=False)
    for ours, theirs in zip(kept, model.predict_proba(toy_rows[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_pairs(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    pairs = list(zip(toy_rows[0], toy_rows[0][::-1], strict=True))
    model = make().fit(pairs, frame[["theme", "late"]])
    assert model.predict(pairs[:4]).shape == (4, 2)
    with pytest.raises(DataError, match="was trained on pairs of texts"):
        model.predict(toy_rows[0][:2])


def test_groups_stay_together(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    model = make().fit(toy_rows[0], frame[["theme", "late"]], groups=[number % 10 for number in range(120)])
    assert {task.training["rows"]["validation"] for task in model.tasks_} == {12}


def test_texts_that_are_cut_are_told(fitted: YTuningMultiOutputClassifier) -> None:
    with pytest.warns(UserWarning, match="cut 1 text longer than the encoder reads"):
        fitted.predict(["card " * 100, "my login"])


def test_labels_that_look_alike_warn_with_their_output(make: Make, toy_rows: Rows, frame: pd.DataFrame) -> None:
    alike = ["Card" if label == "card" and number % 2 else label for number, label in enumerate(frame["theme"])]
    with pytest.warns(UserWarning, match=r"^output 'theme': these labels look alike"):
        make().fit(toy_rows[0], pd.DataFrame({"theme": alike, "late": frame["late"]}))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            ["a", "b"] * 60,
            r"y must be an array, a frame or rows of one length, of shape \(rows, outputs\)\. Use YTuningC",
        ),
        ([["a"], ["a", "b"]] * 60, "y must be an array, a frame or rows of one length"),
        ([["a", ["x"]], ["b", ["y"]]] * 60, r"row 1, column '1': each cell must be one label\. Got the list \['x'\]"),
        ([["a", None], ["b", None]] * 60, r"the column '1' of y holds no label\. Leave it out"),
        ([["a", "x"], ["b", "x"]] * 60, r"1 of 2 tasks cannot be trained\. '1': .*have the label 'x'"),
        ([["a", "x"], ["b", "y"]] * 59, r"y must have a row for each of the 120 texts\. Got 118 instead"),
        (pd.DataFrame([["a", "x"], ["b", "y"]] * 60, columns=["c", "c"]), "more than one column named 'c'"),
        ([["a", 0.5], ["b", 1.0]] * 60, "y holds fractional or missing numbers"),
    ],
)
def test_forms_of_y_that_are_refused(y: Any, message: str, make: Make, toy_rows: Rows) -> None:
    with pytest.raises(InputError, match=message):
        make().fit(toy_rows[0], y)


# --- copies and folders ---------------------------------------------------------------------------------------------


def test_a_copy_answers_alike(fitted: YTuningMultiOutputClassifier, toy_rows: Rows) -> None:
    copied = pickle.loads(pickle.dumps(fitted))
    assert copied.predict(toy_rows[0][:5]).tolist() == fitted.predict(toy_rows[0][:5]).tolist()


def test_save_writes_a_task_for_each_output(
    fitted: YTuningMultiOutputClassifier, toy_rows: Rows, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(fitted.outputs_)
    answers = list(Predictor([tmp_path / "mine" / name for name in fitted.outputs_]).predict(toy_rows[0][:4]))
    predicted = fitted.predict(toy_rows[0][:4])
    assert [answer.answer for answer in answers if answer.task == "theme"] == predicted[:, 0].tolist()
    with pytest.raises(InputError, match="holds a task"):
        fitted.save(tmp_path / "mine" / "theme")


def test_an_interrupted_fit_leaves_it_unfitted(
    make: Make, toy_rows: Rows, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(Progress):
        pressed = False

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "train" and not Interrupt.pressed:
                Interrupt.pressed = True
                raise KeyboardInterrupt

    monkeypatch.setattr(estimator, "Progress", Interrupt)
    model = make()
    try:
        model.fit(toy_rows[0], frame)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("the interrupt was swallowed")
    with pytest.raises(NotFittedError):
        model.predict(["a"])

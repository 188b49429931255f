"""Predictions: order, duplicates, several tasks, pairs, moved encoders."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SERVED_TEXTS, WORDS, build_tiny_encoder
from ytuning import YTuningClassifier
from ytuning.data.dataset import Dataset, TextInput, from_lists
from ytuning.data.labels import Kind
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import EncoderError, InputError, TaskFolderError
from ytuning.features.codecs import CODECS
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PAIR_MODES, PairMode
from ytuning.heads.pooled import CrossAttentionConfig, HeadConfig, LabelTuningConfig, PooledConfig
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.predictor import Prediction, Predictor
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig, preset

RECIPE = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30))


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def tasks(
    tiny_encoder: Path,
    other_encoder: Path,
    toy_rows: tuple[list[str], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of the tasks ``toy`` and ``initial`` (one encoder), ``other`` (another encoder), ``pairs``."""
    texts, labels = toy_rows
    root = tmp_path_factory.mktemp("tasks")
    store = FeatureStore(root / "store")
    initials = [label[0] for label in labels]
    jobs = {
        "toy": (from_lists(texts, labels), tiny_encoder),
        "initial": (from_lists(texts, initials), tiny_encoder),
        "other": (from_lists(texts, labels), other_encoder),
        "pairs": (from_lists(texts, labels, texts[::-1]), tiny_encoder),
    }
    for name, (data, encoder) in jobs.items():
        loaded = load_encoder(encoder, precision="fp32")
        save_task(train_task(data, loaded, store, RECIPE, options=TrainOptions(name=name)).task, root / name)
    return root


@pytest.fixture
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ytuning.tasks.predictor.WINDOW_TEXTS", 2)


def singles(texts: list[str]) -> list[tuple[str, str | None]]:
    return [(text, None) for text in texts]


def test_predictions_keep_the_order_of_inputs_and_tasks(tasks: Path, toy_rows: tuple[list[str], list[str]]) -> None:
    texts = toy_rows[0][:20][::-1]
    found = list(Predictor([tasks / "toy", tasks / "initial"]).predict(singles(texts)))
    assert [(answer.text, answer.task) for answer in found] == [
        (text, name) for text in texts for name in ("toy", "initial")
    ]
    for answer in found:
        assert list(answer.scores) == (["card", "login", "refund"] if answer.task == "toy" else ["c", "l", "r"])
        assert sum(answer.scores.values()) == pytest.approx(1)
        assert answer.scores[answer.label or ""] == max(answer.scores.values())
        assert answer.text_pair is None and not answer.truncated


def test_predictions_are_mostly_right(tasks: Path, toy_rows: tuple[list[str], list[str]]) -> None:
    texts, labels = toy_rows
    found = [answer.label for answer in Predictor([tasks / "toy"]).predict(singles(texts))]
    assert np.mean([label == true for label, true in zip(found, labels, strict=True)]) > 0.6


def test_each_distinct_text_is_encoded_once_for_all_tasks(tasks: Path, encoded: list[int]) -> None:
    texts = ["my card", "login please", "my card", "my card", "refund"]
    found = list(Predictor([tasks / "toy", tasks / "initial"]).predict(singles(texts)))
    assert encoded == [3]
    by_text: dict[tuple[str, str], list[dict[str, float]]] = {}
    for answer in found:
        by_text.setdefault((answer.text, answer.task), []).append(answer.scores)
    assert all(scores == rows[0] for rows in by_text.values() for scores in rows)
    assert len(found) == 10


@pytest.mark.usefixtures("_small_windows")
def test_windows_change_nothing(tasks: Path, encoded: list[int]) -> None:
    texts, predictor = ["my card", "login please", "my card", "a refund", "help"], Predictor([tasks / "toy"])
    whole = [answer for text in texts for answer in predictor.predict(singles([text]))]
    encoded.clear()
    parts = list(predictor.predict(iter(singles(texts))))
    assert encoded == [2, 2, 1]
    assert [(part.text, part.label) for part in parts] == [(one.text, one.label) for one in whole]
    for part, one in zip(parts, whole, strict=True):
        assert part.scores == pytest.approx(one.scores, abs=1e-6)


@pytest.mark.usefixtures("_small_windows")
def test_inputs_are_read_no_further_than_a_window(tasks: Path) -> None:
    stream = iter(singles(["a", "b", "c", "d", "e"]))
    next(Predictor([tasks / "toy"]).predict(stream))
    assert next(stream) == ("c", None)


def test_two_tasks_on_different_encoders(tasks: Path, encoded: list[int]) -> None:
    texts = singles(["my card", "login please"])
    together = list(Predictor([tasks / "toy", tasks / "other"]).predict(texts))
    assert encoded == [2, 2]
    apart = [list(Predictor([tasks / name]).predict(texts)) for name in ("toy", "other")]
    assert together == [answer for row in zip(*apart, strict=True) for answer in row]
    assert together[0].scores != together[1].scores


def test_scores_as_arrays_are_those_of_predictions(tasks: Path, encoded: list[int], tiny_encoder: Path) -> None:
    texts = [*SERVED_TEXTS, *(f"my card {number}" for number in range(9))]
    numbers = from_lists([f"please {word}" for word in WORDS], [float(len(word)) + 0.5 for word in WORDS])
    options = TrainOptions(name="length")
    length = train_task(
        numbers, load_encoder(tiny_encoder, precision="fp32"), FeatureStore(), preset("light"), options=options
    ).task
    predictor = Predictor([tasks / "toy", length, tasks / "other"])
    found = predictor.scores(texts)
    assert list(found) == ["toy", "length", "other"]
    encoded.clear()
    answers = list(predictor.predict(texts))
    for position, task in enumerate(predictor.tasks):
        own = answers[position :: len(predictor.tasks)]
        expected = [answer.answer if task.kind == "regression" else list(answer.scores.values()) for answer in own]
        np.testing.assert_allclose(found[task.name], np.array(expected), rtol=1e-5)
    assert {name: array.shape for name, array in predictor.scores([]).items()} == {
        "toy": (0, 3), "length": (0,), "other": (0, 3),
    }  # fmt: skip
    with pytest.raises(InputError, match="input 1: the task 'toy' was trained on single texts"):
        predictor.scores([("a", "b")])


def test_no_inputs_no_predictions(tasks: Path) -> None:
    assert list(Predictor([tasks / "toy"]).predict([])) == []


FORMS: dict[str, HeadConfig] = {
    "pooled": PooledConfig(width=16),
    "cross-attention": CrossAttentionConfig(width=16),
    "label-tuning": LabelTuningConfig(),
}


def answers(predictor: Predictor, inputs: Iterable[TextInput]) -> np.ndarray:
    """(inputs, C) probabilities, or (inputs, 1) numbers."""
    found = list(predictor.predict(inputs))
    return np.array([list(each.scores.values()) or each.answer for each in found], np.float64).reshape(len(found), -1)


def evaluated(folder: Path, data: Dataset, encoder: Encoder, store: FeatureStore) -> np.ndarray:
    """The same, of an evaluation."""
    task = load_task(folder)
    logits = evaluate_task(task, data, encoder, store).judged.logits
    found = task.calibration.answers(task.target, logits)
    return found.probabilities if found.probabilities.size else np.asarray(found.values)[:, None]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pairs", [None, *PAIR_MODES])
def test_same_probabilities_as_in_evaluation(
    pairs: PairMode | None,
    form: str,
    codec: str,
    tiny_encoder: Path,
    toy_rows: tuple[list[str], list[str]],
    tmp_path: Path,
) -> None:
    texts, labels = toy_rows
    data = from_lists(texts, labels) if pairs is None else from_lists(texts, labels, texts[::-1])
    encoder, recipe = load_encoder(tiny_encoder), replace(RECIPE, head=FORMS[form])
    options = TrainOptions(codec=codec, pairs=pairs or "auto")
    task = train_task(data, encoder, FeatureStore(), recipe, options=options).task
    save_task(task, tmp_path / "toy")
    predictor = Predictor([tmp_path / "toy"])
    found = answers(predictor, data.inputs)
    np.testing.assert_allclose(found, evaluated(tmp_path / "toy", data, encoder, FeatureStore()), rtol=0, atol=1e-4)
    # A store without features, and one whose compact features have another basis, change nothing.
    others = FeatureStore(tmp_path / "other")
    few = data.select(range(40, 80))
    np.testing.assert_allclose(evaluated(tmp_path / "toy", few, encoder, others), found[40:80], rtol=0, atol=1e-4)
    foreign = FeatureStore(tmp_path / "foreign")
    train_task(few, encoder, foreign, recipe, options=options)
    np.testing.assert_allclose(evaluated(tmp_path / "toy", few, encoder, foreign), found[40:80], rtol=0, atol=1e-4)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", ["ordinal", "multi", "regression"])
def test_same_answers_as_in_evaluation_of_every_kind(
    kind: Kind, codec: str, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    texts, names = toy_rows
    labels: list[object] = {
        "ordinal": list(names),
        "multi": [(name,) for name in names],
        "regression": [len(text) / 9 for text in texts],
    }[kind]  # type: ignore[assignment]
    data, order = from_lists(texts, labels, kind=kind), ["login", "card", "refund"] if kind == "ordinal" else None
    encoder = load_encoder(tiny_encoder)
    options = TrainOptions(codec=codec, label_order=order)
    save_task(train_task(data, encoder, FeatureStore(), RECIPE, options=options).task, tmp_path / "toy")
    found = answers(Predictor([tmp_path / "toy"]), data.inputs)
    np.testing.assert_allclose(found, evaluated(tmp_path / "toy", data, encoder, FeatureStore()), rtol=0, atol=1e-4)


def test_tasks_of_several_codecs_and_states_share_one_pass(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path: Path, encoded: list[int]
) -> None:
    data, encoder = from_lists(*toy_rows), load_encoder(tiny_encoder)
    folders = [tmp_path / f"{codec}-{layer}" for codec in CODECS for layer in (1, 3)]
    for folder in folders:
        codec, layer = folder.name.split("-")
        recipe = replace(RECIPE, layers=(int(layer),))
        save_task(train_task(data, encoder, FeatureStore(), recipe, options=TrainOptions(codec=codec)).task, folder)
    apart = [list(Predictor([folder]).predict(data.inputs)) for folder in folders]
    encoded.clear()
    together = list(Predictor(folders).predict(data.inputs))
    assert encoded == [120]
    for given, alone in zip(together, (each for row in zip(*apart, strict=True) for each in row), strict=True):
        assert given.task == alone.task and given.scores == pytest.approx(alone.scores, abs=1e-6)


def test_cut_texts_are_marked(tasks: Path) -> None:
    found = list(Predictor([tasks / "toy"]).predict(singles(["card", "card " * 100])))
    assert [answer.truncated for answer in found] == [False, True]


# --- forms of arguments ---------------------------------------------------------------------------------------------


def test_folders_and_tasks_of_every_form(tasks: Path) -> None:
    folder = tasks / "toy"
    forms: list[Any] = [folder, str(folder), [folder], (str(folder),), {folder}, iter([folder]), load_task(folder)]
    expected = [answer.to_json() for answer in Predictor([folder]).predict(["my card"])]
    for form in forms:
        assert [answer.to_json() for answer in Predictor(form).predict(["my card"])] == expected
    mixed = Predictor([str(folder), load_task(tasks / "initial")])
    assert [task.name for task in mixed.tasks] == ["toy", "initial"]


FORMS_OF_TEXTS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda texts: (text for text in texts),
    "array": np.array,
    "array (n, 1)": lambda texts: np.array(texts)[:, None],
    "series": lambda texts: pd.Series(texts, index=range(5, 5 + len(texts))),
    "frame of one column": lambda texts: pd.DataFrame({"text": texts}),
    "inputs": singles,
    "data set": from_lists,
}


@pytest.mark.parametrize("form", FORMS_OF_TEXTS)
def test_texts_of_every_form(form: str, tasks: Path) -> None:
    texts = ["so good", "my card", "ok", "no", "so good"]
    found = list(Predictor(tasks / "toy").predict(FORMS_OF_TEXTS[form](texts)))
    assert found == list(Predictor(tasks / "toy").predict(singles(texts)))
    assert [(answer.text, answer.text_pair) for answer in found] == singles(texts)


FORMS_OF_PAIRS: dict[str, Callable[[list[tuple[str, str]]], Any]] = {
    "tuples": list,
    "lists": lambda pairs: [list(pair) for pair in pairs],
    "generator": iter,
    "array": np.array,
    "frame": pd.DataFrame,
    "data set": from_lists,
}


@pytest.mark.parametrize("form", FORMS_OF_PAIRS)
def test_pairs_of_every_form(form: str, tasks: Path) -> None:
    pairs = [("my card", "your login"), ("ok", "no")]
    found = Predictor(tasks / "pairs").predict(FORMS_OF_PAIRS[form](pairs))
    assert [(answer.text, answer.text_pair) for answer in found] == pairs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("so good", r"^inputs must be a list, .* Got 'so good' instead\. Put a single text in a list\.$"),
        (5, r"^inputs must be a list, an array or a series\. Got 5 instead\.$"),
        ({"text": "a"}, r"^inputs must be a list, .* Give one of its values\.$"),
        (["a", None], r"^the inputs, row 2, column 'text': the text is missing"),
        ([b"a"], r"^the inputs, row 1, column 'text': the text is b'a' \(bytes\), not text\. Decode it"),
        (
            [("a", "b", "c")],
            r"^the inputs, row 1: every input must be a text or a pair of texts\. Got \('a', 'b', 'c'\)",
        ),
        ([{"text": "a"}], r"^the inputs, row 1, column 'text': the text is \{'text': 'a'\} \(dict\), not text"),
        (["a", "half \ud800"], r"^the inputs, row 2, column 'text': .* invalid Unicode character"),
    ],
)
def test_inputs_that_are_refused(inputs: Any, message: str, tasks: Path) -> None:
    with pytest.raises(InputError, match=message):
        list(Predictor(tasks / "toy").predict(inputs))


def test_what_is_no_list_is_refused_before_the_first_answer(tasks: Path) -> None:
    with pytest.raises(InputError, match="Put a single text in a list"):
        Predictor(tasks / "toy").predict("so good")


def test_a_predictor_is_copied_without_the_encoder(tasks: Path) -> None:
    predictor = Predictor([tasks / "toy", tasks / "pairs"])
    list(predictor.predict([]))
    copied = pickle.dumps(predictor)
    both = sum((tasks / name / "head.safetensors").stat().st_size for name in ("toy", "pairs"))
    assert both < len(copied) < both + 40_000
    single = Predictor(tasks / "toy")
    asked = ["my card", "your login"]
    assert list(pickle.loads(pickle.dumps(single)).predict(asked)) == list(single.predict(asked))


# --- blank texts ----------------------------------------------------------------------------------------------------


BLANKS = ["", " ", "\n\t", "\u3000", "\u200b"]


def test_blank_texts_are_answered_and_change_no_other_row(tasks: Path) -> None:
    predictor = Predictor(tasks / "toy")
    alone = {answer.text: answer.scores for answer in predictor.predict(["my card", "login please"])}
    texts = ["my card", *BLANKS, "login please"]
    found = list(predictor.predict(texts))
    assert [answer.text for answer in found] == texts
    for answer in found:
        assert sum(answer.scores.values()) == pytest.approx(1)
        if answer.text in alone:
            assert answer.scores == pytest.approx(alone[answer.text], abs=1e-6)
    # The encoder reads the same tokens of all of them: its own.
    assert {answer.label for answer in found[1:5]} == {found[1].label}


@pytest.mark.parametrize("mode", PAIR_MODES)
def test_blank_texts_of_pairs(
    mode: PairMode, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    texts, labels = toy_rows
    options = TrainOptions(pairs=mode)
    data = from_lists(texts, labels, texts[::-1])
    task = train_task(data, load_encoder(tiny_encoder), FeatureStore(), RECIPE, options=options).task
    asked = [("my card", ""), ("", "my card"), ("", ""), ("my card", "login")]
    found = list(Predictor(task).predict(asked))
    assert [(answer.text, answer.text_pair) for answer in found] == asked
    assert all(sum(answer.scores.values()) == pytest.approx(1) for answer in found)


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_pairs(tasks: Path) -> None:
    (found,) = Predictor([tasks / "pairs"]).predict([("my card", "your login")])
    assert (found.text, found.text_pair) == ("my card", "your login")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "toy",
            ("a", "b"),
            r"^input 2: the task 'toy' was trained on single texts, not pairs: leave out the second text$",
        ),
        ("pairs", ("a", None), r"^input 2: the task 'pairs' was trained on pairs of texts: give a second text$"),
    ],
)
def test_pairs_and_single_texts_do_not_mix(name: str, wrong: tuple[str, str | None], message: str, tasks: Path) -> None:
    right: tuple[str, str | None] = ("a", "b" if wrong[1] is None else None)
    with pytest.raises(InputError, match=message):
        list(Predictor([tasks / name]).predict([right, wrong]))


@pytest.mark.usefixtures("_small_windows")
def test_the_input_is_counted_over_windows(tasks: Path) -> None:
    with pytest.raises(InputError, match=r"^input 4: "):
        list(Predictor([tasks / "toy"]).predict([("a", None), ("b", None), ("c", None), ("d", "e")]))


# --- folders and encoders -------------------------------------------------------------------------------------------


@pytest.fixture
def moved(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path: Path) -> tuple[Path, Path]:
    """A task, and the folder to which its encoder was moved after the training."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_encoder, old)
    data: Dataset = from_lists(*toy_rows)
    task = train_task(data, load_encoder(old, precision="fp32"), FeatureStore(), RECIPE).task
    save_task(task, tmp_path / "task")
    old.rename(new)
    return tmp_path / "task", new


def test_encoder_that_has_moved(moved: tuple[Path, Path], other_encoder: Path) -> None:
    task, encoder = moved
    with pytest.raises(EncoderError, match="there is no encoder folder"):
        Predictor([task])
    (found,) = Predictor([task], encoder=str(encoder)).predict([("my card", None)])
    assert found.label in ("card", "login", "refund")
    with pytest.raises(TaskFolderError, match=r"was trained with another encoder.*weights is"):
        Predictor([task], encoder=str(other_encoder))


def test_encoder_that_was_changed_in_place(moved: tuple[Path, Path], other_encoder: Path) -> None:
    task, encoder = moved
    shutil.copytree(other_encoder, encoder.with_name("old"))
    with pytest.raises(TaskFolderError, match=r"was trained with another encoder.*weights is"):
        Predictor([task])


Folders = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (lambda root: [], r"^a predictor needs at least one task folder\. Got none instead\.$"),
        (lambda root: [root / "toy", root / "toy"], r"^two task folders are named 'toy'; .*Rename one$"),
        (lambda root: [root / "nothing"], "there is no task folder"),
        (lambda root: [root], "it holds no task.json"),
        (lambda root: root, "it holds no task.json"),
        (lambda root: str(root / "nothing"), "there is no task folder .*nothing"),
        (lambda root: "", "is not a task folder: it holds no task.json"),
        (lambda root: 5, r"^a predictor reads task folders\. Got 5 instead\. Give its folder, .* as text or as a path"),
        (lambda root: None, r"^a predictor reads task folders\. Got None instead"),
        (lambda root: b"toy", r"^a predictor reads task folders\. Got b'toy' instead"),
        (lambda root: {"a": root / "toy"}, r"^a predictor reads task folders\. Got \{'a': "),
        (lambda root: [root / "toy", None], r"^a predictor reads task folders\. Got None instead"),
        (lambda root: YTuningClassifier(), r"^a predictor reads task folders\. Got YTuningClassifier\(\) instead"),
    ],
)
def test_folders_that_cannot_be_used(folders: Folders, message: str, tasks: Path) -> None:
    with pytest.raises(InputError, match=message):
        Predictor(folders(tasks))


def test_json_form() -> None:
    single = Prediction("a", None, "toy", "single", "x", {"x": 0.75, "y": 0.25}, truncated=False)
    assert single.to_json() == {"text": "a", "task": "toy", "label": "x", "scores": {"x": 0.75, "y": 0.25}}
    pair = Prediction("a", "b", "toy", "single", "x", {"x": 0.75, "y": 0.25}, truncated=True)
    assert list(pair.to_json()) == ["text", "text_pair", "task", "label", "scores"]
    several = Prediction("a", None, "toy", "multi", ["y", "x"], {"x": 0.75, "y": 0.8}, truncated=False)
    assert several.to_json() == {"text": "a", "task": "toy", "labels": ["y", "x"], "scores": {"x": 0.75, "y": 0.8}}
    number = Prediction("a", None, "toy", "regression", 2.5, {}, truncated=False)
    assert number.to_json() == {"text": "a", "task": "toy", "value": 2.5, "scores": {}}
    abstained = Prediction("a", None, "toy", "single", None, {"x": 0.5}, truncated=False)
    assert abstained.to_json()["label"] is None and abstained.label is None
    with pytest.raises(AttributeError, match="a task of kind 'multi' gives no single label"):
        _ = several.label

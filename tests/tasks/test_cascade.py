"""A light head beside a default head: what validation allows it, who answers what, the folder, labels that change."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from tests.cascades import answering_from, surest_half, two_trainings
from tests.conftest import SERVED_TEXTS
from tests.kinds import kind_of
from ytuning.data.dataset import Dataset, TextInput, from_lists
from ytuning.data.kinds import Answer, Answers
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError, TaskFolderError
from ytuning.features.store import FeatureStore
from ytuning.heads.light import LightHead
from ytuning.tasks.add_cascade import add_cascade
from ytuning.tasks.add_label import grow_task
from ytuning.tasks.cascade import (
    CascadeCurve,
    CascadeUse,
    check_share,
    confidence_of,
    fit_cascade_curve,
    notes_on_cascades,
)
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.remove_label import shrink_task
from ytuning.tasks.task import Task, check_encoder, load_task, save_task
from ytuning.tasks.train import Trained, TrainOptions
from ytuning.training.calibration import Calibration

Toy = tuple[list[str], list[str]]


# --- what validation allows -----------------------------------------------------------------------------------------


def naive_threshold(confidence: np.ndarray, changed: np.ndarray, share: float) -> float | None:
    """Go down from the surest rows, a confidence at a time, until the bound is above the share."""
    found = None
    for level in sorted(set(confidence.tolist()), reverse=True):
        count = int(changed[confidence >= level].sum())
        rows = len(confidence)
        bound = 1.0 if count == rows else scipy.stats.beta.ppf(0.9, count + 1, rows - count)
        if bound > share:
            return found
        found = level
    return found


@pytest.mark.parametrize("share", [0.003, 0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("digits", [1, 2, 9])
def test_the_threshold_is_the_lowest_that_holds_the_bound(share: float, digits: int) -> None:
    draws = np.random.default_rng(digits)
    # Rounded confidences are often equal.
    confidence = draws.uniform(0.2, 1.0, 900).round(digits)
    changed = draws.uniform(size=900) > confidence**0.3
    curve = fit_cascade_curve(confidence, changed)
    step, threshold = curve.step_at(share), naive_threshold(confidence, changed, share)
    if threshold is None:
        assert step is None and curve.figures(share).answered == 0
        return
    assert step is not None and curve.thresholds[step] == threshold
    sure, figures = confidence >= threshold, curve.figures(share)
    assert figures.answered == sure.mean() and figures.changed == (sure & changed).mean()
    assert figures.changed <= figures.bound <= share


def test_many_steps_are_thinned_on_the_safe_side() -> None:
    draws = np.random.default_rng(0)
    confidence, changed = draws.uniform(size=20_000), draws.uniform(size=20_000) < 0.4
    curve = fit_cascade_curve(confidence, changed)
    assert 64 <= len(curve.thresholds) <= 200
    for share in (0.001, 0.01, 0.1, 0.3):
        step, threshold = curve.step_at(share), naive_threshold(confidence, changed, share)
        assert step is not None and threshold is not None
        # Of small shares nothing is left out.
        assert curve.thresholds[step] == threshold if share <= 0.003 else curve.thresholds[step] >= threshold
        assert curve.figures(share).bound <= share
        assert curve.figures(share).answered >= 0.9 * (confidence >= threshold).mean()


@pytest.mark.parametrize(("rows", "answers"), [(0, False), (229, False), (230, True)])
def test_so_many_validation_rows_are_needed(rows: int, answers: bool) -> None:
    curve = fit_cascade_curve(np.linspace(0.5, 1.0, rows), np.zeros(rows, bool))
    assert (curve.step_at(0.01) is not None) == answers
    # Without a change every row may be answered.
    assert curve.figures(0.01).answered == answers


def test_a_curve_comes_back_from_json() -> None:
    draws = np.random.default_rng(0)
    curve = fit_cascade_curve(draws.uniform(size=300), draws.uniform(size=300) < 0.1)
    assert CascadeCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1}, {"rows": 2.0}, {"rows": 3}, {"thresholds": [0.5, 0.9]}, {"thresholds": [0.9]},
        {"answered": [9, 2]}, {"changed": [1, 1]}, {"changed": [1, True]}, {"changed": [7, 8]},
        {"thresholds": [float("nan"), 0.5]}, {"thresholds": None}, {"rows": 10**400},
    ],
)  # fmt: skip
def test_a_damaged_curve_is_refused(change: dict[str, Any]) -> None:
    content = {"rows": 10, "thresholds": [0.9, 0.5], "answered": [2, 9], "changed": [0, 1]}
    assert CascadeCurve.from_json(content).rows == 10
    with pytest.raises((TypeError, ValueError)):
        CascadeCurve.from_json({**content, **change})


@pytest.mark.parametrize("share", [0, 0.51, -1, float("nan"), True, "0.01", None])
def test_a_share_that_is_none_is_told(share: Any) -> None:
    with pytest.raises(InputError, match=r"cascade must be a share of changed answers above 0 and at most 0\.5\. Got"):
        check_share(share)


def test_confidence_is_that_of_the_answer() -> None:
    single = kind_of("single")
    logits = np.log([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    calibration = Calibration(abstain_below=0.5)
    answers = calibration.answers(single, logits)
    assert answers.values.tolist() == [0, -1]
    assert confidence_of(single, calibration, answers) == pytest.approx([0.7, 0.4])
    # The median of an ordinal task need not be the most probable label.
    ordinal = kind_of("ordinal")
    answers = Calibration().answers(ordinal, np.log([[0.4, 0.25, 0.35]]))
    assert answers.values.tolist() == [1]
    assert confidence_of(ordinal, Calibration(), answers) == pytest.approx([0.25])
    multi, thresholds = kind_of("multi"), Calibration(thresholds=(0.5, 0.2, 0.9))
    answers = Answers(np.zeros((2, 3), bool), np.array([[0.9, 0.1, 0.7], [0.45, 0.9, 0.1]]))
    assert confidence_of(multi, thresholds, answers) == pytest.approx([0.1, 0.05])


# --- tasks with two heads -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


def rows_of(toy: Toy, kind: str) -> tuple[Dataset, TrainOptions]:
    texts, labels = toy
    several = [[label, "late"] if "late" in text else [label] for text, label in zip(texts, labels, strict=True)]
    if kind == "number":
        return from_lists(texts, [float(len(text)) + 0.5 for text in texts], kind="regression"), TrainOptions()
    if kind == "multi":
        return from_lists(texts, several), TrainOptions()
    if kind == "ordinal":
        return from_lists(texts, labels, kind="ordinal"), TrainOptions(label_order=["login", "card", "refund"])
    if kind in ("joint", "separate"):
        return from_lists(texts, labels, texts[::-1]), TrainOptions(pairs=kind)  # type: ignore[arg-type]
    return from_lists(texts, labels), TrainOptions(abstain_at=0.6 if kind == "careful" else None)


Pair = Callable[..., tuple[Trained, Trained]]


@pytest.fixture(scope="module")
def two(toy_rows: Toy, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Trains a default and a light head on the same rows of a kind, half of which are validation rows."""
    store = FeatureStore(tmp_path_factory.mktemp("store"))

    def train(kind: str = "single", **changes: Any) -> tuple[Trained, Trained]:
        rows, options = rows_of(toy_rows, kind)
        return two_trainings(rows, encoder, store, replace(options, name=kind, **changes))

    return train


KINDS = ["single", "careful", "ordinal", "multi", "joint", "separate"]


@pytest.fixture(scope="module")
def both(two: Pair) -> dict[str, tuple[Task, Task]]:
    """A task of each kind with two heads, and the same with its light head alone."""
    made = {}
    for kind in KINDS:
        default, light = two(kind)
        made[kind] = add_cascade(default, light)[0].task, light.task
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_counts_the_changed_answers_of_validation_rows(kind: str, two: Pair) -> None:
    default, light = two(kind)
    trained, sentence = add_cascade(default, light)
    task, cascade = trained.task, trained.task.cascade
    assert cascade is not None and cascade.head is light.task.head and task.head is default.task.head
    target = task.target
    answers, others = (
        one.task.calibration.answers(target, one.judged["validation"].logits) for one in (default, light)
    )
    named = (target.named_answers(one) for one in (answers, others))
    alike = [as_set(ours) == as_set(theirs) for ours, theirs in zip(*named, strict=True)]
    sure = confidence_of(target, light.task.calibration, others)
    figures, threshold = cascade.curve.figures(0.5), cascade.at(0.5).threshold
    assert threshold is not None and threshold == naive_threshold(sure, ~np.array(alike), 0.5)
    assert figures.changed == pytest.approx(float((~np.array(alike) & (sure >= threshold)).mean()))
    # So few rows bound nothing at 1 %.
    assert "answers nothing, because 60 validation rows cannot bound the changed answers at 1 %" in sentence
    assert "At least 230 are needed" in sentence


def as_set(answer: Answer) -> object:
    """An answer whose labels have no order."""
    return set(answer) if isinstance(answer, list) else answer


def inputs_of(task: Task) -> list[TextInput]:
    return [(text, "my money" if task.pair_mode else None) for text in dict.fromkeys(SERVED_TEXTS)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_light_head_answers_what_it_is_sure_of(kind: str, both: dict[str, tuple[Task, Task]]) -> None:
    task, light = both[kind]
    inputs = inputs_of(task)
    sure, middle = surest_half(light, inputs)
    assert {*sure.tolist()} == {True, False}
    first, second = (list(Predictor(one).predict(inputs)) for one in (light, task))
    assert {answer.head for answer in (*first, *second)} == {None}
    asked = Predictor(answering_from(task, middle), cascade=0.01)
    found = list(asked.predict(inputs))
    for number, answer in enumerate(found):
        wanted = first[number] if sure[number] else second[number]
        assert answer.head == ("light" if sure[number] else "default")
        assert answer.answer == wanted.answer and answer.scores == pytest.approx(wanted.scores, abs=1e-5)
        assert answer.to_json()["head"] == answer.head
    arrays = [np.array([list(answer.scores.values()) for answer in answers]) for answers in (first, second)]
    np.testing.assert_allclose(asked.scores(inputs)[task.name], np.where(sure[:, None], *arrays), atol=1e-5)


@pytest.mark.parametrize("copies", [1, 20])
def test_tasks_together_answer_as_each_alone(copies: int, both: dict[str, tuple[Task, Task]]) -> None:
    """Their default heads are asked about different rows."""
    some = [both[kind] for kind in ("single", "careful", "ordinal", "multi")]
    inputs: list[TextInput] = [
        (f"{text}{' a' * number}", second) for text, second in inputs_of(some[0][0]) for number in range(copies)
    ]
    tasks = [answering_from(task, surest_half(light, inputs)[1]) for task, light in some]
    together = list(Predictor(tasks, cascade=0.01).predict(inputs))
    alone = [list(Predictor(task, cascade=0.01).predict(inputs)) for task in tasks]
    for answer, own in zip(together, [each for row in zip(*alone, strict=True) for each in row], strict=True):
        assert (answer.task, answer.head, answer.answer) == (own.task, own.head, own.answer)
        assert answer.scores == pytest.approx(own.scores, abs=1e-5)


def test_a_default_head_sees_only_what_the_light_head_is_unsure_of(both: dict[str, tuple[Task, Task]]) -> None:
    task, light = both["single"]
    inputs = inputs_of(task)
    sure, middle = surest_half(light, inputs)
    seen: list[int] = []
    watched = task.head.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    try:
        list(Predictor(answering_from(task, middle), cascade=0.01).predict(inputs))
        assert sum(seen) == (~sure).sum()
        seen.clear()
        surest = [content for content, is_sure in zip(inputs, sure, strict=True) if is_sure]
        list(Predictor(answering_from(task, middle), cascade=0.01).predict(surest))
        assert not seen
    finally:
        watched.remove()


def test_a_cascade_is_used_only_where_it_is_asked_for(both: dict[str, tuple[Task, Task]], two: Pair) -> None:
    task, light = both["single"]
    assert Predictor(task).tasks[0].light_task is None
    # Validation lets the light head answer nothing here, and a task with one head has nothing to choose.
    unsure, only = Predictor([task, replace(light, name="only")], cascade=0.01).predict(["my card"])
    assert unsure.head is None and only.head is None
    asked = Predictor(task, cascade=0.5)
    copy = pickle.loads(pickle.dumps(asked))
    texts = list(dict.fromkeys(SERVED_TEXTS))
    assert list(copy.predict(texts)) == list(asked.predict(texts))
    with pytest.raises(InputError, match="cascade must be a share of changed answers above 0"):
        Predictor(task, cascade=0.7)


def test_notes_say_where_a_cascade_does_nothing(both: dict[str, tuple[Task, Task]]) -> None:
    task, light = both["single"]
    (none,) = notes_on_cascades({"light": light.cascade}, 0.01)
    assert none.startswith("cascade=0.01 changes nothing: no task has two heads. Train with preset='auto'")
    (few,) = notes_on_cascades({"light": light.cascade, "single": task.cascade}, 0.01)
    assert few.startswith("task 'single': with cascade=0.01 the light head answers nothing, because 60 validation rows")
    assert not notes_on_cascades({"single": answering_from(task, 0.5).cascade}, 0.01)


def test_tasks_without_a_cascade_say_why(two: Pair) -> None:
    default, light = two("number")
    trained, sentence = add_cascade(default, light)
    assert trained is default
    assert sentence == "task 'number': no cascade, because no two heads answer with exactly the same number"
    joint, separate = two("joint"), two("separate")
    trained, sentence = add_cascade(joint[0], separate[1])
    assert trained.task.cascade is None
    assert sentence.endswith("because the default head reads pairs joint and the light head separate")
    trained, sentence = add_cascade(two("single", codec="fp16")[0], two("single")[1])
    assert sentence.endswith("because the default head reads features in fp16 and the light head in int8")


def test_heads_of_other_rows_are_no_cascade(two: Pair) -> None:
    (default, light), (_, other) = two("single"), two("multi")
    with pytest.raises(ValueError, match="the second training must be that of a light head"):
        add_cascade(light, default)
    with pytest.raises(ValueError, match="the same labels and the same validation rows"):
        add_cascade(default, other)


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(both: dict[str, tuple[Task, Task]], tmp_path: Path) -> Path:
    """A saved task with two heads."""
    save_task(answering_from(both["multi"][0], 0.0), tmp_path / "multi")
    return tmp_path / "multi"


def test_a_task_with_two_heads_comes_back(folder: Path, both: dict[str, tuple[Task, Task]]) -> None:
    task, loaded = answering_from(both["multi"][0], 0.0), load_task(folder)
    ours, theirs = task.cascade, loaded.cascade
    assert ours is not None and theirs is not None
    assert (theirs.calibration, theirs.states, theirs.curve) == (ours.calibration, ours.states, ours.curve)
    assert theirs.threshold is None and isinstance(theirs.head, LightHead) and not theirs.head.training
    inputs = inputs_of(task)
    assert list(Predictor(loaded, cascade=0.01).predict(inputs)) == list(Predictor(task, cascade=0.01).predict(inputs))
    content = json.loads((folder / "task.json").read_text())["cascade"]
    assert content["figures"]["share"] == 0.01 and content["figures"]["answered"] == 0.5
    assert 0 < content["figures"]["bound"] < 0.01
    card = (folder / "README.md").read_text()
    assert (
        "A light head lies beside the head. With `--cascade 0.01` (validation rows), the light head answers 50.0%"
        in card
    )


def test_the_light_head_of_an_older_task_goes(folder: Path, both: dict[str, tuple[Task, Task]]) -> None:
    assert (folder / "light.safetensors").exists()
    save_task(both["single"][1], folder)
    assert load_task(folder).cascade is None and not (folder / "light.safetensors").exists()


def damage(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "task.json").read_text())
    content["cascade"] |= changes
    (folder / "task.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curve": {"rows": 1}}, "task.json is damaged (KeyError: 'thresholds')"),
        ({"states": [3, 2]}, "states must rise"),
        ({"thresholds": [0.5]}, "there must be a threshold for each label"),
        ({"head_sha256": "0" * 64}, "is not the file that was saved with this task (checksum differs)"),
        ({"states": [1]}, "light.safetensors belongs to another task: label_rows should be"),
    ],
)
def test_a_damaged_cascade_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    damage(folder, **change)
    with pytest.raises(TaskFolderError) as raised:
        load_task(folder)
    assert message in str(raised.value)


@pytest.mark.parametrize("field", ["states", "head_sha256", "thresholds", "calibration", "scope", "curve"])
def test_a_cascade_without_one_of_its_fields_is_refused(field: str, folder: Path) -> None:
    content = json.loads((folder / "task.json").read_text())
    del content["cascade"][field]
    (folder / "task.json").write_text(json.dumps(content))
    with pytest.raises(TaskFolderError, match=rf"task\.json is damaged \(KeyError: '{field}'\)"):
        load_task(folder)


def test_a_light_head_of_a_deeper_encoder_is_refused(folder: Path) -> None:
    task = load_task(folder)
    assert task.cascade is not None
    deeper = replace(task, cascade=replace(task.cascade, states=(9,)))
    with pytest.raises(TaskFolderError, match="reads the hidden state 9, but"):
        check_encoder(deeper, task.encoder, depth=4)


def test_a_folder_without_its_light_head_is_refused(folder: Path) -> None:
    (folder / "light.safetensors").unlink()
    with pytest.raises(TaskFolderError, match=r"lacks light\.safetensors\. Copy the folder again"):
        load_task(folder)


# --- labels that change, and more rows ------------------------------------------------------------------------------


def test_other_labels_leave_the_default_head_alone(
    both: dict[str, tuple[Task, Task]], encoder: Encoder, tmp_path: Path
) -> None:
    task, store = both["single"][0], FeatureStore(tmp_path)
    examples = from_lists(["stolen phone", "my phone"], ["phone", "phone"])
    assert task.cascade is not None
    assert grow_task(task, "phone", examples, encoder, store).task.cascade is None
    assert shrink_task(task, "card", encoder, store).task.cascade is None


@pytest.mark.parametrize("kind", ["single", "multi", "separate"])
def test_evaluation_says_what_the_cascade_does(
    kind: str, both: dict[str, tuple[Task, Task]], toy_rows: Toy, encoder: Encoder, tmp_path: Path
) -> None:
    rows, _ = rows_of(toy_rows, kind)
    task, light = both[kind]
    sure, middle = surest_half(light, list(rows.inputs))
    use: CascadeUse | None = None
    for threshold, answered in ((middle, sure.mean()), (0.0, 1.0)):
        asked = answering_from(task, threshold)
        use = evaluate_task(asked, rows, encoder, FeatureStore(tmp_path), cascade=0.01).cascade
        alone, cascade = (list(Predictor(asked, cascade=share).predict(rows)) for share in (None, 0.01))
        pairs = zip(alone, cascade, strict=True)
        unlike = np.mean([as_set(ours.answer) != as_set(theirs.answer) for ours, theirs in pairs])
        assert use is not None and use.share == 0.01 and use.answered == pytest.approx(answered, abs=0.01)
        assert use.changed == pytest.approx(unlike, abs=0.01)
    assert use is not None and use.changed > 0 and "the light head answers 100.0% of these rows, and" in use.sentence
    assert evaluate_task(light, rows, encoder, FeatureStore(tmp_path)).cascade is None
    with pytest.raises(InputError, match="cascade must be a share of changed answers"):
        evaluate_task(task, rows, encoder, FeatureStore(tmp_path), cascade=2.0)

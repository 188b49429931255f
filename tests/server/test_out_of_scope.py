"""Texts out of scope: the fields of results, refusals in decision routes, cascades, and many tasks together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cascades import answering_from, surest_half
from tests.conftest import SERVED_TEXTS
from tests.server.serving import Live, live, settings
from ytuning.data.dataset import TextInput, from_lists
from ytuning.encoder.encoder import load_encoder
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LightConfig, PooledConfig
from ytuning.tasks.add_cascade import add_cascade
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.predictor import Prediction, Predictor
from ytuning.tasks.task import Task, load_task, save_task
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig

# An even number of texts, so that one half of them can be told from the other.
TEXTS = list(dict.fromkeys(SERVED_TEXTS))[:4]
INPUTS: list[TextInput] = [(text, None) for text in TEXTS]
RECIPES = {
    "light": Recipe(LightConfig(), TrainingConfig(label_smoothing=0.0)),
    "default": Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30)),
}


def at_median(task: Task, predictions: list[Prediction]) -> Task:
    """The task for which half of the texts of these predictions are out of scope."""
    scores = [answer.out_of_scope_score for answer in predictions]
    assert task.scope is not None and None not in scores
    # Half way between two scores, so that no score is at the threshold.
    ordered = sorted(score for score in scores if score is not None)
    middle = (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
    return replace(task, scope=replace(task.scope, share=0.1, threshold=middle))


@pytest.fixture(scope="module")
def tasks(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tasks: light and default with thresholds, both heads in one, one that only has a score, and none."""
    root, store = tmp_path_factory.mktemp("tasks"), FeatureStore(tmp_path_factory.mktemp("store"))
    encoder = load_encoder(tiny_encoder, precision="fp32")
    rows = from_lists(*toy_rows)

    def train(recipe: str, name: str) -> Trained:
        return train_task(
            rows, encoder, store, RECIPES[recipe], validation=rows, options=TrainOptions(name=name, out_of_scope=0.1)
        )

    light, default = train("light", "light"), train("default", "default")
    for trained in (light, default):
        task = trained.task
        save_task(at_median(task, list(Predictor(task).predict(TEXTS))), root / task.name)
    both = add_cascade(replace(default, task=replace(default.task, name="both")), light)[0].task
    both = answering_from(both, surest_half(light.task, INPUTS)[1])
    assert both.cascade is not None
    scope = load_task(root / "light").scope
    save_task(replace(both, cascade=replace(both.cascade, scope=scope)), root / "both")
    assert light.task.scope is not None
    score = replace(light.task.scope, share=None, threshold=None)
    save_task(replace(light.task, name="score", scope=score), root / "score")
    save_task(replace(light.task, name="plain", scope=None), root / "plain")
    return root


@pytest.fixture(scope="module")
def server(tasks: Path) -> Iterator[Live]:
    with live(settings(tasks, cascade=0.01)) as running:
        yield running


def test_predictions_say_which_texts_are_out_of_scope(tasks: Path) -> None:
    for name in ("light", "default"):
        found = list(Predictor(tasks / name).predict(TEXTS))
        assert sum(answer.out_of_scope is True for answer in found) == len(TEXTS) // 2
        scope = load_task(tasks / name).scope
        assert scope is not None and scope.threshold is not None
        for answer in found:
            assert answer.out_of_scope_score is not None
            assert answer.out_of_scope == (answer.out_of_scope_score > scope.threshold)
            line = answer.to_json()
            assert (line["out_of_scope"], line["out_of_scope_score"]) == (
                answer.out_of_scope, answer.out_of_scope_score,
            )  # fmt: skip
    for name, keys in (("score", {"out_of_scope_score"}), ("plain", set[str]())):
        line = next(iter(Predictor(tasks / name).predict(TEXTS))).to_json()
        assert {key for key in line if key.startswith("out_of_scope")} == keys


def test_stored_and_live_texts_have_the_same_share(tasks: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32")
    for name in ("light", "default"):
        rows = from_lists(TEXTS, ["card"] * len(TEXTS))
        evaluation = evaluate_task(load_task(tasks / name), rows, encoder, FeatureStore(tmp_path / name))
        assert evaluation.out_of_scope == 0.5


def test_tasks_score_together_as_alone(tasks: Path) -> None:
    names = ["light", "default", "score", "plain"]
    together = list(Predictor([tasks / name for name in names]).predict(TEXTS))
    for number, name in enumerate(names):
        alone = list(Predictor(tasks / name).predict(TEXTS))
        for one, other in zip(alone, together[number :: len(names)], strict=True):
            assert (one.task, one.answer) == (other.task, other.answer)
            assert one.out_of_scope_score == pytest.approx(other.out_of_scope_score, abs=2e-4)
            assert one.out_of_scope == other.out_of_scope


def test_scores_as_arrays_do_without(tasks: Path) -> None:
    found = Predictor([tasks / "light", tasks / "plain"]).scores(TEXTS)
    np.testing.assert_allclose(found["light"], found["plain"], atol=1e-6)


def test_results_of_the_server(server: Live, tasks: Path) -> None:
    expected = {name: list(Predictor(tasks / name).predict(TEXTS)) for name in ("light", "default", "score", "plain")}
    replies = {each["task"]: each["results"] for each in server.post("/classify_many", {"input": TEXTS}).json()["data"]}
    for name, predictions in expected.items():
        replies[f"{name} alone"] = server.post("/classify", {"model": name, "input": TEXTS}).json()["data"]
        for results in (replies[name], replies[f"{name} alone"]):
            for result, answer in zip(results, predictions, strict=True):
                assert result.get("out_of_scope") == answer.out_of_scope
                assert result.get("out_of_scope_score") == pytest.approx(answer.out_of_scope_score, abs=2e-4)
                assert ("out_of_scope" in result) == (name in ("light", "default"))
                assert ("out_of_scope_score" in result) == (name != "plain")


def test_a_cascade_tells_by_its_light_head(server: Live, tasks: Path) -> None:
    """Whichever head answers, the light head has seen every text."""
    light = [answer.out_of_scope for answer in Predictor(tasks / "light").predict(TEXTS)]
    both = list(Predictor(tasks / "both", cascade=0.01).predict(TEXTS))
    assert [answer.out_of_scope for answer in both] == light
    assert {answer.head for answer in both} == {"light", "default"}
    data = server.post("/classify", {"model": "both", "input": TEXTS}).json()["data"]
    assert [result["out_of_scope"] for result in data] == light
    # Without a cascade the default head tells.
    alone = [answer.out_of_scope_score for answer in Predictor(tasks / "both").predict(TEXTS)]
    default = [answer.out_of_scope_score for answer in Predictor(tasks / "default").predict(TEXTS)]
    assert alone == pytest.approx(default, abs=2e-4)


def test_decisions_refuse_texts_out_of_scope(server: Live, tasks: Path) -> None:
    reason = "the text is out of scope: it is unlike the training rows of the task 'light'."
    choices = [{"value": value} for value in ("card", "refund")]
    questions = [
        {"type": "choice", "name": "light", "instructions": "Which?", "choices": choices},
        {"type": "predicate", "name": "light.card", "instructions": "Is it?"},
        {"type": "predicate", "name": "score.card", "instructions": "Is it?"},
    ]
    for text, answer in zip(TEXTS, Predictor(tasks / "light").predict(TEXTS), strict=True):
        reply = server.post("/v1/decisions", {"model": "any", "input": text, "questions": questions})
        answers = reply.json()["answers"]
        asked = {"light.card": {"type": "noul"}, "score.card": {"type": "noul"}}
        entries = server.post("/v1/systemone", {"model": "any", "state": text, "questions": asked}).json()["answers"]
        kinds = [each["type"] for each in answers]
        if answer.out_of_scope:
            assert kinds == ["refusal", "refusal", "predicate"]
            assert answers[0] == {"type": "refusal", "name": "light", "reason": reason}
            assert entries["light.card"] == {"type": "error", "error": {"type": "out_of_scope", "message": reason}}
        else:
            assert kinds == ["choice", "predicate", "predicate"] and entries["light.card"]["type"] == "noul"
        assert entries["score.card"]["type"] == "noul"

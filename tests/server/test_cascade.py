"""A server whose light heads answer first: which head has answered, the metrics, folders that change, the log."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cascades import answering_from, surest_half, two_trainings
from tests.conftest import SERVED_TEXTS
from tests.server.serving import Live, Process, live, settings
from ytuning.data.dataset import TextInput, from_lists
from ytuning.encoder.encoder import load_encoder
from ytuning.errors import InputError
from ytuning.features.store import FeatureStore
from ytuning.server.catalog import Catalog
from ytuning.server.service import Settings
from ytuning.tasks.add_cascade import add_cascade
from ytuning.tasks.predictor import Prediction, Predictor
from ytuning.tasks.task import save_task
from ytuning.tasks.train import TrainOptions

TEXTS = list(dict.fromkeys(SERVED_TEXTS))
INPUTS: list[TextInput] = [(text, None) for text in TEXTS]


@pytest.fixture(scope="module")
def tasks(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tasks ``two``, whose light head answers half of the texts, ``few`` and ``light``."""
    root, store = tmp_path_factory.mktemp("tasks"), FeatureStore(tmp_path_factory.mktemp("store"))
    encoder = load_encoder(tiny_encoder, precision="fp32")
    default, light = two_trainings(from_lists(*toy_rows), encoder, store, TrainOptions(name="two"))
    task = add_cascade(default, light)[0].task
    save_task(answering_from(task, surest_half(light.task, INPUTS)[1]), root / "two")
    # So few validation rows bound nothing at 1 %.
    save_task(replace(task, name="few"), root / "few")
    save_task(replace(light.task, name="light"), root / "light")
    return root


@pytest.fixture(scope="module")
def server(tasks: Path) -> Iterator[Live]:
    with live(settings(tasks, cascade=0.01)) as running:
        yield running


@pytest.fixture(scope="module")
def offline(tasks: Path) -> dict[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}
    for answer in Predictor([tasks / "two", tasks / "few", tasks / "light"], cascade=0.01).predict(INPUTS):
        found.setdefault(answer.task, []).append(answer)
    return found


def test_results_name_the_head(server: Live, offline: dict[str, list[Prediction]]) -> None:
    for each in server.post("/classify_many", {"input": TEXTS}).json()["data"]:
        for result, answer in zip(each["results"], offline[each["task"]], strict=True):
            assert result["answer"] == answer.answer and result.get("head") == answer.head
            # The field is there only where a task has two heads.
            assert ("head" in result) == (each["task"] == "two")
            scores = {score["label"]: score["score"] for score in result["scores"]}
            assert scores == pytest.approx(answer.scores, abs=1e-5)
    assert {answer.head for answer in offline["two"]} == {"light", "default"}
    data = server.post("/classify", {"model": "two", "input": TEXTS}).json()["data"]
    assert [result["head"] for result in data] == [answer.head for answer in offline["two"]]
    assert "head" not in server.post("/classify", {"model": "few", "input": TEXTS}).json()["data"][0]


def test_raw_scores_are_those_of_the_head_that_answers(server: Live, tasks: Path) -> None:
    """Probabilities and logits of a text belong together."""
    given = {"model": "two", "input": TEXTS}
    raw = server.post("/classify", {**given, "use_activation": False}).json()["data"]
    data = server.post("/classify", given).json()["data"]
    for logits, probabilities in zip(raw, data, strict=True):
        order = [sorted(range(3), key=one["probs"].__getitem__) for one in (logits, probabilities)]
        assert order[0] == order[1]


def test_metrics_count_the_heads(tasks: Path, offline: dict[str, list[Prediction]]) -> None:
    with live(settings(tasks, cascade=0.01)) as running:
        before = {head: running.metric("cascade_answers_total", head=head, task="two") for head in ("light", "default")}
        running.post("/classify_many", {"input": TEXTS})
        for head in ("light", "default"):
            counted = running.metric("cascade_answers_total", head=head, task="two") - before[head]
            assert counted == sum(answer.head == head for answer in offline["two"])
        assert running.metric("cascade_light_share", task="two") == 0.5
        assert 0 < running.metric("cascade_changed_bound", task="two") <= 0.01
        page = running.client.get("/metrics").text
        assert 'ytuning_cascade_light_share{task="few"}' not in page
        assert 'ytuning_cascade_answers_total{head="light",task="light"}' not in page


def test_without_a_share_default_heads_answer(tasks: Path) -> None:
    with live(settings(tasks / "two")) as running:
        (each,) = running.post("/classify_many", {"input": TEXTS}).json()["data"]
        assert all("head" not in result for result in each["results"])
        assert "ytuning_cascade_light_share{" not in running.client.get("/metrics").text


def test_a_folder_that_gets_or_loses_a_light_head(tasks: Path, tmp_path: Path) -> None:
    root = tmp_path / "served"
    shutil.copytree(tasks / "light", root / "task")
    catalog = Catalog([root], cascade=0.01)
    catalog.open()
    assert not catalog.cascades and not catalog.reload()
    for name, light_share in (("two", 0.5), ("light", None)):
        shutil.copytree(tasks / name, tmp_path / name)
        shutil.rmtree(root / "task")
        (tmp_path / name).rename(root / "task")
        assert catalog.reload().changed == ["task"]
        assert {own.answered for own in catalog.cascades.values()} == ({light_share} - {None})
    shutil.copytree(tasks / "two", root / "task", dirs_exist_ok=True)
    catalog.reload()
    (root / "task" / "light.safetensors").write_bytes(b"")
    changes = catalog.reload()
    assert "light.safetensors is damaged" in changes.refused[str(root / "task")]
    # What was served from the folder still is.
    assert catalog.cascades


def test_the_share_reaches_processes(tasks: Path) -> None:
    given = settings(tasks, cascade=0.25)
    assert Settings.from_environment(given.to_environment()).cascade == 0.25
    with pytest.raises(InputError, match="cascade must be a share"):
        Catalog([tasks], cascade=0.6)


def test_the_log_tells_what_a_cascade_does_nothing_for(tasks: Path) -> None:
    with Process(tasks, "--cascade", "0.01") as process:
        process.ready()
        process.end()
    (told,) = [line for line in process.lines if '"event": "cascade"' in line]
    assert "task 'few': with --cascade 0.01 the light head answers nothing, because 60 validation rows" in told

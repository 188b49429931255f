"""Tasks that come, change and go while the server runs."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.server.serving import PATIENCE, live, settings, until
from ytuning.data.dataset import from_lists
from ytuning.encoder.encoder import load_encoder
from ytuning.errors import InputError
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledConfig
from ytuning.server.catalog import Catalog
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig


@pytest.fixture
def root(served_tasks: Path, tmp_path: Path) -> Path:
    """Folder with the task ``one``."""
    shutil.copytree(served_tasks / "single", tmp_path / "tasks" / "one")
    return tmp_path / "tasks"


@pytest.fixture
def catalog(root: Path) -> Catalog:
    catalog = Catalog([root])
    catalog.open()
    return catalog


def test_tasks_come_change_and_go(root: Path, served_tasks: Path, catalog: Catalog) -> None:
    assert not catalog.reload()
    shutil.copytree(served_tasks / "multi", root / "two")
    first = catalog.tasks["one"]
    changes = catalog.reload()
    assert (changes.added, changes.changed, changes.removed, changes.refused) == (["two"], [], [], {})
    assert catalog.tasks["one"] is first and catalog.tasks["two"].encoder is first.encoder
    save_task(load_task(served_tasks / "ordinal"), root / "one")
    changes = catalog.reload()
    assert (changes.added, changes.changed, changes.removed) == ([], ["one"], [])
    assert catalog.tasks["one"].task.kind == "ordinal"
    shutil.rmtree(root / "one")
    assert catalog.reload().removed == ["one"] and list(catalog.tasks) == ["two"]


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"schema": 99}', "{}"])
def test_a_broken_task_is_told_once_and_the_old_one_stays(content: str, root: Path, catalog: Catalog) -> None:
    old = catalog.tasks["one"]
    whole = (root / "one" / "task.json").read_text()
    (root / "one" / "task.json").write_text(content)
    changes = catalog.reload()
    assert list(changes.refused) == [str(root / "one")] and not changes.removed
    assert catalog.tasks == {"one": old}
    assert not catalog.reload()
    os.truncate(root / "one" / "head.safetensors", 10)  # broken in another way: told again
    assert catalog.reload().refused
    (root / "one" / "task.json").write_text(whole)
    assert "head.safetensors" in catalog.reload().refused[str(root / "one")]
    assert catalog.tasks == {"one": old}


def test_a_broken_folder_keeps_no_other_out(root: Path, served_tasks: Path, catalog: Catalog) -> None:
    for name in ("a", "z"):
        shutil.copytree(served_tasks / "single", root / name)
    broken = json.loads((root / "a" / "task.json").read_text()) | {"training": None}
    (root / "a" / "task.json").write_text(json.dumps(broken))
    changes = catalog.reload()
    assert list(changes.refused) == [str(root / "a")] and changes.added == ["z"]


def test_two_of_one_name(root: Path, served_tasks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "one"
    other.parent.mkdir()
    catalog = Catalog([root, other.parent])
    catalog.open()
    shutil.copytree(served_tasks / "multi", other)
    changes = catalog.reload()
    assert list(changes.refused) == [str(other)] and "is named 'one', too" in changes.refused[str(other)]
    assert catalog.tasks["one"].folder == root / "one"
    assert not catalog.reload()
    with pytest.raises(InputError, match="two task folders are named 'one'"):
        Catalog([root, other.parent]).open()


def test_a_task_that_reads_another_hidden_state(
    root: Path,
    tiny_encoder: Path,
    toy_rows: tuple[list[str], list[str]],
    tmp_path: Path,
) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32")
    recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=20, most_steps=20), layers=(1,))
    task = train_task(
        from_lists(*toy_rows), encoder, FeatureStore(tmp_path / "store"), recipe, options=TrainOptions(name="early")
    ).task
    with live(settings(root)) as server:
        assert server.client.post("/admin/reload").json()["tasks"] == 1
        save_task(task, root / "early")
        assert server.client.post("/admin/reload").json()["added"] == ["early"]
        batches = server.metric("batch_texts_count")
        reply = server.post("/classify_many", {"input": "my card", "tasks": ["one", "early"]}).json()
        assert server.metric("batch_texts_count") == batches + 1, "one pass for both"
    wanted = list(Predictor([root / "one", root / "early"]).predict([("my card", None)]))
    for given, answer in zip(reply["data"], wanted, strict=True):
        scores = {row["label"]: row["score"] for row in given["results"][0]["scores"]}
        assert scores == pytest.approx(answer.scores, abs=1e-5)


def test_reloading_under_load_fails_no_request(root: Path, served_tasks: Path) -> None:
    kinds = [load_task(served_tasks / name) for name in ("single", "ordinal")]
    with live(settings(root)) as server:
        statuses: list[int] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                statuses.append(server.post("/predict/one", {"inputs": "my card"}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        changed = 0
        for number in range(8):
            save_task(kinds[number % 2], root / "one")
            changed += len(server.client.post("/admin/reload").json()["changed"])
        over.set()
        for thread in threads:
            thread.join()
        assert changed == 8 and len(statuses) > 8 and set(statuses) == {200}
        assert server.metric("task_changes_total", what="changed") == 8


def test_a_server_that_loads_says_so(root: Path) -> None:
    go = threading.Event()

    class SlowCatalog(Catalog):
        def open(self) -> None:
            assert go.wait(PATIENCE)
            super().open()

    with live(settings(root), SlowCatalog([root]), wait=False) as server:
        try:
            for path in ("/health", "/info", "/v1/models", "/v2/health/ready", "/v2/models/one/ready"):
                assert server.client.get(path).status_code == 503
            for path in ("/predict", "/classify_many", "/admin/reload"):
                assert server.post(path, {"inputs": "a", "input": "a"}).status_code == 503
            assert server.client.get("/v2/health/live").status_code == 200
        finally:
            go.set()
        until(lambda: server.client.get("/health").status_code == 200)
        assert server.post("/predict", {"inputs": "my card"}).status_code == 200

"""Many tasks on the workers of an engine: the heads are those without one, and the encoder reads each text once."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ytuning import Engine, train_tasks
from ytuning.batch.stored_encoder import StoredEncoder
from ytuning.batch.train_tasks import TrainWork, fit_on_engine
from ytuning.data.dataset import Dataset
from ytuning.data.task_columns import read_tasks
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LightConfig, PooledConfig
from ytuning.progress import CollectedMessages, Progress
from ytuning.tasks import train_many
from ytuning.tasks.task import save_task
from ytuning.tasks.train import Trained, TrainOptions
from ytuning.training.recipes import Recipe, TrainingConfig

SHORT = TrainingConfig(fewest_steps=20, most_steps=20)
RECIPES = {"default": Recipe(PooledConfig(width=16), SHORT), "light": Recipe(LightConfig(), SHORT)}
Rows = dict[str, Dataset]
Bytes = dict[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(scope="module")
def rows(toy_rows: tuple[list[str], list[str]]) -> Rows:
    """Three tasks of a table; the second one has other rows than the others."""
    texts, labels = toy_rows
    table: dict[str, list[Any]] = {
        "text": texts,
        "theme": labels,
        "card": [None if number % 3 == 0 else str(label == "card") for number, label in enumerate(labels)],
        "length": [len(text) / 4 + 0.5 for text in texts],
    }
    return read_tasks(table, ["theme", "card", "length"])


def head_files(trained: dict[str, Trained], folder: Path) -> dict[str, bytes]:
    for name, one in trained.items():
        save_task(one.task, folder / name)
    return {name: (folder / name / "head.safetensors").read_bytes() for name in trained}


def train_both(rows: Rows, encoder: Encoder, engine: Engine | None, folder: Path, progress: Progress) -> Bytes:
    """The heads of two presets, on the same workers."""
    heads: Bytes = {}
    with fit_on_engine(engine) as fit:
        for preset, recipe in RECIPES.items():
            trained = train_many.train_tasks(rows, encoder, FeatureStore(), recipe, fit=fit, progress=progress)
            assert list(trained) == list(rows)
            files = head_files(trained, folder / preset)
            heads |= {(preset, name): content for name, content in files.items()}
    return heads


@pytest.fixture(scope="module")
def together(rows: Rows, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bytes, list[str]]:
    """The heads without an engine, and what is said of them."""
    said = CollectedMessages()
    return train_both(rows, encoder, None, tmp_path_factory.mktemp("together"), said), said.messages


@pytest.mark.parametrize("workers", [1, 2])
def test_heads_from_processes_are_those_without_an_engine(
    workers: int,
    rows: Rows,
    encoder: Encoder,
    together: tuple[Bytes, list[str]],
    encoded: list[int],
    tmp_path: Path,
) -> None:
    said = CollectedMessages()
    assert train_both(rows, encoder, Engine(workers=workers), tmp_path, said) == together[0]
    assert sorted(said.messages) == sorted(together[1])
    # Here, and workers have no encoder.
    assert sum(encoded) == len(rows["theme"])


def test_heads_from_ray_are_those_without_an_engine(
    ray_here: None, rows: Rows, encoder: Encoder, together: tuple[Bytes, list[str]], tmp_path: Path
) -> None:
    engine = Engine("ray", workers=2)
    trained = train_tasks(rows, encoder, FeatureStore(), RECIPES["default"], engine=engine)
    assert head_files(trained, tmp_path) == {name: together[0]["default", name] for name in rows}
    assert {one.cache.misses for one in trained.values()} == {len(rows["theme"])}
    assert set(trained["card"].seconds) == {"encode", "train"}


def test_a_single_task_needs_one_worker(rows: Rows, encoder: Encoder, tmp_path: Path) -> None:
    own = {"card": rows["card"]}
    alone = train_tasks(own, encoder, FeatureStore(), RECIPES["light"])
    # The encoder reads nothing more, so its weights may go.
    options = TrainOptions(release_encoder=True)
    released = load_encoder(encoder.identity.name, precision="fp32")
    found = train_tasks(own, released, FeatureStore(), RECIPES["light"], options=options, engine=Engine(workers=3))
    assert head_files(found, tmp_path / "a") == head_files(alone, tmp_path / "b")


class Interrupt(Progress):
    """Ctrl-C once the first group is finished."""

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "tasks":
            raise KeyboardInterrupt


def test_ctrl_c_keeps_the_tasks_of_finished_groups(rows: Rows, encoder: Encoder) -> None:
    found = train_tasks(rows, encoder, FeatureStore(), RECIPES["light"], engine=Engine(workers=2), progress=Interrupt())
    # Of two groups, one has the two tasks with the same rows.
    assert 1 <= len(found) < len(rows)


def test_what_is_wrong_is_found_before_any_worker_starts(rows: Rows, encoder: Encoder) -> None:
    options = TrainOptions(abstain_at=0.9)
    nowhere = Engine("ray", address="ray://nowhere:1")
    with pytest.raises(InputError, match="abstain_at= is for one task"):
        train_tasks(rows, encoder, FeatureStore(), RECIPES["light"], options=options, engine=nowhere)


# --- without features -----------------------------------------------------------------------------------------------


def test_a_machine_without_the_store_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    stored = StoredEncoder(encoder, FeatureStore(tmp_path / "store"))
    with pytest.raises(InputError, match=r"has no feature store .*store\. Set YTUNING_CACHE to a folder or an ad"):
        TrainWork(stored).start()


def test_texts_that_the_store_lacks_are_not_encoded_by_a_worker(
    rows: Rows, encoder: Encoder, encoded: list[int], tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path / "store")

    def fit(tasks: Any, progress: Progress) -> dict[str, Trained]:
        from ytuning.batch.train_tasks import TrainUnit

        stored = StoredEncoder(encoder, store)
        sent = [(type(context)(**{**vars(context), "encoder": stored}), own) for context, own in tasks]
        with suppress(FileNotFoundError):
            shutil.rmtree(store.root)
        store.root.mkdir()
        return TrainWork(stored).start()(TrainUnit(tuple(sent)), lambda rows: None).trained

    with pytest.raises(InputError, match=r"does not find the features of 120 texts in the store .* Set YTUNING_CACHE"):
        train_many.train_tasks(rows, encoder, store, RECIPES["default"], fit=fit)
    assert encoded == []

"""A feature store in an object store: what one machine has stored, another one reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import STATES
from tests.object_store import new_address
from ytuning.cli import main
from ytuning.data import places
from ytuning.data.dataset import from_lists
from ytuning.data.places import open_folder
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import InputError, StoreError, WriteError
from ytuning.features.features import CacheUse, stored_features
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import LightConfig, PooledConfig
from ytuning.progress import CollectedMessages, Progress
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import train_task
from ytuning.training.recipes import Recipe, TrainingConfig

TEXTS = [(f"my card {number} is late", None) for number in range(60)]
Rows = tuple[list[str], list[str]]


@pytest.fixture
def address(object_store: str, store_keys: None) -> str:
    return new_address(object_store)


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32", device="cpu")


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on this process is another machine: it has no copies yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def store(texts: list[tuple[str, None]], encoder: Encoder, root: str, progress: Progress | None = None) -> CacheUse:
    return stored_features(texts, encoder, FeatureStore(root), progress or Progress(), states=STATES)[1]


def test_another_machine_reads_what_one_has_stored(
    encoder: Encoder, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "first")
    assert store(TEXTS[:40], encoder, address).misses == 40
    machine(monkeypatch, tmp_path / "second")
    use = store(TEXTS, encoder, address)
    assert (use.hits, use.misses) == (40, 20)
    machine(monkeypatch, tmp_path / "first")
    assert store(TEXTS, encoder, address).misses == 0


def test_only_shards_with_a_wanted_text_are_fetched(
    encoder: Encoder, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "first")
    for part in (TEXTS[:20], TEXTS[20:40], TEXTS[40:]):
        store(part, encoder, address)
    machine(monkeypatch, tmp_path / "second")
    assert store(TEXTS[20:30], encoder, address).misses == 0
    assert len(list(tmp_path.glob("second/**/*.features"))) == 1
    assert len(list(tmp_path.glob("second/**/*.keys"))) == 3


def test_a_training_gives_the_head_of_a_folder(
    encoder: Encoder, address: str, toy_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = []
    for number, root in enumerate((str(tmp_path / "folder"), address, address)):
        machine(monkeypatch, tmp_path / str(number))
        recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30))
        task = train_task(from_lists(*toy_rows), encoder, FeatureStore(root), recipe).task
        save_task(task, tmp_path / f"task{number}")
        heads.append((tmp_path / f"task{number}" / "head.safetensors").read_bytes())
    assert heads[0] == heads[1] == heads[2]


def test_a_label_is_added_to_a_light_task_on_another_machine(
    encoder: Encoder, address: str, toy_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "first")
    light = Recipe(LightConfig(), TrainingConfig())
    save_task(train_task(from_lists(*toy_rows), encoder, FeatureStore(address), light).task, tmp_path / "task")
    machine(monkeypatch, tmp_path / "second")
    examples = tmp_path / "more.csv"
    examples.write_text("text\n" + "".join(f"broken app number {number}\n" for number in range(10)))
    monkeypatch.setenv("YTUNING_CACHE", address)
    with pytest.raises(SystemExit) as stop:
        main(["add-label", str(tmp_path / "task"), "app", "--examples", str(examples), "--quiet"])
    assert not stop.value.code
    assert "app" in load_task(tmp_path / "task").target.names


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_computed_again(
    encoder: Encoder, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "first")
    store(TEXTS, encoder, address)
    (copy,) = tmp_path.glob("first/**/*.features")
    data = bytearray(copy.read_bytes())
    data[7] ^= 1
    copy.write_bytes(data)
    messages = CollectedMessages()
    assert store(TEXTS, encoder, address, messages).misses == 0
    assert any("is damaged" in message for message in messages.messages)
    remote = open_folder(address)
    (path,) = [file.path for file in remote.files() if file.path.endswith(".features")]
    remote.write(path, bytes(data))
    machine(monkeypatch, tmp_path / "second")
    assert store(TEXTS, encoder, address).misses == 60
    machine(monkeypatch, tmp_path / "third")
    assert store(TEXTS, encoder, address).misses == 0


def test_a_shard_that_could_not_be_sent_is_computed_and_sent_later(
    encoder: Encoder, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(places.RemoteFolder, "write", lambda folder, path, data: fail(path, folder, data))
        with pytest.raises(StoreError, match="cannot send"):
            store(TEXTS, encoder, address)
    assert store(TEXTS, encoder, address).misses == 60
    machine(monkeypatch, tmp_path / "second")
    assert store(TEXTS, encoder, address).misses == 0


def test_a_file_that_an_interrupt_has_cut_is_sent_again(
    encoder: Encoder, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "first")

    def cut(folder: places.RemoteFolder, path: str, data: bytes) -> None:
        WRITE(folder, path, data[: len(data) // 2 if path.endswith(".features") else 0])
        raise WriteError("stopped")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(places.RemoteFolder, "write", cut)
            with pytest.raises(StoreError, match="cannot send"):
                store(TEXTS, encoder, address)
    assert store(TEXTS, encoder, address).misses == 60
    machine(monkeypatch, tmp_path / "second")
    assert store(TEXTS, encoder, address).misses == 0


WRITE = places.RemoteFolder.write


def fail(path: str, folder: places.RemoteFolder, data: bytes) -> None:
    """Write all but features."""
    if path.endswith(".features"):
        raise WriteError("the network is down")
    WRITE(folder, path, data)


def test_what_another_machine_has_removed_is_computed_again(
    encoder: Encoder, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path / "first")
    store(TEXTS, encoder, address)
    machine(monkeypatch, tmp_path / "second")
    FeatureStore(address).remove()
    machine(monkeypatch, tmp_path / "first")
    assert store(TEXTS, encoder, address).misses == 60


def test_the_cache_command_lists_verifies_and_removes(
    encoder: Encoder, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, tmp_path / "first")
    store(TEXTS, encoder, address)
    machine(monkeypatch, tmp_path / "second")
    monkeypatch.setenv("YTUNING_CACHE", address)
    told = []
    for words in (["list"], ["verify"], ["remove", "--all"], ["list"]):
        with pytest.raises(SystemExit) as stop:
            main(["cache", *words])
        assert not stop.value.code
        told.append(capsys.readouterr().out)
    assert "60 texts" in told[0]
    assert "0 are damaged" in told[1]
    assert "Removed 1 feature space." in told[2]
    assert "It is empty." in told[3]
    assert "endpoint_override" not in told[0]
    assert open_folder(address).files() == []


def test_what_an_object_store_cannot_do_is_told(encoder: Encoder, address: str, object_store: str) -> None:
    with pytest.raises(InputError, match="'compact' needs a lock"):
        stored_features(TEXTS, encoder, FeatureStore(address), Progress(), states=STATES, codec="compact")
    missing = f"s3://{os.urandom(8).hex()}/x?endpoint_override={object_store}&scheme=http&region=us-east-1"
    with pytest.raises(StoreError, match="of the feature store"):
        store(TEXTS, encoder, missing)

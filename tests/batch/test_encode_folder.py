"""Encoding of folders: a training afterwards reads everything from the store, whoever has encoded what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.object_store import MakeFolder, new_address
from ytuning.batch.encode_folder import encode_folder
from ytuning.cli import main
from ytuning.data.dataset import read_dataset
from ytuning.data.places import open_folder
from ytuning.encoder.encoder import load_encoder
from ytuning.engines.engine import Engine
from ytuning.errors import InputError
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledConfig
from ytuning.tasks.task import save_task
from ytuning.tasks.train import train_task
from ytuning.training.recipes import Recipe, TrainingConfig

RECIPE = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30))
Rows = tuple[list[str], list[str]]


def write_rows(folder: Path, rows: Rows) -> Path:
    folder.mkdir()
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(*rows, strict=True)]
    (folder / "a.jsonl").write_text("\n".join(lines[:50]))
    (folder / "b.jsonl").write_text("\n".join(lines[50:]))
    return folder


def head_bytes(rows: Path, encoder: Path, store: Path, folder: Path) -> bytes:
    data = [read_dataset(file) for file in sorted(rows.iterdir())]
    trained = train_task(data[0], load_encoder(encoder, precision="fp32"), FeatureStore(store), RECIPE, test=data[1])
    save_task(trained.task, folder)
    return (folder / "head.safetensors").read_bytes()


def test_training_after_two_workers_calls_no_encoder_and_gives_the_same_head(
    tiny_encoder: Path, toy_rows: Rows, tmp_path: Path, encoded: list[int]
) -> None:
    rows = write_rows(tmp_path / "in", toy_rows)
    store = tmp_path / "store"
    options = {"precision": "fp32", "cache": str(store), "engine": Engine(workers=2)}
    run = encode_folder(rows, str(tiny_encoder), **options)  # type: ignore[arg-type]
    assert (run.rows, run.encoded, run.stored, run.failed, run.cache) == (120, 120, 0, [], str(store))
    head = head_bytes(rows, tiny_encoder, store, tmp_path / "after")
    assert encoded == []
    assert head == head_bytes(rows, tiny_encoder, tmp_path / "other", tmp_path / "alone")
    again = encode_folder(rows, str(tiny_encoder), precision="fp32", cache=str(store))
    assert (again.rows, again.encoded, again.stored) == (120, 0, 120)


def test_a_bad_row_fails_its_unit_alone(
    tiny_encoder: Path, toy_rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "in", toy_rows)
    (rows / "c.jsonl").write_text('{"text": "my card"}\n{"text": 7}\n')
    with pytest.raises(SystemExit) as stop:
        main(["encode", str(rows), "--encoder", str(tiny_encoder), "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert stop.value.code == 1
    found = json.loads(out)
    assert (found["rows"], found["encoded"], len(found["failed"])) == (120, 120, 1)
    assert "c.jsonl, row 2, column 'text': the text is 7 (int), not text" in err
    assert err.splitlines()[-1].startswith("error: 1 unit failed; all others are stored.")


def test_pairs_are_stored_in_both_ways_that_a_training_reads(
    tiny_encoder: Path, toy_rows: Rows, tmp_path: Path, make_folder: MakeFolder
) -> None:
    folder = open_folder(make_folder())
    lines = [json.dumps({"text": text, "text_pair": toy_rows[0][0]}) for text in toy_rows[0][:20]]
    folder.write("rows.jsonl", "\n".join(lines).encode())
    run = encode_folder(folder.address, str(tiny_encoder), cache=str(tmp_path / "store"))
    # 20 texts by themselves, one of which is also the second text of all, and 20 pairs.
    assert (run.rows, run.encoded) == (20, 40)
    separate = encode_folder(folder.address, str(tiny_encoder), pairs="separate", cache=str(tmp_path / "other"))
    assert separate.encoded == 20


def test_workers_share_a_store_in_an_object_store(
    tiny_encoder: Path, toy_rows: Rows, tmp_path: Path, object_store: str, store_keys: None, encoded: list[int]
) -> None:
    rows, address = write_rows(tmp_path / "in", toy_rows), new_address(object_store)
    run = encode_folder(rows, str(tiny_encoder), precision="fp32", cache=address, engine=Engine(workers=2))
    assert (run.rows, run.encoded, run.cache) == (120, 120, address.partition("?")[0])
    data = read_dataset(rows / "a.jsonl")
    train_task(data, load_encoder(tiny_encoder, precision="fp32"), FeatureStore(address), RECIPE)
    assert encoded == []
    with pytest.raises(InputError, match="'compact' needs a lock"):
        encode_folder(rows, str(tiny_encoder), codec="compact", cache=address)


def test_a_killed_run_goes_on_where_it_was(tiny_encoder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "in"
    rows.mkdir()
    count = 40_000
    (rows / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"card {n} lost {n}"}) for n in range(count)))
    store = tmp_path / "store"
    words = [sys.executable, "-m", "ytuning", "encode", str(rows), "--encoder", str(tiny_encoder)]
    process = subprocess.Popen(
        words,
        env={**os.environ, "YTUNING_CACHE": str(store)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(store.glob("*/shards/*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run = encode_folder(rows, str(tiny_encoder), cache=str(store))
    assert (run.rows, run.stored + run.encoded) == (count, count)
    assert run.stored > 0


def test_files_must_name_their_texts_alike(tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nmy card\n")
    (tmp_path / "b.csv").write_text("sentence\nmy card\n")
    with pytest.raises(InputError, match=r"b.csv: the columns of the texts would be \('sentence', None\)"):
        encode_folder(tmp_path, str(tiny_encoder))
    with pytest.raises(InputError, match=r"a.csv.*no column|a.csv.*not there"):
        encode_folder(tmp_path, str(tiny_encoder), text="body")

"""Every benchmark runs, at tiny sizes on the tiny encoder, and its JSON has what the table of results is made of."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from benchmarks import full_tuning, gpu, harness, limits, quality, run, synthetic, whole_task
from tests.conftest import STATES
from ytuning.compare.fine_tuning import TunedEncoder
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, toy_rows: tuple[list[str], list[str]]) -> Path:
    """A folder of data sets that holds one, under a real one's name."""
    folder = tmp_path_factory.mktemp("data sets")  # with a space
    (folder / "banking77").mkdir()
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(*toy_rows, strict=True)]
    for split, part in (("train", rows[:90]), ("test", rows[60:])):
        (folder / "banking77" / f"{split}.jsonl").write_text("\n".join(part) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32", device="cpu")


@pytest.mark.parametrize("name", [name for name in run.BENCHMARKS if name != "main_job"])
@pytest.mark.filterwarnings("default")  # of the opponents' packages
def test_quick(name: str, data: Path, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = run.arguments_of(name, data, str(tiny_encoder), tmp_path, quick=True)
    importlib.import_module(f"benchmarks.{name}").main(arguments)
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert set(found) == {"machine", "figures", "bars"}
    assert found["machine"]["versions"]["torch"] == torch.__version__
    for entry in found["bars"]:
        assert set(entry) == {"bar", "wanted", "measured", "reached"}
        assert entry["measured"] is not None or name == "gpu"
    CHECKS.get(name, lambda _: None)(found["figures"])


def check_encoder_pass(figures: Any) -> None:
    assert [(entry["texts"], entry["random_weights"]) for entry in figures] == [
        (1, False), (64, False), (1, True), (64, True),
    ]  # fmt: skip
    assert ["share_of_limit" in entry for entry in figures] == [False, True, False, False]
    assert all(set(entry["opponents"]) == {"fp32", "bf16"} for entry in figures)


def check_head_training(figures: Any) -> None:
    assert figures["second_task"][0]["texts_encoded_by_first_and_second"] == [90, 0]
    assert figures["training"][0]["steps_chosen"][0] <= 20


def check_whole_task(figures: Any) -> None:
    (entry,) = figures
    assert entry["lora"]["extrapolated"] and entry["lora"]["test_accuracy"] is None
    assert entry["lora"]["runs"][0]["steps"] == 6
    assert entry["lora"]["runs"][0]["planned_steps"] == 5 * 3
    assert not entry["ytuning"]["extrapolated"] and entry["ytuning"]["test_accuracy"] > 0.3
    assert entry["logistic"]["test_accuracy"] > 0.3


ORDERS = ("as_written", "shuffled", "by_label", "not_in_blocks")


def check_larger_than_memory(figures: Any) -> None:
    assert figures["memory"]["texts_encoded"] == 0
    assert figures["memory"]["validation_accuracy"] > 0.5  # of four labels
    assert {len(figures["accuracy_by_order"][order]["runs"]) for order in ORDERS} == {1}


def check_gpu(figures: Any) -> None:
    assert figures["check"]["exit_status"] == 0 and figures["check"]["tiny"]["same_bytes_twice"]
    ours, full, lora = (figures["costs"][f"tiny: {name}"] for name in ("y_tuning", "full_fine_tuning", "lora"))
    assert ours["peak_bytes"] is None
    assert lora["trained_parameters"] < full["trained_parameters"]
    assert full["steps"] == 4 < full["planned_steps"]


CHECKS = {
    "encoder_pass": check_encoder_pass,
    "head_training": check_head_training,
    "whole_task": check_whole_task,
    "larger_than_memory": check_larger_than_memory,
    "gpu": check_gpu,
}


@pytest.mark.real
def test_quick_main_job(shared_data: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(data), "--out", str(tmp_path), "--quick", "--only", "main_job"]
    assert run.main(arguments) == 0
    assert json.loads((tmp_path / "main_job.json").read_text())["figures"][0]["set"] == "banking77"


@pytest.mark.real
@pytest.mark.filterwarnings("default")
def test_setfit_and_fine_tuning_to_the_end(shared_data: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(data), "--sets", "banking77", "--head-steps", "20", "--epochs", "3"]
    whole_task.main([*arguments, "--opponents", "setfit", "full_fine_tuning", "--out", str(tmp_path)])
    (entry,) = json.loads((tmp_path / "whole_task.json").read_text())["figures"]
    for who in ("setfit", "full_fine_tuning"):
        assert not entry[who]["extrapolated"] and entry[who]["test_accuracy"] > 0.8
        assert entry[who]["runs"][0]["steps"] == entry[who]["runs"][0]["planned_steps"]


# --- the one command ------------------------------------------------------------------------------------------------


def test_one_command_runs_them_and_prints_a_table(data: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--data", str(data), "--encoder", str(tiny_encoder)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--only", "encoder_pass"],
        cwd=run.ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:2] == ["| bar | wanted | measured | reached |", "| --- | --- | --- | --- |"]
    wanted = {"few": ["at least 1"] * 2, "many": ["at least 2.5", "at least 1.5", "at least 0.6"]}
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        *wanted["few"],
        *wanted["many"],
        *wanted["few"],
        *["at least 1.3"] * 2,
    ]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"encoder_pass.json"}


def test_a_failed_benchmark_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "limits.json").write_text("of an earlier run")

    def one_fails(command: list[str], **_: Any) -> Any:
        if command[2] == "benchmarks.gpu":
            bars = [harness.bar("speed", 2.0, at_least=3), harness.bar("memory", None, at_most=1)]
            (tmp_path / "gpu.json").write_text(json.dumps({"bars": bars}))
        return subprocess.CompletedProcess(command, command[2] == "benchmarks.limits")

    monkeypatch.setattr(subprocess, "run", one_fails)
    assert run.main(["--data", "x", "--out", str(tmp_path), "--only", "limits", "gpu"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[2:] == [
        "| limits: no result | | | |",
        "| speed | at least 3 | 2 | **no** |",
        "| memory | at most 1 | missing |  |",
    ]
    assert err.splitlines()[-1] == "error: these failed, see above: limits"


def test_every_benchmark_is_run() -> None:
    scripts = {file.stem for file in (run.ROOT / "benchmarks").glob("*.py")}
    helpers = {"__init__", "harness", "machine", "run", "synthetic"}
    assert scripts - helpers == {*run.BENCHMARKS, *run.KEPT}


# --- what they count ------------------------------------------------------------------------------------------------


def test_multiply_adds_are_those_of_the_matrix_products(encoder: Encoder, tiny_encoder: Path) -> None:
    tokens = encoder.tokenize([("the card", None), ("refund my money please", None), ("a", "card")])
    counted = 0

    def count(module: torch.nn.Linear, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        nonlocal counted
        counted += inputs[0].numel() * module.out_features

    model = transformers.AutoModel.from_pretrained(tiny_encoder).eval()
    layers = model.encoder.layer[: max(STATES)]
    hooks = [module.register_forward_hook(count) for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    for row in range(3):
        ids = torch.from_numpy(tokens.ids[tokens.places(np.array([row]))]).long()[None]
        with torch.inference_mode():
            model(ids)
    for hook in hooks:
        hook.remove()
    attention = sum(2 * int(length) ** 2 * 32 for length in tokens.lengths) * len(layers)
    assert limits.multiply_adds(encoder, tokens.lengths) == counted + attention


def test_matrix_rate_counts_two_operations_for_each_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = torch.nn.functional.linear

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append(2 * x.numel() * len(weight))
        return plain(x, weight)

    clock = iter(range(1000))
    monkeypatch.setattr("torch.nn.functional.linear", linear)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    rate = limits.rate_of_one(8, 4, 16, torch.device("cpu"), torch.float32, threading.Barrier(1), 2.5)
    timed = sum(calls) * 8 / 11  # three layers warm up; four between two looks at the clock
    assert rate == pytest.approx(timed / 3 / 1e9)


def test_opponents_take_turns() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = harness.in_turn(3, {"a": lambda: measure("a"), "b": lambda: measure("b")})
    assert order == ["a", "b"] * 3
    assert harness.medians(found) == {"a": 3.0, "b": 4.0}


def test_planned_seconds_leave_out_the_first_steps(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32")
    result = TunedEncoder(None, encoder, 1, 100, [9.0, 9.0, 9.0, 2.0, 4.0], [1.0, 3.0])
    assert harness.planned_seconds(result, 5) == pytest.approx(100 * 3.0 + 5 * 2.0)


def test_bars() -> None:
    assert harness.bar("x", 3.0, at_least=3)["reached"] is True
    assert harness.bar("x", 0.31, at_most=0.3) == {
        "bar": "x", "wanted": "at most 0.3", "measured": 0.31, "reached": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="give either at_least or at_most"):
        harness.bar("x", 1.0)


def test_synthetic_store_holds_its_texts_and_copies_keep_every_row(encoder: Encoder, tmp_path: Path) -> None:
    made = synthetic.write(FeatureStore(tmp_path / "a"), encoder, 200_000)
    features, use = stored_features(made.inputs, encoder, FeatureStore(tmp_path / "a"), Progress(), states=STATES)
    assert use.misses == 0
    assert int(features.lengths.sum()) == made.tokens
    assert made.bytes == pytest.approx(200_000, rel=0.2)
    order = np.random.default_rng(0).permutation(len(made.inputs))
    copied = synthetic.copy_in_order(made.inputs, order, features, encoder, FeatureStore(tmp_path / "b"))
    for row in range(0, len(made.inputs), 5):
        found, expected = copied.batch(torch.tensor([row]))[0], features.batch(torch.tensor([row]))[0]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)  # the scale goes by way of float16 once more


def test_without_a_gpu_its_figures_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu.main(["--out", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    assert found["figures"] == {"skipped": "there is no GPU on this machine; its figures are missing"}
    assert {entry["measured"] for entry in found["bars"]} == {None}


def test_what_does_not_fit_is_tried_with_checkpointing(encoder: Encoder) -> None:
    tried: list[bool] = []

    def too_large(*_: Any, config: Any) -> Any:
        tried.append(config.checkpointing)
        raise torch.OutOfMemoryError

    arguments = argparse.Namespace(epochs=1, batch_size=8, max_steps=1)
    rows = (np.arange(1), np.arange(1))
    found = gpu.encoder_training(too_large, 1e-3, encoder, [], np.arange(1), rows, arguments)
    assert tried == [False, True]
    assert found == {"skipped": "does not fit into the GPU's memory with batches of 8"}


def full_score(file: Path, encoder: str, rows: int | None = None) -> float | None:
    """What `quality` takes for full fine-tuning on BANKING77."""
    asked = argparse.Namespace(full=file, rows=rows, encoder=encoder, fewest_rates=quality.FEWEST_RATES)
    return quality.full_score("banking77", asked)


def test_full_fine_tuning_is_kept_and_not_done_twice(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "kept.json"

    def tune(*rates: str) -> list[dict[str, Any]]:
        options = f"--encoder {tiny_encoder} --sets banking77 --epochs 1 --into {into} --rates"
        full_tuning.main([*options.split(), *rates, "--data", str(data)])
        return full_tuning.kept(into)

    first = tune("1e-3", "1e-4")
    assert [entry["rate"] for entry in first] == [1e-3, 1e-4] and first[0]["test"]["accuracy"] > 0
    assert first[0]["train_rows"] + first[0]["validation_rows"] == 90

    def score() -> float | None:
        return full_score(into, str(tiny_encoder))

    assert score() is None  # two rates are no fair search
    monkeypatch.setattr(
        full_tuning, "one_training", lambda *_: {"validation": 2.0, "test": {"accuracy": 0.5}, "seconds": 1}
    )
    assert tune("1e-3", "1e-4", "1e-5")[:2] == first
    assert len(full_tuning.kept(into)) == 3 and score() == 0.5
    assert full_score(into, "another") is None
    assert len(tune("1e-3", "--epochs", "2")) == 4  # a longer training is another one
    assert full_score(into, str(tiny_encoder), rows=100) is None
    assert full_score(tmp_path / "none.json", str(tiny_encoder)) is None


def test_rates_tried_on_some_rows_are_a_search_for_all_rows(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "kept.json"
    asked: list[tuple[int | None, float]] = []

    def train(_: Any, __: str, rows: int | None, ___: int, rate: float) -> dict[str, Any]:
        asked.append((rows, rate))
        test = None if rate == 1e-2 else {"accuracy": 1 - rate}  # None: that training has diverged
        return {"validation": {1e-3: 0.5, 1e-4: 0.75}.get(rate), "test": test, "seconds": 1}

    monkeypatch.setattr(full_tuning, "one_training", train)
    options = f"--encoder {tiny_encoder} --sets banking77 --into {into} --search-rows 50 --rates 1e-2 1e-3 1e-4"
    full_tuning.main([*options.split(), "--data", str(data)])
    full_tuning.main([*options.split(), "--data", str(data)])
    assert asked == [(50, 1e-2), (50, 1e-3), (50, 1e-4), (None, 1e-4)]
    assert full_tuning.kept(into)[-1]["searched"] == {"rows": 50, "rates": [1e-2, 1e-3, 1e-4]}
    assert full_score(into, str(tiny_encoder)) == 1 - 1e-4

    entries = full_tuning.kept(into)  # a training on all rows that was there before the search is not done again
    del entries[-1]["searched"]
    into.write_text(json.dumps(entries))
    assert full_score(into, str(tiny_encoder)) is None
    full_tuning.main([*options.split(), "--data", str(data)])
    assert len(asked) == 4 and len(full_tuning.kept(into)) == 4
    assert full_score(into, str(tiny_encoder)) == 1 - 1e-4


def test_a_search_on_more_rows_than_there_are_is_one_on_all(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "kept.json"
    monkeypatch.setattr(
        full_tuning, "one_training", lambda *_: {"validation": 0.5, "test": {"accuracy": 0.25}, "seconds": 1}
    )
    options = f"--encoder {tiny_encoder} --sets banking77 --into {into} --search-rows 90 --rates 1e-2 1e-3 1e-4"
    full_tuning.main([*options.split(), "--data", str(data)])
    assert [(entry["rows"], entry["rate"]) for entry in full_tuning.kept(into)] == [
        (None, 1e-2),
        (None, 1e-3),
        (None, 1e-4),
    ]
    assert full_score(into, str(tiny_encoder)) == 0.25


def test_rates_that_all_diverge_are_told(
    data: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "kept.json"
    monkeypatch.setattr(full_tuning, "one_training", lambda *_: {"validation": None, "test": None, "seconds": 1})
    options = f"--encoder {tiny_encoder} --sets banking77 --into {into} --search-rows 50 --rates 1 2 3"
    full_tuning.main([*options.split(), "--data", str(data)])
    assert "banking77, seed 0: every rate diverged" in capsys.readouterr().out
    assert len(full_tuning.kept(into)) == 3
    assert full_score(into, str(tiny_encoder), rows=50) is None

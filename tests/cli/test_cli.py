"""The command line: what goes to stdout and stderr, exit codes, and one line for each mistake."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ytuning
from tests.cascades import answering_from, two_trainings
from tests.conftest import build_tiny_encoder
from ytuning.cli import program as cli
from ytuning.cli.console import read_parts
from ytuning.data.dataset import from_lists
from ytuning.encoder.encoder import load_encoder
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig
from ytuning.progress import Progress
from ytuning.tasks import choose_recipe, distill
from ytuning.tasks.add_cascade import add_cascade
from ytuning.tasks.task import load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training import recipes
from ytuning.training.recipes import Recipe, TrainingConfig

QUICK = TrainingConfig(fewest_steps=30, most_steps=30)
METRICS = {"accuracy", "macro_f1", "micro_f1", "matthews", "ece"}


@dataclass
class Outcome:
    """What a run of the program left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)

    def mistake(self) -> str:
        """The message of a user's mistake: the last line, after nothing but progress about the columns."""
        *before, last = [line for line in self.err.splitlines() if line.strip()]
        assert (self.status, self.out) == (2, ""), self
        assert last.startswith("error: ") and "Traceback" not in self.err
        assert all("; columns " in line for line in before), self
        return last.removeprefix("error: ")


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program within this process, with presets of few steps."""
    monkeypatch.setitem(recipes.PRESETS, "default", lambda: Recipe(PooledConfig(width=16), QUICK))
    monkeypatch.setitem(recipes.PRESETS, "paper", lambda: Recipe(CrossAttentionConfig(width=16), QUICK, (-1,)))

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments)])
        assert isinstance(stop.value.code, int)
        return Outcome(stop.value.code, *capsys.readouterr())

    return run


def write_csv(path: Path, texts: list[str], labels: list[str], header: str = "text,label") -> Path:
    rows = [f'"{text}",{label}' for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path, toy_rows: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``train.csv`` (100 rows) and ``test.csv`` (20 rows)."""
    texts, labels = toy_rows
    write_csv(tmp_path / "train.csv", texts[:100], labels[:100])
    write_csv(tmp_path / "test.csv", texts[100:], labels[100:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A task folder named ``toy``, and one named ``pairs`` beside it."""
    root = tmp_path_factory.mktemp("tasks")
    encoder, store = load_encoder(tiny_encoder), FeatureStore(root / "store")
    recipe = Recipe(PooledConfig(width=16), QUICK)
    for name, pairs in (("toy", None), ("pairs", toy_rows[0][::-1])):
        save_task(
            train_task(from_lists(*toy_rows, pairs), encoder, store, recipe, options=TrainOptions(name=name)).task,
            root / name,
        )
    yield root / "toy"


# --- train ----------------------------------------------------------------------------------------------------------


def test_train_json_keeps_the_contract(run: Run, files: Path, tiny_encoder: Path) -> None:
    found = run("train", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "tasks/toy", "--json")
    assert found.status == 0
    result = found.json
    identity = load_encoder(tiny_encoder).identity
    assert set(result) >= {
        "task_dir", "kind", "labels", "rows", "encoder", "head", "metrics", "seconds", "cache", "truncated",
    }  # fmt: skip
    assert (result["task_dir"], result["kind"], result["labels"], result["truncated"]) == ("tasks/toy", "single", 3, 0)
    assert set(result["rows"]) == {"train", "validation", "test"} and result["rows"]["test"] == 20
    assert result["rows"]["train"] + result["rows"]["validation"] == 100
    assert result["encoder"] == {
        "name": str(tiny_encoder),
        "fingerprint": identity.fingerprint,
        "parameters": identity.parameters,
    }
    task = load_task(files / "tasks" / "toy")
    assert set(result["head"]) == {"parameters", "share_of_encoder"}
    assert result["head"]["parameters"] == task.head_parameters
    assert result["head"]["share_of_encoder"] == pytest.approx(task.head_parameters / identity.parameters)
    assert set(result["metrics"]) == {"validation", "test"}
    assert all(set(split) == METRICS for split in result["metrics"].values())
    assert result["metrics"] == task.metrics
    assert set(result["seconds"]) == {"read", "encode", "train", "evaluate", "total"}
    parts = [seconds for stage, seconds in result["seconds"].items() if stage != "total"]
    assert 0 < sum(parts) <= result["seconds"]["total"] + 0.01
    assert set(result["cache"]) == {"hits", "misses", "bytes"} and result["cache"]["misses"] == 120
    again = run("train", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "tasks/toy", "--json")
    assert (again.json["cache"]["hits"], again.json["cache"]["misses"]) == (120, 0)
    assert again.json["metrics"] == result["metrics"]
    assert result["store"] == again.json["store"] == task.training["store"] == "int8"


def test_train_reports_the_spread_of_seeds(run: Run, files: Path, tiny_encoder: Path) -> None:
    options = ("train", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "many", "--seeds", "3")
    seeds = run(*options, "--json").json["seeds"]
    assert list(seeds["metrics"]) == ["0", "1", "2"] and set(seeds["spread"]) == {"validation", "test"}
    for split, spread in seeds["spread"].items():
        found = [metrics[split]["accuracy"] for metrics in seeds["metrics"].values()]
        assert spread["accuracy"]["mean"] == pytest.approx(np.mean(found))
        assert spread["accuracy"]["deviation"] == pytest.approx(np.std(found, ddof=1))
    assert seeds["saved"] == load_task(files / "many").training["seed"]
    shown = run(*options)
    mean = seeds["spread"]["test"]["accuracy"]["mean"]
    assert f"Mean over 3 seeds, test set: accuracy {mean:.4f} (deviation" in shown.out
    assert f"The head of seed {seeds['saved']} is saved." in shown.out


@pytest.mark.parametrize("store", ["fp16", "compact"])
def test_train_stores_features_as_told(run: Run, files: Path, tiny_encoder: Path, store: str) -> None:
    found = run(
        "train", "train.csv", "--encoder", tiny_encoder, "--out", "tasks/stored", "--store", store, "--json", "--quiet"
    )
    assert found.status == 0
    assert found.json["store"] == store
    assert [space["codec"] for space in run("cache", "list", "--json").json["spaces"]] == [store]
    assert found.json["cache"]["misses"] == 100
    evaluated = run("evaluate", "tasks/stored", "train.csv", "--json")
    assert (evaluated.json["cache"]["hits"], evaluated.json["cache"]["misses"]) == (100, 0)
    assert f"stored as {store}: 100 texts" in run("cache", "list").out
    assert run("cache", "verify").out == "Checked 1 shard; 0 are damaged.\n"
    assert run("cache", "remove", "--all").out == "Removed 1 feature space.\n"


def test_a_task_in_an_unknown_codec_is_refused(run: Run, files: Path, trained: Path) -> None:
    shutil.copytree(trained, files / "edited")
    content = json.loads((files / "edited" / "task.json").read_text())
    (files / "edited" / "task.json").write_text(json.dumps({**content, "training": {"store": "int2"}}))
    found = run("evaluate", "edited", "test.csv")
    assert "store must be one of 'fp16', 'int8', 'compact'. Got 'int2'" in found.mistake()


def test_train_shows_progress_on_stderr_and_tables_on_stdout(run: Run, files: Path, tiny_encoder: Path) -> None:
    found = run("train", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "toy")
    assert found.status == 0
    assert "train.csv: 100 rows; columns text = 'text', label = 'label'" in found.err
    for stage in ("encode", "train", "refit"):
        assert stage in found.err
    for shown in ("toy, test", "20 rows", "accuracy", "precision", "card", "Seconds", "total", "Saved in toy."):
        assert shown in found.out
        assert shown not in found.err or shown in ("card", "accuracy", "20 rows")


def test_quiet_is_silent_on_stderr(run: Run, files: Path, tiny_encoder: Path) -> None:
    found = run("train", "train.csv", "--encoder", tiny_encoder, "--out", "toy", "--quiet")
    assert (found.status, found.err) == (0, "")
    assert "toy, validation" in found.out
    assert run("predict", "toy", "my card", "--quiet").err == ""
    assert run("evaluate", "toy", "test.csv", "--quiet").err == ""
    assert run("cache", "verify", "--quiet").err == ""


def test_train_passes_loss_and_label_weights_on(run: Run, files: Path, tiny_encoder: Path) -> None:
    train = ("train", "train.csv", "--encoder", tiny_encoder)
    assert run(*train, "--out", "plain").status == 0
    assert run(*train, "--out", "chosen", "--loss", "focal", "--label-weights", "balanced").status == 0
    recipes = [load_task(files / name).training["recipe"]["training"] for name in ("plain", "chosen")]
    assert [recipe["loss"] for recipe in recipes] == ["cross_entropy", "focal"]
    assert [recipe["label_weights"] for recipe in recipes] == [None, "balanced"]


def rows_of_kind(kind: str, labels: list[str]) -> list[object]:
    """The label column of the toy rows as another kind of task has it."""
    if kind == "multi":
        return [[] if label == "login" else [label, "any"] for label in labels]
    number = {"card": 1, "login": 2, "refund": 4}
    return [number[label] if kind == "ordinal" else number[label] + 0.5 for label in labels]


@pytest.mark.parametrize("kind", ["multi", "ordinal", "regression"])
def test_every_kind_from_the_command_line(
    kind: str, run: Run, files: Path, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]
) -> None:
    texts, labels = toy_rows
    column = "labels" if kind == "multi" else "label"
    rows = [{"text": text, column: cell} for text, cell in zip(texts, rows_of_kind(kind, labels), strict=True)]
    (files / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = ("--kind", kind) if kind == "ordinal" else ()
    done = run("train", "rows.jsonl", "--encoder", tiny_encoder, "--out", kind, "--json", *told)
    assert (done.status, done.json["kind"]) == (0, kind)
    assert f"kind = '{kind}'" in done.err
    assert done.json["labels"] == {"multi": 3, "ordinal": 3, "regression": 0}[kind]
    (line,) = run("predict", kind, "my card").out.splitlines()
    answer = json.loads(line)
    assert list(answer) == ["text", "task", {"multi": "labels", "regression": "value"}.get(kind, "label"), "scores"]
    assert list(answer["scores"]) == {"multi": ["any", "card", "refund"], "ordinal": ["1", "2", "4"]}.get(kind, [])
    report = run("evaluate", kind, "rows.jsonl", "--json").json
    if kind == "regression":
        refused = run("train", "rows.jsonl", "--loss", "focal", "--encoder", tiny_encoder, "--out", "other")
        assert (
            refused.status == 2
            and "--loss is for tasks with labels, and these rows have numbers. Leave out --loss." in refused.err
        )
    assert report["kind"] == kind and set(report["intervals"]) <= set(report["metrics"])
    assert run("evaluate", kind, "rows.jsonl").status == 0


def test_a_task_that_abstains_from_the_command_line(
    run: Run, files: Path, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]
) -> None:
    write_csv(files / "all.csv", *toy_rows)
    options = ("--encoder", tiny_encoder, "--out", "sure", "--abstain-at", "0.6", "--validation", "all.csv", "--json")
    metrics = run("train", "train.csv", *options).json["metrics"]["validation"]
    assert metrics["precision_answered"] >= 0.6 and 0 < metrics["coverage"] <= 1
    content = json.loads((files / "sure" / "task.json").read_text())
    content["calibration"]["abstain_below"] = 1.0
    (files / "sure" / "task.json").write_text(json.dumps(content))
    assert json.loads(run("predict", "sure", "what is this").out)["label"] is None


def test_add_label(run: Run, files: Path, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]) -> None:
    texts, labels = toy_rows
    old = [number for number, label in enumerate(labels) if label != "refund"]
    write_csv(files / "old.csv", [texts[number] for number in old], [labels[number] for number in old])
    new = [text for text, label in zip(texts, labels, strict=True) if label == "refund"]
    write_csv(files / "new.csv", new[4:], ["ignored"] * len(new[4:]))
    write_csv(files / "judge.csv", [*new[:3], new[3] + " card" * 100, texts[old[0]]], [*["refund"] * 4, labels[old[0]]])
    assert run("train", "old.csv", "--encoder", tiny_encoder, "--out", "toy").status == 0
    before = (files / "toy" / "task.json").read_bytes()
    new_label = ("add-label", "toy", "refund", "--examples", "new.csv")
    found = run(*new_label, "--out", "grown", "--test", "judge.csv", "--json")
    assert (found.status, (files / "toy" / "task.json").read_bytes()) == (0, before)
    assert "1 text was too long for the encoder and was cut.\n" in found.err
    result = found.json
    assert (result["task_dir"], result["label"], result["labels"], result["examples"]) == (
        "grown", "refund", 3, len(new) - 4,
    )  # fmt: skip
    assert set(result["test"]) == {"after", "before_on_rows_of_old_labels", "after_on_rows_of_old_labels"}
    assert list(json.loads(run("predict", "grown", "refund").out)["scores"]) == ["card", "login", "refund"]
    told = run(*new_label)
    assert (
        told.status == 0
        and "Added the label refund from" in told.out
        and "Saved in toy, which now has 3 labels." in told.out
    )
    for name in ("refund", " refund", "refund\u00a0"):
        again = run("add-label", "toy", name, "--examples", "new.csv")
        assert (again.status, again.err) == (
            2, "error: the task 'toy' has the label 'refund' already. Give another name\n",
        )  # fmt: skip
    write_csv(files / "new.csv", new[4:], ["Card"] * len(new[4:]))
    alike = run("add-label", "toy", "Card", "--examples", "new.csv", "--out", "alike", "--quiet")
    assert alike.err == (
        "these labels look alike and are different labels: 'Card', 'card'. Give labels that mean the same one "
        "spelling.\n"
    )
    spaced = run("add-label", "toy", " more ", "--examples", "new.csv", "--out", "spaced", "--json")
    assert spaced.json["label"] == load_task(files / "spaced").target.names[-1] == "more"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_labels_that_look_like_mistakes_are_told_once(
    quiet: tuple[str, ...], run: Run, files: Path, tiny_encoder: Path
) -> None:
    for name in ("train.csv", "test.csv"):
        lines = (files / name).read_text().splitlines()
        (files / name).write_text(
            "\n".join(line.replace(",card", ",Card") if n % 2 else line for n, line in enumerate(lines))
        )
    train = ("train", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, *quiet)
    found = run(*train, "--out", "toy")
    told = (
        "train.csv: these labels look alike and are different labels: 'Card' (row 7), 'card' (row 12). Give labels "
        "that mean the same one spelling."
    )
    assert found.status == 0 and found.err.splitlines().count(told) == 1
    assert load_task(files / "toy").target.names == ("Card", "card", "login", "refund")
    for name in ("train.csv", "test.csv"):
        text = (files / name).read_text().lower()
        both = text.replace(",card", ',"card, lost"')  # without the other mark in test.csv
        (files / name).write_text(both.replace(",login", ",login|access;other") if name == "train.csv" else both)
    found = run(*train, "--kind", "multi", "--out", "several", "--json")
    told = (
        "train.csv: '|' separates the labels of a row, so each of these is one label: 'access;other', 'card, lost'. "
        "If it should be several labels, write '|' between them."
    )
    assert found.status == 0 and found.err.splitlines().count(told) == 1
    assert load_task(files / "several").target.names == ("access;other", "card, lost", "login", "refund")
    assert found.json["rows"]["test"] == 20 and ("columns" in found.err) is not bool(quiet)
    assert run("evaluate", "several", "test.csv", "--json").json["metrics"] == found.json["metrics"]["test"]
    (files / "new.csv").write_text("text\nsend it\n")
    more = ("add-label", "several", "post, parcel", "--examples", "new.csv", "--out", "more", "--quiet")
    assert (done := run(*more, "--test", "test.csv")).status == 0 and done.err == ""


def test_an_ensemble_from_the_command_line(run: Run, files: Path, tiny_encoder: Path) -> None:
    done = run("train", "train.csv", "--encoder", tiny_encoder, "--out", "toy", "--seeds", "2", "--ensemble")
    assert done.status == 0 and "The mean of their heads is saved." in done.out
    alone = run("train", "train.csv", "--encoder", tiny_encoder, "--out", "toy", "--ensemble")
    assert alone.status == 2 and "Give --seeds 2 or more" in alone.err


def test_train_with_validation_file_named_columns_and_paper_preset(run: Run, files: Path, tiny_encoder: Path) -> None:
    for name in ("train.csv", "test.csv"):
        (files / name).write_text((files / name).read_text().replace("text,label", "body,topic"))
    found = run(
        "train", "train.csv", "--validation", "test.csv", "--text", "body", "--label", "topic", "--kind", "single",
        "--preset", "paper", "--seed", "3", "--encoder", tiny_encoder, "--out", "toy", "--json",
    )  # fmt: skip
    assert found.status == 0
    assert found.json["rows"] == {"train": 100, "validation": 20, "test": 0}
    task = load_task(files / "toy")
    assert isinstance(task.config, CrossAttentionConfig) and task.training["seed"] == 3
    assert task.states == (3,)  # the last hidden state of the tiny encoder
    assert "columns text = 'body', label = 'topic'" in found.err


def test_few_shot_preset_tells_how_the_labels_texts_alone_do(run: Run, files: Path, tiny_encoder: Path) -> None:
    (files / "labels.json").write_text('{"card": "my card was stolen", "login": "password", "refund": "money back"}')
    options = ("--preset", "few-shot", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "toy")
    found = run("train", "train.csv", *options, "--label-texts", "labels.json", "--json")
    assert found.status == 0 and set(found.json["zero_shot"]) == {"validation", "test"}
    assert set(found.json["zero_shot"]["test"]) == METRICS
    assert load_task(files / "toy").training["zero_shot"] == found.json["zero_shot"]
    told = run("train", "train.csv", *options)
    assert re.search(r"from the label texts alone, test set: accuracy 0\.\d{4}, macro_f1 0\.", told.out)
    without = run("train", "train.csv", *options, "--label-texts", "none")
    assert without.status == 0 and "Before training" not in without.out
    (files / "labels.json").write_text('{"cart": "my card was stolen"}')
    wrong = run("train", "train.csv", *options, "--label-texts", "labels.json")
    assert wrong.status == 2 and "a label that no row has: 'cart'. Did you mean 'card'?" in wrong.err


def test_no_refit(run: Run, files: Path, tiny_encoder: Path) -> None:
    found = run("train", "train.csv", "--encoder", tiny_encoder, "--out", "toy", "--no-refit", "--json")
    assert found.json["refitted"] is False


def test_train_tells_of_cut_texts_and_shared_rows(run: Run, files: Path, tiny_encoder: Path) -> None:
    with (files / "test.csv").open("a") as stream:
        stream.write('"' + "card " * 100 + '",card\n')
        stream.write((files / "train.csv").read_text().splitlines()[1] + "\n")
    found = run("train", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "toy", "--json")
    assert found.json["truncated"] == 1 and found.json["shared"]["test"] == 1
    assert "1 text was too long for the encoder and was cut.\n" in found.err
    assert "1 test row has exactly the text of a training row.\n" in found.err


def test_other_files_are_read_like_the_train_rows(files: Path) -> None:
    (files / "numbers.csv").write_text("text,label\na b,1.5\nc d,2\ne f,3\n")
    (files / "whole.csv").write_text("text,label\na b,1\nc d,2\n")
    (files / "sets.csv").write_text('text,labels\na,x;y\nb,"x,y"\nc,x\nd,y\n')
    (files / "few.csv").write_text('text,labels\na,"x,y"\nb,x\n')
    columns = {"text": None, "text_pair": None, "label": None, "group": None}
    train, validation, test = read_parts(
        Progress(), (Path("numbers.csv"), None, Path("whole.csv")), **columns, kind="auto", quiet=True
    )
    assert validation is None and test is not None
    assert [train.kind, test.kind, test.labels] == ["regression", "regression", [1.0, 2.0]]
    train, _, test = read_parts(
        Progress(), (Path("sets.csv"), None, Path("few.csv")), **columns, kind="auto", quiet=True
    )
    assert test is not None
    assert [train.labels, test.labels] == [[("x", "y"), ("x,y",), ("x",), ("y",)], [("x,y",), ("x",)]]


@pytest.mark.usefixtures("short_choice")
def test_group_keeps_rows_on_one_side(
    run: Run, files: Path, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]
) -> None:
    texts, labels = (part[:100] for part in toy_rows)
    lines = [f"{texts[row]},{labels[row]},{'' if row < 2 else row // 5}" for row in range(100)]
    (files / "users.csv").write_text("\n".join(["text,label,user", *lines]))
    arguments = ("users.csv", "--group", "user", "--encoder", tiny_encoder, "--out")
    commands = (("train",), ("search", "--preset", "few-shot", "--trials", "1"), ("compare", "--methods", "logistic"))
    for command in commands:
        found = run(*command, *arguments, command[0], "--json")
        assert found.status == 0
        assert "columns text = 'text', label = 'label', group = 'user'; kind = 'single'\n" in found.err
        told = "users.csv: 2 rows have no value in the group column 'user'. Each of them is a group of its own.\n"
        assert told in found.err
        if command[0] == "train":
            held = found.json["rows"]["validation"]
            assert 5 <= held <= 15


# --- reports --------------------------------------------------------------------------------------------------------


def test_train_writes_a_report(run: Run, files: Path, tiny_encoder: Path) -> None:
    options = ("train", "train.csv", "--encoder", tiny_encoder, "--out", "tasks/toy", "--json")
    found = run(
        *options, "--test", "test.csv", "--report", "tasks/toy/report.html"
    )  # in a folder that is yet to be made
    assert found.status == 0 and found.json["report"] == "tasks/toy/report.html"
    page = (files / "tasks/toy/report.html").read_text(encoding="utf-8")
    assert "<h1><bdi>toy, test</bdi></h1>" in page and f"{found.json['metrics']['test']['accuracy']:.4f}" in page
    assert "Validation accuracy" in page and "seconds" in page
    without = run(*options, "--report", "other.html")  # the folder may hold a report
    assert without.status == 0 and "toy, validation" in (files / "other.html").read_text(encoding="utf-8")
    assert run(*options).json["report"] is None
    assert load_task(files / "tasks" / "toy") and not list(files.glob("**/*.partial"))


def test_evaluate_writes_a_report(run: Run, trained: Path, files: Path) -> None:
    (files / "page.html").write_text("of yesterday")
    found = run("evaluate", trained, "test.csv", "--report", "page.html", "--json")
    assert found.status == 0 and found.json["report"] == "page.html"
    page = (files / "page.html").read_text(encoding="utf-8")
    assert "toy on test.csv" in page and f"{found.json['metrics']['accuracy']:.4f}" in page
    assert "of yesterday" not in page and "Validation accuracy" not in page
    assert run("evaluate", trained, "test.csv", "--json").json["report"] is None


def test_a_report_is_refused_before_any_work(run: Run, trained: Path, files: Path) -> None:
    (files / "folder").mkdir()
    for start in (("train", "train.csv", "--out", "new"), ("evaluate", trained, "test.csv")):
        message = run(*start, "--report", "folder").mistake()
        assert message == "cannot write folder: Is a directory. Choose another path with --report."
        message = run(*start, "--report", "no/such/page.html").mistake()
        assert (
            message == "cannot write no/such/page.html: No such file or directory. Choose another path with --report."
        )
    assert "Is a directory" in run("train", "train.csv", "--out", "new", "--report", "new").mistake()
    assert not (files / "new").exists() and not list(files.glob("**/*.partial"))
    assert run("cache", "list", "--json").json["spaces"] == []


def test_no_result_replaces_a_file_that_is_read(run: Run, trained: Path, files: Path) -> None:
    (files / "link.csv").symlink_to("test.csv")
    (files / "labels.json").write_text("{}")
    before = {file: (files / file).read_bytes() for file in ("train.csv", "test.csv", "labels.json")}
    start = ("train", "train.csv", "--out", "new", "--test", "test.csv", "--label-texts", "labels.json")
    problem = "would replace a file that the command reads or that belongs to a task"
    for name in ("train.csv", "./test.csv", "link.csv", "labels.json", "new/task.json", "new/README.md"):
        message = run(*start, "--report", name).mistake()
        shown = name.removeprefix("./")
        assert message == f"--report {shown} {problem}. Choose another name."
    for name in ("task.json", "head.safetensors"):
        assert problem in run("evaluate", trained, "test.csv", "--report", trained / name).mistake()
        assert problem in run("predict", trained, "my card", "--output", trained / name).mistake()
    assert "would replace" in run("evaluate", trained, "test.csv", "--report", files / "test.csv").mistake()
    message = run("predict", trained, "--input", "test.csv", "--output", "test.csv").mistake()
    assert message == f"--output test.csv {problem}. Choose another name."
    assert before == {file: (files / file).read_bytes() for file in before}
    assert run("cache", "list", "--json").json["spaces"] == [], "nothing was encoded"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_report_on_a_full_disk(run: Run, trained: Path, files: Path) -> None:
    found = run("evaluate", trained, "test.csv", "--quiet", "--report", "/dev/full")
    assert found.status == 1
    assert found.err.startswith(
        "error: cannot write /dev/full: No space left on device. Free some space and run the command again"
    )
    assert "--report" in found.err and len(found.err.splitlines()) == 1


# --- predict --------------------------------------------------------------------------------------------------------


def test_predict_writes_json_lines_in_input_order(run: Run, trained: Path) -> None:
    texts = ["my card", "naïve \U0001f600 login", "my card", "a refund"]
    found = run("predict", trained, *texts)
    assert found.status == 0
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [line["text"] for line in lines] == texts
    assert all(list(line) == ["text", "task", "label", "scores"] for line in lines)
    assert all(line["task"] == "toy" and list(line["scores"]) == ["card", "login", "refund"] for line in lines)
    assert "naïve" in found.out


def test_predict_reads_a_file_without_labels(run: Run, trained: Path, files: Path) -> None:
    (files / "in.jsonl").write_text('{"body": "my card", "label": 3}\n{"body": "login"}\n')
    found = run("predict", trained, "--input", "in.jsonl", "--text", "body")
    assert [json.loads(line)["text"] for line in found.out.splitlines()] == ["my card", "login"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'text,other\nmy card,1\n"",2\n" ",3\nlogin,4\n'),
        ("rows.tsv", "text\tother\nmy card\t1\n\t2\n \t3\nlogin\t4\n"),
        ("rows.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ("my card", "", " ", "login"))),
        ("rows.json", json.dumps([{"text": text} for text in ("my card", "", " ", "login")])),
    ],
)
def test_predict_answers_blank_cells(name: str, content: str, run: Run, trained: Path, files: Path) -> None:
    (files / name).write_text(content)
    found = run("predict", trained, "--input", name)
    answers = [json.loads(line) for line in found.out.splitlines()]
    assert found.status == 0
    assert [answer["text"] for answer in answers] == ["my card", "", " ", "login"]
    assert answers[1]["scores"] == answers[2]["scores"] and answers[1]["label"] in answers[1]["scores"]
    assert "2 rows (the first is row 2) have a blank text." in found.err
    assert "blank" not in run("predict", trained, "my card").err
    assert "1 row (the first is row 1) has a blank text." in run("predict", trained, "", "my card").err


def test_predict_refuses_a_missing_text(run: Run, trained: Path, files: Path) -> None:
    (files / "rows.jsonl").write_text('{"text": "my card"}\n{"text": null}\n')
    found = run("predict", trained, "--input", "rows.jsonl")
    assert (found.status, found.out) == (2, "")
    assert "rows.jsonl, row 2, column 'text': the text is missing" in found.err


@pytest.mark.parametrize("preset", ["default", "light"])
def test_a_label_is_removed(
    preset: str, run: Run, toy_rows: tuple[list[str], list[str]], tiny_encoder: Path, files: Path
) -> None:
    write_csv(files / "rows.csv", *toy_rows)
    assert run("train", "rows.csv", "--preset", preset, "--encoder", tiny_encoder, "--out", "toy").status == 0
    before = (files / "toy" / "task.json").read_bytes()
    found = run("remove-label", "toy", "refund", "--out", "less", "--json", "--quiet")
    assert (found.status, found.err, (files / "toy" / "task.json").read_bytes()) == (0, "", before)
    assert found.json["labels"] == 2 and found.json["kept_texts"]["after"] > 0.8
    assert load_task(files / "less").target.names == ("card", "login")
    told = run("remove-label", "toy", "refund", "--quiet")
    assert told.status == 0 and "Saved in toy, which now has 2 labels." in told.out
    again = run("remove-label", "toy", "refunds")
    message = "error: the task 'toy' has no label 'refunds'. Its labels are 'card', 'login'\n"
    assert (again.status, again.err) == (2, message)


def test_add_label_refuses_a_blank_example(run: Run, trained: Path, files: Path) -> None:
    (files / "new.jsonl").write_text('{"text": "a stolen phone"}\n{"text": " "}\n')
    found = run("add-label", trained, "phone", "--examples", "new.jsonl", "--out", "grown")
    assert found.status == 2
    assert "new.jsonl, row 2, column 'text': the text has only white space. Fill it in or remove the row." in found.err


def test_predict_pairs(run: Run, trained: Path, files: Path) -> None:
    (files / "in.csv").write_text("text,text_pair\nmy card,your login\n")
    found = run("predict", trained.with_name("pairs"), "--input", "in.csv")
    assert list(json.loads(found.out)) == ["text", "text_pair", "task", "label", "scores"]
    assert "pairs of texts" in run("predict", trained.with_name("pairs"), "my card").mistake()


def test_predict_with_several_tasks(run: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    found = run("predict", trained, tmp_path / "copy", "my card", "login")
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [(line["text"], line["task"]) for line in lines] == [
        ("my card", "toy"), ("my card", "copy"), ("login", "toy"), ("login", "copy"),
    ]  # fmt: skip


def test_predict_tells_of_texts_that_may_be_paths(run: Run, trained: Path) -> None:
    typo = f"{trained.parent}/typo"
    texts = [typo, "my card", "card/login", "my card / your login", str(trained)]
    found = run("predict", trained, *texts, "--quiet")
    assert [json.loads(line)["text"] for line in found.out.splitlines()] == texts
    told = (
        f"These arguments are read as texts, not as paths: {typo!r}, {str(trained)!r}. Only folders before the first "
    )
    assert found.err == f"{told}text are tasks; use --input for a file of texts.\n"
    assert run("predict", trained, *texts[1:4], "--quiet").err == ""


def test_predict_json_changes_nothing_in_a_pipe(run: Run, trained: Path) -> None:
    plain = run("predict", trained, "my card", "login")
    assert run("predict", trained, "my card", "login", "--json").out == plain.out


def test_predict_output_file(run: Run, trained: Path, files: Path) -> None:
    found = run("predict", trained, "my card", "--output", "out.jsonl")
    assert (found.status, found.out) == (0, "")
    assert json.loads((files / "out.jsonl").read_text())["text"] == "my card"
    assert not list(files.glob("*.partial"))
    assert "cannot write" in run("predict", trained, "my card", "--output", "no/such/folder.jsonl").mistake()


def test_predict_output_follows_links_and_takes_pipes(run: Run, trained: Path, files: Path) -> None:
    (files / "real.jsonl").write_text("old")
    (files / "link.jsonl").symlink_to("real.jsonl")
    assert run("predict", trained, "my card", "--output", "link.jsonl").status == 0
    assert (files / "link.jsonl").is_symlink()
    assert json.loads((files / "real.jsonl").read_text())["text"] == "my card"
    os.mkfifo(files / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((files / "pipe").read_text)
        assert run("predict", trained, "my card", "--output", "pipe").status == 0
        assert json.loads(read.result())["text"] == "my card"
    assert (files / "pipe").is_fifo()


def test_predict_refuses_a_folder_as_output(run: Run, trained: Path, files: Path) -> None:
    (files / "folder").mkdir()
    message = run("predict", trained, "my card", "--output", "folder").mistake()
    assert message == "cannot write folder: Is a directory. Choose another path with --output."


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_no_mistake_of_the_users(run: Run, trained: Path, files: Path) -> None:
    found = run("predict", trained, "my card", "--quiet", "--output", "/dev/full")
    assert found.status == 1
    assert found.err.startswith(
        "error: cannot write /dev/full: No space left on device. Free some space and run the command again"
    )
    command = [sys.executable, "-m", "ytuning", "cache", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: cannot write to stdout: no space is left on the device. Free some space and run the command again.\n"
    )


def test_predict_output_file_appears_whole_or_not_at_all(trained: Path, files: Path) -> None:
    (files / "many.csv").write_text("text\n" + "\n".join(f"my card {row}" for row in range(200_000)))
    (files / "out.jsonl").write_text("of yesterday")
    command = [sys.executable, "-m", "ytuning", "predict", str(trained), "--input", "many.csv", "--output", "out.jsonl"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        while not any(file.stat().st_size for file in files.glob("*.partial")):
            assert program.poll() is None
            time.sleep(0.01)
        program.terminate()
        assert program.stderr is not None
        errors = program.stderr.read()
        assert program.wait(60) == 1
    assert errors.strip().endswith("error: Interrupted. Finished work is kept; run the same command again to resume.")
    assert (files / "out.jsonl").read_text() == "of yesterday"
    assert not list(files.glob("*.partial"))


def test_moved_encoder(run: Run, files: Path, tiny_encoder: Path) -> None:
    shutil.copytree(tiny_encoder, "old")
    assert run("train", "train.csv", "--encoder", "./old", "--out", "toy").status == 0
    (files / "old").rename("new")
    assert "there is no encoder folder './old'" in run("predict", "toy", "my card").mistake()
    assert run("predict", "toy", "my card", "--encoder", "new").status == 0
    assert run("evaluate", "toy", "test.csv", "--encoder", "new").status == 0


# --- evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate(run: Run, trained: Path, files: Path) -> None:
    found = run("evaluate", trained, "test.csv")
    assert found.status == 0
    for shown in ("toy on test.csv", "20 rows", "accuracy", "login"):
        assert shown in found.out


@pytest.fixture
def two_heads(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path: Path) -> Path:
    """A folder of a task whose light head answers all texts at a share of 0.01."""
    options = TrainOptions(name="two")
    trained = two_trainings(from_lists(*toy_rows), load_encoder(tiny_encoder), FeatureStore(), options)
    save_task(answering_from(add_cascade(*trained)[0].task, 0.0), tmp_path / "two")
    return tmp_path / "two"


def test_predict_with_a_cascade(run: Run, two_heads: Path, trained: Path) -> None:
    texts = ["my card", "login please"]
    lines = [json.loads(line) for line in run("predict", two_heads, *texts, "--cascade", "0.01").out.splitlines()]
    assert [line["head"] for line in lines] == ["light", "light"]
    assert '"head"' not in run("predict", two_heads, *texts).out
    found = run("predict", trained, "my card", "--cascade", "0.01", "--quiet")
    assert found.err.startswith("--cascade 0.01 changes nothing: no task has two heads. Train with --preset auto")
    for share in ("0", "0.6", "nan"):
        found = run("predict", two_heads, "my card", "--cascade", share)
        assert found.status == 2 and found.err.startswith("error: --cascade must be a share of changed answers above 0")
    assert (
        "--cascade must be a share of changed" in run("serve", two_heads, "--port", "0", "--cascade", "0.6").mistake()
    )


def test_evaluate_tells_of_the_cascade(run: Run, two_heads: Path, trained: Path, files: Path) -> None:
    found = run("evaluate", two_heads, "test.csv", "--report", "page.html")
    assert "With a cascade at 1 %, the light head answers 100.0% of these rows" in found.out
    page = (files / "page.html").read_text(encoding="utf-8")
    assert "cascade with the light head beside it" in page and "the cascade on these rows" in page
    use = run("evaluate", two_heads, "test.csv", "--json", "--cascade", "0.3").json["cascade"]
    assert use["share"] == 0.3 and use["answered"] == 1 and 0 <= use["changed"] <= 1
    assert run("evaluate", trained, "test.csv", "--json").json["cascade"] is None
    assert run("evaluate", two_heads, "test.csv", "--cascade", "2").status == 2


def test_a_label_less_says_that_the_light_head_is_gone(run: Run, two_heads: Path) -> None:
    found = run("remove-label", two_heads, "card")
    assert "The light head beside the default head was made for the old labels and is gone" in found.err
    assert not (two_heads / "light.safetensors").exists()
    assert "head" not in json.loads(run("predict", two_heads, "my card", "--cascade", "0.01").out)


def test_train_tells_of_the_cascade(run: Run, files: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The default head is taken, however much better it is.
    monkeypatch.setattr(choose_recipe, "BETTER", -1e6)
    arguments = ("train", "train.csv", "--preset", "auto", "--validation", "test.csv", "--encoder", tiny_encoder)
    found = run(*arguments, "--out", "auto", "--report", "page.html")
    says = "the light head answers nothing, because 20 validation rows cannot bound the changed answers at 1 %"
    assert f"in a cascade at 1%, measured on the validation set, {says}" in found.err
    assert f"With --cascade 0.01, {says}" in " ".join(found.out.split())
    assert says in (files / "page.html").read_text(encoding="utf-8") and (files / "auto" / "light.safetensors").exists()
    figures = run(*arguments, "--out", "auto", "--json").json["cascade"]
    assert figures == {"share": 0.01, "answered": 0.0, "changed": 0.0, "bound": 0.0}
    assert run(*arguments[:2], "--encoder", tiny_encoder, "--out", "one", "--json").json["cascade"] is None


def test_train_learns_from_texts_without_labels(
    run: Run, files: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_recipe, "BETTER", -1e6)
    falling = itertools.count(0, -1)
    monkeypatch.setattr(distill, "_gap", lambda *_: next(falling))
    (files / "more.csv").write_text("text\nmy card is gone\nmy card is gone\nwhere is my refund\n", encoding="utf-8")
    arguments = ("train", "train.csv", "--preset", "auto", "--validation", "test.csv", "--encoder", tiny_encoder)
    found = run(*arguments, "--unlabelled", "more.csv", "--out", "auto", "--json")
    assert "more.csv: 3 rows; columns text = 'text'" in found.err
    assert "the light head has also learned from 2 texts without labels" in found.err
    assert found.json["files"]["unlabelled"]["rows_used"] == 3 and (files / "auto" / "light.safetensors").exists()
    (files / "pairs.csv").write_text("text,text_pair\na card,my card\n", encoding="utf-8")
    refused = run(*arguments, "--unlabelled", "pairs.csv", "--text-pair", "text_pair", "--out", "other")
    assert refused.status == 2 and "Traceback" not in refused.err
    missing = run(*arguments, "--unlabelled", "nowhere.csv", "--out", "other")
    assert missing.status == 2 and "nowhere.csv" in missing.err


def test_evaluate_json_agrees_with_predict(run: Run, trained: Path, files: Path) -> None:
    found = run("evaluate", trained, "test.csv", "--json")
    result = found.json
    assert (result["task"], result["rows"], result["truncated"]) == ("toy", 20, 0)
    assert set(result["metrics"]) == METRICS and set(result["labels"]) == {"card", "login", "refund"}
    predicted = [json.loads(line)["label"] for line in run("predict", trained, "--input", "test.csv").out.splitlines()]
    truth = [line.rsplit(",", 1)[1] for line in (files / "test.csv").read_text().splitlines()[1:]]
    right = sum(a == b for a, b in zip(predicted, truth, strict=True))
    assert result["metrics"]["accuracy"] == pytest.approx(right / 20)


def test_evaluate_rows_of_one_label(run: Run, trained: Path, files: Path) -> None:
    (files / "one.csv").write_text("text,label\nmy card,card\n")
    assert run("evaluate", trained, "one.csv", "--json", "--quiet").err == ""
    shown = run("evaluate", trained, "one.csv", "--quiet").out
    assert "toy on one.csv (1 row): accuracy" in shown


# --- cache ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(run: Run, trained: Path, files: Path) -> Path:
    """The store after one evaluation."""
    assert run("evaluate", trained, "test.csv").status == 0
    return Path(os.environ["YTUNING_CACHE"])


def test_cache_list(run: Run, filled: Path, tiny_encoder: Path) -> None:
    result = run("cache", "list", "--json").json
    (space,) = result["spaces"]
    assert result["root"] == str(filled)
    assert (space["encoder"], space["texts"], space["shards"]) == (str(tiny_encoder), 20, 1)
    shown = run("cache", "list")
    assert shown.out.endswith(" MB in 1 shard\n")
    assert shown.status == 0
    assert space["fingerprint"] in shown.out and "20 texts" in shown.out and str(filled) in shown.out


def test_a_damaged_space_does_not_hide_the_others(run: Run, filled: Path) -> None:
    broken = filled / ("f" * 32)
    broken.mkdir()
    (broken / "space.json").write_text('{"schema": 1')
    for command in ("list", "verify"):
        found = run("cache", command, "--json")
        assert found.status == 1
        assert found.json.get("shards", 1) == 1 and len(found.json.get("spaces", ["one"])) == 1
        assert found.err.startswith(f"error: {broken / 'space.json'} is damaged, or another version of ytuning wrote")
    assert run("cache", "remove", "ffff").status == 0
    assert run("cache", "list").status == 0


def test_cache_list_of_nothing(run: Run) -> None:
    assert "It is empty." in run("cache", "list").out
    assert run("cache", "list", "--json").json["spaces"] == []


def test_cache_verify(run: Run, filled: Path) -> None:
    whole = run("cache", "verify")
    assert (whole.status, whole.out) == (0, "Checked 1 shard; 0 are damaged.\n")
    (shard,) = filled.glob("*/shards/*.features")
    shard.write_bytes(b"\x00" + shard.read_bytes()[1:-1] + b"\x01")
    damaged = run("cache", "verify", "--json")
    assert damaged.status == 1
    assert damaged.json["shards"] == 1
    assert [entry["shard"] for entry in damaged.json["damaged"]] == [shard.stem]
    assert f"shard {shard.stem} is damaged" in damaged.err
    assert run("cache", "verify").out == "Checked 0 shards; 0 are damaged.\n"


def test_a_damaged_shard_is_named_and_computed_again(run: Run, filled: Path, trained: Path) -> None:
    before = run("evaluate", trained, "test.csv", "--json").json
    (shard,) = filled.glob("*/shards/*.features")
    shard.write_bytes(shard.read_bytes()[:-2] + b"\x01\x02")
    found = run("evaluate", trained, "test.csv", "--json")
    assert found.status == 0 and f"shard {shard.stem} is damaged" in found.err
    assert found.json["metrics"] == before["metrics"] and found.json["cache"]["misses"] == 20


def test_cache_remove(run: Run, filled: Path) -> None:
    (fingerprint,) = (space["fingerprint"] for space in run("cache", "list", "--json").json["spaces"])
    assert "no feature space starts with 'zz'" in run("cache", "remove", "zz").mistake()
    assert run("cache", "remove", fingerprint[:4], "--json").json == {"removed": [fingerprint]}
    assert run("cache", "list", "--json").json["spaces"] == []
    assert run("cache", "remove", "--all").out == "Removed 0 feature spaces.\n"


# --- mistakes -------------------------------------------------------------------------------------------------------

OUT = ("--out", "new")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "missing file": (("train", "nothing.csv", *OUT), "nothing.csv: there is no such file"),
    "a folder": (("train", ".", *OUT), "this is a folder"),
    "wrong precision": (
        ("train", "train.csv", "--precision", "int8", *OUT),
        "--precision must be one of 'auto', 'fp32', 'bf16'. Got 'int8' instead.",
    ),
    "unknown suffix": (("train", "rows.xlsx", *OUT), "rows.xlsx"),
    "empty file": (("train", "empty.csv", *OUT), "empty.csv: the file is empty"),
    "no text column": (("train", "odd.csv", *OUT), "there is no column 'text' or 'sentence'"),
    "bad column": (("train", "train.csv", "--text", "txet", *OUT), "'txet', which is not there. Did you mean 'text'?"),
    "bad label column": (("train", "train.csv", "--label", "topic", *OUT), "--label names the column 'topic'"),
    "bad group column": (
        ("train", "train.csv", "--group", "user", *OUT),
        "train.csv: --group names the column 'user', which is not there. The columns are 'text', 'label'",
    ),
    "one group": (
        ("train", "group.csv", "--group", "user", *OUT),
        "group.csv: all 4 rows have the value 'u' in the column 'user', so they are one group, which cannot be split",
    ),
    "groups without a hold-out": (
        ("train", "train.csv", "--group", "text", "--validation", "test.csv", *OUT),
        "--group has no effect together with --validation, because it keeps rows together when rows of the "
        "training set are held out. Leave out one of the two.",
    ),
    "one label": (("train", "one.csv", *OUT), "one.csv, row 1, column 'label': all 2 rows have the label 'card'"),
    "labels once": (("train", "once.csv", *OUT), "once.csv: no row can be held out for validation, because each"),
    "empty text": (("train", "gap.csv", *OUT), "gap.csv, row 2, column 'text': the text is empty"),
    "unknown test label": (("train", "train.csv", "--test", "foreign.csv", *OUT), "foreign.csv, row 1"),
    "no number": (("train", "train.csv", "--kind", "regression", *OUT), "is not a finite number"),
    "no order": (("train", "train.csv", "--kind", "ordinal", *OUT), "so the labels' order is not known"),
    "wrong order": (
        ("train", "train.csv", "--kind", "ordinal", "--label-order", "card,login", *OUT),
        "'refund' is missing in --label-order",
    ),
    "no precision": (("train", "train.csv", "--abstain-at", "1.5", *OUT), "--abstain-at must be a share above 0"),
    "unknown pairs": (("train", "train.csv", "--pairs", "both", *OUT), "--pairs must be one of 'auto', 'joint', "),
    "unknown kind": (
        ("train", "train.csv", "--kind", "many", *OUT),
        "--kind must be one of 'auto', 'single', 'ordinal', 'multi', 'regression'. Got 'many' instead.",
    ),
    "a name too long": (("train", "x" * 300 + ".csv", *OUT), "the file cannot be read: File name too long"),
    "an encoder too long": (
        ("train", "train.csv", "--encoder", "x" * 300, "--out", "toy"),
        "is neither a folder nor a Hugging Face name",
    ),
    "unknown preset": (
        ("train", "train.csv", "--preset", "best", *OUT),
        "--preset must be one of 'default', 'few-shot', 'paper', 'light', 'auto'. Got 'best' instead.",
    ),
    "a loss for a light head": (
        ("train", "train.csv", "--preset", "auto", "--loss", "focal", *OUT),
        "--preset auto also trains a light head, which has no loss to choose. Got 'focal'. Leave out --loss",
    ),
    "texts without labels and one head": (
        ("train", "train.csv", "--unlabelled", "test.csv", *OUT),
        "--unlabelled is for --preset auto, in which a light head learns from the default head. The preset is default",
    ),
    "half a seed": (
        ("train", "train.csv", "--seed", "1.5", *OUT),
        "--seed must be a whole number from 0 to 4294967295. Got '1.5' instead.",
    ),
    "negative seed": (("train", "train.csv", "--seed=-1", *OUT), "4294967295. Got '-1' instead."),
    "no epochs": (
        ("compare", "train.csv", "--epochs", "0", *OUT),
        "--epochs must be a whole number of at least 1. Got '0' instead.",
    ),
    "share in words": (("train", "train.csv", "--abstain-at", "most", *OUT), "must be a number. Got 'most' instead."),
    "no time": (("serve", "--timeout", "0", "TASK"), "--timeout must be a number of at least 0.1. Got '0' instead."),
    "no out": (("train", "train.csv"), "Missing option '--out'"),
    "no file": (("train", *OUT), "Missing argument 'TRAIN'"),
    "unknown option": (("train", "train.csv", "--epochs", "3", *OUT), "No such option"),
    "unknown command": (("trian", "train.csv"), ", 'evaluate', 'serve', 'compare', 'cache'."),
    "foreign out": (("train", "train.csv", "--out", "foreign"), "foreign is not empty and was not written by"),
    "out is a file": (("train", "train.csv", "--out", "train.csv"), "train.csv is a file, not a folder for the task"),
    "out below a file": (("train", "train.csv", "--out", "train.csv/task"), "cannot write the task folder"),
    "no encoder": (("train", "train.csv", "--encoder", "./none", *OUT), "there is no encoder folder './none'"),
    "not an encoder": (("train", "train.csv", "--encoder", "foreign", *OUT), "foreign holds no config.json"),
    "not a name": (("train", "train.csv", "--encoder", "what is this?", *OUT), "'what is this?'"),
    "predict nothing": (("predict",), "Missing argument"),
    "above 1": (("predict", "TASK", "a", "--above", "1.5"), "--above must be a probability from 0 to 1. Got 1.5"),
    "above nan": (("predict", "TASK", "a", "--above", "nan"), "--above must be a probability from 0 to 1. Got nan"),
    "above in a pipe": (("predict", "TASK", "a", "--above", "0.5"), "--above chooses what a terminal shows, and"),
    "predict without texts": (("predict", "TASK"), "give texts to label either as arguments or with --input FILE"),
    "texts and input": (("predict", "TASK", "a text", "--input", "test.csv"), "--input FILE, not both"),
    "no task": (("predict", "nothing", "a text"), "must be a task folder, and 'nothing' is not a folder."),
    "texts without a task": (("predict", "a text"), "must be a task folder, and 'a text' is not a folder."),
    "a text before the task": (("predict", "a text", "TASK"), "must be a task folder, and 'a text' is not"),
    "not a task": (("predict", "foreign", "a text"), "foreign is not a task folder: it holds no task.json"),
    "corrupt task": (("predict", "corrupt", "a text"), "task.json is damaged: it is not JSON"),
    "corrupt weights": (("predict", "cut", "a text"), "head.safetensors is damaged or no safetensors file"),
    "same name": (("predict", "TASK", "other/toy", "a text"), "two task folders are named 'toy'"),
    "other encoder": (("predict", "TASK", "a text", "--encoder", "ENCODER"), "was trained with another encoder"),
    "missing input": (("predict", "TASK", "--input", "nothing.csv"), "nothing.csv: there is no such file"),
    "pairs for single": (
        ("predict", "TASK", "--input", "pairs.csv", "--text-pair", "text_pair"),
        "was trained on single texts, not pairs",
    ),
    "evaluate nothing": (("evaluate", "TASK"), "Missing argument 'DATA'"),
    "evaluate no task": (("evaluate", "nothing", "test.csv"), "there is no task folder nothing"),
    "evaluate no file": (("evaluate", "TASK", "nothing.csv"), "nothing.csv: there is no such file"),
    "evaluate unlabelled": (("evaluate", "TASK", "odd.csv", "--text", "a"), "there is no column 'label' or 'labels'"),
    "evaluate foreign label": (("evaluate", "TASK", "foreign.csv"), "the label 'x' does not occur in the training"),
    "evaluate pairs": (("evaluate", "TASK", "pairs.csv", "--text-pair", "text_pair"), "was trained on single texts"),
    "evaluate other encoder": (("evaluate", "TASK", "test.csv", "--encoder", "ENCODER"), "with another encoder"),
    "remove nothing": (("cache", "remove"), "give either the beginning of a fingerprint"),
    "remove both": (("cache", "remove", "ab", "--all"), "give either the beginning of a fingerprint"),
    "remove unknown": (("cache", "remove", "ab"), "no feature space starts with 'ab'"),
    "an option twice": (
        ("train", "train.csv", "--seed", "1", "--seed=2", *OUT),
        "--seed can be given only once. Got '1' and '2'. Leave out one of them.",
    ),
    "two label options": (
        ("train", "train.csv", "--label", "a", "--label", "b", *OUT),
        "--label can be given only once. Got 'a' and 'b'. Separate the names of several columns by commas.",
    ),
    "two inputs": (("predict", "TASK", "--input", "a.csv", "--input", "test.csv"), "--input can be given only once."),
    "misspelt option": (
        ("train", "train.csv", "--sede", "1", *OUT),
        "No such option: --sede. Did you mean '--seed'? The options are in: ytuning train --help",
    ),
    "misspelt value": (("train", "train.csv", "--kind", "singel", *OUT), "instead. Did you mean 'single'?"),
    "misspelt command": (("trian", "train.csv", *OUT), "'trian'"),
    "misspelt file": (("evaluate", "TASK", "tset.csv"), "tset.csv: there is no such file. Did you mean 'test.csv'"),
    "misspelt recipe": (("train", "train.csv", "--recipe", "foriegn.csv", *OUT), "Did you mean 'foreign.csv'"),
    "misspelt label texts": (("train", "train.csv", "--label-texts", "on.csv", *OUT), "Did you mean 'one.csv'"),
    "misspelt task": (("evaluate", "corupt", "test.csv"), "there is no task folder corupt. Did you mean 'corrupt'"),
    "a file as a task": (("evaluate", "test.csv", "TASK"), "test.csv is a file, not a task folder."),
    "a task as a file": (("evaluate", "TASK", "foreign"), "foreign: this is a folder. Give the name of a file in it."),
    "a pattern": (("evaluate", "TASK", "*.csv"), "*.csv: there is no such file. No file matches this pattern."),
    "a text with a dash": (
        ("predict", "TASK", "-5 degrees"),
        "No such option: -5. Put -- before texts that begin with a dash: ytuning predict TASK_DIR -- TEXT",
    ),
    "a text that is not UTF-8": (("predict", "TASK", "caf\udce9"), "text 1 of the command line is not UTF-8."),
    "a text that is a folder": (("predict", "TASK", "foreign"), "'foreign' is a folder but not a task. Leave it out;"),
    "columns of texts": (("predict", "TASK", "a", "--text", "b"), "--text and --text-pair name columns of a file."),
    "a dash among texts": (("predict", "TASK", "a", "-"), "the argument - reads all texts from the standard input."),
    "the standard input twice": (
        ("train", "-", "--test", "-", *OUT),
        "the standard input can be read for one file only. Got it for 2. Name the others.",
    ),
    "unknown cache command": (("cache", "clear"), "'clear'. The commands are 'list', 'verify', 'remove'."),
}  # fmt: skip


@pytest.fixture(scope="module")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def mistakes(files: Path, trained: Path) -> Path:
    """Everything that can be wrong with a file or folder."""
    contents = {
        "empty.csv": "",
        "odd.csv": "a,b\nx,y\n",
        "one.csv": "text,label\na,card\nb,card\n",
        "once.csv": "text,label\na,card\nb,login\n",
        "group.csv": "text,label,user\na,card,u\nb,card,u\nc,login,u\nd,login,u\n",
        "gap.csv": "text,label\na,card\n,card\n",
        "foreign.csv": "text,label\na,x\n",
        "numbers.csv": "text,label\na,0.5\nb,1.5\n",
        "pairs.csv": "text,text_pair,label\na,b,card\n",
        "rows.xlsx": "x",
    }
    for name, content in contents.items():
        (files / name).write_text(content)
    (files / "foreign").mkdir()
    (files / "foreign" / "thesis.txt").write_text("precious")
    for name in ("corrupt", "cut", "other/toy"):
        shutil.copytree(trained, files / name)
    (files / "corrupt" / "task.json").write_text("{")
    (files / "cut" / "head.safetensors").write_bytes(b"short")
    return files


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(
    name: str, run: Run, mistakes: Path, trained: Path, tiny_encoder: Path, other_encoder: Path
) -> None:
    arguments, expected = MISTAKES[name]
    given = [{"TASK": str(trained), "ENCODER": str(other_encoder)}.get(word, word) for word in arguments]
    if given[0] == "train" and "--encoder" not in given:
        given += ["--encoder", str(tiny_encoder)]
    assert expected in run(*given).mistake()
    assert not (mistakes / "new").exists()
    # With --quiet there is not even progress; --json changes nothing.
    if given[0] in ("train", "predict", "evaluate"):
        quiet = run(*given[:1], "--quiet", "--json", *given[1:])
        assert expected in quiet.mistake() and len(quiet.err.splitlines()) == 1


def test_a_mistake_is_not_surrounded_by_empty_lines(run: Run, mistakes: Path) -> None:
    assert run("train", "nothing.csv", *OUT).err.startswith("error: ")


def test_errors_that_are_not_the_users_exit_with_1(
    run: Run, files: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YTUNING_CACHE", str(files / "train.csv" / "store"))
    found = run("evaluate", trained, "test.csv", "--quiet")
    assert (found.status, found.out) == (1, "")
    assert found.err.startswith("error: cannot use the feature store") and len(found.err.splitlines()) == 1


def test_unforeseen_errors_keep_their_traceback(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.PRESETS, "default", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("train", "train.csv", "--out", "toy")


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


INTERRUPTED = """
import os, signal, sys
from ytuning import progress
from ytuning.cli import program as cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
step = progress.ProgressBar.step

def interrupting(self, stage, done, total, note=""):
    step(self, stage, done, total, note)
    if stage == "encode" and "ENCODING" in os.environ or (stage, done, note) == ("train", 40, ""):
        os.kill(os.getpid(), signal.SIG)

progress.ProgressBar.step = interrupting
cli.main()
"""


def outside(*arguments: object, code: str | None = None) -> Outcome:
    """The program in a process of its own."""
    program = ["-m", "ytuning"] if code is None else ["-c", code]
    command = [sys.executable, "-W", "error::UserWarning", *program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_version_is_told() -> None:
    assert outside("--version") == Outcome(0, f"ytuning {ytuning.__version__}\n", "")


def test_interrupt_while_encoding(files: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODING", "1")
    code = INTERRUPTED.replace("signal.SIG)", "signal.SIGINT)")
    found = outside("train", "train.csv", "--encoder", tiny_encoder, "--out", "toy", code=code)
    assert (found.status, found.out) == (1, "")
    message = "error: Interrupted. Finished work is kept; run the same command again to resume."
    assert found.err.strip().endswith(message) and "Traceback" not in found.err
    assert not (files / "toy").exists()


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_interrupt_while_training_saves_the_best_head_so_far(
    signal: str, files: Path, run: Run, tiny_encoder: Path
) -> None:
    code = INTERRUPTED.replace("signal.SIG)", f"signal.{signal})")
    found = outside("train", "train.csv", "--encoder", tiny_encoder, "--out", "toy", "--json", code=code)
    assert found.status == 1
    assert "Interrupted. The best head so far (step 40, validation accuracy" in found.err
    assert "is saved in toy" in found.err and "Traceback" not in found.err
    assert found.json["interrupted"] is True
    assert load_task(files / "toy").training["interrupted"] is True
    assert run("predict", "toy", "my card").status == 0


def test_what_was_interrupted_does_not_replace_a_finished_task(
    files: Path, run: Run, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("train", "train.csv", "--encoder", tiny_encoder, "--out", "tasks/toy", "--json", "--quiet")
    assert run(*start).status == 0
    finished = (files / "tasks/toy/head.safetensors").read_bytes()
    real = choose_recipe.train_cheapest

    def interrupted(*arguments: Any, **options: Any) -> Any:
        trained = real(*arguments, **options)
        return replace(
            trained,
            fit=replace(trained.fit, interrupted=True),
            task=replace(trained.task, training={**trained.task.training, "interrupted": True}),
        )

    monkeypatch.setattr(choose_recipe, "train_cheapest", interrupted)
    (files / "tasks/toy/page.html").write_text("of the finished task")
    for _ in range(2):  # the second one replaces what the first has saved
        found = run(*start, "--seed", "1", "--report", "tasks/toy/page.html")
        assert found.status == 1 and found.json["task_dir"] == str(files / "tasks" / "toy-interrupted")
        assert found.json["report"] == str(files / "tasks" / "toy-interrupted" / "page.html")
        assert "The finished task in tasks/toy is kept." in found.err
    assert (files / "tasks/toy/head.safetensors").read_bytes() == finished
    assert (files / "tasks/toy/page.html").read_text() == "of the finished task"
    assert "<html" in (files / "tasks/toy-interrupted/page.html").read_text()
    assert load_task(files / "tasks" / "toy-interrupted").training["interrupted"] is True
    (files / "page.html").write_text("of the finished task")
    assert run(*start, "--report", "page.html").json["report"] == "page-interrupted.html"
    assert (files / "page.html").read_text() == "of the finished task"
    found = run(*start[:5], "tasks/toy-interrupted", *start[6:])
    assert found.status == 1 and found.json["task_dir"] == "tasks/toy-interrupted"


# --- in a process of its own ----------------------------------------------------------------------------------------


def test_the_whole_way_with_the_default_preset(files: Path, run: Run, tiny_encoder: Path) -> None:
    trained = outside("train", "train.csv", "--test", "test.csv", "--encoder", tiny_encoder, "--out", "toy", "--json")
    assert trained.status == 0, trained.err
    assert trained.json["metrics"]["test"]["accuracy"] > 0.5
    predicted = run("predict", "toy", "--input", "test.csv", "--quiet")
    assert (predicted.status, predicted.err) == (0, "")
    lines = [json.loads(line) for line in predicted.out.splitlines()]
    truth = [line.rsplit(",", 1)[1] for line in (files / "test.csv").read_text().splitlines()[1:]]
    right = sum(line["label"] == label for line, label in zip(lines, truth, strict=True))
    assert right / 20 == pytest.approx(trained.json["metrics"]["test"]["accuracy"])


def test_a_mistake_in_a_process_of_its_own(files: Path) -> None:
    assert "No such command 'trian'" in outside("trian", "train.csv").mistake()


def test_a_reader_that_goes_away_is_no_traceback(files: Path, trained: Path) -> None:
    (files / "many.csv").write_text("text\n" + "my card\n" * 3000)
    command = [sys.executable, "-m", "ytuning", "predict", str(trained), "--input", "many.csv", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stderr is not None
        assert json.loads(program.stdout.readline())["text"] == "my card"
        program.stdout.close()
        errors = program.stderr.read()
        assert program.wait(60) == 1
    assert errors == ""

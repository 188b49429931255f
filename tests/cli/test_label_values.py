"""Values that are labels, in the commands: one name from every file, and what is told or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import Run, run, write_csv
from ytuning import YTuningClassifier
from ytuning.tasks.task import load_task

__all__ = ["run"]  # a fixture

Write = Callable[[str, Sequence[Any]], Path]


@pytest.fixture
def write(tmp_path: Path, toy_rows: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of 60 texts with labels in place of those that they were made for, in the folder of work."""
    monkeypatch.chdir(tmp_path)
    texts, names = toy_rows[0][:60], toy_rows[1][:60]

    def write(name: str, labels: Sequence[Any]) -> Path:
        cells = [labels[("card", "login", "refund").index(label)] for label in names]
        if name.endswith(".csv"):
            return write_csv(tmp_path / name, texts, cells)
        rows = [json.dumps({"text": text, "label": cell}) + "\n" for text, cell in zip(texts, cells, strict=True)]
        (tmp_path / name).write_text("".join(rows))
        return tmp_path / name

    return write


def test_one_value_is_one_label_in_training_and_evaluation(run: Run, write: Write, tiny_encoder: Path) -> None:
    write("train.csv", ["1.0", "2", "3.0"])
    trained = run("train", "train.csv", "--encoder", tiny_encoder, "--out", "t", "--json")
    assert trained.status == 0
    assert "train.csv: these labels are read in another form: " in trained.err
    assert "'1.0' as '1'" in trained.err and "'3.0' as '3'" in trained.err
    assert load_task("t").target.names == ("1", "2", "3")
    for labels in ([1, 2, 3], [1.0, 2.0, "3.0"]):
        write("test.jsonl", labels)
        judged = run("evaluate", "t", "test.jsonl", "--json")
        assert judged.status == 0 and set(judged.json["labels"]) == {"1", "2", "3"}
    added = run("add-label", "t", "2.0", "--examples", "train.csv", "--out", "more")
    assert added.mistake() == "the task 't' has the label '2' already. Give another name"


def test_an_order_has_the_names_of_the_rows(run: Run, write: Write, tiny_encoder: Path) -> None:
    write("train.csv", ["1.0", "2.0", "high"])
    order = ("train", "train.csv", "--kind", "ordinal", "--encoder", tiny_encoder, "--out", "t", "--label-order")
    assert run(*order, "2.0,1,high").status == 0
    assert load_task("t").target.names == ("2", "1", "high")
    refused = run(*order, "2,1,hihg")
    assert refused.status == 2
    assert refused.err.endswith("'high' is missing in --label-order. Did you mean 'hihg'?\n")


def test_a_fitted_estimator_knows_the_labels_of_files(
    run: Run, write: Write, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]
) -> None:
    texts, truth = toy_rows[0][:60], [label == "card" for label in toy_rows[1][:60]]
    model = YTuningClassifier(str(tiny_encoder), class_weight={"true": 2.0}).fit(texts, truth)
    assert model.classes_.tolist() == [False, True]
    model.save("t")
    for name, labels in (("a.jsonl", [True, False, False]), ("b.csv", ["True", "FALSE", "false"])):
        write(name, labels)
        judged = run("evaluate", "t", name, "--json")
        assert judged.status == 0 and set(judged.json["labels"]) == {"true", "false"}
    write("c.jsonl", [1, 0, 0])
    message = run("evaluate", "t", "c.jsonl").mistake()
    assert "the label '0' does not occur in the training set" in message or "the label '1'" in message
    assert message.endswith("The 2 labels are 'false', 'true'.")


def test_a_label_that_looks_like_a_known_one_is_told_with_its_code_points(
    run: Run, write: Write, tiny_encoder: Path
) -> None:
    write("train.csv", ["card", "login", "refund"])
    assert run("train", "train.csv", "--encoder", tiny_encoder, "--out", "t").status == 0
    write("test.csv", ["c\u0430rd", "login", "refund\u200b"])
    judged = run("evaluate", "t", "test.csv")
    assert judged.status == 2
    assert "test.csv: these labels are read in another form: 'refund\\u200b' as 'refund'." in judged.err
    assert "Did you mean 'card'? They differ in '\u0430' (U+0430 CYRILLIC SMALL LETTER A)." in judged.err


def test_the_names_of_places(run: Run, write: Write, tiny_encoder: Path, toy_rows: tuple[list[str], list[str]]) -> None:
    write("train.jsonl", [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    train = ("train", "train.jsonl", "--encoder", tiny_encoder, "--out", "t")
    assert "Name the labels in their order with --label-names A,B,..., or write" in run(*train).mistake()
    names = ("--label-names", "card,login,money")
    assert run(*train, *names).status == 0
    assert load_task("t").target.names == ("card", "login", "money")
    assert "--label-names" in run("evaluate", "t", "train.jsonl").mistake()
    judged = run("evaluate", "t", "train.jsonl", *names, "--json")
    assert judged.status == 0
    assert judged.json["labels"]["money"]["rows"] == toy_rows[1][:60].count("refund")

"""Reports, and how they are printed."""

from __future__ import annotations

import io
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from ytuning.data.kinds import Confusion, SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.evaluation.evaluate import evaluate
from ytuning.reports.console import SHOWN_LABELS, print_report
from ytuning.training.calibration import Calibration

# true     0 0 0 1 1 2      right: 4 of 6
# predict  0 0 1 1 0 2
TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 2])


def names(*labels: str) -> SingleLabel:
    return SingleLabel(LabelSet(labels))


def logits(predicted: np.ndarray, labels: int) -> np.ndarray:
    """(rows, labels): a probability of 0.8 for the predicted label, the rest shared."""
    values = np.full((len(predicted), labels), np.log(0.2 / (labels - 1)))
    values[np.arange(len(predicted)), predicted] = np.log(0.8)
    return values


def test_report_names_labels() -> None:
    target = names("card", "login", "refund")
    report = evaluate(target, Calibration(), TRUTH, logits(PREDICTED, 3))
    assert (report.kind, report.rows) == ("single", 6)
    assert report.metrics == target.metrics(TRUTH, target.answers(logits(PREDICTED, 3)))
    assert list(report.labels) == ["card", "login", "refund"]
    assert report.labels["login"]["f1"] == pytest.approx(0.5)
    assert report.confusions[0] == Confusion("card", "login", 1)
    assert asdict(report)["confusions"][0] == {"true": "card", "predicted": "login", "rows": 1}


def printed(
    labels: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray, title: str = "tickets", **options: object
) -> str:
    report = evaluate(names(*labels), Calibration(), truth, logits(predicted, len(labels)))
    console = Console(file=io.StringIO(), width=120)
    print_report(console, report, title, **options)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_printed_report_shows_figures_confusions_and_seconds() -> None:
    text = printed(("card", "login", "refund"), TRUTH, PREDICTED, seconds={"train": 1.234})
    for shown in ("tickets", "6 rows", "0.6667", "precision", "Most frequent mistakes", "train", "1.23"):
        assert shown in text
    assert "Most frequent mistakes" not in printed(("a", "b", "c"), TRUTH, TRUTH)


def test_printed_report_shows_names_exactly() -> None:
    labels = ("[bold]", "a [/x] b", "[link=file]c")
    text = printed(labels, TRUTH, PREDICTED, title="[red] on data[1].csv")
    for shown in (*labels, "[red] on data[1].csv"):
        assert shown in text


def test_printed_report_of_many_labels_shows_the_worst() -> None:
    count = SHOWN_LABELS + 5
    truth = np.arange(count)
    predicted = np.where(truth == 7, 8, truth)
    text = printed(tuple(f"label-{number:02}" for number in range(count)), truth, predicted)
    assert f"The {SHOWN_LABELS} of {count} labels with the lowest F1" in text
    assert text.index("label-07") < text.index("label-08") < text.index("label-00")
    assert f"label-{count - 1:02}" not in text

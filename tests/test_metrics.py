"""Metrics against figures worked out by hand."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from ytuning.evaluation import Confusion, evaluate
from ytuning.labels import LabelSet
from ytuning.metrics import expected_calibration_error, label_figures, single_label_metrics, worst_confusions
from ytuning.report import SHOWN_LABELS, print_report, report_to_json

# true     0 0 0 1 1 2      right: 4 of 6
# predict  0 0 1 1 0 2
TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 2])


def probabilities(predicted: np.ndarray, labels: int, confidence: float = 0.8) -> np.ndarray:
    """(rows, labels): ``confidence`` on the predicted label, the rest shared."""
    values = np.full((len(predicted), labels), (1 - confidence) / (labels - 1))
    values[np.arange(len(predicted)), predicted] = confidence
    return values


def test_single_label_metrics() -> None:
    found = single_label_metrics(TRUTH, probabilities(PREDICTED, 3))
    assert set(found) == {"accuracy", "macro_f1", "micro_f1", "matthews", "ece"}
    assert all(type(value) is float for value in found.values())
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["micro_f1"] == pytest.approx(4 / 6)
    # F1 of label 0: 2 right of 3 and 3 -> 2/3; of label 1: 1 right of 2 and 2 -> 1/2; of label 2: 1.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # Matthews with several labels (Gorodkin), t and p being rows of a label in truth and prediction:
    # (right * n - sum(t * p)) / sqrt((n^2 - sum(p^2)) * (n^2 - sum(t^2)))
    assert found["matthews"] == pytest.approx((4 * 6 - 14) / math.sqrt((36 - 14) * (36 - 14)))
    assert found["ece"] == pytest.approx(0.8 - 4 / 6)


def test_macro_f1_leaves_out_labels_that_occur_nowhere() -> None:
    assert single_label_metrics(TRUTH, probabilities(PREDICTED, 9))["macro_f1"] == pytest.approx(
        (2 / 3 + 1 / 2 + 1) / 3
    )


def test_rows_of_one_label_only() -> None:
    truth = np.zeros(4, np.int64)
    right = single_label_metrics(truth, probabilities(truth, 2))
    assert (right["accuracy"], right["macro_f1"]) == (1.0, 1.0)
    assert math.isfinite(right["matthews"])
    assert single_label_metrics(truth, probabilities(truth + 1, 2))["accuracy"] == 0.0


def test_calibration_error_against_a_loop() -> None:
    chooser = np.random.default_rng(0)
    values = chooser.dirichlet(np.ones(4), 200)
    values[0] = [1, 0, 0, 0]  # confidence 1 belongs to the last bin
    truth = chooser.integers(4, size=200)
    total = 0.0
    for low in range(15):
        rows = [
            row
            for row in range(200)
            if low / 15 <= values[row].max() < (low + 1) / 15 or (low == 14 and values[row].max() == 1)
        ]
        if rows:
            confidence = sum(values[row].max() for row in rows) / len(rows)
            accuracy = sum(values[row].argmax() == truth[row] for row in rows) / len(rows)
            total += len(rows) / 200 * abs(confidence - accuracy)
    assert expected_calibration_error(truth, values) == pytest.approx(total)


def test_calibration_error_of_one_bin_is_the_overall_gap() -> None:
    values = probabilities(PREDICTED, 3, confidence=0.6)
    assert expected_calibration_error(TRUTH, values, bins=1) == pytest.approx(abs(0.6 - 4 / 6))


def test_label_figures() -> None:
    figures = label_figures(TRUTH, PREDICTED, 4)
    assert figures[0] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "rows": 3})
    assert figures[1] == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "rows": 2})
    assert figures[2] == {"precision": 1, "recall": 1, "f1": 1, "rows": 1}
    assert figures[3] == {"precision": 0, "recall": 0, "f1": 0, "rows": 0}


def test_worst_confusions() -> None:
    truth = np.array([0, 0, 1, 2, 2, 2, 1])
    predicted = np.array([0, 1, 2, 0, 0, 0, 2])
    assert worst_confusions(truth, predicted, 3) == [(2, 0, 3), (1, 2, 2), (0, 1, 1)]
    assert worst_confusions(truth, predicted, 3, most=1) == [(2, 0, 3)]
    assert worst_confusions(truth, truth, 3) == []


def test_report_names_labels() -> None:
    report = evaluate(LabelSet(("card", "login", "refund")), TRUTH, probabilities(PREDICTED, 3), confusions=1)
    assert report.rows == 6
    assert report.metrics == single_label_metrics(TRUTH, probabilities(PREDICTED, 3))
    assert list(report.labels) == ["card", "login", "refund"]
    assert report.labels["login"]["f1"] == pytest.approx(0.5)
    assert report.confusions == [Confusion("card", "login", 1)]
    assert report_to_json(report)["confusions"] == [{"true": "card", "predicted": "login", "rows": 1}]


def printed(
    labels: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray, title: str = "tickets", **options: object
) -> str:
    report = evaluate(LabelSet(labels), truth, probabilities(predicted, len(labels)))
    console = Console(file=io.StringIO(), width=120)
    print_report(console, report, title, **options)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_printed_report_shows_figures_confusions_and_seconds() -> None:
    text = printed(("card", "login", "refund"), TRUTH, PREDICTED, seconds={"train": 1.234})
    for shown in ("tickets", "6 rows", "0.6667", "precision", "worst confusions", "train", "1.23"):
        assert shown in text
    assert "worst confusions" not in printed(("a", "b", "c"), TRUTH, TRUTH)


def test_printed_report_shows_names_exactly() -> None:
    names = ("[bold]", "a [/x] b", "[link=file]c")
    text = printed(names, TRUTH, PREDICTED, title="[red] on data[1].csv")
    for shown in (*names, "[red] on data[1].csv"):
        assert shown in text


def test_printed_report_of_many_labels_shows_the_worst() -> None:
    count = SHOWN_LABELS + 5
    truth = np.arange(count)
    predicted = np.where(truth == 7, 8, truth)
    text = printed(tuple(f"label-{number:02}" for number in range(count)), truth, predicted)
    assert f"the {SHOWN_LABELS} of {count} labels with the lowest F1" in text
    assert text.index("label-07") < text.index("label-08") < text.index("label-00")
    assert f"label-{count - 1:02}" not in text

"""Metrics against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tests.kinds import kind_of
from ytuning.data.kinds import Answers
from ytuning.data.kinds.metrics import LabelFigures, expected_calibration_error, reliability

# true     0 0 0 1 1 2      right: 4 of 6
# predict  0 0 1 1 0 2
TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 2])


def probabilities(predicted: np.ndarray, labels: int, confidence: float = 0.8) -> np.ndarray:
    """(rows, labels): ``confidence`` on the predicted label, the rest shared."""
    values = np.full((len(predicted), labels), (1 - confidence) / (labels - 1))
    values[np.arange(len(predicted)), predicted] = confidence
    return values


def single_label_metrics(
    truth: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray | None = None
) -> dict[str, float]:
    values = probabilities.argmax(1) if predicted is None else predicted
    return kind_of("single", probabilities.shape[1]).metrics(truth, Answers(values, probabilities))


def ordinal_metrics(truth: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return kind_of("ordinal", probabilities.shape[1]).metrics(truth, Answers(predicted, probabilities))


def multi_label_metrics(truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    return kind_of("multi", probabilities.shape[1]).metrics(truth, Answers(predicted, probabilities))


def regression_metrics(truth: np.ndarray, values: np.ndarray) -> dict[str, float]:
    return kind_of("unbounded").metrics(truth, Answers(values, np.empty((len(values), 0))))


def label_figures(truth: np.ndarray, predicted: np.ndarray, labels: int) -> list[LabelFigures]:
    return kind_of("single", labels).label_figures(truth, predicted)


def multi_label_figures(truth: np.ndarray, predicted: np.ndarray) -> list[LabelFigures]:
    return kind_of("multi", truth.shape[1]).label_figures(truth, predicted)


def worst_confusions(
    truth: np.ndarray, predicted: np.ndarray, labels: int, most: int = 5
) -> list[tuple[int, int, int]]:
    confusions = kind_of("single", labels).confusions(truth, predicted, most)
    return [(int(each.true[-1]), int(each.predicted[-1]), each.rows) for each in confusions]


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


@pytest.mark.parametrize("abstained", [0.0, 0.3])
def test_single_label_metrics_are_scikit_learns(abstained: float) -> None:
    chooser = np.random.default_rng(0)
    truth = np.minimum(chooser.geometric(0.2, 300) - 1, 20)
    predicted = np.where(chooser.random(300) < 0.6, truth, chooser.integers(25, size=300))
    predicted[chooser.random(300) < abstained] = -1
    found = single_label_metrics(truth, probabilities(truth, 30), predicted)
    labels = np.union1d(truth, predicted[predicted >= 0])
    for average in ("macro", "micro"):
        expected = sklearn.metrics.f1_score(truth, predicted, labels=labels, average=average, zero_division=0)
        assert found[f"{average}_f1"] == expected
    assert found["accuracy"] == sklearn.metrics.accuracy_score(truth, predicted)
    assert found["matthews"] == sklearn.metrics.matthews_corrcoef(truth, predicted)
    columns = sklearn.metrics.precision_recall_fscore_support(truth, predicted, labels=np.arange(30), zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "rows"), columns, strict=True):
        assert [figures[name] for figures in label_figures(truth, predicted, 30)] == column.tolist()


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


def test_prediction_that_is_not_the_most_probable() -> None:
    found = single_label_metrics(TRUTH, probabilities(TRUTH, 3), PREDICTED)
    expected = single_label_metrics(TRUTH, probabilities(PREDICTED, 3))
    assert found == expected | {"ece": pytest.approx(1 - 0.8)}
    assert single_label_metrics(TRUTH, probabilities(PREDICTED, 3), PREDICTED) == expected


def test_abstained_rows() -> None:
    predicted = np.array([0, -1, 1, 1, 0, -1])  # 2 of 4 answered rows are right
    found = single_label_metrics(TRUTH, probabilities(PREDICTED, 3), predicted)
    assert found["coverage"] == pytest.approx(4 / 6)
    assert found["precision_answered"] == pytest.approx(2 / 4)
    assert found["accuracy"] == pytest.approx(2 / 6)
    # F1 of label 0: 1 right of 3 and 2; of label 1: 1 right of 2 and 2; of label 2: none; -1 is no label.
    assert found["macro_f1"] == pytest.approx((2 / 5 + 1 / 2 + 0) / 3)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (6 + 4))
    # Truth has 3, 2 and 1 rows of the labels, prediction 2, 2 and 0, and 2 abstained.
    assert found["matthews"] == pytest.approx((2 * 6 - 10) / math.sqrt((36 - 12) * (36 - 14)))


def test_all_rows_abstained() -> None:
    found = single_label_metrics(TRUTH, probabilities(PREDICTED, 3), np.full(6, -1))
    ece = expected_calibration_error(TRUTH, probabilities(PREDICTED, 3))
    zero = dict.fromkeys(("accuracy", "macro_f1", "micro_f1", "matthews", "coverage", "precision_answered"), 0.0)
    assert found == zero | {"ece": ece}


def test_ordinal_metrics() -> None:
    truth, predicted = np.array([0, 1, 2, 3, 3]), np.array([0, 2, 2, 1, 3])
    values = probabilities(np.array([0, 1, 2, 3, 0]), 4)
    found = ordinal_metrics(truth, values, predicted)
    single = single_label_metrics(truth, values, predicted)
    assert found == single | {"mae": found["mae"], "spearman": found["spearman"]}
    assert found["mae"] == pytest.approx((1 + 2) / 5)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(truth, predicted).statistic)


def test_ordinal_distances_are_of_answered_rows() -> None:
    truth, predicted = np.array([0, 1, 2, 3, 3]), np.array([1, 3, 2, -1, -1])
    found = ordinal_metrics(truth, probabilities(truth, 4), predicted)
    assert (found["mae"], found["coverage"]) == (1.0, 0.6)
    assert found["spearman"] == pytest.approx(0.5)  # of the ranks 1, 2, 3 and 1, 3, 2
    nothing = ordinal_metrics(truth, probabilities(truth, 4), np.full(5, -1))
    assert (nothing["mae"], nothing["spearman"], nothing["accuracy"]) == (3.0, 0.0, 0.0)


def multi_example(labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chooser = np.random.default_rng(labels)
    values = chooser.random((60, labels))
    truth = chooser.random((60, labels)) < values
    truth[:5] = False  # rows without labels, 2 of them right
    values[:2] *= 0.5
    return truth, values >= 0.5, values


def test_multi_label_metrics_against_scikit_learn() -> None:
    truth, predicted, values = multi_example(4)
    predicted[:, 2] = truth[:, 2] = False  # a label that occurs nowhere
    predicted[:, 3] = False  # one that is never given
    found = multi_label_metrics(truth, predicted, values)
    assert all(type(value) is float for value in found.values())
    assert list(found) == ["accuracy", "macro_f1", "micro_f1", "ece"]
    f1 = sklearn.metrics.f1_score(truth, predicted, average=None, zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1[[0, 1, 3]].mean())
    assert found["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="micro"))
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert 0 < found["accuracy"] < 1


def test_calibration_error_of_several_labels_against_a_loop() -> None:
    truth, predicted, values = multi_example(3)
    values[7, 1] = 1.0
    gaps = [0.0] * 15
    for there, value in zip(truth.ravel().tolist(), values.ravel().tolist(), strict=True):
        gaps[min(14, int(15 * value))] += there - value
    found = multi_label_metrics(truth, predicted, values)["ece"]
    assert found == pytest.approx(sum(map(abs, gaps)) / truth.size)


def test_multi_label_metrics_of_a_single_label() -> None:
    truth, predicted = np.array([[True], [False], [True]]), np.array([[True], [True], [True]])
    found = multi_label_metrics(truth, predicted, predicted.astype(float))
    assert found == pytest.approx({"accuracy": 2 / 3, "macro_f1": 0.8, "micro_f1": 0.8, "ece": 1 / 3})
    assert multi_label_figures(truth, predicted) == [
        pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "rows": 2})
    ]


@pytest.mark.parametrize("rows", [1, 4])
def test_multi_label_metrics_of_empty_rows(rows: int) -> None:
    nothing, everything = np.zeros((rows, 3), bool), np.ones((rows, 3), bool)
    zero = {"macro_f1": 0.0, "micro_f1": 0.0, "ece": 0.0}
    assert multi_label_metrics(nothing, nothing, nothing.astype(float)) == zero | {"accuracy": 1.0}
    wrong = zero | {"accuracy": 0.0, "ece": 1.0}
    assert multi_label_metrics(everything, nothing, nothing.astype(float)) == wrong
    assert multi_label_metrics(nothing, everything, everything.astype(float)) == wrong


def test_multi_label_figures_against_scikit_learn() -> None:
    truth, predicted, _ = multi_example(4)
    predicted[:, 2] = truth[:, 2] = False
    predicted[:, 3] = False
    expected = sklearn.metrics.precision_recall_fscore_support(truth, predicted, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert [figures[name] for figures in multi_label_figures(truth, predicted)] == pytest.approx(column)


def test_regression_metrics_against_scipy() -> None:
    chooser = np.random.default_rng(0)
    truth = chooser.integers(6, size=40).astype(np.float32)  # with ties
    values = truth.astype(np.float64) ** 3 + chooser.normal(size=40)
    found = regression_metrics(truth, values)
    assert all(type(value) is float for value in found.values())
    assert found == pytest.approx(
        {
            "pearson": scipy.stats.pearsonr(truth, values).statistic,
            "spearman": scipy.stats.spearmanr(truth, values).statistic,
            "mae": sklearn.metrics.mean_absolute_error(truth, values),
            "rmse": sklearn.metrics.root_mean_squared_error(truth, values),
        }
    )


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_correlations_know_no_scale(scale: float) -> None:
    found = regression_metrics(np.array([1.0, 2.0, 3.0]), scale * np.array([3.0, 2.5, 0.0]))
    assert found["pearson"] == pytest.approx(-3 / math.sqrt(2 * 31 / 6))
    assert found["spearman"] == pytest.approx(-1)


@pytest.mark.parametrize("rows", [1, 7])
def test_correlations_of_constant_numbers_are_0(rows: int) -> None:
    constant, rising = np.full(rows, 0.1), np.arange(rows) + 0.6  # the mean of seven 0.1 is not 0.1
    for truth, values in ((constant, rising), (rising, constant), (constant, constant)):
        found = regression_metrics(truth, values)
        assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
        assert found["mae"] == pytest.approx(np.mean(np.abs(truth - values)))


def test_reliability() -> None:
    values = np.array([[0.9, 0.1], [0.08, 0.92], [0.45, 0.55], [0.0, 1.0]])
    points = reliability(np.array([0, 0, 1, 1]), values, bins=10)
    assert len(points) == 2
    assert points[0] == pytest.approx((0.55, 1.0, 1))
    assert points[1] == pytest.approx((2.82 / 3, 2 / 3, 3))
    assert [tuple(map(type, point)) for point in points] == [(float, float, int)] * 2


def test_reliability_is_what_the_calibration_error_sums() -> None:
    chooser = np.random.default_rng(1)
    values, truth = chooser.dirichlet(np.ones(3), 100), chooser.integers(3, size=100)
    points = reliability(truth, values)
    assert sum(rows for *_, rows in points) == 100
    assert sum(rows * abs(confidence - accuracy) for confidence, accuracy, rows in points) / 100 == pytest.approx(
        expected_calibration_error(truth, values)
    )


def test_reliability_of_several_labels_a_row_is_of_decisions() -> None:
    values, truth = np.array([[0.95, 0.1], [0.05, 0.97]]), np.array([[1, 0], [1, 1]])
    points = reliability(truth, values, bins=5)
    assert points == [pytest.approx((0.075, 0.5, 2)), pytest.approx((0.96, 1.0, 2))]


def test_label_figures() -> None:
    figures = label_figures(TRUTH, PREDICTED, 4)
    assert figures[0] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "rows": 3})
    assert figures[1] == pytest.approx({"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "rows": 2})
    assert figures[2] == {"precision": 1, "recall": 1, "f1": 1, "rows": 1}
    assert figures[3] == {"precision": 0, "recall": 0, "f1": 0, "rows": 0}


def test_abstained_rows_are_no_label_and_no_confusion() -> None:
    predicted = np.array([0, -1, 1, 1, 0, -1])
    figures = label_figures(TRUTH, predicted, 3)
    assert figures[0] == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "rows": 3})
    assert figures[2] == {"precision": 0, "recall": 0, "f1": 0, "rows": 1}
    assert worst_confusions(TRUTH, predicted, 3) == [(0, 1, 1), (1, 0, 1)]


def test_worst_confusions() -> None:
    truth = np.array([0, 0, 1, 2, 2, 2, 1])
    predicted = np.array([0, 1, 2, 0, 0, 0, 2])
    assert worst_confusions(truth, predicted, 3) == [(2, 0, 3), (1, 2, 2), (0, 1, 1)]
    assert worst_confusions(truth, predicted, 3, most=1) == [(2, 0, 3)]
    assert worst_confusions(truth, truth, 3) == []

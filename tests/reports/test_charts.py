"""What a report draws."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kinds import kind_of
from ytuning.reports.charts import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Axis,
    Chart,
    calibration_figure,
    confusion,
    learning_figures,
    residual_figure,
    scatter_figure,
)
from ytuning.training.fit import Validation


def check_within(figure: Chart) -> None:
    """Everything lies between the axes."""
    for _, corners in figure.lines:
        assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in corners)
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y, *_ in figure.dots)
    for left, top, width, height, _ in figure.bars:
        assert left >= LEFT and left + width <= RIGHT and top >= TOP and width > 0 and height >= 0
        assert top + height == pytest.approx(BOTTOM)
    assert all(len(row) == len(figure.columns) for row in figure.rows)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0, 640, ["0", "200", "400", "600"]),
        (-3, 3, ["-2", "0", "2"]),
        (0.911, 0.934, ["0.915", "0.92", "0.925", "0.93"]),
        (0, 0.003, ["0", "0.001", "0.002", "0.003"]),
    ],
)
def test_ticks_are_round_and_in_place(low: float, high: float, ticks: list[str]) -> None:
    axis = Axis("x", low, high, 100, 300)
    assert [text for _, text in axis.ticks] == ticks
    for place, text in axis.ticks:
        assert place == pytest.approx(100 + 200 * (float(text) - low) / (high - low), abs=0.06)
    assert (axis.place(low - 1), axis.place(high + 1)) == (100, 300)


@pytest.mark.parametrize(
    ("low", "high", "end", "ticks"),
    [
        (1.2, 1400, 800, ["2", "5", "10", "20", "50", "100", "200", "500", "1,000"]),
        (0.00009, 0.11, 400, ["0.0001", "0.001", "0.01", "0.1"]),
        (0.0031, 0.0034, 400, ["0.0031", "0.0032", "0.0033", "0.0034"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, end: float, ticks: list[str]) -> None:
    axis = Axis("x", low, high, 100, end, logarithmic=True)
    assert [text for _, text in axis.ticks] == ticks
    assert axis.place((low * high) ** 0.5) == pytest.approx((100 + end) / 2, abs=0.06)
    assert (axis.place(low / 2), axis.place(high * 2)) == (100, end)


def test_ticks_of_words() -> None:
    assert Axis("x", -0.5, 1.5, 0, 200, words=("a", "b")).ticks == [(50, "a"), (150, "b")]


def test_calibration() -> None:
    figure = calibration_figure(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0, 1]]))
    check_within(figure)
    assert figure.rows == [("0.6000", "1.0000", "1"), ("0.9000", "0.5000", "2"), ("1.0000", "1.0000", "1")]
    assert figure.columns[2] == "rows" and "50% at 90%" in figure.summary
    tallest = max(figure.bars, key=lambda bar: bar[3])
    assert tallest[4] == "2 rows" and all(bar[3] == pytest.approx(tallest[3] / 2, abs=0.1) for bar in figure.bars[::2])


def test_calibration_of_several_labels_is_of_decisions() -> None:
    truth = np.array([[1, 0], [0, 0]])
    figure = calibration_figure(truth, np.array([[0.9, 0.2], [0.21, 0.22]]))
    check_within(figure)
    assert figure.rows == [("0.2100", "0.0000", "3"), ("0.9000", "1.0000", "1")] and figure.columns[2] == "decisions"


def test_one_row_can_be_drawn() -> None:
    check_within(calibration_figure(np.array([0]), np.array([[1.0, 0.0]])))
    check_within(scatter_figure(np.array([2.0]), np.array([2.0])))
    check_within(residual_figure(np.array([2.0]), np.array([2.0])))
    for figure in learning_figures(kind_of("single"), [Validation(30, 0.0, 1.0, 0.0)], 0):
        check_within(figure)


def test_a_score_that_never_changes_has_a_narrow_axis() -> None:
    history = [Validation(step, 0.1, 1.0, 0.0) for step in (30, 60)]
    axis = learning_figures(kind_of("single"), history, 1)[0].y
    assert (axis.low, axis.high) == pytest.approx((0.95, 1.05))


def test_learning() -> None:
    history = [Validation(10, 2.0, -0.5, 0.1), Validation(20, 1.0, -0.3, 0.1), Validation(30, 1.5, -0.35, 0.1)]
    score, loss = learning_figures(kind_of("ordinal"), history, 1)
    for figure in (score, loss):
        check_within(figure)
        assert [dot[2] for dot in figure.dots] == ["main", "chosen", "main"]
        assert figure.marks[0][1] == figure.dots[1][0] and [row[3] for row in figure.rows] == ["", "chosen", ""]
    assert score.title == "Validation mean absolute error" and score.rows[0] == ("10", "0.5000", "0.1000", "")
    assert score.dots[0][1] < score.dots[1][1], "an error that falls is drawn so"
    assert "Step 20 was chosen with 1.0000" in loss.summary
    assert sum(name == "error" for name, _ in score.lines) == 3 and len(loss.lines) == 1


def test_numbers() -> None:
    chooser = np.random.default_rng(0)
    truth = chooser.uniform(0, 5, 4000)
    values = truth + chooser.normal(0, 0.5, 4000) + 0.25
    figure = scatter_figure(truth, values)
    check_within(figure)
    assert len(figure.dots) == MOST_POINTS and len(figure.rows) == 5
    assert [row[1] for row in figure.rows] == ["800"] * 5
    assert np.mean([float(row[3]) for row in figure.rows]) == pytest.approx(0.25, abs=0.03)
    errors = residual_figure(truth, values)
    check_within(errors)
    assert sum(int(row[2].replace(",", "")) for row in errors.rows) == 4000
    assert errors.marks[0][1] == pytest.approx((LEFT + RIGHT) / 2)


# --- confusion ------------------------------------------------------------------------------------------------------


def test_confusion_of_few_labels() -> None:
    matrix = confusion(np.array([0, 0, 0, 1, 2]), np.array([0, 0, 2, 1, -1]), ("a", "b", "c", "d"), most=4)
    assert matrix.names == ["a", "b", "c", "d"] and matrix.columns == ["a", "b", "c", "d", "no answer"]
    assert matrix.cells == [[2, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert matrix.shares[0] == pytest.approx([2 / 3, 0, 1 / 3, 0, 0]) and matrix.shares[3] == [0] * 5


def test_confusion_of_many_labels_shows_the_most_confused() -> None:
    truth = np.repeat(np.arange(300), 4)
    predicted = truth.copy()
    predicted[4 * 70 : 4 * 70 + 3] = 20  # label 70, three times
    predicted[4 * 5 : 4 * 5 + 2] = 250
    predicted[4 * 20] = 299
    names = [f"label {number}" for number in range(300)]
    matrix = confusion(truth, predicted, names, most=4)
    assert matrix.names == ["label 5", "label 20", "label 70", "label 250"]
    assert matrix.columns == [*matrix.names, "another label"]
    assert matrix.cells == [[2, 0, 0, 2, 0], [0, 3, 0, 0, 1], [0, 3, 1, 0, 0], [0, 0, 0, 4, 0]]
    assert confusion(truth, truth, names, most=4).names == []

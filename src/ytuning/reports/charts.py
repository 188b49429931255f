"""Arrays -> what a report draws: plain numbers in the units of a drawing, and the table behind each drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from ytuning.data.kinds import TaskKind
from ytuning.data.kinds.metrics import CALIBRATION_BINS, reliability
from ytuning.errors import quantity
from ytuning.search.log import Trial, importances
from ytuning.training.fit import Validation

__all__ = [
    "Axis", "Chart", "Matrix", "Name", "calibration_figure", "confusion", "learning_figures", "residual_figure",
    "scatter_figure", "search_figures",
]  # fmt: skip

WIDTH, HEIGHT = 400, 270
# Edges of the area between the axes, in units of the SVG.
LEFT, RIGHT, TOP, BOTTOM = 62, 388, 14, 226
# Maximum number of points in a scatter plot; more would hide each other.
MOST_POINTS = 1500
# The number of bins is odd, so that the middle one is centred on an error of 0.
RESIDUAL_BINS = 21
# The table of a regression divides the rows into this number of parts, from the lowest target to the highest.
PARTS = 5
# A decade of at least this length has ticks at 1, 2 and 5; a shorter one has a single tick.
ROOM_OF_DECADE = 120
# Ticks are one of these distances apart, times a power of ten.
STEPS = (1, 2, 2.5, 5, 10)
# Maximum number of a search's parameters that are drawn.
MOST_PARAMETERS = 3
LOSS = "validation loss, calibrated"
# An axis extends by this share of its length beyond the first and the last value of a curve or a search.
ROOM = 0.05

Point = tuple[float, float]
Bar = tuple[float, float, float, float, str]
"""A bar has a left, top, width, height and meaning."""


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high`` in data, which is drawn from ``start`` to ``end``.

    Attributes:
        logarithmic: whether equal distances are equal factors.
        words: names of the values 0, 1, 2..., where these stand for names.
    """

    name: str
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    words: tuple[str, ...] = ()

    def place(self, value: float) -> float:
        """Where a value is drawn; one beyond an end at that end."""
        scale = math.log if self.logarithmic else float
        low, high = scale(self.low), scale(self.high)
        share = (scale(min(max(value, self.low), self.high)) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round values, where they are drawn and how they are written."""
        if self.words:
            return [(self.place(number), word) for number, word in enumerate(self.words)]
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            narrow = abs(self.end - self.start) < ROOM_OF_DECADE * math.log10(self.high / self.low)
            values = [float(f"{factor}e{power}") for power in powers for factor in ((1,) if narrow else (1, 2, 5))]
            ticks = [(self.place(value), f"{value:,g}") for value in values if self.low <= value <= self.high]
            if len(ticks) > 1:
                return ticks
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in STEPS if factor * power >= rough * 0.999)
        numbers = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [(self.place(number * step), f"{number * step:.6g}") for number in numbers]


@dataclass(frozen=True)
class Name:
    """A word in a drawing: where it begins (``side`` is ``"start"``) or ends (``"end"``), and its class."""

    x: float
    y: float
    side: str
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing of ``WIDTH`` x ``HEIGHT`` units, and what it shows as a table.

    Attributes:
        title: heading.
        summary: what can be seen, in words.
        x: horizontal axis.
        y: vertical axis.
        lines: a class and the corners of each.
        bars: left, top, width, height and meaning of each.
        dots: centre, class and meaning of each.
        marks: a class, x and name of vertical lines.
        names: words beside what they name.
        columns: headings of the table.
        rows: rows of the table.
    """

    title: str
    summary: str
    x: Axis
    y: Axis
    lines: list[tuple[str, list[Point]]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    dots: list[tuple[float, float, str, str]] = field(default_factory=list)
    marks: list[tuple[str, float, str]] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)


def _x(name: str, low: float, high: float) -> Axis:
    return Axis(name, *_apart(low, high), LEFT, RIGHT)


def _y(name: str, low: float, high: float) -> Axis:
    return Axis(name, *_apart(low, high), BOTTOM, TOP)


def _apart(low: float, high: float) -> tuple[float, float]:
    """Return the two ends, moved apart if they are equal."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-9):
        return low, high
    return low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)


def _places(x: Axis, y: Axis, points: Iterable[Point]) -> list[Point]:
    return [(x.place(across), y.place(up)) for across, up in points]


def _bar(x: Axis, start: float, end: float, top: float, gap: float, meaning: str) -> Bar:
    """A bar between two values of ``x``, with a gap on either side."""
    left, right = x.place(start), x.place(end)
    return left + gap, top, round(right - left - 2 * gap, 1), round(BOTTOM - top, 1), meaning


def calibration_figure(truth: np.ndarray, probabilities: np.ndarray) -> Chart:
    """How often what was given a probability is so, with a histogram of the probabilities.

    Args:
        truth: (rows,) label ids or, of several labels a row, (rows, C) bool.
        probabilities: (rows, C).
    """
    points = reliability(truth, probabilities)
    several = truth.ndim == 2
    what, measured, short = ("decisions", "label is there", "there") if several else ("rows", "right", "right")
    x, y = _x("probability", 0, 1), _y(f"share that is {short}", 0, 1)
    most = max(count for *_, count in points)
    curve = _places(x, y, (point[:2] for point in points))
    bars = []
    for confidence, _, count in points:
        number = min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        # A multi-label task makes many decisions, and nearly all of them lie in one bin.
        height = math.log1p(count) / math.log1p(most) if several else count / most
        ends = number / CALIBRATION_BINS, number / CALIBRATION_BINS + 1 / CALIBRATION_BINS
        bars.append(_bar(x, *ends, y.place(0.4 * height), 1, f"{count:,} {what}"))
    return Chart(
        "Reliability of the probabilities",
        f"Share of {what} that is {measured} at each probability: "
        + "; ".join(f"{share:.0%} at {confidence:.0%}" for confidence, share, _ in points),
        x,
        y,
        [("ideal", _places(x, y, [(0, 0), (1, 1)])), ("main", curve)],
        bars,
        [
            (*place, "main", f"{confidence:.4f}: {share:.4f} of {count:,} {what}")
            for place, (confidence, share, count) in zip(curve, points, strict=True)
        ],
        columns=("mean probability", f"share that is {measured}", what),
        rows=[(f"{confidence:.4f}", f"{share:.4f}", f"{count:,}") for confidence, share, count in points],
    )


def learning_figures(target: TaskKind, history: Sequence[Validation], chosen: int) -> list[Chart]:
    """Validation score and validation loss by step.

    Args:
        target: kind of the task.
        history: validations, at least one.
        chosen: position in ``history`` of the chosen validation.
    """
    name, sign = target.score_name, target.score_sign
    # In some tasks the loss is the same measure as the score in another unit, so both are shown.
    return [
        _curve(
            f"Validation {name}", name, [(entry.step, sign * entry.score, entry.error) for entry in history], chosen
        ),
        _curve("Validation loss", "loss", [(entry.step, entry.loss, 0.0) for entry in history], chosen),
    ]


def _curve(title: str, name: str, points: Sequence[tuple[int, float, float]], chosen: int) -> Chart:
    """Steps, values and their standard errors (0: none are drawn)."""
    low, high = min(value - error for _, value, error in points), max(value + error for _, value, error in points)
    x, y = _x("step", 0, max(step for step, *_ in points)), _roomy_axis(name, [low, high], BOTTOM, TOP)
    taken, best, _ = points[chosen]
    curve = _places(x, y, (point[:2] for point in points))
    errors = [
        ("error", _places(x, y, [(step, value - error), (step, value + error)]))
        for step, value, error in points
        if error
    ]
    return Chart(
        title,
        f"The curve goes from {points[0][1]:.4f} (step {points[0][0]}) to {points[-1][1]:.4f} (step {points[-1][0]}). "
        f"Step {taken} was chosen with {best:.4f}",
        x,
        y,
        [*errors, ("main", curve)],
        dots=[
            (*place, "chosen" if step == taken else "main", f"step {step}: {value:.4f}")
            for place, (step, value, _) in zip(curve, points, strict=True)
        ],
        marks=[("chosen", x.place(taken), "chosen")],
        columns=("step", name, "standard error", ""),
        rows=[
            (f"{step:,}", f"{value:.4f}", f"{error:.4f}" if error else "", "chosen" if step == taken else "")
            for step, value, error in points
        ],
    )


def scatter_figure(truth: np.ndarray, values: np.ndarray) -> Chart:
    """Predicted numbers (rows,) by true ones (rows,), with the rows' figures from the lowest to the highest number."""
    low, high = float(min(truth.min(), values.min())), float(max(truth.max(), values.max()))
    x, y = _x("true number", low, high), _y("predicted number", low, high)
    drawn = np.unique(np.linspace(0, len(truth) - 1, MOST_POINTS).round().astype(int))
    parts = [part for part in np.array_split(np.argsort(truth, kind="stable"), PARTS) if len(part)]
    return Chart(
        "Predicted by true numbers",
        f"{quantity(len(truth), 'row')}. Points on the diagonal are right",
        x,
        y,
        [("ideal", _places(x, y, [(x.low, y.low), (x.high, y.high)]))],
        dots=[
            (*place, "point", "")
            for place in _places(x, y, zip(truth[drawn].tolist(), values[drawn].tolist(), strict=True))
        ],
        columns=("true numbers", "rows", "mean predicted", "mean error", "mean absolute error"),
        rows=[_of_part(truth[part], values[part]) for part in parts],
    )


def _of_part(truth: np.ndarray, values: np.ndarray) -> tuple[str, ...]:
    gap = values - truth
    figures = (f"{float(figure):.4g}" for figure in (values.mean(), gap.mean(), np.abs(gap).mean()))
    return f"{truth.min():.4g} to {truth.max():.4g}", f"{len(truth):,}", *figures


def residual_figure(truth: np.ndarray, values: np.ndarray) -> Chart:
    """How many rows have which error, of true and predicted numbers (rows,)."""
    gap = values - truth
    end = _apart(0.0, float(np.abs(gap).max()))[1]
    counts, edges = (array.tolist() for array in np.histogram(gap, RESIDUAL_BINS, (-end, end)))
    x, y = _x("predicted - true", -end, end), _y("rows", 0, max(counts))
    bins = list(zip(counts, edges, edges[1:], strict=False))
    return Chart(
        "Errors",
        f"Half of {len(gap):,} rows are wrong by {np.median(np.abs(gap)):.4g} or less. The mean error is "
        f"{gap.mean():.4g}",
        x,
        y,
        bars=[
            _bar(x, start, after, y.place(count), 0.5, f"{start:.3g} to {after:.3g}: {quantity(count, 'row')}")
            for count, start, after in bins
        ],
        marks=[("ideal", x.place(0), "")],
        columns=("error from", "to", "rows"),
        rows=[(f"{start:.3g}", f"{after:.3g}", f"{count:,}") for count, start, after in bins if count],
    )


def search_figures(trials: Sequence[Trial]) -> list[Chart]:
    """The validation loss by trial, and by the value of each of the parameters that mattered most."""
    losses = [trial.loss for trial in trials]
    y = _roomy_axis(LOSS, losses, BOTTOM, TOP)
    figures = [_by_trial(losses, y)]
    for name, share in list(importances(trials).items())[:MOST_PARAMETERS]:
        figures.append(_by_value(name, share, [trial for trial in trials if name in trial.choices], y))
    return figures


def _roomy_axis(name: str, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> Axis:
    """An axis that goes a little beyond the values."""
    low, high = min(values), max(values)
    if logarithmic:
        wider = max(high / low, 1.1) ** ROOM
        return Axis(name, low / wider, high * wider, start, end, logarithmic=True)
    room = ROOM * (high - low) or ROOM * abs(high) or ROOM
    return Axis(name, low - room, high + room, start, end)


def _by_trial(losses: list[float], y: Axis) -> Chart:
    x = _roomy_axis("trial", [0, max(1, len(losses) - 1)], LEFT, RIGHT)
    best = list(accumulate(losses, min))
    corners: list[Point] = []
    for place in _places(x, y, enumerate(best)):
        # The best so far stays until a better trial.
        corners += [(place[0], corners[-1][1])] if corners else []
        corners.append(place)
    return Chart(
        "By trial",
        f"The line shows the best loss so far, which ends at {best[-1]:.4f}",
        x,
        y,
        [("best", corners)],
        dots=[
            (x.place(number), y.place(loss), "main", f"trial {number}: {loss:.4f}")
            for number, loss in enumerate(losses)
        ],
        columns=("trial", LOSS, "best so far"),
        rows=[
            (f"{number}", f"{loss:.4f}", f"{lowest:.4f}")
            for number, (loss, lowest) in enumerate(zip(losses, best, strict=True))
        ],
    )


def _by_value(name: str, share: float, trials: Sequence[Trial], y: Axis) -> Chart:
    values = [trial.choices[name] for trial in trials]
    if isinstance(values[0], str):
        words = tuple(sorted(set(values)))
        x = Axis(name, -0.5, len(words) - 0.5, LEFT, RIGHT, words=words)
        places, texts = [x.place(words.index(value)) for value in values], values
    else:
        x = _roomy_axis(name, values, LEFT, RIGHT, logarithmic=name == "learning_rate")
        places, texts = [x.place(value) for value in values], [f"{value:.3g}" for value in values]
    return Chart(
        f"By {name.replace('_', ' ')}",
        f"This parameter explains {share:.0%} of the variance of the losses",
        x,
        y,
        dots=[
            (place, y.place(trial.loss), "main", f"trial {trial.number}, {value}: {trial.loss:.4f}")
            for place, trial, value in zip(places, trials, texts, strict=True)
        ],
        columns=("trial", name, LOSS),
        rows=[(str(trial.number), value, f"{trial.loss:.4f}") for trial, value in zip(trials, texts, strict=True)],
    )


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix, or the part of it with the most mistakes.

    Attributes:
        names: names of the rows, which are true labels.
        columns: names of the columns: the same labels, then other answers.
        cells: (names, columns), rows of data.
        shares: (names, columns), shares of the true label's rows.
    """

    names: list[str]
    columns: list[str]
    cells: list[list[int]]
    shares: list[list[float]]


def confusion(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], most: int) -> Matrix:
    """Count true against predicted labels.

    Args:
        truth: (rows,) label ids.
        predicted: (rows,) label ids, -1 = abstained.
        names: (C,) names of the labels.
        most: labels that are shown; of more, those that are confused most often, which may be fewer.
    """
    pairs, counts = np.unique(np.stack([truth, predicted], 1), axis=0, return_counts=True)
    frequent = sorted(zip(counts.tolist(), pairs.tolist(), strict=True), key=lambda entry: -entry[0])
    chosen = list(range(len(names))) if len(names) <= most else _most_confused((pair for _, pair in frequent), most)
    place = {label: number for number, label in enumerate(chosen)}
    others, nothing = len(chosen), len(chosen) + 1
    cells = np.zeros((len(chosen), len(chosen) + 2), np.int64)
    for count, (true, other) in frequent:
        if true in place:
            cells[place[true], nothing if other < 0 else place.get(other, others)] += count
    kept = [*range(len(chosen)), *(column for column in (others, nothing) if cells[:, column].any())]
    titles = [*(names[label] for label in chosen), "another label", "no answer"]
    cells = cells[:, kept]
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    return Matrix(
        [names[label] for label in chosen], [titles[column] for column in kept], cells.tolist(), shares.tolist()
    )


def _most_confused(pairs: Iterable[Sequence[int]], most: int) -> list[int]:
    """Labels of pairs (true, predicted) from the most frequent one on, in their order."""
    chosen: set[int] = set()
    for true, other in pairs:
        if 0 <= other != true and len(chosen | {true, other}) <= most:
            chosen |= {true, other}
    return sorted(chosen)

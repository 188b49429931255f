"""The page of a search: charts of the validation loss by trial and by the parameters that mattered most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ytuning.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Chart
from ytuning.reports.pages import render
from ytuning.search.log import Trial, importances

__all__ = ["plot_search"]

SHOWN = 3  # parameters
ROOM = 0.05  # share of an axis beyond the first and the last value
LOSS = "validation loss, calibrated"


def plot_search(trials: Sequence[Trial]) -> str:
    """HTML: validation loss by trial, and by the value of the most important parameters."""
    losses = [trial.loss for trial in trials]
    y = _axis(LOSS, losses, BOTTOM, TOP)
    figures = [_by_trial(losses, y)]
    for name, share in list(importances(trials).items())[:SHOWN]:
        figures.append(_by_value(name, share, [trial for trial in trials if name in trial.choices], y))
    return render("search.html", {"figures": figures, "trials": len(trials), "width": WIDTH, "height": HEIGHT})


def _axis(name: str, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> Axis:
    low, high = min(values), max(values)
    if logarithmic:
        wider = max(high / low, 1.1) ** ROOM
        return Axis(name, low / wider, high * wider, start, end, logarithmic=True)
    room = ROOM * (high - low) or ROOM * abs(high) or ROOM
    return Axis(name, low - room, high + room, start, end)


def _by_trial(losses: list[float], y: Axis) -> Chart:
    x = _axis("trial", [0, max(1, len(losses) - 1)], LEFT, RIGHT)
    best = list(accumulate(losses, min))
    corners: list[tuple[float, float]] = []
    for number, loss in enumerate(best):
        # The best so far stays until a better trial.
        corners += [(x.place(number), corners[-1][1])] if corners else []
        corners.append((x.place(number), y.place(loss)))
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
        places = [x.place(words.index(value)) for value in values]
    else:
        x = _axis(name, values, LEFT, RIGHT, logarithmic=name == "learning_rate")
        places = [x.place(value) for value in values]
    shown = [value if isinstance(value, str) else f"{value:.3g}" for value in values]
    return Chart(
        f"By {name.replace('_', ' ')}",
        f"This parameter explains {share:.0%} of the variance of the losses",
        x,
        y,
        dots=[
            (place, y.place(trial.loss), "main", f"trial {trial.number}, {value}: {trial.loss:.4f}")
            for place, trial, value in zip(places, trials, shown, strict=True)
        ],
        columns=("trial", name, LOSS),
        rows=[(str(trial.number), value, f"{trial.loss:.4f}") for trial, value in zip(trials, shown, strict=True)],
    )

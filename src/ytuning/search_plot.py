"""A search as a picture (extra ``plots``): its trials in order, and the parameters that mattered most."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ytuning.search_log import Trial, importances
from ytuning.versions import require

__all__ = ["plot_search"]

SHOWN = 3  # parameters


def plot_search(trials: Sequence[Trial]) -> bytes:
    """A PNG file: validation loss by trial, and by the value of the most important parameters.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    require("matplotlib", "plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(importances(trials).items())[:SHOWN]
    figure = Figure(figsize=(4.2 * (1 + len(names)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    first, *others = figure.subplots(1, 1 + len(names), sharey=True, squeeze=False)[0]
    losses = [trial.loss for trial in trials]
    first.plot(range(len(trials)), losses, "o", markersize=4, label="a trial")
    first.step(range(len(trials)), list(accumulate(losses, min)), where="post", label="the best so far")
    first.set(xlabel="trial", ylabel="validation loss, calibrated")
    first.legend()
    for axes, (name, share) in zip(others, names, strict=True):
        _by_value(axes, name, [trial for trial in trials if name in trial.choices])
        axes.set(xlabel=f"{name} ({share:.0%} of the variance)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _by_value(axes: Any, name: str, trials: Sequence[Trial]) -> None:
    values = [trial.choices[name] for trial in trials]
    losses = [trial.loss for trial in trials]
    if isinstance(values[0], str):
        places = {value: place for place, value in enumerate(sorted(set(values)))}
        axes.plot([places[value] for value in values], losses, "o", markersize=4)
        axes.set_xticks(list(places.values()), list(places))
        return
    axes.plot(values, losses, "o", markersize=4)
    if name == "learning_rate":
        axes.set_xscale("log")

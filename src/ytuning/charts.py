"""Score against cost as a PNG (extra ``plots``)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ytuning.standings import OURS, Standings
from ytuning.versions import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["score_against_cost"]

SIZE, DOTS = (8.0, 4.8), 150  # inches, and dots in one
INK = {False: ("#ffffff", "#1f2430", "#8a93a3"), True: ("#14171d", "#e6e9ef", "#7d8696")}  # ground, text, lines
COLOURS = {False: ("#0b6bcb", "#5b6472"), True: ("#5cb0ff", "#a3acba")}  # ours, the others
NEAR = 10  # dots around a mark where no name should be
PLACES = [
    (x, y, "left" if x > 0 else "right", "bottom" if y > 0 else "top") for y in (6, -6, 22, -22) for x in (10, -10)
]  # of a name, in points from its mark, the best first


def score_against_cost(standings: Standings, title: str = "", *, dark: bool = False) -> bytes:
    """PNG: each method's score, with its interval, over its seconds on a logarithmic axis.

    A hollow mark is where a further task on the same texts is, whose features are stored.

    Args:
        standings: of a comparison.
        title: in a line above the chart.
        dark: light text on a dark ground.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ground, text, line = INK[dark]
    figure = Figure(SIZE, dpi=DOTS, facecolor=ground, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # not pyplot, which has a state of its own
    axes = figure.add_subplot(facecolor=ground)
    axes.set_xscale("log")
    for each in standings.methods:
        colour = COLOURS[dark][each.method != OURS]
        score = each.score
        errors = [[max(0.0, score.mean - score.low)], [max(0.0, score.high - score.mean)]]
        if each.seconds_with_stored_features is not None:
            stored = max(each.seconds_with_stored_features, 1e-3)
            axes.plot([stored, each.seconds], [score.mean] * 2, color=colour, linewidth=1, linestyle=":")
            axes.plot(stored, score.mean, "o", color=colour, markersize=7, markerfacecolor=ground)
        axes.errorbar(each.seconds, score.mean, errors, color=colour, fmt="o", markersize=7, capsize=4, linewidth=1.5)
    seconds = [
        value for each in standings.methods for value in (each.seconds, each.seconds_with_stored_features) if value
    ]
    axes.set_autoscalex_on(False)  # a single point has no range of its own, of which matplotlib warns at times
    axes.set_xlim(min(seconds) / 1.8, max(seconds) * 2.2)  # room for names
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("seconds of training, encoder pass included (hollow: with stored features)", color=text)
    axes.set_ylabel(f"{standings.metric.replace('_', ' ')} ({standings.split}), 95 % interval", color=text)
    axes.set_title(title, color=text, loc="left", fontsize=11)
    axes.tick_params(colors=text, which="both")
    axes.grid(color=line, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(line)
    canvas.draw()
    _name_points(standings, axes, dark)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=ground, metadata={"Software": None})
    return stream.getvalue()


def _name_points(standings: Standings, axes: Axes, dark: bool) -> None:
    """Each method's name beside its point, on a side where no other name, point or interval is."""
    from matplotlib.transforms import Bbox

    taken: list[Any] = []
    for each in standings.methods:
        first = each.seconds_with_stored_features or each.seconds
        interval = [(each.seconds, each.score.low), (each.seconds, each.score.high)]
        marks = [(first, each.score.mean), (each.seconds, each.score.mean)]
        taken += [Bbox(axes.transData.transform(ends)).padded(NEAR) for ends in (interval, marks)]
    for each in standings.methods:
        for x, y, horizontal, vertical in PLACES:
            label = axes.annotate(
                each.method,
                (each.seconds, each.score.mean),
                (x, y),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                color=COLOURS[dark][each.method != OURS],
                fontweight="bold" if each.method == OURS else "normal",
            )
            box = label.get_window_extent()
            if (x, y) == PLACES[-1][:2] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()

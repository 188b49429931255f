"""A comparison as a drawing: score against cost."""

from __future__ import annotations

from ytuning.figures import Axis, Figure, Name
from ytuning.standings import OURS, Standing, Standings

__all__ = ["HEIGHT", "WIDTH", "score_against_cost"]

WIDTH, HEIGHT = 800, 480
LEFT, RIGHT, TOP, BOTTOM = 72, 790, 10, 425  # of the area between the axes
CAP = 5  # half the width of an interval's ends
LETTER, LINE = 8.0, 14.0  # about the width and the height of a letter
NEAR = 6  # around a mark, where no name should be
PLACES = [(x, y) for y in (-16, 16, -32, 32) for x in (12, -12)]  # of a name's middle beside its mark, the best first

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def score_against_cost(standings: Standings) -> Figure:
    """Each method's score, with its interval, over its seconds on a logarithmic axis.

    A hollow mark is where a further task on the same texts is, whose features are stored.
    """
    methods = standings.methods
    seconds = [value for each in methods for value in (each.seconds, _stored(each)) if value]
    scores = [each.score for each in methods]
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    room = 0.05 * (high - low) or 0.05
    # The seconds leave room for names at both ends.
    about = "seconds of training, encoder pass included (hollow: with stored features)"
    x = Axis(about, min(seconds) / 1.8, max(seconds) * 2.2, LEFT, RIGHT, logarithmic=True)
    metric = standings.metric.replace("_", " ")
    y = Axis(f"{metric} ({standings.split}), 95 % interval", low - room, high + room, BOTTOM, TOP)
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    dots: list[tuple[float, float, str, str]] = []
    for each in methods:
        name = "ours" if each.method == OURS else "others"
        score, place = each.score, x.place(each.seconds)
        middle, top, bottom = y.place(score.mean), y.place(score.high), y.place(score.low)
        if (stored := _stored(each)) is not None:
            lines.append((f"stored {name}", [(x.place(stored), middle), (place, middle)]))
            dots.append((x.place(stored), middle, f"stored {name}", f"{each.method}, features stored: {stored:,.1f} s"))
        ends = [(place - CAP, top), (place + CAP, top), (place, top), (place, bottom)]
        lines.append((name, [*ends, (place - CAP, bottom), (place + CAP, bottom)]))
        dots.append((place, middle, name, f"{each.method}: {score.mean:.4f} in {each.seconds:,.1f} s"))
    return Figure(
        "Score against cost",
        f"{metric} of each method over its seconds; the figures are in the table below",
        x,
        y,
        lines,
        dots=dots,
        marks=[("grid", place, "") for place, _ in x.ticks],
        names=_names(methods, x, y),
    )


def _stored(standing: Standing) -> float | None:
    stored = standing.seconds_with_stored_features
    return None if stored is None else max(stored, 1e-3)


def _names(methods: list[Standing], x: Axis, y: Axis) -> list[Name]:
    """Each method's name beside its point, on a side where no other name, point or interval is."""
    taken: list[Box] = []
    for each in methods:
        place, middle = x.place(each.seconds), y.place(each.score.mean)
        taken.append((place - NEAR, y.place(each.score.high) - NEAR, place + NEAR, y.place(each.score.low) + NEAR))
        taken.append((x.place(_stored(each) or each.seconds) - NEAR, middle - NEAR, place + NEAR, middle + NEAR))
    found: list[Name] = []
    for each in methods:
        place, middle, width = x.place(each.seconds), y.place(each.score.mean), LETTER * len(each.method)
        for across, down in PLACES:
            left = place + across - (width if across < 0 else 0)
            box = (left, middle + down - LINE / 2, left + width, middle + down + LINE / 2)
            if (across, down) == PLACES[-1] or not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        side = "start" if across > 0 else "end"
        kind = "ours" if each.method == OURS else "others"
        found.append(Name(round(place + across, 1), round(middle + down + LINE / 3, 1), side, kind, each.method))
    return found


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

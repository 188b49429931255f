"""Reports of a comparison: a table, a JSON file, and a self-contained page with a chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ytuning.compare.summary import OURS, Standing, Standings
from ytuning.errors import quantity, write_errors
from ytuning.reports.charts import Axis, Chart, Name, Point
from ytuning.reports.console import SHOWN_METRICS, new_table
from ytuning.reports.html import render
from ytuning.system.files import commit_all

__all__ = ["HEIGHT", "WIDTH", "print_standings", "score_against_cost", "write_standings"]

COSTS = ("parameters", "seconds", "stored", "peak memory")
# A page shows a line break as a space.
SERVING = ("encoder\nparameters", "stored\na text", "stored\nin all", "texts\na second")
FOOTNOTES = (
    "Intervals are bootstraps over rows and seeds. A difference compares the same rows and seeds; ~ means that its "
    "interval includes 0, so the two cannot be told apart.",
    "Seconds are the time from the rows to the trained model, including the encoder. The column stored is the time for "
    "another task on the same texts, whose features are stored already. Peak memory includes Python and its packages.",
    "The stored bytes are those of the features of all rows. Texts a second is how fast the trained task answers up to "
    "256 distinct texts at once without stored features: the median of three rounds.",
    "All use the same training and validation set. Methods on stored features are finally fitted on held-out "
    "validation rows, too. full and lora are not, because that would need a second training.",
)
ON_VALIDATION = (
    "There is no test set, so these scores are from the validation set, which also chose between heads and epochs. "
    "They are too optimistic. Use --test to get scores that you can report."
)


def print_standings(console: Console, standings: Standings) -> None:
    """Print the table, what was left out and how to read it."""
    if standings.split == "validation":
        console.print(f"[bold yellow]{ON_VALIDATION}[/bold yellow]\n")
    tables = _tables(standings)
    for name, (headings, rows) in tables.items():
        is_first = name == next(iter(tables))
        # The scores leave too little room for an encoder and a method in one line.
        comma = "\n" if is_first else ", "
        first, *others = (heading.replace(", ", comma) for heading in headings)
        table = new_table(_title(standings) if is_first else name, [first], others)
        for standing, cells in zip(standings.methods, rows, strict=True):
            style = "bold" if standing.is_reference else None
            table.add_row(escape(cells[0].replace(", ", comma)), *map(escape, cells[1:]), style=style)
        console.print(table)
    for name, reason in _skipped(standings).items():
        console.print(f"{name} was left out: {reason}", soft_wrap=True, markup=False, highlight=False)
    for note in _footnotes(standings):
        console.print(note, style="dim", markup=False, highlight=False)


def write_standings(standings: Standings, out: Path) -> None:
    """Write ``comparison.json`` and ``comparison.html``.

    Raises:
        InputError: the folder cannot be written.
        WriteError: the disk is full or broken.
    """
    content = json.dumps(standings.to_json(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    with write_errors(out, "--out"):
        commit_all(out, {"comparison.json": content.encode(), "comparison.html": _page(standings).encode()})


def _title(standings: Standings) -> str:
    first = standings.comparison.runs[0]
    metric = SHOWN_METRICS.get(standings.metric, standings.metric)
    return (
        f"{Path(standings.comparison.work.train.source).name}: {metric} on {first.rows['judged']:,} {standings.split} "
        f"rows, {first.rows['train']:,} training rows, {quantity(len(standings.comparison.seeds), 'seed')}"
    )


def _compared(standings: Standings) -> str:
    return "methods" if len(standings.comparison.encoders) == 1 else "encoders"


def _what(standings: Standings) -> str:
    """Return what tells the rows of the tables apart."""
    comparison = standings.comparison
    if len(comparison.encoders) == 1:
        return "method"
    return "encoder" if len(comparison.methods) == 1 else "encoder, method"


def _footnotes(standings: Standings) -> tuple[str, ...]:
    """How to read the tables."""
    workers = standings.comparison.workers
    beside = (
        f"Up to {workers} runs were measured at the same time, so seconds, memory and texts a second "
        "are those beside other runs."
    )
    return (*FOOTNOTES, beside) if workers > 1 else FOOTNOTES


def _skipped(standings: Standings) -> dict[str, str]:
    comparison = standings.comparison
    return {comparison.shown_name(contestant): reason for contestant, reason in comparison.skipped.items()}


def _score_cells(standing: Standing) -> list[str]:
    score, difference, gap = standing.score, standing.difference, ""
    if difference is not None:
        gap = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
    return [
        f"{score.mean:.4f} ({score.low:.4f} to {score.high:.4f})",
        gap if standing.told_apart or not gap else f"~ {gap}",
    ]


def _cost_cells(standing: Standing) -> list[str]:
    stored = standing.seconds_with_stored_features
    return [
        f"{standing.parameters:,}",
        f"{standing.seconds:,.1f}",
        "" if stored is None else f"{stored:,.1f}",
        "" if standing.peak_bytes is None else f"{standing.peak_bytes / 1e9:.2f} GB",
    ]


def _serving_cells(standing: Standing) -> list[str]:
    size, share, speed = standing.stored_bytes, standing.bytes_per_text, standing.texts_per_second
    return [
        f"{standing.runs[0].encoder['parameters']:,}",
        "" if share is None else f"{share:,.0f} B",
        "" if size is None else f"{size / 1e6:,.1f} MB",
        "" if speed is None else f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}",
    ]


def _page(standings: Standings) -> str:
    """HTML with everything in it, for light and dark screens."""
    run_headings, runs = _seed_by_seed(standings)
    return render(
        "comparison.html",
        {
            "title": _title(standings),
            "compared": _compared(standings),
            "on_validation": ON_VALIDATION if standings.split == "validation" else None,
            "interrupted": standings.comparison.interrupted,
            "chart": score_against_cost(standings),
            "width": WIDTH,
            "height": HEIGHT,
            "tables": _tables(standings),
            "reference": standings.reference and standings.reference.name,
            "skipped": _skipped(standings),
            "footnotes": _footnotes(standings),
            "run_headings": run_headings,
            "runs": runs,
            "settings": _settings(standings),
        },
    )


def _tables(standings: Standings) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Headings and rows of three tables by name, as one with all columns is too wide for a terminal and for a page."""
    what, reference = _what(standings), standings.reference
    difference = f"to {reference.name if reference else OURS}"
    rows: list[list[list[str]]] = [
        [[standing.name, *cells(standing)] for standing in standings.methods]
        for cells in (_score_cells, _cost_cells, _serving_cells)
    ]
    return {
        _compared(standings).capitalize(): ([what, "score (95 % interval)", difference], rows[0]),
        "Costs": ([what, *COSTS], rows[1]),
        "Storing and serving": ([what, *SERVING], rows[2]),
    }


def _seed_by_seed(standings: Standings) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table: every metric of every run, and what it chose."""
    runs = [(standing.name, run) for standing in standings.methods for run in standing.runs]
    names = sorted({name for _, run in runs for name in run.metrics})
    rows = []
    for shown, run in runs:
        values = [f"{run.metrics[name]:.4f}" if name in run.metrics else "" for name in names]
        chosen = ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in run.details.items() if value)
        rows.append([shown, str(run.seed), *values, f"{run.seconds:,.1f}", chosen])
    metrics = [SHOWN_METRICS.get(name, name.replace("_", " ")) for name in names]
    return [_what(standings), "seed", *metrics, "seconds", "chosen"], rows


def _settings(standings: Standings) -> dict[str, str]:
    content = standings.to_json()
    encoders = {}
    for number, encoder in enumerate(
        {standing.encoder: standing.runs[0].encoder for standing in standings.methods}.values()
    ):
        size = f"{encoder['parameters']:,} parameters, width {encoder['width']:,}"
        name = "encoder" if len(standings.comparison.encoders) == 1 else f"encoder {number + 1}"
        encoders[name] = f"{encoder['name']} ({size}, at most {encoder['max_length']:,} tokens, {encoder['precision']})"
    return {
        **{use: part["file"] for use, part in content["files"].items()},
        "rows": ", ".join(f"{count:,} {role}" for role, count in content["rows"].items()),
        "kind of task": content["kind"] + (f", {content['labels']} labels" if content["labels"] else ""),
        **encoders,
        "seeds": ", ".join(map(str, content["seeds"])),
        "epochs of full and lora": f"at most {content['settings']['epochs'] or '5, or more to reach 300 steps'}",
        "learning rates of full and lora": "searched" if content["settings"]["search_rates"] else "one each",
        "workers": str(content["workers"]),
        "machine": f"{content['machine']['system']}, {content['machine']['processors']} processors",
        "versions": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
    }


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}: {_short(part)}" for name, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


WIDTH, HEIGHT = 800, 480
# Edges of the area between the axes, in units of the SVG.
LEFT, RIGHT, TOP, BOTTOM = 72, 790, 10, 425
# Half the width of the caps at an interval's ends in units of the SVG.
CAP = 5
# Approximate width of a letter, of a bold one, and height of a line in units of the SVG.
LETTER, BOLD_LETTER, LINE = 6.6, 8.0, 14.0
# Names stay at least this many units of the SVG away from a mark.
NEAR = 6
# Offsets in units of the SVG from a mark to the middle of its name, the best first.
PLACES = [(x, y) for y in (-16, 16, -32, 32) for x in (12, -12)]

Box = tuple[float, float, float, float]
"""A box has left, top, right and bottom edges."""


def score_against_cost(standings: Standings) -> Chart:
    """Each score, with its interval, over the seconds of its method and encoder on a logarithmic axis.

    A hollow mark is where a further task on the same texts is, whose features are stored.
    """
    methods = standings.methods
    seconds = [value for standing in methods for value in (standing.seconds, _stored(standing)) if value]
    scores = [standing.score for standing in methods]
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    room = 0.05 * (high - low) or 0.05
    # The seconds leave room for names at both ends.
    about = "seconds of training with the encoder (hollow: with stored features)"
    x = Axis(about, min(seconds) / 1.8, max(seconds) * 2.2, LEFT, RIGHT, logarithmic=True)
    metric = standings.metric.replace("_", " ")
    y = Axis(f"{metric} ({standings.split}), 95 % interval", low - room, high + room, BOTTOM, TOP)
    lines: list[tuple[str, list[Point]]] = []
    dots: list[tuple[float, float, str, str]] = []
    for standing in methods:
        kind, name = _kind(standing), standing.name
        score, place = standing.score, x.place(standing.seconds)
        middle, top, bottom = y.place(score.mean), y.place(score.high), y.place(score.low)
        if (stored := _stored(standing)) is not None:
            lines.append((f"stored {kind}", [(x.place(stored), middle), (place, middle)]))
            dots.append((x.place(stored), middle, f"stored {kind}", f"{name}, features stored: {stored:,.1f} s"))
        ends = [(place - CAP, top), (place + CAP, top), (place, top), (place, bottom)]
        lines.append((kind, [*ends, (place - CAP, bottom), (place + CAP, bottom)]))
        dots.append((place, middle, kind, f"{name}: {score.mean:.4f} in {standing.seconds:,.1f} s"))
    return Chart(
        "Score against cost",
        f"{metric} of each {_what(standings)} and the seconds that it takes. The tables below have the numbers.",
        x,
        y,
        lines,
        dots=dots,
        marks=[("grid", place, "") for place, _ in x.ticks],
        names=_names(methods, x, y),
    )


def _kind(standing: Standing) -> str:
    return "ours" if standing.is_reference else "others"


def _stored(standing: Standing) -> float | None:
    stored = standing.seconds_with_stored_features
    return None if stored is None else max(stored, 1e-3)


def _names(methods: list[Standing], x: Axis, y: Axis) -> list[Name]:
    """Each name beside its point, on a side where no other name, point or interval is."""
    taken: list[Box] = []
    for standing in methods:
        place, middle, score = x.place(standing.seconds), y.place(standing.score.mean), standing.score
        taken.append((place - NEAR, y.place(score.high) - NEAR, place + NEAR, y.place(score.low) + NEAR))
        stored = x.place(_stored(standing) or standing.seconds)
        taken.append((stored - NEAR, middle - NEAR, place + NEAR, middle + NEAR))
    names: list[Name] = []
    for standing in methods:
        place, middle = x.place(standing.seconds), y.place(standing.score.mean)
        width = (BOLD_LETTER if standing.is_reference else LETTER) * len(standing.name)
        boxes: dict[tuple[int, int], Box] = {}
        for across, down in PLACES:
            left = place + across - (width if across < 0 else 0)
            boxes[across, down] = (left, middle + down - LINE / 2, left + width, middle + down + LINE / 2)
        # The end of a name that leaves the drawing could not be read.
        inside = [at for at, (left, _, right, _) in boxes.items() if left >= LEFT and right <= WIDTH] or list(boxes)
        free = (at for at in inside if not any(_overlap(boxes[at], other) for other in taken))
        across, down = next(free, inside[-1])
        taken.append(boxes[across, down])
        side = "start" if across > 0 else "end"
        at = round(place + across, 1), round(middle + down + LINE / 3, 1)
        names.append(Name(*at, side, _kind(standing), standing.name))
    return names


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

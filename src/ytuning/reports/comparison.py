"""Reports of a comparison: a table, a JSON file, and a self-contained page with a chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ytuning.compare.summary import OURS, Figure, Standing, Standings
from ytuning.errors import cannot_write
from ytuning.reports.charts import Axis, Chart, Name
from ytuning.reports.console import SHOWN_METRICS
from ytuning.reports.pages import render
from ytuning.system.files import commit_all

__all__ = ["HEIGHT", "WIDTH", "print_standings", "score_against_cost", "write_standings"]

HEADINGS = ("method", "score (95 % interval)", f"to {OURS}", "parameters", "seconds", "stored", "peak memory")
FOOTNOTES = (
    "Intervals are bootstraps over rows and seeds. A difference compares the same rows and seeds; ~ means that its "
    "interval includes 0, so the two methods cannot be told apart.",
    "Seconds are the time from the rows to the trained model, including the encoder. The column stored is the time for "
    "another task on the same texts, whose features are stored already. Peak memory includes Python and its packages.",
    "All methods use the same training and validation set. Methods on stored features are finally fitted on held-out "
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
    table = Table(title=_title(standings), box=box.SIMPLE, title_justify="left", pad_edge=False)
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place else "left")
    for each in standings.methods:
        table.add_row(*map(escape, _cells(each)), style="bold" if each.method == OURS else None)
    console.print(table)
    for name, reason in standings.comparison.skipped.items():
        console.print(f"{name} was left out: {reason}", soft_wrap=True, markup=False, highlight=False)
    for note in FOOTNOTES:
        console.print(note, style="dim", markup=False, highlight=False)


def write_standings(standings: Standings, out: Path) -> None:
    """Write ``comparison.json`` and ``comparison.html``.

    Raises:
        InputError: the folder cannot be written.
        WriteError: the disk is full or broken.
    """
    content = json.dumps(standings.to_json(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    try:
        commit_all(out, {"comparison.json": content.encode(), "comparison.html": _page(standings).encode()})
    except OSError as error:
        raise cannot_write(str(out), error, "--out") from error


def _title(standings: Standings) -> str:
    first = standings.comparison.runs[0]
    metric = SHOWN_METRICS.get(standings.metric, standings.metric)
    seeds = len(standings.comparison.seeds)
    return (
        f"{Path(standings.comparison.work.train.source).name}: {metric} on {first.rows['judged']:,} {standings.split} "
        f"rows, {first.rows['train']:,} training rows, {seeds} seed{'' if seeds == 1 else 's'}"
    )


def _cells(standing: Standing) -> list[str]:
    """What a row of the table shows."""
    stored = standing.seconds_with_stored_features
    return [
        standing.method,
        f"{standing.score.mean:.4f} ({standing.score.low:.4f} to {standing.score.high:.4f})",
        "" if standing.difference is None else _difference_text(standing.difference, standing.told_apart),
        f"{standing.parameters:,}",
        f"{standing.seconds:,.1f}",
        "" if stored is None else f"{stored:,.1f}",
        "" if standing.peak_bytes is None else f"{standing.peak_bytes / 1e9:.2f} GB",
    ]


def _difference_text(difference: Figure, told_apart: bool) -> str:
    mark = "" if told_apart else "~ "
    return f"{mark}{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"


def _page(standings: Standings) -> str:
    """HTML with everything in it, for light and dark screens."""
    run_headings, runs = _seed_by_seed(standings)
    return render(
        "comparison.html",
        {
            "title": _title(standings),
            "on_validation": ON_VALIDATION if standings.split == "validation" else None,
            "interrupted": standings.comparison.interrupted,
            "chart": score_against_cost(standings),
            "width": WIDTH,
            "height": HEIGHT,
            "headings": HEADINGS,
            "methods": [_cells(each) for each in standings.methods],
            "ours": OURS,
            "skipped": standings.comparison.skipped,
            "footnotes": FOOTNOTES,
            "run_headings": run_headings,
            "runs": runs,
            "settings": _settings(standings),
        },
    )


def _seed_by_seed(standings: Standings) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table: every metric of every run, and what it chose."""
    runs = [run for each in standings.methods for run in each.runs]
    names = sorted({name for run in runs for name in run.metrics})
    rows = []
    for run in runs:
        metrics = [f"{run.metrics[name]:.4f}" if name in run.metrics else "" for name in names]
        chosen = ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in run.details.items() if value)
        rows.append([run.method, str(run.seed), *metrics, f"{run.seconds:,.1f}", chosen])
    shown = [SHOWN_METRICS.get(name, name.replace("_", " ")) for name in names]
    return ["method", "seed", *shown, "seconds", "chosen"], rows


def _settings(standings: Standings) -> dict[str, str]:
    found = standings.to_json()
    return {
        **found["sources"],
        "rows": ", ".join(f"{count:,} {role}" for role, count in found["rows"].items()),
        "kind of task": found["kind"] + (f", {found['labels']} labels" if found["labels"] else ""),
        "encoder": f"{found['encoder']['name']} ({found['encoder']['parameters']:,} parameters)",
        "seeds": ", ".join(map(str, found["seeds"])),
        "epochs of full and lora": f"at most {found['settings']['epochs'] or '5, or more to reach 300 steps'}",
        "learning rates of full and lora": "searched" if found["settings"]["search_rates"] else "one each",
        "machine": f"{found['machine']['system']}, {found['machine']['processors']} processors",
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}: {_short(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


WIDTH, HEIGHT = 800, 480
LEFT, RIGHT, TOP, BOTTOM = 72, 790, 10, 425  # of the area between the axes
CAP = 5  # half the width of an interval's ends
LETTER, LINE = 8.0, 14.0  # about the width and the height of a letter
NEAR = 6  # around a mark, where no name should be
PLACES = [(x, y) for y in (-16, 16, -32, 32) for x in (12, -12)]  # of a name's middle beside its mark, the best first

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def score_against_cost(standings: Standings) -> Chart:
    """Each method's score, with its interval, over its seconds on a logarithmic axis.

    A hollow mark is where a further task on the same texts is, whose features are stored.
    """
    methods = standings.methods
    seconds = [value for each in methods for value in (each.seconds, _stored(each)) if value]
    scores = [each.score for each in methods]
    low, high = min(score.low for score in scores), max(score.high for score in scores)
    room = 0.05 * (high - low) or 0.05
    # The seconds leave room for names at both ends.
    about = "seconds of training with the encoder (hollow: with stored features)"
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
    return Chart(
        "Score against cost",
        f"{metric} of each method and the seconds that it takes. The table below has the numbers.",
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

"""A comparison as a table, and as files: JSON, a chart, and a page that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from ytuning.charts import score_against_cost
from ytuning.disk import commit
from ytuning.errors import MissingExtraError, cannot_write
from ytuning.progress import Progress
from ytuning.report import SHOWN_METRICS
from ytuning.standings import OURS, Figure, Standing, Standings

__all__ = ["print_standings", "write_standings"]

HEADINGS = ("method", "score (95 % interval)", f"to {OURS}", "parameters", "seconds", "stored", "peak memory")
FOOTNOTES = (
    "Intervals are bootstraps over rows and seeds; a difference is on the same rows and seeds. One marked ~ has 0 in "
    "its interval: these rows and seeds do not tell the two apart.",
    "Seconds run from the rows to the trained model, the encoder pass included; stored: for a further task on the same "
    "texts, whose features are stored. Peak memory is that of a process of its own, Python and packages included.",
    "What trains the encoder or a linear model uses the same rows and, to choose epochs, strengths and rates, the same "
    "validation rows. Where these are held out of the train rows, stored-feature methods are fitted on them too in the "
    "end; full and lora are not, as that would take a second training.",
)
ON_VALIDATION = (
    "There is no test file: these figures are of the validation rows, which have also chosen strengths, epochs and "
    "heads, and so flatter every method. Give --test for figures to report."
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # no script, no network
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1f2430; --soft: #5b6472; --line: #d9dee6; --ours: #eef5fd;
        --warn: #fff4d6; --focus: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --text: #e6e9ef; --soft: #a3acba; --line: #333a46;
        --ours: #1b2a3c; --warn: #3d3314; --focus: #5cb0ff; } }
* { box-sizing: border-box; }
body { background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, h1 { overflow-wrap: anywhere; } .soft { color: var(--soft); }
.warn { background: var(--warn); padding: .6rem .9rem; border-radius: .4rem; }
.wide { overflow-x: auto; } :focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.wide :is(th, td):first-child { position: sticky; left: 0; background: var(--ground); }
.wide tr.ours td { background: var(--ours); font-weight: 600; }
/* Narrower, nobody could read the chart. */
img { display: block; width: 100%; min-width: 38rem; height: auto; margin-bottom: .8rem; }
table.settings { width: auto; } table.settings td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
table.settings td:first-child { color: var(--soft); min-width: 6.5rem; overflow-wrap: normal; }
"""


def print_standings(console: Console, standings: Standings) -> None:
    """Print the table, what was left out and how to read it."""
    if standings.split == "validation":
        console.print(f"[bold yellow]{ON_VALIDATION}[/bold yellow]\n")
    table = Table(title=_title(standings), box=box.SIMPLE, title_justify="left", pad_edge=False)
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place else "left")
    for each in standings.methods:
        table.add_row(*map(escape_markup, _cells(each)), style="bold" if each.method == OURS else None)
    console.print(table)
    for name, reason in standings.comparison.skipped.items():
        console.print(f"{name} was left out: {reason}", soft_wrap=True, markup=False, highlight=False)
    for note in FOOTNOTES:
        console.print(note, style="dim", markup=False, highlight=False)


def write_standings(standings: Standings, out: Path, progress: Progress) -> None:
    """Write ``comparison.json``, ``comparison.png`` and ``comparison.html``; without matplotlib the chart is left out.

    Raises:
        InputError: the folder cannot be written.
        WriteError: the disk is full or broken.
    """
    charts: list[bytes] = []  # the page has a title of its own
    try:
        charts = [score_against_cost(standings, dark=dark) for dark in (False, True)]
        titled = {"comparison.png": score_against_cost(standings, _title(standings))}
    except MissingExtraError as error:
        progress.say(f"there is no chart: {error}")
        titled = {}
    content = json.dumps(standings.to_json(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    files = {
        "comparison.json": content.encode(),
        "comparison.html": _page(standings, charts).encode(),
        **titled,
    }
    try:
        if not charts:
            (out / "comparison.png").unlink(missing_ok=True)  # of an earlier comparison
        for name, data in files.items():
            commit(out / name, data)
    except OSError as error:
        raise cannot_write(str(out), error, "--out") from error


def _title(standings: Standings) -> str:
    first = standings.comparison.runs[0]
    metric = SHOWN_METRICS.get(standings.metric, standings.metric)
    seeds = len(standings.comparison.seeds)
    return (
        f"{Path(standings.comparison.work.train.source).name}: {metric} on {first.rows['judged']:,} {standings.split} "
        f"rows, {first.rows['train']:,} train rows, {seeds} seed{'' if seeds == 1 else 's'}"
    )


def _cells(standing: Standing) -> list[str]:
    """What a row of the table shows."""
    stored = standing.seconds_with_stored_features
    return [
        standing.method,
        f"{standing.score.mean:.4f} ({standing.score.low:.4f} to {standing.score.high:.4f})",
        "" if standing.difference is None else _signed(standing.difference, standing.told_apart),
        f"{standing.parameters:,}",
        f"{standing.seconds:,.1f}",
        "" if stored is None else f"{stored:,.1f}",
        "" if standing.peak_bytes is None else f"{standing.peak_bytes / 1e9:.2f} GB",
    ]


def _signed(difference: Figure, told_apart: bool) -> str:
    mark = "" if told_apart else "~ "
    return f"{mark}{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"


def _page(standings: Standings, charts: list[bytes]) -> str:
    """HTML with everything in it, for light and dark screens."""
    skipped = standings.comparison.skipped.items()
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Comparison: {escape(_title(standings))}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>Comparison of methods</h1><p class='soft'>{escape(_title(standings))}</p>",
        f"<p class='warn'>{escape(ON_VALIDATION)}</p>" if standings.split == "validation" else "",
        "<p class='warn'>Interrupted: not every run is in here.</p>" if standings.comparison.interrupted else "",
        _picture(standings, charts),
        _table("Methods", HEADINGS, [_cells(each) for each in standings.methods], ours=OURS),
        *(f"<p><b>{escape(name)}</b> was left out: {escape(reason)}</p>" for name, reason in skipped),
        *(f"<p class='soft'>{escape(note)}</p>" for note in FOOTNOTES),
        "<h2>Seed by seed</h2>",
        _seeds_table(standings),
        "<h2>Settings</h2><table class='settings'>",
        *(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _settings(standings).items()),
        "</table></main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _picture(standings: Standings, charts: list[bytes]) -> str:
    if not charts:
        return "<p class='soft'>No chart: matplotlib is not installed (pip install 'ytuning[plots]').</p>"
    light, dark = (f"data:image/png;base64,{base64.b64encode(chart).decode('ascii')}" for chart in charts)
    description = escape(f"{standings.metric} of each method over its seconds; the figures are in the table below")
    return (
        f'{_wide("Chart")}<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{description}" width="1200" height="720"></picture></div>'
    )


def _seeds_table(standings: Standings) -> str:
    """Every metric of every run, and what it chose."""
    runs = [run for each in standings.methods for run in each.runs]
    names = sorted({name for run in runs for name in run.metrics})
    rows = []
    for run in runs:
        metrics = [f"{run.metrics[name]:.4f}" if name in run.metrics else "" for name in names]
        chosen = ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in run.details.items() if value)
        rows.append([run.method, str(run.seed), *metrics, f"{run.seconds:,.1f}", chosen])
    shown = [SHOWN_METRICS.get(name, name.replace("_", " ")) for name in names]
    return _table("Seed by seed", ["method", "seed", *shown, "seconds", "chosen"], rows)


def _settings(standings: Standings) -> dict[str, str]:
    found = standings.to_json()
    return {
        **found["sources"],
        "rows": ", ".join(f"{count:,} {role}" for role, count in found["rows"].items()),
        "kind of task": found["kind"] + (f", {found['labels']} labels" if found["labels"] else ""),
        "encoder": f"{found['encoder']['name']} ({found['encoder']['parameters']:,} parameters)",
        "seeds": ", ".join(map(str, found["seeds"])),
        "epochs of full and lora": f"at most {found['settings']['epochs'] or '5, or as many as make 300 steps'}",
        "learning rates of full and lora": "searched" if found["settings"]["search_rates"] else "one each",
        "machine": f"{found['machine']['system']}, {found['machine']['processors']} processors",
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }


def _wide(name: str) -> str:
    """Opens what is scrolled sideways on a narrow screen, also with the keyboard."""
    return f"<div class='wide' role='region' aria-label='{name}' tabindex='0'>"


def _table(name: str, headings: Sequence[str], rows: Iterable[Sequence[str]], ours: str | None = None) -> str:
    """With the row of a first cell ``ours`` marked."""
    head = "".join(f"<th scope='col'>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr{' class=ours' if cells[0] == ours else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for cells in rows
    )
    return f"{_wide(name)}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}: {_short(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)

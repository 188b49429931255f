"""A comparison's table, chart and page."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tests.compare.test_compare import fake_run
from tests.compare.test_summary import comparison_of, encoder_runs, work_of
from ytuning.compare.summary import Standings, standings_of
from ytuning.errors import InputError
from ytuning.reports.comparison import HEIGHT, WIDTH, print_standings, score_against_cost, write_standings

ESCAPED = "a <b>&'\".csv"


@pytest.fixture
def standings() -> Standings:
    work = work_of()
    work = replace(work, train=replace(work.train, source=ESCAPED))
    shares = {"ytuning": 0.9, "logistic": 0.88, "full": 0.6}
    runs = [fake_run(name, work, seed, share) for seed in range(2) for name, share in shares.items()]
    found = replace(comparison_of(work, runs), skipped={("encoder", "lora"): "the package 'peft' is <not> installed"})
    return standings_of(found)


def printed(standings: Standings) -> str:
    stream = io.StringIO()
    print_standings(Console(file=stream, width=80), standings)
    return stream.getvalue()


def test_table(standings: Standings) -> None:
    text = printed(standings)
    rows = [line.strip() for line in text.splitlines() if re.match(r" \w+ +\d", line)]
    # Nothing wraps at 80 characters: each method has one line in each of the three tables.
    assert [row.split()[0] for row in rows] == ["ytuning", "logistic", "full"] * 3
    ours, logistic, full, costs = rows[:4]
    assert [row.split()[1:] for row in rows[6:]] == [
        ["10,000", "1,235", "B", "1.2", "MB", "300"],
        ["10,000", "1,235", "B", "1.2", "MB"],
        ["10,000"],
    ]
    number = r"0\.\d{4}"
    assert re.search(rf"^ytuning +{number} \({number} to {number}\)$", ours)
    assert re.search(r"^ytuning +1,000 +10\.5 +2\.5 +0\.50 GB$", costs)
    assert re.search(rf" -{number} \(-{number} to -{number}\)$", full) and "~" not in full
    assert re.search(rf" ~ [+-]{number} \([+-]{number} to [+-]{number}\)$", logistic)
    assert "400 test rows" in text and "2 seeds" in text
    assert "lora was left out: the package 'peft' is <not> installed" in text
    assert "no test set" not in text


def test_runs_that_were_measured_beside_others_are_said_to_be(standings: Standings, tmp_path: Path) -> None:
    assert standings.to_json()["workers"] == 1 and "at the same time" not in printed(standings)
    runs = standings.comparison.runs
    found = standings_of(replace(standings.comparison, runs=[replace(runs[0], workers=3), *runs[1:]]))
    assert found.to_json()["workers"] == 3
    said = "Up to 3 runs were measured at the same time, so seconds, memory and texts a second are those beside other"
    assert said in " ".join(printed(found).split())
    write_standings(found, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert said in page and "<tr><td>workers</td><td>3</td></tr>" in page


def test_tables_of_encoders(tmp_path: Path) -> None:
    work = work_of()
    runs = encoder_runs(work, {"ytuning": 0.6, "logistic": 0.5}, "ab")
    found = standings_of(replace(comparison_of(work, runs), skipped={("b", "logistic"): "too old"}))
    text = printed(found)
    for heading in ("encoder, method", "to a", "Storing and serving", "parameters"):
        assert heading in text
    assert [line.split()[:2] for line in text.splitlines() if re.match(r" [ab], ", line)] == [
        ["a,", "ytuning"], ["a,", "logistic"], ["b,", "ytuning"], ["b,", "logistic"],
    ] * 2  # fmt: skip
    # Beside the scores an encoder and its method have a line each.
    assert re.findall(r"^ (a|b|ytuning|logistic) ", text, re.MULTILINE) == [
        "a", "ytuning", "a", "logistic", "b", "ytuning", "b", "logistic",
    ]  # fmt: skip
    assert "b, logistic was left out: too old" in text
    assert [name.text for name in score_against_cost(found).names][1:3] == ["a, logistic", "b, ytuning"]
    write_standings(found, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert "<h1>Comparison of encoders</h1>" in page
    assert re.findall(r'<tr class="ours"><td>(.*?)</td>', page) == ["a, ytuning"] * 3
    for number, name in enumerate("ab", 1):
        assert (
            f"<td>encoder {number}</td><td>{name} (10,000 parameters, width 32, at most 30 tokens, fp32)</td>" in page
        )
    one = printed(standings_of(comparison_of(work, encoder_runs(work, {"ytuning": 0.6}))))
    assert re.search(r"^ encoder +score .* +to a *$", one, re.MULTILINE)


@pytest.mark.parametrize("methods", [["ytuning"], ["ytuning", "logistic"]])
def test_names_and_figures_of_encoders_are_not_folded(methods: list[str]) -> None:
    work = work_of()
    names = ["sentence-transformers/all-MiniLM-L6-v2", "/tmp/all-mpnet-base-v2"]
    runs = [fake_run(method, replace(work, encoder=name), 0) for name in names for method in methods]
    big = [replace(run, encoder={**run.encoder, "parameters": 109_486_464}) for run in runs]
    text = printed(standings_of(comparison_of(work, big)))
    rows = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith(" all-")]
    assert rows == [name.rsplit("/")[-1] for name in names for _ in methods] * 3
    number = r"0\.\d{4}"
    assert len(re.findall(rf"{number} \({number} to {number}\)  ", text)) == len(runs)
    assert len(re.findall(rf"~ [+-]{number} \([+-]{number} to [+-]{number}\)", text)) == len(runs) - 1


def test_table_of_validation_rows_says_so_first() -> None:
    work = work_of(test=False)
    text = printed(standings_of(comparison_of(work, [fake_run("ytuning", work, 0)])))
    assert text.startswith("There is no test set, so these scores are from the validation set")
    assert "60 validation rows" in text and re.search(r"1 seed *\n", text)


def test_files(standings: Standings, tmp_path: Path) -> None:
    write_standings(standings, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"comparison.json", "comparison.html"}
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found == standings.to_json()
    assert set(found["methods"]) == {"ytuning", "logistic", "full"}
    assert set(found["methods"]["full"]) == {
        "score", "difference", "parameters", "seconds", "seconds_with_stored_features", "peak_bytes", "stored_bytes",
        "bytes_per_text", "texts_per_second", "told_apart", "runs",
    }  # fmt: skip
    assert found["versions"]["torch"] and "predicted" not in found["methods"]["full"]["runs"][0]


class Page(HTMLParser):
    """Tags that are open, texts, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "srcset", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page_is_whole_and_loads_nothing(standings: Standings, tmp_path: Path) -> None:
    write_standings(standings, tmp_path)
    content = (tmp_path / "comparison.html").read_text()
    page = Page()
    page.feed(content.replace("<!DOCTYPE html>", ""))
    assert page.open == [] and page.links == [] and "://" not in content
    assert content.index("default-src 'none'") < content.index("<title>")
    assert any(text.startswith(ESCAPED) for text in page.texts) and "prefers-color-scheme: dark" in content
    assert any("the package 'peft' is <not> installed" in text for text in page.texts)
    assert {"ytuning", "logistic", "full"} <= set(re.findall(r"<tr(?: class=\"ours\")?><td>(\w+)</td>", content))


def test_a_folder_that_cannot_be_written(standings: Standings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot write .*nowhere.*Choose another path with --out\.$"):
        write_standings(standings, tmp_path / "nowhere")


def test_chart(standings: Standings) -> None:
    figure = score_against_cost(standings)
    # Each method has a mark and an interval, and two of them a hollow mark for stored features.
    kinds = [kind for _, _, kind, _ in figure.dots]
    assert sorted(kinds) == sorted([kind for kind, _ in figure.lines])
    assert kinds.count("ours") == kinds.count("stored ours") == 1 and kinds.count("others") == 2
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for _, corners in figure.lines for x, y in corners)
    assert [name.text for name in figure.names] == ["ytuning", "logistic", "full"]
    assert [name.kind for name in figure.names] == ["ours", "others", "others"]


def test_names_in_a_chart_stay_inside_it() -> None:
    work = work_of()
    runs = [
        replace(fake_run("ytuning", replace(work, encoder=f"encoder-with-a-long-name-{number}"), 0), seconds=seconds)
        for number, seconds in enumerate((1.0, 40.0, 100.0))
    ]
    for name in score_against_cost(standings_of(comparison_of(work, runs))).names:
        width = (8 if name.kind == "ours" else 6.6) * len(name.text)
        left = name.x - (width if name.side == "end" else 0)
        assert left >= 0 and left + width <= WIDTH, name


def test_chart_of_one_method_and_of_equal_points(standings: Standings) -> None:
    one = replace(standings, methods=standings.methods[:1])
    same = replace(standings, methods=[replace(standings.methods[0], method=name) for name in "abcdefgh"])
    for chosen in (one, same):
        figure = score_against_cost(chosen)
        assert len(figure.names) == len(chosen.methods) and len(figure.x.ticks) > 1
    # As long as there is room, no name hides another.
    places = [(name.x, name.y) for name in score_against_cost(same).names]
    assert len(set(places[:4])) == 4

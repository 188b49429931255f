"""The HTML reports in a real browser: what can be seen, at which widths, with the keyboard, and in the dark."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.browser import DESKTOP, PHONE, Browser, overflow
from tests.cli.test_cli import QUICK
from tests.compare.test_compare import Starts
from tests.conftest import build_tiny_encoder
from tests.reports.test_html import HOSTILE, contrast
from ytuning.cli import program as cli
from ytuning.heads.pooled import PooledConfig
from ytuning.training import recipes
from ytuning.training.recipes import Recipe

if TYPE_CHECKING:
    from playwright.sync_api import Page

RTL = "\u05d0\u05d1\u05d2 \u05d3\u05d4 \u05d5\u05d6"
EVIL = [
    "<script>window.ran = 1</script>",
    '"><img src=x onerror="window.ran = 1">',
    RTL,
    "\U0001f600 \U0001f469\u200d\U0001f680",
    'it\'s "a" & b',
]
LONG = "a_label_whose_name_does_not_end_" + "W" * 80
PAGES = ["train", "evaluate", "multi", "regression", "hostile", "many", "comparison", "failing", "encoders"]


def write(path: Path, header: str, *columns: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([header.split(), *zip(*columns, strict=True)])


def write_tables(folder: Path, texts: list[str], labels: list[str]) -> None:
    write(folder / "train.csv", "text label", texts[:100], labels[:100])
    write(folder / "test.csv", "text label", texts[100:], labels[100:])
    flags = [[int(label == name) for label in labels] for name in ("card", "refund")]
    write(folder / "multi.csv", "text card refund", texts, *flags)
    write(folder / "regression.csv", "text label", texts, [len(text) / 8 for text in texts])
    names = [EVIL[row % len(EVIL)] for row in range(len(texts))]
    hostile = [f"{text} {' '.join(HOSTILE)}" if row % 2 else f"{RTL} {text}" for row, text in enumerate(texts)]
    write(folder / "hostile.csv", "text label", hostile, names)
    many = [f"{LONG}{row % 40}" for row in range(len(texts))]
    endless = [f"{'card' * 200} {text}" if row % 2 else text for row, text in enumerate(texts)]
    write(folder / "many.csv", "text label", endless, many)


def failing(name: str, *arguments: Any) -> Any:
    """Stands in for runs, one of which ends with a message that would be a script."""
    if name == "full":
        raise ValueError(EVIL[0])
    return Starts()(name, *arguments)


@pytest.fixture(scope="module")
def pages(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """The file of a report, which the command line has written."""
    folder = tmp_path_factory.mktemp("pages")
    write_tables(folder, *toy_rows)
    build_tiny_encoder(folder / "other", seed=1)
    encoder = ["--encoder", str(tiny_encoder)]
    train = ["train", *encoder, "--out", "toy", "--quiet"]
    compare = ["compare", "train.csv", *encoder, "--seeds", "2", "--quiet", "--methods"]
    commands = {
        "train": [*train, "train.csv", "--test", "test.csv", "--report", "train.html"],
        "evaluate": ["evaluate", "toy", "test.csv", "--quiet", "--report", "evaluate.html"],
        "multi": [*train, "multi.csv", "--label", "card,refund", "--report", "multi.html"],
        "regression": [*train, "regression.csv", "--report", "regression.html"],
        "hostile": [*train, "hostile.csv", "--test", "hostile.csv", "--report", "hostile.html"],
        "many": [*train, "many.csv", "--report", "many.html"],
        "comparison": [*compare, "ytuning,logistic,full", "--test", "test.csv", "--out", "comparison"],
        "failing": [*compare, "ytuning,full", "--out", "failing"],
        "encoders": [
            "compare",
            "train.csv",
            "--test",
            "test.csv",
            "--encoders",
            f"{tiny_encoder},other",
            "--out",
            "encoders",
        ],
    }
    start: dict[str, Any] = {"comparison": Starts(), "failing": failing, "encoders": Starts()}

    def page(name: str) -> Path:
        compared = folder / name / "comparison.html"
        file = compared if name in start else folder / f"{name}.html"
        if not file.exists():
            if name == "evaluate":
                page("train")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setenv("YTUNING_CACHE", str(folder / "store"))
                patch.setitem(recipes.PRESETS, "default", lambda: Recipe(PooledConfig(side_by_side=4, width=16), QUICK))
                patch.setattr("ytuning.compare.compare.in_own_process", start.get(name))
                said = io.StringIO()
                with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as stop:
                    cli.main(commands[name])
                assert stop.value.code == 0, said.getvalue()
        return file

    yield page


def colour(page: Page, selector: str, name: str) -> tuple[float, ...]:
    """Red, green and blue of what is computed for the first such element."""
    value = page.locator(selector).first.evaluate("(element, name) => getComputedStyle(element)[name]", name)
    return tuple(float(part) for part in re.findall(r"[\d.]+", value)[:3])


# --- what can be seen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_and_is_no_wider_than_its_window(
    name: str, size: tuple[int, int], browser: Browser, pages: Callable[[str], Path]
) -> None:
    with browser.open(pages(name), size) as page:
        assert page.locator("h1").is_visible() and page.title()
        assert overflow(page) == []
        page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true })")
        assert overflow(page) == []
        if size == PHONE:
            page.set_viewport_size({"width": 320, "height": 640})
            assert overflow(page) == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_training_report(size: tuple[int, int], browser: Browser, pages: Callable[[str], Path]) -> None:
    with browser.open(pages("train"), size) as page:
        assert page.title() == "toy, test" == page.locator("h1").inner_text()
        for name in ("Metrics", "Labels", "Confusion", "Calibration", "Training", "Worst mistakes"):
            assert page.get_by_role("heading", name=name, exact=True).is_visible()
        assert page.locator("dt", has_text="accuracy").first.is_visible()
        matrix = page.get_by_role("table", name="Confusion matrix")
        cells = matrix.locator("td").all_inner_texts()
        assert len(cells) == 9 and sum(map(int, cells)) == 20
        assert matrix.locator("th[scope=row]").all_inner_texts() == ["card", "login", "refund"]
        for drawing, line in (("Reliability", "main"), ("Validation accuracy", "main"), ("Validation loss", "main")):
            image = page.get_by_role("img", name=re.compile(f"^{drawing}"))
            assert image.is_visible()
            box = image.locator(f".line.{line}").bounding_box()
            assert box is not None and box["width"] > 40, "the curve is drawn, and large enough"
        check_mistakes(page)


def test_an_evaluation_report(browser: Browser, pages: Callable[[str], Path]) -> None:
    with browser.open(pages("evaluate")) as page:
        assert page.title() == "toy on test.csv"
        assert page.get_by_role("table", name="Confusion matrix").is_visible()
        assert page.get_by_role("img", name=re.compile("^Reliability")).is_visible()
        assert page.get_by_role("heading", name="Training").count() == 0
        check_mistakes(page)


def check_mistakes(page: Page) -> None:
    """Rows with texts, in which some tokens have a ground and some a line below that can be told from the page's."""
    texts = page.locator(".mistakes .text")
    assert texts.count() > 0 and texts.first.is_visible()
    drawn = page.locator(".mistakes mark").evaluate_all(
        """marks => marks.map(mark => {
            const style = getComputedStyle(mark), alpha = text => Number(text.match(/[\\d.]+(?=\\)$)/));
            const solid = text => text.startsWith("rgb(") ? 1 : alpha(text);
            return [solid(style.backgroundColor), solid(style.borderBottomColor)];
        })"""
    )
    assert max(ground for ground, _ in drawn) > 0.3 and max(line for _, line in drawn) > 0.3
    assert all(mark.is_visible() for mark in page.locator(".legend mark").all())


def test_a_report_of_several_labels_and_one_of_numbers(browser: Browser, pages: Callable[[str], Path]) -> None:
    with browser.open(pages("multi")) as page:
        assert page.get_by_role("columnheader", name="threshold").is_visible()
        assert page.locator("th[scope=row]").all_inner_texts() == ["card", "refund"]
    with browser.open(pages("regression")) as page:
        for drawing in ("Predicted by true numbers", "Errors"):
            assert page.get_by_role("img", name=re.compile(f"^{drawing}")).is_visible()
        assert page.get_by_role("heading", name="Predictions").is_visible()


def test_words_in_drawings_are_over_no_others_and_over_no_point(browser: Browser, pages: Callable[[str], Path]) -> None:
    for name in ("train", "multi", "regression", "hostile"):
        with browser.open(pages(name)) as page:
            for image in page.locator("svg").all():
                boxes = image.locator("text, circle.chosen").evaluate_all(
                    "all => all.map(each => [each.textContent, each.getBoundingClientRect().toJSON()])"
                )
                for (one, a), (other, b) in itertools.combinations(boxes, 2):
                    apart = a["right"] <= b["left"] or b["right"] <= a["left"]
                    assert apart or a["bottom"] <= b["top"] or b["bottom"] <= a["top"], (name, one, other)


def test_a_comparison(browser: Browser, pages: Callable[[str], Path]) -> None:
    with browser.open(pages("comparison")) as page:
        assert page.title().startswith("Comparison: train.csv: accuracy on 20 test rows")
        rows = page.get_by_role("region", name="Methods").locator("tbody tr")
        assert [row.locator("td").first.inner_text() for row in rows.all()] == ["ytuning", "logistic", "full"]
        assert page.get_by_role("region", name="Seed by seed").locator("tbody tr").count() == 6
        chart = page.get_by_role("img", name=re.compile("^Score against cost"))
        assert chart.is_visible() and chart.locator("text", has_text="logistic").is_visible()
        for region in ("Methods", "Costs", "Storing and serving"):
            width = page.get_by_role("region", name=region).evaluate("part => part.scrollWidth - part.clientWidth")
            assert width == 0, "on a desktop the tables are seen as a whole"
    with browser.open(pages("failing")) as page:
        assert page.get_by_text("There is no test set").is_visible()
        assert page.get_by_text(f"full was left out: ValueError: {EVIL[0]}").is_visible()


def test_a_comparison_of_encoders(browser: Browser, pages: Callable[[str], Path], tiny_encoder: Path) -> None:
    with browser.open(pages("encoders")) as page:
        assert page.locator("h1").inner_text() == "Comparison of encoders"
        names = [tiny_encoder.name, "other"]
        for region in ("Encoders", "Costs", "Storing and serving"):
            table = page.get_by_role("region", name=region)
            assert [row.locator("td").first.inner_text() for row in table.locator("tbody tr").all()] == names
            assert table.evaluate("region => region.scrollWidth - region.clientWidth") == 0
        chart = page.get_by_role("img", name=re.compile("^Score against cost. accuracy of each encoder"))
        assert all(chart.locator("text", has_text=name).is_visible() for name in names)


def test_columns_that_are_scrolled_keep_the_names_of_their_rows(browser: Browser, pages: Callable[[str], Path]) -> None:
    with browser.open(pages("comparison"), PHONE) as page:
        region = page.get_by_role("region", name="Seed by seed")
        name = region.locator("tbody td").first
        before = name.bounding_box()
        assert region.evaluate("region => { region.scrollLeft = 100; return region.scrollLeft }") == 100
        assert name.bounding_box() == before and before is not None
        assert name.evaluate("cell => getComputedStyle(cell).backgroundColor") != "rgba(0, 0, 0, 0)"


# --- hostile texts --------------------------------------------------------------------------------------------------


def test_hostile_labels_and_texts_are_shown_and_run_nothing(browser: Browser, pages: Callable[[str], Path]) -> None:
    with browser.open(pages("hostile")) as page:
        assert page.evaluate("[typeof window.ran, document.scripts.length, document.images.length]") == [
            "undefined",
            0,
            0,
        ]
        names = page.locator("#labels tbody th").all_inner_texts()
        assert set(names) == set(EVIL)
        assert set(page.locator(".matrix tbody th").all_inner_texts()) <= set(EVIL)
        texts = page.locator(".mistakes .text").all_inner_texts()
        assert any("<script>alert('card')</script> & \"refund\" ]]> --> {{ 7 * 7 }}" in text for text in texts)
        assert any("\u2400" in text for text in texts), "a character that cannot be shown has one in its place"
        right = page.locator(".mistakes .text").evaluate_all(
            "texts => texts.filter(text => getComputedStyle(text).direction == 'rtl').map(text => text.innerText)"
        )
        assert right and all(text.startswith(RTL) for text in right)
    with browser.open(pages("failing")) as page:
        assert page.evaluate("[typeof window.ran, document.scripts.length]") == ["undefined", 0]


def test_the_pages_forbid_scripts_and_network(browser: Browser, pages: Callable[[str], Path]) -> None:
    """Even where something were put in unescaped."""
    evil = "<img src=https://example.org/x><script>window.ran = 1</script>"
    for name in ("train", "comparison"):
        file = pages(name)
        (changed := file.with_name("changed.html")).write_text(
            file.read_text(encoding="utf-8").replace("</h1>", f"</h1>{evil}"), encoding="utf-8"
        )
        with browser.open(changed) as page:
            assert page.evaluate("typeof window.ran") == "undefined"
            assert sum("Content Security Policy" in said for said in browser.complaints) == 2
            assert "failed: https://example.org/x" in browser.complaints
            browser.complaints.clear()


# --- keyboard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "comparison"])
def test_the_keyboard_reaches_everything_and_shows_where_it_is(
    name: str, browser: Browser, pages: Callable[[str], Path]
) -> None:
    with browser.open(pages(name), PHONE) as page:
        wanted = page.locator("a[href], summary, [tabindex='0']").evaluate_all(
            "all => all.filter(each => each.checkVisibility()).length"
        )
        seen = []
        for _ in range(wanted):
            page.keyboard.press("Tab")
            outline = "element => [element.outerHTML.slice(0, 80), getComputedStyle(element).outlineStyle]"
            place, style = page.evaluate_handle("document.activeElement").evaluate(outline)
            assert style == "solid", place
            seen.append(place)
        assert len(set(seen)) == wanted > 2


def test_the_keyboard_skips_opens_and_scrolls(browser: Browser, pages: Callable[[str], Path]) -> None:
    with browser.open(pages("many"), PHONE) as page:
        page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip to the metrics")
        box = skip.bounding_box()
        assert box is not None and box["x"] >= 0 and skip.evaluate("link => link == document.activeElement")
        page.keyboard.press("Enter")
        assert page.url.endswith("#figures")
        table = page.get_by_role("region", name=re.compile("Reliability .*numbers"))
        assert not table.is_visible()
        page.locator("#drawings summary").focus()
        page.keyboard.press("Enter")
        assert table.is_visible()
        matrix = page.get_by_role("region", name="Confusion matrix")
        matrix.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        assert matrix.evaluate("region => region.scrollLeft") > 0


# --- light and dark -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "comparison"])
def test_light_and_dark(name: str, browser: Browser, pages: Callable[[str], Path]) -> None:
    grounds = []
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        with browser.open(pages(name), scheme=scheme) as page:
            ground = colour(page, "body", "backgroundColor")
            grounds.append(sum(ground))
            assert contrast(colour(page, "h1", "color"), ground) > 7
            assert contrast(colour(page, ".soft, .note", "color"), ground) > 4.5
    assert grounds[0] > 3 * 200 and grounds[1] < 3 * 60


def test_what_a_page_asks_for_over_the_network_is_found(browser: Browser, tmp_path: Path) -> None:
    """The tests above could not pass a page that does."""
    bad = "<script>console.error('x'); alert(1); nothing.at.all</script><img src='http://127.0.0.1:9/x.png'>"
    (tmp_path / "bad.html").write_text(f"<title>x</title><body style='width: 2000px'>{bad}", encoding="utf-8")
    with browser.open(tmp_path / "bad.html", PHONE) as page:
        page.wait_for_load_state("networkidle")
        assert overflow(page)
        kinds = {said.partition(":")[0] for said in browser.complaints}
        assert kinds >= {"console error", "dialog", "script", "network", "failed"}
        browser.complaints.clear()

"""The server's page with hundreds of tasks: groups, search, filters, the keyboard, phones, columns of a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import DESKTOP, PHONE, Browser, overflow
from tests.reports.test_html import contrast
from tests.reports.test_pages import LONG, colour
from tests.server.page_server import Served, Task, served, task
from tests.server.test_page import card, choose, download, marks, rows, search, write

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

TEAMS = ("billing", "moderation", "routing")
# The number, the pair and the two others are in no group.
TASKS = [
    *(
        task(f"{team}-{number}", [f"{team} no", "refund" if number == 7 else "late"])
        for team in TEAMS
        for number in range(98)
    ),
    *(task(f"tag_{number}", ["rude", "spam"], "multi") for number in (1, 2)),
    task("length", [], "regression"),
    task("same", ["yes", "no"], pair="separate"),
    task("topic", ["sport", "money"]),
    task("stars", ["1", "2", "3"], "ordinal"),
]


@pytest.fixture
def stub() -> Iterator[Served]:
    """A server of 300 tasks."""
    assert len(TASKS) == 300
    with served(list(TASKS)) as stub:
        yield stub


def line(page: Page, name: str) -> Locator:
    return card(page, name).locator(".line")


def said(page: Page, name: str) -> list[str]:
    """The parts of a line that can be seen: its answer, badges and probability."""
    # Not the inner text, which is empty for what is not on the screen.
    return [part for part in line(page, name).locator(".given, .badge, .score").all_text_contents() if part]


def shown(page: Page) -> list[str]:
    """The names of the tasks that are shown, in order."""
    names: list[str] = page.locator("article:visible").evaluate_all("all => all.map(each => each.ariaLabel)")
    return names


def titles(page: Page) -> list[str]:
    return [" ".join(title.split()) for title in page.locator(".group:not([hidden]) .fold").all_text_contents()]


def least(page: Page, probability: float) -> None:
    page.get_by_role("slider", name="Least probability").fill(str(probability))


def counts(page: Page) -> str:
    return page.locator("#left-over").inner_text()


def focused(page: Page) -> str:
    """The text of what has the focus."""
    text: str = page.evaluate("document.activeElement.textContent")
    return " ".join(text.split())


# --- lines and groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_each_task_is_a_line_in_a_group_and_unfolds(size: tuple[int, int], browser: Browser, stub: Served) -> None:
    with browser.open(stub.address, size) as page:
        write(page, "refund of money")
        assert titles(page) == [*(f"{team} 98 tasks" for team in TEAMS), "Other tasks 6 tasks"]
        assert len(shown(page)) == 300 and overflow(page) == []
        assert said(page, "billing-7") == ["refund", "0.5000"] and said(page, "billing-8") == ["billing no", "0.5000"]
        assert said(page, "tag_1") == ["no label"] and said(page, "length") == ["-1.875"]
        assert said(page, "same") == ["needs a second text"]
        assert page.get_by_role("status").inner_text() == "299 answers. All are shown."
        heights = page.locator(".line").evaluate_all("all => all.slice(0, 20).map(line => line.offsetHeight)")
        assert max(heights) <= 45, "one line"
        line(page, "billing-7").click()
        assert rows(page, "billing-7") == ["refund 0.5000", "billing no 0.2500"]
        assert "billing-7: one of 2 labels" in card(page, "billing-7").inner_text()
        card(page, "billing-7").get_by_role("button", name="billing no").click()
        page.get_by_role("heading", name="Evidence for billing no").wait_for()
        page.get_by_role("button", name="Close").click()
        line(page, "billing-7").click()
        assert not card(page, "billing-7").locator(".row").first.is_visible()
        page.get_by_role("button", name="Fold all groups").click()
        assert shown(page) == [] and len(titles(page)) == 4
        page.get_by_role("button", name="routing").click()
        assert shown(page) == [f"routing-{number}" for number in range(98)]
        page.get_by_role("button", name="Fold all groups").click()
        page.get_by_role("button", name="Unfold all groups").click()
        assert len(shown(page)) == 300


@pytest.mark.parametrize(
    ("beginnings", "expected"),
    [
        ({"a-": 5, "a/": 1, "b_": 2, "": 6}, ["a 6 tasks", "Other tasks 8 tasks"]),
        ({"x/a.": 3, "x/b.": 12}, ["x/a 3 tasks", "x/b 12 tasks"]),
        ({"b-": 1, "a/": 9, "b.": 4}, ["b 5 tasks", "a 9 tasks"]),
        ({"a_": 20}, []),
        ({"_": 8, "a": 8}, []),
    ],
)
def test_names_that_begin_alike_are_a_group(beginnings: dict[str, int], expected: list[str], browser: Browser) -> None:
    names = [f"{beginning}{number}" for beginning, count in beginnings.items() for number in range(count)]
    with served([task(name, ["yes", "no"]) for name in names]) as stub, browser.open(stub.address) as page:
        write(page, "yes")
        assert titles(page) == expected
        assert sorted(shown(page)) == sorted(names)
        assert page.get_by_role("button", name="Fold all groups").is_visible() is bool(expected)
        assert page.locator(".line .name").first.text_content() in names


def test_an_answer_changes_the_lines_and_makes_none_anew(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        write(page, "nothing")
        line(page, "billing-7").click()
        page.evaluate("""() => {
            window.made = 0;
            const count = (records) => (window.made += records.reduce((sum, each) => sum + each.addedNodes.length, 0));
            window.watch = new MutationObserver(count);
            window.watch.observe(document.getElementById("cards"), {childList: true, subtree: true});
            window.before = [...document.querySelectorAll(".line, .row")];
        }""")
        write(page, "nothing else")
        assert page.evaluate("window.made") == 1, "one task has another number"
        write(page, "a refund")
        assert said(page, "billing-7") == ["refund", "0.5000"]
        assert rows(page, "billing-7") == ["refund 0.5000", "billing no 0.2500"]
        assert page.evaluate("window.made") < 20, "of the three tasks with another answer"
        assert page.evaluate("window.before.every(each => each.isConnected)")
        kept = "[...document.querySelectorAll('.line, .row')].every(each => window.before.includes(each))"
        assert page.evaluate(kept)
        page.evaluate("window.made = 0")
        search(page, "refund")
        assert len(shown(page)) == 3 and page.evaluate("window.made") <= 8, "the counts of the groups"


# --- search and filters -----------------------------------------------------------------------------------------------


def test_search_in_tasks_labels_and_answers(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        write(page, "a refund")
        search(page, "REFUND")
        assert shown(page) == [f"{team}-7" for team in TEAMS], "by a label"
        assert titles(page) == [f"{team} 1 of 98 tasks" for team in TEAMS]
        assert counts(page) == "3 of 300 tasks"
        assert page.get_by_role("status").inner_text() == "3 of 300 tasks"
        place = page.get_by_role("combobox", name="Search in")
        place.select_option("tasks")
        assert shown(page) == [] and page.get_by_text("No task fits.").is_visible()
        search(page, "tag")
        assert shown(page) == ["tag_1", "tag_2"]
        place.select_option("answers")
        search(page, "refund")
        assert shown(page) == [f"{team}-7" for team in TEAMS]
        write(page, "late")
        assert "billing-7" not in shown(page), "another text has other answers"
        search(page, "late")
        assert len(shown(page)) == 3 * 97
        # What is found is shown, also in a group that was folded.
        search(page, "")
        page.get_by_role("button", name="Fold all groups").click()
        place.select_option("tasks")
        search(page, "routing-9")
        assert shown(page) == ["routing-9", *(f"routing-{number}" for number in range(90, 98))]


def test_only_answers_above_a_probability_and_how_many_are_hidden(browser: Browser, stub: Served) -> None:
    def results(task: Task, content: Any) -> dict[str, Any] | None:
        if task["name"] == "billing-0":
            return {"answer": None, "scores": [{"label": "late", "score": 0.9}], "truncated": False}
        if task["name"] == "tag_1":
            scores = [{"label": "rude", "score": 0.8}, {"label": "spam", "score": 0.7}]
            return {"answer": ["spam", "rude"], "scores": scores, "truncated": False}
        return None

    stub.results = results
    with browser.open(stub.address) as page:
        least(page, 0.8)
        assert counts(page) == "" and len(shown(page)) == 300, "there are no answers yet"
        write(page, "late")
        assert shown(page) == ["tag_1", "length"], "the best label of several counts, and numbers have no probability"
        assert counts(page) == "2 of 300 tasks; hidden: 298 below the least probability"
        assert page.get_by_role("status").inner_text() == f"299 answers. {counts(page)}"
        least(page, 0.5)
        assert len(shown(page)) == 300 - 3, "without an answer are the pair, a tag, and the task that abstains"
        least(page, 0)
        assert said(page, "billing-0") == ["abstained"]
        assert len(shown(page)) == 300 and counts(page) == ""


def test_which_head_answered_and_what_is_out_of_scope(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        write(page, "late")
        assert page.locator(".badge").count() == 0 and not page.get_by_label("Hide out of scope").is_visible()

        def results(task: Task, content: Any) -> dict[str, Any]:
            number = int(task["name"][-1]) if task["name"][-1].isdigit() else 0
            scores = [{"label": label, "score": 0.4} for label in task["labels"]]
            fields = {"head": "light" if number % 2 else "default", "out_of_scope": number == 3}
            return {"answer": task["labels"][0] if scores else 1.5, "scores": scores, "truncated": False, **fields}

        stub.results = results
        write(page, "later")
        assert said(page, "billing-3") == ["billing no", "out of scope", "light head", "0.4000"]
        assert said(page, "billing-4") == ["billing no", "default head", "0.4000"]
        page.get_by_label("Hide out of scope").check()
        assert not any(name.endswith("3") for name in shown(page)) and len(shown(page)) == 270
        assert counts(page) == "270 of 300 tasks; hidden: 30 out of scope"
        least(page, 0.5)
        assert counts(page) == "1 of 300 tasks; hidden: 299 below the least probability", "each is counted once"
        stub.results = lambda task, content: None
        write(page, "late")
        assert page.locator(".badge").count() == 0 and not page.get_by_label("Hide out of scope").is_visible()
    with served(TASKS[:5]) as few, browser.open(few.address) as page:
        few.results = results
        write(page, "late")
        assert card(page, "billing-3").locator(".badge").all_inner_texts() == ["out of scope", "light head"]


# --- the keyboard -----------------------------------------------------------------------------------------------------


def test_all_tasks_are_one_stop_of_the_tab_key_and_arrows_move(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        write(page, "refund good")
        page.get_by_role("searchbox", name="Search", exact=True).focus()
        order = ["Search in", "Least probability", "Fold all groups", "billing", "Choose a CSV file, or drop it here"]
        for name in order:
            page.keyboard.press("Tab")
            given = "document.activeElement.ariaLabel || document.activeElement.labels?.[0]?.textContent || ''"
            assert name in page.evaluate(given) + focused(page)
        page.keyboard.press("Shift+Tab")
        assert focused(page).startswith("billing 98 tasks"), "the first stop is the title of a group"
        for key, there in [
            ("ArrowDown", "billing-0"),
            ("ArrowDown", "billing-1"),
            ("ArrowUp", "billing-0"),
            ("End", "stars"),
            ("Home", "billing 98 tasks"),
            ("ArrowLeft", "billing 98 tasks"),
            ("ArrowDown", "moderation 98 tasks"),
            ("ArrowUp", "billing 98 tasks"),
            ("ArrowRight", "billing 98 tasks"),
            ("ArrowDown", "billing-0"),
            ("ArrowLeft", "billing 98 tasks"),
            ("ArrowDown", "billing-0"),
        ]:
            page.keyboard.press(key)
            assert focused(page).startswith(there), key
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        # A line unfolds, the Tab key goes on to its labels, and on from them.
        page.keyboard.press("Enter")
        assert line(page, "billing-0").get_attribute("aria-expanded") == "true"
        page.keyboard.press("Tab")
        assert focused(page).startswith("billing no")
        assert marks(page) == [("good", "towards")]
        page.keyboard.press("ArrowDown")
        assert focused(page).startswith("late")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "csv", "no trap"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        assert focused(page).startswith("billing-0")
        page.keyboard.press("ArrowLeft")
        assert line(page, "billing-0").get_attribute("aria-expanded") == "false"


def test_the_focus_is_not_lost_when_its_line_is_hidden(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        write(page, "refund")
        text = page.get_by_role("textbox", name="Text", exact=True)
        page.get_by_role("combobox", name="Search in").select_option("answers")
        search(page, "refund")
        # The answers come while the focus is on a line, or on a label below it.
        for unfold in (False, True):
            text.fill("late")
            line(page, "billing-7").focus()
            if unfold:
                page.keyboard.press("Enter")
                page.keyboard.press("Tab")
            page.get_by_text("No task fits.").wait_for()
            assert page.evaluate("document.activeElement.id") == "tasks"
            write(page, "refund")
        search(page, "")
        line(page, "billing-7").focus()
        page.evaluate("""() => { const field = document.getElementById("search"); field.value = "routing";
            field.dispatchEvent(new Event("input")) }""")
        page.get_by_role("combobox", name="Search in").select_option("tasks")
        page.locator("#least").press("Tab")
        page.keyboard.press("Tab")
        assert focused(page).startswith("routing"), "the nearest that is left"


# --- phones and columns -----------------------------------------------------------------------------------------------


def test_a_phone_has_large_targets_and_names_for_all_controls(browser: Browser, stub: Served) -> None:
    stub.tasks = [*TASKS, task(f"{LONG}_1", [LONG, "yes"])]
    stub.results = lambda task, content: {
        "answer": (task["labels"] or [1.0])[0],
        "scores": [{"label": label, "score": 0.4} for label in task["labels"]],
        "truncated": True,
        "head": "light",
        "out_of_scope": task["name"] == "billing-1",
    }
    with browser.open(stub.address, PHONE) as page:
        write(page, "late")
        choose(page, "text\nlate")
        page.get_by_text("Columns: 300 of 301 tasks").tap()
        for name in ("billing-1", "stars", f"{LONG}_1"):
            line(page, name).tap()
        page.get_by_role("button", name="Classify with 300 tasks").tap()
        page.locator("#far", has_text="1 row in").wait_for()
        assert overflow(page) == []
        found = page.evaluate("""() => {
            const all = [...document.querySelectorAll("button, select, textarea, summary, a[href], input")];
            return all.filter(each => !each.closest("[hidden], .skip")).map(each => {
                const target = each.type === "checkbox" ? each.labels[0] : each;
                const name = each.ariaLabel || each.labels?.[0]?.textContent || each.textContent;
                return [each.outerHTML.slice(0, 80), target.getBoundingClientRect().height, name.trim()];
            });
        }""")
        assert len(found) > 600
        assert [each for each in found if each[1] < 40] == []
        assert [each for each in found if not each[2]] == []
        page.set_viewport_size({"width": 320, "height": 640})
        assert overflow(page) == []


def test_the_tasks_that_become_columns_can_be_chosen(browser: Browser, stub: Served, tmp_path: Path) -> None:
    with browser.open(stub.address) as page:
        choose(page, "text\n" + "late\n" * 150)
        start = page.locator("#start", has_text="tasks")
        assert start.inner_text() == "Classify with 299 tasks"
        start.click()
        page.locator("#far", has_text="150 rows in").wait_for()
        asked = stub.classified()
        assert {body["top_k"] for body in asked} == {1}, "scores of other labels are not sent"
        assert [len(body["input"]) for body in asked] == [66, 66, 18], "so that no request takes too long"
        assert page.locator("tbody tr").count() == 20 and page.get_by_text("The first 20 rows").is_visible()
        search(page, "tag")
        assert start.inner_text() == "Classify with 2 tasks that the search leaves"
        page.get_by_text("Columns: 2 of 300 tasks").click()
        boxes = page.get_by_role("group", name="Tasks that become columns")
        boxes.get_by_label("topic", exact=True).check()
        search(page, "")
        assert start.inner_text() == "Classify with 3 tasks that are ticked"
        # All boxes are one stop of the Tab key.
        page.get_by_role("button", name="Follow the search").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("End")
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        assert focused(page) == "Classify with 4 tasks that are ticked"
        page.keyboard.press("Enter")
        page.locator("#far", has_text="150 rows in").wait_for()
        saved = list(csv.reader(io.StringIO(download(page, tmp_path))))
        assert saved[1] == ["late", "[]", "[]", "sport", "1"] and len(saved) == 151
        assert saved[0] == ["text", "tag_1", "tag_2", "topic", "stars"]
        page.get_by_role("button", name="Tick none").click()
        assert start.is_disabled()
        page.get_by_role("button", name="Tick all").click()
        assert start.inner_text() == "Classify with 299 tasks that are ticked"
        page.get_by_role("button", name="Follow the search").click()
        assert start.inner_text() == "Classify with 299 tasks"


def test_lines_can_be_read_in_the_light_and_the_dark(browser: Browser, stub: Served) -> None:
    stub.results = lambda task, content: {"answer": None, "scores": [], "truncated": False, "head": "light"}
    for scheme in ("light", "dark"):
        with browser.open(stub.address, scheme=scheme) as page:
            write(page, "late")
            sheet = colour(page, "section", "backgroundColor")
            for place in (".line .given", ".badge", ".line .name", ".fold .note"):
                assert contrast(colour(page, place, "color"), sheet) > 4.5

"""The server's page in a real browser, with canned replies: typing, explanations, files, refusals, phones, the dark."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.browser import PHONE, Browser, overflow
from tests.reports.test_html import HOSTILE, contrast
from tests.reports.test_pages import EVIL, LONG, colour
from tests.server.page_server import PAGE, Served, served, task
from ytuning.reports import html as html_report

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

TOPIC = task("topic", ["sport", "money", "travel", "food", "music", "law", "health"])
TASKS = [
    TOPIC,
    task("stars", ["1", "2", "3"], "ordinal"),
    task("tags", ["rude", "spam", "joke"], "multi"),
    task("length", [], "regression"),
    task("same", ["yes", "no"], pair="separate"),
]
REFUSED = ("console error: Failed to load resource", "failed: http://127.0.0.1")


@pytest.fixture
def stub() -> Iterator[Served]:
    """A server of a task of every kind."""
    with served(list(TASKS)) as stub:
        yield stub


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def rows(page: Page, name: str) -> list[str]:
    """The labels of a task as they are shown, each with its score."""
    return [" ".join(row.split()) for row in card(page, name).locator(".row").all_inner_texts()]


def search(page: Page, text: str) -> None:
    page.get_by_role("searchbox", name="Search", exact=True).fill(text)


def marks(page: Page) -> list[tuple[str, str]]:
    """The marked parts of the text, and whether they speak for or against the label."""
    page.locator("#why mark[title]").first.wait_for()
    found = page.locator("#why-texts mark").evaluate_all("all => all.map(mark => [mark.textContent, mark.className])")
    return [(text, kind) for text, kind in found]


def write(page: Page, text: str, second: str = "") -> None:
    """Types texts and waits for the answers."""
    page.locator("#latency", has_text="The answer took").or_(page.locator("#latency:empty")).wait_for(state="attached")
    page.evaluate("document.getElementById('latency').textContent = ''")
    if second:
        page.get_by_role("textbox", name="Second text").fill(second)
    page.get_by_role("textbox", name="Text", exact=True).fill(text)
    page.get_by_text("The answer took").wait_for()


# --- a text ---------------------------------------------------------------------------------------------------------


def test_typing_shows_each_task_s_answer_and_bars(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        page.get_by_text("The server has 5 tasks on 1 encoder. Version 0.1.0.").wait_for()
        page.get_by_role("textbox", name="Text", exact=True).press_sequentially("food and a joke", delay=5)
        page.get_by_text("ms: 20 ms on the server (75 % of that in the encoder). The encoder read 7 tokens.").wait_for()
        assert stub.classified() == [{"input": ["food and a joke"], "tasks": None}], "once, when typing stops"
        assert card(page, "topic").locator(".answer").inner_text() == "food"
        assert rows(page, "topic") == ["food 0.5000", "sport 0.2500", "money 0.1250", "travel 0.0625", "music 0.0313"]
        widths = card(page, "topic").locator(".track span").evaluate_all("all => all.map(bar => bar.offsetWidth)")
        assert widths == sorted(widths, reverse=True) and widths[0] == pytest.approx(2 * widths[1], abs=1)
        assert card(page, "tags").locator(".answer").inner_text() == "joke"
        assert rows(page, "tags")[0] == "✓ joke 0.5000"
        assert card(page, "length").locator(".answer").inner_text() == "-1.875"
        assert "This task needs a second text." in card(page, "same").inner_text()
        assert page.get_by_role("status").inner_text().startswith("topic: food; stars: 1; tags: joke; length: -1.875")
        page.get_by_role("textbox", name="Text", exact=True).fill("  ")
        page.locator(".row").first.wait_for(state="detached")
        assert len(stub.classified()) == 1


def test_answers_come_on_a_button_or_a_key(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        page.get_by_label("Classify while typing").uncheck()
        text = page.get_by_role("textbox", name="Text", exact=True)
        text.fill("one")
        page.wait_for_timeout(500)
        assert not stub.classified()
        page.get_by_role("button", name="Classify", exact=True).click()
        page.get_by_text("The answer took").wait_for()
        text.fill("two")
        text.press("Control+Enter")
        page.wait_for_timeout(300)
        assert [body["input"] for body in stub.classified()] == [["one"], ["two"]]
        assert text.input_value() == "two"


@pytest.mark.parametrize("typing", [True, False])
def test_a_text_that_is_there_before_the_tasks_is_answered_only_while_typing(
    typing: bool, browser: Browser, stub: Served
) -> None:
    # GET /info, which has no body, takes longer than it takes to enter a text.
    stub.seconds = lambda body: 2.0 if body is None else 0.0
    with browser.open(stub.address) as page:
        page.get_by_label("Classify while typing").set_checked(typing)
        # Without an event the page hears of the text only when it looks.
        text = page.get_by_role("textbox", name="Text", exact=True)
        text.evaluate("field => { field.value = 'one' }")
        page.get_by_text("The server has 5 tasks").wait_for()
        page.wait_for_timeout(500)
        assert [body["input"] for body in stub.classified()] == [["one"]] * typing


def test_a_late_reply_does_not_replace_a_newer_one(browser: Browser, stub: Served) -> None:
    stub.seconds = lambda body: 1.0 if body and body["input"] == ["money"] else 0.0
    with browser.open(stub.address, forgive=("failed: ",)) as page:
        text = page.get_by_role("textbox", name="Text", exact=True)
        text.fill("money")
        text.press("Control+Enter")
        text.fill("food")
        text.press("Control+Enter")
        card(page, "topic").get_by_text("food 0.5000").or_(card(page, "topic").locator(".given")).first.wait_for()
        page.wait_for_timeout(1200)
        assert card(page, "topic").locator(".answer").inner_text() == "food"
        assert browser.complaints == [f"failed: {stub.address}classify_many"], "the first request was taken back"


def test_abstained_several_truncated_and_in_order(browser: Browser, stub: Served) -> None:
    def results(task: Any, content: Any) -> dict[str, Any] | None:
        scores = [{"label": label, "score": 0.3} for label in reversed(task["labels"])]
        answers = {"topic": None, "tags": ["rude", "joke"], "stars": "3"}
        return (
            {"answer": answers[task["name"]], "scores": scores, "truncated": True} if task["name"] in answers else None
        )

    stub.results = results
    with browser.open(stub.address) as page:
        write(page, "x")
        assert card(page, "topic").locator(".answer").inner_text() == "No answer, because the confidence is too low."
        assert card(page, "tags").locator(".answer").inner_text() == "rude, joke"
        assert rows(page, "tags") == ["✓ joke 0.3000", "spam 0.3000", "✓ rude 0.3000"]
        assert [row.split()[0] for row in rows(page, "stars")] == ["1", "2", "3"], "a scale keeps its order"
        assert "The text is too long. The task reads only its first 256 tokens." in card(page, "stars").inner_text()
        stub.results = lambda task, content: None
        write(page, "y")
        assert "No label is above its threshold" in card(page, "tags").inner_text()


def test_pairs(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        write(page, "good one", second="a yes good")
        assert {len(body["input"][0]) for body in stub.classified()} == {2, len("good one")}
        assert [["good one", "a yes good"]] in [body["input"] for body in stub.classified()]
        assert rows(page, "same") == ["yes 0.5000", "no 0.2500"]
        card(page, "same").get_by_role("button", name="yes").click()
        assert marks(page) == [("good", "towards"), ("good", "towards")]
        assert page.locator("#why .text").all_inner_texts() == ["good one", "a yes good"]
    stub.tasks = [TOPIC]
    with browser.open(stub.address) as page:
        page.get_by_text("The server has 1 task").wait_for()
        assert not page.get_by_role("textbox", name="Second text").is_visible()


# --- what speaks for a label ----------------------------------------------------------------------------------------


def test_hovering_shows_what_speaks_for_a_label(browser: Browser, stub: Served) -> None:
    """Places count code points: what lies outside the basic plane takes two units of a string."""
    text = "\U0001f600 \U0001f469\u200d\U0001f680 good, good faint\n\U0001f600bad bad"
    with browser.open(stub.address) as page:
        write(page, text)
        label = card(page, "topic").get_by_role("button", name="sport")
        label.hover()
        assert marks(page) == [("good", "towards"), ("bad", "against")]
        assert page.locator("#why .text").evaluate("text => text.textContent") == text
        assert page.get_by_role("heading", name="Evidence for sport").is_visible()
        said = page.locator("#why-said").inner_text()
        assert "\u201c\u2068good\u2069\u201d. Strongest against it: \u201c\u2068bad\u2069\u201d." in said
        assert page.get_by_role("status").inner_text().endswith(said)
        shares = page.locator("#why-texts mark").evaluate_all(
            "all => all.map(mark => mark.style.getPropertyValue('--share'))"
        )
        assert shares == ["1.00", "0.50"], "intensity by size"
        assert label.get_attribute("aria-pressed") == "true"
        card(page, "topic").get_by_role("button", name="money").hover()
        page.get_by_role("heading", name="Evidence for money").wait_for()
        card(page, "length").locator(".row").hover()
        page.get_by_role("heading", name="Evidence for a higher value").wait_for()
        assert marks(page) == [("good", "towards"), ("bad", "against")]
        label.hover()
        page.get_by_role("heading", name="Evidence for sport").wait_for()
        asked = [body for path, body in stub.asked if path == "/explain"]
        assert asked == [{"task": name, "input": text} for name in ("topic", "length")], "a text is explained once"
        write(page, "another")
        page.wait_for_timeout(300)
        assert not page.locator("#why").is_visible(), "also where the pointer lies still over a new label"


def test_the_keyboard_explains_and_takes_away(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        write(page, "good and bad")
        page.get_by_role("button", name="Classify", exact=True).focus()
        focused = "document.activeElement.innerText.split('\\n')[0]"
        for _ in range(2):
            page.keyboard.press("Tab")
        assert page.evaluate(focused).startswith("sport"), "a task is one stop"
        assert marks(page) == [("good", "towards"), ("bad", "against")]
        page.keyboard.press("ArrowDown")
        page.get_by_role("heading", name="Evidence for money").wait_for()
        assert marks(page) == [("good", "against"), ("bad", "towards")]
        page.keyboard.press("Escape")
        assert not page.locator("#why").is_visible()
        page.keyboard.press("End")
        assert page.evaluate(focused).startswith("music")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Evidence for music").wait_for()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_an_explanation_that_fails_says_so_and_can_be_asked_for_again(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address, forgive=REFUSED) as page:
        write(page, "good")
        stub.failure = (400, b'{"error": "the text is too long to explain", "error_type": "invalid"}')
        label = card(page, "topic").get_by_role("button", name="sport")
        label.click()
        page.locator("#why").get_by_text("the text is too long to explain").wait_for()
        stub.failure = None
        label.click()
        assert marks(page) == [("good", "towards")]


# --- many tasks, many labels, hostile names ---------------------------------------------------------------------------


def test_a_few_tasks_are_cards_and_three_hundred_labels_scroll(browser: Browser) -> None:
    tasks = [task(f"task {number}", [f"label {name}" for name in range(4)]) for number in range(11)]
    tasks.append(task("intents", [f"{LONG}{number}" for number in range(300)]))
    with served(tasks) as stub, browser.open(stub.address, PHONE) as page:
        write(page, "x")
        assert page.locator("h3").all_inner_texts() == [each["name"] for each in tasks] and overflow(page) == []
        search(page, "INT")
        assert page.locator("article:visible h3").all_inner_texts() == ["intents"]
        assert page.get_by_text("1 of 12 tasks", exact=True).first.is_visible()
        assert len(rows(page, "intents")) == 5
        more = page.get_by_role("button", name="All 300 labels")
        more.click()
        assert len(rows(page, "intents")) == 300 and overflow(page) == []
        assert card(page, "intents").evaluate("card => card.offsetHeight") < PHONE[1], "they scroll"
        page.get_by_role("button", name="Fewer labels").click()
        assert len(rows(page, "intents")) == 5
        search(page, "")
        assert page.locator("article:visible").count() == 12


@pytest.mark.parametrize("layout", ["cards", "lines"])
def test_hostile_names_and_texts_are_shown_and_run_nothing(layout: str, browser: Browser) -> None:
    hostile = [*EVIL, *HOSTILE, "__proto__", "constructor"]
    names, place = (hostile[:12], "h3") if layout == "cards" else ([*hostile, "one"], ".line .name")
    with served([task(name, names) for name in names]) as stub, browser.open(stub.address, PHONE) as page:
        text = " ".join(HOSTILE).replace("\r", "").replace("\x00", "") + " good"
        write(page, text)
        assert page.locator(place).evaluate_all("all => all.map(each => each.textContent)") == names
        if layout == "lines":
            page.locator(".line").last.click()
        page.locator(".task:last-child .row").first.click()
        assert [text for text, _ in marks(page)] == ["good"]
        assert page.locator("#why .text").evaluate("text => text.textContent") == text
        ran = page.evaluate("[typeof window.ran, document.scripts.length, document.images.length]")
        assert ran == ["undefined", 1, 0] and overflow(page) == []


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Browser, stub: Served) -> None:
    stub.key = "s3cret"
    with browser.open(stub.address, forgive=REFUSED) as page:
        key = page.get_by_label("This server needs an API key.")
        key.fill("wrong")
        key.press("Enter")
        page.get_by_label("The server does not accept this key.").fill("s3cret")
        page.get_by_role("button", name="Use the key").click()
        page.get_by_text("The server has 5 tasks").wait_for()
        assert not page.locator("#access").is_visible()
        write(page, "food")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        page.get_by_text("The server has 5 tasks").wait_for()
        stub.key = "changed"
        page.get_by_role("textbox", name="Text", exact=True).fill("money")
        field = page.get_by_label("The server does not accept this key.")
        field.fill("schl\u00fcssel")
        field.press("Enter")
        page.get_by_text("A key contains only ASCII letters, digits and punctuation.").wait_for()
        page.locator("#key").fill("changed")
        page.locator("#key").press("Enter")
        page.get_by_text("The answer took").wait_for()


def test_a_busy_server_is_asked_again_later(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address, forgive=REFUSED) as page:
        page.get_by_text("The server has 5 tasks").wait_for()
        stub.busy = 1
        page.get_by_role("textbox", name="Text", exact=True).fill("food")
        page.get_by_text("The server is busy. Trying again in 1 s.").wait_for()
        page.get_by_text("The answer took").wait_for()
        assert card(page, "topic").locator(".answer").inner_text() == "food"


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((500, b'{"error": "the encoder <b>fell</b> over", "error_type": "internal"}'), "the encoder <b>fell</b> over"),
        ((502, b"<html>"), "The server failed: 502 Bad Gateway"),
        ((200, b"<html>"), "The server's reply could not be read."),
    ],
)
def test_a_failure_is_told_in_words(failure: tuple[int, bytes], message: str, browser: Browser, stub: Served) -> None:
    with browser.open(stub.address, forgive=REFUSED) as page:
        page.get_by_text("The server has 5 tasks").wait_for()
        stub.failure = failure
        page.get_by_role("textbox", name="Text", exact=True).fill("food")
        page.get_by_role("alert").get_by_text(message, exact=True).wait_for()
        stub.failure = None
        page.get_by_role("button", name="Classify", exact=True).click()
        page.get_by_text("The answer took").wait_for()
        assert page.locator("#problem").inner_text() == ""


def test_a_server_that_is_down(browser: Browser) -> None:
    with served(TASKS) as stub, browser.open(stub.address, forgive=REFUSED) as page:
        page.get_by_text("The server has 5 tasks").wait_for()
        page.route("**/classify_many", lambda route: route.abort("connectionrefused"))
        page.get_by_role("textbox", name="Text", exact=True).fill("food")
        page.get_by_text("The server cannot be reached. Is it still running?").wait_for()
        assert page.locator(".busy").count() == 0
        page.unroute("**/classify_many")
        page.get_by_role("button", name="Classify", exact=True).click()
        page.get_by_text("The answer took").wait_for()


# --- files ------------------------------------------------------------------------------------------------------------


def choose(page: Page, content: str | bytes, name: str = "rows.csv") -> None:
    page.get_by_text("The server has").wait_for()
    data = content if isinstance(content, bytes) else content.encode()
    page.locator("#csv").set_input_files({"name": name, "mimeType": "text/csv", "buffer": data})


def download(page: Page, tmp_path: Path) -> str:
    with page.expect_download() as waited:
        page.get_by_role("link", name="Download the file with the answers").click()
    waited.value.save_as(tmp_path / "saved.csv")
    return (tmp_path / "saved.csv").read_bytes().decode()


def test_a_file_is_classified_in_parts_and_comes_back_with_answers(
    browser: Browser, stub: Served, tmp_path: Path
) -> None:
    stub.tasks = [
        task("topic", ["=1+1", "food"]),
        task("tags", ["rude", "joke"], "multi"),
        task("@x", [], "regression"),
    ]
    table = [["id", "text", "topic"], *([str(row), f'a "food", joke\nrow {row}', "-"] for row in range(449))]
    table.append(["449", "", "="])
    content = io.StringIO()
    csv.writer(content).writerows(table)
    with browser.open(stub.address) as page:
        choose(page, "\ufeff" + content.getvalue())
        page.get_by_text("rows.csv: 450 rows, 3 columns.").wait_for()
        page.get_by_role("button", name="Classify with 3 tasks").click()
        page.locator("#far", has_text="1 row without a text has no answers.").wait_for()
        assert [len(body["input"]) for body in stub.classified()] == [200, 200, 49]
        assert stub.classified()[0]["input"][0] == 'a "food", joke\nrow 0'
        region = page.get_by_role("region", name="Answers to the rows of the file")
        assert region.locator("tbody tr").count() == 100
        assert region.locator("tbody tr").first.locator("td").all_inner_texts()[1:] == ["food", "joke", "-2.5"]
        saved = download(page, tmp_path)
        assert saved.startswith("\ufeff")
        found = list(csv.reader(io.StringIO(saved[1:], newline="")))
        assert found[0] == ["id", "text", "topic", "topic_answer", "tags", "'@x"]
        assert found[1] == [*table[1], "food", '["joke"]', "-2.5"], "cells of the file stay as they are"
        assert found[450] == ["449", "", "=", "", "", ""] and len(found) == 451
        assert overflow(page) == []
        # Labels that would be formulas.
        choose(page, "text\nnothing\n\n", "one.csv")
        page.get_by_text("one.csv: 1 row, 1 column.").wait_for()
        page.get_by_role("button", name="Classify with 3 tasks").click()
        assert download(page, tmp_path).splitlines()[1] == "nothing,'=1+1,[],-0.875"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_another_column(separator: str, browser: Browser, stub: Served, tmp_path: Path) -> None:
    header = separator.join(["id", '"a, b"', "text_pair"])
    with browser.open(stub.address) as page:
        choose(page, f"{header}\r1{separator}food, yes{separator}no\r")
        page.get_by_text('No column is called "text". Choose the column that has the texts.').wait_for()
        start = page.get_by_role("button", name="Classify with 5 tasks")
        assert start.is_disabled()
        page.get_by_label("Column of texts").select_option("a, b")
        assert page.locator("#trouble").inner_text() == "" and not start.is_disabled()
        start.click()
        page.locator("#far", has_text="1 row in").wait_for()
        assert [["food, yes", "no"]] in [body["input"] for body in stub.classified()]
        saved = list(csv.reader(io.StringIO(download(page, tmp_path)), delimiter=separator))
        assert saved[0][3:] == [each["name"] for each in TASKS]
        assert saved[1] == ["1", "food, yes", "no", "food", "1", "[]", "-1.125", "yes"]
        page.get_by_label("Column of second texts").select_option("none")
        assert page.get_by_role("button", name="Classify with 4 tasks").is_visible()


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tid\n"food\t1\ntea"\t2\n', ['"food', 'tea"']),
        ('text\tid\n"food"\t1\ntea\t2\n', ['"food"', "tea"]),
        ('id\t"text"\n1\t"food"\n2\ttea\n', ["food", "tea"]),
        ('text\tid\n"a ""b"" c"\t1\ntea\t2\n', ['a "b" c', "tea"]),
        ('text\tid\n"a\tb"\t1\ntea\t2\n', ["a\tb", "tea"]),
        ('text\tid\n5" pipe\t1\n"""b"\t2\n', ['5" pipe', '"""b"']),
    ],
)
def test_quotes_in_tab_separated_files_are_characters_unless_the_file_clearly_quotes(
    content: str, texts: list[str], browser: Browser, stub: Served
) -> None:
    with browser.open(stub.address) as page:
        choose(page, content)
        page.get_by_role("button", name="Classify with 4 tasks").click()
        page.locator("#far", has_text="2 rows in").wait_for()
        assert stub.classified()[-1]["input"] == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,b\nc,d,e\n", "Line 3 has 3 cells, the first row has 2. Put cells that contain a separator in"),
        ('text\n"a\nb\n', "The quote that opens in line 2 is not closed."),
        ('text,label\n"a,x\n"b",y\n', "Text follows the quote that closes in line 3 and opens in line 2. Close each"),
        ("text\n\n", "rows.csv has no rows below the names of its columns."),
        (b"", "rows.csv has no rows below the names of its columns."),
        ("text\nschön".encode("latin-1"), 'rows.csv is not text in UTF-8. Save it as "CSV UTF-8".'),
    ],
)
def test_a_file_that_cannot_be_read(content: str | bytes, message: str, browser: Browser, stub: Served) -> None:
    with browser.open(stub.address) as page:
        choose(page, content)
        page.locator("#trouble").get_by_text(message).wait_for()
        assert not page.locator("#settings").is_visible()
        choose(page, "text\nfood")
        page.get_by_role("button", name="Classify with 4 tasks").wait_for()
        assert page.locator("#trouble").inner_text() == ""


def test_a_file_waits_for_a_busy_server_and_keeps_what_it_has(browser: Browser, stub: Served, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        stub.failure = (500, b'{"error": "out of memory"}')

    with browser.open(stub.address, forgive=REFUSED) as page:
        choose(page, "text\n" + "food\n" * 500)
        stub.busy = 1
        stub.results = fail
        page.get_by_role("button", name="Classify with 4 tasks").click()
        page.get_by_text("The server is busy. Trying again in 1 s.").wait_for()
        page.locator("#far", has_text="Only the first 200 rows have answers.").wait_for()
        assert page.locator("#trouble").inner_text() == "out of memory"
        lines = download(page, tmp_path).splitlines()
        assert lines[200].startswith("food,food") and lines[201] == "food,,,,"
        stub.failure, stub.results, stub.seconds = None, lambda task, content: None, lambda body: 0.5
        page.get_by_role("button", name="Classify with 4 tasks").click()
        page.get_by_role("progressbar", name="Rows classified").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.locator("#trouble").get_by_text("Stopped.").wait_for()
        assert page.get_by_role("button", name="Classify with 4 tasks").is_enabled()


def test_a_file_can_be_dropped_and_asks_the_tasks_that_the_search_leaves(browser: Browser, stub: Served) -> None:
    stub.tasks = [*TASKS, task("other", ["a", "b"]), task("another", ["a", "b"])]
    drop = """target => { const carried = new DataTransfer();
        carried.items.add(new File(["text\\nfood"], "dropped.csv"));
        for (const kind of ["dragover", "drop"])
            target.dispatchEvent(new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true})) }"""
    with browser.open(stub.address) as page:
        search(page, "other")
        page.locator("#drop").evaluate(drop)
        page.get_by_role("button", name="Classify with 2 tasks that the search leaves").click()
        page.locator("#far", has_text="1 row in").wait_for()
        assert stub.classified() == [{"input": ["food"], "tasks": ["other", "another"], "top_k": 1}]
        assert page.url == stub.address


# --- phones and the dark ----------------------------------------------------------------------------------------------


def test_a_phone_shows_the_text_beside_the_label_that_is_tapped(browser: Browser, stub: Served) -> None:
    with browser.open(stub.address, PHONE) as page:
        write(page, "good and bad " * 60, second="good " * 40)
        assert overflow(page) == []
        label = card(page, "tags").get_by_role("button", name="joke")
        label.tap()
        assert marks(page)[0] == ("good", "against")
        box, panel = label.bounding_box(), page.locator("#why").bounding_box()
        assert box is not None and panel is not None
        assert box["y"] >= 0 and box["y"] + box["height"] <= panel["y"] < panel["y"] + panel["height"] <= PHONE[1] + 1
        page.get_by_role("button", name="Close").tap()
        assert not page.locator("#why").is_visible()
        page.set_viewport_size({"width": 320, "height": 640})
        assert overflow(page) == []
        choose(page, "text,other\n" + f"{'W' * 300},x\n" * 3)
        page.get_by_role("button", name="Classify with 4 tasks").tap()
        page.locator("#far", has_text="3 rows in").wait_for()
        assert overflow(page) == []


def test_light_and_dark(browser: Browser, stub: Served) -> None:
    grounds = []
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        with browser.open(stub.address, scheme=scheme) as page:
            write(page, "good and bad")
            card(page, "topic").get_by_role("button", name="sport").click()
            assert len(marks(page)) == 2
            ground, sheet = colour(page, "body", "backgroundColor"), colour(page, "section", "backgroundColor")
            grounds.append(sum(ground))
            assert contrast(colour(page, "h1", "color"), ground) > 7
            assert contrast(colour(page, ".task .note", "color"), sheet) > 4.5
            assert contrast(colour(page, ".problem", "color"), sheet) > 4.5
            button = [colour(page, "button.main", name) for name in ("color", "backgroundColor")]
            assert contrast(*button) > 4.5
    assert grounds[0] > 3 * 200 and grounds[1] < 3 * 60


def test_the_page_has_the_colours_of_the_reports() -> None:
    report = (Path(html_report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    page = (PAGE / "style.css").read_text(encoding="utf-8")
    for name in ("page", "card", "ink", "soft", "line", "grid", "main", "main-soft", "other", "towards", "against"):
        found = [
            [part.partition(";")[0] for part in style.split(f"--{name}: ")[1:] if not part.startswith("1")]
            for style in (report, page)
        ]
        assert found[0] and found[0] == found[1], name

"""The page: well formed, of every kind of task, and harmless whatever the texts are."""

from __future__ import annotations

import copy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import STATES, WORDS
from ytuning.data.dataset import Dataset
from ytuning.data.kinds import MultiLabel, Ordinal, Regression, SingleLabel, TaskKind
from ytuning.data.labels import LabelSet
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.evaluation.evaluate import evaluate
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig, build_head
from ytuning.reports import html as html_report
from ytuning.reports.html import render_report
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.task import Task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.calibration import Calibration
from ytuning.training.recipes import Recipe, TrainingConfig

VOID = {"meta", "wbr"}
SHAPES = {"line", "rect", "circle", "polyline"}
FETCHING = {"src", "srcset", "data", "action", "formaction", "poster", "background", "xlink:href", "ping", "manifest"}
HOSTILE = [
    "<script>alert('card')</script> & \"refund\" ]]> --> {{ 7 * 7 }} {% raw %}",
    "nul \x00 bell \x07 delete \x7f return \r next \x85 end",
    "\U0001f600 \U0001f469\u200d\U0001f680 card e\u0301",
    "\u202eevil \u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627 card\u202c",
    "https://example.org/?a=1&b=2 <img src=x onerror=alert(1)> url(evil)",
    "card </p></section></style><style>*{display:none}",
]


class Page(HTMLParser):
    """A page read strictly: every element is closed where it must be, and nothing is fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.wanted: list[str] = []
        self.counts: dict[str, int] = {}
        self.text: dict[str, str] = {}
        self.classes: dict[str, int] = {}
        self.feed(page)
        self.close()
        assert self.open == [], "every element is closed"
        assert len(set(self.ids)) == len(self.ids) and set(self.wanted) <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        found = dict(attrs)
        assert len(found) == len(attrs), "no attribute twice"
        assert tag not in ("script", "iframe", "object", "embed", "link", "img", "base", "form")
        assert not FETCHING & set(found) and not any(name.startswith("on") for name in found)
        assert found.get("href", "#").startswith("#")  # type: ignore[union-attr]
        assert "url(" not in (found.get("style") or "")
        for name in (found.get("class") or "").split():
            self.classes[name] = self.classes.get(name, 0) + 1
        if tag == "svg":
            assert found["role"] == "img" and found["aria-label"]
        self.ids += [str(found["id"])] if "id" in found else []
        self.wanted += [str(found["href"])[1:]] if "href" in found else []
        self.wanted += [str(found["aria-labelledby"])] if "aria-labelledby" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        self.text[inside] = self.text.get(inside, "") + data
        if inside == "style":
            assert "url(" not in data and "@import" not in data


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


def task_of(target: TaskKind, encoder: Encoder, **options: Any) -> Task:
    """A task whose head has random weights."""
    config = options.pop("config", PooledConfig(width=16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = build_head(config, labels=target.outputs, layers=2, width=32, pair_mode=options.get("pair_mode")).eval()
    training = {"store": "int8", "rows": {"train": 10}, "steps": 30, "refitted": True}
    return Task("toy", target, encoder.identity, STATES, config, head, training=training, **options)


def page_of(task: Task, data: Dataset, encoder: Encoder, **options: Any) -> tuple[Page, str]:
    store = FeatureStore()
    found = evaluate_task(task, data, encoder, store)
    page = render_report(task, found.report, found.judged, encoder, store, **options)
    return Page(page), page


ABC = LabelSet(("card", "login", "refund"))
KINDS: dict[str, tuple[TaskKind, dict[str, Any]]] = {
    "single": (SingleLabel(ABC), {}),
    "paper": (SingleLabel(ABC), {"config": CrossAttentionConfig(width=16)}),
    "ordinal": (Ordinal(ABC), {}),
    "multi": (MultiLabel(ABC), {"calibration": Calibration(1.2, thresholds=(0.3, 0.5, 0.6))}),
    "regression": (Regression(0, 5, bounded=True), {}),
    "joint": (SingleLabel(ABC), {"pair_mode": "joint"}),
    "separate": (SingleLabel(ABC), {"pair_mode": "separate"}),
}


@pytest.fixture
def rows(toy_rows: tuple[list[str], list[str]]) -> Dataset:
    return Dataset(toy_rows[0][:60], toy_rows[1][:60])


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_every_kind(kind: str, rows: Dataset, encoder: Encoder) -> None:
    target, options = KINDS[kind]
    data = rows
    if kind == "multi":
        several = [(name,) if number % 3 else (name, "card") for number, name in enumerate(rows.names)]
        data = replace(rows, labels=[tuple(dict.fromkeys(names)) for names in several], kind="multi")
    elif kind == "regression":
        data = replace(rows, labels=[float(len(name)) for name in rows.names], kind="regression")
    elif kind == "ordinal":
        data = replace(rows, kind="ordinal")
    elif kind in ("joint", "separate"):
        data = replace(rows, text_pairs=rows.texts[::-1])
    page, html = page_of(task_of(target, encoder, **options), data, encoder)
    assert page.counts["svg"] == (2 if kind == "regression" else 1)
    assert page.counts["mark"] > 20 and page.classes["against"] > 10
    assert page.classes["text"] == 20 * (2 if data.text_pairs else 1)
    assert ("matrix" in page.classes) == (kind not in ("multi", "regression"))
    assert ("labels" in page.classes) == (kind != "regression")
    assert (">threshold<" in html) == (kind == "multi")
    assert "toy on the rows" in page.text["bdi"]
    assert page.classes["first"] == 2 and " to " in page.text["span"]


def test_a_page_of_a_training(rows: Dataset, encoder: Encoder) -> None:
    recipe, store = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30)), FeatureStore()
    trained = train_task(rows, encoder, store, recipe, options=TrainOptions(name="toy"))
    judged = trained.judged["validation"]
    assert judged.data.texts == [rows.texts[number - 1] for number in judged.data.rows or []]
    again = evaluate(trained.task.target, trained.task.calibration, judged.truth, judged.logits)
    assert again == trained.reports["validation"]
    assert judged.head is trained.fit.chosen_head is not trained.task.head
    given = (trained.task, trained.reports["validation"], judged, encoder, store)
    timed = replace(trained, seconds={"encode": 1.25, "train": 3})
    html = render_report(*given, title="toy, validation", trained=timed)
    page = Page(html)
    assert page.counts["svg"] == 3 and "Validation accuracy" in html and "encode 1.2, train 3.0" in html
    assert page.text["title"].startswith("toy, validation")
    assert html == render_report(*given, title="toy, validation", trained=timed)


def test_the_chosen_head_gave_the_logits_that_are_judged(rows: Dataset, encoder: Encoder) -> None:
    recipe, store = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30)), FeatureStore()
    trained = train_task(rows, encoder, store, recipe, options=TrainOptions(codec="fp16"))
    judged = trained.judged["validation"]
    task = replace(trained.task, head=judged.head)
    logits = evaluate_task(task, judged.data, encoder, store).judged.logits
    refitted = evaluate_task(trained.task, judged.data, encoder, store).judged.logits
    assert np.abs(logits - judged.logits).max() < 0.2 * np.abs(refitted - judged.logits).max()


def test_hostile_texts_and_labels_are_shown_as_they_are(encoder: Encoder) -> None:
    names = LabelSet(tuple(sorted({*HOSTILE, "card"})))
    data = Dataset(HOSTILE * 4, [*HOSTILE[1:], "card"] * 4, source="<b>rows</b>.csv")
    page, html = page_of(task_of(SingleLabel(names), encoder), data, encoder)
    assert "\x00" not in html and "\x07" not in html and "\r" not in html
    html.encode("utf-8")
    shown = page.text["mark"] + page.text["p"] + page.text["bdi"]
    assert "<script>" in shown and "\u2400" in shown and "\u2407" in shown and "\U0001f600" in shown
    assert "<b>rows</b>.csv" in page.text["bdi"] and "{{ 7 * 7 }}" in page.text["bdi"]
    assert "default-src 'none'" in html
    assert html.index("Content-Security-Policy") < html.index("<title>")


def test_a_page_of_hundreds_of_labels(encoder: Encoder) -> None:
    names = LabelSet(tuple(f"label_{number:03}" for number in range(300)))
    texts = [" ".join(WORDS[number % 40 : number % 40 + 4]) for number in range(60)]
    data = Dataset(texts, [names.names[number * 3] for number in range(60)])
    page, html = page_of(task_of(SingleLabel(names), encoder), data, encoder)
    assert "The 30 of 300 labels with the lowest F1" in html and "The other 270 labels" in html
    few, html = page_of(task_of(SingleLabel(names), encoder), data.select(range(5)), encoder)
    assert "The 5 of 300 labels with the lowest F1" in html and few.classes["f1"] == 300
    assert page.classes["f1"] == 300 and page.classes["up"] <= 32 and page.counts["wbr"] >= 300
    assert "labels that are confused most often" in html


def test_a_page_of_one_row_that_is_right(encoder: Encoder) -> None:
    task = task_of(SingleLabel(ABC), encoder)
    data = Dataset(["my card"], ["card"])
    answer = evaluate_task(task, data, encoder, FeatureStore()).judged.logits.argmax()
    page, html = page_of(task, replace(data, labels=[ABC.names[answer]]), encoder)
    assert "There are no mistakes: every answer is right." in html and "mark" not in page.counts
    assert "labels 1 row whose labels are known." in html
    assert "0.2065 to 1.0000" in page.text["span"] and "it is Wilson's interval of the accuracy" in html


def test_a_page_of_one_number(encoder: Encoder) -> None:
    page, html = page_of(
        task_of(Regression(0, 5, bounded=True), encoder), Dataset(["my card"], [4.5], kind="regression"), encoder
    )
    assert page.counts["svg"] == 2 and "The list has 1 row. It starts with the largest error." in html


def test_a_page_of_a_task_that_abstains(rows: Dataset, encoder: Encoder) -> None:
    never = task_of(SingleLabel(ABC), encoder, calibration=Calibration(abstain_below=1.0))
    page, html = page_of(never, rows, encoder)
    assert "no answer" in page.text["span"] and "There are no mistakes among the rows that were answered" in html
    assert "no answer below" in page.text["dt"]


class WithoutPlaces(Encoder):
    """An encoder whose tokenizer does not tell where tokens stand."""

    def spans(self, inputs: Any) -> Any:
        """No place for any token."""
        return [[(0, 0, 0)] * len(row) for row in super().spans(inputs)]


def test_without_places_of_tokens_nothing_is_marked(rows: Dataset, encoder: Encoder) -> None:
    blind = copy.copy(encoder)
    blind.__class__ = WithoutPlaces
    page, _ = page_of(task_of(SingleLabel(ABC), encoder), rows, blind)
    assert page.counts["mark"] == 2 and page.classes["text"] == 20  # those of the legend
    assert "Strongest for the prediction: no word." in page.text["p"]


def test_of_a_long_text_the_beginning_is_shown(encoder: Encoder) -> None:
    task = task_of(SingleLabel(ABC), encoder)
    data = Dataset(["my card " * 2000], ["card"])
    answer = int(evaluate_task(task, data, encoder, FeatureStore()).judged.logits.argmax())
    page, html = page_of(task, replace(data, labels=[ABC.names[answer - 1]]), encoder)
    assert "… and 14,000 more characters" in page.text["span"] and len(html) < 60_000


def test_colours_can_be_read() -> None:
    """WCAG 2: text has a contrast of at least 4.5 to what it stands on, in light and dark."""
    css = (Path(html_report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    themes = [part.split("}")[0] for part in css.split(":root {")[1:]]
    flips = [{"right": 8, "wrong": 10}, {"right": 6, "wrong": 6}]  # steps from which a cell's text is --cell-strong
    assert len(themes) == 2 and ".right.s8," in css and ".wrong.s10 {" in css and ":is(.s6," in css
    for theme, flip in zip(themes, flips, strict=True):
        named = dict(part.strip().split(": ") for part in theme.split(";") if part.strip())
        marks = tuple(int(part) for part in named.pop("--towards").split(","))
        colour = {name: tuple(bytes.fromhex(value[1:])) for name, value in named.items() if value.startswith("#")}
        for ink in ("--ink", "--soft", "--main", "--other"):
            for ground in ("--page", "--card"):
                assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
        assert contrast(colour["--ink"], mixed(marks, colour["--card"], 0.75)) >= 4.5
        for kind, shade in (("right", "--main"), ("wrong", "--other")):
            for step in range(11):
                ink = "--cell-strong" if step >= flip[kind] else "--cell"
                assert contrast(colour[ink], mixed(colour[shade], colour["--grid"], step / 10)) >= 4.5, (kind, step)


def mixed(one: tuple[float, ...], other: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(share * a + (1 - share) * b for a, b in zip(one, other, strict=True))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Of two colours (red, green, blue) from 0 to 255."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: tuple[float, ...]) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (c / 255 for c in colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

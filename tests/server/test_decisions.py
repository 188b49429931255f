"""The decision routes: their answers are the predictor's, and what cannot be answered is refused in words."""

from __future__ import annotations

import json
import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SERVED_TEXTS as TEXTS
from tests.server.serving import PATIENCE, Live, Process, held_catalog, live, settings, until
from ytuning.data.kinds import fit_kind
from ytuning.data.labels import LabelSet
from ytuning.errors import InputError
from ytuning.server.decisions.fallback import FALLBACK_KEY, check_url, read_key
from ytuning.server.decisions.questions import positive_label
from ytuning.tasks.predictor import Prediction, Predictor
from ytuning.tasks.task import load_task, save_task

FUZZ = int(os.environ.get("YTUNING_FUZZ", "300"))  # bodies
SYSTEM_ONE, DECISIONS = "/v1/systemone", "/v1/decisions"
ABSTAINS = "the task 'careful' abstains, because its confidence is below its threshold."


@pytest.fixture(scope="module")
def tasks(served_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served tasks, and others of the same heads whose names and labels are those that bindings must tell apart."""
    root = tmp_path_factory.mktemp("decisions")
    for folder in served_tasks.iterdir():
        (root / folder.name).symlink_to(folder)
    single = load_task(served_tasks / "single")
    for name, labels in {
        "a": ("b.c", "b.d", "true"),
        "a.b": ("c", "e.f", "g"),
        "flag": ("Yes", "no", "unsure"),
    }.items():
        save_task(replace(single, name=name, target=replace(single.target, labels=LabelSet(labels))), root / name)
    return root


@pytest.fixture(scope="module")
def spam(tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of the labels ``not_spam`` and ``spam``."""
    from ytuning.data.dataset import from_lists
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.heads.pooled import PooledConfig
    from ytuning.tasks.train import TrainOptions, train_task
    from ytuning.training.recipes import Recipe, TrainingConfig

    texts, labels = toy_rows
    rows = from_lists(texts, ["spam" if label == "card" else "not_spam" for label in labels])
    recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30))
    store = FeatureStore(tmp_path_factory.mktemp("features"))
    encoder = load_encoder(tiny_encoder, precision="fp32")
    folder = tmp_path_factory.mktemp("two") / "spam"
    save_task(train_task(rows, encoder, store, recipe, options=TrainOptions(name="spam")).task, folder)
    return folder


@pytest.fixture(scope="module")
def server(tasks: Path, spam: Path) -> Iterator[Live]:
    with live(settings(tasks, spam, requests=100_000)) as server:
        yield server


@pytest.fixture(scope="module")
def offline(tasks: Path, spam: Path) -> dict[str, list[Prediction]]:
    """Task -> predictions of all texts."""
    folders = {name: tasks / name for name in ("single", "ordinal", "multi", "careful", "a", "a.b", "flag")}
    folders["spam"] = spam
    return {name: list(Predictor([folder]).predict([(t, None) for t in TEXTS])) for name, folder in folders.items()}


def predicate(name: str | None) -> dict[str, Any]:
    return {"type": "predicate", "name": name, "instructions": "Is it?"}


def choice(name: str, *values: str | bool) -> dict[str, Any]:
    return {"type": "choice", "name": name, "instructions": "Which?", "choices": [{"value": value} for value in values]}


def score(name: str, *labels: str) -> dict[str, Any]:
    return {"type": "score", "name": name, "instructions": "How?", "levels": [{"label": label} for label in labels]}


def decide(server: Live, *questions: dict[str, Any], given: Any = TEXTS[0], status: int = 200) -> Any:
    """The answers, or the message of a refusal."""
    reply = server.post(DECISIONS, {"model": "any", "input": given, "questions": list(questions)})
    assert reply.status_code == status, reply.text
    return reply.json()["answers"] if status == 200 else reply.json()["error"]["message"]


def system_one(server: Live, questions: dict[str, Any], *, state: Any = TEXTS[0], status: int = 200) -> Any:
    reply = server.post(SYSTEM_ONE, {"model": "any", "state": state, "questions": questions})
    assert reply.status_code == status, reply.text
    return reply.json()["answers"] if status == 200 else reply.json()["error"]["message"]


# --- answers are the predictor's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", range(len(TEXTS)))
def test_choices_and_predicates(row: int, server: Live, offline: dict[str, list[Prediction]]) -> None:
    scores, several = offline["single"][row].scores, offline["multi"][row].scores
    whole, label, of_many = decide(
        server, choice("single", "refund", "card", "login"), predicate("single.card"), predicate("multi.late"),
        given=TEXTS[row],
    )  # fmt: skip
    assert (whole["type"], whole["name"]) == ("choice", "single")
    assert [each["value"] for each in whole["probabilities"]] == ["refund", "card", "login"]
    assert {each["value"]: each["probability"] for each in whole["probabilities"]} == pytest.approx(scores, abs=1e-5)
    assert whole["choice"] == offline["single"][row].answer
    assert whole["confidence"] == max(each["probability"] for each in whole["probabilities"])
    assert label == {"type": "predicate", "name": "single.card", "probability": pytest.approx(scores["card"], abs=1e-5)}
    assert of_many["probability"] == pytest.approx(several["late"], abs=1e-5)


def test_some_labels_are_renormalised(server: Live, offline: dict[str, list[Prediction]]) -> None:
    scores = offline["single"][0].scores
    (some,) = decide(server, choice("single", "login", "refund"))
    total = scores["login"] + scores["refund"]
    given = {each["value"]: each["probability"] for each in some["probabilities"]}
    assert given == pytest.approx({label: scores[label] / total for label in ("login", "refund")}, abs=1e-5)
    assert some["choice"] == max(given, key=lambda label: given[label])


def test_scores_are_mean_positions(server: Live, offline: dict[str, list[Prediction]]) -> None:
    order = ["login", "card", "refund"]
    shares = [offline["ordinal"][0].scores[label] for label in order]
    up, down, ends = decide(
        server, score("ordinal", *order), score("ordinal", *order[::-1]), score("ordinal", "login", "refund")
    )
    assert up["score"] == pytest.approx(shares[1] + 2 * shares[2], abs=1e-5)
    assert down["score"] == pytest.approx(2 - up["score"])
    assert [(each["value"], each["label"]) for each in up["probabilities"]] == [*enumerate(order)]
    assert up["confidence"] == pytest.approx(max(shares), abs=1e-5)
    assert ends["score"] == pytest.approx(shares[2] / (shares[0] + shares[2]), abs=1e-5)


def test_a_choice_of_an_ordinal_task_is_its_most_probable_label(
    server: Live, offline: dict[str, list[Prediction]]
) -> None:
    scores = offline["ordinal"][0].scores
    (answer,) = decide(server, choice("ordinal", "card", "login", "refund"))
    assert answer["choice"] == max(scores, key=lambda label: scores[label])


@pytest.mark.parametrize("row", range(len(TEXTS)))
def test_what_a_task_abstains_from_is_refused(row: int, server: Live, offline: dict[str, list[Prediction]]) -> None:
    answers = decide(
        server,
        choice("careful", "card", "login"),
        predicate("careful.card"),
        predicate("single.card"),
        given=TEXTS[row],
    )
    entries = system_one(server, {"careful.card": {"type": "noul"}}, state=TEXTS[row])
    kinds = [answer["type"] for answer in answers]
    if offline["careful"][row].answer is None:
        assert kinds == ["refusal", "refusal", "predicate"]
        assert answers[0] == {"type": "refusal", "name": "careful", "reason": ABSTAINS}
        assert entries["careful.card"] == {"type": "error", "error": {"type": "abstained", "message": ABSTAINS}}
    else:
        assert kinds == ["choice", "predicate", "predicate"] and entries["careful.card"]["type"] == "noul"


def test_yes_of_two_labels(server: Live, offline: dict[str, list[Prediction]]) -> None:
    share = offline["spam"][0].scores["spam"]
    whole, other, chosen = decide(server, predicate("spam"), predicate("spam.not_spam"), choice("spam", False, True))
    assert whole["probability"] == pytest.approx(share, abs=1e-5)
    assert other["probability"] == pytest.approx(1 - share, abs=1e-5)
    assert [(each["value"], each["probability"]) for each in chosen["probabilities"]] == [
        (False, pytest.approx(1 - share, abs=1e-5)), (True, pytest.approx(share, abs=1e-5)),
    ]  # fmt: skip
    assert chosen["choice"] is (share > 0.5)


@pytest.mark.parametrize("options", [(True, False), ("No", "yes"), ("true", False)])
def test_yes_or_no_about_one_label(
    options: tuple[str | bool, ...], server: Live, offline: dict[str, list[Prediction]]
) -> None:
    share = offline["multi"][0].scores["late"]
    (answer,) = decide(server, choice("multi.late", *options))
    given = [each["probability"] for each in answer["probabilities"]]
    yes = 1 if options[0] == "No" else 0
    assert given[yes] == pytest.approx(share, abs=1e-5) and sum(given) == pytest.approx(1)


def test_booleans_stand_for_the_only_labels_that_say_so(server: Live, offline: dict[str, list[Prediction]]) -> None:
    scores = offline["flag"][0].scores
    (answer,) = decide(server, choice("flag", True, False, "unsure"))
    given = [each["probability"] for each in answer["probabilities"]]
    assert given == pytest.approx([scores["Yes"], scores["no"], scores["unsure"]], abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "yes"),
    [
        (("false", "true"), "true"), (("No", "Yes"), "Yes"), (("0", "1"), "1"), (("neg", "pos"), "pos"),
        (("no", "urgent"), "urgent"), (("fine", "yes"), "yes"), (("non-toxic", "toxic"), "toxic"),
        (("not spam", "spam"), "spam"), (("ham", "spam"), None), (("1", "yes"), None), (("1", "2", "3"), None),
    ],
)  # fmt: skip
def test_which_of_two_labels_means_yes(labels: tuple[str, ...], yes: str | None) -> None:
    target = fit_kind("single", list(labels))
    label = positive_label(target)
    assert (None if label is None else target.names[label]) == yes


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_with_dots(server: Live, offline: dict[str, list[Prediction]]) -> None:
    task, label, long_label, of_shorter = decide(
        server, choice("a.b", "c", "e.f", "g"), predicate("a.b.g"), predicate("a.b.e.f"), predicate("a.b.d")
    )
    shares = offline["a.b"][0].scores
    assert {each["value"]: each["probability"] for each in task["probabilities"]} == pytest.approx(shares, abs=1e-5)
    assert label["probability"] == pytest.approx(shares["g"], abs=1e-5)
    assert long_label["probability"] == pytest.approx(shares["e.f"], abs=1e-5)
    assert of_shorter["probability"] == pytest.approx(offline["a"][0].scores["b.d"], abs=1e-5)


def test_a_name_with_two_meanings(server: Live) -> None:
    message = decide(server, predicate("single.card"), predicate("a.b.c"), status=400)
    assert message == (
        "questions.1: the name 'a.b.c' may be the label 'b.c' of the task 'a' or the label 'c' of the task 'a.b'. "
        "Rename one of the tasks."
    )


def test_unknown_questions_are_refused_alone(server: Live) -> None:
    known, unknown, unnamed = decide(
        server, predicate("single.card"), predicate("singel"), {"type": "predicate", "instructions": "Is it?"}
    )
    assert known["type"] == "predicate"
    assert (unknown["type"], unknown["name"]) == ("refusal", "singel")
    assert unknown["reason"].startswith("there is no task 'singel'. Did you mean 'single'? The tasks are ")
    assert "'joint'" not in unknown["reason"]
    assert (unnamed["type"], unnamed["name"]) == ("refusal", None)
    assert unnamed["reason"].startswith("the question has no name. Name it after a task")
    entries = system_one(server, {"single.card": {"type": "noul"}, "singel": {"type": "noul"}})
    assert entries["single.card"]["type"] == "noul" and entries["singel"]["type"] == "error"
    assert entries["singel"]["error"]["type"] == "not_found"
    assert entries["singel"]["error"]["message"] == unknown["reason"]


def test_the_same_name_twice(server: Live) -> None:
    """OpenAI's answers are in the order of the questions, so names may repeat."""
    first, second = decide(server, choice("single", "card", "login"), choice("single", "login", "refund"))
    assert [each["value"] for each in first["probabilities"]] == ["card", "login"]
    assert [each["value"] for each in second["probabilities"]] == ["login", "refund"]


NUMBER = "the task 'number' gives a number"
PAIRS = "the task 'joint' takes pairs of texts, and the input is one text. Use /classify_many."


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (choice("single", "card", "logn"), "the task 'single' has no label 'logn'. Did you mean 'login'? Its labels"),
        (choice("single", "card", True), "the task 'single' has no label True. Its labels are 'card', 'login', 'ref"),
        (choice("single", "card", " card"), "two options are the label 'card'. Leave one out."),
        (choice("multi", "card", "late"), "'multi' do not exclude each other, so it answers no choice. Ask a predi"),
        (choice("multi.late", "late", "card"), "is one label of the task 'multi'. Ask a predicate or noul, or a choi"),
        (choice("multi.late", True, "yes"), "a choice between true and false or between yes and no"),
        (choice("number", "1", "2"), f"{NUMBER}, which has no probabilities. Use /classify_many, or train it with"),
        (score("number", "1", "2"), NUMBER),
        (predicate("number"), NUMBER),
        (predicate("number.1"), f"{NUMBER} and has no labels"),
        (score("single", "card", "login"), "'single' have no order, so it answers no score. Ask a choice, or train"),
        (score("ordinal", "card", "login", "refund"), "not in the order of the task 'ordinal': 'login', 'card', 'ref"),
        (score("ordinal", "low", "card"), "the task 'ordinal' has no label 'low'"),
        (score("ordinal.card", "login", "card"), "is one label of the task 'ordinal'"),
        (score("multi", "card", "late"), "so it answers no score"),
        (predicate("single"), "does not say which of its labels means yes. Name the label: 'single.card', 'single.lo"),
        (predicate("single.crad"), "the task 'single' has no label 'crad'. Did you mean 'card'?"),
        (predicate("joint.card"), PAIRS),
        (choice("joint", "card", "login"), PAIRS),
    ],
)
def test_questions_that_do_not_fit_their_task(question: dict[str, Any], message: str, server: Live) -> None:
    told = decide(server, predicate("single.card"), question, status=400)
    assert told.startswith("questions.1: ") and message in told and "\n" not in told


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"single": {"type": "choice", "criteria": {"card": None, "logn": "?"}}}, "has no label 'logn'. Did you mean"),
        ({"ordinal": {"type": "score", "criteria": ["Calm.", "Angry."]}}, "has no label 'Calm.'. Its labels are"),
        ({"ordinal": {"type": "score", "criteria": [{"a": 1}, "card"]}}, "has no label '{\"a\": 1}'"),
        ({"single": {"type": "noul"}}, "questions.single: the task 'single' does not say which of its labels"),
        ({"single": {"type": "box"}}, "questions.single: "),
        ({"single": {"type": "choice", "criteria": {}}}, "questions.single.choice.criteria: "),
        ({}, "questions: "),
    ],
)
def test_system_one_questions_that_do_not_fit(question: Any, message: str, server: Live) -> None:
    assert message in system_one(server, question, status=400)


# --- the text -------------------------------------------------------------------------------------------------------


def part(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([{"role": "user", "content": "my card"}], "my card"),
        ([{"type": "message", "role": "user", "content": [part("my card"), part("is late")]}], "my card\nis late"),
        ([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "my card"},
          {"role": "assistant", "content": [{"type": "output_text", "text": "Yes?"}]},
          {"role": "user", "content": [part("late")]}], "my card\n\nlate"),
        ([{"role": "user", "content": [{"type": "input_json", "data": {"b": "é", "a": [1]}}]}], '{"b": "é", "a": [1]}'),
    ],
)  # fmt: skip
def test_messages_are_one_text(given: Any, text: str, server: Live) -> None:
    question = choice("single", "card", "login", "refund")
    assert decide(server, question, given=given) == decide(server, question, given=text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "input: it must be a text or a list of messages. Got a number"),
        (None, "Got null"),
        ([], "it has no message of the role user"),
        ([{"role": "system", "content": "a"}], "it has no message of the role user"),
        (["a"], "item 1 is a text, not a message"),
        ([{"role": "user", "content": 5}], "the content of item 1 must be a text or a list of parts. Got a number"),
        ([{"role": "robot", "content": "a"}], "item 1 has the role 'robot'. Use user, system"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}], "'input_image', and tasks read o"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}], "a part of the type 'input_file'"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "a part that is not"),
        ([{"role": "user", "content": ["a"]}], "a part that is a text, not an object"),
        ([{"type": "function_call", "name": "a", "arguments": "", "call_id": "1"}], "is of the type 'function_call'"),
        ("\ud800", "an invalid Unicode character"),
    ],
)
def test_inputs_that_are_no_text(given: Any, message: str, server: Live) -> None:
    body = json.dumps({"input": given, "questions": [predicate("single.card")]}).encode()
    reply = server.client.post(DECISIONS, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("state", "text"), [({"b": "é", "a": [1]}, '{"b": "é", "a": [1]}'), (["a", None], '["a", null]')]
)
def test_states_are_read_as_json_text(state: Any, text: str, server: Live) -> None:
    question = {"single": {"type": "choice", "criteria": {"card": None, "login": None, "refund": None}}}
    assert system_one(server, question, state=state) == system_one(server, question, state=text)


@pytest.mark.parametrize("state", [None, 5, True])
def test_states_that_are_none(state: Any, server: Live) -> None:
    assert "it must be a text, an object or a list" in system_one(
        server, {"a": {"type": "noul"}}, state=state, status=400
    )


def test_assets_are_not_read(server: Live) -> None:
    body = {"state": "a", "questions": {"single.card": {"type": "noul"}}, "assets": {"x": {"type": "image"}}}
    reply = server.post(SYSTEM_ONE, body)
    assert reply.status_code == 400 and "images are not read" in reply.json()["error"]["message"]


# --- limits, tokens and batching ------------------------------------------------------------------------------------


def test_numbers_of_questions(server: Live) -> None:
    assert len(decide(server, *[predicate("single.card")] * 400)) == 400
    for questions in ([], [predicate("single.card")] * 401):
        assert "questions: " in decide(server, *questions, status=400)
    assert "should have at most 1000 characters" in decide(server, predicate("a" * 1001), status=400)
    assert "at least 2 items" in decide(server, choice("single", "card"), status=400)


@pytest.mark.parametrize(
    ("place", "message"), [("name", "as a unicode string"), ("instructions", "unpaired surrogate")]
)
def test_half_characters_are_refused(place: str, message: str, server: Live) -> None:
    body = {"input": "a", "questions": [{**predicate("single.card"), place: "\ud800"}]}
    reply = server.client.post(
        DECISIONS, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


def test_limits_hold_without_a_known_question(tasks: Path) -> None:
    with live(settings(tasks / "single", characters=10)) as server:
        assert "more than 10 characters" in decide(server, predicate("nothing"), given="a" * 11, status=413)
        assert decide(server, predicate("nothing"), given="a" * 10)[0]["type"] == "refusal"


def test_tokens_and_the_model(server: Live) -> None:
    tokens = 2 + len(TEXTS[0].split())
    reply = server.post(DECISIONS, {"input": TEXTS[0], "questions": [predicate("single.card"), predicate("nothing")]})
    assert reply.json()["model"] == "ytuning" and set(reply.json()) == {"model", "answers", "usage"}
    assert reply.json()["usage"] == {
        "input_tokens": tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens,
    }  # fmt: skip
    other = server.post(SYSTEM_ONE, {"state": TEXTS[0], "questions": {"single.card": {"type": "noul"}}}).json()
    assert other["usage"] == {"input_tokens": tokens, "output_tokens": 0}
    cut = server.post(DECISIONS, {"input": TEXTS[-1], "questions": [predicate("single.card")]})
    assert cut.headers["x-truncated-inputs"] == "0"


def test_all_tasks_share_one_pass(tasks: Path) -> None:
    catalog, encoder = held_catalog(*(tasks / name for name in ("single", "multi", "ordinal")))
    encoder.go.set()
    with live(settings(tasks / "single"), catalog) as server:
        before = len(encoder.calls)
        decide(server, predicate("single.card"), predicate("multi.late"), predicate("ordinal.card"), given="a new text")
        assert encoder.calls[before:] == [1]


def test_too_much_that_waits_is_refused(tasks: Path) -> None:
    catalog, encoder = held_catalog(tasks / "single")
    encoder.go.set()
    with live(settings(tasks / "single", queue_tokens=20), catalog) as server:
        encoder.go.clear()
        waiting = [threading.Thread(target=decide, args=(server, predicate("single.card"))) for _ in range(2)]
        before = len(encoder.calls)
        waiting[0].start()
        until(lambda: len(encoder.calls) > before)
        waiting[1].start()
        until(lambda: server.metric("queue_tokens") > 0)
        told = decide(server, predicate("single.card"), given="another text " * 10, status=429)
        assert told.startswith("too many texts are waiting")
        encoder.go.set()
        for thread in waiting:
            thread.join(PATIENCE)


def test_keys_are_asked_for(tasks: Path) -> None:
    with live(settings(tasks / "single", keys=("k" * 20,))) as server:
        decide(server, predicate("single.card"), status=401)
        body = {"input": "my card", "questions": [predicate("single.card")]}
        reply = server.post(DECISIONS, body, authorization=f"Bearer {'k' * 20}")
        assert reply.status_code == 200 and reply.headers["x-request-id"]


# --- a client that others wrote -------------------------------------------------------------------------------------


def test_openai_client(server: Live, offline: dict[str, list[Prediction]]) -> None:
    import openai
    from openai.types import decision

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        reply = client.decisions.create(
            model="any",
            input=[{"role": "user", "content": [{"type": "input_text", "text": TEXTS[0]}]}],
            questions=[
                {"type": "predicate", "name": "multi.late", "instructions": "Is it late?"},
                {"type": "choice", "name": "single", "instructions": "Which?",
                 "choices": [{"value": "card"}, {"value": "login", "description": "Signing in."}, {"value": "refund"}]},
                {"type": "score", "name": "ordinal", "instructions": "How?",
                 "levels": [{"label": "login"}, {"label": "card"}, {"label": "refund"}]},
                {"type": "predicate", "name": "nothing", "instructions": "Is it?"},
                {"type": "choice", "name": "spam", "instructions": "Is it?",
                 "choices": [{"value": True}, {"value": False}]},
            ],
        )  # fmt: skip
        late, single, ordinal, nothing, spam = reply.answers
        assert isinstance(late, decision.AnswerAnswerResourcePredicate)
        assert late.probability == pytest.approx(offline["multi"][0].scores["late"], abs=1e-5)
        assert isinstance(single, decision.AnswerAnswerResourceChoice)
        assert single.choice == offline["single"][0].answer
        assert isinstance(ordinal, decision.AnswerAnswerResourceScore) and 0 <= ordinal.score <= 2
        assert [level.label for level in ordinal.probabilities] == ["login", "card", "refund"]
        assert isinstance(nothing, decision.AnswerAnswerResourceRefusal) and nothing.name == "nothing"
        assert isinstance(spam, decision.AnswerAnswerResourceChoice) and isinstance(spam.choice, bool)
        assert reply.usage.total_tokens == reply.usage.input_tokens > 0
        assert type(reply).model_validate(reply.model_dump(), strict=True) == reply
        with pytest.raises(openai.BadRequestError, match="has no label 'crad'"):
            client.decisions.create(
                model="any", input="a", questions=[{"type": "predicate", "name": "single.crad", "instructions": "?"}]
            )


# --- the fallback server --------------------------------------------------------------------------------------------


@dataclass
class Other:
    """A server that answers as it is told, and remembers what it was asked.

    Attributes:
        answer: makes the status and the body of a reply to the fields of a request.
        asked: path, headers and fields of each request.
    """

    url: str = ""
    answer: Callable[[dict[str, Any]], tuple[int, Any]] = lambda fields: (200, {})
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)


@contextmanager
def other_server() -> Iterator[Other]:
    other = Other()
    other.held.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            other.asked.append((self.path, headers, fields))
            other.held.wait(PATIENCE)
            status, body = other.answer(fields)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            # A server that gave up waiting has closed the connection.
            try:
                self.wfile.write(content)
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        other.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield other
        finally:
            other.held.set()
            listening.shutdown()
            thread.join(PATIENCE)


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    with other_server() as other:
        yield other


@pytest.fixture(scope="module")
def backed(tasks: Path, spam: Path, other: Other) -> Iterator[Live]:
    """A server whose fallback is the other one; its breaker never opens."""
    given = settings(
        tasks, spam, fallback=other.url, fallback_key="secret", fallback_seconds=5.0, fallback_failures=10**9
    )
    with live(given) as server:
        yield server


@pytest.fixture(autouse=True)
def _fresh(other: Other) -> None:
    other.asked.clear()
    other.held.set()


def answers_decisions(fields: dict[str, Any]) -> tuple[int, Any]:
    """A right answer to each question, and something beside it."""
    answers: list[dict[str, Any]] = []
    for asked in fields["questions"]:
        head = {"type": asked["type"], "name": asked.get("name"), "more": 1}
        if asked["type"] == "predicate":
            answers.append({**head, "probability": 0.25})
        elif asked["type"] == "choice":
            values = [each["value"] for each in asked["choices"]]
            shares = [{"value": value, "probability": 1 / len(values)} for value in values]
            answers.append({**head, "choice": values[-1], "confidence": 0.4, "probabilities": shares})
        else:
            labels = [each["label"] for each in asked["levels"]]
            levels = [{"value": n, "label": label, "probability": 1 / len(labels)} for n, label in enumerate(labels)]
            answers.append({**head, "score": 0.7, "confidence": 0.3, "probabilities": levels[::-1]})
    return 200, {"model": "other", "answers": answers, "usage": {"input_tokens": 100, "output_tokens": 7}}


def test_unknown_questions_go_to_the_fallback_in_their_order(backed: Live, other: Other) -> None:
    other.answer = answers_decisions
    unknown = [choice("mood", "calm", True), {"type": "predicate", "instructions": "Is it?"}, score("x", "low", "high")]
    reply = backed.post(
        DECISIONS,
        {"model": "large", "input": TEXTS[0], "safety_identifier": "me",
         "questions": [unknown[0], predicate("single.card"), unknown[1], unknown[2]]},
    ).json()  # fmt: skip
    mood, known, unnamed, level = reply["answers"]
    ((path, headers, fields),) = other.asked
    assert path == DECISIONS and headers["authorization"] == "Bearer secret"
    assert fields == {"model": "large", "input": TEXTS[0], "safety_identifier": "me", "questions": unknown}
    assert mood == {
        "type": "choice", "name": "mood", "choice": True, "confidence": 0.4,
        "probabilities": [{"value": "calm", "probability": 0.5}, {"value": True, "probability": 0.5}],
    }  # fmt: skip
    assert known["type"] == "predicate" and known["name"] == "single.card"
    assert unnamed == {"type": "predicate", "name": None, "probability": 0.25}
    assert level["score"] == 0.7 and [each["label"] for each in level["probabilities"]] == ["low", "high"]
    assert reply["usage"]["input_tokens"] > 100 and reply["usage"]["output_tokens"] == 7


def test_known_questions_never_go_to_the_fallback(backed: Live, other: Other) -> None:
    decide(backed, predicate("single.card"), choice("careful", "card", "login"))
    decide(backed, predicate("single.crad"), predicate("nothing"), status=400)
    system_one(backed, {"single.card": {"type": "noul"}})
    assert not other.asked


def test_system_one_questions_go_to_the_fallback(backed: Live, other: Other) -> None:
    given = {
        "mood": {"type": "choice", "choice": "calm", "probabilities": {"angry": 0.2, "calm": 0.8}, "confidence": 0.7},
        "how": {"type": "score", "score": 1, "legend": {"0": "?"}, "probabilities": {"0": 0, "1": 1}, "confidence": 1},
    }  # fmt: skip
    other.answer = lambda fields: (200, {"answers": {**given, "other": {"type": "noul", "noul": 0.5}}})
    unknown = {
        "mood": {"type": "choice", "criteria": {"calm": "Quiet.", "angry": None}, "instructions": "Which?"},
        "how": {"type": "score", "criteria": ["Low.", {"a": 1}]},
        "missing": {"type": "noul", "instructions": "Is it?"},
    }
    state = {"text": TEXTS[0]}
    answers = system_one(backed, {**unknown, "single.card": {"type": "noul"}}, state=state)
    ((path, _, fields),) = other.asked
    assert path == SYSTEM_ONE and fields == {"model": "any", "state": state, "questions": unknown}
    assert list(answers) == ["mood", "how", "missing", "single.card"]
    assert answers["mood"] == given["mood"]
    assert answers["how"] == {**given["how"], "legend": {"0": "Low.", "1": {"a": 1}}}
    assert answers["missing"]["error"] == {
        "type": "fallback", "message": "the answer of the fallback server is not valid.",
    }  # fmt: skip
    assert answers["single.card"]["type"] == "noul"


RUBBISH: list[Any] = [
    b"", b"<html>", b"[" * 100_000, b"9" * 5_000, b"null", [], {}, {"answers": None}, {"answers": []},
    {"answers": [{}] * 2}, {"answers": [5, None]}, {"answers": [{"type": "box"}, {"type": "predicate"}]},
    {"answers": [{"type": "predicate", "probability": 2}, {"type": "predicate", "probability": "0.5"}]},
    b'{"answers": [{"type": "predicate", "probability": NaN}, {"type": "predicate", "probability": 1e999}]}',
    {"answers": [{"type": "choice", "choice": "a", "confidence": 1, "probabilities": []}] * 2},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RUBBISH)))
@pytest.mark.parametrize("path", [DECISIONS, SYSTEM_ONE])
def test_rubbish_from_the_fallback_is_a_refusal(path: str, number: int, backed: Live, other: Other) -> None:
    other.answer = lambda fields: (200, RUBBISH[number])
    failures = backed.metric("fallback_failures_total", reason="invalid")
    if path == DECISIONS:
        known, *given = decide(backed, predicate("single.card"), predicate("one"), choice("two", "a", "b"))
        assert known["type"] == "predicate" and [answer["type"] for answer in given] == ["refusal"] * 2
        assert given[0]["reason"] == "the answer of the fallback server is not valid."
    else:
        answers = system_one(backed, {"single.card": {"type": "noul"}, "one": {"type": "noul"}})
        assert (answers["single.card"]["type"], answers["one"]["type"]) == ("noul", "error")
    assert backed.metric("fallback_failures_total", reason="invalid") == failures + 1


@pytest.mark.parametrize(
    "change",
    [
        {"type": "choice"}, {"score": 5}, {"score": float("nan")}, {"confidence": -1}, {"probabilities": []},
        {"probabilities": [{"value": 0, "label": "low", "probability": 1.0}] * 2}, {"score": True}, {"score": None},
    ],
)  # fmt: skip
def test_one_wrong_answer_of_the_fallback_leaves_the_others(change: Any, backed: Live, other: Other) -> None:
    def answer(fields: dict[str, Any]) -> tuple[int, Any]:
        status, body = answers_decisions(fields)
        body["answers"][0].update(change)
        return status, body

    other.answer = answer
    wrong, right = decide(backed, score("how", "low", "high"), predicate("what"))
    assert wrong["type"] == "refusal" and right == {"type": "predicate", "name": "what", "probability": 0.25}


def test_a_refusal_of_the_fallback_is_one(backed: Live, other: Other) -> None:
    other.answer = lambda fields: (200, {"answers": [{"type": "refusal", "name": "what"}]})
    (answer,) = decide(backed, predicate("what"))
    assert answer == {"type": "refusal", "name": "what", "reason": "the fallback server gives no answer."}


@pytest.mark.parametrize("status", [302, 400, 401, 404, 429, 500])
def test_statuses_of_the_fallback(status: int, backed: Live, other: Other) -> None:
    other.answer = lambda fields: (status, {"error": "no"})
    (answer,) = decide(backed, predicate("what"))
    assert answer["reason"] == f"the fallback server answered with the status {status}."


def test_a_fallback_that_is_too_slow(tasks: Path) -> None:
    with (
        other_server() as other,
        live(settings(tasks / "single", fallback=other.url, fallback_seconds=0.3)) as server,
    ):
        other.held.clear()
        known, unknown = decide(server, predicate("single.card"), predicate("what"))
        assert known["type"] == "predicate"
        assert unknown["reason"] == "the fallback server did not answer within 0.3 s."
        assert server.metric("fallback_failures_total", reason="timeout") == 1


def test_the_fallback_leaves_time_for_the_reply(tasks: Path) -> None:
    """A request is answered within its own time, however long the fallback may take."""
    with (
        other_server() as other,
        live(settings(tasks / "single", seconds=1.5, fallback=other.url, fallback_seconds=60.0)) as server,
    ):
        other.held.clear()
        known, unknown = decide(server, predicate("single.card"), predicate("what"))
        assert known["type"] == "predicate" and "did not answer within" in unknown["reason"]


def test_a_fallback_that_fails_is_left_alone_for_a_while(tasks: Path) -> None:
    with (
        other_server() as other,
        live(settings(tasks / "single", fallback=other.url, fallback_failures=3, fallback_pause=1.0)) as server,
    ):
        other.answer = lambda fields: (400, {})
        for _ in range(4):
            decide(server, predicate("what"))
        assert server.metric("fallback_breaker_open") == 0, "a bad request is not the server's fault"
        other.answer = lambda fields: (503, {})
        for _ in range(3):
            decide(server, predicate("what"))
        assert server.metric("fallback_breaker_open") == 1 and len(other.asked) == 7
        (answer,) = decide(server, predicate("what"))
        assert "is not asked at present" in answer["reason"] and len(other.asked) == 7
        assert server.metric("fallback_requests_total") == 7
        assert server.metric("fallback_failures_total", reason="status") == 7
        assert server.metric("fallback_failures_total", reason="not_asked") == 1
        until(lambda: server.metric("fallback_breaker_open") == 0)
        decide(server, predicate("what"))
        assert len(other.asked) == 8 and server.metric("fallback_breaker_open") == 1, "the trial has failed"
        until(lambda: server.metric("fallback_breaker_open") == 0)
        other.answer = answers_decisions
        for _ in range(3):
            assert decide(server, predicate("what"))[0]["type"] == "predicate"
        assert len(other.asked) == 11


def test_a_fallback_that_is_not_there(tasks: Path) -> None:
    with live(settings(tasks / "single", fallback="http://127.0.0.1:9")) as server:
        (answer,) = decide(server, predicate("what"))
        assert answer["reason"] == "the fallback server cannot be reached."


def test_a_request_from_a_fallback_is_not_sent_on(tasks: Path) -> None:
    with live(settings(tasks / "single")) as last, live(settings(tasks / "multi", fallback=last.url)) as first:
        chosen, unknown = decide(first, choice("single", "card", "login"), predicate("what"))
        assert chosen["type"] == "choice" and unknown["type"] == "refusal"
        # A request that came from a fallback is not sent on.
        body = {"input": "a", "questions": [predicate("single.card")]}
        (refused,) = first.post(DECISIONS, body, **{"x-ytuning-fallback": "1"}).json()["answers"]
        assert refused["type"] == "refusal"


@pytest.mark.parametrize(
    ("url", "base"),
    [("https://api.openai.com/v1", "https://api.openai.com"), ("http://a:80/api/", "http://a:80/api"),
     ("https://a.example/v1/", "https://a.example")],
)  # fmt: skip
def test_addresses_of_fallbacks(url: str, base: str) -> None:
    assert check_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com",
        "ftp://a",
        "http://",
        "http://a?b=c",
        "http://[",
        "https://u:p@a",
        "http://a b",
        "http://a:x",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match="--fallback must"):
        check_url(url)


def test_keys_of_fallbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FALLBACK_KEY, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(FALLBACK_KEY, " from-outside ")
    assert read_key(None) == "from-outside"
    file = tmp_path / "key"
    file.write_text("# of the other server\nsecret\n")
    assert read_key(file) == "secret"
    for content, message in (("", "It has 0"), ("a\nb\n", "It has 2"), ("a b\n", "without spaces"), ("é\n", "ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_key(file)
    with pytest.raises(InputError, match="cannot read the key in"):
        read_key(tmp_path / "nothing")


def test_options_of_the_command(tasks: Path, other: Other, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("of-the-file\n")
    options = ("--fallback", f"{other.url}/v1", "--fallback-timeout", "0.4", "--fallback-key", file)
    other.answer = answers_decisions
    with Process(tasks / "single", *options) as process:
        url = f"{process.ready().url}{DECISIONS}"
        body = {"input": "my card", "questions": [predicate("what")]}
        (answer,) = httpx.post(url, json=body, timeout=PATIENCE).json()["answers"]
        assert answer["probability"] == 0.25
        assert other.asked[0][1]["authorization"] == "Bearer of-the-file"
        other.held.clear()
        (answer,) = httpx.post(url, json=body, timeout=PATIENCE).json()["answers"]
        assert answer["reason"] == "the fallback server did not answer within 0.4 s."
        assert process.end() == 0
        assert not any("of-the-file" in line for line in process.lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--fallback", "nowhere"],
            "error: --fallback must be an address such as https://api.openai.com. Got 'nowhere'",
        ),
        (["--fallback-key", "key"], "error: --fallback-key is for --fallback. Give both or leave out --fallback-key."),
        (["--fallback-timeout", "3"], "error: --fallback-timeout is for --fallback. Give both or leave out"),
    ],
)
def test_options_that_are_none(options: list[str], message: str, tasks: Path) -> None:
    with Process(tasks / "single", *options) as process:
        assert process.wait() == 2
        (line,) = process.lines
    assert line.startswith(message)


# --- nonsense -------------------------------------------------------------------------------------------------------

NAMES: list[Any] = [
    "single", "single.card", "multi", "multi.late", "ordinal", "number", "joint", "a.b.c", "a.b", "spam", "careful",
    "", ".", "singel", "single.", "\u202e", "é" * 900, "." * 999, "x" * 1001, "\ud800", None, 5, True, [], {},
]  # fmt: skip
LABELS = ["card", "login", "refund", "late", "true", "", " card ", "\ud800", True, False, None, 1, 1.5, [], {"a": []}]
ODD: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    {},
    [],
    [[]],
    "",
    "a\0b",
    "\ud800",
    "card " * 500,
]


RIGHT = [
    choice("single", "card", "login"), choice("spam", True, False), choice("what", "a", True), choice("careful", "card",
    "refund"), score("ordinal", "login", "refund"), score("how", "a", "b", "c"), predicate("multi.late"),
    predicate("singel"), predicate(None),
]  # fmt: skip
RIGHT_CRITERIA: dict[str, Any] = {
    "single": {"type": "choice", "criteria": {"card": None, "login": "a"}}, "multi.late": {"type": "noul"},
    "ordinal": {"type": "score", "criteria": ["login", "refund"]}, "what": {"type": "choice", "criteria": {"a": 1}},
    "how": {"type": "score", "criteria": ["a", {"b": []}]}, "careful.card": {"type": "noul"}, "": {"type": "noul"},
}  # fmt: skip


def right_body(chooser: random.Random, path: str) -> bytes:
    """A body that is answered, by the server and its fallback."""
    count = chooser.randint(1, 6)
    if path == DECISIONS:
        return json.dumps({"input": "my card", "questions": chooser.choices(RIGHT, k=count)}).encode()
    names = chooser.sample(list(RIGHT_CRITERIA), count)
    return json.dumps({"state": ["my card"], "questions": {name: RIGHT_CRITERIA[name] for name in names}}).encode()


def nonsense(chooser: random.Random, path: str) -> bytes:
    """A body that is like a right one but for some of its values."""

    def some(values: list[Any], most: int = 4) -> list[Any]:
        return [chooser.choice(values) for _ in range(chooser.randint(0, most))]

    def right(value: Any) -> Any:
        return chooser.choice(ODD) if chooser.random() < 0.08 else value

    def question() -> Any:
        kind = chooser.choice(["predicate", "noul", "choice", "score", "choice", "score", "box"])
        asked: dict[str, Any] = {"type": right(kind), "instructions": right("Is it?")}
        options = some(LABELS) if chooser.random() < 0.4 else chooser.sample(LABELS[:3], chooser.randint(2, 3))
        if path == DECISIONS:
            asked["name"] = chooser.choice(NAMES)
            if kind == "choice":
                asked["choices"] = right([right({"value": option}) for option in options])
            if kind == "score":
                asked["levels"] = right([right({"label": option}) for option in options])
        elif kind == "choice":
            asked["criteria"] = right({str(option): right("a") for option in options})
        elif kind in ("score", "noul"):
            asked["criteria"] = right(options)
        return right(asked)

    count = chooser.choice([1, 1, 2, 5, 0])
    if path == DECISIONS:
        kind = chooser.choice(["input_text", "input_json", "input_image", "text"])
        parts = [right({"type": kind, "text": right("my card"), "data": right({"a": 1})})]
        message = {"role": right("user"), "content": right(parts)}
        given = right(chooser.choice(["my card", "", [message], [message, right(message)]]))
        body: Any = {"input": given, "questions": right([question() for _ in range(count)]), "model": right("any")}
    else:
        given = right(chooser.choice(["my card", {"text": right("a")}, [right("a")]]))
        names = [str(chooser.choice(NAMES)) for _ in range(count)]
        body = {"state": given, "questions": right({name: question() for name in names}), "model": right("any")}
    whole = json.dumps(right(body)).encode()
    way = chooser.randrange(12)
    if way == 0:
        return whole[: chooser.randrange(len(whole))]
    if way == 1:
        deep = b"[" * (depth := chooser.choice([10, 500, 900, 100_000])) + b"]" * depth
        return b'{"input": "a", "state": %s, "questions": [{"type": "predicate", "instructions": %s}]}' % (deep, deep)
    return whole


def test_nonsense_never_fails_the_server(backed: Live, other: Other) -> None:
    """Neither of a client nor of the fallback; every reply has as many answers as there were questions."""
    chooser = random.Random(0)

    def answer(fields: dict[str, Any]) -> tuple[int, Any]:
        if chooser.random() < 0.5:
            return chooser.choice([200, 200, 400, 500]), chooser.choice(RUBBISH)
        return answers_decisions(fields) if isinstance(fields["questions"], list) else (200, {"answers": {}})

    other.answer = answer
    seen: dict[int, int] = {}
    for number in range(FUZZ):
        path = chooser.choice([DECISIONS, SYSTEM_ONE])
        body = right_body(chooser, path) if chooser.random() < 0.3 else nonsense(chooser, path)
        reply = backed.client.post(path, content=body, headers={"content-type": "application/json"})
        seen[reply.status_code] = seen.get(reply.status_code, 0) + 1
        assert reply.status_code in (200, 400, 413), (number, path, body[:500], reply.text)
        if reply.status_code == 200:
            questions, answers = json.loads(body)["questions"], reply.json()["answers"]
            assert len(answers) == len(questions)
            assert path == DECISIONS or list(answers) == list(questions)
            assert all(math.isfinite(share) for share in _numbers(answers))
        else:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    print(f"{FUZZ:,} bodies: {seen}")
    assert seen[200] > FUZZ / 5 and seen[400] > FUZZ / 5
    assert httpx.get(f"{backed.url}/health").status_code == 200


def _numbers(value: Any) -> Iterator[float]:
    """Every number in the parts of answers that are probabilities, scores or confidences."""
    for answer in value if isinstance(value, list) else value.values():
        for name in ("probability", "noul", "score", "confidence"):
            if name in answer:
                yield answer[name]
        shares = answer.get("probabilities", [])
        yield from shares.values() if isinstance(shares, dict) else [each["probability"] for each in shares]

"""The decision routes: typed questions about one text, in the forms of OpenAI and of System One."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter, ValidationError

from ytuning.server import schemas
from ytuning.server.batching import Refused
from ytuning.server.bodies import JsonRoute
from ytuning.server.catalog import Served
from ytuning.server.decisions import forms
from ytuning.server.decisions.fallback import FORWARDED, FallbackError
from ytuning.server.decisions.forms import MODEL
from ytuning.server.decisions.questions import Answer, Bound, Option, Question, Unanswerable, bind_all
from ytuning.server.replies import TheService, refusals_of, usage_of
from ytuning.server.service import Service, unless_gone

__all__ = ["decision_routes"]

decision_routes = APIRouter(route_class=JsonRoute, responses=refusals_of(schemas.V1Error))

# Seconds of a request's time that the fallback server leaves for the reply.
MARGIN = 0.5
LARGEST_COUNT = 2**53
# Other servers round probabilities, so the mean position may lie this far beyond the last level.
ROUNDING = 0.05


Answers = list[Answer | Unanswerable]


@dataclass(frozen=True)
class Outcome:
    """The answers to all questions of a request, and the tokens that were read and written for them."""

    answers: Answers
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Forward:
    """How questions go to the fallback server.

    Attributes:
        path: path of the route.
        fields: makes the body for the questions at some places.
        read: reads the answers to these questions of a reply; ValueError if it has another form.
    """

    path: str
    fields: Callable[[list[int]], dict[str, Any]]
    read: Callable[[Any, list[int]], Answers]


# --- both routes ------------------------------------------------------------------------------------------------------


async def _answer_all(
    request: Request, service: Service, text: str, questions: Sequence[Question], forward: Forward
) -> Outcome:
    """Answer bound questions by their tasks in one encoder pass, and the others by the fallback server if there is one.

    Raises:
        Refused: a question does not fit its task, or as `Service.answers`.
    """
    start = time.perf_counter()
    service.check_ready()
    bound = bind_all(questions, service.catalog.tasks)
    tasks = {each.served.task.name: each.served for each in bound if isinstance(each, Bound)}
    answers, input_tokens = await _answer_bound(request, service, text, bound, list(tasks.values()))
    output_tokens = 0
    open_places = [place for place, each in enumerate(bound) if isinstance(each, Unanswerable)]
    if open_places and service.fallback is not None and FORWARDED not in request.headers:
        left = service.settings.seconds - MARGIN - (time.perf_counter() - start)

        def read(reply: Any) -> tuple[Answers, int, int]:
            return forward.read(reply, open_places), _count_of(reply, "input_tokens"), _count_of(reply, "output_tokens")

        asking = service.fallback.ask(forward.path, forward.fields(open_places), read, seconds=left)
        try:
            given, more_input, output_tokens = await unless_gone(request, asking)
        except FallbackError as error:
            given, more_input = [Unanswerable("fallback", str(error))] * len(open_places), 0
        input_tokens += more_input
        for place, answer in zip(open_places, given, strict=True):
            answers[place] = answer
    return Outcome(answers, input_tokens, output_tokens)


async def _answer_bound(
    request: Request, service: Service, text: str, bound: Sequence[Bound | Unanswerable], tasks: list[Served]
) -> tuple[Answers, int]:
    """The answers of the tasks, the reasons where there are none, and the tokens that the encoder read."""
    inputs = [(text, None)]
    if not tasks:
        service.check(inputs, [])
        return [each for each in bound if isinstance(each, Unanswerable)], 0
    rows = await service.answers(request, inputs, tasks)
    given = dict(zip((served.task.name for served in tasks), rows[0], strict=True))
    answers: Answers = []
    for each in bound:
        answers.append(each.answer(given[each.served.task.name]) if isinstance(each, Bound) else each)
    return answers, usage_of(rows)["prompt_tokens"]


def _count_of(reply: Any, name: str) -> int:
    """A number of tokens in the usage of a fallback server's reply; 0 if there is none."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < LARGEST_COUNT else 0


async def _raw_questions(request: Request) -> tuple[dict[str, Any], Any]:
    """The fields of a request as they came, and its questions.

    Raises:
        Refused: they contain half of a surrogate pair, which no reply could repeat, or are nested too deeply.
    """
    fields: dict[str, Any] = await request.json()
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except RecursionError:
        raise Refused(422, "validation", "the values of the body are nested too deeply.") from None
    except UnicodeEncodeError:
        message = "the body contains an invalid Unicode character (an unpaired surrogate)."
        raise Refused(422, "validation", message) from None
    return fields, fields["questions"]


def _read_each(
    questions: Sequence[Question], replies: Sequence[Any], read: Callable[[Question, Any], Answer | None]
) -> Answers:
    """Read a fallback server's answer to each question; one that is missing or has another form is no answer.

    Raises:
        ValueError: no answer has the form of its question.
    """
    answers: Answers = []
    valid = 0
    for question, reply in zip(questions, replies, strict=True):
        try:
            answer = read(question, reply)
        except (ValidationError, ValueError):
            answers.append(Unanswerable("fallback", "the answer of the fallback server is not valid."))
            continue
        valid += 1
        answers.append(answer or Unanswerable("fallback", "the fallback server gives no answer."))
    if not valid:
        raise ValueError("no answer is valid")
    return answers


def _check_complete(question: Question, answer: Answer) -> Answer:
    """An answer of the fallback server, if it has a probability of each option and a score on the levels.

    Raises:
        ValueError: it has not.
    """
    count = len(question.options)
    if len(answer.probabilities) != count:
        raise ValueError("the probabilities are not those of the options")
    if not -ROUNDING <= answer.score <= count - 1 + ROUNDING:
        raise ValueError("the score lies beyond the levels")
    return answer


# --- OpenAI -----------------------------------------------------------------------------------------------------------


@decision_routes.post("/v1/decisions", response_model=forms.Decision)
async def decisions(request: Request, service: TheService, body: forms.DecisionRequest) -> JSONResponse:
    """Answers to typed questions about a text, in the format of OpenAI. The name of a question binds it to a task."""
    fields, raw = await _raw_questions(request)
    questions = [_question_of(number, asked) for number, asked in enumerate(body.questions)]

    def read(reply: Any, places: list[int]) -> Answers:
        answers = reply.get("answers") if isinstance(reply, dict) else None
        if not isinstance(answers, list) or len(answers) != len(places):
            raise ValueError("there are not as many answers as questions")
        return _read_each([questions[place] for place in places], answers, _read_decision)

    def forwarded(places: list[int]) -> dict[str, Any]:
        return {**fields, "questions": [raw[place] for place in places]}

    forward = Forward("/v1/decisions", forwarded, read)
    given = await _answer_all(request, service, body.text(), questions, forward)
    answers = [_decision_of(question, answer) for question, answer in zip(questions, given.answers, strict=True)]
    usage = {
        "input_tokens": given.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": given.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given.input_tokens + given.output_tokens,
    }
    return JSONResponse({"model": MODEL, "answers": answers, "usage": usage})


def _question_of(number: int, asked: forms.DecisionPredicate | forms.DecisionChoice | forms.DecisionScore) -> Question:
    options: tuple[Option, ...] = ()
    if isinstance(asked, forms.DecisionChoice):
        options = tuple(choice.value for choice in asked.choices)
    elif isinstance(asked, forms.DecisionScore):
        options = tuple(level.label for level in asked.levels)
    return Question(f"questions.{number}", asked.name, asked.type, options)


def _decision_of(question: Question, answer: Answer | Unanswerable) -> dict[str, Any]:
    """An answer in OpenAI's form; the reason of a refusal is a field beyond it."""
    if isinstance(answer, Unanswerable):
        return {"type": "refusal", "name": question.name, "reason": answer.message}
    head = {"type": question.kind, "name": question.name}
    if question.kind == "predicate":
        return {**head, "probability": answer.probabilities[0]}
    shares = list(zip(question.options, answer.probabilities, strict=True))
    if question.kind == "choice":
        probabilities = [{"value": value, "probability": share} for value, share in shares]
        choice = question.options[answer.choice]
        return {**head, "choice": choice, "confidence": answer.confidence, "probabilities": probabilities}
    levels = [{"value": place, "label": label, "probability": share} for place, (label, share) in enumerate(shares)]
    return {**head, "score": answer.score, "confidence": answer.confidence, "probabilities": levels}


_DECISION_ANSWER: TypeAdapter[Any] = TypeAdapter(forms.DecisionAnswer)


def _read_decision(question: Question, reply: Any) -> Answer | None:
    """An answer in OpenAI's form that another server gave; None for its refusal.

    Raises:
        ValidationError, ValueError: it is no answer to the question.
    """
    answer = _DECISION_ANSWER.validate_python(reply)
    if isinstance(answer, forms.DecisionRefusal):
        return None
    if answer.type != question.kind:
        raise ValueError("the answer is of another type than the question")
    if isinstance(answer, forms.PredicateAnswer):
        return Answer.of([answer.probability])
    # OpenAI tells a boolean from a text of the same name.
    keys = [(type(option), option) for option in question.options]
    if isinstance(answer, forms.ChoiceAnswer):
        shares = {(type(each.value), each.value): each.probability for each in answer.probabilities}
        probabilities = [shares[key] for key in keys] if set(shares) == set(keys) else []
        choice = keys.index((type(answer.choice), answer.choice))
        return _check_complete(question, Answer(probabilities, choice, 0.0, answer.confidence))
    places = {each.value: each.probability for each in answer.probabilities}
    probabilities = [places[place] for place in range(len(keys))] if sorted(places) == [*range(len(keys))] else []
    return _check_complete(question, Answer(probabilities, 0, answer.score, answer.confidence))


# --- System One -------------------------------------------------------------------------------------------------------


@decision_routes.post("/v1/systemone", response_model=forms.SystemOneReply)
async def system_one(request: Request, service: TheService, body: forms.SystemOneRequest) -> JSONResponse:
    """Answers to typed questions about a text, in the format of System One. A question's key binds it to a task."""
    fields, raw = await _raw_questions(request)
    names = list(body.questions)
    questions = [_question_of_key(name, asked) for name, asked in body.questions.items()]

    def read(reply: Any, places: list[int]) -> Answers:
        answers = reply.get("answers") if isinstance(reply, dict) else None
        if not isinstance(answers, dict):
            raise ValueError("there are no answers")
        some = [questions[place] for place in places]
        return _read_each(some, [answers.get(question.name) for question in some], _read_system_one)

    def forwarded(places: list[int]) -> dict[str, Any]:
        return {**fields, "questions": {names[place]: raw[names[place]] for place in places}}

    forward = Forward("/v1/systemone", forwarded, read)
    given = await _answer_all(request, service, body.text(), questions, forward)
    answers = {
        name: _system_one_of(question, answer, raw[name].get("criteria"))
        for name, question, answer in zip(names, questions, given.answers, strict=True)
    }
    usage = {"input_tokens": given.input_tokens, "output_tokens": given.output_tokens}
    return JSONResponse({"model": MODEL, "answers": answers, "usage": usage})


def _question_of_key(name: str, asked: forms.SystemOneNoul | forms.SystemOneChoice | forms.SystemOneScore) -> Question:
    place = f"questions.{name[:80]}"
    if isinstance(asked, forms.SystemOneNoul):
        return Question(place, name, "predicate")
    return Question(place, name, asked.type, tuple(forms.json_text(option) for option in asked.criteria))


def _system_one_of(question: Question, answer: Answer | Unanswerable, criteria: Any) -> dict[str, Any]:
    """An answer in System One's form; what is no answer is an entry of the type ``error``."""
    if isinstance(answer, Unanswerable):
        return {"type": "error", "error": {"type": answer.kind, "message": answer.message}}
    if question.kind == "predicate":
        return {"type": "noul", "noul": answer.probabilities[0]}
    if question.kind == "choice":
        probabilities = dict(zip(question.options, answer.probabilities, strict=True))
        choice = question.options[answer.choice]
        return {"type": "choice", "choice": choice, "probabilities": probabilities, "confidence": answer.confidence}
    return {
        "type": "score",
        "score": answer.score,
        "legend": {str(place): level for place, level in enumerate(criteria)},
        "probabilities": {str(place): share for place, share in enumerate(answer.probabilities)},
        "confidence": answer.confidence,
    }


_SYSTEM_ONE_ANSWER: TypeAdapter[Any] = TypeAdapter(forms.SystemOneAnswer)


def _read_system_one(question: Question, reply: Any) -> Answer | None:
    """An answer in System One's form that another server gave; None for its error entry.

    Raises:
        ValidationError, ValueError: it is no answer to the question.
    """
    answer = _SYSTEM_ONE_ANSWER.validate_python(reply)
    if isinstance(answer, forms.ErrorAnswer):
        return None
    if answer.type != ("noul" if question.kind == "predicate" else question.kind):
        raise ValueError("the answer is of another type than the question")
    if isinstance(answer, forms.NoulAnswer):
        return Answer.of([answer.noul])
    keys = list(question.options)
    if isinstance(answer, forms.SystemOneScoreAnswer):
        keys = [str(place) for place in range(len(keys))]
        choice, score = 0, answer.score
    else:
        choice, score = keys.index(answer.choice), 0.0
    probabilities = [answer.probabilities[key] for key in keys] if set(answer.probabilities) == set(keys) else []
    return _check_complete(question, Answer(probabilities, choice, score, answer.confidence))

"""The fields of OpenAI's decisions and of System One, and the one text that a request of either holds."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ytuning.data.labels import quote
from ytuning.server.texts import kind_of

__all__ = [
    "MODEL", "Decision", "DecisionChoice", "DecisionPredicate", "DecisionQuestion", "DecisionRefusal",
    "DecisionRequest", "DecisionScore", "SystemOneChoice", "SystemOneNoul", "SystemOneQuestion", "SystemOneReply",
    "SystemOneRequest", "SystemOneScore", "json_text",
]  # fmt: skip

# The model in replies, as no single task answers.
MODEL = "ytuning"
MOST_QUESTIONS, MOST_NAME_CHARACTERS = 400, 1000
TEXT_PARTS = ("input_text", "text")
OTHER_ROLES = ("system", "developer", "assistant")

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=MOST_NAME_CHARACTERS)]


class _Fields(BaseModel):
    """Unknown fields are ignored, and no value is converted."""

    model_config = ConfigDict(strict=True)


def json_text(value: Any) -> str:
    """A JSON value as text; a text as it is.

    Raises:
        ValueError: the value is nested too deeply.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ValueError("its values are nested too deeply.") from None


# --- OpenAI -----------------------------------------------------------------------------------------------------------


def _check_messages(value: Any) -> Any:
    """Refuse an input that is neither a text nor a list of messages of text, and name the item at fault."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"it must be a text or a list of messages. Got {kind_of(value)} instead.")
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise ValueError(f"item {number} is {kind_of(item)}, not a message.")
        if (kind := item.get("type", "message")) != "message":
            raise ValueError(f"item {number} is of the type {quote(kind)}, and tasks read only messages. Leave it out.")
        if (role := item.get("role")) not in ("user", *OTHER_ROLES):
            raise ValueError(f"item {number} has the role {quote(role)}. Use user, {', '.join(OTHER_ROLES)}.")
        if role == "user":
            _check_parts(item.get("content"), number)
    if not any(item["role"] == "user" for item in value):
        raise ValueError("it has no message of the role user, and tasks read only these.")
    return value


def _check_parts(content: Any, number: int) -> None:
    if isinstance(content, str):
        return
    what = f"the content of item {number}"
    if not isinstance(content, list):
        raise ValueError(f"{what} must be a text or a list of parts. Got {kind_of(content)} instead.")
    for part in content:
        if not isinstance(part, dict):
            raise ValueError(f"{what} has a part that is {kind_of(part)}, not an object.")
        kind = part.get("type")
        if kind == "input_json" and isinstance(part.get("data"), dict | list):
            json_text(part["data"])
        elif kind in ("input_image", "input_file", "image_url", "input_audio"):
            raise ValueError(f"{what} has a part of the type {quote(kind)}, and tasks read only texts. Leave it out.")
        elif kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise ValueError(f'{what} has a part that is not {{"type": "input_text", "text": "..."}}.')


class InputPart(_Fields):
    """A part of a message: a text, or JSON data that is read as text."""

    type: Literal["input_text", "text", "input_json"]
    text: str | None = None
    data: dict[str, Any] | list[Any] | None = None


class InputMessage(_Fields):
    """A message. Only those of the role ``user`` are read."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Any = Field(description="A text, or a list of parts that are texts.", examples=["I was charged twice"])

    def text(self) -> str:
        """The texts of its parts, each on a line of its own."""
        if isinstance(self.content, str):
            return self.content
        parts = [InputPart.model_validate(part) for part in self.content]
        return "\n".join(json_text(part.data) if part.type == "input_json" else part.text or "" for part in parts)


class _Question(_Fields):
    name: Name | None = Field(
        None, description="Name of a task, or of a label as TASK.LABEL. It binds the question.", examples=["tickets"]
    )
    instructions: Any = Field(None, description="Only the fallback server reads them.")


class DecisionPredicate(_Question):
    """Asks how probable one label is."""

    type: Literal["predicate"]


class Option(_Fields):
    """A choice: a label, or a boolean that stands for one."""

    value: str | bool
    description: str | None = None


class DecisionChoice(_Question):
    """Asks for one of some labels."""

    type: Literal["choice"]
    choices: list[Option] = Field(min_length=2)


class Level(_Fields):
    """A level, which is a label."""

    label: str
    description: str | None = None


class DecisionScore(_Question):
    """Asks for the position on labels that have an order."""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=2)


DecisionQuestion = Annotated[DecisionPredicate | DecisionChoice | DecisionScore, Field(discriminator="type")]


class DecisionRequest(_Fields):
    """Questions about one text."""

    input: Annotated[str | list[InputMessage], BeforeValidator(_check_messages)] = Field(
        examples=["I was charged twice"]
    )
    questions: list[DecisionQuestion] = Field(
        min_length=1,
        max_length=MOST_QUESTIONS,
        examples=[[{"type": "predicate", "name": "tickets.refund", "instructions": "Is this about a refund?"}]],
    )
    model: str | None = Field(None, description="Only the fallback server reads it.")

    def text(self) -> str:
        """The text, or the texts of all messages of users, with an empty line between them."""
        if isinstance(self.input, str):
            return self.input
        return "\n\n".join(message.text() for message in self.input if message.role == "user")


class PredicateAnswer(_Fields):
    """The probability of yes."""

    type: Literal["predicate"]
    name: str | None = None
    probability: Probability


class ChoiceProbability(_Fields):
    """A choice and its probability."""

    value: str | bool
    probability: Probability


class ChoiceAnswer(_Fields):
    """The most probable choice. ``confidence`` is its probability."""

    type: Literal["choice"]
    name: str | None = None
    choice: str | bool
    confidence: Probability
    probabilities: list[ChoiceProbability]


class LevelProbability(_Fields):
    """A level, its position from 0 on, and its probability."""

    value: int
    label: str
    probability: Probability


class ScoreAnswer(_Fields):
    """``score`` is the mean position of the levels, ``confidence`` the probability of the most probable one."""

    type: Literal["score"]
    name: str | None = None
    score: Annotated[float, Field(allow_inf_nan=False)]
    confidence: Probability
    probabilities: list[LevelProbability]


class DecisionRefusal(_Fields):
    """No answer. ``reason`` says why in words."""

    type: Literal["refusal"]
    name: str | None = None
    reason: str = ""


DecisionAnswer = Annotated[PredicateAnswer | ChoiceAnswer | ScoreAnswer | DecisionRefusal, Field(discriminator="type")]


class InputTokensDetails(BaseModel):
    """Nothing is cached."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Nothing is written."""

    reasoning_tokens: int = 0


class DecisionUsage(BaseModel):
    """Number of tokens that the encoder read, and those of the fallback server."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Decision(BaseModel):
    """The answers in the order of the questions."""

    model: str = MODEL
    answers: list[DecisionAnswer]
    usage: DecisionUsage


# --- System One -------------------------------------------------------------------------------------------------------


def _refuse_assets(value: Any) -> Any:
    if value is not None:
        raise ValueError("images are not read, because tasks read only texts. Leave assets out.")
    return value


def _check_state(value: Any) -> Any:
    if not isinstance(value, str | dict | list):
        raise ValueError(f"it must be a text, an object or a list. Got {kind_of(value)} instead.")
    json_text(value)
    return value


class SystemOneNoul(_Fields):
    """Asks how probable one label is."""

    type: Literal["noul"]
    instructions: Any = None
    criteria: Any = None


class SystemOneChoice(_Fields):
    """Asks for one of some labels, which are the keys of ``criteria``."""

    type: Literal["choice"]
    instructions: Any = None
    criteria: dict[str, Any] = Field(min_length=1)


class SystemOneScore(_Fields):
    """Asks for the position on labels that have an order, the items of ``criteria``."""

    type: Literal["score"]
    instructions: Any = None
    criteria: list[str | dict[str, Any] | list[Any]] = Field(min_length=1)


SystemOneQuestion = Annotated[SystemOneNoul | SystemOneChoice | SystemOneScore, Field(discriminator="type")]


class SystemOneRequest(_Fields):
    """Questions about one text. Their keys bind them: the name of a task, or of a label as TASK.LABEL."""

    state: Annotated[str | dict[str, Any] | list[Any], BeforeValidator(_check_state)] = Field(
        description="A text, or a JSON value that is read as its text.", examples=["I was charged twice"]
    )
    questions: dict[Name, SystemOneQuestion] = Field(
        min_length=1, max_length=MOST_QUESTIONS, examples=[{"tickets.refund": {"type": "noul"}}]
    )
    model: str | None = Field(None, description="Only the fallback server reads it.")
    assets: Annotated[Any, BeforeValidator(_refuse_assets)] = None

    def text(self) -> str:
        """The state as one text."""
        return json_text(self.state)


class NoulAnswer(_Fields):
    """The probability of yes."""

    type: Literal["noul"]
    noul: Probability


class SystemOneChoiceAnswer(_Fields):
    """The most probable choice. ``confidence`` is its probability."""

    type: Literal["choice"]
    choice: str
    probabilities: dict[str, Probability]
    confidence: Probability


class SystemOneScoreAnswer(_Fields):
    """``score`` is the mean position of the levels, ``confidence`` the probability of the most probable one."""

    type: Literal["score"]
    score: Annotated[float, Field(allow_inf_nan=False)]
    legend: dict[str, Any]
    probabilities: dict[str, Probability]
    confidence: Probability


class AnswerError(_Fields):
    """Why there is no answer: ``not_found``, ``abstained`` or ``fallback``, and in words."""

    type: str
    message: str


class ErrorAnswer(_Fields):
    """No answer."""

    type: Literal["error"]
    error: AnswerError


SystemOneAnswer = Annotated[
    NoulAnswer | SystemOneChoiceAnswer | SystemOneScoreAnswer | ErrorAnswer, Field(discriminator="type")
]


class SystemOneUsage(BaseModel):
    """Number of tokens that the encoder read, and those of the fallback server."""

    input_tokens: int
    output_tokens: int


class SystemOneReply(BaseModel):
    """The answers under the keys of their questions."""

    model: str = MODEL
    answers: dict[str, SystemOneAnswer]
    usage: SystemOneUsage

"""The fields of requests and replies, from which the OpenAPI document is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ytuning.data.labels import Kind
from ytuning.heads.pairs import PairMode
from ytuning.server.texts import SingleTexts, TextsOrPairs, check_parts
from ytuning.tasks.cascade import Head

__all__ = [
    "ANY_MODEL", "AdminReply", "ClassifyManyReply", "ClassifyManyRequest", "ClassifyReply", "ClassifyRequest", "Error",
    "ExplainReply", "ExplainRequest", "HubParameters", "HubRequest", "InferReply", "InferRequest", "InferTensor",
    "InfinityModel", "InfinityModels", "InfinityReply", "InfinityRequest", "Info", "Model", "ModelMetadata", "Models",
    "ModerationReply", "ModerationRequest", "PredictRequest", "Score", "ServerMetadata", "TaskInfo",
    "TensorMetadata", "V1Error", "V2Error",
]  # fmt: skip


class _Request(BaseModel):
    """Unknown fields are ignored (pydantic's default), as other servers of these forms do."""

    model_config = ConfigDict(strict=True)


class Error(BaseModel):
    """Every refusal except under /v1 and /v2."""

    error: str = Field(examples=["there is no task 'ticket'. Did you mean 'tickets'?"])
    error_type: str = Field(examples=["not_found"])


class V1ErrorDetail(BaseModel):
    """The format of OpenAI: ``code`` is the same as ``type``, and ``param`` is always null."""

    message: str = Field(examples=["there is no task 'topic'. Did you mean 'topics'?"])
    type: str = Field(examples=["not_found"])
    param: str | None = None
    code: str = Field(examples=["not_found"])


class V1Error(BaseModel):
    """Every refusal under /v1."""

    error: V1ErrorDetail


class V2Error(BaseModel):
    """Every refusal under /v2."""

    error: str


class Score(BaseModel):
    """A label and its calibrated probability, or ``value`` and the number of a regression."""

    label: str = Field(examples=["refund"])
    score: float = Field(examples=[0.93])


HEAD: Any = Field(
    None,
    description="The head that has answered, where the server asks the light head of the task first (--cascade). "
    "Other tasks do not have the field.",
)
OUT_OF_SCOPE: Any = Field(
    None,
    description="Whether the text is unlike the training rows of the task. Only tasks that were trained with "
    "--out-of-scope have the field.",
)
OUT_OF_SCOPE_SCORE: Any = Field(
    None,
    description="How unlike the training rows the text is: 0 is usual, and 1 is a standard deviation of the validation "
    "set. Tasks with too few validation rows do not have the field.",
)


class Usage(BaseModel):
    """Number of tokens that the encoder read for the reply, and number of inputs that were too long and were cut."""

    prompt_tokens: int
    total_tokens: int
    truncated: int


# --- text-embeddings-inference ----------------------------------------------------------------------------------------


class PredictRequest(_Request):
    """``inputs``: a text, a pair ``["a", "b"]``, or a batch of either ``[["a"], ["b"]]``, ``[["a", "b"], ...]``."""

    inputs: TextsOrPairs = Field(examples=["I was charged twice"])
    truncate: bool | None = Field(
        None, description="With false, a text that is too long for the encoder is refused instead of cut."
    )
    truncation_direction: Literal["right", "Right"] = "right"
    raw_scores: bool = Field(False, description="Return logits instead of calibrated probabilities.")
    task: str | None = Field(
        None, description="Name of the task. Needed if the server has several.", examples=["tickets"]
    )


class HubParameters(_Request):
    """How scores are given back."""

    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Maximum number of labels for each text."
    )
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = Field(
        default=None, description="``none`` returns logits. The other is the one that the task has."
    )


class HubRequest(_Request):
    """A text or texts for the task in the path, as Hugging Face's inference API takes them."""

    inputs: SingleTexts = Field(examples=["I was charged twice"])
    parameters: HubParameters | None = None


class TaskInfo(BaseModel):
    """A task that is served."""

    name: str
    kind: Kind
    labels: list[str]
    pair: PairMode | None
    encoder: str
    max_input_length: int


class Info(BaseModel):
    """The tasks and the limits of the server."""

    model_id: str | None
    model_sha: str | None
    model_dtype: str | None
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool = True
    tokenization_workers: int = 1
    version: str
    tasks: list[TaskInfo]


# --- vLLM -------------------------------------------------------------------------------------------------------------


class ClassifyRequest(_Request):
    """Texts for one task. Options of vLLM that would change the answer in ways that tasks have not are refused."""

    model: str | None = Field(
        None, examples=["tickets"], description="Name of the task. Needed if the server has several."
    )
    input: SingleTexts = Field(examples=[["I was charged twice"]])
    use_activation: bool | None = Field(None, description="With false, probs are logits.")
    add_special_tokens: Literal[True] = True
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description="Texts are cut at the encoder's maximum.")
    truncation_side: Literal["right"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_messages(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "messages" in fields:
            raise ValueError("messages are not read. Send texts in input.")
        return fields


class Classification(BaseModel):
    """The answer for one input.

    ``probs`` are in the order of the task's labels, which /info lists. ``label`` is null if the task abstains or gives
    no label, and of several labels that it gives the most probable. A regression has the label ``value``.
    """

    index: int
    label: str | None
    probs: list[float]
    num_classes: int
    head: Head | None = HEAD
    out_of_scope: bool | None = OUT_OF_SCOPE
    out_of_scope_score: float | None = OUT_OF_SCOPE_SCORE


class ClassifyUsage(Usage):
    """As all classifiers, it writes no tokens."""

    completion_tokens: int = 0


class ClassifyReply(BaseModel):
    """The answers in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: ClassifyUsage


# --- infinity ---------------------------------------------------------------------------------------------------------

# What infinity's clients send as the model where none is named.
ANY_MODEL = "default/not-specified"


class InfinityRequest(_Request):
    """Texts for one task."""

    model: str = Field(ANY_MODEL, description="Name of the task. Needed if the server has several.")
    input: SingleTexts = Field(examples=[["I was charged twice"]])
    raw_scores: bool = Field(False, description="Return logits instead of calibrated probabilities.")


class InfinityReply(BaseModel):
    """For each input its labels, the most probable first."""

    object: Literal["classify"] = "classify"
    data: list[list[Score]]
    model: str
    usage: Usage
    id: str
    created: int


class InfinityModel(BaseModel):
    """A task as a model."""

    id: str
    stats: dict[str, int]
    object: Literal["model"] = "model"
    # Infinity's client reads no other owner.
    owned_by: Literal["infinity"] = "infinity"
    created: int
    backend: str = "ytuning"
    capabilities: list[str] = ["classify"]


class InfinityModels(BaseModel):
    """Every task."""

    object: Literal["list"] = "list"
    data: list[InfinityModel]


# --- OpenAI -----------------------------------------------------------------------------------------------------------


class Model(BaseModel):
    """A task as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ytuning"


class Models(BaseModel):
    """Every task."""

    object: Literal["list"] = "list"
    data: list[Model]


class TextPart(_Request):
    """A part of an input."""

    type: Literal["text"]
    text: str


class ModerationRequest(_Request):
    """Texts for a multi-label task. A list of parts is one input: their texts, each on a line of its own."""

    input: Annotated[str | list[str] | list[TextPart], BeforeValidator(check_parts)] = Field(
        examples=["you are all idiots"]
    )
    model: str | None = Field(None, description="Name of the task. Needed if the server has several multi-label tasks.")

    def texts(self) -> list[str]:
        """One text for each result of the reply."""
        if isinstance(self.input, str):
            return [self.input]
        parts = [part.text for part in self.input if isinstance(part, TextPart)]
        return ["\n".join(parts)] if parts else [text for text in self.input if isinstance(text, str)]


class Moderation(BaseModel):
    """``categories`` says whether the score of each label is above its threshold."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class ModerationReply(BaseModel):
    """One result for each input."""

    id: str
    model: str
    results: list[Moderation]


# --- several tasks at once --------------------------------------------------------------------------------------------


class ClassifyManyRequest(_Request):
    """Texts, or pairs, for several tasks."""

    input: TextsOrPairs = Field(
        examples=[["I was charged twice"]], description="A text, texts, or pairs [[a, b], ...]."
    )
    tasks: list[str] | None = Field(
        None, description="Names of tasks; null stands for every task that takes such inputs."
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Maximum number of labels in the scores of a result. By default, all labels."
    )


class Result(BaseModel):
    """``answer`` is a label, null if the task abstains, a list of labels (multi-label) or a number (regression)."""

    answer: str | list[str] | float | None
    scores: list[Score]
    truncated: bool
    head: Head | None = HEAD
    out_of_scope: bool | None = OUT_OF_SCOPE
    out_of_scope_score: float | None = OUT_OF_SCOPE_SCORE


class TaskResults(BaseModel):
    """A task's results, one for each input."""

    task: str
    kind: Kind
    results: list[Result]


class Timing(BaseModel):
    """Seconds from the request to the reply, and the seconds that its batches took in the encoder and in heads."""

    total: float
    encoder: float
    heads: float


class ClassifyManyReply(BaseModel):
    """Results task by task."""

    object: Literal["classify_many"] = "classify_many"
    data: list[TaskResults]
    usage: Usage
    timing: Timing


class ExplainRequest(_Request):
    """A text, or a pair, and the task to explain."""

    task: str = Field(examples=["tickets"])
    input: SingleTexts = Field(examples=["I was charged twice"], description="A text, or a pair [a, b].")


class TokenSpan(BaseModel):
    """The text (0 or 1) and the characters of a token; a special token has the characters 0 to 0."""

    side: int
    start: int
    end: int


class ExplainReply(BaseModel):
    """``effects`` says, for each token, how much the logit of each label falls when the head does not see it."""

    task: str
    labels: list[str]
    tokens: list[TokenSpan]
    effects: list[list[float]]


# --- Open Inference Protocol v2 ---------------------------------------------------------------------------------------


class ServerMetadata(BaseModel):
    """Name and version."""

    name: str = "ytuning"
    version: str
    extensions: list[str] = []


class TensorMetadata(BaseModel):
    """An input or output tensor of a model; -1 in its shape stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A task as a model."""

    name: str
    versions: list[str] = ["1"]
    platform: str = "ytuning"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferTensor(BaseModel):
    """Values in row-major order."""

    name: str
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=8)
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class RequestedOutput(_Request):
    """An output that the client wants."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(_Request):
    """The inputs are ``text`` and, for pairs, ``text_pair``: BYTES of shape [n]."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[InferTensor] = Field(
        examples=[[{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I was charged twice"]}]]
    )
    outputs: list[RequestedOutput] | None = None


class InferReply(BaseModel):
    """Outputs of a task."""

    model_name: str
    model_version: str = "1"
    id: str | None = None
    outputs: list[InferTensor]


# --- administration ---------------------------------------------------------------------------------------------------


class AdminReply(BaseModel):
    """What has changed. ``refused`` maps folders to reasons; a task served from such a folder is kept."""

    added: list[str]
    changed: list[str]
    removed: list[str]
    refused: dict[str, str]
    tasks: int

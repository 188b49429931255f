"""Typed questions of decision APIs: which served task answers a question, and the probabilities of its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ytuning.data.kinds import TaskKind
from ytuning.data.labels import did_you_mean, label_name, list_names, quote
from ytuning.server.batching import Answered, Refused
from ytuning.server.catalog import Served

__all__ = ["Answer", "Bound", "Option", "Question", "Unanswerable", "bind_all", "positive_label"]

Option = str | bool
"""A choice, or the label of a level. A choice that is a boolean differs from the text of the same name."""

# Of two labels, one of these words says yes or no. The labels are compared in lower case.
POSITIVE = ("true", "yes", "y", "1", "positive", "pos")
NEGATIVE = ("false", "no", "n", "0", "negative", "neg")
NEGATIONS = ("not", "non", "no")
SEPARATORS = " _-"
# Similar names are looked up for this number of unknown names in a request, because each is compared with all tasks.
HINTS = 5


@dataclass(frozen=True)
class Question:
    """A question in the words of no protocol.

    Attributes:
        place: how a message names it, such as ``questions.2``.
        name: its name, which binds it to a task or to a label of one; None binds it to nothing.
        kind: what is asked for: the probability of yes, a choice of options, or a position on levels.
        options: choices, or labels of levels from the lowest to the highest; empty for a predicate.
    """

    place: str
    name: str | None
    kind: Literal["predicate", "choice", "score"]
    options: tuple[Option, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer in the words of no protocol.

    Attributes:
        probabilities: probability of each option, in their order; of a predicate that of yes alone.
        choice: position of the chosen option, the most probable one.
        score: mean position of the options, numbered from 0; of levels the score.
        confidence: probability of the most probable option.
    """

    probabilities: list[float]
    choice: int
    score: float
    confidence: float

    @classmethod
    def of(cls, probabilities: list[float]) -> Answer:
        """Return the answer that the probabilities of the options give."""
        score = sum(place * share for place, share in enumerate(probabilities))
        confidence = max(probabilities)
        return cls(probabilities, probabilities.index(confidence), score, confidence)


@dataclass(frozen=True)
class Unanswerable:
    """Why a question has no answer while others have: it is unknown, its task abstains, or the text is out of scope."""

    kind: Literal["not_found", "abstained", "out_of_scope", "fallback"]
    message: str


@dataclass(frozen=True)
class Bound:
    """A question that a served task answers.

    Attributes:
        question: the question.
        served: the task.
        labels: position of each option's label among the task's labels; of a predicate that of the one label.
        yes: of a choice between yes and no about one label, the position of yes among the options; else None.
    """

    question: Question
    served: Served
    labels: tuple[int, ...]
    yes: int | None = None

    def answer(self, answered: Answered) -> Answer | Unanswerable:
        """The answer that a task's answer for the text gives."""
        if (refusal := _refusal(self.served, answered)) is not None:
            return refusal
        scores = answered.scores[list(self.labels)]
        if self.question.kind == "predicate":
            return Answer.of([float(scores[0])])
        if self.yes is not None:
            share = float(scores[0])
            return Answer.of([share if place == self.yes else 1 - share for place in (0, 1)])
        # The options may be some of the labels.
        total = float(scores.sum())
        if not total > 0:
            return Unanswerable("abstained", "the task gives each of these options the probability 0.")
        return Answer.of([float(score) for score in scores / total])


def _refusal(served: Served, answered: Answered) -> Unanswerable | None:
    """Why a task gives a text no answer; None if it gives one.

    It refuses every question to the task, whatever it asks for.
    """
    task = f"the task {served.task.name!r}"
    if answered.out_of_scope:
        return Unanswerable("out_of_scope", f"the text is out of scope: it is unlike the training rows of {task}.")
    if answered.answer is None:
        return Unanswerable("abstained", f"{task} abstains, because its confidence is below its threshold.")
    return None


# --- names ----------------------------------------------------------------------------------------------------------


def bind_all(questions: Sequence[Question], tasks: Mapping[str, Served]) -> list[Bound | Unanswerable]:
    """Bind each question to the task that its name names, or say why there is none.

    Raises:
        Refused: a name has two meanings or names a label that its task does not have, or a task cannot answer such a
            question.
    """
    bound: list[Bound | Unanswerable] = []
    served = [name for name, each in tasks.items() if each.task.pair_mode is None]
    known, unknown = f"The tasks are {list_names(served)}.", 0
    for question in questions:
        name = question.name
        target = None if name is None else _resolve(question.place, name, tasks)
        if target is not None:
            bound.append(_bind(question, *target))
            continue
        if name is None:
            message = "the question has no name. Name it after a task, or after a label as TASK.LABEL."
        else:
            message = f"there is no task {quote(name)}.{did_you_mean(name, served) if unknown < HINTS else ''}"
        bound.append(Unanswerable("not_found", f"{message} {known}"))
        unknown += 1
    return bound


def _resolve(place: str, name: str, tasks: Mapping[str, Served]) -> tuple[Served, int | None] | None:
    """The task that a name names, or a task and the position of its label; None if the name begins with no task.

    Both names may contain dots. A task of the whole name is preferred.

    Raises:
        Refused: two tasks fit, each with a label, or the name begins with a task that has no such label.
    """
    if name in tasks:
        return tasks[name], None
    ends = [end for end, sign in enumerate(name) if sign == "." and name[:end] in tasks]
    readings = [
        (tasks[name[:end]], label)
        for end in ends
        if (label := _label_position(name[end + 1 :], tasks[name[:end]].task.target)) is not None
    ]
    if len(readings) > 1:
        meanings = " or ".join(
            f"the label {quote(served.task.target.names[label])} of the task {served.task.name!r}"
            for served, label in readings
        )
        raise _refused(place, f"the name {quote(name)} may be {meanings}. Rename one of the tasks.")
    if readings:
        return readings[0]
    if not ends:
        return None
    # The longest task is the likeliest one to have been meant.
    served, rest = tasks[name[: ends[-1]]], name[ends[-1] + 1 :]
    raise _refused(place, _no_label(rest, served))


def _label_position(text: str, target: TaskKind) -> int | None:
    """Where a label is among the labels of a task, as it is or in the form that labels are read in."""
    labels = target.labels
    for name in (text, label_name(text)):
        if labels is not None and name is not None and name in labels:
            return int(labels.encode([name])[0])
    return None


def _no_label(value: Option, served: Served) -> str:
    """Say that a task has no such label, and name those that it has."""
    target, task = served.task.target, f"the task {served.task.name!r}"
    if target.labels is None:
        return f"{task} gives a number and has no labels. Use /classify_many, which returns its number."
    hint = did_you_mean(value, target.names) if isinstance(value, str) else ""
    return f"{task} has no label {quote(value)}.{hint} Its labels are {list_names(target.names)}."


def _refused(place: str, message: str) -> Refused:
    return Refused(422, "validation", f"{place}: {message}")


# --- kinds of question and of task ----------------------------------------------------------------------------------


def _bind(question: Question, served: Served, label: int | None) -> Bound:
    """Bind a question to a task, or to one of its labels.

    Raises:
        Refused: the task does not answer such questions, or an option is none of its labels.
    """
    target, place = served.task.target, question.place
    task = f"the task {served.task.name!r}"
    if served.task.pair_mode is not None:
        raise _refused(place, f"{task} takes pairs of texts, and the input is one text. Use /classify_many.")
    if target.labels is None:
        raise _refused(
            place,
            f"{task} gives a number, which has no probabilities. Use /classify_many, or train it with --kind ordinal.",
        )
    if question.kind == "predicate":
        return Bound(question, served, (label if label is not None else _only_label(place, served),))
    if label is not None:
        return _bind_label(question, served, label)
    if target.gives_many:
        example = f"{served.task.name}.{target.names[0]}"
        message = f"the labels of {task} do not exclude each other, so it answers no {question.kind}."
        raise _refused(place, f"{message} Ask a predicate or noul about one label, for example {quote(example)}.")
    if question.kind == "score" and not target.has_order:
        message = f"the labels of {task} have no order, so it answers no score. Ask a choice"
        raise _refused(place, f"{message}, or train it with --kind ordinal.")
    positions = _option_positions(question, served)
    if question.kind == "score" and positions not in (sorted(positions), sorted(positions, reverse=True)):
        message = f"the levels are not in the order of {task}: {list_names(target.names)}."
        raise _refused(place, f"{message} Give them in this order or in reverse.")
    return Bound(question, served, tuple(positions))


def _bind_label(question: Question, served: Served, label: int) -> Bound:
    """Bind a choice between yes and no to one label."""
    about = f"{question.name!r} is one label of the task {served.task.name!r}"
    signs = [_sign(option) for option in question.options]
    if question.kind != "choice" or sorted(signs) != [-1, 1]:
        message = f"{about}. Ask a predicate or noul, or a choice between true and false or between yes and no."
        raise _refused(question.place, message)
    return Bound(question, served, (label,), yes=signs.index(1))


def _sign(option: Option) -> int:
    """Return 1 for a word that says yes, -1 for one that says no, else 0."""
    if isinstance(option, bool):
        return 1 if option else -1
    word = option.casefold()
    return int(word in POSITIVE) - int(word in NEGATIVE)


def _only_label(place: str, served: Served) -> int:
    """The label whose probability a predicate about a whole task asks for.

    Raises:
        Refused: there are several, and none says yes.
    """
    target = served.task.target
    label = 0 if len(target.names) == 1 else positive_label(target)
    if label is None:
        names = [f"{served.task.name}.{name}" for name in target.names]
        message = f"the task {served.task.name!r} does not say which of its labels means yes. Name the label"
        raise _refused(place, f"{message}: {list_names(names)}.")
    return label


def positive_label(target: TaskKind) -> int | None:
    """Of two labels that exclude each other, the position of the one that means yes; None if that is not clear.

    One label says yes (true, yes, y, 1, positive, pos), or the other says no (false, no, n, 0, negative, neg), or the
    other is this one with not, non or no before it.
    """
    if target.gives_many or len(target.names) != 2:
        return None
    words = [name.casefold() for name in target.names]
    signs = [_sign(word) for word in words]
    if sum(signs) == 0 and any(signs):
        return signs.index(1)
    if abs(sum(signs)) == 1:
        return signs.index(1) if 1 in signs else 1 - signs.index(-1)
    negated = [_is_negation(words[0], words[1]), _is_negation(words[1], words[0])]
    return 1 - negated.index(True) if any(negated) else None


def _is_negation(word: str, other: str) -> bool:
    """Whether a word is another one with a negation before it."""
    return any(word == f"{negation}{separator}{other}" for negation in NEGATIONS for separator in SEPARATORS)


def _option_positions(question: Question, served: Served) -> list[int]:
    """The positions of the labels that the options are.

    Raises:
        Refused: an option is none of the labels, or two options are one label.
    """
    target = served.task.target
    # A dictionary keeps the order.
    positions: dict[int, None] = {}
    for option in question.options:
        position = _option_position(option, target)
        if position is None:
            raise _refused(question.place, _no_label(option, served))
        if position in positions:
            message = f"two options are the label {quote(target.names[position])}. Leave one out."
            raise _refused(question.place, message)
        positions[position] = None
    return list(positions)


def _option_position(option: Option, target: TaskKind) -> int | None:
    """The label that an option stands for."""
    return _boolean_position(option, target) if isinstance(option, bool) else _label_position(option, target)


def _boolean_position(option: bool, target: TaskKind) -> int | None:
    """The label that true or false stands for: of two labels as in `positive_label`, else the only one that says so."""
    if (positive := positive_label(target)) is not None:
        return positive if option else 1 - positive
    sign = 1 if option else -1
    fitting = [position for position, name in enumerate(target.names) if _sign(name) == sign]
    return fitting[0] if len(fitting) == 1 else None

"""Which columns of a table are texts, labels and groups: named by the user, those of the training, or inferred."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ytuning.data.kinds.multi import UNKNOWN
from ytuning.data.labels import did_you_mean, list_names, quote
from ytuning.data.tables import Table
from ytuning.errors import DataError, InputError, argument

__all__ = ["Columns", "Known", "Role", "choose_columns", "common_columns"]

Role = Literal["text", "text_pair", "label", "group"]
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_NAMES: dict[Role, tuple[str, ...]] = {
    "text": ("text", "sentence"),
    "text_pair": ("text_pair",),
    "label": ("label", "labels"),
}
"""Default names of columns. A group column has none, so that rows are kept together only for those who ask for it."""

# The columns of exports that hold a row's text and labels inside of other objects.
EXPORTS = {
    frozenset({"data", "annotations"}): "This is a full export of Label Studio. Export as JSON-MIN, CSV or TSV.",
    frozenset({"fields", "responses"}): "These are records of Argilla. Export them with to_datasets().",
}


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a data set was made of.

    Attributes:
        text: column of the texts.
        text_pair: column of the second texts; None for single texts.
        label: column of the labels, or a tuple of columns of 0 and 1, each of which is a label.
        group: column whose equal values keep rows on one side of a split.
        empty_labels: whether rows with an empty label cell are left out; else such a cell is a mistake, or says that a
            row has none of several labels.
    """

    text: str
    text_pair: str | None = None
    label: str | tuple[str, ...] | None = None
    group: str | None = None
    empty_labels: bool = False

    @property
    def spelt(self) -> dict[Role, str]:
        """Each column by its role, as an option names it: several label columns with commas between them."""
        return {role: ",".join(names) for role in ROLES if (names := self.named(role))}

    def __str__(self) -> str:
        """The columns as messages show them: ``text = 'body', label = 'gold'``."""
        return ", ".join(f"{role} = {name!r}" for role, name in self.spelt.items())

    def named(self, role: Role) -> list[str]:
        """The columns of a role: none, one, or several of the role ``label``."""
        names: str | tuple[str, ...] | None = getattr(self, role)
        return [] if names is None else [names] if isinstance(names, str) else list(names)

    def with_label(self, name: str) -> Columns:
        """The columns of a task that gets a new label: it has a column of its own if the other labels have one each."""
        return replace(self, label=(*self.label, name)) if isinstance(self.label, tuple) else self

    def without_label(self, name: str) -> Columns:
        """The columns of a task that loses a label."""
        if not isinstance(self.label, tuple):
            return self
        return replace(self, label=tuple(column for column in self.label if column != name))

    def to_json(self) -> dict[str, str | list[str] | bool]:
        """The columns by their roles; several label columns are a list."""
        several = list(self.label) if isinstance(self.label, tuple) else None
        names: dict[str, str | list[str] | bool]
        names = {role: several if role == "label" and several else name for role, name in self.spelt.items()}
        return {**names, "empty_labels": True} if self.empty_labels else names

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Columns:
        """The columns that :meth:`to_json` wrote.

        Raises:
            TypeError: a role is unknown or missing, or a name is not text.
        """
        names = {role: tuple(name) if isinstance(name, list) else name for role, name in content.items()}
        columns = cls(**names)  # type: ignore[arg-type]
        if type(columns.empty_labels) is not bool:
            raise TypeError(f"empty_labels must be true or false. Got {quote(columns.empty_labels)} instead.")
        for role, name in names.items():
            if role == "empty_labels":
                continue
            parts = name if role == "label" and isinstance(name, tuple) and name else (name,)
            if not all(isinstance(part, str) for part in parts):
                raise TypeError(f"the name of the column {role} must be text. Got {quote(name)} instead.")
        return columns


@dataclass(frozen=True)
class Known:
    """What a training says about further rows for its task.

    Attributes:
        names: names of the task's labels.
        separator: where texts with several labels were split; None if none was, `kinds.multi.UNKNOWN` if nobody knows.
        columns: columns of the training rows; None if they had none.
        pairs: whether the rows are pairs of texts; None if nobody knows.
    """

    names: Collection[str] = ()
    separator: str | None = UNKNOWN
    columns: Columns | None = None
    pairs: bool | None = None


def choose_columns(
    table: Table,
    named: Mapping[Role, str | None],
    label: str | Sequence[str] | None,
    known: Known,
    *,
    labelled: bool,
) -> Columns:
    """The columns to read of a table.

    Args:
        table: the table.
        named: columns that the user names, by their roles; None for those that are not named.
        label: label column that the user names, or several; None if the user names none.
        known: what the training says: its columns are taken where the table has them and the user names none.
        labelled: False if no labels are read.

    Raises:
        InputError: a column is named twice.
        DataError: a column is not there.
    """
    labels = _label_columns(table, label) if labelled else None
    names = {role: [name] for role, name in named.items() if name is not None and role != "group"}
    if labels is not None:
        names["label"] = labels
    chosen: dict[Role, list[str]]
    chosen = {role: [_existing(table, role, name) for name in columns] for role, columns in names.items()}
    used = [name for columns in chosen.values() for name in columns]
    if len(set(used)) < len(used):
        uses = ", ".join(argument(role, ",".join(columns)) for role, columns in chosen.items())
        raise InputError(f"each column can have only one use. Got {uses}.")
    # A table may have a column that could be a second text, and a task for single texts does not read it.
    unread: set[Role] = {"text_pair"} if known.pairs is False else set()
    if not labelled:
        unread.add("label")
    for role in DEFAULT_NAMES:
        if role not in chosen and role not in unread:
            taken = {name for columns in chosen.values() for name in columns}
            free = [name for name in table.names if name not in taken]
            if columns := _columns_of_training(table, role, known, free) or _default_column(role, free):
                chosen[role] = columns
            elif role != "text_pair" or known.pairs:
                raise _not_there(table, role, chosen, known)
    of_training = known.columns.label if known.columns else None
    several = labels != [label] if labels else tuple(chosen.get("label", ())) == of_training
    group = named.get("group")
    return Columns(
        chosen["text"][0],
        chosen["text_pair"][0] if "text_pair" in chosen else None,
        None if not labelled else tuple(chosen["label"]) if several else chosen["label"][0],
        None if group is None else _existing(table, "group", group),
    )


def common_columns(
    table: Table, known: Mapping[str, Known], named: Mapping[Role, str | None]
) -> tuple[str, str | None]:
    """The columns of a table that all tasks read their texts from.

    Args:
        table: the table, of which only the names are looked at.
        known: what each training says about further rows (:class:`Known`), by the name of the task.
        named: columns that the user names, by their roles.

    Raises:
        InputError: the tasks would read different columns, or a column is not there.
    """
    by_task = {name: choose_columns(table, named, None, one, labelled=False) for name, one in known.items()}
    first = next(iter(by_task.values()))
    if all(columns == first for columns in by_task.values()):
        return first.text, first.text_pair
    # A task for pairs and one for single texts can never read the same rows, whatever the columns.
    if len({columns.text_pair is None for columns in by_task.values()}) > 1:
        pairs, single = (
            list_names([name for name, columns in by_task.items() if (columns.text_pair is not None) == wanted])
            for wanted in (True, False)
        )
        problem = f"the tasks cannot read the same rows: pairs of texts are for {pairs}, single texts for {single}"
        raise InputError(f"{problem}. Run ytuning predict for each of the two kinds.")
    different = "; ".join(f"{name!r} on {columns}" for name, columns in by_task.items())
    raise InputError(
        f"the tasks were trained on different columns of {table.source}: {different}. Name the columns for all of them "
        f"with {argument('text')} and {argument('text_pair')}, or run ytuning predict for each task."
    )


def _columns_of_training(table: Table, role: Role, known: Known, free: Sequence[str]) -> list[str]:
    """The columns of a role that the training read, if they are free; of several all must be there, or none."""
    columns = [] if known.columns is None else known.columns.named(role)
    there = [name for name in columns if name in free]
    if there and len(there) < len(columns):
        missing = list_names([name for name in columns if name not in free])
        problem = f"the task was trained on {len(columns)} label columns, of which these are not there: {missing}. "
        problem += f"Add them, or name the columns to read with {argument('label')}"
        raise DataError(f"{problem}; the columns are {list_names(table.names)}.", source=table.source)
    return there


def _default_column(role: Role, free: Sequence[str]) -> list[str]:
    return [name for name in DEFAULT_NAMES[role] if name in free][:1]


def _not_there(table: Table, role: Role, chosen: Mapping[Role, list[str]], known: Known) -> DataError:
    """Make the error that no column is the training's or has a default name of ``role``, or that it has another use."""
    of_training = known.columns.named(role) if known.columns else []
    wanted = list(dict.fromkeys([*of_training, *DEFAULT_NAMES[role]]))
    *first, last = map(quote, wanted)
    looked_for = f"{', '.join(first)} or {last}" if first else last
    problem = f"there is no column {looked_for}"
    for other, names in chosen.items():
        if taken := [name for name in names if name in wanted]:
            problem = f"{argument(other)} uses the column {quote(taken[0])} already, and there is no other column "
            problem += looked_for
    for export, what in EXPORTS.items():
        if export <= set(table.names):
            return DataError(f"{problem}. {what}", source=table.source)
    if of_training:
        problem += f"; the task was trained on {list_names(of_training)}"
    folded = {name.casefold() for name in wanted}
    # A name in use by another role cannot be meant.
    in_use = {name for names in chosen.values() for name in names}
    alike = [name for name in table.names if name.strip().casefold() in folded and name not in in_use]
    problem += f". Did you mean {quote(alike[0])}?" if alike else "."
    remedy = (
        f"Name the {role.replace('_', ' ')} column with {argument(role)}; the columns are {list_names(table.names)}."
    )
    return DataError(f"{problem} {remedy}", source=table.source)


def _label_columns(table: Table, label: str | Sequence[str] | None) -> list[str] | None:
    """The columns that a user names; blanks around a comma belong to a name only where the table has it so."""
    if label is None:
        return None
    if not isinstance(label, str):
        if not label:
            raise InputError(f"{argument('label')} names no column. Give at least one or leave it out.")
        return list(label)
    if label in table.names or "," not in label:
        return [label]
    return [name if name in table.names else name.strip() for name in label.split(",")]


def _existing(table: Table, role: Role, name: str) -> str:
    if name in table.names:
        return name
    problem = f"{argument(role)} names the column {quote(name)}, which is not there.{did_you_mean(name, table.names)} "
    raise DataError(f"{problem}The columns are {list_names(table.names)}.", source=table.source)

"""Arguments and options that several commands share, and the groups that ``--help`` shows options in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from ytuning.heads.pairs import PairChoice

if TYPE_CHECKING:
    from ytuning.data.columns import Role
    from ytuning.engines.engine import Engine

__all__ = [
    "DATA", "ENCODER", "HEAD", "OUTPUT", "WORKERS", "Address", "EngineName", "EngineOption", "Group", "Json",
    "KindOption", "Label", "LabelNames", "LabelOrder", "LongTextOption", "MovedEncoder", "PairsOption",
    "PrecisionOption", "Quiet", "ReportFile", "Seed", "TaskFolder", "Test", "Text", "TextPair", "TrainFile",
    "TrainedEncoder", "Validation", "WorkerCpus", "WorkerGpus", "Workers", "choices_of", "engine_of", "help_group",
    "in_order", "named", "worker_options",
]  # fmt: skip


def help_group(panel: str) -> Callable[..., Any]:
    """A function that makes the options of one group of ``--help``; their names default to those of the parameters."""

    def option(metavar: str | None, help: str, default: str | bool = True, *names: str, **limits: Any) -> Any:
        return typer.Option(*names, metavar=metavar, help=help, show_default=default, rich_help_panel=panel, **limits)

    return option


DATA, HEAD, ENCODER, OUTPUT = map(help_group, ("Data", "Head and training", "Encoder", "Output"))

TrainFile = Annotated[
    Path, typer.Argument(metavar="TRAIN", help="Training set: CSV, TSV, JSON lines or Parquet, also .gz.")
]
TaskFolder = Annotated[Path, typer.Argument(metavar="TASK_DIR", help="Folder of a trained task.")]
Validation = Annotated[
    Path | None,
    DATA("FILE", "Validation set: labelled rows that choose between heads.", "rows held out of the training set"),
]
Test = Annotated[Path | None, DATA("FILE", "Test set: labelled rows that are only reported on.", "none")]
Text = Annotated[str | None, DATA("COLUMN", "Column that holds the texts.", "text, else sentence")]
TextPair = Annotated[
    str | None, DATA("COLUMN", "Column that holds the second text of each pair.", "text_pair, if there is one")
]
Label = Annotated[
    str | None,
    DATA(
        "COLUMN",
        "Column that holds the labels. Several columns of 0 and 1, separated by commas, each become one label.",
        "label, else labels",
    ),
]
Group = Annotated[
    str | None,
    DATA(
        "COLUMN",
        "Column of group names. All rows of a group are used for training, or all of them are held out.",
        "none",
    ),
]
KindOption = Annotated[
    Literal["auto", "single", "ordinal", "multi", "regression"],
    DATA(
        "KIND",
        "Kind of labels: single (one per row), ordinal (one, and the labels have an order), multi (any number), "
        "regression (a number) or auto (infer the kind).",
    ),
]
LabelOrder = Annotated[
    str | None,
    DATA(
        "LABELS",
        "Labels of an ordinal task from lowest to highest, separated by commas.",
        "the order of labels that are numbers",
    ),
]
LabelNames = Annotated[
    str | None,
    DATA(
        "LABELS",
        "Names of the labels, separated by commas, where each cell is a list of 0 and 1: one name for each place.",
        "none",
    ),
]
PairsOption = Annotated[
    PairChoice,
    ENCODER(
        "MODE",
        "How pairs are encoded: joint (both texts together), separate (each text alone) or auto. auto encodes "
        "them separately, unless encoding them together is clearly better on the validation set.",
    ),
]
LongTextOption = Annotated[
    Literal["truncate", "window"],
    ENCODER(
        "MODE",
        "What is read of a text that is too long for the encoder: truncate (the beginning) or window (all of it, "
        "in windows).",
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16"],
    ENCODER(
        "FORMAT", "Number format of the encoder: fp32, bf16 or auto. auto is bf16 on machines where that is faster."
    ),
]
TrainedEncoder = Annotated[str, ENCODER("NAME", "Encoder: a folder or a Hugging Face name.")]
MovedEncoder = Annotated[
    str | None,
    ENCODER(
        "NAME",
        "Folder or Hugging Face name of the encoder, if it has moved since the training.",
        "the one that the task names",
    ),
]
CascadeShare = Annotated[
    float | None,
    ENCODER(
        "SHARE",
        "Let the light head of a task answer what it is sure of. The validation set bounds the share of answers that "
        "this changes, for example 0.01. Only tasks of ytuning train --preset auto can have two heads.",
        "the default head answers everything",
    ),
]
EngineName = Literal["local", "ray"]


def worker_options(group: Callable[..., Any]) -> tuple[Any, Any, Any, Any]:
    """``--engine``, ``--worker-cpus``, ``--worker-gpus`` and ``--address`` in a group of ``--help``."""
    shared = "local: those of the machine, shared out; ray: 1"
    return (
        group("ENGINE", "What runs the workers: local (processes of this machine) or ray (a Ray cluster).", "local"),
        group("N", "Number of processors of a worker.", shared, min=1),
        group("N", "Number of GPUs of a Ray worker, which may be a fraction.", "0", min=0),
        group("ADDRESS", "Address of a Ray cluster, or auto for the one of this machine.", "Ray is started here"),
    )


WORKERS = help_group("Workers")
_ENGINE, _CPUS, _GPUS, _ADDRESS = worker_options(WORKERS)
EngineOption = Annotated[EngineName | None, _ENGINE]
Workers = Annotated[
    int | None,
    WORKERS("N", "Number of workers that train side by side. Each one needs the memory of a training.", "1", min=1),
]
WorkerCpus = Annotated[int | None, _CPUS]
WorkerGpus = Annotated[float | None, _GPUS]
Address = Annotated[str | None, _ADDRESS]
Seed = Annotated[
    int,
    HEAD("N", "Random seed. It sets the held-out rows, the initial weights and the row order.", min=0, max=2**32 - 1),
]
ReportFile = Annotated[
    Path | None, OUTPUT("FILE", "HTML file to write, with metrics, charts and the worst mistakes.", "none")
]
Json = Annotated[bool, OUTPUT(None, "Print one JSON value on stdout instead of tables.", True, "--json")]
Quiet = Annotated[bool, OUTPUT(None, "Hide the progress on stderr.", True, "--quiet")]


def engine_of(
    engine: EngineName | None,
    workers: int | None,
    worker_cpus: int | None,
    worker_gpus: float | None,
    address: str | None,
) -> Engine | None:
    """The engine that these options name; None where one worker would do what this process does by itself.

    Raises:
        InputError: an option would do nothing.
    """
    from ytuning.engines.engine import Engine

    given = (engine, worker_cpus, worker_gpus, address)
    if workers in (None, 1) and all(value is None for value in given):
        return None
    return Engine(engine or "local", workers or 1, cpus=worker_cpus, gpus=worker_gpus or 0, address=address)


def named(text: str | None, text_pair: str | None, label: str | None = None) -> set[Role]:
    """Return the roles whose columns ``--text``, ``--text-pair`` and ``--label`` name."""
    columns: dict[Role, str | None] = {"text": text, "text_pair": text_pair, "label": label}
    return {role for role, name in columns.items() if name is not None}


def in_order(label_order: str | None) -> list[str] | None:
    """Return the labels that ``--label-order`` names."""
    return None if label_order is None else label_order.split(",")


def choices_of(kind: Any) -> tuple[str, ...]:
    """The values of a ``Literal``, which may be optional; none of another type."""
    literals = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    return get_args(literals[0]) if literals else ()

"""The task folder: a trained head and all that is needed to use it. Nothing in it can run code.

task.json          schema version, kind, labels or scale, columns, encoder identity, hidden states, head config,
                   thresholds, calibration, scope, metrics, checksum of the weights
head.safetensors   the head's weights, where some texts lie in its label space, prototypes of the texts in its scope,
                   and the basis of compact features
light.safetensors  weights and scope of the light head beside it, where there is one (`tasks/cascade.py`)
README.md          model card
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ytuning.data.columns import Columns, Known
from ytuning.data.files import names_like
from ytuning.data.kinds import TaskKind, kind_from_json
from ytuning.data.labels import Kind
from ytuning.encoder.pretrained import EncoderIdentity, States
from ytuning.errors import InputError, TaskFolderError, argument, write_errors, wrong_schema
from ytuning.features.codecs import DEFAULT_CODEC, Codec, PcaInt8Codec, build_codec
from ytuning.heads.pairs import INPUT_WORDS, PAIR_MODES, PairMode
from ytuning.heads.pooled import (
    HeadConfig,
    LabelHead,
    LightConfig,
    LightHead,
    MatchingHead,
    PooledHead,
    build_head,
    config_to_json,
)
from ytuning.heads.scope import ScopeModel
from ytuning.system.files import PARTIAL_SUFFIX, commit_all, is_plain_name
from ytuning.tasks.cascade import DEFAULT_SHARE, Cascade, CascadeCurve
from ytuning.training.calibration import Calibration
from ytuning.training.recipes import head_from_json

__all__ = [
    "Exemplars",
    "Task",
    "check_encoder",
    "check_names",
    "check_task_folder",
    "holds_finished_task",
    "holds_task",
    "load_task",
    "place_beside",
    "save_task",
    "task_digest",
    "task_files",
]

# An interrupted training tries this number of names for its folder.
MOST_BESIDE = 100
SCHEMA = 3
TASK_FILE, HEAD_FILE, LIGHT_FILE, CARD_FILE = "task.json", "head.safetensors", "light.safetensors", "README.md"
# The weights' file has these tensors beside the head's own.
VECTORS, TARGETS = "exemplars.vectors", "exemplars.targets"
BASIS_PREFIX, SCOPE_PREFIX = "basis.", "scope."


@dataclass(frozen=True)
class Exemplars:
    """Where some texts lie in the head's label space, of which a new label can be told (`tasks/add_label.py`).

    Attributes:
        vectors: (N, E, H) float16.
        targets: (N,) int64 label ids, or (N, C) float32, 0 or 1.
    """

    vectors: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Task:
    """A trained task.

    Attributes:
        name: name of its folder; names the task in predictions.
        target: kind of the task, and its labels or scale.
        encoder: what the head's features come from.
        states: numbers of the encoder's hidden states that the head reads.
        config: form and sizes of the head.
        head: the trained head, in evaluation mode.
        calibration: what makes probabilities and decisions of its logits, fitted on validation rows.
        metrics: metrics of ``validation`` and, if there was one, ``test``.
        training: seed, codec of the stored features, rows and steps, for the record.
        pair_mode: how the encoder reads pairs, ``"joint"`` or ``"separate"``; None for single texts.
        columns: columns of the training rows, which further files are read by; None if the rows had no columns.
        exemplars: texts in label space that adding a label needs.
        scope: what tells how unlike its training rows a text is; None with too few validation rows.
        basis: basis of the compact features that the head was trained on; None with any other codec.
        cascade: the light head beside it, which may answer first; None where there is none.
    """

    name: str
    target: TaskKind
    encoder: EncoderIdentity
    states: States
    config: HeadConfig
    head: LabelHead
    calibration: Calibration = field(default_factory=Calibration)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    pair_mode: PairMode | None = None
    columns: Columns | None = None
    exemplars: Exemplars | None = field(default=None, compare=False)
    scope: ScopeModel | None = field(default=None, compare=False)
    basis: PcaInt8Codec | None = field(default=None, compare=False)
    cascade: Cascade | None = field(default=None, compare=False)

    @property
    def kind(self) -> Kind:
        """The name of the task's kind."""
        return self.target.kind

    @property
    def known(self) -> Known:
        """What the training says about further rows; an argument of `data.dataset.read_dataset`."""
        return Known(self.target.names, columns=self.columns, pairs=self.pair_mode is not None)

    @property
    def input_words(self) -> str:
        """What the task reads, as people are told."""
        return f"{INPUT_WORDS[self.pair_mode]}, cut at {self.encoder.max_length} tokens"

    def form_problem(self, *, pairs: bool) -> str | None:
        """Why the task cannot read pairs of texts, or single ones; None: it can."""
        if pairs == (self.pair_mode is not None):
            return None
        wanted = "single texts, not pairs: leave out the second text" if pairs else "pairs of texts: give a second text"
        return f"the task {self.name!r} was trained on {wanted}"

    @property
    def head_parameters(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.head.parameters())

    @property
    def codec(self) -> Codec:
        """Codec of the features that the head was trained on, through which it reads all others too.

        Raises:
            InputError: the task names a codec that does not exist.
            ValueError: it names ``compact`` and has no basis.
        """
        name = str(self.training.get("store", DEFAULT_CODEC))
        codec = self.basis or build_codec(name, len(self.states), self.encoder.width)
        if codec is None or codec.name != name:
            raise ValueError(f"features stored as {name} and a basis do not go together")
        return codec

    def in_cascade(self, share: float | None) -> Task:
        """The task whose light head answers first, as far as that changes at most a share of the answers; None: never.

        Raises:
            InputError: as `cascade.check_share`.
        """
        return self if self.cascade is None else replace(self, cascade=self.cascade.at(share))

    @cached_property
    def light_task(self) -> Task | None:
        """The same task with the light head alone, where that answers first; elsewhere None."""
        light = self.cascade
        if light is None or light.threshold is None:
            return None
        return replace(
            self,
            states=light.states,
            config=LightConfig(),
            head=light.head,
            calibration=light.calibration,
            scope=light.scope,
            exemplars=None,
            cascade=None,
        )


def save_task(task: Task, folder: str | Path) -> None:
    """Write a task folder; an older task in it is replaced file by file, ``task.json`` last.

    Raises:
        InputError: the folder cannot be written, or is not empty and was not written by training.
        WriteError: the disk is full or broken.
    """
    path = Path(folder)
    check_task_folder(path)
    tensors = task.head.state_dict()
    if task.exemplars is not None:
        tensors = {**tensors, VECTORS: task.exemplars.vectors, TARGETS: task.exemplars.targets}
    tensors |= _scope_tensors(task.scope)
    if task.basis is not None:
        basis = {BASIS_PREFIX + name: torch.from_numpy(values) for name, values in task.basis.tensors.items()}
        tensors |= basis
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    light = None if task.cascade is None else _light_file(task.cascade)
    content = {
        "schema": SCHEMA,
        **task.target.to_json(),
        "pair": task.pair_mode,
        "columns": None if task.columns is None else task.columns.to_json(),
        "encoder": task.encoder.to_json(),
        "states": list(task.states),
        "head": config_to_json(task.config),
        "head_sha256": hashlib.sha256(weights).hexdigest(),
        **_calibration_json(task.calibration),
        "cascade": None if task.cascade is None or light is None else _cascade_json(task.cascade, light),
        "scope": None if task.scope is None else task.scope.to_json(),
        "metrics": task.metrics,
        "training": task.training,
    }
    with write_errors(f"the task folder {path}", _other_folder()):
        path.mkdir(parents=True, exist_ok=True)
        for file in task_files(path):
            # A save that was killed may have left some.
            for left in path.glob(f"{file.name}.*{PARTIAL_SUFFIX}"):
                left.unlink(missing_ok=True)
        commit_all(
            path,
            {
                HEAD_FILE: weights,
                **({} if light is None else {LIGHT_FILE: light}),
                CARD_FILE: _card(task).encode(),
                TASK_FILE: (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(),
            },
        )
        if light is None:
            # It belonged to the task that was here before.
            (path / LIGHT_FILE).unlink(missing_ok=True)


def _calibration_json(calibration: Calibration) -> dict[str, Any]:
    thresholds = calibration.thresholds
    return {"thresholds": None if thresholds is None else list(thresholds), "calibration": calibration.to_json()}


def _light_file(cascade: Cascade) -> bytes:
    tensors = {**cascade.head.state_dict(), **_scope_tensors(cascade.scope)}
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _scope_tensors(scope: ScopeModel | None) -> dict[str, torch.Tensor]:
    """The tensors of a scope by their names in a file."""
    return {} if scope is None else {SCOPE_PREFIX + name: tensor for name, tensor in scope.tensors.items()}


def _cascade_json(cascade: Cascade, weights: bytes) -> dict[str, Any]:
    """Everything about a light head but its weights, and what readers want to know of it first."""
    return {
        "states": list(cascade.states),
        "head_sha256": hashlib.sha256(weights).hexdigest(),
        **_calibration_json(cascade.calibration),
        "scope": None if cascade.scope is None else cascade.scope.to_json(),
        "curve": cascade.curve.to_json(),
        "figures": asdict(cascade.curve.figures(DEFAULT_SHARE)),
    }


def check_task_folder(folder: str | Path) -> None:
    """Refuse a folder that a task must not be written to; called before any work is done.

    Raises:
        InputError: the folder is a file, holds something that is not a task, or cannot be made or written.
    """
    path = Path(folder)
    _check_name(path)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        problem = f"cannot write the task folder {path}: {error.strerror}."
        raise InputError(f"{problem} Choose another with {_other_folder()}") from error
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(f"{path} is a file, not a folder for the task. Choose another with {_other_folder()}")
    if os.path.isdir(path) and not _is_free(path):
        raise InputError(
            f"the folder {path} is not empty and was not written by ytuning train. "
            f"Choose another with {_other_folder()}"
        )
    nearest = next(place for place in (path, *path.resolve().parents) if os.path.exists(place))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK | os.X_OK):
        problem = "cannot be written" if os.path.isdir(nearest) else "is not a folder"
        problem = f"cannot write the task folder {path}: {nearest} {problem}."
        raise InputError(f"{problem} Choose another with {_other_folder()}")


def _other_folder() -> str:
    return argument("folder", option="--out")


def task_files(folder: str | Path) -> list[Path]:
    """Paths of the files of a task folder, whether they are there or not."""
    return [Path(folder) / name for name in (TASK_FILE, HEAD_FILE, LIGHT_FILE, CARD_FILE)]


def place_beside(folder: Path) -> Path:
    """Where to save a task whose training was interrupted: a finished one in the folder may be better, and is kept.

    The folder itself if there is no finished one; else a new name beside it, or where nothing can be written there, a
    temporary folder: the head should not be lost.
    """
    if not holds_finished_task(folder):
        return folder
    whole = folder.resolve()
    for number in range(1, MOST_BESIDE):
        beside = whole.with_name(f"{whole.name}-interrupted{'' if number == 1 else f'-{number}'}")
        with suppress(InputError):
            check_task_folder(beside)
            if not holds_finished_task(beside):
                return beside
    with write_errors(f"a folder beside {folder}", _other_folder()):
        return Path(tempfile.mkdtemp(prefix="interrupted-"))


def holds_finished_task(folder: Path) -> bool:
    """Whether there is a ``task.json``, readable or not, that does not say that training was interrupted."""
    if not os.path.isfile(folder / TASK_FILE):
        return False
    try:
        return not _read_json(folder).get("training", {}).get("interrupted", False)
    except (TaskFolderError, AttributeError):
        return True


def _is_free(path: Path) -> bool:
    """Whether a folder is empty, a task's, or what a killed save left of one."""
    try:
        names = {file.name for file in path.iterdir()}
    except OSError as error:
        problem = f"cannot read the folder {path}: {error.strerror}."
        raise InputError(f"{problem} Choose another with {_other_folder()}") from error
    whole = {name for name in names if not name.endswith(PARTIAL_SUFFIX)}
    # A card without a head is somebody's own README.
    if CARD_FILE in names and HEAD_FILE not in names:
        return False
    return TASK_FILE in names or whole <= {HEAD_FILE, LIGHT_FILE, CARD_FILE}


def load_task(folder: str | Path) -> Task:
    """Read a task folder, checking everything in it.

    Raises:
        TaskFolderError: the folder is missing, foreign, damaged, or of another schema; each has its own message.
    """
    path = Path(folder)
    content = _read_json(path)
    _check_name(path)
    try:
        target = kind_from_json(content)
        pair_mode = _pair_mode(content["pair"])
        columns = None if content["columns"] is None else Columns.from_json(content["columns"])
        encoder = EncoderIdentity.from_json(content["encoder"])
        states = _states(content["states"])
        config = _head_config(content["head"], path / TASK_FILE)
        head = _empty_head(config, target, states, encoder, pair_mode)
        expected = content["head_sha256"]
        beside = content["cascade"]
        cascade = None if beside is None else _cascade(beside, target, encoder, pair_mode)
        light = None if beside is None else (beside["head_sha256"], beside["scope"])
        if encoder.fingerprint != content["encoder"]["fingerprint"]:
            raise ValueError("the encoder's fingerprint does not match its fields")
        calibration = _calibration(content, target)
        scope = content["scope"]
        record = {name: content[name] for name in ("metrics", "training")}
        if not all(isinstance(value, dict) for value in record.values()):
            raise ValueError("metrics and training must be objects")
    except TaskFolderError:
        raise
    # A RuntimeError comes from torch, where weights do not fit the head.
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise TaskFolderError(
            f"{path / TASK_FILE} is damaged ({type(error).__name__}: {error}). Copy the folder again or train again"
        ) from error
    stored = _fill(head, path / HEAD_FILE, expected)
    task = Task(_name_of(path), target, encoder, states, config, head.eval(), calibration, **record)
    task = replace(task, pair_mode=pair_mode, columns=columns)
    if cascade is not None and light is not None:
        file, (checksum, light_scope) = path / LIGHT_FILE, light
        beside_light = _fill(cascade.head, file, checksum)
        task = replace(task, cascade=replace(cascade, scope=_read_scope(task, light_scope, beside_light, file)))
    return _with_tensors(task, scope, stored, path / HEAD_FILE)


def _empty_head(
    config: HeadConfig, target: TaskKind, states: States, encoder: EncoderIdentity, pair_mode: PairMode | None
) -> LabelHead:
    """A head without memory, as weights come from a file, and sizes that are damaged could ask for any amount."""
    with torch.device("meta"):
        return build_head(config, labels=target.outputs, layers=len(states), width=encoder.width, pair_mode=pair_mode)


def _calibration(content: dict[str, Any], target: TaskKind) -> Calibration:
    calibration = Calibration.from_json(content["calibration"], content["thresholds"])
    if calibration.thresholds is not None and len(calibration.thresholds) != len(target.names):
        raise ValueError("there must be a threshold for each label")
    return calibration


def _cascade(
    content: dict[str, Any], target: TaskKind, encoder: EncoderIdentity, pair_mode: PairMode | None
) -> Cascade:
    """The light head beside a default head, still without its weights."""
    states = _states(content["states"])
    head = _empty_head(LightConfig(), target, states, encoder, pair_mode)
    assert isinstance(head, LightHead)
    return Cascade(head.eval(), _calibration(content, target), states, CascadeCurve.from_json(content["curve"]))


def task_digest(folder: str | Path) -> str:
    """Hash of all that a task's answers depend on: its weights, calibration, labels, encoder and codec.

    Raises:
        TaskFolderError: the folder holds no task, or ``task.json`` is damaged.
    """
    content = _read_json(Path(folder))
    training = content.pop("training", None)
    store = training.get("store") if isinstance(training, dict) else None
    # Other figures of a training say nothing about the answers, and may be times.
    answering = {**{name: value for name, value in content.items() if name != "metrics"}, "store": store}
    return hashlib.sha256(json.dumps(answering, sort_keys=True).encode()).hexdigest()


def check_encoder(task: Task, encoder: EncoderIdentity, *, depth: int) -> None:
    """Refuse to use a head with features it was not trained on.

    Args:
        task: the task.
        encoder: the encoder that is to read its texts.
        depth: the number of the encoder's layers.

    Raises:
        TaskFolderError: the encoders differ, or the encoder lacks a hidden state; the message names the difference.
    """
    if task.encoder.fingerprint == encoder.fingerprint:
        deepest = max(heads.states[-1] for heads in (task, task.cascade) if heads is not None)
        if deepest > depth:
            raise TaskFolderError(
                f"the task {task.name!r} reads the hidden state {deepest}, but {encoder.name!r} has the states "
                f"0 to {depth} only: task.json is damaged. Copy the folder again or train again"
            )
        return
    fields = ("weights", "tokenizer", "config", "precision", "max_length", "long_text")
    differing = next((name for name in fields if getattr(task.encoder, name) != getattr(encoder, name)), "parameters")
    raise TaskFolderError(
        f"the task {task.name!r} was trained with another encoder than {encoder.name!r}: {differing} is "
        f"{getattr(task.encoder, differing)!r} in the task and {getattr(encoder, differing)!r} in the encoder. Use "
        f"{task.encoder.name!r}, which it was trained with, or train again"
    )


def check_names(tasks: Sequence[Task]) -> None:
    """Refuse tasks that share a name.

    Raises:
        InputError: two do.
    """
    name, count = Counter(task.name for task in tasks).most_common(1)[0]
    if count > 1:
        raise InputError(f"two task folders are named {name!r}; their answers could not be told apart. Rename one")


def holds_task(folder: str | Path) -> bool:
    """Whether a folder holds a task, readable or not."""
    return os.path.isfile(Path(folder) / TASK_FILE)


def _check_name(folder: Path) -> None:
    """Refuse a folder whose name cannot name the task in predictions, which are JSON, one a line.

    Raises:
        TaskFolderError: it holds bytes that are not UTF-8, a control character or the end of a line.
    """
    name = _name_of(folder)
    if not is_plain_name(name):
        raise TaskFolderError(
            f"the task folder {name!r} cannot name a task: its name has a control character, or bytes that are not "
            "UTF-8. Choose another name"
        )


def _name_of(folder: Path) -> str:
    """The name of a task in a folder, which may be given as ``"."`` or be a link."""
    # Unlike Path.resolve, it raises no error for links that lead back to themselves.
    return os.path.basename(os.path.realpath(folder))


def _read_json(path: Path) -> dict[str, Any]:
    file = path / TASK_FILE
    if not os.path.isdir(path):
        if os.path.exists(path):
            raise TaskFolderError(f"{path} is a file, not a task folder. Give the folder of a trained task")
        like = names_like(path)
        raise TaskFolderError(f"there is no task folder {path}.{like} Make one with: ytuning train DATA --out {path}")
    if not os.path.isfile(file):
        raise TaskFolderError(f"{path} is not a task folder: it holds no {TASK_FILE}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaskFolderError(
            f"{file} is damaged: it is not JSON ({error}). Copy the folder again or train again"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise TaskFolderError(f"{file} was not written by ytuning: it states no schema")
    if content["schema"] != SCHEMA:
        remedy = f"Train the task again: ytuning train DATA --out {path}"
        raise TaskFolderError(wrong_schema(file, content["schema"], SCHEMA, remedy))
    return content


def _pair_mode(value: Any) -> PairMode | None:
    """How the task reads pairs, None where its rows are single texts.

    Raises:
        ValueError: the value is none of these.
    """
    if value not in (None, *PAIR_MODES):
        raise ValueError(f"pair must be null or one of {', '.join(PAIR_MODES)}")
    mode: PairMode | None = value
    return mode


def _states(value: Any) -> States:
    """Numbers of hidden states.

    Raises:
        ValueError: the numbers are not whole numbers from 0 that rise.
    """
    if not (isinstance(value, list) and value and all(type(state) is int and state >= 0 for state in value)):
        raise ValueError("states must be a list of whole numbers from 0")
    if value != sorted(set(value)):
        raise ValueError("states must rise")
    return tuple(value)


def _head_config(value: Any, file: Path) -> HeadConfig:
    try:
        return head_from_json(value)
    except InputError as error:
        raise TaskFolderError(f"{file}: {error}") from error


def _fill(head: LabelHead, file: Path, expected: str) -> dict[str, torch.Tensor]:
    """Put stored weights into a head, after checking their bytes, names and shapes; returns the other tensors."""
    if not os.path.isfile(file):
        raise TaskFolderError(f"the task folder {file.parent} lacks {file.name}. Copy the folder again or train again")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TaskFolderError(f"cannot read {file}: {error.strerror}. Check its permissions") from error
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise TaskFolderError(
            f"{file} is damaged or no safetensors file ({error}). Copy it again or train again"
        ) from error
    weights = head.state_dict()
    others = [name for name in tensors if name in (VECTORS, TARGETS) or name.startswith((BASIS_PREFIX, SCOPE_PREFIX))]
    stored = {name: tensors.pop(name) for name in others}
    for name in sorted({*weights, *tensors}):
        wanted, given = (_form(some.get(name)) for some in (weights, tensors))
        if given != wanted:
            raise TaskFolderError(f"{file} belongs to another task: {name} should be {wanted}, it is {given}")
        if not bool(tensors[name].isfinite().all()):
            raise TaskFolderError(f"{file} is damaged: {name} is not finite. Copy the folder again or train again")
    if hashlib.sha256(data).hexdigest() != expected:
        raise TaskFolderError(
            f"{file} is not the file that was saved with this task (checksum differs). Copy the folder again"
        )
    if isinstance(head, PooledHead) and not _are_member_weights(tensors["member_weights"]):
        lowest, mean = float(tensors["member_weights"].min()), float(tensors["member_weights"].mean())
        raise TaskFolderError(
            f"{file} is damaged: member_weights must be at least 0 and have the mean 1. The lowest is {lowest:.4g} and "
            f"the mean {mean:.4g}. Copy the folder again, or train again"
        )
    # Copies lie where fast instructions want them, unlike parts of the file.
    head.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return stored


def _are_member_weights(weights: torch.Tensor) -> bool:
    """Whether these can be the weights (E,) of a head's members."""
    return bool((weights >= 0).all()) and abs(float(weights.mean()) - 1) < 1e-3


def _form(tensor: torch.Tensor | None) -> str:
    """Shape and type of a tensor in words."""
    return "absent" if tensor is None else f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _with_tensors(task: Task, scope: Any, stored: dict[str, torch.Tensor], file: Path) -> Task:
    """The task with the exemplars, the scope and the basis that its weights' file holds, checked like the weights."""
    exemplars, of_basis = (
        {name: tensor for name, tensor in stored.items() if name in (VECTORS, TARGETS)},
        {name.removeprefix(BASIS_PREFIX): tensor for name, tensor in stored.items() if name.startswith(BASIS_PREFIX)},
    )
    of_scope = {name: tensor for name, tensor in stored.items() if name.startswith(SCOPE_PREFIX)}
    with _fitting(file):
        tensors = {name: tensor.numpy() for name, tensor in of_basis.items()}
        basis = PcaInt8Codec.from_tensors(len(task.states), task.encoder.width, tensors) if tensors else None
        whole = replace(task, basis=basis, exemplars=_exemplars(task, exemplars, file) if exemplars else None)
        # It raises where the named codec and the basis do not go together.
        _ = whole.codec
    return replace(whole, scope=_read_scope(task, scope, of_scope, file))


@contextmanager
def _fitting(file: Path) -> Iterator[None]:
    """Say of whatever does not fit that the file does not fit the task."""
    try:
        yield
    except TaskFolderError:
        raise
    # NumPy has no bfloat16, which torch tells by a TypeError.
    except (InputError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise TaskFolderError(
            f"{file} does not fit the task's features: {reason}. Copy the folder again or train again"
        ) from error


def _read_scope(task: Task, content: Any, stored: dict[str, torch.Tensor], file: Path) -> ScopeModel | None:
    """The scope of a head, whose numbers ``task.json`` holds and whose tensors lie beside its weights."""
    if content is None and not stored:
        return None
    width = task.encoder.width * (2 if task.pair_mode == "separate" else 1)
    with _fitting(file):
        tensors = {name.removeprefix(SCOPE_PREFIX): tensor for name, tensor in stored.items()}
        return ScopeModel.from_parts(content, tensors, width=width, outputs=task.target.outputs)


def _exemplars(task: Task, stored: dict[str, torch.Tensor], file: Path) -> Exemplars:
    """Read the exemplars, checked like the weights."""
    head = task.head
    if isinstance(head, MatchingHead) and len(stored) == 2:
        vectors, targets = stored[VECTORS], stored[TARGETS]
        wanted = (*targets.shape[:1], head.members, head.match_width)
        fits = vectors.dtype == torch.float16 and tuple(vectors.shape) == wanted and bool(vectors.isfinite().all())
        if fits and task.target.are_targets(targets.numpy()):
            return Exemplars(vectors, targets)
    raise TaskFolderError(f"{file} belongs to another task: its exemplars do not fit the head. Copy the folder again")


def _cascade_words(task: Task) -> str:
    if task.cascade is None:
        return ""
    sentence = task.cascade.sentence(DEFAULT_SHARE)
    return f"\n\nA light head lies beside the head. With `--cascade {DEFAULT_SHARE}` (validation rows), {sentence}."


def _card(task: Task) -> str:
    figures = "\n".join(
        f"| {split} | {name} | {value:.4f} |"
        for split, values in task.metrics.items()
        for name, value in values.items()
    )
    share = task.head_parameters / task.encoder.parameters
    interrupted = (
        " Its training was interrupted: this is the best head up to then, and a whole training may give a better one."
        if task.training.get("interrupted")
        else ""
    )
    return f"""---
library_name: ytuning
pipeline_tag: text-classification
base_model: {task.encoder.name}
---

# {task.name}

A label head of {task.head_parameters:,} parameters ({share:.1%} of the encoder's) on the frozen encoder
`{task.encoder.name}`, trained with ytuning.{interrupted}
Input: {task.input_words}.

{task.target.answer_sentence}{_cascade_words(task)}

| split | metric | value |
| --- | --- | --- |
{figures}

Validation figures are those of the head that the validation rows chose, before any training on all rows.

Use it: `ytuning predict {task.name} "a text"`. The files hold numbers and JSON only; nothing in them can run code.
"""

"""The task folder: what is saved comes back, and everything else is refused in its own words."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ytuning.data.kinds import MultiLabel, Regression, SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.encoder.pretrained import EncoderIdentity
from ytuning.errors import InputError, TaskFolderError, WriteError
from ytuning.features.codecs import Int8Codec, PcaInt8Codec
from ytuning.heads.pooled import CrossAttentionConfig, HeadConfig, PooledConfig, build_head, config_to_json
from ytuning.tasks.task import Task, check_encoder, check_task_folder, load_task, place_beside, save_task
from ytuning.training.calibration import Calibration

IDENTITY = EncoderIdentity(
    name="some/encoder",
    weights="a" * 64,
    tokenizer="b" * 64,
    config="c" * 64,
    precision="fp32",
    max_length=32,
    width=8,
    parameters=1000,
)
POOLED, CROSS = PooledConfig(light_width=2, width=6), CrossAttentionConfig(width=8, heads=2)


def make_task(config: HeadConfig = POOLED, labels: tuple[str, ...] = ("card", "naïve", "10")) -> Task:
    torch.manual_seed(0)
    head = build_head(config, labels=len(labels), layers=2, width=8).eval()
    return Task(
        "tickets",
        SingleLabel(LabelSet(labels)),
        IDENTITY,
        (1, 3),
        config,
        head,
        metrics={"validation": {"accuracy": 0.5}},
        training={"seed": 3, "rows": {"train": 9}},
        pair_mode="joint",
    )


def regression_task() -> Task:
    """Of pairs that are encoded one by one, so with a wider head."""
    torch.manual_seed(0)
    head = build_head(POOLED, labels=2, layers=2, width=8, pair_mode="separate").eval()
    return Task("stars", Regression(1.0, 5.0, bounded=True), IDENTITY, (1, 3), POOLED, head, pair_mode="separate")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved task."""
    path = tmp_path / "tickets"
    save_task(make_task(), path)
    return path


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# --- round trip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [POOLED, CROSS], ids=["pooled", "cross_attention"])
def test_round_trip(config: HeadConfig, tmp_path: Path) -> None:
    task = make_task(config)
    save_task(task, tmp_path / "deep" / "folder")
    loaded = load_task(tmp_path / "deep" / "folder")
    features, mask = torch.randn(3, 4, 2, 8), torch.ones(3, 4, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(loaded.head(features, mask), task.head(features, mask))
    assert not loaded.head.training
    assert loaded.name == "folder"
    same = ("target", "encoder", "states", "codec", "config", "metrics", "training", "pair_mode", "kind", "calibration")
    assert {name: getattr(loaded, name) for name in same} == {name: getattr(task, name) for name in same}
    assert loaded.head_parameters == sum(weights.numel() for weights in task.head.parameters())


def test_round_trip_of_other_kinds(tmp_path: Path) -> None:
    task = regression_task()
    save_task(task, tmp_path / "stars")
    loaded = load_task(tmp_path / "stars")
    assert (loaded.target, loaded.pair_mode, loaded.kind, loaded.calibration) == (
        task.target,
        "separate",
        "regression",
        Calibration(),
    )
    features, mask = torch.randn(6, 4, 2, 8), torch.ones(6, 4, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(loaded.head(features, mask), task.head(features, mask))
    assert "It answers with a number from 1 to 5." in (tmp_path / "stars" / "README.md").read_text()
    several = replace(
        make_task(),
        target=MultiLabel(LabelSet(("card", "naïve", "10"))),
        calibration=Calibration(1.5, (0.1, 0.2, 0.3)),
    )
    save_task(several, tmp_path / "tags")
    loaded = load_task(tmp_path / "tags")
    assert (loaded.target, loaded.calibration) == (several.target, several.calibration)
    content = json.loads((tmp_path / "tags" / "task.json").read_text(encoding="utf-8"))
    assert (content["kind"], content["thresholds"]) == ("multi", [0.1, 0.2, 0.3])
    assert content["calibration"] == {"temperature": 1.5, "smoothing": 0.0, "abstain_below": None}


def compact_task() -> Task:
    features = np.random.default_rng(0).normal(size=(40, 2, 8)).astype(np.float16)
    return replace(make_task(), training={"store": "compact"}, basis=PcaInt8Codec.fitted(features))


def test_the_basis_of_compact_features_belongs_to_the_task(tmp_path: Path) -> None:
    task = compact_task()
    save_task(task, tmp_path / "compact")
    assert sorted(file.name for file in (tmp_path / "compact").iterdir()) == [
        "README.md", "head.safetensors", "task.json",
    ]  # fmt: skip
    loaded = load_task(tmp_path / "compact")
    assert task.basis is not None and task.basis.has_basis_of(loaded.basis) and loaded.codec is loaded.basis
    save_task(make_task(), tmp_path / "plain")
    plain = load_task(tmp_path / "plain")
    assert plain.basis is None and plain.codec == Int8Codec(2, 8)


@pytest.mark.parametrize(("named", "basis"), [("int8", True), ("compact", False), ("int4", False)])
def test_a_codec_that_does_not_fit_the_basis_is_refused(tmp_path: Path, named: str, basis: bool) -> None:
    task = compact_task()
    save_task(replace(task, training={"store": named}, basis=task.basis if basis else None), tmp_path / "task")
    with pytest.raises(TaskFolderError, match=r"does not fit the task's features: .*Copy the folder again or train"):
        load_task(tmp_path / "task")


def test_a_basis_of_other_sizes_is_refused(tmp_path: Path) -> None:
    other = PcaInt8Codec.fitted(np.ones((40, 3, 8), np.float16))
    save_task(replace(compact_task(), basis=other), tmp_path / "task")
    with pytest.raises(TaskFolderError, match=r"a basis of .*\(12, 24\).*, where .*\(8, 16\).* is needed"):
        load_task(tmp_path / "task")


@pytest.mark.parametrize("states", [None, [], [3, 1], [1, 1], [-1, 3], ["1", "3"], [True, 3]])
def test_states_that_are_none_are_refused(folder: Path, states: object) -> None:
    content = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps({**content, "states": states}))
    with pytest.raises(TaskFolderError, match=r"task\.json is damaged \(ValueError: states must "):
        load_task(folder)


def test_loading_leaves_the_random_state_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    load_task(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_place_beside_a_finished_task(folder: Path, tmp_path: Path) -> None:
    assert place_beside(tmp_path / "new") == tmp_path / "new"
    first, second = (folder.with_name(f"{folder.name}-interrupted{end}") for end in ("", "-2"))
    assert place_beside(folder) == first
    first.mkdir()
    (first / "mine.txt").write_text("x")
    assert place_beside(folder) == second
    save_task(replace(load_task(folder), training={"interrupted": True}), second)
    assert place_beside(folder) == second and place_beside(second) == second
    save_task(load_task(folder), second)
    assert place_beside(folder).name == f"{folder.name}-interrupted-3"


def test_a_task_that_cannot_be_read_is_not_replaced_either(folder: Path) -> None:
    file = folder / "task.json"
    for content in (json.dumps({**json.loads(file.read_text()), "schema": 99}), "{"):
        file.write_text(content)
        assert place_beside(folder) != folder
    file.unlink()
    assert place_beside(folder) == folder


def test_a_place_where_nothing_can_be_written_beside(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> None:
        raise InputError("cannot be written")

    monkeypatch.setattr("ytuning.tasks.task.check_task_folder", refused)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = place_beside(folder)
    assert found.is_dir() and found.parent == tmp_path and found.name.startswith("interrupted-")


def test_folder_holds_three_files_and_no_code(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "head.safetensors", "task.json"]
    content = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    assert content["schema"] == 3
    assert content["labels"] == ["card", "naïve", "10"]
    assert content["encoder"]["fingerprint"] == IDENTITY.fingerprint
    stored = (folder / "head.safetensors").read_bytes()
    assert content["head_sha256"] == hashlib.sha256(stored).hexdigest()
    assert set(safetensors.torch.load(stored)) == set(make_task().head.state_dict())
    assert not any(file.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK") for file in folder.iterdir())


def test_model_card_tells_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        "# tickets",
        "some/encoder",
        "a pair of texts, encoded together",
        "32 tokens",
        "`naïve`",
        "| validation | accuracy | 0.5000 |",
    ):
        assert part in card


def test_model_card_tells_of_an_interrupted_training(tmp_path: Path) -> None:
    for name, interrupted in (("part", True), ("whole", False)):
        save_task(replace(make_task(), training={"interrupted": interrupted}), tmp_path / name)
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert (
            "trained with ytuning. Its training was interrupted: this is the best head up to then, and " in card
        ) == interrupted


def test_saving_again_replaces_the_older_task(folder: Path) -> None:
    save_task(make_task(CROSS, ("x", "y")), folder)
    assert load_task(folder).target.names == ("x", "y")
    assert len(list(folder.iterdir())) == 3


# --- refusals to load -----------------------------------------------------------------------------------------------


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change ``task.json``; a value None takes its key out."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        content |= changes
        content = {key: value for key, value in content.items() if value is not None or key not in changes}
        (folder / "task.json").write_text(json.dumps(content), encoding="utf-8")

    return apply


def edit_head(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        edit(head={**content["head"], **changes})(folder)

    return apply


def edit_encoder(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        edit(encoder={**content["encoder"], **changes})(folder)

    return apply


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return apply


def cut_weights(folder: Path) -> None:
    file = folder / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip_a_bit(folder: Path) -> None:
    file = folder / "head.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def weights_of(task: Task) -> Callable[[Path], None]:
    return write("head.safetensors", safetensors.torch.save(task.head.state_dict()))


def foreign(**changes: Any) -> Callable[[Path], None]:
    """Weights with other tensors, another type or another number in one, and their checksum."""

    def apply(folder: Path) -> None:
        tensors = safetensors.torch.load((folder / "head.safetensors").read_bytes())
        for name, change in changes.items():
            if isinstance(change, torch.Tensor):
                tensors[name] = change
            elif isinstance(change, torch.dtype):
                tensors[name] = tensors[name].to(change)
            else:
                tensors[name][0] = change
        data = safetensors.torch.save(tensors)
        (folder / "head.safetensors").write_bytes(data)
        edit(head_sha256=hashlib.sha256(data).hexdigest())(folder)

    return apply


DAMAGED = "head.safetensors is damaged or no safetensors file"
OTHER_LABELS = "belongs to another task: label_bias should be (7, 3) of float32, it is (7, 2) of float32"
WRONG_WEIGHTS = "head.safetensors is damaged: member_weights must be at least 0 and have the mean 1"

REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing folder": (remove, "there is no task folder"),
    "no task.json": (lambda folder: (folder / "task.json").unlink(), "is not a task folder: it holds no task.json"),
    "not JSON": (write("task.json", b'{"schema": 1'), "task.json is damaged: it is not JSON"),
    "not text": (write("task.json", b"\xff\xfe\x00"), "task.json is damaged: it is not JSON"),
    "a list": (write("task.json", b"[]"), "was not written by ytuning: it states no schema"),
    "no schema": (edit(schema=None), "was not written by ytuning: it states no schema"),
    "no columns": (edit(columns=[]), "task.json is damaged"),
    "columns without a text": (edit(columns={"label": "a"}), "task.json is damaged (TypeError"),
    "a column that is no text": (edit(columns={"text": 7}), "the name of the column text must be text. Got 7 instead."),
    "another schema": (
        edit(schema=6),
        "task.json has schema 6, but this version of ytuning reads schema 3. Train the task again: ytuning train DATA",
    ),
    "no pair": (edit(pair=None), "task.json is damaged (KeyError: 'pair')"),
    "pair as a truth value": (edit(pair=True), "pair must be null or one of joint, separate"),
    "no calibration": (edit(calibration=None), "task.json is damaged (KeyError: 'calibration')"),
    "no labels": (edit(labels=None), "task.json is damaged (KeyError: 'labels')"),
    "a label twice": (edit(labels=["a", "b", "a"]), "task.json is damaged (InputError: all label names must be"),
    "no metrics": (edit(metrics=None), "task.json is damaged (KeyError: 'metrics')"),
    "encoder is text": (edit(encoder="some/encoder"), "task.json is damaged (TypeError"),
    "encoder changed": (edit_encoder(max_length=64), "the encoder's fingerprint does not match its fields"),
    "unknown kind": (edit(kind="many"), "task.json is damaged (ValueError: unknown kind 'many')"),
    "unknown pair": (edit(pair="both"), "pair must be null or one of joint, separate"),
    "training is a list": (edit(training=[]), "metrics and training must be objects"),
    "metrics are text": (edit(metrics="good"), "metrics and training must be objects"),
    "no end of blocks": (
        edit(head={**config_to_json(CROSS), "blocks": 10**30}),
        "blocks must be at most 64",
    ),
    "a huge width": (edit_head(width=10**30), "width must be at most 65,536"),
    "a large width": (edit_head(width=60_000), "belongs to another task"),
    "another light member": (edit_head(light_width=3), "belongs to another task: light."),
    "no light member": (edit_head(light_width=0), "belongs to another task"),
    "a light member below 0": (edit_head(light_width=-1), "light_width must be a whole number of at least 0"),
    "a light member as text": (edit_head(light_width="x"), "light_width must be a whole number of at least 0"),
    "a light member that is too wide": (edit_head(light_width=7), "light_width must be at most width, 6. Got 7"),
    "a light member that is no number": (foreign(**{"light.row_scale": math.nan}), "light.row_scale is not finite"),
    "no members": (edit_head(members=0), "members must be a whole number of at least 1"),
    "members as text": (edit_head(members="x"), "members must be a whole number of at least 1"),
    "dropout as text": (edit_head(dropout="x"), "dropout must be a share from 0 to less than 1"),
    "dropout of all": (edit_head(dropout=2.0), "dropout must be a share from 0 to less than 1"),
    "another tensor": (foreign(more=torch.zeros(2)), "more should be absent, it is (2,) of float32"),
    "weights of members below 0": (
        foreign(member_weights=torch.tensor([-1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0])),
        f"{WRONG_WEIGHTS}. The lowest is -1 and the mean 1. Copy the folder again",
    ),
    "weights of members that are all 0": (
        foreign(member_weights=torch.zeros(7)),
        f"{WRONG_WEIGHTS}. The lowest is 0 and the mean 0.",
    ),
    "labels of whole numbers": (foreign(label_rows=torch.int32), "of float32, it is (7, 3, 6) of int32"),
    "labels that are no numbers": (foreign(label_rows=math.nan), "head.safetensors is damaged: label_rows is not"),
    "exemplars without rows": (
        foreign(**{"exemplars.vectors": torch.zeros(()).half(), "exemplars.targets": torch.tensor(0)}),
        "its exemplars do not fit the head. Copy the folder again",
    ),
    "basis of other numbers": (
        foreign(**{"basis.components": torch.zeros(3, 16).bfloat16()}),
        "head.safetensors does not fit the task's features: ",
    ),
    "too few thresholds": (edit(thresholds=[0.5]), "there must be a threshold for each label"),
    "no temperature": (edit(calibration={"temperature": 0, "smoothing": 0, "abstain_below": None}), "temperature"),
    "unknown head": (edit_head(form="linear"), "task.json: the head's form must be one of"),
    "unknown head field": (edit_head(depth=3), "task.json: the head's field 'depth' is unknown"),
    "no attention heads": (
        edit(head={**config_to_json(CrossAttentionConfig()), "heads": 0}),
        "task.json: heads must be",
    ),
    "negative head width": (
        edit_head(width=-3),
        "task.json: width must be a whole number of at least 1. Got -3 instead.",
    ),
    "head width as text": (
        edit_head(width="6"),
        "task.json: width must be a whole number of at least 1. Got '6' instead.",
    ),
    "other head width": (edit_head(width=7), "head.safetensors belongs to another task"),
    "no weights": (lambda folder: (folder / "head.safetensors").unlink(), "lacks head.safetensors"),
    "cut weights": (cut_weights, DAMAGED),
    "foreign weights": (write("head.safetensors", b"\x80\x04 pickle"), DAMAGED),
    "weights of another task": (weights_of(make_task(labels=("x", "y"))), OTHER_LABELS),
    "weights of another form": (weights_of(make_task(CROSS)), "belongs to another task"),
    "a changed bit": (flip_a_bit, "is not the file that was saved with this task (checksum differs)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses_to_load(name: str, folder: Path) -> None:
    spoil, expected = REFUSALS[name]
    spoil(folder)
    with pytest.raises(TaskFolderError) as caught:
        load_task(folder)
    message = str(caught.value)
    assert expected in message
    assert len(message.splitlines()) == 1
    assert str(folder) in message


def test_refuses_a_file(folder: Path) -> None:
    assert "task.json is a file, not a task folder" in refusal(load_task, folder / "task.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", "d" * 64),
        ("tokenizer", "d" * 64),
        ("config", "d" * 64),
        ("precision", "bf16"),
        ("max_length", 16),
        ("long_text", "window"),
    ],
)
def test_refuses_another_encoder(field: str, value: object) -> None:
    task = make_task()
    other = replace(IDENTITY, name="other", **{field: value})  # type: ignore[arg-type]
    message = refusal(partial(check_encoder, depth=6), task, other)
    assert f"{field} is {getattr(IDENTITY, field)!r} in the task and {value!r} in the encoder" in message
    assert "'tickets'" in message and "'other'" in message and "'some/encoder'" in message


def test_accepts_the_same_encoder_under_another_name() -> None:
    check_encoder(make_task(), replace(IDENTITY, name="moved"), depth=3)


def test_refuses_an_encoder_that_lacks_a_hidden_state() -> None:
    message = refusal(partial(check_encoder, depth=2), make_task(), IDENTITY)
    assert "'tickets' reads the hidden state 3, but 'some/encoder' has the states 0 to 2 only" in message


# --- refusals to save -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [lambda path: save_task(make_task(), path), check_task_folder], ids=["save", "check"])
def test_refuses_a_target_that_is_not_a_tasks(call: Callable[[Path], None], tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("precious")
    assert "is not empty and was not written by ytuning train. Choose another with folder=" in refusal(call, foreign)
    assert [file.name for file in foreign.iterdir()] == ["chapter.txt"]
    assert "is a file, not a folder for the task" in refusal(call, foreign / "chapter.txt")
    assert (foreign / "chapter.txt").read_text() == "precious"


@pytest.mark.parametrize("call", [lambda path: save_task(make_task(), path), check_task_folder], ids=["save", "check"])
def test_refuses_a_target_that_cannot_be_made(call: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(call, tmp_path / "file" / "deep" / "task")
    assert message.startswith("cannot write the task folder") and message.endswith("Choose another with folder=")


def test_a_folder_whose_name_the_system_refuses_is_named_as_python_names_it(tmp_path: Path) -> None:
    message = refusal(check_task_folder, tmp_path / ("x" * 300))
    assert message.startswith("cannot write the task folder") and message.endswith("Choose another with folder=")


def test_refuses_a_folder_with_a_readme_of_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert "is not empty and was not written by ytuning train" in refusal(check_task_folder, tmp_path)
    (tmp_path / "task.json").write_text("{}")
    assert "is not empty and was not written by ytuning train" in refusal(check_task_folder, tmp_path)


def test_accepts_an_empty_folder_an_older_task_and_a_new_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (folder, tmp_path / "empty", tmp_path / "new" / "deep"):
        check_task_folder(path)
    assert not (tmp_path / "new").exists()


def test_what_a_killed_save_left_is_removed(folder: Path) -> None:
    (folder / "head.safetensors.99.partial").write_bytes(b"half")
    (folder / "notes.partial").write_text("somebody's own")
    save_task(make_task(), folder)
    assert {file.name for file in folder.iterdir()} == {"README.md", "head.safetensors", "task.json", "notes.partial"}


@pytest.mark.parametrize("written", [0, 1, 2])
@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "Free some space and run the command again"), (errno.EIO, "Check the disk")]
)
def test_a_failed_save_names_the_folder_and_keeps_the_older_task(
    written: int, number: int, remedy: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(3))

    def full(descriptor: int) -> None:
        if next(calls) == written:
            raise OSError(number, os.strerror(number))

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError) as stop:
        save_task(make_task(labels=("x", "y")), folder)
    assert str(stop.value) == (
        f"cannot write the task folder {folder}: {os.strerror(number)}. {remedy}, or choose another disk with folder=."
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert load_task(folder).target.names == ("card", "naïve", "10")

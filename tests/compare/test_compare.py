"""Runs one after the other: what is kept, what is left out, and how it ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ytuning
from tests.conftest import build_tiny_encoder
from ytuning.compare.compare import STORE, Comparison, compare, some_rows
from ytuning.compare.methods import Run, Work, work_on
from ytuning.compare.own_process import in_own_process
from ytuning.data.dataset import Dataset, from_lists
from ytuning.engines.engine import Engine
from ytuning.errors import EncoderError, InputError, MissingExtraError, YTuningError
from ytuning.progress import Progress
from ytuning.system.machine import versions


class Listening(Progress):
    """Keeps what is said and the notes of steps."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.notes: list[str] = []

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.notes.append(f"{stage} {done}/{total} {note}")

    def say(self, message: str) -> None:
        self.said.append(message)


class Starts:
    """Stands in for what runs a method: keeps what was asked for, answers at random, and fails as told."""

    def __init__(self, failures: dict[tuple[str, int], BaseException] | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.failures = failures or {}

    def __call__(self, name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
        self.asked.append((name, seed))
        store.mkdir()
        (store / "features").write_text("x")
        progress.step("train", 1, 2, "validation accuracy 0.5000")
        progress.say("something")
        if (name, seed) in self.failures:
            raise self.failures[name, seed]
        return fake_run(name, work, seed)


def fake_run(name: str, work: Work, seed: int, right: float = 0.7) -> Run:
    """A run of a single-label task whose answers are right in about this share of the rows."""
    chooser = np.random.default_rng([seed, sum(map(ord, name))])
    truth = work.judged(seed)
    predicted = np.where(chooser.random(len(truth)) < right, truth, (truth + 1) % len(work.target.names))
    return Run(
        method=name,
        seed=seed,
        metrics={"accuracy": float((predicted == truth).mean())},
        predicted=predicted.tolist(),
        seconds=10.0 + seed,
        seconds_with_stored_features=None if name in ("full", "lora") else 2.0 + seed,
        parameters=1000,
        peak_bytes=5 * 10**8 + seed,
        stored_bytes=None if name in ("full", "lora") else 1_234_500 + seed,
        stored_texts=None if name in ("full", "lora") else 1000,
        texts_per_second=300.0 + seed if name == "ytuning" else None,
        rows={"train": len(work.split(seed)[0]), "validation": len(work.split(seed)[1]), "judged": len(truth)},
        encoder={
            "name": work.encoder,
            "fingerprint": "ab",
            "parameters": 10_000,
            "precision": "fp32",
            "width": 32,
            "max_length": 30,
        },
        details={"learning_rate": 0.001},
    )


@pytest.fixture
def work(toy_rows: tuple[list[str], list[str]], tiny_encoder: Path) -> Work:
    texts, labels = toy_rows
    rows = from_lists(texts, labels)
    return work_on(rows.select(range(80)), str(tiny_encoder), test=rows.select(range(80, 120)))


def test_methods_take_turns_and_every_run_is_told(work: Work, tmp_path: Path) -> None:
    starts, progress = Starts(), Listening()
    found = compare(work, ["ytuning", "full"], tmp_path, seeds=2, progress=progress, start=starts)
    assert starts.asked == [("ytuning", 0), ("full", 0), ("ytuning", 1), ("full", 1)]
    assert [(run.method, run.seed) for run in found.runs] == starts.asked
    assert (found.skipped, found.interrupted, found.seeds) == ({}, False, [0, 1])
    assert progress.notes[2] == "compare 1/4 full, seed 0: train 1/2 validation accuracy 0.5000"
    assert progress.notes[3].startswith("compare 2/4 full, seed 0: accuracy 0.") and progress.notes[3].endswith(
        "10.0 s"
    )
    assert progress.said == [f"{name}, seed {seed}: something" for name, seed in starts.asked]
    assert not (tmp_path / STORE).exists()


def test_a_comparison_goes_on_where_it_was(work: Work, tmp_path: Path) -> None:
    first = compare(work, ["ytuning", "full"], tmp_path, seeds=1, start=Starts())
    starts = Starts()
    second = compare(work, ["ytuning", "logistic", "full"], tmp_path, seeds=2, start=starts)
    assert starts.asked == [("logistic", 0), ("ytuning", 1), ("logistic", 1), ("full", 1)]
    assert [run for run in second.runs if run.seed == 0 and run.method != "logistic"] == first.runs


@pytest.mark.parametrize("change", ["rows", "encoder", "tokenizer", "epochs", "torch", "peft"])
def test_other_rows_settings_or_versions_are_run_again(
    change: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["ytuning", "full", "lora"]
    compare(work, methods, tmp_path, seeds=1, start=Starts())
    changed = work
    if change == "rows":
        changed = replace(work, train=work.train.select(range(79)))
    elif change == "encoder":
        (tmp_path / "encoder").mkdir()
        changed = replace(work, encoder=str(build_tiny_encoder(tmp_path / "encoder", seed=1)))
    elif change == "tokenizer":
        changed = replace(work, encoder=str(shutil.copytree(work.encoder, tmp_path / "encoder")))
        file = tmp_path / "encoder" / "tokenizer.json"
        file.write_text(file.read_text() + " ")
    elif change == "epochs":
        changed = replace(work, epochs=7)
    else:
        # The first that the path has is the version that is installed.
        (tmp_path / f"{change}-0.dist-info").mkdir()
        (tmp_path / f"{change}-0.dist-info" / "METADATA").write_text(f"Name: {change}\nVersion: 0\n")
        monkeypatch.syspath_prepend(tmp_path)
    starts = Starts()
    compare(changed, methods, tmp_path, seeds=1, start=starts)
    again = {"epochs": ["full", "lora"], "peft": ["lora"]}.get(change, methods)
    assert starts.asked == [(name, 0) for name in again]


def test_another_line_of_code_is_another_version(tmp_path: Path) -> None:
    copy = shutil.copytree(Path(ytuning.__file__).parent, tmp_path / "ytuning")
    program = "from ytuning.system.machine import versions; print(versions()['ytuning'])"
    hashes = []
    for line in ("", "# another line\n"):
        with (copy / "errors.py").open("a") as file:
            file.write(line)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        hashes.append(done.stdout.strip())
    assert hashes[0] == versions()["ytuning"] != hashes[1]


def test_other_rows_leave_finished_runs_where_they_are(work: Work, tmp_path: Path) -> None:
    first = compare(work, ["ytuning"], tmp_path, seeds=1, start=Starts())
    compare(replace(work, train=work.train.select(range(79))), ["ytuning"], tmp_path, seeds=1, start=Starts())
    starts = Starts()
    assert compare(work, ["ytuning"], tmp_path, seeds=1, start=starts).runs == first.runs
    assert starts.asked == []


def test_a_damaged_file_is_run_again(work: Work, tmp_path: Path) -> None:
    compare(work, ["ytuning"], tmp_path, seeds=1, start=Starts())
    (file,) = (tmp_path / "runs").glob("ytuning-0-*.json")
    for content in ("", "[]", '{"key": 1}', json.dumps({**json.loads(file.read_text()), "run": {}})):
        file.write_text(content)
        starts = Starts()
        compare(work, ["ytuning"], tmp_path, seeds=1, start=starts)
        assert starts.asked == [("ytuning", 0)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            MissingExtraError("peft", "peft"),
            "the package 'peft' is not installed. Install it with: pip install 'ytuning",
        ),
        (RuntimeError("out of\nmemory"), "RuntimeError: out of memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_method_that_fails_is_left_out_and_the_others_go_on(
    error: Exception, reason: str, work: Work, tmp_path: Path
) -> None:
    starts, progress = Starts({("lora", 1): error}), Listening()
    found = compare(work, ["lora", "full"], tmp_path, seeds=3, progress=progress, start=starts)
    assert starts.asked == [("lora", 0), ("full", 0), ("lora", 1), ("full", 1), ("full", 2)]
    assert found.skipped[work.encoder, "lora"].startswith(reason)
    assert [run.method for run in found.runs] == ["lora", "full", "full", "full"]
    assert any(said.startswith(f"lora is left out: {reason}") for said in progress.said)
    assert not (tmp_path / STORE).exists()


def test_nothing_to_show_is_an_error(work: Work, tmp_path: Path) -> None:
    starts = Starts({("full", 0): ValueError("x"), ("lora", 0): ValueError("y")})
    with pytest.raises(YTuningError, match=r"^no method could be run\. full: ValueError: x$"):
        compare(work, ["full", "lora"], tmp_path, start=starts)


def test_interrupted_comparisons_keep_what_is_finished(work: Work, tmp_path: Path) -> None:
    found = compare(work, ["ytuning", "full"], tmp_path, start=Starts({("ytuning", 1): KeyboardInterrupt()}))
    assert found.interrupted and [run.method for run in found.runs] == ["ytuning", "full"]
    assert not (tmp_path / STORE).exists()
    starts = Starts()
    assert not compare(work, ["ytuning", "full"], tmp_path, seeds=2, start=starts).interrupted
    assert starts.asked == [("ytuning", 1), ("full", 1)]
    with pytest.raises(KeyboardInterrupt):
        compare(work, ["lora"], tmp_path, start=Starts({("lora", 0): KeyboardInterrupt()}))


def test_one_comparison_at_a_time_in_a_folder(work: Work, tmp_path: Path) -> None:
    refused: list[str] = []

    class Second(Starts):
        """Begins another comparison while one is running."""

        def __call__(self, name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
            store.mkdir()
            with pytest.raises(InputError) as caught:
                compare(work, ["full"], store.parent, seeds=1, start=Starts())
            refused.append(str(caught.value))
            assert store.is_dir(), "the second one has removed nothing"
            compare(work, ["full"], tmp_path / "elsewhere", seeds=1, start=Starts())
            store.rmdir()
            return super().__call__(name, work, seed, store, progress)

    found = compare(work, ["ytuning"], tmp_path / "first", seeds=1, start=Second())
    assert len(found.runs) == 1
    assert refused == [
        f"another comparison is running in {tmp_path / 'first'}. Wait until it has ended, then give the command again, "
        "or choose another folder with --out"
    ]
    assert len(compare(work, ["ytuning", "full"], tmp_path / "first", seeds=1, start=Starts()).runs) == 2


def test_a_comparison_that_failed_leaves_the_folder_free(work: Work, tmp_path: Path) -> None:
    for error in (KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)):
            compare(work, ["full"], tmp_path, seeds=1, start=Starts({("full", 0): error}))
    assert len(compare(work, ["full"], tmp_path, seeds=1, start=Starts()).runs) == 1


@pytest.fixture
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of another tiny encoder."""
    return str(build_tiny_encoder(tmp_path_factory.mktemp("other"), seed=1))


def test_encoders_take_turns_on_the_same_rows(work: Work, other_encoder: str, tmp_path: Path) -> None:
    given: list[Work] = []

    class Seen(Starts):
        """Keeps the work of each run."""

        def __call__(self, name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
            given.append(work)
            return super().__call__(name, work, seed, store, progress)

    encoders, starts, progress = [work.encoder, other_encoder], Seen(), Listening()
    options: Any = {"encoders": encoders, "seeds": 2, "progress": progress}
    found = compare(work, ["ytuning", "logistic"], tmp_path, start=starts, **options)
    assert starts.asked == [(name, seed) for seed in range(2) for name in ["ytuning", "logistic"] * 2]
    assert [each.encoder for each in given] == [name for _ in range(2) for name in encoders for _ in range(2)]
    assert {id(each.train) for each in given} == {id(work.train)} and {id(each.test) for each in given} == {
        id(work.test)
    }
    assert [(run.encoder["name"], run.method) for run in found.runs[:4]] == found.contestants
    names = [Path(encoder).name for encoder in encoders]
    assert [found.shown_name(each) for each in found.contestants[1:3]] == [
        f"{names[0]}, logistic",
        f"{names[1]}, ytuning",
    ]
    assert progress.notes[4] == f"compare 2/8 {names[1]}, ytuning, seed 0: train 1/2 validation accuracy 0.5000"


def test_encoders_are_shown_by_the_part_of_their_names_that_differs(work: Work) -> None:
    names = {
        ("BAAI/bge", "org/gte"): ["bge", "gte"],
        ("one/bge", "two/bge"): ["one/bge", "two/bge"],
        (".", "a/"): [".", "a"],
    }
    for encoders, shown in names.items():
        found = Comparison(work, list(encoders), ["ytuning"], [0], [], {}, False)
        assert [found.shown_name(each) for each in found.contestants] == shown


def test_a_finished_run_of_an_encoder_counts_under_its_new_name(work: Work, other_encoder: str, tmp_path: Path) -> None:
    compare(work, ["ytuning"], tmp_path, seeds=1, start=Starts())
    moved = str(shutil.copytree(work.encoder, tmp_path / "moved"))
    starts = Starts()
    found = compare(work, ["ytuning"], tmp_path, encoders=[other_encoder, moved], seeds=1, start=starts)
    assert starts.asked == [("ytuning", 0)]
    assert [run.encoder["name"] for run in found.runs] == [other_encoder, moved]


def test_an_encoder_that_fails_loses_no_other(work: Work, other_encoder: str, tmp_path: Path) -> None:
    class Fails(Starts):
        """Fails with one encoder."""

        def __call__(self, name: str, work: Work, seed: int, store: Path, progress: Progress) -> Run:
            if work.encoder == other_encoder:
                raise MemoryError
            return super().__call__(name, work, seed, store, progress)

    progress, encoders = Listening(), [other_encoder, work.encoder]
    found = compare(work, ["ytuning"], tmp_path, encoders=encoders, seeds=2, progress=progress, start=Fails())
    assert found.skipped == {(other_encoder, "ytuning"): "MemoryError"}
    assert [(run.encoder["name"], run.seed) for run in found.runs] == [(work.encoder, 0), (work.encoder, 1)]
    assert f"{Path(other_encoder).name} is left out: MemoryError" in progress.said


@pytest.mark.parametrize("damage", ["missing", "not an encoder", "unknown", "twice", "one", "empty", "copy"])
def test_every_encoder_is_checked_before_any_run(damage: str, work: Work, other_encoder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(other_encoder, tmp_path / "encoder")
    if damage == "not an encoder":
        (folder / "config.json").unlink()
    elif damage == "unknown":
        (folder / "config.json").write_text('{"model_type": "nothing"}')
    encoders, error, message = {
        "missing": (
            ["./nowhere"],
            EncoderError,
            r"^there is no encoder folder './nowhere'\. Give an existing folder or",
        ),
        "not an encoder": ([str(folder)], EncoderError, "is not an encoder: .* holds no config.json$"),
        "unknown": ([str(folder)], EncoderError, "^cannot load the encoder"),
        "twice": (
            [work.encoder],
            InputError,
            "^encoders must name each encoder once, and at least two. Got '.*,.*' inst",
        ),
        "one": ([], InputError, "^encoders must name each encoder once, and at least two. Got '"),
        "empty": ([""], InputError, "^encoders must name each encoder once, and at least two. Got '.*,' instead"),
        "copy": (
            [str(shutil.copytree(work.encoder, tmp_path / "copy"))],
            InputError,
            r"^encoders names one encoder twice: '.*' and '.*copy' have the same files\. Leave one of them out$",
        ),
    }[damage]
    starts = Starts()
    with pytest.raises(error, match=message):
        compare(work, ["ytuning"], tmp_path / "out", encoders=[work.encoder, *encoders], start=starts)
    assert starts.asked == []


def test_without_test_rows_it_is_said(work: Work, tmp_path: Path) -> None:
    progress = Listening()
    compare(replace(work, test=None), ["ytuning"], tmp_path, seeds=1, progress=progress, start=Starts())
    assert progress.said[0].startswith(
        "there is no test set (--test), so the scores are from the validation set, which"
    )


def test_mistakes(work: Work, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^methods must be one of"):
        compare(work, ["bert"], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot write .*file.*Choose another path with --out\.$"):
        compare(work, ["ytuning"], tmp_path / "file", start=Starts())
    with pytest.raises(EncoderError, match="there is no encoder folder"):
        compare(replace(work, encoder="./nowhere"), ["ytuning"], tmp_path, start=Starts())


# --- a sample of the rows -------------------------------------------------------------------------------------------


def test_a_sample_has_two_rows_of_each_label() -> None:
    labels = ["a"] * 90 + ["b"] * 5 + ["c"] * 2
    rows = Dataset([f"text {number}" for number in range(97)], labels)
    found = some_rows(rows, 12)
    assert len(found) == 12 and found.names.count("c") == 2 and found.names.count("b") >= 2
    assert found.rows == sorted(set(found.rows or [])) and some_rows(rows, 12).texts == found.texts
    assert some_rows(rows, 97) is rows
    with pytest.raises(InputError, match=r"^rows must be at least 6, two of each label\. Got 5 instead\.$"):
        some_rows(rows, 5)


def test_a_sample_of_other_kinds() -> None:
    texts = [f"text {number}" for number in range(50)]
    several = Dataset(texts, [("a", "b"), ("a",)] * 24 + [("rare",), ()], kind="multi")
    assert ("rare",) in (some_rows(several, 8).labels or ())
    assert len(some_rows(Dataset(texts, [float(number) for number in range(50)], kind="regression"), 3)) == 3


# --- in a process of its own ----------------------------------------------------------------------------------------


def test_a_method_in_its_own_process(work: Work, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    progress = Listening()
    found = compare(work, ["logistic"], tmp_path, seeds=1, progress=progress)
    assert isinstance(found, Comparison) and found.runs[0].metrics["accuracy"] > 0.45
    assert found.runs[0].peak_bytes is not None
    assert capfd.readouterr().out == ""
    again = compare(work, ["logistic"], tmp_path, seeds=1, start=Starts())
    assert again.runs == found.runs  # as JSON keeps it


def test_what_fails_in_the_process_is_told(work: Work, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(YTuningError, match=r"^cannot use the feature store"):
        in_own_process("logistic", work, 0, tmp_path / "file", Progress())
    with pytest.raises(YTuningError, match=r"^KeyError: 'no method'$"):
        in_own_process("no method", work, 0, tmp_path / "x", Progress())


def test_a_process_that_is_killed(work: Work, tmp_path: Path) -> None:
    class Kills(Progress):
        """Ends the process of the run at its first report."""

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    os.kill(child.pid, 9)
            time.sleep(0.2)

    with pytest.raises(YTuningError, match=r"^its process was ended by SIGKILL \(the system does so"):
        in_own_process("full", work, 0, tmp_path / "store", Kills())


# --- on the workers of an engine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(toy_rows: tuple[list[str], list[str]], tiny_encoder: Path) -> Work:
    """Rows that SetFit refuses."""
    texts, labels = toy_rows
    rows = from_lists(texts, labels, texts[::-1])
    return work_on(rows.select(range(80)), str(tiny_encoder), test=rows.select(range(80, 120)))


@pytest.fixture(scope="module")
def in_turn(pairs: Work, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The runs of a comparison without workers."""
    return compare(pairs, ["setfit", "logistic"], tmp_path_factory.mktemp("compared"), seeds=1)


def same_runs(found: Comparison, wanted: Comparison) -> bool:
    """Whether the runs have the same answers, in the same order."""
    answers = [
        [(run.method, run.seed, run.encoder, run.metrics, run.predicted, run.stored_bytes) for run in one.runs]
        for one in (found, wanted)
    ]
    return answers[0] == answers[1] and found.skipped == wanted.skipped


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_on_processes_are_those_without_workers(
    workers: int, pairs: Work, in_turn: Comparison, tmp_path: Path
) -> None:
    progress, engine = Listening(), Engine(workers=workers)
    found = compare(pairs, ["setfit", "logistic"], tmp_path, seeds=1, progress=progress, engine=engine)
    assert same_runs(found, in_turn) and not found.interrupted
    assert (found.workers, in_turn.workers) == (workers, 1)
    assert len([said for said in progress.said if said.startswith("setfit is left out: SetFit takes single")]) == 1
    assert [note.split()[1] for note in progress.notes][-1] == "2/2"
    assert not (tmp_path / STORE).exists()
    # Nothing is left to do, so no worker is started.
    methods = ["logistic"]
    again = compare(pairs, methods, tmp_path, seeds=1, engine=Engine("ray", address="ray://nowhere:1"))
    assert again.runs == found.runs


def test_runs_on_ray_are_those_without_workers(
    ray_here: None, pairs: Work, in_turn: Comparison, tmp_path: Path
) -> None:
    found = compare(pairs, ["logistic"], tmp_path, seeds=1, engine=Engine("ray"))
    assert same_runs(replace(found, skipped=in_turn.skipped), in_turn)


def test_ctrl_c_ends_workers_and_keeps_finished_runs(pairs: Work, tmp_path: Path) -> None:
    class Interrupt(Listening):
        """Ctrl-C once a run is finished."""

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            raise KeyboardInterrupt

    work = replace(pairs, epochs=10_000)
    found = compare(work, ["logistic", "full"], tmp_path, seeds=1, progress=Interrupt(), engine=Engine(workers=2))
    assert found.interrupted and [run.method for run in found.runs] == ["logistic"]
    deadline = time.monotonic() + 30
    # The processes of the runs end with the workers that have started them.
    while (left := _processes_of_this_test()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _processes_of_this_test() -> list[str]:
    """Processes with the store of this test in their environment, but for this one (Linux alone)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if os.environ["YTUNING_CACHE"].encode() in file.read_bytes() and file.parts[2] != str(os.getpid()):
                found.append(file.parts[2])
    return found


def test_an_engine_and_a_start_are_refused(work: Work, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both an engine and what runs a method are given"):
        compare(work, ["ytuning"], tmp_path, start=Starts(), engine=Engine())

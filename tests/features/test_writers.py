"""Several processes that write to one feature space: none waits, none hurts another, and what they store is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.conftest import STATES
from tests.features.encode_script import Settings
from tests.features.test_features import Recorder, WatchedEncoder, ids, same, shards, through, values
from ytuning.data.dataset import TextInput
from ytuning.features.codecs import row_bytes
from ytuning.features.features import stored_features
from ytuning.features.keys import text_key
from ytuning.features.store import FeatureSpace, FeatureStore, WriteSizes

SCRIPT = Path(__file__).with_name("encode_script.py")
WINDOW = 20
WAITING = "waiting for another process that fits the basis of the compact features"


class Child:
    """Another process that encodes texts through a store, up to some batch and then, once it is let go, all of them."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        file = folder / "settings.json"
        file.write_text(json.dumps(asdict(settings)))
        command = [sys.executable, str(SCRIPT), str(file)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not Path(settings.held).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"the other process did not get so far: {self.process.communicate()}")
            time.sleep(0.005)

    def read(self) -> list[tuple[int, ...]]:
        """Token ids of every text that its encoder has read."""
        log = Path(self.settings.log)
        return [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

    def let_go(self) -> None:
        Path(self.settings.gate).touch()

    def finish(self) -> tuple[int, int]:
        """Let it go and wait for its end; returns its hits and misses."""
        assert self.process.poll() is None
        self.let_go()
        output, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        hits, misses = json.loads(output)
        return hits, misses

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL


Start = Callable[[list[TextInput], str, int], Child]


@pytest.fixture
def child(tiny_encoder: Path, store: FeatureStore) -> Iterator[Start]:
    """Starts a process that has been held at a batch by the time that this returns."""
    children: list[Child] = []
    folder = store.root.parent

    def start(inputs: list[TextInput], codec: str, hold_at: int) -> Child:
        settings = Settings(
            encoder=str(tiny_encoder),
            store=str(store.root),
            texts=[text for text, _ in inputs],
            codec=codec,
            shard_bytes=store.sizes.shard_bytes,
            window_texts=WINDOW,
            hold_at=hold_at,
            log=str(folder / "log"),
            held=str(folder / "held"),
            gate=str(folder / "gate"),
        )
        children.append(Child(folder, settings))
        return children[-1]

    yield start
    for one in children:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def encoder(tiny_encoder: Path) -> WatchedEncoder:
    return WatchedEncoder(tiny_encoder)


@pytest.fixture
def inputs(toy_rows: tuple[list[str], list[str]]) -> list[TextInput]:
    return [(text, None) for text in toy_rows[0]]


@pytest.fixture(params=["fp16", "compact"])
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, codec: str) -> FeatureStore:
    sizes = WriteSizes(shard_bytes=63 * row_bytes(codec, 2, 32), window_texts=WINDOW, fit_tokens=100)
    return FeatureStore(tmp_path / "root", sizes)


def space_of(encoder: WatchedEncoder, store: FeatureStore, codec: str) -> FeatureSpace:
    return store.space(encoder.identity.to_json(), STATES, codec)


def leftovers(space: FeatureSpace) -> list[Path]:
    return [*space.folder.rglob("*.partial"), *(space.folder / "writers").iterdir()]


def test_a_writer_does_not_wait_for_another(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, child: Start, codec: str
) -> None:
    progress = Recorder()
    other = child(inputs[:60], codec, 4)
    features, use = stored_features(inputs[60:], encoder, store, progress, codec=codec, states=STATES)
    # The other one is in the middle of its texts, and still holds its place among the writers.
    space = space_of(encoder, store, codec)
    assert len(leftovers(space)) == 1 and 60 < len(space) < 120
    assert (use.hits, use.misses, progress.said) == (0, 60, [])
    assert sorted(encoder.read) == ids(encoder, inputs[60:])
    assert same(values(features), through(codec, encoder, inputs[60:], store))

    assert other.finish() == (0, 60)
    assert sorted(other.read()) == ids(encoder, inputs[:60])
    encoder.read.clear()
    features, use = stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)
    assert (use.hits, encoder.read, progress.said, leftovers(space)) == (120, [], [], [])
    assert same(values(features), through(codec, encoder, inputs, store))


def test_writers_of_the_same_texts_share_them(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, child: Start, codec: str
) -> None:
    other = child(inputs, codec, 4)
    stored = [pair for pair in inputs if text_key(*pair) in space_of(encoder, store, codec)]
    missing = [pair for pair in inputs if pair not in stored]
    assert 0 < len(stored) < len(inputs)
    progress = Recorder()
    features, use = stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)
    # It has left out what was there, and has not waited for what the other one had not yet stored.
    assert (use.hits, use.misses, progress.said) == (len(stored), len(missing), [])
    assert progress.last == (len(missing), len(missing))
    assert sorted(encoder.read) == ids(encoder, missing)

    hits, misses = other.finish()
    # The other one was in its first or second window, and leaves out all further ones.
    assert misses == len(other.read()) and hits + misses == 120
    assert set(other.read()) <= set(ids(encoder, [*inputs[: 2 * WINDOW], *stored]))
    again, use = stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)
    assert (use.hits, use.misses) == (120, 0)
    for some in (features, again):
        assert same(values(some), through(codec, encoder, inputs, store))
    assert leftovers(space_of(encoder, store, codec)) == []


def test_a_writer_leaves_out_what_is_stored_while_it_is_in_a_window(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, codec: str
) -> None:
    """All texts are one window, and another process stores half of them after the first shard of this one."""

    class Interrupted(Recorder):
        def __init__(self, shards: int) -> None:
            super().__init__()
            self.shards = shards

        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            super().step(stage, done, total, note)
            if self.shards == 0 and space_of(encoder, store, codec).shards:
                self.shards = space_of(encoder, store, codec).shards
                stored_features(inputs[::2], twin, store, Recorder(), codec=codec, states=STATES)

    twin = WatchedEncoder(encoder.model.name_or_path)
    wide = FeatureStore(store.root, WriteSizes(shard_bytes=store.sizes.shard_bytes, fit_tokens=100))
    progress = Interrupted(0)
    features, use = stored_features(inputs, encoder, wide, progress, codec=codec, states=STATES)
    assert 0 < len(twin.read) <= 60
    # Some batches had begun by then.
    twice = set(encoder.read) & set(twin.read)
    assert len(twice) < len(twin.read) and set(encoder.read) | set(twin.read) == set(ids(encoder, inputs))
    assert use.misses == len(encoder.read) < 120 and use.hits == 120 - use.misses
    assert progress.last == (120, 120)
    assert same(values(features), through(codec, encoder, inputs, store))


def test_a_killed_run_resumes_and_keeps_every_finished_shard(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, child: Start, codec: str
) -> None:
    other = child(inputs, codec, 4)
    other.kill()
    space = space_of(encoder, store, codec)
    assert space.shards >= 2
    missing = [pair for pair in inputs if text_key(*pair) not in space]
    assert 0 < len(missing) < len(inputs)
    kept = shards(space)
    # It was killed while it wrote a file: that is left alone for a day.
    young, old = (space.folder / "shards" / f"{name}.features.host-0.partial" for name in ("x", "y"))
    for file in (young, old):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    features, use = stored_features(inputs, encoder, store, Recorder(), codec=codec, states=STATES)
    assert sorted(encoder.read) == ids(encoder, missing)
    assert (use.hits, use.misses) == (len(inputs) - len(missing), len(missing))
    assert kept.items() <= shards(space).items()
    assert leftovers(space) == [young]
    assert same(values(features), through(codec, encoder, inputs, store))


@pytest.mark.parametrize("codec", ["compact"])
def test_writers_wait_for_the_basis_that_another_one_fits(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, child: Start, codec: str
) -> None:
    other = child(inputs[:60], codec, 0)

    class LettingGo(Recorder):
        def say(self, message: str) -> None:
            super().say(message)
            other.let_go()

    progress = LettingGo()
    features, _ = stored_features(inputs[60:], encoder, store, progress, codec=codec, states=STATES)
    assert progress.said == [WAITING]
    other.finish()
    assert len(list(space_of(encoder, store, codec).folder.glob("basis.*"))) == 1
    assert same(values(features), through(codec, encoder, inputs[60:], store))


@pytest.mark.parametrize("codec", ["compact"])
def test_a_writer_killed_while_it_fits_the_basis_holds_nobody_up(
    encoder: WatchedEncoder, inputs: list[TextInput], store: FeatureStore, child: Start, codec: str
) -> None:
    child(inputs[:60], codec, 0).kill()
    progress = Recorder()
    features, use = stored_features(inputs, encoder, store, progress, codec=codec, states=STATES)
    assert WAITING not in progress.said and use.misses == 120
    assert same(values(features), through(codec, encoder, inputs, store))
    assert leftovers(space_of(encoder, store, codec)) == []

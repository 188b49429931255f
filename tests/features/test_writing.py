"""Texts on their way into the store: each is written once, wherever a writer begins, unless another one stores it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ytuning.encoder.encoder import Batches
from ytuning.encoder.tokens import remaining
from ytuning.features.codecs import Codec
from ytuning.features.keys import WantedKeys, text_key
from ytuning.features.store import FeatureSpace, FeatureStore, WriteSizes
from ytuning.features.writing import write_features
from ytuning.progress import Progress

IDENTITY = {"fingerprint": "f" * 32, "width": 3, "name": "tiny", "precision": "fp32", "max_length": 9}


class Counted:
    """A source of texts of one token each, which stand for their positions.

    Attributes:
        asked: the windows that it was asked for.
    """

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(
        self, positions: np.ndarray, codec: Codec | None, left_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Batches]:
        self.asked.append(positions.tolist())
        batches = (
            (batch, positions[batch].astype("<i8").view(np.uint8).reshape(len(batch), 8)[:, :6])
            for batch in remaining(np.arange(len(positions))[:, None], left_out)
        )
        return np.ones(len(positions), np.int64), np.zeros(len(positions), bool), batches


def keys(count: int) -> list[bytes]:
    return [text_key(str(number)) for number in range(count)]


def open_space(root: Path) -> FeatureSpace:
    return FeatureStore(root).space(IDENTITY, (1,), "fp16")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 9), st.integers(6, 60))
def test_every_text_is_written_once_wherever_a_writer_begins(count: int, window: int, others: int, limit: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        space, source = open_space(Path(root)), Counted()
        sizes = WriteSizes(shard_bytes=limit, first_shard_bytes=6, window_texts=window)
        assert write_features(space, keys(count), source, Progress(), sizes, others).all()
        assert sorted(position for part in source.asked for position in part) == list(range(count))
        assert max(map(len, source.asked), default=0) <= window
        assert (len(space), space.tokens) == (count, count)
        rows = space.rows(keys(count))
        assert rows is not None
        for number, (array, start) in enumerate(zip(rows.array, rows.start, strict=True)):
            assert rows.arrays[array][start].tolist() == [number, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("others", "first"), [(0, 0), (1, 500), (2, 250), (3, 750), (4, 125), (7, 875)])
def test_writers_begin_apart(others: int, first: int, tmp_path: Path) -> None:
    source = Counted()
    write_features(open_space(tmp_path), keys(1000), source, Progress(), WriteSizes(window_texts=100), others)
    assert source.asked[0] == list(range(first, min(first + 100, 1000)))
    # A writer that is alone keeps to the order, so that the same texts lie in the same shards.
    assert (source.asked == [list(range(begin, begin + 100)) for begin in range(0, 1000, 100)]) == (others == 0)


def test_what_another_process_stores_meanwhile_is_left_out(tmp_path: Path) -> None:
    """The other one stores the last texts after the first shard."""
    space, other, source = open_space(tmp_path), open_space(tmp_path), Counted()
    made = keys(30)

    class Meanwhile(Progress):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if done == 2:
                theirs = Counted()
                assert write_features(other, made[20:], theirs, Progress(), WriteSizes(), 1).all()

    sizes = WriteSizes(first_shard_bytes=12, shard_bytes=12)
    written = write_features(space, made, source, Meanwhile(), sizes, 0)
    assert np.flatnonzero(written).tolist() == list(range(20))
    assert space.holds(WantedKeys(made)).all() and len(space) == 30

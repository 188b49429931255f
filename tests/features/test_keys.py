"""Keys of texts, and how they are found in the files of shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ytuning.features.keys import KEY_BYTES, KeyFile, WantedKeys, text_key


def test_texts_and_pairs_have_keys_of_their_own() -> None:
    pairs = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc", None),
        ("abc", ""),
        ("", "abc"),
        ("", None),
        ("3:abc", None),
        ("a+bc", None),
    ]
    assert len({text_key(*pair) for pair in pairs}) == len(pairs)
    assert text_key("\u00e9") == text_key("\u00e9", None) != text_key("e\u0301")
    assert len(text_key("a")) == 16


# Digits, the separators, and few letters, so that two different pairs often have the same characters in a row.
scraps = st.text("1:+ab", max_size=5)


@given(*[st.tuples(scraps, st.none() | scraps)] * 2)
def test_equal_keys_mean_equal_texts(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    assert (text_key(*one) == text_key(*other)) == (one == other)


# Keys of few different bytes, so that many share their first half and some their second one.
alike = st.tuples(*[st.sampled_from((b"\0" * 8, b"\0" * 7 + b"\1", b"\1" + b"\0" * 7, b"\xff" * 8))] * 2).map(b"".join)
keys = alike | st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)


def file_of(shard: list[bytes]) -> KeyFile:
    count = len(shard)
    made = KeyFile.of_texts(shard, np.arange(count) + 1, np.arange(count) % 3 == 0)
    return KeyFile.of_bytes(made.to_bytes())


@given(st.lists(keys, unique=True, max_size=30), st.lists(keys, max_size=30), st.data())
def test_keys_are_found_as_in_a_dictionary(shard: list[bytes], others: list[bytes], data: st.DataObject) -> None:
    asked = others + data.draw(st.lists(st.sampled_from(shard), max_size=20) if shard else st.just([]))
    row_of = {key: row for row, key in enumerate(shard)}
    wanted = WantedKeys(asked)
    assert len(wanted) == len(set(asked))
    place, row = wanted.find(file_of(shard))
    found = dict(zip(place.tolist(), row.tolist(), strict=True))
    assert [found.get(where) for where in wanted.place.tolist()] == [row_of.get(key) for key in asked]


def test_keys_are_found_among_many() -> None:
    generator = np.random.default_rng(0)
    shard = [generator.bytes(KEY_BYTES) for _ in range(5000)]
    # Half of the keys that are asked for are there, and one as good as: it shares the first half.
    near = shard[7][:8] + b"another."
    asked = [*shard[::2], *(generator.bytes(KEY_BYTES) for _ in range(2500)), near]
    wanted = WantedKeys(asked)
    place, row = wanted.find(file_of(shard))
    found = dict(zip(place.tolist(), row.tolist(), strict=True))
    assert [found.get(where) for where in wanted.place.tolist()] == [*range(0, 5000, 2), *[None] * 2501]


def test_a_file_keeps_the_columns_of_its_texts() -> None:
    shard = [text_key(str(number)) for number in range(10)]
    texts = file_of(shard)
    assert texts.length.tolist() == list(range(1, 11)) and texts.truncated.tolist() == [1, 0, 0] * 3 + [1]
    assert sorted(texts.row.tolist()) == list(range(10))
    assert (np.diff(texts.first.astype(object)) > 0).all()
    assert len(texts.to_bytes()) == 25 * 10


def test_a_file_of_another_size_is_none() -> None:
    with pytest.raises(ValueError, match="26 bytes are no whole number of texts"):
        KeyFile.of_bytes(b"0" * 26)

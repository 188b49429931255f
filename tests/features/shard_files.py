"""What tests read from the files of shards by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ytuning.features.keys import KeyFile, text_key
from ytuning.features.store import FeatureSpace

SUFFIXES = (".features", ".keys", ".json")


def keys_of(file: Path) -> set[bytes]:
    """The keys in a file of keys."""
    texts = KeyFile.of_bytes(file.read_bytes())
    halves = np.stack((texts.first, texts.second), axis=1).astype("<u8")
    return {row.tobytes() for row in halves}


def shard_of(space: FeatureSpace, text: str, pair: str | None = None) -> str:
    """Name of the shard that holds a text or a pair."""
    key = text_key(text, pair)
    (file,) = (file for file in (space.folder / "shards").glob("*.keys") if key in keys_of(file))
    return file.stem

"""Some rows of a task, whose features fit in memory, on which a choice is measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ytuning.codecs import row_bytes
from ytuning.data import Dataset
from ytuning.encoder import Encoder
from ytuning.errors import DataError
from ytuning.holdout import split_holdout
from ytuning.progress import Progress

__all__ = ["HELD_OUT", "SampleProgress", "sample_rows"]

SAMPLE_TEXTS = 2000
SAMPLE_BYTES = 512 << 20  # of the sample's features, which are held in memory
HELD_OUT = 0.2  # share of the sample that heads are measured on


def sample_rows(train: Dataset, seed: int, encoder: Encoder) -> Dataset:
    """Rows of ``train`` in about the labels' shares, so many that their features fit in memory."""
    some = train.select(range(0, len(train), max(1, len(train) // 256)))
    tokens = encoder.tokenize(some.inputs).lengths.mean()
    most = int(SAMPLE_BYTES / (tokens * row_bytes("fp16", len(encoder.identity.layers), encoder.identity.width)))
    most = max(2, min(SAMPLE_TEXTS, most))
    if len(train) <= most:
        return train
    try:
        # The sample need not hold whole groups: it is split once more, and that split keeps them together.
        _, chosen = split_holdout(replace(train, groups=None), seed, fraction=most / len(train), most=most)
    except DataError:  # hardly a label occurs twice: there are no shares to keep
        chosen = np.arange(most)
    return train.select(chosen)


class SampleProgress(Progress):
    """Tells the training on the sample apart from the task's own."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Whatever the stage, it is the sample's."""
        self.progress.step("sample", done, total, note)

    def say(self, message: str) -> None:
        """Passed on."""
        self.progress.say(message)

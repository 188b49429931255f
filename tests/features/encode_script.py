"""Target of a subprocess: encode texts through a store up to some batch, and go on when that is allowed.

usage: python encode_script.py SETTINGS.json

The settings are those of `Settings`. It prints the texts that were stored and those that were not, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ytuning.encoder.encoder import Batches, Encoder, Finish, load_encoder
from ytuning.encoder.tokens import TokenizedTexts
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore, WriteSizes
from ytuning.progress import Progress


@dataclass(frozen=True)
class Settings:
    """What to encode, and when to wait.

    Attributes:
        encoder: its folder.
        store: root of the store.
        texts: single texts.
        codec: in which they are kept.
        shard_bytes: size of a shard.
        window_texts: size of a window.
        hold_at: the batch that is not handed on before the file ``gate`` exists.
        log: file that gets the token ids of each text that was handed on.
        held: file that it makes when it waits.
        gate: file that ends the waiting.
    """

    encoder: str
    store: str
    texts: list[str]
    codec: str
    shard_bytes: int
    window_texts: int
    hold_at: int
    log: str
    held: str
    gate: str


class HeldEncoder(Encoder):
    """An encoder that logs what it reads, and stops at a batch until a file exists."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        vars(self).update(vars(encoder))
        self.tokens_per_batch, self.settings, self.batches = 64, settings, 0

    def encode(
        self,
        tokens: TokenizedTexts,
        states: Sequence[int],
        finish: Finish | None = None,
        left_out: np.ndarray | None = None,
    ) -> Batches:
        for batch, features in super().encode(tokens, states, finish, left_out):
            if self.batches == self.settings.hold_at:
                Path(self.settings.held).touch()
                while not Path(self.settings.gate).exists():
                    time.sleep(0.005)
            self.batches += 1
            with Path(self.settings.log).open("a") as stream:
                for text in batch:
                    print(json.dumps(tokens.ids[slice(*tokens.offsets[text : text + 2])].tolist()), file=stream)
            yield batch, features


def main() -> None:
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text()))
    inputs = [(text, None) for text in settings.texts]
    encoder = HeldEncoder(load_encoder(settings.encoder, precision="fp32", device="cpu"), settings)
    sizes = WriteSizes(shard_bytes=settings.shard_bytes, window_texts=settings.window_texts, fit_tokens=100)
    store = FeatureStore(settings.store, sizes)
    _, use = stored_features(inputs, encoder, store, Progress(), states=(2, 3), codec=settings.codec)
    print(json.dumps([use.hits, use.misses]))


if __name__ == "__main__":
    main()

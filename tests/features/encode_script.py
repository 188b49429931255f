"""Target of a subprocess: encode the texts of a file through a store, slowly, so that it can be met or killed midway.

usage: python encode_script.py ENCODER STORE TEXTS.json LOG SHARD_BYTES SECONDS_PER_BATCH CODEC
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ytuning.encoder.encoder import Batches, Encoder, Finish, load_encoder
from ytuning.encoder.tokens import TokenizedTexts
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore, WriteSizes
from ytuning.progress import Progress


class SlowEncoder(Encoder):
    """An encoder that takes some seconds for a batch and logs the token ids of the texts that it has read."""

    def __init__(self, encoder: Encoder, seconds: float, log: Path) -> None:
        vars(self).update(vars(encoder))
        self.tokens_per_batch, self.seconds, self.log = 64, seconds, log

    def encode(self, tokens: TokenizedTexts, states: Sequence[int], finish: Finish | None = None) -> Batches:
        for batch, features in super().encode(tokens, states, finish):
            time.sleep(self.seconds)
            with self.log.open("a") as stream:
                for text in batch:
                    start, stop = tokens.offsets[text : text + 2]
                    print(json.dumps(tokens.ids[start:stop].tolist()), file=stream)
            yield batch, features


def main() -> None:
    folder, root, texts, log, shard_bytes, seconds, codec = sys.argv[1:]
    inputs = [(text, None) for text in json.loads(Path(texts).read_text())]
    encoder = SlowEncoder(load_encoder(folder, precision="fp32", device="cpu"), float(seconds), Path(log))
    store = FeatureStore(root, WriteSizes(shard_bytes=int(shard_bytes), fit_tokens=100))
    _, use = stored_features(inputs, encoder, store, Progress(), states=(2, 3), codec=codec)
    print(json.dumps([use.hits, use.misses]))


if __name__ == "__main__":
    main()

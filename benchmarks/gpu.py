"""Everything that is measured on a GPU, in order of worth, on a machine that has nothing of ours and no network.

scripts/gpu-wheels FOLDER                   (here: what that machine lacks, as wheels)
python -m benchmarks.gpu --out results --data sets --tokenizers tokenizers
python -m benchmarks.gpu --shape tiny --device cpu --max-steps 2 --texts 64

The first stage, ``check``, proves in a minute that encoding, the store, training and prediction on the GPU give what
the CPU gives; the figures follow. Each stage is a process of its own with a limit of its own, and each figure is
written to ``gpu_STAGE.json`` as soon as it is there.

Weights are random, built from a config, so scores mean nothing and nothing is downloaded. At the paper's shape texts
are of one length, so that nothing is padded. Y-Tuning reads each text once and trains a head over the store for 10
epochs; the others train for as many epochs, of which a number of steps are timed ("extrapolated": true). At the two
real shapes texts are those of a data set, cut by the published tokenizers where these are given (a folder of each).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from benchmarks.harness import bar, in_turn, parser, planned_seconds, rows_of, seconds
from benchmarks.limits import copy_rate, matrix_rate, multiply_adds, share
from benchmarks.machine import machine, record
from ytuning.compare.fine_tuning import TunedEncoder, TuningConfig, TuningRows, full_fine_tuning, lora
from ytuning.data.dataset import TextInput
from ytuning.data.kinds import SingleLabel
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.features.features import CacheUse, Features, live_features, stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.training.fit import HeadJob, fit_heads, logits_of
from ytuning.training.recipes import preset

DEBERTA: dict[str, Any] = {
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
}
"""What the published DeBERTa-v2-XXL has beside its sizes."""
XXL = {"hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24, "intermediate_size": 6144}
TINY = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 256}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
MPNET = {"max_position_embeddings": 514, "vocab_size": 30_527, "pad_token_id": 1}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "xxl": ("deberta-v2", {**DEBERTA, **XXL, "vocab_size": 128_100}),
    "xxl-bert": ("bert", {**XXL, "vocab_size": 128_100, "max_position_embeddings": 512}),
    "all-MiniLM-L6-v2": ("bert", {**SMALL, "vocab_size": 30_522, "max_position_embeddings": 512}),
    "all-mpnet-base-v2": ("mpnet", {**BASE, **MPNET}),
    "tiny": ("deberta-v2", {**DEBERTA, **TINY, "vocab_size": 1100}),
    "tiny-bert": ("bert", {**TINY, "vocab_size": 1100, "max_position_embeddings": 512}),
    "tiny-mpnet": ("mpnet", {**TINY, **MPNET, "vocab_size": 1100}),
}
"""A shape's name -> model type and config. BERT's layers at the paper's shape lack what DeBERTa's have beside them."""

WORDS = 1000
LABELS = 4
TOLERANCE = {"fp32": 2e-3, "bf16": 3e-2}
"""Of the GPU's features, as a share of their norm, against the CPU's in fp32: float16's rounding, and bf16's."""
STAGES: dict[str, int] = {"check": 60, "passes": 125, "costs": 150, "real_shapes": 150, "served": 60, "attention": 40}
"""Stage -> seconds after which it is ended on a GPU; what it has written by then stays."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, data=False, encoder=False, rounds=3)
    options.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="to run, in their order")
    options.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options.add_argument("--data", type=Path, help="folder of data sets; without it texts are made up")
    options.add_argument("--tokenizers", type=Path, help="a folder for each real shape; without it words are made up")
    options.add_argument("--shape", choices=("xxl", "tiny"), default="xxl")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--texts", type=int, default=4096, help="at the paper's shape")
    options.add_argument("--tokens", type=int, default=128, help="of each of them")
    options.add_argument("--real-texts", type=int, default=20_000, help="at the real shapes")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--batch-size", type=int, default=32, help="of what trains the encoder")
    options.add_argument("--max-steps", type=int, default=20, help="of what trains the encoder, to extrapolate from")
    arguments = options.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        reason = "there is no GPU on this machine; its figures are missing"
        record("gpu", {"skipped": reason}, arguments.out, bars({}))
        return
    if arguments.stage:
        globals()[arguments.stage](arguments)
        return
    if arguments.out is None:
        options.error("--out is needed: the folder for the JSON files")
    figures: dict[str, Any] = {}
    for name in arguments.stages:
        limit = STAGES[name] if arguments.device == "cuda" else None
        figures[name] = run_stage(name, list(argv if argv is not None else sys.argv[1:]), arguments.out, limit)
    record("gpu", figures, arguments.out, bars(figures))


def run_stage(name: str, argv: list[str], out: Path, limit: int | None) -> dict[str, Any]:
    """A stage's figures, as far as it came within its limit of seconds."""
    file = out / f"gpu_{name}.json"
    file.unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", *argv, "--stage", name], timeout=limit, check=False,
            stdout=2,  # progress is no result
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        ended = None
    found = json.loads(file.read_text())["figures"] if file.exists() else {}
    return {**found, "exit_status": ended, "stage_seconds": time.perf_counter() - start}


class Figures(dict[str, Any]):
    """A stage's figures, which are written to its file with each that is added."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__()
        self._file = folder / f"gpu_{name}.json"
        folder.mkdir(parents=True, exist_ok=True)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._file.write_text(json.dumps({"machine": machine(), "figures": self}, indent=1) + "\n")
        print(key, json.dumps(value), file=sys.stderr, flush=True)


# --- encoders with random weights ------------------------------------------------------------------------------------


@contextmanager
def made_encoder(shape: str, arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder of an encoder with random weights, in memory where the system has a folder there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and arguments.device == "cuda" else None) as root:
        build(Path(root), shape, arguments)
        yield Path(root)


def build(folder: Path, shape: str, arguments: argparse.Namespace) -> None:
    """Save an encoder with random weights, and its tokenizer or one of made-up words."""
    kind, form = SHAPES[shape]
    config = transformers.AutoConfig.for_model(kind, **form)
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = transformers.AutoModel.from_config(config)
    model.to(torch.bfloat16 if arguments.device == "cuda" else torch.float32).save_pretrained(folder)
    published = arguments.tokenizers / shape if arguments.tokenizers else None
    if published is not None and published.is_dir():
        for file in published.iterdir():
            shutil.copy(file, folder)
        return
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


def loaded(folder: Path, arguments: argparse.Namespace, **options: Any) -> Encoder:
    """The encoder in bf16 on the GPU, or as the CPU is fastest."""
    precision = "bf16" if arguments.device == "cuda" else "auto"
    return load_encoder(folder, **{"precision": precision, "device": arguments.device, **options})


def made_texts(count: int, tokens: int | None, seed: int = 0) -> tuple[list[TextInput], np.ndarray]:
    """Texts of so many tokens (None: of any length, as short messages have) and labels that their words tell."""
    generator = np.random.default_rng(seed)
    lengths = generator.lognormal(3.0, 0.6, count).clip(1, 200) if tokens is None else np.full(count, tokens - 2)
    labels = np.arange(count) % LABELS
    texts = [
        " ".join(f"w{word}" for word in generator.integers(WORDS // LABELS, size=int(length)) * LABELS + label)
        for length, label in zip(lengths, labels, strict=True)
    ]
    return [(text, None) for text in texts], labels


# --- check -----------------------------------------------------------------------------------------------------------


def check(arguments: argparse.Namespace) -> None:
    """Encode, store, train and predict at a small shape, against the CPU in fp32. Raises AssertionError."""
    figures = Figures("check", arguments.out)
    inputs, labels = made_texts(600, None)
    rows = np.arange(500), np.arange(500, 600)
    for shape in ("tiny-bert", "tiny-mpnet", "tiny"):
        with made_encoder(shape, arguments) as folder:
            exact = load_encoder(folder, precision="fp32", device="cpu")
            wanted = all_tokens(exact, inputs)
            found = {}
            for precision, tolerance in TOLERANCE.items():
                encoder = loaded(folder, arguments, precision=precision)
                features = all_tokens(encoder, inputs)
                found[f"error_{precision}"] = error = float((features - wanted).norm() / wanted.norm())
                alone = torch.cat([all_tokens(encoder, [text]) for text in inputs[:20]])
                found[f"alone_{precision}"] = float((alone - features[: len(alone)]).abs().max())
                figures[shape] = {**found, "states": type(encoder.backend).__name__}
                assert error < tolerance, f"{shape}: {precision} differs by {error} of the norm"
            with tempfile.TemporaryDirectory() as root:
                stored, use = into_store(inputs, encoder, root)
                again, use_again = into_store(inputs, encoder, root)
                assert (use.misses, use_again.misses) == (len(inputs), 0)
                fit = partial(fit_heads, train=rows[0], validation=rows[1], device=encoder.device)
                fits = [
                    fit(part, [HeadJob(SingleLabel.fit(labels.tolist(), None), labels, short())])[0]
                    for part in (stored, again)
                ]
                first, second = (logits_of(fit.head, stored) for fit in fits)
                chosen = logits_of(fits[0].chosen_head, stored)[rows[1]]
            figures[shape] = {
                **figures[shape],
                "validation_accuracy": fits[0].history[-1].score,
                "same_bytes_twice": np.array_equal(first, second),
                "cpu_logits_differ_by": float(np.abs(chosen - fits[0].validation_logits).max()),
            }
            assert np.array_equal(first, second), "the same training gave another head"
            assert fits[0].history[-1].score > 0.9


def into_store(inputs: list[TextInput], encoder: Encoder, root: str) -> tuple[Features, CacheUse]:
    """Features of the default hidden states through a store."""
    return stored_features(inputs, encoder, FeatureStore(root), Progress(), states=encoder.resolve_states(None))


def all_tokens(encoder: Encoder, inputs: list[TextInput]) -> torch.Tensor:
    """(tokens, L, D) float32 of all texts, in order."""
    features = live_features(inputs, encoder, states=encoder.resolve_states(None))
    return features.tokens(torch.arange(len(features)))


def short() -> Any:
    """The default recipe for a few steps."""
    default = preset("default")
    return replace(default, training=replace(default.training, fewest_steps=100, most_steps=100))


def attention(arguments: argparse.Namespace) -> None:
    """Milliseconds of one layer's attention at the paper's shape, by form, tile, warps and stages."""
    from torch.nn.attention.varlen import varlen_attn
    from triton.testing import do_bench

    from ytuning.encoder import gpu_kernels
    from ytuning.encoder.packed import BLOCK, PRODUCT_BLOCK, ROWS, Distances, pack

    figures = Figures("attention", arguments.out)
    device, width, heads = torch.device("cuda"), 1536, 24

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    texts = {"128 tokens": np.full(256, 128), "5 to 68 tokens": np.sort(np.arange(1024) % 64 + 5)}
    products = Distances(keys=random(ROWS, width), queries=random(ROWS, width))
    tiles = [(PRODUCT_BLOCK, 4, 2), (BLOCK, 4, 2), (PRODUCT_BLOCK, 4, 3), (PRODUCT_BLOCK, 2, 2), (BLOCK, 8, 3)]
    for name, lengths in texts.items():
        projected = random(int(lengths.sum()), 3 * width)
        parts = [part.unflatten(1, (heads, -1)) for part in projected.split(width, 1)]
        packing, longest = pack(lengths, lambda values: values.to(device)), int(lengths.max())
        ends = packing.offsets
        theirs = partial(varlen_attn, parts[0], parts[1], parts[2], ends, ends, longest, longest)
        figures[f"{name}, varlen_attn"] = do_bench(theirs, warmup=5, rep=20, return_mode="median")
        for form, distances, tried in (("plain", None, tiles[1:2]), ("products", products, tiles)):
            for block, warps, gpu_kernels.STAGES in tried:
                gpu_kernels.WARPS = gpu_kernels.PRODUCT_WARPS = warps
                packing = pack(lengths, lambda values: values.to(device), block)
                ours = partial(gpu_kernels.packed_attention, projected, packing, heads, scale=0.1, distances=distances)
                key = f"{name}, {form}, tile {block}, {warps} warps, {gpu_kernels.STAGES} stages"
                figures[key] = do_bench(ours, warmup=5, rep=20, return_mode="median")


# --- the paper's shape -----------------------------------------------------------------------------------------------


def passes(arguments: argparse.Namespace) -> None:
    """The encoder pass at the paper's shape, with BERT's attention and with DeBERTa's own."""
    figures = Figures("passes", arguments.out)
    inputs, _ = made_texts(arguments.texts, arguments.tokens)
    figures["memory_bytes_per_second"] = copy_rate(torch.device(arguments.device), 1 << 28)
    for shape in (f"{arguments.shape}-bert", arguments.shape):
        with made_encoder(shape, arguments) as folder:
            encoder = loaded(folder, arguments)
            figures[shape] = {
                "parameters": encoder.identity.parameters,
                "layers_computed": max(encoder.resolve_states(None)),
                "precision": encoder.identity.precision,
                "states": type(encoder.backend).__name__,
                "texts": arguments.texts,
                "tokens_in_text": arguments.tokens,
                **encoder_pass(encoder, inputs, arguments.rounds),
            }
            figures[f"{shape}: seconds by tokens a batch"] = by_batch(encoder, inputs)


def by_batch(encoder: Encoder, inputs: list[TextInput]) -> dict[int, dict[str, float]]:
    """Tokens that are computed at once -> the best of two passes in memory, and the GPU's peak memory of it."""
    tokens, chosen, found = encoder.tokenize(inputs), encoder.tokens_per_batch, {}
    for size in (chosen // 4, chosen // 2, chosen, 2 * chosen):
        encoder.tokens_per_batch = size
        reset_peak(encoder)
        passes = [
            seconds(lambda: [None for _ in encoder.encode(tokens, encoder.resolve_states(None))]) for _ in range(2)
        ]
        found[size] = {"seconds": min(passes), "peak_bytes": peak_bytes(encoder) or 0}
    encoder.tokens_per_batch = chosen
    return found


def encoder_pass(encoder: Encoder, inputs: list[TextInput], rounds: int) -> dict[str, Any]:
    """Tokens a second from token ids to features in the host's memory, and of the pass into a store."""
    tokens = encoder.tokenize(inputs)

    def compute() -> float:
        return seconds(lambda: [None for _ in encoder.encode(tokens, encoder.resolve_states(None))])

    def store() -> float:
        with tempfile.TemporaryDirectory() as root:
            return seconds(lambda: into_store(inputs, encoder, root))

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
            "texts_per_second": len(inputs) / took,
            "tokens_per_second": count / took,
            **share(work, took, statistics.median(limits)),
            "seconds": found[name],
        }
        for name, took in elapsed.items()
    }


def costs(arguments: argparse.Namespace) -> None:
    """Seconds and peak memory of Y-Tuning, full fine-tuning and LoRA at the paper's shape."""
    figures = Figures("costs", arguments.out)
    inputs, targets = made_texts(arguments.texts, arguments.tokens)
    order = np.random.default_rng(0).permutation(arguments.texts)
    rows = order[: arguments.texts * 9 // 10], order[arguments.texts * 9 // 10 :]
    for shape in (arguments.shape, f"{arguments.shape}-bert"):
        with made_encoder(shape, arguments) as folder:
            encoder = loaded(folder, arguments)
            few = np.arange(min(512, len(inputs)))  # which warm it up
            y_tuning(encoder, inputs[: len(few)], targets[: len(few)], (few[:-20], few[-20:]), arguments)
            # As the command does; the others train a copy of their own, which should have the memory for itself.
            figures[f"{shape}: y_tuning"] = y_tuning(encoder, inputs, targets, rows, arguments, release=True)
            for name, train, rate in (("full_fine_tuning", full_fine_tuning, 2e-5), ("lora", lora, 1e-3)):
                figures[f"{shape}: {name}"] = encoder_training(train, rate, encoder, inputs, targets, rows, arguments)


def y_tuning(
    encoder: Encoder,
    inputs: list[TextInput],
    targets: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
    arguments: argparse.Namespace,
    *,
    release: bool = False,
) -> dict[str, Any]:
    """One encoder pass, then all epochs over the store, before which the encoder's weights may be let go."""
    default = preset("default")
    steps = {"epochs": arguments.epochs, "fewest_steps": 1, "most_steps": 1 << 30, "patience": 1 << 30}
    recipe = replace(default, training=replace(default.training, **steps))
    with tempfile.TemporaryDirectory() as root:
        reset_peak(encoder)
        start = time.perf_counter()
        features = into_store(inputs, encoder, root)[0]
        encode, encode_peak = time.perf_counter() - start, peak_bytes(encoder)
        if release:
            encoder.release()
        job = HeadJob(SingleLabel.fit(targets.tolist(), None), targets, recipe)
        fit_heads(features, [job], train=rows[0], validation=rows[1], refit=False, device=encoder.device)
        total = time.perf_counter() - start
    return cost(total, encoder, arguments) | {
        "seconds_encode": encode,
        "seconds_head": total - encode,
        "peak_bytes_encode": encode_peak,
    }


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
            result = train(
                encoder, TuningRows(SingleLabel.fit(targets.tolist(), None), inputs, targets, *rows), config=config
            )
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
    tokens = arguments.epochs * arguments.texts * arguments.tokens
    return {
        "seconds": elapsed,
        "tokens_per_second": tokens / elapsed,
        "peak_bytes": peak_bytes(encoder),
        "extrapolated": False,
    }


def peak_bytes(encoder: Encoder) -> int | None:
    """The most memory of the GPU that was taken since :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated() if encoder.device.type == "cuda" else None


def reset_peak(encoder: Encoder) -> None:
    """Start the measurement of the GPU's peak memory anew."""
    if encoder.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# --- the real shapes, and serving ------------------------------------------------------------------------------------


def real_shapes(arguments: argparse.Namespace) -> None:
    """The encoder pass at the two real encoders' shapes beside sentence-transformers', both in bf16."""
    figures = Figures("real_shapes", arguments.out)
    if arguments.data is None:
        inputs, _ = made_texts(arguments.real_texts, None)
    else:
        inputs = [(text, None) for text in dict.fromkeys(rows_of(arguments.data / "ag_news", "train").texts)]
        inputs = inputs[: arguments.real_texts]
    for shape in ("all-MiniLM-L6-v2", "all-mpnet-base-v2"):
        with made_encoder(shape, arguments) as folder:
            (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": false}')
            figures[shape] = beside_sentence_transformers(folder, inputs, arguments)


def beside_sentence_transformers(
    folder: Path, inputs: list[TextInput], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Texts a second of both, in turn; of sentence-transformers those of its best batch size, and it stores nothing."""
    from sentence_transformers import SentenceTransformer

    encoder = loaded(folder, arguments)
    dtype = {"torch_dtype": "bfloat16" if arguments.device == "cuda" else "float32"}
    opponent = SentenceTransformer(str(folder), device=arguments.device, model_kwargs=dtype)
    opponent.max_seq_length = encoder.identity.max_length
    texts = [text for text, _ in inputs]

    def store() -> float:
        with tempfile.TemporaryDirectory() as root:
            return seconds(lambda: into_store(inputs, encoder, root))

    def theirs(size: int, value: str) -> float:
        return seconds(lambda: opponent.encode(texts, batch_size=size, output_value=value, show_progress_bar=False))

    sizes = {size: theirs(size, "sentence_embedding") for size in (32, 128, 512)}
    best = min(sizes, key=lambda size: sizes[size])
    seconds(lambda: live_features(inputs, encoder, states=encoder.resolve_states(None)))
    tokens = encoder.tokenize(inputs)
    found = in_turn(
        arguments.rounds,
        {
            "tokenize": lambda: seconds(lambda: encoder.tokenize(inputs)),
            "compute": lambda: seconds(lambda: [None for _ in encoder.encode(tokens, encoder.resolve_states(None))]),
            "memory": lambda: seconds(lambda: live_features(inputs, encoder, states=encoder.resolve_states(None))),
            "store": store,
            "sentence_embeddings": lambda: theirs(best, "sentence_embedding"),
            "token_embeddings": lambda: theirs(best, "token_embeddings"),
        },
    )
    middle = {name: statistics.median(values) for name, values in found.items()}
    rate = matrix_rate(encoder)
    return {
        "texts": len(texts),
        "tokens": int(tokens.lengths.sum()),
        "states": type(encoder.backend).__name__,
        "their_batch_size": best,
        "their_seconds_by_batch_size": sizes,
        "texts_per_second": {name: len(texts) / took for name, took in middle.items()},
        "ratio_in_memory": middle["sentence_embeddings"] / middle["memory"],
        "ratio_into_store": middle["token_embeddings"] / middle["store"],
        "seconds": found,
        **share(multiply_adds(encoder, tokens.lengths), middle["compute"], rate),
    }


def served(arguments: argparse.Namespace) -> None:
    """Requests a second of a server with one task on the small real shape, of 64 clients in one process."""
    from benchmarks import serving

    figures = Figures("served", arguments.out)
    with made_encoder("all-MiniLM-L6-v2", arguments) as folder, tempfile.TemporaryDirectory() as root:
        arguments.encoder, arguments.head_steps, arguments.tasks = str(folder), 50, 1
        texts = serving.make_tasks(Path(root), arguments)

        async def measured() -> dict[str, Any]:
            with serving.running(["serve", str(Path(root) / "tasks" / "task0")]) as server:
                await server.ready()
                serving.LAST_TEXTS[:] = texts
                await serving.load(server, None, ["task0"], serving.CLIENTS, 2)
                one = await serving.load(server, None, ["task0"], serving.CLIENTS, 8)
                many = await serving.load(server, None, ["task0"], 16, 8, size=64)
                return {"one_text": one.figures(), "64_texts": many.figures(), "texts_a_second": 64 * many.rate}

        figures["served"] = asyncio.run(measured())


def bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wanted on a GPU; without a figure of the paper's shape, bars without figures."""

    def at(*keys: str) -> float | None:
        found: Any = figures
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def ratio(kind: str) -> float | None:
        ours, full = (at("costs", f"xxl: {name}", kind) for name in ("y_tuning", "full_fine_tuning"))
        return ours / full if ours and full else None

    place = ("compute", "share_of_limit")
    return [
        bar("GPU: encoder pass, XXL's shape, BERT's attention, share of the bf16 product rate",
            at("passes", "xxl-bert", *place), at_least=0.55),
        bar("GPU: encoder pass, XXL's shape, DeBERTa's attention, share of the bf16 product rate",
            at("passes", "xxl", *place), at_least=0.4),
        bar("GPU: Y-Tuning's seconds against full fine-tuning, 10 epochs", ratio("seconds"), at_most=1 / 25),
        bar("GPU: Y-Tuning's peak memory against full fine-tuning", ratio("peak_bytes"), at_most=1 / 8),
        *(
            bar(f"GPU: {shape}, texts a second against sentence-transformers, {name.replace('_', ' ')}",
                at("real_shapes", shape, f"ratio_{name}"), at_least=1.5)
            for shape in ("all-MiniLM-L6-v2", "all-mpnet-base-v2")
            for name in ("in_memory", "into_store")
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()

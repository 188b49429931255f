"""``auto``: the smallest codec that loses no more than its bar, and what is said about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ytuning import codec_choice as module
from ytuning import samples
from ytuning.codec_choice import CodecChoice, choose_codec
from ytuning.codecs import Half
from ytuning.data import Dataset, from_lists, labels_of
from ytuning.encoder import Encoder, load_encoder
from ytuning.errors import InputError
from ytuning.features import Features, live_features
from ytuning.head import PooledConfig
from ytuning.pipeline import train_task
from ytuning.progress import Progress
from ytuning.recipes import Recipe, TrainingConfig
from ytuning.samples import sample_rows
from ytuning.store import FeatureStore, StoredRows, text_key
from ytuning.targets import Target, fit_target
from ytuning.tokens import TokenizedTexts
from ytuning.training import fit_head, logits_of

RECIPE = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=30, most_steps=30))


class Recorder(Progress):
    """Keeps what is said, and the stages."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: set[str] = set()

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.stages.add(stage)

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture
def toy(toy_rows: tuple[list[str], list[str]]) -> Dataset:
    return from_lists(*toy_rows)


def target_of(data: Dataset) -> Target:
    return fit_target(data.kind, labels_of(data))


def choose(data: Dataset, encoder: Encoder, seed: int = 0) -> CodecChoice:
    return choose_codec(data, encoder, FeatureStore(), RECIPE, seed=seed, progress=Progress(), target=target_of(data))


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        (
            [24, 24],
            "store: compact, 0.27 x the bytes of fp16; on 24 held-out rows of a sample 100.0 against 100.0 in fp16",
        ),
        (
            [24, 23, 24],
            "store: int8, 0.53 x the bytes of fp16; on 24 held-out rows of a sample 100.0 against 100.0 in fp16",
        ),
        (
            [24, 22, 23],
            "store: fp16, as the others lose too much; on 24 held-out rows of a sample 100.0 against 95.8 in int8",
        ),
    ],
)
def test_the_smallest_codec_within_its_bar(
    toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, correct: list[int], message: str
) -> None:
    counts = iter(correct)  # of 24 held-out rows: in fp16, compact, int8

    def scores(objective: object, logits: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return (torch.arange(len(goal)) < next(counts)).double()

    monkeypatch.setattr(module, "row_scores", scores)
    found = choose(toy, encoder)
    assert found.message == message
    assert message.startswith(f"store: {found.codec}, ")
    (space,) = FeatureStore().spaces()
    assert (space.codec_name, len(space), found.written) == (found.codec, 120, 120)


def test_what_was_encoded_is_kept_and_counted_as_encoded(
    toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SAMPLE_TEXTS", 60)
    encoded: list[int] = []
    encode = Encoder.encode

    def counted(self: Encoder, tokens: TokenizedTexts, finish: Any = None) -> object:
        encoded.append(len(tokens.lengths))
        return encode(self, tokens, finish)

    monkeypatch.setattr(Encoder, "encode", counted)
    progress = Recorder()
    trained = train_task(toy, encoder, FeatureStore(), RECIPE, codec="auto", progress=progress)
    assert encoded == [60, 60]  # the sample, then the rest
    assert (trained.cache.hits, trained.cache.misses) == (0, 120)
    assert len(FeatureStore().spaces()) == 1
    assert trained.task.codec == FeatureStore().spaces()[0].codec_name
    (said,) = [line for line in progress.said if line.startswith("store: ")]
    percent = r"\d+\.\d"
    assert re.fullmatch(
        rf"store: {trained.task.codec}, .*; on 12 held-out rows of a sample {percent} against {percent} in \w+", said
    )
    assert progress.stages == {"sample", "encode", "train", "refit"}
    again = train_task(toy, encoder, FeatureStore(), RECIPE, codec="auto")
    assert (again.cache.hits, again.cache.misses, again.task.codec) == (120, 0, trained.task.codec)


def test_the_sample_has_the_shares_of_the_labels_and_fits_in_memory(
    toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SAMPLE_TEXTS", 60)
    labels = toy.names
    sample = sample_rows(toy, 0, encoder)
    for label in set(labels):
        assert abs(sample.labels.count(label) - labels.count(label) / 2) <= 1  # type: ignore[union-attr]
    tokens = float(encoder.tokenize(toy.inputs).lengths.mean())
    monkeypatch.setattr(samples, "SAMPLE_BYTES", int(30 * tokens * 2 * 2 * 32) + 1)
    assert len(sample_rows(toy, 0, encoder)) == 30
    assert sample_rows(toy, 0, encoder).texts == sample_rows(toy, 0, encoder).texts
    assert sample_rows(toy, 1, encoder).texts != sample_rows(toy, 0, encoder).texts


@pytest.mark.parametrize("name", ["fp16", "int8", "compact"])
def test_a_codec_is_measured_on_what_it_gives_back(toy: Dataset, encoder: Encoder, name: str) -> None:
    features = live_features(toy.inputs, encoder)
    rows, held = np.arange(90), np.arange(90, 120)[::-1].copy()
    truth = np.unique(toy.names, return_inverse=True)[1]
    fit = fit_head(features, truth, train=rows, validation=held, recipe=RECIPE, refit=False, reduce=False)
    found = module._through(name, fit, features, rows, held)
    assert np.allclose(found, fit.validation_logits, rtol=0, atol={"fp16": 1e-5, "int8": 0.2, "compact": 3}[name])
    if name != "fp16":
        assert np.abs(found - fit.validation_logits).max() > 1e-4
    assert np.array_equal(logits_of(fit.head, features)[held].argmax(1), fit.validation_logits.argmax(1))


def test_the_same_choice_again(toy: Dataset, encoder: Encoder) -> None:
    first = choose(toy, encoder)
    FeatureStore().remove()
    assert choose(toy, encoder) == first
    assert all(text_key(*pair) in FeatureStore().spaces()[0] for pair in toy.inputs)


def test_where_no_row_can_be_held_out_nothing_is_risked(encoder: Encoder) -> None:
    found = choose(from_lists(["my card", "a login", "the refund"], ["card", "login", "refund"]), encoder)
    assert found.message == "store: fp16, as no label has rows enough to hold one out and measure"
    assert (found.codec, found.written) == ("fp16", 3)


def test_an_interrupted_measurement_is_none(toy: Dataset, encoder: Encoder) -> None:
    class Interrupt(Progress):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "sample" and done == 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose_codec(toy, encoder, FeatureStore(), RECIPE, seed=0, progress=Interrupt(), target=target_of(toy))
    assert FeatureStore().spaces() == []


def test_an_unknown_codec_is_refused_before_encoding(toy: Dataset, encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"store must be one of 'fp16', 'int8', 'compact', 'auto'\. Got 'x' instead\."):
        train_task(toy, encoder, FeatureStore(), RECIPE, codec="x")
    assert FeatureStore().spaces() == []


def test_a_codec_that_drops_what_tells_the_labels_apart_is_not_taken() -> None:
    # Sixteen numbers of a token are noise; one of the others, far weaker, is the label. Compact keeps sixteen.
    generator = np.random.default_rng(0)
    count, tokens = 200, 3
    truth = generator.integers(2, size=count)
    values = np.zeros((count, tokens, 32), np.float32)
    values[..., :16] = generator.normal(0, 5, (count, tokens, 16))
    values[..., 31] = truth[:, None] - 0.5
    codec = Half(1, 32)
    array = codec.encode(torch.from_numpy(values.reshape(-1, 1, 32).astype(np.float16))).numpy()
    lengths, places = np.full(count, tokens), np.arange(count) * tokens
    stored = StoredRows([array], np.zeros(count, np.int64), places, lengths, np.zeros(count, bool), codec)
    sample = from_lists([f"text {row}" for row in range(count)], [str(label) for label in truth])
    recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=300, most_steps=300, learning_rate=1e-2))
    rows, held = np.arange(150), np.arange(150, 200)
    features = Features(stored, torch.float32)
    chosen, message = module._measured(sample, features, rows, held, recipe, target_of(sample), 0, Progress())
    assert chosen != "compact", message

"""The opponents that train the encoder itself, on the tiny random encoder."""

from __future__ import annotations

import math
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import STATES
from tests.kinds import KindName, kind_of
from ytuning.compare.fine_tuning import TunedEncoder, TuningConfig, TuningRows, full_fine_tuning, lora
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import EncoderError, InputError, MissingExtraError
from ytuning.features.features import live_features
from ytuning.progress import Progress

SINGLE = kind_of("single")
Rows = tuple[list[tuple[str, str | None]], np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def rows(toy_rows: tuple[list[str], list[str]]) -> Rows:
    texts, labels = toy_rows
    targets = np.array([sorted(set(labels)).index(label) for label in labels])
    return [(text, None) for text in texts], targets, np.arange(90), np.arange(90, 120)


@pytest.mark.parametrize(("train", "rate"), [(full_fine_tuning, 2e-3), (lora, 2e-2)], ids=["full_fine_tuning", "lora"])
def test_learns_and_gives_the_best_epoch(train: Any, rate: float, encoder: Encoder, rows: Rows) -> None:
    config = TuningConfig(rate, epochs=16, batch_size=8, patience=16)
    result: TunedEncoder = train(encoder, TuningRows(SINGLE, *rows), config=config)
    inputs, targets, _, held = rows
    accuracy = (result.logits(inputs).argmax(1) == targets)[held].mean()
    assert accuracy == pytest.approx(max(result.validation_scores))
    assert accuracy > 0.6  # of three labels
    assert len(result.step_seconds) == result.planned_steps == 16 * 12
    assert len(result.validation_scores) == len(result.validation_seconds) == 16


def test_a_padded_batch_gives_the_logits_of_each_text_alone(encoder: Encoder, rows: Rows) -> None:
    result = full_fine_tuning(encoder, TuningRows(SINGLE, *rows), config=TuningConfig(1e-3, most_steps=2))
    inputs = [*rows[0][:7], ("card " * 60, None), ("a", "refund late")]
    alone = []
    for text, pair in inputs:
        tokens = encoder.tokenizer(
            text, pair, truncation=True, max_length=32, return_token_type_ids=True, return_tensors="pt"
        )
        with torch.inference_mode():
            alone.append(result.model(**tokens).logits[0].numpy())
    np.testing.assert_allclose(result.logits(inputs), np.stack(alone), atol=1e-5)


def test_same_seed_same_logits_and_the_callers_random_numbers_stay(encoder: Encoder, rows: Rows) -> None:
    state = torch.get_rng_state()
    config = TuningConfig(1e-3, most_steps=3)
    first, again, other = (
        full_fine_tuning(encoder, TuningRows(SINGLE, *rows), config=config, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.logits(rows[0]), again.logits(rows[0]))
    assert not np.array_equal(first.logits(rows[0]), other.logits(rows[0]))


def test_models_that_are_tuned_in_threads_are_those_tuned_alone(encoder: Encoder, rows: Rows) -> None:
    def tuned(seed: int) -> bytes:
        result = full_fine_tuning(
            encoder, TuningRows(SINGLE, *rows), config=TuningConfig(1e-3, most_steps=3), seed=seed
        )
        return result.logits(rows[0]).tobytes()

    alone = [tuned(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(tuned, (0, 1))) == alone


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the file."""
    return dict(load_file(folder / "model.safetensors"))


def test_full_fine_tuning_changes_every_layer_of_a_copy(encoder: Encoder, tiny_encoder: Path, rows: Rows) -> None:
    before, inputs = weights_of(tiny_encoder), rows[0][:9]

    def features() -> np.ndarray:
        found: np.ndarray = live_features(inputs, encoder, states=STATES).tokens(torch.arange(9)).half().numpy()
        return found

    before_training = features()
    result = full_fine_tuning(encoder, TuningRows(SINGLE, *rows), config=TuningConfig(1e-2, most_steps=3))
    assert result.parameters == sum(parameter.numel() for parameter in result.model.parameters())
    after = result.model.bert.state_dict()
    for layer in range(2):
        name = f"encoder.layer.{layer}.attention.self.query.weight"
        assert not torch.equal(after[name], before[name])
    np.testing.assert_array_equal(features(), before_training)


def test_lora_trains_low_rank_changes_of_query_and_value_and_the_classifier(
    encoder: Encoder, tiny_encoder: Path, rows: Rows
) -> None:
    result = lora(encoder, TuningRows(SINGLE, *rows), config=TuningConfig(1e-2, most_steps=3), rank=4)
    trained = {name for name, parameter in result.model.named_parameters() if parameter.requires_grad}
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained if "lora_" in name}
    assert kinds == {"query", "value"}
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert result.parameters == 3 * 2 * 2 * 4 * 32 + 32 * 3 + 3  # layers, modules, two factors, rank, width; classifier
    original = weights_of(tiny_encoder)["encoder.layer.0.attention.self.key.weight"]
    frozen = result.model.base_model.model.bert.encoder.layer[0].attention.self.key.weight
    assert torch.equal(frozen, original)


def test_bf16_keeps_trained_numbers_in_fp32(tiny_encoder: Path, rows: Rows) -> None:
    encoder = load_encoder(tiny_encoder, precision="bf16", device="cpu")
    for train in (full_fine_tuning, lora):
        result = train(encoder, TuningRows(SINGLE, *rows), config=TuningConfig(1e-3, most_steps=1))
        kinds = {parameter.dtype for parameter in result.model.parameters() if parameter.requires_grad}
        assert kinds == {torch.float32}
        assert np.isfinite(result.logits(rows[0])).all()


def test_checkpointing_changes_nothing_but_memory(encoder: Encoder, rows: Rows) -> None:
    plain, checkpointed = (
        full_fine_tuning(
            encoder, TuningRows(SINGLE, *rows), config=TuningConfig(1e-3, most_steps=3, checkpointing=checkpointing)
        )
        for checkpointing in (False, True)
    )
    np.testing.assert_allclose(plain.logits(rows[0]), checkpointed.logits(rows[0]), atol=1e-5)


def test_stops_when_validation_gets_no_better(encoder: Encoder, rows: Rows) -> None:
    result = full_fine_tuning(encoder, TuningRows(SINGLE, *rows), config=TuningConfig(0.0, epochs=9, patience=2))
    assert result.validation_scores == [result.validation_scores[0]] * 3
    assert len(result.step_seconds) == result.planned_steps // 3


def test_tells_its_progress(encoder: Encoder, rows: Rows) -> None:
    told: list[tuple[Any, ...]] = []

    class Listening(Progress):
        def step(self, stage: str, done: int, total: int, note: str = "") -> None:
            told.append((stage, done, total, note))

    result = lora(encoder, TuningRows(SINGLE, *rows), config=TuningConfig(1e-3, most_steps=2), progress=Listening())
    note = f"validation accuracy {result.validation_scores[0]:.4f}"
    assert told == [("tune", 1, 2, ""), ("tune", 2, 2, ""), ("tune", 2, 2, note)]


def test_without_peft(encoder: Encoder, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"^the package 'peft' is not installed\. Install it with: pip install"):
        lora(encoder, TuningRows(SINGLE, *rows))


def test_lora_of_modules_that_are_not_there(encoder: Encoder, rows: Rows) -> None:
    with pytest.raises(InputError, match=r"^PEFT cannot change \['nothing'\] of .*Name linear layers of the encoder"):
        lora(encoder, TuningRows(SINGLE, *rows), modules=["nothing"])


def test_an_architecture_without_a_classifier(tmp_path: Path, tiny_encoder: Path, rows: Rows) -> None:
    folder = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    encoder = load_encoder(folder, precision="fp32", device="cpu")
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(
        EncoderError, match=r"^transformers has no classifier for .*: Unrecognized configuration class "
    ):
        full_fine_tuning(encoder, TuningRows(SINGLE, *rows))


# --- kinds of task --------------------------------------------------------------------------------------------------


def targets_of(rows: Rows, kind: KindName) -> np.ndarray:
    """Targets of another kind that the labels say."""
    ids = rows[1]
    if kind == "multi":
        return np.stack([ids == 0, ids < 2], 1).astype(np.float32)
    return (ids / 2).astype(np.float32) if kind in ("bounded", "unbounded") else ids


@pytest.mark.parametrize("kind", ["ordinal", "multi", "bounded", "unbounded"])
@pytest.mark.parametrize(("train", "rate"), [(full_fine_tuning, 2e-3), (lora, 2e-2)], ids=["full_fine_tuning", "lora"])
def test_learns_every_kind_of_task(train: Any, rate: float, kind: KindName, encoder: Encoder, rows: Rows) -> None:
    inputs, _, fit, held = rows
    target, targets = kind_of(kind, 2 if kind == "multi" else 3), targets_of(rows, kind)
    config = TuningConfig(rate, epochs=12, batch_size=8, patience=12)
    result: TunedEncoder = train(encoder, TuningRows(target, inputs, targets, fit, held), config=config)
    logits = result.logits([inputs[row] for row in held])
    assert logits.shape == (30, 3 if kind == "ordinal" else 2)
    np.testing.assert_allclose(logits, result.validation_logits, atol=1e-5)
    goal = torch.from_numpy(targets[held])
    score = float(target.row_scores(torch.from_numpy(logits), goal).mean())
    assert score == pytest.approx(max(result.validation_scores), abs=1e-5)
    shares = torch.from_numpy(targets[fit]).float().mean(0)
    constant = shares.logit().expand(30, 2) if kind == "multi" else torch.zeros(30, 3)
    if kind in ("bounded", "unbounded"):
        position = shares.logit() if kind == "bounded" else shares
        constant = torch.stack((torch.zeros(30), position.expand(30)), 1)
    assert score > float(target.row_scores(constant, goal).mean())  # than one answer for every row


def test_validation_chooses_the_learning_rate(encoder: Encoder, rows: Rows) -> None:
    rates = [1e-6, 3e-3]
    config = TuningConfig(9.0, epochs=6, batch_size=8, patience=6)
    result = full_fine_tuning(encoder, TuningRows(SINGLE, *rows), config=config, rates=rates)
    alone = {
        rate: full_fine_tuning(encoder, TuningRows(SINGLE, *rows), config=replace(config, learning_rate=rate))
        for rate in rates
    }
    assert result.rates == {rate: max(found.validation_scores) for rate, found in alone.items()}
    assert result.learning_rate == 3e-3
    np.testing.assert_array_equal(result.logits(rows[0]), alone[3e-3].logits(rows[0]))


def test_a_training_that_diverges_is_not_chosen(encoder: Encoder, rows: Rows) -> None:
    targets = targets_of(rows, "unbounded")
    config = TuningConfig(1e-3, epochs=2, clip_norm=1e30)
    result = full_fine_tuning(
        encoder, TuningRows(kind_of("unbounded"), rows[0], targets, *rows[2:]), config=config, rates=[1e30, 1e-3]
    )
    assert result.rates[1e30] == -math.inf
    assert result.learning_rate == 1e-3 and np.isfinite(result.logits(rows[0])).all()

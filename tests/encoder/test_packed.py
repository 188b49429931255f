"""Texts end to end in one pass: the hidden states that transformers gives, the same bits whatever is beside a text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import WORDS
from tests.encoder.test_encoder import INPUTS, all_features, assert_close, build, naive_features
from ytuning.data.dataset import TextInput
from ytuning.encoder.download import DEFAULT_ENCODER, find_encoder
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.layouts import read_layout
from ytuning.encoder.packed import PackedStates
from ytuning.encoder.pretrained import Precision
from ytuning.encoder.products import is_onednn_faster
from ytuning.encoder.tokens import plan_batches
from ytuning.encoder.torch_backend import TorchStates

MANY: list[TextInput] = [*INPUTS, *((" ".join(WORDS[row : row + 1 + row % 9]), None) for row in range(40))]
NO_BF16 = not is_onednn_faster(torch.bfloat16)
BOTH = pytest.mark.parametrize("fused", [True, False])


@pytest.fixture
def load(tiny_encoder: Path) -> Any:
    """Loads an encoder, the tiny one by default, with oneDNN's fused operations or torch's own."""

    def loaded(folder: Path = tiny_encoder, *, fused: bool = True, precision: Precision = "fp32") -> Encoder:
        if precision == "bf16" and NO_BF16:
            pytest.skip("this processor has no bf16 products")
        encoder = load_encoder(folder, precision=precision, device="cpu")
        assert isinstance(encoder.backend, PackedStates)
        encoder.model = transformers.AutoModel.from_pretrained(folder, dtype=encoder.model.dtype).eval()
        layout = read_layout(encoder.model.requires_grad_(False))
        assert layout is not None
        encoder.backend = PackedStates(layout, onednn=fused)
        return encoder

    return loaded


@BOTH
@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_equals_transformers(architecture: str, fused: bool, load: Any, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = build(architecture, tiny_encoder, tmp_path / "model")
    encoder = load(folder, fused=fused)
    # RoBERTa's positions leave out its padding, which is [UNK] here.
    inputs = [*MANY, ("a [PAD] in the [UNK] text", None)]
    naive = naive_features(encoder, folder, inputs, (0, 2, 3), types=architecture == "bert")
    assert_close(all_features(encoder, inputs, (0, 2, 3)), naive)


def test_bf16_is_near_fp32(load: Any, tiny_encoder: Path) -> None:
    encoder = load(precision="bf16")
    for features, expected in zip(
        all_features(encoder, MANY), naive_features(encoder, tiny_encoder, MANY, types=True), strict=True
    ):
        assert np.linalg.norm(features - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("fp32", False), ("bf16", True)])
def test_texts_beside_a_text_do_not_change_a_bit(precision: Precision, fused: bool, load: Any) -> None:
    if fused and not is_onednn_faster(torch.float32):
        pytest.skip("this processor does not use oneDNN's fused products")
    encoder = load(precision=precision, fused=fused)
    alone = [all_features(encoder, [text])[0] for text in MANY]
    for size in (20, 100, 2000):
        encoder.tokens_per_batch = size
        for inputs in (MANY, MANY[::-1], MANY[3::2]):
            for text, features in zip(inputs, all_features(encoder, inputs), strict=True):
                assert np.array_equal(features, alone[MANY.index(text)])


@pytest.fixture(params=["default", "second"])
def real(request: pytest.FixtureRequest) -> str:
    """The default encoder, and the folder of another one."""
    return DEFAULT_ENCODER if request.param == "default" else str(request.getfixturevalue("second_encoder"))


@pytest.mark.real
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_not_a_bit_of_a_real_encoder(precision: Precision, real: str, toy_rows: tuple[list[str], list[str]]) -> None:
    encoder = load_encoder(real, precision=precision, device="cpu")
    assert isinstance(encoder.backend, PackedStates)
    # With many that have two, three and four tokens: for so few torch has other code.
    inputs: list[TextInput] = [*((text, None) for text in toy_rows[0][:40]), (" ".join(WORDS * 9), None)]
    inputs += [("", None), *((word, None) for word in WORDS[:9]), *((f"my {word}", None) for word in WORDS[:9])]
    together = all_features(encoder, inputs)
    for row in range(0, len(inputs), 3):
        assert np.array_equal(all_features(encoder, [inputs[row]])[0], together[row])


@pytest.mark.real
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-4), ("bf16", 0.03)])
def test_a_real_encoder_equals_transformers(precision: Precision, tolerance: float, real: str) -> None:
    encoder = load_encoder(real, precision=precision, device="cpu")
    inputs: list[TextInput] = [*INPUTS, (" ".join(WORDS * 12), None), ("help", None)]
    states = (0, encoder.depth // 2, encoder.depth)
    typed = (getattr(encoder.model.config, "type_vocab_size", 0) or 0) > 1
    naive = naive_features(encoder, find_encoder(real), inputs, states, types=typed)
    for features, expected in zip(all_features(encoder, inputs, states), naive, strict=True):
        error = np.linalg.norm(features - expected, axis=(0, 2)) / np.linalg.norm(expected, axis=(0, 2))
        assert error.max() < tolerance


def test_bf16_is_packed_only_where_onednn_computes_it(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="bf16", device="cpu")
    assert isinstance(encoder.backend, TorchStates if NO_BF16 else PackedStates)


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"is_decoder": True}])
def test_what_is_not_laid_out_so_goes_through_transformers(
    change: dict[str, Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "other"))
    config = transformers.AutoConfig.from_pretrained(folder)
    config.update(change)
    config.save_pretrained(folder)
    encoder = load_encoder(folder, precision="fp32", device="cpu")
    assert isinstance(encoder.backend, TorchStates)
    assert_close(all_features(encoder, INPUTS), naive_features(encoder, folder, INPUTS, types=True))


def test_a_released_encoder_still_cuts_texts(load: Any) -> None:
    encoder = load()
    before = encoder.tokenize(INPUTS)
    encoder.release()
    assert encoder.tokenize(INPUTS).ids.tolist() == before.ids.tolist()
    assert all(parameter.is_meta for parameter in encoder.model.parameters())
    assert not isinstance(encoder.backend, PackedStates)


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 120))
def test_batches_part_the_texts_within_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    batches = list(plan_batches(array, budget, "packed"))
    assert np.concatenate([np.empty(0, np.int64), *batches]).tolist() == np.argsort(array, kind="stable").tolist()
    for batch, following in zip(batches, [*batches[1:], None], strict=False):
        assert len(batch) == 1 or array[batch].sum() <= budget
        if following is not None:  # no batch could have taken one text more
            assert array[batch].sum() + array[following[0]] > budget

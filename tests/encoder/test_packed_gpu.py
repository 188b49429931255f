"""The GPU's hidden states, computed on the CPU with naive kernels; the kernels themselves in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.encoder import naive_attention
from tests.encoder.tiny_models import FORMS, GPU_FORMS, own_states, random_texts, tiny_model
from ytuning.encoder.layouts import read_layout
from ytuning.encoder.packed_gpu import PackedGpu

LENGTHS = np.array([5, 1, 80, 17, 5])
GPU = torch.device("cuda")


def fits(model: Any, device: torch.device = GPU, max_length: int = 128) -> bool:
    layout = read_layout(model)
    return layout is not None and PackedGpu.fits(layout, device, max_length, kernels=naive_attention)


@pytest.mark.parametrize("form", GPU_FORMS)
def test_hidden_states_are_those_of_transformers(form: str) -> None:
    model, texts = tiny_model(form), random_texts(LENGTHS)
    wanted = torch.cat(own_states(model, texts))
    layout = read_layout(model)
    assert layout is not None and PackedGpu.fits(layout, GPU, 128, kernels=naive_attention)
    packed = PackedGpu(layout, kernels=naive_attention)
    for states in ((0, 1, 3), (2,), (1, 2)):
        features = packed(np.concatenate(texts), None, LENGTHS, states)
        assert features.dtype == torch.float16 and features.shape == (LENGTHS.sum(), len(states), 32)
        assert (features.float() - wanted[:, states]).abs().max() < 5e-3  # float16 of up to 4


@pytest.mark.parametrize("form", sorted(set(FORMS) - set(GPU_FORMS)))
def test_what_the_kernels_lack_is_left_to_the_general_path(form: str) -> None:
    assert read_layout(tiny_model(form)) is not None
    assert not fits(tiny_model(form))


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"hidden_act": "silu"}),
        ("bert", {"is_decoder": True}),
        ("bert", {"num_attention_heads": 4}),
        ("deberta-v2", {"relative_attention": False}),
    ],
)
def test_other_models_are_left_to_the_general_path(form: str, changed: dict[str, Any]) -> None:
    assert fits(tiny_model(form))
    assert not fits(tiny_model(form), torch.device("cpu"))
    assert not fits(tiny_model(form, **changed))


def test_texts_beyond_the_tables_of_distances_are_left_to_the_general_path() -> None:
    assert fits(tiny_model("mpnet"), max_length=512) and not fits(tiny_model("mpnet"), max_length=513)


def test_kernels_that_give_something_else_are_not_used() -> None:
    class Wrong:
        packed_attention = staticmethod(naive_attention.packed_attention)

        @staticmethod
        def add_and_normalise(*given: Any) -> torch.Tensor:
            return naive_attention.add_and_normalise(*given) * 1.01

    layout = read_layout(tiny_model("bert"))
    assert layout is not None and not PackedGpu.fits(layout, GPU, 128, kernels=Wrong())


def test_kernels_agree_with_naive_ones_in_tritons_interpreter() -> None:
    script = Path(__file__).with_name("kernels_script.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["plain", "bias", "keys", "queries", "both", "norm"]

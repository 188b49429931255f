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
import transformers

from tests.encoder import naive_attention
from ytuning.encoder.packed_gpu import PackedGpu

FORMS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "electra": {"embedding_size": 16},
    "mpnet": {"pad_token_id": 1},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}
FORMS["deberta-v2 without buckets"] = {
    **FORMS["deberta-v2"],
    "position_buckets": -1,
    "share_att_key": False,
    "pos_att_type": ["c2p"],
    "conv_kernel_size": 0,
    "position_biased_input": True,
}
LENGTHS = np.array([5, 1, 80, 17, 5])


def tiny_model(form: str) -> Any:
    config = transformers.AutoConfig.for_model(
        form.split()[0],
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=600,
        **FORMS[form],
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh biases and norms would hide a wrong one
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_hidden_states_are_those_of_transformers(form: str) -> None:
    model = tiny_model(form)
    generator = np.random.default_rng(0)
    texts = [generator.integers(3, 50, size=length) for length in LENGTHS]
    with torch.inference_mode():
        wanted = [
            torch.stack(model(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states, 2)[0].numpy()
            for ids in texts
        ]
    packed = PackedGpu(model, kernels=naive_attention)
    for states in ((0, 1, 3), (2,), (1, 2)):
        features = packed(np.concatenate(texts), None, LENGTHS, states)
        assert features.dtype == torch.float16 and features.shape == (LENGTHS.sum(), len(states), 32)
        assert np.abs(features.float().numpy() - np.concatenate(wanted)[:, states]).max() < 5e-3  # float16 of up to 4


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"is_decoder": True}),
        ("bert", {"num_attention_heads": 4}),
        ("deberta-v2", {"relative_attention": False}),
    ],
)
def test_other_models_are_left_to_the_general_path(form: str, changed: dict[str, Any]) -> None:
    gpu, model = torch.device("cuda"), tiny_model(form)
    assert PackedGpu.fits(model, gpu, 128)
    assert not PackedGpu.fits(model, torch.device("cpu"), 128)
    config = type(model.config)(**{**model.config.to_dict(), **changed})
    assert not PackedGpu.fits(transformers.AutoModel.from_config(config), gpu, 128)


def test_texts_beyond_the_tables_of_distances_are_left_to_the_general_path() -> None:
    assert not PackedGpu.fits(tiny_model("mpnet"), torch.device("cuda"), 513)


def test_kernels_agree_with_naive_ones_in_tritons_interpreter() -> None:
    script = Path(__file__).with_name("kernels_script.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["plain", "bias", "keys", "queries", "both", "norm"]

"""The path for any architecture: transformers' hidden states, with a text's bits independent of the texts beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from tests.conftest import WORDS
from tests.encoder.test_encoder import all_features, assert_close, naive_features
from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.products import FEWEST_TOKENS, After, filled_rows, is_onednn_faster, product
from ytuning.encoder.torch_backend import TorchStates
from ytuning.errors import EncoderError
from ytuning.system.machine import one_thread

CPU = torch.device("cpu")
NO_BF16 = not is_onednn_faster(torch.bfloat16)
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
DECODER = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 3}
MODELS: dict[str, tuple[bool, dict[str, Any]]] = {
    "T5": (True, {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4}),
    "Bart": (
        True,
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
        },
    ),
    "GPT2": (True, DECODER),
    "Qwen3": (True, {"num_key_value_heads": 2, "head_dim": 16, **SIZES}),
    "RoFormer": (True, SIZES),
    "Longformer": (True, {"attention_window": 8, "pad_token_id": 0, **SIZES}),
    "MobileBert": (True, {"intra_bottleneck_size": 32, "embedding_size": 32, **SIZES, "intermediate_size": 64}),
    "ConvBert": (False, {"embedding_size": 64, "conv_kernel_size": 3, **SIZES}),
    "SqueezeBert": (False, {"embedding_size": 64, **SIZES}),
    "XLNet": (False, {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}),
}
"""Classes of transformers, whether all of their products can be made independent of rows, and their configs."""
TEXTS: list[TextInput] = [(" ".join(WORDS[row : row + 1 + row % 7]), None) for row in range(24)]
PRECISIONS = pytest.mark.parametrize(
    "precision",
    ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(NO_BF16, reason="this processor has no bf16 products"))],
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As an encoder computes a batch: threads that share a product add up its terms in their own way."""
    with one_thread():
        yield


def saved(name: str, tokenizer: Path, folder: Path) -> Path:
    """A random model with the tiny tokenizer."""
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, f"{name}Model")
        made(made.config_class(**{"vocab_size": 4 + len(WORDS), **MODELS[name][1]})).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@PRECISIONS
@pytest.mark.parametrize("name", MODELS)
def test_texts_do_not_change_each_other(name: str, precision: Any, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = saved(name, tiny_encoder, tmp_path / "model")
    encoder = load_encoder(folder, precision=precision, device="cpu", max_length=32)
    assert isinstance(encoder.backend, TorchStates)
    assert encoder.backend.is_steady == MODELS[name][0]
    states = [0, encoder.depth]
    together = all_features(encoder, TEXTS * 3, states)
    for row in range(0, len(TEXTS), 5):
        assert np.array_equal(all_features(encoder, TEXTS[row : row + 1], states)[0], together[row])
        assert np.array_equal(together[row], together[row + len(TEXTS)])
    for row, features in enumerate(all_features(encoder, TEXTS[:6:-1], states)):
        assert np.array_equal(features, together[len(TEXTS) - 1 - row])


@pytest.mark.parametrize("name", ["GPT2", "Longformer", "MobileBert", "Qwen3", "RoFormer"])
def test_hidden_states_are_those_of_transformers(name: str, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = saved(name, tiny_encoder, tmp_path / "model")
    encoder = load_encoder(folder, precision="fp32", device="cpu", max_length=32)
    types = name in ("Longformer", "MobileBert", "RoFormer")
    assert_close(all_features(encoder, TEXTS, [1, 2]), naive_features(encoder, folder, TEXTS, [1, 2], types=types))


def modules_run(encoder: Encoder, states: list[int]) -> int:
    """How many modules compute two texts of two lengths up to these hidden states."""
    run: list[nn.Module] = []
    all_features(encoder, TEXTS[:2], states)
    # What is tried when states are first asked for does not count.
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: run.append(module))
    all_features(encoder, TEXTS[:2], states)
    hook.remove()
    return len(run)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"SqueezeBert"}))
def test_layers_above_are_not_computed(name: str, tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(saved(name, tiny_encoder, tmp_path / "model"), precision="fp32", device="cpu", max_length=32)
    none, one, both = (modules_run(encoder, [state]) for state in range(3))
    assert none < one < both and both - one > (one - none) / 2
    for below, whole in zip(all_features(encoder, TEXTS, [0, 1]), all_features(encoder, TEXTS, [0, 1, 2]), strict=True):
        assert np.array_equal(below, whole[:, :2])


def test_a_model_that_cannot_be_packed_is_not_tried(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32", device="cpu")
    model = transformers.AutoModel.from_pretrained(tiny_encoder).eval()
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("the model was run"))
    assert isinstance(Encoder(model, encoder.tokenizer, encoder.identity, torch.device("meta")).backend, TorchStates)


@PRECISIONS
@pytest.mark.parametrize("name", ["T5", "GPT2"])
def test_answers_are_what_is_stored(name: str, precision: Any, tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(saved(name, tiny_encoder, tmp_path / "model"), precision=precision, device="cpu")
    tokens, stored = encoder.tokenize(TEXTS), all_features(encoder, TEXTS, [2])
    for indices, features in encoder.encode_padded(tokens, [2]):
        assert np.array_equal(features, np.concatenate([stored[row] for row in indices]))


@PRECISIONS
@pytest.mark.parametrize("name", ["SqueezeBert", "XLNet"])
def test_answers_of_other_models_are_near_what_is_stored(
    name: str, precision: Any, tiny_encoder: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(saved(name, tiny_encoder, tmp_path / "model"), precision=precision, device="cpu")
    for texts in (TEXTS[3:4], TEXTS):
        tokens, stored = encoder.tokenize(texts), all_features(encoder, texts, [2])
        for indices, features in encoder.encode_padded(tokens, [2]):
            expected = np.concatenate([stored[row] for row in indices])
            assert np.abs(features - expected).max() < (0.1 if precision == "bf16" else 2e-3) * np.abs(expected).max()


class Direct(nn.Module):
    """Multiplies with the weight of a linear module, which it never calls."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__()
        self.module = module

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(.., outer) from (.., inner)."""
        return nn.functional.linear(states, self.module.weight, self.module.bias)


def test_a_model_that_does_more_than_call_its_linear_modules_is_left_as_it_is(tiny_encoder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_encoder).eval()
    text = np.array([2, 7, 9, 3]), None, np.array([4])
    expected = TorchStates(model, torch.device("cpu", 0))(*text, [3])
    model = transformers.AutoModel.from_pretrained(tiny_encoder).eval()
    model.encoder.layer[1].intermediate.dense = Direct(model.encoder.layer[1].intermediate.dense)
    backend = TorchStates(model, CPU, onednn=is_onednn_faster(torch.float32))
    assert not backend.is_steady
    assert_close([backend(*text, [3]).numpy()], [expected.float().numpy()])


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
def test_an_encoder_that_joins_tokens_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = {
        "d_model": 64,
        "n_head": 4,
        "d_head": 16,
        "d_inner": 128,
        "block_sizes": [1, 1, 1],
        "num_decoder_layers": 1,
    }
    config = transformers.FunnelConfig(vocab_size=4 + len(WORDS), **sizes)
    transformers.FunnelModel(config).save_pretrained(tmp_path / "m")
    encoder = load_encoder(tmp_path / "m", precision="fp32", device="cpu")
    with pytest.raises(EncoderError, match=r"^an encoder of the type 'funnel' joins tokens, .* Take another encoder"):
        all_features(encoder, TEXTS[3:5], [1, 2])
    # Transformers' own code fails on a text this short.
    with pytest.raises(EncoderError, match=r"^an encoder of the type 'funnel' fails on a text of 3 tokens \(Runtime"):
        all_features(encoder, [(WORDS[0], None)], [2])


def test_weights_are_not_in_memory_twice(tiny_encoder: Path, tmp_path: Path) -> None:
    encoder: Encoder = load_encoder(saved("T5", tiny_encoder, tmp_path / "model"), precision="fp32", device="cpu")
    linear = [module for module in encoder.model.modules() if type(module) is nn.Linear]
    assert linear and all(module.weight.is_meta for module in linear)


# ------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("after", ["none", "gelu", "gelu_tanh", "silu", "add", "mul"])
def test_a_product_does_not_depend_on_its_rows(dtype: torch.dtype, onednn: bool, after: After) -> None:
    if onednn != is_onednn_faster(dtype) and (onednn or dtype == torch.bfloat16):
        pytest.skip("not computed so on this processor")
    generator = torch.Generator().manual_seed(1)
    weight, bias, rows, other = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((256, 1024), (256,), (1500, 1024), (1500, 256))
    )
    operands = (rows, other) if after in ("add", "mul") else (rows,)
    computed = product(weight, bias, after, onednn=onednn)
    whole = computed(*operands)
    plain = rows.float() @ weight.float().T + bias.float()
    activations: dict[str, Any] = {
        "none": lambda x: x,
        "gelu": nn.functional.gelu,
        "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
        "silu": nn.functional.silu,
        "add": lambda x: x + other.float(),
        "mul": lambda x: x * other.float(),
    }
    rough = 0.02 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(whole.float(), activations[after](plain), rtol=rough, atol=10 * rough)
    for first, last in ((0, 1), (3, 8), (10, 27), (5, 69), (100, 293), (7, 519), (400, 1424), (1, 1500)):
        assert torch.equal(computed(*(values[first:last].contiguous() for values in operands)), whole[first:last])


def test_batches_are_filled_up_to_few_numbers_of_rows() -> None:
    filled = [filled_rows(rows) for rows in range(1, 5000)]
    assert all(number >= rows for rows, number in enumerate(filled, start=1))
    assert len({number for number in filled if number <= 1024}) <= 20
    assert all(number <= 1.5 * rows for rows, number in enumerate(filled, start=1) if rows > FEWEST_TOKENS)

"""Every known architecture is computed as transformers computes it, and what is not known is not taken for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.encoder.tiny_models import FORMS, own_states, random_texts, tiny_model
from ytuning.encoder.layouts import Layout, read_layout
from ytuning.encoder.packed import MATERIALISED, STRIP, PackedStates
from ytuning.encoder.products import is_onednn_faster
from ytuning.system.machine import one_thread

CPU = torch.device("cpu")
# Those of one length stand one after the other. Beyond a strip, a window, what bf16 keeps, and the tables' buckets.
LENGTHS = np.array([1, 1, 2, 2, 2, 3, 5, 5, 17, 17, 80, STRIP, STRIP + 1, 300, 300, MATERIALISED, MATERIALISED + 1])
WAYS = [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)]
EVERY_WAY = pytest.mark.parametrize(("dtype", "onednn"), WAYS, ids=["fp32", "fp32 of torch", "bf16"])
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As an encoder computes a batch: threads that share a product add up its terms in their own way."""
    with one_thread():
        yield


def layout_of(model: Any) -> Layout:
    layout = read_layout(model)
    assert layout is not None
    return layout


def packed(form: str, dtype: torch.dtype, *, onednn: bool, **changed: Any) -> PackedStates:
    if onednn and not is_onednn_faster(dtype):
        pytest.skip("this processor does not use oneDNN's products in this precision")
    layout = layout_of(tiny_model(form, dtype, **changed))
    assert PackedStates.fits(layout, CPU, onednn=onednn)
    return PackedStates(layout, onednn=onednn)


@EVERY_WAY
@EVERY_FORM
def test_hidden_states_are_those_of_transformers(form: str, dtype: torch.dtype, onednn: bool) -> None:
    computes, texts = packed(form, dtype, onednn=onednn), random_texts(LENGTHS)
    wanted = own_states(tiny_model(form), texts)
    for states in ((0, 1, 2, 3), (3,), (0,), (1, 2)):
        features = computes(np.concatenate(texts), None, LENGTHS, states)
        assert features.dtype == torch.float16 and features.shape == (LENGTHS.sum(), len(states), 32)
        for given, own in zip(features.float().split(LENGTHS.tolist()), wanted, strict=True):
            # By state: float16 keeps eleven bits, bf16 eight in each of many steps.
            error = (given - own[:, states]).norm(dim=(0, 2)) / own[:, states].norm(dim=(0, 2))
            assert error.max() < (5e-4 if dtype == torch.float32 else 0.04)


@EVERY_WAY
@EVERY_FORM
def test_texts_beside_a_text_do_not_change_a_bit(form: str, dtype: torch.dtype, onednn: bool) -> None:
    computes = packed(form, dtype, onednn=onednn)
    lengths = np.sort(np.concatenate((LENGTHS, np.repeat(np.arange(1, 33), 3), [2] * 30)))
    texts = random_texts(lengths)
    alone = [computes(ids, None, lengths[row : row + 1], (0, 1, 3)) for row, ids in enumerate(texts)]
    # All together, a few, and every other one.
    for rows in (range(len(texts)), range(4, 9), range(60, 100), range(1, len(texts), 2), range(0, len(texts), 7)):
        some = lengths[list(rows)]
        together = computes(np.concatenate([texts[row] for row in rows]), None, some, (0, 1, 3))
        for row, features in zip(rows, together.split(some.tolist()), strict=True):
            assert torch.equal(features, alone[row]), (rows, lengths[row])


def test_wide_products_in_bf16_do_not_depend_on_the_rows_beside_a_row() -> None:
    # The matrix library has other kernels for more rows, which add up long products in another order.
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 1}
    computes = packed("bert", torch.bfloat16, onednn=True, **sizes)
    lengths = np.full(72, 14)
    texts = random_texts(lengths)
    together = computes(np.concatenate(texts), None, lengths, (1,)).split(14)
    half = computes(np.concatenate(texts[:36]), None, lengths[:36], (1,)).split(14)
    for row, ids in enumerate(texts):
        assert torch.equal(computes(ids, None, lengths[:1], (1,)), together[row])
    assert all(torch.equal(*pair) for pair in zip(half, together[:36], strict=True))


@EVERY_FORM
def test_fewer_layers_give_the_same_bits(form: str) -> None:
    computes, texts = packed(form, torch.float32, onednn=False), random_texts(LENGTHS)
    whole = computes(np.concatenate(texts), None, LENGTHS, range(4))
    for states in ((0,), (2,), (0, 2)):
        assert torch.equal(computes(np.concatenate(texts), None, LENGTHS, states), whole[:, list(states)])


@pytest.mark.parametrize("form", ["bert", "albert", "nomic_bert"])
def test_segments_are_those_of_transformers(form: str) -> None:
    if form not in FORMS:
        pytest.skip("this transformers lacks it")
    ids = random_texts(np.array([9]))[0]
    types = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    with torch.inference_mode():
        given = {"input_ids": torch.from_numpy(ids)[None], "token_type_ids": torch.from_numpy(types)[None]}
        own = tiny_model(form)(**given, output_hidden_states=True).hidden_states[3][0]
    features = packed(form, torch.float32, onednn=False)(ids, types, np.array([9]), (3,))[:, 0].float()
    assert (features - own).norm() < 5e-4 * own.norm()


@EVERY_FORM
def test_the_models_own_layers_are_let_go(form: str) -> None:
    model = tiny_model(form)
    layout = layout_of(model)
    assert PackedStates.fits(layout, CPU, onednn=False)
    assert not any(parameter.is_meta for parameter in model.parameters())
    PackedStates(layout, onednn=False)
    assert all(parameter.is_meta for layer in layout.layers for parameter in layer.module.parameters())


# ------------------------------------------------------------------------------------------------- what is not known


def with_adapter(model: Any) -> None:
    product = model.encoder.layer[1].output.dense
    adapted = type("Adapted", (torch.nn.Linear,), {})
    model.encoder.layer[1].output.dense = adapted(product.in_features, product.out_features)


def with_another_norm(model: Any) -> None:
    model.encoder.layer[1].extra = torch.nn.LayerNorm(32)


def with_hook(model: Any) -> None:
    model.encoder.layer[0].register_forward_hook(lambda module, given, output: output)


def with_hook_before(model: Any) -> None:
    model.embeddings.register_forward_pre_hook(lambda module, given: None)


def with_fewer_heads(model: Any) -> None:
    model.encoder.layer[0].attention.self.num_attention_heads -= 1


def with_pruned_products(model: Any) -> None:
    own = model.encoder.layer[0].attention
    own.self.query, own.self.key, own.self.value = (torch.nn.Linear(32, 16) for _ in range(3))
    own.output.dense = torch.nn.Linear(16, 32)


def in_training(model: Any) -> None:
    model.train()


CHANGES = [
    with_adapter, with_another_norm, with_hook, with_hook_before, with_fewer_heads, with_pruned_products, in_training
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_not_read(change: Any) -> None:
    model = tiny_model("bert")
    layout_of(model)
    change(model)
    assert read_layout(model) is None


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"is_decoder": True}),
        ("distilbert", {"activation": "relu"}),
        ("albert", {"inner_group_num": 2}),
        ("deberta-v2", {"relative_attention": False}),
        ("deberta-v2", {"conv_groups": 2}),
        ("deberta-v2", {"embedding_size": 16}),
        ("modernbert", {"hidden_activation": "relu"}),
    ],
)
def test_options_that_are_not_known_are_not_passed_over(form: str, changed: dict[str, Any]) -> None:
    layout_of(tiny_model(form))
    assert read_layout(tiny_model(form, **changed)) is None


def test_a_model_that_computes_something_else_than_its_modules_say_does_not_fit() -> None:
    model = tiny_model("bert")
    dense = model.encoder.layer[2].output.dense
    dense.forward = lambda states: 1.01 * torch.nn.functional.linear(states, dense.weight, dense.bias)
    assert not PackedStates.fits(layout_of(model), CPU, onednn=False)
    del dense.forward
    assert PackedStates.fits(layout_of(model), CPU, onednn=False)


def test_bf16_fits_only_where_onednn_computes_it() -> None:
    layout = layout_of(tiny_model("bert", torch.bfloat16))
    assert PackedStates.fits(layout, CPU, onednn=True) and not PackedStates.fits(layout, CPU, onednn=False)
    assert not PackedStates.fits(layout, torch.device("cuda"), onednn=True)

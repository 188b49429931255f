"""Hidden states of any model as transformers computes them, on a CPU with products that do not depend on their rows.

In place of a model's linear modules stand those of `products.py`. Attention takes texts of one length, or a mask, and
computes each text alike, so that a batch may hold any number of texts. A model that multiplies in other ways too
(convolutions, parameters of its own) is given batches of one size instead.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from ytuning.encoder.packed import FEW_PRODUCTS, half
from ytuning.encoder.products import FEWEST_TOKENS, Product, product
from ytuning.errors import EncoderError
from ytuning.system.machine import one_thread

__all__ = ["TorchStates"]

POST_NORM = ("bert", "camembert", "deberta", "deberta-v2", "electra", "mpnet", "roberta", "xlm-roberta")
"""Model types that normalise inside each layer, so that a stack of fewer layers gives the same hidden states."""
# Sizes of a GPU's batches of one length: oneDNN compiles, and keeps in memory, every shape that it meets.
SIZES = 4
# Tokens of every batch where the number of rows changes bits. With 1,024 a single text would cost eight times as much.
FIXED_TOKENS = 128
# Width of all heads, at least: products of fewer numbers than FEW_PRODUCTS go another way, and depend on it.
HEADS_WIDTH = 32
# Of hidden states, which are about 1: a weight that is lost makes them something else.
TOLERANCE = 0.05
# Tokens of the texts on which a model is tried, and how many of one length are side by side.
TRIED_LENGTHS, TRIED_TEXTS = (3, 9), 5


class TorchStates:
    """Hidden states of any model, computed by torch.

    Attributes:
        is_steady: whether, on a CPU, a text's features have the same bits in a batch of any number of texts.
    """

    def __init__(self, model: Any, device: torch.device, *, onednn: bool = False) -> None:
        """``model`` is transformers' encoder; on a CPU oneDNN computes its products, or torch itself.

        There the products' weights are taken from it, or they would be in memory twice; the model itself computes no
        more.
        """
        self.model, self.device, self.is_steady = model, device, False
        self._stacks: dict[int, Any] = {}
        self._lock = threading.Lock()
        # In bf16 only oneDNN's products can be made independent of the rows beside a row.
        if device.type == "cpu" and (model.dtype == torch.float32 or onednn):
            self.model = _with_products(model, onednn=onednn)
            self.is_steady = _has_no_other_products(self.model)
            self.is_steady = self.is_steady and self._keeps_bits()

    def __call__(self, inputs: Mapping[str, np.ndarray | None], states: Sequence[int]) -> Tensor:
        """Hidden states (B, T, L, D) float16, on the device.

        Args:
            inputs: (B, T) int64 arguments of the model; None for one that it does not take.
            states: (L,) numbers of hidden states.

        Raises:
            EncoderError: a hidden state has fewer tokens than the text.
        """
        with torch.inference_mode():
            tensors = {
                name: torch.from_numpy(rows).to(self.device) for name, rows in inputs.items() if rows is not None
            }
            outputs = self._up_to(max(states))(**tensors, output_hidden_states=True, return_dict=True)
            # L x (B, T, D)
            hidden = [outputs.hidden_states[state] for state in states]
            if any(state.shape[:2] != tensors["input_ids"].shape for state in hidden):
                kind = self.model.config.model_type
                raise EncoderError(
                    f"an encoder of the type {kind!r} joins tokens, so that some hidden states have fewer tokens than "
                    "the text. Take another encoder, or layers before that"
                )
            # -> (B, T, L, D)
            return half(torch.stack(hidden, dim=2))

    def most_tokens(self, budget: int) -> int:
        """Tokens in a batch of texts of one length: at most ``budget``."""
        is_fixed = self.device.type == "cpu" and self.model.dtype == torch.bfloat16 and not self.is_steady
        return min(budget, FIXED_TOKENS) if is_fixed else budget

    def rows(self, texts: int, length: int, budget: int) -> int:
        """Rows to which a batch of texts of one length is filled up, so that its bits are those of any other.

        Args:
            texts: how many; together they have at most ``budget`` tokens, or there is one.
            length: tokens in each.
            budget: what :meth:`most_tokens` gives.
        """
        full, fewest = max(1, budget // length), -(-FEWEST_TOKENS // length)
        if self.device.type != "cpu":
            step = -(-full // SIZES) if self.model.dtype == torch.bfloat16 else 1
            return max(-(-texts // step) * step, fewest)
        if self.model.dtype == torch.float32:
            return texts if self.is_steady else max(texts, fewest)
        return max(texts, FEW_PRODUCTS // (HEADS_WIDTH * length**2) + 1) if self.is_steady else full

    def _keeps_bits(self) -> bool:
        """Whether a text alone has the bits that it has beside others."""
        generator, states = np.random.default_rng(0), [self.model.config.num_hidden_layers]
        words = self.model.get_input_embeddings().num_embeddings
        # As in every later pass, one thread computes a batch.
        with one_thread():
            for length in TRIED_LENGTHS:
                texts = generator.integers(words // 2, words, (TRIED_TEXTS, length))
                alone = texts[-1:].repeat(self.rows(1, length, length), axis=0)
                together = np.concatenate((texts, alone))
                first, last = (self({"input_ids": ids}, states) for ids in (alone, together))
                if not torch.equal(first[0], last[TRIED_TEXTS - 1]):
                    return False
        return True

    def _up_to(self, deepest: int) -> Any:
        """The model without the layers above a hidden state, which would be computed for nothing.

        Only the stacks of BERT and its kin are cut. Other models treat their last layer's output apart from the rest,
        so that a layer that becomes the last would give another hidden state.
        """
        # No model runs without layers.
        layers = max(deepest, 1)
        if self.model.config.model_type not in POST_NORM or layers == self.model.config.num_hidden_layers:
            return self.model
        with self._lock:
            if layers not in self._stacks:
                # Threads can run the copy beside the model.
                stack = _copied(self.model)
                del stack.encoder.layer[layers:]
                self._stacks[layers] = stack
            return self._stacks[layers]


class _Linear(nn.Module):
    """Stands for a model's linear module. Its weight only says its type and shape: the product has the numbers."""

    def __init__(self, module: nn.Linear | Conv1D) -> None:
        super().__init__()
        weight: Tensor = module.weight.detach()
        bias: Tensor | None = None if module.bias is None else module.bias.detach()
        self.weight = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        # (outer, inner), which Conv1D keeps the other way round.
        weight = weight.T.contiguous() if isinstance(module, Conv1D) else weight
        self._outer, self._values = len(weight), (weight, bias)
        self._product: Product = lambda states: linear(states, weight, bias)

    def lay_out(self, *, onednn: bool) -> None:
        """From now on, compute what does not depend on the number of rows."""
        self._product = product(*self._values, "none", onednn=onednn)
        # Or they would stay in memory beside what is laid out.
        del self._values

    def forward(self, states: Tensor) -> Tensor:
        """(.., outer) from (.., inner)."""
        flat = states.reshape(-1, states.shape[-1]).contiguous()
        compute: Product = self._product
        return compute(flat).view(*states.shape[:-1], self._outer)


def _copied(model: Any) -> Any:
    """A copy that shares the weights and has modules of its own."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def _with_products(model: Any, *, onednn: bool) -> Any:
    """A copy of a model with products in place of its linear modules, whose weights are no longer in the model.

    It is the model itself if that does more with its linear modules than call them.
    """
    changed, standing = _copied(model), dict[int, _Linear]()
    for parent in list(changed.modules()):
        for name, module in parent.named_children():
            if type(module) in (nn.Linear, Conv1D):
                setattr(parent, name, standing.setdefault(id(module), _Linear(module)))
    ids = torch.arange(TRIED_LENGTHS[-1])[None] + changed.get_input_embeddings().num_embeddings // 2
    try:
        with torch.inference_mode():
            if not torch.allclose(changed(input_ids=ids)[0], model(input_ids=ids)[0], TOLERANCE, TOLERANCE):
                return model
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        return model
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            module.to("meta")
    for linear_module in standing.values():
        linear_module.lay_out(onednn=onednn)
    return changed


def _has_no_other_products(model: Any) -> bool:
    """Whether all matrices of a model are in its embeddings and in products."""
    others = [module for module in model.modules() if not isinstance(module, (nn.Embedding, _Linear))]
    return all(parameter.dim() < 2 for module in others for parameter in module.parameters(recurse=False))

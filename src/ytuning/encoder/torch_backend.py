"""Hidden states of any model as transformers computes them, on a CPU with products that do not depend on their rows.

In place of a model's linear modules stand those of `products.py`. The texts of each length in a batch are a call of the
model, and all calls go on in lockstep (`lockstep.py`), so that a batch may hold any number of texts of any lengths. A
model that multiplies in other ways too (convolutions, parameters of its own) is given batches of one size instead.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from ytuning.encoder.lockstep import in_lockstep, multiply
from ytuning.encoder.packed import FEW_PRODUCTS, half
from ytuning.encoder.products import FEWEST_TOKENS, Product, product
from ytuning.errors import EncoderError
from ytuning.system.machine import one_thread

__all__ = ["TorchStates"]

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
        is_steady: whether, on a CPU, a text's features have the same bits beside any number of texts of any lengths.
    """

    def __init__(self, model: Any, device: torch.device, *, onednn: bool = False) -> None:
        """``model`` is transformers' encoder; on a CPU oneDNN computes its products, or torch itself.

        There the products' weights are taken from it, or they would be in memory twice; the model itself computes no
        more.
        """
        self.model, self.device, self.is_steady = model, device, False
        self._stacks: dict[int, Any] = {}
        self._lock = threading.Lock()
        # Some versions of transformers collect the hidden states of calls that run at once together.
        self._one_call: AbstractContextManager[Any] = nullcontext()
        # In bf16 only oneDNN's products can be made independent of the rows beside a row.
        if device.type == "cpu" and (model.dtype == torch.float32 or onednn):
            self.model = _with_products(model, onednn=onednn)
            self.is_steady = _has_no_other_products(self.model)
            self.is_steady = self.is_steady and self._keeps_bits()

    def __call__(self, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray, states: Sequence[int]) -> Tensor:
        """Features of texts end to end, those of one length one after the other; of one length only unless is_steady.

        Args:
            ids: (N,) token ids, int64.
            types: (N,) segment ids, int64; None for an encoder without segments.
            lengths: (B,) tokens in each text, N in all.
            states: (L,) numbers of hidden states.

        Returns:
            (N, L, D) float16, on the device.

        Raises:
            EncoderError: a hidden state has fewer tokens than the text.
        """
        # Before the calls: only one of them runs at a time, so that none may wait for a lock.
        model = self._up_to(max(states))
        borders = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        calls = []
        for first, last in pairwise(borders):
            tokens, length = slice(starts[first], starts[last]), int(lengths[first])
            inputs = {"input_ids": ids[tokens]} | ({} if types is None else {"token_type_ids": types[tokens]})
            calls.append(partial(self._group, model, inputs, length, states))
        results = in_lockstep(calls)
        return results[0] if len(results) == 1 else torch.cat(results)

    def padded(self, inputs: Mapping[str, np.ndarray], states: Sequence[int]) -> Tensor:
        """Hidden states (B, T, L, D) float16, on the device, from arguments of the model (B, T) int64."""
        return self._hidden(self._up_to(max(states)), inputs, states)

    def _group(self, model: Any, inputs: Mapping[str, np.ndarray], length: int, states: Sequence[int]) -> Tensor:
        """(N, L, D) float16 from a model's arguments (N,) for texts of one length."""
        count = len(inputs["input_ids"])
        fill = max(0, self._fewest_texts(length) - count // length)
        rows = {
            name: np.pad(flat.reshape(-1, length), ((0, fill), (0, 0)), mode="edge") for name, flat in inputs.items()
        }
        return self._hidden(model, rows, states).flatten(0, 1)[:count]

    def _hidden(self, model: Any, inputs: Mapping[str, np.ndarray], states: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(rows).to(self.device) for name, rows in inputs.items()}
            kind, length = self.model.config.model_type, tensors["input_ids"].shape[1]
            try:
                with self._one_call:
                    outputs = model(**tensors, output_hidden_states=True, return_dict=True)
            except (RuntimeError, IndexError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                # Funnel, for one, fails on texts of up to four tokens.
                raise EncoderError(
                    f"an encoder of the type {kind!r} fails on a text of {length} tokens "
                    f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Take another encoder, or remove "
                    "such texts"
                ) from error
            # L x (B, T, D)
            hidden = [outputs.hidden_states[state] for state in states]
            if any(state.shape[:2] != tensors["input_ids"].shape for state in hidden):
                raise EncoderError(
                    f"an encoder of the type {kind!r} joins tokens, so that some hidden states have fewer tokens than "
                    "the text. Take another encoder, or layers before that"
                )
            # -> (B, T, L, D)
            return half(torch.stack(hidden, dim=2))

    def most_tokens(self, budget: int) -> int:
        """Tokens in a batch: at most ``budget``."""
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
        return max(texts, fewest) if self.model.dtype == torch.float32 else full

    def _fewest_texts(self, length: int) -> int:
        """Texts of one length with which batched products go the way of larger ones."""
        if not self.is_steady:
            return 1
        # Heads of a single text lie apart in memory and are multiplied as they lie, those of several are copied first.
        # On some processors the products then differ in their last bits.
        return 2 if self.model.dtype == torch.float32 else FEW_PRODUCTS // (HEADS_WIDTH * length**2) + 1

    def _keeps_bits(self) -> bool:
        """Whether a text alone has the bits that it has beside others."""
        states, lengths = [self.model.config.num_hidden_layers], np.repeat(TRIED_LENGTHS, TRIED_TEXTS)
        ids = self._random_tokens(lengths.sum())
        # A copy, since calls that disturb each other may leave it changed.
        self._stacks[states[0]] = _copied(self.model)
        try:
            # As in every later pass, one thread computes a batch.
            with one_thread():
                beside = self(ids, None, lengths, states).split(lengths.tolist())
                apart = np.split(ids, np.cumsum(lengths)[:-1])
                # The last text of each length.
                alone = {text: self(apart[text], None, lengths[[text]], states) for text in (TRIED_TEXTS - 1, -1)}
                return all(torch.equal(features, beside[text]) for text, features in alone.items())
        except EncoderError:
            self._one_call = threading.Lock()
            return False
        finally:
            self._stacks.clear()

    def _random_tokens(self, count: int) -> np.ndarray:
        """(count,) ids that are no special tokens."""
        words = self.model.get_input_embeddings().num_embeddings
        return np.random.default_rng(0).integers(words // 2, words, count)

    def _up_to(self, deepest: int) -> Any:
        """The model without the layers above a hidden state, which would be computed for nothing.

        It is the model itself if no shorter one gives the same hidden states, bit by bit.
        """
        with self._lock, torch.inference_mode():
            if deepest not in self._stacks:
                self._stacks[deepest] = self._cut(deepest) or self.model
            return self._stacks[deepest]

    def _cut(self, deepest: int) -> Any | None:
        """A copy in which the layer above a hidden state gives on what it gets, and is the last one.

        None if there is no such layer, or if the hidden states of the copy are not those of the whole model.
        """
        depth = self.model.config.num_hidden_layers
        if deepest >= depth:
            return None
        copied, outputs = _copied(self.model), list[int | None]()
        # The outermost list of so many modules.
        lists = (part for part in copied.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
        layers = next(lists, None)
        if layers is None:
            return None
        # How many outputs the layer has, or None if it has just the states.
        hook = layers[deepest].register_forward_hook(
            lambda _, __, output: outputs.append(len(output) if isinstance(output, tuple) else None)
        )
        wanted = self._tried_states(copied)
        hook.remove()

        def pass_on(states: Tensor, *_: Any, **__: Any) -> Any:
            # Other outputs are for the layers above.
            return states if outputs[0] is None else (states, *[None] * (outputs[0] - 1))

        layers[deepest].forward = pass_on
        del layers[deepest + 1 :]
        try:
            given = self._tried_states(copied)[: deepest + 1]
        except (RuntimeError, AttributeError, IndexError, TypeError, ValueError):
            return None
        return copied if all(map(torch.equal, given, wanted)) else None

    def _tried_states(self, model: Any) -> Sequence[Tensor]:
        """All hidden states of a text of random tokens."""
        ids = torch.from_numpy(self._random_tokens(TRIED_LENGTHS[-1])).to(self.device)
        states: Sequence[Tensor] = model(input_ids=ids[None], output_hidden_states=True).hidden_states
        return states


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
        return multiply(compute, flat).view(*states.shape[:-1], self._outer)


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

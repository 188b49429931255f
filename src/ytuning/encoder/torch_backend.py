"""In which arithmetic hidden states are computed, and how torch computes them with any model.

`packed.py` computes them on a CPU with models that are laid out like BERT.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

__all__ = [
    "FEWEST_TOKENS",
    "PRECISIONS",
    "Precision",
    "TorchStates",
    "fast_precision",
    "half",
]

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# Matrix libraries switch kernels below about 16 rows, and with them the last bits of the result.
FEWEST_TOKENS = 64
POST_NORM = ("bert", "camembert", "deberta", "deberta-v2", "electra", "mpnet", "roberta", "xlm-roberta")
"""Model types that normalise inside each layer, so that a stack of fewer layers gives the same hidden states."""


def fast_precision(device: torch.device) -> str:
    """``"bf16"`` where it is faster than fp32, else ``"fp32"``; depends on the processor alone, never on a timing.

    Intel's avx512_bf16 without AMX does as many or fewer multiplications per cycle as fp32 (measured: 0.6 x); AMD's
    does twice as many.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"
    try:
        words = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].split()
    except OSError:
        return "fp32"
    return "bf16" if "amx_bf16" in words or ("avx512_bf16" in words and "AuthenticAMD" in words) else "fp32"


class TorchStates:
    """Hidden states of any model, computed by torch."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device
        self._stacks: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        ids: np.ndarray,
        types: np.ndarray | None,
        count: int,
        states: Sequence[int],
        mask: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Hidden states of the first ``count`` rows of a batch; the other rows only fill it.

        Args:
            ids: (B, T) int64 token ids.
            types: (B, T) int64 segment ids, or None for an encoder without segments.
            count: number of rows that are wanted.
            states: (L,) numbers of hidden states.
            mask: (B, T) int64, 1 at tokens and 0 beyond them, where texts have different lengths.

        Returns:
            (count, T, L, D) float16, on the device.
        """
        given = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        with torch.inference_mode():
            tensors = {
                name: torch.from_numpy(values).to(self.device) for name, values in given.items() if values is not None
            }
            model = self._up_to(max(states))
            hidden = model(
                **tensors, output_hidden_states=True, return_dict=True
            ).hidden_states  # depth + 1 x (B, T, D)
            return half(torch.stack([hidden[state][:count] for state in states], dim=2))

    def _up_to(self, deepest: int) -> Any:
        """The model without the layers above a hidden state, which would be computed for nothing.

        Only the stacks of BERT and its kin are cut. Other models treat their last layer's output apart from the rest,
        so that a layer that becomes the last would give another hidden state.
        """
        layers = max(deepest, 1)  # no model runs without layers
        if self.model.config.model_type not in POST_NORM or layers == self.model.config.num_hidden_layers:
            return self.model
        with self._lock:
            if layers not in self._stacks:
                # The copy shares the weights and has modules of its own, so that threads can run it beside the model.
                shared = chain(self.model.parameters(), self.model.buffers())
                stack = copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})
                del stack.encoder.layer[layers:]
                self._stacks[layers] = stack
            return self._stacks[layers]


def half(states: torch.Tensor) -> torch.Tensor:
    """Float16, whatever they are in."""
    # Saturating is better than inf: some encoders have a few huge activations, which carry no meaning.
    limit = torch.finfo(torch.float16).max
    return states.float().clamp_(-limit, limit).to(torch.float16)

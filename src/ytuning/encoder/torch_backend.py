"""In which arithmetic hidden states are computed, and how torch computes them with any model.

`packed.py` computes them on a CPU with models that are laid out like BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
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
FEWEST_TOKENS = 64  # matrix libraries switch kernels below about 16 rows, and with them the last bits of the result


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
    """Hidden states of the chosen layers, computed by torch."""

    def __init__(self, model: Any, layers: Sequence[int], device: torch.device) -> None:
        self.model, self.layers, self.device = model, tuple(layers), device

    def __call__(
        self, ids: np.ndarray, types: np.ndarray | None, count: int, mask: np.ndarray | None = None
    ) -> torch.Tensor:
        """Hidden states of the first ``count`` rows of a batch; the other rows only fill it.

        Args:
            ids: (B, T) int64 token ids.
            types: (B, T) int64 segment ids, or None for an encoder without segments.
            count: number of rows that are wanted.
            mask: (B, T) int64, 1 at tokens and 0 beyond them, where texts have different lengths.

        Returns:
            (count, T, L, D) float16, on the device.
        """
        given = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        with torch.inference_mode():
            tensors = {
                name: torch.from_numpy(values).to(self.device) for name, values in given.items() if values is not None
            }
            states = self.model(**tensors, output_hidden_states=True, return_dict=True).hidden_states
            return half(torch.stack([states[layer][:count] for layer in self.layers], dim=2))


def half(states: torch.Tensor) -> torch.Tensor:
    """Float16, whatever they are in."""
    # Saturating is better than inf: some encoders have a few huge activations, which carry no meaning.
    limit = torch.finfo(torch.float16).max
    return states.float().clamp_(-limit, limit).to(torch.float16)

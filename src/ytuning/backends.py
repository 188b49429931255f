"""What can compute hidden states, and in which arithmetic; and how torch does with any model.

The others are `packed_states.py`, torch on a CPU with models laid out like BERT, and `openvino_states.py`.

`TorchStates` and `OpenVinoStates` are called with token ids (B, T) and segment ids (B, T), int64, or None for an
encoder without segments, and the number of rows that are wanted (the rest only fill the batch); they give features
(B, T, L, D) float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ytuning.errors import EncoderError, allowed

__all__ = [
    "FEWEST_TOKENS",
    "PRECISIONS",
    "Backend",
    "Precision",
    "TorchStates",
    "check_choice",
    "fast_precision",
    "half",
    "stacked",
]

Backend = Literal["torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
PRECISIONS = {"torch": ("auto", "fp32", "bf16"), "openvino": ("auto", "fp32", "bf16", "int8")}
FEWEST_TOKENS = 64  # matrix libraries switch kernels below about 16 rows, and with them the last bits of the result


def check_choice(backend: str, precision: str) -> None:
    """Refuse a backend or a precision that does not exist, or that do not go together.

    Raises:
        EncoderError: names those allowed.
    """
    if backend not in PRECISIONS:
        raise EncoderError(allowed("backend", backend, PRECISIONS))
    if precision not in PRECISIONS[backend]:
        others = [other for other, precisions in PRECISIONS.items() if precision in precisions]
        remedy = f" For {precision} use the backend {others[0]!r}." if others else ""
        raise EncoderError(allowed("precision", precision, PRECISIONS[backend]) + remedy)


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
        """(count, T, L, D) float16 on its device; with a mask (B, T), 1 at tokens, texts may have different lengths."""
        with torch.inference_mode():
            given = [
                None if values is None else torch.from_numpy(values).to(self.device) for values in (ids, types, mask)
            ]
            return half(stacked(self.model, self.layers, given[0], given[1], count, mask=given[2]))


def stacked(
    model: Any,
    layers: Sequence[int],
    ids: torch.Tensor | None,
    types: torch.Tensor | None,
    count: int | None = None,
    *,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """(count, T, L, D): hidden states of the chosen layers; all B of them without ``count``."""
    segments = {} if types is None else {"token_type_ids": types}
    if mask is not None:
        segments["attention_mask"] = mask
    states = model(input_ids=ids, **segments, output_hidden_states=True, return_dict=True).hidden_states
    return torch.stack([states[layer][:count] for layer in layers], dim=2)


def half(states: torch.Tensor) -> torch.Tensor:
    """Float16, whatever they are in."""
    # Saturating is better than inf: some encoders have a few huge activations, which carry no meaning.
    limit = torch.finfo(torch.float16).max
    return states.float().clamp_(-limit, limit).to(torch.float16)

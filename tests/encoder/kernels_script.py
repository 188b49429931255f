"""Compares the kernels with naive ones and names those that agree; a process of its own, as Triton reads
TRITON_INTERPRET once, when it is imported."""

from __future__ import annotations

import numpy as np
import torch

from tests.encoder import naive_attention
from ytuning.encoder import gpu_kernels
from ytuning.encoder.packed import BLOCK, PRODUCT_BLOCK, ROWS, Distances, pack

LENGTHS = np.array([1, 7, 64, 65, 130, 3])
HEADS, WIDTH = 2, 32


def main() -> None:
    torch.manual_seed(0)
    packings = [pack(LENGTHS, lambda values: values, block) for block in (BLOCK, PRODUCT_BLOCK)]
    projected = torch.randn(LENGTHS.sum(), 3 * WIDTH)
    tables = {"keys": torch.randn(ROWS, WIDTH), "queries": torch.randn(ROWS, WIDTH)}
    forms = {
        "plain": None,
        "bias": Distances(bias=torch.randn(HEADS, ROWS)),
        "keys": Distances(keys=tables["keys"]),
        "queries": Distances(queries=tables["queries"]),
        "both": Distances(**tables),
    }
    for name, distances in forms.items():
        naive = naive_attention.packed_attention(projected, packings[0], HEADS, scale=0.2, distances=distances)
        errors = [
            gpu_kernels.packed_attention(projected, packing, HEADS, scale=0.2, distances=distances) - naive
            for packing in packings
        ]
        if all(error.norm() < 1e-5 * naive.norm() for error in errors):
            print(name)
    values, residual, weight, bias = torch.randn(5, 48), torch.randn(5, 48), torch.randn(48), torch.randn(48)
    fused, naive = (
        kernels.add_and_normalise(values, residual, weight, bias, 1e-5) for kernels in (gpu_kernels, naive_attention)
    )
    if (fused - naive).abs().max() < 1e-5:
        print("norm")


if __name__ == "__main__":
    main()

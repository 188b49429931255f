"""Products with an encoder's weights on a CPU; a row's bits do not depend on the rows beside it.

Where oneDNN is the faster library its fused operations are used: weights laid out once for the kernels, and what
follows a product applied while a tile of it is in the cache.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, pad, silu

from ytuning.system.machine import one_thread

__all__ = ["FEWEST_TOKENS", "After", "Product", "few_rows", "filled_rows", "is_onednn_faster", "product"]

# Rows from which matrix libraries take the kernel for many rows, in all shapes that were tried.
FEWEST_TOKENS = 64
# Rows that batches are filled up to: oneDNN compiles, and keeps in memory, every shape that it meets.
SIZES = (4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
# By so many rows a row is moved to see whether its place changes it, and so many are tried, at least, of each size.
MOVED, FEWEST_TRIED = 7, 256
OPERATIONS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
"""Of oneDNN, which torch's compiler uses and does not promise to keep."""
Product = Callable[..., Tensor]
"""Of states (N, D) and, where it is added or multiplied with, a second operand of the result's shape."""
After = Literal["none", "gelu", "gelu_tanh", "silu", "add", "mul"]
"""What follows a product and its bias."""
_this_thread = threading.local()


def is_onednn_faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies faster than the library behind torch's own products.

    So it is in bf16 and, with AVX-512, in fp32 (by a fifth); with AVX2 in fp32 it is slower.
    """
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def filled_rows(rows: int) -> int:
    """The number of rows that a batch of ``rows`` rows is filled up to."""
    return next((size for size in SIZES if size >= rows), -(-rows // FEWEST_TOKENS) * FEWEST_TOKENS)


@contextmanager
def few_rows() -> Iterator[None]:
    """Within, products of this thread fill no more rows than make a shape known, at the price of other last bits."""
    _this_thread.has_few_rows = True
    try:
        yield
    finally:
        _this_thread.has_few_rows = False


def product(weight: Tensor, bias: Tensor | None, after: After, *, onednn: bool) -> Product:
    """The product x W' + b and what follows; a second argument is what is added or multiplied with.

    Rows are filled up with zeros to a number with which a row's bits are those that it has among 64, or are computed
    in pieces of such a number.
    """
    fused = _fused(weight, bias, after) if onednn else _plain(weight, bias, after)
    sizes = _steady_sizes(weight.shape[0], weight.shape[1], after, weight.dtype, onednn=onednn)
    # In fp32 no large number of rows was seen to change a bit.
    free = sizes[0] if weight.dtype == torch.float32 else sys.maxsize

    def steady(*operands: Tensor) -> Tensor:
        count = len(operands[0])
        if count >= free:
            size = count
        elif getattr(_this_thread, "has_few_rows", False):
            size = filled_rows(count)
        else:
            size = next((size for size in sizes if size >= count), 0)
        if size == count:
            return fused(*operands)
        if size:
            return fused(*(pad(values, (0, 0, 0, size - count)) for values in operands))[:count]
        even = -(-count // -(-count // sizes[-1]))
        size = next(size for size in sizes if size >= even)
        return torch.cat([steady(*piece) for piece in zip(*(values.split(size) for values in operands), strict=True)])

    return steady


def _plain(weight: Tensor, bias: Tensor | None, after: After) -> Product:
    """By torch's own products."""
    plain: dict[After, Product] = {
        "none": lambda x: linear(x, weight, bias),
        "gelu": lambda x: gelu(linear(x, weight, bias)),
        "gelu_tanh": lambda x: gelu(linear(x, weight, bias), approximate="tanh"),
        "silu": lambda x: silu(linear(x, weight, bias), inplace=True),
        "add": lambda x, other: linear(x, weight, bias).add_(other),
        "mul": lambda x, other: linear(x, weight, bias).mul_(other),
    }
    return plain[after]


def _fused(weight: Tensor, bias: Tensor | None, after: After) -> Product:
    """As one operation of oneDNN."""
    # A copy in the layout that oneDNN's kernels read.
    laid_out, operation = torch.ops.mkldnn._reorder_linear_weight(weight.data), torch.ops.mkldnn._linear_pointwise
    if after in ("add", "mul"):
        return lambda x, other: operation.binary(x, other, laid_out, bias, after)
    name, algorithm = {"none": ("none", ""), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", "")}.get(
        after, ("gelu", "none")
    )
    return lambda x: operation.default(x, laid_out, bias, name, [], algorithm)


@cache
def _steady_sizes(outer: int, inner: int, after: After, dtype: torch.dtype, *, onednn: bool) -> tuple[int, ...]:
    """Those of ``SIZES``, rising, with which a row of a product of this shape has the bits that it has among 64.

    In bf16 on AMX, oneDNN adds up the terms of a long product in another order where there are few rows, many, or just
    192: of 3,072 numbers times 768 these bits come with 64 to 160 rows and with 256. This depends on the widths and on
    the processor, so it is tried here on random rows. In fp32 a row alone is computed in another way.
    """
    generator = torch.Generator().manual_seed(0)
    widths = [inner, outer] if after in ("add", "mul") else [inner]
    weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((outer, inner), (outer,)))
    sizes = [size for size in SIZES if size <= FEWEST_TOKENS or dtype == torch.bfloat16]
    # (R, D) each: what is multiplied, and the second operand.
    rows = sizes[-1] + FEWEST_TRIED
    tried = [torch.randn(rows, width, generator=generator).to(dtype) for width in widths]
    # Other threads would share a product, and add up its terms in their own way.
    with torch.inference_mode(), one_thread():
        computed = (_fused if onednn else _plain)(weight, bias, after)
        pieces = zip(*(values.split(FEWEST_TOKENS) for values in tried), strict=True)
        expected = torch.cat([computed(*piece) for piece in pieces])

        def is_steady(size: int) -> bool:
            # Rounding hides most differences: with 192 rows, one row in 15 has another bit.
            starts = range(MOVED, MOVED + max(size, FEWEST_TRIED), size)
            parts = [torch.arange(start, start + size) for start in starts]
            return all(torch.equal(computed(*(values[part] for values in tried)), expected[part]) for part in parts)

        return tuple(size for size in sizes if size == FEWEST_TOKENS or is_steady(size))

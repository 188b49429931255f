"""Products with an encoder's weights on a CPU; a row's bits do not depend on the rows beside it.

Where oneDNN is the faster library its fused operations are used: weights laid out once for the kernels, and what
follows a product applied while a tile of it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, pad, silu

from ytuning.system.machine import one_thread

__all__ = ["FEWEST_TOKENS", "After", "Product", "filled_rows", "is_onednn_faster", "product"]

# Rows from which matrix libraries take the kernel for many rows, in all shapes that were tried.
FEWEST_TOKENS = 64
# Rows that batches are filled up to: oneDNN compiles, and keeps in memory, every shape that it meets.
SIZES = (4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
# Rows of a part of a bf16 product are a multiple of it.
ROW_STEP = 32
# By so many rows a row is moved to see whether its place changes it.
MOVED = 7
OPERATIONS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
"""Of oneDNN, which torch's compiler uses and does not promise to keep."""
Product = Callable[..., Tensor]
"""Of states (N, D) and, where it is added or multiplied with, a second operand of the result's shape."""
After = Literal["none", "gelu", "gelu_tanh", "silu", "add", "mul"]
"""What follows a product and its bias."""


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


def product(weight: Tensor, bias: Tensor | None, after: After, *, onednn: bool) -> Product:
    """The product x W' + b and what follows; a second argument is what is added or multiplied with.

    Rows are filled up with zeros to a number with which a row's bits are those that it has among ``FEWEST_TOKENS``, or
    are computed in parts of such a number.
    """
    computed = _fused(weight, bias, after) if onednn else _plain(weight, bias, after)
    form = _Form(weight.shape[0], weight.shape[1], after, bias is not None, weight.dtype, onednn)

    def steady(*operands: Tensor) -> Tensor:
        count = len(operands[0])
        # To few sizes: every one is tried, and kept by oneDNN.
        is_known = form.dtype == torch.float32 or count < FEWEST_TOKENS
        rows = _rows_at_once(form, count if is_known else -(-count // ROW_STEP) * ROW_STEP)
        if rows == count:
            return computed(*operands)
        step = rows if count < rows or rows == FEWEST_TOKENS else ROW_STEP
        if count % step:
            operands = tuple(pad(values, (0, 0, 0, -count % step)) for values in operands)
        parts = zip(*(values.split(rows) for values in operands), strict=True)
        results = [computed(*part) for part in parts]
        return (results[0] if len(results) == 1 else torch.cat(results))[:count]

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


class _Form(NamedTuple):
    """What a kernel is chosen by, beside the rows: numbers made and read, what follows, a bias, type and library."""

    outer: int
    inner: int
    after: After
    biased: bool
    dtype: torch.dtype
    onednn: bool


@cache
def _rows_at_once(form: _Form, count: int) -> int:
    """Rows of the parts, as few parts as can be, in which ``count`` rows have the bits of ``FEWEST_TOKENS`` rows.

    The last part has what is left; where that is too little, zeros are put below it.

    On AMX, oneDNN adds up the terms of a long bf16 product in another order where there are few rows or many: up to 32
    rows, from 768 for 768 numbers times 768, from 288 (and at 192) for 3,072 times 768. It depends on the widths and on
    the processor. In fp32 only a few rows are computed in another way.
    """
    if count < FEWEST_TOKENS:
        return next(size for size in SIZES if size >= count and _is_computed_as_usual(form, size))
    if form.dtype == torch.float32:
        return count
    for parts in range(1, count // FEWEST_TOKENS + 1):
        rows = -(-count // (parts * ROW_STEP)) * ROW_STEP
        if all(_is_computed_as_usual(form, some) for some in {rows, count % rows or rows}):
            return rows
    return FEWEST_TOKENS


@cache
def _is_computed_as_usual(form: _Form, rows: int) -> bool:
    """Whether a product of this form has the same bits with so many rows as with ``FEWEST_TOKENS``."""
    usual = FEWEST_TOKENS
    if rows == usual:
        return True
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(usual, form.inner // 2, generator=generator).to(form.dtype) for _ in range(2))
    near = weight * (1 + torch.randint(-1, 2, weight.shape, generator=generator) / 128).to(form.dtype)
    # The second half of the terms nearly cancels the first, so that each other order of adding up shows.
    odd = torch.zeros(usual, form.inner % 2, dtype=form.dtype)
    weight = torch.cat([weight, near, odd], 1).repeat(-(-form.outer // usual), 1)[: form.outer]
    bias = torch.zeros(form.outer, dtype=form.dtype) if form.biased else None
    states = torch.cat([states, -states, odd], 1)

    def repeated(values: Tensor) -> Tensor:
        # Moved, so that no row is where it was among the usual ones.
        return values.roll(MOVED, 0).repeat(-(-rows // usual), 1)[:rows]

    def second(count: int) -> list[Tensor]:
        constant = float(form.after == "mul")
        return [torch.full((count, form.outer), constant, dtype=form.dtype)] if form.after in ("add", "mul") else []

    # Other threads would share a product, and add up its terms in their own way.
    with torch.inference_mode(), one_thread():
        computed = (_fused if form.onednn else _plain)(weight, bias, form.after)
        expected = computed(states, *second(usual))
        return torch.equal(computed(repeated(states), *second(rows)), repeated(expected))

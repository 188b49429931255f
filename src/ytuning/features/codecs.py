"""How token features become bytes in the store, and back: half precision, int8, or int8 on half as many components.

A codec turns features (N, L, D) float16 into rows of bytes (N, row_bytes), a row for each token, and decodes rows that
were gathered for a batch. N tokens, L hidden states, D encoder width; the L states of a token lie side by side.

=========  =======================  ====================================================================================
fp16       2 L D bytes a token      the features themselves
int8       L (D + 2 + 2 K)          for each hidden state a float16 scale, K exceptions and D numbers from -127 to 127
compact    L D / 2 + 2              the coordinates along the L D / 2 principal components, with one float16 scale
=========  =======================  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import safetensors
import safetensors.numpy

from ytuning.errors import InputError, must_be_one_of, parameter
from ytuning.heads.pooling import POOLS
from ytuning.system.machine import one_thread

if TYPE_CHECKING:
    import torch

# torch is loaded by what computes: `ytuning cache`, which only counts bytes, should answer at once.

__all__ = [
    "CODECS", "DEFAULT_CODEC", "FIT_TOKENS", "POOL_CODECS", "STORED_AS", "Codec", "Decoder", "Float16Codec",
    "Int8Codec", "PcaInt8Codec", "Selected", "build_codec", "row_bytes",
]  # fmt: skip

CODECS = ("fp16", "int8", "compact")
POOL_CODECS = {"fp16": "fp16-pools", "int8": "int8-pools"}
"""Spaces of pools (`heads/pooling.py`) by the codec of the tokens that they are computed from. A text has one row.

There are none of compact tokens, which are too coarse and have a basis that a small task folder cannot hold.
"""
STORED_AS = (*CODECS, *POOL_CODECS.values())
"""What a space can hold."""
DEFAULT_CODEC = "int8"
HIGHEST = 127
# Exceptions of a hidden state at most: encoders have fewer channels that are far larger than the rest.
MOST_EXCEPTIONS = 16
POWER_BITS = 4
MOST_POWER = 15
POWERS = 2.0 ** np.arange(MOST_POWER + 1, dtype=np.float32)
# A basis is fitted on so many tokens; that of a space on texts spread evenly over the first ones.
FIT_TOKENS = 50_000
# Rows decoded at a time, so that what is between the passes stays in the cache.
PART = 128
# Rows multiplied at a time, always so many: then a row's bytes do not depend on the rows beside it.
BLOCK = 512


@dataclass(frozen=True)
class Float16Codec:
    """The features themselves, float16."""

    layers: int
    width: int
    name: ClassVar[str] = "fp16"

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """(N, L, D) float16, or the same in float32, -> (N, row_bytes) uint8, on the same device."""
        import torch

        return features.half().flatten(1).contiguous().view(torch.uint8)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, L * D).

        To bfloat16 by way of float32, for which processors have an instruction (torch's direct conversion took four
        times as long), and in parts that stay in the cache.
        """
        import torch

        stored = rows.view(torch.float16)
        if dtype == torch.float32 or rows.is_cuda:
            return stored.to(dtype)
        values = torch.empty_like(stored, dtype=dtype)
        for part, converted in zip(stored.split(PART), values.split(PART), strict=True):
            converted.copy_(part.float())
        return values

    def decode_states(self, rows: torch.Tensor, positions: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, S * D): the states at S positions."""
        # (N, L, 2 * D) -> (N, S * 2 * D)
        return self.decode(rows.unflatten(1, (self.layers, -1))[:, list(positions)].flatten(1), dtype)


@dataclass(frozen=True)
class Int8Codec:
    """For each hidden state of a token a float16 scale, K exceptions and the numbers that the scale multiplies.

    A row holds the scales of its L states, then their exceptions, then their numbers. A scale is a largest size / 127,
    rounded up so that no number saturates; what comes back is within half a scale. Where float16 itself is as coarse
    (states of subnormal numbers only) nothing is lost.

    Encoders have a few channels that are tens to thousands of times as large as the rest, many of them in single tokens
    only. Where a state's largest size is about 4 times its (K + 1)-th largest or more, the scale follows from the
    latter. An exception then names a larger channel and the power of two by which this channel's scale is larger, as
    16 * channel + power; 0 is no exception. Its number, 64 to 127 in size, lies among the others, exact to 0.8 %.
    """

    layers: int
    width: int
    name: ClassVar[str] = "int8"

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """(N, L, D) float16 or float32 -> (N, row_bytes) uint8 on the same device.

        What was decoded to float32 gives the same bytes again, except where the largest size of a state is under
        127 / 2 ** 14, so that its scale is a subnormal number.
        """
        import torch

        shape = (len(features), row_bytes(self.name, self.layers, self.width))
        rows = torch.empty(shape, dtype=torch.uint8, device=features.device)
        # In parts that stay in the cache: the whole would pass through memory once for each operation. A GPU has no use
        # for parts: its operations take as long for few tokens as for many.
        size = max(1, len(features)) if features.is_cuda else BLOCK
        for part, out in zip(features.split(size), rows.split(size), strict=True):
            self._encode_into(out, part)
        return rows

    def _encode_into(self, rows: torch.Tensor, features: torch.Tensor) -> None:
        """Write what encodes features (N, L, D) to rows (N, row_bytes)."""
        import torch

        scale_bytes, code_bytes, number_bytes = self._split(rows)
        sizes, count = _sizes(features), _exceptions(self.width)[0]
        scales, limits = _choose_scales(_peak_and_rest(sizes, count), features.dtype)
        scale_bytes.copy_(scales.view(torch.uint8))
        # Where a scale is 0, all that it divides is 0, and 1 will do.
        divisors = scales.float().masked_fill_(scales == 0, 1)[..., None]
        numbers = features.to(torch.float32, copy=True, memory_format=torch.contiguous_format).div_(divisors)
        codes = torch.zeros(*scales.shape, count, dtype=_code_type(self.width), device=features.device)
        if limits is not None:
            _except(numbers, codes, _positions_above(sizes, limits))
        code_bytes.copy_(codes.flatten(1).view(torch.uint8))
        number_bytes.view(torch.int8).copy_(numbers.round_().flatten(1))

    def _split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, row_bytes) uint8 -> the bytes of the scales, of the exceptions and of the numbers, (N, L * ...) each."""
        count, size = _exceptions(self.width)
        return rows.split([self.layers * part for part in (2, count * size, self.width)], 1)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, L * D)."""
        return self._restored(self._split(rows), dtype)

    def decode_states(self, rows: torch.Tensor, positions: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, S * D): the states at S positions."""
        # S of L groups of each part
        parts = [part.unflatten(1, (self.layers, -1))[:, list(positions)].flatten(1) for part in self._split(rows)]
        return self._restored(parts, dtype)

    def _restored(self, parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Bytes of the scales, exceptions and numbers of S states -> (N, S * D)."""
        scales, codes, numbers = parts
        values = _products(scales, numbers, dtype)
        if codes.shape[1]:
            _enlarge_exceptions(values, codes, self.width)
        return values


@dataclass(frozen=True, eq=False)
class PcaInt8Codec:
    """Coordinates along the components that hold most of the features' energy, as int8 with one float16 scale a token.

    Sizes of coordinates differ by orders of magnitude; each is divided by a weight of its own first, the square root of
    its direction's deviation, so that one scale serves them all (see :meth:`fitted`).

    Attributes:
        components: (R, L * D) float32, orthonormal rows.
        weights: (R,) float32, positive.
    """

    layers: int
    width: int
    components: np.ndarray
    weights: np.ndarray
    _matrices: dict[tuple[torch.dtype | str, torch.device], torch.Tensor] = field(default_factory=dict, repr=False)
    name: ClassVar[str] = "compact"

    @property
    def row_bytes(self) -> int:
        """Bytes of a token."""
        return len(self.components) + 2

    @classmethod
    def fitted(cls, features: np.ndarray) -> PcaInt8Codec:
        """The basis for features like these (N, L, D) float16: eigenvectors of their second moments, strongest first.

        With fewer tokens than directions the directions left over are an orthonormal completion. Of the weights' powers
        of the deviation 0, 1/2 and 1, 1/2 gave nearly the least error whether a hundred tokens were fitted or 50,000
        (of all-MiniLM-L6-v2; 1 is as good on many tokens and loses almost everything on few).
        """
        import torch

        layers, width = features.shape[1:]
        size, kept = layers * width, _component_count(layers, width)
        # The same sums, and so the same basis, on any number of cores.
        with one_thread():
            # (L * D, L * D): sums of products in float64, since those of float32 would drown the weakest components.
            moments = torch.zeros(size, size, dtype=torch.float64)
            for part in torch.from_numpy(features).view(-1, size).split(BLOCK):
                # (P, L * D) -> (L * D, L * D)
                whole = part.float()
                moments += whole.T @ whole
            energy, vectors = (values.numpy() for values in torch.linalg.eigh(moments / len(features)))
        # (R,) and (L * D, R), the strongest first
        energy, vectors = energy[::-1][:kept].clip(0), vectors[:, ::-1][:, :kept]
        # An eigenvector's sign is arbitrary; this choice makes the basis the same on every run.
        largest = vectors[np.abs(vectors).argmax(0), np.arange(kept)]
        # Tokens that are not here have some energy in directions that those here lack.
        unseen = float(moments.trace()) / len(features) / size * kept / len(features)
        weights = (energy + unseen) ** 0.25 if unseen > 0 else np.ones(kept)
        components = np.ascontiguousarray((vectors * np.sign(largest)).T, np.float32)
        return cls(layers, width, components, weights.astype(np.float32))

    @classmethod
    def from_tensors(cls, layers: int, width: int, tensors: Mapping[str, np.ndarray]) -> PcaInt8Codec:
        """The inverse of :attr:`tensors`.

        Raises:
            ValueError: not the tensors of a basis for L hidden states of width D.
        """
        kept = _component_count(layers, width)
        wanted = {"components": (kept, layers * width), "weights": (kept,)}
        shapes = {name: values.shape for name, values in tensors.items()}
        if shapes != wanted or any(values.dtype != np.float32 for values in tensors.values()):
            raise ValueError(f"a basis of {shapes}, where {wanted} of float32 is needed")
        if not all(np.isfinite(values).all() for values in tensors.values()) or not (tensors["weights"] > 0).all():
            raise ValueError("a basis with numbers that are not finite, or with weights that are not above 0")
        return cls(layers, width, tensors["components"], tensors["weights"])

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """What a file keeps of the basis."""
        return {"components": self.components, "weights": self.weights}

    def to_bytes(self) -> bytes:
        """Safetensors, the same bytes for the same basis."""
        return safetensors.numpy.save(self.tensors)

    def has_basis_of(self, other: object) -> bool:
        """Whether another codec gives, and reads, the same bytes."""
        return isinstance(other, PcaInt8Codec) and all(
            np.array_equal(mine, other.tensors[name]) for name, mine in self.tensors.items()
        )

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """(N, L, D) float16 or float32 -> (N, row_bytes) uint8 on the same device."""
        import torch

        # (N, L * D): the states of a token side by side.
        rows = features.flatten(1)
        matrix = self._matrix("encode", rows.device)
        block = torch.zeros(BLOCK, rows.shape[1], device=rows.device)
        parts = []
        for part in rows.split(BLOCK):
            block[: len(part)] = part
            # (P, R), with one scale a token
            parts.append(_quantised((block @ matrix)[: len(part)]))
        return torch.cat(parts)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, L * D)."""
        # (N, R) @ (R, L * D)
        return _products(rows[:, :2], rows[:, 2:], dtype) @ self._matrix(dtype, rows.device)

    def _matrix(self, use: torch.dtype | str, device: torch.device) -> torch.Tensor:
        """What features are encoded with, (L * D, R), or coordinates decoded to a type with, (R, L * D)."""
        import torch

        if (use, device) not in self._matrices:
            if isinstance(use, torch.dtype):
                matrix = torch.from_numpy(self.components * self.weights[:, None]).to(use)
            else:
                matrix = torch.from_numpy(self.components / self.weights[:, None]).T.contiguous()
            self._matrices[use, device] = matrix.to(device)
        return self._matrices[use, device]

    def decode_states(self, rows: torch.Tensor, positions: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, S * D): the states at S positions, for each of which every number is needed."""
        return self.decode(rows, dtype).unflatten(1, (self.layers, -1))[:, list(positions)].flatten(1)


@dataclass(frozen=True)
class Selected:
    """Reads only some of the hidden states that a codec's rows hold.

    Of fp16 and int8 these are the numbers that an encoder of only those states would have stored; no other is decoded.

    Attributes:
        codec: of the rows.
        positions: of the states among those of the codec, counted from 0.
    """

    codec: Codec
    positions: tuple[int, ...]

    @property
    def layers(self) -> int:
        """S."""
        return len(self.positions)

    @property
    def width(self) -> int:
        """D."""
        return self.codec.width

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, S * D)."""
        return self.codec.decode_states(rows, self.positions, dtype)


Codec = Float16Codec | Int8Codec | PcaInt8Codec
Decoder = Codec | Selected
"""What decodes rows; a codec writes them too."""


def row_bytes(name: str, layers: int, width: int) -> int:
    """Bytes of a token under the codec of that name.

    Raises:
        InputError: unknown name.
    """
    if name in POOL_CODECS.values():
        return 2 * len(POOLS) * layers * width
    count, code_bytes = _exceptions(width)
    int8 = layers * (2 + count * code_bytes + width)
    sizes = (2 * layers * width, int8, _component_count(layers, width) + 2)
    return dict(zip(CODECS, sizes, strict=True))[_known(name)]


def build_codec(name: str, layers: int, width: int, basis: bytes | None = None) -> Codec | None:
    """The codec of a name; None where it needs a basis and there is none yet.

    Raises:
        InputError: unknown name.
        ValueError: ``basis`` is not that of a compact codec (:meth:`PcaInt8Codec.to_bytes`) for such hidden states.
    """
    if name in POOL_CODECS.values():
        # The pools of all states stand side by side, each as wide as a state.
        return Float16Codec(len(POOLS) * layers, width)
    if _known(name) != "compact":
        return Float16Codec(layers, width) if name == "fp16" else Int8Codec(layers, width)
    if basis is None:
        return None
    try:
        return PcaInt8Codec.from_tensors(layers, width, safetensors.numpy.load(basis))
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a basis ({type(error).__name__})") from error


def _known(name: str) -> str:
    if name not in CODECS:
        raise InputError(must_be_one_of(parameter("store"), name, CODECS))
    return name


def _component_count(layers: int, width: int) -> int:
    return max(1, layers * width // 2)


def _exceptions(width: int) -> tuple[int, int]:
    """How many exceptions a state of D channels has, for which 3 % of D bytes have room, and the bytes of each."""
    # 2,048 channels and 16 powers fit an int16.
    size = 2 if width <= 1 << (15 - POWER_BITS) else 4
    return min(MOST_EXCEPTIONS, max(0, (3 * width // 100 - 2) // size)), size


def _code_type(width: int) -> torch.dtype:
    import torch

    return torch.int16 if _exceptions(width)[1] == 2 else torch.int32


def _scales(peaks: torch.Tensor) -> torch.Tensor:
    """Sizes in float32 -> float16 scales, of which 127 are at least the size."""
    import torch

    scales = (peaks / HIGHEST).half()
    # Up to the next float16 where rounding went down, or the largest number would not fit; a scale that rounds to 0 is
    # so the smallest float16. The bits of positive numbers are in the order of the numbers.
    return (scales.view(torch.int16) + (scales.float() * HIGHEST < peaks)).to(torch.int16).view(torch.float16)


def _choose_scales(peaks: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales of hidden states, and above which sizes a state's numbers are exceptions.

    A state has exceptions where the scale for all is at least 4 times the one for the rest. What was decoded is judged
    as before: with exceptions, a peak of some 4 * 127 finer scales is rounded to these; without, the rest is over 31.75
    coarse scales and is rounded to 32 or more. A finer scale is never subnormal, so that a quarter is exact.

    Args:
        peaks: (2, N, S), the largest and the (K + 1)-th largest sizes, as :func:`_sizes` has them.
        dtype: of the features.

    Returns:
        Scales (N, S) float16, and limits (N, S), as :func:`_sizes` has them, or None where nothing is above.
    """
    import torch

    coarse, finer = _scales(peaks.view(dtype).float())
    finer = torch.maximum(finer, coarse / (1 << MOST_POWER)).clamp_min_(torch.finfo(torch.float16).smallest_normal)
    excepted = coarse >= 4 * finer
    if not excepted.any():
        return coarse, None
    exact = finer.float() * HIGHEST
    rounded = exact.to(dtype)
    limits = _sizes(rounded).sub_((rounded > exact).to(peaks.dtype))
    return torch.where(excepted, finer, coarse), limits.masked_fill_(~excepted, torch.iinfo(limits.dtype).max)


def _quantised(values: torch.Tensor) -> torch.Tensor:
    """(N, W) float32 -> (N, 2 + W) uint8: a scale in float16, then the int8 numbers that it multiplies."""
    import torch

    # Coordinates can be far from what a basis was fitted on: those beyond the largest scale saturate.
    scales = _scales(values.abs().amax(1, keepdim=True)).clamp_max_(torch.finfo(torch.float16).max)
    # Where a scale is 0, all that it divides is 0, and 1 will do.
    numbers = (values / scales.float().masked_fill_(scales == 0, 1)).round_().clamp_(-HIGHEST, HIGHEST).to(torch.int8)
    return torch.cat((scales.view(torch.uint8), numbers.view(torch.uint8)), 1)


def _products(scales: torch.Tensor, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes of S scales (N, 2 * S) and numbers (N, S * W) -> (N, S * W), exact products, rounded to ``dtype`` once."""
    import torch

    # (N, S, 1) and (N, S, W)
    factors = scales.contiguous().view(torch.float16).float()[..., None]
    integers = numbers.view(torch.int8).unflatten(1, (factors.shape[1], -1))
    if numbers.is_cuda:
        return (integers * factors).to(dtype).flatten(1)
    values = torch.empty(numbers.shape, dtype=dtype)
    # In parts that stay in the cache, and each conversion apart from the product, which takes two thirds of the time.
    products = torch.empty(min(BLOCK, len(numbers)), *integers.shape[1:])
    for some, factor, out in zip(*(each.split(BLOCK) for each in (integers, factors, values)), strict=True):
        part = out.view(some.shape) if dtype == torch.float32 else products[: len(some)]
        part.copy_(some).mul_(factor)
        if dtype != torch.float32:
            out.copy_(part.flatten(1))
    return values


def _enlarge_exceptions(values: torch.Tensor, code_bytes: torch.Tensor, width: int) -> None:
    """Multiply the exceptions among values (N, S * W), given as bytes (N, ...), by their powers of two, exactly."""
    import torch

    count, size = _exceptions(width)
    if code_bytes.is_cuda:
        # A GPU would have to be waited for to know which are exceptions; the others multiply the first channel by 1.
        codes = code_bytes.contiguous().view(_code_type(width)).int().unflatten(1, (-1, count))
        powers = _powers_of_two(codes & MOST_POWER).to(values.dtype)
        values.view(len(values), -1, width).scatter_reduce_(2, (codes >> POWER_BITS).long(), powers, "prod")
        return
    # NumPy takes less time for few numbers.
    codes = code_bytes.numpy().view(f"i{size}")
    places = np.flatnonzero(codes != 0)
    if len(places):
        codes = codes.reshape(-1)[places]
        positions = torch.from_numpy(places // count * width + (codes >> POWER_BITS))
        powers = torch.from_numpy(POWERS[codes & MOST_POWER]).to(values.dtype)
        values.view(-1).index_copy_(0, positions, values.view(-1).index_select(0, positions).mul_(powers))


def _sizes(values: torch.Tensor) -> torch.Tensor:
    """Float16 or float32 -> their bits without the sign, which are in the order of the sizes and faster to sort."""
    import torch

    bits = torch.int16 if values.dtype == torch.float16 else torch.int32
    return values.view(bits) & torch.iinfo(bits).max


def _peak_and_rest(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """(N, S, W) -> (2, N, S): the largest size and the largest but for ``count`` ones."""
    import torch

    rest = peak = sizes.amax(2)
    if count and sizes.is_cuda:
        rest = sizes.topk(count + 1, 2).values[..., -1]
    elif count:
        # Several times as fast as torch's topk on a CPU.
        rest = torch.from_numpy(np.partition(sizes.numpy(), -count - 1, axis=2)[..., -count - 1])
    return torch.stack((peak, rest))


def _positions_above(sizes: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Where sizes (N, S, W) are above limits (N, S), both as :func:`_sizes` has them: flat positions, rising."""
    import torch

    if sizes.is_cuda:
        return (sizes > limits[..., None]).flatten().nonzero()[:, 0]
    # Several times as fast as torch's operations on a CPU.
    return torch.from_numpy(np.flatnonzero(sizes.numpy() > limits.numpy()[..., None]))


def _except(numbers: torch.Tensor, codes: torch.Tensor, positions: torch.Tensor) -> None:
    """Divide the numbers (N, S, W) at rising flat positions by powers of two, which the codes (N, S, K) then name.

    The codes are 0 and are filled from the front; at most K positions are of one state.
    """
    import torch

    flat, (width, count) = numbers.view(-1), (numbers.shape[2], codes.shape[2])
    values = flat.index_select(0, positions)
    # x = f * 2 ** power, f from 1/2 to 1: the least power, but 0, that brings a size under 127.5
    powers = torch.frexp(values.abs() / (HIGHEST + 0.5))[1].clamp_min_(1)
    flat.index_copy_(0, positions, values * _powers_of_two(-powers))
    groups = positions // width
    # The exceptions of a state follow one another: each one's place is its distance from the first.
    places = torch.arange(len(groups), device=groups.device) - torch.searchsorted(groups, groups)
    written = ((positions - groups * width) << POWER_BITS) + powers
    codes.view(-1).index_copy_(0, groups * count + places, written.to(codes.dtype))


def _powers_of_two(powers: torch.Tensor) -> torch.Tensor:
    """2 ** int32 in float32, exactly, which torch's own power does not promise."""
    import torch

    return ((powers + 127) << 23).view(torch.float32)

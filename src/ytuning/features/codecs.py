"""How token features become bytes in the store, and back: half precision, int8, or int8 on half as many components.

A codec turns features (N, L, D) float16 into rows of bytes (N, row_bytes), a row for each token, and decodes rows that
were gathered for a batch. N tokens, L hidden states, D encoder width; the L states of a token lie side by side.

=========  =======================  ====================================================================================
fp16       2 L D bytes a token      the features themselves
int8       L (D + 2)                for each hidden state a float16 scale and D numbers from -127 to 127
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
from ytuning.system.machine import one_thread

if TYPE_CHECKING:
    import torch

# torch is loaded by what computes: `ytuning cache`, which only counts bytes, should answer at once.

__all__ = [
    "CODECS", "DEFAULT_CODEC", "FIT_TOKENS", "Codec", "Decoder", "Float16Codec", "Int8Codec", "PcaCoordinates",
    "PcaInt8Codec", "ProjectedReader", "Selected", "build_codec", "row_bytes",
]  # fmt: skip

CODECS = ("fp16", "int8", "compact")
DEFAULT_CODEC = "int8"
HIGHEST = 127
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
    """A float16 scale for each hidden state of a token, all of them first, then the numbers that it multiplies.

    A scale is the state's largest size / 127, rounded up so that no number saturates; what comes back is within half a
    scale. Where float16 itself is as coarse (states of subnormal numbers only) nothing is lost.
    """

    layers: int
    width: int
    name: ClassVar[str] = "int8"

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """(N, L, D) float16 or float32 -> (N, row_bytes) uint8 on the same device.

        What was decoded to float32 gives the same bytes again.
        """
        import torch

        # A GPU has no use for parts: its operations take as long for few tokens as for many.
        if features.is_cuda:
            return _quantised(features.float())
        # In parts that stay in the cache: the whole would pass through memory once for each operation.
        return torch.cat([_quantised(part.float()) for part in features.split(BLOCK)])

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, L * D)."""
        return _numbers(rows, self.layers, dtype)

    def decode_states(self, rows: torch.Tensor, positions: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, S * D): the states at S positions."""
        import torch

        # (N, 2 * L) and (N, L * D), of which S of L groups are taken
        parts = rows.split((2 * self.layers, self.layers * self.width), 1)
        selected = [part.unflatten(1, (self.layers, -1))[:, list(positions)].flatten(1) for part in parts]
        return _numbers(torch.cat(selected, 1), len(positions), dtype)


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
            # (P, R), which are one group with one scale
            parts.append(_quantised((block @ matrix)[: len(part), None]))
        return torch.cat(parts)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, L * D)."""
        # (N, R) @ (R, L * D)
        return _numbers(rows, 1, dtype) @ self._matrix(dtype, rows.device)

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
class PcaCoordinates:
    """Reads compact rows as they are: coordinates along the components, which are a single state of width R."""

    compact: PcaInt8Codec
    layers: ClassVar[int] = 1

    @property
    def width(self) -> int:
        """R."""
        return len(self.compact.components)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, R)."""
        import torch

        weights = torch.from_numpy(self.compact.weights).to(rows.device)
        return _numbers(rows, 1, torch.float32).mul_(weights).to(dtype)


@dataclass(frozen=True)
class ProjectedReader:
    """Reads rows of another codec as coordinates along components (R, L * D): a single state of width R."""

    codec: Decoder
    components: torch.Tensor
    layers: ClassVar[int] = 1

    @property
    def width(self) -> int:
        """R."""
        return len(self.components)

    def decode(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(N, row_bytes) uint8 -> (N, R)."""
        return self.codec.decode(rows, dtype) @ self.components.to(rows.device, dtype).T


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
Decoder = Codec | PcaCoordinates | ProjectedReader | Selected
"""What decodes rows; a codec writes them too."""


def row_bytes(name: str, layers: int, width: int) -> int:
    """Bytes of a token under the codec of that name.

    Raises:
        InputError: unknown name.
    """
    sizes = (2 * layers * width, layers * (width + 2), _component_count(layers, width) + 2)
    return dict(zip(CODECS, sizes, strict=True))[_known(name)]


def build_codec(name: str, layers: int, width: int, basis: bytes | None = None) -> Codec | None:
    """The codec of a name; None where it needs a basis and there is none yet.

    Raises:
        InputError: unknown name.
        ValueError: ``basis`` is not that of a compact codec (:meth:`PcaInt8Codec.to_bytes`) for such hidden states.
    """
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


def _quantised(values: torch.Tensor) -> torch.Tensor:
    """(N, S, W) float32 -> (N, S * (2 + W)) uint8: the scale of each of S groups in float16, then all int8 numbers."""
    import torch

    # (N, S)
    peaks = values.abs().amax(2)
    scales = (peaks / HIGHEST).half()
    # Up to the next float16 where rounding went down, or the largest number would not fit; a scale that rounds to 0 is
    # so the smallest float16. The bits of positive numbers are in the order of the numbers.
    scales = (scales.view(torch.int16) + (scales.float() * HIGHEST < peaks)).to(torch.int16).view(torch.float16)
    # Coordinates can be far from what a basis was fitted on: those beyond the largest scale saturate.
    scales = scales.clamp_max(torch.finfo(torch.float16).max)
    numbers = values / scales.float().masked_fill(scales == 0, 1)[..., None]
    # (N, S, W) -> (N, S * W)
    rows = numbers.round_().clamp_(-HIGHEST, HIGHEST).to(torch.int8).flatten(1)
    return torch.cat((scales.view(torch.uint8), rows.view(torch.uint8)), 1)


def _numbers(rows: torch.Tensor, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of :func:`_quantised`: (N, S * W), exact products of scale and number, rounded to ``dtype`` once."""
    import torch

    head = 2 * groups
    values = torch.empty(len(rows), rows.shape[1] - head, dtype=dtype, device=rows.device)
    size = max(1, len(rows)) if rows.is_cuda else PART
    for part, out in zip(rows.split(size), values.split(size), strict=True):
        # (P, S, 1)
        scales = part[:, :head].contiguous().view(torch.float16).float()[..., None]
        numbers = part[:, head:].view(torch.int8).unflatten(1, (groups, -1))
        if dtype == torch.float32:
            torch.mul(numbers, scales, out=out.unflatten(1, (groups, -1)))
        else:
            out.copy_((numbers * scales).flatten(1))
    return values

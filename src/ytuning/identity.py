"""What produced features: the identity of an encoder, by which they are stored and tasks are bound to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ytuning.windows import LongText

__all__ = ["EncoderIdentity"]


@dataclass(frozen=True)
class EncoderIdentity:
    """What produced a text's features. Two identities with one fingerprint give the same features.

    Attributes:
        name: as the user gave it; not part of the fingerprint.
        weights: SHA-256 of the weights file (of the files' hashes where the weights are sharded).
        tokenizer: SHA-256 of the serialised tokenizer.
        config: SHA-256 of ``config.json``.
        layers: hidden states that are kept; 0 is the embedding layer, n the output of the n-th layer.
        precision: arithmetic of the pass, ``"fp32"`` or ``"bf16"``.
        max_length: tokens, special ones included; longer texts are cut.
        width: size of a hidden state.
        parameters: of the encoder, for comparison with the head's.
        long_text: ``"truncate"`` or ``"window"``, see :func:`load_encoder`.
    """

    name: str
    weights: str
    tokenizer: str
    config: str
    layers: tuple[int, ...]
    precision: str
    max_length: int
    width: int
    parameters: int
    long_text: LongText = "truncate"

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over everything but the name."""
        content = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, the fingerprint included."""
        return {**asdict(self), "layers": list(self.layers), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EncoderIdentity:
        """The inverse of :meth:`to_json`; raises ``KeyError`` or ``TypeError`` on anything else."""
        fields = {key: value[key] for key in cls.__dataclass_fields__}
        return cls(**{**fields, "layers": tuple(int(layer) for layer in fields["layers"])})

    @property
    def options(self) -> dict[str, Any]:
        """Arguments with which :func:`load_encoder` loads an encoder of this identity."""
        return {name: getattr(self, name) for name in ("layers", "precision", "max_length", "long_text")}

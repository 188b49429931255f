"""What a pretrained encoder's folder holds (model, tokenizer, longest text), and the identity that follows from it.

Features are stored by an encoder's identity, and tasks are bound to it.

Only safetensors weights are read, and no code of the model's own is run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers

from ytuning.encoder.layouts import COUNTED_FROM_PADDING
from ytuning.encoder.tokens import LongText
from ytuning.errors import EncoderError

__all__ = [
    "PRECISIONS", "EncoderIdentity", "Precision", "States", "default_states", "fast_precision", "load_model",
    "longest_input", "state_at", "tokenizer_rules",
]  # fmt: skip

# Tokens; where neither the encoder nor the caller sets a smaller maximum.
LONGEST = 512
# No hidden state depends on these weights, and many files lack them.
NOT_NEEDED = ("pooler.", "decoder.")

States = tuple[int, ...]
"""Numbers of hidden states, rising: 0 is the output of the embedding layer, n the output of the n-th layer."""
Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


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


def load_model(folder: Path, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The encoder in evaluation mode, without gradients, and its fast tokenizer.

    Raises:
        EncoderError: transformers cannot load it, weights are missing, or the tokenizer is not a fast one.
    """
    bar = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        options = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        model, loading = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise EncoderError(
            f"cannot load the encoder {name!r}: {reason[0] if reason else type(error).__name__}"
        ) from error
    finally:
        if bar:
            transformers.utils.logging.enable_progress_bar()
    if not tokenizer.is_fast:
        raise EncoderError(f"the encoder {name!r} has no fast tokenizer (tokenizer.json), which ytuning needs")
    if lacking := sorted(key for key in loading["missing_keys"] if not key.startswith(NOT_NEEDED)):
        raise EncoderError(
            f"the weights of the encoder {name!r} lack {lacking[0]!r} ({len(lacking)} missing). Download it again"
        )
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        model = model.get_encoder()
    # Not the buffers: rotary frequencies must stay exact.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False), tokenizer


def tokenizer_rules(tokenizer: Any) -> bytes:
    """The serialised tokenizer without its truncation and padding, which change from call to call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**rules, "truncation": None, "padding": None}, sort_keys=True).encode()


def default_states(depth: int) -> States:
    """The hidden states that a task reads by default: those at half and at five sixths of the depth, and the last one.

    They were chosen on held-out rows with two encoders (benchmarks/LOG.md): lower states know more of grammar, the last
    one knows more of what a text is about.

    Args:
        depth: number of the encoder's layers.
    """
    return tuple(sorted({state_at(depth, 1 / 2), state_at(depth, 5 / 6), depth}))


def state_at(depth: int, share: float) -> int:
    """The hidden state at a share of the depth of an encoder with ``depth`` layers, at least the first layer's."""
    return max(1, round(depth * share))


def longest_input(given: int | None, folder: Path, config: Any, name: str) -> int:
    """Tokens at which texts are cut: those given, or what the encoder was made for, at most ``LONGEST``.

    Raises:
        EncoderError: more than it has positions for, or its folder is damaged.
    """
    # XLNet says -1, as its positions have no limit.
    most = max(0, getattr(config, "max_position_embeddings", None) or 0) or LONGEST
    if config.model_type in COUNTED_FROM_PADDING:
        most -= (config.pad_token_id or 0) + 1
    if given is not None:
        if not 4 <= given <= most:
            raise EncoderError(f"max_length must be from 4 to {most} for the encoder {name!r}. Got {given} instead.")
        return given
    made_for = folder / "sentence_bert_config.json"
    if not made_for.is_file():
        return min(LONGEST, most)
    try:
        return min(int(json.loads(made_for.read_text()).get("max_seq_length") or LONGEST), LONGEST, most)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EncoderError(f"{made_for} is damaged ({type(error).__name__}). Download the encoder again") from error


@dataclass(frozen=True)
class EncoderIdentity:
    """What computed a text's hidden states. Encoders with one fingerprint compute the same hidden states.

    Attributes:
        name: as the user gave it; not part of the fingerprint.
        weights: SHA-256 of the weights file (of the files' hashes where the weights are sharded).
        tokenizer: SHA-256 of the serialised tokenizer.
        config: SHA-256 of ``config.json``.
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
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EncoderIdentity:
        """The inverse of :meth:`to_json`; raises ``KeyError`` or ``TypeError`` on anything else."""
        return cls(**{key: value[key] for key in cls.__dataclass_fields__})

    @property
    def options(self) -> dict[str, Any]:
        """Arguments with which :func:`load_encoder` loads an encoder of this identity."""
        return {name: getattr(self, name) for name in ("precision", "max_length", "long_text")}

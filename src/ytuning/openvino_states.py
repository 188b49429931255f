"""Hidden states from OpenVINO (extra ``openvino``), in fp32, bf16, or int8 with quantised weights that are kept.

    <root>/openvino/<key>/        a quantised encoder; see `sources.default_root`
      model.xml, model.bin        OpenVINO's form of it
      manifest.json               checksums of both

It is written under a temporary name, synced, then renamed; a damaged one is made again.
"""

# mypy: ignore-errors
from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ytuning.backends import Backend, TorchStates, fast_precision, half, stacked
from ytuning.errors import EncoderError, MissingExtraError, StoreError
from ytuning.sources import QUANTISED_FOLDER
from ytuning.versions import version_of

__all__ = ["OpenVinoStates", "backend_name", "calibration_texts", "openvino_model", "openvino_precision"]

EXTRA = "openvino"
TOLERANCE = 1e-3  # of OpenVINO's fp32 against torch's, relative; they differ by about 1e-6
MODEL_FILES, MANIFEST_FILE = ("model.xml", "model.bin"), "manifest.json"

Arguments = tuple[np.ndarray, np.ndarray | None]
"""Token ids (B, T) and segment ids (B, T) or None, int64."""


def backend_name(backend: Backend, precision: str) -> str:
    """What an identity records. In int8 also what the quantised weights depend on: nncf's version and the texts.

    Other versions of torch or OpenVINO change no more than the last bits, so they are not recorded.

    Raises:
        MissingExtraError: int8 without nncf.
    """
    if precision != "int8":
        return backend
    version = ".".join(_version("nncf").split(".")[:2])
    return f"{backend}, nncf {version}, texts {hashlib.sha256(_calibration_file()).hexdigest()[:8]}"


def calibration_texts() -> list[tuple[str, str | None]]:
    """The texts, and some pairs of them, on which int8 ranges are measured."""
    lines = _calibration_file().decode().splitlines()
    return [*((line, None) for line in lines), *zip(lines[::4], lines[1::4], strict=False)]


def _calibration_file() -> bytes:
    return importlib.resources.files("ytuning").joinpath("calibration.txt").read_bytes()


class OpenVinoStates:
    """Hidden states of the chosen layers, computed by OpenVINO on a CPU, a whole batch on each core.

    Each thread that calls has a request of its own, which ends with it. As many cores compute at once as torch may use
    when this is made, or as there are threads that call.

    Args:
        model: of :func:`openvino_model`.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"``, whose other operations compute in fp32.

    Raises:
        EncoderError: bf16 on a processor that does not have it.
    """

    def __init__(self, model: Any, precision: str) -> None:
        wanted = "bf16" if precision == "bf16" else "f32"
        self._compiled = _compiled(model, wanted, torch.get_num_threads())
        found = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if found != wanted:  # without a word it takes another
            raise EncoderError(_no_bf16())
        self._local = threading.local()

    def __call__(self, ids: np.ndarray, types: np.ndarray | None, count: int) -> np.ndarray:
        """(count, T, L, D) float16."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        return half(torch.from_numpy(_infer(self._local.request, ids, types)[:count]))  # type: ignore[return-value]


def openvino_precision(precision: str, device: torch.device) -> str:
    """What to compute in: the precision asked for, where that is possible, or the faster one for ``"auto"``.

    Raises:
        EncoderError: another device than the CPU, or bf16 on a processor that does not have it.
        MissingExtraError: OpenVINO is not installed.
    """
    if device.type != "cpu":
        raise EncoderError(
            f"the backend 'openvino' computes on the CPU. Got the device {str(device)!r} instead. "
            "Use the device 'cpu', or the backend 'torch'"
        )
    has_bf16 = "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        return fast_precision(device) if has_bf16 else "fp32"
    if precision == "bf16" and not has_bf16:
        raise EncoderError(_no_bf16())
    return precision


def _no_bf16() -> str:
    return (
        "OpenVINO computes in bf16 only on a processor that has it (AMX or avx512_bf16), and this one has not. "
        "Use the precision 'fp32', or the backend 'torch'"
    )


def openvino_model(
    reference: TorchStates,
    name: str,
    precision: str,
    *,
    typed: bool,
    max_length: int,
    calibration: Callable[[], Sequence[Arguments]],
    root: Path,
    fingerprint: str,
) -> Any:
    """OpenVINO's form of an encoder, in int8 from the folder of quantised ones or made and kept there.

    Args:
        reference: the encoder in torch, in fp32.
        name: of the encoder, for messages.
        precision: see :class:`OpenVinoStates`.
        typed: whether it has segment ids.
        max_length: tokens in the longest text.
        calibration: gives inputs of one row each for int8; called when they are needed.
        root: folder of the feature store.
        fingerprint: of the encoder's identity.

    Raises:
        EncoderError: OpenVINO cannot convert this encoder.
        MissingExtraError: OpenVINO or nncf is not installed.
        StoreError: the quantised encoder cannot be kept.
    """

    def converted() -> Any:
        return _converted(reference, name, _checks(reference.model, typed, max_length))

    if precision != "int8":
        return converted()
    content = [fingerprint, _version("openvino"), _version("nncf")]
    folder = root / QUANTISED_FOLDER / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    model = _read(folder)
    if model is None:
        quantised = _quantised(converted(), calibration())
        with _explained(folder):
            _write(quantised, folder)
        model = _read(folder)  # the same for the process that makes it as for later ones
        if model is None:
            raise StoreError(
                f"what is written to {folder} does not read back intact. Check the disk or set YTUNING_CACHE"
            )
    return model


def _version(package: str) -> str:
    if (found := version_of(package)) is None:
        raise MissingExtraError(package, EXTRA)
    return found


def _openvino() -> Any:
    """The package. It and nncf report their use over the network where they can import the module set to None here."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # stands for: not installed
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", EXTRA) from error
    return openvino


def _compiled(model: Any, precision: str, threads: int) -> Any:
    return _openvino().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
        },
    )


def _infer(request: Any, ids: np.ndarray, types: np.ndarray | None) -> np.ndarray:
    """(B, T, L, D) float32, valid until the next call."""
    inputs = [ids] if types is None else [ids, types]
    return request.infer(inputs, share_inputs=True, share_outputs=True)[0]


def _checks(model: Any, typed: bool, max_length: int) -> list[Arguments]:
    """Arbitrary inputs of several shapes, on which OpenVINO has to agree with torch."""
    found: list[Arguments] = []
    for shape in ((2, min(8, max_length)), (1, max_length), (5, 1)):
        ids = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape) * 7919
        types = np.zeros_like(ids)
        types[:, shape[1] // 2 :] = 1
        found.append((ids % int(model.get_input_embeddings().num_embeddings), types if typed else None))
    return found


def _converted(reference: TorchStates, name: str, checks: Sequence[Arguments]) -> Any:
    """OpenVINO's form of an encoder for any number and length of texts, checked against torch's."""
    openvino = _openvino()
    example = tuple(torch.from_numpy(values) for values in checks[0] if values is not None)
    try:
        with _quiet_tracing():
            model = openvino.convert_model(
                _Traced(reference), example_input=example, input=[openvino.PartialShape([-1, -1])] * len(example)
            )
        request = _compiled(model, "f32", torch.get_num_threads()).create_infer_request()
        errors = []
        for ids, types in checks:
            expected = reference(ids, types, len(ids)).astype(np.float32)
            difference = half(torch.from_numpy(_infer(request, ids, types))) - expected
            errors.append(float(np.linalg.norm(difference) / np.linalg.norm(expected)))
    except Exception as error:  # OpenVINO raises its own, torch's and the encoder's
        reason = " ".join((str(error).partition("Summary:")[2] or str(error)).split())[:200]
        raise EncoderError(
            f"OpenVINO cannot convert the encoder {name!r} ({type(error).__name__}: {reason}). Use the backend 'torch'"
        ) from error
    if not max(errors) <= TOLERANCE:
        raise EncoderError(
            f"OpenVINO does not compute what torch computes with the encoder {name!r} (relative error "
            f"{max(errors):.2g}). Use the backend 'torch'"
        )
    return model


class _Traced(torch.nn.Module):
    """What OpenVINO converts."""

    def __init__(self, reference: TorchStates) -> None:
        super().__init__()
        self.model, self.layers = reference.model, reference.layers

    def forward(self, ids: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, L, D)."""
        return stacked(self.model, self.layers, ids, types)


@contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Without the warnings of torch and transformers that are meant for those who wrote the encoder."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
            warnings.filterwarnings("ignore", ".*torch.jit", FutureWarning)
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
            yield
    finally:
        logger.setLevel(level)


def _quantised(model: Any, samples: Sequence[Arguments]) -> Any:
    """The model with int8 matrix products, whose ranges are measured on the samples."""
    _openvino()
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", EXTRA) from error
    inputs = [ids if types is None else (ids, types) for ids, types in samples]
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):  # its bars are not results
            return nncf.quantize(
                model, nncf.Dataset(inputs), subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER
            )
    finally:
        logger.setLevel(level)


def _read(folder: Path) -> Any | None:
    """A quantised model, or None where none is or it is not whole."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        if any(manifest[file] != _digest(folder / file) for file in MODEL_FILES):
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return _openvino().Core().read_model(*(folder / file for file in MODEL_FILES))


def _write(model: Any, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        try:
            _openvino().save_model(model, partial / MODEL_FILES[0], compress_to_fp16=False)
        except RuntimeError as error:  # the one that OpenVINO raises for a full disk
            raise OSError(str(error).strip().splitlines()[-1]) from error
        manifest = {file: _digest(partial / file) for file in MODEL_FILES}
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest))
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if _read(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.replace(partial, folder)
            except OSError:
                if _read(folder) is None:  # else another process was faster
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot keep the quantised encoder in {folder}: {error.strerror or error}. "
            "Free some space, or set YTUNING_CACHE to a folder you can write"
        ) from error

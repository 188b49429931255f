"""OpenVINO against torch, int8 against fp32, the folder of quantised encoders, and complaints."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import WORDS
from tests.test_encoder import INPUTS, all_features, assert_close, build, naive_features
from ytuning import openvino_states as module
from ytuning.encoder import Encoder, load_encoder
from ytuning.errors import EncoderError, MissingExtraError, StoreError
from ytuning.openvino_states import OpenVinoStates, calibration_texts
from ytuning.tokens import TextInput

LONG: TextInput = (" ".join(WORDS) + " card" * 20, None)  # cut at 32 tokens
CPU = torch.device("cpu")


def load(folder: Path, precision: Any = "fp32", **options: Any) -> Encoder:
    return load_encoder(folder, **{"layers": [0, 2, 3], "precision": precision, "backend": "openvino", **options})


def in_torch(folder: Path) -> Encoder:
    return load_encoder(folder, layers=[0, 2, 3], precision="fp32", device="cpu")


def relative_error(given: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Norm of the difference over norm of the expected."""
    numbers = [np.concatenate([array.astype(np.float64).ravel() for array in arrays]) for arrays in (given, expected)]
    return float(np.linalg.norm(numbers[0] - numbers[1]) / np.linalg.norm(numbers[1]))


@pytest.fixture(scope="module")
def exact(tiny_encoder: Path) -> Encoder:
    return load(tiny_encoder)


@pytest.fixture(scope="module")
def quantised_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture(scope="module")
def quantised(tiny_encoder: Path, quantised_root: Path) -> Encoder:
    return load(tiny_encoder, "int8", cache=quantised_root)


# ------------------------------------------------------------------------------------------------- features


def test_fp32_equals_torch_and_a_naive_forward(exact: Encoder, tiny_encoder: Path) -> None:
    inputs = [*INPUTS, LONG]
    features = all_features(exact, inputs)
    assert relative_error(features, all_features(in_torch(tiny_encoder), inputs)) < 1e-4
    assert_close(features, naive_features(exact, tiny_encoder, inputs, types=True))
    assert features[-1].shape == (32, 3, 32)


def test_segment_ids_reach_the_model(exact: Encoder, tiny_encoder: Path) -> None:
    naive = naive_features(exact, tiny_encoder, INPUTS[1:2], types=False)[0]
    assert np.abs(all_features(exact, INPUTS[1:2])[0] - naive).max() > 1e-2


# torch.jit.script, with which DeBERTa-v2 is written, warns of its own end.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("architecture", ["roberta", "deberta-v2", "modernbert", "t5", "bart"])
def test_other_architectures_equal_torch(architecture: str, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = build(architecture, tiny_encoder, tmp_path / "model")
    inputs = [*INPUTS, LONG]
    assert relative_error(all_features(load(folder), inputs), all_features(in_torch(folder), inputs)) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_batch_mates_do_not_change_a_bit(
    exact: Encoder, quantised: Encoder, toy_rows: tuple[list[str], list[str]], precision: str
) -> None:
    encoder = exact if precision == "fp32" else quantised
    inputs: list[TextInput] = [(text, None) for text in toy_rows[0]]
    together = all_features(encoder, inputs)
    for row in range(0, len(inputs), 7):
        assert np.array_equal(all_features(encoder, [inputs[row]])[0], together[row])
    for row, features in enumerate(all_features(encoder, inputs[:50:-1])):
        assert np.array_equal(features, together[len(inputs) - 1 - row])


def test_int8_is_near_fp32(exact: Encoder, quantised: Encoder) -> None:
    inputs = [*INPUTS, LONG]
    error = relative_error(all_features(quantised, inputs), all_features(exact, inputs))
    assert 1e-4 < error < 0.03


def test_as_many_cores_compute_as_torch_may_use(tiny_encoder: Path, exact: Encoder) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder = load(tiny_encoder)
        assert isinstance(encoder.states, OpenVinoStates)
        assert encoder.states._compiled.get_property("NUM_STREAMS") <= 2
        assert encoder.states._compiled.get_property("INFERENCE_NUM_THREADS") == 2
        two = all_features(encoder, INPUTS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(*pair) for pair in zip(all_features(exact, INPUTS), two, strict=True))


def test_torchs_weights_are_let_go_of(exact: Encoder) -> None:
    assert {parameter.device.type for parameter in exact.model.parameters()} == {"meta"}


# ------------------------------------------------------------------------------------------------- identity


def test_identity_tells_backend_and_what_int8_depends_on(
    exact: Encoder, quantised: Encoder, tiny_encoder: Path
) -> None:
    texts = hashlib.sha256((Path(module.__file__).parent / "calibration.txt").read_bytes()).hexdigest()
    version = ".".join(module._version("nncf").split(".")[:2])
    assert (exact.identity.backend, exact.identity.precision) == ("openvino", "fp32")
    assert quantised.identity.backend == f"openvino, nncf {version}, texts {texts[:8]}"
    reference = in_torch(tiny_encoder).identity
    assert len({encoder.fingerprint for encoder in (exact.identity, quantised.identity, reference)}) == 3
    assert quantised.identity.options == {
        "layers": (0, 2, 3), "precision": "int8", "max_length": 32, "long_text": "truncate",
        "backend": "openvino",
    }  # fmt: skip


def test_auto_is_bf16_only_where_openvino_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, capabilities, expected in (
        ("bf16", ["FP32", "BF16"], "bf16"),
        ("bf16", ["FP32"], "fp32"),
        ("fp32", ["FP32", "BF16"], "fp32"),
    ):
        monkeypatch.setattr(module, "fast_precision", lambda device, fast=fast: fast)
        pretend(monkeypatch, capabilities)
        assert module.openvino_precision("auto", CPU) == expected


def pretend(monkeypatch: pytest.MonkeyPatch, capabilities: list[str]) -> None:
    """A processor with these capabilities."""

    class Package:
        def Core(self) -> Package:  # noqa: N802
            return self

        def get_property(self, *_: str) -> list[str]:
            return capabilities

    monkeypatch.setattr(module, "_openvino", Package)


# ------------------------------------------------------------------------------------------------- quantised encoders


def test_calibration_texts_are_many_and_varied() -> None:
    texts = calibration_texts()
    single = [text for text, pair in texts if pair is None]
    assert len(single) == len(set(single)) > 140
    assert len(texts) - len(single) > 30
    lengths = [len(text.split()) for text in single]
    assert min(lengths) == 1 and max(lengths) > 80
    assert all(text == text.strip() != "" for text in single)


def test_another_process_makes_the_same_and_asks_nobody(
    tiny_encoder: Path, tmp_path: Path, quantised: Encoder, quantised_root: Path
) -> None:
    command = [sys.executable, "-m", "tests.openvino_script", str(tiny_encoder), str(tmp_path / "cache")]
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "HOME": str(tmp_path / "home")},
    )
    assert done.stdout.count("\n") == 1  # no bars
    found = json.loads(done.stdout)
    own = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in quantised_root.rglob("model.bin")}
    assert found["files"] == own and len(own) == 1  # names of operations in model.xml are counted up
    digest = hashlib.sha256()
    inputs: list[TextInput] = [("the card is lost", None), ("my money is late", "why")]
    for _, features in quantised.encode(quantised.tokenize(inputs)):
        digest.update(features.tobytes())
    assert found["features"] == digest.hexdigest()
    assert found["asked"] == []
    assert not (tmp_path / "home" / "intel").exists()  # where their own record of a consent would be


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts quantisations (samples in each), which leave the model as it is."""
    counts: list[int] = []

    def pretended(model: Any, samples: Sequence[Any]) -> Any:
        counts.append(len(samples))
        return model

    monkeypatch.setattr(module, "_quantised", pretended)
    return counts


def test_a_quantised_encoder_is_kept(tiny_encoder: Path, tmp_path: Path, made: list[int]) -> None:
    features = all_features(load(tiny_encoder, "int8", cache=tmp_path), INPUTS)
    assert made == [len(calibration_texts())]
    again = all_features(load(tiny_encoder, "int8", cache=tmp_path), INPUTS)
    assert len(made) == 1
    assert all(np.array_equal(*pair) for pair in zip(features, again, strict=True))
    load(tiny_encoder, "int8", cache=tmp_path, layers=[3])
    load(tiny_encoder, "int8", cache=tmp_path / "other")
    assert len(made) == 3
    assert len(list((tmp_path / "openvino").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "no manifest", "damaged manifest"])
def test_a_damaged_one_is_made_again(tiny_encoder: Path, tmp_path: Path, made: list[int], damage: str) -> None:
    load(tiny_encoder, "int8", cache=tmp_path)
    (folder,) = (tmp_path / "openvino").iterdir()
    weights, manifest = folder / "model.bin", folder / "manifest.json"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[:-9])
    elif damage == "changed":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("[]")
    load(tiny_encoder, "int8", cache=tmp_path)
    assert len(made) == 2
    assert weights.read_bytes() == whole
    assert list((tmp_path / "openvino").iterdir()) == [folder]


def test_a_killed_write_leaves_nothing_that_is_read(
    tiny_encoder: Path, tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            load(tiny_encoder, "int8", cache=tmp_path)
    assert list((tmp_path / "openvino").iterdir()) == []
    load(tiny_encoder, "int8", cache=tmp_path)
    assert len(made) == 2


def test_the_first_of_two_processes_wins(
    tiny_encoder: Path, tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def beaten(partial: Path, folder: Path) -> None:
        replace(partial, folder)  # by the other one
        raise OSError("not empty")

    monkeypatch.setattr(os, "replace", beaten)
    assert all_features(load(tiny_encoder, "int8", cache=tmp_path), INPUTS[:1])


def test_a_cache_that_cannot_be_written_is_named(tiny_encoder: Path, tmp_path: Path, made: list[int]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        load(tiny_encoder, "int8", cache=tmp_path / "file")
    message = str(caught.value)
    assert message.startswith(f"cannot keep the quantised encoder in {tmp_path / 'file' / 'openvino'}/")
    assert message.endswith(": Not a directory. Free some space, or set YTUNING_CACHE to a folder you can write")


def test_a_disk_that_loses_what_is_written_is_named(
    tiny_encoder: Path, tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_read", lambda folder: None)
    with pytest.raises(StoreError, match=r"does not read back intact\. Check the disk or set YTUNING_CACHE"):
        load(tiny_encoder, "int8", cache=tmp_path)


# ------------------------------------------------------------------------------------------------- complaints


@pytest.mark.parametrize(
    ("backend", "precision", "message"),
    [
        ("onnx", "fp32", "backend must be one of 'torch', 'openvino'. Got 'onnx' instead."),
        (
            "torch",
            "int8",
            "precision must be one of 'auto', 'fp32', 'bf16'. Got 'int8' instead. For int8 use the backend 'openvino'.",
        ),
        ("openvino", "fp8", "precision must be one of 'auto', 'fp32', 'bf16', 'int8'. Got 'fp8' instead."),
    ],
)
def test_a_wrong_choice_is_refused(tiny_encoder: Path, backend: Any, precision: Any, message: str) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder(tiny_encoder, backend=backend, precision=precision)
    assert str(caught.value) == message


NO_BF16 = (
    "OpenVINO computes in bf16 only on a processor that has it (AMX or avx512_bf16), and this one has not. "
    "Use the precision 'fp32', or the backend 'torch'"
)


def test_bf16_is_not_promised_by_a_processor_without_it(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ["FP32", "INT8"])
    with pytest.raises(EncoderError) as caught:
        load(tiny_encoder, "bf16")
    assert str(caught.value) == NO_BF16


def test_what_is_compiled_is_what_was_asked_for(exact: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(exact.states, OpenVinoStates)
    compiled = exact.states._compiled
    monkeypatch.setattr(module, "_compiled", lambda *_: compiled)  # fp32 in place of bf16
    with pytest.raises(EncoderError) as caught:
        OpenVinoStates(None, "bf16")
    assert str(caught.value) == NO_BF16


def test_a_gpu_is_refused(tiny_encoder: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        load(tiny_encoder, device="cuda")
    assert str(caught.value) == (
        "the backend 'openvino' computes on the CPU. Got the device 'cuda' instead. "
        "Use the device 'cpu', or the backend 'torch'"
    )


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_a_missing_extra_is_named(
    package: str, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    expected = f"the package {package!r} is not installed. Install it with: pip install 'ytuning[openvino]'"
    with pytest.raises(MissingExtraError) as caught:
        load(tiny_encoder, "int8", cache=tmp_path)
    assert str(caught.value) == expected
    with pytest.raises(MissingExtraError, match="'no-such-package' is not installed"):
        module._version("no-such-package")


def test_an_encoder_that_cannot_be_converted_is_named(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:  # as it is for GPT-2 with transformers 5
        log = "Check 'false' failed\n-- prim::Constant: ...\nSummary:\n-- No conversion rule found for: aten::diff\n"
        raise RuntimeError(log)

    monkeypatch.setattr("openvino.convert_model", fail)
    with pytest.raises(EncoderError) as caught:
        load(tiny_encoder)
    assert str(caught.value) == (
        f"OpenVINO cannot convert the encoder {str(tiny_encoder)!r} "
        "(RuntimeError: -- No conversion rule found for: aten::diff). Use the backend 'torch'"
    )


def test_a_conversion_that_computes_something_else_is_refused(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = module._infer
    monkeypatch.setattr(module, "_infer", lambda *arguments: infer(*arguments) * 1.01)
    with pytest.raises(EncoderError) as caught:
        load(tiny_encoder)
    assert str(caught.value) == (
        f"OpenVINO does not compute what torch computes with the encoder {str(tiny_encoder)!r} "
        "(relative error 0.01). Use the backend 'torch'"
    )

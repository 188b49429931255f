"""Codecs: what comes back, compared with naive versions, at the edges of float16 too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ytuning.data.dataset import read_dataset
from ytuning.encoder.encoder import load_encoder
from ytuning.errors import InputError
from ytuning.features.codecs import CODECS, Codec, Float16Codec, Int8Codec, PcaInt8Codec, build_codec, row_bytes
from ytuning.features.features import live_features

DTYPES = (torch.float32, torch.bfloat16)


def normal(tokens: int, layers: int = 2, width: int = 6, seed: int = 0) -> np.ndarray:
    """Features with a strong direction and an outlier, as encoders give them."""
    values = np.random.default_rng(seed).normal(size=(tokens, layers, width))
    values[:, 0, 1] = 30 + values[:, 0, 1]
    return (values + values[:, :1, 2:3]).astype(np.float16)


def decoded(codec: Codec, features: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    rows = codec.encode(torch.from_numpy(features)).numpy()
    assert rows.dtype == np.uint8 and rows.shape == (len(features), row_bytes(codec.name, codec.layers, codec.width))
    values: np.ndarray = codec.decode(torch.from_numpy(rows), dtype).float().numpy()
    return values.reshape(features.shape)


def naive_layout(width: int) -> tuple[int, str]:
    """How many exceptions a state has, and their type."""
    kind = "i2" if width <= 2048 else "i4"
    return max(0, min(16, (int(width * 0.03) - 2) // int(kind[1]))), kind


def naive_int8(row: bytes, layers: int, width: int) -> list[float]:
    """One token, number by number."""
    count, kind = naive_layout(width)
    head = layers * (2 + count * int(kind[1]))
    scales = np.frombuffer(row[: 2 * layers], np.float16)
    codes = np.frombuffer(row[2 * layers : head], kind).reshape(layers, count)
    numbers = np.frombuffer(row[head:], np.int8)
    values = [float(scales[place // width]) * int(number) for place, number in enumerate(numbers)]
    for layer in range(layers):
        for code in codes[layer].tolist():
            values[layer * width + code // 16] *= 2.0 ** (code % 16)
    return values


def naive_scale(size: float) -> float:
    """The least float16 of which 127 are at least a size."""
    scale = np.float16(size / 127)
    return float(scale if 127 * float(scale) >= size else np.nextafter(scale, np.float16(np.inf)))


def naive_encoding(token: np.ndarray) -> bytes:
    """The row of one token (L, D), number by number."""
    layers, width = token.shape
    count, kind = naive_layout(width)
    scales, codes, numbers = np.zeros(layers, np.float16), np.zeros((layers, count), kind), np.zeros(token.shape, "i1")
    for layer, state in enumerate(token.astype(float).tolist()):
        sizes = sorted(map(abs, state), reverse=True)
        coarse, finer = naive_scale(sizes[0]), max(naive_scale(sizes[count]), naive_scale(sizes[0]) / 2**15, 2.0**-14)
        excepting = coarse >= 4 * finer
        scales[layer] = scale = finer if excepting else coarse
        place = 0
        for channel, value in enumerate(state):
            power = 0
            if excepting and abs(value) > 127 * scale:
                power = 1
                while round(abs(value) / scale / 2**power) > 127:
                    power += 1
                codes[layer, place] = 16 * channel + power
                place += 1
            numbers[layer, channel] = round(value / scale / 2**power) if scale else 0
    return scales.tobytes() + codes.tobytes() + numbers.tobytes()


def planted(features: np.ndarray, channels: int, *, every: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, L, D) with some channels 100 or 1,000 times the rest in each n-th token, and where (N, L, D)."""
    chooser = np.random.default_rng(seed)
    exact = features.astype(np.float64)
    rms = np.sqrt((exact**2).mean(2, keepdims=True))
    where = np.zeros(features.shape, bool)
    where[::every, :, chooser.choice(features.shape[2], channels, replace=False)] = True
    huge = rms * chooser.choice([-1000, -100, 100, 1000], features.shape)
    return np.where(where, huge, exact).clip(-65504, 65504).astype(np.float16), where


def share_lost(features: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """What int8 loses of the numbers that are not ``where``, root mean square, and at most of each that is."""
    lost = decoded(Int8Codec(*features.shape[1:]), features).astype(np.float64) - features
    ordinary = np.linalg.norm(lost[~where]) / np.linalg.norm(features[~where].astype(np.float64))
    return float(ordinary), float(np.abs(lost[where] / features[where]).max(initial=0))


def test_row_bytes_of_the_default_encoder() -> None:
    assert [row_bytes(name, 2, 384) for name in CODECS] == [1536, 788, 386]
    assert 788 / 1536 < 0.52 and 386 / 1536 < 0.26
    assert row_bytes("compact", 1, 1) == 3


def test_exceptions_of_int8_take_3_percent_at_most() -> None:
    assert [row_bytes("int8", 1, width) - width for width in (1, 66, 256, 384, 768, 1024, 4096)] == [
        2, 2, 2 + 2 * 2, 2 + 4 * 2, 2 + 10 * 2, 2 + 14 * 2, 2 + 16 * 4,
    ]  # fmt: skip
    assert all(row_bytes("int8", 1, width) <= max(width + 2, 1.03 * width) for width in range(1, 9000))


def test_unknown_codec() -> None:
    message = r"^store must be one of 'fp16', 'int8', 'compact'\. Got 'int4' instead\. Did you mean 'int8'\?$"
    with pytest.raises(InputError, match=message):
        row_bytes("int4", 2, 3)
    with pytest.raises(InputError, match=message):
        build_codec("int4", 2, 3)


@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_fp16_gives_back_the_same(tokens: int) -> None:
    features = normal(tokens)
    assert np.array_equal(decoded(Float16Codec(2, 6), features), features.astype(np.float32))
    bf16 = torch.from_numpy(features).bfloat16().float().numpy()
    assert np.array_equal(decoded(Float16Codec(2, 6), features, torch.bfloat16), bf16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layers", "width"), [(1, 1), (1, 3), (2, 6), (3, 5)])  # odd row bytes, too
def test_int8_is_the_naive_product_of_scale_and_number(dtype: torch.dtype, layers: int, width: int) -> None:
    features = np.random.default_rng(0).normal(size=(300, layers, width)).astype(np.float16)
    codec = Int8Codec(layers, width)
    expected = [naive_int8(row.tobytes(), layers, width) for row in codec.encode(torch.from_numpy(features)).numpy()]
    restored = codec.decode(torch.from_numpy(codec.encode(torch.from_numpy(features)).numpy()), dtype)
    assert restored.dtype == dtype
    assert torch.equal(restored, torch.tensor(expected, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("width", [6, 134, 200, 2048, 2049, 5000])
@pytest.mark.parametrize("channels", [0, 1, 2, 6])
def test_int8_is_what_the_naive_encoder_writes(width: int, channels: int) -> None:
    features, _ = planted(np.random.default_rng(0).normal(size=(6, 2, width)).astype(np.float16), channels, every=2)
    # The smallest and the largest numbers side by side, with which a power has no room for their ratio.
    features[4, 0], features[4, 0, -1] = 2.0**-24, 65504
    codec = Int8Codec(2, width)
    rows = codec.encode(torch.from_numpy(features))
    for row, token in zip(rows.numpy(), features, strict=True):
        assert row.tobytes() == naive_encoding(token)
    expected = torch.tensor([naive_int8(row.tobytes(), 2, width) for row in rows.numpy()], dtype=torch.float64)
    for dtype in DTYPES:
        assert torch.equal(codec.decode(rows, dtype), expected.to(dtype))
        assert torch.equal(codec.decode_states(rows, [1], dtype), expected[:, width:].to(dtype))


def test_int8_of_no_tokens_and_of_features_that_lie_otherwise() -> None:
    codec = Int8Codec(2, 140)
    features = torch.from_numpy(planted(np.random.default_rng(0).normal(size=(9, 2, 140)).astype(np.float16), 1)[0])
    transposed = features.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(codec.encode(transposed), codec.encode(features))
    for dtype in DTYPES:
        assert codec.decode(codec.encode(features[:0]), dtype).shape == (0, 280)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_int8_gives_the_same_bytes_for_what_it_has_decoded(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([5, 134, 200, 400]))
    chooser = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # From 2 ** -6, or scales are subnormal numbers, and up to 2 ** 16.
    values = chooser.normal(size=(8, 2, width)) * 2.0 ** chooser.uniform(-6, 3, (8, 2, 1))
    values[:, :, 0] = 1
    channels = chooser.integers(0, width, data.draw(st.integers(0, 8)))
    powers = data.draw(st.sampled_from([2, 3, 8, 16]))
    values[:, :, channels] *= 2.0 ** chooser.uniform(0, powers, (8, 2, len(channels)))
    features = torch.from_numpy(values.clip(-65504, 65504).astype(np.float16))
    codec = Int8Codec(2, width)
    rows = codec.encode(features)
    again = codec.decode(rows, torch.float32).unflatten(1, (2, width))
    assert torch.equal(codec.encode(again), rows)
    # Nor do they depend on the rows beside them.
    assert torch.equal(codec.encode(features[3:5]), rows[3:5])
    # No number is off by more than half a scale, or half of an exception's own.
    scales = rows[:, :4].contiguous().view(torch.float16).double()[..., None]
    exact = features.double()
    assert ((again.double() - exact).abs() <= torch.maximum(scales / 2, exact.abs() / 126) * (1 + 1e-6)).all()


@pytest.mark.parametrize(("width", "most"), [(256, 2), (384, 4), (768, 8), (2500, 8)])
@pytest.mark.parametrize("every", [1, 20])
def test_huge_channels_cost_the_others_nothing(width: int, most: int, every: int) -> None:
    features = np.random.default_rng(0).normal(size=(200, 2, width)).astype(np.float16)
    for channels in range(most + 1):
        ordinary, huge = share_lost(*planted(features, channels, every=every, seed=channels))
        assert ordinary < 0.01 and huge < 0.01
    # With more than there is room for they would: the test above could fail.
    assert share_lost(*planted(features, naive_layout(width)[0] + 1, every=every))[0] > 0.05


@pytest.mark.real
@pytest.mark.parametrize(("encoder", "most"), [("default", 4), ("second", 8)])
def test_huge_channels_in_features_of_real_encoders(
    shared_data: Path, encoder: str, most: int, request: pytest.FixtureRequest
) -> None:
    loaded = load_encoder() if encoder == "default" else load_encoder(request.getfixturevalue("second_encoder"))
    inputs = read_dataset(shared_data / "trec6" / "test.jsonl").inputs[:150]
    texts = live_features(inputs, loaded, states=range(loaded.depth + 1))
    features = texts.tokens(torch.arange(len(inputs))).half().numpy()
    for state in range(loaded.depth + 1):
        one = features[:, state : state + 1]
        assert share_lost(one, np.zeros(one.shape, bool))[0] < 0.016
        for channels in range(1, most + 1):
            for every in (1, 20):
                ordinary, huge = share_lost(*planted(one, channels, every=every, seed=channels))
                # Four huge channels leave no room for the channel that is large in the default encoder anyway.
                assert ordinary < (0.02 if channels < naive_layout(one.shape[2])[0] else 0.023) and huge < 0.01


finite = st.floats(width=16, allow_nan=False, allow_infinity=False)
huge = st.sampled_from([65504.0, -65504.0, 65472.0, 2**-24, -(2**-24), 127 * 2**-24, 2**-14, 0.0])


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.float16, (3, 2, 4), elements=finite | huge))
def test_int8_is_within_half_a_step_whatever_the_size(features: np.ndarray) -> None:
    restored = decoded(Int8Codec(2, 4), features).astype(np.float64)
    exact = features.astype(np.float64)
    peak = np.abs(exact).max(2, keepdims=True)
    # A float16 scale is rounded up: by a thousandth, or to a multiple of the smallest number.
    step = np.maximum(peak / 127 * (1 + 2**-10), peak / 127 + 2**-24)
    assert np.isfinite(restored).all()
    assert (np.abs(restored - exact) <= step / 2 * (1 + 1e-6)).all()
    assert (restored[np.broadcast_to(peak == 0, restored.shape)] == 0).all()
    subnormal = peak <= 127 * 2**-24
    assert np.array_equal((restored * subnormal), (exact * subnormal))  # nothing is lost there


def test_int8_uses_its_whole_range_and_nothing_saturates() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 1, 40)).astype(np.float16)
    numbers = Int8Codec(1, 40).encode(torch.from_numpy(features)).numpy()[:, 2:].view(np.int8)
    assert set(np.abs(numbers.astype(int)).max(1).tolist()) == {127}
    assert numbers.min() == -127  # -128 would be a number that has overflowed


def test_int8_keeps_what_is_not_a_number_visible() -> None:
    features = normal(3)
    features[1, 0, 2] = np.nan
    restored = decoded(Int8Codec(2, 6), features)
    assert np.isnan(restored[1, 0]).all() and np.isfinite(restored[1, 1]).all() and np.isfinite(restored[[0, 2]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_compact_is_the_naive_sum_over_directions(dtype: torch.dtype) -> None:
    features = normal(300)
    codec = PcaInt8Codec.fitted(features)
    rows = codec.encode(torch.from_numpy(features)).numpy()
    assert rows.shape == (300, 6 + 2)
    restored = codec.decode(torch.from_numpy(rows), dtype)
    assert restored.dtype == dtype
    for row, values in zip(rows, restored.double().numpy(), strict=True):
        coordinates = np.array(naive_int8(row.tobytes(), 1, 6)) * codec.weights
        expected = sum(c * direction for c, direction in zip(coordinates, codec.components.astype(float), strict=True))
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        np.testing.assert_allclose(values, expected, atol=tolerance * np.abs(coordinates).sum(), rtol=0)


def test_compact_loses_what_a_principal_component_analysis_loses_and_little_more() -> None:
    mixing = np.random.default_rng(1).normal(size=(12, 12)) * 0.6 ** np.arange(12)[:, None]
    features = (np.random.default_rng(2).normal(size=(4000, 12)) @ mixing).astype(np.float16).reshape(-1, 2, 6)
    flat = features.reshape(-1, 12).astype(np.float64)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    best = flat @ directions[:6].T @ directions[:6]
    restored = decoded(PcaInt8Codec.fitted(features), features).reshape(-1, 12)
    error, least = (np.linalg.norm(values - flat) / np.linalg.norm(flat) for values in (restored, best))
    assert 0.02 < least <= error < 1.02 * least


def test_the_basis_is_orthonormal_has_fixed_signs_and_is_the_same_again() -> None:
    features = normal(500)
    basis = PcaInt8Codec.fitted(features)
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(6), atol=1e-6)
    assert (basis.components[np.arange(6), np.abs(basis.components).argmax(1)] > 0).all()
    assert (np.diff(basis.weights) <= 0).all() and (basis.weights > 0).all()
    assert PcaInt8Codec.fitted(features.copy()).to_bytes() == basis.to_bytes()


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_fewer_tokens_than_directions(tokens: int) -> None:
    features = normal(tokens)
    basis = PcaInt8Codec.fitted(features)
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(6), atol=1e-6)
    np.testing.assert_allclose(decoded(basis, features), features.astype(np.float32), atol=0.02 * 30)
    # Other tokens lose nothing but what lies in directions that there is no room for.
    others = normal(200, seed=1)
    flat = others.reshape(200, -1).astype(np.float64)
    best = flat @ basis.components.T @ basis.components
    error, least = (np.linalg.norm(v - flat) for v in (decoded(basis, others).reshape(200, -1), best))
    assert error < 1.05 * least


def test_tokens_that_are_all_zero_give_a_basis() -> None:
    basis = PcaInt8Codec.fitted(np.zeros((4, 2, 6), np.float16))
    assert (basis.weights == 1).all()
    assert (decoded(basis, np.zeros((4, 2, 6), np.float16)) == 0).all()
    assert np.isfinite(decoded(basis, normal(4))).all()


@pytest.mark.parametrize("name", CODECS)
def test_the_bytes_of_a_token_do_not_depend_on_those_beside_it(name: str) -> None:
    features = np.random.default_rng(0).normal(size=(1200, 2, 140)).astype(np.float16)
    # An exception in every third token.
    features[::3, 1, 7] = 300
    codec = build_codec(name, 2, 140) or PcaInt8Codec.fitted(features)
    # Two blocks and a part of one.
    together = codec.encode(torch.from_numpy(features))
    for size in (1, 7, 400):
        parts = torch.from_numpy(features).split(size)
        assert torch.equal(torch.cat([codec.encode(part) for part in parts]), together)


def test_a_basis_goes_through_its_bytes() -> None:
    basis = PcaInt8Codec.fitted(normal(50))
    again = build_codec("compact", 2, 6, basis.to_bytes())
    assert isinstance(again, PcaInt8Codec)
    assert np.array_equal(
        again.encode(torch.from_numpy(normal(9, seed=1))).numpy(),
        basis.encode(torch.from_numpy(normal(9, seed=1))).numpy(),
    )
    assert build_codec("compact", 2, 6) is None


@pytest.mark.parametrize("data", [b"", b"nothing", PcaInt8Codec.fitted(normal(50)).to_bytes()[:-1]])
def test_bytes_that_are_no_basis(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a basis \(SafetensorError\)"):
        build_codec("compact", 2, 6, data)


def test_a_basis_of_another_encoder() -> None:
    with pytest.raises(ValueError, match=r"a basis of .*\(6, 12\).*, where .*\(9, 18\).* is needed"):
        build_codec("compact", 3, 6, PcaInt8Codec.fitted(normal(50)).to_bytes())


def test_a_token_far_from_the_basis_saturates() -> None:
    basis = PcaInt8Codec.fitted(np.random.default_rng(0).normal(0, 1e-4, (500, 1, 8)).astype(np.float16))
    far = np.full((1, 1, 8), 6e4, np.float16)
    restored = basis.decode(torch.from_numpy(basis.encode(torch.from_numpy(far)).numpy()), torch.float32)
    assert torch.isfinite(restored).all() and restored.abs().max() > 1


def test_the_basis_does_not_depend_on_the_number_of_threads() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 2, 64)).astype(np.float16)
    threads = torch.get_num_threads()
    try:
        bases = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            bases.append(PcaInt8Codec.fitted(features).to_bytes())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert bases[0] == bases[1] == bases[2]

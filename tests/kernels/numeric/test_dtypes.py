"""Element types to float32 and back, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.numeric.dtypes import decode, encode, storage
from tests.support.oracle import from_bf16, round_bf16

ALL_BF16 = np.arange(1 << 16, dtype=np.uint16)


def test_every_bf16_decodes_exactly() -> None:
    got = decode(ALL_BF16, "BF16", np.empty(1 << 16, np.float32))
    with np.errstate(invalid="ignore"):  # numpy says so of signalling NaNs
        np.testing.assert_array_equal(got, from_bf16(ALL_BF16).astype(np.float32))
    assert (np.signbit(got) == (ALL_BF16 >> 15).astype(bool)).all()


def test_every_bf16_survives_the_way_there_and_back() -> None:
    values = decode(ALL_BF16, "BF16", np.empty(1 << 16, np.float32))
    got = encode(values, "BF16", np.empty(1 << 16, np.uint16))
    number = ~np.isnan(values)
    np.testing.assert_array_equal(got[number], ALL_BF16[number])
    assert (got[~number] == 0x7FC0).all()


def test_bf16_rounds_to_nearest_even_between_all_neighbours() -> None:
    """Each bf16 number with the float32 numbers just below, on and just above the tie to its neighbour."""
    low = (ALL_BF16[(ALL_BF16 & 0x7FFF) < 0x7F80].astype(np.uint32)) << 16
    bits = np.concatenate([low + step for step in (1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = bits.view(np.float32)
    np.testing.assert_array_equal(
        encode(values, "BF16", np.empty(len(bits), np.uint16)), round_bf16(values.astype(np.float64))
    )


def test_bf16_of_random_bit_patterns() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    values = bits.view(np.float32)
    got = encode(values, "BF16", np.empty(len(bits), np.uint16), np.empty(len(bits), np.uint32))
    number = ~np.isnan(values)
    assert (~number).sum() > 1000
    np.testing.assert_array_equal(got[number], round_bf16(values[number].astype(np.float64)))
    assert (got[~number] == 0x7FC0).all()


def test_nan_payloads_that_would_carry_over_stay_nan() -> None:
    values = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    got = encode(values, "BF16", np.empty(5, np.uint16))
    assert [hex(bits) for bits in got] == ["0x7fc0", "0x7fc0", "0x7fc0", "0x7f80", "0xff80"]


def test_largest_values_round_to_infinity() -> None:
    largest = np.array([3.3895313892515355e38, 3.3961775292304957e38, 3.4028235e38], np.float32)
    assert encode(largest, "BF16", np.empty(3, np.uint16)).tolist() == [0x7F7F, 0x7F80, 0x7F80]
    half = np.array([65504, 65519, 65520, -70000], np.float32)
    assert encode(half, "F16", np.empty(4, np.float16)).tolist() == [65504, 65504, np.inf, -np.inf]


def test_f16_subnormals_and_ties() -> None:
    step = 2.0**-24
    values = np.array([step, 0.5 * step, 0.75 * step, 1.5 * step, 2.5 * step, -0.25 * step], np.float32)
    assert (encode(values, "F16", np.empty(6, np.float16)) / np.float16(step)).tolist() == [1, 0, 1, 2, 2, -0.0]


def test_f16_and_f32_decode_exactly_and_f64_once_rounded() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(decode(halves, "F16", np.empty(1 << 16, np.float32)), halves.astype(np.float32))
    wide = np.array([1 + 2.0**-25, 1 + 2.0**-24 + 2.0**-40, 1e300])
    got = decode(wide, "F64", np.empty(3, np.float32))
    assert got.tolist() == [1.0, 1 + 2.0**-23, np.inf]


def test_matrices_keep_their_shape_and_empty_ones_work() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (
        encode(values, "BF16", np.empty((2, 3), np.uint16)).tolist() == round_bf16(values.astype(np.float64)).tolist()
    )
    assert encode(np.empty((0, 3), np.float32), "BF16", np.empty((0, 3), np.uint16)).shape == (0, 3)


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(RegistryError, match="I8") as caught:
        storage("I8")
    assert caught.value.code == "unsupported"

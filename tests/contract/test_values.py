from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_contract import values

LETTERS = {"F64": "d", "F32": "f", "F16": "e"}


def decode(chunk: bytes, dtype: str) -> list[float]:
    """The numbers, by another way than the code's: struct, with BF16 widened by hand."""
    if dtype == "BF16":
        chunk = b"".join(b"\0\0" + chunk[i : i + 2] for i in range(0, len(chunk), 2))
        dtype = "F32"
    size = struct.calcsize(LETTERS[dtype])
    return list(struct.unpack(f"<{len(chunk) // size}{LETTERS[dtype]}", chunk))


@st.composite
def chunks(draw) -> tuple[str, bytes]:
    dtype = draw(st.sampled_from(["F64", "F32", "F16", "BF16"]))
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}[dtype]
    pieces = st.one_of(
        st.binary(min_size=size, max_size=size),
        st.sampled_from([bytes(size), bytes(size - 1) + b"\x80", b"\xff" * size, bytes(size - 1) + b"\x7f"]),
    )
    return dtype, b"".join(draw(st.lists(pieces, max_size=20)))


@given(chunks())
def test_first_nonfinite_is_the_first(case):
    dtype, chunk = case
    expected = next((i for i, x in enumerate(decode(chunk, dtype)) if not math.isfinite(x)), None)
    assert values.first_nonfinite(chunk, dtype) == expected


@given(chunks())
def test_zero_counts_negative_zero(case):
    dtype, chunk = case
    assert values.is_zero(chunk, dtype) == all(x == 0 for x in decode(chunk, dtype))


@given(chunks())
def test_magnitude_is_bounded(case):
    dtype, chunk = case
    numbers = decode(chunk, dtype)
    bound = values.magnitude_bound(chunk, dtype)
    if all(math.isfinite(x) for x in numbers):
        largest = max((abs(x) for x in numbers), default=0.0)
        assert largest <= bound
        smallest_normal = {"F64": 2.3e-308, "F32": 1.2e-38, "BF16": 1.2e-38, "F16": 6.2e-5}[dtype]
        if largest > smallest_normal * 70000:
            assert bound <= largest * (65536 if dtype == "F64" else 8)
    if all(x == 0 for x in numbers):
        assert bound == 0.0


def test_long_chunk_with_one_nan_among_large_values():
    # Large values share the top byte with NaN: the exact path must find the one that is not finite.
    chunk = struct.pack("<f", 3.0e38) * 100_000 + struct.pack("<f", math.nan) + struct.pack("<f", 1.0) * 10
    assert values.first_nonfinite(chunk, "F32") == 100_000


@pytest.mark.parametrize(
    ("dtype", "byte", "expected"), [("F8_E4M3", 0x7F, 1), ("F8_E4M3", 0x7E, None), ("F8_E5M2", 0x7C, 1)]
)
def test_eight_bit_floats(dtype, byte, expected):
    assert values.first_nonfinite(bytes([0, byte]), dtype) == expected


@given(st.binary(max_size=64).filter(lambda data: len(data) % 2 == 0))
def test_bf16_widens_exactly(chunk):
    wide = values.widen(chunk, "BF16", "F32")
    assert wide is not None
    same = [
        a == b or (math.isnan(a) and math.isnan(b))
        for a, b in zip(decode(chunk, "BF16"), decode(wide, "F32"), strict=True)
    ]
    assert all(same)
    assert values.widen(chunk, "F32", "BF16") is None


def test_ones():
    assert values.is_one(struct.pack("<3f", 1, 1, 1), "F32")
    assert not values.is_one(struct.pack("<3f", 1, 1, 1.0000001), "F32")
    assert values.is_one(b"\x80\x3f" * 5, "BF16")

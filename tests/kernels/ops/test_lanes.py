"""Codes in the lanes of a warp: the inline assembly itself, emulated, against the codecs of `lora_kernels.quantized`.

python -m tests.kernels.ops.test_lanes      encode every float32 from -1 to 1 and one beyond: two billion
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from lora_kernels.ops.quantized import lanes
from lora_kernels.quantized.codes import CODEBOOKS, NF4_BOUNDS
from tests.kernels.ops import ptx

ONE = int(np.float32(1).view(np.uint32))
BINS = lanes.bins()
# Edges of the bins, at which the number of the bin changes.
EDGES = np.array([(i - 0.5) / 15 - 1 for i in range(1, 31)], np.float32)


def encoded(numbers):
    """The codes of float32 numbers, a multiple of eight of them."""
    (words,) = ptx.run(
        lanes.ENCODE.value, [*np.ascontiguousarray(numbers.reshape(-1, 8).T.view(np.uint32)), BINS], outputs=1
    )
    return unpacked(words)


def unpacked(words):
    packed = words.view(np.uint8)
    return np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)


def expected_codes(numbers):
    return np.searchsorted(NF4_BOUNDS, numbers, side="left").astype(np.uint8)


def both_signs(bits):
    bits = np.asarray(bits, np.uint32)
    return np.concatenate((bits, bits | np.uint32(1 << 31))).view(np.float32)


def test_every_number_near_a_bound_or_an_edge_of_a_bin():
    around = np.concatenate([NF4_BOUNDS, EDGES]).view(np.uint32).astype(np.int64)[:, None] + np.arange(-2000, 2000)
    numbers = around.astype(np.uint32).reshape(-1).view(np.float32)
    np.testing.assert_array_equal(encoded(numbers), expected_codes(numbers))


def test_zeros_subnormal_numbers_and_both_ends():
    ends = both_signs([*range(4), 1 << 22, 0x7FFFFF, 0x800000, ONE - 1, ONE, ONE + 1, 0x3D088888, 0x3D088889])
    np.testing.assert_array_equal(encoded(ends), expected_codes(ends))


def test_a_share_of_all_numbers():
    numbers = both_signs(np.arange(0, ONE + 2, 4099))
    numbers = numbers[: numbers.size // 8 * 8]
    np.testing.assert_array_equal(encoded(numbers), expected_codes(numbers))


def test_a_bin_has_at_most_one_bound():
    places = np.rint(NF4_BOUNDS.astype(np.float64) * 15 + 15)
    assert len(set(places)) == len(NF4_BOUNDS)
    assert (NF4_BOUNDS.view(np.uint32) & 0x3C000000 == 0x3C000000).all()


def test_the_table_on_a_device_keeps_the_bits_of_both_parts():
    table = lanes.encoding(torch.device("cpu")).numpy()
    np.testing.assert_array_equal(table.view(np.uint32), np.concatenate((BINS, NF4_BOUNDS.view(np.uint32))))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_every_byte_of_4_bit_codes(kind):
    words = (
        np.random.default_rng(0).permutation(np.arange(4096, dtype=np.uint32) % 256).astype(np.uint8).view(np.uint32)
    )
    # The lanes of a warp are twice those of the table.
    table = np.tile(CODEBOOKS[kind].values, 2).view(np.uint32)
    values = np.stack(ptx.run(lanes.DECODE.value, [words, table], outputs=8), axis=1).view(np.float32)
    np.testing.assert_array_equal(values.reshape(-1), CODEBOOKS[kind].values[unpacked(words)])


def test_every_byte_of_int8_codes_in_every_place():
    codes = np.random.default_rng(0).permutation(np.arange(4096) % 256).astype(np.uint8)
    values = np.stack(ptx.run(lanes.DECODE_INT8.value, [codes.view(np.uint32)], outputs=4), axis=1).view(np.float32)
    np.testing.assert_array_equal(values.reshape(-1), codes.view(np.int8).astype(np.float32))


@triton.jit
def both_kernel(
    p_words: tl.tensor, p_scaled: tl.tensor, values: tl.tensor, encoding: tl.tensor, p_decoded: tl.tensor,
    p_int8: tl.tensor, p_encoded: tl.tensor, COUNT: tl.constexpr,
) -> None:  # fmt: skip
    """The compiled form of each function, then its plain one."""
    o_words, o_eights = tl.arange(0, COUNT), tl.arange(0, 8)
    b_words = tl.load(p_words + o_words)
    o_values = o_words[:, None] * 8 + o_eights[None, :]
    tl.store(p_decoded + o_values, lanes.decode8(b_words, lanes.lane_table(values, 16)))
    tl.store(p_decoded + COUNT * 8 + o_values, lanes.decode8_plainly(b_words, values))
    o_bytes = o_words[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(p_int8 + o_bytes, lanes.decode_int8(b_words))
    tl.store(p_int8 + COUNT * 4 + o_bytes, lanes.decode_int8_plainly(b_words))
    b_scaled = tl.load(p_scaled + o_values)
    tl.store(p_encoded + o_words, lanes.encode8(b_scaled, lanes.lane_table(encoding, 32)))
    tl.store(p_encoded + COUNT + o_words, lanes.encode8_plainly(b_scaled, encoding))


def test_compiled_and_plain_forms_are_the_same(device):
    """They are one in the interpreter, where the plain forms are compared with the codecs."""
    count = 1024
    words = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    near = (np.concatenate([NF4_BOUNDS, EDGES]).view(np.uint32).astype(np.int64)[:, None] + np.arange(-91, 92)).ravel()
    scaled = np.resize(near.astype(np.uint32).view(np.float32), 8 * count)
    decoded, int8 = (torch.empty(2, count * size, device=device) for size in (8, 4))
    packed = torch.empty(2, count, dtype=torch.uint32, device=device)
    both_kernel[(1,)](
        torch.from_numpy(words).to(device), torch.from_numpy(scaled).to(device),
        torch.from_numpy(CODEBOOKS["nf4"].values).to(device), lanes.encoding(device),
        decoded, int8, packed, COUNT=count,
    )  # fmt: skip
    expected = (CODEBOOKS["nf4"].values[unpacked(words)], words.view(np.int8).astype(np.float32))
    for found, right in zip((decoded, int8), expected, strict=True):
        for form in found.cpu().numpy():
            np.testing.assert_array_equal(form, right)
    for form in packed.cpu().numpy():
        np.testing.assert_array_equal(unpacked(form), expected_codes(scaled))


def main() -> None:
    size, wrong = 1 << 22, 0
    for first in range(0, ONE + 2, size):
        numbers = both_signs(np.arange(first, min(first + size, ONE + 2)))
        rest = -numbers.size % 8
        numbers = np.concatenate((numbers, numbers[:rest]))
        wrong += int(np.count_nonzero(encoded(numbers) != expected_codes(numbers)))
    print(f"{2 * (ONE + 2)} numbers, {wrong} codes differ")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()

"""Codes of quantized weights as float32, in numpy: streams of bits, words, bytes and 8-bit floats."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lora_kernels.numeric.dtypes import F32

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
WORD: Final = 32
AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of eight, that each 4 bits of a word of AWQ hold, from the lowest."""
_E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def row_bytes(codes: str, bits: int, columns: int) -> int:
    """Bytes of a row of `columns` codes."""
    if codes == "bits":
        return 4 * -(-columns * bits // WORD)
    if codes == "words":
        return 4 * -(-columns // (WORD // bits))
    return -(-columns // 2) if codes == "e2m1" else columns


def decode_rows(raw: U8, codes: str, bits: int, out: F32) -> F32:
    """Decode rows of stored bytes (rows, `row_bytes`) into `out` (rows, columns)."""
    columns = out.shape[1]
    if codes == "int8":
        np.copyto(out, raw.view(np.int8))
    elif codes in ("e4m3", "e5m2"):
        np.take(float8(codes), raw, out=out, mode="clip")
    elif codes == "e2m1":
        out[:] = _looked_up(raw, _pairs(codes))[:, :columns]
    elif codes == "bits" and bits == 8:  # noqa: PLR2004
        np.copyto(out, raw[:, :columns])
    elif codes == "bits" and bits in (2, 4):
        out[:] = _looked_up(raw, _pairs(str(bits)))[:, :columns]
    else:
        out[:] = unpack(raw.view("<u4"), bits, columns, whole=codes == "words")
    return out


def unpack(words: U32, bits: int, count: int, *, whole: bool = False) -> U8:
    """The first `count` unsigned codes of each row of words, lowest bits first.

    whole: a code never straddles two words; the bits that are left over in a word are unused.
    """
    mask = np.uint32((1 << bits) - 1)
    a_word = WORD // bits
    if whole or WORD % bits == 0:
        shifts = np.arange(a_word, dtype=np.uint32) * np.uint32(bits)
        found = ((words[:, :, None] >> shifts) & mask).astype(np.uint8)
        return found.reshape(len(words), -1)[:, :count]
    rows, width = words.shape
    padded = np.zeros((rows, -(-width // bits) * bits + 1), np.uint32)
    padded[:, :width] = words
    found = np.empty((rows, (padded.shape[1] - 1) // bits, WORD), np.uint8)
    for place in range(WORD):
        word, shift = divmod(place * bits, WORD)
        value = padded[:, word:-1:bits] >> np.uint32(shift)
        if shift + bits > WORD:
            value = value | (padded[:, word + 1 :: bits][:, : value.shape[1]] << np.uint32(WORD - shift))
        found[:, :, place] = value & mask
    return found.reshape(rows, -1)[:, :count]


def unpack_awq(words: U32) -> U8:
    """The codes (rows, 8 * words) of words of AWQ."""
    found = np.empty((*words.shape, len(AWQ_ORDER)), np.uint8)
    for place, column in enumerate(AWQ_ORDER):
        found[:, :, column] = (words >> np.uint32(4 * place)) & np.uint32(15)
    return found.reshape(len(words), -1)


@cache
def float8(kind: str) -> F32:
    """The 256 numbers of FP8 by their bits: E4M3 without infinities (OCP `e4m3fn`), E5M2 as IEEE 754, E8M0 powers of
    two."""
    bits = np.arange(256)
    with np.errstate(over="ignore"):
        if kind == "E8M0":
            values = np.ldexp(1.0, bits - 127)
            values[255] = np.nan
            return values.astype(np.float32)
        fraction_bits, bias = (3, 7) if kind.lower() == "e4m3" else (2, 15)
        exponent, fraction = (bits & 127) >> fraction_bits, bits & ((1 << fraction_bits) - 1)
        normal = np.ldexp(1 + fraction / (1 << fraction_bits), exponent - bias)
        small = np.ldexp(fraction / (1 << fraction_bits), 1 - bias)
        values = np.where(exponent > 0, normal, small)
        if kind.lower() == "e4m3":
            values[(bits & 127) == 127] = np.nan
        else:
            values[exponent == 31] = np.where(fraction[exponent == 31] > 0, np.nan, np.inf)
        return np.where(bits >= 128, -values, values).astype(np.float32)


@cache
def _pairs(kind: str) -> npt.NDArray[Any]:
    """The numbers in each byte, together as one item: for a table look-up of whole bytes."""
    if kind == "e2m1":
        half = np.array([*_E2M1, *(-value for value in _E2M1)], np.float32)
        return np.stack((half[np.arange(256) & 15], half[np.arange(256) >> 4]), axis=1).view(np.uint64)[:, 0]
    bits = int(kind)
    parts = [(np.arange(256) >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=1).astype(np.float32).view(np.uint64 if bits == 4 else np.complex128)[:, 0]  # noqa: PLR2004


def _looked_up(raw: U8, table: npt.NDArray[Any]) -> F32:
    # A byte is always a valid index; this mode skips the check.
    return np.take(table, raw.astype(np.intp), mode="wrap").view(np.float32)

"""Checks of tensor values on raw little-endian bytes, with the standard library alone, at the speed of C.

Each function takes one chunk of whole elements, so a caller can stream tensors of any size. The work is done on byte
planes: `chunk[k::size]` is the k-th byte of every element, `bytes.translate` maps or drops bytes, and two planes are
combined as long integers.
"""

from __future__ import annotations

import struct
from typing import Final

from lora_contract.tensors import DTYPE_BYTES

SCANNED: Final = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})

# dtype -> planes (byte index, mask): an element is NaN or infinite iff all masked bits of all planes are set.
_EXPONENT: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "F64": ((7, 0x7F), (6, 0xF0)),
    "F32": ((3, 0x7F), (2, 0x80)),
    "BF16": ((1, 0x7F), (0, 0x80)),
    "F16": ((1, 0x7C),),
    "F8_E5M2": ((0, 0x7C),),
    "F8_E4M3": ((0, 0x7F),),  # this format has no infinity; all ones is its NaN
}
_ALL: Final = bytes(range(256))
_IS_SET: Final = {mask: bytes(int(b & mask == mask) for b in _ALL) for mask in (0x7F, 0xF0, 0x80, 0x7C)}
_IS_NOT_SET: Final = {mask: bytes(b for b in _ALL if b & mask != mask) for mask in (0x7F, 0xF0, 0x80, 0x7C)}
_MAGNITUDE: Final = bytes(b & 0x7F for b in _ALL)


def first_nonfinite(chunk: bytes, dtype: str) -> int | None:
    """The index in the chunk of the first NaN or infinity; None if there is none or the dtype has none."""
    planes = _EXPONENT.get(dtype)
    if planes is None:
        return None
    size = DTYPE_BYTES[dtype]
    index, mask = planes[0]
    top = chunk[index::size]
    if not top.translate(None, _IS_NOT_SET[mask]):
        return None
    hits = top.translate(_IS_SET[mask])
    for index, mask in planes[1:]:
        other = chunk[index::size].translate(_IS_SET[mask])
        both = int.from_bytes(hits, "big") & int.from_bytes(other, "big")
        hits = both.to_bytes(len(hits), "big")
    position = hits.find(1)
    return None if position < 0 else position


def is_zero(chunk: bytes, dtype: str) -> bool:
    """Whether every element is zero; -0.0 counts as zero."""
    if chunk.count(0) == len(chunk):
        return True
    if dtype not in _EXPONENT:
        return False
    size = DTYPE_BYTES[dtype]
    if chunk[size - 1 :: size].translate(None, b"\x00\x80"):
        return False
    return all(plane.count(0) == len(plane) for plane in (chunk[k::size] for k in range(size - 1)))


def magnitude_bound(chunk: bytes, dtype: str) -> float:
    """A power of two that bounds the largest magnitude, at most 8 times too large (F64: 65536); 0.0 only for zeros.

    Infinity if the dtype is not a float or the chunk contains NaN or infinity.
    """
    if dtype not in _EXPONENT:
        return float("inf")
    if is_zero(chunk, dtype):
        return 0.0
    size = DTYPE_BYTES[dtype]
    top = max(chunk[size - 1 :: size].translate(_MAGNITUDE))
    # The top byte has the exponent's leading bits; the bound assumes that all lower bits are set.
    if dtype == "F64":
        exponent = (top << 4 | 0xF) - 1023 + 1
    elif dtype in ("F32", "BF16"):
        exponent = (top << 1 | 1) - 127 + 1
    elif dtype in ("F16", "F8_E5M2"):
        exponent = (top >> 2) - 15 + 1
    else:
        exponent = (top >> 3) - 7 + 1
    return float("inf") if exponent > 1023 else 2.0**exponent


def widen(chunk: bytes, dtype: str, to: str) -> bytes | None:
    """Convert values to `to` exactly: the same dtype, or a 16-bit float as F32. None for other pairs."""
    if dtype == to:
        return chunk
    if dtype == "BF16" and to == "F32":
        wide = bytearray(2 * len(chunk))
        wide[2::4], wide[3::4] = chunk[0::2], chunk[1::2]
        return bytes(wide)
    if dtype == "F16" and to == "F32":
        count = len(chunk) // 2
        return struct.pack(f"<{count}f", *struct.unpack(f"<{count}e", chunk))
    return None


def is_one(chunk: bytes, dtype: str) -> bool:
    """Whether every element is exactly 1.0."""
    one = {"F64": b"\0\0\0\0\0\0\xf0\x3f", "F32": b"\0\0\x80\x3f", "BF16": b"\x80\x3f", "F16": b"\x00\x3c"}.get(dtype)
    return one is not None and chunk == one * (len(chunk) // len(one))

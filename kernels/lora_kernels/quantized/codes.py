"""Codebooks: the number of each code, and the bounds of the numbers that map to it.

NF4 is the 4-bit NormalFloat of QLoRA (Dettmers et al., arXiv 2305.14314), FP4 a float with two exponent bits and one
mantissa bit. Absolute maxima of blocks are quantized with the signed 8-bit dynamic map (Dettmers et al., arXiv
2110.02861). All tables are those of bitsandbytes 0.50.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_NF4: Final = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4: Final = (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)


@dataclass(frozen=True)
class Codebook:
    """values: float32 (16,), by code. pairs: two values per byte, the high nibble's first, as uint64 (256,)."""

    values: F32
    pairs: npt.NDArray[np.uint64]


def _codebook(values: F32) -> Codebook:
    byte = np.arange(256)
    pairs = np.ascontiguousarray(np.stack((values[byte >> 4], values[byte & 15]), axis=1))
    return Codebook(values, pairs.view(np.uint64).reshape(256))


NF4: Final = _codebook(np.array(_NF4, np.float32))
CODEBOOKS: Final = {"nf4": NF4, "fp4": _codebook(np.array(_FP4, np.float32) / np.float32(12))}
# Midpoints of neighbouring values: the code of a number is the count of midpoints below it.
NF4_BOUNDS: Final[F32] = (NF4.values[:-1] + NF4.values[1:]) / np.float32(2)


@cache
def dynamic_map() -> F32:
    """The 256 values of the signed dynamic map, ascending, float32, each rounded as in bitsandbytes."""
    values = [0.0, 1.0]
    for exponent in range(7):
        items = 2**exponent + 1
        step = float((np.float32(1) - np.float32(0.1)) / np.float32(items - 1))
        position = np.arange(items)
        # Fused multiply-adds: exact in float64, then rounded once.
        rising, falling = float(np.float32(0.1)) + step * position, 1 - step * position[::-1]
        bounds = np.where(position < items // 2, rising, falling).astype(np.float32)
        means = (bounds[:-1] + bounds[1:]) / np.float32(2)
        found = np.float32(10.0 ** (exponent - 6)) * means
        values += [*found.tolist(), *(-found).tolist()]
    return np.array(sorted(values), np.float32)

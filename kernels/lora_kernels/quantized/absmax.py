"""Double quantization: the absmax of 4-bit blocks, less their mean, as 8-bit codes in blocks of 256.

absmax = map[code] * nested_absmax + offset, in float32.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from lora_kernels.quantized.codes import F32, U8, dynamic_map

NESTED_BLOCKSIZE: Final = 256


class Nested(NamedTuple):
    """codes: uint8, one per block of the weight. absmax: float32, one per 256 of them. offset: their mean."""

    codes: U8
    absmax: F32
    offset: np.float32


def mean(absmax: F32) -> np.float32:
    """The offset: the mean, rounded once. bitsandbytes sums in float32, in an order that depends on the processor and
    the number of threads, and lies within a few units of the last place of it."""
    return np.float32(math.fsum(absmax.tolist()) / max(absmax.size, 1))


def compress(absmax: F32, offset: np.float32 | None = None) -> Nested:
    """offset: None for the mean."""
    if offset is None:
        offset = mean(absmax)
    centred = absmax - offset
    count = -(-centred.size // NESTED_BLOCKSIZE)
    padded = np.zeros(count * NESTED_BLOCKSIZE, np.float32)
    padded[: centred.size] = centred
    blocks = padded.reshape(count, NESTED_BLOCKSIZE)
    nested = np.abs(blocks).max(axis=1, initial=0)
    with np.errstate(invalid="ignore"):
        scaled = np.where(nested[:, None] > 0, blocks / nested[:, None], np.float32(0)).reshape(-1)[: centred.size]
    return Nested(_nearest(scaled), nested, offset)


def expand(codes: U8, nested_absmax: F32, values: F32, blocksize: int, offset: float) -> F32:
    """The absmax of `compress`. values: the map's 256, as the file gives them. blocksize: of the nested blocks."""
    found = np.take(values, codes.astype(np.intp))
    np.multiply(found, np.repeat(nested_absmax, blocksize)[: found.size], out=found)
    return np.add(found, np.float32(offset), out=found)


def _nearest(scaled: F32) -> U8:
    """Of the two neighbours the nearer by float32 differences, of two as near the smaller: the rule of bitsandbytes,
    which is not quite that of midpoints."""
    values = dynamic_map()
    below = np.clip(np.searchsorted(values, scaled, side="right") - 1, 0, values.size - 1)
    above = np.minimum(below + 1, values.size - 1)
    nearer = np.abs(scaled - values[above]) < np.abs(scaled - values[below])
    return np.where(nearer, above, below).astype(np.uint8)

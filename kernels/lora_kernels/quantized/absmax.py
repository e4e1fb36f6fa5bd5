"""The absolute maxima (absmax) of 4-bit blocks, in float32 or quantized themselves.

Double quantization: absmax minus their mean as 8-bit codes in blocks of 256, absmax = map[code] * nested + offset, in
float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Final, Protocol

import numpy as np

from lora_kernels.quantized.blocksizes import NESTED_BLOCKSIZE
from lora_kernels.quantized.codes import F32, U8, dynamic_map

# Intermediate numbers take many times the memory of the absmax.
_CHUNK: Final = 1024 * NESTED_BLOCKSIZE


class Absmax(Protocol):
    """One number per block of a tensor."""

    def of(self, start: int, stop: int) -> F32:
        """The absmax of the blocks `start` to `stop`, as dequantized from the checkpoint."""


@dataclass(frozen=True)
class PlainAbsmax:
    """values: float32, one per block."""

    values: F32

    def of(self, start: int, stop: int) -> F32:
        return self.values[start:stop]


@dataclass(frozen=True)
class NestedAbsmax:
    """codes: uint8, one per block of the weight. nested: float32, one per `blocksize` codes. values: float32 (256,), by
    code. offset: the mean of all absmax."""

    codes: U8
    nested: F32
    values: F32
    offset: np.float32
    blocksize: int = NESTED_BLOCKSIZE

    def of(self, start: int, stop: int) -> F32:
        found: F32 = np.take(self.values, self.codes[start:stop].astype(np.intp))
        np.multiply(found, self.nested[np.arange(start, start + found.size) // self.blocksize], out=found)
        return np.add(found, self.offset, out=found)


def mean(absmax: F32) -> np.float32:
    """The offset: the mean, rounded once. bitsandbytes sums in float32, in an order that depends on the processor and
    the number of threads; its result is within a few ulps of this one."""
    parts = (absmax[first : first + _CHUNK].tolist() for first in range(0, absmax.size, _CHUNK))
    return np.float32(math.fsum(chain.from_iterable(parts)) / max(absmax.size, 1))


def compress(absmax: F32, offset: np.float32 | None = None) -> NestedAbsmax:
    """Apply double quantization. absmax: finite. offset: None for the mean."""
    if offset is None:
        offset = mean(absmax)
    codes = np.empty(absmax.size, np.uint8)
    nested = np.empty(-(-absmax.size // NESTED_BLOCKSIZE), np.float32)
    for first in range(0, absmax.size, _CHUNK):
        centred = absmax[first : first + _CHUNK] - offset
        padded = np.pad(centred, (0, -centred.size % NESTED_BLOCKSIZE)).reshape(-1, NESTED_BLOCKSIZE)
        largest = np.abs(padded).max(axis=1)
        start = first // NESTED_BLOCKSIZE
        nested[start : start + largest.size] = largest
        padded /= np.where(largest > 0, largest, np.float32(1))[:, None]
        codes[first : first + centred.size] = _nearest(padded.reshape(-1)[: centred.size])
    return NestedAbsmax(codes, nested, dynamic_map(), offset)


def _nearest(scaled: F32) -> U8:
    """The codes of the nearest values by float32 differences, ties to the smaller: the rule of bitsandbytes, which
    differs slightly from comparing with midpoints."""
    values = dynamic_map()
    below = np.clip(np.searchsorted(values, scaled, side="right") - 1, 0, values.size - 1)
    above = np.minimum(below + 1, values.size - 1)
    nearer = np.abs(scaled - values[above]) < np.abs(scaled - values[below])
    return np.where(nearer, above, below).astype(np.uint8)

"""Norms of a stored tensor, computed in blocks, so that memory does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from lora_contract.tensors import TensorEntry
from lora_kernels.numeric.dtypes import decode, storage

BLOCK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Norms:
    """Frobenius norm and largest absolute value of the finite elements. nonfinite: count of NaN and infinity."""

    norm: float
    largest: float
    nonfinite: int


def tensor_norms(read: Callable[[int, int], bytes], entry: TensorEntry) -> Norms:
    """Measure a tensor of BF16, F16, F32 or F64; `read(offset, length)` is over its file. Sums are in float64.

    Tensors of other dtypes are not measured: all values are 0.
    """
    try:
        kind = storage(entry.dtype)
    except KeyError:
        return Norms(0.0, 0.0, 0)
    total, largest, nonfinite = 0.0, 0.0, 0
    step = BLOCK * kind.itemsize
    for start in range(entry.file_start, entry.file_end, step):
        raw = np.frombuffer(read(start, min(step, entry.file_end - start)), kind)
        values = decode(raw, entry.dtype, np.empty(raw.shape, np.float32)).astype(np.float64)
        finite = np.isfinite(values)
        nonfinite += int(values.size - np.count_nonzero(finite))
        kept = np.abs(values[finite])
        if kept.size:
            total += float(np.dot(kept, kept))
            largest = max(largest, float(kept.max()))
    return Norms(math.sqrt(total), largest, nonfinite)

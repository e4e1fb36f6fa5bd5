"""scale * (first (x) second), the Kronecker product: LoKr; with a first factor of ones, the tiles of MiSS."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.hadamard import tucker
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32


class Kronecker(Additive):
    """first: (a, c), None where it is all ones. second: (b, d). Only as much of the product is used as the tensor is
    large."""

    def __init__(self, first: F32 | None, second: F32, scale: float) -> None:
        self._first = first
        self._second = second
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        rows, columns = np.arange(block.r0, block.r1), np.arange(block.c0, block.c1)
        height, width = self._second.shape
        np.copyto(out, self._second[np.ix_(rows % height, columns % width)])
        if self._first is not None:
            np.multiply(out, self._first[np.ix_(rows // height, columns // width)], out=out)
        if self._scale != 1:
            np.multiply(out, self._scale, out=out)


class ShiftedKronecker(Additive):
    """first (a, c) (x) second (b, d, k) as PEFT builds it for one-dimensional convolutions: the elements of an array
    (b, a d, c k), read in order."""

    def __init__(self, first: F32, second: F32, scale: float) -> None:
        self._first = first
        self._second = second
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        (a, c), (_, d, k) = self._first.shape, self._second.shape
        index = np.arange(block.r0, block.r1)[:, None] * block.columns + np.arange(block.c0, block.c1)
        row, column = np.divmod(index, c * k)
        b, row = np.divmod(row, a * d)
        np.multiply(self._first[row // d, column // k], self._second[b, row % d, column % k], out=out)
        np.multiply(out, self._scale, out=out)


def load(delta: Delta, inputs: Inputs) -> Additive:
    """factors: w1 or w1_a, w1_b (their product), none for ones; w2 (b, d, kernel…), or w2_a, w2_b (their product), or
    these with t2 (r, r, kernel…), as in `hadamard.load`. options: `shifted`: see ShiftedKronecker; `turned`: w2 is
    stored (d, b)."""
    factors = {name: inputs.reader.load(factor) for name, factor in delta.factors.items()}
    first = factors["w1_a"] @ factors["w1_b"] if "w1_a" in factors else factors.get("w1")
    if "t2" in factors:
        second = (factors["w2_a"].T.astype(np.float64) @ tucker(factors["t2"], factors["w2_b"])).astype(np.float32)
    else:
        second = factors["w2_a"] @ factors["w2_b"] if "w2_a" in factors else factors["w2"]
    if delta.options.get("shifted") and first is not None:
        return ShiftedKronecker(first, second, delta.scale)
    second = second.T if delta.options.get("turned") else second.reshape(second.shape[0], -1)
    return Kronecker(first, second, delta.scale)

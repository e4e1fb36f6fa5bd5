"""scale * (first (x) second), the Kronecker product: LoKr; with a first factor of ones, MiSS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.tucker import tucker
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32


class KroneckerProduct(UpdateSpec, frozen=True, tag="kronecker"):
    """w1 (x) w2.

    Args:
        w1: whole, or the product of w1_a and w1_b; all ones if both are missing.
        w2: (b, d, kernel…), or the product of w2_a and w2_b, with t2 (r, r, kernel…) a Tucker product.
        shifted: see ShiftedKronecker.
        turned: w2 is stored (d, b).
    """

    scale: float
    w1: Factor | None = None
    w1_a: Factor | None = None
    w1_b: Factor | None = None
    w2: Factor | None = None
    w2_a: Factor | None = None
    w2_b: Factor | None = None
    t2: Factor | None = None
    shifted: bool = False
    turned: bool = False

    def load(self, inputs: Inputs) -> Additive:
        first = self._first(inputs)
        second = self._second(inputs)
        if self.shifted and first is not None:
            return ShiftedKronecker(first, second, self.scale)
        second = second.T if self.turned else second.reshape(second.shape[0], -1)
        return Kronecker(first, second, self.scale)

    def _first(self, inputs: Inputs) -> F32 | None:
        if self.w1_a is not None and self.w1_b is not None:
            return inputs.reader.load(self.w1_a) @ inputs.reader.load(self.w1_b)
        return None if self.w1 is None else inputs.reader.load(self.w1)

    def _second(self, inputs: Inputs) -> F32:
        if self.w2_a is None or self.w2_b is None:
            assert self.w2 is not None
            return inputs.reader.load(self.w2)
        a, b = inputs.reader.load(self.w2_a), inputs.reader.load(self.w2_b)
        if self.t2 is None:
            return a @ b
        return (a.T.astype(np.float64) @ tucker(inputs.reader.load(self.t2), b)).astype(np.float32)


class Kronecker(Additive):
    """first: (a, c), None if it is all ones. second: (b, d). The product is cut to the size of the tensor."""

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

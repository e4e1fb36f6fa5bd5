"""scale * (left1 @ right1) * (left2 @ right2), elementwise: LoHa."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64

Half = tuple[F64, F64]


class Hadamard(Additive):
    """The product of two low-rank products, each of left (rows, r) and right (r, columns). In float64: errors of both
    sums multiply into every element, which put 1 in 16,000 on the wrong side of a bfloat16 rounding in float32."""

    def __init__(self, first: Half, second: Half, scale: float) -> None:
        self._halves = first, second
        self._scale = scale

    def delta(self, block: Block, out: F32) -> None:
        first, second = (left[block.r0 : block.r1] @ right[:, block.c0 : block.c1] for left, right in self._halves)
        np.multiply(first, second, out=first)
        np.multiply(first, self._scale, out=out, casting="same_kind")


def load(delta: Delta, inputs: Inputs) -> Hadamard:
    """factors: a1, a2 (out, r) and b1, b2 (r, in); or, with t1, t2 (r, r, kernel…): a (r, out), b (r, in), each half
    being sum_ij t[i,j,k] a[i,out] b[j,in]."""

    def half(number: int) -> Half:
        a, b = (inputs.reader.load(delta.factors[f"{name}{number}"]) for name in "ab")
        if f"t{number}" not in delta.factors:
            return a.astype(np.float64), b.astype(np.float64)
        return a.T.astype(np.float64), tucker(inputs.reader.load(delta.factors[f"t{number}"]), b)

    return Hadamard(half(1), half(2), delta.scale)


def tucker(t: F32, b: F32) -> F64:
    """sum_j t[i,j,k…] b[j,n] as the matrix (i, n k…)."""
    product: F64 = np.tensordot(b.astype(np.float64), t.astype(np.float64), axes=(0, 1))  # (n, i, k…)
    return np.moveaxis(product, 1, 0).reshape(t.shape[0], -1)

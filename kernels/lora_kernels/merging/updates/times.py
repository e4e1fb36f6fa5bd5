"""W + W * (B A), elementwise: HiRA."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Inputs, Reach, Transform
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64


class TimesLowRank(Transform):
    """values * (1 + left @ right), in float64: the sum of one and the product would lose half of float32's digits of a
    small product."""

    reach: ClassVar[Reach] = "element"

    def __init__(self, left: F64, right: F64) -> None:
        self._left = left
        self._right = right

    def apply(self, block: Block, values: F32) -> None:
        factor = self._left[block.r0 : block.r1] @ self._right[:, block.c0 : block.c1]
        factor += 1
        np.multiply(values, factor, out=values, casting="same_kind")


def load(delta: Delta, inputs: Inputs) -> TimesLowRank:
    """factors: A (r, in…) and B (out, r…); options: `transposed`, as for low-rank."""
    a, b = (inputs.reader.load(delta.factors[half]).astype(np.float64) for half in ("A", "B"))
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    return TimesLowRank(a.T, b.T) if delta.options.get("transposed") else TimesLowRank(b, a)

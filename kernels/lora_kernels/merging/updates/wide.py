"""scale * left @ right in float64, for products whose errors in float32 would be seen in the result."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.updates.protocols import Additive
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64


class WideLowRank(Additive):
    """left (rows, r), right (r, columns), of about as many ranks as the weight has, or of factors that cancel much of
    the weight: summed in float32, 1 element in 6,000 to 12,000 fell on the wrong side of a bfloat16 rounding."""

    def __init__(self, left: F64, right: F64, scale: float) -> None:
        self._left = left
        self._right = right
        self._scale = scale

    def delta(self, block: Block, out: F32) -> None:
        product = self._left[block.r0 : block.r1] @ self._right[:, block.c0 : block.c1]
        np.multiply(product, self._scale, out=out, casting="same_kind")

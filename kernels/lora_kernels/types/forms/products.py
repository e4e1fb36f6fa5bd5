"""Loaded low-rank products: in float32, in which most merges spend their time, and in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_kernels import native
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64
from lora_kernels.types.updates import Additive


class LowRankAddition(Additive):
    """scale * left @ right in float32, left (rows, r), right (r, columns). The factors may be transposed views, which
    BLAS reads without a copy."""

    def __init__(self, left: F32, right: F32, scale: float) -> None:
        self.left = left
        self.right = right
        self.scale = np.float32(scale)
        self._product = native.product()
        self._panels = native.panels(right) if self._product is not None else None

    def of_rows(self, r0: int, r1: int) -> native.LowRankUpdate | None:
        """The update of rows r0:r1 for the native loops; None if the native library is missing."""
        return None if self._panels is None else native.LowRankUpdate(self.left[r0:r1], self._panels, self.scale)

    def product(self, block: Block, out: F32) -> None:
        """The block of left @ right, without the scale."""
        if self._product is not None and self._panels is not None and block.c0 % native.PANEL == 0:
            columns = slice(block.c0 // native.PANEL, -(-block.c1 // native.PANEL))
            self._product(self.left[block.r0 : block.r1], self._panels[columns], out)
            return
        np.matmul(self.left[block.r0 : block.r1], self.right[:, block.c0 : block.c1], out=out)

    def delta(self, block: Block, out: F32) -> None:
        self.product(block, out)
        if self.scale != 1:
            np.multiply(out, self.scale, out=out)


class WideLowRankAddition(Additive):
    """scale * left @ right in float64, left (rows, r), right (r, columns). For products of nearly full rank, or those
    that cancel much of the weight: summed in float32, 1 in 6,000 to 12,000 elements was rounded to the wrong
    bfloat16."""

    def __init__(self, left: F64, right: F64, scale: float) -> None:
        self._left = left
        self._right = right
        self._scale = scale

    def delta(self, block: Block, out: F32) -> None:
        product = self._left[block.r0 : block.r1] @ self._right[:, block.c0 : block.c1]
        np.multiply(product, self._scale, out=out, casting="same_kind")


def sum_block(updates: Sequence[Additive], block: Block, out: F32, scratch: F32) -> None:
    """Write the sum of dW of a block to `out`, added in order. scratch: of the same shape, overwritten."""
    updates[0].delta(block, out)
    for update in updates[1:]:
        update.delta(block, scratch)
        np.add(out, scratch, out=out)

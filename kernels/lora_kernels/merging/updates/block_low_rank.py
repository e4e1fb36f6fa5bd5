"""Blocks that are low-rank products each: GraLoRA."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32


class BlockLowRank(Additive):
    """scale * k x k blocks; the block (j, n) is left[j, n] @ right[j, n]. left (k, k, rows / k, s), right (k, k, s,
    columns / k)."""

    def __init__(self, left: F32, right: F32, scale: float) -> None:
        self._left = left
        self._right = right
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        height, width = self._left.shape[2], self._right.shape[3]
        for j in range(block.r0 // height, -(-block.r1 // height)):
            r0, r1 = max(block.r0, j * height), min(block.r1, (j + 1) * height)
            for n in range(block.c0 // width, -(-block.c1 // width)):
                c0, c1 = max(block.c0, n * width), min(block.c1, (n + 1) * width)
                left = self._left[j, n, r0 - j * height : r1 - j * height]
                right = self._right[j, n, :, c0 - n * width : c1 - n * width]
                out[r0 - block.r0 : r1 - block.r0, c0 - block.c0 : c1 - block.c0] = left @ right
        np.multiply(out, self._scale, out=out)


def load(delta: Delta, inputs: Inputs) -> BlockLowRank:
    """factors: A (k, in / k, r), B (k, r, out / k). options: `transposed`, as for low-rank."""
    a, b = (inputs.reader.load(delta.factors[half]) for half in ("A", "B"))
    count, _, rank = a.shape
    part = rank // count
    # Ranks split by the block on the other side: j of the outputs, n of the inputs.
    right = a.reshape(count, -1, count, part).transpose(2, 0, 3, 1)
    left = b.reshape(count, count, part, -1).transpose(0, 1, 3, 2)
    if delta.options.get("transposed"):
        left, right = right.transpose(1, 0, 3, 2), left.transpose(1, 0, 3, 2)
    return BlockLowRank(left, right, delta.scale)

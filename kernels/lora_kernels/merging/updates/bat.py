"""W + (W G + G), in square blocks: MiSS and Bone with init_weights "bat"."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Inputs, Reach, Transform
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64


class Bat(Transform):
    """blocks: (rows / r, r, r): all blocks of the weight in one row of blocks share one. In float64."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, blocks: F64) -> None:
        self._blocks = blocks

    def apply(self, block: Block, values: F32) -> None:
        size = self._blocks.shape[1]
        rows = np.arange(block.r0, block.r1)
        for index in range(block.r0 // size, -(-block.r1 // size)):
            here = (rows // size) == index
            strips = values[here].astype(np.float64).reshape(-1, block.columns // size, size)
            strips += strips @ self._blocks[index] + self._blocks[index][rows[here] % size, None, :]
            values[here] = strips.reshape(-1, block.columns)


def load(delta: Delta, inputs: Inputs) -> Bat:
    """factors: block (rows / r, r, r)."""
    return Bat(inputs.reader.load(delta.factors["block"]).astype(np.float64))

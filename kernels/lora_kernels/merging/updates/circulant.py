"""scale * a matrix of circulant blocks: C3A."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32


class Circulant(Additive):
    """Element (p, q) of the block (m, n) is kernel[m, n, (q - p) mod b]: what PEFT takes from Fourier transforms is one
    of the kernel's own numbers."""

    def __init__(self, kernel: F32, scale: float) -> None:
        self._kernel = kernel
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        size = self._kernel.shape[2]
        rows = np.arange(block.r0, block.r1)[:, None]
        columns = np.arange(block.c0, block.c1)
        np.multiply(self._kernel[rows // size, columns // size, (columns - rows) % size], self._scale, out=out)


def load(delta: Delta, inputs: Inputs) -> Circulant:
    """factors: kernel (rows / b, columns / b, b)."""
    return Circulant(inputs.reader.load(delta.factors["kernel"]), delta.scale)

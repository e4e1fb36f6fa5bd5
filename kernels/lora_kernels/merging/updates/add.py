"""scale * a stored tensor, added: the bias that LoRA trains beside its factors."""

from __future__ import annotations

import numpy as np

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.records import Factor
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32


class Addition(Additive):
    """Read block by block, so that it may be of any size."""

    def __init__(self, factor: Factor, reader: FactorReader, scale: float) -> None:
        self._factor = factor
        self._reader = reader
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        self._reader.values(self._factor, block.first, out)
        if self._scale != 1:
            np.multiply(out, self._scale, out=out)


def load(delta: Delta, inputs: Inputs) -> Addition:
    """factors: `term`, of as many elements as the tensor, in its order."""
    return Addition(delta.factors["term"], inputs.reader, delta.scale)

"""A stored tensor times scale, added: the biases of lora_bias and BEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.checkpoint.factors import FactorReader
    from lora_kernels.numeric.dtypes import F32


class AddedTerm(UpdateSpec, frozen=True, tag="add"):
    """term: as many elements as the tensor, in the same order."""

    term: Factor
    scale: float

    def load(self, inputs: Inputs) -> Addition:
        return Addition(self.term, inputs.reader, self.scale)


class Addition(Additive):
    """Reads the term block by block, so that it may have any size."""

    def __init__(self, factor: Factor, reader: FactorReader, scale: float) -> None:
        self._factor = factor
        self._reader = reader
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        self._reader.values(self._factor, block.first, out)
        if self._scale != 1:
            np.multiply(out, self._scale, out=out)

"""scale * a stored tensor, added: the bias that LoRA trains beside its factors, BEFT's."""

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
    """term: of as many elements as the tensor, in its order."""

    term: Factor
    scale: float

    def load(self, inputs: Inputs) -> Addition:
        return Addition(self.term, inputs.reader, self.scale)


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

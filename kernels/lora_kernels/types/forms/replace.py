"""A stored tensor that replaces the weight: modules_to_save, trained biases, norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.checkpoint.factors import FactorReader
    from lora_kernels.numeric.dtypes import F32


class Replacement(UpdateSpec, frozen=True, tag="replace"):
    """new: has the shape of the tensor."""

    new: Factor

    def load(self, inputs: Inputs) -> Replace:
        return Replace(self.new, inputs.reader)


class Replace(Transform):
    """Reads the new tensor block by block: it may be as large as the largest tensor of the base."""

    reach: ClassVar[Reach] = "element"
    replaces = True

    def __init__(self, factor: Factor, reader: FactorReader) -> None:
        self._factor = factor
        self._reader = reader

    def apply(self, block: Block, values: F32) -> None:
        self._reader.values(self._factor, block.first, values)

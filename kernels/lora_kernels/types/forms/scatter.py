"""Values added at few positions: SHiRA, Super-Tuning, WaveFT."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64, Indices


class Scattered(UpdateSpec, frozen=True, tag="scatter"):
    """values: (n). places: their positions, (n) flat indices into the tensor of `shape`, or (2, n) rows and columns."""

    values: Factor
    places: Factor
    shape: tuple[int, int]
    scale: float

    def load(self, inputs: Inputs) -> Scatter:
        if len(self.places.shape) == 2:
            rows, columns = inputs.reader.indices(self.places, self.shape)
            positions = rows * self.shape[1] + columns
        else:
            positions = inputs.reader.indices(self.places, [math.prod(self.shape)])
        return Scatter(positions, inputs.wide(self.values), self.scale)


class Scatter(Additive):
    """positions: flat indices of the values; values at the same position are summed in order."""

    def __init__(self, positions: Indices, values: F64, scale: float) -> None:
        self._positions, inverse = np.unique(positions, return_inverse=True)
        summed = np.zeros(len(self._positions))
        np.add.at(summed, inverse, values)
        self._values = (summed * scale).astype(np.float32)

    def delta(self, block: Block, out: F32) -> None:
        out.fill(0)
        first, end = np.searchsorted(self._positions, (block.first, block.first + block.elements))
        out.reshape(-1)[self._positions[first:end] - block.first] = self._values[first:end]

"""Rows of the tensor replaced by stored ones: trainable tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.checkpoint.factors import FactorReader
    from lora_kernels.numeric.dtypes import F32


class ReplacedRows(UpdateSpec, frozen=True, tag="rows"):
    """rows: (n, columns of the tensor). indices: the row that each replaces; for duplicates the last one counts, as in
    torch's `index_copy` on a CPU."""

    rows: Factor
    indices: tuple[int, ...]

    def load(self, inputs: Inputs) -> ReplaceRows:
        return ReplaceRows(self.rows, inputs.reader, self.indices)


class ReplaceRows(Transform):
    """Reads each row only for its block."""

    reach: ClassVar[Reach] = "element"

    def __init__(self, factor: Factor, reader: FactorReader, indices: Sequence[int]) -> None:
        self._factor = factor
        self._reader = reader
        sources = {row: source for source, row in enumerate(indices)}
        self._rows = sorted(sources)
        self._sources = [sources[row] for row in self._rows]

    def apply(self, block: Block, values: F32) -> None:
        first, end = bisect_left(self._rows, block.r0), bisect_left(self._rows, block.r1)
        for row, source in zip(self._rows[first:end], self._sources[first:end], strict=True):
            self._reader.values(self._factor, source * block.columns + block.c0, values[row - block.r0])

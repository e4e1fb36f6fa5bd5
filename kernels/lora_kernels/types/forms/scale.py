"""Rows or columns multiplied by a vector: IA3."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32


class Scaled(UpdateSpec, frozen=True, tag="scale"):
    """Each row or column multiplied by a value of `vector`.

    Args:
        repeat: number of adjacent columns, those of one kernel, that share a value.
        groups: of a convolution of `rows` rows: the vector has values for the inputs of each group.
    """

    vector: Factor
    axis: Literal["rows", "columns"]
    repeat: int = 1
    groups: int = 1
    rows: int = 0

    def load(self, inputs: Inputs) -> Scale:
        vector = inputs.reader.load(self.vector).reshape(-1)
        if self.axis == "rows":
            return Scale(vector[:, None])
        table = np.repeat(vector.reshape(self.groups, -1), self.repeat, axis=1)
        return Scale(table, self.rows // self.groups if self.groups > 1 else None)


class Scale(Transform):
    """table: (1 or rows, 1 or columns) factors: one product and one rounding per element. every: number of rows that
    share a row of the table; None if all share one, or each has its own."""

    reach: ClassVar[Reach] = "element"

    def __init__(self, table: F32, every: int | None = None) -> None:
        self._table = table
        self._every = every

    def apply(self, block: Block, values: F32) -> None:
        table = self._table
        if self._every is not None:
            table = table[np.arange(block.r0, block.r1) // self._every]
        elif table.shape[0] > 1:
            table = table[block.r0 : block.r1]
        np.multiply(values, table[:, block.c0 : block.c1] if table.shape[1] > 1 else table, out=values)

"""Rows or columns multiplied by a vector: IA3."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Inputs, Reach, Transform
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32


class Scale(Transform):
    """table: (1 or rows, 1 or columns): one product and one rounding an element. every: rows that share one of the
    table's; None where all do, or each has its own."""

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


def load(delta: Delta, inputs: Inputs) -> Scale:
    """factors: `l`. options: axis, "rows" or "columns"; repeat: neighbouring columns, of one kernel, that share a
    value; groups: of a convolution of `rows` rows: l holds values for the inputs of each group."""
    vector = inputs.reader.load(delta.factors["l"]).reshape(-1)
    if delta.options["axis"] == "rows":
        return Scale(vector[:, None])
    groups = delta.options.get("groups", 1)
    table = np.repeat(vector.reshape(groups, -1), delta.options.get("repeat", 1), axis=1)
    return Scale(table, delta.options["rows"] // groups if groups > 1 else None)

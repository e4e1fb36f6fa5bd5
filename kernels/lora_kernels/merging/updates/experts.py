"""Low-rank updates of experts, of which one pair of factors holds all.

PEFT (`ParamWrapper`, 0.17 on) stacks A by expert, (E r, in), and interleaves B by rank, (out, r E): the element of
rank i and expert e stands in column i E + e.
"""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.low_rank import LowRank
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32


class Experts(Additive):
    """A tensor of all experts (E, rows, columns), seen as a matrix of E * rows rows.

    left: (E, rows, r), right: (E, r, columns).
    """

    def __init__(self, left: F32, right: F32, scale: float) -> None:
        self._left = left
        self._right = right
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        rows = self._left.shape[1]
        row = block.r0
        while row < block.r1:
            expert, first = divmod(row, rows)
            end = min(rows, first + block.r1 - row)
            part = out[row - block.r0 : row - block.r0 + end - first]
            np.matmul(self._left[expert, first:end], self._right[expert, :, block.c0 : block.c1], out=part)
            row += end - first
        if self._scale != 1:
            np.multiply(out, self._scale, out=out)


def load_all(delta: Delta, inputs: Inputs) -> Experts:
    """factors: A (E r, …) and B (…, r E). options: `experts`, E; `transposed`, True where the rows of an expert's
    weight are what A takes in."""
    a, b = (inputs.reader.load(delta.factors[half]) for half in ("A", "B"))
    down, up = _stacks(a, b, delta.options["experts"])
    up = np.ascontiguousarray(up)
    if delta.options.get("transposed"):
        return Experts(down.transpose(0, 2, 1), up.transpose(0, 2, 1), delta.scale)
    return Experts(up, down, delta.scale)


def load_one(delta: Delta, inputs: Inputs) -> LowRank:
    """A weight of one expert, or a part of it. options: as for `load_all`; `expert`; `rows`, first and end of its rows
    in the weight that the factors were made for."""
    a, b = (inputs.reader.keep(delta.factors[half]) for half in ("A", "B"))
    down, up = (stack[delta.options["expert"]] for stack in _stacks(a, b, delta.options["experts"]))
    up = np.ascontiguousarray(up)
    rows = slice(*delta.options["rows"])
    if delta.options.get("transposed"):
        return LowRank(down.T[rows], up.T, delta.scale)
    return LowRank(up[rows], down, delta.scale)


def _stacks(a: F32, b: F32, experts: int) -> tuple[F32, F32]:
    """Views of the factors by expert: (E, r, taken in) and (E, given out, r)."""
    return a.reshape(experts, -1, a.shape[1]), b.reshape(b.shape[0], -1, experts).transpose(2, 0, 1)

"""scale * left @ right: LoRA on whatever can be seen as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lora_kernels import native
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32


class LowRank(Additive):
    """scale * left @ right, left (rows, r), right (r, columns). Holds both factors in memory, in float32; transposes
    are views, which BLAS reads as they are."""

    def __init__(self, left: F32, right: F32, scale: float) -> None:
        self.left = left
        self.right = right
        self.scale = np.float32(scale)
        self._product = native.product()
        self._panels = native.panels(right) if self._product is not None else None

    def of_rows(self, r0: int, r1: int) -> native.LowRankUpdate | None:
        """As the loops in C take it; None where there are none."""
        return None if self._panels is None else native.LowRankUpdate(self.left[r0:r1], self._panels, self.scale)

    def product(self, block: Block, out: F32) -> None:
        """The block of left @ right, without the scale."""
        if self._product is not None and self._panels is not None and block.c0 % native.PANEL == 0:
            columns = slice(block.c0 // native.PANEL, -(-block.c1 // native.PANEL))
            self._product(self.left[block.r0 : block.r1], self._panels[columns], out)
            return
        np.matmul(self.left[block.r0 : block.r1], self.right[:, block.c0 : block.c1], out=out)

    def delta(self, block: Block, out: F32) -> None:
        self.product(block, out)
        if self.scale != 1:
            np.multiply(out, self.scale, out=out)


def load(delta: Delta, inputs: Inputs) -> LowRank:
    """factors: A (r, in…) and B (out, r…), dimensions behind the second are flattened into it; optional `rank` (r),
    `rows` (out) and `columns` (in): vectors that stand as diagonal matrices between B and A, before B and behind A.
    options: `transposed`, True where the tensor is stored (in, out), as by Conv1D and embeddings; `blocks`, the number
    of blocks of a factor that is stored as the blocks of a block-diagonal matrix, by its name; `cut` (out, r, in),
    where A and B are shared by modules of several sizes and only that much of them is used."""
    a, b = (_matrix(inputs.reader.load(delta.factors[half])) for half in ("A", "B"))
    diagonal = delta.options.get("blocks", {})
    a, b = _block_diagonal(a, diagonal.get("A", 1)), _block_diagonal(b, diagonal.get("B", 1))
    return low_rank(a, b, delta, inputs)


def low_rank(a: F32, b: F32, delta: Delta, inputs: Inputs) -> LowRank:
    """The update of A and B that are at hand, with the diagonals, cut and direction of `load`."""
    if "cut" in delta.options:
        out, rank, in_ = delta.options["cut"]
        a, b = a[:rank, :in_], b[:out, :rank]
    if "rank" in delta.factors:
        a = a * inputs.reader.load(delta.factors["rank"]).reshape(-1, 1)[: a.shape[0]]
    if "columns" in delta.factors:
        a = a * inputs.reader.load(delta.factors["columns"]).reshape(1, -1)
    if "rows" in delta.factors:
        b = b * inputs.reader.load(delta.factors["rows"]).reshape(-1, 1)
    return LowRank(a.T, b.T, delta.scale) if delta.options.get("transposed") else LowRank(b, a, delta.scale)


def _matrix(values: F32) -> F32:
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def _block_diagonal(stacked: F32, blocks: int) -> F32:
    """Blocks that stand below each other, moved to the diagonal, with zeros around."""
    if blocks == 1:
        return stacked
    height, width = stacked.shape[0] // blocks, stacked.shape[1]
    wide = np.zeros((stacked.shape[0], width * blocks), np.float32)
    for block in range(blocks):
        rows = slice(block * height, (block + 1) * height)
        wide[rows, block * width : (block + 1) * width] = stacked[rows]
    return wide


def sum_block(updates: Sequence[Additive], block: Block, out: F32, scratch: F32) -> None:
    """Write the sum of dW of a block to `out`, added in order. scratch: of the same shape, overwritten."""
    updates[0].delta(block, out)
    for update in updates[1:]:
        update.delta(block, scratch)
        np.add(out, scratch, out=out)

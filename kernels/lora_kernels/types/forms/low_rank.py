"""scale * B @ A: LoRA, and types whose update is such a product with diagonal matrices in between."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32
    from lora_kernels.types.forms.products import LowRankAddition


class LowRankFactors(NamedTuple):
    """scale * left @ right, left (rows, r), right (r, columns) of the tensor; both float32, any strides."""

    left: F32
    right: F32
    scale: float


class LowRankProduct(UpdateSpec, frozen=True, tag="low-rank"):
    """The update scale * diag(rows) B diag(rank) A diag(columns).

    Args:
        a: (r, in…), flattened to a matrix.
        b: (out, r…), flattened likewise.
        scale: includes the adapter's weight.
        rank, rows, columns: vectors for the diagonal matrices between B and A, before B and after A.
        transposed: the tensor is stored (in, out), as in Conv1D and embeddings.
        a_blocks, b_blocks: number of blocks, if a factor is stored as the blocks of a block-diagonal matrix.
        cut: (out, r, in) of the part of A and B that is used, if modules of different sizes share them.
    """

    a: Factor
    b: Factor
    scale: float
    rank: Factor | None = None
    rows: Factor | None = None
    columns: Factor | None = None
    transposed: bool = False
    a_blocks: int = 1
    b_blocks: int = 1
    cut: tuple[int, int, int] | None = None

    def load(self, inputs: Inputs) -> LowRankAddition:
        return addition(self.read(inputs))

    def read(self, inputs: Inputs) -> LowRankFactors:
        """The factors in memory. Raises RegistryError `rejected` if a value is not finite."""
        a = _block_diagonal(_matrix(inputs.reader.load(self.a)), self.a_blocks)
        b = _block_diagonal(_matrix(inputs.reader.load(self.b)), self.b_blocks)
        if self.cut is not None:
            a, b = cut(a, b, self.cut)
        if self.rank is not None:
            a = a * inputs.reader.load(self.rank).reshape(-1, 1)[: a.shape[0]]
        if self.columns is not None:
            a = a * inputs.reader.load(self.columns).reshape(1, -1)
        if self.rows is not None:
            b = b * inputs.reader.load(self.rows).reshape(-1, 1)
        return _factors(a, b, self.scale, transposed=self.transposed)

    @property
    def stored_dtype(self) -> str | None:
        """The dtype that holds `left` and `right` exactly, if they are the stored factors; None if they are products of
        several tensors, or have two dtypes."""
        plain = self.rank is None and self.rows is None and self.columns is None
        return self.a.dtype if plain and self.a.dtype == self.b.dtype else None


def cut(a: F32, b: F32, sizes: tuple[int, int, int]) -> tuple[F32, F32]:
    """The part (out, r, in) of A and B that a module uses."""
    out, rank, in_ = sizes
    return a[:rank, :in_], b[:out, :rank]


def product(a: F32, b: F32, scale: float, *, transposed: bool) -> LowRankAddition:
    """The update scale * B @ A, for A (r, in) and B (out, r). transposed: the tensor is stored (in, out)."""
    return addition(_factors(a, b, scale, transposed=transposed))


def addition(factors: LowRankFactors) -> LowRankAddition:
    """The update in the form that the CPU adds."""
    from lora_kernels.types.forms.products import LowRankAddition

    return LowRankAddition(*factors)


def _factors(a: F32, b: F32, scale: float, *, transposed: bool) -> LowRankFactors:
    return LowRankFactors(a.T, b.T, scale) if transposed else LowRankFactors(b, a, scale)


def _matrix(values: F32) -> F32:
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def _block_diagonal(stacked: F32, blocks: int) -> F32:
    """The block-diagonal matrix of vertically stacked blocks."""
    if blocks == 1:
        return stacked
    height, width = stacked.shape[0] // blocks, stacked.shape[1]
    wide = np.zeros((stacked.shape[0], width * blocks), np.float32)
    for block in range(blocks):
        rows = slice(block * height, (block + 1) * height)
        wide[rows, block * width : (block + 1) * width] = stacked[rows]
    return wide

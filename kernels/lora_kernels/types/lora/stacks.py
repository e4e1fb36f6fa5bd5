"""Low-rank updates of experts, with one pair of factors for all experts.

PEFT (`ParamWrapper`, since 0.17) stacks A by expert, (E r, in), and interleaves B by rank, (out, r E): rank i of expert
e is column i E + e.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.low_rank import LowRankFactors, addition
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32
    from lora_kernels.types.forms.products import LowRankAddition


class ExpertStack(UpdateSpec, frozen=True, tag="experts"):
    """Updates of a tensor of all experts. a: (E r, …). b: (…, r E). transposed: the rows of an expert's weight are the
    inputs of A."""

    a: Factor
    b: Factor
    scale: float
    experts: int
    transposed: bool = False

    def load(self, inputs: Inputs) -> Experts:
        down, up = _stacks(inputs.reader.load(self.a), inputs.reader.load(self.b), self.experts)
        up = np.ascontiguousarray(up)
        if self.transposed:
            return Experts(down.transpose(0, 2, 1), up.transpose(0, 2, 1), self.scale)
        return Experts(up, down, self.scale)


class ExpertPart(UpdateSpec, frozen=True, tag="expert"):
    """The update of one expert's weight, or of a part of it. rows: [first, end) in the rows of the weight that the
    factors were trained for."""

    stack: ExpertStack
    expert: int
    rows: tuple[int, int]

    @property
    def factors(self) -> Iterator[Factor]:
        return self.stack.factors

    def load(self, inputs: Inputs) -> LowRankAddition:
        return addition(self.read(inputs))

    def read(self, inputs: Inputs) -> LowRankFactors:
        """The factors in memory. Raises RegistryError `rejected` if a value is not finite."""
        stack = self.stack
        a, b = inputs.reader.load_cached(stack.a), inputs.reader.load_cached(stack.b)
        down, up = (half[self.expert] for half in _stacks(a, b, stack.experts))
        up = np.ascontiguousarray(up)
        rows = slice(*self.rows)
        if stack.transposed:
            return LowRankFactors(down.T[rows], up.T, stack.scale)
        return LowRankFactors(up[rows], down, stack.scale)

    @property
    def stored_dtype(self) -> str | None:
        """See `LowRankProduct.stored_dtype`."""
        stack = self.stack
        return stack.a.dtype if stack.a.dtype == stack.b.dtype else None


class Experts(Additive):
    """A tensor of all experts (E, rows, columns), viewed as a matrix of E * rows rows.

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


def _stacks(a: F32, b: F32, experts: int) -> tuple[F32, F32]:
    """Views of the factors by expert: (E, r, in) and (E, out, r)."""
    return a.reshape(experts, -1, a.shape[1]), b.reshape(b.shape[0], -1, experts).transpose(2, 0, 1)

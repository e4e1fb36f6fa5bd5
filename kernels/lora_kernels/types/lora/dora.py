"""DoRA: m / |W + s B A| * (W + s B A), the norm over the inputs of each output.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (arXiv 2402.09353), as merged by peft 0.21.2
(`DoraLinearVariant.merge_unsafe`): the norm uses the weight before any adapter, the product the weight after the
preceding adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64
    from lora_kernels.types.forms.products import LowRankAddition


class DoraProduct(UpdateSpec, frozen=True, tag="dora"):
    """product: without the adapter's weight; if transposed, outputs are the tensor's columns. magnitude: one per
    output."""

    product: LowRankProduct
    magnitude: Factor

    @property
    def factors(self) -> Iterator[Factor]:
        yield from self.product.factors
        yield self.magnitude

    def load(self, inputs: Inputs) -> Dora | RowDora:
        update = self.product.load(inputs)
        magnitude = inputs.reader.load(self.magnitude).reshape(-1)
        by_column = self.product.transposed
        if inputs.first and not by_column:
            return RowDora(update, magnitude, inputs.module)
        squares = np.zeros(magnitude.size, np.float64)
        for block, values in _unmerged(update, inputs):
            if by_column:
                squares += _squares(values, 0)
            else:
                squares[block.r0 : block.r1] = _squares(values, 1)
        factor = _factor(magnitude, squares, inputs.module)
        return Dora(update, factor.reshape((1, -1) if by_column else (-1, 1)))


class Dora(Transform):
    """DoRA with norms computed on loading. factor: m / norm, (rows, 1) or (1, columns)."""

    reach: ClassVar[Reach] = "element"

    def __init__(self, update: LowRankAddition, factor: F32) -> None:
        self._update = update
        self._factor = factor

    def apply(self, block: Block, values: F32) -> None:
        values += _product(self._update, block)
        rows = slice(block.r0, block.r1) if self._factor.shape[0] > 1 else slice(None)
        columns = slice(block.c0, block.c1) if self._factor.shape[1] > 1 else slice(None)
        np.multiply(values, self._factor[rows, columns], out=values)


class RowDora(Transform):
    """DoRA as the first update, with outputs in rows: norms are computed in the same pass as the weights."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, update: LowRankAddition, magnitude: F32, module: str) -> None:
        self._update = update
        self._magnitude = magnitude
        self._module = module

    def apply(self, block: Block, values: F32) -> None:
        values += _product(self._update, block)
        factor = _factor(self._magnitude[block.r0 : block.r1], _squares(values, 1), self._module)
        np.multiply(values, factor.reshape(-1, 1), out=values)


def _unmerged(update: LowRankAddition, inputs: Inputs) -> Iterator[tuple[Block, F32]]:
    for block, weight in inputs.stored():
        yield block, np.add(weight, _product(update, block), out=weight)


def _product(update: LowRankAddition, block: Block) -> F32:
    out = np.empty(block.shape, np.float32)
    update.delta(block, out)
    return out


def _squares(values: F32, axis: int) -> F64:
    """Sums of squares in float64: in float32 they would overflow long before the values do."""
    wide = values.astype(np.float64)
    np.multiply(wide, wide, out=wide)
    summed: F64 = wide.sum(axis=axis)
    return summed


def _factor(magnitude: F32, squares: F64, module: str) -> F32:
    """m / norm. Raises RegistryError `rejected` if the norm of an output is zero, for which PEFT returns NaN."""
    if not squares.all():
        raise RegistryError(
            "rejected",
            f"{module}: {int(squares.size - np.count_nonzero(squares))} outputs of the base's weight plus the update "
            "are zero; DoRA divides by their norm.",
            hint="Serve the base without this adapter, or train the adapter again without DoRA on this module.",
            module=module,
        )
    return np.asarray(magnitude / np.sqrt(squares), np.float32)

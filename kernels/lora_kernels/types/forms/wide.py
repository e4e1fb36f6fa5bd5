"""Low-rank products in float64, computed on loading, from the weight if needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_kernels.numeric.late import np
from lora_kernels.types.updates import Inputs

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F64
    from lora_kernels.types.forms.products import WideLowRankAddition


def wide_product(left: F64, right: F64, scale: float, *, transposed: bool) -> WideLowRankAddition:
    """The update left (out, r) @ right (r, in). transposed: the tensor is stored (in, out)."""
    from lora_kernels.types.forms.products import WideLowRankAddition

    if transposed:
        left, right = right.T, left.T
    return WideLowRankAddition(left, right, scale)


def times_weight(left: F64, inputs: Inputs, *, transposed: bool) -> F64:
    """left @ W for W (out, in). transposed: W is stored (in, out)."""
    columns = []
    total: F64 | None = None
    for block, values in inputs.before():
        wide = values.astype(np.float64)
        if transposed:
            columns.append(left @ wide.T)
        else:
            part = left[:, block.r0 : block.r1] @ wide
            total = part if total is None else total + part
    result: F64 = np.concatenate(columns, axis=1) if total is None else total
    return result

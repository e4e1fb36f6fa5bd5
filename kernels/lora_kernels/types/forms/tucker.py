"""Tucker products, in which LoHa and LoKr store convolution kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_kernels.numeric.late import np
from lora_kernels.types.matching.target import Target

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64


def tucker(t: F32, b: F32) -> F64:
    """sum_j t[i,j,k…] b[j,n] as the matrix (i, n k…)."""
    product: F64 = np.tensordot(b.astype(np.float64), t.astype(np.float64), axes=(0, 1))  # (n, i, k…)
    return np.moveaxis(product, 1, 0).reshape(t.shape[0], -1)


def tucker_kernel(to: Target) -> tuple[int, ...]:
    """Kernel sizes as PEFT stores them: at least two dimensions."""
    sizes = to.weight.shape[2:]
    return (*sizes, 1) if len(sizes) == 1 else tuple(sizes)

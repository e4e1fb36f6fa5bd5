"""The result of `tensor_stats`, shared by the kernel and its reference implementation."""

from __future__ import annotations

import math
from typing import NamedTuple


class Summary(NamedTuple):
    """sum_squares (in float64, so that no finite tensor overflows it) and max_abs are of the finite elements, 0 without
    any. sum_squares is within 2^-21 of the exact sum for bf16 and fp16, which a GPU adds in float32 by eights, and
    within 2^-36 for fp32. non_finite: number of elements that are NaN or infinite."""

    sum_squares: float
    max_abs: float
    non_finite: int

    @property
    def norm(self) -> float:
        """The Frobenius norm of the finite elements."""
        return math.sqrt(self.sum_squares)

"""The result of `tensor_stats`, a leaf that the kernel and its twin share."""

from __future__ import annotations

import math
from typing import NamedTuple


class Summary(NamedTuple):
    """sum_squares (summed in float64, so that no finite tensor overflows it) and max_abs are of the finite elements; 0
    where there is none. non_finite: how many are NaN or infinite."""

    sum_squares: float
    max_abs: float
    non_finite: int

    @property
    def norm(self) -> float:
        """The Frobenius norm of the finite elements."""
        return math.sqrt(self.sum_squares)

"""Statistics of an update and its rounding, shared by the merge kernel and its reference implementation."""

from __future__ import annotations

from typing import NamedTuple

from lora_kernels.numeric.sums import UpdateSums


class MergeStats(NamedTuple):
    """sums: over the elements of one matrix. max_delta: largest absolute element of dW; NaN counts as infinity.
    non_finite: number of elements of the result that are NaN or infinite."""

    sums: UpdateSums
    max_delta: float
    non_finite: int

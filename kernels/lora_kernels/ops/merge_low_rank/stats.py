"""What became of an update, as the merge's kernel and its twin report it."""

from __future__ import annotations

from typing import NamedTuple

from lora_kernels.numeric.sums import UpdateSums


class MergeStats(NamedTuple):
    """sums: over the elements of one matrix. max_delta: largest absolute element of dW, a NaN counted as infinity.
    non_finite: how many elements of the result are NaN or infinite."""

    sums: UpdateSums
    max_delta: float
    non_finite: int

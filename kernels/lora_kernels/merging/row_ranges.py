"""Ranges of rows, one for each task on a tensor. They follow from the plan alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lora_kernels.merging.plan import TensorPlan
from lora_kernels.numeric.blocks import block_rows, matrix
from lora_kernels.types.forms.low_rank import LowRankProduct

# Bytes of the result that a task writes: many enough for its overhead not to count, few enough to balance threads.
TASK_BYTES: Final = 8 << 20


def row_ranges(tensor: TensorPlan) -> Iterator[tuple[int, int]]:
    """(r0, r1) of its rows as a matrix, in order; one of all rows if some of them may have to stay together."""
    rows, columns = matrix(tensor.shape, tensor.columns)
    if (
        not rows
        or tensor.form is not None
        or not all(isinstance(delta.update, LowRankProduct) for delta in tensor.deltas)
    ):
        yield 0, rows
        return
    step = max(block_rows(columns), 1)
    per_task = max(TASK_BYTES * rows // (tensor.end - tensor.start) // step, 1) * step
    for start in range(0, rows, per_task):
        yield start, min(start + per_task, rows)


def row_start(tensor: TensorPlan, row: int) -> int:
    """Where the bytes of a row begin in the result's file, for a row that a range begins with."""
    rows, _ = matrix(tensor.shape, tensor.columns)
    return tensor.start + (row * ((tensor.end - tensor.start) // rows) if row else 0)

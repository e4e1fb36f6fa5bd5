"""Ranges of rows of a tensor, one per task. They depend on the plan alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lora_kernels.merging.plan import TensorPlan
from lora_kernels.numeric.blocks import block_rows, matrix
from lora_kernels.types.forms.low_rank import LowRankProduct

# Output bytes of a task: large enough to hide its overhead, small enough to balance threads.
TASK_BYTES: Final = 8 << 20


def row_ranges(tensor: TensorPlan) -> Iterator[tuple[int, int]]:
    """(r0, r1) of the tensor as a matrix, in order; one range of all rows if rows may depend on each other."""
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
    """Offset in the output file of a row that starts a range."""
    rows, _ = matrix(tensor.shape, tensor.columns)
    return tensor.start + (row * ((tensor.end - tensor.start) // rows) if row else 0)

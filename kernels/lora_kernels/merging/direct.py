"""Merge rows, or copy bytes, from file to file in one call to C."""

from __future__ import annotations

import numpy as np

from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.merging.tensor import Sums, TensorMerge
from lora_kernels.native import copy_bytes, merge_rows_bf16
from lora_kernels.numeric.blocks import block_rows


def write_rows(
    merge: TensorMerge, base: FolderSource, descriptor: int, position: int, r0: int, r1: int, sums: Sums
) -> bool:
    """Write what `merge.chunks(r0, r1, …)` yields at `position`. Return False if that is not possible or failed: `sums`
    is unchanged, and `merge.chunks` raises the precise error."""
    tensor, columns = merge.tensor, merge.columns
    merge_rows, updates, step = merge_rows_bf16(), merge.low_rank, block_rows(columns)
    if merge_rows is None or not updates or not step:
        return False
    parts = [part for update in updates if (part := update.of_rows(r0, r1)) is not None]
    if len(parts) < len(updates):
        return False
    found = np.zeros(4)
    source = base.descriptor(tensor.source_file), tensor.source_start + 2 * r0 * columns
    if not merge_rows(source, (descriptor, position), parts, step, columns, found):
        return False
    sums.add_sums(*map(float, found))
    return True


def copy(source: tuple[int, int], target: tuple[int, int], count: int, memory: memoryview) -> bool:
    """Copy bytes. source, target: (descriptor, offset). Return False if that is not possible or failed."""
    call = copy_bytes()
    return call is not None and call(source, target, count, memory)

"""Tasks of a merge: ranges of rows, ranges of untouched bytes, and the files that they belong to."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.merging.direct import copy, write_rows
from lora_kernels.merging.plan import CopiedRange, MergePlan, ShardPlan, TensorPlan, coalesced, shard_header
from lora_kernels.merging.row_ranges import TASK_BYTES, row_ranges, row_start
from lora_kernels.merging.stats import TensorStats
from lora_kernels.merging.tensor import Buffers, Sums, TensorMerge

# Writes of 128 to 256 KiB were measured to be five to ten times as fast as writes of several MiB.
COPY_BYTES: Final = 1 << 18

Count = Callable[[int], None]


class MergeContext:
    """The sources of a merge, shared by all threads."""

    def __init__(
        self, plan: MergePlan, folder: Path, base: FolderSource, adapters: Sequence[FolderSource], count: Count
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.base = base
        self.adapters = adapters
        self.count = count
        self.stop = threading.Event()

    def readers(self) -> list[FactorReader]:
        return [
            FactorReader(source, known.file) for source, known in zip(self.adapters, self.plan.adapters, strict=True)
        ]


class ComputedTensor:
    """A tensor to compute. Its first task loads the factors; its last one releases them."""

    def __init__(self, context: MergeContext, tensor: TensorPlan) -> None:
        self._context = context
        self.tensor = tensor
        self._merge: TensorMerge | None = None
        self._lock = threading.Lock()
        self._sums: list[Sums] = []
        self._remaining = 0
        self.stats: TensorStats | None = None

    def tasks(self) -> list[Task]:
        ranges = list(row_ranges(self.tensor))
        self._sums = [Sums() for _ in ranges]
        self._remaining = len(ranges)
        return [RowsTask(self, index, r0, r1) for index, (r0, r1) in enumerate(ranges)]

    def run(self, index: int, r0: int, r1: int, descriptor: int, buffers: Buffers) -> None:
        context, tensor = self._context, self.tensor
        with self._lock:
            if self._merge is None:
                self._merge = TensorMerge(tensor, context.base, context.readers())
            merge = self._merge
        position = row_start(tensor, r0)
        if write_rows(merge, context.base, descriptor, position, r0, r1, self._sums[index]):
            context.count(row_start(tensor, r1) - position)
        else:
            self._write_chunks(merge, index, r0, r1, descriptor, buffers)
        with self._lock:
            self._remaining -= 1
            if self._remaining:
                return
            total = Sums()
            for part in self._sums:
                total.join(part)
            self.stats = merge.stats(total)
            self._merge = None

    def _write_chunks(
        self, merge: TensorMerge, index: int, r0: int, r1: int, descriptor: int, buffers: Buffers
    ) -> None:
        context, position = self._context, row_start(self.tensor, r0)
        for view in merge.chunks(r0, r1, buffers, self._sums[index]):
            if context.stop.is_set():
                raise stopped()
            write_at(descriptor, view, position)
            position += len(view)
            context.count(len(view))


class RowsTask:
    """Compute a range of rows of a tensor."""

    def __init__(self, tensor: ComputedTensor, index: int, r0: int, r1: int) -> None:
        self._tensor, self._index, self._r0, self._r1 = tensor, index, r0, r1

    def run(self, descriptor: int, buffers: Buffers) -> None:
        self._tensor.run(self._index, self._r0, self._r1, descriptor, buffers)


class CopyTask:
    """Copy bytes unchanged."""

    def __init__(self, context: MergeContext, file: str, source: int, target: int, size: int) -> None:
        self._context, self._file, self._source, self._target, self._size = context, file, source, target, size

    def run(self, descriptor: int, buffers: Buffers) -> None:
        context, done = self._context, 0
        source = context.base.descriptor(self._file), self._source
        if copy(source, (descriptor, self._target), self._size, buffers.raw(COPY_BYTES)):
            context.count(self._size)
            return
        while done < self._size:
            if context.stop.is_set():
                raise stopped()
            view = buffers.raw(min(COPY_BYTES, self._size - done))
            context.base.read_into(self._file, self._source + done, view)
            write_at(descriptor, view, self._target + done)
            done += len(view)
            context.count(len(view))


Task = RowsTask | CopyTask


class Shard:
    """A file of the result and its remaining tasks."""

    def __init__(self, context: MergeContext, plan: ShardPlan) -> None:
        self.plan = plan
        self._computed: list[ComputedTensor] = []
        self.waiting: deque[Task] = deque()
        self.running = 0
        self._context = context
        self._descriptor: int | None = None
        for item in coalesced(plan):
            self.waiting.extend(self._copies(item) if isinstance(item, CopiedRange) else self._tensor(item))

    def open(self) -> int:
        """Open the file and write its header. Call it with the queue's lock held."""
        if self._descriptor is None:
            path = self._context.folder / self.plan.file
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            os.truncate(self._descriptor, self.plan.size)
            header = shard_header(self.plan)
            write_at(self._descriptor, memoryview(header), 0)
            self._context.count(len(header))
        return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def stats(self) -> list[TensorStats]:
        """Statistics of the touched tensors. Call it after the last task."""
        return [found.stats for found in self._computed if found.stats is not None and found.tensor.deltas]

    def _tensor(self, tensor: TensorPlan) -> list[Task]:
        self._computed.append(ComputedTensor(self._context, tensor))
        return self._computed[-1].tasks()

    def _copies(self, copied: CopiedRange) -> list[Task]:
        size, file, source = copied.source_end - copied.source_start, copied.source_file, copied.source_start
        return [
            CopyTask(self._context, file, source + at, copied.start + at, min(TASK_BYTES, size - at))
            for at in range(0, size, TASK_BYTES)
        ]


def stopped() -> InterruptedError:
    return InterruptedError("another task of the merge failed")


def write_at(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count

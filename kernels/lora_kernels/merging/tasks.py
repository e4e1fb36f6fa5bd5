"""The tasks of a merge: ranges of rows, ranges of untouched bytes, and the files that they belong to."""

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
from lora_kernels.merging.plan import CopiedRun, MergePlan, ShardPlan, TensorPlan, copied_runs, shard_header
from lora_kernels.merging.row_ranges import TASK_BYTES, row_ranges, row_start
from lora_kernels.merging.stats import TensorStats
from lora_kernels.merging.tensor import Buffers, Sums, TensorMerge

# Writes of 128 to 256 KiB were five to ten times as fast as writes of megabytes where it was measured.
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


class Touched:
    """A tensor that is computed. Its factors are loaded by its first task and released by its last."""

    def __init__(self, work: MergeContext, tensor: TensorPlan) -> None:
        self._work = work
        self.tensor = tensor
        self._merge: TensorMerge | None = None
        self._lock = threading.Lock()
        self._sums: list[Sums] = []
        self._left = 0
        self.stats: TensorStats | None = None

    def tasks(self) -> list[Task]:
        ranges = list(row_ranges(self.tensor))
        self._sums = [Sums() for _ in ranges]
        self._left = len(ranges)
        return [RowsTask(self, index, r0, r1) for index, (r0, r1) in enumerate(ranges)]

    def run(self, index: int, r0: int, r1: int, descriptor: int, buffers: Buffers) -> None:
        work, tensor = self._work, self.tensor
        with self._lock:
            if self._merge is None:
                self._merge = TensorMerge(tensor, work.base, work.readers())
            merge = self._merge
        position = row_start(tensor, r0)
        if write_rows(merge, work.base, descriptor, position, r0, r1, self._sums[index]):
            work.count(row_start(tensor, r1) - position)
        else:
            self._write_chunks(merge, index, r0, r1, descriptor, buffers)
        with self._lock:
            self._left -= 1
            if self._left:
                return
            total = Sums()
            for part in self._sums:
                total.join(part)
            self.stats = merge.stats(total)
            self._merge = None

    def _write_chunks(
        self, merge: TensorMerge, index: int, r0: int, r1: int, descriptor: int, buffers: Buffers
    ) -> None:
        work, position = self._work, row_start(self.tensor, r0)
        for view in merge.chunks(r0, r1, buffers, self._sums[index]):
            if work.stop.is_set():
                raise stopped()
            write_at(descriptor, view, position)
            position += len(view)
            work.count(len(view))


class RowsTask:
    """Compute some rows of a touched tensor."""

    def __init__(self, touched: Touched, index: int, r0: int, r1: int) -> None:
        self._touched, self._index, self._r0, self._r1 = touched, index, r0, r1

    def run(self, descriptor: int, buffers: Buffers) -> None:
        self._touched.run(self._index, self._r0, self._r1, descriptor, buffers)


class CopyTask:
    """Copy bytes unchanged."""

    def __init__(self, work: MergeContext, file: str, source: int, target: int, size: int) -> None:
        self._work, self._file, self._source, self._target, self._size = work, file, source, target, size

    def run(self, descriptor: int, buffers: Buffers) -> None:
        work, done = self._work, 0
        source = work.base.descriptor(self._file), self._source
        if copy(source, (descriptor, self._target), self._size, buffers.raw(COPY_BYTES)):
            work.count(self._size)
            return
        while done < self._size:
            if work.stop.is_set():
                raise stopped()
            view = buffers.raw(min(COPY_BYTES, self._size - done))
            work.base.read_into(self._file, self._source + done, view)
            write_at(descriptor, view, self._target + done)
            done += len(view)
            work.count(len(view))


Task = RowsTask | CopyTask


class Shard:
    """A file of the result and its remaining tasks."""

    def __init__(self, work: MergeContext, plan: ShardPlan) -> None:
        self.plan = plan
        self.touched: list[Touched] = []
        self.waiting: deque[Task] = deque()
        self.running = 0
        self._work = work
        self._descriptor: int | None = None
        for run in copied_runs(plan):
            self.waiting.extend(self._copies(run) if isinstance(run, CopiedRun) else self._tensor(run))

    def open(self) -> int:
        """Open the file and write its header. Call it with the queue's lock held."""
        if self._descriptor is None:
            path = self._work.folder / self.plan.file
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            os.truncate(self._descriptor, self.plan.size)
            header = shard_header(self.plan)
            write_at(self._descriptor, memoryview(header), 0)
            self._work.count(len(header))
        return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def stats(self) -> list[TensorStats]:
        """Of what was merged, once all is done."""
        return [touched.stats for touched in self.touched if touched.stats is not None and touched.tensor.deltas]

    def _tensor(self, tensor: TensorPlan) -> list[Task]:
        self.touched.append(Touched(self._work, tensor))
        return self.touched[-1].tasks()

    def _copies(self, run: CopiedRun) -> list[Task]:
        size = run.source_end - run.source_start
        return [
            CopyTask(self._work, run.source_file, run.source_start + at, run.start + at, min(TASK_BYTES, size - at))
            for at in range(0, size, TASK_BYTES)
        ]


def stopped() -> InterruptedError:
    return InterruptedError("another part of the merge failed")


def write_at(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count

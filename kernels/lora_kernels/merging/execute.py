"""Execute a plan in a folder. On the CPU, threads write ranges of rows and of untouched bytes in place; with digests,
and on a device, each file is a stream.

Tasks depend on the plan alone and their sums are added in its order, so neither the bytes nor the report depend on the
number of threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing

from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.checkpoint.sinks import FolderSink, HashingBeside, disk_full
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.checkpoint.staging import FinishedFile, Staging
from lora_kernels.merging.plan import MergePlan
from lora_kernels.merging.stats import TensorStats
from lora_kernels.merging.stream import Chunk as StreamedChunk
from lora_kernels.merging.tasks import Count, MergeContext, Shard, Task, stopped
from lora_kernels.merging.tensor import Buffers
from lora_kernels.numeric.blas import one_thread


class Queue:
    """Queue of tasks. The file with the fewest writers comes next, since writes to one file block each other."""

    def __init__(self, shards: Sequence[Shard], staging: Staging[tuple[TensorStats, ...]]) -> None:
        self._lock = threading.Lock()
        self._shards = list(shards)
        self._staging = staging

    def take(self) -> tuple[Shard, Task, int] | None:
        """The next task; None if none is left."""
        with self._lock:
            waiting = [shard for shard in self._shards if shard.waiting]
            if not waiting:
                return None
            shard = min(waiting, key=lambda shard: shard.running)
            with disk_full(shard.plan.file, shard.plan.size):
                descriptor = shard.open()
            shard.running += 1
            return shard, shard.waiting.popleft(), descriptor

    def done(self, shard: Shard) -> None:
        """Report a task as done. The last one finishes the file."""
        with self._lock:
            shard.running -= 1
            if shard.running or shard.waiting:
                return
        shard.close()
        self._staging.finish(FinishedFile(FileRecord(shard.plan.file, shard.plan.size, None), tuple(shard.stats())))


def execute(
    plan: MergePlan,
    staging: Staging[tuple[TensorStats, ...]],
    *,
    base: FolderSource,
    adapters: Sequence[FolderSource],
    threads: int | None,
    count: Count,
) -> None:
    """Write the output files that `staging` lacks, without digests.

    count: called with the number of bytes written, from any thread. Raises as `stream_shard` does, and RegistryError
    `storage-unavailable` if the disk is full.
    """
    context = MergeContext(plan, staging.folder, base, adapters, count)
    shards = [Shard(context, shard) for shard in plan.shards if shard.file not in staging.finished]
    queue = Queue(shards, staging)

    def run() -> None:
        buffers = Buffers()
        while not context.stop.is_set() and (taken := queue.take()) is not None:
            shard, task, descriptor = taken
            with disk_full(shard.plan.file, shard.plan.size):
                task.run(descriptor, buffers)
            queue.done(shard)

    with ExitStack() as stack:
        for shard in shards:
            stack.callback(shard.close)
        _in_threads(
            [run] * min(threads or os.cpu_count() or 1, sum(len(shard.waiting) for shard in shards)), context.stop
        )


def execute_streams(
    plan: MergePlan,
    staging: Staging[tuple[TensorStats, ...]],
    *,
    stream: Callable[[str, Callable[[TensorStats], None]], Generator[StreamedChunk, None, None]],
    digests: bool,
    threads: int | None,
    count: Count,
) -> None:
    """Like `execute`, from a stream of each file: one thread writes a file from start to end.

    stream: of `shard_stream`. digests: hash the files, each in a thread of its own beside the one that writes.
    threads: files at a time.
    """
    sink, stop = FolderSink(staging.folder), threading.Event()
    waiting = deque(shard for shard in plan.shards if shard.file not in staging.finished)

    def counted(chunks: Iterator[StreamedChunk]) -> Iterator[memoryview]:
        for chunk in chunks:
            if stop.is_set():
                raise stopped()
            yield chunk.view
            count(len(chunk.view))

    def run() -> None:
        while waiting and not stop.is_set():
            try:
                shard = waiting.popleft()
            except IndexError:
                return
            stats: list[TensorStats] = []
            with closing(stream(shard.file, stats.append)) as chunks:
                hashing = HashingBeside(counted(chunks))
                sink.write(shard.file, shard.size, hashing if digests else counted(chunks))
            digest = hashing.hexdigest if digests else None
            staging.finish(FinishedFile(FileRecord(shard.file, shard.size, digest), tuple(stats)))

    _in_threads([run] * min(threads or os.cpu_count() or 1, len(waiting)), stop)


def _in_threads(runs: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Run functions in threads. If one fails, stop the others and raise its error."""
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        pool = stack.enter_context(ThreadPoolExecutor(max(len(runs), 1)))
        stack.callback(stop.set)  # runs before the pool waits for its threads
        done, _ = wait([pool.submit(run) for run in runs], return_when=FIRST_EXCEPTION)
        for future in sorted(done, key=lambda future: isinstance(future.exception(), InterruptedError)):
            future.result()

"""Stream of one output file, from its header to its last tensor, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, NamedTuple

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import Source
from lora_kernels.merging.plan import MergePlan, TensorPlan, coalesced, shard_header
from lora_kernels.merging.row_ranges import row_ranges
from lora_kernels.merging.stats import TensorStats
from lora_kernels.merging.tensor import Buffers, Sums, TensorMerge
from lora_kernels.numeric.blas import on_one_thread

COPY_BYTES: Final = 1 << 18


class Chunk(NamedTuple):
    """Bytes of an output file. origin: (file, offset) of the same bytes in the base, so that a store which has that
    file can copy them server-side; None for new bytes."""

    view: memoryview
    origin: tuple[str, int] | None


def stream_chunks(
    plan: MergePlan,
    file: str,
    *,
    base: Source,
    adapters: Sequence[Source],
    on_tensor: Callable[[TensorStats], None] | None = None,
) -> Generator[Chunk, None, None]:
    """Yield the bytes of an output file, `shard_size(plan, file)` in total.

    Each chunk is a view of a buffer that the next one overwrites: use or copy it first.

    Args:
        base: source of the base's files, by the names in the plan.
        adapters: one source per adapter of the plan.
        on_tensor: called with the statistics of each touched tensor.

    Raises RegistryError `rejected`, with the name of the tensor, if merged values are not finite in the output dtype,
    and `corrupt` if a file is shorter than its header says.
    """
    shard = plan.shard(file)
    readers = [FactorReader(source, known.file) for source, known in zip(adapters, plan.adapters, strict=True)]
    buffers, raw = Buffers(), bytearray(COPY_BYTES)
    yield Chunk(memoryview(shard_header(shard)), None)
    for item in coalesced(shard):
        if isinstance(item, TensorPlan):
            merge, sums = TensorMerge(item, base, readers), Sums()
            for r0, r1 in row_ranges(item):
                part = Sums()
                for view in on_one_thread(merge.chunks(r0, r1, buffers, part)):
                    yield Chunk(view, None)
                sums.join(part)
            if item.deltas and on_tensor is not None:
                on_tensor(merge.stats(sums))
            continue
        position = item.source_start
        while position < item.source_end:
            view = memoryview(raw)[: min(COPY_BYTES, item.source_end - position)]
            base.read_into(item.source_file, position, view)
            yield Chunk(view, (item.source_file, position))
            position += len(view)


def stream_shard(
    plan: MergePlan,
    file: str,
    *,
    base: Source,
    adapters: Sequence[Source],
    on_tensor: Callable[[TensorStats], None] | None = None,
) -> Iterator[memoryview]:
    """Like `stream_chunks`, without origins."""
    for chunk in stream_chunks(plan, file, base=base, adapters=adapters, on_tensor=on_tensor):
        yield chunk.view

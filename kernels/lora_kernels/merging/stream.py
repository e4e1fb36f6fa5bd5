"""One file of the result as a sequence of bytes, from its header to its last tensor, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import Source
from lora_kernels.merging.plan import MergePlan, TensorPlan, copied_runs, shard_header
from lora_kernels.merging.row_ranges import row_ranges
from lora_kernels.merging.stats import TensorStats
from lora_kernels.merging.tensor import Buffers, Sums, TensorMerge
from lora_kernels.numeric.blas import on_one_thread

COPY_BYTES: Final = 1 << 18


class Piece(NamedTuple):
    """Bytes of the result. origin: file of the base and offset where the very same bytes are, so that a store that
    holds that file can copy them by itself; None for bytes that are new."""

    view: memoryview
    origin: tuple[str, int] | None


def stream_pieces(
    plan: MergePlan,
    file: str,
    *,
    base: Source,
    adapters: Sequence[Source],
    on_tensor: Callable[[TensorStats], None] | None = None,
) -> Iterator[Piece]:
    """The bytes of a file of the result, `shard_size(plan, file)` in all.

    A piece is a view of a buffer that the next one overwrites: use or copy it before taking the next.

    Args:
        base: has the base's files under the plan's names.
        adapters: one source per adapter of the plan.
        on_tensor: called with each touched tensor when it is done.

    Raises RegistryError `rejected` naming the tensor whose merged values are not finite in the output type, `corrupt`
    if a file is shorter than its header says.
    """
    shard = plan.shard(file)
    readers = [FactorReader(source, known.file) for source, known in zip(adapters, plan.adapters, strict=True)]
    buffers, raw = Buffers(), bytearray(COPY_BYTES)
    yield Piece(memoryview(shard_header(shard)), None)
    for run in copied_runs(shard):
        if isinstance(run, TensorPlan):
            merge, sums = TensorMerge(run, base, readers), Sums()
            for r0, r1 in row_ranges(run):
                part = Sums()
                for view in on_one_thread(merge.chunks(r0, r1, buffers, part)):
                    yield Piece(view, None)
                sums.join(part)
            if run.deltas and on_tensor is not None:
                on_tensor(merge.stats(sums))
            continue
        position = run.source_start
        while position < run.source_end:
            view = memoryview(raw)[: min(COPY_BYTES, run.source_end - position)]
            base.read_into(run.source_file, position, view)
            yield Piece(view, (run.source_file, position))
            position += len(view)


def stream_shard(
    plan: MergePlan,
    file: str,
    *,
    base: Source,
    adapters: Sequence[Source],
    on_tensor: Callable[[TensorStats], None] | None = None,
) -> Iterator[memoryview]:
    """The bytes alone of `stream_pieces`."""
    for piece in stream_pieces(plan, file, base=base, adapters=adapters, on_tensor=on_tensor):
        yield piece.view

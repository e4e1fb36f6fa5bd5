"""Run a plan: the bytes of one file of the result, from its header to its last tensor, in bounded memory.

W_new = round(float32(W) + dW), dW = sum_i scale_i * (B_i @ A_i) formed first, in float32 and in the order of the
adapters; then one addition, then one rounding to the output type. Blocks have a fixed size and BLAS runs on one thread,
so the bytes depend on the plan and the processor's instruction set only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

import numpy as np

from lora_kernels.merging.blas import one_thread
from lora_kernels.merging.numerics import F32, decode, encode, storage
from lora_kernels.merging.plan import MergePlan, ShardPlan, TensorPlan, shard_header
from lora_kernels.merging.sources import Source
from lora_kernels.merging.stats import TensorStats, UpdateSums
from lora_kernels.merging.updates import Block, LowRank, Replacement, load_low_rank, sum_block
from lora_reg.spec.errors import RegistryError

# Elements of a block: its four float32 buffers stay in a core's cache. Writes of 128 to 256 KiB were five to ten times
# as fast as writes of megabytes where it was measured.
BLOCK: Final = 1 << 16
COPY_BYTES: Final = 1 << 18
_SMALLEST_SUM: Final = 1e-30
_LARGEST: Final = {"BF16": 3.3895313892515355e38, "F16": 65504.0, "F32": 3.4028234663852886e38}


class _Buffers:
    """Reused for every block of a file, so that memory does not depend on the model."""

    def __init__(self) -> None:
        self.raw = bytearray(max(BLOCK * 8, COPY_BYTES))
        self.weight = np.empty(BLOCK, np.float32)
        self.delta = np.empty(BLOCK, np.float32)
        self.scratch = np.empty(BLOCK, np.float32)
        self.bits = np.empty(BLOCK, np.uint32)
        self.out = bytearray(BLOCK * 8)


def stream_shard(
    plan: MergePlan,
    file: str,
    *,
    base: Source,
    adapters: Sequence[Source],
    on_tensor: Callable[[TensorStats], None] | None = None,
) -> Iterator[memoryview]:
    """The bytes of a file of the result, `shard_size(plan, file)` in all.

    A chunk is a view of a buffer that the next one overwrites: use or copy it before going on. base: knows the base's
    files by the plan's names; adapters: one source per adapter of the plan. on_tensor: told of each touched tensor once
    it is done. Raises RegistryError `rejected` naming the tensor whose merged values are not finite in the output type,
    `corrupt` where a file is shorter than its header says.
    """
    shard = plan.shard(file)
    buffers = _Buffers()
    with one_thread():
        yield memoryview(shard_header(shard))
        for first, last in _runs(shard):
            if first is last and not first.copied:
                yield from _merge(
                    first, plan, shard, base=base, adapters=adapters, buffers=buffers, on_tensor=on_tensor
                )
            else:
                yield from _copy(shard.file, first.source_start, last.source_end, base, buffers)


def _runs(shard: ShardPlan) -> Iterator[tuple[TensorPlan, TensorPlan]]:
    """First and last tensor of each range that is copied whole; twice the same one where it is computed."""
    start: TensorPlan | None = None
    last: TensorPlan | None = None
    for tensor in shard.tensors:
        if start is not None and last is not None and not (tensor.copied and tensor.source_start == last.source_end):
            yield start, last
            start = None
        if tensor.copied:
            start, last = start or tensor, tensor
        else:
            yield tensor, tensor
    if start is not None and last is not None:
        yield start, last


def _copy(file: str, start: int, end: int, base: Source, buffers: _Buffers) -> Iterator[memoryview]:
    whole = memoryview(buffers.raw)
    while start < end:
        view = whole[: min(COPY_BYTES, end - start)]
        base.read_into(file, start, view)
        yield view
        start += len(view)


def _blocks(shape: tuple[int, ...]) -> Iterator[Block]:
    """Blocks of at most BLOCK elements of a tensor seen as (first dimension, all others), in the order of its bytes."""
    rows = shape[0] if len(shape) > 1 else 1
    columns = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    if rows * columns == 0:
        return
    if columns > BLOCK:
        for row in range(rows):
            for column in range(0, columns, BLOCK):
                yield Block(row, row + 1, column, min(column + BLOCK, columns), columns)
        return
    step = BLOCK // columns
    for row in range(0, rows, step):
        yield Block(row, min(row + step, rows), 0, columns, columns)


def _merge(
    tensor: TensorPlan,
    plan: MergePlan,
    shard: ShardPlan,
    *,
    base: Source,
    adapters: Sequence[Source],
    buffers: _Buffers,
    on_tensor: Callable[[TensorStats], None] | None,
) -> Iterator[memoryview]:
    replacement: Replacement | None = None
    updates: list[LowRank] = []
    if tensor.deltas and tensor.deltas[0].kind == "replace":
        delta = tensor.deltas[0]
        replacement = Replacement(delta.b, adapters[delta.adapter], plan.adapters[delta.adapter].file)
    else:
        updates = [
            load_low_rank(delta, adapters[delta.adapter], plan.adapters[delta.adapter].file) for delta in tensor.deltas
        ]
    source_type, output_type = storage(tensor.source_dtype), storage(tensor.dtype)
    sums = _Sums()
    for block in _blocks(tensor.shape):
        count = block.elements
        raw = memoryview(buffers.raw)[: count * source_type.itemsize]
        base.read_into(shard.file, tensor.source_start + block.first * source_type.itemsize, raw)
        shape = block.shape
        weight = decode(
            np.frombuffer(raw, source_type).reshape(shape), tensor.source_dtype, buffers.weight[:count].reshape(shape)
        )
        change = buffers.delta[:count].reshape(shape)
        new = buffers.scratch[:count].reshape(shape)
        with np.errstate(over="ignore", invalid="ignore"):
            if replacement is not None:
                np.subtract(replacement.values(block, new), weight, out=change)
            elif updates:
                sum_block(updates, block, change, new)
                np.add(weight, change, out=new)
            else:
                np.copyto(new, weight)
        view = memoryview(buffers.out)[: count * output_type.itemsize]
        stored = np.frombuffer(view, output_type).reshape(shape)
        encode(new, tensor.dtype, stored, buffers.bits)
        with np.errstate(over="ignore", invalid="ignore"):
            realised = decode(stored, tensor.dtype, new)
            finite = sums.add(weight, change if tensor.deltas else None, realised)
        if not finite:
            _refuse_nonfinite(tensor, weight, decode(stored, tensor.dtype, new))
        yield view
    if tensor.deltas and on_tensor is not None:
        on_tensor(
            TensorStats(
                name=tensor.name,
                kind="replace" if replacement is not None else "update",
                adapters=tuple(delta.adapter for delta in tensor.deltas),
                elements=math.prod(tensor.shape),
                max_delta=sums.max_delta,
                sums=UpdateSums(sums.delta_delta, sums.realised_delta, sums.realised_realised),
            )
        )


class _Sums:
    """Sums over the blocks of a tensor: products within a block in float32 by BLAS, blocks added up in float64."""

    def __init__(self) -> None:
        self.delta_delta = 0.0
        self.realised_delta = 0.0
        self.realised_realised = 0.0
        self.max_delta = 0.0

    def add(self, weight: F32, change: F32 | None, stored: F32) -> bool:
        """Take in a block; `stored` is overwritten. False where the stored values or the update are not finite.

        change: None where nothing was added and only the type changed.
        """
        realised = np.subtract(stored, weight, out=stored).reshape(-1)
        rr = float(np.dot(realised, realised))
        if change is None:
            return math.isfinite(rr) or bool(np.isfinite(realised).all())
        flat = change.reshape(-1)
        largest = max(float(flat.max()), -float(flat.min()))
        dd = float(np.dot(flat, flat))
        rd = float(np.dot(realised, flat))
        # Squares leave float32's range long before the values do, at either end.
        if not (math.isfinite(rr) and math.isfinite(dd)) or (largest > 0 and dd < _SMALLEST_SUM):
            if not (np.isfinite(realised).all() and np.isfinite(flat).all()):
                return False
            wide, wide_realised = flat.astype(np.float64), realised.astype(np.float64)
            dd, rd, rr = (
                float(np.dot(*pair)) for pair in ((wide, wide), (wide_realised, wide), (wide_realised, wide_realised))
            )
        self.delta_delta += dd
        self.realised_delta += rd
        self.realised_realised += rr
        self.max_delta = max(self.max_delta, largest)
        return True


def _refuse_nonfinite(tensor: TensorPlan, weight: F32, stored: F32) -> NoReturn:
    before = int(np.count_nonzero(~np.isfinite(weight)))
    after = int(np.count_nonzero(~np.isfinite(stored)))
    if before:
        raise RegistryError(
            "rejected",
            f"The base tensor {tensor.name} holds NaN or infinite values ({before} in one block of {weight.size}).",
            way_out="Register an undamaged copy of the base.",
            tensor=tensor.name,
        )
    raise RegistryError(
        "rejected",
        f"{tensor.name}: {after} merged values in one block of {stored.size} exceed the range of {tensor.dtype} "
        f"(largest finite: {_LARGEST[tensor.dtype]:g}).",
        way_out="Merge into a dtype with a larger range (bfloat16 or float32), or with a smaller weight.",
        tensor=tensor.name,
    )

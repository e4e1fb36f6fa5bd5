"""Merge of one tensor, or of a range of its rows, and how much of dW survived rounding.

W_new = round(float32(W) + dW): dW is summed in float32 in the order of the adapters, added once and rounded once.
Blocks have a fixed size and BLAS runs on one thread, so the bytes depend only on the plan and the processor's
instruction set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import Source
from lora_kernels.merging.plan import TensorPlan
from lora_kernels.merging.stats import TensorStats, tensor_stats
from lora_kernels.merging.updates import Updates, load_updates
from lora_kernels.merging.weights import open_weights
from lora_kernels.merging.writers import Nf4, Rounded, Writer
from lora_kernels.native import AddRound, add_round_bf16
from lora_kernels.numeric.blocks import BLOCK, Block, block_rows, blocks, matrix
from lora_kernels.numeric.dtypes import F32
from lora_kernels.numeric.sums import UpdateSums
from lora_kernels.types.forms.products import LowRankAddition, sum_block

_SMALLEST_SUM: Final = 1e-30
_LARGEST: Final = {"BF16": 3.3895313892515355e38, "F16": 65504.0, "F32": 3.4028234663852886e38}


class Buffers:
    """Buffers of a thread, reused for every block, so that memory does not depend on the model."""

    def __init__(self) -> None:
        self._size = 0
        self._raw = bytearray()
        self._grow(BLOCK)

    def _grow(self, elements: int) -> None:
        if elements > self._size:
            self._size = elements
            self.weight, self.change, self.new, self.scratch = (np.empty(elements, np.float32) for _ in range(4))
            self.bits = np.empty(elements, np.uint32)
            self.out = bytearray(elements * 8)

    def raw(self, size: int) -> memoryview:
        """A buffer of `size` bytes for a stored block."""
        if len(self._raw) < size:
            self._raw = bytearray(size)
        return memoryview(self._raw)[:size]

    def of(self, block: Block) -> tuple[F32, F32, F32, F32]:
        """(weight, change, new, scratch), each of the block's shape."""
        self._grow(block.elements)
        weight, change, new, scratch = (
            buffer[: block.elements].reshape(block.shape)
            for buffer in (self.weight, self.change, self.new, self.scratch)
        )
        return weight, change, new, scratch


class Sums:
    """Sums over blocks. Dot products within a block are float32 (BLAS); blocks are added in float64, in order."""

    def __init__(self) -> None:
        self.delta_delta = 0.0
        self.realised_delta = 0.0
        self.realised_realised = 0.0
        self.max_delta = 0.0

    def add(self, weight: F32, change: F32 | None, stored: F32) -> bool:
        """Add a block; `stored` is overwritten. Return False if the stored values or the update are not finite.

        change: None if only the dtype changed.
        """
        realised = np.subtract(stored, weight, out=stored).reshape(-1)
        rr = float(np.dot(realised, realised))
        if change is None:
            return math.isfinite(rr) or bool(np.isfinite(realised).all())
        flat = change.reshape(-1)
        largest = max(float(flat.max()), -float(flat.min()))
        dd = float(np.dot(flat, flat))
        rd = float(np.dot(realised, flat))
        # Squares overflow or underflow float32 long before the values do.
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

    def add_sums(self, delta_delta: float, realised_delta: float, realised_realised: float, max_delta: float) -> None:
        """Add sums of blocks that C code computed."""
        self.delta_delta += delta_delta
        self.realised_delta += realised_delta
        self.realised_realised += realised_realised
        self.max_delta = max(self.max_delta, max_delta)

    @property
    def total(self) -> UpdateSums:
        return UpdateSums(self.delta_delta, self.realised_delta, self.realised_realised)

    def join(self, other: Sums) -> None:
        """Add the sums of the rows that follow."""
        self.delta_delta += other.delta_delta
        self.realised_delta += other.realised_delta
        self.realised_realised += other.realised_realised
        self.max_delta = max(self.max_delta, other.max_delta)


class TensorMerge:
    """Merge of a touched tensor, or of one whose dtype changes. All threads that work on its rows share its factors."""

    def __init__(self, tensor: TensorPlan, base: Source, readers: Sequence[FactorReader]) -> None:
        self.tensor = tensor
        self.rows, self.columns = matrix(tensor.shape, tensor.columns)
        self.updates: Updates | None = None
        self._base = base
        self._open = open_weights(tensor, base)
        if tensor.deltas:
            self.updates = load_updates(tensor.deltas, readers, self._open(), self.rows, self.columns)
        self._row_group = self.updates.row_group if self.updates is not None else 0
        self._writer: Writer
        if tensor.form is None:
            self._writer = Rounded(tensor)
        else:
            self._row_group = _aligned(self._row_group, tensor.form.blocksize, self.columns)
            merged = self.merged(0, self.rows, Buffers())
            self._writer = Nf4(tensor, tensor.form, ((block, new) for block, _, _, new in merged))

    @property
    def replaces(self) -> bool:
        """Whether an adapter replaces the tensor."""
        return self.updates is not None and self.updates.replaces

    @property
    def step(self) -> int:
        """Ranges of rows start at its multiples."""
        return max(block_rows(self.columns, row_group=self._row_group), 1)

    @property
    def low_rank(self) -> list[LowRankAddition] | None:
        """The updates, if the C loops support the merge: low-rank updates of plain bfloat16, rounded to nearest. Else
        None."""
        tensor = self.tensor
        plain = (tensor.source_dtype, tensor.dtype) == ("BF16", "BF16") and isinstance(self._writer, Rounded)
        if not plain or tensor.seed is not None or tensor.quantized is not None or tensor.through_nf4:
            return None
        return self.updates.low_rank if self.updates is not None else None

    def chunks(self, r0: int, r1: int, buffers: Buffers, sums: Sums) -> Iterator[memoryview]:
        """Yield the bytes of the rows r0:r1, each chunk valid until the next. The writer's head precedes row 0.

        Raises RegistryError `rejected`, with the name of the tensor, if values are not finite in the output dtype, and
        `corrupt` if a file is too short.
        """
        add_round, updates = add_round_bf16(), self.low_rank
        if add_round is not None and updates is not None:
            yield from self._fused(add_round, updates, r0, r1, buffers, sums)
            return
        yield from self._chunks(r0, r1, buffers, sums)

    def _chunks(self, r0: int, r1: int, buffers: Buffers, sums: Sums) -> Iterator[memoryview]:
        writer = self._writer
        if r0 == 0 and writer.head:
            yield memoryview(writer.head)
        for block, weight, change, new in self.merged(r0, r1, buffers):
            view = memoryview(buffers.out)[: writer.size(block.elements)]
            with np.errstate(over="ignore", invalid="ignore"):
                writer.encode(new, block, view, buffers.bits)
                finite = sums.add(weight, change, writer.decode(view, block, new))
            if not finite:
                _refuse_nonfinite(self.tensor, weight, writer.decode(view, block, new))
            yield view

    def _fused(
        self, add_round: AddRound, updates: list[LowRankAddition], r0: int, r1: int, buffers: Buffers, sums: Sums
    ) -> Iterator[memoryview]:
        tensor, found = self.tensor, np.zeros(4)
        for block in blocks(r0, r1, self.columns, row_group=self._row_group):
            _, change, _, scratch = buffers.of(block)
            size = 2 * block.elements
            raw, out = buffers.raw(size), memoryview(buffers.out)[:size]
            self._base.read_into(tensor.source_file, tensor.source_start + 2 * block.first, raw)
            with np.errstate(over="ignore", invalid="ignore"):
                if len(updates) == 1:
                    updates[0].product(block, change)
                    finite = add_round(raw, change, updates[0].scale, out, found)
                else:
                    sum_block(updates, block, change, scratch)
                    finite = add_round(raw, change, np.float32(1), out, found)
            if not finite:
                # The general path raises the precise error.
                yield from self._chunks(block.r0, block.r1, buffers, sums)
                raise RegistryError("internal", f"{tensor.name}: two merges disagree whether all values are finite.")
            yield out
        sums.add_sums(*map(float, found))

    def before(self, buffers: Buffers) -> Iterator[tuple[Block, F32]]:
        """Yield the base's values by block, each valid until the next. Raises RegistryError `corrupt`."""
        weights = self._open()
        for block in blocks(0, self.rows, self.columns, row_group=self._row_group):
            yield block, weights.read(block, buffers.of(block)[0])

    def merged(self, r0: int, r1: int, buffers: Buffers) -> Iterator[tuple[Block, F32, F32 | None, F32]]:
        """Yield (block, weight before, change, weight after), before rounding to the output dtype, each valid until the
        next. The change is None if there is no update. r0: a multiple of `step`. Raises RegistryError `corrupt`."""
        weights = self._open()
        for block in blocks(r0, r1, self.columns, row_group=self._row_group):
            weight, change, new, scratch = buffers.of(block)
            with np.errstate(over="ignore", invalid="ignore"):
                weights.read(block, weight)
                if self.updates is not None:
                    self.updates.apply(block, weight, change, new, scratch)
                else:
                    np.copyto(new, weight)
            yield block, weight, change if self.updates is not None else None, new

    def stats(self, sums: Sums) -> TensorStats:
        """How much of the update survived rounding. sums: over all rows."""
        return tensor_stats(self.tensor, sums.total, sums.max_delta, replaces=self.replaces)


def _aligned(row_group: int, blocksize: int, columns: int) -> int:
    """The size of row groups that aligns blocks of the tensor with blocks of the format."""
    step = blocksize // math.gcd(blocksize, columns) if columns else 1
    return math.lcm(max(row_group, 1), step) if step > 1 else row_group


def _refuse_nonfinite(tensor: TensorPlan, weight: F32, stored: F32) -> NoReturn:
    before = int(np.count_nonzero(~np.isfinite(weight)))
    after = int(np.count_nonzero(~np.isfinite(stored)))
    if before:
        raise RegistryError(
            "rejected",
            f"The base tensor {tensor.name} holds NaN or infinite values ({before} in one block of {weight.size}).",
            hint="Register an undamaged copy of the base.",
            tensor=tensor.name,
        )
    raise RegistryError(
        "rejected",
        f"{tensor.name}: {after} merged values in one block of {stored.size} exceed the range of {tensor.dtype} "
        f"(largest finite: {_LARGEST[tensor.dtype]:g}).",
        hint="Merge into a dtype with a larger range (bfloat16 or float32), or with a smaller weight.",
        tensor=tensor.name,
    )

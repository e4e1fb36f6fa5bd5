"""What of a plan a device computes, in waves that fit into its memory. Pure data.

A wave is a run of tensors in the order of the file. One launch computes the low-rank updates of all its matrices; while
it runs, the next wave is read and copied up, and the one before is copied down and written. A whole file in one wave
would leave nothing to overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Literal, NamedTuple, TypeAlias

from lora_contract.tensors import DTYPE_BYTES
from lora_kernels.merging.plan import CopiedRange, ShardPlan, TensorPlan, coalesced
from lora_kernels.numeric.blocks import block_rows, matrix
from lora_kernels.quantized.blocksizes import BLOCKSIZES
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.lora.dora import DoraProduct
from lora_kernels.types.lora.stacks import ExpertPart

Kind = Literal["low-rank", "dora", "quantized"]

# Bytes of a wave in the device's memory.
WAVE_BYTES: Final = 512 << 20
_FLOATS: Final = frozenset({"BF16", "F16", "F32"})
_BITSANDBYTES: Final = frozenset({"nf4", "fp4", "int8"})
_F32: Final = 4
_ALIGNMENT: Final = 256


class Part(NamedTuple):
    """Rows r0:r1 of a tensor that the device computes. last: no rows follow."""

    tensor: TensorPlan
    kind: Kind
    r0: int
    r1: int
    last: bool

    @property
    def source(self) -> tuple[str, int, int]:
        """File of the base, and the range of its bytes to read: the codes of a quantized weight."""
        tensor = self.tensor
        if tensor.quantized is not None:
            packed = tensor.quantized.packed
            return packed.file, packed.start, packed.end
        width = matrix(tensor.shape, tensor.columns)[1] * DTYPE_BYTES[tensor.source_dtype]
        return tensor.source_file, tensor.source_start + self.r0 * width, tensor.source_start + self.r1 * width

    @property
    def in_place(self) -> bool:
        """Whether the result takes the place of the weights."""
        return self.kind == "low-rank" and self.tensor.dtype == self.tensor.source_dtype

    @property
    def device_bytes(self) -> int:
        """Memory on the device, rounded up."""
        return _device_bytes(self.tensor, self.kind, self.r1 - self.r0)


class HostTensor(NamedTuple):
    """A tensor that the device's operations do not cover: computed as without a device."""

    tensor: TensorPlan


Item: TypeAlias = Part | HostTensor | CopiedRange


class Wave(NamedTuple):
    """Items in the order of the file."""

    items: tuple[Item, ...]

    @property
    def parts(self) -> list[Part]:
        return [item for item in self.items if isinstance(item, Part)]


def kind_of(tensor: TensorPlan) -> Kind | None:
    """How a device computes a tensor; None if it does not.

    A device computes updates that are low-rank products, alone or with DoRA, changes of the dtype, and the formats of
    bitsandbytes; all rounded to nearest.
    """
    known = tensor.quantized
    if tensor.new or tensor.seed is not None or tensor.source_dtype not in _FLOATS or not math.prod(tensor.shape):
        return None
    if known is not None and (known.grid is not None or known.scheme not in _BITSANDBYTES):
        return None
    if tensor.form is not None and tensor.form.blocksize not in BLOCKSIZES:
        return None
    updates = [delta.update for delta in tensor.deltas]
    if len(updates) == 1 and isinstance(updates[0], DoraProduct):
        alone = tensor.deltas[0].weight == 1 and not updates[0].product.transposed
        return "dora" if alone else None
    if not all(isinstance(update, LowRankProduct | ExpertPart) for update in updates):
        return None
    plain = known is None and tensor.form is None and not tensor.through_nf4
    return "low-rank" if plain else "quantized"


def waves(shard: ShardPlan, limit: int = WAVE_BYTES, largest: int | None = None) -> Iterator[Wave]:
    """The items of a file in order.

    Args:
        limit: bytes of a wave on the device. A tensor that exceeds it goes by rows if they are independent; else it is
            a wave of its own.
        largest: bytes of such a wave, beyond which the host computes the tensor; None for `limit`.
    """
    items: list[Item] = []
    size = 0
    for item in coalesced(shard):
        parts = [item] if isinstance(item, CopiedRange) else _parts(item, limit, limit if largest is None else largest)
        for part in parts:
            needed = part.device_bytes if isinstance(part, Part) else 0
            if items and size + needed > limit:
                yield Wave(tuple(items))
                items, size = [], 0
            items.append(part)
            size += needed
    if items:
        yield Wave(tuple(items))


def _parts(tensor: TensorPlan, limit: int, largest: int) -> list[Part] | list[HostTensor]:
    kind = kind_of(tensor)
    rows, columns = matrix(tensor.shape, tensor.columns)
    if kind is None:
        return [HostTensor(tensor)]
    needed = _device_bytes(tensor, kind, rows)
    if needed <= limit or (kind != "low-rank" and needed <= largest):
        return [Part(tensor, kind, 0, rows, last=True)]
    if kind != "low-rank":
        return [HostTensor(tensor)]
    # Ranges start at blocks, so that the host can compute one again.
    step = max(block_rows(columns), 1)
    per_part = max(limit // _device_bytes(tensor, kind, step), 1) * step
    ends = [*range(0, rows, per_part), rows]
    return [Part(tensor, kind, r0, r1, last=r1 == rows) for r0, r1 in pairwise(ends)]


def _device_bytes(tensor: TensorPlan, kind: Kind, rows: int) -> int:
    elements = rows * matrix(tensor.shape, tensor.columns)[1]
    stored = elements * DTYPE_BYTES[tensor.source_dtype]
    if tensor.quantized is not None:
        stored = tensor.quantized.packed.end - tensor.quantized.packed.start
    written = tensor.end - tensor.start
    if kind == "low-rank":
        written = 0 if tensor.dtype == tensor.source_dtype else elements * DTYPE_BYTES[tensor.dtype]
    # Copies in float32: dequantized weights, what a reader of the result sees, what DoRA returns.
    dequantized = tensor.quantized is not None or tensor.through_nf4
    copies = int(kind == "dora") + int(tensor.form is not None) + int(dequantized)
    return sum(size + -size % _ALIGNMENT for size in (stored, written, copies * _F32 * elements))

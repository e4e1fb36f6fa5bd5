"""The updates of one tensor, computed block by block in float32.

A block is a range of whole rows, or a piece of one row where a row alone is larger than a block. Whatever its kind, an
update is a product left @ right of float32 factors with contiguous rows, or a tensor that takes the weight's place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_kernels.merging.delta import Delta, Factor
from lora_kernels.merging.numerics import F32, Array, decode, storage
from lora_kernels.merging.sources import Source
from lora_reg.spec.errors import RegistryError


class Block:
    """Rows r0:r1 and columns c0:c1 of a tensor seen as a matrix. `first`: index of its first element in the tensor."""

    __slots__ = ("c0", "c1", "first", "r0", "r1")

    def __init__(self, r0: int, r1: int, c0: int, c1: int, columns: int) -> None:
        self.r0, self.r1, self.c0, self.c1 = r0, r1, c0, c1
        self.first = r0 * columns + c0

    @property
    def shape(self) -> tuple[int, int]:
        return self.r1 - self.r0, self.c1 - self.c0

    @property
    def elements(self) -> int:
        return (self.r1 - self.r0) * (self.c1 - self.c0)


class LowRank:
    """scale * left @ right, left (rows, r), right (r, columns). Holds both factors in memory, in float32; the
    transposes are views, which BLAS reads as they are."""

    def __init__(self, left: F32, right: F32, scale: float) -> None:
        self._left = left
        self._right = right
        self._scale = np.float32(scale)

    def block(self, block: Block, out: F32) -> None:
        """Write dW of a block to `out`, of the block's shape."""
        np.matmul(self._left[block.r0 : block.r1], self._right[:, block.c0 : block.c1], out=out)
        if self._scale != 1:
            np.multiply(out, self._scale, out=out)


class Replacement:
    """A stored tensor that takes the weight's place, read block by block."""

    def __init__(self, factor: Factor, source: Source, path: str) -> None:
        self._factor = factor
        self._source = source
        self._path = path

    def values(self, block: Block, out: F32) -> F32:
        dtype = storage(self._factor.dtype)
        raw = np.empty(block.shape, dtype)
        _read(self._source, self._path, self._factor.start + block.first * dtype.itemsize, raw)
        return decode(raw, self._factor.dtype, out)


def sum_block(updates: Sequence[LowRank], block: Block, out: F32, scratch: F32) -> None:
    """Write the sum of dW of a block to `out`, added in order. scratch: of the same shape, overwritten."""
    updates[0].block(block, out)
    for update in updates[1:]:
        update.block(block, scratch)
        np.add(out, scratch, out=out)


def load_low_rank(delta: Delta, source: Source, path: str) -> LowRank:
    """Read both factors of a linear or embedding update. Raises RegistryError `rejected` where they are not finite."""
    assert delta.a is not None
    a = _load(delta.a, source, path)
    b = _load(delta.b, source, path)
    if delta.kind == "embedding" or delta.transposed:
        return LowRank(a.T, b.T, delta.scale)
    return LowRank(b, a, delta.scale)


def _load(factor: Factor, source: Source, path: str) -> F32:
    raw = np.empty(factor.shape, storage(factor.dtype))
    _read(source, path, factor.start, raw)
    values = decode(raw, factor.dtype, np.empty(factor.shape, np.float32))
    if not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise RegistryError(
            "rejected",
            f"{factor.name} holds {count} values that are NaN or infinite.",
            way_out="Train it again or take an earlier checkpoint; such an adapter destroys the model.",
            tensor=factor.name,
        )
    return values


def _read(source: Source, path: str, offset: int, raw: Array) -> None:
    if raw.size:
        source.read_into(path, offset, memoryview(raw.reshape(-1).view(np.uint8).data))

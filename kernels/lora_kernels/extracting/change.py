"""The change of one tensor by a fine-tune, read in blocks of rows from both checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from lora_contract.base import BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.tensors import DTYPE_BYTES, FLOAT_DTYPES
from lora_kernels.checkpoint.sources import Source
from lora_kernels.extracting.pairs import Pair
from lora_kernels.linalg.operators import F64
from lora_kernels.numeric.blocks import matrix
from lora_kernels.numeric.dtypes import F32, decode, storage

# Elements of a block: large enough for the products of a sketch to be compute-bound; about 24 MB of buffers per thread.
BLOCK: Final = 1 << 20


class ChangeNorms(NamedTuple):
    """Frobenius norms. change: of tuned - base."""

    change: float
    base: float

    @property
    def relative(self) -> float | None:
        """||change|| / ||base||; None if the base is zero."""
        return self.change / self.base if self.base > 0 else None


class WeightChange:
    """float64(tuned) - float64(base) as a matrix, the first dimension by all others. A RowStream; not thread-safe."""

    def __init__(self, pair: Pair, tuned: Source, base: Source) -> None:
        self.pair = pair
        self.rows, self.columns = matrix(pair.base.shape)
        self._sources = (tuned, base)

    @property
    def stored(self) -> list[tuple[BaseTensor, Source]]:
        """The tensors of the fine-tune and of the base, each with its source."""
        return list(zip(self.pair, self._sources, strict=True))

    def identical(self) -> bool:
        """Whether both tensors have the same bytes. False for equal numbers of different dtypes."""
        tuned, base = self.pair
        if tuned.dtype != base.dtype:
            return False
        size = tuned.end - tuned.start
        step = BLOCK * DTYPE_BYTES[tuned.dtype]
        one, two = (np.empty(min(step, size), np.uint8) for _ in range(2))
        for offset in range(0, size, step):
            length = min(step, size - offset)
            self._sources[0].read_into(tuned.file, tuned.start + offset, one[:length].data)
            self._sources[1].read_into(base.file, base.start + offset, two[:length].data)
            if not np.array_equal(one[:length], two[:length]):
                return False
        return True

    def norms(self) -> ChangeNorms:
        """Norms of the change and the base. Raises RegistryError `rejected` if a value is not finite, `unsupported` if
        the dtype is not a floating-point one."""
        if self.pair.base.dtype not in FLOAT_DTYPES:
            raise RegistryError(
                "unsupported",
                f"{self.pair.name} has the dtype {self.pair.base.dtype} and differs between the fine-tune and its "
                "base; an adapter cannot store such a change.",
                hint="Give full-precision checkpoints of the same model.",
                tensor=self.pair.name,
            )
        change, base = [], []
        for weight, block in self._blocks():
            base.append(float(np.vdot(wide := weight.astype(np.float64), wide)))
            change.append(float(np.vdot(block, block)))
            if not (math.isfinite(base[-1]) and math.isfinite(change[-1])):
                raise self._nonfinite(weight)
        return ChangeNorms(math.sqrt(math.fsum(change)), math.sqrt(math.fsum(base)))

    def blocks(self) -> Iterator[tuple[int, F64]]:
        row = 0
        for _, block in self._blocks():
            yield row, block
            row += len(block)

    def _blocks(self) -> Iterator[tuple[F32, F64]]:
        """(block of the base, block of the change), both valid until the next."""
        if not self.columns:
            return
        step = max(1, BLOCK // self.columns)
        shape = (min(step, self.rows), self.columns)
        tuned, base = np.empty(shape, np.float32), np.empty(shape, np.float32)
        change = np.empty(shape, np.float64)
        raw = bytearray(shape[0] * shape[1] * max(DTYPE_BYTES[tensor.dtype] for tensor in self.pair))
        for row in range(0, self.rows, step):
            count = min(step, self.rows - row)
            for tensor, source, out in zip(self.pair, self._sources, (tuned, base), strict=True):
                self._read(tensor, source, row, raw, out[:count])
            with np.errstate(invalid="ignore"):
                np.subtract(tuned[:count], base[:count], out=change[:count], dtype=np.float64)
            yield base[:count], change[:count]

    def _read(
        self,
        tensor: BaseTensor,
        source: Source,
        row: int,
        raw: bytearray,
        out: F32,
    ) -> None:
        dtype = storage(tensor.dtype)
        view = memoryview(raw)[: out.size * dtype.itemsize]
        source.read_into(tensor.file, tensor.start + row * self.columns * dtype.itemsize, view)
        decode(np.frombuffer(view, dtype).reshape(out.shape), tensor.dtype, out)

    def _nonfinite(self, base: F32) -> RegistryError:
        side = "fine-tune" if np.isfinite(base).all() else "base"
        return RegistryError(
            "rejected",
            f"{self.pair.name} holds NaN or infinite values in the {side}.",
            hint="Give another checkpoint: the training diverged, or the file is damaged.",
            tensor=self.pair.name,
        )

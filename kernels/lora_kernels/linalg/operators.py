"""A matrix as what decompositions ask of it: a few products, each one pass over its blocks of rows.

`Streamed` computes them with numpy; `linalg.on_device` on a GPU. All sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lora_kernels.numeric.dtypes import F32

F64 = npt.NDArray[np.float64]


class RowStream(Protocol):
    """A matrix D (rows, columns) that can be read repeatedly."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, F64]]:
        """(first row, block of whole rows) in order; the same blocks each time. A block is valid until the next."""


class Operator(Protocol):
    """A matrix D (rows, columns). Methods that return the energy, ||D||^2, raise ValueError if it is not finite."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    def energy(self) -> float: ...

    def gram(self, basis: F64) -> tuple[float, F64]:
        """The energy, and D^T D basis, both in one pass. basis: (columns, k)."""

    def times(self, basis: F64) -> F64:
        """D basis, (rows, k)."""

    def projected(self, basis: F64) -> F64:
        """basis^T D, (k, columns). basis: (rows, k)."""

    def spectrum(self) -> tuple[float, F64, F64]:
        """The energy, and eigenvalues, ascending, and eigenvectors of the Gram matrix of the smaller side: D D^T if
        there are fewer rows than columns, else D^T D. Both are empty if the energy is 0."""

    def residual(self, left: F64, right: F64) -> float:
        """||D - left @ right||."""


MakeOperator: TypeAlias = Callable[[F32], Operator]
"""Makes the operator of a float32 matrix in memory."""


class Streamed:
    """The operator of a stream of rows."""

    def __init__(self, matrix: RowStream) -> None:
        self._matrix = matrix
        self.rows, self.columns = matrix.rows, matrix.columns

    def energy(self) -> float:
        return math.fsum(square_norm(block) for _, block in self._matrix.blocks())

    def gram(self, basis: F64) -> tuple[float, F64]:
        image = np.zeros_like(basis)
        parts = []
        for _, block in self._matrix.blocks():
            parts.append(square_norm(block))
            image += block.T @ (block @ basis)
        return math.fsum(parts), image

    def times(self, basis: F64) -> F64:
        image = np.empty((self.rows, basis.shape[1]))
        for row, block in self._matrix.blocks():
            np.matmul(block, basis, out=image[row : row + len(block)])
        return image

    def projected(self, basis: F64) -> F64:
        image = np.zeros((basis.shape[1], self.columns))
        for row, block in self._matrix.blocks():
            image += basis[row : row + len(block)].T @ block
        return image

    def spectrum(self) -> tuple[float, F64, F64]:
        """With fewer rows than columns the matrix is kept in memory as float32: D D^T needs all pairs of its rows."""
        wide = self.rows < self.columns
        gram = np.zeros((min(self.rows, self.columns),) * 2)
        parts, kept = [], []
        for _, block in self._matrix.blocks():
            parts.append(square_norm(block))
            if wide:
                kept.append(block.astype(np.float32))
            else:
                gram += block.T @ block
        energy = math.fsum(parts)
        if energy == 0:
            return energy, np.empty(0), np.empty((0, 0))
        if wide:
            step = max(1, (1 << 20) // self.rows)
            for column in range(0, self.columns, step):
                part = np.concatenate([block[:, column : column + step] for block in kept]).astype(np.float64)
                gram += part @ part.T
            kept.clear()
        values, vectors = np.linalg.eigh(gram)
        return energy, values, vectors

    def residual(self, left: F64, right: F64) -> float:
        parts = []
        for row, block in self._matrix.blocks():
            rest = block - left[row : row + len(block)] @ right
            parts.append(float(np.vdot(rest, rest)))
        return math.sqrt(math.fsum(parts))


def square_norm(block: F64) -> float:
    """The sum of squares. Raises ValueError if it is not finite."""
    return finite(float(np.vdot(block, block)))


def finite(square: float) -> float:
    """The sum of squares itself. Raises ValueError if it is not finite."""
    if not math.isfinite(square):
        raise ValueError("the matrix has NaN, infinity or values whose squares overflow float64")
    return square

"""The operator of a matrix in a device's memory: the same float64 products, computed there.

Only what a decomposition keeps comes back: vectors of one side. A device sums in another order than a CPU, so results
agree to rounding and not bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import torch

from lora_kernels.devices.accelerator import Stream
from lora_kernels.linalg.operators import F64, finite

# Elements that are in float64 at a time: 128 MiB.
_BLOCK: Final = 1 << 24

Rows = Callable[[int, int], torch.Tensor]
"""Rows r0:r1 in float64, on the device."""


class DeviceOperator:
    """rows, columns: of the matrix. read: returns some of its rows. stream: on which everything is computed."""

    def __init__(self, rows: int, columns: int, read: Rows, device: torch.device, stream: Stream) -> None:
        self.rows, self.columns = rows, columns
        self._read = read
        self._device = device
        self._stream = stream

    @classmethod
    def of(cls, values: torch.Tensor, stream: Stream) -> DeviceOperator:
        """The operator of a matrix (rows, columns) of any floating-point dtype."""
        rows, columns = values.shape
        return cls(rows, columns, lambda r0, r1: values[r0:r1].double(), values.device, stream)

    def energy(self) -> float:
        with self._stream.current():
            return self._finite([block.square().sum() for _, block in self._blocks()])

    def gram(self, basis: F64) -> tuple[float, F64]:
        with self._stream.current():
            right = self._up(basis)
            image, squares = torch.zeros_like(right), []
            for _, block in self._blocks():
                squares.append(block.square().sum())
                image += block.T @ (block @ right)
            return self._finite(squares), image.cpu().numpy()

    def times(self, basis: F64) -> F64:
        with self._stream.current():
            right = self._up(basis)
            found = [block @ right for _, block in self._blocks()]
            return torch.cat(found).cpu().numpy()

    def projected(self, basis: F64) -> F64:
        with self._stream.current():
            left = self._up(basis)
            image = torch.zeros((left.shape[1], self.columns), dtype=torch.float64, device=self._device)
            for row, block in self._blocks():
                image += left[row : row + len(block)].T @ block
            return image.cpu().numpy()

    def spectrum(self) -> tuple[float, F64, F64]:
        with self._stream.current():
            side = min(self.rows, self.columns)
            gram = torch.zeros((side, side), dtype=torch.float64, device=self._device)
            squares = []
            for row, block in self._blocks():
                squares.append(block.square().sum())
                if self.rows >= self.columns:
                    gram += block.T @ block
                    continue
                for other, rest in self._blocks():
                    gram[row : row + len(block), other : other + len(rest)] = block @ rest.T
            energy = self._finite(squares)
            values, vectors = torch.linalg.eigh(gram) if energy else (gram.new_empty(0), gram.new_empty(0, 0))
            return energy, values.cpu().numpy(), vectors.cpu().numpy()

    def residual(self, left: F64, right: F64) -> float:
        with self._stream.current():
            b, a = self._up(left), self._up(right)
            squares = [(block - b[row : row + len(block)] @ a).square().sum() for row, block in self._blocks()]
            return math.sqrt(self._finite(squares))

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        step = max(_BLOCK // max(self.columns, 1), 1)
        for row in range(0, self.rows, step):
            yield row, self._read(row, min(row + step, self.rows))

    def _up(self, values: F64) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    def _finite(self, squares: list[torch.Tensor]) -> float:
        """The sum, in order. Raises ValueError if it is not finite."""
        return finite(math.fsum(torch.stack(squares).tolist())) if squares else 0.0

"""Numbers added at few places: SHiRA, Super-Tuning, WaveFT."""

from __future__ import annotations

import math

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64, Indices
from lora_kernels.numeric.torch_generator import TorchGenerator


class Scatter(Additive):
    """places: of the numbers, counted through the whole tensor; several at one place are summed, in their order."""

    def __init__(self, places: Indices, values: F64, scale: float) -> None:
        self._places, inverse = np.unique(places, return_inverse=True)
        summed = np.zeros(len(self._places))
        np.add.at(summed, inverse, values)
        self._values = (summed * scale).astype(np.float32)

    def delta(self, block: Block, out: F32) -> None:
        out.fill(0)
        first, end = np.searchsorted(self._places, (block.first, block.first + block.elements))
        out.reshape(-1)[self._places[first:end] - block.first] = self._values[first:end]


def load(delta: Delta, inputs: Inputs) -> Scatter:
    """factors: values (n); places, (n) through the whole tensor or (2, n) rows and columns."""
    shape = delta.options["shape"]
    factor = delta.factors["places"]
    if len(factor.shape) == 2:
        rows, columns = inputs.reader.indices(factor, shape)
        places = rows * shape[1] + columns
    else:
        places = inputs.reader.indices(factor, [math.prod(shape)])
    return Scatter(places, inputs.reader.load(delta.factors["values"]).astype(np.float64), delta.scale)


def load_wavelet(delta: Delta, inputs: Inputs) -> Scatter:
    """factors: spectrum (n). options: `seed` of the places among `size` (out, in); `transposed`, as for low-rank; haar:
    the numbers are coefficients of one level of Haar's wavelet, each of which acts on a square of four elements."""
    options = delta.options
    values = inputs.reader.load(delta.factors["spectrum"]).astype(np.float64)
    out, in_ = options["size"]
    rows, columns = np.divmod(TorchGenerator(options["seed"]).permutation(out * in_, len(values)), in_)
    if options.get("haar"):
        rows, columns, values = _haar(rows, columns, values, out, in_)
    places = columns * out + rows if options.get("transposed") else rows * in_ + columns
    return Scatter(places, values, delta.scale)


def _haar(rows: Indices, columns: Indices, values: F64, out: int, in_: int) -> tuple[Indices, Indices, F64]:
    """The elements that coefficients add to. They are averages at the top left, differences of rows beside these, of
    columns below them, of both at the bottom right; an odd size counts as the next even one, whose end is cut off."""
    half_rows, half_columns = -(-out // 2), -(-in_ // 2)
    down, low = np.divmod(rows, half_rows)
    right, left = np.divmod(columns, half_columns)
    parts = []
    for i in (0, 1):
        for j in (0, 1):
            signs = np.where(j * down, -1, 1) * np.where(i * right, -1, 1)
            parts.append((2 * low + i, 2 * left + j, signs * values / 2))
    y, x, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept = (y < out) & (x < in_)
    return y[kept], x[kept], weights[kept]

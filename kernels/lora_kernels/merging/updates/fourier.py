"""The real part of an inverse Fourier transform of few frequencies: FourierFT."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Additive, Inputs
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64, Indices
from lora_kernels.numeric.torch_generator import TorchGenerator


class Fourier(Additive):
    """scale * Re sum_f s_f exp(2 pi i (u_f row / rows + v_f column / columns)) / (rows columns). The sum over u is made
    row by row from the frequencies alone, the one over v by a fast transform of the row. In float64."""

    def __init__(self, u: Indices, v: Indices, spectrum: F64, shape: tuple[int, int], scale: float) -> None:
        order = np.argsort(v, kind="stable")
        self._u, self._spectrum = u[order], spectrum[order]
        self._columns, self._starts = np.unique(v[order], return_index=True)
        self._shape = shape
        self._scale = scale / shape[0]

    def delta(self, block: Block, out: F32) -> None:
        rows, columns = self._shape
        for row in range(block.r0, block.r1):
            # Whole turns are taken off in integers, where they cost no digits.
            terms = self._spectrum * np.exp(2j * np.pi / rows * (self._u * row % rows))
            line = np.zeros(columns, np.complex128)
            line[self._columns] = np.add.reduceat(terms, self._starts)
            made = np.fft.ifft(line).real[block.c0 : block.c1]
            np.multiply(made, self._scale, out=out[row - block.r0], casting="same_kind")


def load(delta: Delta, inputs: Inputs) -> Fourier:
    """factors: spectrum (n). options: `seed` of the places among `out` x `in`; `transposed`, as for low-rank."""
    options = delta.options
    spectrum = inputs.reader.load(delta.factors["spectrum"]).astype(np.float64)
    out, in_ = options["out"], options["in"]
    u, v = np.divmod(TorchGenerator(options["seed"]).permutation(out * in_, len(spectrum)), in_)
    if options.get("transposed"):
        return Fourier(v, u, spectrum, (in_, out), delta.scale)
    return Fourier(u, v, spectrum, (out, in_), delta.scale)

"""FOURIERFT: W + scaling * Re ifft2(S), S zero except at n positions drawn by a seed. Source: peft 0.21.2
`FourierFTLayer.update_layer`, `get_delta_weight`: the first n of `torch.randperm` by random_loc_seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.seeded import check_count, seed
from lora_kernels.types.matching.target import change, needed, number, target
from lora_kernels.types.matching.view import View, factor
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64, Indices


class FourierSpectrum(UpdateSpec, frozen=True, tag="fourier"):
    """spectrum: (n). seed: draws its positions in `out` x `in_`. transposed: the tensor is stored (in, out)."""

    spectrum: Factor
    scale: float
    seed: int
    out: int
    in_: int
    transposed: bool = False

    def load(self, inputs: Inputs) -> Fourier:
        from lora_kernels.numeric.torch_generator import TorchGenerator

        spectrum = inputs.wide(self.spectrum)
        out, in_ = self.out, self.in_
        u, v = np.divmod(TorchGenerator(self.seed).permutation(out * in_, len(spectrum)), in_)
        if self.transposed:
            return Fourier(v, u, spectrum, (in_, out), self.scale)
        return Fourier(u, v, spectrum, (out, in_), self.scale)


class Fourier(Additive):
    """scale * Re sum_f s_f exp(2 pi i (u_f row / rows + v_f column / columns)) / (rows columns). The sum over u is
    computed for each row directly, the one over v by an FFT of the row. In float64."""

    def __init__(self, u: Indices, v: Indices, spectrum: F64, shape: tuple[int, int], scale: float) -> None:
        order = np.argsort(v, kind="stable")
        self._u, self._spectrum = u[order], spectrum[order]
        self._columns, self._starts = np.unique(v[order], return_index=True)
        self._shape = shape
        self._scale = scale / shape[0]

    def delta(self, block: Block, out: F32) -> None:
        rows, columns = self._shape
        for row in range(block.r0, block.r1):
            # Full turns are removed in integers, without loss of precision.
            terms = self._spectrum * np.exp(2j * np.pi / rows * (self._u * row % rows))
            line = np.zeros(columns, np.complex128)
            line[self._columns] = np.add.reduceat(terms, self._starts)
            delta = np.fft.ifft(line).real[block.c0 : block.c1]
            np.multiply(delta, self._scale, out=out[row - block.r0], casting="same_kind")


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        (spectrum,) = needed(group, "fourierft_spectrum")
        to = target(view, group, "linear", conv1d=True)
        check_count(spectrum, to.out * to.in_)
        update = FourierSpectrum(
            spectrum=factor(spectrum),
            scale=view.scaled(number(view, spectrum, "scaling", 150.0)),
            seed=seed(view, spectrum),
            out=to.out,
            in_=to.in_,
            transposed=to.transposed,
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    updates=(FourierSpectrum,),
    page=Page(
        "FourierFT",
        "adds scaling Re ifft2(spectrum), row by row",
        "element",
        "linear, Conv1D",
        "`FourierFTLayer.get_delta_weight`",
    ),
)

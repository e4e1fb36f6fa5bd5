"""WAVEFT: W + scaling * S, or one level of the inverse Haar transform of S, zero except at n positions drawn by a seed.
Source: peft 0.21.2 `WaveFTLayer.get_delta_weight`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.scatter import Scatter
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.seeded import check_count, seed
from lora_kernels.types.matching.target import change, needed, number, target
from lora_kernels.types.matching.view import View, factor, unsupported
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F64, Indices


class Wavelets(UpdateSpec, frozen=True, tag="wavelet"):
    """spectrum: (n). seed: draws its positions in `size` (out, in). haar: the spectrum has coefficients of one level of
    the Haar wavelet, each of which affects a square of four elements. transposed: the tensor is stored (in, out)."""

    spectrum: Factor
    scale: float
    seed: int
    size: tuple[int, int]
    haar: bool
    transposed: bool = False

    def load(self, inputs: Inputs) -> Scatter:
        from lora_kernels.numeric.torch_generator import TorchGenerator

        values = inputs.wide(self.spectrum)
        out, in_ = self.size
        rows, columns = np.divmod(TorchGenerator(self.seed).permutation(out * in_, len(values)), in_)
        if self.haar:
            rows, columns, values = _haar(rows, columns, values, out, in_)
        positions = columns * out + rows if self.transposed else rows * in_ + columns
        return Scatter(positions, values, self.scale)


def _haar(rows: Indices, columns: Indices, values: F64, out: int, in_: int) -> tuple[Indices, Indices, F64]:
    """The elements to which coefficients add. Coefficients at the top left are averages, to the right of them
    differences of rows, below them of columns, at the bottom right of both; an odd size is padded to even and cut."""
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


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    wavelet = view.config.raw.get("wavelet_family", "db1")
    inverse = view.config.raw.get("use_idwt", True) is not False
    for group in groups:
        (spectrum,) = needed(group, "waveft_spectrum")
        to = target(view, group, "linear", conv1d=True)
        if inverse and wavelet not in ("db1", "haar"):
            unsupported(f"WAVEFT with the wavelet {str(wavelet)[:40]}", to.path)
        check_count(spectrum, to.out * to.in_)
        update = Wavelets(
            spectrum=factor(spectrum),
            scale=view.scaled(number(view, spectrum, "scaling", 25.0)),
            seed=seed(view, spectrum),
            size=(to.out, to.in_),
            haar=inverse,
            transposed=to.transposed,
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    updates=(Wavelets,),
    page=Page(
        "WaveFT",
        "adds the spectrum itself, or one level of Haar's transform of it (db1)",
        "element",
        "linear, Conv1D",
        "`WaveFTLayer.get_delta_weight`",
    ),
)

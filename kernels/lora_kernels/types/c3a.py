"""C3A: W + D / in, D of circulant blocks. Source: peft 0.21.2 `C3ALayer.get_delta_weight`, `get_circulant_fast`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32


class CirculantBlocks(UpdateSpec, frozen=True, tag="circulant"):
    """kernel: (rows / b, columns / b, b)."""

    kernel: Factor
    scale: float

    def load(self, inputs: Inputs) -> Circulant:
        return Circulant(inputs.reader.load(self.kernel), self.scale)


class Circulant(Additive):
    """Element (p, q) of the block (m, n) is kernel[m, n, (q - p) mod b], which PEFT computes by Fourier transforms."""

    def __init__(self, kernel: F32, scale: float) -> None:
        self._kernel = kernel
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        size = self._kernel.shape[2]
        rows = np.arange(block.r0, block.r1)[:, None]
        columns = np.arange(block.c0, block.c1)
        np.multiply(self._kernel[rows // size, columns // size, (columns - rows) % size], self._scale, out=out)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        (kernel,) = needed(group, "c3a_kernel")
        to = target(view, group, "linear")
        size = kernel.shape[2] if len(kernel.shape) == 3 else 0
        if not size or (kernel.shape[0] * size, kernel.shape[1] * size) != (to.out, to.in_):
            raise rejected(
                f"{kernel.name} has the shape {shape(kernel)}, whose circulant blocks do not form {to.out} x {to.in_}",
                kernel,
            )
        found.append(change(view, to, CirculantBlocks(factor(kernel), view.scaled(1 / to.in_))))
    return found


ROOM = Room(
    match,
    updates=(CirculantBlocks,),
    page=Page("C3A", "adds circulant blocks / in", "element", "linear", "`get_circulant_fast`"),
)

"""GRALORA: k x k blocks, each a low-rank product; with hybrid_r also a common low-rank product, all times
alpha / (r + hybrid_r). Source: peft 0.21.2 `gralora.Linear.get_delta_weight`.

The block (j, n) is B[j, n-th part of the ranks] A[n, j-th part of the ranks], transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32

_GENERAL = ("gralora_A_general.weight", "gralora_B_general.weight")


class BlockProducts(UpdateSpec, frozen=True, tag="block-low-rank"):
    """a: (k, in / k, r). b: (k, r, out / k). transposed: the tensor is stored (in, out)."""

    a: Factor
    b: Factor
    scale: float
    transposed: bool = False

    def load(self, inputs: Inputs) -> BlockLowRank:
        a, b = inputs.reader.load(self.a), inputs.reader.load(self.b)
        count, _, rank = a.shape
        part = rank // count
        # Ranks are split by the block of the other side: j of the outputs, n of the inputs.
        right = a.reshape(count, -1, count, part).transpose(2, 0, 3, 1)
        left = b.reshape(count, count, part, -1).transpose(0, 1, 3, 2)
        if self.transposed:
            left, right = right.transpose(1, 0, 3, 2), left.transpose(1, 0, 3, 2)
        return BlockLowRank(left, right, self.scale)


class BlockLowRank(Additive):
    """scale * k x k blocks; the block (j, n) is left[j, n] @ right[j, n]. left (k, k, rows / k, s), right (k, k, s,
    columns / k)."""

    def __init__(self, left: F32, right: F32, scale: float) -> None:
        self._left = left
        self._right = right
        self._scale = np.float32(scale)

    def delta(self, block: Block, out: F32) -> None:
        height, width = self._left.shape[2], self._right.shape[3]
        for j in range(block.r0 // height, -(-block.r1 // height)):
            r0, r1 = max(block.r0, j * height), min(block.r1, (j + 1) * height)
            for n in range(block.c0 // width, -(-block.c1 // width)):
                c0, c1 = max(block.c0, n * width), min(block.c1, (n + 1) * width)
                left = self._left[j, n, r0 - j * height : r1 - j * height]
                right = self._right[j, n, :, c0 - n * width : c1 - n * width]
                out[r0 - block.r0 : r1 - block.r0, c0 - block.c0 : c1 - block.c0] = left @ right
        np.multiply(out, self._scale, out=out)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        a, b = needed(group, "gralora_A", "gralora_B")
        to = target(view, group, "linear", conv1d=True)
        scale = view.scale(group.path)
        count = a.shape[0] if len(a.shape) == 3 else 0
        if not count or to.in_ % count or to.out % count or scale.r % count:
            raise rejected(
                f"{a.name} has the shape {shape(a)}; the number of blocks must divide rank {scale.r} and the module's "
                f"{to.out} x {to.in_}",
                a,
            )
        shaped(a, count, to.in_ // count, scale.r)
        shaped(b, count, scale.r, to.out // count)
        weighted = view.scaled(scale.scale)
        found.append(change(view, to, BlockProducts(factor(a), factor(b), weighted, to.transposed)))
        if any(suffix in group.tensors for suffix in _GENERAL):
            a, b = needed(group, *_GENERAL)
            rank = a.shape[0] if a.shape else 0
            a, b = shaped(a, rank, to.in_), shaped(b, to.out, rank)
            common = LowRankProduct(factor(a), factor(b), weighted, transposed=to.transposed)
            found.append(change(view, to, common))
    return found


ROOM = Room(
    match,
    updates=(BlockProducts,),
    page=Page(
        "GraLoRA",
        "adds s times k × k blocks of low rank, and with hybrid_r a common product",
        "element",
        "linear, Conv1D",
        "`gralora.Linear.get_delta_weight`",
    ),
)

"""MISS, formerly BONE: W + D, where D repeats the transposed block of width r along the columns; "mini" also along the
rows. "bat": W + (W G + G) in blocks of r x r, one G per row of blocks.

Source: peft 0.21.2 `MissLinear.get_delta_weight`, `get_delta_weight_miss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.kronecker import KroneckerProduct
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64


class SquareBlocks(UpdateSpec, frozen=True, tag="bat"):
    """block: (rows / r, r, r)."""

    block: Factor

    def load(self, inputs: Inputs) -> Bat:
        return Bat(inputs.wide(self.block))


class Bat(Transform):
    """W + (W G + G). blocks: (rows / r, r, r): G of each row of blocks. In float64."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, blocks: F64) -> None:
        self._blocks = blocks

    def apply(self, block: Block, values: F32) -> None:
        size = self._blocks.shape[1]
        rows = np.arange(block.r0, block.r1)
        for index in range(block.r0 // size, -(-block.r1 // size)):
            selected = (rows // size) == index
            tiles = values[selected].astype(np.float64).reshape(-1, block.columns // size, size)
            tiles += tiles @ self._blocks[index] + self._blocks[index][rows[selected] % size, None, :]
            values[selected] = tiles.reshape(-1, block.columns)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    prefix = view.config.peft_type.lower()
    init = view.config.init_weights
    for group in groups:
        (block,) = needed(group, f"{prefix}_block")
        to = target(view, group, "linear")
        rank = view.config.r or 0
        if init == "bat":
            if to.in_ % rank or to.out % rank:
                raise rejected(
                    f"{block.name}: blocks of {rank} x {rank} do not divide {to.weight.name} ({shape(to.weight)})",
                    block,
                )
            found.append(change(view, to, SquareBlocks(factor(shaped(block, to.out // rank, rank, rank)))))
            continue
        height = view.config.raw.get("mini_r") if init == "mini" else to.out
        if type(height) is not int or height < 1 or to.out % height:
            raise rejected(f"{block.name}: mini_r = {str(height)[:40]} does not divide the {to.out} outputs", block)
        repeated = KroneckerProduct(scale=view.scaled(), w2=factor(shaped(block, rank, height)), turned=True)
        found.append(change(view, to, repeated))
    return found


ROOM = Room(
    match,
    updates=(SquareBlocks,),
    page=Page(
        "MiSS, Bone",
        'adds one block, repeated along the columns, with "mini" along the rows. "bat" changes: W + W G + G by square '
        "blocks",
        "element; row",
        "linear",
        "`MissLinear.get_delta_weight`",
    ),
)

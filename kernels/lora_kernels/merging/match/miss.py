"""MISS, and BONE as it was named before: W + D, D's column strips of width r all the same, the transposed block; "mini"
repeats the block along the rows as well. "bat": W + (W G + G) in blocks of r x r, one G for each row of blocks.

Source: peft 0.21.2 `MissLinear.get_delta_weight`, `get_delta_weight_miss`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import added, changed, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    prefix = view.config.peft_type.lower()
    how = view.config.init_weights
    for group in groups:
        (block,) = needed(group, f"{prefix}_block")
        to = target(view, group, "linear")
        rank = view.config.r or 0
        if how == "bat":
            if to.in_ % rank or to.out % rank:
                raise rejected(
                    f"{block.name}: blocks of {rank} x {rank} do not divide {to.weight.name} ({shape(to.weight)})",
                    block,
                )
            shaped(block, to.out // rank, rank, rank)
            found.append(changed(view, to, "bat", {"block": block}))
            continue
        height = view.config.raw.get("mini_r") if how == "mini" else to.out
        if type(height) is not int or height < 1 or to.out % height:
            raise rejected(f"{block.name}: mini_r = {str(height)[:40]} does not divide the {to.out} outputs", block)
        shaped(block, rank, height)
        found.append(added(view, to, "kronecker", {"w2": block}, turned=True))
    return found

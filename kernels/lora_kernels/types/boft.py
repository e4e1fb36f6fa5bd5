"""BOFT: s * (W Q^T), Q a product of block-diagonal rotations between butterfly permutations, s one factor per row.

Source: peft 0.21.2 `boft.Linear.get_delta_weight` and `merge`, `block_butterfly_perm`, `cayley_batch`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.forms.rotations import Rotate, Rotation, butterfly, cayley
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec


class Butterflies(UpdateSpec, frozen=True, tag="boft"):
    """r: (factors, blocks, b, b). s: one factor per row."""

    r: Factor
    s: Factor

    def load(self, inputs: Inputs) -> Rotate:
        blocks = inputs.wide(self.r)
        scale = inputs.reader.load(self.s).reshape(-1)
        count, number, size, _ = blocks.shape
        rotations = [
            Rotation(
                cayley(0.5 * (part - part.transpose(0, 2, 1))), butterfly(number, size, level) if count > 1 else None
            )
            for level, part in enumerate(blocks)
        ]
        return Rotate(rotations, scale)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        r, s = needed(group, "boft_R", "boft_s")
        to = target(view, group, "linear", "conv")
        if s.shape not in ((to.out, 1), (1, to.out)):
            raise rejected(f"{s.name} has the shape {shape(s)}; {to.path} needs {to.out} x 1", s)
        if len(r.shape) != 4 or r.shape[2] != r.shape[3] or r.shape[1] * r.shape[2] != to.in_ or not r.shape[0]:
            raise rejected(
                f"{r.name} has the shape {shape(r)}; expected factors x blocks x size x size, blocks x size being the "
                f"{to.in_} inputs of {to.path}",
                r,
            )
        factors, blocks, size, _ = r.shape
        # Each butterfly factor joins twice as many blocks as the previous one, by halves of blocks.
        if factors > 1 and (size % 2 or factors > blocks.bit_length() or blocks % (1 << (factors - 1))):
            raise rejected(
                f"{r.name} has {factors} butterfly factors, which do not divide {blocks} blocks of size {size}", r
            )
        found.append(change(view, to, Butterflies(factor(r), factor(s))))
    return found


ROOM = Room(
    match,
    updates=(Butterflies,),
    page=Page(
        "BOFT",
        "changes: s ∘ (W Qᵀ), Q a product of block-diagonal rotations between butterfly permutations",
        "row",
        "linear, conv",
        "`boft.Linear.get_delta_weight`",
    ),
)

"""ROAD: R W and R b, R a scaled rotation of each pair of outputs (i, i + g / 2) within groups of g.

Source: peft 0.21.2 `road.Linear.merge`, `_prepare_cols`. On a bfloat16 base PEFT rounds R to bfloat16 first; here it is
not rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import bias_change, change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64

# Numbers per pair of outputs: one for both, one for each, two for each.
_VARIANTS: Final = {"road_1": 1, "road_2": 2, "road_4": 4}


class RotatedPairs(UpdateSpec, frozen=True, tag="road"):
    """Pairs of outputs, rotated and scaled.

    Args:
        theta, alpha: `each` numbers per pair of outputs: 1, shared by both; 2, one for each; 4, two for each, one for
            the output itself and one for its partner.
        group: number of outputs in a group.
        vector: the update changes a bias.
    """

    theta: Factor
    alpha: Factor
    group: int
    each: int
    vector: bool = False

    def load(self, inputs: Inputs) -> Road:
        group = self.group
        theta, alpha = inputs.wide(self.theta), inputs.wide(self.alpha)
        cos, sin = alpha * np.cos(theta), alpha * np.sin(theta)
        if self.each == 1:
            cos, sin = (np.repeat(part.reshape(-1, group // 2), 2, axis=0).reshape(-1) for part in (cos, sin))
        if self.each == 4:
            cos, sin = cos.reshape(-1, 2, group)[:, 0].reshape(-1), sin.reshape(-1, 2, group)[:, 1].reshape(-1)
        # The first half of a group gets the second one with a negative sign.
        signs = np.tile(np.repeat([-1.0, 1.0], group // 2), len(cos) // group)
        return Road(cos[:, None], (signs * sin)[:, None], group, vector=self.vector)


class Road(Transform):
    """Row i of a group of g becomes own[i] row[i] + other[i] row[i +- g / 2]. In float64."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, own: F64, other: F64, group: int, *, vector: bool) -> None:
        self._own = own
        self._other = other
        self._group = group
        # A bias is one row, whose elements are the outputs.
        self._vector = vector
        self.row_group = 1 if vector else group

    def apply(self, block: Block, values: F32) -> None:
        outputs = values.reshape(-1, 1) if self._vector else values
        start = 0 if self._vector else block.r0
        for first in range(0, len(outputs), self._group):
            rows = slice(first, first + self._group)
            own, other = (part[start + first : start + first + self._group] for part in (self._own, self._other))
            old = outputs[rows].astype(np.float64)
            np.copyto(outputs[rows], own * old + other * np.roll(old, self._group // 2, axis=0), casting="same_kind")


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    variant, size = view.config.raw.get("variant", "road_1"), view.config.raw.get("group_size", 64)
    for group in groups:
        theta, alpha = needed(group, "road_theta", "road_alpha")
        to = target(view, group, "linear")
        if variant not in _VARIANTS:
            raise rejected(f"adapter_config.json has the variant {str(variant)[:40]!r} for {theta.name}", theta)
        if type(size) is not int or size < 2 or size % 2 or to.out % size:
            raise rejected(
                f"{theta.name}: group_size = {str(size)[:40]} must be even and divide the {to.out} outputs", theta
            )
        each = _VARIANTS[variant]
        for entry in (theta, alpha):
            shaped(entry, to.out // 2 * each)
        numbers = factor(theta), factor(alpha)
        found.append(change(view, to, RotatedPairs(*numbers, size, each)))
        if to.bias is not None:
            found.append(bias_change(view, to, to.bias, RotatedPairs(*numbers, size, each, vector=True)))
    return found


ROOM = Room(
    match,
    updates=(RotatedPairs,),
    page=Page(
        "RoAd",
        "changes: R W and R b, R rotating and scaling pairs of outputs; variants 1, 2, 4",
        "block of group_size",
        "linear",
        "`_prepare_cols`",
    ),
)

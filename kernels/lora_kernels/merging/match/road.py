"""ROAD: R W and R b, R a rotation with a scale in the plane of each pair of outputs (i, i + g / 2) within groups of g.

Source: peft 0.21.2 `road.Linear.merge`, `_prepare_cols`. On a bfloat16 base PEFT rounds R to bfloat16 first; here it is
applied as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_kernels.merging.match.target import changed, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected

# Numbers that a pair of outputs has: one for both, one for each, two for each.
_VARIANTS: Final = {"road_1": 1, "road_2": 2, "road_4": 4}


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    variant, size = view.config.raw.get("variant", "road_1"), view.config.raw.get("group_size", 64)
    for group in groups:
        theta, alpha = needed(group, "road_theta", "road_alpha")
        to = target(view, group, "linear")
        if variant not in _VARIANTS:
            raise rejected(f"adapter_config.json has the variant {str(variant)[:40]!r} for {theta.name}", theta)
        if type(size) is not int or size < 2 or size % 2 or to.out % size:
            raise rejected(
                f"{theta.name}: group_size = {str(size)[:40]} does not divide the {to.out} outputs in pairs", theta
            )
        for entry in (theta, alpha):
            shaped(entry, to.out // 2 * _VARIANTS[variant])
        factors, each = {"theta": theta, "alpha": alpha}, _VARIANTS[variant]
        found.append(changed(view, to, "road", factors, group=size, each=each))
        if to.bias is not None:
            found.append(changed(view, to, "road", factors, bias=True, vector=True, group=size, each=each))
    return found

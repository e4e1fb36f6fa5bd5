"""SHIRA: W + values at stored positions. Source: peft 0.21.2 `shira.Linear.get_delta_weight`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.types.forms.scatter import Scattered
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, index_factor, needed, shaped, target
from lora_kernels.types.matching.view import View, factor
from lora_kernels.types.room import Page, Room


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        values, indices = needed(group, "shira_weight", "shira_indices")
        to = target(view, group, "linear")
        shaped(indices, 2, *values.shape[:1])
        shaped(values, *values.shape[:1])
        where = index_factor(indices)
        found.append(change(view, to, Scattered(factor(values), where, (to.out, to.in_), view.scaled())))
    return found


ROOM = Room(match, page=Page("SHiRA", "adds values at stored positions", "element", "linear", "`get_delta_weight`"))

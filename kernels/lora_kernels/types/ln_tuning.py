"""LN_TUNING: weights and biases of the norms are replaced. Source: peft 0.21.2 `LNTuningLayer.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.errors import RegistryError
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.target import shaped
from lora_kernels.types.matching.view import View, factor, rejected, unsupported
from lora_kernels.types.room import Page, Room


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        if group.nested:
            unsupported("LN_TUNING on top of another adapter", group.path)
        for suffix, entry in sorted(group.tensors.items()):
            leaf = suffix.rpartition(".")[2]
            replaced = view.modules.resolve_parameter(f"{group.path}.{leaf}")
            if replaced is None:
                raise rejected(f"{entry.name} replaces {group.path}.{leaf}, which the base does not have", entry)
            if view.adapter.weight != 1:
                raise RegistryError(
                    "rejected",
                    f"LN_TUNING replaces {replaced.name}; it cannot be weighted by {view.adapter.weight:g}.",
                    hint="Give this adapter the weight 1.",
                    tensor=entry.name,
                )
            new = factor(shaped(entry, *replaced.shape))
            found.append(Change(replaced.name, group.path, Replacement(new)))
    return found


ROOM = Room(
    match,
    page=Page(
        "LN tuning",
        "the stored norms replace the base's; weight 1 only",
        "element",
        "norms, any module",
        "`LNTuningLayer.merge`",
    ),
)

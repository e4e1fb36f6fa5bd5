"""LN_TUNING: the norms' weights and biases are replaced. Source: peft 0.21.2 `LNTuningLayer.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.errors import RegistryError
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match.target import shaped
from lora_kernels.merging.match.view import Group, Matches, View, factor, rejected, unsupported


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        if group.nested:
            unsupported("LN_TUNING on top of another adapter", group.module)
        for suffix, entry in sorted(group.tensors.items()):
            leaf = suffix.rpartition(".")[2]
            replaced = view.modules.resolve_parameter(f"{group.module}.{leaf}")
            if replaced is None:
                raise rejected(f"{entry.name} replaces {group.module}.{leaf}, which the base does not have", entry)
            if view.adapter.weight != 1:
                raise RegistryError(
                    "rejected",
                    f"LN_TUNING replaces {replaced.name} whole; it cannot be weighted by {view.adapter.weight:g}.",
                    hint="Give this adapter the weight 1.",
                    tensor=entry.name,
                )
            new = factor(shaped(entry, *replaced.shape))
            found.append((replaced.name, Delta(view.index, "replace", group.module, {"new": new})))
    return found

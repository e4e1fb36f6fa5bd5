"""SUPERTUNING: W + values at stored positions, and + (alpha / r) B A if r is set. Source: peft 0.21.2
`supertuning.Linear.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.forms.scatter import Scattered
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.target import Target, change, index_factor, needed, number, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected
from lora_kernels.types.room import Page, Room


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear")
        (values,) = needed(group, "supertuning_values")
        indices = group.tensors.get("supertuning_indices")
        if indices is None:
            raise rejected(
                f"{values.name} has no matching supertuning_indices; without them its positions can be computed only "
                "from the base that it was trained on. Save the adapter again with save_precomputed_indices=True",
                values,
            )
        shaped(values, *values.shape[:1])
        shaped(indices, *values.shape)
        where = index_factor(indices)
        found.append(change(view, to, Scattered(factor(values), where, (to.out, to.in_), view.scaled())))
        if any(suffix.startswith("supertuning_lora_") for suffix in group.tensors):
            found.append(_pair(view, group, to))
    return found


def _pair(view: View, group: ModuleTensors, to: Target) -> Change:
    """The low-rank part of the hybrid, "Supra"."""
    a, b = needed(group, "supertuning_lora_A.weight", "supertuning_lora_B.weight")
    rank = view.config.r or 0
    if not rank:
        raise rejected(f"{a.name} needs r, but adapter_config.json has none", a)
    alpha = number(view, a, "lora_alpha", 8)
    a, b = shaped(a, rank, to.in_), shaped(b, to.out, rank)
    return change(view, to, LowRankProduct(factor(a), factor(b), view.scaled(alpha / rank)))


ROOM = Room(
    match,
    page=Page(
        "Super-Tuning",
        "adds values at stored positions, and alpha/r B A if r is set",
        "element",
        "linear",
        "`supertuning.Linear.merge`",
    ),
)

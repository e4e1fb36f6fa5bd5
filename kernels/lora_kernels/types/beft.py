"""BEFT: b + d, on layers that have a bias in the base; others are refused, as in PEFT. Source: peft 0.21.2
`beft.Linear.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.types.forms.term import AddedTerm
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import bias_change, needed, target
from lora_kernels.types.matching.view import View, factor, rejected, shape, unsupported
from lora_kernels.types.room import Page, Room


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        (term,) = needed(group, "beft_bias")
        to = target(view, group, "linear")
        if to.bias is None:
            unsupported("BEFT on a layer without a bias in the base", to.path)
        if term.shape not in ((1, to.out), (to.out,)):
            raise rejected(f"{term.name} has the shape {shape(term)}; {to.path} has {to.out} outputs", term)
        found.append(bias_change(view, to, to.bias, AddedTerm(factor(term), view.scaled())))
    return found


ROOM = Room(match, page=Page("BEFT", "adds to b", "element", "linear with a bias", "`beft.Linear.merge`"))

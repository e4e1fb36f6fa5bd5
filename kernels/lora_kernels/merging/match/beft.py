"""BEFT: b + d, on layers that have a bias in the base; a checkpoint without one has nowhere to put it. Source: peft
0.21.2 `beft.Linear.merge`, which refuses the same."""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match.target import needed, target
from lora_kernels.merging.match.view import Group, Matches, View, factor, rejected, shape, unsupported


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        (term,) = needed(group, "beft_bias")
        to = target(view, group, "linear")
        if to.bias is None:
            unsupported("BEFT on a layer that has no bias in the base", to.path)
        if term.shape not in ((1, to.out), (to.out,)):
            raise rejected(f"{term.name} has the shape {shape(term)}; {to.path} has {to.out} outputs", term)
        delta = Delta(view.index, "add", to.path, {"term": factor(term)}, scale=view.adapter.weight)
        found.append((to.bias.name, delta))
    return found

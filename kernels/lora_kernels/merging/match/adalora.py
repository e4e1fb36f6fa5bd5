"""ADALORA: W + s B diag(E) A, s = alpha / (init_r + 1e-5). Source: peft 0.21.2 `SVDLinear`, `SVDConv2d`.

The number that PEFT divides by is `init_r` and stays it after ranks were pruned; pruned rows are not in the file, and
a module whose ranks are all gone has tensors without elements.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import added, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        a, b, e = needed(group, "lora_A", "lora_B", "lora_E")
        to = target(view, group, "linear", "conv", conv1d=True)
        if len(a.shape) != 2:
            raise rejected(f"{a.name} has the shape {shape(a)}; expected ranks x {to.in_}", a)
        rank = a.shape[0]
        factors = {"A": shaped(a, rank, to.in_), "B": shaped(b, to.out, rank), "rank": shaped(e, rank, 1)}
        scale = view.scale(group.module).scale
        found.append(added(view, to, "low-rank", factors, scale=scale, transposed=to.transposed))
    return found

"""GRALORA: k x k blocks, each a low-rank product; with hybrid_r a common low-rank product beside them, all times
alpha / (r + hybrid_r). Source: peft 0.21.2 `gralora.Linear.get_delta_weight`.

The block (j, n) is B[j, n-th part of the ranks] A[n, j-th part of the ranks], transposed.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import added, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape

_GENERAL = ("gralora_A_general.weight", "gralora_B_general.weight")


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        a, b = needed(group, "gralora_A", "gralora_B")
        to = target(view, group, "linear", conv1d=True)
        scale = view.scale(group.module)
        count = a.shape[0] if len(a.shape) == 3 else 0
        if not count or to.in_ % count or to.out % count or scale.r % count:
            raise rejected(
                f"{a.name} has the shape {shape(a)}; the number of blocks must divide rank {scale.r} and the module's "
                f"{to.out} x {to.in_}",
                a,
            )
        shaped(a, count, to.in_ // count, scale.r)
        shaped(b, count, scale.r, to.out // count)
        how = {"scale": scale.scale, "transposed": to.transposed}
        found.append(added(view, to, "block-low-rank", {"A": a, "B": b}, **how))
        if any(suffix in group.tensors for suffix in _GENERAL):
            a, b = needed(group, *_GENERAL)
            rank = a.shape[0] if a.shape else 0
            pair = {"A": shaped(a, rank, to.in_), "B": shaped(b, to.out, rank)}
            found.append(added(view, to, "low-rank", pair, **how))
    return found

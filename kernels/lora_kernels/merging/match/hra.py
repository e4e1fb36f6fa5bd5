"""HRA: W H, H a product of Householder reflections, I - 2 u u^T for each column u; with apply_GS the columns are made
orthonormal first. Source: peft 0.21.2 `HRALinear.get_delta_weight`, `HRAConv2d.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import changed, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    orthogonal = view.config.raw.get("apply_GS") is True
    for group in groups:
        (u,) = needed(group, "hra_u")
        to = target(view, group, "linear", "conv")
        shaped(u, to.in_, view.scale(group.module).r)
        found.append(changed(view, to, "reflections", {"u": u}, orthogonal=orthogonal))
    return found

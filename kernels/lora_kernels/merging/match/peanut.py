"""PEANUT: W + s N(W^T)^T, N a small network that is applied to each column of W. Source: peft 0.21.2
`peanut.Linear._compute_delta_weight`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_kernels.merging.match.target import changed, needed, number, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, unsupported

ACTIVATIONS: Final = ("relu", "tanh", "sigmoid", "silu", "swish", "linear")


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    rank, depth = view.config.r or 0, view.config.raw.get("depth", 0)
    act = view.config.raw.get("act_fn", "relu")
    for group in groups:
        to = target(view, group, "linear")
        if act not in ACTIVATIONS:
            unsupported(f"PEANUT with the activation {str(act)[:40]}", to.path)
        if type(depth) is not int or not 0 <= depth <= len(group.tensors):
            raise rejected(f"adapter_config.json has depth = {str(depth)[:40]} for {group.first.name}", group.first)
        a, b = needed(group, "peanut_A.weight", "peanut_B.weight")
        factors = {"A": shaped(a, rank, to.out), "B": shaped(b, to.out, rank)}
        for half in ("encoder", "decoder"):
            for index in range(depth):
                (layer,) = needed(group, f"peanut_{half}s.{index}.weight")
                factors[f"{half}{index}"] = shaped(layer, rank, rank)
        if len(group.tensors) != len(factors):
            raise rejected(f"{group.first.name} and others of {to.path}: more layers than depth = {depth}", group.first)
        scale = number(view, a, "scaling", 1.0)
        found.append(changed(view, to, "peanut", factors, depth=depth, act=act, scale=scale))
    return found

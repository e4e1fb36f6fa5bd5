"""HIRA: W + W * (B A), elementwise. Source: peft 0.21.2 `HiraLayer._merge`, `get_delta_weight` of its layers."""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import changed, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        rank = view.scale(group.module).r
        if any(suffix.startswith("hira_embedding") for suffix in group.tensors):
            a, b = needed(group, "hira_embedding_A", "hira_embedding_B")
            to = target(view, group, "embedding", conv1d=True)
            factors = {"A": shaped(a, rank, to.out), "B": shaped(b, to.in_, rank)}
            found.append(changed(view, to, "times-low-rank", factors, transposed=True))
            continue
        a, b = needed(group, "hira_A", "hira_B")
        to = target(view, group, "linear", "conv", conv1d=True)
        kernel = to.weight.shape[2:]
        # The kernel of B is one point: the convolution of both is then a matrix product.
        shaped(a, rank, to.in_ // to.kernel, *kernel)
        shaped(b, to.out, rank, *(1 for _ in kernel))
        found.append(changed(view, to, "times-low-rank", {"A": a, "B": b}, transposed=to.transposed))
    return found

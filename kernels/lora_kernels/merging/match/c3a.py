"""C3A: W + D / in, D of circulant blocks. Source: peft 0.21.2 `C3ALayer.get_delta_weight`, `get_circulant_fast`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_kernels.merging.match.target import added, needed, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        (kernel,) = needed(group, "c3a_kernel")
        to = target(view, group, "linear")
        size = kernel.shape[2] if len(kernel.shape) == 3 else 0
        if not size or (kernel.shape[0] * size, kernel.shape[1] * size) != (to.out, to.in_):
            raise rejected(
                f"{kernel.name} has the shape {shape(kernel)}, which makes no {to.out} x {to.in_} of circulant blocks",
                kernel,
            )
        found.append(added(view, to, "circulant", {"kernel": kernel}, scale=1 / to.in_))
    return found

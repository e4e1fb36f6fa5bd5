"""GLORA: W (1 + A) + B, elementwise, and b (1 + D) + E; A and B are low-rank products, one number a row, or one number.

Source: peft 0.21.2 `GloraLayer.merge`. The term W C of the bias takes a whole weight to make one bias; a merge goes
tensor by tensor, so an adapter with it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.tensors import TensorEntry
from lora_kernels.merging.match.target import Target, changed, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape, unsupported

_PATHS = "ABCDE"


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear")
        if any(suffix.startswith("glora_C.X") for suffix in group.tensors):
            unsupported("GLORA with config_C", to.path)
        factors = {**_path(view, group, to, "A"), **_path(view, group, to, "B")}
        # Paths that are switched off: PEFT stores zeros for them and adds what it finds.
        factors |= {
            f"zeros_{name}": group.tensors[f"glora_{name}.zeros"]
            for name in _PATHS
            if f"glora_{name}.zeros" in group.tensors
        }
        found.append(changed(view, to, "glora", factors))
        biases = {**_path(view, group, to, "D"), **_path(view, group, to, "E")}
        if biases and to.bias is None:
            entry = next(iter(biases.values()))
            raise rejected(f"{entry.name} changes the bias of {to.path}, which has none", entry)
        if biases:
            found.append(changed(view, to, "glora", biases, bias=True))
    return found


def _path(view: View, group: Group, to: Target, name: str) -> dict[str, TensorEntry]:
    """The factors of a path: d and u of a product, or x; none where it is empty. D and E do to the bias what A and B
    do to the weight."""
    role = {"A": "times", "B": "plus", "D": "times", "E": "plus"}[name]
    if f"glora_{name}.Xd" in group.tensors or f"glora_{name}.Xu" in group.tensors:
        down, up = needed(group, f"glora_{name}.Xd", f"glora_{name}.Xu")
        rank = view.config.r or 0
        return {f"{role}_d": shaped(down, to.out, rank), f"{role}_u": shaped(up, rank, to.in_)}
    entry = group.tensors.get(f"glora_{name}.X")
    if entry is None:
        return {}
    allowed = ((1,), (to.out, 1)) if name in "AB" else ((1,), (to.out,))
    if entry.shape not in allowed:
        raise rejected(f"{entry.name} has the shape {shape(entry)}; {to.path} has {to.out} outputs", entry)
    return {f"{role}_x": entry}

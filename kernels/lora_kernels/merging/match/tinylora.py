"""TINYLORA: W + B (sum_i v_i P_i) A, with A and B from the base's singular vectors, stored. Source: peft 0.21.2
`TinyLoraLayer.get_delta_weight`.

Modules share a vector v in groups that PEFT makes in the order of the model's code, which no file tells: only a single
v for all modules can be matched.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.errors import RegistryError
from lora_kernels.merging.match.target import added, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape


def match(view: View, groups: Sequence[Group]) -> Matches:
    if len(view.shared) != 1 and groups:
        raise RegistryError(
            "unsupported",
            f"The TINYLORA adapter holds {len(view.shared)} vectors tinylora_v for {len(groups)} modules; which is "
            "whose follows from the order of the modules in the model's code, which no file tells.",
            hint="Train it with weight_tying=1.0, or serve it unmerged.",
            type="TINYLORA",
        )
    found = []
    for group in groups:
        (v,) = view.shared.values()
        if "tinylora_P" not in group.tensors:
            raise RegistryError(
                "unsupported",
                f"{group.module}: the TINYLORA adapter holds no tinylora_P; PEFT draws it by the module's place in the "
                "model's code, which no file tells.",
                hint="Save the adapter again with save_projection=True.",
                module=group.module,
            )
        a, b, p = needed(group, "tinylora_A", "tinylora_B", "tinylora_P")
        to = target(view, group, "linear", conv1d=True)
        if len(a.shape) != 2 or len(v.shape) != 1:
            raise rejected(f"{a.name} {shape(a)} and {v.name} {shape(v)} are no matrix and vector", a)
        rank = a.shape[0]
        factors = {
            "A": shaped(a, rank, to.in_),
            "B": shaped(b, to.out, rank),
            "P": shaped(p, v.shape[0], rank, rank),
            "v": v,
        }
        found.append(added(view, to, "tiny-low-rank", factors, transposed=to.transposed))
    return found

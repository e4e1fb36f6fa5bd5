"""UNILORA: W + B A, every element of which is one of a few shared numbers times a scale. Source: peft 0.21.2
`unilora.Linear._get_lora_matrices`. Without save_indices the places are drawn by torch for the modules in the order of
the model's code, which no file tells."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.errors import RegistryError
from lora_kernels.merging.match.target import added, needed, places, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected


def match(view: View, groups: Sequence[Group]) -> Matches:
    numbers = view.shared.get("unilora_theta_d")
    if not groups:
        raise RegistryError(
            "unsupported",
            "The UNILORA adapter holds no unilora_indices: PEFT draws them anew, module after module in the order of "
            "the model's code, which no file tells.",
            hint="Save the adapter again with save_indices=True.",
            type="UNILORA",
        )
    found = []
    for group in groups:
        if numbers is None:
            raise rejected(f"{group.first.name} has no unilora_theta_d beside it", group.first)
        to = target(view, group, "linear", conv1d=True)
        rank = view.config.r or 0
        shapes = {"A": (rank, to.in_), "B": (to.out, rank)}
        factors = {"numbers": shaped(numbers, *numbers.shape[:1])}
        indices = {}
        for half, size in shapes.items():
            where, scales = needed(group, f"unilora_indices_{half}", f"unilora_scales_{half}")
            indices[f"{half}_places"] = places(shaped(where, *size))
            factors[f"{half}_scales"] = shaped(scales, *size)
        found.append(added(view, to, "indexed-low-rank", {**factors, **indices}, transposed=to.transposed))
    return found

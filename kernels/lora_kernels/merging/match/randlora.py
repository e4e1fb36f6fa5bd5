"""RANDLORA: W + (alpha / r) sum_j B_j diag(lambda_j) A_j diag(gamma_j); all modules share A and B, cut to size.

Source: peft 0.21.2 `randlora.Linear.get_scaled_bases`, `get_delta_weight`. A belongs to the smaller side of the weight.
Without save_projection A and B are drawn in bfloat16 or float16, whichever the machine prefers: not to be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.errors import RegistryError
from lora_kernels.merging.match.target import added, needed, number, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    rank = view.config.r or 0
    for group in groups:
        factors, bases = needed(group, "randlora_lambda", "randlora_gamma")
        to = target(view, group, "linear", conv1d=True)
        small, large = min(to.out, to.in_), max(to.out, to.in_)
        count = -(-small // rank)
        shaped(factors, rank, count)
        shaped(bases, count, small)
        # PEFT stores what all share once more with every module.
        known = {**group.tensors, **view.shared}
        view.ignored.extend(entry.name for suffix, entry in group.tensors.items() if suffix in view.shared)
        if "randlora_A" not in known or "randlora_B" not in known:
            raise RegistryError(
                "unsupported",
                f"The RANDLORA adapter holds no randlora_A and randlora_B, which {to.path} needs: PEFT draws them in "
                "bfloat16 or float16, whichever the machine prefers, so that they cannot be repeated.",
                hint="Save the adapter again with save_projection=True.",
                module=to.path,
            )
        a, b = known["randlora_A"], known["randlora_B"]
        if len(a.shape) != 3 or a.shape[0] != rank or a.shape[1] not in (1, count) or a.shape[2] < small:
            raise rejected(f"{a.name} has the shape {shape(a)}; {to.path} needs {rank} x 1 x {small} at least", a)
        if len(b.shape) != 3 or b.shape[0] < large or b.shape[1] < count or b.shape[2] != rank:
            raise rejected(f"{b.name} has the shape {shape(b)}; {to.path} needs {large} x {count} x {rank} at least", b)
        scale = number(view, factors, "randlora_alpha", 640) / rank
        tensors = {"A": a, "B": b, "lambda": factors, "gamma": bases}
        wide = to.in_ > to.out
        how = {"large": large, "turned": wide != to.transposed}
        found.append(added(view, to, "many-bases", tensors, scale=scale, **how))
    return found

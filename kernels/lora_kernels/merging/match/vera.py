"""VERA: W + diag(b) B diag(d) A, where all modules share A and B, cut to each module's size; PVERA, of which a merge
takes the mean: the first half of d and of A. Source: peft 0.21.2 `vera.Linear.get_delta_weight`, `VeraModel.
_init_vera_A_vera_B` and their PVeRA twins.

Without save_projection the file holds no A and B: they are drawn from torch's generator, by projection_prng_key, as
large as the largest adapted module needs. PEFT then rounds them to the type of the base's weights (`BaseTunerLayer.
_move_adapter_to_device_of_base_layer`): here that is the type that the checkpoint stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lora_contract.errors import RegistryError
from lora_contract.tensors import TensorEntry
from lora_kernels.merging.match.target import Target, added, needed, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape

# Half a gibibyte; rank 1024 on the largest models takes a quarter of it.
_MOST_DRAWN: Final = 1 << 27


def match(view: View, groups: Sequence[Group]) -> Matches:
    prefix = view.config.peft_type.lower()
    rank = view.config.r or 0
    halves = 2 if prefix == "pvera" else 1
    targets = [target(view, group, "linear", conv1d=True) for group in groups]
    for entry in view.shared.values():
        if len(entry.shape) != 2:
            raise rejected(f"{entry.name} has the shape {shape(entry)}; expected a matrix", entry)
    found = []
    for group, to in zip(groups, targets, strict=True):
        b, d = needed(group, f"{prefix}_lambda_b", f"{prefix}_lambda_d")
        factors = {"rows": shaped(b, to.out), "rank": shaped(d, halves * rank)}
        how: dict[str, Any] = {"cut": [to.out, rank, to.in_], "transposed": to.transposed}
        if view.shared:
            a, b = _shared(view, prefix, to)
            found.append(added(view, to, "low-rank", {**factors, "A": a, "B": b}, **how))
            continue
        size = (max(known.out for known in targets), max(known.in_ for known in targets))
        drawn: dict[str, Any] = {"A": [halves * rank, size[1]], "B": [size[0], rank], "seed": _seed(view, to)}
        drawn["dtype"] = to.weight.dtype
        _check_size(to, drawn["A"], drawn["B"])
        found.append(added(view, to, "drawn-low-rank", factors, **drawn, **how))
    return found


def _shared(view: View, prefix: str, to: Target) -> tuple[TensorEntry, TensorEntry]:
    rank = (view.config.r or 0) * (2 if prefix == "pvera" else 1)
    for name, other in ((f"{prefix}_A", f"{prefix}_B"), (f"{prefix}_B", f"{prefix}_A")):
        if name not in view.shared:
            entry = view.shared[other]
            raise rejected(f"{entry.name} has no {name} beside it; half a projection cannot be merged", entry)
    a, b = view.shared[f"{prefix}_A"], view.shared[f"{prefix}_B"]
    if a.shape[1] < to.in_ or b.shape[0] < to.out:
        small = a if a.shape[1] < to.in_ else b
        raise rejected(
            f"{small.name} has the shape {shape(small)}; {to.path} needs {to.out} rows of B and {to.in_} columns of A",
            small,
        )
    shaped(a, rank, a.shape[1])
    shaped(b, b.shape[0], view.config.r or 0)
    return a, b


def _check_size(to: Target, *shapes: list[int]) -> None:
    """Projections take no room in the file: a rank of a few bytes must not ask for all memory."""
    elements = sum(height * width for height, width in shapes)
    if elements > _MOST_DRAWN:
        raise RegistryError(
            "unsupported",
            f"The projections that {to.path} and others share have {elements} elements that are not in the file; at "
            f"most {_MOST_DRAWN} are drawn by a seed.",
            hint="Save the adapter again with save_projection=True.",
            module=to.path,
        )


def _seed(view: View, to: Target) -> int:
    seed = view.config.raw.get("projection_prng_key")
    if view.config.raw.get("save_projection") is True or type(seed) is not int or seed < 0:
        raise RegistryError(
            "rejected",
            f"The adapter holds no {view.config.peft_type.lower()}_A and _B, the projections that {to.path} needs, and "
            "its config names no seed that they could be drawn from.",
            hint="Save the adapter again with save_projection=True.",
            module=to.path,
        )
    return seed

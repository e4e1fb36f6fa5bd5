"""LOKR: W + (alpha / r) (w1 (x) w2). Source: peft 0.21.2 `LoKrLayer.get_delta_weight`, `make_kron`.

w1 is a matrix or w1_a w1_b; w2 is a matrix, a convolution kernel, w2_a w2_b, or a Tucker product with t2. For a whole
w2 of a one-dimensional convolution PEFT's product pairs w1 with the wrong dimensions of w2; the adapter was trained
with that product, so it is reproduced here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.tensors import TensorEntry
from lora_kernels.types.forms.kronecker import KroneckerProduct
from lora_kernels.types.forms.tucker import tucker_kernel
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import Target, change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear", "conv")
        first, size = _first(group)
        second, other = _second(group, to)
        produced = (size[0] * other[0], size[1] * other[1])
        if produced != (to.out, to.in_):
            raise rejected(
                f"The LoKr factors of {to.path} give an update of {produced[0]} x {produced[1]}, but {to.weight.name} "
                f"needs {to.out} x {to.in_}",
                group.first,
            )
        parts = {name: factor(entry) for name, entry in {**first, **second}.items()}
        update = KroneckerProduct(
            scale=view.scaled(view.scale(group.path).scale),
            w1=parts.get("w1"),
            w1_a=parts.get("w1_a"),
            w1_b=parts.get("w1_b"),
            w2=parts.get("w2"),
            w2_a=parts.get("w2_a"),
            w2_b=parts.get("w2_b"),
            t2=parts.get("t2"),
            # (out, in, kernel): the case that PEFT multiplies differently.
            shifted="w2" in second and len(second["w2"].shape) == 3,
        )
        found.append(change(view, to, update))
    return found


def _first(group: ModuleTensors) -> tuple[dict[str, TensorEntry], tuple[int, int]]:
    if "lokr_w1" in group.tensors:
        whole = _matrix(group.tensors["lokr_w1"])
        return {"w1": whole}, (whole.shape[0], whole.shape[1])
    a, b = needed(group, "lokr_w1_a", "lokr_w1_b")
    shaped(_matrix(b), _matrix(a).shape[1], b.shape[1])
    return {"w1_a": a, "w1_b": b}, (a.shape[0], b.shape[1])


def _second(group: ModuleTensors, to: Target) -> tuple[Mapping[str, TensorEntry], tuple[int, int]]:
    """The factors of w2 and its size as a matrix, with the kernel in the columns."""
    if "lokr_w2" in group.tensors:
        whole = group.tensors["lokr_w2"]
        if len(whole.shape) != len(to.weight.shape):
            raise rejected(f"{whole.name} has the shape {shape(whole)}, {to.weight.name} {shape(to.weight)}", whole)
        shaped(whole, *whole.shape[:2], *to.weight.shape[2:])
        return {"w2": whole}, (whole.shape[0], whole.shape[1] * to.kernel)
    a, b = needed(group, "lokr_w2_a", "lokr_w2_b")
    rank = _matrix(b).shape[0]
    if "lokr_t2" not in group.tensors:
        shaped(a, _matrix(a).shape[0], rank)
        return {"w2_a": a, "w2_b": b}, (a.shape[0], b.shape[1])
    core = group.tensors["lokr_t2"]
    shaped(core, rank, rank, *tucker_kernel(to))
    shaped(a, rank, _matrix(a).shape[1])
    return {"w2_a": a, "w2_b": b, "t2": core}, (a.shape[1], b.shape[1] * to.kernel)


def _matrix(entry: TensorEntry) -> TensorEntry:
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise rejected(f"{entry.name} has the shape {shape(entry)}; expected a matrix", entry)
    return entry


ROOM = Room(
    match,
    page=Page(
        "LoKr",
        "adds alpha/r (w1 ⊗ w2), each whole or a product, w2 also a Tucker product with t2",
        "element",
        "linear, conv",
        "`LoKrLayer.get_delta_weight`",
    ),
)

"""TINYLORA: W + B (sum_i v_i P_i) A, with stored A and B from the base's singular vectors. Source: peft 0.21.2
`TinyLoraLayer.get_delta_weight`.

Modules share a vector v in groups, which PEFT forms by the order of modules in the model's code. The files do not have
it, so only a single v for all modules can be matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.low_rank import product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.types.forms.products import LowRankAddition


class CoreProduct(UpdateSpec, frozen=True, tag="tiny-low-rank"):
    """a: (r, in). b: (out, r). p: (u, r, r). v: (u)."""

    a: Factor
    b: Factor
    p: Factor
    v: Factor
    scale: float
    transposed: bool = False

    def load(self, inputs: Inputs) -> LowRankAddition:
        core = np.tensordot(inputs.wide(self.v), inputs.wide(self.p), axes=1)
        a, b = (core @ inputs.wide(self.a)).astype(np.float32), inputs.reader.load(self.b)
        return product(a, b, self.scale, transposed=self.transposed)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    if len(view.shared) != 1 and groups:
        raise RegistryError(
            "unsupported",
            f"The TINYLORA adapter has {len(view.shared)} vectors tinylora_v for {len(groups)} modules; their "
            "assignment depends on the order of modules in the model's code, which is not in the files.",
            hint="Train it with weight_tying=1.0, or serve it unmerged.",
            type="TINYLORA",
        )
    found = []
    for group in groups:
        (v,) = view.shared.values()
        if "tinylora_P" not in group.tensors:
            raise RegistryError(
                "unsupported",
                f"{group.path}: the TINYLORA adapter has no tinylora_P; PEFT draws it by the module's position in the "
                "model's code, which is not in the files.",
                hint="Save the adapter again with save_projection=True.",
                module=group.path,
            )
        a, b, p = needed(group, "tinylora_A", "tinylora_B", "tinylora_P")
        to = target(view, group, "linear", conv1d=True)
        if len(a.shape) != 2 or len(v.shape) != 1:
            raise rejected(f"{a.name} {shape(a)} and {v.name} {shape(v)} are not a matrix and a vector", a)
        rank = a.shape[0]
        update = CoreProduct(
            a=factor(shaped(a, rank, to.in_)),
            b=factor(shaped(b, to.out, rank)),
            p=factor(shaped(p, v.shape[0], rank, rank)),
            v=factor(v),
            scale=view.scaled(),
            transposed=to.transposed,
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    updates=(CoreProduct,),
    page=Page(
        "TinyLoRA",
        "adds B (Σ vᵢ Pᵢ) A, all in the file",
        "element",
        "linear, Conv1D",
        "`TinyLoraLayer.get_delta_weight`",
    ),
)

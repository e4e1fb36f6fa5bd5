"""POLY with one task: W + (B A) / r, A and B mixed from skills for each split of the inputs and outputs, by the task's
router. Source: peft 0.21.2 `poly.Linear.forward`, `PolyRouter.forward` in inference; PEFT cannot merge it.

With several tasks the mixture depends on the task of each input, so no single weight is equivalent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.low_rank import product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape, unsupported
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.types.forms.products import LowRankAddition

# PEFT adds it to the sum that it divides by.
_EPS = 1e-12


class MixedProduct(UpdateSpec, frozen=True, tag="poly"):
    """a: (splits, skills, in / splits, r). b: (splits, skills, r, out / splits). logits: (1, splits * skills)."""

    a: Factor
    b: Factor
    logits: Factor
    scale: float

    def load(self, inputs: Inputs) -> LowRankAddition:
        a, b, logits = inputs.wide(self.a), inputs.wide(self.b), inputs.wide(self.logits)
        shares = 0.5 * (1 + np.tanh(0.5 * logits)).reshape(a.shape[:2])
        shares /= shares.sum(1, keepdims=True) + _EPS
        rank = a.shape[3]
        down = np.einsum("qs,qsdr->rqd", shares, a).reshape(rank, -1).astype(np.float32)
        up = np.einsum("qs,qsrd->qdr", shares, b).reshape(-1, rank).astype(np.float32)
        return product(down, up, self.scale, transposed=False)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    tasks = view.config.raw.get("n_tasks", 1)
    for group in groups:
        a, b, logits = needed(group, "poly_lora_A", "poly_lora_B", "poly_router.module_logits")
        to = target(view, group, "linear")
        if tasks != 1:
            unsupported(
                f"POLY with n_tasks = {str(tasks)[:40]}", to.path, "its effect depends on the task of each input"
            )
        if len(a.shape) != 4 or 0 in a.shape or to.in_ % a.shape[0] or to.out % a.shape[0]:
            raise rejected(
                f"{a.name} has the shape {shape(a)}; the number of its splits must divide the {to.in_} inputs and "
                f"{to.out} outputs of {to.path}",
                a,
            )
        splits, skills, _, rank = a.shape
        shaped(a, splits, skills, to.in_ // splits, view.config.r or 0)
        shaped(b, splits, skills, rank, to.out // splits)
        shaped(logits, 1, splits * skills)
        found.append(change(view, to, MixedProduct(factor(a), factor(b), factor(logits), view.scaled(1 / rank))))
    return found


ROOM = Room(
    match,
    updates=(MixedProduct,),
    page=Page(
        "Poly",
        "of one task: adds (B A) / r, A and B mixed from the skills of each split by the task's router; several tasks: "
        "refused, their effect depends on the input",
        "element",
        "linear",
        "`poly.Linear.forward`, `PolyRouter.forward`",
    ),
)

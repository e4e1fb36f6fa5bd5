"""RANDLORA: W + (alpha / r) sum_j B_j diag(lambda_j) A_j diag(gamma_j); all modules share A and B, cut to size.

Source: peft 0.21.2 `randlora.Linear.get_scaled_bases`, `get_delta_weight`. A belongs to the smaller side of the weight.
Without save_projection A and B are drawn in bfloat16 or float16, depending on the machine: not reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.forms.wide import wide_product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, number, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.types.forms.products import WideLowRankAddition


class SharedBases(UpdateSpec, frozen=True, tag="many-bases"):
    """A product of many bases, shared by the modules.

    PEFT orders A by rank, then base, but B by base, then rank, which differs from the paper; adapters are trained with
    that product.

    Args:
        a: (r, 1 or n, small).
        b: (large, n, r).
        lambdas: (r, n).
        gammas: (n, small).
        large: rows of b that are used.
        turned: the product is added transposed.
    """

    a: Factor
    b: Factor
    lambdas: Factor
    gammas: Factor
    scale: float
    large: int
    turned: bool = False

    def load(self, inputs: Inputs) -> WideLowRankAddition:
        lambdas, gammas = inputs.wide(self.lambdas), inputs.wide(self.gammas)
        rank, count = lambdas.shape
        small = gammas.shape[1]
        a = inputs.wide(self.a)[:, :count, :small] * lambdas[:, :, None] * gammas[None]
        b = inputs.wide(self.b)[: self.large, :count]
        right, left = a.reshape(rank * count, small), b.reshape(len(b), count * rank)
        return wide_product(left, right, self.scale, transposed=self.turned)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    rank = view.config.r or 0
    for group in groups:
        lambdas, gammas = needed(group, "randlora_lambda", "randlora_gamma")
        to = target(view, group, "linear", conv1d=True)
        small, large = min(to.out, to.in_), max(to.out, to.in_)
        count = -(-small // rank)
        shaped(lambdas, rank, count)
        shaped(gammas, count, small)
        # PEFT stores the shared tensors again with each module.
        known = {**group.tensors, **view.shared}
        view.ignored.extend(entry.name for suffix, entry in group.tensors.items() if suffix in view.shared)
        if "randlora_A" not in known or "randlora_B" not in known:
            raise RegistryError(
                "unsupported",
                f"The RANDLORA adapter has no randlora_A and randlora_B, which {to.path} needs: PEFT draws them in "
                "bfloat16 or float16, depending on the machine, so they cannot be reproduced.",
                hint="Save the adapter again with save_projection=True.",
                module=to.path,
            )
        a, b = known["randlora_A"], known["randlora_B"]
        if len(a.shape) != 3 or a.shape[0] != rank or a.shape[1] not in (1, count) or a.shape[2] < small:
            raise rejected(f"{a.name} has the shape {shape(a)}; {to.path} needs {rank} x 1 x {small} at least", a)
        if len(b.shape) != 3 or b.shape[0] < large or b.shape[1] < count or b.shape[2] != rank:
            raise rejected(f"{b.name} has the shape {shape(b)}; {to.path} needs {large} x {count} x {rank} at least", b)
        update = SharedBases(
            a=factor(a),
            b=factor(b),
            lambdas=factor(lambdas),
            gammas=factor(gammas),
            scale=view.scaled(number(view, lambdas, "randlora_alpha", 640) / rank),
            large=large,
            turned=(to.in_ > to.out) != to.transposed,
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    updates=(SharedBases,),
    page=Page(
        "RandLoRA",
        "adds alpha/r Σ B_j diag(λ_j) A_j diag(γ_j)",
        "element",
        "linear, Conv1D",
        "`get_scaled_bases`",
    ),
)

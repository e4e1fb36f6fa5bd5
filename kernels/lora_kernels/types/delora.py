"""DELORA: W + B diag(lambda / (r |A_i| |B^i|)) A diag(w_norm), norms at least 1e-4.

w_norm, the norms of the base's columns at the start of training, is in the file. Source: peft 0.21.2
`DeloraLayer._compute_delta`.
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
from lora_kernels.types.matching.view import View, factor
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64
    from lora_kernels.types.forms.products import LowRankAddition


class NormedProduct(UpdateSpec, frozen=True, tag="normed-low-rank"):
    """strength: lambda; divided by r it is the norm of each term. columns: w_norm."""

    a: Factor
    b: Factor
    strength: Factor
    columns: Factor
    scale: float

    def load(self, inputs: Inputs) -> LowRankAddition:
        a, b = inputs.reader.load(self.a), inputs.reader.load(self.b)
        strength = float(inputs.reader.load(self.strength)[0])
        factors = strength / a.shape[0] / (_norms(a, 1) * _norms(b, 0))
        a = (a * factors[:, None]).astype(np.float32) * inputs.reader.load(self.columns).reshape(1, -1)
        return product(a, b, self.scale, transposed=False)


def _norms(values: F32, axis: int) -> F64:
    norms: F64 = np.maximum(np.sqrt(np.square(values.astype(np.float64)).sum(axis)), 1e-4)
    return norms


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        a, b, strength, norms = needed(group, "delora_A", "delora_B", "delora_lambda", "delora_w_norm")
        to = target(view, group, "linear")
        rank = view.scale(group.path).r
        update = NormedProduct(
            a=factor(shaped(a, rank, to.in_)),
            b=factor(shaped(b, to.out, rank)),
            strength=factor(shaped(strength, 1)),
            columns=factor(shaped(norms, to.in_)),
            scale=view.scaled(),
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    updates=(NormedProduct,),
    page=Page(
        "DeLoRA",
        "adds B diag(λ / (r ‖Aᵢ‖ ‖Bⁱ‖)) A diag(w_norm); w_norm is in the file",
        "element",
        "linear",
        "`DeloraLayer._compute_delta`",
    ),
)

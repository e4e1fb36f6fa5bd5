"""DEFT: W + Q (s R - P^T W): a subspace of W is removed and replaced, or only removed (para). Q = P = the orthonormal
columns of deft_P, or Q = deft_P and P = its positive part. Source: peft 0.21.2 `DeftLinear._project`,
`_delta_from_factor`; s is alpha / r, 1 without alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.wide import times_weight, wide_product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, number, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.types.forms.products import WideLowRankAddition


class Projected(UpdateSpec, frozen=True, tag="deft"):
    """p: (out, r). r: (r, in); None to only remove the subspace. inject: factor of r. The update is linear in the
    adapter's weight."""

    p: Factor
    method: Literal["qr", "relu"]
    inject: float
    r: Factor | None = None
    transposed: bool = False

    def load(self, inputs: Inputs) -> WideLowRankAddition:
        left = inputs.wide(self.p)
        if self.method == "qr":
            left = np.linalg.qr(left)[0].astype(np.float64, copy=False)
            right = left
        else:
            right = np.maximum(left, 0)
        replacement = -times_weight(right.T, inputs, transposed=self.transposed)
        if self.r is not None:
            replacement += self.inject * inputs.wide(self.r)
        return wide_product(left, replacement, inputs.weight, transposed=self.transposed)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    method = view.config.raw.get("decomposition_method", "qr")
    removes = view.config.raw.get("para") is True
    for group in groups:
        (p,) = needed(group, "deft_P")
        to = target(view, group, "linear", conv1d=True)
        rank = min(view.config.r or 0, to.out)
        if method not in ("qr", "relu"):
            raise rejected(f"adapter_config.json has decomposition_method = {str(method)[:40]!r} for {p.name}", p)
        shaped(p, to.out, rank)
        replaced = None if removes else shaped(needed(group, "deft_R")[0], rank, to.in_)
        alpha = number(view, p, "alpha", 0) if view.config.raw.get("alpha") else 0
        update = Projected(
            p=factor(p),
            method=method,
            inject=alpha / rank if alpha else 1.0,
            r=None if replaced is None else factor(replaced),
            transposed=to.transposed,
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    updates=(Projected,),
    page=Page(
        "DEFT",
        "adds Q (s R − Pᵀ W); para: − Q Pᵀ W; qr and relu",
        "first pass",
        "linear, Conv1D",
        "`DeftLinear._delta_from_factor`",
    ),
)

"""ADALORA: W + s B diag(E) A, s = alpha / (init_r + 1e-5). Source: peft 0.21.2 `SVDLinear`, `SVDConv2d`.

PEFT divides by `init_r` even after ranks were pruned. Pruned rows are not in the file; a module whose ranks are all
pruned has empty tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        a, b, e = needed(group, "lora_A", "lora_B", "lora_E")
        to = target(view, group, "linear", "conv", conv1d=True)
        if len(a.shape) != 2:
            raise rejected(f"{a.name} has the shape {shape(a)}; expected ranks x {to.in_}", a)
        rank = a.shape[0]
        update = LowRankProduct(
            a=factor(shaped(a, rank, to.in_)),
            b=factor(shaped(b, to.out, rank)),
            rank=factor(shaped(e, rank, 1)),
            scale=view.scaled(view.scale(group.path).scale),
            transposed=to.transposed,
        )
        found.append(change(view, to, update))
    return found


ROOM = Room(
    match,
    page=Page(
        "AdaLoRA",
        "adds s B diag(E) A, s = alpha / (init_r + 1e-5) also after pruning; modules of rank 0 are unchanged",
        "element",
        "linear, Conv1D, Conv2d",
        "`SVDLinear.get_delta_weight`",
    ),
)

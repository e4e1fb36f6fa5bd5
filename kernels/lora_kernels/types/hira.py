"""HIRA: W + W * (B A), elementwise. Source: peft 0.21.2 `HiraLayer._merge`, `get_delta_weight` of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64


class TimesProduct(UpdateSpec, frozen=True, tag="times-low-rank"):
    """a: (r, in…). b: (out, r…). transposed: the tensor is stored (in, out)."""

    a: Factor
    b: Factor
    transposed: bool = False

    def load(self, inputs: Inputs) -> TimesLowRank:
        a, b = inputs.wide(self.a), inputs.wide(self.b)
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        return TimesLowRank(a.T, b.T) if self.transposed else TimesLowRank(b, a)


class TimesLowRank(Transform):
    """values * (1 + left @ right), in float64: a float32 sum of one and a small product loses half of its digits."""

    reach: ClassVar[Reach] = "element"

    def __init__(self, left: F64, right: F64) -> None:
        self._left = left
        self._right = right

    def apply(self, block: Block, values: F32) -> None:
        factor = self._left[block.r0 : block.r1] @ self._right[:, block.c0 : block.c1]
        factor += 1
        np.multiply(values, factor, out=values, casting="same_kind")


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        rank = view.scale(group.path).r
        if any(suffix.startswith("hira_embedding") for suffix in group.tensors):
            a, b = needed(group, "hira_embedding_A", "hira_embedding_B")
            to = target(view, group, "embedding", conv1d=True)
            a, b = shaped(a, rank, to.out), shaped(b, to.in_, rank)
            found.append(change(view, to, TimesProduct(factor(a), factor(b), transposed=True)))
            continue
        a, b = needed(group, "hira_A", "hira_B")
        to = target(view, group, "linear", "conv", conv1d=True)
        kernel = to.weight.shape[2:]
        # The kernel of B is one point: the convolution of both is then a matrix product.
        shaped(a, rank, to.in_ // to.kernel, *kernel)
        shaped(b, to.out, rank, *(1 for _ in kernel))
        found.append(change(view, to, TimesProduct(factor(a), factor(b), to.transposed)))
    return found


ROOM = Room(
    match,
    updates=(TimesProduct,),
    page=Page("HiRA", "changes: W ∘ (1 + B A)", "element", "linear, Conv1D, conv, embedding", "`HiraLayer._merge`"),
)

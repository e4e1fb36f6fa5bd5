"""LOHA: W + (alpha / r) (w1_a w1_b) * (w2_a w2_b), elementwise. Source: peft 0.21.2 `LoHaLayer.get_delta_weight`.

With use_effective_conv2d the halves of a convolution are Tucker products, sum_ij t[i,j,k] w_a[i,out] w_b[j,in].
One-dimensional kernels are stored with a second dimension of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.tucker import tucker, tucker_kernel
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import Target, change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Additive, Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64

_TUCKER = ("hada_t1", "hada_t2")


class TuckerHalf(NamedTuple):
    """a (out, r) and b (r, in); or, with t (r, r, kernel…): a (r, out), b (r, in), the half being
    sum_ij t[i,j,k] a[i,out] b[j,in]."""

    a: Factor
    b: Factor
    t: Factor | None = None

    def load(self, inputs: Inputs) -> tuple[F64, F64]:
        """left (rows, r) and right (r, columns)."""
        if self.t is None:
            return inputs.wide(self.a), inputs.wide(self.b)
        b = inputs.reader.load(self.b)
        return inputs.wide(self.a).T, tucker(inputs.reader.load(self.t), b)


class HadamardProduct(UpdateSpec, frozen=True, tag="hadamard"):
    first: TuckerHalf
    second: TuckerHalf
    scale: float

    def load(self, inputs: Inputs) -> Hadamard:
        return Hadamard(self.first.load(inputs), self.second.load(inputs), self.scale)


class Hadamard(Additive):
    """scale * the elementwise product of two low-rank products. In float64: the errors of both sums affect every
    element; in float32 1 in 16,000 was rounded to the wrong bfloat16."""

    def __init__(self, first: tuple[F64, F64], second: tuple[F64, F64], scale: float) -> None:
        self._halves = first, second
        self._scale = scale

    def delta(self, block: Block, out: F32) -> None:
        first, second = (left[block.r0 : block.r1] @ right[:, block.c0 : block.c1] for left, right in self._halves)
        np.multiply(first, second, out=first)
        np.multiply(first, self._scale, out=out, casting="same_kind")


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear", "conv")
        a1, b1, a2, b2 = needed(group, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        t1, t2 = needed(group, *_TUCKER) if any(suffix in group.tensors for suffix in _TUCKER) else (None, None)
        first, second = _half(view, to, a1, b1, t1), _half(view, to, a2, b2, t2)
        found.append(change(view, to, HadamardProduct(first, second, view.scaled(view.scale(to.path).scale))))
    return found


def _half(view: View, to: Target, a: TensorEntry, b: TensorEntry, t: TensorEntry | None) -> TuckerHalf:
    rank = view.scale(to.path).r
    if t is None:
        return TuckerHalf(factor(shaped(a, to.out, rank)), factor(shaped(b, rank, to.in_)))
    if to.kernel == 1 and len(to.weight.shape) == 2:
        raise rejected(f"{t.name} belongs to a convolution, but {to.path} is not one", t)
    shaped(a, rank, to.out)
    shaped(b, rank, to.in_ // to.kernel)
    return TuckerHalf(factor(a), factor(b), factor(shaped(t, rank, rank, *tucker_kernel(to))))


ROOM = Room(
    match,
    updates=(HadamardProduct,),
    page=Page(
        "LoHa",
        "adds alpha/r (w1a w1b) ∘ (w2a w2b); with use_effective_conv2d the halves are Tucker products with t1, t2",
        "element",
        "linear, conv",
        "`LoHaLayer.get_delta_weight`",
    ),
)

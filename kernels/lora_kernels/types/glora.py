"""GLORA: W (1 + A) + B, elementwise, and b (1 + D) + E; A and B are low-rank products, one value per row, or one value.

Source: peft 0.21.2 `GloraLayer.merge`. The bias term W C depends on a whole weight; a merge goes tensor by tensor, so
an adapter with it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import msgspec

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.errors import RegistryError
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.blocks import BLOCK, Block
from lora_kernels.numeric.late import np
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import Target, bias_change, change, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape, unsupported
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, Reach, Transform, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.checkpoint.factors import FactorReader
    from lora_kernels.numeric.dtypes import F32, F64

_PATHS = "ABCDE"


class Path(NamedTuple):
    """The product of d (rows, r) and u (r, columns); or x: one value, one per row, or, for a bias, one per element."""

    d: Factor | None = None
    u: Factor | None = None
    x: Factor | None = None


class TimesPlus(UpdateSpec, frozen=True, tag="glora"):
    """W (1 + times) + plus. zeros: the zeros stored for disabled paths."""

    times: Path | None = None
    plus: Path | None = None
    zeros: tuple[Factor, ...] = ()

    def load(self, inputs: Inputs) -> Glora:
        for zeros in self.zeros:
            _check_zeros(zeros, inputs.reader)
        return Glora(_read(self.times, inputs), _read(self.plus, inputs))


class Term(NamedTuple):
    """A product of left (rows, r) and right (r, columns); or left alone, (1 or rows, 1 or columns)."""

    left: F64
    right: F64 | None = None

    def of(self, block: Block) -> F64:
        left = self.left[block.r0 : block.r1] if len(self.left) > 1 or self.right is not None else self.left
        if self.right is not None:
            return left @ self.right[:, block.c0 : block.c1]
        return left[:, block.c0 : block.c1] if left.shape[1] > 1 else left


class Glora(Transform):
    """In float64: the factor is close to one."""

    reach: ClassVar[Reach] = "element"

    def __init__(self, times: Term | None, plus: Term | None) -> None:
        self._times = times
        self._plus = plus

    def apply(self, block: Block, values: F32) -> None:
        new = values.astype(np.float64)
        if self._times is not None:
            new *= 1 + self._times.of(block)
        if self._plus is not None:
            new += self._plus.of(block)
        np.copyto(values, new, casting="same_kind")


def _read(path: Path | None, inputs: Inputs) -> Term | None:
    if path is None:
        return None
    if path.d is not None and path.u is not None:
        return Term(inputs.wide(path.d), inputs.wide(path.u))
    assert path.x is not None
    single = inputs.wide(path.x)
    return Term(single if single.ndim == 2 else single[None])


def _check_zeros(zeros: Factor, reader: FactorReader) -> None:
    part = np.empty(BLOCK, np.float32)
    elements = math.prod(zeros.shape)
    for first in range(0, elements, BLOCK):
        if reader.values(zeros, first, part[: min(BLOCK, elements - first)]).any():
            raise RegistryError(
                "rejected",
                f"{zeros.name} belongs to a path that adapter_config.json disables, but is not zero.",
                hint="Merge an adapter as saved by PEFT.",
                tensor=zeros.name,
            )


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear")
        if any(suffix.startswith("glora_C.X") for suffix in group.tensors):
            unsupported("GLORA with config_C", to.path)
        weight = TimesPlus(_path(view, group, to, "A"), _path(view, group, to, "B"))
        # PEFT stores zeros for disabled paths, and adds whatever it finds there.
        zeros = [group.tensors[f"glora_{name}.zeros"] for name in _PATHS if f"glora_{name}.zeros" in group.tensors]
        found.append(change(view, to, msgspec.structs.replace(weight, zeros=tuple(map(factor, zeros)))))
        bias = TimesPlus(_path(view, group, to, "D"), _path(view, group, to, "E"))
        first = next((path.d or path.x for path in (bias.times, bias.plus) if path is not None), None)
        if first is None:
            continue
        if to.bias is None:
            entry = next(entry for entry in group.tensors.values() if entry.name == first.name)
            raise rejected(f"{entry.name} changes the bias of {to.path}, which the base does not have", entry)
        found.append(bias_change(view, to, to.bias, bias))
    return found


def _path(view: View, group: ModuleTensors, to: Target, name: str) -> Path | None:
    """The factors of a path; None if it is empty. D and E apply to the bias as A and B to the weight."""
    if f"glora_{name}.Xd" in group.tensors or f"glora_{name}.Xu" in group.tensors:
        down, up = needed(group, f"glora_{name}.Xd", f"glora_{name}.Xu")
        rank = view.config.r or 0
        return Path(d=factor(shaped(down, to.out, rank)), u=factor(shaped(up, rank, to.in_)))
    entry: TensorEntry | None = group.tensors.get(f"glora_{name}.X")
    if entry is None:
        return None
    allowed = ((1,), (to.out, 1)) if name in "AB" else ((1,), (to.out,))
    if entry.shape not in allowed:
        raise rejected(f"{entry.name} has the shape {shape(entry)}; {to.path} has {to.out} outputs", entry)
    return Path(x=factor(entry))


ROOM = Room(
    match,
    updates=(TimesPlus,),
    page=Page("GLoRA", "changes: W ∘ (1 + A) + B, b ∘ (1 + D) + E", "element", "linear", "`GloraLayer.merge`"),
)

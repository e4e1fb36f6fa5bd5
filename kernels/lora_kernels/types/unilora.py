"""UNILORA: W + B A, whose elements are each one of a few shared numbers times a scale. Source: peft 0.21.2
`unilora.Linear._get_lora_matrices`. Without save_indices torch draws the indices for the modules in the order of the
model's code, which is not in the files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.forms.low_rank import product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import change, index_factor, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32
    from lora_kernels.types.forms.products import LowRankAddition


class IndexedHalf(NamedTuple):
    """places: index of each element into the shared numbers. scales: factors of the elements."""

    places: Factor
    scales: Factor

    def load(self, inputs: Inputs, numbers: F32) -> F32:
        return numbers[inputs.reader.indices(self.places, [len(numbers)])] * inputs.reader.load(self.scales)


class IndexedProduct(UpdateSpec, frozen=True, tag="indexed-low-rank"):
    """numbers: (n), shared by all modules. a: (r, in). b: (out, r)."""

    numbers: Factor
    a: IndexedHalf
    b: IndexedHalf
    scale: float
    transposed: bool = False

    def load(self, inputs: Inputs) -> LowRankAddition:
        numbers = inputs.reader.load(self.numbers)
        a, b = self.a.load(inputs, numbers), self.b.load(inputs, numbers)
        return product(a, b, self.scale, transposed=self.transposed)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    numbers = view.shared.get("unilora_theta_d")
    if not groups:
        raise RegistryError(
            "unsupported",
            "The UNILORA adapter has no unilora_indices: PEFT draws them for the modules in the order of the model's "
            "code, which is not in the files.",
            hint="Save the adapter again with save_indices=True.",
            type="UNILORA",
        )
    found = []
    for group in groups:
        if numbers is None:
            raise rejected(f"{group.first.name} has no matching unilora_theta_d", group.first)
        to = target(view, group, "linear", conv1d=True)
        rank = view.config.r or 0
        shaped(numbers, *numbers.shape[:1])
        a, b = _half(group, "A", rank, to.in_), _half(group, "B", to.out, rank)
        found.append(change(view, to, IndexedProduct(factor(numbers), a, b, view.scaled(), to.transposed)))
    return found


def _half(group: ModuleTensors, name: str, rows: int, columns: int) -> IndexedHalf:
    where, scales = needed(group, f"unilora_indices_{name}", f"unilora_scales_{name}")
    return IndexedHalf(index_factor(shaped(where, rows, columns)), factor(shaped(scales, rows, columns)))


ROOM = Room(
    match,
    updates=(IndexedProduct,),
    page=Page(
        "Uni-LoRA",
        "adds B A, each element one of the shared values times a scale",
        "element",
        "linear, Conv1D",
        "`_get_lora_matrices`",
    ),
)

"""VBLORA: W + B A, both composed of vectors of one bank, mixed by the softmax of the few largest logits.

Source: peft 0.21.2 `vblora.Linear._get_lora_matrices`; with save_only_topk_weights `VBLoRAModel.
_remap_adapter_state_dict_for_load`: all weights but the last are stored, and the indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.numeric.late import np
from lora_kernels.types.forms.low_rank import product
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.target import Target, change, index_factor, needed, shaped, target
from lora_kernels.types.matching.view import View, factor, rejected, shape
from lora_kernels.types.room import Page, Room
from lora_kernels.types.updates import Inputs, UpdateSpec

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64, Indices
    from lora_kernels.types.forms.products import LowRankAddition

_BANK = "vblora_vector_bank"


class BankHalf(NamedTuple):
    """logits: (.., .., vectors), of which the `top` largest count; or weights (.., .., top - 1) and places, indices of
    vectors, (.., .., top). For A (r, in / length, ..), for B (out / length, r, ..)."""

    logits: Factor | None = None
    weights: Factor | None = None
    places: Factor | None = None

    def mixed(self, inputs: Inputs, bank: F64, top: int) -> F64:
        if self.logits is not None:
            weights, places = _largest(inputs.reader.load(self.logits), top)
        else:
            assert self.weights is not None
            assert self.places is not None
            stored = inputs.wide(self.weights)
            weights = np.concatenate([stored, 1 - stored.sum(-1, keepdims=True)], axis=-1)
            places = inputs.reader.indices(self.places, [len(bank)])
        # One vector at a time: all at once would take `top` times the memory of the factor.
        total = np.zeros((*places.shape[:2], bank.shape[1]))
        for place in range(places.shape[2]):
            total += weights[:, :, place, None] * bank[places[:, :, place]]
        return total


class BankProduct(UpdateSpec, frozen=True, tag="bank-low-rank"):
    """bank: (vectors, length). top: number of vectors that are mixed for each part of a factor."""

    bank: Factor
    a: BankHalf
    b: BankHalf
    top: int
    scale: float
    transposed: bool = False

    def load(self, inputs: Inputs) -> LowRankAddition:
        bank = inputs.wide(self.bank)
        a, b = self.a.mixed(inputs, bank, self.top), self.b.mixed(inputs, bank, self.top).transpose(0, 2, 1)
        a, b = a.reshape(len(a), -1), b.reshape(-1, b.shape[2])
        return product(a.astype(np.float32), b.astype(np.float32), self.scale, transposed=self.transposed)


def _largest(logits: F32, top: int) -> tuple[F64, Indices]:
    """Softmax over the largest logits, and their indices; of equal ones the first count."""
    places = np.argsort(-logits, axis=-1, kind="stable")[..., :top]
    chosen = np.take_along_axis(logits, places, axis=-1).astype(np.float64)
    weights = np.exp(chosen - chosen.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True), places.astype(np.int64)


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear", conv1d=True)
        bank = view.shared.get(_BANK)
        if bank is None:
            raise rejected(f"{group.first.name} has no matching {_BANK}", group.first)
        if len(bank.shape) != 2 or not bank.shape[1] or to.in_ % bank.shape[1] or to.out % bank.shape[1]:
            raise rejected(
                f"{bank.name} has the shape {shape(bank)}; the length of its vectors must divide {to.out} and {to.in_}",
                bank,
            )
        top = view.config.raw.get("topk", 2)
        if type(top) is not int or not 1 <= top <= bank.shape[0]:
            raise rejected(f"{bank.name}: topk = {str(top)[:40]}, but there are {bank.shape[0]} vectors", bank)
        a, b = _half(view, group, to, bank, top, "A"), _half(view, group, to, bank, top, "B")
        found.append(change(view, to, BankProduct(factor(bank), a, b, top, view.scaled(), to.transposed)))
    return found


def _half(view: View, group: ModuleTensors, to: Target, bank: TensorEntry, top: int, name: str) -> BankHalf:
    rank, (vectors, length) = view.config.r or 0, bank.shape
    tiles = (rank, to.in_ // length) if name == "A" else (to.out // length, rank)
    logits = f"vblora_logits_{name}"
    if logits in group.tensors:
        return BankHalf(logits=factor(shaped(group.tensors[logits], *tiles, vectors)))
    weights, indices = needed(group, f"{logits}_topk_weights", f"{logits}_topk_indices")
    return BankHalf(weights=factor(shaped(weights, *tiles, top - 1)), places=index_factor(shaped(indices, *tiles, top)))


ROOM = Room(
    match,
    updates=(BankProduct,),
    page=Page(
        "VB-LoRA",
        "adds B A of vectors of the bank, by the softmax of the top logits or by stored weights and positions",
        "element",
        "linear, Conv1D",
        "`_get_lora_matrices`",
    ),
)

"""VBLORA: W + B A, both put together of vectors of one bank, each by the softmax of its few largest logits.

Source: peft 0.21.2 `vblora.Linear._get_lora_matrices`; with save_only_topk_weights `VBLoRAModel.
_remap_adapter_state_dict_for_load`: all but the last of the weights are stored, and the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lora_contract.tensors import TensorEntry
from lora_kernels.merging.match.target import Target, added, needed, places, shaped, target
from lora_kernels.merging.match.view import Group, Matches, View, rejected, shape

_BANK: Final = "vblora_vector_bank"


def match(view: View, groups: Sequence[Group]) -> Matches:
    found = []
    for group in groups:
        to = target(view, group, "linear", conv1d=True)
        bank = view.shared.get(_BANK)
        if bank is None:
            raise rejected(f"{group.first.name} has no {_BANK} beside it; nothing can be made without it", group.first)
        if len(bank.shape) != 2 or not bank.shape[1] or to.in_ % bank.shape[1] or to.out % bank.shape[1]:
            raise rejected(
                f"{bank.name} has the shape {shape(bank)}; the length of its vectors must divide {to.out} and {to.in_}",
                bank,
            )
        top = view.config.raw.get("topk", 2)
        if type(top) is not int or not 1 <= top <= bank.shape[0]:
            raise rejected(f"{bank.name}: topk = {str(top)[:40]}, but there are {bank.shape[0]} vectors", bank)
        factors: dict[str, Any] = {"bank": bank, **_half(view, group, to, bank, top, "A")}
        factors |= _half(view, group, to, bank, top, "B")
        found.append(added(view, to, "bank-low-rank", factors, top=top, transposed=to.transposed))
    return found


def _half(view: View, group: Group, to: Target, bank: TensorEntry, top: int, name: str) -> dict[str, Any]:
    rank, (vectors, length) = view.config.r or 0, bank.shape
    tiles = (rank, to.in_ // length) if name == "A" else (to.out // length, rank)
    logits = f"vblora_logits_{name}"
    if logits in group.tensors:
        return {name: shaped(group.tensors[logits], *tiles, vectors)}
    weights, indices = needed(group, f"{logits}_topk_weights", f"{logits}_topk_indices")
    return {
        f"{name}_weights": shaped(weights, *tiles, top - 1),
        f"{name}_places": places(shaped(indices, *tiles, top)),
    }

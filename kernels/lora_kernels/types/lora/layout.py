"""Whether a linear weight is stored as (in, out)."""

from __future__ import annotations

from collections.abc import Sequence

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseTensor
from lora_contract.modules import BaseModule
from lora_kernels.types.matching.view import View, unsupported


class Layout:
    """Which linear weights are stored as (in, out).

    PEFT goes by the class of a layer and corrects `fan_in_fan_out` accordingly, so the flag alone says nothing about a
    module. For known types of bases the type decides; for others the flag is trusted only if an update of the adapter
    confirms it and none contradicts it.
    """

    def __init__(self, view: View, groups: Sequence[ModuleTensors]) -> None:
        self._view = view
        self._transposed, self._plain = 0, 0
        if view.config.fan_in_fan_out and not view.stores_transposed:
            for group in groups:
                self._count(group)

    def _count(self, group: ModuleTensors) -> None:
        a, b = group.tensors.get("lora_A.weight"), group.tensors.get("lora_B.weight")
        found = self._view.modules.resolve(group.path)
        if a is None or b is None or found is None or found.kind != "linear" or found.weight is None:
            return
        rows, columns = found.weight.shape
        if rows != columns:
            self._transposed += (b.shape[:1], a.shape[1:]) == ((columns,), (rows,))
            self._plain += (b.shape[:1], a.shape[1:]) == ((rows,), (columns,))

    def transposed(self, found: BaseModule, weight: BaseTensor) -> bool:
        view = self._view
        if found.transposed or view.stores_transposed or not view.config.fan_in_fan_out:
            return found.transposed
        if bool(self._transposed) == bool(self._plain):
            square = weight.shape[0] == weight.shape[1]
            if square or self._transposed:
                unsupported(
                    f"LoRA with fan_in_fan_out on a base of type {view.base.model_type or 'unknown'}",
                    found.path,
                    "it is unknown whether its weight is stored as (in, out) or (out, in)",
                )
        return bool(self._transposed)

"""Tensors that any type may carry beside its own: saved modules, trained biases, copies of base weights.

Merge rules are those of peft 0.21.2 (`ModulesToSaveWrapper`, `bias` of `LoraConfig`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match.view import View, factor, rejected, shape
from lora_reg.spec.adapter.names import PREFIX
from lora_reg.spec.adapter.patterns import names_module
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.tensors import TensorEntry

BASE_LAYER: Final = ".base_layer."


class Saved:
    """Tells replacements from copies. A copy of the base's own weight changes nothing and is left out knowingly."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._names: Callable[[str], bool] = names_module(view.config.modules_to_save)

    def match(self, entry: TensorEntry) -> tuple[str, Delta] | None:
        """The replacement that a tensor is; None for a copy. Raises RegistryError `rejected` for anything else."""
        name = entry.name.removeprefix(PREFIX)
        if BASE_LAYER in name and not (name.endswith(".bias") and self._view.config.bias != "none"):
            self._check_copy(entry, name)
            return None
        return self._replacement(entry, name)

    def _replacement(self, entry: TensorEntry, name: str) -> tuple[str, Delta]:
        trained_bias = self._view.config.bias != "none" and name.endswith(".bias")
        name = name.replace(BASE_LAYER, ".").replace(".modules_to_save.", ".")
        module = name.rpartition(".")[0]
        if not trained_bias and not self._is_saved(module):
            raise rejected(
                f"{entry.name} is no {self._view.config.peft_type} tensor and its module is not in modules_to_save; it "
                "would overwrite the base",
                entry,
            )
        what = "A trained bias" if trained_bias else "A module in modules_to_save"
        target = self._view.modules.resolve_parameter(name)
        self._view.refuse_tied(module, target.name if target is not None else "", entry)
        if target is None:
            raise rejected(f"{entry.name} replaces {name}, which the base does not have", entry)
        if target.shape != entry.shape:
            raise rejected(f"{entry.name} has the shape {shape(entry)}, but {target.name} has {shape(target)}", entry)
        if self._view.adapter.weight != 1:
            raise RegistryError(
                "rejected",
                f"{what} replaces {target.name} whole; it cannot be weighted by {self._view.adapter.weight:g}.",
                way_out="Give this adapter the weight 1.",
                tensor=entry.name,
            )
        return target.name, Delta(
            adapter=self._view.index, kind="replace", module=module, factors={"new": factor(entry)}
        )

    def _check_copy(self, entry: TensorEntry, name: str) -> None:
        """A copy of the base's own weight, as PEFT stores it for adapted embeddings, must at least be as large."""
        original = self._view.modules.resolve_parameter(name.replace(BASE_LAYER, "."))
        if original is None:
            raise rejected(f"{entry.name} is a copy of a base weight that the base does not have", entry)
        if original.shape != entry.shape:
            raise rejected(
                f"{entry.name} has the shape {shape(entry)}, but {original.name} has {shape(original)}: the adapter "
                "was trained on a resized base",
                entry,
            )

    def _is_saved(self, module: str) -> bool:
        """modules_to_save may name a container: then its children are saved with it."""
        while module:
            if self._names(module):
                return True
            module = module.rpartition(".")[0]
        return False

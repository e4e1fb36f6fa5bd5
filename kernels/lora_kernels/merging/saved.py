"""Tensors that adapters of any type may contain: saved modules, trained biases, copies of base weights.

Merge rules are those of peft 0.21.2 (`ModulesToSaveWrapper`, `bias` of `LoraConfig`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_contract.adapter.names import PREFIX
from lora_contract.base import BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.tensors import TensorEntry
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.view import View, factor, rejected, shape

BASE_LAYER: Final = ".base_layer."


class SavedMatcher:
    """Matches replacements and copies. A copy of a base weight changes nothing and is ignored."""

    def __init__(self, view: View, entries: Sequence[TensorEntry]) -> None:
        self._view = view
        self._ends = tuple(view.config.modules_to_save)
        tie = view.tie
        # With ensure_weight_tying PEFT saves one module under both names.
        tied = tie is not None and view.config.on("ensure_weight_tying")
        self._embedding = self._entry_of(tie.embedding.weight, entries) if tied and tie is not None else None
        self._head = (
            self._entry_of(tie.head.weight, entries) if self._embedding is not None and tie is not None else None
        )

    def match(self, entry: TensorEntry) -> Matches:
        """The replacement by a saved tensor; empty for a copy. Raises RegistryError `rejected` for anything else."""
        name = entry.name.removeprefix(PREFIX)
        trained_bias = name.endswith(".bias") and self._trains_bias(wrapped=BASE_LAYER in name)
        if BASE_LAYER in name and not trained_bias:
            self._check_copy(entry)
            self._view.ignored.append(entry.name)
            return []
        return self._replacement(entry, trained_bias=trained_bias)

    def _replacement(self, entry: TensorEntry, *, trained_bias: bool) -> Matches:
        view = self._view
        name = _plain(entry)
        module = name.rpartition(".")[0]
        owner = view.modules.resolve(module)
        tied = entry in (self._embedding, self._head)
        if not trained_bias and not tied and not self._is_saved(module):
            raise rejected(
                f"{entry.name} is not a tensor of a {view.config.peft_type} adapter and its module is not in "
                "modules_to_save; it would overwrite the base",
                entry,
            )
        what = "A trained bias" if trained_bias else "A module in modules_to_save"
        target = self._target(name)
        if target is None and (partners := view.modules.sharing.partners(name)):
            raise RegistryError(
                "unsupported",
                f"{entry.name} replaces {name}, which the base ties to {', '.join(partners)} and does not store.",
                hint="Serve the adapter unmerged, or untie the base first and register the result as a new base.",
                module=module,
                tensor=entry.name,
            )
        if target is None:
            raise rejected(f"{entry.name} replaces {name}, which the base does not have", entry)
        if owner is not None and name.endswith(".weight"):
            target = view.untied(owner, target)
        if target.shape != entry.shape:
            raise rejected(f"{entry.name} has the shape {shape(entry)}, but {target.name} has {shape(target)}", entry)
        if view.adapter.weight != 1:
            raise RegistryError(
                "rejected",
                f"{what} replaces all of {target.name}; it cannot be weighted by {view.adapter.weight:g}.",
                hint="Give this adapter the weight 1.",
                tensor=entry.name,
            )
        if entry is self._head:
            return []  # `View.with_tied` lists it as ignored when it compares it with the embedding's
        new = factor(entry)
        change = Change(target.name, module, Replacement(new))
        if entry is not self._embedding:
            return [change]
        return view.with_tied(change, [(new, self._head)] if self._head is not None else [])

    def _entry_of(self, weight: BaseTensor | None, entries: Sequence[TensorEntry]) -> TensorEntry | None:
        """The saved tensor that replaces a weight; None if there is none."""
        for entry in entries:
            owner = self._view.modules.resolve(_plain(entry).removesuffix(".weight"))
            if weight is None or BASE_LAYER in entry.name or owner is None or owner.weight is None:
                continue
            if self._view.untied(owner, owner.weight).name == weight.name:
                return entry
        return None

    def _target(self, name: str) -> BaseTensor | None:
        """The base tensor of a parameter; the embedding's for a tied output layer."""
        found = self._view.modules.resolve_parameter(name)
        if found is None and name.endswith(".weight"):
            owner = self._view.modules.resolve(name.removesuffix(".weight"))
            found = owner.weight if owner is not None else None
        return found

    def _check_copy(self, entry: TensorEntry) -> None:
        """Check the shape of a copy of a base weight, which PEFT stores for adapted embeddings."""
        original = self._target(_plain(entry))
        if original is None:
            raise rejected(f"{entry.name} is a copy of a base weight that the base does not have", entry)
        if original.shape != entry.shape:
            raise rejected(
                f"{entry.name} has the shape {shape(entry)}, but {original.name} has {shape(original)}: the adapter "
                "was trained on a resized base",
                entry,
            )

    def _trains_bias(self, *, wrapped: bool) -> bool:
        """Whether the config trains biases: "all", or those of adapted layers ("lora_only")."""
        return self._view.config.bias == "all" or (self._view.config.bias.endswith("_only") and wrapped)

    def _is_saved(self, module: str) -> bool:
        """Whether modules_to_save names a module or one of its parents. PEFT compares the ends of paths, so "norm" also
        saves every input_layernorm."""
        while module:
            if module.endswith(self._ends):
                return True
            module = module.rpartition(".")[0]
        return False


def _plain(entry: TensorEntry) -> str:
    """The name of the base parameter."""
    name = entry.name.removeprefix(PREFIX)
    return name.replace(BASE_LAYER, ".").replace(".modules_to_save.", ".")

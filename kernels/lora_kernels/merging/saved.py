"""Tensors that adapters of any type may contain: saved modules, trained biases, copies of base weights.

Merge rules are those of peft 0.21.2 (`ModulesToSaveWrapper`, `bias` of `LoraConfig`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.saved import OWN_HEADS, is_saved, saved_modules, unwrapped
from lora_contract.base import BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.tensors import FLOAT_DTYPES, TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.merging.base_copies import Copy
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.view import View, factor, rejected, shape

BASE_LAYER: Final = ".base_layer."


class SavedMatcher:
    """Matches replacements and copies. A copy changes nothing and is ignored.

    copies: filled during matching; the merge is right only if each equals its original.
    """

    def __init__(self, view: View, entries: Sequence[TensorEntry]) -> None:
        self._view = view
        self.copies: list[Copy] = []
        self._by_name = {entry.name: entry for entry in entries}
        self._saved = saved_modules(view.config)
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
        if trained_bias or not self._is_copy(entry):
            return self._replacement(entry, trained_bias=trained_bias)
        self._view.ignored.append(entry.name)
        return []

    def _replacement(self, entry: TensorEntry, *, trained_bias: bool) -> Matches:
        view = self._view
        name = _plain(entry)
        module = name.rpartition(".")[0]
        owner = view.modules.resolve(module)
        tied = entry in (self._embedding, self._head)
        if not trained_bias and not tied and not is_saved(module, self._saved):
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
        if target is None and is_saved(module, OWN_HEADS.get(view.config.task_type or "", ())):
            raise RegistryError(
                "unsupported",
                f"{entry.name} is a head for {view.config.task_type}; which class a base of the type "
                f"{view.base.model_type or 'unknown'} has for this task, and with which parts, is unknown.",
                hint="Serve the adapter unmerged with PEFT, or register a base that has the head.",
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
            wrapped = unwrapped(entry.name.removeprefix(PREFIX)).wrapper is not None
            if weight is None or wrapped or owner is None or owner.weight is None:
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

    def _is_copy(self, entry: TensorEntry) -> bool:
        """Whether a tensor is a copy, by its name: of the base's module under a wrapper of PEFT, of an embedding or
        output layer that is not saved (`save_embedding_layers`), or of a saved module."""
        name, wrapper = unwrapped(entry.name.removeprefix(PREFIX))
        module, _, leaf = name.rpartition(".")
        saved = is_saved(module, self._saved) or entry in (self._embedding, self._head)
        twin = self._by_name.get(PREFIX + name)
        if wrapper == "modules_to_save" and saved and twin is not None and twin.shape == entry.shape:
            self.copies.append(Copy(factor(entry), Factor.of(twin)))
            return True
        embedding = leaf == "weight" and not saved and self._view.modules.holds_vocabulary(module)
        if wrapper == "original_module" and saved and self._target(name) is not None:
            return True  # the saved module replaces it
        if wrapper in ("base_layer", "original_module") or (wrapper is None and embedding):
            # base_layer comes with every adapted embedding; of merges in a row, the second finds what the first made.
            self._add_copy(entry, name, compared=wrapper != "base_layer")
            return True
        return False

    def _add_copy(self, entry: TensorEntry, name: str, *, compared: bool) -> None:
        original = self._target(name)
        if original is None:
            raise rejected(f"{entry.name} is a copy of a base weight that the base does not have", entry)
        if original.shape != entry.shape:
            raise rejected(
                f"{entry.name} has the shape {shape(entry)}, but {original.name} has {shape(original)}: the adapter "
                "was trained on a resized base",
                entry,
            )
        if compared and original.dtype in FLOAT_DTYPES:
            factor(entry)
            self.copies.append(Copy.of_base(entry, original))

    def _trains_bias(self, *, wrapped: bool) -> bool:
        """Whether the config trains biases: "all", or those of adapted layers ("lora_only")."""
        return self._view.config.bias == "all" or (self._view.config.bias.endswith("_only") and wrapped)


def _plain(entry: TensorEntry) -> str:
    """The name of the base parameter."""
    return unwrapped(entry.name.removeprefix(PREFIX)).name
